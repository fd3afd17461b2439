/// Every token's input embedding projected to [`TokenSketch::DIMS`] dimensions by a fixed random matrix (seeded, Gaussian,
/// scaled by `1/sqrt(DIMS)`), so that the mean over a prompt describes what it is about without a forward pass.
pub struct TokenSketch {
    /// `[vocab, DIMS]`, row-major.
    pub values: Vec<f32>,
}

impl TokenSketch {
    pub const DIMS: usize = 64;

    /// The mean sketch of `tokens`; zeros where there are none. Tokens outside the vocabulary are passed over.
    pub fn mean<'a>(&self, tokens: impl IntoIterator<Item = &'a u32>) -> [f32; Self::DIMS] {
        let mut sum = [0.0f64; Self::DIMS];
        let mut count = 0usize;
        for &token in tokens {
            let start = token as usize * Self::DIMS;
            let Some(row) = self.values.get(start..start + Self::DIMS) else { continue };
            count += 1;
            sum.iter_mut().zip(row).for_each(|(sum, &value)| *sum += f64::from(value));
        }
        sum.map(|value| (value / count.max(1) as f64) as f32)
    }
}

/// A mean sketch in 68 bytes: each dimension is `scale * steps`, off by half a step at most.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sketch {
    pub scale: f32,
    pub steps: [i8; TokenSketch::DIMS],
}

impl Sketch {
    pub const BYTES: usize = 4 + TokenSketch::DIMS;

    pub fn of(mean: &[f32; TokenSketch::DIMS]) -> Self {
        let largest = mean.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
        let scale = largest / 127.0;
        let step = |value: &f32| if scale > 0.0 { (value / scale).round().clamp(-127.0, 127.0) as i8 } else { 0 };
        Self { scale, steps: std::array::from_fn(|at| step(&mean[at])) }
    }

    pub fn values(&self) -> [f32; TokenSketch::DIMS] {
        self.steps.map(|step| self.scale * f32::from(step))
    }

    /// The scale as `f32`, little-endian, then the steps.
    pub fn to_bytes(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&self.scale.to_le_bytes());
        bytes[4..].iter_mut().zip(self.steps).for_each(|(byte, step)| *byte = step.cast_unsigned());
        bytes
    }

    /// `None` if these are not the bytes of a sketch.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (scale, steps) = bytes.split_first_chunk::<4>()?;
        let steps: &[u8; TokenSketch::DIMS] = steps.try_into().ok()?;
        Some(Self { scale: f32::from_le_bytes(*scale), steps: steps.map(u8::cast_signed) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sketch_survives_being_kept_within_half_a_step() {
        let mean = std::array::from_fn(|at| ((at * 37 % 64) as f32 - 31.0) * 0.01);
        let sketch = Sketch::of(&mean);
        assert_eq!(Sketch::from_bytes(&sketch.to_bytes()), Some(sketch));
        for (kept, value) in sketch.values().iter().zip(mean) {
            assert!((kept - value).abs() <= sketch.scale * 0.5001, "{kept} {value}");
        }
        assert_eq!(Sketch::of(&[0.0; 64]).values(), [0.0; 64]);
        assert_eq!(Sketch::from_bytes(&[0; 67]), None);
    }
}
