//! Attention of ragged rows over paged keys and values.

use candle_core::{DType, Result, Tensor};

use super::{
    kv::KvPools,
    linear::Linear,
    lora::StepDeltas,
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
        let queries = (queries * (shape.head_dim as f64).powf(-0.5))?;
        let window = step.plan.window(self.window);
        let mut outputs = Vec::with_capacity(window.groups.len());
        for group in &window.groups {
            outputs.push(attend(&queries, group, layer, step)?);
        }
        let outputs = if outputs.len() == 1 { outputs.remove(0) } else { Tensor::cat(&outputs, 0)? };
        let outputs = match &window.restore {
            Some(places) => outputs.index_select(places, 0)?,
            None => outputs,
        };
        Ok(self.output.forward(&outputs, layer, step.deltas)?.remove(0))
    }

    /// Norms and rotates `[rows, heads · head_dim]`.
    fn placed(&self, x: Tensor, heads: usize, norm: Option<&Tensor>, step: &Step) -> Result<Tensor> {
        let (rows, head_dim) = (x.dim(0)?, step.shape.head_dim);
        let x = x.reshape((rows * heads, head_dim))?;
        let x = match norm {
            Some(weight) => candle_nn::ops::rms_norm(&x, weight, step.shape.norm_eps as f32)?,
            None => x,
        };
        let x = if self.rotary {
            let (cosines, sines) = &step.plan.rotation;
            candle_nn::rotary_emb::rope_thd(&x.reshape((1, rows, heads, head_dim))?, cosines, sines)?
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
        Some(select) => queries.index_select(select, 0)?,
        None => queries.clone(),
    };
    // The query heads that share a key head become rows of one product, so keys are never repeated.
    let queries = queries.reshape((pieces, rows, kv_heads, shared, head_dim))?.permute((0, 2, 3, 1, 4))?.reshape((
        pieces * kv_heads,
        shared * rows,
        head_dim,
    ))?;
    let (key_rows, value_rows) = step.pools.read(layer, &group.places)?;
    let key_rows = key_rows.reshape((pieces * kv_heads, keys, head_dim))?;
    let value_rows = value_rows.reshape((pieces * kv_heads, keys, head_dim))?;
    let scores = queries.matmul(&key_rows.t()?)?.to_dtype(DType::F32)?;
    let scores = scores.reshape((pieces, kv_heads * shared, rows, keys))?;
    let scores = match &group.mask {
        Some(mask) => scores.broadcast_add(mask)?,
        None => scores,
    };
    let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(value_rows.dtype())?;
    weights
        .reshape((pieces * kv_heads, shared * rows, keys))?
        .matmul(&value_rows)?
        .reshape((pieces, kv_heads, shared, rows, head_dim))?
        .permute((0, 3, 1, 2, 4))?
        .reshape((pieces * rows, kv_heads * shared * head_dim))
}
