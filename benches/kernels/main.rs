//! The matrix kernels, on one thread: every encoding at 1 to 512 rows, every level of instructions beside the reference.
//! And what goes before and after: quantization, norms, the spread of logits, and, in `steps`, all the rest of a step.
//!
//! `cargo bench --bench kernels`. The shapes are the demo model's gate, down and head; K-quants, whose blocks hold 256 inputs,
//! have the second only, where the reference is. One row is given in bytes of weights a second, which come from memory: each
//! call takes the next of many copies. More rows are given in operations a second (an element is a multiplication or an
//! addition).

mod steps;

use std::{hint::black_box, time::Duration};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use tunegate::kernels::{
    caches,
    dequant::Encoding,
    isa::Isa,
    matmul::{panel_f32, panel_int8},
    pack::Packed,
    quantize::{BlockSum, QuantizedRow, QuantizedRows, norm_quantize_row, quantize_row},
    sample::Spread,
    spread::Part,
};

const ENCODINGS: [Encoding; 11] = [
    Encoding::Q8_0,
    Encoding::Q4_0,
    Encoding::Q4_1,
    Encoding::Q5_0,
    Encoding::Q5_1,
    Encoding::Q4K,
    Encoding::Q5K,
    Encoding::Q6K,
    Encoding::F16,
    Encoding::BF16,
    Encoding::F32,
];

/// `(inputs, outputs, rows)`
const SHAPES: [(usize, usize, &[usize]); 3] = [
    (576, 1536, &[1, 2, 4, 8, 16, 64, 512]),
    (1536, 576, &[1, 2, 4, 8, 16, 64, 512]),
    (576, 49_152, &[1, 2, 4, 8, 16]),
];

/// Bytes of copies that are taken in turns: more than caches hold, as far as there is memory for them.
fn rotated_bytes() -> usize {
    const LEAST: usize = 256 << 20;
    caches::beyond().unwrap_or(LEAST)
}

#[derive(Clone, Copy, PartialEq)]
enum Activations {
    Int8,
    Single,
}

/// Rows in both forms.
struct Rows {
    inputs: usize,
    x: Vec<f32>,
    q: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<BlockSum>,
}

impl Rows {
    fn new(rows: usize, inputs: usize) -> Self {
        let x: Vec<f32> = (0..rows * inputs).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let (mut q, blocks) = (vec![0; x.len()], x.len() / 32);
        let (mut scales, mut sums) = (vec![0.0; blocks], vec![BlockSum::default(); blocks]);
        quantize_row(Isa::best(), &x, QuantizedRow { q: &mut q, scales: &mut scales, sums: &mut sums });
        Self { inputs, x, q, scales, sums }
    }

    fn quantized(&self) -> QuantizedRows<'_> {
        QuantizedRows { inputs: self.inputs, q: &self.q, scales: &self.scales, sums: &self.sums }
    }
}

/// As many equal matrices as memory must be read for.
fn copies(encoding: Encoding, outputs: usize, inputs: usize, bytes: usize) -> Vec<Packed> {
    let mut row: Vec<u8> =
        (0..encoding.bytes_for(inputs).expect("whole blocks")).map(|i| (i * 31 % 251) as u8).collect();
    for block in row.chunks_exact_mut(encoding.block_bytes()) {
        // The high bytes of 16-bit scales or of a value: small, and no NaN.
        let high: &[usize] = match encoding {
            Encoding::F32 => &[3],
            Encoding::F16 | Encoding::BF16 | Encoding::Q8_0 | Encoding::Q4_0 | Encoding::Q5_0 => &[1],
            Encoding::Q4_1 | Encoding::Q5_1 | Encoding::Q4K | Encoding::Q5K => &[1, 3],
            Encoding::Q6K => &[209],
        };
        high.iter().for_each(|&at| block[at] = 0x28);
    }
    let packed = || Packed::pack(encoding, outputs, inputs, |_| &row).expect("packed weights");
    let first = packed();
    let more = bytes / first.bytes();
    std::iter::once(first).chain((0..more).map(|_| packed())).collect()
}

/// Every level that the machine has, but the reference.
fn fast_levels() -> impl Iterator<Item = Isa> {
    Isa::all().into_iter().filter(|isa| *isa != Isa::PLAIN)
}

