//! From a path to a decoder.

use std::{
    fs,
    num::NonZero,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
};

use candle_core::{DType, Device};

use super::{
    BaseWeights, CpuDecoder, DeviceChoice, Isa, KvShape, LanguageModel, LoadError, LoadOptions, Loaded, ModelShape,
    ModelSource, Packer, Rope, TokenSketch,
    cpu::{self, Class, Numerics},
    describe,
    describe::Description,
    sketch, tensor,
    weights::{Weights, gguf::GgufFile, safetensors},
};
use crate::{config::Dtype, kernels::pool::Pool, terms::Digest};

impl ModelSource {
    /// What lies at `path`: a `.gguf` file, a folder with a `config.json`, or a folder with exactly one `.gguf` file.
    ///
    /// # Errors
    /// [`LoadError`] if it is none of these, or the folder holds several GGUF files.
    pub fn detect(path: &Path) -> Result<Self, LoadError> {
        let io = |error| LoadError::Io { path: path.to_owned(), error };
        let malformed = |reason: &str| LoadError::Malformed { path: path.to_owned(), reason: reason.to_owned() };
        let is_gguf = |path: &Path| path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        if !fs::metadata(path).map_err(io)?.is_dir() {
            return match is_gguf(path) {
                true => Ok(Self::Gguf(path.to_owned())),
                false => Err(malformed("is neither a .gguf file nor a folder")),
            };
        }
        if path.join("config.json").is_file() {
            return Ok(Self::Folder(path.to_owned()));
        }
        let entries = fs::read_dir(path).map_err(io)?.collect::<Result<Vec<_>, _>>().map_err(io)?;
        let mut files: Vec<PathBuf> = entries.iter().map(fs::DirEntry::path).filter(|path| is_gguf(path)).collect();
        match (files.pop(), files.is_empty()) {
            (Some(only), true) => Ok(Self::Gguf(only)),
            (Some(_), false) => Err(malformed("holds several .gguf files; name one of them")),
            (None, _) => Err(malformed("holds neither a config.json nor a .gguf file")),
        }
    }
}

/// Loads a base model onto its device.
///
/// # Errors
/// [`LoadError`] if files are absent or malformed, ask for what we do not compute, or do not fit the device or its budget.
pub fn load(source: &ModelSource, options: &LoadOptions) -> Result<Loaded, LoadError> {
    let device = device(options.device)?;
    let (mut described, mut weights, digest) = match source {
        ModelSource::Folder(path) => {
            let (described, config) = describe::read_folder(path)?;
            let weights = safetensors::open(path)?;
            let digest = weights.digest(&[("config.json", &config)]);
            (described, weights, digest)
        }
        ModelSource::Gguf(path) => {
            let file = GgufFile::open(path)?;
            let described = describe::read_gguf(path, &file)?;
            let weights = file.into_weights(describe::interleaved_heads(&described.shape));
            let digest = weights.digest(&[]);
            (described, weights, digest)
        }
    };
    prepare(&mut described, &mut weights)?;
    let Description { mut shape, eos_tokens, sampling, mut notes } = described;
    shape.max_positions = context(&shape, options.max_model_len)?;
    notes.push(format!("weights: {}", encodings(&weights)));
    let dtype = tensor::dtype(&device, options.dtype);
    if !device.is_cpu() {
        notes.push(format!("weights are converted to {}", dtype.as_str()));
        if tensor::reads_pages(&device, dtype, &shape, options.block_tokens) {
            notes.push("attention reads KV blocks in place (candle-flash-attn)".to_owned());
        }
    } else if options.dtype.is_some_and(|dtype| dtype != Dtype::Float32) {
        notes.push("--dtype is for a GPU; on a CPU it is --exact that makes a difference".to_owned());
    }
    let fused = device.is_cpu() && options.cpu.decoder == CpuDecoder::Fused;
    let class = if options.cpu.exact { Class::Exact } else { Class::Fast };
    let numerics = Numerics { class, isa: options.cpu.isa.unwrap_or_else(Isa::best) };
    if fused {
        notes.push(format!("instructions: {}", numerics.isa.name()));
    } else if options.cpu.isa.is_some() {
        notes.push("--cpu-instructions is for packed weights on a CPU; it makes no difference here".to_owned());
    }
    let kv = size_kv(&shape, options, if fused { class.kv_bytes() } else { dtype.size_in_bytes() })?;
    let room = kv.blocks * kv.block_tokens;
    if room < shape.max_positions {
        let own = shape.max_positions;
        notes.push(format!(
            "contexts of up to {room} tokens are served: the KV memory has no room for the model's {own}"
        ));
        shape.max_positions = room;
    }
    let engine = match (fused, options.device) {
        (true, _) => {
            let class = if options.cpu.exact { "exact" } else { "fast" };
            format!("cpu fused {class} {}", numerics.isa.name())
        }
        (false, DeviceChoice::Cpu) => "cpu tensor".to_owned(),
        (false, DeviceChoice::Cuda(_)) => format!("cuda tensor {}", dtype.as_str()),
        (false, DeviceChoice::Metal(_)) => format!("metal tensor {}", dtype.as_str()),
    };
    let made = if fused {
        on_cpu(&mut weights, &shape, kv, digest, numerics, options)?
    } else {
        on_tensors(&mut weights, &shape, kv, digest, (device, dtype), options)?
    };
    if let Some(name) = weights.names().next() {
        return Err(LoadError::ExtraTensor(name.to_owned()));
    }
    let Made { decoder, packer, base, sketch, weight_bytes } = made;
    let sketch = Arc::new(sketch);
    Ok(Loaded { decoder, packer, base, sketch, shape, weight_bytes, digest, sampling, eos_tokens, engine, notes })
}

