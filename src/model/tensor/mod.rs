//! The decoder on candle tensors: CUDA, Metal, and on a CPU the readable oracle that everything faster is compared with.
//!
//! On a CPU all is `f32`: weights are dequantized at load, and adapters keep their exact values.

mod answer;
mod attention;
mod decoder;
mod kv;
mod linear;
mod lora;
mod mlp;
mod plan;
mod rows;

pub use decoder::{Parts, assemble, dtype};
