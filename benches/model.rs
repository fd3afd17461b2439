//! The decoders on a CPU: decode steps alone and in a batch, and prompts; the order of a tensor product.
//!
//! `cargo bench --bench model`. Decode steps need the demo model (`make model`, or `TUNEGATE_TEST_MODEL`).

use std::{hint::black_box, path::PathBuf, sync::Arc};

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tunegate::{
    model::{
        AdapterRows, Adjustments, Batch, CpuDecoder, CpuOptions, DeviceChoice, LoadOptions, Loaded, LoraAdapter,
        Matrix, ModelSource, RowAsk, SampleAsk, SequenceRows, SiteDelta, StepOutput, Want, load, lora::Values,
    },
    terms::{AdapterVersion, Digest},
};

/// Tokens that each sequence holds before the measured step.
const HELD: usize = 128;
const BLOCK_TOKENS: usize = 16;

/// `x · Wᵀ` with the weight on the right and on the left, for the demo model's gate and up.
fn product_order(criterion: &mut Criterion) {
    let weight = Tensor::randn(0f32, 1.0, (3072, 576), &Device::Cpu).expect("a weight");
    let mut group = criterion.benchmark_group("product_576x3072");
    for rows in [1usize, 2, 8, 32, 128] {
        let x = Tensor::randn(0f32, 1.0, (rows, 576), &Device::Cpu).expect("rows");
        group.throughput(Throughput::Elements(rows as u64));
        group.bench_with_input(BenchmarkId::new("weight_right", rows), &x, |bencher, x| {
            bencher.iter(|| black_box(x.matmul(&weight.t()?)));
        });
        group.bench_with_input(BenchmarkId::new("weight_left", rows), &x, |bencher, x| {
            bencher.iter(|| weight.matmul(&x.t()?)?.t()?.contiguous());
        });
    }
}

/// The decoder in its classes, and the one that it is compared with.
const DECODERS: [(&str, CpuOptions); 3] = [
    ("fast", CpuOptions { decoder: CpuDecoder::Fused, exact: false, threads: None, pin: false, isa: None }),
    ("exact", CpuOptions { decoder: CpuDecoder::Fused, exact: true, threads: None, pin: false, isa: None }),
    ("tensor", CpuOptions { decoder: CpuDecoder::Tensor, exact: true, threads: None, pin: false, isa: None }),
];

fn steps(criterion: &mut Criterion) {
    let path = std::env::var_os("TUNEGATE_TEST_MODEL").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("models/SmolLM2-135M-Instruct.Q4_1.gguf"),
        PathBuf::from,
    );
    if !path.exists() {
        eprintln!("steps are passed over: {} is not there", path.display());
        return;
    }
    let source = ModelSource::detect(&path).expect("a model");
    for (name, cpu) in DECODERS {
        let options = LoadOptions {
            device: DeviceChoice::Cpu,
            dtype: None,
            kv_bytes: 256 << 20,
            block_tokens: BLOCK_TOKENS,
            max_model_len: Some(1024),
            cpu,
        };
        let mut loaded = load(&source, &options).expect("a loaded model");
        decode_steps(criterion, name, &mut loaded);
        prompts(criterion, name, &mut loaded);
    }
}

fn prompts(criterion: &mut Criterion, name: &str, loaded: &mut Loaded) {
    let mut group = criterion.benchmark_group(format!("prompt/{name}"));
    group.sample_size(10);
    for rows in [128u32, 512] {
        let (mut batch, mut output) = (Batch::default(), StepOutput::default());
        let tokens: Vec<u32> = (0..rows).map(|position| 100 + position).collect();
        let blocks = (0..rows.div_ceil(BLOCK_TOKENS as u32)).collect();
        batch.sequences.push(SequenceRows { first_row: 0, rows, blocks });
        batch.positions.extend(0..rows);
        batch.tokens.extend(tokens);
        batch.asks.push(RowAsk { row: rows - 1, want: greedy() });
        group.throughput(Throughput::Elements(u64::from(rows)));
        group.bench_function(format!("{rows} tokens"), |bencher| {
            bencher.iter(|| loaded.decoder.forward(&batch, &mut output));
        });
    }
}

fn decode_steps(criterion: &mut Criterion, name: &str, loaded: &mut Loaded) {
    let adapters: Vec<Arc<LoraAdapter>> = (0..8).map(|seed| adapter(loaded, seed)).collect();
    let mut group = criterion.benchmark_group(format!("decode_step/{name}"));
    group.sample_size(20);
    for (streams, tuned) in [(1, 0), (1, 1), (8, 0), (8, 1), (8, 8)] {
        let mut output = StepOutput::default();
        for stream in 0..streams {
            let tokens: Vec<u32> = (0..HELD as u32).map(|position| 100 + position).collect();
            let mut batch = Batch::default();
            extend(&mut batch, stream, &tokens, 0);
            loaded.decoder.forward(&batch, &mut output).expect("a prompt is read");
        }
        let mut batch = Batch::default();
        for stream in 0..streams {
            extend(&mut batch, stream, &[7], HELD as u32);
            batch.asks.push(RowAsk { row: stream as u32, want: greedy() });
        }
        for (place, weights) in adapters.iter().take(tuned).enumerate() {
            let rows = (place as u32..streams as u32).step_by(tuned).collect();
            batch.adapters.push(AdapterRows { rows, weights: weights.clone() });
        }
        group.throughput(Throughput::Elements(streams as u64));
        group.bench_function(format!("{streams} streams, {tuned} adapters of rank 16"), |bencher| {
            bencher.iter(|| loaded.decoder.forward(&batch, &mut output));
        });
    }
}

/// Appends a sequence's rows, which begin at `position`.
fn extend(batch: &mut Batch, stream: usize, tokens: &[u32], position: u32) {
    let blocks = (HELD / BLOCK_TOKENS + 1) as u32;
    let (first_row, rows) = (batch.rows() as u32, tokens.len() as u32);
    batch.tokens.extend(tokens);
    batch.positions.extend(position..position + rows);
    let first_block = stream as u32 * blocks;
    batch.sequences.push(SequenceRows { first_row, rows, blocks: (first_block..first_block + blocks).collect() });
}

fn greedy() -> Want {
    Want::Sample(Box::new(SampleAsk {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        u: 0.0,
        adjustments: Adjustments::default(),
        top: 0,
    }))
}

/// Rank 16 on all seven projections.
fn adapter(loaded: &Loaded, seed: usize) -> Arc<LoraAdapter> {
    let matrix = |rows: usize, cols: usize| {
        let values = (0..rows * cols).map(|i| ((i * 31 + seed) % 17) as f32 * 1e-3 - 8e-3).collect();
        Matrix { rows, cols, values: Values::F32(values) }
    };
    let sites = loaded.shape.layer_sites().map(|site| {
        let (out, input) = loaded.shape.site_shape(site).expect("a site of the shape");
        let (a, b) = (matrix(16, input), matrix(out, 16));
        (site, SiteDelta::LowRank { a, b, scale: 2.0, lora_bias: None, base_bias: None, magnitude: None })
    });
    let version = AdapterVersion(Digest::of(&seed.to_le_bytes()));
    Arc::new(loaded.packer.pack(version, sites.collect()).expect("a packed adapter"))
}

criterion_group!(benches, product_order, steps);
criterion_main!(benches);
