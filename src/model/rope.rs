//! Rotary positions: the frequencies of each scheme and, for given positions, their cosines and sines.
//!
//! Formulas as `transformers`' `modeling_rope_utils`; rounded to `f32` where it rounds, so that far positions agree.

use std::f64::consts::PI;

use super::Rope;

/// A model's rotary frequencies.
#[derive(Clone, Debug)]
pub struct Rotary {
    /// `[head_dim / 2]`, radians for each position.
    frequencies: Vec<f32>,
    /// Cosines and sines are multiplied by it.
    amplitude: f32,
}

impl Rotary {
    pub fn new(rope: &Rope, head_dim: usize) -> Self {
        let plain = |theta: f64| -> Vec<f64> {
            let exponents = (0..head_dim / 2).map(|pair| (2 * pair) as f32 / head_dim as f32);
            exponents.map(|exponent| f64::from((1.0 / theta.powf(f64::from(exponent))) as f32)).collect()
        };
        let (frequencies, amplitude) = match rope {
            Rope::Plain { theta } => (plain(*theta), 1.0),
            Rope::Linear { theta, factor } => (plain(*theta).iter().map(|f| f / factor).collect(), 1.0),
            Rope::Llama3 { theta, factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let original = *original_max_positions as f64;
                let scale = |frequency: f64| {
                    let wavelength = 2.0 * PI / frequency;
                    if wavelength < original / high_freq_factor {
                        frequency
                    } else if wavelength > original / low_freq_factor {
                        frequency / factor
                    } else {
                        let smooth = (original / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        (1.0 - smooth) * frequency / factor + smooth * frequency
                    }
                };
                (plain(*theta).into_iter().map(scale).collect(), 1.0)
            }
            Rope::Yarn { theta, factor, beta_fast, beta_slow, attention_factor, original_max_positions, truncate } => {
                let dims = head_dim as f64;
                // The dimension that turns `rotations` times over the original context.
                let turning = |rotations: f64| {
                    dims * (*original_max_positions as f64 / (rotations * 2.0 * PI)).ln() / (2.0 * theta.ln())
                };
                let (low, high) = (turning(*beta_fast), turning(*beta_slow));
                let (low, high) = if *truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = (low.max(0.0), high.min(dims - 1.0));
                let high = if low == high { high + 0.001 } else { high };
                let scale = |(pair, frequency): (usize, f64)| {
                    let stretched = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    frequency / factor * stretched + frequency * (1.0 - stretched)
                };
                (plain(*theta).into_iter().enumerate().map(scale).collect(), *attention_factor)
            }
            Rope::Factors { theta, factors } => {
                (plain(*theta).iter().zip(factors).map(|(f, factor)| f / f64::from(*factor)).collect(), 1.0)
            }
        };
        Self { frequencies: frequencies.iter().map(|f: &f64| *f as f32).collect(), amplitude: amplitude as f32 }
    }

    /// Cosines and sines for each position, each `[positions, head_dim / 2]`.
    pub fn at(&self, positions: &[u32]) -> (Vec<f32>, Vec<f32>) {
        let angles = positions
            .iter()
            .flat_map(|&position| self.frequencies.iter().map(move |frequency| f64::from(frequency * position as f32)));
        let amplitude = f64::from(self.amplitude);
        angles.map(|angle| ((angle.cos() * amplitude) as f32, (angle.sin() * amplitude) as f32)).unzip()
    }
}

impl Rope {
    /// YaRN's attention factor for a context stretched by `factor`.
    pub fn yarn_attention(factor: f64, mscale: f64) -> f64 {
        if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
    }

