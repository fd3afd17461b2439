//! The decoder: its parts, their assembly, and the frame of a step.

use std::sync::Arc;

use half::f16;

use super::{
    Class, Numerics,
    adapter::CpuPacker,
    answer::{Answers, Ending},
    buffers::Buffers,
    costs,
    kv::KvStore,
    network::{Builder, Network},
    plan::Plan,
    step::Step,
};
use crate::{
    kernels::{attention::Stored, memory::Memory, pool::Pool},
    model::{
        Batch, KvShape, LanguageModel, LoadError, ModelShape, Packer, StepError, StepOutput, Timings, TokenSketch,
        rope::Rotary,
        sketch,
        timing::{Clock, MachineLimits, Phase, PhaseNeeds},
        weights::Weights,
    },
    terms::Digest,
};

/// [`LanguageModel`] on packed weights.
pub struct CpuDecoder {
    kv: KvShape,
    base: Digest,
    numerics: Numerics,
    network: Arc<Network>,
    rotary: Rotary,
    pool: Pool,
    store: Store,
    buffers: Buffers,
    answers: Answers,
    clock: Clock,
    /// Whether the thread that calls `forward` has taken its place in the pool.
    settled: bool,
}

/// Keys and values in the class's dtype.
enum Store {
    Exact(KvStore<f32>),
    Fast(KvStore<f16>),
}

/// A decoder with what belongs to it.
pub struct Parts {
    pub decoder: CpuDecoder,
    pub packer: Arc<dyn Packer>,
    pub network: Arc<Network>,
    pub sketch: TokenSketch,
}

/// Builds the decoder, taking its tensors out of `weights`; nothing of `weights` is needed afterwards.
///
/// # Errors
/// [`LoadError`] if a tensor is missing or has another shape than `shape` says, or the system gives no threads.
pub fn assemble(
    weights: &mut Weights,
    shape: &ModelShape,
    kv: KvShape,
    base: Digest,
    numerics: Numerics,
    (threads, pin): (usize, bool),
) -> Result<Parts, LoadError> {
    let pool = if pin { Pool::pinned(threads) } else { Pool::new(threads) };
    let mut pool = pool.map_err(|error| LoadError::Device(error.to_string()))?;
    let network = Arc::new(Builder { weights, shape, pool: &mut pool, memory: Memory::default() }.network()?);
    let size = (shape.vocab, shape.hidden);
    let sketch = sketch::of(&mut pool, numerics.isa, size, |token, row| network.embed(token, row))
        .map_err(|fault| LoadError::Unsupported(format!("the token sketch: {fault}")))?;
    let store = match numerics.class {
        Class::Exact => Store::Exact(KvStore::new(shape, kv)),
        Class::Fast => Store::Fast(KvStore::new(shape, kv)),
    };
    Ok(Parts {
        packer: Arc::new(CpuPacker { network: Arc::clone(&network), base, class: numerics.class }),
        network: Arc::clone(&network),
        sketch,
        decoder: CpuDecoder {
            kv,
            base,
            numerics,
            rotary: Rotary::new(&shape.rope, shape.head_dim),
            network,
            pool,
            store,
            buffers: Buffers::default(),
            answers: Answers::default(),
            clock: Clock::default(),
            settled: false,
        },
    })
}

#[cfg(test)]
impl CpuDecoder {
    /// Lets tests choose in which order work is claimed.
    pub fn claim(&mut self, order: crate::kernels::pool::Order) {
        self.pool.claim(order);
    }
}

impl LanguageModel for CpuDecoder {
    fn shape(&self) -> &ModelShape {
        &self.network.shape
    }

    fn kv_shape(&self) -> KvShape {
        self.kv
    }

    fn forward(&mut self, batch: &Batch, out: &mut StepOutput) -> Result<(), StepError> {
        if !self.settled {
            // Only the engine's thread calls, and it is not the one that loaded.
            self.pool.settle();
            self.settled = true;
        }
        self.clock.begin();
        out.clear();
        batch.check(&self.network.shape, self.kv)?;
        match &mut self.store {
            Store::Exact(store) => store.copy(&batch.copies),
            Store::Fast(store) => store.copy(&batch.copies),
        }
        if batch.rows() == 0 {
            return Ok(());
        }
        let numbers = (self.base, self.numerics.class);
        let plan = Plan::new(batch, (&self.network.shape, self.kv), &self.rotary, numbers, self.pool.threads())?;
        self.clock.lap(Phase::Plan);
        let (network, buffers, pool) = (&*self.network, &mut self.buffers, &mut self.pool);
        let clock = &mut self.clock;
        match &mut self.store {
            Store::Exact(store) => {
                run(Step { network, numerics: self.numerics, plan: &plan, pool, store, buffers, clock })
            }
            Store::Fast(store) => {
                run(Step { network, numerics: self.numerics, plan: &plan, pool, store, buffers, clock })
            }
        }
        let (residual, pool, clock) = (self.buffers.residual.as_slice(), &mut self.pool, &mut self.clock);
        Ending { network, numerics: self.numerics, heads: &plan.heads, pool, residual, clock }.answer(
            &batch.asks,
            &mut self.answers,
            out,
        );
        Ok(())
    }

    fn take_timings(&mut self) -> Option<Timings> {
        Some(self.clock.take())
    }

    fn limits(&mut self) -> Result<Option<MachineLimits>, StepError> {
        costs::machine(&self.network, self.numerics, &mut self.pool)
            .map(Some)
            .map_err(|error| StepError::Device(error.to_string()))
    }

    fn needs(&self, batch: &Batch) -> Result<Vec<PhaseNeeds>, StepError> {
        batch.check(&self.network.shape, self.kv)?;
        let numbers = (self.base, self.numerics.class);
        let plan = Plan::new(batch, (&self.network.shape, self.kv), &self.rotary, numbers, self.pool.threads())?;
        Ok(costs::needs(&self.network, self.numerics, &plan, self.pool.threads()))
    }
}

fn run<T: Stored>(mut step: Step<T>) {
    step.run(step.plan.batch.asks.is_empty());
}
