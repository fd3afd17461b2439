use super::*;
use crate::kernels::pack::tests::Noise;

fn quantized(isa: Isa, x: &[f32]) -> (Vec<i8>, Vec<f32>, Vec<BlockSum>) {
    let (mut q, mut scales) = (vec![0; x.len()], vec![0.0; x.len() / 32]);
    let mut sums = vec![BlockSum::default(); x.len() / 32];
    quantize_row(isa, x, QuantizedRow { q: &mut q, scales: &mut scales, sums: &mut sums });
    (q, scales, sums)
}

#[test]
fn every_value_comes_back_within_half_a_step() {
    for isa in Isa::all() {
        let x: Vec<f32> = Noise(1).floats(320).iter().enumerate().map(|(i, x)| x * (i / 32 + 1) as f32).collect();
        let (q, scales, sums) = quantized(isa, &x);
        for (block, x) in x.chunks_exact(32).enumerate() {
            let means: Vec<f32> = q[block * 32..][..32].iter().map(|&q| f32::from(q) * scales[block]).collect();
            assert!(x.iter().zip(&means).all(|(x, mean)| (x - mean).abs() <= 0.5001 * scales[block]));
            assert!((means.iter().sum::<f32>() - sums[block].value).abs() <= 1e-5 * 32.0 * block as f32 + 1e-5);
            let halves = [0, 16].map(|first| q[block * 32 + first..][..16].iter().map(|&q| i16::from(q)).sum::<i16>());
            assert_eq!(sums[block].halves, halves);
            assert_eq!(q[block * 32..][..32].iter().map(|q| q.unsigned_abs()).max(), Some(127));
        }
    }
}

#[test]
fn the_fast_pass_quantizes_as_the_plain_one() {
    let x = Noise(2).floats(576);
    for isa in Isa::all() {
        assert_eq!(quantized(isa, &x), quantized(Isa::PLAIN, &x), "{}", isa.name());
    }
}

#[test]
fn blocks_of_nothing_stay_nothing_and_broken_ones_break_their_scale() {
    for isa in Isa::all() {
        for small in [0.0, 1e-40, f32::MIN_POSITIVE] {
            let (q, scales, sums) = quantized(isa, &[small; 32]);
            assert!(q.iter().all(|&q| q == 0) && scales[0] < 1e-38 && sums[0] == BlockSum::default());
        }
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; 64];
            x[33] = bad;
            let (_, scales, sums) = quantized(isa, &x);
            assert!(scales[0].is_finite() && !scales[1].is_finite() && !sums[1].value.is_finite());
        }
    }
}

#[test]
fn norms_agree_with_a_sum_in_f64() {
    for isa in Isa::all() {
        for width in [1, 7, 8, 31, 64, 576, 1000] {
            let (x, weight) = (Noise(3).floats(width), Noise(4).floats(width));
            let mut out = vec![f32::NAN; width];
            norm_row(isa, &x, &weight, 1e-5, &mut out);
            let mean = x.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() / width as f64;
            for (out, (x, weight)) in out.iter().zip(x.iter().zip(&weight)) {
                let expected = f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*weight);
                assert!((f64::from(*out) - expected).abs() <= 1e-6 * expected.abs(), "{} of {width}", isa.name());
            }
        }
    }
}

#[test]
fn norm_and_quantization_in_one_are_the_two_in_turn() {
    for isa in Isa::all() {
        let (x, weight) = (Noise(5).floats(96), Noise(6).floats(96));
        let (mut one, mut other) = (vec![0.0; 96], vec![0.0; 96]);
        let (mut q, mut scales, mut sums) = (vec![0; 96], vec![0.0; 3], vec![BlockSum::default(); 3]);
        let to = QuantizedRow { q: &mut q, scales: &mut scales, sums: &mut sums };
        norm_quantize_row(isa, &x, &weight, 1e-6, &mut one, to);
        norm_row(isa, &x, &weight, 1e-6, &mut other);
        assert_eq!((&one, quantized(isa, &one)), (&other, (q, scales, sums)));
    }
}
