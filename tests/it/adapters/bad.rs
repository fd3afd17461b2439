//! Kinds of bad adapters, each a healthy one with one thing changed.

use std::{collections::BTreeSet, fs, os::unix::fs::symlink, path::Path};

use serde_json::json;
use tunegate::adapters::{
    AdapterError, RefusalCode as Code,
    check::check_folder,
    folder::{CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE},
};

use super::{
    draft::{Draft, LIMITS, LLAMA, Q0, TensorDraft, safetensors},
    store::Setup,
};

/// A kind: its name, what is changed, the code, and what the message says.
pub struct Kind(pub &'static str, pub fn(&mut Draft), pub Code, pub &'static str);

fn a() -> String {
    format!("{Q0}.lora_A.weight")
}

fn b() -> String {
    format!("{Q0}.lora_B.weight")
}

/// What a tar file begins with: a name, and its mark at byte 257.
fn tar() -> Vec<u8> {
    let mut header = vec![0; 1024];
    header[..5].copy_from_slice(b"a.bin");
    header[257..262].copy_from_slice(b"ustar");
    header
}

fn rename(draft: &mut Draft, from: &str, to: &str) {
    let tensor = draft.tensors.remove(from).unwrap();
    draft.tensors.insert(to.to_owned(), tensor);
}

const FILES: &[Kind] = &[
    Kind("no-config", |d| d.leave_out(CONFIG_FILE), Code::MissingFile, "adapter_config.json: is not in the folder"),
    Kind(
        "no-weights",
        |d| d.leave_out(WEIGHTS_FILE),
        Code::MissingFile,
        "adapter_model.safetensors: is not in the folder",
    ),
    Kind(
        "bin-only",
        |d| {
            d.leave_out(WEIGHTS_FILE);
            d.put("adapter_model.bin", b"PK\x03\x04".to_vec());
        },
        Code::UnsafeFormat,
        "adapter_model.bin: is there and adapter_model.safetensors is not",
    ),
    Kind(
        "pt-only",
        |d| {
            d.leave_out(WEIGHTS_FILE);
            d.put("adapter_model.pt", b"\x80\x02}q".to_vec());
        },
        Code::UnsafeFormat,
        "only safetensors is read",
    ),
    Kind(
        "sharded",
        |d| {
            d.leave_out(WEIGHTS_FILE);
            d.put("adapter_model-00001-of-00002.safetensors", d.weights());
            d.put("adapter_model.safetensors.index.json", "{}");
        },
        Code::UnsafeFormat,
        "split into several files",
    ),
    Kind("pickle", |d| d.put(WEIGHTS_FILE, b"\x80\x02}q\x00.".repeat(9)), Code::UnsafeFormat, "is a pickle"),
    Kind(
        "torch-zip",
        |d| d.put(WEIGHTS_FILE, b"PK\x03\x04archive/data.pkl".to_vec()),
        Code::UnsafeFormat,
        "a zip archive",
    ),
    Kind(
        "gguf",
        |d| d.put(WEIGHTS_FILE, b"GGUF\x03\x00\x00\x00 and more".to_vec()),
        Code::Unsupported,
        "is a GGUF LoRA file, and those are not supported yet",
    ),
    Kind(
        "gguf-beside",
        |d| {
            d.leave_out(WEIGHTS_FILE);
            d.put("my-lora-F16.GGUF", b"GGUF\x03\x00\x00\x00 and more".to_vec());
        },
        Code::Unsupported,
        "adapter_model.safetensors: is not in the folder, a GGUF LoRA file is",
    ),
    Kind(
        "archive-only",
        |d| {
            d.leave_out(WEIGHTS_FILE);
            d.put("adapter.tar.gz", b"\x1f\x8b\x08\x00".to_vec());
        },
        Code::UnsafeFormat,
        "an archive is; archives are not unpacked",
    ),
    Kind("tar", |d| d.put(WEIGHTS_FILE, tar()), Code::UnsafeFormat, "is a tar archive, not safetensors"),
    Kind(
        "zstd",
        |d| d.put(WEIGHTS_FILE, [b"\x28\xb5\x2f\xfd".as_slice(), &[7; 90]].concat()),
        Code::UnsafeFormat,
        "is zstd, not safetensors",
    ),
    Kind(
        "lfs-pointer",
        |d| d.put(WEIGHTS_FILE, "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"),
        Code::UnsafeFormat,
        "Git LFS pointer",
    ),
    Kind(
        "config-is-a-folder",
        |d| {
            d.leave_out(CONFIG_FILE);
            d.links.push((CONFIG_FILE.to_owned(), ".".into()));
        },
        Code::MissingFile,
        "not a regular file",
    ),
    Kind(
        "link-out",
        |d| {
            d.leave_out(WEIGHTS_FILE);
            d.links.push((WEIGHTS_FILE.to_owned(), "/etc/passwd".into()));
        },
        Code::MissingFile,
        "adapter_model.safetensors: is a link that leads out",
    ),
    Kind(
        "link-up",
        |d| {
            d.leave_out(CONFIG_FILE);
            d.links.push((CONFIG_FILE.to_owned(), "../outside.json".into()));
        },
        Code::MissingFile,
        "adapter_config.json: is a link that leads out",
    ),
    Kind(
        "link-to-nothing",
        |d| {
            d.leave_out(WEIGHTS_FILE);
            d.links.push((WEIGHTS_FILE.to_owned(), "nowhere".into()));
        },
        Code::MissingFile,
        "cannot be read",
    ),
    Kind(
        "endless-device",
        |d| {
            d.leave_out(WEIGHTS_FILE);
            d.links.push((WEIGHTS_FILE.to_owned(), "/dev/zero".into()));
        },
        Code::MissingFile,
        "leads out",
    ),
    Kind(
        "huge-config",
        |d| d.put(CONFIG_FILE, vec![b' '; (1 << 20) + 1]),
        Code::TooLarge,
        "1048577 bytes; 1048576 are",
    ),
    Kind("huge-weights", |d| d.put(WEIGHTS_FILE, vec![0; (1 << 20) + 1]), Code::TooLarge, "1048577 bytes; 1048576 are"),
    Kind("huge-manifest", |d| d.put(MANIFEST_FILE, vec![b'#'; (256 << 10) + 1]), Code::TooLarge, "262144 are allowed"),
];

