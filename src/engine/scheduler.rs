//! Who runs in the next step. Plain data, no tensors: it moves sequences between the queue and their places, hands out
//! KV blocks, and writes the batch.

use std::{
    collections::{HashMap, HashSet},
    time::{Duration, Instant},
};

use super::{
    EngineFault, Priority,
    blocks::BlockPool,
    budget::{Beside, StepBudget},
    cost::StepLoad,
    pulse::Occupancy,
    queue::Queue,
    sequence::{Lane, Sequence},
    share::Ledger,
};
use crate::{
    config::EngineConfig,
    model::{AdapterRows, Batch, KvShape, StepOutput},
    terms::{AdapterVersion, FinishReason},
};

/// One step: the batch, and whose rows it holds.
#[derive(Default)]
pub struct Step {
    pub batch: Batch,
    turns: Vec<Turn>,
    /// What it consists of, and how many of its rows are prompt chunks.
    pub load: StepLoad,
    pub prompt_rows: usize,
}

/// One sequence's part in a step.
struct Turn {
    /// In `running`, which does not change between planning and advancing.
    index: usize,
    rows: usize,
    asks: usize,
}

/// Everything that waits or runs. At most one step is under way at a time.
pub struct Scheduler {
    places: usize,
    max_rows: usize,
    max_loras: usize,
    vocab: usize,
    pool: BlockPool,
    budget: StepBudget,
    ledger: Ledger,
    /// By priority (highest first), then by ticket.
    running: Vec<Sequence>,
    normal: Queue,
    background: Queue,
    next_ticket: u64,
    /// Seconds in the queue of those admitted since `take_waits`.
    waits: Vec<f64>,
    /// Since `take_preemptions`.
    preemptions: u64,
}

/// Whether a sequence can have a place now, and what is lacking otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fit {
    Yes,
    NoPlace,
    NoBlocks,
    NoAdapter,
}

impl Scheduler {
    pub fn new(config: &EngineConfig, kv: KvShape, vocab: usize) -> Self {
        let max_rows = config.max_num_batched_tokens.max(1);
        Self {
            places: places(config),
            max_rows,
            max_loras: config.max_loras.max(1),
            vocab,
            pool: BlockPool::new(kv),
            budget: StepBudget::new(config.step_target),
            ledger: Ledger::new(max_rows / 2),
            running: Vec::new(),
            normal: Queue::default(),
            background: Queue::default(),
            next_ticket: 0,
            waits: Vec::new(),
            preemptions: 0,
        }
    }

    /// Takes a job in; it gets a place with the next step, if there is one.
    pub fn push(&mut self, mut sequence: Sequence) {
        if sequence.is_abandoned() {
            sequence.abandon();
        } else if sequence.wants_nothing() {
            self.waits.extend(sequence.start(Instant::now()));
            sequence.finish(FinishReason::Length);
        } else {
            self.queue(sequence.priority).push(sequence);
        }
    }

    pub fn has_work(&self) -> bool {
        !(self.running.is_empty() && self.normal.is_empty() && self.background.is_empty())
    }

    pub fn occupancy(&self) -> Occupancy {
        let room = match self.normal.is_empty() && self.background.is_empty() {
            true => self.places - self.running.len(),
            false => 0,
        };
        Occupancy {
            running: self.running.len(),
            preempted: self.normal.preempted() + self.background.preempted(),
            kv_used: self.pool.used(),
            room,
        }
    }

    /// Whether every block is free and no count is off, as it must be when there is no work.
    pub fn is_whole(&self) -> bool {
        self.pool.is_whole()
    }

    /// Makes the block counts anew.
    pub fn restore_blocks(&mut self) {
        debug_assert!(self.running.is_empty());
        self.pool.restore();
    }

