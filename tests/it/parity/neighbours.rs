//! An answer does not depend on what else is in its batch; and wrong builds do not pass.

use std::{cell::Cell, sync::Arc};

use tunegate::model::{CpuOptions, LoraAdapter, SiteDelta};

use super::{
    desk::{Desk, EXACT, Request},
    golden::{self, Answer, Scores},
};

const GREEDY: usize = 32;

const ADAPTERS: [&str; 8] = ["plain-qv", "all7", "rslora", "patterns", "layers-int", "o-down", "bf16", "rank-1"];

struct Llama {
    desk: Desk,
    scores: Scores,
    /// The base, then each of [`ADAPTERS`].
    contenders: Vec<(Option<&'static str>, Option<Arc<LoraAdapter>>)>,
}

impl Llama {
    fn open(cpu: CpuOptions) -> Self {
        let desk = Desk::open(&golden::path("models/llama"), 256, cpu);
        let scores = Scores::read("scores/llama.json");
        let adapters =
            ADAPTERS.map(|name| (Some(name), Some(desk.adapter(&golden::path(&format!("adapters/llama/{name}"))))));
        Self { desk, scores, contenders: [(None, None)].into_iter().chain(adapters).collect() }
    }

    fn prompt(&self, name: &str) -> Vec<u32> {
        let found = self.scores.prompts.iter().find(|prompt| prompt.name == name);
        found.unwrap_or_else(|| panic!("no prompt {name}")).tokens.clone()
    }

