//! Faults planted into trained adapters, on the demo model: each is caught by the trial, and healthy adapters are not.

use std::{fs, path::Path, sync::Arc};

use serde_json::{Value, json};
use tunegate::{
    adapters::{AdapterError, ManagedBy},
    app,
    gateway::{
        Gateway, Prompt,
        publish::{Candidate, Expected, Load, Origin, PublishError},
        trial::{GOLDEN_TOLERANCE, MAX_MEAN_GAP},
    },
    metrics::Metrics,
    terms::{AdapterName, Message, Role},
};

use super::draft::Draft;
use crate::support::{Answer, config, question};

const HIDDEN: usize = 576;
const FIRST_LAYER: usize = 15;
const LAYERS: usize = 15;

fn repository(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path).display().to_string()
}

/// Two bytes a value: the adapters are float16.
fn halves(draft: &mut Draft, half: &str, change: impl Fn(&str, &mut Vec<u8>)) {
    for (name, tensor) in draft.tensors.iter_mut().filter(|(name, _)| name.contains(half)) {
        assert_eq!(tensor.dtype, "F16");
        change(name, &mut tensor.data);
    }
}

fn zero(draft: &mut Draft) {
    halves(draft, "lora_B", |_, data| data.fill(0));
}

fn ten_times(draft: &mut Draft) {
    let alpha = draft.config["lora_alpha"].as_f64().unwrap();
    draft.set("lora_alpha", json!(10.0 * alpha));
}

fn flipped(draft: &mut Draft) {
    halves(draft, "lora_B", |_, data| data.iter_mut().skip(1).step_by(2).for_each(|byte| *byte ^= 0x80));
}

/// Every layer's matrices in another layer.
fn shuffled(draft: &mut Draft) {
    let tensors = std::mem::take(&mut draft.tensors);
    let moved = |name: String| {
        let (before, rest) = name.split_once("layers.").unwrap();
        let (layer, after) = rest.split_once('.').unwrap();
        let layer: usize = layer.parse().unwrap();
        format!("{before}layers.{}.{after}", FIRST_LAYER + (layer - FIRST_LAYER + 7) % LAYERS)
    };
    draft.tensors = tensors.into_iter().map(|(name, tensor)| (moved(name), tensor)).collect();
}

/// A base whose hidden units stand in another order is the same function, and another base of the same shape. This is
/// what training on it would have given: what reads hidden units, and what writes them, in that order.
fn of_another_base(draft: &mut Draft) {
    // 175 and 576 have no common factor.
    let place = |unit: usize| (175 * unit + 31) % HIDDEN;
    for (name, tensor) in &mut draft.tensors {
        let reads = name.contains("lora_A") && ["q_proj", "v_proj"].iter().any(|site| name.contains(site));
        let writes = name.contains("lora_B") && ["o_proj", "down_proj"].iter().any(|site| name.contains(site));
        let [rows, cols] = tensor.shape[..] else { panic!("{name} is no matrix") };
        let old = tensor.data.clone();
        let value = |row: usize, col: usize| [old[2 * (row * cols + col)], old[2 * (row * cols + col) + 1]];
        for row in 0..rows {
            for col in 0..cols {
                let from = match (reads, writes) {
                    (true, _) => value(row, place(col)),
                    (_, true) => value(place(row), col),
                    (false, false) => value(row, col),
                };
                tensor.data[2 * (row * cols + col)..][..2].copy_from_slice(&from);
            }
        }
    }
}

