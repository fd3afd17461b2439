//! GGUF files, versions 2 and 3: typed metadata, then tensors at offsets.
//!
//! Format: `docs/gguf.md` of ggml. Every count, length and offset is checked against the file before it is used, and nothing
//! is allocated by a number that the file states.

use std::{collections::BTreeMap, ops::Range, path::Path};

use super::{StoredTensor, WeightFile, Weights, malformed, map};
use crate::{
    kernels::{dequant::Encoding, map::Mapping},
    model::LoadError,
};

/// A parsed header and the mapped file.
pub struct GgufFile {
    pub metadata: Metadata,
    bytes: Mapping,
    tensors: Vec<(String, StoredTensor)>,
}

/// A GGUF file's keys and values. Arrays of strings and long arrays (vocabularies, merges, scores) are passed over.
#[derive(Default)]
pub struct Metadata(BTreeMap<String, Value>);

#[derive(Clone, Debug, PartialEq)]
enum Value {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    /// An array of at most [`MAX_NUMBERS`] numbers or booleans.
    Numbers(Vec<f64>),
    /// An array that was passed over.
    Skipped,
}

impl Metadata {
    pub fn text(&self, key: &str) -> Option<&str> {
        match self.0.get(key)? {
            Value::Text(text) => Some(text),
            Value::Unsigned(_) | Value::Signed(_) | Value::Float(_) | Value::Bool(_) => None,
            Value::Numbers(_) | Value::Skipped => None,
        }
    }

    pub fn count(&self, key: &str) -> Option<usize> {
        match self.0.get(key)? {
            Value::Unsigned(value) => usize::try_from(*value).ok(),
            Value::Signed(value) => usize::try_from(*value).ok(),
            // llama.cpp writes an array where layers differ; where they do not, it is one number.
            Value::Numbers(values) => {
                let first = *values.first()?;
                let same = values.iter().all(|value| *value == first) && first >= 0.0 && first.fract() == 0.0;
                same.then_some(first as usize)
            }
            Value::Float(_) | Value::Bool(_) | Value::Text(_) | Value::Skipped => None,
        }
    }

    pub fn number(&self, key: &str) -> Option<f64> {
        match self.0.get(key)? {
            Value::Float(value) => Some(*value),
            Value::Unsigned(value) => Some(*value as f64),
            Value::Signed(value) => Some(*value as f64),
            Value::Bool(_) | Value::Text(_) | Value::Numbers(_) | Value::Skipped => None,
        }
    }
}

impl GgufFile {
    /// Maps the file and reads its header.
    ///
    /// # Errors
    /// [`LoadError::Malformed`] if the header contradicts itself or the file, or a tensor is of a type we do not decode.
    pub fn open(path: &Path) -> Result<Self, LoadError> {
        let bytes = map(path)?;
        let (metadata, tensors) = Reader { bytes: &bytes, at: 0 }.header().map_err(|reason| malformed(path, reason))?;
        Ok(Self { metadata, bytes, tensors })
    }

    /// The shape of a tensor by its name in the file.
    pub fn shape_of(&self, name: &str) -> Option<&[usize]> {
        self.tensors.iter().find(|(other, _)| other == name).map(|(_, tensor)| tensor.shape.as_slice())
    }

    /// The tensors under Hugging Face's names; what has none there keeps its own. `interleaved` are the heads of queries and
    /// of keys whose rows the converter has reordered.
    pub fn into_weights(self, interleaved: Option<(usize, usize)>) -> Weights {
        let tensors = self.tensors.into_iter().map(|(name, mut tensor)| {
            let name = hub_name(&name).unwrap_or(name);
            if let Some((heads, kv_heads)) = interleaved {
                tensor.interleaved_heads = match () {
                    () if name.contains(".q_proj.") => Some(heads),
                    () if name.contains(".k_proj.") => Some(kv_heads),
                    () => None,
                };
            }
            (name, tensor)
        });
        let tensors = tensors.collect();
        // One file, whatever it is called: a renamed model is the same model.
        Weights::new(vec![WeightFile { name: "gguf".to_owned(), bytes: self.bytes }], tensors)
    }
}

