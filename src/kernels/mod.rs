//! Slices in, slices out; no tensors. All the `unsafe` of the crate is here.

pub mod dequant;
pub mod map;
pub mod priority;
pub mod reference;
pub mod sample;
