//! A GGUF file's metadata. Keys and meanings as in llama.cpp's `llama-arch` and `llama-model`.

use std::path::Path;

use super::{Description, check, check_layers};
use crate::{
    model::{Family, LoadError, ModelShape, Rope, weights::gguf::GgufFile},
    terms::SamplingLayer,
};

/// Reads a file's description from its metadata and from which tensors it has.
///
/// # Errors
/// [`LoadError`] if a needed key is absent, the architecture is not ours, or a key asks for what we do not compute.
pub fn read_gguf(path: &Path, file: &GgufFile) -> Result<Description, LoadError> {
    let meta = &file.metadata;
    let arch = meta.text("general.architecture");
    let arch = arch.ok_or_else(|| LoadError::Malformed {
        path: path.to_owned(),
        reason: "has no general.architecture".to_owned(),
    })?;
    let family = match arch {
        "llama" => Family::Llama,
        "qwen2" => Family::Qwen2,
        "qwen3" => Family::Qwen3,
        "smollm3" => Family::SmolLm3,
        other => return Err(LoadError::Family(other.to_owned())),
    };
    let key = |name: &str| format!("{arch}.{name}");
    let needed = |name: &str| {
        meta.count(&key(name)).ok_or_else(|| LoadError::Malformed {
            path: path.to_owned(),
            reason: format!("{} must be one whole number", key(name)),
        })
    };
    if meta.count(&key("expert_count")).is_some_and(|experts| experts > 0) {
        return Err(LoadError::Unsupported("mixtures of experts are not supported".to_owned()));
    }
    let vocab = match file.shape_of("token_embd.weight") {
        Some([vocab, _]) => *vocab,
        Some(other) => {
            let (got, name) = (other.to_vec(), "token_embd.weight".to_owned());
            return Err(LoadError::TensorShape { name, got, expected: vec![0, 0] });
        }
        None => return Err(LoadError::MissingTensor("token_embd.weight".to_owned())),
    };
    let (hidden, layers) = (needed("embedding_length")?, check_layers(needed("block_count")?)?);
    let heads = needed("attention.head_count")?;
    let head_dim = meta.count(&key("attention.key_length")).unwrap_or(hidden / heads.max(1));
    if meta.count(&key("attention.value_length")).is_some_and(|length| length != head_dim) {
        return Err(LoadError::Unsupported("values and keys of different length are not supported".to_owned()));
    }
    if let Some(part) = meta.count(&key("rope.dimension_count")).filter(|part| *part != head_dim) {
        return Err(LoadError::Unsupported(format!(
            "rotary positions on {part} of {head_dim} dimensions are not supported"
        )));
    }
    let context = needed("context_length")?;
    // llama.cpp fixes the interval; the file does not carry it.
    let no_rope = (1..=layers).map(|layer| family == Family::SmolLm3 && layer.is_multiple_of(4)).collect();
    let window = meta.count(&key("attention.sliding_window")).filter(|window| *window > 0);
    let has = |name: &str| file.shape_of(name).is_some();
    let shape = ModelShape {
        family,
        hidden,
        layers,
        heads,
        kv_heads: meta.count(&key("attention.head_count_kv")).unwrap_or(heads),
        head_dim,
        ffn: needed("feed_forward_length")?,
        vocab,
        max_positions: context,
        norm_eps: meta.number(&key("attention.layer_norm_rms_epsilon")).unwrap_or(1e-5),
        rope: rope(file, arch, context, head_dim)?,
        no_rope,
        window: vec![window; layers],
        tied: !has("output.weight"),
        qkv_bias: has("blk.0.attn_q.bias"),
        output_bias: has("blk.0.attn_output.bias"),
        ffn_bias: has("blk.0.ffn_up.bias"),
        qk_norm: family == Family::Qwen3,
    };
    check(&shape)?;
    let ids = ["tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"];
    let mut eos_tokens: Vec<u32> =
        ids.iter().filter_map(|id| meta.count(id)).filter_map(|id| u32::try_from(id).ok()).collect();
    eos_tokens.sort_unstable();
    eos_tokens.dedup();
    Ok(Description { shape, eos_tokens, sampling: SamplingLayer::default(), notes: Vec::new() })
}

/// The heads of queries and keys whose rows the converter reorders for ggml's pairwise rotation, if the family's are.
pub fn interleaved_heads(shape: &ModelShape) -> Option<(usize, usize)> {
    match shape.family {
        Family::Llama | Family::Mistral | Family::SmolLm3 => Some((shape.heads, shape.kv_heads)),
        Family::Qwen2 | Family::Qwen3 => None,
    }
}

/// `rope_freqs.weight` is read with the other weights, into the [`Rope::Factors`] returned here with none yet.
fn rope(file: &GgufFile, arch: &str, context: usize, head_dim: usize) -> Result<Rope, LoadError> {
    let meta = &file.metadata;
    let key = |name: &str| format!("{arch}.rope.{name}");
    let theta = meta.number(&key("freq_base")).unwrap_or(10_000.0);
    let scaling = meta.text(&key("scaling.type")).unwrap_or("none");
    if file.shape_of("rope_freqs.weight").is_some() {
        return match scaling {
            "none" => Ok(Rope::Factors { theta, factors: vec![1.0; head_dim / 2] }),
            other => Err(LoadError::Unsupported(format!("rope_freqs together with rope scaling '{other}'"))),
        };
    }
    let factor = meta.number(&key("scaling.factor")).unwrap_or(1.0);
    match scaling {
        "none" => Ok(Rope::Plain { theta }),
        "linear" => Ok(Rope::Linear { theta, factor }),
        "yarn" => Ok(Rope::Yarn {
            theta,
            factor,
            beta_fast: meta.number(&key("scaling.yarn_beta_fast")).unwrap_or(32.0),
            beta_slow: meta.number(&key("scaling.yarn_beta_slow")).unwrap_or(1.0),
            attention_factor: Rope::yarn_attention(factor, 1.0)
                * meta.number(&key("scaling.attn_factor")).unwrap_or(1.0),
            original_max_positions: meta.count(&key("scaling.original_context_length")).unwrap_or(context),
            truncate: true,
        }),
        other => Err(LoadError::Unsupported(format!("rope scaling '{other}' is not supported; linear and yarn are"))),
    }
}
