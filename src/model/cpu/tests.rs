//! What the decoder computes does not hang on the order in which its threads claim work.

use std::path::Path;

use super::{
    Class, Numerics,
    decoder::{CpuDecoder, Parts, assemble},
};
use crate::{
    kernels::{isa::Isa, pool::Order},
    model::{
        Adjustments, Batch, KvShape, LanguageModel, RowAnswer, SampleAsk, StepOutput, Want, describe,
        tensor::tests::bench::{BLOCK_TOKENS, Forge, ask, assign, sequences},
        weights::gguf::GgufFile,
    },
    terms::Digest,
};

/// The golden file of this name.
fn open(file: &str, class: Class, threads: usize) -> Parts {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf").join(file);
    let file = GgufFile::open(&path).expect("a file");
    let shape = describe::read_gguf(&path, &file).expect("a model").shape;
    let mut weights = file.into_weights(describe::interleaved_heads(&shape));
    let kv = KvShape { block_tokens: BLOCK_TOKENS, blocks: 1024, block_bytes: 0 };
    let numerics = Numerics { class, isa: Isa::best() };
    assemble(&mut weights, &shape, kv, Digest::of(b"base"), numerics, (threads, false)).expect("a decoder")
}

/// Two steps of many sequences, each on an adapter of its own or on the base: all logits of the second, and draws.
fn answers(decoder: &mut CpuDecoder, batches: &[Batch; 2]) -> Vec<Vec<u32>> {
    let mut output = StepOutput::default();
    let mut bits = Vec::new();
    for batch in batches {
        decoder.forward(batch, &mut output).expect("a step");
        bits.extend(output.answers.iter().map(|answer| match answer {
            RowAnswer::Logits(values) | RowAnswer::Hidden(values) => {
                values.iter().map(|value| value.to_bits()).collect()
            }
            RowAnswer::Score(score) => vec![score.token, score.logprob.to_bits(), score.entropy.to_bits()],
            RowAnswer::NotFinite => panic!("not finite"),
        }));
    }
    bits
}

fn drawn(index: usize) -> Want {
    let u = (index as f64 * 0.37).fract();
    let adjustments = Adjustments::default();
    Want::Sample(Box::new(SampleAsk { temperature: 0.9, top_k: 0, top_p: 0.95, min_p: 0.0, u, adjustments, top: 3 }))
}

#[test]
fn rows_are_the_same_to_the_bit_in_whatever_order_work_is_claimed() {
    const LENGTHS: [usize; 14] = [1, 33, 2, 7, 64, 1, 5, 17, 1, 12, 3, 40, 1, 9];
    for file in ["llama-f32.gguf", "llama-q8_0.gguf", "llama-q4_1.gguf", "wide-q4_k.gguf"] {
        for class in [Class::Exact, Class::Fast] {
            let mut first: Option<Vec<Vec<u32>>> = None;
            for threads in [1, 3] {
                let Parts { mut decoder, packer, .. } = open(file, class, threads);
                let forge = Forge(&*packer);
                let mut adapters = forge.kinds();
                adapters.extend([forge.adapter(9, 16, |_, _| true), forge.adapter(10, 130, |layer, _| layer == 1)]);
                let batches = [0, 1].map(|step| {
                    let lengths = if step == 0 { LENGTHS.to_vec() } else { vec![1; LENGTHS.len()] };
                    // Every sequence goes on where the longest has ended; what lies between is nobody's, and all zeros.
                    let mut batch = sequences(&lengths, step * 64);
                    assign(&mut batch, &adapters);
                    ask(&mut batch, |index| match index % 3 {
                        0 => Want::Logits,
                        1 => drawn(index),
                        _ => Want::Hidden,
                    });
                    batch
                });
                let orders = [Order::Forward, Order::Backward, Order::Shuffled(1), Order::Shuffled(2)];
                for order in orders {
                    decoder.claim(order);
                    let bits = answers(&mut decoder, &batches);
                    let expected = first.get_or_insert_with(|| bits.clone());
                    assert!(*expected == bits, "{file}, {class:?}, {threads} threads, {order:?}");
                }
            }
        }
    }
}
