//! Adapters in the form that the kernels read.

use std::sync::Arc;

use super::Class;
use crate::{
    kernels::{
        blob::Blob,
        lora::{Expand, Precision, Shrink},
        pack::BLOCK,
    },
    model::{
        LoraAdapter, Matrix, ModelShape, PackError, Packer, Projection, Site, SiteDelta, lora::Values,
        plain::PlainDelta,
    },
    terms::{AdapterVersion, Digest},
};

/// Where projections share an input, and their shrunk rows are computed together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Input {
    /// Query, key, value.
    Attention,
    Output,
    /// Gate, up.
    Feed,
    Down,
}

impl Input {
    const ALL: [Self; 4] = [Self::Attention, Self::Output, Self::Feed, Self::Down];

    pub const fn projections(self) -> &'static [Projection] {
        match self {
            Self::Attention => &[Projection::Query, Projection::Key, Projection::Value],
            Self::Output => &[Projection::Output],
            Self::Feed => &[Projection::Gate, Projection::Up],
            Self::Down => &[Projection::Down],
        }
    }
}

/// An adapter as this decoder computes with it.
pub struct CpuAdapter {
    /// The base that it was checked against, and the class that it was packed for.
    pub base: Digest,
    pub class: Class,
    /// For each layer and [`Input`], what the adapter changes there.
    layers: Vec<[Option<Stack>; 4]>,
}

/// An adapter's deltas to the projections of one input.
pub struct Stack {
    /// Their A, one below the other.
    pub shrink: Shrink,
    expands: Vec<(Projection, Expand)>,
}

impl CpuAdapter {
    pub fn stack(&self, layer: usize, input: Input) -> Option<&Stack> {
        self.layers[layer][input as usize].as_ref()
    }
}

impl Stack {
    pub fn expand(&self, projection: Projection) -> Option<&Expand> {
        self.expands.iter().find(|(other, _)| *other == projection).map(|(_, expand)| expand)
    }

    /// The memory of its factors, where that can be moved.
    fn blobs(&mut self) -> impl Iterator<Item = &mut Blob> {
        let expands = self.expands.iter_mut().filter_map(|(_, expand)| expand.blob());
        self.shrink.blob().into_iter().chain(expands)
    }

    fn pack(class: Class, deltas: Vec<PlainDelta>) -> Self {
        let kinds = deltas.iter().flat_map(|delta| [kind(&delta.a), kind(&delta.b)]);
        let inputs = deltas.first().map_or(0, |delta| delta.a.cols);
        let precision = precision(class, inputs, kinds);
        let (mut stacked, mut expands, mut ranks) = (Vec::new(), Vec::new(), 0);
        for PlainDelta { projection, a, b, scale, .. } in deltas {
            let (rank, mut a_values, mut b_values) = (a.rows, a.values.to_f32(), b.values.to_f32());
            let mut scale = scale;
            if precision == Precision::F16 {
                scale *= fit_half(&mut a_values) * fit_half(&mut b_values);
            }
            stacked.extend(a_values);
            expands.push((projection, Expand::pack(precision, rank, ranks, scale, &b_values)));
            ranks += rank;
        }
        Self { shrink: Shrink::pack(precision, ranks, inputs, &stacked), expands }
    }
}

/// Multiplies by a power of two, so that the largest number is just within what `f16` holds and small ones keep their digits;
/// gives the factor that undoes it. Numbers that are `f16` already and need no room stay as they are.
fn fit_half(values: &mut [f32]) -> f32 {
    if values.iter().all(|&value| half::f16::from_f32(value).to_f32() == value) {
        return 1.0;
    }
    let largest = values.iter().fold(0.0f32, |largest, value| largest.max(value.abs()));
    if !largest.is_normal() {
        return 1.0;
    }
    let exponent = 14 - largest.log2().floor() as i32;
    let factor = 2f32.powi(exponent.clamp(-100, 100));
    values.iter_mut().for_each(|value| *value *= factor);
    factor.recip()
}

fn kind(matrix: &Matrix) -> Precision {
    match matrix.values {
        Values::F32(_) => Precision::F32,
        Values::F16(_) => Precision::F16,
        Values::BF16(_) => Precision::BF16,
    }
}

/// The form in which factors of these kinds are kept together. In the exact class their own where it is one, else one that holds
/// them all; in the fast class 8 bits, or 16 where the inputs are no whole blocks.
fn precision(class: Class, inputs: usize, mut kinds: impl Iterator<Item = Precision>) -> Precision {
    let first = kinds.next().unwrap_or(Precision::F32);
    let one = kinds.all(|kind| kind == first);
    match (class, one, first) {
        (Class::Fast, _, _) if inputs.is_multiple_of(BLOCK) => Precision::I8,
        (_, true, Precision::F16 | Precision::BF16) => first,
        (Class::Exact, _, _) => Precision::F32,
        (Class::Fast, _, _) => Precision::F16,
    }
}

