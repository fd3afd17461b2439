//! The fused decoder's rows are the same to the bit, in both classes: alone and among others, however prompts are chunked, on any
//! number of threads, in blocks of any one size.

use std::sync::Arc;

use tunegate::model::{CpuOptions, LoraAdapter};

use super::{
    desk::{Desk, EXACT, FAST, Request},
    golden::{self, Answer, Scores},
};

const GREEDY: usize = 12;

const ADAPTERS: [&str; 6] = ["plain-qv", "all7", "rslora", "o-down", "bf16", "rank-1"];

/// A model with windows, one with norms on its heads, one with biases, and the plainest with every kind of adapter.
const MODELS: [&str; 4] = ["llama", "mistral", "qwen3", "qwen2"];

fn desk(model: &str, cpu: CpuOptions, threads: usize) -> Desk {
    Desk::open_with(&golden::path(&format!("models/{model}")), 256, 16, CpuOptions { threads: Some(threads), ..cpu })
}

fn adapters(model: &str, desk: &Desk) -> Vec<Option<Arc<LoraAdapter>>> {
    let names: &[&str] = if model == "llama" { &ADAPTERS } else { &[] };
    let load = |name: &&str| Some(desk.adapter(&golden::path(&format!("adapters/{model}/{name}"))));
    [None].into_iter().chain(names.iter().map(load)).collect()
}

#[track_caller]
fn same_bits(one: &Answer, other: &Answer, what: &str) {
    let bits = |answer: &Answer| -> Vec<u32> {
        let scores = answer.logprobs.iter().chain(&answer.greedy.logprobs).chain(answer.entropies.iter().map(|e| &e.1));
        scores.map(|score| score.to_bits()).chain(answer.greedy.tokens.iter().copied()).collect()
    };
    assert!(bits(one) == bits(other), "{what}");
}

#[test]
fn rows_are_the_same_to_the_bit_alone_and_among_others_in_chunks_and_on_any_number_of_threads() {
    for cpu in [EXACT[1], FAST] {
        for model in MODELS {
            let scores = Scores::read(&format!("scores/{model}.json"));
            let mut first: Option<Vec<Answer>> = None;
            for threads in [1, 2, 3] {
                let mut desk = desk(model, cpu, threads);
                let contenders = adapters(model, &desk);
                let requests: Vec<Request> = (0..2 * contenders.len().max(4))
                    .map(|index| Request {
                        tokens: &scores.prompts[index * 5 % scores.prompts.len()].tokens,
                        adapter: contenders[index % contenders.len()].clone(),
                        chunk: [usize::MAX, 3, 16, 1, 29][index % 5],
                    })
                    .collect();
                let together = desk.answer(&requests, GREEDY);
                for (index, (request, beside)) in requests.iter().zip(&together).enumerate() {
                    for chunk in [usize::MAX, 7] {
                        let alone = desk.answer(&[Request { chunk, ..request.clone() }], GREEDY);
                        same_bits(&alone[0], beside, &format!("{model}, {threads} threads, request {index}, {chunk}"));
                    }
                }
                let before = first.get_or_insert_with(|| together.clone());
                for (index, (one, other)) in before.iter().zip(&together).enumerate() {
                    same_bits(one, other, &format!("{model}, request {index} on {threads} threads"));
                }
            }
        }
    }
}

#[test]
fn quantized_weights_give_the_same_bits_alone_and_among_others() {
    for file in
        ["llama-q8_0", "llama-q4_0", "llama-q4_1", "llama-q5_0", "llama-q5_1", "wide-q4_k", "wide-q5_k", "wide-q6_k"]
    {
        let scores = Scores::read(&format!("scores/{file}.json"));
        let mut desk = Desk::open_with(&golden::path(&scores.model), 256, 16, FAST);
        let requests: Vec<Request> = scores
            .prompts
            .iter()
            .zip([usize::MAX, 5, 1].into_iter().cycle())
            .map(|(prompt, chunk)| Request { tokens: &prompt.tokens, adapter: None, chunk })
            .collect();
        let together = desk.answer(&requests, GREEDY);
        for (request, beside) in requests.iter().zip(&together) {
            let alone = desk.answer(&[Request { chunk: usize::MAX, ..request.clone() }], GREEDY);
            same_bits(&alone[0], beside, file);
        }
    }
}
