//! Slices in, slices out; no tensors. All the `unsafe` of the crate is here.

pub mod dequant;
pub mod isa;
pub mod map;
pub mod matmul;
pub mod pack;
pub mod priority;
pub mod quantize;
pub mod reference;
pub mod sample;
pub mod spread;
#[cfg(target_arch = "x86_64")]
mod x86;