    /// How long those admitted since the last call had waited, in seconds.
    pub fn take_waits(&mut self) -> impl Iterator<Item = f64> + '_ {
        self.waits.drain(..)
    }

    /// How many have been preempted since the last call.
    pub fn take_preemptions(&mut self) -> u64 {
        std::mem::take(&mut self.preemptions)
    }

    /// Frees the places and blocks of everybody who is no longer wanted; returns how many had a place.
    pub fn drop_abandoned(&mut self) -> usize {
        self.normal.drop_abandoned();
        self.background.drop_abandoned();
        let before = self.running.len();
        for index in (0..before).rev() {
            if self.running[index].is_abandoned() {
                self.running[index].abandon();
                self.retire(index);
            }
        }
        before - self.running.len()
    }

    /// Plans the next step: blocks for those who run, places for those who wait, then rows. `false` if there is nothing
    /// to run.
    pub fn plan(&mut self, step: &mut Step) -> bool {
        step.batch.clear();
        step.turns.clear();
        self.grow();
        self.admit(Priority::Normal);
        if !self.running.iter().any(|sequence| sequence.priority == Priority::Normal) {
            self.admit(Priority::Background);
        }
        self.share_rows(step);
        self.write(step);
        !step.turns.is_empty()
    }

    /// Gives every running sequence the blocks for its next row. Where none are free, the last admitted loses its place
    /// and is computed again later: the oldest can thus always go on, so everybody gets to be the oldest and to finish.
    fn grow(&mut self) {
        let Some(priority) = self.running.first().map(|sequence| sequence.priority) else { return };
        let mut index = 0;
        while index < self.running.len() && self.running[index].priority == priority {
            let sequence = &mut self.running[index];
            let lacking = self.pool.needed(sequence.known()).saturating_sub(sequence.blocks.len());
            if self.pool.take(lacking, &mut sequence.blocks) {
                index += 1;
            } else {
                self.preempt_last();
            }
        }
    }

    /// Admits who waits at one priority, each lane in its turn, until nobody fits.
    fn admit(&mut self, priority: Priority) {
        self.make_way(priority);
        while let Some(sequence) = self.waiting(priority).first_preempted() {
            if self.fit(sequence) != Fit::Yes {
                return;
            }
            if let Some(sequence) = self.queue(priority).pop_preempted() {
                self.place(sequence);
            }
        }
        let mut turn = 0;
        while let Some(sequence) = self.waiting(priority).head(turn) {
            // Whoever lacks blocks or an adapter's place lets others pass, but not for ever.
            let patient = sequence.passed_over < self.places;
            match self.fit(sequence) {
                Fit::Yes => {
                    if let Some(sequence) = self.queue(priority).pop(turn) {
                        self.place(sequence);
                    }
                }
                Fit::NoBlocks | Fit::NoAdapter if patient => turn += 1,
                Fit::NoPlace | Fit::NoBlocks | Fit::NoAdapter => return,
            }
        }
    }

    /// Where peers have every place, a lane of which nobody runs gets one from the lane that runs most, if that runs
    /// several: its last admitted is computed again later.
    fn make_way(&mut self, priority: Priority) {
        let mut turn = 0;
        while self.peers(priority) >= self.places
            && let Some(head) = self.waiting(priority).head(turn)
        {
            let idle = self.running.iter().all(|peer| peer.priority != priority || peer.lane() != head.lane());
            if !idle || self.room(head) != Fit::Yes {
                turn += 1;
                continue;
            }
            let Some(index) = self.last_of_largest_lane(priority) else { return };
            self.preempt(index);
            if let Some(sequence) = self.queue(priority).pop(turn) {
                self.place(sequence);
            }
        }
    }

    /// The last admitted of the lane with the most running sequences of one priority, if there are several of them.
    fn last_of_largest_lane(&self, priority: Priority) -> Option<usize> {
        let mut lanes: HashMap<Lane, (usize, usize)> = HashMap::new();
        for (index, peer) in self.running.iter().enumerate().filter(|(_, peer)| peer.priority == priority) {
            let (count, last) = lanes.entry(peer.lane()).or_default();
            (*count, *last) = (*count + 1, index);
        }
        // Of equal lanes, the one whose last came last.
        lanes.into_values().filter(|&(count, _)| count > 1).max().map(|(_, last)| last)
    }

    /// How many run that do not make way for `priority`.
    fn peers(&self, priority: Priority) -> usize {
        self.running.iter().filter(|peer| peer.priority >= priority).count()
    }

    /// Whether a sequence can have a place and what it needs there. Those of lower priority count for nothing here: they
    /// make way.
    fn fit(&self, sequence: &Sequence) -> Fit {
        if self.peers(sequence.priority) >= self.places { Fit::NoPlace } else { self.room(sequence) }
    }

    /// Whether a sequence that has a place can have blocks and its adapter too.
    fn room(&self, sequence: &Sequence) -> Fit {
        let peers = || self.running.iter().filter(|peer| peer.priority >= sequence.priority);
        let count = peers().count();
        let lower: HashSet<u32> = self.running[count..].iter().flat_map(|lower| lower.blocks.iter().copied()).collect();
        let yielding = lower.len();
        let (_, shared) = self.pool.known(sequence.findable(self.pool.block_tokens()));
        // Each running sequence may want one more block soon; without this margin the newcomer would be preempted at
        // once.
        if self.pool.needed(sequence.known()) + count > self.pool.free() + shared + yielding {
            return Fit::NoBlocks;
        }
        let Some(version) = sequence.version() else { return Fit::Yes };
        let mut others: Vec<AdapterVersion> = peers().filter_map(Sequence::version).collect();
        others.sort_unstable();
        others.dedup();
        match others.contains(&version) || others.len() < self.max_loras {
            true => Fit::Yes,
            false => Fit::NoAdapter,
        }
    }

    /// Gives a place and the blocks for all that is known to a sequence that fits.
    fn place(&mut self, mut sequence: Sequence) {
        if let Some(waited) = sequence.start(Instant::now()) {
            self.waits.push(waited);
            sequence.ticket = self.next_ticket;
            self.next_ticket += 1;
        }
        sequence.adopt(&mut self.pool);
        let lacking = self.pool.needed(sequence.known()) - sequence.blocks.len();
        while self.running.len() >= self.places || self.pool.free() < lacking {
            self.preempt_last();
        }
        self.pool.take(lacking, &mut sequence.blocks);
        let rank = |sequence: &Sequence| (std::cmp::Reverse(sequence.priority), sequence.ticket);
        let index = self.running.partition_point(|other| rank(other) < rank(&sequence));
        self.running.insert(index, sequence);
    }

    fn preempt_last(&mut self) {
        if let Some(last) = self.running.len().checked_sub(1) {
            self.preempt(last);
        }
    }

    /// Takes place and blocks away from a running sequence, which returns before anybody new.
    fn preempt(&mut self, index: usize) {
        let mut sequence = self.running.remove(index);
        self.pool.release(&mut sequence.blocks);
        sequence.forget();
        self.preemptions += 1;
        self.queue(sequence.priority).push_preempted(sequence);
    }

    /// One row for every sequence that needs just one; prompts share what is left. Only the highest running priority
    /// runs.
    fn share_rows(&mut self, step: &mut Step) {
        let priority = self.running.first().map(|sequence| sequence.priority);
        let block_tokens = self.pool.block_tokens();
        // Who computes a block, or is about to: others that want the same one wait for it, and then share it.
        let mut computing = HashSet::new();
        let mut pending = Vec::new();
        for (index, sequence) in self.running.iter_mut().enumerate() {
            if Some(sequence.priority) != priority {
                continue;
            }
            if sequence.pending() > 1 {
                sequence.adopt(&mut self.pool);
                if let Some(key) = sequence.computing(block_tokens)
                    && !computing.insert(key)
                    && sequence.at_block(block_tokens)
                {
                    continue;
                }
            }
            pending.push((index, sequence.pending()));
        }
        let (single, prompts): (Vec<_>, Vec<_>) = pending.into_iter().partition(|&(_, pending)| pending == 1);
        let lane = |index: usize| self.running[index].lane();
        let answers: Vec<Lane> = single.iter().map(|&(index, _)| lane(index)).collect();
        let turns = |rows| {
            let prompts = self.ledger.share(rows, &answers, &prompts, lane);
            single.iter().copied().chain(prompts).collect::<Vec<_>>()
        };
        let left = self.max_rows - single.len();
        let beside = match single.len() {
            0 => Beside::Nothing,
            answers => Beside::Answers {
                prompts: prompts.len() as f64 / answers as f64,
                newcomer: prompts.iter().any(|&(index, _)| self.ledger.is_new(&lane(index))),
            },
        };
        let rows = match prompts.is_empty() {
            true => 0,
            false => self.budget.rows(beside, left, |rows| self.load(&turns(rows))),
        };
        let turns = turns(rows);
        step.load = self.load(&turns);
        step.prompt_rows = step.load.rows - single.len();
        step.turns.extend(turns.into_iter().map(|(index, rows)| Turn { index, rows, asks: 0 }));
        // Rows of one adapter stand together, so that a decoder can gather them as one run.
        step.turns.sort_by_key(|turn| (self.running[turn.index].version(), turn.index));
        let present = self.running.iter().filter(|sequence| Some(sequence.priority) == priority);
        let present = present.map(|sequence| (sequence.lane(), 0));
        let rows = step.turns.iter().map(|turn| (self.running[turn.index].lane(), turn.rows));
        self.ledger.count(present.chain(rows));
    }

    /// What a step should take, in seconds.
    pub fn foreseen(&self, step: &Step) -> f64 {
        self.budget.foreseen(step.load)
    }

    /// What a step of these (index, rows) consists of.
    fn load(&self, turns: &[(usize, usize)]) -> StepLoad {
        let mut load = StepLoad::default();
        let mut versions = HashSet::new();
        for &(index, rows) in turns {
            let sequence = &self.running[index];
            load.add(sequence.reach(0), rows);
            load.asks += sequence.scores(rows);
            versions.extend(sequence.version());
        }
        load.adapters = versions.len();
        load
    }

    fn write(&self, step: &mut Step) {
        let batch = &mut step.batch;
        for turn in &mut step.turns {
            let sequence = &self.running[turn.index];
            let first = batch.rows() as u32;
            let blocks = self.pool.needed(sequence.reach(turn.rows));
            turn.asks = sequence.write(turn.rows, blocks, self.vocab, batch);
            let Some(adapter) = &sequence.adapter else { continue };
            let rows = first..batch.rows() as u32;
            match batch.adapters.last_mut().filter(|last| last.weights.version() == adapter.version()) {
                Some(last) => last.rows.extend(rows),
                None => batch.adapters.push(AdapterRows { rows: rows.collect(), weights: adapter.clone() }),
            }
        }
    }

    /// Takes in a step's answers, which lasted `took`; returns how many sequences ended with it. `output` has one
    /// answer for each of the batch's asks.
    pub fn advance(&mut self, step: &Step, output: &mut StepOutput, took: Duration) -> usize {
        self.budget.learn(step.load, step.prompt_rows, took);
        let now = Instant::now();
        let mut answers = output.answers.drain(..);
        let mut ended = Vec::new();
        for turn in &step.turns {
            let sequence = &mut self.running[turn.index];
            if sequence.advance(turn.rows, answers.by_ref().take(turn.asks), now) {
                ended.push(turn.index);
            }
            sequence.publish(&mut self.pool);
        }
        ended.sort_unstable();
        ended.iter().rev().for_each(|&index| self.retire(index));
        ended.len()
    }

    /// Ends every sequence of a step that failed. The others begin again: what a failed step has left in any block is
    /// unknown.
    pub fn fail(&mut self, step: &Step, fault: &EngineFault) -> usize {
        let mut failed: Vec<usize> = step.turns.iter().map(|turn| turn.index).collect();
        failed.sort_unstable();
        for &index in failed.iter().rev() {
            self.running[index].fail(fault.clone());
            self.retire(index);
        }
        while !self.running.is_empty() {
            self.preempt_last();
        }
        self.pool.forget_all();
        failed.len()
    }

    /// Lets go of everything; each sequence reports that the engine was stopped.
    pub fn clear(&mut self) {
        for index in (0..self.running.len()).rev() {
            self.retire(index);
        }
        self.normal.clear();
        self.background.clear();
    }

    fn retire(&mut self, index: usize) {
        let mut sequence = self.running.remove(index);
        self.pool.release(&mut sequence.blocks);
    }

    fn waiting(&self, priority: Priority) -> &Queue {
        match priority {
            Priority::Normal => &self.normal,
            Priority::Background => &self.background,
        }
    }

    fn queue(&mut self, priority: Priority) -> &mut Queue {
        match priority {
            Priority::Normal => &mut self.normal,
            Priority::Background => &mut self.background,
        }
    }
}

/// Places of an engine: each running sequence must have at least one row in a step.
pub fn places(config: &EngineConfig) -> usize {
    config.max_num_seqs.min(config.max_num_batched_tokens).max(1)
}

#[cfg(test)]
mod tests;
