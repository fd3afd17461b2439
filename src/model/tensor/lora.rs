//! Adapters on tensors, and how they are packed.

use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::{
    model::{LoraAdapter, Matrix, ModelShape, PackError, Packer, Projection, Site, SiteDelta, plain::PlainDelta},
    terms::{AdapterVersion, Digest},
};

/// An adapter as this decoder computes with it.
pub struct TensorAdapter {
    /// The base that it was checked against.
    pub base: Digest,
    pub layers: Vec<[Option<LowRank>; Projection::ALL.len()]>,
}

impl TensorAdapter {
    /// An adapter's own tensors, and a place in a stack.
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

/// Makes [`TensorAdapter`]s.
pub struct TensorPacker {
    pub shape: ModelShape,
    pub base: Digest,
    pub device: Device,
}

impl Packer for TensorPacker {
    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn packed_bytes(&self, sites: &[(Site, SiteDelta)]) -> u64 {
        let values = sites.iter().map(|(_, delta)| match delta {
            SiteDelta::LowRank { a, b, .. } => a.values.len() + b.values.len(),
            // Refused by `pack`, which then holds nothing.
            SiteDelta::Bias(_) | SiteDelta::Full(_) | SiteDelta::EmbedLowRank { .. } | SiteDelta::TokenRows { .. } => 0,
        });
        TensorAdapter::PLACES * (values.sum::<usize>() * size_of::<f32>()) as u64
    }

    fn pack(
        &self,
        version: AdapterVersion,
        sites: Vec<(Site, SiteDelta)>,
    ) -> std::result::Result<LoraAdapter, PackError> {
        let bytes = self.packed_bytes(&sites);
        let mut layers: Vec<[Option<LowRank>; Projection::ALL.len()]> = Vec::new();
        layers.resize_with(self.shape.layers, Default::default);
        for (site, delta) in sites {
            let (layer, projection, low_rank) = self.low_rank(site, delta)?;
            let place = &mut layers[layer][projection as usize];
            if place.is_some() {
                return Err(PackError::Twice { site: site.to_string() });
            }
            *place = Some(low_rank);
        }
        Ok(LoraAdapter::new(version, bytes, Arc::new(TensorAdapter { base: self.base, layers })))
    }
}

impl TensorPacker {
    fn low_rank(&self, site: Site, delta: SiteDelta) -> std::result::Result<(usize, Projection, LowRank), PackError> {
        let PlainDelta { layer, projection, a, b, scale } = PlainDelta::of(&self.shape, site, delta)?;
        let place = |matrix: Matrix| self.tensor(matrix.values.to_f32(), &[1, matrix.rows, matrix.cols]);
        let low_rank =
            LowRank { a: place(a)?, b: place(b)?, scale: self.tensor(vec![scale], &[1, 1, 1])?, factor: scale };
        Ok((layer, projection, low_rank))
    }

    fn tensor(&self, values: Vec<f32>, shape: &[usize]) -> std::result::Result<Tensor, PackError> {
        Tensor::from_vec(values, shape, &self.device).map_err(|error| PackError::Device(error.to_string()))
    }
}
