//! Every kind of adapter that PEFT's LoRA can be, on both decoders: as PEFT answers, in one batch with all others, and noticed when
//! a part of it is left out.

use std::{cell::Cell, sync::Arc};

use tunegate::{
    model::{CpuDecoder, CpuOptions, LoraAdapter, Matrix, Site, SiteDelta, lora::Values},
    terms::{AdapterVersion, Digest},
};

use super::{
    desk::{Desk, EXACT, FAST, Request, levels},
    golden::{self, Answer, Scores},
    identical::same_bits,
};

const GREEDY: usize = 12;

fn desk(model: &str, cpu: CpuOptions) -> Desk {
    Desk::open_with(&golden::path(&format!("models/{model}")), 256, 16, cpu)
}

/// The base, plain adapters, and one of each kind, of one model.
fn everybody(model: &str, desk: &Desk) -> Vec<Option<Arc<LoraAdapter>>> {
    let kinds = Scores::read(&format!("scores/{model}-kinds.json"));
    let kinds = kinds.cases.iter().filter_map(|case| case.adapter.clone());
    let plain: &[&str] = if model == "llama" { &["plain-qv", "all7", "rank-1"] } else { &["all7"] };
    let plain = plain.iter().map(|name| format!("adapters/{model}/{name}"));
    [None].into_iter().chain(plain.chain(kinds).map(|path| Some(desk.adapter(&golden::path(&path))))).collect()
}

#[test]
fn kinds_targets_and_ranks_mix_in_one_batch_and_each_row_is_the_same_to_the_bit_as_alone() {
    for model in ["llama", "llama3", "qwen2"] {
        let scores = Scores::read(&format!("scores/{model}-kinds.json"));
        for cpu in [EXACT[1], FAST].into_iter().flat_map(levels) {
            let mut first: Option<Vec<Answer>> = None;
            for threads in [1, 3] {
                let mut desk = desk(model, CpuOptions { threads: Some(threads), ..cpu });
                let contenders = everybody(model, &desk);
                let requests: Vec<Request> = (0..2 * contenders.len())
                    .map(|index| Request {
                        tokens: &scores.prompts[index * 3 % scores.prompts.len()].tokens,
                        adapter: contenders[index % contenders.len()].clone(),
                        chunk: [usize::MAX, 3, 16, 1, 29][index % 5],
                    })
                    .collect();
                let together = desk.answer(&requests, GREEDY);
                for (index, (request, beside)) in requests.iter().zip(&together).enumerate() {
                    let alone = desk.answer(&[Request { chunk: 7, ..request.clone() }], GREEDY);
                    same_bits(&alone[0], beside, &format!("{model}, {cpu:?}, request {index}"));
                }
                for (index, (one, other)) in
                    first.get_or_insert_with(|| together.clone()).iter().zip(&together).enumerate()
                {
                    same_bits(one, other, &format!("{model}, {cpu:?}, request {index} on {threads} threads"));
                }
            }
        }
    }
}

#[test]
fn tensors_answer_alike_alone_and_among_all_kinds() {
    for model in ["llama", "llama3", "qwen2"] {
        let scores = Scores::read(&format!("scores/{model}-kinds.json"));
        let mut desk = desk(model, EXACT[0]);
        let contenders = everybody(model, &desk);
        let requests: Vec<Request> = (0..2 * contenders.len())
            .map(|index| Request {
                tokens: &scores.prompts[index * 3 % scores.prompts.len()].tokens,
                adapter: contenders[index % contenders.len()].clone(),
                chunk: [usize::MAX, 3, 16, 1][index % 4],
            })
            .collect();
        let together = desk.answer(&requests, GREEDY);
        for (index, (request, beside)) in requests.iter().zip(&together).enumerate() {
            let alone = desk.answer(&[Request { chunk: usize::MAX, ..request.clone() }], GREEDY);
            assert_eq!(alone[0].difference(beside), None, "{model}, request {index}");
        }
    }
}

/// Numbers that mean nothing, the same for each seed, between −`size` and `size`.
fn noise(seed: usize, count: usize, size: f32) -> Vec<f32> {
    let mut state = (seed as u32).wrapping_mul(2_654_435_761).wrapping_add(1);
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / 8_388_608.0 - 1.0) * size
    };
    (0..count).map(next).collect()
}

