//! DoRA's gains: what each output of base and delta together is scaled by. Constant once the weights are known.

use super::{PackError, Site, changes::LowRank};

/// `g = m / n`, where `n` is the norm of each row of `W + s·BA`, as `get_weight_norm` of `peft/tuners/lora/dora.py` has it. `row`
/// gives a row of W, `[in]`.
///
/// # Errors
/// [`PackError::Degenerate`] if a row of zeros has no direction to scale.
pub fn gains(
    site: Site,
    magnitude: &[f32],
    low: &LowRank,
    mut row: impl FnMut(usize, &mut [f32]),
) -> Result<Vec<f32>, PackError> {
    let (rank, inputs) = (low.a.rows, low.a.cols);
    let (a, b) = (low.a.values.to_f32(), low.b.values.to_f32());
    let (mut weights, mut delta) = (vec![0.0; inputs], vec![0.0; inputs]);
    let squares = b.chunks_exact(rank).enumerate().map(|(output, b)| {
        row(output, &mut weights);
        product(b, &a, &mut delta);
        let sums = weights.iter().zip(&delta).map(|(weight, delta)| f64::from(weight + low.scale * delta));
        sums.map(|sum| sum * sum).sum()
    });
    over_norms(site, magnitude, squares)
}

/// The same for an embedding, `[vocab, hidden]`: a norm for each of its columns. A is `[r, vocab]`, B `[hidden, r]`.
///
/// # Errors
/// As [`gains`], for columns.
pub fn embedding_gains(
    site: Site,
    magnitude: &[f32],
    low: &LowRank,
    mut row: impl FnMut(usize, &mut [f32]),
) -> Result<Vec<f32>, PackError> {
    let (rank, vocab, hidden) = (low.a.rows, low.a.cols, low.b.rows);
    let (a, b) = (transposed(&low.a.values.to_f32(), vocab), transposed(&low.b.values.to_f32(), rank));
    let (mut weights, mut delta) = (vec![0.0; hidden], vec![0.0; hidden]);
    let mut squares = vec![0.0f64; hidden];
    for (token, a) in a.chunks_exact(rank).enumerate() {
        row(token, &mut weights);
        product(a, &b, &mut delta);
        for ((square, weight), delta) in squares.iter_mut().zip(&weights).zip(&delta) {
            let sum = f64::from(weight + low.scale * delta);
            *square += sum * sum;
        }
    }
    over_norms(site, magnitude, squares.into_iter())
}

/// A row of one factor times the other: `[rank]` times `[rank, width]`.
fn product(row: &[f32], factor: &[f32], out: &mut [f32]) {
    out.fill(0.0);
    for (value, factor) in row.iter().zip(factor.chunks_exact(out.len())) {
        out.iter_mut().zip(factor).for_each(|(out, factor)| *out += value * factor);
    }
}

/// `[rows, width]` as `[width, rows]`.
pub fn transposed<T: Copy>(values: &[T], width: usize) -> Vec<T> {
    let mut turned = Vec::with_capacity(values.len());
    (0..width).for_each(|column| turned.extend(values.iter().skip(column).step_by(width)));
    turned
}

fn over_norms(site: Site, magnitude: &[f32], squares: impl Iterator<Item = f64>) -> Result<Vec<f32>, PackError> {
    let gains: Vec<f32> = magnitude.iter().zip(squares).map(|(m, square)| m / square.sqrt() as f32).collect();
    match gains.iter().all(|gain| gain.is_finite()) {
        true => Ok(gains),
        false => {
            Err(PackError::Degenerate { site: site.to_string(), what: "DoRA would scale weights that are all zero" })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Matrix, lora::Values};

    fn matrix(rows: usize, cols: usize, values: &[f32]) -> Matrix {
        Matrix { rows, cols, values: Values::F32(values.to_vec()) }
    }

    #[test]
    fn a_magnitude_is_over_the_norm_of_base_and_delta_together() {
        // W + 2·BA is [[3, 4], [0, 5]].
        let low = LowRank { a: matrix(1, 2, &[1.0, 2.0]), b: matrix(2, 1, &[1.0, 0.0]), scale: 2.0 };
        let base = [[1.0f32, 0.0], [0.0, 5.0]];
        let row = |index: usize, out: &mut [f32]| out.copy_from_slice(&base[index]);
        assert_eq!(gains(Site::Head, &[10.0, 10.0], &low, row).unwrap(), [2.0, 2.0]);
        // As an embedding of two tokens: W + 2·(BA)ᵀ is [[3, 0], [4, 5]], with columns of length 5.
        let base = [[1.0f32, 0.0], [0.0, 5.0]];
        let row = |index: usize, out: &mut [f32]| out.copy_from_slice(&base[index]);
        assert_eq!(embedding_gains(Site::Embedding, &[10.0, 5.0], &low, row).unwrap(), [2.0, 1.0]);
    }

    #[test]
    fn a_row_without_direction_is_refused() {
        let low = LowRank { a: matrix(1, 2, &[1.0, 2.0]), b: matrix(2, 1, &[1.0, 0.0]), scale: 2.0 };
        let refused = gains(Site::Head, &[1.0, 1.0], &low, |_, out| out.fill(0.0)).unwrap_err();
        assert_eq!(refused.to_string(), "lm_head: DoRA would scale weights that are all zero");
    }
}
