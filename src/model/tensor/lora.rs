//! Adapters on tensors, and how they are packed.

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::{
    decoder::Network,
    host::HostTensors,
    rows::{TensorRows, in_dtype},
};
use crate::{
    model::{
        BaseWeights, HostCopy, LoraAdapter, Matrix, ModelShape, PackError, Packer, Projection, Site, SiteDelta,
        changes::{self, Change, Changes},
        dora::{embedding_gains, gains, transposed},
        lora::Copied,
    },
    terms::{AdapterVersion, Digest},
};

/// An adapter as this decoder computes with it.
pub struct TensorAdapter {
    /// The base that it was checked against.
    pub base: Digest,
    pub layers: Vec<[Option<LowRank>; Projection::ALL.len()]>,
    /// For each layer and [`Projection`], what is done to its outputs; empty if nothing is anywhere.
    pub turns: Vec<[Option<Turn>; Projection::ALL.len()]>,
    pub embedding: Option<Embedding>,
    pub head: Option<Head>,
}

impl TensorAdapter {
    /// A layer's own tensors, and a place in a stack.
    pub const PLACES: u64 = 2;
}

/// `y += scale · (B (A x))`, in `f32`, which holds every f16 and bf16 value exactly.
///
/// The leading 1 of each tensor is where several adapters' are stacked.
pub struct LowRank {
    /// `[1, r, in]`
    pub a: Tensor,
    /// `[1, out, r]`
    pub b: Tensor,
    /// `[1, 1, 1]`
    pub scale: Tensor,
    /// The same number.
    pub factor: f32,
}

impl LowRank {
    pub fn rank(&self) -> usize {
        self.a.dims()[1]
    }
}

/// `y ← y + more⊙y + shift`, in `f32`: with `y = base + s·B(Ax)`, all that is left of `b + g⊙(base − b₀) + g⊙s·(B(Ax) + c)`.
pub struct Turn {
    /// g − 1, `[1, out]`
    pub more: Tensor,
    /// `b − g⊙(b₀ − s·c)`, `[1, out]`
    pub shift: Tensor,
}

/// A token's embedding: `g⊙(e + s·(Aᵀ[id])Bᵀ)`.
pub struct Embedding {
    /// In the base's place, `[vocab, hidden]`.
    pub whole: Option<Tensor>,
    pub low: Option<EmbedLowRank>,
}

pub struct EmbedLowRank {
    /// `[vocab, r]`
    pub a: Tensor,
    /// `[hidden, r]`
    pub b: Tensor,
    pub scale: f32,
    /// `[1, hidden]`
    pub gain: Option<Tensor>,
}

/// What is done to the head.
pub struct Head {
    /// In the base's place, `[vocab, hidden]`.
    pub whole: Option<Tensor>,
    pub low: Option<LowRank>,
    pub turn: Option<Turn>,
}

/// Makes [`TensorAdapter`]s.
pub struct TensorPacker {
    pub shape: ModelShape,
    pub base: Digest,
    pub device: Device,
    /// Of the base's matrices, and of those in their place.
    pub dtype: DType,
    /// What DoRA's norms and biases refer to.
    pub network: Arc<Network>,
}

type Packed<T> = std::result::Result<T, PackError>;

impl Packer for TensorPacker {
    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn packed_bytes(&self, sites: &[(Site, SiteDelta)]) -> u64 {
        self.bytes(sites, TensorAdapter::PLACES)
    }

    fn pack(&self, version: AdapterVersion, sites: Vec<(Site, SiteDelta)>) -> Packed<LoraAdapter> {
        let bytes = self.packed_bytes(&sites);
        let tensors = self.tensors(sites)?;
        let tensors = if self.device.is_cpu() { tensors } else { tensors.placed(&self.device).map_err(refused)? };
        Ok(LoraAdapter::new(version, bytes, Arc::new(tensors)))
    }

    fn leaves_copies(&self) -> bool {
        true
    }

    fn pack_and_copy(&self, version: AdapterVersion, sites: Vec<(Site, SiteDelta)>) -> Packed<Copied> {
        let (bytes, device_bytes) = (self.bytes(&sites, 1), self.packed_bytes(&sites));
        let tensors = self.tensors(sites)?;
        let copy = HostTensors { version, bytes, device_bytes, tensors, device: self.device.clone() };
        Ok((copy.place()?, Some(Arc::new(copy))))
    }
}

impl TensorPacker {
    /// Bytes of an adapter of which each low rank inside a layer lies in `places` places.
    fn bytes(&self, sites: &[(Site, SiteDelta)], places: u64) -> u64 {
        let numbers = |count: usize| (count * size_of::<f32>()) as u64;
        let places = |site: Site| if site == Site::Head { 1 } else { places };
        let bytes = sites.iter().map(|(site, delta)| match delta {
            SiteDelta::LowRank { a, b, lora_bias, base_bias, magnitude, .. } => {
                let turned = lora_bias.is_some() || base_bias.is_some() || magnitude.is_some();
                let turn = if turned { 2 * b.rows } else { 0 };
                places(*site) * numbers(a.values.len() + b.values.len() + turn)
            }
            SiteDelta::Bias(bias) => places(*site) * numbers(2 * bias.len()),
            SiteDelta::Full(matrix) => (matrix.values.len() * self.dtype.size_in_bytes()) as u64,
            SiteDelta::EmbedLowRank { a, b, magnitude, .. } => {
                numbers(a.values.len() + b.values.len() + magnitude.as_ref().map_or(0, Vec::len))
            }
            // Refused by `pack`, which then holds nothing.
            SiteDelta::TokenRows { .. } => 0,
        });
        bytes.sum()
    }

