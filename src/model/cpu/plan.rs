//! What a batch means for a step, worked out once and used by every layer.

use std::{borrow::Cow, ops::Range};

use super::{
    Class,
    adapter::{CpuAdapter, Input},
    embed::Embedder,
    head::Head,
};
use crate::{
    kernels::attention::{Reach, Slots, partial_len, splits},
    model::{AdapterRows, Batch, BatchError, KvShape, ModelShape, SequenceRows, StepError, rope::Rotary},
    terms::Digest,
};

/// Queries that one piece of attention work takes, at most, unless a single row has more.
const PIECE_QUERIES: usize = 48;

/// A piece with a larger part of all the work than one of so many for each thread is split along its context.
const PIECES_FOR_EACH_THREAD: usize = 8;

/// One step's positions, adapters and attention work.
pub struct Plan<'a> {
    pub batch: &'a Batch,
    pub rows: usize,
    /// `[rows, head_dim / 2]` each.
    pub cosines: Vec<f32>,
    pub sines: Vec<f32>,
    /// Where each row's keys and values are stored.
    pub slots: Slots,
    pub adapters: Vec<RowsOfAdapter<'a>>,
    /// Whether an adapter changes a layer's outputs otherwise than by low ranks.
    pub turned: bool,
    /// `[rows]`, or empty if no adapter changes the embedding.
    pub embedders: Vec<Option<&'a Embedder>>,
    /// `[rows]`, or empty if no adapter changes the head.
    pub heads: Vec<Option<&'a Head>>,
    /// One for each sliding window in the model.
    windows: Vec<(Option<usize>, WindowPlan)>,
}

pub struct RowsOfAdapter<'a> {
    pub weights: &'a CpuAdapter,
    /// In ascending order.
    pub rows: Cow<'a, [u32]>,
}

impl RowsOfAdapter<'_> {
    /// Those among `rows`.
    pub fn rows_of(&self, rows: Range<usize>) -> &[u32] {
        let below = |end: usize| self.rows.partition_point(|&row| (row as usize) < end);
        &self.rows[below(rows.start)..below(rows.end)]
    }

    /// Whether its part at `input` reads quantized rows.
    pub fn quantized(&self, layer: usize, input: Input) -> bool {
        self.weights.stack(layer, input).is_some_and(|stack| stack.shrink.takes_int8())
    }
}

/// The attention work of every layer with one window.
pub struct WindowPlan {
    pub pieces: Vec<Piece>,
    /// Where each piece's partial results begin, and the end.
    pub bounds: Vec<usize>,
    /// `[kv_heads, rows]`
    places: Vec<Place>,
}

/// Some rows of one sequence, for one key head.
pub struct Piece {
    pub sequence: usize,
    pub first_row: usize,
    pub rows: usize,
    pub kv_head: usize,
    pub splits: std::ops::Range<usize>,
}

/// Where a row's partial results for one key head are.
#[derive(Clone, Copy, Default)]
pub struct Place {
    pub at: usize,
    pub parts: usize,
    /// From one part to the next.
    pub stride: usize,
}

impl<'a> Plan<'a> {
    /// For a batch that has been checked.
    ///
    /// # Errors
    /// [`StepError::ForeignAdapter`] if an adapter was packed for another decoder or another base; [`BatchError::Slot`] if two rows
    /// are stored in one place.
    pub fn new(
        batch: &'a Batch,
        (shape, kv): (&ModelShape, KvShape),
        rotary: &Rotary,
        (base, class): (Digest, Class),
        threads: usize,
    ) -> Result<Self, StepError> {
        let used = batch.adapters.iter().filter(|adapter| !adapter.rows.is_empty());
        let adapters = used.map(|AdapterRows { rows, weights }| {
            let fits = |weights: &&CpuAdapter| weights.base == base && weights.class == class;
            let weights = weights.packed::<CpuAdapter>().filter(fits).ok_or(StepError::ForeignAdapter)?;
            let mut rows = Cow::Borrowed(rows.as_slice());
            if !rows.is_sorted() {
                rows.to_mut().sort_unstable();
            }
            Ok(RowsOfAdapter { weights, rows })
        });
        let adapters = adapters.collect::<Result<Vec<_>, StepError>>()?;
        let (cosines, sines) = rotary.at(&batch.positions);
        let slots = Slots::new(places(batch, kv.block_tokens)).ok_or(BatchError::Slot)?;
        let mut windows: Vec<(Option<usize>, WindowPlan)> = Vec::new();
        for &window in &shape.window {
            if !windows.iter().any(|(other, _)| *other == window) {
                windows.push((window, WindowPlan::new(batch, shape, window, threads)));
            }
        }
        let turned = adapters.iter().any(|adapter| adapter.weights.turns());
        let embedders = by_row(&adapters, batch.rows(), |weights| weights.embedder.as_ref());
        let heads = by_row(&adapters, batch.rows(), |weights| weights.head.as_ref());
        Ok(Self { batch, rows: batch.rows(), cosines, sines, slots, adapters, turned, embedders, heads, windows })
    }

