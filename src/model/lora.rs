//! Adapters as the model sees them: a change at each site.
//!
//! Every site computes `y = b + g⊙(base − b₀) + g⊙s·(B(Ax) + c)`, where `base` is the frozen layer's output with its bias b₀:
//! plain LoRA has g = 1, b = b₀, c = 0; DoRA has g = m/n, where n is the norm of base and delta together; a trained bias replaces b₀ by
//! b; `lora_bias` gives c.

use std::{fmt, sync::Arc, sync::mpsc};

use half::{bf16, f16, slice::HalfFloatSliceExt};

use super::ModelShape;
use crate::terms::AdapterVersion;

/// A linear map inside a decoder layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Projection {
    Query,
    Key,
    Value,
    Output,
    Gate,
    Up,
    Down,
}

impl Projection {
    pub const ALL: [Self; 7] = [Self::Query, Self::Key, Self::Value, Self::Output, Self::Gate, Self::Up, Self::Down];

    /// The module's path inside its layer, as Hugging Face names it.
    pub const fn module(self) -> &'static str {
        match self {
            Self::Query => "self_attn.q_proj",
            Self::Key => "self_attn.k_proj",
            Self::Value => "self_attn.v_proj",
            Self::Output => "self_attn.o_proj",
            Self::Gate => "mlp.gate_proj",
            Self::Up => "mlp.up_proj",
            Self::Down => "mlp.down_proj",
        }
    }
}

/// A place in the model that an adapter may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Site {
    Embedding,
    Layer { layer: u16, projection: Projection },
    Head,
}

impl fmt::Display for Site {
    /// The module path, as Hugging Face names it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Embedding => f.write_str("model.embed_tokens"),
            Self::Layer { layer, projection } => write!(f, "model.layers.{layer}.{}", projection.module()),
            Self::Head => f.write_str("lm_head"),
        }
    }
}

/// A matrix on the host in the dtype of the file it came from, row-major.
#[derive(Clone, Debug, PartialEq)]
pub struct Matrix {
    pub rows: usize,
    pub cols: usize,
    pub values: Values,
}

/// Host values in their own dtype; each converts to `f32` without loss.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    F32(Vec<f32>),
    F16(Vec<f16>),
    BF16(Vec<bf16>),
}