const WEIGHTS: &[Kind] = &[
    Kind("empty-file", |d| d.put(WEIGHTS_FILE, ""), Code::MalformedWeights, "has 0 bytes"),
    Kind(
        "truncated-header",
        |d| d.put(WEIGHTS_FILE, &d.weights()[..40]),
        Code::MalformedWeights,
        "only 32 follow: the file is cut short",
    ),
    Kind(
        "truncated",
        |d| {
            let mut bytes = d.weights();
            bytes.truncate(bytes.len() - 100);
            d.put(WEIGHTS_FILE, bytes);
        },
        Code::MalformedWeights,
        "cut short",
    ),
    Kind(
        "trailing-bytes",
        |d| {
            let mut bytes = d.weights();
            bytes.extend([0; 100]);
            d.put(WEIGHTS_FILE, bytes);
        },
        Code::MalformedWeights,
        "or has more",
    ),
    Kind(
        "huge-header",
        |d| {
            let mut bytes = d.weights();
            bytes[..8].copy_from_slice(&(200u64 << 20).to_le_bytes());
            d.put(WEIGHTS_FILE, bytes);
        },
        Code::MalformedWeights,
        "header would have 209715200 bytes; 16777216 are allowed",
    ),
    Kind(
        "endless-header",
        |d| d.put(WEIGHTS_FILE, u64::MAX.to_le_bytes()),
        Code::MalformedWeights,
        "18446744073709551615 bytes",
    ),
    Kind(
        "header-no-json",
        |d| d.put(WEIGHTS_FILE, safetensors(b"{\"a\": ", b"")),
        Code::MalformedWeights,
        "header is not read",
    ),
    Kind(
        "header-no-object",
        |d| d.put(WEIGHTS_FILE, safetensors(b"[1, 2]", b"")),
        Code::MalformedWeights,
        "header is a list",
    ),
    Kind(
        "header-no-text",
        |d| d.put(WEIGHTS_FILE, safetensors(b"{\"\xff\": 1}", b"")),
        Code::MalformedWeights,
        "header is not",
    ),
    Kind(
        "header-deep",
        |d| d.put(WEIGHTS_FILE, safetensors("[".repeat(100_000).as_bytes(), b"")),
        Code::MalformedWeights,
        "recursion limit",
    ),
    Kind(
        "tensor-twice",
        |d| {
            let (header, data) = d.parts();
            let header = header.to_string().replacen(&b(), &a(), 1);
            d.put(WEIGHTS_FILE, safetensors(header.as_bytes(), &data));
        },
        Code::MalformedWeights,
        "stands twice",
    ),
    Kind(
        "overlapping-offsets",
        |d| d.put_header(|header| header[&b()]["data_offsets"] = header[&a()]["data_offsets"].clone()),
        Code::MalformedWeights,
        "overlap another tensor or leave a gap",
    ),
    Kind(
        "offsets-past-the-end",
        |d| d.put_header(|header| header[&a()]["data_offsets"] = json!([1u64 << 40, (1u64 << 40) + 2048])),
        Code::MalformedWeights,
        "leave a gap",
    ),
    Kind(
        "offsets-backwards",
        |d| d.put_header(|header| header[&a()]["data_offsets"] = json!([2048, 0])),
        Code::MalformedWeights,
        "adapter_model.safetensors",
    ),
    Kind(
        "negative-offset",
        |d| d.put_header(|header| header[&a()]["data_offsets"] = json!([-4, 2044])),
        Code::MalformedWeights,
        "header is not read",
    ),
    Kind(
        "shape-overflows",
        |d| d.put_header(|header| header[&a()]["shape"] = json!([u64::MAX, u64::MAX])),
        Code::MalformedWeights,
        "shape overflows",
    ),
    Kind(
        "shape-not-the-bytes",
        |d| d.put_header(|header| header[&a()]["shape"] = json!([8, 65])),
        Code::MalformedWeights,
        "do not fit its shape",
    ),
    Kind(
        "unknown-dtype",
        |d| d.put_header(|header| header[&a()]["dtype"] = json!("F13")),
        Code::MalformedWeights,
        "F13",
    ),
    Kind(
        "integers",
        |d| "I32".clone_into(&mut d.tensor(&a()).dtype),
        Code::Dtype,
        "has dtype I32; F32, F16 and BF16 are served",
    ),
    Kind(
        "doubles",
        |d| *d.tensor(&a()) = TensorDraft { dtype: "F64".to_owned(), shape: vec![8, 64], data: vec![0; 8 * 64 * 8] },
        Code::Dtype,
        "has dtype F64",
    ),
    Kind(
        "eight-bit-floats",
        |d| *d.tensor(&a()) = TensorDraft { dtype: "F8_E4M3".to_owned(), shape: vec![8, 64], data: vec![0; 8 * 64] },
        Code::Dtype,
        "has dtype F8_E4M3",
    ),
    Kind("nan", |d| d.tensor(&a()).set(77, f32::NAN), Code::NotFinite, "value 77 of 512 is NaN or infinite"),
    Kind("infinite", |d| d.tensor(&b()).set(511, f32::NEG_INFINITY), Code::NotFinite, "value 511 of 512"),
    Kind(
        "half-infinite",
        |d| {
            let half =
                TensorDraft { dtype: "F16".to_owned(), shape: vec![8, 64], data: 0x7c00u16.to_le_bytes().repeat(512) };
            *d.tensor(&a()) = half;
        },
        Code::NotFinite,
        "value 0 of 512",
    ),
    Kind(
        "bfloat-nan",
        |d| {
            let brain =
                TensorDraft { dtype: "BF16".to_owned(), shape: vec![8, 64], data: 0x7fc0u16.to_le_bytes().repeat(512) };
            *d.tensor(&a()) = brain;
        },
        Code::NotFinite,
        "value 0 of 512",
    ),
];