fn matrix(seed: usize, rows: usize, cols: usize, size: f32) -> Matrix {
    Matrix { rows, cols, values: Values::F32(noise(seed, rows * cols, size)) }
}

/// An adapter of one rank on every site, with every part that a site can have, or every other one.
fn patchwork(desk: &Desk, rank: usize, seed: usize) -> Arc<LoraAdapter> {
    let shape = &desk.loaded.shape;
    let sites = [Site::Embedding].into_iter().chain(shape.layer_sites()).chain([Site::Head]);
    let sites = sites.enumerate().filter(|(index, _)| !(index + seed).is_multiple_of(3)).map(|(index, site)| {
        let (out, input) = shape.site_shape(site).expect("a site of the base");
        let seed = 1000 * seed + 10 * index;
        let some = |every: usize, values: Vec<f32>| (seed / 10).is_multiple_of(every).then_some(values);
        let size = 1.0 / (rank as f32).sqrt();
        let delta = match site {
            Site::Embedding => SiteDelta::EmbedLowRank {
                a: matrix(seed, rank, out, 0.3),
                b: matrix(seed + 1, input, rank, 0.3 * size),
                scale: 0.7,
                magnitude: some(2, vec![5.0; input]),
            },
            Site::Layer { .. } | Site::Head => SiteDelta::LowRank {
                a: matrix(seed, rank, input, 0.2),
                b: matrix(seed + 1, out, rank, 0.2 * size),
                scale: 1.5,
                lora_bias: some(3, noise(seed + 2, out, 0.1)),
                base_bias: some(4, noise(seed + 3, out, 0.1)),
                magnitude: some(2, noise(seed + 4, out, 0.2).into_iter().map(|value| 1.0 + value).collect()),
            },
        };
        (site, delta)
    });
    let version = AdapterVersion(Digest::of(&[rank as u8, (rank >> 8) as u8, seed as u8]));
    Arc::new(desk.loaded.packer.pack(version, sites.collect()).expect("a patchwork packs"))
}

#[test]
fn ranks_from_1_to_512_with_any_parts_mix_in_one_batch() {
    const RANKS: [usize; 10] = [1, 2, 7, 8, 16, 17, 64, 127, 256, 512];
    for (model, cpu) in
        ["llama", "qwen2"].into_iter().flat_map(|model| [EXACT[0], EXACT[1], FAST].map(|cpu| (model, cpu)))
    {
        let scores = Scores::read(&format!("scores/{model}-kinds.json"));
        let mut desk = desk(model, cpu);
        let adapters: Vec<_> = (0..).zip(RANKS).map(|(seed, rank)| patchwork(&desk, rank, seed)).collect();
        let prompt = |index: usize| scores.prompts[index % scores.prompts.len()].tokens.as_slice();
        let mut requests: Vec<Request> =
            (0..).zip(&adapters).map(|(index, adapter)| Request::of(prompt(index), Some(adapter.clone()))).collect();
        requests.push(Request::of(prompt(1), None));
        let together = desk.answer(&requests, 4);
        for (index, (request, beside)) in requests.iter().zip(&together).enumerate() {
            let alone = desk.answer(&[Request { chunk: 5, ..request.clone() }], 4);
            match cpu.decoder {
                CpuDecoder::Fused => same_bits(&alone[0], beside, &format!("{model}, {cpu:?}, request {index}")),
                CpuDecoder::Tensor => assert_eq!(alone[0].difference(beside), None, "{model}, request {index}"),
            }
        }
    }
}

/// Two decoders, one answer: what neither PEFT nor a golden file has, such as a bias on the head.
#[test]
fn both_decoders_answer_alike_on_any_parts() {
    let scores = Scores::read("scores/qwen2-kinds.json");
    let answers = EXACT.map(|cpu| {
        let mut desk = desk("qwen2", cpu);
        let adapters: Vec<_> = [1, 5, 64].into_iter().map(|rank| patchwork(&desk, rank, rank)).collect();
        let requests: Vec<Request> =
            adapters.iter().map(|adapter| Request::of(&scores.prompts[1].tokens, Some(adapter.clone()))).collect();
        desk.answer(&requests, GREEDY)
    });
    for (index, (one, other)) in answers[0].iter().zip(&answers[1]).enumerate() {
        assert_eq!(one.difference(other), None, "adapter {index}");
    }
}

