//! Adapters in the form that the kernels read.

use std::sync::Arc;

use super::{Class, embed::Embedder, head::Head, network::Network, turn::Turn, whole};
use crate::{
    kernels::{
        blob::Blob,
        lora::{Expand, Precision, Shrink},
        pack::BLOCK,
    },
    model::{
        LoraAdapter, Matrix, ModelShape, PackError, Packer, Projection, Site, SiteDelta,
        changes::{Change, Changes, LowRank},
        dora::gains,
        lora::Values,
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
    pub const ALL: [Self; 4] = [Self::Attention, Self::Output, Self::Feed, Self::Down];

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
    /// For each layer and [`Input`], the low ranks there.
    layers: Vec<[Option<Stack>; 4]>,
    /// For each layer and [`Projection`], what is done to its outputs; empty if nothing is anywhere.
    turns: Vec<[Option<Turn>; Projection::ALL.len()]>,
    pub embedder: Option<Embedder>,
    pub head: Option<Head>,
}

/// An adapter's low ranks at the projections of one input, or at the one that is no layer's.
pub struct Stack<P = Projection> {
    /// Their A, one below the other.
    pub shrink: Shrink,
    expands: Vec<(P, Expand)>,
}

impl CpuAdapter {
    pub fn stack(&self, layer: usize, input: Input) -> Option<&Stack> {
        self.layers[layer][input as usize].as_ref()
    }

    /// Whether outputs of any projection are changed otherwise than by low ranks.
    pub fn turns(&self) -> bool {
        !self.turns.is_empty()
    }

    pub fn turn(&self, layer: usize, projection: Projection) -> Option<&Turn> {
        self.turns.get(layer)?[projection as usize].as_ref()
    }
}

impl<P: Copy + PartialEq> Stack<P> {
    pub fn expand(&self, projection: P) -> Option<&Expand> {
        self.expands.iter().find(|(other, _)| *other == projection).map(|(_, expand)| expand)
    }

    /// Each B, with whose it is.
    pub fn expands(&self) -> impl Iterator<Item = (P, &Expand)> {
        self.expands.iter().map(|(projection, expand)| (*projection, expand))
    }

    /// The memory of its factors, where that can be moved.
    fn blobs(&mut self) -> impl Iterator<Item = &mut Blob> {
        let expands = self.expands.iter_mut().filter_map(|(_, expand)| expand.blob());
        self.shrink.blob().into_iter().chain(expands)
    }

    pub fn pack(class: Class, deltas: Vec<(P, LowRank)>) -> Self {
        let kinds = deltas.iter().flat_map(|(_, low)| [kind(&low.a), kind(&low.b)]);
        let inputs = deltas.first().map_or(0, |(_, low)| low.a.cols);
        let precision = precision(class, inputs, kinds);
        let (mut stacked, mut expands, mut ranks) = (Vec::new(), Vec::new(), 0);
        for (projection, LowRank { a, b, scale }) in deltas {
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

/// Bytes that a stack of these takes.
fn stack_bytes(class: Class, deltas: &[(&Matrix, &Matrix)]) -> usize {
    let inputs = deltas.first().map_or(0, |(a, _)| a.cols);
    let precision = precision(class, inputs, deltas.iter().flat_map(|(a, b)| [kind(a), kind(b)]));
    let ranks = deltas.iter().map(|(a, _)| a.rows).sum();
    let shrink = deltas.first().map_or(0, |(a, _)| Shrink::bytes(precision, ranks, a.cols));
    shrink + deltas.iter().map(|(_, b)| Expand::bytes(precision, b.rows, b.cols)).sum::<usize>()
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
    /// What DoRA's norms and biases refer to.
    pub network: Arc<Network>,
    pub base: Digest,
    pub class: Class,
}

impl Packer for CpuPacker {
    fn shape(&self) -> &ModelShape {
        &self.network.shape
    }

    fn packed_bytes(&self, sites: &[(Site, SiteDelta)]) -> u64 {
        let mut bytes = 0;
        for layer in 0..self.network.shape.layers {
            for input in Input::ALL {
                let at = |projection| Site::Layer { layer: layer as u16, projection };
                let deltas = input.projections().iter().filter_map(|&projection| {
                    sites.iter().find_map(|(site, delta)| match delta {
                        SiteDelta::LowRank { a, b, .. } if *site == at(projection) => Some((a, b)),
                        _ => None,
                    })
                });
                bytes += stack_bytes(self.class, &deltas.collect::<Vec<_>>());
            }
        }
        bytes += sites.iter().map(|(site, delta)| self.bytes_beside(*site, delta)).sum::<usize>();
        bytes as u64
    }

    fn pack(&self, version: AdapterVersion, sites: Vec<(Site, SiteDelta)>) -> Result<LoraAdapter, PackError> {
        let bytes = self.packed_bytes(&sites);
        let Changes { mut layers, embedding, head } = Changes::of(&self.network.shape, sites)?;
        let turns = match layers.iter().flatten().flatten().any(Change::turns) {
            true => layers
                .iter()
                .enumerate()
                .map(|(layer, changes)| self.turns(layer, changes))
                .collect::<Result<_, _>>()?,
            false => Vec::new(),
        };
        let stack = |layer: &mut [Option<Change>; Projection::ALL.len()], input: Input| {
            let low_ranks = input.projections().iter().filter_map(|&projection| {
                let change = layer[projection as usize].as_mut()?;
                change.low_rank.take().map(|low| (projection, low))
            });
            let low_ranks: Vec<_> = low_ranks.collect();
            (!low_ranks.is_empty()).then(|| Stack::pack(self.class, low_ranks))
        };
        let mut layers: Vec<[Option<Stack>; 4]> =
            layers.iter_mut().map(|layer| Input::ALL.map(|input| stack(layer, input))).collect();
        // In the order in which a step reads them.
        Blob::gather(layers.iter_mut().flatten().flatten().flat_map(Stack::blobs));
        let embedder = embedding.map(|change| Embedder::pack(self.class, &self.network, change)).transpose()?;
        let head = head.map(|change| Head::pack(self.class, &self.network, change)).transpose()?;
        let (base, class) = (self.base, self.class);
        Ok(LoraAdapter::new(version, bytes, Arc::new(CpuAdapter { base, class, layers, turns, embedder, head })))
    }
}

impl CpuPacker {
    /// What a layer's changes do beside their low ranks, which are still there.
    fn turns(
        &self,
        layer: usize,
        changes: &[Option<Change>; Projection::ALL.len()],
    ) -> Result<[Option<Turn>; Projection::ALL.len()], PackError> {
        let mut turns: [Option<Turn>; Projection::ALL.len()] = Default::default();
        for projection in Projection::ALL {
            let Some(change) = &changes[projection as usize] else { continue };
            let linear = self.network.layers[layer].linear(projection);
            let gain = match (&change.magnitude, &change.low_rank) {
                (Some(magnitude), Some(low)) => {
                    let site = Site::Layer { layer: layer as u16, projection };
                    Some(gains(site, magnitude, low, |output, out| linear.weights.row(output, out))?)
                }
                (_, _) => None,
            };
            let bias = linear.bias.as_deref();
            turns[projection as usize] = Turn::new(change, linear.weights.outputs(), bias, gain);
        }
        Ok(turns)
    }

    /// Bytes of what a delta holds beside a low rank of a layer.
    fn bytes_beside(&self, site: Site, delta: &SiteDelta) -> usize {
        let biased = self.network.shape.has_bias(site);
        match delta {
            SiteDelta::LowRank { a, b, lora_bias, base_bias, magnitude, .. } => {
                let shifted = lora_bias.is_some() || base_bias.is_some() || (magnitude.is_some() && biased);
                let low = if site == Site::Head { stack_bytes(self.class, &[(a, b)]) } else { 0 };
                low + Turn::bytes(b.rows, magnitude.is_some(), shifted)
            }
            SiteDelta::Bias(bias) => Turn::bytes(bias.len(), false, true),
            SiteDelta::Full(matrix) => whole::bytes(self.class, matrix),
            SiteDelta::EmbedLowRank { a, b, magnitude, .. } => Embedder::bytes(a, b, magnitude.is_some()),
            // Refused by `pack`, which then holds nothing.
            SiteDelta::TokenRows { .. } => 0,
        }
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