const TENSORS: &[Kind] = &[
    Kind(
        "wrong-input",
        |d| *d.tensor(&a()) = TensorDraft::f32(&[8, 32], 0.5),
        Code::Shape,
        "layers.0.self_attn.q_proj.lora_A: has shape [8, 32]; this base makes [8, 64] with rank 8",
    ),
    Kind("wrong-output", |d| *d.tensor(&b()) = TensorDraft::f32(&[65, 8], 0.5), Code::Shape, "has shape [65, 8]"),
    Kind("wrong-rank", |d| d.set("r", json!(4)), Code::Shape, "has shape [8, 64]; this base makes [4, 64] with rank 4"),
    Kind(
        "wrong-rank-by-pattern",
        |d| d.set("rank_pattern", json!({"layers.0.self_attn.q_proj": 2})),
        Code::Shape,
        "with rank 2",
    ),
    Kind("transposed", |d| d.tensor(&a()).shape = vec![64, 8], Code::Shape, "has shape [64, 8]"),
    Kind("flat", |d| d.tensor(&a()).shape = vec![512], Code::Shape, "has shape [512]"),
    Kind("three-dimensions", |d| d.tensor(&a()).shape = vec![8, 8, 8], Code::Shape, "has shape [8, 8, 8]"),
    Kind("empty-tensor", |d| *d.tensor(&a()) = TensorDraft::f32(&[0, 64], 0.0), Code::Shape, "has shape [0, 64]"),
    Kind("a-without-b", |d| drop(d.tensors.remove(&b())), Code::MissingTensor, "has lora_A without lora_B"),
    Kind("b-without-a", |d| drop(d.tensors.remove(&a())), Code::MissingTensor, "has lora_B without lora_A"),
    Kind(
        "missing-tensors",
        |d| d.tensors.retain(|name, _| !name.starts_with(Q0)),
        Code::MissingTensor,
        "model.layers.0.self_attn.q_proj: is targeted by the configuration and has no tensors",
    ),
    Kind("no-tensors", |d| d.tensors.clear(), Code::MissingTensor, "has no tensors"),
    Kind(
        "extra-tensor",
        |d| drop(d.tensors.insert("base_model.model.model.norm.weight".to_owned(), TensorDraft::f32(&[64], 1.0))),
        Code::UnknownTensor,
        "base_model.model.model.norm.weight: is nothing that LoRA uses",
    ),
    Kind(
        "untargeted-module",
        |d| drop(d.tensors.insert(a().replace("q_proj", "k_proj"), TensorDraft::f32(&[8, 64], 0.0))),
        Code::UnknownTensor,
        "a module that the configuration does not target",
    ),
    Kind(
        "other-base",
        |d| drop(d.tensors.insert(a().replace("layers.0", "layers.2"), TensorDraft::f32(&[8, 64], 0.0))),
        Code::UnknownTensor,
        "a module that this base does not have",
    ),
    Kind(
        "no-prefix",
        |d| {
            let bare = a().trim_start_matches("base_model.model.").to_owned();
            rename(d, &a(), &bare);
        },
        Code::UnknownTensor,
        "does not begin with base_model.model.",
    ),
    Kind(
        "control-characters",
        |d| drop(d.tensors.insert("x\n\u{1b}[2J".to_owned(), TensorDraft::f32(&[1], 0.0))),
        Code::UnknownTensor,
        "x\\n\\u{1b}[2J",
    ),
    Kind(
        "two-adapters",
        |d| {
            let named = a().replace("lora_A.", "lora_A.default.");
            let copy = d.tensors[&a()].clone();
            d.tensors.insert(named, copy);
        },
        Code::UnknownTensor,
        "stands there twice",
    ),
    Kind(
        "named-otherwise",
        |d| rename(d, &a(), &a().replace("lora_A.", "lora_A.french.")),
        Code::MissingTensor,
        "has lora_B without lora_A",
    ),
    Kind(
        "magnitudes",
        |d| drop(d.tensors.insert(format!("{Q0}.lora_magnitude_vector"), TensorDraft::f32(&[64], 1.0))),
        Code::UnknownTensor,
        "holds DoRA's magnitudes, and the configuration does not use them there",
    ),
    Kind(
        "bias-of-b",
        |d| drop(d.tensors.insert(format!("{Q0}.lora_B.bias"), TensorDraft::f32(&[64], 1.0))),
        Code::UnknownTensor,
        "is a bias on lora_B, and the configuration has none there",
    ),
    Kind(
        "bias-without-bias",
        |d| {
            d.set("bias", json!("all"));
            d.tensors.insert(format!("{Q0}.base_layer.bias"), TensorDraft::f32(&[64], 1.0));
        },
        Code::UnknownTensor,
        "the configuration trains none there or this base has none",
    ),
    Kind(
        "token-rows",
        |d| {
            let name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta".to_owned();
            d.tensors.insert(name, TensorDraft::f32(&[3, 64], 1.0));
        },
        Code::Unsupported,
        "holds trained token rows",
    ),
    Kind(
        "magnitude-of-another-size",
        |d| {
            d.set("use_dora", json!(true));
            d.tensors.insert(format!("{Q0}.lora_magnitude_vector"), TensorDraft::f32(&[63], 1.0));
        },
        Code::Shape,
        "lora_magnitude_vector: has shape [63]; this base makes [64]",
    ),
    Kind(
        "magnitude-twice",
        |d| {
            d.set("use_dora", json!(true));
            d.tensors.insert(format!("{Q0}.lora_magnitude_vector"), TensorDraft::f32(&[64], 1.0));
            d.tensors.insert(format!("{Q0}.lora_magnitude_vector.weight"), TensorDraft::f32(&[64], 1.0));
        },
        Code::UnknownTensor,
        "stands there twice",
    ),
    Kind(
        "resized-vocabulary",
        |d| {
            let embedding = "base_model.model.model.embed_tokens.weight".to_owned();
            d.tensors.insert(embedding, TensorDraft::f32(&[520, 64], 1.0));
        },
        Code::Unsupported,
        "has shape [520, 64], the base has [512, 64]: the vocabulary was resized",
    ),
];

