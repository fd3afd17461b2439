//! Adapters of every kind that is served, as PEFT wrote them, and those that are valid and not served yet.

use std::{fs, path::PathBuf};

use serde_json::{Value, json};
use tunegate::{
    adapters::{
        AdapterLimits,
        check::{AdapterPlan, check_folder},
        folder::AdapterFiles,
        peft,
    },
    model::{Site, SiteDelta, lora::Values},
    terms::AdapterVersion,
};

use super::draft::{Base, Draft, LIMITS, LLAMA, Q0, TensorDraft, golden, load};

fn read_json(path: &str) -> Value {
    serde_json::from_slice(&fs::read(golden(path)).unwrap()).unwrap()
}

fn folders(below: &str) -> Vec<(String, PathBuf)> {
    let mut folders = Vec::new();
    for model in fs::read_dir(golden(below)).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_dir()) {
        for adapter in fs::read_dir(model.path()).unwrap().map(Result::unwrap) {
            folders.push((model.file_name().into_string().unwrap(), adapter.path()));
        }
    }
    folders.sort();
    folders
}

#[test]
fn every_golden_adapter_is_applied_with_the_ranks_and_scales_of_peft_and_packs() {
    let plans = read_json("plans.json");
    let folders = folders("adapters");
    assert_eq!(folders.len(), plans["folders"].as_object().unwrap().len());
    for models in folders.chunk_by(|(one, _), (other, _)| one == other) {
        let base = Base::new(&models[0].0);
        for (_, folder) in models {
            let path = folder.strip_prefix(golden("")).unwrap().to_str().unwrap();
            let expected = plans["folders"][path].as_object().unwrap();
            let files = AdapterFiles::read(folder, folder, LIMITS.max_file_bytes).unwrap();
            let adapter = peft::read(&files, &base.identity.shape, LIMITS, None).unwrap();
            assert_eq!(adapter.plan.sites.len(), expected.len(), "{path}");
            for site in &adapter.plan.sites {
                let peft = &expected[&site.module];
                assert_eq!(peft[0], site.rank, "{path} {}", site.module);
                assert_eq!(peft[1].as_f64(), Some(site.alpha), "{path} {}", site.module);
                assert_eq!(peft[2].as_f64().map(|scale| scale as f32), Some(site.scale), "{path} {}", site.module);
            }
            let most = expected.values().map(|plan| plan[0].as_u64().unwrap()).max();
            assert_eq!(Some(adapter.card.rank as u64), most, "{path}");
            let bytes = base.packer.packed_bytes(&adapter.sites);
            let packed = base.packer.pack(files.version(), adapter.sites).unwrap();
            assert_eq!((packed.version(), packed.bytes()), (files.version(), bytes), "{path}");
        }
    }
}

#[test]
fn values_are_those_of_the_file_in_its_own_dtype() {
    for (path, dtype) in [("plain-qv", "f32"), ("f16", "f16"), ("bf16", "bf16")] {
        let path = format!("adapters/llama/{path}");
        let folder = golden(&path);
        let files = AdapterFiles::read(&folder, &folder, LIMITS.max_file_bytes).unwrap();
        let adapter = peft::read(&files, &LLAMA.identity.shape, LIMITS, None).unwrap();
        let draft = Draft::of(&path);
        for (site, delta) in &adapter.sites {
            let SiteDelta::LowRank { a, b, .. } = delta else { panic!("{site} is low-rank") };
            for (half, matrix) in [("lora_A", a), ("lora_B", b)] {
                let tensor = &draft.tensors[&format!("base_model.model.{site}.{half}.weight")];
                assert_eq!([matrix.rows, matrix.cols], tensor.shape[..]);
                let bytes: Vec<u8> = match &matrix.values {
                    Values::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                    Values::F16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                    Values::BF16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
                };
                assert_eq!(bytes, tensor.data, "{path} {site} {half}");
            }
        }
        assert!(adapter.plan.sites.iter().all(|site| site.dtype == dtype));
    }
}

