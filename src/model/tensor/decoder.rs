//! The decoder: embedding, layers, final norm, head; and its assembly from weights.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};
use tracing::trace;

use super::{
    answer::{Scoring, answer},
    attention::{Attention, Step},
    deltas::StepDeltas,
    kv::KvPools,
    linear::Linear,
    lora::TensorPacker,
    mlp::Mlp,
    ops::{self, Counts},
    paged,
    plan::Plan,
    rows::TensorRows,
    stacks::Stacks,
};
use crate::{
    config::Dtype,
    model::{
        BaseWeights, Batch, KvShape, LanguageModel, LoadError, ModelShape, Packer, Projection, StepError, StepOutput,
        judge::Scratch, rope::Rotary, weights::Weights,
    },
    terms::Digest,
};

/// The resident weights; they never change.
pub struct Network {
    /// `[vocab, hidden]`
    pub embedding: Tensor,
    pub layers: Vec<Layer>,
    /// `[hidden]`
    final_norm: Tensor,
    /// `[vocab, hidden]`; the embedding where the two are tied.
    pub head: Tensor,
}

/// One layer: attention, then feed-forward, each on a normed input and added to what came in.
pub struct Layer {
    /// `[hidden]`
    attention_norm: Tensor,
    pub attention: Attention,
    /// `[hidden]`
    mlp_norm: Tensor,
    pub mlp: Mlp,
}

/// [`LanguageModel`] on candle tensors.
pub struct TensorDecoder {
    runner: Runner,
    base: Digest,
    stacks: Stacks,
    scratch: Scratch,
    /// What the last step did.
    counts: Counts,
}

/// What stays as it is from step to step, but for the values in the KV pools.
struct Runner {
    shape: ModelShape,
    kv: KvShape,
    device: Device,
    dtype: DType,
    network: Arc<Network>,
    rotary: Rotary,
    pools: KvPools,
    scoring: Scoring,
    /// Whether attention reads keys and values in place.
    paged: bool,
}

/// A decoder with what belongs to it.
pub struct Parts {
    pub decoder: TensorDecoder,
    pub packer: Arc<dyn Packer>,
    pub rows: Arc<dyn BaseWeights>,
    /// `[vocab, hidden]`
    pub embedding: Tensor,
}

pub fn device_failed(error: candle_core::Error) -> StepError {
    StepError::Device(error.to_string())
}

/// The form in which this device computes, where `wanted` is what a setting says.
pub fn dtype(device: &Device, wanted: Option<Dtype>) -> DType {
    match (device, wanted) {
        (Device::Cpu, _) | (_, Some(Dtype::Float32)) => DType::F32,
        (_, Some(Dtype::Float16)) => DType::F16,
        (_, Some(Dtype::Bfloat16)) | (Device::Cuda(_), None) => DType::BF16,
        (Device::Metal(_), None) => DType::F16,
    }
}

/// Builds the decoder, taking its tensors out of `weights`.
///
/// # Errors
/// [`LoadError`] if a tensor is missing or has another shape than `shape` says, or the device refuses.
pub fn assemble(
    weights: &mut Weights,
    shape: ModelShape,
    kv: KvShape,
    base: Digest,
    device: Device,
    dtype: DType,
) -> std::result::Result<Parts, LoadError> {
    let network = Arc::new(Builder { weights, shape: &shape, device: &device, dtype }.network()?);
    let pools = KvPools::new(&shape, kv, dtype, &device).map_err(|error| LoadError::Device(error.to_string()))?;
    Ok(Parts {
        packer: Arc::new(TensorPacker {
            shape: shape.clone(),
            base,
            device: device.clone(),
            dtype,
            network: network.clone(),
        }),
        rows: Arc::new(TensorRows(network.clone())),
        embedding: network.embedding.clone(),
        decoder: TensorDecoder {
            runner: Runner {
                rotary: Rotary::new(&shape.rope, shape.head_dim),
                scoring: Scoring::of(&device),
                paged: paged::possible(&device, dtype, &shape, kv.block_tokens),
                shape,
                kv,
                device,
                dtype,
                network,
                pools,
            },
            base,
            stacks: Stacks::default(),
            scratch: Scratch::default(),
            counts: Counts::NONE,
        },
    })
}

impl LanguageModel for TensorDecoder {
    fn shape(&self) -> &ModelShape {
        &self.runner.shape
    }

    fn kv_shape(&self) -> KvShape {
        self.runner.kv
    }

    fn forward(&mut self, batch: &Batch, out: &mut StepOutput) -> std::result::Result<(), StepError> {
        out.clear();
        Counts::take(); // What a step that failed has left.
        let runner = &self.runner;
        batch.check(&runner.shape, runner.kv)?;
        runner.pools.copy(&batch.copies).map_err(device_failed)?;
        if batch.rows() == 0 {
            return Ok(());
        }
        let deltas = StepDeltas::new(batch.rows(), &batch.adapters, self.base, &mut self.stacks, &runner.device)?;
        runner.run(batch, &deltas, &mut self.scratch, out).map_err(device_failed)?;
        self.counts = Counts::take();
        out.fetched = self.counts.undecided;
        let Counts { uploads, upload_bytes, downloads, download_bytes, undecided, .. } = self.counts;
        let (rows, operations) = (batch.rows(), self.counts.operations());
        trace!(rows, operations, uploads, upload_bytes, downloads, download_bytes, undecided, "step");
        Ok(())
    }
}

#[cfg(test)]
impl TensorDecoder {
    /// Lets tests on a CPU take the way of other devices.
    pub fn set_scoring(&mut self, scoring: Scoring) {
        self.runner.scoring = scoring;
    }