    pub fn window(&self, window: Option<usize>) -> &WindowPlan {
        let found = self.windows.iter().find(|(other, _)| *other == window);
        &found.expect("a plan is made for every window of the shape").1
    }

    /// What a piece of work sees.
    pub fn reach(&self, piece: &Piece, window: Option<usize>) -> Reach<'a> {
        Reach {
            blocks: &self.batch.sequences[piece.sequence].blocks,
            first_position: self.batch.positions[piece.first_row] as usize,
            window,
            splits: piece.splits.clone(),
        }
    }

    /// Numbers that partial results take, at most over all windows.
    pub fn partials(&self) -> usize {
        self.windows.iter().filter_map(|(_, plan)| plan.bounds.last().copied()).max().unwrap_or(0)
    }
}

/// What each row's adapter has of a kind; empty if none has any.
fn by_row<'a, T>(
    adapters: &[RowsOfAdapter<'a>],
    rows: usize,
    part: impl Fn(&'a CpuAdapter) -> Option<&'a T>,
) -> Vec<Option<&'a T>> {
    let mut parts: Vec<Option<&'a T>> = Vec::new();
    for RowsOfAdapter { weights, rows: own } in adapters {
        if let Some(part) = part(weights) {
            parts.resize(rows, None);
            own.iter().for_each(|&row| parts[row as usize] = Some(part));
        }
    }
    parts
}

/// Each row's block, and offset in it.
fn places(batch: &Batch, block_tokens: usize) -> Vec<(usize, usize)> {
    let of = |sequence: &SequenceRows| {
        let (first, count) = (sequence.first_row as usize, sequence.rows as usize);
        let positions = batch.positions[first..first + count].iter().map(|&position| position as usize);
        let places = positions.map(|at| (sequence.blocks[at / block_tokens] as usize, at % block_tokens));
        places.collect::<Vec<_>>()
    };
    batch.sequences.iter().flat_map(of).collect()
}

impl WindowPlan {
    fn new(batch: &Batch, shape: &ModelShape, window: Option<usize>, threads: usize) -> Self {
        let shared = shape.heads / shape.kv_heads;
        let at_once = (PIECE_QUERIES / shared).max(1);
        let length = shared * partial_len(shape.head_dim);
        // (sequence, first row, rows, splits that they see) of each chunk of rows; each key head is a piece of its own.
        let chunks = batch.sequences.iter().enumerate().flat_map(|(index, sequence)| {
            let (start, end) = (sequence.first_row as usize, (sequence.first_row + sequence.rows) as usize);
            (start..end).step_by(at_once).map(move |first_row| {
                let rows = at_once.min(end - first_row);
                let position = batch.positions[first_row] as usize;
                (index, first_row, rows, splits(position..position + rows, window))
            })
        });
        let chunks: Vec<_> = chunks.collect();
        let all: usize = chunks.iter().map(|(_, _, rows, seen)| rows * seen.len()).sum();
        let fair = shape.kv_heads * all / (PIECES_FOR_EACH_THREAD * threads);
        let mut plan = Self { pieces: Vec::new(), bounds: vec![0], places: Vec::new() };
        plan.places.resize(shape.kv_heads * batch.rows(), Place::default());
        let mut at = 0;
        for of_sequence in chunks.chunk_by(|one, other| one.0 == other.0) {
            // Head by head: what a thread has read of one's keys and values is near when the next rows need it.
            for kv_head in 0..shape.kv_heads {
                for (sequence, first_row, rows, seen) in of_sequence {
                    let (sequence, first_row, rows) = (*sequence, *first_row, *rows);
                    // A part holds all splits or one; see `attention::join`.
                    let parts = if threads > 1 && rows * seen.len() > fair { seen.len() } else { 1 };
                    let stride = rows * length;
                    for row in 0..rows {
                        plan.places[kv_head * batch.rows() + first_row + row] =
                            Place { at: at + row * length, parts, stride };
                    }
                    for part in 0..parts {
                        let splits = if parts == 1 { seen.clone() } else { seen.start + part..seen.start + part + 1 };
                        plan.pieces.push(Piece { sequence, first_row, rows, kv_head, splits });
                        at += stride;
                        plan.bounds.push(at);
                    }
                }
            }
        }
        plan
    }

    pub fn place(&self, kv_head: usize, rows: usize, row: usize) -> Place {
        self.places[kv_head * rows + row]
    }
}
