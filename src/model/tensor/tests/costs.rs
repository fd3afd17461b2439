use std::sync::Arc;

use candle_core::DType;

use super::bench::{Bench, ask, assign, sample, sequences};
use crate::model::{LoraAdapter, Projection, RowAnswer, SequenceRows, Want, tensor::ops::Counts};

fn every_site(_: usize, _: Projection) -> bool {
    true
}

/// The counts of the second of two steps of `lengths` rows, each sequence on its own adapter, sampled.
fn counted(bench: &mut Bench, adapters: &[Arc<LoraAdapter>], length: usize) -> Counts {
    let lengths = vec![length; adapters.len()];
    let mut counts = None;
    for step in 0..2 {
        let mut batch = sequences(&lengths, step * length);
        assign(&mut batch, adapters);
        ask(&mut batch, |_| Want::Sample(Box::new(sample())));
        counts = Some(bench.run(&batch).1);
    }
    counts.expect("two steps")
}

#[test]
fn a_step_takes_as_many_operations_with_64_adapters_as_with_8() {
    let mut bench = Bench::open("llama", DType::F32);
    let plain: Vec<_> = (0..64).map(|seed| bench.adapter(seed, 4, every_site)).collect();
    let turning: Vec<_> = (0..64).map(|seed| bench.forge().turning(seed)).collect();
    for (kind, adapters) in [("plain", plain), ("DoRA with biases", turning)] {
        for length in [1, 3] {
            let few = counted(&mut bench, &adapters[..8], length);
            let many = counted(&mut bench, &adapters, length);
            assert_eq!(few.by_kind(), many.by_kind(), "{kind}, {length} rows for each adapter");
            assert_eq!((few.uploads, few.downloads), (many.uploads, many.downloads), "{kind}");
        }
    }
}

#[test]
fn a_step_takes_as_many_operations_with_64_sequences_as_with_8() {
    let mut bench = Bench::open("llama", DType::F32);
    let mut count = |lengths: Vec<usize>| {
        let mut batch = sequences(&lengths, 0);
        ask(&mut batch, |_| Want::Sample(Box::new(sample())));
        batch.copies = (0..lengths.len() as u32).map(|index| (index * 16 + 8, index * 16 + 9)).collect();
        bench.run(&batch).1
    };
    assert_eq!(count(vec![2; 8]).by_kind(), count(vec![2; 64]).by_kind());
    // Of several lengths, mixed.
    let mixed = |sequences: usize| (0..sequences).map(|index| [1, 7, 2, 30][index % 4]).collect();
    assert_eq!(count(mixed(8)).by_kind(), count(mixed(64)).by_kind());
}

#[test]
fn only_the_scores_asked_for_leave_the_device() {
    let mut bench = Bench::open("llama", DType::F32);
    let adapters: Vec<_> = (0..6).map(|seed| bench.adapter(seed, 4, every_site)).collect();
    let tops = [0u8, 5, 0, 20, 1, 0];
    let mut batch = sequences(&[3; 6], 0);
    assign(&mut batch, &adapters);
    ask(&mut batch, |index| match index {
        2 => Want::Score { token: 7, top: tops[2] },
        3 => Want::Score { token: 9, top: tops[3] },
        _ => Want::Sample(Box::new(crate::model::SampleAsk { top: tops[index], ..sample() })),
    });
    let (answers, counts) = bench.run(&batch);
    for (answer, top) in answers.iter().zip(tops) {
        let RowAnswer::Score(score) = answer else { panic!("{answer:?}") };
        assert_eq!(score.top.len(), usize::from(top));
    }
    // A token, its log-probability, the entropy; an id and a log-probability for each alternative.
    let values: u64 = tops.iter().map(|top| 3 + 2 * u64::from(*top)).sum();
    assert_eq!((counts.downloads, counts.download_bytes, counts.undecided), (1, 4 * values, 0));
}

#[test]
fn draws_beyond_the_candidates_take_their_rows_of_logits_and_are_counted() {
    let mut bench = Bench::open("llama", DType::F32);
    let mut batch = sequences(&[2; 6], 0);
    // At this temperature nearly half of the distribution lies beyond the 256 most likely of 512 tokens.
    ask(&mut batch, |index| {
        let (top_k, u) = if index % 3 == 0 { (0, 0.95) } else { (40, 0.4) };
        Want::Sample(Box::new(crate::model::SampleAsk { top_k, u, temperature: 9.0, ..sample() }))
    });
    let (_, counts) = bench.run(&batch);
    let (rows, beyond, vocab) = (6, 2, 512);
    assert_eq!((counts.undecided, counts.downloads), (beyond, 2));
    assert_eq!(counts.download_bytes, 4 * (3 * rows + u64::from(beyond) * vocab));
}

