//! What a step reads and multiplies at least, beside what the machine can do.

use super::{Numerics, network::Network};
use crate::{
    kernels::{
        caches, limits,
        pack::{PackFault, Packed},
        pool::Pool,
    },
    model::{
        Projection,
        timing::{Costs, Phase, PhaseWeights},
    },
};

/// Measures the machine with the kernel that most of the weights go through, and counts each phase's weights.
pub fn costs(network: &Network, numerics: Numerics, pool: &mut Pool) -> Result<Costs, PackFault> {
    let of = |phase, projections: &[Projection]| {
        let linears = || network.layers.iter().flat_map(|layer| projections.iter().map(|&p| &layer.linear(p).weights));
        let (bytes, values) = (linears().map(Packed::bytes).sum::<usize>(), linears().map(values).sum::<u64>());
        PhaseWeights { phase, bytes: bytes as u64, values }
    };
    use Projection::{Down, Gate, Key, Output, Query, Up, Value};
    let head = PhaseWeights { phase: Phase::Head, bytes: network.head.bytes() as u64, values: values(&network.head) };
    let weights = vec![
        of(Phase::Qkv, &[Query, Key, Value]),
        of(Phase::Output, &[Output]),
        of(Phase::GateUp, &[Gate, Up]),
        of(Phase::Down, &[Down]),
        head,
    ];
    let most = &network.layers[0].linear(Gate).weights;
    let measured = limits::measure(pool, numerics.isa, most.encoding(), numerics.class.quantizes(most))?;
    let last_level = caches::last_level().map(|bytes| bytes as u64);
    Ok(Costs { read: measured.read, last_level, multiply: measured.multiply, weights })
}

fn values(weights: &Packed) -> u64 {
    weights.outputs() as u64 * weights.inputs() as u64
}
