//! Adapters on tensors: packing, and the deltas of one step's rows.

use std::sync::Arc;

use candle_core::{DType, Device, Result, Tensor};

use crate::{
    model::{
        AdapterRows, LoraAdapter, Matrix, ModelShape, PackError, Packer, Projection, Site, SiteDelta, StepError,
        plain::PlainDelta,
    },
    terms::{AdapterVersion, Digest},
};

/// An adapter as this decoder computes with it.
pub struct TensorAdapter {
    /// The base that it was checked against.
    base: Digest,
    layers: Vec<[Option<LowRank>; Projection::ALL.len()]>,
}

/// `y += scale · (B (A x))`, in `f32`, which holds every f16 and bf16 value exactly.
struct LowRank {
    /// `[r, in]`
    a: Tensor,
    /// `[out, r]`
    b: Tensor,
    scale: f64,
}

impl LowRank {
    /// `[rows, in]` to `[rows, out]`
    fn delta(&self, x: &Tensor) -> Result<Tensor> {
        let delta = self.b.matmul(&self.a.matmul(&x.t()?)?)?;
        let delta = (delta * self.scale)?;
        match x.dim(0)? {
            1 => delta.reshape((1, ())),
            _ => delta.t()?.contiguous(),
        }
    }
}

/// What one step's adapters do to which rows.
pub struct StepDeltas<'a> {
    rows: usize,
    adapters: Vec<RowsOfAdapter<'a>>,
}

struct RowsOfAdapter<'a> {
    weights: &'a TensorAdapter,
    /// `[n]` row indices; `None` is every row in order.
    rows: Option<Tensor>,
}

impl<'a> StepDeltas<'a> {
    /// # Errors
    /// [`StepError::ForeignAdapter`] if an adapter was packed for another decoder or another base.
    pub fn new(
        batch_rows: usize,
        adapters: &'a [AdapterRows],
        base: Digest,
        device: &Device,
    ) -> std::result::Result<Self, StepError> {
        let used = adapters.iter().filter(|adapter| !adapter.rows.is_empty());
        let adapters = used.map(|adapter| {
            let weights = adapter.weights.packed::<TensorAdapter>().filter(|weights| weights.base == base);
            let weights = weights.ok_or(StepError::ForeignAdapter)?;
            let rows = match adapter.rows.len() == batch_rows {
                true => None,
                false => Some(Tensor::new(adapter.rows.as_slice(), device).map_err(super::decoder::device_failed)?),
            };
            Ok(RowsOfAdapter { weights, rows })
        });
        Ok(Self { rows: batch_rows, adapters: adapters.collect::<std::result::Result<_, StepError>>()? })
    }

    /// Each adapter's rows of `x` in `f32`, for adapters that change one of `projections` in this layer.
    pub fn inputs(
        &self,
        x: &Tensor,
        layer: usize,
        projections: impl Iterator<Item = Projection> + Clone,
    ) -> Result<Vec<Option<Tensor>>> {
        let mut inputs = Vec::with_capacity(self.adapters.len());
        for adapter in &self.adapters {
            let sites = &adapter.weights.layers[layer];
            if !projections.clone().any(|projection| sites[projection as usize].is_some()) {
                inputs.push(None);
                continue;
            }
            let selected = match &adapter.rows {
                None => x.clone(),
                Some(rows) => x.index_select(rows, 0)?,
            };
            inputs.push(Some(selected.to_dtype(DType::F32)?));
        }
        Ok(inputs)
    }

    /// Adds every adapter's delta to its rows of `base` (`[rows, out]`); the result is contiguous.
    pub fn apply(
        &self,
        base: Tensor,
        inputs: &[Option<Tensor>],
        layer: usize,
        projection: Projection,
    ) -> Result<Tensor> {
        let (mut rows, mut deltas) = (Vec::new(), Vec::new());
        for (adapter, input) in self.adapters.iter().zip(inputs) {
            let (Some(low_rank), Some(input)) = (&adapter.weights.layers[layer][projection as usize], input) else {
                continue;
            };
            let delta = low_rank.delta(input)?.to_dtype(base.dtype())?;
            match &adapter.rows {
                None => return base + delta,
                Some(index) => {
                    rows.push(index);
                    deltas.push(delta);
                }
            }
        }
        debug_assert!(deltas.iter().map(|delta| delta.dims()[0]).sum::<usize>() <= self.rows);
        match deltas.len() {
            0 => base.contiguous(),
            1 => base.contiguous()?.index_add(rows[0], &deltas[0], 0),
            _ => base.contiguous()?.index_add(&Tensor::cat(&rows, 0)?, &Tensor::cat(&deltas, 0)?, 0),
        }
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
        (values.sum::<usize>() * size_of::<f32>()) as u64
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
        let place = |matrix: Matrix| {
            Tensor::from_vec(matrix.values.to_f32(), (matrix.rows, matrix.cols), &self.device)
                .map_err(|error| PackError::Device(error.to_string()))
        };
        Ok((layer, projection, LowRank { a: place(a)?, b: place(b)?, scale: f64::from(scale) }))
    }
}
