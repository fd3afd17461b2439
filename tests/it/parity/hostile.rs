//! Model files that lie: each is refused with a reason, and none makes the loader panic or take memory that a file only claims.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde_json::{Value, json};
use tunegate::{
    config::Dtype,
    model::{CpuOptions, LoadError, LoadOptions, ModelSource, load},
};

use super::golden;
use crate::support::device_choice;

fn options() -> LoadOptions {
    LoadOptions {
        device: device_choice(),
        dtype: Some(Dtype::Float32),
        kv_bytes: 1 << 20,
        block_tokens: 16,
        max_model_len: Some(64),
        cpu: CpuOptions::default(),
    }
}

fn attempt(path: &Path) -> Result<(), LoadError> {
    load(&ModelSource::detect(path)?, &options()).map(|_| ())
}

#[track_caller]
fn refused(path: &Path, reason: &str) {
    match attempt(path) {
        Ok(()) => panic!("{} was loaded; expected: {reason}", path.display()),
        Err(error) => assert!(error.to_string().contains(reason), "'{error}' does not say '{reason}'"),
    }
}

/// A copy of a golden model's folder, to be spoiled.
fn copy(model: &str) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(golden::path(&format!("models/{model}"))).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), folder.path().join(entry.file_name())).unwrap();
    }
    folder
}

fn with_config(model: &str, change: impl Fn(&mut serde_json::Map<String, Value>)) -> tempfile::TempDir {
    let folder = copy(model);
    let path = folder.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(config.as_object_mut().unwrap());
    fs::write(path, config.to_string()).unwrap();
    folder
}

fn with_key(model: &str, key: &str, value: Value) -> tempfile::TempDir {
    with_config(model, |config| {
        config.insert(key.to_owned(), value.clone());
    })
}

#[test]
fn a_path_that_is_no_model_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    refused(folder.path(), "neither a config.json nor a .gguf");
    refused(&folder.path().join("absent.gguf"), "No such file");
    let text = folder.path().join("model.bin");
    fs::write(&text, b"").unwrap();
    refused(&text, "neither a .gguf file nor a folder");
    fs::write(folder.path().join("a.gguf"), b"").unwrap();
    refused(folder.path(), "ends at byte 0");
    fs::write(folder.path().join("b.gguf"), b"").unwrap();
    refused(folder.path(), "several .gguf files");
}

#[test]
fn a_configuration_that_asks_for_something_else_is_refused_by_name() {
    for (key, value, reason) in [
        ("model_type", json!("gemma3"), "family 'gemma3' is not supported"),
        ("model_type", json!(7), "model_type must be a string"),
        ("model_type", Value::Null, "model_type must be"),
        ("hidden_act", json!("gelu"), "hidden_act 'gelu'"),
        ("quantization_config", json!({"quant_method": "gptq"}), "quantization_config"),
        ("hidden_size", json!(0), "hidden size is 0"),
        ("hidden_size", json!(-1), "hidden_size must be a whole number"),
        ("num_hidden_layers", json!(1u64 << 40), "number of layers"),
        ("vocab_size", json!(u64::MAX), "vocabulary"),
        ("num_key_value_heads", json!(3), "cannot share 3 key-value heads"),
        ("head_dim", json!(15), "head size 15 is odd"),
        ("rms_norm_eps", json!(0.0), "epsilon is 0"),
        ("rope_theta", json!(-1.0), "rope: theta"),
        ("rope_scaling", json!({"rope_type": "longrope", "factor": 2.0}), "rope type 'longrope'"),
        ("rope_scaling", json!({"rope_type": "linear"}), "factor must be a number"),
        ("rope_scaling", json!({"rope_type": "linear", "factor": 0.0}), "rope: factor is 0"),
        ("rope_scaling", json!({"full_attention": {"rope_type": "default"}}), "for each layer type"),
        ("partial_rotary_factor", json!(0.5), "partial_rotary_factor 0.5"),
        ("eos_token_id", json!("two"), "eos_token_id must be a token id"),
        ("max_position_embeddings", json!(32), "a context of 64 tokens was asked for; the model's is 32"),
        ("attention_bias", json!(true), "no tensor 'model.layers.0.self_attn.q_proj.bias'"),
        ("tie_word_embeddings", json!(true), "lm_head.weight differs from the embedding"),
        ("num_hidden_layers", json!(1), "has a tensor 'model.layers.1."),
        ("num_hidden_layers", json!(3), "no tensor 'model.layers.2."),
        ("intermediate_size", json!(64), "has shape [128, 64], expected [64, 64]"),
    ] {
        refused(with_key("llama", key, value).path(), reason);
    }
    refused(with_key("qwen2", "layer_types", json!(["full_attention", "linear_attention"])).path(), "linear_attention");
    refused(with_key("qwen2", "layer_types", json!(["full_attention"])).path(), "one entry for each layer");
    refused(with_key("smollm3", "no_rope_layers", json!([1, 1])).path(), "no_rope_layers");
    refused(with_key("mistral", "sliding_window", json!(0)).path(), "sliding window of 0");
}