const CONFIG: &[Kind] = &[
    Kind("config-no-json", |d| d.put(CONFIG_FILE, "{\"r\": 8,"), Code::MalformedConfig, "EOF while parsing"),
    Kind(
        "config-no-object",
        |d| d.put(CONFIG_FILE, "[]"),
        Code::MalformedConfig,
        "holds a list where an object belongs",
    ),
    Kind("config-binary", |d| d.put(CONFIG_FILE, vec![0xff; 64]), Code::MalformedConfig, "line 1"),
    Kind("config-deep", |d| d.put(CONFIG_FILE, "[".repeat(500_000)), Code::MalformedConfig, "recursion limit"),
    Kind(
        "key-twice",
        |d| {
            let text = d.config.to_string().replacen('{', "{\"r\": 4, ", 1);
            d.put(CONFIG_FILE, text);
        },
        Code::MalformedConfig,
        "\"r\" stands twice",
    ),
    Kind("nan-in-config", |d| d.put(CONFIG_FILE, "{\"lora_alpha\": NaN}"), Code::MalformedConfig, "expected value"),
    Kind("not-lora", |d| d.set("peft_type", json!("IA3")), Code::NotLora, "peft_type: is IA3, only LORA is served"),
    Kind("no-type", |d| d.set("peft_type", json!(null)), Code::NotLora, "peft_type: is missing"),
    Kind("zero-rank", |d| d.set("r", json!(0)), Code::Rank, "r: gives rank 0; ranks from 1 to 64 are served"),
    Kind("negative-rank", |d| d.set("r", json!(-8)), Code::Rank, "ranks from 1 to 64"),
    Kind("rank-over-limit", |d| d.set("r", json!(65)), Code::Rank, "gives rank 65"),
    Kind(
        "huge-rank",
        |d| d.set("r", json!(u64::MAX)),
        Code::MalformedConfig,
        "r: is a number where a whole number belongs",
    ),
    Kind("rank-a-text", |d| d.set("r", json!("8")), Code::MalformedConfig, "r: is a text where a whole number belongs"),
    Kind("rank-null", |d| d.set("r", json!(null)), Code::MalformedConfig, "r: is null"),
    Kind("rank-a-fraction", |d| d.set("r", json!(8.5)), Code::MalformedConfig, "r: is a number"),
    Kind(
        "pattern-rank-zero",
        |d| d.set("rank_pattern", json!({"q_proj": 0})),
        Code::Rank,
        "rank_pattern: gives rank 0",
    ),
    Kind("pattern-rank-a-text", |d| d.set("rank_pattern", json!({"q_proj": "4"})), Code::MalformedConfig, "for q_proj"),
    Kind(
        "pattern-a-list",
        |d| d.set("rank_pattern", json!(["q_proj"])),
        Code::MalformedConfig,
        "rank_pattern: is a list",
    ),
    Kind("alpha-a-text", |d| d.set("lora_alpha", json!("16")), Code::MalformedConfig, "lora_alpha: is a text"),
    Kind("alpha-zero", |d| d.set("lora_alpha", json!(0)), Code::Rank, "lora_alpha: gives alpha 0"),
    Kind(
        "alpha-negative",
        |d| d.set("alpha_pattern", json!({"q_proj": -1})),
        Code::Rank,
        "alpha_pattern: gives alpha -1",
    ),
    Kind("alpha-huge", |d| d.set("lora_alpha", json!(1e300)), Code::Rank, "must be positive and finite"),
    Kind("flag-a-text", |d| d.set("use_rslora", json!("yes")), Code::MalformedConfig, "use_rslora: is a text"),
    Kind(
        "bad-regex",
        |d| d.set("rank_pattern", json!({"(q_proj": 8})),
        Code::Pattern,
        "rank_pattern: '(q_proj' cannot be read",
    ),
    Kind("bad-target-regex", |d| d.set("target_modules", json!("*q_proj")), Code::Pattern, "target_modules: '*q_proj'"),
    Kind(
        "foreign-regex",
        |d| d.set("target_modules", json!(r".*\pL_proj")),
        Code::Pattern,
        "read differently by Python",
    ),
    Kind(
        "exploding-regex",
        |d| d.set("exclude_modules", json!(r"(?=(\w|\.)+$)(([a-z_.0-9]|\w)*)*\1!")),
        Code::Pattern,
        "takes more than 100000 steps",
    ),
    Kind("huge-regex", |d| d.set("target_modules", json!("(q|v){1000}{1000}")), Code::Pattern, "target_modules"),
    Kind(
        "long-regex",
        |d| d.set("target_modules", json!("q".repeat(5000))),
        Code::Pattern,
        "has 5000 characters; 4096",
    ),
    Kind(
        "unmatched-target",
        |d| d.set("target_modules", json!(["q_proj", "v_proj", "c_attn"])),
        Code::UnknownTarget,
        "target_modules: 'c_attn' fits no module of this base",
    ),
    Kind("no-target", |d| d.set("target_modules", json!([])), Code::UnknownTarget, "fits no module"),
    Kind(
        "target-a-number",
        |d| d.set("target_modules", json!(7)),
        Code::MalformedConfig,
        "target_modules: is a whole number",
    ),
    Kind(
        "target-a-norm",
        |d| d.set("target_modules", json!(["q_proj", "v_proj", "norm"])),
        Code::Unsupported,
        "takes in model.norm",
    ),
    Kind(
        "more-targets",
        |d| d.set("target_modules", json!(["q_proj", "v_proj", "o_proj"])),
        Code::MissingTensor,
        "o_proj",
    ),
    Kind("fewer-targets", |d| d.set("target_modules", json!(["q_proj"])), Code::UnknownTensor, "does not target"),
    Kind("excluded", |d| d.set("exclude_modules", json!(["v_proj"])), Code::UnknownTensor, "does not target"),
    Kind(
        "layer-out-of-range",
        |d| d.set("layers_to_transform", json!([0, 1, 2])),
        Code::UnknownTarget,
        "layers_to_transform: layer 2 does not exist; this base has layers 0 to 1",
    ),
    Kind("layer-a-text", |d| d.set("layers_to_transform", json!(["0"])), Code::MalformedConfig, "layers_to_transform"),
    Kind(
        "layers-with-regex",
        |d| {
            d.set("target_modules", json!(".*[qv]_proj"));
            d.set("layers_to_transform", json!([0, 1]));
        },
        Code::MalformedConfig,
        "layers_to_transform: cannot be used when target_modules is a text",
    ),
    Kind(
        "layers-pattern-alone",
        |d| d.set("layers_pattern", json!("layers")),
        Code::MalformedConfig,
        "layers_pattern: needs",
    ),
];

