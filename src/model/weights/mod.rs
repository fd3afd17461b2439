//! Weight files to named tensors. The names are Hugging Face's, whatever the file calls them.

pub mod gguf;
pub mod safetensors;

use std::{collections::BTreeMap, ops::Range, path::Path};

use super::LoadError;
use crate::{
    kernels::{
        dequant::{self, Encoding},
        map::Mapping,
    },
    terms::{Digest, Hasher},
};

/// The tensors of a model, each taken out once, so that what is left over is known.
pub struct Weights {
    files: Vec<WeightFile>,
    tensors: BTreeMap<String, StoredTensor>,
}

/// One mapped file and the name under which it enters the digest.
pub(super) struct WeightFile {
    pub name: String,
    pub bytes: Mapping,
}

/// Where a tensor lies and how it is written.
#[derive(Clone, Debug)]
pub(super) struct StoredTensor {
    pub file: usize,
    pub span: Range<usize>,
    pub encoding: Encoding,
    /// Slowest dimension first.
    pub shape: Vec<usize>,
    /// For rows that llama.cpp's converter has interleaved within each head: how many heads there are.
    pub interleaved_heads: Option<usize>,
}

impl Weights {
    pub(super) fn new(files: Vec<WeightFile>, tensors: BTreeMap<String, StoredTensor>) -> Self {
        Self { files, tensors }
    }

    /// The shape of a tensor that has not been taken yet.
    pub fn shape_of(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|tensor| tensor.shape.as_slice())
    }

    /// Takes out a matrix as it is stored; [`Weights::rows`] reads it.
    ///
    /// # Errors
    /// [`LoadError::MissingTensor`], [`LoadError::TensorShape`].
    pub fn take_stored(&mut self, name: &str, shape: &[usize]) -> Result<StoredTensor, LoadError> {
        let tensor = self.tensors.remove(name).ok_or_else(|| LoadError::MissingTensor(name.to_owned()))?;
        match tensor.shape == shape {
            true => Ok(tensor),
            false => Err(LoadError::TensorShape { name: name.to_owned(), got: tensor.shape, expected: shape.to_vec() }),
        }
    }

    /// The encoded bytes of each row of a matrix that has been taken out, in Hugging Face's order of rows.
    pub fn rows<'a>(&'a self, tensor: &StoredTensor) -> EncodedRows<'a> {
        let (bytes, rows) = (&self.files[tensor.file].bytes[tensor.span.clone()], tensor.shape[0].max(1));
        EncodedRows { bytes, rows, row_bytes: bytes.len() / rows, interleaved_heads: tensor.interleaved_heads }
    }

    /// Takes out a tensor as `f32`, row-major.
    ///
    /// # Errors
    /// [`LoadError::MissingTensor`], [`LoadError::TensorShape`].
    pub fn take(&mut self, name: &str, shape: &[usize]) -> Result<Vec<f32>, LoadError> {
        let tensor = self.take_stored(name, shape)?;
        let mut values = vec![0.0; shape.iter().product()];
        dequant::decode(tensor.encoding, &self.files[tensor.file].bytes[tensor.span], &mut values);
        match tensor.interleaved_heads {
            Some(heads) => Ok(uninterleave(&values, shape[0], heads)),
            None => Ok(values),
        }
    }

    /// Whether two tensors hold the same bytes in the same form.
    pub fn same(&self, one: &str, other: &str) -> bool {
        let bytes = |name| {
            let tensor = self.tensors.get(name)?;
            Some((&tensor.shape, tensor.encoding, &self.files[tensor.file].bytes[tensor.span.clone()]))
        };
        bytes(one).is_some() && bytes(one) == bytes(other)
    }

    /// Lets go of a tensor that is known to mean nothing.
    pub fn forget(&mut self, name: &str) {
        self.tensors.remove(name);
    }

    /// The tensors that nobody has taken.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// How many numbers there are in the tensors that nobody has taken.
    pub fn values(&self) -> usize {
        self.tensors.values().map(|tensor| tensor.shape.iter().product::<usize>()).sum()
    }

    /// How the matrices are stored: each encoding with its number of tensors.
    pub fn encodings(&self) -> Vec<(&'static str, usize)> {
        let mut counts = BTreeMap::new();
        self.tensors.values().for_each(|tensor| *counts.entry(tensor.encoding.name()).or_insert(0) += 1);
        counts.into_iter().collect()
    }

    /// SHA-256 over the configuration and every weight file, in order of name.
    pub fn digest(&self, config: &[(&str, &[u8])]) -> Digest {
        let hasher = config.iter().fold(Hasher::new(), |hasher, (name, bytes)| hasher.part(name, bytes));
        self.files.iter().fold(hasher, |hasher, file| hasher.part(&file.name, &file.bytes)).finish()
    }
}

/// A matrix's rows as the file encodes them.
pub struct EncodedRows<'a> {
    bytes: &'a [u8],
    rows: usize,
    row_bytes: usize,
    interleaved_heads: Option<usize>,
}

impl<'a> EncodedRows<'a> {
    /// Row `row` of the matrix, wherever the file has it.
    pub fn row(&self, row: usize) -> &'a [u8] {
        let stored = self.interleaved_heads.map_or(row, |heads| stored_row(row, self.rows, heads));
        &self.bytes[stored * self.row_bytes..(stored + 1) * self.row_bytes]
    }
}

/// Undoes the row order of llama.cpp's converter for rotary queries and keys: its row `h, 2j + s` is row `h, s·d/2 + j` of
/// the original, with `d` rows in each head.
fn stored_row(row: usize, rows: usize, heads: usize) -> usize {
    let head_rows = rows / heads;
    let (head, within) = (row / head_rows, row % head_rows);
    let (half, pair) = (within / (head_rows / 2), within % (head_rows / 2));
    head * head_rows + 2 * pair + half
}

fn uninterleave(values: &[f32], rows: usize, heads: usize) -> Vec<f32> {
    let width = values.len() / rows;
    let mut ordered = Vec::with_capacity(values.len());
    for row in 0..rows {
        let stored = stored_row(row, rows, heads);
        ordered.extend_from_slice(&values[stored * width..(stored + 1) * width]);
    }
    ordered
}

pub(super) fn malformed(path: &Path, reason: impl Into<String>) -> LoadError {
    LoadError::Malformed { path: path.to_owned(), reason: reason.into() }
}

pub(super) fn map(path: &Path) -> Result<Mapping, LoadError> {
    Mapping::open(path).map_err(|error| LoadError::Io { path: path.to_owned(), error })
}
