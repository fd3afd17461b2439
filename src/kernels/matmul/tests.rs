use super::*;
use crate::kernels::{
    pack::tests::{ENCODINGS, Noise},
    quantize::{BlockSum, QuantizedRow, quantize_row},
};

const ROWS: [usize; 9] = [1, 2, 3, 4, 5, 8, 16, 33, 64];

/// Quantized rows that own their memory.
struct Owned {
    inputs: usize,
    q: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<BlockSum>,
}

impl Owned {
    fn new(x: &[f32], inputs: usize) -> Self {
        let blocks = x.len() / 32;
        let sums = vec![BlockSum::default(); blocks];
        let mut owned = Self { inputs, q: vec![0; x.len()], scales: vec![0.0; blocks], sums };
        let to = QuantizedRow { q: &mut owned.q, scales: &mut owned.scales, sums: &mut owned.sums };
        quantize_row(Isa::PLAIN, x, to);
        owned
    }

    fn rows(&self, first: usize, count: usize) -> QuantizedRows<'_> {
        let (inputs, blocks) = (self.inputs, self.inputs / 32);
        let (all, of_blocks) = (first * inputs..(first + count) * inputs, first * blocks..(first + count) * blocks);
        QuantizedRows { inputs, q: &self.q[all], scales: &self.scales[of_blocks.clone()], sums: &self.sums[of_blocks] }
    }
}

/// Dot products of the row `x` with every output of `panel` in `f64`, and the size of what was summed.
fn exact(weights: &Packed, panel: usize, x: &[f32]) -> Vec<(f64, f64)> {
    let mut row = vec![0.0; weights.inputs()];
    let outputs = panel * PANEL..(panel + 1) * PANEL;
    let dot = |output: usize| {
        if output >= weights.outputs() {
            return (0.0, 0.0);
        }
        weights.row(output, &mut row);
        let products = row.iter().zip(x).map(|(w, x)| f64::from(*w) * f64::from(*x));
        products.fold((0.0, 0.0), |(sum, size), product| (sum + product, size + product.abs()))
    };
    outputs.map(dot).collect()
}

fn assert_close(tile: &[f32], expected: &[(f64, f64)], tolerance: f64, what: &str) {
    for (place, (&got, &(expected, size))) in tile.iter().zip(expected).enumerate() {
        let error = (f64::from(got) - expected).abs();
        assert!(error <= tolerance * size, "{what} output {place}: {got} for {expected}, summed from {size}");
    }
}

#[test]
fn products_with_f32_rows_agree_with_decoded_weights() {
    for isa in Isa::all() {
        for encoding in ENCODINGS {
            let inputs = if encoding.block_values() == 1 { 301 } else { 512 };
            let weights = Noise(11).packed(encoding, 39, inputs);
            let x = Noise(12).floats(5 * inputs);
            let mut tile = vec![f32::NAN; 5 * PANEL];
            for panel in 0..3 {
                panel_f32(isa, &weights, panel, &x, &mut tile);
                for (x, tile) in x.chunks_exact(inputs).zip(tile.chunks_exact(PANEL)) {
                    let what = format!("{} {}", isa.name(), encoding.name());
                    assert_close(tile, &exact(&weights, panel, x), 2e-6, &what);
                }
            }
        }
    }
}

#[test]
fn products_with_int8_rows_are_those_of_the_numbers_they_stand_for() {
    for isa in Isa::all() {
        for encoding in ENCODINGS.into_iter().filter(|encoding| encoding.block_values() > 1) {
            let inputs = 768;
            let weights = Noise(21).packed(encoding, 39, inputs);
            let x = Owned::new(&Noise(22).floats(5 * inputs), inputs);
            let mut tile = vec![f32::NAN; 5 * PANEL];
            for panel in 0..3 {
                panel_int8(isa, &weights, panel, &x.rows(0, 5), &mut tile);
                for (row, tile) in tile.chunks_exact(PANEL).enumerate() {
                    let x = x.rows(row, 1);
                    let means = x.q.iter().enumerate().map(|(i, &q)| f32::from(q) * x.scales[i / 32]);
                    let expected = exact(&weights, panel, &means.collect::<Vec<_>>());
                    // Offsets are taken off block by block, so what is summed is somewhat larger than the products.
                    assert_close(tile, &expected, 1e-5, &format!("{} {}", isa.name(), encoding.name()));
                }
            }
        }
    }
}

