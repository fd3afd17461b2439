//! The adapters' part of a step's projections: shrunk rows, and their way onto the tiles.

use std::ops::Range;

use super::{adapter::Input, buffers::grown, plan::Plan};
use crate::{
    kernels::{
        isa::Isa,
        lora::{Inputs, RANKS, expand, shrink},
        pool::Pool,
        share::spans,
    },
    model::Projection,
};

/// Rows of one adapter that are shrunk in one piece: they share each number of A that is read.
const ROWS: usize = 32;

/// Parts in which a run of an A is asked for ahead.
const PARTS: usize = 8;

/// Shrunk rows of a step's adapters, for the projections of one input.
#[derive(Default)]
pub struct Deltas {
    /// For each adapter `[⌈rows / ROWS⌉, groups, ≤ ROWS, RANKS]`.
    values: Vec<f32>,
    /// For each adapter, where its numbers begin.
    starts: Vec<usize>,
    pieces: Vec<Piece>,
    /// Where each piece's numbers begin, and the end.
    bounds: Vec<usize>,
    /// Adapters and their runs that are shrunk next.
    ahead: Vec<(usize, usize)>,
}

/// A run of one adapter's ranks, for some of its rows.
struct Piece {
    adapter: usize,
    first: usize,
    rows: usize,
    run: usize,
}

/// Where deltas belong.
#[derive(Clone, Copy)]
pub struct Spot {
    pub layer: usize,
    pub input: Input,
}

impl Deltas {
    /// Each adapter's `A x` for its rows.
    pub fn shrink(&mut self, pool: &mut Pool, isa: Isa, plan: &Plan, spot: Spot, x: &Inputs<'_>) {
        self.lay_out(plan, spot);
        let values = grown(&mut self.values, self.bounds.last().copied().unwrap_or(0));
        let pieces = &self.pieces;
        pool.each(spans(values, &self.bounds), |index, out| {
            let piece = &pieces[index];
            let adapter = &plan.adapters[piece.adapter];
            if let Some(stack) = adapter.weights.stack(spot.layer, spot.input) {
                let rows = &adapter.rows[piece.first..piece.first + piece.rows];
                shrink(isa, &stack.shrink, piece.run, x, rows, out);
            }
        });
    }

    fn lay_out(&mut self, plan: &Plan, spot: Spot) {
        let mut next = 0;
        self.starts.clear();
        self.pieces.clear();
        self.bounds.clear();
        self.bounds.push(0);
        for (index, adapter) in plan.adapters.iter().enumerate() {
            self.starts.push(next);
            let Some(stack) = adapter.weights.stack(spot.layer, spot.input) else { continue };
            for first in (0..adapter.rows.len()).step_by(ROWS) {
                let rows = ROWS.min(adapter.rows.len() - first);
                for run in 0..stack.shrink.runs() {
                    next += stack.shrink.groups_of(run).len() * rows * RANKS;
                    self.pieces.push(Piece { adapter: index, first, rows, run });
                    self.bounds.push(next);
                }
            }
        }
    }

    /// Adds each adapter's delta to its rows of the tiles of `panels`.
    pub fn expand(
        &self,
        isa: Isa,
        plan: &Plan,
        spot: Spot,
        (projection, panels): (Projection, Range<usize>),
        tiles: &mut [f32],
    ) {
        for (adapter, &start) in plan.adapters.iter().zip(&self.starts) {
            let Some(stack) = adapter.weights.stack(spot.layer, spot.input) else { continue };
            let Some(b) = stack.expand(projection) else { continue };
            let mut at = start;
            for rows in adapter.rows.chunks(ROWS) {
                let length = stack.shrink.groups() * rows.len() * RANKS;
                expand(isa, b, panels.clone(), &self.values[at..at + length], rows, tiles);
                at += length;
            }
        }
    }

    /// Asks for every adapter's B of a panel, to be here when its base product is done.
    pub fn fetch(&self, plan: &Plan, spot: Spot, projection: Projection, panel: usize) {
        for adapter in &plan.adapters {
            if let Some(b) = adapter.weights.stack(spot.layer, spot.input).and_then(|stack| stack.expand(projection)) {
                b.fetch(panel);
            }
        }
    }

    /// Names what is shrunk after this phase.
    pub fn look_ahead(&mut self, plan: &Plan, spot: Option<Spot>) {
        self.ahead.clear();
        let Some(spot) = spot else { return };
        for (index, adapter) in plan.adapters.iter().enumerate() {
            let runs = adapter.weights.stack(spot.layer, spot.input).map_or(0, |stack| stack.shrink.runs());
            self.ahead.extend((0..runs).map(|run| (index, run)));
        }
    }

    /// Asks for share `share` of `shares` of what is shrunk next: while the base's products keep the processor busy, the memory has
    /// time for it. The shares go to the threads in the order in which the next phase hands out its work.
    pub fn fetch_ahead(&self, plan: &Plan, spot: Option<Spot>, share: usize, shares: usize) {
        let Some(spot) = spot else { return };
        let parts = self.ahead.len() * PARTS;
        for part in share * parts / shares..(share + 1) * parts / shares {
            let (adapter, run) = self.ahead[part / PARTS];
            if let Some(stack) = plan.adapters[adapter].weights.stack(spot.layer, spot.input) {
                stack.shrink.fetch(run, part % PARTS, PARTS);
            }
        }
    }
}