/// What a decoder's own assembly gives.
struct Made {
    decoder: Box<dyn LanguageModel>,
    packer: Arc<dyn Packer>,
    base: Arc<dyn BaseWeights>,
    sketch: TokenSketch,
    weight_bytes: u64,
}

fn on_cpu(
    weights: &mut Weights,
    shape: &ModelShape,
    kv: KvShape,
    digest: Digest,
    numerics: Numerics,
    options: &LoadOptions,
) -> Result<Made, LoadError> {
    let cpu::Parts { decoder, packer, network, sketch } =
        cpu::assemble(weights, shape, kv, digest, numerics, (threads(options), options.cpu.pin))?;
    Ok(Made { decoder: Box::new(decoder), packer, weight_bytes: network.bytes(), base: network, sketch })
}

fn threads(options: &LoadOptions) -> usize {
    options.cpu.threads.unwrap_or_else(|| thread::available_parallelism().map_or(1, NonZero::get))
}

fn on_tensors(
    weights: &mut Weights,
    shape: &ModelShape,
    kv: KvShape,
    digest: Digest,
    (device, dtype): (Device, DType),
    options: &LoadOptions,
) -> Result<Made, LoadError> {
    let weight_bytes = (weights.values() * dtype.size_in_bytes()) as u64;
    let tensor::Parts { decoder, packer, rows, embedding } =
        tensor::assemble(weights, shape.clone(), kv, digest, device, dtype)?;
    let pool = Pool::new(threads(options)).map_err(|error| LoadError::Device(error.to_string()));
    let sketch = sketch::of_tensor(&embedding, &mut pool?).map_err(|error| LoadError::Device(error.to_string()))?;
    Ok(Made { decoder: Box::new(decoder), packer, base: rows, sketch, weight_bytes })
}

/// A base model's sizes alone, as its description gives them; no weights are read.
///
/// # Errors
/// [`LoadError`] if the description is absent, malformed, or of a family that is not served.
pub fn shape(source: &ModelSource) -> Result<ModelShape, LoadError> {
    Ok(match source {
        ModelSource::Folder(path) => describe::read_folder(path)?.0.shape,
        ModelSource::Gguf(path) => describe::read_gguf(path, &GgufFile::open(path)?)?.shape,
    })
}

