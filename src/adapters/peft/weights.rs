use std::collections::BTreeMap;

use half::{bf16, f16};
use safetensors::{Dtype, SafeTensorError, SafeTensors, tensor::TensorView};

use super::{WEIGHTS_FILE, json::Json};
use crate::{
    adapters::{
        RefusalCode,
        faults::{Faults, shown},
    },
    model::{Matrix, lora::Values},
};

/// Longest safetensors header: hundreds of thousands of tensors.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// The tensors of `adapter_model.safetensors`, each of a known float type and finite. Whoever uses one takes it out, so
/// that what is left at the end is what nobody understood.
pub struct Tensors<'a> {
    left: BTreeMap<String, TensorView<'a>>,
}

impl<'a> Tensors<'a> {
    /// Reads the header and checks every tensor, adding every fault. `None` if the file's structure is wrong.
    pub fn open(bytes: &'a [u8], faults: &mut Faults) -> Option<Self> {
        if bytes.starts_with(b"GGUF") {
            let reason = "is a GGUF LoRA file, and those are not supported yet; only safetensors is read";
            faults.add(RefusalCode::Unsupported, WEIGHTS_FILE, reason);
            return None;
        }
        if let Some(format) = foreign_format(bytes) {
            let reason = format!("is {format}, not safetensors; only safetensors is read");
            faults.add(RefusalCode::UnsafeFormat, WEIGHTS_FILE, reason);
            return None;
        }
        if let Err(reason) = check_header(bytes) {
            faults.add(RefusalCode::MalformedWeights, WEIGHTS_FILE, reason);
            return None;
        }
        let tensors = match SafeTensors::deserialize(bytes) {
            Ok(tensors) => tensors,
            Err(error) => {
                faults.add(RefusalCode::MalformedWeights, WEIGHTS_FILE, structure_fault(&error));
                return None;
            }
        };
        let left: BTreeMap<_, _> = tensors.tensors().into_iter().collect();
        for (name, tensor) in &left {
            match finite(tensor) {
                None => {
                    let reason = format!("has dtype {}; F32, F16 and BF16 are served", tensor.dtype());
                    faults.add(RefusalCode::Dtype, shown(name), reason);
                }
                Some(None) => {}
                Some(Some(index)) => {
                    let reason =
                        format!("value {index} of {} is NaN or infinite", tensor.shape().iter().product::<usize>());
                    faults.add(RefusalCode::NotFinite, shown(name), reason);
                }
            }
        }
        Some(Self { left })
    }

    /// Claims a tensor.
    pub fn take(&mut self, name: &str) -> Option<TensorView<'a>> {
        self.left.remove(name)
    }

    /// What nobody claimed, by name.
    pub fn into_left(self) -> BTreeMap<String, TensorView<'a>> {
        self.left
    }
}

/// The format that the first bytes tell of, where it is a known one that is not safetensors.
fn foreign_format(bytes: &[u8]) -> Option<&'static str> {
    match bytes {
        [b'P', b'K', 3 | 5, 4 | 6, ..] => Some("a zip archive, as torch.save writes it (a pickle)"),
        // A pickle begins with PROTO and its version; a safetensors header of these bytes would be longer than allowed.
        [0x80, 2..=5, third, ..] if *third != 0 => Some("a pickle"),
        [0x89, b'H', b'D', b'F', ..] => Some("HDF5"),
        [0x1f, 0x8b, ..] if bytes.get(4..8) != Some(&[0; 4]) => Some("gzip"),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Some("bzip2"),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some("xz"),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Some("zstd"),
        [b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c, ..] => Some("a 7z archive"),
        _ if bytes.get(257..262) == Some(b"ustar") => Some("a tar archive"),
        [b'v', b'e', b'r', b's', b'i', b'o', b'n', b' ', ..] => {
            Some("a Git LFS pointer: the weights were never fetched")
        }
        _ => None,
    }
}