/// Makes [`CpuAdapter`]s.
pub struct CpuPacker {
    pub shape: ModelShape,
    pub base: Digest,
    pub class: Class,
}

impl Packer for CpuPacker {
    fn shape(&self) -> &ModelShape {
        &self.shape
    }

    fn packed_bytes(&self, sites: &[(Site, SiteDelta)]) -> u64 {
        let mut bytes = 0;
        for layer in 0..self.shape.layers {
            for input in Input::ALL {
                let at = |projection| Site::Layer { layer: layer as u16, projection };
                let deltas = input.projections().iter().filter_map(|&projection| {
                    sites.iter().find(|(site, _)| *site == at(projection)).and_then(|(_, delta)| match delta {
                        SiteDelta::LowRank { a, b, .. } => Some((a, b)),
                        // Refused by `pack`, which then holds nothing.
                        SiteDelta::Bias(_)
                        | SiteDelta::Full(_)
                        | SiteDelta::EmbedLowRank { .. }
                        | SiteDelta::TokenRows { .. } => None,
                    })
                });
                let deltas: Vec<_> = deltas.collect();
                let inputs = deltas.first().map_or(0, |(a, _)| a.cols);
                let kinds = deltas.iter().flat_map(|(a, b)| [kind(a), kind(b)]);
                let precision = precision(self.class, inputs, kinds);
                let ranks = deltas.iter().map(|(a, _)| a.rows).sum();
                bytes += deltas.first().map_or(0, |(a, _)| Shrink::bytes(precision, ranks, a.cols));
                bytes += deltas.iter().map(|(_, b)| Expand::bytes(precision, b.rows, b.cols)).sum::<usize>();
            }
        }
        bytes as u64
    }

    fn pack(&self, version: AdapterVersion, sites: Vec<(Site, SiteDelta)>) -> Result<LoraAdapter, PackError> {
        let bytes = self.packed_bytes(&sites);
        let mut layers: Vec<[Option<PlainDelta>; Projection::ALL.len()]> = Vec::new();
        layers.resize_with(self.shape.layers, Default::default);
        for (site, delta) in sites {
            let delta = PlainDelta::of(&self.shape, site, delta)?;
            let place = &mut layers[delta.layer][delta.projection as usize];
            if place.is_some() {
                return Err(PackError::Twice { site: site.to_string() });
            }
            *place = Some(delta);
        }
        let stack = |layer: &mut [Option<PlainDelta>; Projection::ALL.len()], input: Input| {
            let deltas = input.projections().iter().filter_map(|projection| layer[*projection as usize].take());
            let deltas: Vec<PlainDelta> = deltas.collect();
            (!deltas.is_empty()).then(|| Stack::pack(self.class, deltas))
        };
        let mut layers: Vec<[Option<Stack>; 4]> =
            layers.iter_mut().map(|layer| Input::ALL.map(|input| stack(layer, input))).collect();
        // In the order in which a step reads them.
        Blob::gather(layers.iter_mut().flatten().flatten().flat_map(Stack::blobs));
        Ok(LoraAdapter::new(version, bytes, Arc::new(CpuAdapter { base: self.base, class: self.class, layers })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_beyond_half_precision_are_brought_into_it_and_back() {
        for largest in [3e-7f32, 1.5, 70_000.0, 1e30] {
            let values: Vec<f32> = (1..=50).map(|i| largest * (i as f32 / 50.1)).collect();
            let mut fitted = values.clone();
            let factor = fit_half(&mut fitted);
            for (value, fitted) in values.iter().zip(fitted) {
                let kept = half::f16::from_f32(fitted).to_f32() * factor;
                assert!((kept / value - 1.0).abs() < 6e-4, "{value} is kept as {kept}");
            }
        }
        let mut halves = [0.5f32, -0.25, 1e-3];
        halves[2] = half::f16::from_f32(halves[2]).to_f32();
        assert_eq!((fit_half(&mut halves), halves[0]), (1.0, 0.5));
    }

    #[test]
    fn factors_keep_their_own_dtype_in_the_exact_class() {
        use Precision::{BF16, F16, F32, I8};
        for (class, inputs, kinds, expected) in [
            (Class::Exact, 64, [F32, F32], F32),
            (Class::Exact, 64, [F16, F16], F16),
            (Class::Exact, 64, [BF16, BF16], BF16),
            (Class::Exact, 64, [BF16, F16], F32),
            (Class::Fast, 64, [F32, F32], I8),
            (Class::Fast, 64, [BF16, BF16], I8),
            (Class::Fast, 40, [F32, F32], F16),
            (Class::Fast, 40, [BF16, BF16], BF16),
        ] {
            assert_eq!(precision(class, inputs, kinds.into_iter()), expected, "{class:?} {inputs} {kinds:?}");
        }
    }
}
