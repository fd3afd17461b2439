//! The plain versions, written to be read; every test compares with these.

use super::{
    pack::{BLOCK, PANEL, Packed},
    quantize::{BlockSum, QuantizedRow, QuantizedRows},
    sample::Draw,
    spread::Part,
};

/// Log-probabilities of `[vocab]` logits.
pub fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - f64::from(max)).exp()).sum();
    logits.iter().map(|&logit| f64::from(logit) - f64::from(max) - sum.ln()).collect()
}

/// Entropy in nats of log-probabilities.
pub fn entropy(logprobs: &[f64]) -> f64 {
    -logprobs.iter().filter(|logprob| logprob.is_finite()).map(|logprob| logprob.exp() * logprob).sum::<f64>()
}

/// What [`Draw::pick`] draws from finite logits: sort everything, filter, walk.
pub fn pick(draw: &Draw, logits: &[f32]) -> Option<u32> {
    let mut order: Vec<u32> = (0..logits.len() as u32).collect();
    order.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
    let best = *order.first()?;
    if draw.temperature <= 0.0 {
        return Some(best);
    }
    let weight = |id: u32| {
        let below = f64::from(logits[id as usize]) - f64::from(logits[best as usize]);
        (below / f64::from(draw.temperature)).exp()
    };
    if draw.top_k > 0 {
        order.truncate(draw.top_k);
    }
    let mass: f64 = order.iter().map(|&id| weight(id)).sum();
    let mut sum = 0.0;
    let enough = order.iter().position(|&id| {
        sum += weight(id);
        sum >= f64::from(draw.top_p) * mass
    });
    if let (Some(last), true) = (enough, draw.top_p < 1.0) {
        order.truncate(last + 1);
    }
    order.retain(|&id| id == best || weight(id) >= f64::from(draw.min_p));
    let mass: f64 = order.iter().map(|&id| weight(id)).sum();
    let mut cumulative = 0.0;
    let drawn = order.iter().find(|&&id| {
        cumulative += weight(id);
        cumulative > draw.u * mass
    });
    drawn.or(order.last()).copied()
}

/// [`super::quantize::quantize_row`], whose sizes have been checked.
pub(super) fn quantize_row(x: &[f32], to: QuantizedRow<'_>) {
    let blocks = x.chunks_exact(BLOCK).zip(to.q.chunks_exact_mut(BLOCK));
    for ((x, q), (scale, sum)) in blocks.zip(to.scales.iter_mut().zip(to.sums)) {
        // By bits, NaN is the largest of all.
        let largest = f32::from_bits(x.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0));
        *scale = largest / 127.0;
        let inverse = if *scale >= f32::MIN_POSITIVE { 1.0 / *scale } else { 0.0 };
        q.iter_mut().zip(x).for_each(|(q, x)| *q = (x * inverse).round_ties_even() as i8);
        let halves = [0, 16].map(|first| q[first..first + 16].iter().map(|&q| i16::from(q)).sum::<i16>());
        *sum = BlockSum { value: *scale * (i32::from(halves[0]) + i32::from(halves[1])) as f32, halves };
    }
}

/// [`super::quantize::norm_row`], whose sizes have been checked.
pub(super) fn norm_row(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let mean = x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32;
    let inverse = 1.0 / (mean + eps).sqrt();
    out.iter_mut().zip(x.iter().zip(weight)).for_each(|(out, (x, weight))| *out = x * inverse * weight);
}

/// [`super::matmul::panel_int8`], whose sizes have been checked.
pub(super) fn panel_int8(weights: &Packed, panel: usize, x: &QuantizedRows<'_>, tile: &mut [f32]) {
    tile.fill(0.0);
    let blocks = x.inputs / BLOCK;
    for index in 0..blocks {
        for place in 0..PANEL {
            let Some(w) = weights.integers(panel, index, place) else { return };
            for (row, tile) in tile.chunks_exact_mut(PANEL).enumerate() {
                let q = &x.q[row * x.inputs + index * BLOCK..][..BLOCK];
                let dot = |half: usize| -> f32 {
                    let pairs = q[half..half + 16].iter().zip(&w.integers[half..half + 16]);
                    pairs.map(|(&q, &w)| i32::from(q) * i32::from(w)).sum::<i32>() as f32
                };
                let at = row * blocks + index;
                let products = w.scales[0] * dot(0) + w.scales[1] * dot(16);
                tile[place] += products * x.scales[at] + w.min * x.sums[at].value;
            }
        }
    }
}

/// [`super::matmul::panel_f32`], whose sizes have been checked.
pub(super) fn panel_f32(weights: &Packed, panel: usize, x: &[f32], tile: &mut [f32]) {
    tile.fill(0.0);
    let mut decoded = [[0.0; PANEL]; BLOCK];
    for index in 0..weights.inputs().div_ceil(BLOCK) {
        let first = index * BLOCK;
        let decoded = &mut decoded[..BLOCK.min(weights.inputs() - first)];
        weights.decode(panel, index, decoded);
        for (row, tile) in tile.chunks_exact_mut(PANEL).enumerate() {
            for (x, weights) in x[row * weights.inputs() + first..].iter().zip(&*decoded) {
                tile.iter_mut().zip(weights).for_each(|(sum, weight)| *sum += x * weight);
            }
        }
    }
}

/// [`super::spread::Part::of`], with the token counted from the first of `logits`, which are not empty.
pub(super) fn spread_part(logits: &[f32]) -> Part {
    let mut best = (logits[0], 0);
    for (id, &logit) in logits.iter().enumerate() {
        if logit > best.0 {
            best = (logit, id as u32);
        }
    }
    let (mut sum, mut weighted) = (0.0, 0.0);
    for &logit in logits {
        let below = f64::from(logit) - f64::from(best.0);
        sum += below.exp();
        weighted += below.exp() * below;
    }
    Part { best, finite: logits.iter().all(|logit| logit.is_finite()), sum, weighted }
}
