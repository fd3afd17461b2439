//! One step through the layers, phase by phase. Each phase is shared out among the threads in pieces that write apart.

use std::ops::Range;

use super::{
    Numerics,
    adapter::Input,
    buffers::{Buffers, Rows, Tiles, grown, rows_of},
    delta::{Sharing, Spot, shrink_rows},
    head::product,
    kv::KvStore,
    network::{Layer, Linear, Network, PanelsOf},
    plan::Plan,
};
use crate::{
    kernels::{
        activation::silu_times,
        attention::{Ahead, Queries, Stored, attend, join, partial_len},
        lora::Inputs,
        pack::PANEL,
        pool::Pool,
        quantize::{BlockSum, QuantizedRows, norm_quantize_row, norm_row, quantize_row},
        rope::rotate,
        share::{cut, spans},
    },
    model::{
        Projection,
        timing::{Clock, Phase},
    },
};

/// Fewer rows than this are not worth a second thread where a phase does little for each.
const FEW_ROWS: usize = 4;

/// Pieces for each thread: a thread that lost its core holds up the others by one of them.
const PIECES: usize = 8;

/// One step on its way.
pub struct Step<'s, T> {
    pub network: &'s Network,
    pub numerics: Numerics,
    pub plan: &'s Plan<'s>,
    pub pool: &'s mut Pool,
    pub store: &'s mut KvStore<T>,
    pub buffers: &'s mut Buffers,
    pub clock: &'s mut Clock,
}

