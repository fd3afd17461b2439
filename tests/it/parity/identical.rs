//! The fused decoder's rows are the same to the bit, in both classes and every format: alone and among others, however prompts are
//! chunked, on any number of threads, in blocks of any one size. Tensors give the same but for rounding.

use std::sync::Arc;

use tunegate::model::{CpuOptions, LoraAdapter};

use super::{
    desk::{Desk, EXACT, FAST, Request, levels},
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

/// All that an answer says, to the bit.
pub fn bits(answer: &Answer) -> Vec<u32> {
    let scores = answer.logprobs.iter().chain(&answer.greedy.logprobs).chain(answer.entropies.iter().map(|e| &e.1));
    scores.map(|score| score.to_bits()).chain(answer.greedy.tokens.iter().copied()).collect()
}

#[track_caller]
pub fn same_bits(one: &Answer, other: &Answer, what: &str) {
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

/// Every form of weights that a file may have.
pub const FORMATS: [&str; 11] = [
    "llama-f32",
    "llama-f16",
    "llama-bf16",
    "llama-q8_0",
    "llama-q4_0",
    "llama-q4_1",
    "llama-q5_0",
    "llama-q5_1",
    "wide-q4_k",
    "wide-q5_k",
    "wide-q6_k",
];

/// Every prompt of the model's scores on the base and on each of its adapters, in chunks of several sizes.
fn requests<'a>(scores: &'a Scores, desk: &Desk) -> Vec<Request<'a>> {
    let load = |path: &String| desk.adapter(&golden::path(path));
    let contenders: Vec<_> = scores.cases.iter().map(|case| case.adapter.as_ref().map(load)).collect();
    assert!(contenders.len() > 1, "{} has no adapter", scores.model);
    let pairs = scores.prompts.iter().flat_map(|prompt| contenders.iter().map(move |adapter| (prompt, adapter)));
    pairs
        .zip([usize::MAX, 5, 1, 16].into_iter().cycle())
        .map(|((prompt, adapter), chunk)| Request { tokens: &prompt.tokens, adapter: adapter.clone(), chunk })
        .collect()
}

/// Each request alone, its prompt whole, beside what it was among the others.
fn alone_and_beside(desk: &mut Desk, requests: &[Request]) -> Vec<(Answer, Answer)> {
    let together = desk.answer(requests, GREEDY);
    let alone = requests
        .iter()
        .map(|request| desk.answer(&[Request { chunk: usize::MAX, ..request.clone() }], GREEDY).remove(0));
    alone.zip(together).collect()
}

#[test]
fn every_format_gives_the_same_bits_alone_and_among_others_on_any_number_of_threads() {
    let classes = [EXACT[1], FAST].into_iter().flat_map(levels);
    for (cpu, file) in classes.flat_map(|cpu| FORMATS.map(|file| (cpu, file))) {
        let scores = Scores::read(&format!("scores/{file}.json"));
        let mut first: Option<Vec<Answer>> = None;
        for threads in [1, 3] {
            let cpu = CpuOptions { threads: Some(threads), ..cpu };
            let mut desk = Desk::open_with(&golden::path(&scores.model), 256, 16, cpu);
            let requests = requests(&scores, &desk);
            let pairs = alone_and_beside(&mut desk, &requests);
            for (index, (alone, beside)) in pairs.iter().enumerate() {
                same_bits(alone, beside, &format!("{file}, {cpu:?}, request {index}"));
            }
            let together: Vec<Answer> = pairs.into_iter().map(|(_, beside)| beside).collect();
            for (index, (one, other)) in first.get_or_insert_with(|| together.clone()).iter().zip(&together).enumerate()
            {
                same_bits(one, other, &format!("{file}, request {index}, {cpu:?} beside one thread"));
            }
        }
    }
}

#[test]
fn tensors_answer_alike_alone_and_among_others_in_every_format() {
    for file in FORMATS {
        let scores = Scores::read(&format!("scores/{file}.json"));
        let mut desk = Desk::open_with(&golden::path(&scores.model), 256, 16, EXACT[0]);
        let requests = requests(&scores, &desk);
        for (index, (alone, beside)) in alone_and_beside(&mut desk, &requests).iter().enumerate() {
            assert_eq!(alone.difference(beside), None, "{file}, request {index}");
        }
    }
}