/// Hugging Face's name for a GGUF tensor of the families that we know.
fn hub_name(name: &str) -> Option<String> {
    let fixed = match name {
        "token_embd.weight" => "model.embed_tokens.weight",
        "output_norm.weight" => "model.norm.weight",
        "output.weight" => "lm_head.weight",
        _ => "",
    };
    if !fixed.is_empty() {
        return Some(fixed.to_owned());
    }
    let (layer, rest) = name.strip_prefix("blk.")?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    let layer: usize = layer.parse().ok()?;
    let module = match module {
        "attn_norm" => "input_layernorm",
        "attn_q" => "self_attn.q_proj",
        "attn_k" => "self_attn.k_proj",
        "attn_v" => "self_attn.v_proj",
        "attn_output" => "self_attn.o_proj",
        "attn_q_norm" => "self_attn.q_norm",
        "attn_k_norm" => "self_attn.k_norm",
        "ffn_norm" => "post_attention_layernorm",
        "ffn_gate" => "mlp.gate_proj",
        "ffn_up" => "mlp.up_proj",
        "ffn_down" => "mlp.down_proj",
        _ => return None,
    };
    Some(format!("model.layers.{layer}.{module}.{kind}"))
}

/// Walks the header; every step is bounded by the file's end.
struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

type Parsed<T> = Result<T, String>;

/// GGUF's own limit on dimensions.
const MAX_DIMS: u32 = 4;

/// Arrays that describe layers are this short.
const MAX_NUMBERS: usize = 4096;

impl Reader<'_> {
    fn header(mut self) -> Parsed<(Metadata, Vec<(String, StoredTensor)>)> {
        if self.take(4)? != b"GGUF" {
            return Err("is not a GGUF file".to_owned());
        }
        let version = self.u32()?;
        if !(2..=3).contains(&version) {
            return Err(format!("is GGUF version {version}; 2 and 3 are supported"));
        }
        let (tensor_count, key_count) = (self.u64()?, self.u64()?);
        let mut metadata = BTreeMap::new();
        for _ in 0..key_count {
            let key = self.string()?;
            let kind = self.u32()?;
            let value = self.value(kind).map_err(|reason| format!("key '{key}': {reason}"))?;
            if metadata.insert(key.clone(), value).is_some() {
                return Err(format!("has the key '{key}' twice"));
            }
        }
        let mut declared: Vec<(String, Vec<usize>, Encoding, u64)> = Vec::new();
        for _ in 0..tensor_count {
            declared.push(self.tensor()?);
        }
        let metadata = Metadata(metadata);
        let alignment = metadata.count("general.alignment").unwrap_or(32);
        if !alignment.is_power_of_two() || alignment > 1 << 20 {
            return Err(format!("has an alignment of {alignment}"));
        }
        let start = self.at.next_multiple_of(alignment);
        let mut tensors: BTreeMap<String, StoredTensor> = BTreeMap::new();
        for (name, shape, encoding, offset) in declared {
            let span = span(start, &shape, encoding, offset, self.bytes.len())
                .ok_or_else(|| format!("tensor '{name}' ({shape:?} {}) does not lie in the file", encoding.name()))?;
            if tensors.contains_key(&name) {
                return Err(format!("has the tensor '{name}' twice"));
            }
            tensors.insert(name, StoredTensor { file: 0, span, encoding, shape, interleaved_heads: None });
        }
        Ok((metadata, tensors.into_iter().collect()))
    }

    fn tensor(&mut self) -> Parsed<(String, Vec<usize>, Encoding, u64)> {
        let name = self.string()?;
        let dims = self.u32()?;
        if !(1..=MAX_DIMS).contains(&dims) {
            return Err(format!("tensor '{name}' has {dims} dimensions"));
        }
        let mut shape = Vec::new();
        for _ in 0..dims {
            shape.push(usize::try_from(self.u64()?).map_err(|_| format!("tensor '{name}' is too large"))?);
        }
        // ggml lists the fastest dimension first.
        shape.reverse();
        let kind = self.u32()?;
        let encoding = encoding(kind).map_err(|kind| {
            format!("tensor '{name}' is stored as {kind}; F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q5_0, Q5_1, Q4_K, Q5_K and Q6_K are supported")
        })?;
        if !shape.last().is_some_and(|width| width.is_multiple_of(encoding.block_values())) {
            return Err(format!("tensor '{name}' has rows that are no whole blocks of {}", encoding.name()));
        }
        Ok((name, shape, encoding, self.u64()?))
    }

    fn value(&mut self, kind: u32) -> Parsed<Value> {
        Ok(match kind {
            0 => Value::Unsigned(self.take(1)?[0].into()),
            1 => Value::Signed((self.take(1)?[0] as i8).into()),
            2 => Value::Unsigned(u16::from_le_bytes(self.array()?).into()),
            3 => Value::Signed(i16::from_le_bytes(self.array()?).into()),
            4 => Value::Unsigned(self.u32()?.into()),
            5 => Value::Signed(i32::from_le_bytes(self.array()?).into()),
            6 => Value::Float(f32::from_le_bytes(self.array()?).into()),
            7 => match self.take(1)?[0] {
                0 => Value::Bool(false),
                1 => Value::Bool(true),
                other => return Err(format!("has the boolean {other}")),
            },
            8 => Value::Text(self.string()?),
            9 => self.list()?,
            10 => Value::Unsigned(self.u64()?),
            11 => Value::Signed(i64::from_le_bytes(self.array()?)),
            12 => Value::Float(f64::from_le_bytes(self.array()?)),
            other => return Err(format!("has the unknown type {other}")),
        })
    }

    fn list(&mut self) -> Parsed<Value> {
        let kind = self.u32()?;
        let count = self.u64()?;
        if kind == 9 {
            return Err("is an array of arrays".to_owned());
        }
        if kind == 8 {
            for _ in 0..count {
                self.skip_string()?;
            }
            return Ok(Value::Skipped);
        }
        let mut numbers = Vec::new();
        for _ in 0..count {
            let number = match self.value(kind)? {
                Value::Unsigned(value) => value as f64,
                Value::Signed(value) => value as f64,
                Value::Float(value) => value,
                Value::Bool(value) => f64::from(u8::from(value)),
                Value::Text(_) | Value::Numbers(_) | Value::Skipped => return Err("holds no numbers".to_owned()),
            };
            if numbers.len() < MAX_NUMBERS {
                numbers.push(number);
            }
        }
        Ok(if count > MAX_NUMBERS as u64 { Value::Skipped } else { Value::Numbers(numbers) })
    }

    fn take(&mut self, count: usize) -> Parsed<&[u8]> {
        let end = self.at.checked_add(count).filter(|end| *end <= self.bytes.len());
        let end = end.ok_or_else(|| format!("ends at byte {} where {count} more are due", self.bytes.len()))?;
        let slice = &self.bytes[self.at..end];
        self.at = end;
        Ok(slice)
    }

    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn u32(&mut self) -> Parsed<u32> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Parsed<u64> {
        Ok(u64::from_le_bytes(self.array()?))
    }

    fn string_bytes(&mut self) -> Parsed<&[u8]> {
        let length = self.u64()?;
        let length = usize::try_from(length).map_err(|_| format!("has a string of {length} bytes"))?;
        self.take(length)
    }

    fn string(&mut self) -> Parsed<String> {
        Ok(String::from_utf8_lossy(self.string_bytes()?).into_owned())
    }

    fn skip_string(&mut self) -> Parsed<()> {
        self.string_bytes().map(|_| ())
    }
}

