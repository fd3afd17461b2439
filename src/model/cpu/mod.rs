//! The decoder on a CPU: packed weights, one step of fused phases on our own threads, its own buffers.
//!
//! A row's result is the same to the bit whatever rows stand beside it, however its prompt was cut into chunks, and on however
//! many threads: each output is summed in an order that its row alone decides. Prefix cache, preemption and replay rest on it.

mod adapter;
mod answer;
mod buffers;
mod costs;
mod decoder;
mod delta;
mod embed;
mod head;
mod kv;
mod network;
mod plan;
mod step;
#[cfg(test)]
mod tests;
mod turn;
mod whole;

pub use decoder::{Parts, assemble};

use crate::kernels::{isa::Isa, pack::Packed};

/// How numbers are rounded on their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// `f32` activations, keys and values; adapters in their own dtype.
    Exact,
    /// int8 activations before quantized weights, `f16` keys and values, adapters in 8 bits.
    Fast,
}

impl Class {
    /// Bytes of one stored number of keys and values.
    pub const fn kv_bytes(self) -> usize {
        match self {
            Self::Exact => 4,
            Self::Fast => 2,
        }
    }

    /// Whether a product with `weights` takes quantized activations.
    fn quantizes(self, weights: &Packed) -> bool {
        self == Self::Fast && weights.takes_int8()
    }
}

/// What every phase is told about numbers.
#[derive(Clone, Copy, Debug)]
pub struct Numerics {
    pub class: Class,
    pub isa: Isa,
}