#[test]
fn what_is_valid_and_not_supported_yet_is_refused_by_the_name_of_its_key() {
    let expect = read_json("later/expect.json");
    let folders = folders("later");
    assert_eq!(folders.len(), expect.as_object().unwrap().len());
    for (model, folder) in folders {
        let shape = load(&model).shape;
        let refusals = check_folder(&folder, &shape, LIMITS).unwrap_err();
        let name = folder.strip_prefix(golden("later")).unwrap().to_str().unwrap();
        let key = expect[name].as_str().unwrap();
        assert!(refusals.iter().any(|refusal| refusal.to_string().contains(key)), "{name}: {refusals:#?}");
    }
}

#[test]
fn harmless_keys_and_keys_that_say_nothing_are_passed_over() {
    let root = tempfile::tempdir().unwrap();
    let mut draft = Draft::plain();
    for (key, value) in [
        ("key_of_next_year", json!(null)),
        ("another_key", json!(false)),
        ("a_list", json!([])),
        ("an_object", json!({})),
        ("a_text", json!("")),
        ("lora_dropout", json!(0.3)),
        ("revision", json!("main")),
        ("auto_mapping", json!({"base_model_class": "LlamaForCausalLM"})),
        ("eva_config", json!({"rho": 2.0})),
        ("init_lora_weights", json!("eva")),
        ("task_type", json!("CAUSAL_LM")),
    ] {
        draft.set(key, value);
    }
    draft.write(root.path());
    check_folder(root.path(), &LLAMA.identity.shape, LIMITS).unwrap();
}

#[test]
fn a_config_with_only_what_is_needed_has_pefts_defaults() {
    let root = tempfile::tempdir().unwrap();
    let mut draft = Draft::plain();
    draft.config = json!({"peft_type": "LORA"});
    draft.write(root.path());
    let plan = check_folder(root.path(), &LLAMA.identity.shape, LIMITS).unwrap();
    assert!(plan.sites.iter().all(|site| (site.rank, site.alpha, site.scale) == (8, 8.0, 1.0)));
    assert_eq!(plan.sites.len(), 4, "q_proj and v_proj of both layers, as PEFT chooses for a llama");
}

#[test]
fn the_adapters_name_may_stand_in_the_keys() {
    let root = tempfile::tempdir().unwrap();
    let mut draft = Draft::plain();
    let named = |name: String| name.replace(".lora_A.", ".lora_A.default.").replace(".lora_B.", ".lora_B.default.");
    draft.tensors = draft.tensors.into_iter().map(|(name, tensor)| (named(name), tensor)).collect();
    draft.write(root.path());
    check_folder(root.path(), &LLAMA.identity.shape, LIMITS).unwrap();
}

#[test]
fn every_kind_is_applied_with_the_ranks_and_scales_of_peft_and_packs_into_the_bytes_told_before() {
    let plans = read_json("plans.json");
    let folders = folders("kinds");
    assert_eq!(folders.len(), plans["kinds"].as_object().unwrap().len());
    for models in folders.chunk_by(|(one, _), (other, _)| one == other) {
        let base = Base::new(&models[0].0);
        for (_, folder) in models {
            let path = folder.strip_prefix(golden("")).unwrap().to_str().unwrap();
            let expected = plans["kinds"][path].as_object().unwrap();
            let files = AdapterFiles::read(folder, folder, LIMITS.max_file_bytes).unwrap();
            let limits = AdapterLimits { max_rank: 512, ..LIMITS };
            let offline = peft::read(&files, &base.identity.shape, limits, None).unwrap();
            let adapter = peft::read(&files, &base.identity.shape, limits, Some(base.weights.as_ref())).unwrap();
            let low_rank =
                |plan: &AdapterPlan| plan.sites.iter().filter(|site| site.rank > 0).cloned().collect::<Vec<_>>();
            assert_eq!(low_rank(&offline.plan), low_rank(&adapter.plan), "{path}: the base is not needed for a plan");
            assert_eq!(low_rank(&adapter.plan).len(), expected.len(), "{path}");
            for site in low_rank(&adapter.plan) {
                let peft = &expected[&site.module];
                assert_eq!(peft[0], site.rank, "{path} {}", site.module);
                assert_eq!(peft[2].as_f64().map(|scale| scale as f32), Some(site.scale), "{path} {}", site.module);
            }
            let bytes = base.packer.packed_bytes(&adapter.sites);
            let packed = base.packer.pack(files.version(), adapter.sites).unwrap();
            assert_eq!((packed.version(), packed.bytes()), (files.version(), bytes), "{path}");
        }
    }
}