#[test]
fn a_row_is_the_same_whatever_the_number_of_rows_and_its_place() {
    for isa in Isa::all() {
        for encoding in ENCODINGS {
            let inputs = if encoding.block_values() == 1 { 61 } else { encoding.block_values() };
            let weights = Noise(31).packed(encoding, 31, inputs);
            let x = Noise(32).floats(64 * inputs);
            let quantized = weights.takes_int8().then(|| Owned::new(&x, inputs));
            let run = |panel: usize, first: usize, rows: usize| {
                let mut tile = vec![f32::NAN; rows * PANEL];
                panel_f32(isa, &weights, panel, &x[first * inputs..(first + rows) * inputs], &mut tile);
                if let Some(quantized) = &quantized {
                    let mut int8 = vec![f32::NAN; rows * PANEL];
                    panel_int8(isa, &weights, panel, &quantized.rows(first, rows), &mut int8);
                    tile.extend(int8);
                }
                tile.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
            };
            let alone: Vec<Vec<u32>> = (0..64).map(|row| run(1, row, 1)).collect();
            for rows in ROWS {
                let first = 64 - rows;
                for (at, tile) in run(1, first, rows).chunks_exact(PANEL).enumerate() {
                    let (row, half) = (at % rows, at / rows);
                    let alone = &alone[first + row][half * PANEL..(half + 1) * PANEL];
                    assert_eq!(tile, alone, "{} {} row {row} of {rows}", isa.name(), encoding.name());
                }
            }
        }
    }
}

/// Integers are summed exactly, and the floats meet in the same order.
#[test]
fn every_fast_level_gives_the_same_bits_for_int8_rows() {
    let fast: Vec<Isa> = Isa::all().into_iter().filter(|isa| *isa != Isa::PLAIN).collect();
    for encoding in ENCODINGS.into_iter().filter(|encoding| encoding.block_values() > 1) {
        let inputs = if encoding.block_values() == 256 { 1536 } else { 1120 };
        let weights = Noise(61).packed(encoding, 31, inputs);
        let x = Owned::new(&Noise(62).floats(70 * inputs), inputs);
        for rows in (1..=34).chain([47, 64, 70]) {
            for panel in 0..2 {
                let run = |isa: &Isa| {
                    let mut tile = vec![f32::NAN; rows * PANEL];
                    panel_int8(*isa, &weights, panel, &x.rows(70 - rows, rows), &mut tile);
                    tile.iter().map(|value| value.to_bits()).collect::<Vec<_>>()
                };
                let tiles: Vec<_> = fast.iter().map(run).collect();
                assert!(tiles.windows(2).all(|pair| pair[0] == pair[1]), "{} {rows} rows", encoding.name());
            }
        }
    }
}

/// The largest sums that fit: every integer at its end.
#[test]
fn extreme_integers_do_not_overflow() {
    for isa in Isa::all() {
        for encoding in ENCODINGS.into_iter().filter(|encoding| encoding.block_values() > 1) {
            for fill in [0x00, 0x80, 0x7f, 0xff] {
                let mut bytes = Noise(41).weights(encoding, 256);
                let one = 0x3c00u16.to_le_bytes();
                for block in bytes.chunks_exact_mut(encoding.block_bytes()) {
                    block.fill(fill);
                    let at = if encoding == crate::kernels::dequant::Encoding::Q6K { 208 } else { 0 };
                    block[at..at + 2].copy_from_slice(&one);
                    if encoding.block_bytes() % 4 == 0 {
                        block[2..4].copy_from_slice(&one);
                    }
                }
                let weights = Packed::pack(encoding, 1, 256, |_| &bytes).unwrap();
                for sign in [1.0f32, -1.0] {
                    let x = Owned::new(&[sign * 127.0; 256], 256);
                    let (mut tile, mut expected) = ([0.0; PANEL], [0.0; PANEL]);
                    panel_int8(isa, &weights, 0, &x.rows(0, 1), &mut tile);
                    reference::panel_int8(&weights, 0, &x.rows(0, 1), &mut expected);
                    assert_eq!(tile, expected, "{} {} filled with {fill}", isa.name(), encoding.name());
                }
            }
        }
    }
}

#[test]
fn numbers_that_are_not_finite_reach_the_product() {
    for isa in Isa::all() {
        for encoding in ENCODINGS {
            let weights = Noise(51).packed(encoding, 16, 256);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = Noise(52).floats(256);
                x[77] = bad;
                let mut tile = [0.0; PANEL];
                panel_f32(isa, &weights, 0, &x, &mut tile);
                assert!(tile.iter().all(|value| !value.is_finite()), "{} {bad}", encoding.name());
                if weights.takes_int8() {
                    panel_int8(isa, &weights, 0, &Owned::new(&x, 256).rows(0, 1), &mut tile);
                    assert!(tile.iter().all(|value| !value.is_finite()), "{} {bad} int8", encoding.name());
                }
            }
        }
    }
}
