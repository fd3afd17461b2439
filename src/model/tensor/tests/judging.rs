use candle_core::{Device, Tensor};
use proptest::prelude::*;

use super::bench::{Bench, Noise, ask, sample, sequences};
use crate::{
    model::{
        Adjustments, RowAnswer, SampleAsk, SeenToken, Want,
        tensor::{
            answer::{Scoring, judge_all},
            ops::Counts,
        },
    },
    terms::TokenScore,
};

/// What is answered about rows of given logits, and how many were left undecided on the device.
fn answers(logits: &[Vec<f32>], wants: &[Want], scoring: Scoring) -> (Vec<RowAnswer>, u32) {
    let logits = Tensor::from_vec(logits.concat(), (logits.len(), logits[0].len()), &Device::Cpu).unwrap();
    Counts::take();
    let wants: Vec<&Want> = wants.iter().collect();
    let answers = judge_all(&wants, &logits, scoring, &mut crate::model::judge::Scratch::default()).unwrap();
    (answers, Counts::take().undecided)
}

/// What differs between two answers to one ask, beyond the rounding of `f32`.
fn difference(host: &RowAnswer, device: &RowAnswer) -> Option<String> {
    let near = |one: f32, other: f32| (one - other).abs() <= 2e-5 * (1.0 + one.abs());
    let same = match (host, device) {
        (RowAnswer::Score(one), RowAnswer::Score(other)) => {
            let TokenScore { token, logprob, entropy, top } = one;
            let tops = top.iter().zip(&other.top).all(|(one, other)| one.0 == other.0 && near(one.1, other.1));
            *token == other.token
                && near(*logprob, other.logprob)
                && near(*entropy, other.entropy)
                && tops
                && top.len() == other.top.len()
        }
        _ => host == device,
    };
    (!same).then(|| format!("on the host {host:?}, on the device {device:?}"))
}

fn adjustments(noise: &mut Noise, vocab: usize) -> Adjustments {
    let mut adjustments = Adjustments { repetition: 1.3, frequency: 0.2, presence: 0.5, ..Adjustments::default() };
    for token in 0..vocab as u32 {
        match noise.below(40) {
            0..4 => adjustments.seen.push(SeenToken { token, in_answer: noise.below(3) as u32 }),
            4 => adjustments.bias.push((token, noise.unit() as f32 * 10.0 - 5.0)),
            5 => adjustments.banned.push(token),
            _ => {}
        }
    }
    adjustments.bias.extend([(3, 1.0), (3, -0.5), (u32::MAX, 4.0)]);
    adjustments
}

/// Rules, `u` and the kind of ask for one row.
fn want(noise: &mut Noise, vocab: usize) -> Want {
    let top = [0, 0, 1, 5, 20][noise.below(5)];
    if noise.below(6) == 0 {
        return Want::Score { token: noise.below(vocab) as u32, top };
    }
    Want::Sample(Box::new(SampleAsk {
        temperature: [0.0, 0.3, 0.7, 1.0, 1.5][noise.below(5)],
        top_k: [0, 0, 1, 3, 40, 64, 200][noise.below(7)],
        top_p: [1.0, 1.0, 0.0, 0.3, 0.9, 0.95][noise.below(6)],
        min_p: [0.0, 0.0, 0.01, 0.2, 1.0][noise.below(5)],
        u: noise.unit(),
        adjustments: if noise.below(2) == 0 { Adjustments::default() } else { adjustments(noise, vocab) },
        top,
    }))
}

/// Logits of a few likely tokens and many unlikely ones; with `ties`, in steps of a quarter.
fn logits(noise: &mut Noise, vocab: usize, ties: bool) -> Vec<f32> {
    let value = |noise: &mut Noise| {
        let value = (noise.unit() + noise.unit() + noise.unit() - 1.5) as f32 * 8.0 - noise.unit().ln() as f32 * 2.0;
        if ties { (value * 4.0).round() / 4.0 } else { value }
    };
    (0..vocab).map(|_| value(noise)).collect()
}

/// Rows of one vocabulary judged in both places; returns how many of how many were left undecided.
fn compare(seed: u64, vocab: usize, rows: usize, ties: bool) -> (u32, usize) {
    let mut noise = Noise(seed);
    let logits: Vec<Vec<f32>> = (0..rows).map(|_| logits(&mut noise, vocab, ties)).collect();
    let wants: Vec<Want> = (0..rows).map(|_| want(&mut noise, vocab)).collect();
    let (host, _) = answers(&logits, &wants, Scoring::Host);
    let (device, undecided) = answers(&logits, &wants, Scoring::Device);
    for ((host, device), want) in host.iter().zip(&device).zip(&wants) {
        if let Some(difference) = difference(host, device) {
            panic!("seed {seed}, vocabulary {vocab}: {difference} for {want:?}");
        }
    }
    (undecided, rows)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn rows_are_judged_on_the_device_as_on_the_host(seed: u64, vocab in 1usize..700, rows in 1usize..5, ties: bool) {
        compare(seed, vocab, rows, ties);
    }
}

