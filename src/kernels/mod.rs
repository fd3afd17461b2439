//! Slices in, slices out; no tensors. All the `unsafe` of the crate is here.

pub mod priority;
