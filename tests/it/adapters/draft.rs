//! A healthy adapter taken apart, so that one thing about it can be changed before it is written again.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, LazyLock},
};

use serde_json::{Value, json};
use tunegate::{
    adapters::{AdapterLimits, BaseIdentity},
    config::Dtype,
    model::{self, CpuOptions, LoadOptions, Loaded, ModelSource},
};

use crate::support::device_choice;

pub const LIMITS: AdapterLimits = AdapterLimits { max_rank: 64, max_file_bytes: 1 << 20 };
pub const Q0: &str = "base_model.model.model.layers.0.self_attn.q_proj";

pub fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// A base with its weights, loaded as the server does.
pub fn load(model: &str) -> Loaded {
    let source = ModelSource::detect(&golden(&format!("models/{model}"))).unwrap();
    let options = LoadOptions {
        device: device_choice(),
        dtype: Some(Dtype::Float32),
        kv_bytes: 64 << 20,
        block_tokens: 16,
        max_model_len: None,
        cpu: CpuOptions { exact: true, ..CpuOptions::default() },
    };
    model::load(&source, &options).unwrap()
}

/// The tiny llama that most adapters belong to.
pub static LLAMA: LazyLock<Base> = LazyLock::new(|| Base::new("llama"));

/// What the store needs of a base.
pub struct Base {
    pub packer: Arc<dyn model::Packer>,
    pub weights: Arc<dyn model::BaseWeights>,
    pub identity: BaseIdentity,
}

impl Base {
    pub fn new(model: &str) -> Self {
        let Loaded { packer, base, shape, digest, .. } = load(model);
        Self { packer, weights: base, identity: BaseIdentity { shape, digest, names: vec!["base".to_owned()] } }
    }
}

/// One tensor of a safetensors file.
#[derive(Clone)]
pub struct TensorDraft {
    pub dtype: String,
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

impl TensorDraft {
    pub fn f32(shape: &[usize], value: f32) -> Self {
        let data = value.to_le_bytes().repeat(shape.iter().product());
        Self { dtype: "F32".to_owned(), shape: shape.to_vec(), data }
    }

    pub fn set(&mut self, index: usize, value: f32) {
        self.data[4 * index..][..4].copy_from_slice(&value.to_le_bytes());
    }
}

/// The files of an adapter.
#[derive(Clone)]
pub struct Draft {
    pub config: Value,
    pub tensors: BTreeMap<String, TensorDraft>,
    /// Written as they are, in place of what would be made from the above or beside it; `None` leaves a file out.
    pub files: BTreeMap<String, Option<Vec<u8>>>,
    /// Links to make: name in the folder, target.
    pub links: Vec<(String, PathBuf)>,
}

impl Draft {
    /// An adapter of `tests/golden`.
    pub fn of(path: &str) -> Self {
        let folder = golden(path);
        let config = serde_json::from_slice(&fs::read(folder.join("adapter_config.json")).unwrap()).unwrap();
        let bytes = fs::read(folder.join("adapter_model.safetensors")).unwrap();
        let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: BTreeMap<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
        let tensors = header.into_iter().filter(|(name, _)| name != "__metadata__").map(|(name, entry)| {
            let offset = |index: usize| 8 + length + entry["data_offsets"][index].as_u64().unwrap() as usize;
            let tensor = TensorDraft {
                dtype: entry["dtype"].as_str().unwrap().to_owned(),
                shape: serde_json::from_value(entry["shape"].clone()).unwrap(),
                data: bytes[offset(0)..offset(1)].to_vec(),
            };
            (name, tensor)
        });
        Self { config, tensors: tensors.collect(), files: BTreeMap::new(), links: Vec::new() }
    }

    pub fn plain() -> Self {
        Self::of("adapters/llama/plain-qv")
    }

    pub fn set(&mut self, key: &str, value: Value) {
        self.config[key] = value;
    }

    pub fn tensor(&mut self, name: &str) -> &mut TensorDraft {
        self.tensors.get_mut(name).unwrap()
    }

    pub fn put(&mut self, file: &str, content: impl Into<Vec<u8>>) {
        self.files.insert(file.to_owned(), Some(content.into()));
    }

    pub fn leave_out(&mut self, file: &str) {
        self.files.insert(file.to_owned(), None);
    }

    /// The header of the weights, and their bytes.
    pub fn parts(&self) -> (Value, Vec<u8>) {
        let (mut header, mut data) = (json!({}), Vec::new());
        for (name, tensor) in &self.tensors {
            let begin = data.len();
            data.extend_from_slice(&tensor.data);
            header[name] = json!({
                "dtype": tensor.dtype, "shape": tensor.shape, "data_offsets": [begin, data.len()],
            });
        }
        (header, data)
    }

    /// The weights as a file.
    pub fn weights(&self) -> Vec<u8> {
        let (header, data) = self.parts();
        safetensors(header.to_string().as_bytes(), &data)
    }

    /// Writes with another header than the tensors make.
    pub fn put_header(&mut self, change: impl FnOnce(&mut Value)) {
        let (mut header, data) = self.parts();
        change(&mut header);
        self.put("adapter_model.safetensors", safetensors(header.to_string().as_bytes(), &data));
    }

    pub fn write(&self, folder: &Path) {
        fs::create_dir_all(folder).unwrap();
        let config = serde_json::to_vec_pretty(&self.config).unwrap();
        let made = [("adapter_config.json", config), ("adapter_model.safetensors", self.weights())];
        for (name, content) in made {
            if !self.files.contains_key(name) {
                fs::write(folder.join(name), content).unwrap();
            }
        }
        for (name, content) in &self.files {
            if let Some(content) = content {
                fs::write(folder.join(name), content).unwrap();
            }
        }
        for (name, target) in &self.links {
            std::os::unix::fs::symlink(target, folder.join(name)).unwrap();
        }
    }
}

/// A file of this header and these bytes, fitting or not.
pub fn safetensors(header: &[u8], data: &[u8]) -> Vec<u8> {
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend_from_slice(header);
    file.extend_from_slice(data);
    file
}
