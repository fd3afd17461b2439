//! Sampling parameters, and what they ask of a row. Drawing itself happens where the logits are.

use std::collections::HashMap;

use super::Generate;
use crate::{
    model::{Adjustments, SampleAsk, SeenToken},
    terms::Sampling,
};

/// The number in `[0, 1)` that draws token `index` of a choice. It depends on these three alone, so that an answer does
/// not change with its neighbours, with preemption, or on replay.
pub fn uniform(seed: u64, choice: u32, index: u64) -> f64 {
    let words = philox([index as u32, (index >> 32) as u32, choice, 0], [seed as u32, (seed >> 32) as u32]);
    let bits = u64::from(words[0]) << 32 | u64::from(words[1]);
    // 53 bits are what an f64 holds below 1.
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// Philox4x32-10: ten rounds of a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2,
/// 3", SC 2011).
fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
    const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
    for _ in 0..10 {
        let [low, high] =
            [u64::from(MULTIPLIERS[0]) * u64::from(counter[0]), u64::from(MULTIPLIERS[1]) * u64::from(counter[2])];
        counter = [
            (high >> 32) as u32 ^ counter[1] ^ key[0],
            high as u32,
            (low >> 32) as u32 ^ counter[3] ^ key[1],
            low as u32,
        ];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

/// The tokens that penalties apply to, each once, with its count in the answer.
#[derive(Debug)]
pub struct Seen {
    tokens: Vec<SeenToken>,
    places: HashMap<u32, usize>,
}

impl Seen {
    /// `None` where no penalty is on, so that nothing is counted in vain.
    pub fn of(sampling: &Sampling, prompt: &[u32]) -> Option<Self> {
        let repetition = sampling.repetition_penalty != 1.0;
        let in_answer = sampling.frequency_penalty != 0.0 || sampling.presence_penalty != 0.0;
        let mut seen = Self { tokens: Vec::new(), places: HashMap::new() };
        // Only the repetition penalty looks at the prompt.
        let counted = if repetition { prompt } else { &[] };
        counted.iter().for_each(|&token| _ = seen.place(token));
        (repetition || in_answer).then_some(seen)
    }

    /// Counts one token of the answer.
    pub fn push(&mut self, token: u32) {
        self.place(token).in_answer += 1;
    }

    fn place(&mut self, token: u32) -> &mut SeenToken {
        let place = *self.places.entry(token).or_insert_with(|| {
            self.tokens.push(SeenToken { token, in_answer: 0 });
            self.tokens.len() - 1
        });
        &mut self.tokens[place]
    }
}

/// What the next token's row is asked, once `answered` tokens are out.
pub fn ask(generate: &Generate, seen: Option<&Seen>, answered: usize, vocab: usize) -> SampleAsk {
    let Sampling {
        temperature,
        top_p,
        top_k,
        min_p,
        repetition_penalty: repetition,
        frequency_penalty: frequency,
        presence_penalty: presence,
    } = generate.sampling;
    // A stop token outside the vocabulary can never be drawn, so there is nothing to ban.
    let banned = match answered < generate.min_tokens {
        true => generate.stop_tokens.iter().copied().filter(|&token| (token as usize) < vocab).collect(),
        false => Vec::new(),
    };
    SampleAsk {
        temperature,
        top_k,
        top_p,
        min_p,
        u: uniform(generate.seed, generate.choice, answered as u64),
        adjustments: Adjustments {
            repetition,
            frequency,
            presence,
            seen: seen.map_or_else(Vec::new, |seen| seen.tokens.clone()),
            bias: generate.logit_bias.to_vec(),
            banned,
        },
        top: generate.top,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generate(sampling: Sampling) -> Generate {
        Generate {
            sampling,
            max_tokens: 8,
            min_tokens: 2,
            stop_tokens: [7, 99].into(),
            logit_bias: [(3, -1.5)].into(),
            top: 5,
            seed: 11,
            choice: 1,
        }
    }

    #[test]
    fn philox_gives_the_published_answers() {
        // kat_vectors of Random123 1.14, philox4x32 with 10 rounds.
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(philox([u32::MAX; 4], [u32::MAX; 2]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        assert_eq!(
            philox([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
    }

    /// Chi-square over 64 cells and 64 000 draws: 63 degrees of freedom, of which 0.1 % lie above 103.4.
    #[test]
    fn draws_are_uniform_along_tokens_choices_and_seeds() {
        for name in ["tokens", "choices", "seeds"] {
            let draw = |i| match name {
                "tokens" => uniform(7, 0, i),
                "choices" => uniform(7, i as u32, 0),
                _ => uniform(i, 0, 0),
            };
            let mut cells = [0u32; 64];
            let mut sum = 0.0;
            for i in 0..64_000 {
                let u = draw(i);
                assert!((0.0..1.0).contains(&u));
                cells[(u * 64.0) as usize] += 1;
                sum += u;
            }
            let chi: f64 = cells.iter().map(|&n| (f64::from(n) - 1000.0).powi(2) / 1000.0).sum();
            assert!(chi < 103.4, "along {name}: chi-square is {chi}");
            assert!((sum / 64_000.0 - 0.5).abs() < 0.005, "along {name}: the mean is {}", sum / 64_000.0);
        }
    }

    #[test]
    fn neighbouring_draws_are_not_correlated() {
        let count = 50_000;
        let product: f64 =
            (0..count).map(|i| (uniform(3, 0, i) - 0.5) * (uniform(3, 0, i + 1) - 0.5)).sum::<f64>() / count as f64;
        // The product of two independent centred uniforms has variance 1/144.
        assert!(product.abs() < 4.0 / 12.0 / (count as f64).sqrt(), "{product}");
    }

    #[test]
    fn a_draw_depends_on_seed_choice_and_place_alone() {
        let u = uniform(1, 2, 3);
        assert_eq!(u, uniform(1, 2, 3));
        for other in [uniform(2, 2, 3), uniform(1, 3, 3), uniform(1, 2, 4), uniform(1 << 32, 2, 3)] {
            assert_ne!(u, other);
        }
    }

    #[test]
    fn stop_tokens_are_banned_until_enough_tokens_are_out() {
        let generate = generate(Sampling::default());
        assert_eq!(ask(&generate, None, 0, 50).adjustments.banned, [7], "99 is not in the vocabulary");
        assert_eq!(ask(&generate, None, 1, 50).adjustments.banned, [7]);
        assert!(ask(&generate, None, 2, 50).adjustments.banned.is_empty());
    }

    #[test]
    fn parameters_bias_and_alternatives_reach_the_row() {
        let sampling = Sampling { temperature: 0.5, top_p: 0.9, top_k: 4, min_p: 0.1, ..Default::default() };
        let ask = ask(&generate(sampling), None, 4, 50);
        assert_eq!((ask.temperature, ask.top_p, ask.top_k, ask.min_p, ask.top), (0.5, 0.9, 4, 0.1, 5));
        assert_eq!(ask.adjustments.bias, [(3, -1.5)]);
        assert_eq!(ask.u, uniform(11, 1, 4));
    }

    #[test]
    fn repetition_looks_at_the_prompt_and_the_others_at_the_answer_alone() {
        let repetition = Sampling { repetition_penalty: 1.2, ..Default::default() };
        let mut seen = Seen::of(&repetition, &[5, 6, 5]).expect("a penalty is on");
        seen.push(6);
        seen.push(9);
        seen.push(9);
        let count = |token, in_answer| SeenToken { token, in_answer };
        assert_eq!(
            ask(&generate(repetition), Some(&seen), 3, 50).adjustments.seen,
            [count(5, 0), count(6, 1), count(9, 2)]
        );
        let presence = Sampling { presence_penalty: 0.5, ..Default::default() };
        let mut seen = Seen::of(&presence, &[5, 6, 5]).expect("a penalty is on");
        seen.push(6);
        assert_eq!(ask(&generate(presence), Some(&seen), 1, 50).adjustments.seen, [count(6, 1)]);
        assert!(Seen::of(&Sampling::default(), &[5]).is_none());
    }
}
