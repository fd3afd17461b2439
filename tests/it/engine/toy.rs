//! A real `LanguageModel` over a tiny function: each row writes a mark of its token, position and adapter into its KV
//! cell, and its scores depend on every mark before it, read through the block table. A wrong block, position, chunk,
//! order or adapter row changes the answer.

use std::sync::Arc;

use tunegate::{
    model::{
        Adjustments, Batch, Family, KvShape, LanguageModel, LoraAdapter, ModelShape, Rope, RowAnswer, SampleAsk,
        StepError, StepOutput, Want,
    },
    terms::{AdapterVersion, Digest, TokenScore},
};

pub const VOCAB: usize = 64;
pub const HIDDEN: usize = 8;

pub struct Toy {
    shape: ModelShape,
    kv: KvShape,
    /// `[blocks * block_tokens]`
    cells: Vec<u64>,
}

impl Toy {
    pub fn new(blocks: usize, block_tokens: usize) -> Self {
        let shape = ModelShape {
            family: Family::Llama,
            hidden: HIDDEN,
            layers: 1,
            heads: 1,
            kv_heads: 1,
            head_dim: HIDDEN,
            ffn: HIDDEN,
            vocab: VOCAB,
            max_positions: 1 << 20,
            norm_eps: 1e-5,
            rope: Rope::Plain { theta: 1e4 },
            no_rope: vec![false],
            window: vec![None],
            tied: true,
            qkv_bias: false,
            output_bias: false,
            ffn_bias: false,
            qk_norm: false,
        };
        Self {
            shape,
            kv: KvShape { block_tokens, blocks, block_bytes: 8 * block_tokens },
            cells: vec![0; blocks * block_tokens],
        }
    }
}

/// An adapter that the toy tells from every other by its name.
pub fn adapter(name: &str) -> Arc<LoraAdapter> {
    Arc::new(LoraAdapter::new(AdapterVersion(Digest::of(name.as_bytes())), 1, Arc::new(())))
}

fn mix(a: u64, b: u64) -> u64 {
    let mut x = (a ^ b.wrapping_mul(0x9E37_79B9_7F4A_7C15)).wrapping_add(0xD1B5_4A32_D192_ED03);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

fn voice(adapter: Option<&LoraAdapter>) -> u64 {
    adapter.map_or(1, |adapter| u64::from_le_bytes(adapter.version().0.as_bytes()[..8].try_into().expect("8 bytes")))
}

fn mark(token: u32, position: u32, voice: u64) -> u64 {
    mix(mix(voice, u64::from(token)), u64::from(position))
}

fn logits(state: u64) -> Vec<f32> {
    (0..VOCAB as u64).map(|token| (mix(state, token) >> 40) as f32 / (1 << 21) as f32).collect()
}

fn score(logits: &[f32], token: u32, top: u8) -> TokenScore {
    let total: f32 = logits.iter().map(|l| l.exp()).sum();
    let logprob = |token: usize| logits[token] - total.ln();
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(a.cmp(&b)));
    TokenScore {
        token,
        logprob: logprob(token as usize),
        entropy: -(0..logits.len()).map(|t| logprob(t) * logprob(t).exp()).sum::<f32>(),
        top: order.into_iter().take(top as usize).map(|t| (t as u32, logprob(t))).collect(),
    }
}

/// Draws over all tokens: adjustments, temperature and `u` count, the cuts do not.
fn draw(logits: &[f32], ask: &SampleAsk) -> u32 {
    let Adjustments { repetition, frequency, presence, seen, bias, banned } = &ask.adjustments;
    let mut logits = logits.to_vec();
    for seen in seen {
        let logit = &mut logits[seen.token as usize];
        *logit = if *logit > 0.0 { *logit / repetition } else { *logit * repetition };
        *logit -= frequency * seen.in_answer as f32 + if seen.in_answer > 0 { *presence } else { 0.0 };
    }
    bias.iter().for_each(|&(token, bias)| logits[token as usize] += bias);
    banned.iter().for_each(|&token| logits[token as usize] = f32::NEG_INFINITY);
    if ask.temperature == 0.0 {
        return best(&logits);
    }
    let weights: Vec<f64> = logits.iter().map(|&l| f64::from(l / ask.temperature).exp()).collect();
    let mut left = ask.u * weights.iter().sum::<f64>();
    let drawn = weights.iter().position(|weight| {
        left -= weight;
        left < 0.0
    });
    drawn.unwrap_or(VOCAB - 1) as u32
}

fn answer(state: u64, want: &Want) -> RowAnswer {
    let logits = logits(state);
    match want {
        Want::Sample(ask) => RowAnswer::Score(score(&logits, draw(&logits, ask), ask.top)),
        Want::Score { token, top } => RowAnswer::Score(score(&logits, *token, *top)),
        Want::Hidden => RowAnswer::Hidden(logits[..HIDDEN].to_vec()),
        Want::Logits => RowAnswer::Logits(logits),
    }
}

impl LanguageModel for Toy {
    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn kv_shape(&self) -> KvShape {
        self.kv
    }

    fn forward(&mut self, batch: &Batch, out: &mut StepOutput) -> Result<(), StepError> {
        batch.check(&self.shape, self.kv)?;
        out.answers.clear();
        let size = self.kv.block_tokens;
        for &(from, to) in &batch.copies {
            let from = from as usize * size;
            self.cells.copy_within(from..from + size, to as usize * size);
        }
        let mut voices = vec![voice(None); batch.rows()];
        for adapter in &batch.adapters {
            adapter.rows.iter().for_each(|&row| voices[row as usize] = voice(Some(&adapter.weights)));
        }
        let mut states = Vec::with_capacity(batch.rows());
        for sequence in &batch.sequences {
            let cell = |position: usize| sequence.blocks[position / size] as usize * size + position % size;
            let rows = sequence.first_row as usize..(sequence.first_row + sequence.rows) as usize;
            for ((&token, &position), &voice) in
                batch.tokens[rows.clone()].iter().zip(&batch.positions[rows.clone()]).zip(&voices[rows])
            {
                self.cells[cell(position as usize)] = mark(token, position, voice);
                let seen = (0..=position as usize).map(|position| self.cells[cell(position)]);
                states.push(mix(seen.fold(0, mix), voice));
            }
        }
        out.answers.extend(batch.asks.iter().map(|ask| answer(states[ask.row as usize], &ask.want)));
        Ok(())
    }
}

/// What the toy answers to `want` after `tokens`, computed without blocks, batches or an engine.
pub fn oracle(tokens: &[u32], adapter: Option<&LoraAdapter>, want: &Want) -> RowAnswer {
    let voice = voice(adapter);
    let marks = tokens.iter().zip(0..).map(|(&token, position)| mark(token, position, voice));
    answer(mix(marks.fold(0, mix), voice), want)
}

/// The toy's most likely answer, computed like [`oracle`].
pub fn greedy(prompt: &[u32], adapter: Option<&LoraAdapter>, count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let RowAnswer::Logits(logits) = oracle(&tokens, adapter, &Want::Logits) else {
            unreachable!("logits were asked for")
        };
        tokens.push(best(&logits));
    }
    tokens.split_off(prompt.len())
}

/// Ties go to the lower id.
fn best(logits: &[f32]) -> u32 {
    let better = |a: &usize, b: &usize| logits[*a].total_cmp(&logits[*b]).then(b.cmp(a));
    (0..logits.len()).max_by(better).expect("a vocabulary") as u32
}
