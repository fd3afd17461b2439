//! What lies between the products of a step: low ranks, attention, stored keys and values, the feed-forward's gate, draws. The sizes
//! are the demo model's; the reference is the level `plain`. One element is a multiplication or an addition, a stored number, an
//! output, or a logit.

use std::hint::black_box;

use criterion::{BenchmarkId, Criterion, Throughput};
use half::f16;
use tunegate::kernels::{
    activation::silu_times,
    attention::{KvLayout, KvRows, Queries, Reach, Slots, Stock, Stored, attend, partial_len, splits},
    isa::Isa,
    lora::{Expand, Inputs, Precision, RUN, Shrink, Shrunk, expand, shrink},
    pack::PANEL,
    pool::Pool,
    sample::Draw,
};

use crate::Rows;

const ROWS: [usize; 4] = [1, 8, 64, 512];
const HIDDEN: usize = 576;
const FFN: usize = 1536;
const HEAD_DIM: usize = 64;
const BLOCK_TOKENS: usize = 32;
const VOCAB: usize = 49_152;

/// The rank of one adapter on each projection.
const RANK: usize = 16;

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 37 % 101) as f32 - 50.0) / 500.0).collect()
}

const PRECISIONS: [(&str, Precision); 3] = [("int8", Precision::I8), ("f16", Precision::F16), ("f32", Precision::F32)];

/// A of gate and up, for all rows on one adapter, and for as many adapters as rows.
pub fn shrinking(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group(format!("shrink_{HIDDEN}x{}", 2 * RANK));
    for (form, precision) in PRECISIONS {
        let stack = || Shrink::pack(precision, 2 * RANK, HIDDEN, &values(2 * RANK * HIDDEN));
        for rows in ROWS {
            let x = Rows::new(rows, HIDDEN);
            let x = Inputs { floats: &x.x, quantized: Some(x.quantized()) };
            let listed: Vec<u32> = (0..rows as u32).collect();
            let mut out = vec![0.0; rows * RUN];
            group.throughput(Throughput::Elements((2 * rows * 2 * RANK * HIDDEN) as u64));
            for adapters in [1, rows] {
                let stacks: Vec<Shrink> = (0..adapters).map(|_| stack()).collect();
                for isa in Isa::all() {
                    let name = BenchmarkId::new(format!("{form} {}", isa.name()), format!("{rows} rows, {adapters}"));
                    group.bench_function(name, |bencher| {
                        bencher.iter(|| {
                            for (stack, rows) in stacks.iter().zip(listed.chunks(rows / adapters)) {
                                for run in 0..stack.runs() {
                                    shrink(isa, stack, run, &x, rows, 0, black_box(&mut out));
                                }
                            }
                        });
                    });
                }
                if rows == 1 {
                    break;
                }
            }
        }
    }
}

/// B of gate, likewise.
pub fn expanding(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group(format!("expand_{RANK}x{FFN}"));
    for (form, precision) in PRECISIONS {
        let b = || Expand::pack(precision, RANK, 0, 2.0, &values(FFN * RANK));
        for rows in ROWS {
            let shrunk = values(rows * RUN);
            let shrunk = Shrunk { values: &shrunk, rows };
            let listed: Vec<u32> = (0..rows as u32).collect();
            let mut tiles = vec![0.0; FFN / PANEL * rows * PANEL];
            group.throughput(Throughput::Elements((2 * rows * RANK * FFN) as u64));
            for adapters in [1, rows] {
                let all: Vec<Expand> = (0..adapters).map(|_| b()).collect();
                for isa in Isa::all() {
                    let name = BenchmarkId::new(format!("{form} {}", isa.name()), format!("{rows} rows, {adapters}"));
                    group.bench_function(name, |bencher| {
                        bencher.iter(|| {
                            for (b, rows) in all.iter().zip(listed.chunks(rows / adapters)) {
                                expand(isa, b, 0..FFN / PANEL, shrunk, rows, black_box(&mut tiles));
                            }
                        });
                    });
                }
                if rows == 1 {
                    break;
                }
            }
        }
    }
}

/// One key head with its three query heads: an answer's row, and a chunk of a prompt, behind contexts of several lengths.
pub fn attention(criterion: &mut Criterion) {
    attention_in::<f16>(criterion, "f16");
    attention_in::<f32>(criterion, "f32");
}

