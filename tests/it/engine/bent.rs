//! Decoders that are wrong in one way each, which the suite must notice.

use std::sync::Arc;

use tunegate::model::{AdapterRows, Batch, KvShape, LanguageModel, ModelShape, StepError, StepOutput};

/// A decoder that gets each batch bent. A bent batch is still a valid one.
pub struct Bent {
    inner: Box<dyn LanguageModel>,
    bend: fn(&mut Batch, KvShape),
}

impl Bent {
    pub fn new(inner: Box<dyn LanguageModel>, bend: fn(&mut Batch, KvShape)) -> Self {
        Self { inner, bend }
    }
}

impl LanguageModel for Bent {
    fn shape(&self) -> &ModelShape {
        self.inner.shape()
    }

    fn kv_shape(&self) -> KvShape {
        self.inner.kv_shape()
    }

    fn forward(&mut self, batch: &Batch, out: &mut StepOutput) -> Result<(), StepError> {
        let adapters = batch.adapters.iter();
        let mut bent = Batch {
            tokens: batch.tokens.clone(),
            positions: batch.positions.clone(),
            sequences: batch.sequences.clone(),
            copies: batch.copies.clone(),
            adapters: adapters.map(|a| AdapterRows { rows: a.rows.clone(), weights: Arc::clone(&a.weights) }).collect(),
            asks: batch.asks.clone(),
        };
        (self.bend)(&mut bent, self.inner.kv_shape());
        self.inner.forward(&bent, out)
    }
}

/// The right one.
pub fn straight(_: &mut Batch, _: KvShape) {}

/// Every row on the base: a lease ignored, or every delta zero.
pub fn no_adapters(batch: &mut Batch, _: KvShape) {
    batch.adapters.clear();
}

/// One current adapter for all who have one.
pub fn one_adapter(batch: &mut Batch, _: KvShape) {
    let Some(first) = batch.adapters.first() else { return };
    let weights = Arc::clone(&first.weights);
    batch.adapters.iter_mut().for_each(|adapter| adapter.weights = Arc::clone(&weights));
}

/// Each adapter on the row after its own.
pub fn adapter_rows_shifted(batch: &mut Batch, _: KvShape) {
    let rows = batch.rows() as u32;
    for adapter in &mut batch.adapters {
        adapter.rows.iter_mut().for_each(|row| *row = (*row + 1) % rows);
        adapter.rows.sort_unstable();
    }
}

/// Two neighbours in each other's blocks.
pub fn blocks_swapped(batch: &mut Batch, _: KvShape) {
    let sizes: Vec<usize> = batch.sequences.iter().map(|sequence| sequence.blocks.len()).collect();
    let Some(second) = (1..sizes.len()).find(|&i| sizes[i - 1] == sizes[i]) else { return };
    let (left, right) = batch.sequences.split_at_mut(second);
    std::mem::swap(&mut left[second - 1].blocks, &mut right[0].blocks);
}

/// Positions off by one, wherever the last row still lies in the sequence's blocks.
pub fn positions_shifted(batch: &mut Batch, kv: KvShape) {
    for sequence in &batch.sequences {
        let rows = sequence.first_row as usize..(sequence.first_row + sequence.rows) as usize;
        if (batch.positions[rows.end - 1] as usize + 1) < sequence.blocks.len() * kv.block_tokens {
            batch.positions[rows].iter_mut().for_each(|position| *position += 1);
        }
    }
}

/// Answers for the row before the one that was asked.
pub fn asks_shifted(batch: &mut Batch, _: KvShape) {
    batch.asks.iter_mut().for_each(|ask| ask.row = ask.row.saturating_sub(1));
}