#[test]
fn a_plan_names_what_is_done_at_each_site() {
    let kinds = |path: &str, model: &str| -> Vec<String> {
        let folder = golden(&format!("kinds/{model}/{path}"));
        let files = AdapterFiles::read(&folder, &folder, LIMITS.max_file_bytes).unwrap();
        let base = load(model);
        let plan = peft::read(&files, &base.shape, LIMITS, Some(&*base.base)).unwrap().plan;
        plan.sites
            .iter()
            .filter(|site| !site.module.contains("layers.1."))
            .map(|site| format!("{} {}", site.module, site.kind))
            .collect()
    };
    let layer = |module: &str| format!("model.layers.0.{module}");
    assert_eq!(
        kinds("save-head", "llama"),
        [layer("self_attn.q_proj lora"), layer("self_attn.v_proj lora"), "lm_head full".to_owned()]
    );
    // The changed copy of the head of a base whose head is the embedding goes over both.
    let expected = ["model.embed_tokens full", "model.layers.0.self_attn.q_proj lora", "lm_head full", "lm_head lora"];
    assert_eq!(kinds("head", "llama3"), expected);
    let expected = ["self_attn.q_proj lora", "self_attn.k_proj bias", "self_attn.v_proj bias", "self_attn.o_proj lora"];
    assert_eq!(kinds("bias-all", "qwen2"), expected.map(layer));
    let expected = ["model.embed_tokens dora", "model.layers.0.self_attn.k_proj dora", "lm_head dora"];
    assert_eq!(kinds("embed-dora", "llama"), expected);
}

#[test]
fn a_full_copy_of_the_bases_embedding_is_passed_over_and_a_changed_one_takes_its_place() {
    let root = tempfile::tempdir().unwrap();
    let mut draft = Draft::plain();
    let embedding =
        Draft::of("kinds/llama/embed").tensors["base_model.model.model.embed_tokens.base_layer.weight"].clone();
    draft.tensors.insert("base_model.model.model.embed_tokens.weight".to_owned(), embedding.clone());
    draft.write(root.path());
    let read = |folder: &std::path::Path| {
        let files = AdapterFiles::read(folder, folder, LIMITS.max_file_bytes).unwrap();
        peft::read(&files, &LLAMA.identity.shape, LIMITS, Some(LLAMA.weights.as_ref()))
    };
    let adapter = read(root.path()).unwrap();
    assert_eq!(adapter.sites.len(), 4);
    assert!(adapter.card.notes[0].contains("embed_tokens.weight is a copy of the base's"), "{:?}", adapter.card.notes);
    let offline = check_folder(root.path(), &LLAMA.identity.shape, LIMITS).unwrap();
    assert!(offline.notes[0].contains("only the server"), "{offline:?}");

    let mut changed = embedding;
    changed.set(512 * 64 - 1, 0.25);
    draft.tensors.insert("base_model.model.model.embed_tokens.weight".to_owned(), changed);
    draft.write(root.path());
    let adapter = read(root.path()).unwrap();
    assert!(matches!(adapter.sites[0], (Site::Embedding, SiteDelta::Full(_))), "{:?}", adapter.plan);
    assert!(adapter.card.notes[0].contains("differs from the base's and takes its place"), "{:?}", adapter.card.notes);
}

#[test]
fn a_converted_pissa_adapter_is_an_ordinary_one() {
    let folder = golden("kinds/llama/pissa-converted");
    let plan = check_folder(&folder, &LLAMA.identity.shape, LIMITS).unwrap();
    assert!(plan.sites.iter().all(|site| (site.rank, site.alpha, site.scale) == (8, 8.0, 1.0)), "{plan}");
}