fn attention_in<T: Stored>(criterion: &mut Criterion, form: &str) {
    const SHARED: usize = 3;
    let mut group = criterion.benchmark_group(format!("attention_{form}"));
    for context in [128, 1024, 4096] {
        let layout = KvLayout { block_tokens: BLOCK_TOKENS, head_dim: HEAD_DIM, heads: 1 };
        let blocks: Vec<u32> = (0..(context / BLOCK_TOKENS) as u32).collect();
        let mut memory = vec![T::default(); blocks.len() * layout.block_values()];
        store(layout, &mut memory, context);
        for rows in [1, 16] {
            let queries = values(rows * SHARED * HEAD_DIM);
            let queries = Queries { values: &queries, row_stride: SHARED * HEAD_DIM, rows, shared: SHARED };
            let first_position = context - rows;
            let splits = splits(first_position..context, None);
            let reach = Reach { blocks: &blocks, first_position, window: None, splits };
            let mut out = vec![0.0; rows * SHARED * partial_len(HEAD_DIM)];
            group.throughput(Throughput::Elements((4 * rows * SHARED * context * HEAD_DIM) as u64));
            for isa in Isa::all() {
                let name = BenchmarkId::new(isa.name(), format!("{rows} rows, {context} positions"));
                let stock = Stock::new(layout, &memory, 0);
                group.bench_function(name, |bencher| {
                    bencher.iter(|| attend(isa, &stock, &reach, &queries, None, black_box(&mut out)));
                });
            }
        }
    }
}

/// Stores `rows` rows of every head, one position after the other.
fn store<T: Stored>(layout: KvLayout, memory: &mut [T], rows: usize) {
    let (key, value) = (values(layout.head_dim), values(layout.head_dim));
    let places = (0..rows).map(|position| (position / layout.block_tokens, position % layout.block_tokens));
    let slots = Slots::new(places.collect()).expect("different places");
    let mut alone = Pool::new(1).expect("the calling thread");
    alone.here(KvRows::new(layout, memory, &slots, rows), |_, mut piece| {
        for row in 0..rows {
            (0..layout.heads).for_each(|head| piece.write(row, head, &key, &value));
        }
    });
}

/// Keys and values of one layer's three heads.
pub fn storing(criterion: &mut Criterion) {
    const HEADS: usize = 3;
    let mut group = criterion.benchmark_group("store_keys_and_values");
    for rows in ROWS {
        let layout = KvLayout { block_tokens: BLOCK_TOKENS, head_dim: HEAD_DIM, heads: HEADS };
        let numbers = rows.div_ceil(BLOCK_TOKENS) * layout.block_values();
        group.throughput(Throughput::Elements((2 * rows * HEADS * HEAD_DIM) as u64));
        let mut half = vec![f16::ZERO; numbers];
        group.bench_function(BenchmarkId::new("f16", rows), |bencher| {
            bencher.iter(|| store(layout, black_box(&mut half), rows));
        });
        let mut single = vec![0.0f32; numbers];
        group.bench_function(BenchmarkId::new("f32", rows), |bencher| {
            bencher.iter(|| store(layout, black_box(&mut single), rows));
        });
    }
}

/// `silu(gate) ⊙ up` of whole rows.
pub fn gating(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group(format!("silu_{FFN}"));
    for rows in ROWS {
        let (gate, up) = (values(rows * FFN), values(rows * FFN));
        group.throughput(Throughput::Elements((rows * FFN) as u64));
        for isa in Isa::all() {
            let mut out = gate.clone();
            group.bench_function(BenchmarkId::new(isa.name(), rows), |bencher| {
                bencher.iter(|| {
                    // Written over again and again, the numbers would come to nothing.
                    out.copy_from_slice(&gate);
                    silu_times(isa, black_box(&mut out), &up);
                });
            });
        }
    }
}

/// One token of a vocabulary.
pub fn drawing(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group(format!("draw_{VOCAB}"));
    let logits: Vec<f32> = (0..VOCAB).map(|i| ((i * 7919 % 10_007) as f32 / 700.0).sin() * 9.0 - 4.0).collect();
    let all = Draw { temperature: 0.8, top_k: 0, top_p: 1.0, min_p: 0.0, u: 0.7 };
    let rules = [
        ("the best", Draw { temperature: 0.0, ..all }),
        ("top-k 40", Draw { top_k: 40, ..all }),
        ("top-p 0.95", Draw { top_p: 0.95, ..all }),
        ("min-p 0.05", Draw { min_p: 0.05, ..all }),
        ("of all", all),
    ];
    group.throughput(Throughput::Elements(VOCAB as u64));
    for (name, draw) in rules {
        for isa in Isa::all() {
            let mut scratch = Vec::new();
            group.bench_function(BenchmarkId::new(name, isa.name()), |bencher| {
                bencher.iter(|| draw.pick(isa, black_box(&logits), &mut scratch));
            });
        }
    }
}
