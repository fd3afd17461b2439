use super::*;
use crate::kernels::quantize::{BlockSum, QuantizedRow, quantize_row};

fn noise(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    // Numbers that every precision keeps exactly.
    (0..count).map(|_| (next() * 64.0).round() / 64.0).collect()
}

const NUMBERS: [Precision; 3] = [Precision::F32, Precision::F16, Precision::BF16];
const PRECISIONS: [Precision; 4] = [Precision::F32, Precision::F16, Precision::BF16, Precision::I8];

/// Quantized rows and what they stand for.
struct Quantized {
    inputs: usize,
    q: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<BlockSum>,
}

impl Quantized {
    fn new(inputs: usize, x: &[f32]) -> Self {
        let blocks = x.len() / BLOCK;
        let mut rows =
            Self { inputs, q: vec![0; x.len()], scales: vec![0.0; blocks], sums: vec![BlockSum::default(); blocks] };
        let outs = rows.q.chunks_exact_mut(inputs).zip(rows.scales.chunks_exact_mut(inputs / BLOCK));
        for ((x, (q, scales)), sums) in x.chunks_exact(inputs).zip(outs).zip(rows.sums.chunks_exact_mut(inputs / BLOCK))
        {
            quantize_row(Isa::PLAIN, x, QuantizedRow { q, scales, sums });
        }
        rows
    }

    fn rows(&self) -> QuantizedRows<'_> {
        QuantizedRows { inputs: self.inputs, q: &self.q, scales: &self.scales, sums: &self.sums }
    }

    fn numbers(&self) -> Vec<f32> {
        self.q
            .chunks_exact(BLOCK)
            .zip(&self.scales)
            .flat_map(|(q, scale)| q.iter().map(move |&q| f32::from(q) * scale))
            .collect()
    }
}

/// A stack of factors, and its delta for rows `rows` of `x` on top of `tile`.
struct Case {
    inputs: usize,
    outputs: usize,
    rank: usize,
    first: usize,
    a: Vec<f32>,
    b: Vec<f32>,
}

impl Case {
    fn new(inputs: usize, outputs: usize, rank: usize, first: usize) -> Self {
        let ranks = first + rank + 3;
        Self { inputs, outputs, rank, first, a: noise(ranks * inputs, 1), b: noise(outputs * rank, 2) }
    }

    /// `[panels, tile_rows, PANEL]`
    fn ours(&self, isa: Isa, precision: Precision, x: &[f32], rows: &[u32], tile_rows: usize) -> Vec<f32> {
        let a = Shrink::pack(precision, self.a.len() / self.inputs, self.inputs, &self.a);
        let b = Expand::pack(precision, self.rank, self.first, 0.5, &self.b);
        let mut shrunk = vec![f32::NAN; a.runs() * tile_rows * RUN];
        let quantized = (precision == Precision::I8).then(|| Quantized::new(self.inputs, x));
        let x = Inputs { floats: x, quantized: quantized.as_ref().map(Quantized::rows) };
        for run in 0..a.runs() {
            // The rows in two pieces, as two threads would have them.
            let out = &mut shrunk[run * tile_rows * RUN..(run + 1) * tile_rows * RUN];
            let (middle, split) = (tile_rows / 2, rows.partition_point(|&row| (row as usize) < tile_rows / 2));
            let (low, high) = out.split_at_mut(middle * RUN);
            shrink(isa, &a, run, &x, &rows[..split], 0, low);
            shrink(isa, &a, run, &x.rest(self.inputs, middle), &rows[split..], middle, high);
        }
        let shrunk = Shrunk { values: &shrunk, rows: tile_rows };
        let panels = self.outputs.div_ceil(PANEL);
        let mut tiles = vec![1.0; panels * tile_rows * PANEL];
        // All panels but the last together.
        let (whole, last) = tiles.split_at_mut((panels - 1) * tile_rows * PANEL);
        expand(isa, &b, 0..panels - 1, shrunk, rows, whole);
        expand(isa, &b, panels - 1..panels, shrunk, rows, last);
        tiles
    }
}

