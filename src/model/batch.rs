//! One step's work as plain data: ragged rows, block tables, and which rows use which adapter.

use std::sync::Arc;

use super::{KvShape, LoraAdapter, ModelShape, RowAsk};

/// Everything one forward pass needs. Rows of one sequence are contiguous and in order of position; rows are all alike, be
/// they a prompt chunk or a single token.
#[derive(Default)]
pub struct Batch {
    /// `[rows]`
    pub tokens: Vec<u32>,
    /// `[rows]`; where in its sequence each row stands, from 0.
    pub positions: Vec<u32>,
    /// In order of `first_row`; together they cover every row once.
    pub sequences: Vec<SequenceRows>,
    /// KV blocks to copy, (from, to), before any row runs.
    pub copies: Vec<(u32, u32)>,
    /// Rows not listed run on the base weights. No row is listed twice.
    pub adapters: Vec<AdapterRows>,
    /// What is wanted of which row; rows nobody asks about only fill the KV storage.
    pub asks: Vec<RowAsk>,
}

/// The rows of one sequence in this step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SequenceRows {
    pub first_row: u32,
    pub rows: u32,
    /// KV blocks of this sequence in order of position, enough to hold its last row: position `p` lies in
    /// `blocks[p / block_tokens]` at offset `p % block_tokens`.
    pub blocks: Vec<u32>,
}

/// The rows that one adapter applies to.
pub struct AdapterRows {
    /// Row indices, ascending.
    pub rows: Vec<u32>,
    pub weights: Arc<LoraAdapter>,
}

/// What is wrong with a batch. Any of these is a defect of the caller.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum BatchError {
    #[error("{tokens} tokens but {positions} positions")]
    Lengths { tokens: usize, positions: usize },
    #[error("row {row} has token {token}; the vocabulary has {vocab}")]
    Token { row: usize, token: u32, vocab: usize },
    #[error("sequence {sequence} does not continue the rows or positions before it")]
    Sequence { sequence: usize },
    #[error("sequence {sequence} has no KV block for its last position, or names one that does not exist")]
    Block { sequence: usize },
    #[error("two rows are stored in one place")]
    Slot,
    #[error("row {row} is listed under an adapter twice, out of order, or does not exist")]
    AdapterRow { row: u32 },
    #[error("block {from} cannot be copied to {to}: there are {blocks}")]
    Copy { from: u32, to: u32, blocks: usize },
    #[error("something is asked of row {row}, which does not exist")]
    Ask { row: u32 },
}

impl Batch {
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Empties the batch, keeping its buffers.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.sequences.clear();
        self.copies.clear();
        self.adapters.clear();
        self.asks.clear();
    }

    /// Checks every index in the batch, so that a decoder may rely on them.
    pub fn check(&self, shape: &ModelShape, kv: KvShape) -> Result<(), BatchError> {
        let rows = self.rows();
        if self.positions.len() != rows {
            return Err(BatchError::Lengths { tokens: rows, positions: self.positions.len() });
        }
        if let Some(row) = self.tokens.iter().position(|&token| token as usize >= shape.vocab) {
            return Err(BatchError::Token { row, token: self.tokens[row], vocab: shape.vocab });
        }
        let mut next = 0usize;
        for (index, sequence) in self.sequences.iter().enumerate() {
            let (first, count) = (sequence.first_row as usize, sequence.rows as usize);
            let positions = self.positions.get(first..first + count);
            let Some(positions) = positions.filter(|p| first == next && !p.is_empty()) else {
                return Err(BatchError::Sequence { sequence: index });
            };
            if positions.windows(2).any(|pair| pair[1] != pair[0] + 1) {
                return Err(BatchError::Sequence { sequence: index });
            }
            let last = positions[count - 1] as usize;
            let missing = sequence.blocks.len() * kv.block_tokens <= last;
            if missing || sequence.blocks.iter().any(|&block| block as usize >= kv.blocks) {
                return Err(BatchError::Block { sequence: index });
            }
            next = first + count;
        }
        if next != rows {
            return Err(BatchError::Sequence { sequence: self.sequences.len() });
        }
        let mut taken = vec![false; rows];
        for adapter in &self.adapters {
            let mut before = None;
            for &row in &adapter.rows {
                let free = taken.get_mut(row as usize).filter(|taken| !**taken && before < Some(row));
                *free.ok_or(BatchError::AdapterRow { row })? = true;
                before = Some(row);
            }
        }
        let outside = |&&(from, to): &&(u32, u32)| from.max(to) as usize >= kv.blocks;
        if let Some(&(from, to)) = self.copies.iter().find(outside) {
            return Err(BatchError::Copy { from, to, blocks: kv.blocks });
        }
        match self.asks.iter().find(|ask| ask.row as usize >= rows) {
            Some(ask) => Err(BatchError::Ask { row: ask.row }),
            None => Ok(()),
        }
    }
}