#[test]
fn vocabularies_of_one_chunk_and_of_many_are_judged_as_on_the_host() {
    for (seed, vocab) in [2047, 2048, 2049, 4096, 5003, 16_384, 20_011, 49_152].into_iter().enumerate() {
        compare(seed as u64, vocab, 4, seed % 2 == 0);
    }
}

#[test]
fn few_rows_are_left_undecided() {
    let (mut undecided, mut all) = (0, 0);
    for seed in 0..60 {
        let (some, rows) = compare(1000 + seed, 3000, 6, false);
        (undecided, all) = (undecided + some, all + rows);
    }
    assert!((undecided as usize) < all / 20, "{undecided} of {all}");
}

#[test]
fn a_draw_beyond_the_candidates_is_decided_on_the_host() {
    let mut noise = Noise(5);
    // Nearly flat: the 256 best of 4000 hold about a fifteenth of the mass.
    let flat: Vec<f32> = (0..4000).map(|_| noise.unit() as f32 * 0.01).collect();
    let ask = |ask: SampleAsk| Want::Sample(Box::new(ask));
    let open = SampleAsk { top_k: 0, temperature: 1.0, ..sample() };
    for (wanted, expected) in [
        (ask(SampleAsk { u: 0.5, ..open.clone() }), 1),
        (ask(SampleAsk { u: 0.00113, ..open.clone() }), 0),
        (ask(SampleAsk { top_p: 0.9, u: 0.00113, ..open.clone() }), 1),
        (ask(SampleAsk { top_p: 0.905, top_k: 100, u: 0.4, ..open.clone() }), 0),
        (ask(SampleAsk { top_k: 300, u: 0.5, ..open.clone() }), 1),
        (ask(SampleAsk { min_p: 0.5, u: 0.5, ..open }), 1),
    ] {
        let logits = std::slice::from_ref(&flat);
        let wants = std::slice::from_ref(&wanted);
        let (device, undecided) = answers(logits, wants, Scoring::Device);
        assert_eq!(undecided, expected, "{wanted:?}");
        assert_eq!(difference(&answers(logits, wants, Scoring::Host).0[0], &device[0]), None, "{wanted:?}");
    }
}

#[test]
fn ties_at_the_edge_of_the_candidates_are_decided_on_the_host() {
    let even = vec![1.0f32; 3000];
    let greedy = |top| Want::Sample(Box::new(SampleAsk { temperature: 0.0, top, ..sample() }));
    let wants = [greedy(0), greedy(3), Want::Score { token: 2999, top: 3 }, Want::Score { token: 2999, top: 0 }];
    let logits = vec![even; wants.len()];
    let (device, undecided) = answers(&logits, &wants, Scoring::Device);
    assert_eq!(undecided, 4, "the last shares its candidates with the others");
    let RowAnswer::Score(first) = &device[1] else { panic!("{:?}", device[1]) };
    assert_eq!((first.token, first.top.iter().map(|top| top.0).collect()), (0, vec![0, 1, 2]));
    let (_, undecided) = answers(&logits[..1], &wants[3..], Scoring::Device);
    assert_eq!(undecided, 0, "a score without alternatives needs no candidates");
}

#[test]
fn numbers_that_are_not_finite_spoil_their_row_alone() {
    let mut noise = Noise(9);
    let good = logits(&mut noise, 300, false);
    let with = |value: f32| {
        let mut row = good.clone();
        row[200] = value;
        row
    };
    let rows = [good.clone(), with(f32::NAN), with(f32::INFINITY), with(f32::NEG_INFINITY), good.clone(), good.clone()];
    let mut wants = vec![Want::Sample(Box::new(sample())); rows.len()];
    let mut adjusted = |row: usize, change: fn(&mut Adjustments)| {
        let mut ask = sample();
        change(&mut ask.adjustments);
        wants[row] = Want::Sample(Box::new(ask));
    };
    adjusted(4, |adjustments| adjustments.banned = (0..300).collect());
    adjusted(5, |adjustments| adjustments.bias = vec![(7, f32::INFINITY)]);
    let (device, _) = answers(&rows, &wants, Scoring::Device);
    assert!(matches!(device[0], RowAnswer::Score(_)), "{:?}", device[0]);
    assert_eq!(device[1..], vec![RowAnswer::NotFinite; 5]);
    assert_eq!(device[1..], answers(&rows, &wants, Scoring::Host).0[1..]);
}

#[test]
fn a_model_answers_on_the_device_as_on_the_host() {
    let mut noise = Noise(3);
    for model in ["llama", "qwen3"] {
        let mut bench = Bench::open(model, candle_core::DType::F32);
        let mut batch = sequences(&[5, 1, 9, 3, 7, 2, 8, 4], 0);
        for _ in 0..20 {
            let wants: Vec<Want> = (0..8).map(|_| want(&mut noise, 512)).collect();
            ask(&mut batch, |index| wants[index].clone());
            bench.decoder.set_scoring(Scoring::Device);
            let (device, _) = bench.run(&batch);
            bench.decoder.set_scoring(Scoring::Host);
            let (host, _) = bench.run(&batch);
            for (host, device) in host.iter().zip(&device) {
                assert_eq!(difference(host, device), None, "{model}");
            }
        }
    }
}
