//! A Hugging Face folder's weights: `model.safetensors`, or the shards that `model.safetensors.index.json` lists.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
};

use ::safetensors::{Dtype, SafeTensors};

use super::{StoredTensor, WeightFile, Weights, malformed, map};
use crate::{kernels::dequant::Encoding, model::LoadError};

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// An index names a few thousand tensors; more than this is not one.
const MAX_INDEX_BYTES: u64 = 64 << 20;

/// Reads the headers of a folder's weight files and maps their contents.
///
/// # Errors
/// [`LoadError`] if a file is missing, malformed, or holds numbers in another form than f32, f16 or bf16.
pub fn open(folder: &Path) -> Result<Weights, LoadError> {
    let single = folder.join(SINGLE);
    let index = folder.join(INDEX);
    let expected: Option<BTreeMap<String, String>> = match (single.is_file(), index.is_file()) {
        (true, _) => None,
        (false, true) => Some(read_index(&index)?),
        (false, false) => return Err(malformed(folder, format!("holds neither {SINGLE} nor {INDEX}"))),
    };
    let names: BTreeSet<&str> = match &expected {
        None => [SINGLE].into(),
        Some(shards) => shards.values().map(String::as_str).collect(),
    };
    let (mut files, mut tensors) = (Vec::new(), BTreeMap::new());
    for name in names {
        let path = folder.join(name);
        let bytes = map(&path)?;
        for (tensor, stored) in read_header(&path, &bytes, files.len())? {
            if let Some(shards) = &expected
                && shards.get(&tensor).map(String::as_str) != Some(name)
            {
                return Err(malformed(&path, format!("holds '{tensor}', which the index does not place there")));
            }
            tensors.insert(tensor, stored);
        }
        files.push(WeightFile { name: name.to_owned(), bytes });
    }
    let absent = expected.iter().flat_map(BTreeMap::keys).find(|name| !tensors.contains_key(*name));
    match absent {
        Some(name) => Err(LoadError::MissingTensor(name.clone())),
        None => Ok(Weights::new(files, tensors)),
    }
}

/// Which shard holds which tensor.
fn read_index(path: &Path) -> Result<BTreeMap<String, String>, LoadError> {
    #[derive(serde::Deserialize)]
    struct Index {
        weight_map: BTreeMap<String, String>,
    }
    let io = |error| LoadError::Io { path: path.to_owned(), error };
    let size = std::fs::metadata(path).map_err(io)?.len();
    if size > MAX_INDEX_BYTES {
        return Err(malformed(path, format!("has {size} bytes, the limit is {MAX_INDEX_BYTES}")));
    }
    let text = std::fs::read(path).map_err(io)?;
    let index: Index = serde_json::from_slice(&text).map_err(|error| malformed(path, error.to_string()))?;
    // A shard is a file beside its index, never elsewhere.
    let outside =
        |name: &&String| !name.ends_with(".safetensors") || name.contains(['/', '\\']) || name.starts_with('.');
    if let Some(name) = index.weight_map.values().find(outside) {
        return Err(malformed(
            path,
            format!("names the shard '{name}'; a shard is a .safetensors file beside the index"),
        ));
    }
    if index.weight_map.is_empty() {
        return Err(malformed(path, "names no tensor"));
    }
    Ok(index.weight_map)
}

fn read_header(path: &Path, bytes: &[u8], file: usize) -> Result<Vec<(String, StoredTensor)>, LoadError> {
    let parsed = SafeTensors::deserialize(bytes).map_err(|error| malformed(path, error.to_string()))?;
    let start = bytes.as_ptr() as usize;
    parsed
        .iter()
        .map(|(name, view)| {
            let encoding = match view.dtype() {
                Dtype::F32 => Encoding::F32,
                Dtype::F16 => Encoding::F16,
                Dtype::BF16 => Encoding::BF16,
                other => {
                    let reason = format!("tensor '{name}' is stored as {other:?}; F32, F16 and BF16 are supported");
                    return Err(malformed(path, reason));
                }
            };
            let offset = view.data().as_ptr() as usize - start;
            let span = offset..offset + view.data().len();
            let shape = view.shape().to_vec();
            Ok((name.to_owned(), StoredTensor { file, span, encoding, shape, interleaved_heads: None }))
        })
        .collect()
}
