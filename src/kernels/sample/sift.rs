//! Passes over a whole row of logits, in wide vectors; the same bits on every machine.

use super::Candidate;
use crate::kernels::isa::{Isa, Level};

/// Logits that are looked at together.
const LANES: usize = 16;

/// The largest logit; `None` if one is NaN or +∞, or there is none above -∞.
pub fn largest(isa: Isa, logits: &[f32]) -> Option<f32> {
    let (largest, sane) = match isa.0 {
        Level::Plain => largest_plain(logits),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this level says that the machine has AVX2.
        Level::Avx2 => unsafe { largest_avx2(logits) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this level says that the machine has AVX-512.
        Level::Avx512 => unsafe { largest_avx512(logits) },
    };
    (sane && largest > f32::NEG_INFINITY).then_some(largest)
}

/// Gathers the logits that are not below `least` with their ids, in order of id.
pub fn at_least(isa: Isa, logits: &[f32], least: f32, found: &mut Vec<Candidate>) {
    found.clear();
    match isa.0 {
        Level::Plain => at_least_plain(logits, least, found),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this level says that the machine has AVX2.
        Level::Avx2 => unsafe { at_least_avx2(logits, least, found) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this level says that the machine has AVX-512.
        Level::Avx512 => unsafe { at_least_avx512(logits, least, found) },
    }
}

/// The sum of e^((logit - max) / temperature), for logits that are not above `max`; those of -∞ weigh nothing.
pub fn mass(isa: Isa, logits: &[f32], max: f32, temperature: f32) -> f64 {
    match isa.0 {
        Level::Plain => mass_plain(logits, max, temperature),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this level says that the machine has AVX2.
        Level::Avx2 => unsafe { mass_avx2(logits, max, temperature) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this level says that the machine has AVX-512.
        Level::Avx512 => unsafe { mass_avx512(logits, max, temperature) },
    }
}

/// Functions that do the same in wider vectors.
macro_rules! wider {
    ($features:literal: $($name:ident = $plain:ident($($argument:ident: $type:ty),*) $(-> $output:ty)?;)*) => {$(
        #[cfg(target_arch = "x86_64")]
        #[target_feature(enable = $features)]
        fn $name($($argument: $type),*) $(-> $output)? {
            $plain($($argument),*)
        }
    )*};
}

wider! { "avx2":
    largest_avx2 = largest_plain(logits: &[f32]) -> (f32, bool);
    at_least_avx2 = at_least_plain(logits: &[f32], least: f32, found: &mut Vec<Candidate>);
    mass_avx2 = mass_plain(logits: &[f32], max: f32, temperature: f32) -> f64;
}

wider! { "avx512f,avx512bw,avx512dq,avx512vl":
    largest_avx512 = largest_plain(logits: &[f32]) -> (f32, bool);
    at_least_avx512 = at_least_plain(logits: &[f32], least: f32, found: &mut Vec<Candidate>);
    mass_avx512 = mass_plain(logits: &[f32], max: f32, temperature: f32) -> f64;
}

/// The largest logit, and whether none is NaN or +∞.
#[inline(always)]
fn largest_plain(logits: &[f32]) -> (f32, bool) {
    let (chunks, rest) = logits.as_chunks::<LANES>();
    let (mut largest, mut insane) = ([f32::NEG_INFINITY; LANES], [0u32; LANES]);
    for chunk in chunks {
        for ((largest, insane), &logit) in largest.iter_mut().zip(&mut insane).zip(chunk) {
            *largest = if logit > *largest { logit } else { *largest };
            *insane |= u32::from(logit.is_nan() | (logit == f32::INFINITY));
        }
    }
    let largest = largest.into_iter().chain(rest.iter().copied()).fold(f32::NEG_INFINITY, f32::max);
    let sane = insane.iter().all(|&insane| insane == 0) && rest.iter().all(|&logit| logit < f32::INFINITY);
    (largest, sane)
}

#[inline(always)]
fn at_least_plain(logits: &[f32], least: f32, found: &mut Vec<Candidate>) {
    for (index, chunk) in logits.chunks(LANES).enumerate() {
        // Most chunks hold none; asking all at once is one comparison of vectors.
        if chunk.iter().fold(false, |any, &logit| any | (logit >= least)) {
            let ids = (index * LANES) as u32..;
            found.extend(chunk.iter().copied().zip(ids).filter(|(logit, _)| *logit >= least));
        }
    }
}

#[inline(always)]
fn mass_plain(logits: &[f32], max: f32, temperature: f32) -> f64 {
    const SUMS: usize = 8;
    let (max, temperature) = (f64::from(max), f64::from(temperature));
    let (chunks, rest) = logits.as_chunks::<SUMS>();
    let mut sums = [0.0f64; SUMS];
    for chunk in chunks {
        for (sum, &logit) in sums.iter_mut().zip(chunk) {
            *sum += exp((f64::from(logit) - max) / temperature);
        }
    }
    for (sum, &logit) in sums.iter_mut().zip(rest) {
        *sum += exp((f64::from(logit) - max) / temperature);
    }
    let [a, b, c, d, e, f, g, h] = sums;
    ((a + b) + (c + d)) + ((e + f) + (g + h))
}

/// e^x for x that is not above zero, to a few units in the last place; nothing below -700. Without branches, so that loops over it
/// become vector instructions: 2^n · e^r with |r| at most half of ln 2, by the power series to the thirteenth power.
#[inline(always)]
fn exp(x: f64) -> f64 {
    const LEAST: f64 = -700.0;
    /// Adding it leaves a whole number in the lowest bits.
    const ROUNDER: f64 = 6_755_399_441_055_744.0;
    // The leading bits of ln 2, few enough that a product with n is exact, and what they leave out.
    const LEADING: f64 = 0.693_145_751_953_125;
    const REST: f64 = 1.428_606_820_309_417_2e-6;
    let held = if x > LEAST { x } else { LEAST };
    let rounded = held * std::f64::consts::LOG2_E + ROUNDER;
    let whole = rounded - ROUNDER;
    let r = held - whole * LEADING - whole * REST;
    let mut power = 1.0 / 6_227_020_800.0;
    for factorial in
        [479_001_600.0, 39_916_800.0, 3_628_800.0, 362_880.0, 40_320.0, 5_040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0]
    {
        power = power * r + 1.0 / factorial;
    }
    let scaled = f64::from_bits(power.to_bits().wrapping_add(rounded.to_bits() << 52));
    if x >= LEAST { scaled } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(length: usize) -> Vec<f32> {
        (0..length).map(|i| ((i * 7919 % 1009) as f32).sin() * 20.0).collect()
    }

    #[test]
    fn the_exponential_is_right_to_a_few_units_in_the_last_place() {
        let mut x = -700.0f64;
        while x <= 0.0 {
            assert!((exp(x) / x.exp() - 1.0).abs() < 2e-15, "e^{x} is {}, not {}", x.exp(), exp(x));
            x += 0.013_7;
        }
        assert_eq!((exp(0.0), exp(-0.0), exp(f64::NEG_INFINITY), exp(-701.0)), (1.0, 1.0, 0.0, 0.0));
    }

    #[test]
    fn every_machine_finds_the_same() {
        for length in [1, 7, 16, 100, 4099] {
            let mut row = row(length);
            row[length / 2] = f32::NEG_INFINITY;
            row[0] = 3.0;
            let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exact: f64 = row.iter().map(|&logit| ((f64::from(logit) - f64::from(max)) / 0.7).exp()).sum();
            let plain = mass(Isa::PLAIN, &row, max, 0.7);
            // The temperature is an `f32`.
            assert!((plain / exact - 1.0).abs() < 1e-6, "{length}: {plain}, not {exact}");
            for isa in Isa::all() {
                assert_eq!(largest(isa, &row), Some(max), "{} {length}", isa.name());
                assert_eq!(mass(isa, &row, max, 0.7), plain, "{} {length}", isa.name());
                let mut found = Vec::new();
                for least in [f32::NEG_INFINITY, 0.0, max, f32::INFINITY] {
                    at_least(isa, &row, least, &mut found);
                    let ids = (0u32..).zip(&row).filter(|(_, logit)| **logit >= least);
                    let expected: Vec<Candidate> = ids.map(|(id, &logit)| (logit, id)).collect();
                    assert_eq!(found, expected, "{} {length} {least}", isa.name());
                }
            }
        }
    }

    #[test]
    fn what_is_no_distribution_has_no_largest() {
        for isa in Isa::all() {
            for (place, bad) in [(0, f32::NAN), (20, f32::NAN), (33, f32::INFINITY), (5, f32::INFINITY)] {
                let mut row = row(34);
                row[place] = bad;
                assert_eq!(largest(isa, &row), None, "{} {place}", isa.name());
            }
            assert_eq!(largest(isa, &[f32::NEG_INFINITY; 40]), None);
            assert_eq!(largest(isa, &[]), None);
        }
    }
}