#[test]
fn a_configuration_that_is_not_json_or_too_large_is_refused() {
    let folder = copy("llama");
    let config = folder.path().join("config.json");
    fs::write(&config, b"{\"model_type\": ").unwrap();
    refused(folder.path(), "EOF while parsing");
    fs::write(&config, b"[]").unwrap();
    refused(folder.path(), "is no JSON object");
    fs::write(&config, vec![b' '; 5 << 20]).unwrap();
    refused(folder.path(), "is larger than");
}

#[test]
fn shards_that_do_not_fit_their_index_are_refused() {
    const INDEX: &str = "model.safetensors.index.json";
    let shards = |folder: &Path| -> Value { serde_json::from_slice(&fs::read(folder.join(INDEX)).unwrap()).unwrap() };
    let spoil = |change: &dyn Fn(&mut serde_json::Map<String, Value>)| {
        let folder = copy("mistral");
        let mut index = shards(folder.path());
        change(index["weight_map"].as_object_mut().unwrap());
        fs::write(folder.path().join(INDEX), index.to_string()).unwrap();
        folder
    };
    let named = |name: &'static str| {
        spoil(&move |map| {
            map.insert("model.norm.weight".to_owned(), json!(name));
        })
    };
    refused(named("../other.safetensors").path(), "names the shard '../other.safetensors'");
    refused(named("/etc/passwd").path(), "names the shard '/etc/passwd'");
    refused(named("absent.safetensors").path(), "absent.safetensors");
    refused(spoil(&|map| map.clear()).path(), "names no tensor");
    let unlisted = spoil(&|map| {
        map.shift_remove("model.norm.weight");
    });
    refused(unlisted.path(), "which the index does not place there");
    let extra = spoil(&|map| {
        let shard = map["model.norm.weight"].clone();
        map.insert("model.other.weight".to_owned(), shard);
    });
    refused(extra.path(), "no tensor 'model.other.weight'");
    let folder = copy("mistral");
    fs::remove_file(folder.path().join(INDEX)).unwrap();
    refused(folder.path(), "neither model.safetensors nor");
}

