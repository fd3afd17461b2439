//! What a batch means in tensors, worked out once for each step and used by every layer.

use candle_core::{DType, Device, Result, Tensor};

use super::{ops, paged::Tables};
use crate::model::{Batch, KvShape, ModelShape, SequenceRows, rope::Rotary};

/// Attention scores computed at once, at most: a quarter of a gigabyte in `f32`. Longer chunks are taken in pieces.
const MAX_SCORES: usize = 1 << 26;

/// One step's indices, masks and rotations on the device.
pub struct Plan {
    /// `[rows]`
    pub tokens: Tensor,
    /// `[rows, head_dim / 2]` each
    pub rotation: (Tensor, Tensor),
    /// `[rows, kv_heads · head_dim]`: the slot that each row's key and value go to.
    pub slots: Tensor,
    /// If attention reads keys and values in place; then there are no `windows`.
    pub paged: Option<Tables>,
    /// One for each sliding window in the model.
    windows: Vec<(Option<usize>, WindowPlan)>,
}

/// The rows in groups that attend together.
pub struct WindowPlan {
    pub groups: Vec<Group>,
    /// `[rows]`: where each row stands in the groups' outputs, one group after the other; `None` if in order.
    pub restore: Option<Tensor>,
}

/// Pieces of sequences with equally many rows and contexts of similar length.
pub struct Group {
    pub pieces: usize,
    /// Rows of each piece.
    pub rows: usize,
    /// Keys of each piece, padded to the longest.
    pub keys: usize,
    /// `[pieces · rows]` batch rows; `None` if they are all rows in order.
    pub select: Option<Tensor>,
    /// `[pieces · kv_heads · keys]` places in the KV pools.
    pub places: Tensor,
    /// `[pieces, 1, rows, keys]` of 0 and -∞; `None` if every row sees every key.
    pub mask: Option<Tensor>,
}

/// Some consecutive rows of one sequence and the keys that they may see.
struct Piece<'a> {
    first_row: usize,
    rows: usize,
    first_position: usize,
    first_key: usize,
    keys: usize,
    sequence: &'a SequenceRows,
}

impl Plan {
    /// For a batch that has been checked. `paged` is whether attention reads keys and values where they lie.
    pub fn new(
        batch: &Batch,
        shape: &ModelShape,
        kv: KvShape,
        rotary: &Rotary,
        dtype: DType,
        device: &Device,
        paged: bool,
    ) -> Result<Self> {
        let rows = batch.rows();
        let tokens = ops::upload(&batch.tokens, rows, device)?;
        let (cosines, sines) = rotary.at(&batch.positions);
        let table = |values: Vec<f32>| ops::cast(&ops::upload(&values, (rows, shape.head_dim / 2), device)?, dtype);
        let width = shape.kv_heads * shape.head_dim;
        let slots: Vec<u32> = batch
            .sequences
            .iter()
            .flat_map(|sequence| {
                let first = sequence.first_row as usize;
                batch.positions[first..first + sequence.rows as usize]
                    .iter()
                    .map(|&position| slot(sequence, position as usize, kv) as u32)
            })
            .collect();
        let slots = ops::contiguous(&ops::upload(&slots, (rows, 1), device)?.broadcast_as((rows, width))?)?;
        let mut windows: Vec<(Option<usize>, WindowPlan)> = Vec::new();
        for &window in shape.window.iter().filter(|_| !paged) {
            if !windows.iter().any(|(other, _)| *other == window) {
                windows.push((window, WindowPlan::new(batch, shape, kv, window, device)?));
            }
        }
        let paged = paged.then(|| Tables::new(batch, kv, device)).transpose()?;
        Ok(Self { tokens, rotation: (table(cosines)?, table(sines)?), slots, paged, windows })
    }

    pub fn window(&self, window: Option<usize>) -> &WindowPlan {
        let found = self.windows.iter().find(|(other, _)| *other == window);
        &found.expect("a plan is made for every window of the shape").1
    }
}

/// Where a position of a sequence is stored.
fn slot(sequence: &SequenceRows, position: usize, kv: KvShape) -> usize {
    sequence.blocks[position / kv.block_tokens] as usize * kv.block_tokens + position % kv.block_tokens
}