#[test]
fn the_delta_is_scale_times_b_times_a_times_x_for_the_listed_rows_alone() {
    let tile_rows = 9;
    for (inputs, outputs, rank, first) in [(64, 112, 16, 0), (37, 20, 1, 5), (12, 16, 9, 8), (130, 48, 24, 11)] {
        let case = Case::new(inputs, outputs, rank, first);
        let x = noise(tile_rows * inputs, 3);
        for rows in [vec![], vec![4u32], vec![0, 8], vec![0, 1, 2, 3, 4, 5, 6, 7, 8]] {
            for (isa, precision) in Isa::all().into_iter().flat_map(|i| NUMBERS.map(|p| (i, p))) {
                let ours = case.ours(isa, precision, &x, &rows, tile_rows);
                for (index, ours) in ours.iter().enumerate() {
                    let (panel, row, place) = (index / PANEL / tile_rows, index / PANEL % tile_rows, index % PANEL);
                    let output = panel * PANEL + place;
                    let mut exact = 1.0;
                    if output < outputs && rows.contains(&(row as u32)) {
                        for r in 0..rank {
                            let a = &case.a[(first + r) * inputs..][..inputs];
                            let t: f64 = a.iter().zip(&x[row * inputs..]).map(|(a, x)| f64::from(a * x)).sum();
                            exact += 0.5 * t * f64::from(case.b[output * rank + r]);
                        }
                    }
                    assert!((f64::from(*ours) - exact).abs() < 1e-4, "row {row}, output {output}: {ours}, not {exact}");
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_to_the_bit_alone_and_among_others() {
    let case = Case::new(96, 32, 13, 2);
    let x: Vec<f32> = noise(11 * 96, 9).iter().map(|x| x * 0.37).collect();
    for (isa, precision) in Isa::all().into_iter().flat_map(|i| PRECISIONS.map(|p| (i, p))) {
        let rows: Vec<u32> = (0..11).collect();
        let together = case.ours(isa, precision, &x, &rows, 11);
        for row in 0..11usize {
            let alone = case.ours(isa, precision, &x, &[row as u32], 11);
            for panel in 0..2 {
                let at = (panel * 11 + row) * PANEL;
                assert_eq!(together[at..at + PANEL], alone[at..at + PANEL], "row {row}");
            }
        }
    }
}

/// What a factor means in 8 bits: numbers that fit it exactly are kept exactly, so the delta differs from the numbers' by the
/// rounding of sums alone.
#[test]
fn bytes_that_hold_a_factor_exactly_give_its_delta() {
    let whole = |values: Vec<f32>, block: usize| -> Vec<f32> {
        // Every block has its largest number at 127/128, so that its scale is 1/128.
        let whole = values.chunks(block).flat_map(|block| {
            block.iter().enumerate().map(|(i, v)| if i == 0 { 127.0 / 128.0 } else { (v * 127.0).round() / 128.0 })
        });
        whole.collect()
    };
    let tile_rows = 9;
    for (inputs, outputs, rank, first) in
        [(64, 32, 16, 0), (96, 20, 1, 5), (32, 16, 9, 8), (160, 48, 24, 11), (64, 112, 3, 0)]
    {
        let mut case = Case::new(inputs, outputs, rank, first);
        (case.a, case.b) = (whole(case.a, BLOCK), whole(case.b, rank));
        let quantized = Quantized::new(inputs, &noise(tile_rows * inputs, 3));
        let x = quantized.numbers();
        for rows in [vec![], vec![4u32], vec![0, 8], vec![0, 1, 2, 3, 4, 5, 6, 7, 8]] {
            for isa in Isa::all() {
                let ours = case.ours(isa, Precision::I8, &x, &rows, tile_rows);
                let plain = case.ours(isa, Precision::F32, &x, &rows, tile_rows);
                for (ours, plain) in ours.iter().zip(&plain) {
                    assert!((ours - plain).abs() < 1e-4 * plain.abs().max(1.0), "{}: {ours}, not {plain}", isa.name());
                }
            }
        }
    }
}

#[test]
fn bytes_are_within_a_254th_of_their_blocks_largest_number() {
    let (ranks, inputs) = (19, 64);
    for size in [1e-30f32, 1e-3, 1.0, 1e20] {
        let a: Vec<f32> = noise(ranks * inputs, 5).iter().map(|a| a * size * 0.37).collect();
        let packed = Shrink::pack(Precision::I8, ranks, inputs, &a);
        // A row that picks one input reads one column of A.
        for input in [0usize, 31, 32, 63] {
            let mut x = vec![0.0f32; inputs];
            x[input] = 127.0;
            let quantized = Quantized::new(inputs, &x);
            let x = Inputs { floats: &x, quantized: Some(quantized.rows()) };
            for isa in Isa::all() {
                let mut out = vec![0.0; packed.runs() * RUN];
                for (run, out) in out.chunks_exact_mut(RUN).enumerate() {
                    shrink(isa, &packed, run, &x, &[0], 0, out);
                }
                for (rank, out) in out.iter().take(ranks).enumerate() {
                    let block = &a[rank * inputs + input / BLOCK * BLOCK..][..BLOCK];
                    let largest = block.iter().fold(0.0f32, |largest, a| largest.max(a.abs()));
                    let (ours, exact) = (out / 127.0, a[rank * inputs + input]);
                    assert!((ours - exact).abs() <= largest * 1.02 / 254.0, "{}: {ours} for {exact}", isa.name());
                }
            }
        }
    }
}
