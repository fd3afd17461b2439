//! One running or waiting job: its tokens, how far it is, and its channel of events.

use std::{sync::Arc, time::Instant};

use super::{
    CancelFlag, EngineFault, Event, EventSender, Generate, Job, Priority, Work,
    blocks::BlockPool,
    prefix::{BlockKey, Chain},
    pulse::Seat,
    sampler::{self, Seen},
};
use crate::{
    model::{Batch, LoraAdapter, RowAnswer, RowAsk, SequenceRows, Want},
    terms::{AdapterVersion, FinishReason, TokenScore},
};

/// A job on its way through the engine. Whatever happens to it, its channel gets a last event, unless the job was
/// abandoned by whoever reads it.
pub struct Sequence {
    pub priority: Priority,
    pub tenant: u64,
    pub adapter: Option<Arc<LoraAdapter>>,
    /// The order of first admission, kept through preemption; the highest is preempted first.
    pub ticket: u64,
    /// KV blocks held, in order of position.
    pub blocks: Vec<u32>,
    /// How often a later arrival was admitted before this one.
    pub passed_over: usize,
    /// For `Generate` and `Embed` the prompt, for `Score` the whole text.
    tokens: Arc<[u32]>,
    task: Task,
    /// Positions whose keys and values are in the blocks.
    computed: usize,
    /// Names what its full blocks hold; `None` where nothing is shared.
    chain: Option<Chain>,
    /// Blocks whose content others know of.
    published: usize,
    /// Prompt positions that were found computed, until the first answer.
    cached: usize,
    /// When it was admitted, until that is told.
    started: Option<Instant>,
    submitted: Instant,
    /// Held until the first admission.
    seat: Option<Seat>,
    cancel: CancelFlag,
    events: EventSender,
    /// Nothing more may be sent.
    ended: bool,
}

/// A caller and an adapter's version (`None` is the base).
pub type Lane = (u64, Option<AdapterVersion>);

/// What is wanted, and what of it is done. It outlives preemption, so that nothing is reported twice.
enum Task {
    Generate { generate: Generate, answer: Vec<u32>, seen: Option<Seen> },
    Score { top: u8, reported: usize },
    Embed { sum: Vec<f64>, counted: usize },
}

impl Sequence {
    /// Counts the prompt's tokens where penalties need it, so it is made by the caller's thread. Where blocks of
    /// `shared` positions are shared, those of sequences that begin alike, under one version and salt, are computed once.
    pub fn new(job: Job, seat: Seat, shared: Option<usize>) -> Self {
        let version = job.adapter.as_ref().map(|adapter| adapter.version());
        let chain = shared.map(|block_tokens| {
            let mut chain = Chain::new(BlockKey::root(version, &job.salt));
            let full = job.tokens.len() / block_tokens;
            chain.reach(full, |block| job.tokens[block * block_tokens..(block + 1) * block_tokens].to_vec());
            chain
        });
        let task = match job.work {
            Work::Generate(generate) => {
                let seen = Seen::of(&generate.sampling, &job.tokens);
                Task::Generate { generate, answer: Vec::new(), seen }
            }
            Work::Score { top } => Task::Score { top, reported: 0 },
            Work::Embed => Task::Embed { sum: Vec::new(), counted: 0 },
        };
        Self {
            priority: job.priority,
            tenant: job.tenant,
            adapter: job.adapter,
            ticket: 0,
            blocks: Vec::new(),
            passed_over: 0,
            tokens: job.tokens,
            task,
            computed: 0,
            chain,
            published: 0,
            cached: 0,
            started: None,
            submitted: Instant::now(),
            seat: Some(seat),
            cancel: job.cancel,
            events: job.events,
            ended: false,
        }
    }

    pub fn version(&self) -> Option<AdapterVersion> {
        self.adapter.as_ref().map(|adapter| adapter.version())
    }

    /// Whom it shares its turns with: everything of one caller on one adapter.
    pub fn lane(&self) -> Lane {
        (self.tenant, self.version())
    }

    #[cfg(test)]
    pub fn first_token(&self) -> u32 {
        self.tokens[0]
    }

    /// Positions that can be computed now: everything but the token that is drawn next, or that nothing follows.
    pub fn known(&self) -> usize {
        match &self.task {
            Task::Generate { answer, .. } => self.tokens.len() + answer.len(),
            Task::Score { .. } => self.tokens.len() - 1,
            Task::Embed { .. } => self.tokens.len(),
        }
    }

    /// Rows still to compute before anything new can be drawn.
    pub fn pending(&self) -> usize {
        self.known() - self.computed
    }

    /// Positions that a step of `rows` rows fills the blocks up to.
    pub fn reach(&self, rows: usize) -> usize {
        self.computed + rows
    }