fn product(isa: Isa, activations: Activations, weights: &Packed, rows: &Rows, tile: &mut [f32]) {
    for panel in 0..weights.panels() {
        match activations {
            Activations::Int8 => panel_int8(isa, weights, panel, &rows.quantized(), tile),
            Activations::Single => panel_f32(isa, weights, panel, &rows.x, tile),
        }
    }
}

fn products(criterion: &mut Criterion) {
    for (inputs, outputs, all_rows) in SHAPES {
        let mut group = criterion.benchmark_group(format!("product_{inputs}x{outputs}"));
        for encoding in ENCODINGS.into_iter().filter(|encoding| inputs.is_multiple_of(encoding.block_values())) {
            let copies = copies(encoding, outputs, inputs, rotated_bytes());
            let mut next = (0..copies.len()).cycle();
            let mut bench = |name: &str, isa: Isa, activations: Activations, rows: usize| {
                let activations_of = Rows::new(rows, inputs);
                let mut tile = vec![0.0; rows * Packed::PANEL];
                group.throughput(match rows {
                    1 => Throughput::Bytes(copies[0].bytes() as u64),
                    _ => Throughput::Elements((2 * rows * inputs * outputs) as u64),
                });
                let name = BenchmarkId::new(format!("{} {name}", encoding.name()), rows);
                group.bench_function(name, |bencher| {
                    bencher.iter(|| {
                        let weights = &copies[next.next().unwrap_or(0)];
                        product(isa, activations, weights, &activations_of, &mut tile);
                        black_box(&mut tile);
                    });
                });
            };
            let fastest = if copies[0].takes_int8() { Activations::Int8 } else { Activations::Single };
            for &rows in all_rows {
                fast_levels().for_each(|isa| bench(isa.name(), isa, fastest, rows));
                if (inputs, outputs) == (1536, 576) {
                    if fastest == Activations::Int8 {
                        let name = |isa: Isa| format!("exact {}", isa.name());
                        fast_levels().for_each(|isa| bench(&name(isa), isa, Activations::Single, rows));
                    }
                    bench("reference", Isa::PLAIN, fastest, rows);
                }
            }
        }
    }
}

fn quantization(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("quantize_576");
    let (x, weight, mut out) = (Rows::new(1, 576).x, vec![1.0; 576], vec![0.0; 576]);
    let (mut q, mut scales, mut sums) = (vec![0; 576], vec![0.0; 18], vec![BlockSum::default(); 18]);
    group.throughput(Throughput::Elements(576));
    for isa in Isa::all() {
        let name = isa.name();
        group.bench_function(BenchmarkId::new("row", name), |bencher| {
            bencher.iter(|| {
                let to = QuantizedRow { q: &mut q, scales: &mut scales, sums: &mut sums };
                quantize_row(isa, black_box(&x), to);
            });
        });
        group.bench_function(BenchmarkId::new("norm and row", name), |bencher| {
            bencher.iter(|| {
                let to = QuantizedRow { q: &mut q, scales: &mut scales, sums: &mut sums };
                norm_quantize_row(isa, black_box(&x), &weight, 1e-5, &mut out, to);
            });
        });
    }
}

fn spread(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("spread_49152");
    let row: Vec<f32> = (0..49_152).map(|i| (i * 37 % 1013) as f32 / 50.0 - 12.0).collect();
    let mut parts: Vec<Part> = Vec::with_capacity(Part::count(row.len()));
    group.throughput(Throughput::Elements(row.len() as u64));
    for isa in Isa::all() {
        group.bench_function(isa.name(), |bencher| {
            bencher.iter(|| {
                parts.clear();
                parts.extend((0..Part::count(row.len())).map(|index| Part::of(isa, black_box(&row), index)));
                Spread::join(&parts)
            });
        });
    }
}

fn short() -> Criterion {
    let brief = Duration::from_millis(100);
    Criterion::default().sample_size(10).warm_up_time(brief / 4).measurement_time(brief).without_plots()
}

criterion_group! { name = benches; config = short(); targets = products, quantization, spread,
steps::shrinking, steps::expanding, steps::attention, steps::storing, steps::gating, steps::drawing }
criterion_main!(benches);
