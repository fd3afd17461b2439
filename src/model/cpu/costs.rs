//! What a step reads and multiplies at least, beside what the machine can do.

use super::{
    Numerics,
    adapter::Input,
    delta::{Sharing, Spot},
    network::Network,
    plan::Plan,
};
use crate::{
    kernels::{
        caches, limits,
        pack::{PackFault, Packed},
        pool::Pool,
    },
    model::{
        Projection, SequenceRows, Want,
        timing::{MachineLimits, Phase, PhaseNeeds},
    },
};

/// Measures the machine with the kernel that most of the weights go through.
pub fn machine(network: &Network, numerics: Numerics, pool: &mut Pool) -> Result<MachineLimits, PackFault> {
    let most = &network.layers[0].linear(Projection::Gate).weights;
    let measured = limits::measure(pool, numerics.isa, most.encoding(), numerics.class.quantizes(most))?;
    let last_level = caches::last_level().map(|bytes| bytes as u64);
    Ok(MachineLimits { read: measured.read, last_level, multiply: measured.multiply })
}

/// What a planned step needs, on so many threads.
pub fn needs(network: &Network, numerics: Numerics, plan: &Plan, threads: usize) -> Vec<PhaseNeeds> {
    let mut needs = Needs::default();
    let (layers, rows) = (network.layers.len(), plan.rows as u64);
    let shape = &network.shape;
    let position = (2 * shape.kv_heads * shape.head_dim * numerics.class.kv_bytes()) as u64;
    for (index, layer) in network.layers.iter().enumerate() {
        needs.add(Phase::Place, rows * position, 0);
        // Without asks, the last layer is left behind its keys and values.
        let whole = index + 1 < layers || !plan.batch.asks.is_empty();
        for input in Input::ALL.into_iter().take(if whole { Input::ALL.len() } else { 1 }) {
            for &projection in input.projections() {
                let weights = &layer.linear(projection).weights;
                needs.add(product(input), weights.bytes() as u64, rows * values(weights));
            }
            let spot = Spot { layer: index, input };
            for adapter in &plan.adapters {
                let Some(stack) = adapter.weights.stack(index, input) else { continue };
                let (a, own) = (&stack.shrink, adapter.rows.len() as u64);
                let phase = if spot.sharing(plan, threads) == Sharing::Runs { Phase::Shrink } else { makes(input) };
                needs.add(phase, a.size() as u64, own * (a.ranks() * a.inputs()) as u64);
                for (projection, b) in stack.expands() {
                    let outputs = layer.linear(projection).weights.outputs();
                    needs.add(product(input), b.size(outputs) as u64, own * (b.rank() * outputs) as u64);
                }
            }
        }
        if whole {
            for sequence in &plan.batch.sequences {
                let (held, seen) = context(plan, sequence, layer.window);
                needs.add(Phase::Attention, held * position, seen * (2 * shape.heads * shape.head_dim) as u64);
            }
        }
    }
    let judged = plan.batch.asks.iter().filter(|ask| !matches!(ask.want, Want::Hidden)).count() as u64;
    if judged > 0 {
        needs.add(Phase::Head, network.head.bytes() as u64, judged * values(&network.head));
    }
    needs.phases()
}

/// Positions that a sequence's rows see in one layer: different ones, and of all rows together.
fn context(plan: &Plan, sequence: &SequenceRows, window: Option<usize>) -> (u64, u64) {
    let first = plan.batch.positions[sequence.first_row as usize] as usize;
    let seen = |position: usize| window.map_or(position + 1, |window| window.min(position + 1));
    let end = first + sequence.rows as usize;
    let all: usize = (first..end).map(seen).sum();
    ((end - (first + 1 - seen(first))) as u64, all as u64)
}

fn values(weights: &Packed) -> u64 {
    weights.outputs() as u64 * weights.inputs() as u64
}

/// The phase in which an input is multiplied.
const fn product(input: Input) -> Phase {
    match input {
        Input::Attention => Phase::Qkv,
        Input::Output => Phase::Output,
        Input::Feed => Phase::GateUp,
        Input::Down => Phase::Down,
    }
}

/// The phase in which an input is made, and shrunk where rows are shared out.
const fn makes(input: Input) -> Phase {
    match input {
        Input::Attention | Input::Feed => Phase::Norm,
        Input::Output => Phase::Join,
        Input::Down => Phase::Quantize,
    }
}

/// Bytes and multiplications by phase.
#[derive(Default)]
struct Needs([(u64, u64); Phase::ALL.len()]);

impl Needs {
    fn add(&mut self, phase: Phase, bytes: u64, multiplications: u64) {
        let of = &mut self.0[phase as usize];
        *of = (of.0 + bytes, of.1 + multiplications);
    }

    fn phases(self) -> Vec<PhaseNeeds> {
        let all = Phase::ALL.into_iter().zip(self.0);
        let needs = all.map(|(phase, (bytes, multiplications))| PhaseNeeds { phase, bytes, multiplications });
        needs.filter(|needs| (needs.bytes, needs.multiplications) != (0, 0)).collect()
    }
}
