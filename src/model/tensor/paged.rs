//! Attention that reads keys and values where they lie, by block tables, in one kernel for all sequences of a step: the paged
//! one of `candle-flash-attn`, on CUDA, in a build with the feature of that name. Everywhere else [`super::attention`] gathers
//! them.

use candle_core::{DType, Device, Result, Tensor};

use super::ops;
use crate::model::{Batch, KvShape, ModelShape};

/// Whether the kernel takes this model's attention, and this build has it.
pub fn possible(device: &Device, dtype: DType, shape: &ModelShape, block_tokens: usize) -> bool {
    cfg!(feature = "flash-attn") && device.is_cuda() && fits(dtype, shape.head_dim, block_tokens)
}

/// What the kernel asks of its input: 16-bit floats, heads in steps of eight up to 512, and pages that no tile of 32 keys
/// straddles.
fn fits(dtype: DType, head_dim: usize, block_tokens: usize) -> bool {
    matches!(dtype, DType::F16 | DType::BF16)
        && head_dim.is_multiple_of(8)
        && head_dim <= 512
        && block_tokens.is_multiple_of(32)
}

/// Where each sequence's rows and keys are, for all layers of a step.
pub struct Tables {
    /// `[sequences + 1]`: the rows before each sequence, and all of them.
    pub rows: Tensor,
    /// `[sequences + 1]`: the keys before each sequence, and all of them. A row sees the keys up to its own, which are the
    /// last as many as the sequence has rows.
    pub keys: Tensor,
    /// `[sequences, blocks]`, padded to the longest with the sequence's own last block.
    pub blocks: Tensor,
    /// Of any one sequence.
    pub most_rows: usize,
    pub most_keys: usize,
}

impl Tables {
    /// For a batch that has been checked: its sequences are in order and cover every row.
    pub fn new(batch: &Batch, kv: KvShape, device: &Device) -> Result<Self> {
        let count = batch.sequences.len();
        let (mut rows, mut keys) = (vec![0u32], vec![0u32]);
        let (mut most_rows, mut most_keys, mut longest) = (0, 0, 0);
        for sequence in &batch.sequences {
            let end = sequence.first_row + sequence.rows;
            let seen = batch.positions[end as usize - 1] + 1;
            rows.push(end);
            keys.push(keys[keys.len() - 1] + seen);
            most_rows = most_rows.max(sequence.rows as usize);
            most_keys = most_keys.max(seen as usize);
            longest = longest.max((seen as usize).div_ceil(kv.block_tokens));
        }
        let mut blocks = Vec::with_capacity(count * longest);
        for (sequence, pair) in batch.sequences.iter().zip(keys.windows(2)) {
            let own = ((pair[1] - pair[0]) as usize).div_ceil(kv.block_tokens);
            blocks.extend((0..longest).map(|block| sequence.blocks[block.min(own - 1)]));
        }
        Ok(Self {
            rows: ops::upload(&rows, count + 1, device)?,
            keys: ops::upload(&keys, count + 1, device)?,
            blocks: ops::upload(&blocks, (count, longest), device)?,
            most_rows,
            most_keys,
        })
    }
}

/// One layer's attention over pages.
pub struct Paged<'a> {
    /// `[rows, heads, head_dim]`
    pub queries: &'a Tensor,
    /// `[blocks, block_tokens, kv_heads, head_dim]`
    pub keys: &'a Tensor,
    /// Likewise.
    pub values: &'a Tensor,
    pub tables: &'a Tables,
    /// A row sees this many keys, its own among them; `None` is all.
    pub window: Option<usize>,
    /// Scores are multiplied by this.
    pub scale: f32,
}

impl Paged<'_> {
    /// How many keys before a row's own and after it the row sees, as the kernel counts them; `None` is all.
    pub fn reach(&self) -> (Option<usize>, Option<usize>) {
        (self.window.map(|window| window.saturating_sub(1)), Some(0))
    }

    /// `[rows, heads · head_dim]`
    pub fn attend(&self) -> Result<Tensor> {
        let (rows, heads, head_dim) = self.queries.dims3()?;
        ops::paged_attention(self)?.reshape((rows, heads * head_dim))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_asked_only_for_what_it_computes() {
        assert!(fits(DType::BF16, 64, 32) && fits(DType::F16, 128, 64) && fits(DType::BF16, 80, 1024));
        for (dtype, head_dim, block_tokens) in
            [(DType::F32, 64, 32), (DType::BF16, 60, 32), (DType::BF16, 520, 32), (DType::BF16, 64, 16)]
        {
            assert!(!fits(dtype, head_dim, block_tokens), "{dtype:?}, heads of {head_dim}, blocks of {block_tokens}");
        }
    }
}
