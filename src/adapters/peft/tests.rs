//! What PEFT itself answers, from `tests/golden/plans.json`, against what is read here.

use std::path::PathBuf;

use super::{
    config::LoraConfig,
    json::Json,
    pattern::{PatternError, PythonPattern},
    targets::{self, TargetSite},
};
use crate::{
    adapters::{RefusalCode, faults::Faults},
    model::{Family, ModelShape, Rope},
};

fn golden(file: &str) -> serde_json::Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(file);
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn llama(layers: usize) -> ModelShape {
    ModelShape {
        family: Family::Llama,
        hidden: 8,
        layers,
        heads: 2,
        kv_heads: 1,
        head_dim: 4,
        ffn: 12,
        vocab: 32,
        max_positions: 64,
        norm_eps: 1e-5,
        rope: Rope::Plain { theta: 1e4 },
        no_rope: vec![false; layers],
        window: vec![None; layers],
        tied: false,
        qkv_bias: false,
        output_bias: false,
        ffn_bias: false,
        qk_norm: false,
    }
}

/// The sites of one configuration, or the codes of its refusal.
fn plan(config: &serde_json::Value, shape: &ModelShape) -> Result<Vec<TargetSite>, Vec<(RefusalCode, String)>> {
    let mut config = config.clone();
    config["peft_type"] = "LORA".into();
    let mut faults = Faults::default();
    let bytes = serde_json::to_vec(&config).unwrap();
    let sites =
        LoraConfig::read(&bytes, &mut faults).and_then(|config| targets::targeted(&config, shape, 256, &mut faults));
    let refusals: Vec<_> = faults.into_list().into_iter().map(|fault| (fault.code, fault.to_string())).collect();
    match sites {
        Some(sites) if refusals.is_empty() => Ok(sites),
        Some(_) | None => Err(refusals),
    }
}

#[test]
fn every_configuration_gives_the_modules_ranks_and_scales_that_peft_gives() {
    let golden = golden("plans.json");
    let shape = llama(golden["layers"].as_u64().unwrap() as usize);
    let (mut same, mut refused) = (0, 0);
    for case in golden["configs"].as_array().unwrap() {
        let config = &case["config"];
        let planned = plan(config, &shape);
        let Some(modules) = case.get("modules").and_then(|modules| modules.as_object()) else {
            assert!(planned.is_err(), "PEFT refuses {config}: {}", case["error"]);
            refused += 1;
            continue;
        };
        match planned {
            Ok(sites) => {
                assert_eq!(sites.len(), modules.len(), "{config}");
                for target in sites {
                    let expected = &modules[&target.site.to_string()];
                    assert_eq!(expected[0], target.rank, "{config}: {}", target.site);
                    assert_eq!(expected[1].as_f64(), Some(target.alpha), "{config}: {}", target.site);
                    assert_eq!(expected[2].as_f64().map(|s| s as f32), Some(target.scale), "{config}: {}", target.site);
                }
                same += 1;
            }
            // Stricter than PEFT in three things: what is not supported yet, names that fit nothing, and patterns that
            // Python and Rust read differently.
            Err(refusals) => {
                let strict = |(code, _): &(RefusalCode, String)| {
                    matches!(code, RefusalCode::UnknownTarget | RefusalCode::Unsupported | RefusalCode::Pattern)
                };
                assert!(refusals.iter().all(strict), "{config}: {refusals:?}");
                refused += 1;
            }
        }
    }
    assert!(same >= 150 && refused >= 30, "{same} applied, {refused} refused");
}

#[test]
fn a_pattern_answers_as_in_python_or_is_refused() {
    type Compile = fn(&str) -> Result<PythonPattern, PatternError>;
    let golden = golden("plans.json");
    let paths: Vec<&str> = golden["paths"].as_array().unwrap().iter().map(|path| path.as_str().unwrap()).collect();
    let mut answered = 0;
    let mut overcautious = Vec::new();
    for case in golden["patterns"].as_array().unwrap() {
        let text = case["pattern"].as_str().unwrap();
        for (key, compile) in [("full", PythonPattern::full as Compile), ("tail", PythonPattern::tail)] {
            match (compile(text), case[key].as_array()) {
                (Ok(pattern), Some(expected)) => {
                    for (path, expected) in paths.iter().zip(expected) {
                        assert_eq!(pattern.matches(path).ok(), expected.as_bool(), "{key} {text:?} on {path}");
                    }
                    answered += 1;
                }
                (Ok(_), None) => panic!("{key} {text:?} is no pattern in Python"),
                (Err(_), Some(_)) => overcautious.push(format!("{key} {text}")),
                (Err(_), None) => {}
            }
        }
    }
    assert!(answered >= 120, "{answered}");
    assert!(overcautious.len() <= 16, "{overcautious:?}");
}

#[test]
fn a_configuration_as_peft_writes_it_by_default_is_read_without_a_fault() {
    let path =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/adapters/llama/plain-qv/adapter_config.json");
    let bytes = std::fs::read(path).unwrap();
    let Ok(Json::Map(map)) = Json::parse(&bytes) else { panic!("an object") };
    assert!(map.len() >= 40, "every field of LoraConfig is there");
    let mut faults = Faults::default();
    let config = LoraConfig::read(&bytes, &mut faults).unwrap();
    assert_eq!(faults.into_list(), []);
    assert_eq!((config.rank, config.alpha, config.rank_stabilized), (8, 16.0, false));
}
