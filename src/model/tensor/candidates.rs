//! The most likely tokens of each row, found on the device.
//!
//! candle sorts on CUDA within one block's shared memory, so a vocabulary is sorted in chunks: the best of each chunk meet in
//! the next round, until they fit one sort.

use candle_core::{DType, Result, Tensor};

use super::ops;

/// Values sorted at once.
const CHUNK: usize = 2048;
const _: () = assert!(CHUNK <= ops::SORTABLE && CHUNK > 2 * MOST);

/// Most candidates that a row can have.
pub const MOST: usize = 256;

/// Ids of padding start here, above every vocabulary.
const PADDING: u32 = 1 << 30;

/// Each row's candidates from most to least likely, ties by lower id.
pub struct Candidates {
    /// `[rows, count]`
    pub values: Tensor,
    /// `[rows, count]` of `u32`
    pub ids: Tensor,
    /// `[rows, 1]`: values above it are complete, those equal to it may be missing some. `None` if nothing is missing.
    pub floor: Option<Tensor>,
}

impl Candidates {
    /// The `count` best of `[rows, vocab]` without NaN, `count` being at most [`MOST`]; fewer if the vocabulary is smaller.
    pub fn of(logits: &Tensor, count: usize) -> Result<Self> {
        let (rows, vocab) = logits.dims2()?;
        let count = count.min(MOST).min(vocab);
        let (mut values, mut ids) = (logits.clone(), None);
        while values.dim(1)? > CHUNK {
            (values, ids) = best_of_chunks(values, ids, count)?;
        }
        let order = ops::contiguous(&ops::sort(&values)?.narrow(1, 0, count)?)?;
        values = ops::gather(&values, &order)?;
        let ids = match ids {
            Some(ids) => ops::gather(&ids, &order)?,
            None => order,
        };
        let ids = ties_by_id(&values, &ids)?;
        let floor = if count < vocab { Some(ops::contiguous(&values.narrow(1, count - 1, 1)?)?) } else { None };
        debug_assert_eq!(values.dims(), [rows, count]);
        Ok(Self { values, ids, floor })
    }

    /// How many each row has.
    pub fn count(&self) -> usize {
        self.values.dims()[1]
    }
}

/// The `count` best of each chunk of `[rows, width]`, side by side, with their ids (`None` is those of a whole vocabulary).
fn best_of_chunks(values: Tensor, ids: Option<Tensor>, count: usize) -> Result<(Tensor, Option<Tensor>)> {
    let device = values.device().clone();
    let (rows, width) = values.dims2()?;
    let chunks = width.div_ceil(CHUNK);
    let padding = chunks * CHUNK - width;
    let values = match padding {
        0 => values,
        _ => ops::join(&[values, ops::filled(f32::NEG_INFINITY, (rows, padding), &device)?], 1)?,
    };
    let values = values.reshape((rows * chunks, CHUNK))?;
    let order = ops::contiguous(&ops::sort(&values)?.narrow(1, 0, count)?)?;
    let best = ops::gather(&values, &order)?.reshape((rows, chunks * count))?;
    let ids = match ids {
        None => {
            let firsts: Vec<u32> = (0..chunks).map(|chunk| (chunk * CHUNK) as u32).collect();
            let firsts = ops::upload(&firsts, (1, chunks, 1), &device)?;
            ops::add(&order.reshape((rows, chunks, count))?, &firsts)?
        }
        Some(ids) if padding == 0 => ops::gather(&ids.reshape((rows * chunks, CHUNK))?, &order)?,
        Some(ids) => {
            // Each its own, since the order of ties is settled by id.
            let fresh: Vec<u32> = (PADDING..).take(padding).collect();
            let fresh = ops::contiguous(&ops::upload(&fresh, (1, padding), &device)?.broadcast_as((rows, padding))?)?;
            ops::gather(&ops::join(&[ids, fresh], 1)?.reshape((rows * chunks, CHUNK))?, &order)?
        }
    };
    Ok((best, Some(ids.reshape((rows, chunks * count))?)))
}

/// Puts ids of equal values in order, which a sort on a device does not; `values` fall along each row.
fn ties_by_id(values: &Tensor, ids: &Tensor) -> Result<Tensor> {
    let (rows, count) = values.dims2()?;
    let own = |x: &Tensor| x.reshape((rows, count, 1));
    let other = |x: &Tensor| x.reshape((rows, 1, count));
    let tied = ops::equal(&own(values)?, &other(values)?)?;
    let tied_before = ops::mul(&tied, &ops::less(&other(ids)?, &own(ids)?)?)?;
    let before = ops::add(&ops::less(&own(values)?, &other(values)?)?, &tied_before)?;
    let place = ops::sum(&ops::cast(&before, DType::F32)?)?;
    let place = ops::cast(&place, DType::U32)?.reshape((rows, count))?;
    let ordered = ops::zeros((rows, count), DType::U32, values.device())?;
    ops::scatter(&ordered, &place, ids, 1)?;
    Ok(ordered)
}
