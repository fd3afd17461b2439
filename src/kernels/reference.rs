//! The plain versions, written to be read; every test compares with these.

use super::sample::Draw;

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