/// Runs every kind spoiled by `alter`, which says whether it changed a site: the comparison with PEFT must notice.
fn noticed(alter: impl Fn(&mut SiteDelta) -> bool + Copy, least: usize, what: &str) {
    for cpu in EXACT {
        let mut spoiled_adapters = 0;
        for model in ["llama", "llama3", "qwen2"] {
            let scores = Scores::read(&format!("scores/{model}-kinds.json"));
            let mut desk = desk(model, cpu);
            for case in scores.cases.iter().filter(|case| case.adapter.is_some()) {
                let name = case.adapter.as_deref().unwrap_or_default();
                let changed = Cell::new(false);
                let spoiled =
                    desk.altered_adapter(&golden::path(name), |delta| changed.set(alter(delta) || changed.get()));
                if changed.get() {
                    spoiled_adapters += 1;
                    let expected = &case.answers[1];
                    let greedy = expected.greedy.tokens.len();
                    let wrong = desk.answer(&[Request::of(&scores.prompts[1].tokens, Some(spoiled))], greedy);
                    assert!(expected.difference(&wrong[0]).is_some(), "{name}: {what} went unnoticed");
                }
            }
        }
        assert!(spoiled_adapters >= least, "only {spoiled_adapters} adapters can show it");
    }
}

#[test]
fn a_build_that_leaves_out_doras_magnitude_fails() {
    let without = |delta: &mut SiteDelta| match delta {
        SiteDelta::LowRank { magnitude, .. } | SiteDelta::EmbedLowRank { magnitude, .. } => magnitude.take().is_some(),
        SiteDelta::Bias(_) | SiteDelta::Full(_) | SiteDelta::TokenRows { .. } => false,
    };
    noticed(without, 7, "a missing magnitude");
}

#[test]
fn a_build_that_leaves_out_biases_fails() {
    let without = |delta: &mut SiteDelta| match delta {
        SiteDelta::LowRank { lora_bias, base_bias, .. } => base_bias.take().is_some() | lora_bias.take().is_some(),
        SiteDelta::Bias(_) | SiteDelta::Full(_) | SiteDelta::EmbedLowRank { .. } | SiteDelta::TokenRows { .. } => false,
    };
    noticed(without, 5, "missing biases");
}

#[test]
fn a_build_that_leaves_a_whole_matrix_out_fails() {
    let without = |delta: &mut SiteDelta| match delta {
        SiteDelta::Full(matrix) => {
            matrix.values = Values::F32(noise(1, matrix.values.len(), 0.25));
            true
        }
        SiteDelta::LowRank { .. }
        | SiteDelta::Bias(_)
        | SiteDelta::EmbedLowRank { .. }
        | SiteDelta::TokenRows { .. } => false,
    };
    noticed(without, 6, "another matrix");
}

#[test]
fn a_build_that_leaves_out_the_embeddings_change_fails() {
    let without = |delta: &mut SiteDelta| match delta {
        SiteDelta::EmbedLowRank { scale, .. } => std::mem::replace(scale, 0.0) != 0.0,
        SiteDelta::LowRank { .. } | SiteDelta::Bias(_) | SiteDelta::Full(_) | SiteDelta::TokenRows { .. } => false,
    };
    noticed(without, 3, "an unchanged embedding");
}

#[test]
fn bytes_are_told_before_packing_whatever_the_kind() {
    for cpu in EXACT.into_iter().chain([FAST]) {
        for model in ["llama", "qwen2"] {
            let desk = desk(model, cpu);
            for adapter in everybody(model, &desk).into_iter().flatten() {
                assert!(adapter.bytes() > 1000, "{model}, {cpu:?}: {adapter:?}");
            }
            // A whole head of 512 × 64: 4 bytes for each number, or 34 for each 32.
            if model == "llama" {
                let full = [(Site::Head, SiteDelta::Full(matrix(1, 512, 64, 0.1)))];
                let bytes = desk.loaded.packer.packed_bytes(&full);
                assert_eq!(bytes, if cpu == FAST { 512 * 64 / 32 * 34 } else { 512 * 64 * 4 });
            }
        }
    }
}
