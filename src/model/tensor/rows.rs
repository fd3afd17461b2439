//! Single rows of the base's matrices, and matrices in their place: beside steps, on other threads.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use super::decoder::Network;
use crate::model::{BaseWeights, Site};

/// The resident weights, read a row at a time.
pub struct TensorRows(pub Arc<Network>);

impl TensorRows {
    /// All of a site's matrix, row by row.
    pub fn values(&self, site: Site) -> Result<Vec<f32>> {
        let Some((matrix, _)) = self.matrix(site) else { candle_core::bail!("the base has no {site}") };
        matrix.to_dtype(DType::F32)?.to_device(&Device::Cpu)?.contiguous()?.flatten_all()?.to_vec1()
    }

    fn matrix(&self, site: Site) -> Option<(Tensor, Option<Tensor>)> {
        match site {
            Site::Embedding => Some((self.0.embedding.clone(), None)),
            Site::Head => Some((self.0.head.clone(), None)),
            Site::Layer { layer, projection } => {
                let layer = self.0.layers.get(usize::from(layer))?;
                let linears = [&layer.attention.qkv, &layer.attention.output, &layer.mlp.gate_up, &layer.mlp.down];
                linears.into_iter().find_map(|linear| linear.part(projection).ok().flatten())
            }
        }
    }
}

/// A matrix on the host, in the dtype of the base's: one that an adapter brings whole.
pub fn in_dtype(values: Vec<f32>, shape: (usize, usize), dtype: DType) -> Result<Tensor> {
    Tensor::from_vec(values, shape, &Device::Cpu)?.to_dtype(dtype)
}

impl BaseWeights for TensorRows {
    fn row(&self, site: Site, row: usize) -> Option<Vec<f32>> {
        let (matrix, _) = self.matrix(site)?;
        matrix.get(row).and_then(|row| row.to_dtype(DType::F32)?.to_vec1()).ok()
    }

    fn bias(&self, site: Site) -> Option<Vec<f32>> {
        self.matrix(site)?.1?.to_dtype(DType::F32).and_then(|bias| bias.to_vec1()).ok()
    }
}