/// A base model's digest alone, as [`load`] gives it; reads all of its files once.
///
/// # Errors
/// As [`shape`].
pub fn digest(source: &ModelSource) -> Result<Digest, LoadError> {
    Ok(match source {
        ModelSource::Folder(path) => {
            let (_, config) = describe::read_folder(path)?;
            safetensors::open(path)?.digest(&[("config.json", &config)])
        }
        ModelSource::Gguf(path) => {
            let file = GgufFile::open(path)?;
            let described = describe::read_gguf(path, &file)?;
            file.into_weights(describe::interleaved_heads(&described.shape)).digest(&[])
        }
    })
}

fn device(choice: DeviceChoice) -> Result<Device, LoadError> {
    let device = match choice {
        DeviceChoice::Cpu => Ok(Device::Cpu),
        DeviceChoice::Cuda(index) => Device::new_cuda(index),
        DeviceChoice::Metal(index) => Device::new_metal(index),
    };
    device.map_err(|error| LoadError::Device(error.to_string()))
}

/// Settles what the weight files know better than the configuration, and lets go of tensors that mean nothing.
fn prepare(described: &mut Description, weights: &mut Weights) -> Result<(), LoadError> {
    let shape = &mut described.shape;
    if let Rope::Factors { factors, .. } = &mut shape.rope {
        *factors = weights.take("rope_freqs.weight", &[shape.head_dim / 2])?;
        shape.rope.check().map_err(LoadError::Unsupported)?;
    }
    if shape.tied && weights.shape_of("lm_head.weight").is_some() {
        if !weights.same("lm_head.weight", "model.embed_tokens.weight") {
            let reason = "tie_word_embeddings is true, but lm_head.weight differs from the embedding";
            return Err(LoadError::Unsupported(reason.to_owned()));
        }
        weights.forget("lm_head.weight");
        described.notes.push("lm_head.weight repeats the embedding and is not loaded".to_owned());
    }
    // Old checkpoints carry the rotary frequencies, which follow from the configuration.
    let frequencies: Vec<String> =
        weights.names().filter(|name| name.ends_with(".rotary_emb.inv_freq")).map(str::to_owned).collect();
    if !frequencies.is_empty() {
        described.notes.push(format!("{} stored rotary frequencies are not used", frequencies.len()));
        frequencies.iter().for_each(|name| weights.forget(name));
    }
    Ok(())
}

fn context(shape: &ModelShape, wanted: Option<usize>) -> Result<usize, LoadError> {
    match wanted {
        None => Ok(shape.max_positions),
        Some(0) => Err(LoadError::Unsupported("a context of 0 tokens".to_owned())),
        Some(wanted) if wanted > shape.max_positions => {
            let own = shape.max_positions;
            Err(LoadError::Unsupported(format!("a context of {wanted} tokens was asked for; the model's is {own}")))
        }
        Some(wanted) => Ok(wanted),
    }
}

/// As many blocks as the budget holds: enough for one sequence of full length where a length was asked for.
fn size_kv(shape: &ModelShape, options: &LoadOptions, value_bytes: usize) -> Result<KvShape, LoadError> {
    let block_tokens = options.block_tokens;
    if !(1..=4096).contains(&block_tokens) {
        let reason = format!("KV blocks of {block_tokens} tokens; 1 to 4096 are supported");
        return Err(LoadError::Unsupported(reason));
    }
    let block_bytes = 2 * shape.layers * shape.kv_heads * shape.head_dim * value_bytes * block_tokens;
    // Places in the pools are `u32`.
    let most = u32::MAX as usize / (block_tokens * shape.kv_heads);
    let blocks = usize::try_from(options.kv_bytes / block_bytes as u64).unwrap_or(usize::MAX).min(most);
    let needed = shape.max_positions.div_ceil(block_tokens);
    if blocks < needed && (options.max_model_len.is_some() || blocks == 0) {
        return Err(LoadError::KvTooSmall {
            bytes: options.kv_bytes,
            blocks,
            max_model_len: shape.max_positions,
            needed,
        });
    }
    Ok(KvShape { block_tokens, blocks, block_bytes })
}

fn encodings(weights: &Weights) -> String {
    let counts: Vec<String> = weights.encodings().iter().map(|(name, count)| format!("{count} × {name}")).collect();
    counts.join(", ")
}