impl WindowPlan {
    fn new(batch: &Batch, shape: &ModelShape, kv: KvShape, window: Option<usize>, device: &Device) -> Result<Self> {
        let mut pieces: Vec<Piece> = batch.sequences.iter().flat_map(|s| pieces(batch, shape, window, s)).collect();
        pieces.sort_by_key(|piece| (piece.rows, piece.keys, piece.first_row));
        let mut groups = Vec::new();
        let mut order: Vec<u32> = Vec::with_capacity(batch.rows());
        let mut rest = pieces.as_slice();
        while let Some(first) = rest.first() {
            let fits = |(index, piece): (usize, &Piece)| {
                let scores = (index + 1) * shape.heads * piece.rows * piece.keys;
                // Padding to twice the shortest costs less than another round of small products.
                piece.rows == first.rows && piece.keys <= 2 * first.keys + 64 && scores <= MAX_SCORES
            };
            let count = 1 + rest.iter().enumerate().skip(1).take_while(|pair| fits(*pair)).count();
            let (members, others) = rest.split_at(count);
            order.extend(members.iter().flat_map(|p| p.first_row as u32..(p.first_row + p.rows) as u32));
            groups.push((members, order.len()));
            rest = others;
        }
        let in_order = order.iter().enumerate().all(|(place, row)| place as u32 == *row);
        let mut start = 0;
        let groups = groups
            .into_iter()
            .map(|(members, end)| {
                let whole = in_order && end - start == batch.rows();
                let select = if whole { None } else { Some(ops::upload(&order[start..end], end - start, device)?) };
                start = end;
                Group::new(members, select, shape, kv, window, device)
            })
            .collect::<Result<_>>()?;
        let restore = if in_order {
            None
        } else {
            let mut places = vec![0u32; order.len()];
            order.iter().enumerate().for_each(|(place, row)| places[*row as usize] = place as u32);
            Some(ops::upload(&places, places.len(), device)?)
        };
        Ok(Self { groups, restore })
    }
}

/// A sequence's rows, cut so that no piece has too many scores.
fn pieces<'a>(batch: &Batch, shape: &ModelShape, window: Option<usize>, sequence: &'a SequenceRows) -> Vec<Piece<'a>> {
    let (first_row, rows) = (sequence.first_row as usize, sequence.rows as usize);
    let first_position = batch.positions[first_row] as usize;
    let longest = (MAX_SCORES / (shape.heads * (first_position + rows))).max(1);
    (0..rows)
        .step_by(longest)
        .map(|offset| {
            let rows = longest.min(rows - offset);
            let first_position = first_position + offset;
            let first_key = window.map_or(0, |window| (first_position + 1).saturating_sub(window));
            let keys = first_position + rows - first_key;
            Piece { first_row: first_row + offset, rows, first_position, first_key, keys, sequence }
        })
        .collect()
}

impl Group {
    fn new(
        pieces: &[Piece],
        select: Option<Tensor>,
        shape: &ModelShape,
        kv: KvShape,
        window: Option<usize>,
        device: &Device,
    ) -> Result<Self> {
        let rows = pieces[0].rows;
        let keys = pieces.iter().map(|piece| piece.keys).max().unwrap_or(0);
        let mut slots = Vec::with_capacity(pieces.len() * keys);
        for piece in pieces {
            // Padding points at the piece's own last key: another sequence's value, were it not a number, must not reach
            // this one even through a weight of zero.
            let own = |key: usize| slot(piece.sequence, piece.first_key + key.min(piece.keys - 1), kv) as u32;
            slots.extend((0..keys).map(own));
        }
        // `slot · kv_heads + head`, worked out on the device so that heads are not uploaded one by one.
        let slots = ops::affine(&ops::upload(&slots, (pieces.len(), 1, keys), device)?, shape.kv_heads as f64, 0.0)?;
        let heads: Vec<u32> = (0..shape.kv_heads as u32).collect();
        let places = ops::add(&slots, &ops::upload(&heads, (1, shape.kv_heads, 1), device)?)?.flatten_all()?;
        // Every key is at or before its sequence's last row, so a single row sees all but the padding.
        let mask = match rows == 1 && pieces.iter().all(|piece| piece.keys == keys) {
            true => None,
            false => Some(mask(pieces, rows, keys, window, device)?),
        };
        Ok(Self { pieces: pieces.len(), rows, keys, select, places, mask })
    }
}

/// What each row of some pieces may see, from one number for each row and key.
fn mask(pieces: &[Piece], rows: usize, keys: usize, window: Option<usize>, device: &Device) -> Result<Tensor> {
    let (mut last, mut first, mut own) = (Vec::new(), Vec::new(), Vec::new());
    for piece in pieces {
        for position in piece.first_position..piece.first_position + rows {
            last.push(position as u32);
            first.push(window.map_or(0, |window| (position + 1).saturating_sub(window)) as u32);
        }
        own.extend((0..keys).map(|key| if key < piece.keys { (piece.first_key + key) as u32 } else { u32::MAX }));
    }
    let row = |values: &[u32]| ops::upload(values, (pieces.len(), 1, rows, 1), device);
    let own = ops::upload(&own, (pieces.len(), 1, 1, keys), device)?;
    let mut seen = ops::less_equal(&own, &row(&last)?)?;
    if window.is_some() {
        seen = ops::mul(&seen, &ops::greater_equal(&own, &row(&first)?)?)?;
    }
    let (zero, never) = (ops::filled(0.0, 1, device)?, ops::filled(f32::NEG_INFINITY, 1, device)?);
    ops::choose(&seen, &zero, &never)
}
