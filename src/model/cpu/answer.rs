//! Final rows to answers, on all threads.

use super::{
    Numerics,
    buffers::{Rows, Tiles, grown, rows_of},
    network::Network,
};
use crate::{
    kernels::{
        matmul::{panel_f32, panel_int8},
        pack::PANEL,
        pool::Pool,
        quantize::{norm_quantize_row, norm_row},
        share::{cut, spans},
        spread::{PART, Part},
    },
    model::{
        RowAnswer, RowAsk, StepOutput, Want,
        judge::{Judged, Scratch},
        timing::{Clock, Phase},
    },
};

/// Asks whose logits are held at once; more are answered in turns.
const AT_ONCE: usize = 64;

/// Rows that are normed in one piece.
const FEW: usize = 4;

/// Pieces of the head for each thread.
const PIECES: usize = 16;

/// Memory that answers are worked out in, kept from step to step.
#[derive(Default)]
pub struct Answers {
    input: Rows,
    /// `[panels, asks, PANEL]`
    tiles: Vec<f32>,
    /// `[asks, vocab]`
    logits: Vec<f32>,
    /// `[asks, parts]`
    parts: Vec<Option<Part>>,
    desks: Vec<Desk>,
}

/// What one ask is answered on.
#[derive(Default)]
struct Desk {
    scratch: Scratch,
    answer: Option<RowAnswer>,
}

/// The end of a step: final norm, head, answers.
pub struct Ending<'s> {
    pub network: &'s Network,
    pub numerics: Numerics,
    pub pool: &'s mut Pool,
    /// `[rows, hidden]`
    pub residual: &'s [f32],
    pub clock: &'s mut Clock,
}

impl Ending<'_> {
    /// Answers each ask, in their order.
    pub fn answer(self, asks: &[RowAsk], memory: &mut Answers, out: &mut StepOutput) {
        let Self { network, numerics, pool, residual, clock } = self;
        let (hidden, vocab) = (network.shape.hidden, network.shape.vocab);
        let (eps, isa) = (network.shape.norm_eps as f32, numerics.isa);
        let quantizes = numerics.class.quantizes(&network.head);
        for asks in asks.chunks(AT_ONCE) {
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
            let at_once = panels.div_ceil(PIECES * pool.threads()).max(1);
            let x = &memory.input;
            pool.each(cut(&mut *tiles, at_once * tile), |piece, tiles| {
                for (place, tile) in tiles.chunks_exact_mut(tile).enumerate() {
                    let panel = piece * at_once + place;
                    match quantizes {
                        true => panel_int8(isa, &network.head, panel, &x.quantized(), tile),
                        false => panel_f32(isa, &network.head, panel, x.floats(), tile),
                    }
                }
            });
            clock.lap(Phase::Head);
            let tiles = Tiles { values: tiles, rows: asks.len() };
            // Every row in parts of fixed length, brought together and measured by whoever comes first.
            let (rows, count) = (if judged { asks.len() } else { 0 }, Part::count(vocab));
            let logits = grown(&mut memory.logits, rows * vocab);
            let bounds: Vec<usize> = (0..rows * count)
                .map(|part| part / count * vocab + part % count * PART)
                .chain([rows * vocab])
                .collect();
            let parts = grown(&mut memory.parts, rows * count);
            pool.each((spans(&mut *logits, &bounds), cut(&mut *parts, 1)), |piece, (logits, parts)| {
                let (row, part) = (piece / count, piece % count);
                if !matches!(asks[row].want, Want::Hidden) {
                    tiles.copy(row, part * PART, logits);
                    parts[0] = Some(Part::of(isa, logits, 0).after(part * PART));
                }
            });
            if memory.desks.len() < asks.len() {
                memory.desks.resize_with(asks.len(), Desk::default);
            }
            let (logits, parts) = (&*logits, &*parts);
            pool.each(cut(&mut memory.desks[..asks.len()], 1), |place, desks| {
                for desk in desks {
                    let want = &asks[place].want;
                    desk.answer = Some(match want {
                        Want::Hidden => {
                            let values = x.floats()[place * hidden..(place + 1) * hidden].to_vec();
                            let finite = values.iter().all(|value| value.is_finite());
                            if finite { RowAnswer::Hidden(values) } else { RowAnswer::NotFinite }
                        }
                        Want::Sample(_) | Want::Score { .. } | Want::Logits => {
                            let parts: Vec<Part> =
                                parts[place * count..(place + 1) * count].iter().copied().flatten().collect();
                            let logits = &logits[place * vocab..(place + 1) * vocab];
                            Judged::measured(logits, &parts).answer(want, &mut desk.scratch)
                        }
                    });
                }
            });
            out.answers.extend(memory.desks[..asks.len()].iter_mut().filter_map(|desk| desk.answer.take()));
            clock.lap(Phase::Answer);
        }
    }
}