impl Values {
    pub fn len(&self) -> usize {
        match self {
            Self::F32(v) => v.len(),
            Self::F16(v) => v.len(),
            Self::BF16(v) => v.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub fn to_f32(&self) -> Vec<f32> {
        match self {
            Self::F32(v) => v.clone(),
            Self::F16(v) => wide(v),
            Self::BF16(v) => wide(v),
        }
    }
}

/// Many at once, where the machine converts so.
fn wide<T>(values: &[T]) -> Vec<f32>
where
    [T]: HalfFloatSliceExt,
{
    let mut wide = vec![0.0; values.len()];
    values.convert_to_f32_slice(&mut wide);
    wide
}

/// What an adapter does at one site.
#[derive(Clone, Debug, PartialEq)]
pub enum SiteDelta {
    LowRank {
        /// `[r, in]`
        a: Matrix,
        /// `[out, r]`
        b: Matrix,
        /// s: applied in `f32`, never folded into B.
        scale: f32,
        /// c, `[out]`: PEFT's `lora_bias`.
        lora_bias: Option<Vec<f32>>,
        /// b, `[out]`: replaces the base's bias.
        base_bias: Option<Vec<f32>>,
        /// m, `[out]`: DoRA's, from which packing makes g = m / ‖W + s·BA‖, output by output.
        magnitude: Option<Vec<f32>>,
    },
    /// Replaces the base's bias, `[out]`.
    Bias(Vec<f32>),
    /// Replaces the whole matrix of embedding or head, `[vocab, hidden]`. A low-rank delta of the same site is added to it.
    Full(Matrix),
    /// Embedding rows gain `s·(Aᵀ[id])Bᵀ`.
    EmbedLowRank {
        /// `[r, vocab]`
        a: Matrix,
        /// `[hidden, r]`
        b: Matrix,
        scale: f32,
        /// m, `[hidden]`: DoRA's, for the columns of the embedding.
        magnitude: Option<Vec<f32>>,
    },
    /// Replaces single embedding rows: `rows[i]` is token `tokens[i]`'s, `[tokens, hidden]`.
    TokenRows { tokens: Vec<u32>, rows: Matrix },
}

/// Turns an adapter's tensors into the form that one decoder computes with. Runs on any thread, never the engine's.
pub trait Packer: Send + Sync {
    /// The base's shape, which every site is checked against.
    fn shape(&self) -> &ModelShape;

    /// Bytes that `pack` of these sites will hold, so that they can be reserved first.
    fn packed_bytes(&self, sites: &[(Site, SiteDelta)]) -> u64;

    /// # Errors
    /// [`PackError`] if a site does not exist in the base, a shape does not fit, or this decoder cannot apply the delta.
    fn pack(&self, version: AdapterVersion, sites: Vec<(Site, SiteDelta)>) -> Result<LoraAdapter, PackError>;

    /// Whether it can leave copies in host memory: not where the decoder computes with what lies there anyway.
    fn leaves_copies(&self) -> bool {
        false
    }

    /// As [`Packer::pack`], with a copy in host memory where it can leave one.
    ///
    /// # Errors
    /// As [`Packer::pack`].
    fn pack_and_copy(&self, version: AdapterVersion, sites: Vec<(Site, SiteDelta)>) -> Result<Copied, PackError> {
        Ok((self.pack(version, sites)?, None))
    }
}

/// A packed adapter, and the same in host memory.
pub type Copied = (LoraAdapter, Option<Arc<dyn HostCopy>>);

/// An adapter's packed weights in host memory. It goes back to the device from there without being read, checked or worked
/// out again.
pub trait HostCopy: Send + Sync {
    /// Bytes that the copy takes.
    fn bytes(&self) -> u64;

    /// Bytes that it will take on the device, so that they can be reserved first.
    fn device_bytes(&self) -> u64;

    /// The adapter on its device, as packing made it.
    ///
    /// # Errors
    /// [`PackError::Device`] if the device refuses it.
    fn place(&self) -> Result<LoraAdapter, PackError>;
}

/// Why an adapter could not be packed.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum PackError {
    #[error("the base has no {site}")]
    NoSuchSite { site: String },
    #[error("{site}: {what} has shape {got:?}, expected {expected:?}")]
    Shape { site: String, what: &'static str, got: Vec<usize>, expected: Vec<usize> },
    #[error("{site}: {what} is not supported yet")]
    Unsupported { site: String, what: &'static str },
    #[error("{site}: {what}")]
    Degenerate { site: String, what: &'static str },
    #[error("{site} is given twice")]
    Twice { site: String },
    #[error("the device refused the adapter: {0}")]
    Device(String),
}

/// The packed weights of one adapter version. Immutable; shared by every sequence that uses it.
pub struct LoraAdapter {
    version: AdapterVersion,
    bytes: u64,
    /// `None` only while being dropped.
    packed: Option<Packed>,
    retire: Option<mpsc::Sender<RetiredAdapter>>,
}

/// A decoder's own form of the weights: opaque to everyone but the decoder whose packer made it, which downcasts it.
pub type Packed = Arc<dyn std::any::Any + Send + Sync>;

/// What is left of an adapter when its last user let go: to be dropped by the thread that receives it.
pub struct RetiredAdapter {
    pub version: AdapterVersion,
    pub bytes: u64,
    pub packed: Packed,
}

impl LoraAdapter {
    pub fn new(version: AdapterVersion, bytes: u64, packed: Packed) -> Self {
        Self { version, bytes, packed: Some(packed), retire: None }
    }

    /// The same adapter, whose weights go to `graveyard` when the last user lets go, so that large frees happen on the
    /// receiving thread rather than on the engine's.
    pub fn retiring_to(mut self, graveyard: mpsc::Sender<RetiredAdapter>) -> Self {
        self.retire = Some(graveyard);
        self
    }

    pub fn version(&self) -> AdapterVersion {
        self.version
    }

    /// Bytes held by the packed weights.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The packed weights, if this decoder's packer made them.
    pub fn packed<T: 'static>(&self) -> Option<&T> {
        self.packed.as_ref()?.downcast_ref()
    }
}

impl fmt::Debug for LoraAdapter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoraAdapter").field("version", &self.version).field("bytes", &self.bytes).finish()
    }
}

impl Drop for LoraAdapter {
    fn drop(&mut self) {
        if let (Some(packed), Some(retire)) = (self.packed.take(), self.retire.take()) {
            // Without a receiver the weights are simply freed here.
            let _ = retire.send(RetiredAdapter { version: self.version, bytes: self.bytes, packed });
        }
    }
}
