//! Slices in, slices out; no tensors. All the `unsafe` of the crate is here.

pub mod activation;
pub mod attention;
pub mod blob;
pub mod caches;
pub mod cores;
pub mod dequant;
pub mod fetch;
pub mod heap;
pub mod isa;
pub mod limits;
pub mod lora;
pub mod map;
pub mod matmul;
pub mod memory;
pub mod pack;
pub mod pool;
pub mod priority;
pub mod quantize;
pub mod reference;
pub mod rope;
pub mod round;
pub mod sample;
pub mod scan;
pub mod share;
pub mod spread;
#[cfg(target_arch = "x86_64")]
mod x86;