#[test]
fn safetensors_that_lie_are_refused() {
    let good = fs::read(golden::path("models/llama/model.safetensors")).unwrap();
    let spoil = |bytes: &[u8], reason: &str| {
        let folder = copy("llama");
        fs::write(folder.path().join("model.safetensors"), bytes).unwrap();
        refused(folder.path(), reason);
    };
    spoil(b"", "");
    spoil(&good[..7], "");
    spoil(&good[..good.len() - 1], "");
    spoil(&[&u64::MAX.to_le_bytes(), &good[8..]].concat(), "");
    spoil(&[&(1u64 << 40).to_le_bytes(), &good[8..]].concat(), "");
    let header = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes(), &[0; 64]].concat();
    spoil(&header(r#"{"t":{"dtype":"I64","shape":[8],"data_offsets":[0,64]}}"#), "stored as I64");
    spoil(&header(r#"{"t":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,64]}}"#), "");
    spoil(&header(r#"{"t":{"dtype":"F32","shape":[16],"data_offsets":[0,18446744073709551615]}}"#), "");
    spoil(
        &header(r#"{"t":{"dtype":"F32","shape":[16],"data_offsets":[0,64]}}"#),
        "no tensor 'model.embed_tokens.weight'",
    );
}

fn gguf(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    fs::write(&path, bytes).unwrap();
    (folder, path)
}

fn golden_gguf() -> Vec<u8> {
    fs::read(golden::path("gguf/llama-q4_0.gguf")).unwrap()
}

/// The bytes with `with` written over them at `at`.
fn patched(at: usize, with: &[u8]) -> Vec<u8> {
    let mut bytes = golden_gguf();
    bytes[at..at + with.len()].copy_from_slice(with);
    bytes
}

/// Where `needle` ends in the golden file.
fn after(needle: &[u8]) -> usize {
    let bytes = golden_gguf();
    let found = bytes.windows(needle.len()).position(|window| window == needle);
    found.unwrap_or_else(|| panic!("{} is not in the file", String::from_utf8_lossy(needle))) + needle.len()
}

#[test]
fn gguf_headers_that_lie_are_refused() {
    let spoil = |bytes: Vec<u8>, reason: &str| {
        let (_folder, path) = gguf(&bytes);
        refused(&path, reason);
    };
    spoil(patched(0, b"GGML"), "is not a GGUF file");
    spoil(patched(4, &9u32.to_le_bytes()), "GGUF version 9");
    spoil(patched(8, &u64::MAX.to_le_bytes()), "");
    spoil(patched(16, &u64::MAX.to_le_bytes()), "");
    spoil(patched(24, &u64::MAX.to_le_bytes()), "");
    spoil(patched(24, &(1u64 << 50).to_le_bytes()), "more are due");
    // A tensor's record: name, dimensions, sizes, type, offset.
    let tensor = after(b"blk.0.attn_q.weight");
    spoil(patched(tensor, &9u32.to_le_bytes()), "has 9 dimensions");
    spoil(patched(tensor, &0u32.to_le_bytes()), "has 0 dimensions");
    spoil(patched(tensor + 4, &u64::MAX.to_le_bytes()), "");
    spoil(patched(tensor + 4, &(1u64 << 62).to_le_bytes()), "does not lie in the file");
    spoil(patched(tensor + 4, &63u64.to_le_bytes()), "no whole blocks of Q4_0");
    spoil(patched(tensor + 12, &128u64.to_le_bytes()), "has shape [128, 64], expected [64, 64]");
    spoil(patched(tensor + 20, &10u32.to_le_bytes()), "stored as Q2_K");
    spoil(patched(tensor + 20, &16u32.to_le_bytes()), "stored as IQ2_XXS");
    spoil(patched(tensor + 20, &999u32.to_le_bytes()), "stored as type 999");
    spoil(patched(tensor + 24, &u64::MAX.to_le_bytes()), "does not lie in the file");
    spoil(patched(tensor + 24, &(1u64 << 40).to_le_bytes()), "does not lie in the file");
    spoil(patched(tensor - 3, b"xyz"), "no tensor 'model.layers.0.self_attn.q_proj.weight'");
    // A key's record: name, type, value.
    let architecture = after(b"general.architecture");
    spoil(patched(architecture + 12, b"bloom"), "family 'bloom'");
    spoil(patched(architecture, &77u32.to_le_bytes()), "unknown type 77");
    spoil(patched(after(b"llama.block_count") + 4, &u32::MAX.to_le_bytes()), "number of layers");
    spoil(patched(after(b"llama.attention.head_count_kv") + 4, &0u32.to_le_bytes()), "key-value heads is 0");
    let tokens = after(b"tokenizer.ggml.tokens");
    spoil(patched(tokens, &7u32.to_le_bytes()), "");
    spoil(patched(tokens + 4, &9u32.to_le_bytes()), "array of arrays");
    spoil(patched(tokens + 8, &u64::MAX.to_le_bytes()), "");
}

#[test]
fn a_gguf_file_cut_off_anywhere_is_refused() {
    let good = golden_gguf();
    for length in (0..good.len()).step_by(331) {
        let (_folder, path) = gguf(&good[..length]);
        assert!(attempt(&path).is_err(), "cut off at {length} of {}", good.len());
    }
}

#[test]
fn a_gguf_file_with_a_flipped_byte_in_its_header_never_panics() {
    let good = golden_gguf();
    let header = after(b"output_norm.weight").min(16 << 10);
    for at in (0..header).step_by(17) {
        for flip in [0x01, 0x80, 0xff] {
            let (_folder, path) = gguf(&patched(at, &[good[at] ^ flip]));
            // Most are refused; a changed name of the author is no fault.
            let _ = attempt(&path);
        }
    }
}

#[test]
fn a_kv_budget_below_one_sequence_is_refused_with_both_numbers() {
    let source = ModelSource::detect(&golden::path("models/llama")).unwrap();
    let error = load(&source, &LoadOptions { kv_bytes: 10_000, ..options() }).err();
    assert!(matches!(error, Some(LoadError::KvTooSmall { bytes: 10_000, needed: 4, .. })), "{error:?}");
    let short = load(&source, &LoadOptions { kv_bytes: 10_000, max_model_len: None, ..options() }).unwrap();
    let room = short.decoder.kv_shape().blocks * 16;
    assert!(room > 0 && room < 64 && short.shape.max_positions == room, "without a length, what fits is served");
    assert!(short.notes.iter().any(|note| note.contains(&format!("up to {room} tokens"))), "{:?}", short.notes);
    let none = load(&source, &LoadOptions { kv_bytes: 10, max_model_len: None, ..options() }).err();
    assert!(matches!(none, Some(LoadError::KvTooSmall { blocks: 0, .. })), "{none:?}");
    let error = load(&source, &LoadOptions { block_tokens: 0, ..options() }).err();
    assert!(error.is_some_and(|error| error.to_string().contains("KV blocks of 0 tokens")));
}
