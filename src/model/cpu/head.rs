//! Adapters' changes of the output head: onto the logits of their own rows, while those are near.

use std::ops::Range;

use super::{
    Class, Numerics,
    adapter::Stack,
    buffers::{Rows, grown},
    network::Network,
    turn::Turn,
    whole,
};
use crate::{
    kernels::{
        lora::{Inputs, RUN, Shrunk, expand, shrink},
        matmul::{panel_f32, panel_int8},
        pack::{PANEL, Packed},
        pool::Pool,
        share::spans,
    },
    model::{PackError, RowAsk, Site, changes::Change, dora::gains},
};

/// What an adapter does to the head.
pub struct Head {
    /// In the base's place.
    whole: Option<Packed>,
    low: Option<Stack<()>>,
    turn: Option<Turn>,
}

impl Head {
    /// # Errors
    /// [`PackError`] if a matrix cannot be packed, or DoRA scales zeros.
    pub fn pack(class: Class, network: &Network, mut change: Change) -> Result<Self, PackError> {
        let whole = change.whole.take().map(|matrix| whole::pack(class, Site::Head, &matrix)).transpose()?;
        let gain = match (&change.magnitude, &change.low_rank) {
            (Some(magnitude), Some(low)) => {
                let base = whole.as_ref().unwrap_or(&network.head);
                Some(gains(Site::Head, magnitude, low, |output, out| base.row(output, out))?)
            }
            (_, _) => None,
        };
        let turn = Turn::new(&change, network.shape.vocab, None, gain);
        let low = change.low_rank.take().map(|low| Stack::pack(class, vec![((), low)]));
        Ok(Self { whole, low, turn })
    }
}

/// The asks of one turn whose adapters change the head.
pub struct Changed<'a> {
    heads: Vec<Own<'a>>,
    /// Of the turn.
    asks: usize,
    /// For each head its `A x`, `[runs, asks, RUN]`.
    shrunk: Vec<f32>,
}

/// One head, and what is its own.
struct Own<'a> {
    head: &'a Head,
    /// Among the turn's asks, ascending.
    asks: Vec<u32>,
    /// The asks' normed rows, if the head is whole.
    rows: Rows,
    /// Where its shrunk rows are.
    shrunk: Range<usize>,
}

impl<'a> Changed<'a> {
    /// `heads` has one for each row of the batch, or none at all.
    pub fn of(asks: &[RowAsk], heads: &[Option<&'a Head>]) -> Self {
        let mut own: Vec<Own> = Vec::new();
        for (place, ask) in (0u32..).zip(asks) {
            let Some(head) = heads.get(ask.row as usize).copied().flatten() else { continue };
            match own.iter_mut().find(|other| std::ptr::eq(other.head, head)) {
                Some(known) => known.asks.push(place),
                None => own.push(Own { head, asks: vec![place], rows: Rows::default(), shrunk: 0..0 }),
            }
        }
        Self { heads: own, asks: asks.len(), shrunk: Vec::new() }
    }

    /// Whether any of them reads rows quantized.
    pub fn quantizes(&self, class: Class) -> bool {
        self.heads.iter().any(|own| {
            own.head.whole.as_ref().is_some_and(|whole| class.quantizes(whole))
                || own.head.low.as_ref().is_some_and(|low| low.shrink.takes_int8())
        })
    }

    /// Works out what every panel needs of the asks' normed rows `x`.
    pub fn prepare(&mut self, pool: &mut Pool, numerics: Numerics, x: &Rows, quantized: bool) {
        let (mut bounds, mut pieces) = (vec![0], Vec::new());
        let mut next = 0;
        for (index, own) in self.heads.iter_mut().enumerate() {
            if own.head.whole.is_some() {
                own.rows = x.some(&own.asks);
            }
            let start = next;
            if let Some(low) = &own.head.low {
                for run in 0..low.shrink.runs() {
                    next += self.asks * RUN;
                    pieces.push((index, run));
                    bounds.push(next);
                }
            }
            own.shrunk = start..next;
        }
        let x = Inputs { floats: x.floats(), quantized: quantized.then(|| x.quantized()) };
        let heads = &self.heads;
        pool.each(spans(grown(&mut self.shrunk, next), &bounds), |piece, out| {
            let (index, run) = pieces[piece];
            if let Some(low) = &heads[index].head.low {
                shrink(numerics.isa, &low.shrink, run, &x, &heads[index].asks, 0, out);
            }
        });
    }

    /// Changes the asks' logits in the tiles of `panels`, `[panels, asks, PANEL]`.
    pub fn apply(&self, numerics: Numerics, panels: Range<usize>, tiles: &mut [f32]) {
        if panels.is_empty() {
            return;
        }
        let tile = tiles.len() / panels.len();
        for Own { head, asks, rows, shrunk } in &self.heads {
            if let Some(whole) = &head.whole {
                let mut own = vec![0.0; asks.len() * PANEL];
                for (panel, tile) in panels.clone().zip(tiles.chunks_exact_mut(tile)) {
                    product(numerics, whole, panel, rows, &mut own);
                    for (&ask, own) in asks.iter().zip(own.chunks_exact(PANEL)) {
                        tile[ask as usize * PANEL..][..PANEL].copy_from_slice(own);
                    }
                }
            }
            if let Some(b) = head.low.as_ref().and_then(|low| low.expand(())) {
                let shrunk = Shrunk { values: &self.shrunk[shrunk.clone()], rows: self.asks };
                expand(numerics.isa, b, panels.clone(), shrunk, asks, tiles);
            }
            if let Some(turn) = &head.turn {
                turn.apply(panels.clone(), asks, tiles);
            }
        }
    }
}

/// One panel of a matrix for all rows of `x`.
pub fn product(numerics: Numerics, weights: &Packed, panel: usize, x: &Rows, tile: &mut [f32]) {
    match numerics.class.quantizes(weights) {
        true => panel_int8(numerics.isa, weights, panel, &x.quantized(), tile),
        false => panel_f32(numerics.isa, weights, panel, x.floats(), tile),
    }
}
