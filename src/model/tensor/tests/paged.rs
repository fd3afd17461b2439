//! Attention over pages, with a stand-in for the kernel: what it is given says where every key of every row is.

use candle_core::{DType, Device, Result, Tensor};

use super::bench::{Bench, ask, assign, sample, sequences};
use crate::model::{Projection, RowAnswer, Want, tensor::paged::Paged};

/// What `candle-flash-attn`'s paged kernel computes, from the same input: the rows of a sequence are its last, each sees the
/// keys from `before` before its own to `after` after it, and query heads share key heads in order.
pub fn stand_in(ask: &Paged) -> Result<Tensor> {
    let host = |x: &Tensor| x.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>();
    let (queries, keys, values) = (host(ask.queries)?, host(ask.keys)?, host(ask.values)?);
    let (_, heads, head_dim) = ask.queries.dims3()?;
    let (_, block_tokens, kv_heads, _) = ask.keys.dims4()?;
    let (rows, ends): (Vec<u32>, Vec<u32>) = (ask.tables.rows.to_vec1()?, ask.tables.keys.to_vec1()?);
    let tables: Vec<Vec<u32>> = ask.tables.blocks.to_vec2()?;
    let (before, after) = ask.reach();
    // Longer than any sequence is no limit to the kernel.
    let limit = |side: Option<usize>| side.filter(|keys| *keys <= ask.tables.most_keys).unwrap_or(usize::MAX);
    let (before, after) = (limit(before), limit(after));
    let mut outputs = vec![0.0; queries.len()];
    for (sequence, table) in tables.iter().enumerate() {
        let (first, end) = (rows[sequence] as usize, rows[sequence + 1] as usize);
        let count = (ends[sequence + 1] - ends[sequence]) as usize;
        assert!(end - first <= ask.tables.most_rows && count <= ask.tables.most_keys);
        for row in first..end {
            let own = count - (end - row);
            let seen = own.saturating_sub(before)..count.min(own.saturating_add(after).saturating_add(1));
            for head in 0..heads {
                let shared = head * kv_heads / heads;
                let place = |key: usize| {
                    let slot = table[key / block_tokens] as usize * block_tokens + key % block_tokens;
                    (slot * kv_heads + shared) * head_dim
                };
                let at = (row * heads + head) * head_dim;
                let query = &queries[at..at + head_dim];
                let score = |key: usize| {
                    let key = &keys[place(key)..][..head_dim];
                    query.iter().zip(key).map(|(q, k)| q * k).sum::<f32>() * ask.scale
                };
                let scores: Vec<f32> = seen.clone().map(score).collect();
                let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let weights: Vec<f32> = scores.iter().map(|score| (score - max).exp()).collect();
                let total: f32 = weights.iter().sum();
                for (key, weight) in seen.clone().zip(&weights) {
                    for (index, value) in values[place(key)..][..head_dim].iter().enumerate() {
                        outputs[at + index] += weight / total * value;
                    }
                }
            }
        }
    }
    Tensor::from_vec(outputs, ask.queries.shape(), &Device::Cpu)?.to_dtype(ask.queries.dtype())
}

/// Prompts of several lengths, then rows after them, prompt chunks beside single rows: the logits of each sequence's last row.
fn answers(bench: &mut Bench, model: &str) -> Vec<Vec<f32>> {
    let adapters: Vec<_> =
        (0..5).map(|seed| bench.adapter(seed, 4, |_, projection| projection != Projection::Up)).collect();
    let mut all = Vec::new();
    for (lengths, first) in [([30, 1, 17, 4, 9], 0), ([1, 1, 1, 1, 1], 30), ([3, 1, 20, 1, 2], 31)] {
        let mut batch = sequences(&lengths, first);
        // What stands before `first` is what the earlier steps have left there, or zeros, and the same in both ways.
        if model == "llama" {
            assign(&mut batch, &adapters);
        }
        ask(&mut batch, |_| Want::Logits);
        for answer in bench.run(&batch).0 {
            let RowAnswer::Logits(logits) = answer else { panic!("{answer:?}") };
            all.push(logits);
        }
    }
    all
}

#[test]
fn pages_read_in_place_answer_as_keys_and_values_that_are_gathered() {
    // Windows of 16, heads of another width than the hidden size gives, layers without rope.
    for model in ["llama", "mistral", "qwen3", "smollm3"] {
        let run = |paged| {
            let mut bench = Bench::open(model, DType::F32);
            bench.decoder.set_paged(paged);
            answers(&mut bench, model)
        };
        for (index, (gathered, paged)) in run(false).iter().zip(&run(true)).enumerate() {
            let apart = gathered.iter().zip(paged).map(|(one, other)| (one - other).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-4, "{model}, answer {index}: {apart}");
        }
    }
}

