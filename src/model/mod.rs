//! Rows in, scores out. The decoder knows nothing of requests, names or text.

pub mod batch;
mod changes;
mod cpu;
mod describe;
mod dora;
mod judge;
mod load;
pub mod lora;
mod rope;
pub mod shape;
mod sketch;
pub mod step;
mod tensor;
mod timing;
mod weights;

use std::{path::PathBuf, sync::Arc};

pub use batch::{AdapterRows, Batch, BatchError, SequenceRows};
pub use load::{digest as digest_of, load, shape as shape_of};
pub use lora::{HostCopy, LoraAdapter, Matrix, PackError, Packer, Projection, Site, SiteDelta};
pub use shape::{Family, ModelShape, Rope};
pub use step::{Adjustments, RowAnswer, RowAsk, SampleAsk, SeenToken, StepOutput, Want};
pub use timing::{MachineLimits, Phase, PhaseNeeds, Timings};

pub use crate::kernels::{
    heap::{give_back_free_memory, give_back_large_buffers},
    isa::{Isa, MissingIsa},
    priority::lower_thread_priority,
};
pub use crate::terms::TokenSketch;
use crate::{
    config::Dtype,
    terms::{Digest, SamplingLayer},
};

/// A decoder with its weights, its KV storage and its scratch memory. One thread owns it.
///
/// Two implementations: candle tensors (CUDA, Metal, and the readable oracle on a CPU) and, on a CPU, a fused step.
pub trait LanguageModel: Send {
    fn shape(&self) -> &ModelShape;

    /// What one KV block holds and how many blocks there are.
    fn kv_shape(&self) -> KvShape;

    /// Runs one step: block copies first, then every row of `batch` through all layers, then one answer in `out` for
    /// each of `batch.asks`, in their order. `out` is cleared first and its buffers are reused.
    ///
    /// # Errors
    /// [`StepError`] if the batch is malformed or the device fails; then no row's result may be used.
    fn forward(&mut self, batch: &Batch, out: &mut StepOutput) -> Result<(), StepError>;

    /// Where the steps since the last call have spent their time; timing begins with the first call. `None` from a decoder that
    /// does not tell.
    fn take_timings(&mut self) -> Option<Timings> {
        None
    }

    /// What this machine can do at best, measured now. `None` from a decoder that does not know.
    ///
    /// # Errors
    /// [`StepError`] if it cannot be measured.
    fn limits(&mut self) -> Result<Option<MachineLimits>, StepError> {
        Ok(None)
    }

    /// What a step of `batch` needs at least, for each phase that needs something. Nothing from a decoder that does not know.
    ///
    /// # Errors
    /// [`StepError`] if the batch is malformed.
    fn needs(&self, _batch: &Batch) -> Result<Vec<PhaseNeeds>, StepError> {
        Ok(Vec::new())
    }
}

/// The size of the KV storage, fixed at load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Positions in one block.
    pub block_tokens: usize,
    /// Blocks in all; ids run from 0.
    pub blocks: usize,
    /// Bytes of one block over all layers.
    pub block_bytes: usize,
}

/// Why a step failed.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    #[error("the batch is malformed: {0}")]
    Batch(#[from] BatchError),
    #[error("an adapter in the batch was packed for another decoder")]
    ForeignAdapter,
    #[error("the device failed: {0}")]
    Device(String),
}

/// Where the base model's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A Hugging Face folder: `config.json`, safetensors (single or sharded).
    Folder(PathBuf),
    /// One GGUF file.
    Gguf(PathBuf),
}

/// How the base model is loaded.
#[derive(Clone, Debug)]
pub struct LoadOptions {
    pub device: DeviceChoice,
    /// In which numbers a GPU computes; `None` is bfloat16 with CUDA and float16 with Metal. A CPU keeps float32.
    pub dtype: Option<Dtype>,
    /// Bytes given to KV storage.
    pub kv_bytes: u64,
    /// Positions in one KV block.
    pub block_tokens: usize,
    /// The longest context to prepare for; `None` is the model's own.
    pub max_model_len: Option<usize>,
    /// How a CPU computes; without meaning elsewhere.
    pub cpu: CpuOptions,
}

/// How the model runs on a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuOptions {
    pub decoder: CpuDecoder,
    /// `f32` activations, keys, values and adapters, instead of int8 and `f16`.
    pub exact: bool,
    /// Compute threads, the engine's own among them; `None` is one for each core that this process may use.
    pub threads: Option<usize>,
    /// Each compute thread stays on a core of its own.
    pub pin: bool,
    /// Which instructions the kernels use; `None` is the most that the machine has.
    pub isa: Option<Isa>,
}

/// Which decoder runs on a CPU.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum CpuDecoder {
    /// Packed weights, fused steps.
    #[default]
    Fused,
    /// Tensors in `f32`: slow, and easy to read. What the other is compared with.
    Tensor,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self { decoder: CpuDecoder::Fused, exact: false, threads: None, pin: false, isa: None }
    }
}

/// The device that the decoder runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceChoice {
    Cpu,
    Cuda(usize),
    Metal(usize),
}

/// What loading the base model gives.
pub struct Loaded {
    pub decoder: Box<dyn LanguageModel>,
    /// Makes this decoder's form of an adapter, on any thread.
    pub packer: Arc<dyn Packer>,
    /// Single rows of the base, for checks and for DoRA's norms.
    pub base: Arc<dyn BaseWeights>,
    /// The embedding table projected to 64 dimensions.
    pub sketch: Arc<TokenSketch>,
    pub shape: ModelShape,
    /// Bytes of memory that the base's weights take.
    pub weight_bytes: u64,
    /// SHA-256 over the weight files and the configuration they are read with.
    pub digest: Digest,
    /// Sampling defaults from `generation_config.json`, where there is one.
    pub sampling: SamplingLayer,
    /// Tokens that end a turn, from the configuration files.
    pub eos_tokens: Vec<u32>,
    /// What computes and in which numbers, in a few words: `cpu fused fast avx512`.
    pub engine: String,
    /// What a person should know about this load, one line each (a file's dtype converted, a key ignored).
    pub notes: Vec<String>,
}

/// The base model's weights, one row at a time, dequantized to `f32`.
pub trait BaseWeights: Send + Sync {
    /// Row `row` of the matrix at `site` (an output feature; for the embedding, a token): `[in]`.
    /// `None` if the site or row does not exist.
    fn row(&self, site: Site, row: usize) -> Option<Vec<f32>>;

    /// The bias at `site`, `[out]`, where the family has one.
    fn bias(&self, site: Site) -> Option<Vec<f32>>;
}

/// Why a base model could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error("{path}: {error}")]
    Io { path: PathBuf, error: std::io::Error },
    #[error("{path}: {reason}")]
    Malformed { path: PathBuf, reason: String },
    #[error("the model family '{0}' is not supported; llama, mistral, qwen2, qwen3 and smollm3 are")]
    Family(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("the model has no tensor '{0}'")]
    MissingTensor(String),
    #[error("tensor '{name}' has shape {got:?}, expected {expected:?}")]
    TensorShape { name: String, got: Vec<usize>, expected: Vec<usize> },
    #[error("the model has a tensor '{0}' that this family does not use")]
    ExtraTensor(String),
    #[error("the device is not available: {0}")]
    Device(String),
    #[error(
        "a KV budget of {bytes} bytes holds {blocks} blocks; one sequence of {max_model_len} tokens needs {needed}"
    )]
    KvTooSmall { bytes: u64, blocks: usize, max_model_len: usize, needed: usize },
}