const FEATURES: &[Kind] = &[
    Kind(
        "unknown-key",
        |d| d.set("lora_gain", json!(2.0)),
        Code::UnknownKey,
        "lora_gain: is not a key that is known, and its value is 2",
    ),
    Kind("unknown-object", |d| d.set("router", json!({"k": 1})), Code::UnknownKey, "its value is an object of 1"),
    Kind(
        "dora",
        |d| d.set("use_dora", json!(true)),
        Code::MissingTensor,
        "model.layers.0.self_attn.q_proj: has no lora_magnitude_vector, which the configuration asks for",
    ),
    Kind("lora-bias", |d| d.set("lora_bias", json!(true)), Code::MissingTensor, "has no lora_B.bias"),
    Kind(
        "dora-with-lora-bias",
        |d| {
            d.set("use_dora", json!(true));
            d.set("lora_bias", json!(true));
        },
        Code::MalformedConfig,
        "lora_bias: cannot be used with use_dora",
    ),
    Kind("bias", |d| d.set("bias", json!("some")), Code::MalformedConfig, "bias: is \"some\"; it must be none, all or"),
    Kind(
        "modules-to-save",
        |d| d.set("modules_to_save", json!(["lm_head"])),
        Code::MissingTensor,
        "lm_head: is to be saved whole by the configuration and has no weight",
    ),
    Kind(
        "modules-to-save-a-norm",
        |d| d.set("modules_to_save", json!(["norm"])),
        Code::Unsupported,
        "modules_to_save: has norm; only embed_tokens and lm_head are served as whole modules",
    ),
    Kind(
        "head-lora",
        |d| d.set("target_modules", json!(["q_proj", "v_proj", "lm_head"])),
        Code::MissingTensor,
        "lm_head: is targeted by the configuration and has no tensors",
    ),
    Kind(
        "embedding-lora",
        |d| d.set("target_modules", json!(["q_proj", "v_proj", "embed_tokens"])),
        Code::MissingTensor,
        "model.embed_tokens: is targeted by the configuration and has no tensors",
    ),
    Kind(
        "embedding-with-lora-bias",
        |d| {
            d.set("target_modules", json!(["q_proj", "v_proj", "embed_tokens"]));
            d.set("lora_bias", json!(true));
        },
        Code::Unsupported,
        "takes in model.embed_tokens, and lora_bias is for linear layers",
    ),
    Kind(
        "trained-tokens",
        |d| d.set("trainable_token_indices", json!([1])),
        Code::Unsupported,
        "trainable_token_indices: means trained token rows, and that is not supported yet",
    ),
    Kind(
        "activated",
        |d| d.set("alora_invocation_tokens", json!([5, 6])),
        Code::Unsupported,
        "alora_invocation_tokens: means activated LoRA",
    ),
    Kind("replicated", |d| d.set("layer_replication", json!([[0, 2], [0, 2]])), Code::Unsupported, "layer_replication"),
    Kind("megatron", |d| d.set("megatron_config", json!({"x": 1})), Code::Unsupported, "megatron_config"),
    Kind("qalora", |d| d.set("use_qalora", json!(true)), Code::Unsupported, "use_qalora"),
    Kind("bdlora", |d| d.set("use_bdlora", json!({"nblocks": 2})), Code::Unsupported, "use_bdlora"),
    Kind("arrow", |d| d.set("arrow_config", json!({"top_k": 3})), Code::Unsupported, "arrow_config"),
    Kind("kasa", |d| d.set("kasa_config", json!({"beta": 1e-4})), Code::Unsupported, "kasa_config"),
    Kind("tied", |d| d.set("ensure_weight_tying", json!(true)), Code::Unsupported, "ensure_weight_tying"),
    Kind("experts", |d| d.set("target_parameters", json!(["mlp.experts"])), Code::Unsupported, "target_parameters"),
    Kind(
        "pissa",
        |d| d.set("init_lora_weights", json!("pissa")),
        Code::BaseChanging,
        "init_lora_weights: is pissa, which changed the base",
    ),
    Kind("fast-pissa", |d| d.set("init_lora_weights", json!("pissa_niter_16")), Code::BaseChanging, "pissa_niter_16"),
    Kind("olora", |d| d.set("init_lora_weights", json!("OLoRA")), Code::BaseChanging, "OLoRA"),
    Kind("corda", |d| d.set("init_lora_weights", json!("corda")), Code::BaseChanging, "corda"),
    Kind("loftq", |d| d.set("init_lora_weights", json!("loftq")), Code::BaseChanging, "loftq"),
    Kind("lora-ga", |d| d.set("init_lora_weights", json!("lora_ga")), Code::BaseChanging, "lora_ga"),
    Kind(
        "unknown-init",
        |d| d.set("init_lora_weights", json!("new_idea")),
        Code::BaseChanging,
        "new_idea, which is not known",
    ),
    Kind("manifest-no-toml", |d| d.put(MANIFEST_FILE, "description = "), Code::MalformedConfig, "adapter.toml"),
    Kind(
        "manifest-binary",
        |d| d.put(MANIFEST_FILE, vec![0xfe; 9]),
        Code::MalformedConfig,
        "adapter.toml: is not UTF-8",
    ),
    Kind(
        "manifest-key",
        |d| d.put(MANIFEST_FILE, "prompt = 'x'"),
        Code::UnknownKey,
        "prompt: is not a key of adapter.toml",
    ),
    Kind(
        "manifest-sampling",
        |d| d.put(MANIFEST_FILE, "[sampling]\ntemperature = 9"),
        Code::MalformedConfig,
        "between 0 and 2",
    ),
    Kind("manifest-setting", |d| d.put(MANIFEST_FILE, "[sampling]\nbeams = 9"), Code::MalformedConfig, "beams"),
    Kind("manifest-template", |d| d.put(MANIFEST_FILE, "template = ' '"), Code::MalformedConfig, "template: is empty"),
];

