//! The decoder on candle tensors: CUDA, Metal, and on a CPU the readable oracle that everything faster is compared with.
//!
//! On a CPU all is `f32`: weights are dequantized at load, and adapters keep their exact values.
//!
//! What a step costs a GPU is bounded by design, and held by counts that need none ([`ops`]): the number of operations grows
//! neither with the adapters of a rank ([`deltas`], [`stacks`]) nor with sequences of similar length ([`plan`]); what goes
//! up is indices, tables and sampling parameters; what comes down is scores ([`scores`]).
//!
//! Attention gathers keys and values from their blocks and takes ordinary products; on CUDA, in a build with the feature
//! `flash-attn`, `candle-flash-attn`'s paged kernel reads them where they lie ([`paged`]).

mod answer;
mod attention;
mod candidates;
mod decoder;
mod deltas;
mod draw;
mod host;
mod kv;
mod linear;
mod lora;
mod mlp;
mod ops;
// What the kernel is told is read where the kernel is.
#[cfg_attr(not(any(test, feature = "flash-attn")), allow(dead_code))]
mod paged;
mod plan;
mod rows;
mod scores;
mod stacks;
#[cfg(test)]
pub(super) mod tests;
mod turns;

pub use decoder::{Parts, assemble, dtype};
pub use paged::possible as reads_pages;