    /// Refuses numbers that give no usable frequencies.
    pub(super) fn check(&self) -> Result<(), String> {
        let positive = |what: &str, value: f64| match value.is_finite() && value > 0.0 {
            true => Ok(()),
            false => Err(format!("rope: {what} is {value}")),
        };
        let theta = match self {
            Self::Plain { theta } => theta,
            Self::Linear { theta, factor } => {
                positive("factor", *factor)?;
                theta
            }
            Self::Llama3 { theta, factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                positive("factor", *factor)?;
                positive("low_freq_factor", *low_freq_factor)?;
                positive("high_freq_factor less low_freq_factor", high_freq_factor - low_freq_factor)?;
                positive("original context", *original_max_positions as f64)?;
                theta
            }
            Self::Yarn { theta, factor, beta_fast, beta_slow, attention_factor, original_max_positions, .. } => {
                positive("factor", *factor)?;
                positive("beta_fast", *beta_fast)?;
                positive("beta_slow", *beta_slow)?;
                positive("attention_factor", *attention_factor)?;
                positive("original context", *original_max_positions as f64)?;
                theta
            }
            Self::Factors { theta, factors } => {
                factors.iter().try_for_each(|factor| positive("a frequency's factor", f64::from(*factor)))?;
                theta
            }
        };
        positive("theta less 1", theta - 1.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected values: `transformers` 5, `ROPE_INIT_FUNCTIONS`, for heads of 16 dimensions.
    #[test]
    fn every_scheme_has_the_frequencies_of_transformers() {
        let yarn = Rope::Yarn {
            theta: 1e4,
            factor: 4.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: Rope::yarn_attention(4.0, 1.0),
            original_max_positions: 2048,
            truncate: true,
        };
        let untruncated = Rope::Yarn {
            theta: 1e6,
            factor: 8.0,
            beta_fast: 16.0,
            beta_slow: 2.0,
            attention_factor: Rope::yarn_attention(8.0, 0.7) / Rope::yarn_attention(8.0, 1.1),
            original_max_positions: 1024,
            truncate: false,
        };
        let llama3 = Rope::Llama3 {
            theta: 5e5,
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_max_positions: 512,
        };
        for (rope, expected, amplitude) in [
            (
                yarn,
                [
                    1.0,
                    0.316227764,
                    0.100000001,
                    0.025693506,
                    0.00624999963,
                    0.00138349656,
                    2.50000012e-4,
                    7.90569466e-5,
                ],
                1.138629436111989,
            ),
            (
                untruncated,
                [
                    1.0,
                    0.177827939,
                    0.0165483076,
                    7.02926656e-4,
                    1.25000006e-4,
                    2.22284925e-5,
                    3.95284678e-6,
                    7.02926684e-7,
                ],
                0.9323064614995353,
            ),
            (
                llama3,
                [
                    1.0,
                    0.193922758,
                    0.0273441337,
                    9.11583134e-4,
                    1.76776681e-4,
                    3.42810235e-5,
                    6.64786967e-6,
                    1.28917316e-6,
                ],
                1.0,
            ),
            (
                Rope::Linear { theta: 1e4, factor: 4.0 },
                [
                    0.25,
                    0.079056941,
                    0.0250000004,
                    0.00790569466,
                    0.00249999994,
                    7.90569466e-4,
                    2.50000012e-4,
                    7.90569466e-5,
                ],
                1.0,
            ),
        ] {
            let rotary = Rotary::new(&rope, 16);
            for (ours, expected) in rotary.frequencies.iter().zip(expected) {
                assert!((f64::from(*ours) / expected - 1.0).abs() < 3e-7, "{rope:?}: {ours}, expected {expected}");
            }
            assert!((f64::from(rotary.amplitude) - amplitude).abs() < 1e-6, "{rope:?}");
        }
    }

    #[test]
    fn given_factors_divide_the_frequencies() {
        let plain = Rotary::new(&Rope::Plain { theta: 1e4 }, 4);
        let divided = Rotary::new(&Rope::Factors { theta: 1e4, factors: vec![1.0, 8.0] }, 4);
        assert_eq!(divided.frequencies, [plain.frequencies[0], plain.frequencies[1] / 8.0]);
        let (cosines, sines) = divided.at(&[0, 3]);
        assert_eq!((&cosines[..2], &sines[..2]), (&[1.0, 1.0][..], &[0.0, 0.0][..]));
        assert_eq!((cosines[2], sines[2]), (3f64.cos() as f32, 3f64.sin() as f32));
    }

    #[test]
    fn numbers_without_meaning_are_refused() {
        assert!(Rope::Plain { theta: f64::NAN }.check().is_err());
        assert!(Rope::Factors { theta: 1e4, factors: vec![1.0, 0.0] }.check().is_err());
        assert_eq!(Rope::Linear { theta: 1e4, factor: 2.0 }.check(), Ok(()));
    }
}
