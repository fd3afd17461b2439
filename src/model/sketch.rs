//! The token sketch: embeddings times a fixed random matrix.

use candle_core::{Device, Result, Tensor};

use super::TokenSketch;

/// Part of what a recorded sketch means: another seed makes old and new sketches incomparable.
const SEED: u64 = 0x7475_6e65_6761_7465;

/// Tokens projected at once.
const CHUNK: usize = 8192;

/// Projects an embedding table of `vocab` rows; `row` writes one, `[hidden]`.
pub fn of(vocab: usize, hidden: usize, row: impl Fn(usize, &mut [f32])) -> Result<TokenSketch> {
    let mut noise = Gaussian { state: SEED };
    let scale = (TokenSketch::DIMS as f64).powf(-0.5);
    let matrix: Vec<f32> = (0..hidden * TokenSketch::DIMS).map(|_| (noise.next() * scale) as f32).collect();
    let matrix = Tensor::from_vec(matrix, (hidden, TokenSketch::DIMS), &Device::Cpu)?;
    let mut values = Vec::with_capacity(vocab * TokenSketch::DIMS);
    for first in (0..vocab).step_by(CHUNK) {
        let count = CHUNK.min(vocab - first);
        let mut rows = vec![0.0; count * hidden];
        rows.chunks_exact_mut(hidden).zip(first..).for_each(|(out, token)| row(token, out));
        let rows = Tensor::from_vec(rows, (count, hidden), &Device::Cpu)?;
        values.extend(rows.matmul(&matrix)?.flatten_all()?.to_vec1::<f32>()?);
    }
    Ok(TokenSketch { values })
}

/// Projects an embedding table on any device, `[vocab, hidden]`.
pub fn of_tensor(embedding: &Tensor) -> Result<TokenSketch> {
    let (vocab, hidden) = embedding.dims2()?;
    let values = embedding.to_device(&Device::Cpu)?.to_dtype(candle_core::DType::F32)?.flatten_all()?;
    let values = values.to_vec1::<f32>()?;
    of(vocab, hidden, |token, out| out.copy_from_slice(&values[token * hidden..(token + 1) * hidden]))
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

    #[test]
    fn a_sketch_keeps_lengths_roughly_and_is_the_same_each_time() {
        let mut noise = Gaussian { state: 1 };
        let table: Vec<f32> = (0..40 * 256).map(|_| noise.next() as f32).collect();
        let table = Tensor::from_vec(table, (40, 256), &Device::Cpu).unwrap();
        let sketch = of_tensor(&table).unwrap();
        assert_eq!(sketch.values.len(), 40 * TokenSketch::DIMS);
        assert_eq!(sketch.values, of_tensor(&table).unwrap().values);
        let square: f32 = sketch.values.iter().map(|value| value * value).sum();
        let mean_square_length = square / 40.0;
        assert!((mean_square_length / 256.0 - 1.0).abs() < 0.2, "{mean_square_length}");
    }
}
