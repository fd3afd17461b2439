//! Rotary positions, applied.

/// Rotates one head, `[head_dim]`, by a position's cosines and sines, `[head_dim / 2]` each: dimension `i` and `i + head_dim / 2`
/// are a pair, as in `transformers`' `rotate_half`.
///
/// # Panics
/// If the sizes do not fit.
pub fn rotate(head: &mut [f32], cosines: &[f32], sines: &[f32]) {
    let half = head.len() / 2;
    assert_eq!((cosines.len(), sines.len(), head.len()), (half, half, 2 * half), "a head and its rotation");
    let (first, second) = head.split_at_mut(half);
    for ((first, second), (cosine, sine)) in first.iter_mut().zip(second).zip(cosines.iter().zip(sines)) {
        (*first, *second) = (*first * cosine - *second * sine, *second * cosine + *first * sine);
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn pairs_are_turned_by_their_angles() {
        let (one, other) = (0.3f32, 1.1f32);
        let mut head = [1.0, 0.0, 0.0, 2.0];
        super::rotate(&mut head, &[one.cos(), other.cos()], &[one.sin(), other.sin()]);
        let expected = [one.cos(), -2.0 * other.sin(), one.sin(), 2.0 * other.cos()];
        head.iter().zip(expected).for_each(|(ours, expected)| assert!((ours - expected).abs() < 1e-6));
    }
}