    /// In host memory.
    fn tensors(&self, sites: Vec<(Site, SiteDelta)>) -> Packed<TensorAdapter> {
        let changes = Changes::of(&self.shape, sites)?;
        let turned = changes.layers.iter().flatten().flatten().any(Change::turns);
        let mut layers: Vec<[Option<LowRank>; Projection::ALL.len()]> = Vec::new();
        let mut turns: Vec<[Option<Turn>; Projection::ALL.len()]> = Vec::new();
        layers.resize_with(self.shape.layers, Default::default);
        turns.resize_with(if turned { self.shape.layers } else { 0 }, Default::default);
        for (layer, changes) in changes.layers.into_iter().enumerate() {
            for (projection, change) in Projection::ALL.into_iter().zip(changes) {
                let Some(change) = change else { continue };
                let place = projection as usize;
                if change.turns() {
                    turns[layer][place] = self.turn(Site::Layer { layer: layer as u16, projection }, &change)?;
                }
                layers[layer][place] = change.low_rank.map(|low| self.low_rank(low)).transpose()?;
            }
        }
        let embedding = changes.embedding.map(|change| self.embedding(change)).transpose()?;
        let head = changes.head.map(|change| self.head(change)).transpose()?;
        Ok(TensorAdapter { base: self.base, layers, turns, embedding, head })
    }

    fn low_rank(&self, changes::LowRank { a, b, scale }: changes::LowRank) -> Packed<LowRank> {
        let place = |matrix: Matrix| self.tensor(matrix.values.to_f32(), &[1, matrix.rows, matrix.cols]);
        Ok(LowRank { a: place(a)?, b: place(b)?, scale: self.tensor(vec![scale], &[1, 1, 1])?, factor: scale })
    }

    /// Before the change's low rank is taken.
    fn turn(&self, site: Site, change: &Change) -> Packed<Option<Turn>> {
        if !change.turns() {
            return Ok(None);
        }
        let outputs = self.shape.site_shape(site).map_or(0, |(outputs, _)| outputs);
        let gain = match (&change.magnitude, &change.low_rank) {
            (Some(magnitude), Some(low)) => {
                let base = self.rows_of(site, change.whole.as_ref())?;
                gains(site, magnitude, low, |row, out| base.row(row, out))?
            }
            (_, _) => vec![1.0; outputs],
        };
        let old = TensorRows(Arc::clone(&self.network)).bias(site).unwrap_or_else(|| vec![0.0; outputs]);
        let scale = change.low_rank.as_ref().map_or(0.0, |low| low.scale);
        let shift = |output: usize| {
            let new = change.base_bias.as_ref().map_or(old[output], |bias| bias[output]);
            let added = scale * change.lora_bias.as_ref().map_or(0.0, |bias| bias[output]);
            new - gain[output] * (old[output] - added)
        };
        let shift = (0..outputs).map(shift).collect();
        let more = gain.iter().map(|gain| gain - 1.0).collect();
        Ok(Some(Turn { more: self.tensor(more, &[1, outputs])?, shift: self.tensor(shift, &[1, outputs])? }))
    }

    fn embedding(&self, change: Change) -> Packed<Embedding> {
        let low = change.low_rank.map(|low| {
            let gain = match change.magnitude {
                Some(magnitude) => {
                    let base = self.rows_of(Site::Embedding, change.whole.as_ref())?;
                    let gain = embedding_gains(Site::Embedding, &magnitude, &low, |row, out| base.row(row, out))?;
                    let length = gain.len();
                    Some(self.tensor(gain, &[1, length])?)
                }
                None => None,
            };
            let changes::LowRank { a, b, scale } = low;
            let by_token = transposed(&a.values.to_f32(), a.cols);
            let a = self.tensor(by_token, &[a.cols, a.rows])?;
            Ok(EmbedLowRank { a, b: self.tensor(b.values.to_f32(), &[b.rows, b.cols])?, scale, gain })
        });
        Ok(Embedding { low: low.transpose()?, whole: self.whole(change.whole)? })
    }

    fn head(&self, change: Change) -> Packed<Head> {
        let turn = self.turn(Site::Head, &change)?;
        let low = change.low_rank.map(|low| self.low_rank(low)).transpose()?;
        Ok(Head { turn, low, whole: self.whole(change.whole)? })
    }

    fn whole(&self, matrix: Option<Matrix>) -> Packed<Option<Tensor>> {
        let Some(Matrix { rows, cols, values }) = matrix else { return Ok(None) };
        in_dtype(values.to_f32(), (rows, cols), self.dtype).map(Some).map_err(refused)
    }

    /// A site's matrix on the host: the base's, or what is in its place.
    fn rows_of(&self, site: Site, whole: Option<&Matrix>) -> Packed<HostRows> {
        let (_, width) = self.shape.site_shape(site).ok_or_else(|| PackError::NoSuchSite { site: site.to_string() })?;
        let values = match whole {
            Some(matrix) => matrix.values.to_f32(),
            None => TensorRows(Arc::clone(&self.network)).values(site).map_err(refused)?,
        };
        Ok(HostRows { width, values })
    }

    fn tensor(&self, values: Vec<f32>, shape: &[usize]) -> Packed<Tensor> {
        Tensor::from_vec(values, shape, &Device::Cpu).map_err(refused)
    }
}

fn refused(error: candle_core::Error) -> PackError {
    PackError::Device(error.to_string())
}

struct HostRows {
    width: usize,
    /// `[rows, width]`
    values: Vec<f32>,
}

impl HostRows {
    fn row(&self, row: usize, out: &mut [f32]) {
        out.copy_from_slice(&self.values[row * self.width..(row + 1) * self.width]);
    }
}
