//! Attention of ragged rows over paged keys and values.

use candle_core::{DType, Result, Tensor};

use super::{
    deltas::StepDeltas,
    kv::KvPools,
    linear::Linear,
    ops,
    paged::{Paged, Tables},
    plan::{Group, Plan},
};
use crate::model::ModelShape;

/// One layer's attention.
pub struct Attention {
    /// Query, key, value.
    pub qkv: Linear,
    pub output: Linear,
    /// Norms on each head's query and key, `[head_dim]`.
    pub qk_norm: Option<(Tensor, Tensor)>,
    pub rotary: bool,
    pub window: Option<usize>,
}

/// What every layer of one step is given.
pub struct Step<'a> {
    pub shape: &'a ModelShape,
    pub plan: &'a Plan,
    pub deltas: &'a StepDeltas<'a>,
    pub pools: &'a KvPools,
}

impl Attention {
    /// `[rows, hidden]` to the same; writes the rows' keys and values before anything reads them.
    pub fn forward(&self, x: &Tensor, layer: usize, step: &Step) -> Result<Tensor> {
        let shape = step.shape;
        let mut projected = self.qkv.forward(x, layer, step.deltas)?.into_iter();
        let (Some(queries), Some(keys), Some(values)) = (projected.next(), projected.next(), projected.next()) else {
            candle_core::bail!("attention projects queries, keys and values");
        };
        let norms = self.qk_norm.as_ref();
        let queries = self.placed(queries, shape.heads, norms.map(|norms| &norms.0), step)?;
        let keys = self.placed(keys, shape.kv_heads, norms.map(|norms| &norms.1), step)?;
        step.pools.write(layer, &step.plan.slots, &keys, &values)?;
        let outputs = match &step.plan.paged {
            Some(tables) => self.in_place(&queries, tables, layer, step)?,
            None => self.gathered(&queries, layer, step)?,
        };
        Ok(self.output.forward(&outputs, layer, step.deltas)?.remove(0))
    }

    /// Over keys and values where they lie.
    fn in_place(&self, queries: &Tensor, tables: &Tables, layer: usize, step: &Step) -> Result<Tensor> {
        let (heads, head_dim) = (step.shape.heads, step.shape.head_dim);
        let queries = &queries.reshape(((), heads, head_dim))?;
        let (keys, values) = &step.pools.pages(layer)?;
        let scale = (head_dim as f32).powf(-0.5);
        Paged { queries, keys, values, tables, window: self.window, scale }.attend()
    }

    /// Over keys and values that each group gathers from their blocks.
    fn gathered(&self, queries: &Tensor, layer: usize, step: &Step) -> Result<Tensor> {
        let queries = ops::affine(queries, (step.shape.head_dim as f64).powf(-0.5), 0.0)?;
        let window = step.plan.window(self.window);
        let outputs: Vec<Tensor> =
            window.groups.iter().map(|group| attend(&queries, group, layer, step)).collect::<Result<_>>()?;
        let outputs = ops::join(&outputs, 0)?;
        match &window.restore {
            Some(places) => ops::select(&outputs, places),
            None => Ok(outputs),
        }
    }

    /// Norms and rotates `[rows, heads · head_dim]`.
    fn placed(&self, x: Tensor, heads: usize, norm: Option<&Tensor>, step: &Step) -> Result<Tensor> {
        let (rows, head_dim) = (x.dim(0)?, step.shape.head_dim);
        let x = x.reshape((rows * heads, head_dim))?;
        let x = match norm {
            Some(weight) => ops::rms_norm(&x, weight, step.shape.norm_eps)?,
            None => x,
        };
        let x = if self.rotary {
            let (cosines, sines) = &step.plan.rotation;
            ops::rope(&x.reshape((1, rows, heads, head_dim))?, cosines, sines)?
        } else {
            x
        };
        x.reshape((rows, heads * head_dim))
    }
}

/// The attention of one group: `[pieces · rows, heads · head_dim]`.
fn attend(queries: &Tensor, group: &Group, layer: usize, step: &Step) -> Result<Tensor> {
    let (kv_heads, head_dim) = (step.shape.kv_heads, step.shape.head_dim);
    let shared = step.shape.heads / kv_heads;
    let (pieces, rows, keys) = (group.pieces, group.rows, group.keys);
    let queries = match &group.select {
        Some(select) => ops::select(queries, select)?,
        None => queries.clone(),
    };
    // The query heads that share a key head become rows of one product, so keys are never repeated.
    let queries = queries.reshape((pieces, rows, kv_heads, shared, head_dim))?.permute((0, 2, 3, 1, 4))?;
    let queries = ops::reshape(&queries, (pieces * kv_heads, shared * rows, head_dim))?;
    let (key_rows, value_rows) = step.pools.read(layer, &group.places)?;
    let key_rows = key_rows.reshape((pieces * kv_heads, keys, head_dim))?;
    let value_rows = value_rows.reshape((pieces * kv_heads, keys, head_dim))?;
    let scores = ops::cast(&ops::matmul(&queries, &key_rows.t()?)?, DType::F32)?;
    let scores = scores.reshape((pieces, kv_heads * shared, rows, keys))?;
    let scores = match &group.mask {
        Some(mask) => ops::add(&scores, mask)?,
        None => scores,
    };
    let weights = ops::cast(&ops::softmax(&scores)?, value_rows.dtype())?;
    let mixed = ops::matmul(&weights.reshape((pieces * kv_heads, shared * rows, keys))?, &value_rows)?;
    let mixed = mixed.reshape((pieces, kv_heads, shared, rows, head_dim))?.permute((0, 3, 1, 2, 4))?;
    ops::reshape(&mixed, (pieces * rows, kv_heads * shared * head_dim))
}