pub fn kinds() -> impl Iterator<Item = &'static Kind> {
    [FILES, WEIGHTS, TENSORS, CONFIG, FEATURES].into_iter().flatten()
}

pub fn write(Kind(name, change, ..): &Kind, root: &Path) -> std::path::PathBuf {
    let mut draft = Draft::plain();
    change(&mut draft);
    let folder = root.join(name);
    draft.write(&folder);
    folder
}

#[test]
fn every_kind_of_bad_adapter_is_refused_with_its_code_and_a_message_without_paths() {
    let root = tempfile::tempdir().unwrap();
    let names: BTreeSet<_> = kinds().map(|kind| kind.0).collect();
    assert_eq!(names.len(), kinds().count(), "each kind once");
    assert!(names.len() >= 100, "{}", names.len());
    fs::write(root.path().join("outside.json"), "{}").unwrap();
    for kind in kinds() {
        let Kind(name, _, code, message) = kind;
        let folder = write(kind, root.path());
        let refusals = check_folder(&folder, &LLAMA.identity.shape, LIMITS).err().unwrap_or_default();
        let expected = refusals.iter().find(|refusal| refusal.code == *code && refusal.to_string().contains(message));
        assert!(expected.is_some(), "{name}: expected {code:?} with {message:?}, got {refusals:#?}");
        for refusal in &refusals {
            let text = refusal.to_string();
            let leaks =
                text.contains(root.path().to_str().unwrap()) || text.contains("/etc/") || text.contains("/dev/");
            assert!(!leaks, "{name}: {text}");
            assert!(text.len() < 600 && !text.contains('\n'), "{name}: {text}");
        }
    }
}

