//! Numbers to signed bytes, many at once on any machine: the compiler makes vectors of these loops.

/// What is added to a number below 2²² so that its last digit is the one of whole numbers: it is rounded to even, and the whole
/// number stands in the lowest bits.
const WHOLE: f32 = 12_582_912.0;

/// The largest of `values` without their signs; none of them is NaN. 0 where there are none.
pub fn largest(values: &[f32]) -> f32 {
    // Without signs, numbers stand in the order of their bits.
    let bits = values.iter().fold(0i32, |largest, value| largest.max(value.abs().to_bits().cast_signed()));
    f32::from_bits(bits.cast_unsigned())
}

/// Each of `values` times `inverse`, rounded to even and held within ±127, as a signed byte.
///
/// # Panics
/// If `to` has another length.
pub fn round(values: &[f32], inverse: f32, to: &mut [u8]) {
    assert_eq!(values.len(), to.len(), "a byte for each number");
    for (to, value) in to.iter_mut().zip(values) {
        *to = ((value * inverse).clamp(-127.0, 127.0) + WHOLE).to_bits().wrapping_sub(WHOLE.to_bits()) as u8;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_rounded_to_even_and_held_within_a_byte() {
        let halves = (-600..=600).map(|half| half as f32 / 2.0);
        let near = halves.clone().flat_map(|half| [half, half.next_up(), half.next_down()]);
        let others = [0.0f32, -0.0, 1e-45, -1e-40, 3e38, -3e38].into_iter();
        let values: Vec<f32> = near.chain(others).collect();
        for inverse in [1.0f32, 0.3, 0.0, 1e-30, 1e30] {
            let mut bytes = vec![0; values.len()];
            round(&values, inverse, &mut bytes);
            for (value, byte) in values.iter().zip(bytes) {
                let exact = (value * inverse).round_ties_even().clamp(-127.0, 127.0) as i8;
                assert_eq!(byte.cast_signed(), exact, "{value} times {inverse}");
            }
        }
    }

    #[test]
    fn the_largest_counts_without_its_sign() {
        for (values, expected) in
            [(&[][..], 0.0f32), (&[-0.0], 0.0), (&[1.0, -3.5, 2.0], 3.5), (&[1e-45, -1e-44], 1e-44), (&[-3e38], 3e38)]
        {
            assert_eq!(largest(values), expected, "{values:?}");
        }
    }
}
