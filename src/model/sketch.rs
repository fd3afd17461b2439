//! The token sketch: embeddings times a fixed random matrix.

use candle_core::{DType, Device, Result, Tensor};

use super::TokenSketch;
use crate::kernels::{
    dequant::Encoding,
    isa::Isa,
    matmul::panel_f32,
    pack::{PANEL, PackFault, Packed},
    pool::Pool,
    share::cut,
};

/// Part of what a recorded sketch means: another seed makes old and new sketches incomparable.
const SEED: u64 = 0x7475_6e65_6761_7465;

/// Tokens projected at once by one thread.
const TOKENS: usize = 64;

const _: () = assert!(TokenSketch::DIMS.is_multiple_of(PANEL), "whole panels");

/// Projects an embedding table of `vocab` rows; `row` writes one, `[hidden]`.
///
/// # Errors
/// [`PackFault`] if there is no memory for the matrix.
pub fn of(
    pool: &mut Pool,
    isa: Isa,
    (vocab, hidden): (usize, usize),
    row: impl Fn(usize, &mut [f32]) + Sync,
) -> std::result::Result<TokenSketch, PackFault> {
    let matrix = matrix(hidden)?;
    let mut values = vec![0.0; vocab * TokenSketch::DIMS];
    pool.each(cut(&mut values, TOKENS * TokenSketch::DIMS), |piece, values| {
        let count = values.len() / TokenSketch::DIMS;
        let mut rows = vec![0.0; count * hidden];
        rows.chunks_exact_mut(hidden).zip(piece * TOKENS..).for_each(|(out, token)| row(token, out));
        let mut tile = vec![0.0; count * PANEL];
        for panel in 0..matrix.panels() {
            panel_f32(isa, &matrix, panel, &rows, &mut tile);
            for (values, tile) in values.chunks_exact_mut(TokenSketch::DIMS).zip(tile.chunks_exact(PANEL)) {
                values[panel * PANEL..][..PANEL].copy_from_slice(tile);
            }
        }
    });
    Ok(TokenSketch { values })
}

/// The random matrix, drawn as `[hidden, DIMS]` and kept as weights are, `[DIMS, hidden]`.
fn matrix(hidden: usize) -> std::result::Result<Packed, PackFault> {
    let mut noise = Gaussian { state: SEED };
    let scale = (TokenSketch::DIMS as f64).powf(-0.5);
    let drawn: Vec<f32> = (0..hidden * TokenSketch::DIMS).map(|_| (noise.next() * scale) as f32).collect();
    let of = |dim: usize| drawn.iter().skip(dim).step_by(TokenSketch::DIMS);
    let rows: Vec<u8> = (0..TokenSketch::DIMS).flat_map(|dim| of(dim).flat_map(|value| value.to_le_bytes())).collect();
    let width = hidden * size_of::<f32>();
    Packed::pack(Encoding::F32, TokenSketch::DIMS, hidden, |dim| &rows[dim * width..(dim + 1) * width])
}

/// Projects an embedding table on any device, `[vocab, hidden]`.
///
/// # Errors
/// What the device says, or that there is no memory.
pub fn of_tensor(embedding: &Tensor, pool: &mut Pool) -> Result<TokenSketch> {
    let (vocab, hidden) = embedding.dims2()?;
    let values = embedding.to_device(&Device::Cpu)?.to_dtype(DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    let row = |token: usize, out: &mut [f32]| out.copy_from_slice(&values[token * hidden..(token + 1) * hidden]);
    of(pool, Isa::best(), (vocab, hidden), row).map_err(candle_core::Error::wrap)
}

/// Normally distributed numbers: splitmix64 through Box and Muller's transform.
struct Gaussian {
    state: u64,
}

impl Gaussian {
    fn uniform(&mut self) -> f64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 11) as f64 / (1u64 << 53) as f64
    }

    fn next(&mut self) -> f64 {
        let (radius, angle) = ((1.0 - self.uniform()).ln() * -2.0, self.uniform() * std::f64::consts::TAU);
        radius.sqrt() * angle.cos()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(vocab: usize, hidden: usize) -> Tensor {
        let mut noise = Gaussian { state: 1 };
        let values: Vec<f32> = (0..vocab * hidden).map(|_| noise.next() as f32).collect();
        Tensor::from_vec(values, (vocab, hidden), &Device::Cpu).unwrap()
    }

    fn sketch(table: &Tensor, threads: usize) -> Vec<f32> {
        of_tensor(table, &mut Pool::new(threads).unwrap()).unwrap().values
    }

    #[test]
    fn a_sketch_keeps_lengths_roughly_and_is_the_same_each_time() {
        let table = table(2 * TOKENS + 12, 256);
        let values = sketch(&table, 1);
        assert_eq!(values.len(), (2 * TOKENS + 12) * TokenSketch::DIMS);
        assert_eq!(values, sketch(&table, 3), "on any number of threads");
        let square: f32 = values.iter().map(|value| value * value).sum();
        let mean_square_length = square / (2 * TOKENS + 12) as f32;
        assert!((mean_square_length / 256.0 - 1.0).abs() < 0.2, "{mean_square_length}");
    }

    #[test]
    fn a_sketch_is_the_table_times_the_matrix() {
        let table = table(70, 40);
        let mut noise = Gaussian { state: SEED };
        let scale = (TokenSketch::DIMS as f64).powf(-0.5);
        let matrix: Vec<f32> = (0..40 * TokenSketch::DIMS).map(|_| (noise.next() * scale) as f32).collect();
        let matrix = Tensor::from_vec(matrix, (40, TokenSketch::DIMS), &Device::Cpu).unwrap();
        let expected = table.matmul(&matrix).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let values = sketch(&table, 2);
        assert!(values.iter().zip(&expected).all(|(value, expected)| (value - expected).abs() < 1e-5));
    }
}