#[test]
fn logits_and_hidden_states_leave_the_device_for_the_rows_that_ask() {
    let mut bench = Bench::open("llama", DType::F32);
    let mut batch = sequences(&[2; 5], 0);
    ask(&mut batch, |index| match index {
        0 => Want::Hidden,
        1 | 4 => Want::Logits,
        _ => Want::Sample(Box::new(sample())),
    });
    let (_, counts) = bench.run(&batch);
    let (hidden, vocab) = (64, 512);
    assert_eq!((counts.downloads, counts.download_bytes), (3, 4 * (hidden + 2 * vocab + 2 * 3)));
    batch.asks.clear();
    let (answers, counts) = bench.run(&batch);
    assert_eq!((answers.len(), counts.downloads), (0, 0), "nobody asked");
}

#[test]
fn uploads_are_indices_tables_and_parameters() {
    let mut bench = Bench::open("llama", DType::F32);
    let adapters: Vec<_> = (0..8).map(|seed| bench.adapter(seed, 4, every_site)).collect();
    let (rows, keys, kv_heads, head_dim) = (8, 41, 2, 16);
    let mut batch = sequences(&[1; 8], keys - 1);
    assign(&mut batch, &adapters);
    ask(&mut batch, |_| Want::Sample(Box::new(sample())));
    bench.run(&batch);
    let (_, counts) = bench.run(&batch);
    let values = 2 * rows // tokens and KV slots
        + rows * head_dim // cosines and sines
        + rows * keys + kv_heads // where the keys are
        + 2 * rows // which rows the adapters change, and back
        + rows // which rows are asked about
        + 8 * rows + 64; // what they draw by, and the candidates' places
    assert_eq!(counts.upload_bytes, 4 * values as u64);
    // An adapter's first step copies it, and does not upload it.
    let newcomer = bench.adapter(99, 4, every_site);
    batch.adapters[3].weights = newcomer;
    assert_eq!(bench.run(&batch).1.upload_bytes, 4 * values as u64);
}

#[test]
fn masks_are_made_of_one_number_for_each_row_and_key() {
    let mut bench = Bench::open("mistral", DType::F32);
    let small = bench.run(&sequences(&[30, 30], 0)).1.upload_bytes;
    let large = bench.run(&sequences(&[60, 60], 0)).1.upload_bytes;
    assert!(large <= 2 * small, "{large} bytes for twice the rows and keys of {small}");
}

#[test]
fn adapters_in_one_step_answer_as_each_alone() {
    let mut bench = Bench::open("llama", DType::F32);
    // Two ranks, some sites missing, some that turn outputs, rows from 1 to 34; then others in their places, and back.
    let make = |bench: &Bench, seed: u64| match seed % 4 {
        0 => bench.adapter(seed, 4, every_site),
        1 => bench.adapter(seed, 8, |layer, projection| layer == 1 || projection != Projection::Key),
        2 => bench.adapter(seed, 4, |_, projection| projection == Projection::Value),
        _ => bench.forge().turning(seed),
    };
    let adapters: Vec<_> = (0..24).map(|seed| make(&bench, seed)).collect();
    let rounds: [Vec<usize>; 4] =
        [(0..12).collect(), (6..18).rev().collect(), vec![0, 3, 23, 20, 0, 17, 5, 5], (0..12).collect()];
    for (round, members) in rounds.iter().enumerate() {
        let chosen: Vec<_> = members.iter().map(|&member| adapters[member].clone()).collect();
        let lengths: Vec<usize> = (0..members.len()).map(|index| 1 + (index * index) % 35).collect();
        let mut batch = sequences(&lengths, 0);
        assign(&mut batch, &chosen);
        ask(&mut batch, |_| Want::Logits);
        let together = bench.run(&batch).0;
        for (index, answer) in together.iter().enumerate() {
            let mut alone = sequences(&lengths, 0);
            let SequenceRows { first_row, rows, blocks } = alone.sequences[index].clone();
            let range = first_row as usize..(first_row + rows) as usize;
            (alone.tokens, alone.positions) = (alone.tokens[range.clone()].to_vec(), alone.positions[range].to_vec());
            alone.sequences = vec![SequenceRows { first_row: 0, rows, blocks }];
            assign(&mut alone, &chosen[index..]);
            ask(&mut alone, |_| Want::Logits);
            let (alone, base) = (bench.run(&alone).0, {
                alone.adapters.clear();
                bench.run(&alone).0
            });
            let (beside, alone, base) = (logits(answer), logits(&alone[0]), logits(&base[0]));
            assert!(distance(beside, alone) < 1e-4, "round {round}, sequence {index}: {}", distance(beside, alone));
            assert!(distance(alone, base) > 1e-2, "round {round}, sequence {index}: the adapter changes nothing");
        }
    }
}

fn logits(answer: &RowAnswer) -> &[f32] {
    match answer {
        RowAnswer::Logits(logits) => logits,
        other => panic!("{other:?}"),
    }
}

fn distance(left: &[f32], right: &[f32]) -> f32 {
    left.iter().zip(right).map(|(left, right)| (left - right).abs()).fold(0.0, f32::max)
}
