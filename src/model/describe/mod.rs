//! What the configuration files say: the shape, the tokens that end a turn, sampling defaults.

mod folder;
mod gguf;

pub use folder::read_folder;
pub use gguf::{interleaved_heads, read_gguf};

use super::{LoadError, ModelShape};
use crate::terms::SamplingLayer;

/// A base model as its configuration describes it, before any weight is read.
#[derive(Debug)]
pub struct Description {
    pub shape: ModelShape,
    /// Ascending, each once.
    pub eos_tokens: Vec<u32>,
    pub sampling: SamplingLayer,
    pub notes: Vec<String>,
}

/// Refuses a number of layers that no model has, before anything is kept for each layer.
fn check_layers(layers: usize) -> Result<usize, LoadError> {
    between("number of layers", layers, 1 << 10)?;
    Ok(layers)
}

fn between(what: &str, value: usize, most: usize) -> Result<(), LoadError> {
    let fits = (1..=most).contains(&value);
    fits.then_some(()).ok_or_else(|| LoadError::Unsupported(format!("{what} is {value}; 1 to {most} is supported")))
}

/// Refuses sizes that no model has and that later arithmetic could not hold.
fn check(shape: &ModelShape) -> Result<(), LoadError> {
    between("hidden size", shape.hidden, 1 << 17)?;
    between("number of attention heads", shape.heads, 1 << 10)?;
    between("number of key-value heads", shape.kv_heads, 1 << 10)?;
    between("head size", shape.head_dim, 1 << 12)?;
    between("feed-forward size", shape.ffn, 1 << 20)?;
    between("vocabulary", shape.vocab, 1 << 24)?;
    between("context length", shape.max_positions, 1 << 24)?;
    if !shape.heads.is_multiple_of(shape.kv_heads) {
        let (heads, kv_heads) = (shape.heads, shape.kv_heads);
        return Err(LoadError::Unsupported(format!("{heads} heads cannot share {kv_heads} key-value heads evenly")));
    }
    if !shape.head_dim.is_multiple_of(2) {
        return Err(LoadError::Unsupported(format!("the head size {} is odd", shape.head_dim)));
    }
    if !(shape.norm_eps > 0.0 && shape.norm_eps < 1.0) {
        return Err(LoadError::Unsupported(format!("the norm's epsilon is {}", shape.norm_eps)));
    }
    if shape.window.contains(&Some(0)) {
        return Err(LoadError::Unsupported("a sliding window of 0 positions".to_owned()));
    }
    shape.rope.check().map_err(LoadError::Unsupported)
}