/// Every value by up to 6 % larger or smaller.
fn perturbed(draft: &mut Draft, seed: u64) {
    let state = std::cell::Cell::new(seed);
    halves(draft, "lora_", |_, data| {
        for byte in data.iter_mut().step_by(2) {
            // Knuth's MMIX generator; its high bits are good enough to disturb.
            state.set(state.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
            *byte ^= (state.get() >> 58) as u8;
        }
    });
}

struct Bench {
    gateway: Gateway,
    place: tempfile::TempDir,
}

/// What a trial found: its figures if it passed, else the test and the reason.
type Tried = Result<Value, (String, String)>;

impl Bench {
    async fn tried(&self, name: &str, draft: &Draft) -> Tried {
        let path = self.place.path().join(name);
        draft.write(&path);
        let load = Load {
            name: AdapterName::parse(name).unwrap(),
            candidate: Candidate::Folder { root: path.clone(), path },
            replace: true,
            expected: Expected::Anything,
            pinned: None,
            warm: true,
            origin: Origin { managed_by: ManagedBy::Api, who: "tester".to_owned(), why: None, source: None },
        };
        let publisher = self.gateway.publisher();
        match publisher.load(load).await {
            Ok(published) => {
                let verdict = publisher.adapters().latest_verdict(published.version()).unwrap();
                Ok(serde_json::from_str(&verdict.figures).unwrap())
            }
            Err(PublishError::Adapter(AdapterError::Refused { refusals, .. })) => {
                Err((refusals[0].subject.clone(), refusals[0].reason.clone()))
            }
            Err(error) => panic!("{name}: {error}"),
        }
    }

    /// What the adapter answers, as golden answers of its card.
    async fn golden(&self, name: &str, prompts: &[&str]) -> Vec<(String, String)> {
        let mut golden = Vec::new();
        for prompt in prompts {
            let message = Message { role: Role::User, content: (*prompt).to_owned(), name: None };
            let chat =
                Prompt::Chat { messages: vec![message], add_generation_prompt: true, continue_final_message: false };
            let mut ask = question(name, chat, 48);
            ask.ignore_eos = false;
            let answer = Answer::collect(self.gateway.ask(ask).await.unwrap()).await.unwrap();
            golden.push(((*prompt).to_owned(), answer.choices[0].text.clone()));
        }
        golden
    }
}

fn card(golden: &[(String, String)], logprobs: &[Option<f64>]) -> String {
    let mut card = String::new();
    for ((prompt, answer), logprob) in golden.iter().zip(logprobs) {
        let mut entry = toml::Table::new();
        entry.insert("prompt".to_owned(), prompt.clone().into());
        entry.insert("answer".to_owned(), answer.clone().into());
        entry.extend(logprob.map(|logprob| ("logprob".to_owned(), logprob.into())));
        card.push_str(&format!("[[golden]]\n{entry}"));
    }
    card
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_planted_fault_is_caught_and_healthy_adapters_are_not_refused() {
    let model =
        std::env::var("TUNEGATE_TEST_MODEL").expect("TUNEGATE_TEST_MODEL names the demo model's GGUF: run `make test`");
    let place = tempfile::tempdir().unwrap();
    let mut config = config(place.path().join("data"));
    config.model.path = model.into();
    config.model.cpu.exact = false;
    config.model.kv_bytes = 64 << 20;
    config.adapters.dirs = Vec::new();
    config.adapters.trial = true;
    let built = app::build(&config, &Arc::new(Metrics::new())).unwrap();
    let bench = Bench { gateway: built.gateway.clone(), place };

    let folders = [
        ("triage", "adapters/ticket-triage"),
        ("style", "adapters/house-style"),
        ("triage-v1", "recipes/ticket-triage/versions/v1"),
        ("triage-v2", "recipes/ticket-triage/versions/v2"),
    ];
    let mut healthy = Vec::new();
    for (name, folder) in folders {
        let draft = Draft::of(&repository(folder));
        healthy.push((name.to_owned(), draft.clone()));
        for seed in 1..=2 {
            let mut other = draft.clone();
            perturbed(&mut other, seed);
            healthy.push((format!("{name}-disturbed-{seed}"), other));
        }
    }
    healthy.truncate(10);
    for (name, draft) in &healthy {
        let figures = bench.tried(name, draft).await.unwrap_or_else(|found| panic!("{name} is healthy: {found:?}"));
        let [mean, most] = ["mean_gap", "max_gap"].map(|key| figures[key].as_f64().unwrap());
        println!("{name}: parts by {mean:.3}, at most {most:.3}");
        assert!(mean < MAX_MEAN_GAP / 2.0, "{name} is near the bound");
    }

    for (name, folder, prompts) in [
        ("triage", folders[0].1, ["The drive belt of Norvik HX-310 has snapped, the line is standing."]),
        (
            "style",
            folders[1].1,
            ["We kindly inform you that the meeting is going to be held on 4 May. Please do not hesitate to call."],
        ),
    ] {
        let draft = Draft::of(&repository(folder));
        let golden = bench.golden(name, &prompts).await;
        println!("{name} answers {:?}", golden[0].1);
        let mut carded = draft.clone();
        carded.put("adapter.toml", card(&golden, &[None]));
        let figures = bench.tried(&format!("{name}-carded"), &carded).await.expect("healthy with its golden answers");
        println!("{name}: golden {}", figures["golden"]);
        let own = fs::read_to_string(repository(&format!("{folder}/adapter.toml"))).unwrap();
        let mut shipped = draft.clone();
        shipped.put("adapter.toml", own.clone());
        let figures =
            bench.tried(&format!("{name}-shipped"), &shipped).await.expect("healthy with the card it ships with");
        println!("{name}: its own card's golden {}", figures["golden"]);
        for answer in figures["golden"].as_array().unwrap() {
            let [base, candidate, recorded] =
                ["base", "candidate", "recorded"].map(|key| answer[key].as_f64().unwrap());
            assert!(candidate > recorded - GOLDEN_TOLERANCE / 3.0, "{name} is near what its card allows: {answer}");
            assert!(base < recorded - 4.0 * GOLDEN_TOLERANCE, "{name}: the base could have said it: {answer}");
        }

        for (fault, plant, without_golden) in [
            ("zero", zero as fn(&mut Draft), true),
            ("ten-times", ten_times, true),
            ("flipped", flipped, false),
            ("shuffled", shuffled, false),
            ("another-base", of_another_base, false),
        ] {
            // Without golden answers only the first two are promised.
            let other = if without_golden { None } else { Some(own.clone()) };
            let cards = [Some(card(&golden, &[None])), other];
            for (index, card) in cards.into_iter().enumerate() {
                let mut planted = draft.clone();
                plant(&mut planted);
                if let Some(card) = card {
                    planted.put("adapter.toml", card);
                }
                let tried = bench.tried(&format!("{name}-{fault}-{index}"), &planted).await;
                let (test, reason) = tried.expect_err("a planted fault is caught");
                println!("{name} {fault}: {test}: {reason}");
                assert_ne!(test, "finite");
            }
        }
    }
    drop(bench);
    built.stop();
}
