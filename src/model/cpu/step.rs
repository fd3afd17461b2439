//! One step through the layers, phase by phase. Each phase is shared out among the threads in pieces that write apart.

use super::{
    Numerics,
    adapter::Input,
    buffers::{Buffers, Rows, Tiles, grown, rows_of},
    kv::{KvStore, LayerKv},
    network::{Layer, Linear, Network, PanelsOf},
    plan::Plan,
};
use crate::{
    kernels::{
        activation::silu_times,
        attention::{Queries, Stored, attend, join, partial_len},
        lora::{RANKS, expand, shrink},
        matmul::{panel_f32, panel_int8},
        pack::PANEL,
        pool::Pool,
        quantize::{norm_quantize_row, norm_row, quantize_row},
        rope::rotate,
        share::{cut, spans},
    },
    model::{
        Projection,
        timing::{Clock, Phase},
    },
};

/// Rows below this are not worth a second thread where a phase does little for each.
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

/// Shrunk rows of each adapter of a step, for the projections of one input.
struct Shrunk<'a> {
    /// For each adapter, where its numbers begin; the end at last.
    starts: Vec<usize>,
    values: &'a [f32],
}

impl<T: Stored> Step<'_, T> {
    /// Leaves the last layer's output in the residual; with `keys_only`, only what later steps will read is computed of it.
    pub fn run(&mut self, keys_only: bool) {
        self.embed();
        let layers = self.network.layers.len();
        for (index, layer) in self.network.layers.iter().enumerate() {
            self.norm(&layer.attention_norm, Input::Attention, layer, index > 0);
            self.shrink(index, Input::Attention);
            self.project(index, layer, Input::Attention);
            self.place(layer);
            self.write(index, layer);
            if keys_only && index + 1 == layers {
                return;
            }
            self.attend(index, layer);
            self.shrink(index, Input::Output);
            self.project(index, layer, Input::Output);
            self.norm(&layer.mlp_norm, Input::Feed, layer, true);
            self.shrink(index, Input::Feed);
            self.feed(index, layer);
            self.shrink(index, Input::Down);
            self.project(index, layer, Input::Down);
        }
        self.settle();
    }

    /// How many rows go into one piece of row by row work.
    fn rows_at_once(&self) -> usize {
        self.plan.rows.div_ceil(PIECES * self.pool.threads()).max(FEW_ROWS)
    }

    fn embed(&mut self) {
        let (hidden, tokens, network) = (self.network.shape.hidden, &self.plan.batch.tokens, self.network);
        let at_once = self.rows_at_once();
        let residual = grown(&mut self.buffers.residual, self.plan.rows * hidden);
        self.pool.each(cut(residual, at_once * hidden), |piece, rows| {
            for (row, token) in rows.chunks_exact_mut(hidden).zip(&tokens[piece * at_once..]) {
                network.embed(*token as usize, row);
            }
        });
        self.clock.lap(Phase::Embed);
    }

    /// Adds what the last projection gave, if it is `pending`, to the residual; norms it for the projections of `input`.
    fn norm(&mut self, weight: &[f32], input: Input, layer: &Layer, pending: bool) {
        let (rows, hidden) = (self.plan.rows, self.network.shape.hidden);
        let (eps, isa) = (self.network.shape.norm_eps as f32, self.numerics.isa);
        let quantizes = self.quantizes(layer, input);
        let at_once = self.rows_at_once();
        let Buffers { residual, input, tiles, .. } = &mut *self.buffers;
        let tiles = Tiles { values: tiles, rows };
        let (floats, q, scales, sums) = input.begin(rows, hidden, at_once);
        let residual = cut(&mut residual[..rows * hidden], at_once * hidden);
        self.pool.each((residual, floats, q, scales, sums), |piece, (x, floats, q, scales, sums)| {
            if pending {
                tiles.add_rows(piece * at_once, hidden, x);
            }
            let outs = rows_of((floats, q, scales, sums), hidden);
            for (x, out) in x.chunks_exact(hidden).zip(outs) {
                match quantizes {
                    true => norm_quantize_row(isa, x, weight, eps, out.floats, out.quantized),
                    false => norm_row(isa, x, weight, eps, out.floats),
                }
            }
        });
        self.clock.lap(Phase::Norm);
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

    fn quantizes(&self, layer: &Layer, input: Input) -> bool {
        let mut linears = input.projections().iter().map(|&projection| layer.linear(projection));
        linears.any(|linear| self.numerics.class.quantizes(&linear.weights))
    }

    /// Each adapter's `A x` for its rows.
    fn shrink(&mut self, layer: usize, input: Input) {
        if self.plan.adapters.is_empty() {
            return;
        }
        let mut bounds = vec![0];
        let mut work = Vec::new();
        for adapter in &self.plan.adapters {
            let Some(stack) = adapter.weights.stack(layer, input) else { continue };
            for group in 0..stack.shrink.groups() {
                work.push((adapter.rows, &stack.shrink, group));
                bounds.push(bounds.last().copied().unwrap_or(0) + adapter.rows.len() * RANKS);
            }
        }
        let shrunk = grown(&mut self.buffers.shrunk, bounds.last().copied().unwrap_or(0));
        let (x, isa) = (self.buffers.input.floats(), self.numerics.isa);
        self.pool.each(spans(shrunk, &bounds), |piece, out| {
            let (rows, a, group) = work[piece];
            shrink(isa, a, group, x, rows, out);
        });
        self.clock.lap(Phase::Shrink);
    }

    fn shrunk<'a>(plan: &Plan, shrunk: &'a [f32], layer: usize, input: Input) -> Shrunk<'a> {
        let mut starts = vec![0];
        for adapter in &plan.adapters {
            let groups = adapter.weights.stack(layer, input).map_or(0, |stack| stack.shrink.groups());
            starts.push(starts.last().copied().unwrap_or(0) + groups * adapter.rows.len() * RANKS);
        }
        Shrunk { starts, values: shrunk }
    }

    /// The projections of `input`, base and adapters, one after the other into the tiles.
    fn project(&mut self, index: usize, layer: &Layer, input: Input) {
        let rows = self.plan.rows;
        let panels = PanelsOf::new(layer, input.projections());
        let at_once = panels.count().div_ceil(PIECES * self.pool.threads()).max(1);
        let Buffers { input: x, tiles, shrunk, .. } = &mut *self.buffers;
        let shrunk = Self::shrunk(self.plan, shrunk, index, input);
        let (x, plan, numerics) = (&*x, self.plan, self.numerics);
        let tile = rows * PANEL;
        let tiles = grown(tiles, panels.count() * tile);
        self.pool.each(cut(tiles, at_once * tile), |piece, tiles| {
            for (place, tile) in tiles.chunks_exact_mut(tile).enumerate() {
                let (projection, linear, panel) = panels.find(piece * at_once + place);
                multiply(numerics, linear, panel, x, tile);
                adapt(numerics, plan, &shrunk, (index, input, projection), panel, tile);
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
        let Buffers { input: x, tiles, shrunk, .. } = &mut *self.buffers;
        let shrunk = Self::shrunk(plan, shrunk, index, Input::Feed);
        let tile = rows * PANEL;
        // Gates first, so that they lie as tiles do; what is up lies behind them.
        let tiles = grown(tiles, 2 * panels * tile);
        let (gates, ups) = tiles.split_at_mut(panels * tile);
        let input = &*x;
        self.pool.each((cut(gates, at_once * tile), cut(ups, at_once * tile)), |piece, (gates, ups)| {
            for (place, (gate, up)) in gates.chunks_exact_mut(tile).zip(ups.chunks_exact_mut(tile)).enumerate() {
                let panel = piece * at_once + place;
                for (projection, tile) in [(Projection::Gate, &mut *gate), (Projection::Up, &mut *up)] {
                    multiply(numerics, layer.linear(projection), panel, input, tile);
                    adapt(numerics, plan, &shrunk, (index, Input::Feed, projection), panel, tile);
                }
                silu_times(numerics.isa, gate, up);
            }
        });
        self.clock.lap(Phase::GateUp);
        let quantizes = self.quantizes(layer, Input::Down);
        let at_once = self.rows_at_once();
        let Buffers { input: x, tiles, .. } = &mut *self.buffers;
        let tiles = Tiles { values: tiles, rows };
        self.pool.each(x.begin(rows, ffn, at_once), |piece, (floats, q, scales, sums)| {
            tiles.copy_rows(piece * at_once, 0, ffn, floats);
            if quantizes {
                for out in rows_of((floats, q, scales, sums), ffn) {
                    quantize_row(numerics.isa, out.floats, out.quantized);
                }
            }
        });
        self.clock.lap(Phase::Quantize);
    }

    /// Norms and rotates queries and keys.
    fn place(&mut self, layer: &Layer) {
        let shape = &self.network.shape;
        let (rows, dim, half) = (self.plan.rows, shape.head_dim, shape.head_dim / 2);
        let (heads, kv_heads) = (shape.heads, shape.kv_heads);
        let panels = PanelsOf::new(layer, Input::Attention.projections());
        let first_key = panels.start(Projection::Key);
        let at_once = self.rows_at_once();
        let Buffers { tiles, queries, keys, .. } = &mut *self.buffers;
        let tiles = Tiles { values: tiles, rows };
        let queries = cut(grown(queries, rows * heads * dim), at_once * heads * dim);
        let keys = cut(grown(keys, rows * kv_heads * dim), at_once * kv_heads * dim);
        let (plan, isa, eps) = (self.plan, self.numerics.isa, shape.norm_eps as f32);
        let scale = (dim as f64).powf(-0.5) as f32;
        let finish = |head: &mut [f32], raw: &mut [f32], norm: Option<&Vec<f32>>, row: usize| {
            if let Some(weight) = norm {
                raw.copy_from_slice(head);
                norm_row(isa, raw, weight, eps, head);
            }
            if layer.rotary {
                let turn = row * half..(row + 1) * half;
                rotate(head, &plan.cosines[turn.clone()], &plan.sines[turn]);
            }
        };
        let norms = layer.qk_norm.as_ref();
        self.pool.each((queries, keys), |piece, (queries, keys)| {
            tiles.copy_rows(piece * at_once, 0, heads * dim, queries);
            tiles.copy_rows(piece * at_once, first_key, kv_heads * dim, keys);
            let mut raw = vec![0.0; dim];
            let rows = queries.chunks_exact_mut(heads * dim).zip(keys.chunks_exact_mut(kv_heads * dim));
            for (row, (queries, keys)) in (piece * at_once..).zip(rows) {
                for query in queries.chunks_exact_mut(dim) {
                    finish(query, &mut raw, norms.map(|norms| &norms.0), row);
                    query.iter_mut().for_each(|value| *value *= scale);
                }
                keys.chunks_exact_mut(dim).for_each(|key| finish(key, &mut raw, norms.map(|norms| &norms.1), row));
            }
        });
        self.clock.lap(Phase::Rope);
    }

    /// Stores keys and values, before anything reads them.
    fn write(&mut self, index: usize, layer: &Layer) {
        let shape = &self.network.shape;
        let (rows, dim, kv_heads) = (self.plan.rows, shape.head_dim, shape.kv_heads);
        let panels = PanelsOf::new(layer, Input::Attention.projections());
        let first_value = panels.start(Projection::Value) * PANEL;
        let (layout, head_values) = (self.store.layout, self.store.head_values);
        let LayerKv { keys, values } = self.store.layer_mut(index);
        let (tiles, placed) = (Tiles { values: &self.buffers.tiles, rows }, &self.buffers.keys);
        let batch = self.plan.batch;
        let work = |head: usize, (keys, values): (&mut [T], &mut [T])| {
            let mut value = vec![0.0; dim];
            for sequence in &batch.sequences {
                let first = sequence.first_row as usize;
                for row in first..first + sequence.rows as usize {
                    let key = &placed[(row * kv_heads + head) * dim..][..dim];
                    tiles.copy(row, first_value + head * dim, &mut value);
                    let position = batch.positions[row] as usize;
                    layout.write(&sequence.blocks, position, (key, &value), (&mut *keys, &mut *values));
                }
            }
        };
        let heads = (cut(keys, head_values), cut(values, head_values));
        if rows <= FEW_ROWS {
            self.pool.here(heads, work)
        } else {
            self.pool.each(heads, work)
        }
        self.clock.lap(Phase::WriteKv);
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
        self.pool.each(spans(partials, &window.bounds), |piece, out| {
            let piece = &window.pieces[piece];
            let first = (piece.first_row * heads + piece.kv_head * shared) * dim;
            let queries = Queries { values: &queries[first..], row_stride: heads * dim, rows: piece.rows, shared };
            let stock = store.head(index, piece.kv_head);
            attend(isa, &stock, &plan.reach(piece, layer.window), &queries, out);
        });
        self.clock.lap(Phase::Attention);
        let quantizes = self.quantizes(layer, Input::Output);
        let at_once = self.rows_at_once();
        let Buffers { input, partials, .. } = &mut *self.buffers;
        let (width, length) = (heads * dim, partial_len(dim));
        self.pool.each(input.begin(rows, width, at_once), |piece, (floats, q, scales, sums)| {
            for (row, out) in (piece * at_once..).zip(rows_of((floats, q, scales, sums), width)) {
                for (head, out) in out.floats.chunks_exact_mut(dim).enumerate() {
                    let place = window.place(head / shared, rows, row);
                    let partials = &partials[place.at + head % shared * length..];
                    join(partials, place.parts, place.stride, out);
                }
                if quantizes {
                    quantize_row(isa, out.floats, out.quantized);
                }
            }
        });
        self.clock.lap(Phase::Join);
    }
}

/// One panel of a projection for all rows, with its bias.
pub fn multiply(numerics: Numerics, linear: &Linear, panel: usize, x: &Rows, tile: &mut [f32]) {
    match numerics.class.quantizes(&linear.weights) {
        true => panel_int8(numerics.isa, &linear.weights, panel, &x.quantized(), tile),
        false => panel_f32(numerics.isa, &linear.weights, panel, x.floats(), tile),
    }
    if let Some(bias) = &linear.bias {
        let bias = &bias[panel * PANEL..bias.len().min((panel + 1) * PANEL)];
        for row in tile.chunks_exact_mut(PANEL) {
            row.iter_mut().zip(bias).for_each(|(output, bias)| *output += bias);
        }
    }
}

/// Adds each adapter's delta to its rows of a tile.
fn adapt(
    numerics: Numerics,
    plan: &Plan,
    shrunk: &Shrunk,
    (layer, input, projection): (usize, Input, Projection),
    panel: usize,
    tile: &mut [f32],
) {
    for (adapter, bounds) in plan.adapters.iter().zip(shrunk.starts.windows(2)) {
        let stack = adapter.weights.stack(layer, input);
        if let Some(b) = stack.and_then(|stack| stack.expand(projection)) {
            expand(numerics.isa, b, panel, &shrunk.values[bounds[0]..bounds[1]], adapter.rows, tile);
        }
    }
}