/// A tensor's bytes in the file, if they lie in it.
fn span(start: usize, shape: &[usize], encoding: Encoding, offset: u64, file: usize) -> Option<Range<usize>> {
    let values = shape.iter().try_fold(1usize, |product, &dim| product.checked_mul(dim))?;
    let length = encoding.bytes_for(values)?;
    let from = start.checked_add(usize::try_from(offset).ok()?)?;
    let to = from.checked_add(length)?;
    (to <= file).then_some(from..to)
}

/// ggml's type number; an unsupported one comes back as its name.
fn encoding(kind: u32) -> Result<Encoding, String> {
    Ok(match kind {
        0 => Encoding::F32,
        1 => Encoding::F16,
        2 => Encoding::Q4_0,
        3 => Encoding::Q4_1,
        6 => Encoding::Q5_0,
        7 => Encoding::Q5_1,
        8 => Encoding::Q8_0,
        12 => Encoding::Q4K,
        13 => Encoding::Q5K,
        14 => Encoding::Q6K,
        30 => Encoding::BF16,
        other => {
            const NAMED: [(u32, &str); 23] = [
                (9, "Q8_1"),
                (10, "Q2_K"),
                (11, "Q3_K"),
                (15, "Q8_K"),
                (16, "IQ2_XXS"),
                (17, "IQ2_XS"),
                (18, "IQ3_XXS"),
                (19, "IQ1_S"),
                (20, "IQ4_NL"),
                (21, "IQ3_S"),
                (22, "IQ2_S"),
                (23, "IQ4_XS"),
                (24, "I8"),
                (25, "I16"),
                (26, "I32"),
                (27, "I64"),
                (28, "F64"),
                (29, "IQ1_M"),
                (34, "TQ1_0"),
                (35, "TQ2_0"),
                (39, "MXFP4"),
                (40, "NVFP4"),
                (41, "Q1_0"),
            ];
            let named = NAMED.iter().find(|(kind, _)| *kind == other);
            return Err(named.map_or_else(|| format!("type {other}"), |(_, name)| (*name).to_owned()));
        }
    })
}