    /// Lets tests on a CPU take CUDA's way of attention, with a stand-in for its kernel.
    pub fn set_paged(&mut self, paged: bool) {
        self.runner.paged = paged;
    }

    /// What the last step did.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }
}

impl Runner {
    fn run(&self, batch: &Batch, deltas: &StepDeltas, scratch: &mut Scratch, out: &mut StepOutput) -> Result<()> {
        let plan = Plan::new(batch, &self.shape, self.kv, &self.rotary, self.dtype, &self.device, self.paged)?;
        let step = Step { shape: &self.shape, plan: &plan, deltas, pools: &self.pools };
        let mut x = deltas.embed(ops::select(&self.network.embedding, &plan.tokens)?, &batch.tokens)?;
        for (index, layer) in self.network.layers.iter().enumerate() {
            x = layer.forward(x, index, &step)?;
        }
        if batch.asks.is_empty() {
            return Ok(());
        }
        let rows: Vec<u32> = batch.asks.iter().map(|ask| ask.row).collect();
        let asked = ops::select(&x, &ops::upload(&rows, rows.len(), &self.device)?)?;
        let asked = norm(&asked, &self.network.final_norm, &self.shape)?;
        let head = |places: &[u32], hidden: &Tensor| {
            let logits = ops::cast(&ops::product(&self.network.head, hidden)?, DType::F32)?;
            let rows: Vec<u32> = places.iter().map(|&place| rows[place as usize]).collect();
            deltas.heads(logits, hidden, &rows)
        };
        out.answers.extend(answer(&batch.asks, &asked, (self.shape.vocab, &head), self.scoring, scratch)?);
        Ok(())
    }
}

impl Layer {
    fn forward(&self, x: Tensor, index: usize, step: &Step) -> Result<Tensor> {
        let attended = self.attention.forward(&norm(&x, &self.attention_norm, step.shape)?, index, step)?;
        let x = ops::add(&x, &attended)?;
        let fed = self.mlp.forward(&norm(&x, &self.mlp_norm, step.shape)?, index, step.deltas)?;
        ops::add(&x, &fed)
    }
}

fn norm(x: &Tensor, weight: &Tensor, shape: &ModelShape) -> Result<Tensor> {
    ops::rms_norm(x, weight, shape.norm_eps)
}

/// Takes tensors by Hugging Face's names and puts them on the device.
struct Builder<'a> {
    weights: &'a mut Weights,
    shape: &'a ModelShape,
    device: &'a Device,
    dtype: DType,
}

type Built<T> = std::result::Result<T, LoadError>;

impl Builder<'_> {
    fn network(mut self) -> Built<Network> {
        let (vocab, hidden) = (self.shape.vocab, self.shape.hidden);
        let embedding = self.matrix("model.embed_tokens.weight", vocab, hidden)?;
        let layers = (0..self.shape.layers).map(|layer| self.layer(layer)).collect::<Built<_>>()?;
        let final_norm = self.vector("model.norm.weight", hidden)?;
        let head = if self.shape.tied { embedding.clone() } else { self.matrix("lm_head.weight", vocab, hidden)? };
        Ok(Network { embedding, layers, final_norm, head })
    }

    fn layer(&mut self, layer: usize) -> Built<Layer> {
        use Projection::{Down, Gate, Key, Output, Query, Up, Value};
        let shape = self.shape;
        let name = |module: &str| format!("model.layers.{layer}.{module}.weight");
        let qk_norm = if shape.qk_norm {
            let query = self.vector(&name("self_attn.q_norm"), shape.head_dim)?;
            Some((query, self.vector(&name("self_attn.k_norm"), shape.head_dim)?))
        } else {
            None
        };
        Ok(Layer {
            attention_norm: self.vector(&name("input_layernorm"), shape.hidden)?,
            attention: Attention {
                qkv: self.linear(layer, &[Query, Key, Value], shape.qkv_bias)?,
                output: self.linear(layer, &[Output], shape.output_bias)?,
                qk_norm,
                rotary: !shape.no_rope[layer],
                window: shape.window[layer],
            },
            mlp_norm: self.vector(&name("post_attention_layernorm"), shape.hidden)?,
            mlp: Mlp {
                gate_up: self.linear(layer, &[Gate, Up], shape.ffn_bias)?,
                down: self.linear(layer, &[Down], shape.ffn_bias)?,
            },
        })
    }

    fn linear(&mut self, layer: usize, projections: &[Projection], biased: bool) -> Built<Linear> {
        let (mut weight, mut bias, mut parts, mut width) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for &projection in projections {
            let module = format!("model.layers.{layer}.{}", projection.module());
            let (out, input) = self.shape.projection_shape(projection);
            weight.extend(self.weights.take(&format!("{module}.weight"), &[out, input])?);
            if biased {
                bias.extend(self.weights.take(&format!("{module}.bias"), &[out])?);
            }
            parts.push((projection, out));
            width = input;
        }
        let rows = weight.len() / width;
        let bias = if biased { Some(self.place(bias, &[rows])?) } else { None };
        Ok(Linear::new(self.place(weight, &[rows, width])?, bias, parts))
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize) -> Built<Tensor> {
        let values = self.weights.take(name, &[rows, cols])?;
        self.place(values, &[rows, cols])
    }

    fn vector(&mut self, name: &str, len: usize) -> Built<Tensor> {
        let values = self.weights.take(name, &[len])?;
        self.place(values, &[len])
    }

    fn place(&self, values: Vec<f32>, shape: &[usize]) -> Built<Tensor> {
        Tensor::from_vec(values, shape, &Device::Cpu)
            .and_then(|tensor| tensor.to_dtype(self.dtype)?.to_device(self.device))
            .map_err(|error| LoadError::Device(error.to_string()))
    }
}
