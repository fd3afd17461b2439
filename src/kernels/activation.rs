//! Element by element: the exponential, and the feed-forward's gate.

use super::isa::{Isa, Level};

/// e^x to about 2 ulp, without branches, so that loops over it become vector instructions. The same bits on every machine.
/// Beyond ±87 it stays where it is; what is not a number stays none.
///
/// Range reduction and polynomial after the Cephes library's `expf`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding it leaves a whole number in the lowest bits.
    const ROUNDER: f32 = 12_582_912.0;
    let clamped = if x < -87.0 { -87.0 } else { x };
    let clamped = if clamped > 87.0 { 87.0 } else { clamped };
    let rounded = clamped * std::f32::consts::LOG2_E + ROUNDER;
    let whole = rounded - ROUNDER;
    let rest = clamped - whole * 0.693_359_4 + whole * 2.121_944_4e-4;
    let mut sum = 1.987_569_1e-4;
    for coefficient in [1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 5e-1] {
        sum = sum * rest + coefficient;
    }
    let power = sum * rest * rest + rest + 1.0;
    let scaled = f32::from_bits(power.to_bits().wrapping_add(rounded.to_bits() << 23));
    if x.is_nan() { x } else { scaled }
}

/// `gate = silu(gate) ⊙ up`, with `silu(x) = x / (1 + e^-x)`.
///
/// # Panics
/// If the lengths differ.
pub fn silu_times(isa: Isa, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "gate and up");
    match isa.0 {
        Level::Plain => silu_times_plain(gate, up),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this level says that the machine has AVX2.
        Level::Avx2 => unsafe { silu_times_avx2(gate, up) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: this level says that the machine has AVX-512 F and DQ.
        Level::Avx512 => unsafe { silu_times_avx512(gate, up) },
    }
}

#[inline(always)]
fn silu_times_plain(gate: &mut [f32], up: &[f32]) {
    for (gate, up) in gate.iter_mut().zip(up) {
        *gate = *gate / (1.0 + exp(-*gate)) * up;
    }
}

/// The same, in wider vectors: the same bits.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn silu_times_avx2(gate: &mut [f32], up: &[f32]) {
    silu_times_plain(gate, up);
}

/// The same again.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512dq,avx512vl")]
fn silu_times_avx512(gate: &mut [f32], up: &[f32]) {
    silu_times_plain(gate, up);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exponential_is_right_to_two_units_in_the_last_place() {
        let mut x = -87.0f32;
        while x < 87.0 {
            let (ours, exact) = (f64::from(exp(x)), f64::from(x).exp());
            assert!((ours / exact - 1.0).abs() < 2.4e-7, "e^{x} is {exact}, not {ours}");
            x += 0.001_7;
        }
        assert_eq!((exp(0.0), exp(-0.0)), (1.0, 1.0));
        assert!(exp(f32::NAN).is_nan() && exp(-1e9) < 1e-37 && exp(f32::NEG_INFINITY) < 1e-37 && exp(1e9) > 1e37);
    }

    #[test]
    fn the_gate_is_the_same_on_every_machine() {
        let gate: Vec<f32> = (0..67).map(|i| (i as f32 - 33.0) * 0.7).collect();
        let up: Vec<f32> = (0..67).map(|i| (i as f32).sin()).collect();
        let mut plain = gate.clone();
        silu_times(Isa::PLAIN, &mut plain, &up);
        for ((&gate, &up), &ours) in gate.iter().zip(&up).zip(&plain) {
            let exact = f64::from(gate) / (1.0 + (-f64::from(gate)).exp()) * f64::from(up);
            assert!((f64::from(ours) - exact).abs() < 1e-6 * exact.abs().max(1e-3), "{gate} gives {ours}, not {exact}");
        }
        for isa in Isa::all() {
            let mut fast = gate.clone();
            silu_times(isa, &mut fast, &up);
            assert_eq!(fast, plain, "{}", isa.name());
        }
    }
}
