//! The adapters' part of a step's projections: shrunk rows, and their way onto the tiles.

use std::ops::Range;

use super::{adapter::Input, buffers::grown, plan::Plan};
use crate::{
    kernels::{
        isa::Isa,
        lora::{Expand, Inputs, RUN, Shrunk, expand, shrink},
        pool::Pool,
        share::{Band, Bands, bands, spans},
    },
    model::Projection,
};

/// Rows that are shrunk in one piece where runs of ranks are shared out.
const ROWS: usize = 32;

/// Runs of ranks that each thread may well read for its own rows, rather than some of the runs for all rows.
const RUNS_FOR_ALL: usize = 8;

/// Parts in which a run of an A is asked for ahead.
const PARTS: usize = 8;

/// Shrunk rows of a step's adapters, for the projections of one input.
#[derive(Default)]
pub struct Deltas {
    /// `[runs, rows, RUN]`
    values: Vec<f32>,
    /// How many of `values` are in use.
    len: usize,
    rows: usize,
    /// Where each piece's numbers begin, and the end, where runs are shared out.
    bounds: Vec<usize>,
    /// Adapters and their runs that are shrunk next.
    ahead: Vec<(usize, usize)>,
}

/// Where deltas belong.
#[derive(Clone, Copy)]
pub struct Spot {
    pub layer: usize,
    pub input: Input,
}

/// How the shrinking at one spot is shared out among the threads. Either way a row's numbers are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// No adapter changes anything there.
    Nothing,
    /// Each thread shrinks the rows that it has just made: no phase of its own, and they are still near.
    Rows,
    /// A phase that shares out the runs of ranks: where there are few rows, or many ranks.
    Runs,
}

impl Spot {
    pub fn sharing(self, plan: &Plan, threads: usize) -> Sharing {
        match self.runs(plan) {
            0 => Sharing::Nothing,
            _ if threads == 1 => Sharing::Rows,
            runs if plan.rows >= 2 * threads && (runs <= RUNS_FOR_ALL || plan.rows >= ROWS * threads) => Sharing::Rows,
            _ => Sharing::Runs,
        }
    }

    /// The most runs of ranks that an adapter has there.
    fn runs(self, plan: &Plan) -> usize {
        let stacks = plan.adapters.iter().filter_map(|adapter| adapter.weights.stack(self.layer, self.input));
        stacks.map(|stack| stack.shrink.runs()).max().unwrap_or(0)
    }
}

impl Deltas {
    /// Room for the shrunk rows of a spot, in pieces of `piece` rows; none where rows are not shared out.
    pub fn begin(&mut self, plan: &Plan, spot: Spot, sharing: Sharing, piece: usize) -> Bands<'_, f32> {
        self.rows = plan.rows;
        self.len = spot.runs(plan) * plan.rows * RUN;
        let values = grown(&mut self.values, self.len);
        let shared = if sharing == Sharing::Rows { self.len } else { 0 };
        bands(&mut values[..shared], plan.rows * RUN, piece * RUN)
    }

    /// Each adapter's `A x` for its rows, as [`Sharing::Runs`]; behind [`Deltas::begin`].
    pub fn shrink(&mut self, pool: &mut Pool, isa: Isa, plan: &Plan, spot: Spot, x: &Inputs<'_>) {
        let pieces = plan.rows.div_ceil(ROWS);
        let start = |piece: usize| (piece / pieces * plan.rows + piece % pieces * ROWS) * RUN;
        self.bounds.clear();
        self.bounds.extend((0..spot.runs(plan) * pieces).map(start));
        self.bounds.push(self.len);
        let values = spans(&mut self.values[..self.len], &self.bounds);
        pool.each(values, |piece, out| {
            let (run, first) = (piece / pieces, piece % pieces * ROWS);
            for adapter in &plan.adapters {
                if let Some(stack) =
                    adapter.weights.stack(spot.layer, spot.input).filter(|stack| run < stack.shrink.runs())
                {
                    let rows = adapter.rows_of(first..first + out.len() / RUN);
                    shrink(isa, &stack.shrink, run, &x.rest(stack.shrink.inputs(), first), rows, first, out);
                }
            }
        });
    }

    /// What adapters add to the projections of a spot.
    pub fn onto<'d>(&'d self, plan: &'d Plan, spot: Spot) -> Onto<'d> {
        let shrunk = Shrunk { values: &self.values[..self.len], rows: self.rows };
        let of = |projection| {
            let stacks =
                plan.adapters.iter().map(|adapter| (adapter.weights.stack(spot.layer, spot.input), &*adapter.rows));
            stacks.filter_map(|(stack, rows)| Some(Site { b: stack?.expand(projection)?, rows })).collect()
        };
        let sites = match plan.adapters.is_empty() {
            true => Vec::new(),
            false => spot.input.projections().iter().map(|&projection| (projection, of(projection))).collect(),
        };
        Onto { shrunk, sites }
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

/// B of every adapter at one spot, with the rows it is for: looked up once for all panels.
pub struct Onto<'d> {
    shrunk: Shrunk<'d>,
    sites: Vec<(Projection, Vec<Site<'d>>)>,
}

/// One adapter's B, and its rows.
struct Site<'d> {
    b: &'d Expand,
    rows: &'d [u32],
}

impl Onto<'_> {
    fn sites(&self, projection: Projection) -> &[Site<'_>] {
        self.sites.iter().find(|(other, _)| *other == projection).map_or(&[], |(_, sites)| sites)
    }

    /// Adds each adapter's delta to its rows of the tiles of `panels`.
    pub fn expand(&self, isa: Isa, projection: Projection, panels: Range<usize>, tiles: &mut [f32]) {
        for Site { b, rows } in self.sites(projection) {
            expand(isa, b, panels.clone(), self.shrunk, rows, tiles);
        }
    }

    /// Asks for share `share` of `shares` of the adapters' B of `panels`, to be here when the base's products are done.
    pub fn fetch(&self, projection: Projection, panels: Range<usize>, (share, shares): (usize, usize)) {
        let sites = self.sites(projection);
        for Site { b, .. } in &sites[share * sites.len() / shares..(share + 1) * sites.len() / shares] {
            b.fetch(panels.clone());
        }
    }
}

/// Each adapter's `A x` for its rows of a piece, `[rows]` of which `x` and `out` are; as [`Sharing::Rows`].
pub fn shrink_rows(isa: Isa, plan: &Plan, spot: Spot, rows: Range<usize>, x: &Inputs<'_>, out: &mut Band<'_, f32>) {
    for adapter in &plan.adapters {
        let listed = adapter.rows_of(rows.clone());
        if listed.is_empty() {
            continue;
        }
        if let Some(stack) = adapter.weights.stack(spot.layer, spot.input) {
            for run in 0..stack.shrink.runs() {
                shrink(isa, &stack.shrink, run, x, listed, rows.start, out.line(run));
            }
        }
    }
}