    /// How many of its next `rows` rows are asked for a token or its score.
    pub fn scores(&self, rows: usize) -> usize {
        let reach = self.reach(rows);
        match &self.task {
            Task::Generate { .. } => usize::from(rows > 0 && reach == self.known()),
            Task::Score { reported, .. } => reach - self.computed.max(*reported).min(reach),
            Task::Embed { .. } => 0,
        }
    }

    /// Whether there is nothing to run at all: no token wanted, or none to score.
    pub fn wants_nothing(&self) -> bool {
        match &self.task {
            Task::Generate { generate, .. } => generate.max_tokens == 0,
            Task::Score { .. } => self.tokens.len() == 1,
            Task::Embed { .. } => false,
        }
    }

    /// Whether whoever asked no longer wants it.
    pub fn is_abandoned(&self) -> bool {
        self.cancel.is_cancelled() || self.events.is_closed()
    }

    /// Gives up the seat in the queue, once: then how long it waited, in seconds. The start is reported with the first
    /// result, when it is known how much of the prompt was found computed.
    pub fn start(&mut self, now: Instant) -> Option<f64> {
        let seat = self.seat.take()?;
        seat.admitted();
        self.started = Some(now);
        Some(now.saturating_duration_since(self.submitted).as_secs_f64())
    }

    /// Forgets what is in the blocks, which have been taken away; what nobody has kept is computed again on return.
    pub fn forget(&mut self) {
        self.computed = 0;
        self.published = 0;
        self.cached = 0;
    }

    /// The keys of the full blocks that may be found computed: all but the last position of what is known, whose row has
    /// the answer. Scored and embedded texts need every row.
    pub fn findable(&self, block_tokens: usize) -> &[BlockKey] {
        let (Some(chain), Task::Generate { .. }) = (&self.chain, &self.task) else { return &[] };
        let made = chain.made();
        &made[..made.len().min((self.known() - 1) / block_tokens)]
    }

    /// Makes the keys of its first `blocks` full blocks, whose tokens are known.
    fn name_blocks(&mut self, blocks: usize, block_tokens: usize) {
        if let Some(mut chain) = self.chain.take() {
            chain.reach(blocks, |block| {
                (block * block_tokens..(block + 1) * block_tokens).map(|position| self.token(position)).collect()
            });
            self.chain = Some(chain);
        }
    }

    /// Takes, as far as they are known, blocks that hold what would have to be computed next: in place of its own where it
    /// has them already. Only at the beginning of a block: what it has computed stays.
    pub fn adopt(&mut self, pool: &mut BlockPool) {
        let size = pool.block_tokens();
        if !self.computed.is_multiple_of(size) {
            return;
        }
        let first = self.computed / size;
        let keys = self.findable(size).to_vec();
        for (block, key) in keys.iter().enumerate().skip(first) {
            let found = match self.blocks.get_mut(block) {
                Some(held) => pool.exchange(held, key),
                None => pool.share(key).map(|shared| self.blocks.push(shared)).is_some(),
            };
            if !found {
                break;
            }
            self.computed += size;
            if self.started.is_some() {
                self.cached += size;
            }
        }
        self.published = self.published.max(self.computed / size);
    }

    /// The key of the block that it computes next or is within, if all of that block's tokens are known.
    pub fn computing(&self, block_tokens: usize) -> Option<BlockKey> {
        self.findable(block_tokens).get(self.computed / block_tokens).copied()
    }

    /// Whether what it computes next begins a block.
    pub fn at_block(&self, block_tokens: usize) -> bool {
        self.computed.is_multiple_of(block_tokens)
    }

    /// Makes the content of every block that is full by now known to others.
    pub fn publish(&mut self, pool: &mut BlockPool) {
        let full = self.computed / pool.block_tokens();
        if self.chain.is_none() || full <= self.published {
            return;
        }
        self.name_blocks(full, pool.block_tokens());
        let keys = self.chain.as_ref().map(Chain::made).unwrap_or_default();
        let blocks = self.blocks.iter().zip(keys).take(full).skip(self.published);
        blocks.for_each(|(&block, &key)| pool.publish(block, key));
        self.published = full;
    }

    /// Adds the next `rows` rows and what is asked of them to `batch`; returns how many asks these are.
    pub fn write(&self, rows: usize, blocks: usize, vocab: usize, batch: &mut Batch) -> usize {
        let first_row = batch.rows();
        let asks = batch.asks.len();
        for position in self.computed..self.reach(rows) {
            let row = batch.rows() as u32;
            batch.tokens.push(self.token(position));
            batch.positions.push(position as u32);
            if let Some(want) = self.want(position, vocab) {
                batch.asks.push(RowAsk { row, want });
            }
        }
        batch.sequences.push(SequenceRows {
            first_row: first_row as u32,
            rows: rows as u32,
            blocks: self.blocks[..blocks].to_vec(),
        });
        batch.asks.len() - asks
    }