#[test]
fn the_manifest_gives_template_sampling_description_and_golden_answers() {
    let root = tempfile::tempdir().unwrap();
    let mut draft = Draft::plain();
    let manifest = r#"
        description = "Sorts tickets."
        template = "{{ messages[0].content }}"
        [sampling]
        temperature = 0.0
        top_k = 5
        [[golden]]
        prompt = "The pump leaks."
        answer = "{}"
    "#;
    draft.put("adapter.toml", manifest);
    draft.write(root.path());
    let files = AdapterFiles::read(root.path(), root.path(), LIMITS.max_file_bytes).unwrap();
    let card = peft::read(&files, &LLAMA.identity.shape, LIMITS, None).unwrap().card;
    assert_eq!(card.description.as_deref(), Some("Sorts tickets."));
    assert_eq!(card.template.map(|template| template.text.to_string()).as_deref(), Some("{{ messages[0].content }}"));
    assert_eq!((card.sampling.temperature, card.sampling.top_k, card.sampling.top_p), (Some(0.0), Some(5), None));
    assert_eq!(card.golden[0].prompt, "The pump leaks.");
    assert_eq!(card.trained_on.as_deref(), Some("tunegate/golden-llama"));
    assert_eq!((card.rank, card.targets.as_slice()), (8, &["q_proj".to_owned(), "v_proj".to_owned()][..]));
}

#[test]
fn every_byte_of_the_three_files_makes_another_version() {
    let root = tempfile::tempdir().unwrap();
    let version = |change: fn(&mut Draft)| -> AdapterVersion {
        let mut draft = Draft::plain();
        change(&mut draft);
        let folder = tempfile::tempdir_in(root.path()).unwrap();
        draft.write(folder.path());
        AdapterFiles::read(folder.path(), folder.path(), LIMITS.max_file_bytes).unwrap().version()
    };
    let versions = [
        version(|_| {}),
        version(|d| d.set("lora_alpha", json!(17))),
        version(|d| d.tensor(&format!("{Q0}.lora_A.weight")).set(0, 0.125)),
        version(|d| d.put("adapter.toml", "")),
        version(|d| d.put("adapter.toml", "description = 'x'")),
    ];
    for (index, one) in versions.iter().enumerate() {
        assert!(versions[index + 1..].iter().all(|other| other != one), "{versions:?}");
    }
    assert_eq!(version(|d| d.put("README.md", "# Not part of it")), versions[0]);
}

#[test]
fn a_plan_is_a_table_for_people_and_json_for_machines() {
    let root = tempfile::tempdir().unwrap();
    let mut draft = Draft::of("adapters/llama/patterns");
    draft.set("fan_in_fan_out", json!(true));
    draft.write(root.path());
    let plan = check_folder(root.path(), &LLAMA.identity.shape, LIMITS).unwrap();
    let table = plan.to_string();
    let rows: Vec<&str> =
        table.lines().filter(|line| line.contains("self_attn") || line.starts_with("module")).collect();
    assert_eq!(
        rows[0].split_whitespace().collect::<Vec<_>>(),
        ["module", "rank", "alpha", "scale", "A", "B", "dtype", "kind"]
    );
    let first: Vec<&str> = rows[1].split_whitespace().collect();
    assert_eq!(first[..4], ["model.layers.0.self_attn.q_proj", "3", "8", "2.6666667"]);
    assert_eq!(first[4..], ["3×64", "64×3", "f32", "lora"]);
    assert!(rows.iter().all(|row| row.chars().count() == rows[0].chars().count()), "aligned:\n{table}");
    assert!(table.contains("note: fan_in_fan_out has no effect"), "{table}");
    let json = serde_json::to_value(&plan).unwrap();
    assert_eq!(json["sites"][0]["module"], "model.layers.0.self_attn.q_proj");
    assert_eq!(json["sites"].as_array().unwrap().len(), 14);
    assert_eq!(json["version"].as_str().unwrap().len(), 64);
}

#[test]
fn a_tensor_of_zeros_is_a_tensor() {
    let root = tempfile::tempdir().unwrap();
    let mut draft = Draft::plain();
    *draft.tensor(&format!("{Q0}.lora_B.weight")) = TensorDraft::f32(&[64, 8], 0.0);
    draft.write(root.path());
    check_folder(root.path(), &LLAMA.identity.shape, LIMITS).unwrap();
}