    /// What the oracle says, its greedy continuation cut to [`GREEDY`] tokens.
    fn expected(&self, adapter: Option<&str>, prompt: &str) -> Answer {
        let place = self.scores.prompts.iter().position(|other| other.name == prompt);
        let mut answer =
            self.scores.case(adapter).answers[place.unwrap_or_else(|| panic!("no prompt {prompt}"))].clone();
        answer.greedy.tokens.truncate(GREEDY);
        answer.greedy.logprobs.truncate(GREEDY);
        answer
    }
}

/// That two of our own answers to one request are the same but for rounding.
#[track_caller]
fn same(one: &Answer, other: &Answer, what: &str) {
    assert_eq!(one.difference(other), None, "{what}");
}

#[test]
fn an_answer_is_the_same_alone_and_among_others_with_other_adapters() {
    for cpu in EXACT {
        let mut llama = Llama::open(cpu);
        let prompts: Vec<Vec<u32>> = ["short", "window", "long", "one", "ragged-5", "ragged-23", "ragged-58"]
            .map(|name| llama.prompt(name))
            .into();
        let contenders = llama.contenders.clone();
        // Lengths, adapters and chunks are mixed, so that decode rows stand beside prompt chunks in every step.
        let requests: Vec<Request> = (0..16)
            .map(|index| Request {
                tokens: &prompts[index * 5 % prompts.len()],
                adapter: contenders[index % contenders.len()].1.clone(),
                chunk: [usize::MAX, 3, 16, 1][index % 4],
            })
            .collect();
        let together = llama.desk.answer(&requests, GREEDY);
        for (index, (request, beside)) in requests.iter().zip(&together).enumerate() {
            let alone = llama.desk.answer(&[Request { chunk: usize::MAX, ..request.clone() }], GREEDY);
            same(&alone[0], beside, &format!("request {index}"));
        }
    }
}

#[test]
fn an_answer_is_the_same_however_its_prompt_is_chunked() {
    for cpu in EXACT {
        let mut llama = Llama::open(cpu);
        let prompt = llama.prompt("long");
        for (name, adapter) in llama.contenders.clone().into_iter().take(3) {
            let whole = llama.desk.answer(&[Request::of(&prompt, adapter.clone())], GREEDY);
            for chunk in [1, 2, 7, 16, 99] {
                let request = Request { tokens: &prompt, adapter: adapter.clone(), chunk };
                let chunked = llama.desk.answer(&[request], GREEDY);
                same(&whole[0], &chunked[0], &format!("{name:?} in chunks of {chunk}"));
            }
        }
    }
}

#[test]
fn a_sliding_window_is_the_same_however_the_prompt_is_chunked() {
    for cpu in EXACT {
        let scores = Scores::read("scores/mistral.json");
        let mut desk = Desk::open(&golden::path("models/mistral"), 256, cpu);
        let requests: Vec<Request> = [1usize, 5, 15, 16, 17, 64]
            .into_iter()
            .map(|chunk| Request { tokens: &scores.prompts[2].tokens, adapter: None, chunk })
            .collect();
        let answers = desk.answer(&requests, golden_length(&scores));
        for (request, answer) in requests.iter().zip(&answers) {
            same(&scores.cases[0].answers[2], answer, &format!("chunks of {}", request.chunk));
        }
    }
}

fn golden_length(scores: &Scores) -> usize {
    scores.cases[0].answers[0].greedy.tokens.len()
}

#[test]
fn base_and_adapters_give_pairwise_different_answers() {
    for cpu in EXACT {
        let mut llama = Llama::open(cpu);
        let prompt = llama.prompt("window");
        let contenders = llama.contenders.clone();
        let requests: Vec<Request> =
            contenders.iter().map(|(_, adapter)| Request::of(&prompt, adapter.clone())).collect();
        let answers = llama.desk.answer(&requests, GREEDY);
        for (one, left) in answers.iter().enumerate() {
            for (other, right) in answers.iter().enumerate().skip(one + 1) {
                let names = (contenders[one].0, contenders[other].0);
                assert!(left.difference(right).is_some(), "{names:?} answer alike");
            }
        }
    }
}

/// Runs the adapters spoiled by `alter`, which says whether it changed a site: the comparison with the oracle must notice.
fn noticed(cpu: CpuOptions, alter: impl Fn(&mut SiteDelta) -> bool + Copy, what: &str) {
    let mut llama = Llama::open(cpu);
    let prompt = llama.prompt("window");
    let mut spoiled_adapters = 0;
    for name in ADAPTERS {
        let folder = golden::path(&format!("adapters/llama/{name}"));
        let expected = llama.expected(Some(name), "window");
        let good = llama.desk.adapter(&folder);
        let right = llama.desk.answer(&[Request::of(&prompt, Some(good))], GREEDY);
        assert_eq!(expected.difference(&right[0]), None, "{name} as it is");
        let changed = Cell::new(false);
        let spoiled = llama.desk.altered_adapter(&folder, |delta| changed.set(alter(delta) || changed.get()));
        if changed.get() {
            spoiled_adapters += 1;
            let wrong = llama.desk.answer(&[Request::of(&prompt, Some(spoiled))], GREEDY);
            assert!(expected.difference(&wrong[0]).is_some(), "{name}: {what} went unnoticed");
        }
    }
    assert!(spoiled_adapters >= 5, "only {spoiled_adapters} adapters can show it");
}

fn scale_of(delta: &mut SiteDelta) -> &mut f32 {
    match delta {
        SiteDelta::LowRank { scale, .. } => scale,
        SiteDelta::Bias(_) | SiteDelta::Full(_) | SiteDelta::EmbedLowRank { .. } | SiteDelta::TokenRows { .. } => {
            panic!("not a plain adapter: {delta:?}")
        }
    }
}

#[test]
fn a_build_that_zeroes_deltas_fails() {
    for cpu in EXACT {
        noticed(cpu, |delta| std::mem::replace(scale_of(delta), 0.0) != 0.0, "a zeroed delta");
    }
}

#[test]
fn a_build_that_drops_the_scale_fails() {
    for cpu in EXACT {
        // Some adapters have a scale of 1, and nothing to drop.
        noticed(cpu, |delta| std::mem::replace(scale_of(delta), 1.0) != 1.0, "a dropped scale");
    }
}

#[test]
fn a_build_that_shifts_rows_by_one_fails() {
    for cpu in EXACT {
        let mut llama = Llama::open(cpu);
        let (short, window) = (llama.prompt("short"), llama.prompt("window"));
        for (name, adapter) in llama.contenders.clone().into_iter().skip(1) {
            // The adapter's request first, a base request after it: shifted rows leave the first and reach the second.
            let requests = [Request::of(&window, adapter), Request::of(&short, None)];
            let expected = [llama.expected(name, "window"), llama.expected(None, "short")];
            let right = llama.desk.answer(&requests, GREEDY);
            let shifted = llama.desk.answer_shifted(&requests, GREEDY, 1);
            for (place, expected) in expected.iter().enumerate() {
                assert_eq!(expected.difference(&right[place]), None, "{name:?} as it is, request {place}");
                assert!(expected.difference(&shifted[place]).is_some(), "{name:?}: request {place} is as it should be");
            }
        }
    }
}

#[test]
fn a_build_that_serves_another_adapter_or_the_base_instead_fails() {
    for cpu in EXACT {
        let mut llama = Llama::open(cpu);
        let prompt = llama.prompt("short");
        let contenders = llama.contenders.clone();
        for (name, _) in &contenders {
            let expected = llama.expected(*name, "short");
            for (other, adapter) in contenders.iter().filter(|(other, _)| other != name) {
                let wrong = llama.desk.answer(&[Request::of(&prompt, adapter.clone())], GREEDY);
                assert!(expected.difference(&wrong[0]).is_some(), "{other:?} passes for {name:?}");
            }
        }
    }
}