    fn token(&self, position: usize) -> u32 {
        match &self.task {
            Task::Generate { answer, .. } if position >= self.tokens.len() => answer[position - self.tokens.len()],
            Task::Generate { .. } | Task::Score { .. } | Task::Embed { .. } => self.tokens[position],
        }
    }

    /// What the row at `position` is asked: rows computed again after preemption are asked nothing new.
    fn want(&self, position: usize, vocab: usize) -> Option<Want> {
        match &self.task {
            Task::Generate { generate, answer, seen } => (position + 1 == self.known())
                .then(|| Want::Sample(Box::new(sampler::ask(generate, seen.as_ref(), answer.len(), vocab)))),
            Task::Score { top, reported } => {
                (position >= *reported).then(|| Want::Score { token: self.tokens[position + 1], top: *top })
            }
            Task::Embed { counted, .. } => (position >= *counted).then_some(Want::Hidden),
        }
    }

    /// Takes in a step of `rows` rows and the answers to its asks. Returns whether the sequence has ended.
    pub fn advance(&mut self, rows: usize, answers: impl Iterator<Item = RowAnswer>, now: Instant) -> bool {
        self.computed += rows;
        for answer in answers {
            // What follows a failure within the same step is of no use.
            if !self.ended {
                match answer {
                    RowAnswer::Score(score) => self.scored(score, now),
                    RowAnswer::Hidden(state) => self.embedded(&state),
                    RowAnswer::NotFinite => self.fail(EngineFault::NotFinite),
                    RowAnswer::Logits(_) => self.fail(unasked()),
                }
            }
        }
        self.ended
    }

    fn scored(&mut self, score: TokenScore, now: Instant) {
        let token = score.token;
        let end = match &mut self.task {
            Task::Generate { generate, answer, seen } => {
                answer.push(token);
                if let Some(seen) = seen {
                    seen.push(token);
                }
                match generate.stop_tokens.contains(&token) {
                    true => Some(FinishReason::Stop),
                    false => (answer.len() >= generate.max_tokens).then_some(FinishReason::Length),
                }
            }
            Task::Score { reported, .. } => {
                *reported += 1;
                (*reported + 1 == self.tokens.len()).then_some(FinishReason::Length)
            }
            Task::Embed { .. } => return self.fail(unasked()),
        };
        self.tell(Event::Token { score, at: now });
        if let Some(reason) = end {
            self.finish(reason);
        }
    }

    fn embedded(&mut self, state: &[f32]) {
        let Task::Embed { sum, counted } = &mut self.task else { return self.fail(unasked()) };
        sum.resize(state.len(), 0.0);
        sum.iter_mut().zip(state).for_each(|(sum, &value)| *sum += f64::from(value));
        *counted += 1;
        if *counted < self.tokens.len() {
            return;
        }
        let mean: Vec<f32> = sum.iter().map(|sum| (sum / *counted as f64) as f32).collect();
        match mean.iter().all(|value| value.is_finite()) {
            true => self.end(Event::Hidden(mean)),
            false => self.fail(EngineFault::NotFinite),
        }
    }

    pub fn finish(&mut self, reason: FinishReason) {
        self.end(Event::Finished(reason));
    }

    pub fn fail(&mut self, fault: EngineFault) {
        self.end(Event::Failed(fault));
    }

    /// Ends without a last event: nobody reads it, or the job was refused.
    pub fn abandon(&mut self) {
        self.ended = true;
    }

    fn end(&mut self, event: Event) {
        // Whoever sees the end may count on the weights being let go of.
        self.adapter = None;
        self.tell(event);
        self.ended = true;
    }

    fn tell(&mut self, event: Event) {
        if let Some(at) = self.started.take() {
            self.send(Event::Started { at, cached_tokens: self.cached.min(self.tokens.len()) });
        }
        self.send(event);
    }

    fn send(&mut self, event: Event) {
        // Room for every event was made with the channel, so this fails only where the reader has left (and the next
        // step drops the sequence) or made a channel too small for its own job.
        if !self.ended && self.events.try_send(event).is_err() {
            self.cancel.cancel();
        }
    }
}

fn unasked() -> EngineFault {
    EngineFault::Step("the decoder answered something that was not asked".to_owned())
}

impl Drop for Sequence {
    /// A sequence that is let go before its end went down with the engine.
    fn drop(&mut self) {
        if !self.ended {
            self.end(Event::Failed(EngineFault::Stopped));
        }
    }
}