#[test]
fn the_same_change_undone_is_a_healthy_adapter() {
    let root = tempfile::tempdir().unwrap();
    Draft::plain().write(root.path());
    let plan = check_folder(root.path(), &LLAMA.identity.shape, LIMITS).unwrap();
    assert_eq!(plan.sites.len(), 4);
}

#[test]
fn all_faults_of_a_folder_are_told_at_once() {
    let root = tempfile::tempdir().unwrap();
    let mut draft = Draft::plain();
    draft.set("alora_invocation_tokens", json!([5, 6]));
    draft.set("mystery", json!(1));
    draft.tensors.remove(&b());
    draft.tensor(&a()).set(0, f32::NAN);
    draft.put(MANIFEST_FILE, "prompt = 'x'");
    draft.write(root.path());
    let refusals = check_folder(root.path(), &LLAMA.identity.shape, LIMITS).unwrap_err();
    let codes: BTreeSet<&str> = refusals.iter().map(|refusal| refusal.code.as_str()).collect();
    let expected = ["missing_tensor", "not_finite", "unknown_key", "unsupported"];
    assert_eq!(codes, BTreeSet::from(expected), "{refusals:#?}");
    assert_eq!(refusals.iter().filter(|refusal| refusal.code == Code::UnknownKey).count(), 2);
}