impl<T: Stored> Step<'_, T> {
    /// Leaves the last layer's output in the residual; with `keys_only`, only what later steps will read is computed of it.
    pub fn run(&mut self, keys_only: bool) {
        self.embed();
        let layers = self.network.layers.len();
        for (index, layer) in self.network.layers.iter().enumerate() {
            self.norm(&layer.attention_norm, Input::Attention, (index, layer), index > 0);
            self.project(index, layer, Input::Attention);
            self.place(index, layer);
            if keys_only && index + 1 == layers {
                return;
            }
            self.attend(index, layer);
            self.project(index, layer, Input::Output);
            self.norm(&layer.mlp_norm, Input::Feed, (index, layer), true);
            self.feed(index, layer);
            self.project(index, layer, Input::Down);
        }
        self.settle();
    }

    /// How many rows go into one piece of row by row work: as many pieces for each thread, as far as that goes.
    fn rows_at_once(&self) -> usize {
        let (rows, threads) = (self.plan.rows, self.pool.threads());
        if rows <= FEW_ROWS {
            return FEW_ROWS;
        }
        rows.div_ceil(threads * rows.div_ceil(threads * FEW_ROWS).min(PIECES))
    }

    fn embed(&mut self) {
        let (hidden, tokens, network) = (self.network.shape.hidden, &self.plan.batch.tokens, self.network);
        let embedders = &self.plan.embedders;
        let at_once = self.rows_at_once();
        let residual = grown(&mut self.buffers.residual, self.plan.rows * hidden);
        self.pool.each(cut(residual, at_once * hidden), |piece, rows| {
            for (index, out) in (piece * at_once..).zip(rows.chunks_exact_mut(hidden)) {
                let token = tokens[index] as usize;
                match embedders.get(index).copied().flatten() {
                    Some(embedder) => embedder.embed(network, token, out),
                    None => network.embed(token, out),
                }
            }
        });
        self.clock.lap(Phase::Embed);
    }

    /// Adds what the last projection gave, if it is `pending`, to the residual; norms it for the projections of `input`.
    fn norm(&mut self, weight: &[f32], input: Input, (index, layer): (usize, &Layer), pending: bool) {
        let (rows, hidden) = (self.plan.rows, self.network.shape.hidden);
        let (eps, isa) = (self.network.shape.norm_eps as f32, self.numerics.isa);
        let quantizes = self.quantizes(index, layer, input);
        let at_once = self.rows_at_once();
        let (spot, plan) = (Spot { layer: index, input }, self.plan);
        let sharing = spot.sharing(plan, self.pool.threads());
        let Buffers { residual, input, tiles, deltas, .. } = &mut *self.buffers;
        let tiles = Tiles { values: tiles, rows };
        let (floats, q, scales, sums) = input.begin(rows, hidden, at_once);
        let residual = cut(&mut residual[..rows * hidden], at_once * hidden);
        let shrunk = deltas.begin(plan, spot, sharing, at_once);
        self.pool.each(
            (residual, floats, q, scales, sums, shrunk),
            |piece, (x, floats, q, scales, sums, mut shrunk)| {
                if pending {
                    tiles.add_rows(piece * at_once, hidden, x);
                }
                let outs = rows_of((&mut *floats, &mut *q, &mut *scales, &mut *sums), hidden);
                for (x, out) in x.chunks_exact(hidden).zip(outs) {
                    match quantizes {
                        true => norm_quantize_row(isa, x, weight, eps, out.floats, out.quantized),
                        false => norm_row(isa, x, weight, eps, out.floats),
                    }
                }
                if sharing == Sharing::Rows {
                    let x = made((floats, q, scales, sums), hidden, quantizes);
                    shrink_rows(
                        isa,
                        plan,
                        spot,
                        piece * at_once..piece * at_once + x.floats.len() / hidden,
                        &x,
                        &mut shrunk,
                    );
                }
            },
        );
        self.clock.lap(Phase::Norm);
        self.shrink(spot, sharing, quantizes);
    }

    /// Adds what the last projection gave to the residual.
    fn settle(&mut self) {
        let (rows, hidden) = (self.plan.rows, self.network.shape.hidden);
        let at_once = self.rows_at_once();
        let Buffers { residual, tiles, .. } = &mut *self.buffers;
        let tiles = Tiles { values: tiles, rows };
        self.pool.each(cut(&mut residual[..rows * hidden], at_once * hidden), |piece, x| {
            tiles.add_rows(piece * at_once, hidden, x);
        });
        self.clock.lap(Phase::Norm);
    }

    /// Whether a projection or an adapter reads rows of `input` quantized.
    fn quantizes(&self, index: usize, layer: &Layer, input: Input) -> bool {
        let mut linears = input.projections().iter().map(|&projection| layer.linear(projection));
        linears.any(|linear| self.numerics.class.quantizes(&linear.weights))
            || self.plan.adapters.iter().any(|adapter| adapter.quantized(index, input))
    }

    /// Each adapter's `A x` for its rows, where that has not been done with them.
    fn shrink(&mut self, spot: Spot, sharing: Sharing, quantized: bool) {
        if sharing != Sharing::Runs {
            return;
        }
        let Buffers { input: x, deltas, .. } = &mut *self.buffers;
        let x = Inputs { floats: x.floats(), quantized: quantized.then(|| x.quantized()) };
        deltas.shrink(self.pool, self.numerics.isa, self.plan, spot, &x);
        self.clock.lap(Phase::Shrink);
    }

    /// Where the next shrink reads, after the projections of `input`.
    fn after(&self, layer: usize, input: Input) -> Option<Spot> {
        let (layer, input) = match input {
            Input::Attention => (layer, Input::Output),
            Input::Output => (layer, Input::Feed),
            Input::Feed => (layer, Input::Down),
            Input::Down => (layer + 1, Input::Attention),
        };
        (layer < self.network.layers.len()).then_some(Spot { layer, input })
    }

    /// The projections of `input`, base and adapters, one after the other into the tiles.
    fn project(&mut self, index: usize, layer: &Layer, input: Input) {
        let rows = self.plan.rows;
        let panels = PanelsOf::new(layer, input.projections());
        let count = panels.count();
        let at_once = count.div_ceil(PIECES * self.pool.threads()).max(1);
        let (spot, next) = (Spot { layer: index, input }, self.after(index, input));
        let Buffers { input: x, tiles, deltas, .. } = &mut *self.buffers;
        deltas.look_ahead(self.plan, next);
        let (x, deltas, plan, numerics) = (&*x, &*deltas, self.plan, self.numerics);
        let onto = deltas.onto(plan, spot);
        let tile = rows * PANEL;
        let tiles = grown(tiles, count * tile);
        self.pool.each(cut(tiles, at_once * tile), |piece, tiles| {
            let (mut place, mut rest) = (piece * at_once, tiles);
            while !rest.is_empty() {
                let (projection, linear, panel) = panels.find(place);
                let here = (linear.weights.panels() - panel).min(rest.len() / tile);
                let (tiles, after) = rest.split_at_mut(here * tile);
                for (number, tile) in tiles.chunks_exact_mut(tile).enumerate() {
                    onto.fetch(projection, panel..panel + here, (number, here));
                    deltas.fetch_ahead(plan, next, place + number, count);
                    multiply(numerics, linear, panel + number, x, tile);
                }
                onto.expand(numerics.isa, projection, panel..panel + here, tiles);
                turn(plan, index, (projection, panel..panel + here), tiles);
                (place, rest) = (place + here, after);
            }
        });
        self.clock.lap(match input {
            Input::Attention => Phase::Qkv,
            Input::Output => Phase::Output,
            Input::Feed => Phase::GateUp,
            Input::Down => Phase::Down,
        });
    }

    /// Gate and up, panel beside panel, and `silu(gate) ⊙ up` as the rows that `down` reads.
    fn feed(&mut self, index: usize, layer: &Layer) {
        let (rows, ffn, numerics, plan) = (self.plan.rows, self.network.shape.ffn, self.numerics, self.plan);
        let panels = ffn.div_ceil(PANEL);
        let at_once = panels.div_ceil(PIECES * self.pool.threads()).max(1);
        let (spot, next) = (Spot { layer: index, input: Input::Feed }, self.after(index, Input::Feed));
        let Buffers { input: x, tiles, deltas, .. } = &mut *self.buffers;
        deltas.look_ahead(plan, next);
        let (input, deltas) = (&*x, &*deltas);
        let onto = deltas.onto(plan, spot);
        let tile = rows * PANEL;
        // Gates first, so that they lie as tiles do; what is up lies behind them.
        let tiles = grown(tiles, 2 * panels * tile);
        let (gates, ups) = tiles.split_at_mut(panels * tile);
        self.pool.each((cut(gates, at_once * tile), cut(ups, at_once * tile)), |piece, (gates, ups)| {
            let first = piece * at_once;
            let here = gates.len() / tile;
            let outputs = gates.chunks_exact_mut(tile).zip(ups.chunks_exact_mut(tile));
            for (number, (gate, up)) in outputs.enumerate() {
                deltas.fetch_ahead(plan, next, first + number, panels);
                for (projection, tile) in [(Projection::Gate, gate), (Projection::Up, up)] {
                    onto.fetch(projection, first..first + here, (number, here));
                    multiply(numerics, layer.linear(projection), first + number, input, tile);
                }
            }
            let here = first..first + here;
            for (projection, tiles) in [(Projection::Gate, &mut *gates), (Projection::Up, &mut *ups)] {
                onto.expand(numerics.isa, projection, here.clone(), tiles);
                turn(plan, index, (projection, here.clone()), tiles);
            }
            silu_times(numerics.isa, gates, ups);
        });
        self.clock.lap(Phase::GateUp);
        let quantizes = self.quantizes(index, layer, Input::Down);
        let at_once = self.rows_at_once();
        let spot = Spot { layer: index, input: Input::Down };
        let sharing = spot.sharing(plan, self.pool.threads());
        let Buffers { input: x, tiles, deltas, .. } = &mut *self.buffers;
        let tiles = Tiles { values: tiles, rows };
        let (floats, q, scales, sums) = x.begin(rows, ffn, at_once);
        let shrunk = deltas.begin(plan, spot, sharing, at_once);
        self.pool.each((floats, q, scales, sums, shrunk), |piece, (floats, q, scales, sums, mut shrunk)| {
            tiles.copy_rows(piece * at_once, 0, ffn, floats);
            if quantizes {
                for out in rows_of((&mut *floats, &mut *q, &mut *scales, &mut *sums), ffn) {
                    quantize_row(numerics.isa, out.floats, out.quantized);
                }
            }
            if sharing == Sharing::Rows {
                let x = made((floats, q, scales, sums), ffn, quantizes);
                let rows = piece * at_once..piece * at_once + x.floats.len() / ffn;
                shrink_rows(numerics.isa, plan, spot, rows, &x, &mut shrunk);
            }
        });
        self.clock.lap(Phase::Quantize);
        self.shrink(spot, sharing, quantizes);
    }

    /// Norms and rotates queries and keys; stores keys and values, before anything reads them.
    fn place(&mut self, index: usize, layer: &Layer) {
        let shape = &self.network.shape;
        let (rows, dim, half) = (self.plan.rows, shape.head_dim, shape.head_dim / 2);
        let (heads, kv_heads) = (shape.heads, shape.kv_heads);
        let panels = PanelsOf::new(layer, Input::Attention.projections());
        let (first_key, first_value) = (panels.start(Projection::Key), panels.start(Projection::Value));
        let at_once = self.rows_at_once();
        let Buffers { tiles, queries, keys, values, .. } = &mut *self.buffers;
        let tiles = Tiles { values: tiles, rows };
        let queries = cut(grown(queries, rows * heads * dim), at_once * heads * dim);
        let keys = cut(grown(keys, rows * kv_heads * dim), at_once * kv_heads * dim);
        let values = cut(grown(values, rows * kv_heads * dim), at_once * kv_heads * dim);
        let (plan, isa, eps) = (self.plan, self.numerics.isa, shape.norm_eps as f32);
        let stored = self.store.rows(&plan.slots, at_once);
        let scale = (dim as f64).powf(-0.5) as f32;
        let finish = |head: &mut [f32], raw: &mut Vec<f32>, norm: Option<&Vec<f32>>, row: usize| {
            if let Some(weight) = norm {
                raw.clear();
                raw.extend_from_slice(head);
                norm_row(isa, raw, weight, eps, head);
            }
            if layer.rotary {
                let turn = row * half..(row + 1) * half;
                rotate(head, &plan.cosines[turn.clone()], &plan.sines[turn]);
            }
        };
        let norms = layer.qk_norm.as_ref();
        self.pool.each((queries, keys, values, stored), |piece, (queries, keys, values, mut stored)| {
            for row in 0..keys.len() / (kv_heads * dim) {
                (0..kv_heads).for_each(|head| stored.fetch(row, index * kv_heads + head));
            }
            tiles.copy_rows(piece * at_once, 0, heads * dim, queries);
            tiles.copy_rows(piece * at_once, first_key, kv_heads * dim, keys);
            tiles.copy_rows(piece * at_once, first_value, kv_heads * dim, values);
            let mut raw = Vec::new();
            let keys = keys.chunks_exact_mut(kv_heads * dim).zip(values.chunks_exact(kv_heads * dim));
            for (place, (queries, (keys, values))) in queries.chunks_exact_mut(heads * dim).zip(keys).enumerate() {
                let row = piece * at_once + place;
                for query in queries.chunks_exact_mut(dim) {
                    finish(query, &mut raw, norms.map(|norms| &norms.0), row);
                    query.iter_mut().for_each(|value| *value *= scale);
                }
                for (head, (key, value)) in keys.chunks_exact_mut(dim).zip(values.chunks_exact(dim)).enumerate() {
                    finish(key, &mut raw, norms.map(|norms| &norms.1), row);
                    stored.write(place, index * kv_heads + head, key, value);
                }
            }
        });
        self.clock.lap(Phase::Place);
    }

    /// Attention, and its rows as the output projection reads them.
    fn attend(&mut self, index: usize, layer: &Layer) {
        let shape = &self.network.shape;
        let (rows, dim, heads) = (self.plan.rows, shape.head_dim, shape.heads);
        let shared = heads / shape.kv_heads;
        let (plan, store, isa) = (self.plan, &*self.store, self.numerics.isa);
        let window = plan.window(layer.window);
        let Buffers { queries, partials, .. } = &mut *self.buffers;
        let partials = grown(partials, plan.partials());
        let queries = &*queries;
        self.pool.each(spans(partials, &window.bounds), |number, out| {
            let piece = &window.pieces[number];
            let first = (piece.first_row * heads + piece.kv_head * shared) * dim;
            let queries = Queries { values: &queries[first..], row_stride: heads * dim, rows: piece.rows, shared };
            let stock = store.head(index, piece.kv_head);
            // A thread takes pieces in order, mostly.
            let ahead = window.pieces.get(number + 1).map(|next| Ahead {
                stock: store.head(index, next.kv_head),
                blocks: plan.reach(next, layer.window).blocks,
                splits: next.splits.clone(),
            });
            attend(isa, &stock, &plan.reach(piece, layer.window), &queries, ahead.as_ref(), out);
        });
        self.clock.lap(Phase::Attention);
        let quantizes = self.quantizes(index, layer, Input::Output);
        let at_once = self.rows_at_once();
        let spot = Spot { layer: index, input: Input::Output };
        let sharing = spot.sharing(plan, self.pool.threads());
        let Buffers { input, partials, deltas, .. } = &mut *self.buffers;
        let (width, length) = (heads * dim, partial_len(dim));
        let (floats, q, scales, sums) = input.begin(rows, width, at_once);
        let shrunk = deltas.begin(plan, spot, sharing, at_once);
        self.pool.each((floats, q, scales, sums, shrunk), |piece, (floats, q, scales, sums, mut shrunk)| {
            let outs = rows_of((&mut *floats, &mut *q, &mut *scales, &mut *sums), width);
            for (row, out) in (piece * at_once..).zip(outs) {
                for (head, out) in out.floats.chunks_exact_mut(dim).enumerate() {
                    let place = window.place(head / shared, rows, row);
                    let partials = &partials[place.at + head % shared * length..];
                    join(isa, partials, place.parts, place.stride, out);
                }
                if quantizes {
                    quantize_row(isa, out.floats, out.quantized);
                }
            }
            if sharing == Sharing::Rows {
                let x = made((floats, q, scales, sums), width, quantizes);
                let rows = piece * at_once..piece * at_once + x.floats.len() / width;
                shrink_rows(isa, plan, spot, rows, &x, &mut shrunk);
            }
        });
        self.clock.lap(Phase::Join);
        self.shrink(spot, sharing, quantizes);
    }
}