/// The length in front, and that no tensor stands twice in the header.
fn check_header(bytes: &[u8]) -> Result<(), String> {
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(format!("has {} bytes; even an empty file of this format has more than 8", bytes.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER_BYTES {
        return Err(format!("its header would have {length} bytes; {MAX_HEADER_BYTES} are allowed"));
    }
    let header = usize::try_from(length).ok().and_then(|length| rest.get(..length));
    let Some(header) = header else {
        return Err(format!(
            "its header would have {length} bytes and only {} follow: the file is cut short",
            rest.len()
        ));
    };
    match Json::parse(header) {
        Ok(Json::Map(_)) => Ok(()),
        Ok(other) => Err(format!("its header is {} where an object belongs", other.kind())),
        Err(error) => Err(format!("its header is not read: {}", shown(&error))),
    }
}

fn structure_fault(error: &SafeTensorError) -> String {
    use SafeTensorError as E;
    match error {
        E::InvalidHeader(_) => "its header is not UTF-8".to_owned(),
        E::InvalidHeaderDeserialization(error) | E::JsonError(error) => {
            format!("its header is not read: {}", shown(&error.to_string()))
        }
        E::HeaderTooLarge | E::HeaderTooSmall | E::InvalidHeaderLength => {
            "its header has an impossible length".to_owned()
        }
        E::TensorNotFound(name) => format!("{} is not there", shown(name)),
        E::TensorInvalidInfo => "a tensor's offsets do not fit its shape and dtype".to_owned(),
        E::InvalidOffset(name) => format!("the offsets of {} overlap another tensor or leave a gap", shown(name)),
        E::IoError(error) => error.kind().to_string(),
        E::InvalidTensorView(dtype, shape, bytes) => format!("{bytes} bytes do not hold {shape:?} of {dtype}"),
        E::MetadataIncompleteBuffer => {
            "its tensors do not end where the file ends: it is cut short or has more".to_owned()
        }
        E::ValidationOverflow => "a tensor's shape overflows".to_owned(),
        E::MisalignedSlice => "a tensor does not begin at a whole byte".to_owned(),
    }
}

/// `None` for a dtype that is not served; else the first value that is not finite, where there is one.
fn finite(tensor: &TensorView<'_>) -> Option<Option<usize>> {
    let data = tensor.data();
    // A number is finite unless all bits of its exponent are set.
    Some(match tensor.dtype() {
        Dtype::F32 => first(data, |bytes| u32::from_le_bytes(bytes) & 0x7f80_0000 == 0x7f80_0000),
        Dtype::F16 => first(data, |bytes| u16::from_le_bytes(bytes) & 0x7c00 == 0x7c00),
        Dtype::BF16 => first(data, |bytes| u16::from_le_bytes(bytes) & 0x7f80 == 0x7f80),
        _ => return None,
    })
}

/// The first of the numbers of `N` bytes that is `wanted`. Looked for in pieces, which are compared many numbers at once.
fn first<const N: usize>(data: &[u8], wanted: impl Fn([u8; N]) -> bool + Copy) -> Option<usize> {
    const PIECE: usize = 256;
    let numbers = data.as_chunks::<N>().0;
    let has_one = |piece: &[[u8; N]]| piece.iter().fold(false, |any, number| any | wanted(*number));
    let before = PIECE * numbers.chunks(PIECE).position(has_one)?;
    numbers[before..].iter().position(|number| wanted(*number)).map(|at| before + at)
}

/// A matrix in its own dtype; `None` if it has not two dimensions or a dtype that is not served.
pub fn matrix(tensor: &TensorView<'_>) -> Option<Matrix> {
    let &[rows, cols] = tensor.shape() else { return None };
    Some(Matrix { rows, cols, values: values(tensor)? })
}

/// The values in their own dtype; `None` for one that is not served.
pub fn values(tensor: &TensorView<'_>) -> Option<Values> {
    let data = tensor.data();
    Some(match tensor.dtype() {
        Dtype::F32 => Values::F32(data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()),
        Dtype::F16 => Values::F16(data.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes)).collect()),
        Dtype::BF16 => Values::BF16(data.as_chunks().0.iter().map(|bytes| bf16::from_le_bytes(*bytes)).collect()),
        _ => return None,
    })
}

pub fn name_of(values: &Values) -> &'static str {
    match values {
        Values::F32(_) => "f32",
        Values::F16(_) => "f16",
        Values::BF16(_) => "bf16",
    }
}

pub fn dtype_name(tensor: &TensorView<'_>) -> &'static str {
    match tensor.dtype() {
        Dtype::F32 => "f32",
        Dtype::F16 => "f16",
        Dtype::BF16 => "bf16",
        _ => "other",
    }
}
