//! Both decoders against `transformers` and `peft` in float32, by the golden files.

mod contract;
mod desk;
mod fast;
mod formats;
mod golden;
mod hostile;
mod identical;
mod kinds;
mod neighbours;
mod second_opinion;
mod trained;

use std::path::PathBuf;

use self::{
    desk::{Desk, EXACT, Request, levels},
    golden::Scores,
};

const GREEDY: usize = 64;

/// Every case of a scores file, each case's prompts in one ragged batch; returns what differs.
fn differences(scores: &Scores, desk: &mut Desk) -> Vec<String> {
    let mut found = Vec::new();
    for case in &scores.cases {
        let adapter = case.adapter.as_deref().map(|path| desk.adapter(&golden::path(path)));
        let requests: Vec<Request> =
            scores.prompts.iter().map(|prompt| Request::of(&prompt.tokens, adapter.clone())).collect();
        let answers = desk.answer(&requests, GREEDY);
        for ((prompt, expected), ours) in scores.prompts.iter().zip(&case.answers).zip(&answers) {
            if let Some(difference) = expected.difference(ours) {
                let adapter = case.adapter.as_deref().unwrap_or("base");
                found.push(format!("{} / {adapter} / {}: {difference}", scores.model, prompt.name));
            }
        }
    }
    found
}

/// The demo model, which is too large to be committed.
fn demo_model() -> PathBuf {
    let path = std::env::var_os("TUNEGATE_TEST_MODEL").map(PathBuf::from).filter(|path| path.is_file());
    path.expect("the demo model: run `make test`, which fetches it, or let TUNEGATE_TEST_MODEL name its GGUF")
}

fn holds(name: &str) {
    let scores = Scores::read(&format!("scores/{name}.json"));
    let decoders = EXACT.into_iter().flat_map(levels);
    for (cpu, block_tokens) in decoders.flat_map(|cpu| [4, 16].map(|block_tokens| (cpu, block_tokens))) {
        let mut desk = Desk::open_with(&golden::path(&scores.model), 256, block_tokens, cpu);
        let found = differences(&scores, &mut desk);
        assert!(found.is_empty(), "{cpu:?}, blocks of {block_tokens}: {}", found.join("\n"));
    }
}

#[test]
fn llama_and_every_kind_of_adapter_answer_as_peft_does() {
    holds("llama");
}

#[test]
fn kinds_beyond_plain_low_rank_answer_as_peft_does() {
    ["llama-kinds", "llama3-kinds", "qwen2-kinds"].into_iter().for_each(holds);
}

#[test]
fn scaled_rotary_positions_answer_as_transformers_does_beyond_the_original_length() {
    holds("llama3");
    holds("llama-linear");
}

#[test]
fn mistral_answers_as_transformers_does_beyond_its_window() {
    holds("mistral");
}

#[test]
fn qwen2_and_qwen3_answer_as_transformers_does() {
    holds("qwen2");
    holds("qwen3");
}

#[test]
fn smollm3_answers_as_transformers_does() {
    holds("smollm3");
}

#[test]
fn a_wider_model_answers_as_transformers_does() {
    holds("wide");
}

#[test]
fn plain_gguf_files_answer_as_their_decoded_weights_do() {
    ["llama-f32", "llama-f16", "llama-bf16"].into_iter().for_each(holds);
}

#[test]
fn quantized_gguf_files_answer_as_their_decoded_weights_do() {
    let types = ["q8_0", "q4_0", "q4_1", "q5_0", "q5_1"];
    types.iter().for_each(|kind| holds(&format!("llama-{kind}")));
    ["wide-q4_k", "wide-q5_k", "wide-q6_k"].into_iter().for_each(holds);
}

#[test]
fn gguf_files_of_every_family_answer_as_their_decoded_weights_do() {
    let families = ["llama3", "llama-linear", "qwen2", "qwen3", "smollm3"];
    families.iter().for_each(|family| holds(&format!("{family}-q8_0")));
}

#[test]
fn the_demo_model_answers_as_transformers_and_peft_do() {
    let scores = Scores::read("smollm2/scores.json");
    for cpu in EXACT {
        let mut desk = Desk::open_with(&demo_model(), 512, 16, cpu);
        let found = differences(&scores, &mut desk);
        assert!(found.is_empty(), "{:?}: {}", cpu.decoder, found.join("\n"));
    }
}
