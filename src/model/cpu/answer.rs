//! Final rows to answers, on all threads.

use super::{
    Numerics,
    buffers::{Rows, Tiles, grown, rows_of},
    head::{Changed, Head, product},
    network::Network,
};
use crate::{
    kernels::{
        pack::PANEL,
        pool::Pool,
        quantize::{norm_quantize_row, norm_row},
        share::cut,
        spread::{PART, Part},
    },
    model::{
        RowAnswer, RowAsk, StepOutput, Want,
        judge::{self, Judged, Scratch},
        timing::{Clock, Phase},
    },
};

/// Asks whose logits are held at once; more are answered in turns.
const AT_ONCE: usize = 64;

/// Rows that are normed in one piece.
const FEW: usize = 4;

const _: () = assert!(PART.is_multiple_of(PANEL), "a part is whole panels");

/// Memory that answers are worked out in, kept from step to step.
#[derive(Default)]
pub struct Answers {
    input: Rows,
    /// `[panels, asks, PANEL]`
    tiles: Vec<f32>,
    /// `[parts, asks]`
    parts: Vec<Option<Part>>,
    desks: Vec<Desk>,
}

/// What one ask is answered on.
#[derive(Default)]
struct Desk {
    scratch: Scratch,
    /// `[vocab]`, where the ask needs them all.
    logits: Vec<f32>,
    parts: Vec<Part>,
    answer: Option<RowAnswer>,
}

/// The end of a step: final norm, head, answers.
pub struct Ending<'s> {
    pub network: &'s Network,
    pub numerics: Numerics,
    /// `[rows]`, or empty if no adapter changes the head.
    pub heads: &'s [Option<&'s Head>],
    pub pool: &'s mut Pool,
    /// `[rows, hidden]`
    pub residual: &'s [f32],
    pub clock: &'s mut Clock,
}

impl Ending<'_> {
    /// Answers each ask, in their order.
    pub fn answer(self, asks: &[RowAsk], memory: &mut Answers, out: &mut StepOutput) {
        let Self { network, numerics, heads, pool, residual, clock } = self;
        let (hidden, vocab) = (network.shape.hidden, network.shape.vocab);
        let (eps, isa) = (network.shape.norm_eps as f32, numerics.isa);
        for asks in asks.chunks(AT_ONCE) {
            let mut changed = (!heads.is_empty()).then(|| Changed::of(asks, heads));
            let quantizes = numerics.class.quantizes(&network.head)
                || changed.as_ref().is_some_and(|changed| changed.quantizes(numerics.class));
            pool.each(memory.input.begin(asks.len(), hidden, FEW), |piece, (floats, q, scales, sums)| {
                for (ask, out) in asks[piece * FEW..].iter().zip(rows_of((floats, q, scales, sums), hidden)) {
                    let x = &residual[ask.row as usize * hidden..][..hidden];
                    match quantizes {
                        true => norm_quantize_row(isa, x, &network.final_norm, eps, out.floats, out.quantized),
                        false => norm_row(isa, x, &network.final_norm, eps, out.floats),
                    }
                }
            });
            clock.lap(Phase::Norm);
            let judged = asks.iter().any(|ask| !matches!(ask.want, Want::Hidden));
            let tile = asks.len() * PANEL;
            let panels = if judged { network.head.panels() } else { 0 };
            let tiles = grown(&mut memory.tiles, panels * tile);
            let parts = grown(&mut memory.parts, panels.div_ceil(PART / PANEL) * asks.len());
            let x = &memory.input;
            if let Some(changed) = changed.as_mut().filter(|_| judged) {
                changed.prepare(pool, numerics, x, quantizes);
            }
            // Each part of fixed length is measured while it is near, by whoever computed it.
            let pieces = (cut(&mut *tiles, PART / PANEL * tile), cut(&mut *parts, asks.len().max(1)));
            pool.each(pieces, |part, (tiles, parts)| {
                let first = part * (PART / PANEL);
                for (panel, tile) in (first..).zip(tiles.chunks_exact_mut(tile)) {
                    product(numerics, &network.head, panel, x, tile);
                }
                if let Some(changed) = &changed {
                    changed.apply(numerics, first..first + tiles.len() / tile, tiles);
                }
                let tiles = Tiles { values: tiles, rows: asks.len() };
                let mut logits = [0.0; PART];
                let logits = &mut logits[..PART.min(vocab - part * PART)];
                for (row, measured) in parts.iter_mut().enumerate() {
                    tiles.copy(row, 0, logits);
                    *measured = Some(Part::of(isa, logits, 0).after(part * PART));
                }
            });
            clock.lap(Phase::Head);
            let tiles = Tiles { values: tiles, rows: asks.len() };
            if memory.desks.len() < asks.len() {
                memory.desks.resize_with(asks.len(), Desk::default);
            }
            let parts = &*parts;
            pool.each(cut(&mut memory.desks[..asks.len()], 1), |place, desks| {
                for desk in desks {
                    let want = &asks[place].want;
                    if matches!(want, Want::Hidden) {
                        let values = x.floats()[place * hidden..(place + 1) * hidden].to_vec();
                        let finite = values.iter().all(|value| value.is_finite());
                        desk.answer = Some(if finite { RowAnswer::Hidden(values) } else { RowAnswer::NotFinite });
                        continue;
                    }
                    desk.parts.clear();
                    desk.parts.extend(parts.chunks_exact(asks.len()).filter_map(|parts| parts[place]));
                    desk.answer = Some(if want.takes_the_best_alone() {
                        judge::best_alone(&desk.parts)
                    } else {
                        let logits = grown(&mut desk.logits, vocab);
                        tiles.copy(place, 0, logits);
                        Judged::measured(logits, &desk.parts).answer(want, &mut desk.scratch)
                    });
                }
            });
            out.answers.extend(memory.desks[..asks.len()].iter_mut().filter_map(|desk| desk.answer.take()));
            clock.lap(Phase::Answer);
        }
    }
}