#[test]
fn a_row_sees_its_window_and_no_more_when_pages_are_read_in_place() {
    let mut bench = Bench::open("mistral", DType::F32);
    bench.decoder.set_paged(true);
    let last = |bench: &mut Bench, change: Option<usize>| {
        let mut batch = sequences(&[40], 0);
        if let Some(row) = change {
            batch.tokens[row] ^= 1;
        }
        // One layer of two sees 16 keys, so both together see 31.
        ask(&mut batch, |_| Want::Logits);
        bench.run(&batch).0
    };
    let (plain, far, near) = (last(&mut bench, None), last(&mut bench, Some(8)), last(&mut bench, Some(9)));
    assert_eq!(plain, far, "31 keys before the last row");
    assert_ne!(plain, near, "30 keys before the last row");
}

#[test]
fn a_step_over_pages_takes_few_operations_and_small_tables() {
    let mut bench = Bench::open("llama", DType::F32);
    bench.decoder.set_paged(true);
    let mut count = |lengths: Vec<usize>| {
        let mut batch = sequences(&lengths, 0);
        ask(&mut batch, |_| Want::Sample(Box::new(sample())));
        bench.run(&batch).1
    };
    // Whatever their lengths, all sequences are one group.
    let mixed = |sequences: usize| (0..sequences).map(|index| [1, 7, 2, 30][index % 4]).collect::<Vec<_>>();
    let (few, many) = (count(mixed(8)), count(mixed(64)));
    assert_eq!(few.by_kind(), many.by_kind());
    bench.decoder.set_paged(false);
    let mut batch = sequences(&mixed(64), 0);
    ask(&mut batch, |_| Want::Sample(Box::new(sample())));
    let gathered = bench.run(&batch).1;
    assert!(many.operations() < gathered.operations(), "{} of {}", many.operations(), gathered.operations());
    assert!(many.upload_bytes < gathered.upload_bytes, "{} of {}", many.upload_bytes, gathered.upload_bytes);
}

/// On a device that has the kernel: it answers as the gathered way does.
#[cfg(feature = "flash-attn")]
#[test]
fn the_kernel_answers_as_keys_and_values_that_are_gathered() {
    use crate::model::tensor::paged::Tables;

    let device = Device::new_cuda(0).expect("a CUDA device: this build has flash-attn");
    let (heads, kv_heads, head_dim, block_tokens) = (6, 2, 64, 32);
    let kv = crate::model::KvShape { block_tokens, blocks: 128, block_bytes: 0 };
    let noise = |shape: &[usize]| Tensor::randn(0.0f32, 1.0, shape, &Device::Cpu)?.to_dtype(DType::BF16);
    let pages = [kv.blocks, block_tokens, kv_heads, head_dim];
    let lengths = [(1, 70), (33, 0), (5, 100), (1, 0)];
    let mut batch = crate::model::Batch::default();
    for (index, (rows, before)) in lengths.into_iter().enumerate() {
        let first_row = batch.rows() as u32;
        batch.tokens.extend(vec![0; rows]);
        batch.positions.extend(before as u32..(before + rows) as u32);
        let blocks = (0..(before + rows).div_ceil(block_tokens)).map(|block| (block * 7 + index) as u32).collect();
        batch.sequences.push(crate::model::SequenceRows { first_row, rows: rows as u32, blocks });
    }
    for window in [None, Some(16)] {
        let compare = || -> Result<f32> {
            let (queries, keys, values) = (noise(&[batch.rows(), heads, head_dim])?, noise(&pages)?, noise(&pages)?);
            let tables = Tables::new(&batch, kv, &Device::Cpu)?;
            let host = Paged { queries: &queries, keys: &keys, values: &values, tables: &tables, window, scale: 0.125 };
            let expected = stand_in(&host)?.to_dtype(DType::F32)?;
            let there = |x: &Tensor| x.to_device(&device);
            let (queries, keys, values) = (there(&queries)?, there(&keys)?, there(&values)?);
            let tables = Tables::new(&batch, kv, &device)?;
            let ask = Paged { queries: &queries, keys: &keys, values: &values, tables: &tables, window, scale: 0.125 };
            let got =
                crate::model::tensor::ops::paged_attention(&ask)?.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
            (got - expected)?.abs()?.flatten_all()?.max(0)?.to_scalar()
        };
        let apart = compare().expect("the kernel runs");
        assert!(apart < 0.05, "window {window:?}: {apart}");
    }
}