#[tokio::test]
async fn a_server_with_every_kind_of_bad_adapter_serves_the_healthy_ones() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("adapters");
    for kind in kinds() {
        write(kind, &root);
    }
    Draft::plain().write(&root.join("healthy"));
    Draft::plain().write(&root.join("bad name"));
    symlink(place.path(), root.join("circle")).unwrap();
    let outside = place.path().join("outside");
    Draft::plain().write(&outside);
    symlink(&outside, root.join("linked")).unwrap();
    let elsewhere = root.join("healthy");
    let modules = ["../up", "/etc", "a//b", "", "check", "base"].map(|name| (name.to_owned(), elsewhere.clone()));
    let mut setup = Setup::new(place.path());
    setup.config.modules = modules.to_vec();
    setup.config.dirs = vec![root];
    setup.config.max_file_bytes = LIMITS.max_file_bytes;
    setup.config.max_lora_rank = LIMITS.max_rank;
    let opened = setup.open().unwrap();

    let refused: BTreeSet<&str> = opened.refused.iter().map(|(name, _)| name.as_str()).collect();
    // Without a configuration a folder is no adapter at all.
    for Kind(name, ..) in kinds().filter(|kind| kind.0 != "no-config") {
        assert!(refused.contains(name), "{name} is served");
        let error = opened.store.find(name).unwrap_err();
        assert!(matches!(&error, AdapterError::Refused { refusals, .. } if !refusals.is_empty()), "{name}: {error}");
    }
    for name in ["bad name", "linked", "../up", "/etc", "a//b", "", "check", "base"] {
        assert!(refused.contains(name), "{name:?} is served");
    }
    let served: Vec<String> = opened.store.list().iter().map(|entry| entry.name.to_string()).collect();
    assert_eq!(served, ["healthy"]);
    let (name, version) = opened.store.find("healthy").unwrap();
    let lease = opened.store.lease(&name, version).await.unwrap();
    assert_eq!(lease.weights.version(), version);
}
