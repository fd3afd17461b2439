//! Embeddings and heads that an adapter brings whole.

use half::f16;

use super::Class;
use crate::{
    kernels::{
        dequant::Encoding,
        pack::{BLOCK, Packed},
        round::{largest, round},
    },
    model::{Matrix, PackError, Site, lora::Values},
};

/// Packs `matrix` as the base's own are: in its dtype, or in the fast class with 8 bits for each weight.
///
/// # Errors
/// [`PackError`] if a weight is beyond what 8 bits with a scale hold, or there is no memory.
pub fn pack(class: Class, site: Site, matrix: &Matrix) -> Result<Packed, PackError> {
    let degenerate = |what| PackError::Degenerate { site: site.to_string(), what };
    let encoding = encoding(class, matrix);
    let bytes = match &matrix.values {
        _ if encoding == Encoding::Q8_0 => {
            in_blocks(&matrix.values.to_f32()).ok_or_else(|| degenerate("has a weight beyond what 8 bits hold"))?
        }
        Values::F32(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Values::F16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Values::BF16(values) => values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>(),
    };
    let row = encoding.bytes_for(matrix.cols).unwrap_or(0);
    Packed::pack(encoding, matrix.rows, matrix.cols, |output| &bytes[output * row..(output + 1) * row])
        .map_err(|error| PackError::Device(format!("{site}: {error}")))
}

/// Bytes that packing takes.
pub fn bytes(class: Class, matrix: &Matrix) -> usize {
    Packed::bytes_for(encoding(class, matrix), matrix.rows, matrix.cols).unwrap_or(0)
}

fn encoding(class: Class, matrix: &Matrix) -> Encoding {
    match (class, &matrix.values) {
        (Class::Fast, _) if matrix.cols.is_multiple_of(BLOCK) => Encoding::Q8_0,
        (_, Values::F32(_)) => Encoding::F32,
        (_, Values::F16(_)) => Encoding::F16,
        (_, Values::BF16(_)) => Encoding::BF16,
    }
}

/// Q8_0: for each 32 weights a scale in `f16`, then as many signed bytes. `None` if a scale is no number of that kind.
fn in_blocks(values: &[f32]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(values.len() / BLOCK * Encoding::Q8_0.block_bytes());
    for block in values.chunks_exact(BLOCK) {
        let scale = f16::from_f32(largest(block) / 127.0);
        if !scale.is_finite() {
            return None;
        }
        let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
        bytes.extend(scale.to_le_bytes());
        let mut rounded = [0; BLOCK];
        round(block, inverse, &mut rounded);
        bytes.extend(rounded);
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(cols: usize) -> Matrix {
        let values = (0..20 * cols).map(|i| ((i * 37 % 101) as f32 - 50.0) * 0.01).collect();
        Matrix { rows: 20, cols, values: Values::F32(values) }
    }

    #[test]
    fn the_exact_class_keeps_every_bit_and_the_fast_one_a_half_step_at_most() {
        for (class, cols, most) in
            [(Class::Exact, 64, 0.0), (Class::Fast, 64, 0.51 * 0.5 / 127.0), (Class::Fast, 40, 0.0)]
        {
            let matrix = matrix(cols);
            let packed = pack(class, Site::Head, &matrix).unwrap();
            assert_eq!(packed.bytes(), bytes(class, &matrix));
            let (values, mut row) = (matrix.values.to_f32(), vec![0.0; cols]);
            for (index, values) in values.chunks_exact(cols).enumerate() {
                packed.row(index, &mut row);
                assert!(row.iter().zip(values).all(|(kept, value)| (kept - value).abs() <= most), "{class:?} {cols}");
            }
        }
    }

    #[test]
    fn weights_beyond_8_bits_with_a_scale_are_refused() {
        let large = Matrix { rows: 1, cols: 32, values: Values::F32(vec![1e30; 32]) };
        let refused = pack(Class::Fast, Site::Head, &large).err().map(|error| error.to_string());
        assert_eq!(refused.as_deref(), Some("lm_head: has a weight beyond what 8 bits hold"));
        assert!(pack(Class::Exact, Site::Head, &large).is_ok());
    }
}