/// A piece's rows of `width`, as they have just been made.
fn made<'p>(
    (floats, q, scales, sums): (&'p mut [f32], &'p mut [i8], &'p mut [f32], &'p mut [BlockSum]),
    width: usize,
    quantized: bool,
) -> Inputs<'p> {
    Inputs { floats, quantized: quantized.then_some(QuantizedRows { inputs: width, q, scales, sums }) }
}

/// What adapters do to the finished outputs of their rows, in the tiles of `panels`.
fn turn(plan: &Plan, layer: usize, (projection, panels): (Projection, Range<usize>), tiles: &mut [f32]) {
    if !plan.turned {
        return;
    }
    for adapter in &plan.adapters {
        if let Some(turn) = adapter.weights.turn(layer, projection) {
            turn.apply(panels.clone(), &adapter.rows, tiles);
        }
    }
}

/// One panel of a projection for all rows, with its bias.
pub fn multiply(numerics: Numerics, linear: &Linear, panel: usize, x: &Rows, tile: &mut [f32]) {
    product(numerics, &linear.weights, panel, x, tile);
    if let Some(bias) = &linear.bias {
        let bias = &bias[panel * PANEL..bias.len().min((panel + 1) * PANEL)];
        for row in tile.chunks_exact_mut(PANEL) {
            row.iter_mut().zip(bias).for_each(|(output, bias)| *output += bias);
        }
    }
}
