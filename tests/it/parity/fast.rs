//! The fast class against the exact one, teacher-forced: how far int8 activations, 16-bit keys and values and 8-bit adapters
//! move the distributions.
//!
//! The trained model's gates were set once, on the first measurement, and are not to be loosened ([`GATES`]). The tiny models of
//! these tests have random weights and widths of a few blocks; theirs are their own.

use std::{path::Path, sync::Arc};

use tunegate::{
    cli::bench::numerics::compare::{Comparison, GATES, Gates, Side},
    model::{CpuOptions, Isa, LoraAdapter},
};

use super::{
    demo_model,
    desk::{Desk, EXACT, FAST},
    golden::{self, Scores},
};

const RANDOM: Gates = Gates { mean_kl: 5e-3, p99: 0.3, perplexity: 1.02, parting: 0.5 };

/// One model in both classes.
pub struct Pair {
    exact: Desk,
    fast: Desk,
}

impl Pair {
    pub fn open(path: &Path) -> Self {
        Self::at(path, None)
    }

    /// At one level of instructions.
    fn at(path: &Path, isa: Option<Isa>) -> Self {
        let open = |cpu| Desk::open_with(path, 512, 16, CpuOptions { isa, ..cpu });
        Self { exact: open(EXACT[1]), fast: open(FAST) }
    }

    /// Reads `texts` in both classes, on the adapter in `folder` or on the base.
    pub fn compare<'a>(&mut self, texts: impl Iterator<Item = &'a [u32]>, folder: Option<&Path>) -> Comparison {
        let pack = |desk: &Desk| folder.map(|folder| desk.adapter(folder));
        let (in_exact, in_fast) = (pack(&self.exact), pack(&self.fast));
        let mut exact = side(&mut self.exact, &in_exact);
        let mut fast = side(&mut self.fast, &in_fast);
        let mut comparison = Comparison::default();
        for tokens in texts {
            comparison.read(tokens, &mut exact, &mut fast).expect("two steps");
        }
        comparison
    }
}

fn side<'a>(desk: &'a mut Desk, adapter: &'a Option<Arc<LoraAdapter>>) -> Side<'a> {
    Side { decoder: &mut *desk.loaded.decoder, adapter: adapter.as_ref() }
}

#[track_caller]
fn holds(comparison: &Comparison, gates: &Gates, what: &str) {
    let figures = comparison.figures();
    println!("{what}, {figures}");
    assert_eq!(figures.faults(gates, true), [""; 0], "{what}, {figures}");
}

/// Tokens that mean nothing, in four sequences: 1,020 rows.
fn noise() -> Vec<Vec<u32>> {
    let token = |index: u32| (index.wrapping_mul(2_654_435_761) >> 11) % 509 + 3;
    (0..4).map(|part| (part * 256..(part + 1) * 256).map(token).collect()).collect()
}

/// Reads 1,020 rows of noise on the base and on each adapter that the model's scores name, at every level of instructions.
fn stays_near(file: &str) {
    let scores = Scores::read(&format!("scores/{file}.json"));
    assert!(scores.cases.len() > 1, "{file}: no adapter");
    for isa in Isa::all() {
        let mut pair = Pair::at(&golden::path(&scores.model), Some(isa));
        for case in &scores.cases {
            let adapter = case.adapter.as_deref().map(golden::path);
            let comparison = pair.compare(noise().iter().map(Vec::as_slice), adapter.as_deref());
            holds(&comparison, &RANDOM, &format!("{file} / {:?}, {}", case.adapter, isa.name()));
        }
    }
}

#[test]
fn the_fast_class_stays_near_the_exact_one_on_every_format_with_and_without_adapters() {
    let plain = ["f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1"];
    plain.iter().for_each(|kind| stays_near(&format!("llama-{kind}")));
    ["wide-q4_k", "wide-q5_k", "wide-q6_k", "qwen3-q8_0"].into_iter().for_each(stays_near);
}

#[test]
fn the_fast_class_stays_near_the_exact_one_with_every_kind_of_adapter() {
    let scores = Scores::read("scores/llama.json");
    let mut pair = Pair::open(&golden::path("gguf/llama-q8_0.gguf"));
    for name in scores.cases.iter().filter_map(|case| case.adapter.as_deref()) {
        let comparison = pair.compare(noise().iter().map(Vec::as_slice), Some(&golden::path(name)));
        holds(&comparison, &RANDOM, name);
    }
    for model in ["llama", "llama3", "qwen2"] {
        let scores = Scores::read(&format!("scores/{model}-kinds.json"));
        let mut pair = Pair::open(&golden::path(&format!("gguf/{model}-q8_0.gguf")));
        for name in scores.cases.iter().filter_map(|case| case.adapter.as_deref()) {
            let comparison = pair.compare(noise().iter().map(Vec::as_slice), Some(&golden::path(name)));
            holds(&comparison, &RANDOM, name);
        }
    }
}

#[test]
fn the_fast_class_keeps_its_gates_on_the_demo_model() {
    let mut pair = Pair::open(&demo_model());
    // Prose, code, a ticket, and several languages with tables.
    let scores = Scores::read("smollm2/scores.json");
    for adapter in [None, Some(golden::path("smollm2/adapter"))] {
        let texts = scores.prompts.iter().map(|prompt| prompt.tokens.as_slice());
        holds(&pair.compare(texts, adapter.as_deref()), &GATES, "the demo model");
    }
}
