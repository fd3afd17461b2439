//! The text part of a GGUF file's metadata. Reads keys that begin with `tokenizer.` and skips everything else unread;
//! every count and length is checked against what is left of the file before anything is allocated.

use std::{
    collections::HashMap,
    io::{self, BufRead, Read, Seek},
};

/// A `tokenizer.` entry's value, as far as tokenizers use them.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Field {
    Unsigned(u64),
    Signed(i64),
    Float(f64),
    Bool(bool),
    Text(String),
    Texts(Vec<String>),
    Signeds(Vec<i64>),
    Floats(Vec<f32>),
}

/// Why a file's metadata could not be read.
#[derive(Debug, thiserror::Error)]
pub(super) enum GgufError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("not a GGUF file")]
    Magic,
    #[error("GGUF version {0} is not supported; 2 and 3 are")]
    Version(u32),
    #[error("{what} {got} is more than {limit}")]
    TooMuch { what: &'static str, got: u64, limit: u64 },
    #[error("the file ends within its metadata")]
    Short,
    #[error("value type {0} does not exist")]
    ValueType(u32),
    #[error("{key} holds an array of arrays")]
    Nested { key: String },
    #[error("{key} is not UTF-8")]
    Utf8 { key: String },
    #[error("{key} stands twice")]
    Twice { key: String },
}

const MAX_ENTRIES: u64 = 1 << 16;
const MAX_KEY_BYTES: u64 = 1 << 16;
const MAX_TEXT_BYTES: u64 = 1 << 24;
const MAX_ELEMENTS: u64 = 1 << 22;

/// All `tokenizer.` entries of the file, by key.
pub(super) fn read_tokenizer_fields(file: &mut (impl BufRead + Seek)) -> Result<HashMap<String, Field>, GgufError> {
    let end = file.seek(io::SeekFrom::End(0))?;
    file.seek(io::SeekFrom::Start(0))?;
    let mut reader = Reader { file, left: end };
    if reader.bytes::<4>()? != *b"GGUF" {
        return Err(GgufError::Magic);
    }
    let version = reader.u32()?;
    if !matches!(version, 2 | 3) {
        return Err(GgufError::Version(version));
    }
    let _tensors = reader.u64()?;
    let entries = reader.count("the number of metadata entries", MAX_ENTRIES, 13)?;
    let mut fields = HashMap::new();
    for _ in 0..entries {
        let key_bytes = reader.count("a key's length", MAX_KEY_BYTES, 1)?;
        let key = String::from_utf8_lossy(&reader.take(key_bytes)?).into_owned();
        let kind = ValueType::from_number(reader.u32()?)?;
        if !key.starts_with("tokenizer.") {
            reader.skip_value(kind, 0)?;
            continue;
        }
        if let Some(field) = reader.field(&key, kind)?
            && fields.insert(key.clone(), field).is_some()
        {
            return Err(GgufError::Twice { key });
        }
    }
    Ok(fields)
}

/// What a metadata value is, by its number in the file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ValueType {
    Unsigned(u64),
    Signed(u64),
    Float32,
    Float64,
    Bool,
    Text,
    Array,
}

impl ValueType {
    fn from_number(number: u32) -> Result<Self, GgufError> {
        Ok(match number {
            0 => Self::Unsigned(1),
            1 => Self::Signed(1),
            2 => Self::Unsigned(2),
            3 => Self::Signed(2),
            4 => Self::Unsigned(4),
            5 => Self::Signed(4),
            6 => Self::Float32,
            7 => Self::Bool,
            8 => Self::Text,
            9 => Self::Array,
            10 => Self::Unsigned(8),
            11 => Self::Signed(8),
            12 => Self::Float64,
            other => return Err(GgufError::ValueType(other)),
        })
    }

    /// Bytes in the file; for texts and arrays, the least that one takes.
    const fn least_bytes(self) -> u64 {
        match self {
            Self::Unsigned(bytes) | Self::Signed(bytes) => bytes,
            Self::Float32 => 4,
            Self::Float64 | Self::Text => 8,
            Self::Bool => 1,
            Self::Array => 12,
        }
    }
}

struct Reader<'a, F> {
    file: &'a mut F,
    /// Bytes of the file not read yet.
    left: u64,
}

impl<F: BufRead + Seek> Reader<'_, F> {
    fn claim(&mut self, bytes: u64) -> Result<(), GgufError> {
        self.left = self.left.checked_sub(bytes).ok_or(GgufError::Short)?;
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        self.claim(N as u64)?;
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn take(&mut self, bytes: u64) -> Result<Vec<u8>, GgufError> {
        self.claim(bytes)?;
        let mut taken = vec![0; bytes as usize];
        self.file.read_exact(&mut taken)?;
        Ok(taken)
    }

    fn skip(&mut self, bytes: u64) -> Result<(), GgufError> {
        self.claim(bytes)?;
        let skipped = io::copy(&mut Read::take(&mut *self.file, bytes), &mut io::sink())?;
        if skipped == bytes { Ok(()) } else { Err(GgufError::Short) }
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    /// A number of things that take at least `least` bytes each.
    fn count(&mut self, what: &'static str, limit: u64, least: u64) -> Result<u64, GgufError> {
        let got = self.u64()?;
        if got > limit {
            return Err(GgufError::TooMuch { what, got, limit });
        }
        if got * least > self.left {
            return Err(GgufError::Short);
        }
        Ok(got)
    }

    fn text(&mut self, key: &str) -> Result<String, GgufError> {
        let bytes = self.count("a text's length", MAX_TEXT_BYTES, 1)?;
        String::from_utf8(self.take(bytes)?).map_err(|_| GgufError::Utf8 { key: key.to_owned() })
    }

    fn unsigned(&mut self, bytes: u64) -> Result<u64, GgufError> {
        Ok(match bytes {
            1 => u64::from(self.bytes::<1>()?[0]),
            2 => u64::from(u16::from_le_bytes(self.bytes()?)),
            4 => u64::from(self.u32()?),
            _ => self.u64()?,
        })
    }

    fn signed(&mut self, bytes: u64) -> Result<i64, GgufError> {
        let shift = 64 - 8 * bytes as u32;
        Ok((self.unsigned(bytes)? << shift) as i64 >> shift)
    }

    /// The entry's value; `None` for arrays that no tokenizer key holds (of booleans or doubles), which are skipped.
    fn field(&mut self, key: &str, kind: ValueType) -> Result<Option<Field>, GgufError> {
        Ok(Some(match kind {
            ValueType::Unsigned(bytes) => Field::Unsigned(self.unsigned(bytes)?),
            ValueType::Signed(bytes) => Field::Signed(self.signed(bytes)?),
            ValueType::Float32 => Field::Float(f64::from(f32::from_le_bytes(self.bytes()?))),
            ValueType::Float64 => Field::Float(f64::from_le_bytes(self.bytes()?)),
            ValueType::Bool => Field::Bool(self.bytes::<1>()?[0] != 0),
            ValueType::Text => Field::Text(self.text(key)?),
            ValueType::Array => {
                let element = ValueType::from_number(self.u32()?)?;
                let count = self.count("an array's length", MAX_ELEMENTS, element.least_bytes())?;
                match element {
                    ValueType::Text => Field::Texts((0..count).map(|_| self.text(key)).collect::<Result<_, _>>()?),
                    ValueType::Signed(bytes) => {
                        Field::Signeds((0..count).map(|_| self.signed(bytes)).collect::<Result<_, _>>()?)
                    }
                    ValueType::Unsigned(bytes) => Field::Signeds(
                        (0..count).map(|_| self.unsigned(bytes).map(|n| n as i64)).collect::<Result<_, _>>()?,
                    ),
                    ValueType::Float32 => Field::Floats(
                        (0..count).map(|_| self.bytes().map(f32::from_le_bytes)).collect::<Result<_, _>>()?,
                    ),
                    ValueType::Bool | ValueType::Float64 => {
                        self.skip(count * element.least_bytes())?;
                        return Ok(None);
                    }
                    ValueType::Array => return Err(GgufError::Nested { key: key.to_owned() }),
                }
            }
        }))
    }

    fn skip_value(&mut self, kind: ValueType, depth: u32) -> Result<(), GgufError> {
        match kind {
            ValueType::Unsigned(_)
            | ValueType::Signed(_)
            | ValueType::Float32
            | ValueType::Float64
            | ValueType::Bool => self.skip(kind.least_bytes()),
            ValueType::Text => {
                let bytes = self.u64()?;
                self.skip(bytes)
            }
            ValueType::Array => {
                if depth == 4 {
                    return Err(GgufError::TooMuch { what: "the depth of arrays", got: 5, limit: 4 });
                }
                let element = ValueType::from_number(self.u32()?)?;
                let count = self.count("an array's length", u64::MAX / 16, element.least_bytes())?;
                match element {
                    ValueType::Text | ValueType::Array => {
                        (0..count).try_for_each(|_| self.skip_value(element, depth + 1))
                    }
                    ValueType::Unsigned(_)
                    | ValueType::Signed(_)
                    | ValueType::Float32
                    | ValueType::Float64
                    | ValueType::Bool => self.skip(count * element.least_bytes()),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u64).to_le_bytes(), text.as_bytes()].concat()
    }

    fn entry(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
        [text(key), kind.to_le_bytes().to_vec(), value.to_vec()].concat()
    }

    fn array(kind: u32, count: u64, items: &[u8]) -> Vec<u8> {
        [&kind.to_le_bytes(), count.to_le_bytes().as_slice(), items].concat()
    }

    fn file(count: u64, entries: &[Vec<u8>]) -> Vec<u8> {
        [b"GGUF", 3u32.to_le_bytes().as_slice(), &0u64.to_le_bytes(), &count.to_le_bytes(), &entries.concat()].concat()
    }

    fn read(bytes: Vec<u8>) -> Result<HashMap<String, Field>, GgufError> {
        read_tokenizer_fields(&mut Cursor::new(bytes))
    }

    #[test]
    fn only_the_tokenizers_entries_are_taken() {
        let entries = [
            entry("general.name", 8, &text("x")),
            entry("general.deep", 9, &array(9, 1, &array(8, 1, &text("y")))),
            entry("tokenizer.ggml.model", 8, &text("gpt2")),
            entry("tokenizer.ggml.tokens", 9, &array(8, 2, &[text("a"), text("")].concat())),
            entry("tokenizer.ggml.token_type", 9, &array(5, 2, &[1, 0, 0, 0, 255, 255, 255, 255])),
            entry("tokenizer.ggml.add_bos_token", 7, &[1]),
            entry("tokenizer.ggml.bos_token_id", 4, &7u32.to_le_bytes()),
        ];
        let fields = read(file(7, &entries)).expect("reads");
        assert_eq!(fields.len(), 5);
        assert_eq!(fields["tokenizer.ggml.tokens"], Field::Texts(vec!["a".into(), String::new()]));
        assert_eq!(fields["tokenizer.ggml.token_type"], Field::Signeds(vec![1, -1]));
        assert_eq!(fields["tokenizer.ggml.bos_token_id"], Field::Unsigned(7));
    }

    #[test]
    fn headers_that_promise_more_than_the_file_holds_are_refused() {
        let huge = u64::MAX / 16;
        for (what, bytes) in [
            ("nothing", vec![]),
            ("another format", b"GGML\x03\0\0\0".to_vec()),
            ("a version from elsewhere", [b"GGUF", 9u32.to_le_bytes().as_slice(), &[0; 16]].concat()),
            ("more entries than bytes", file(1000, &[])),
            ("entries without end", file(u64::MAX, &[])),
            ("a key without end", file(1, &[u64::MAX.to_le_bytes().to_vec(), vec![0; 20]])),
            ("a long text", file(1, &[entry("tokenizer.x", 8, &huge.to_le_bytes())])),
            ("a long array", file(1, &[entry("tokenizer.x", 9, &array(8, huge, &[]))])),
            ("a long array elsewhere", file(1, &[entry("x", 9, &array(12, huge, &[]))])),
            ("a long text elsewhere", file(1, &[entry("x", 8, &u64::MAX.to_le_bytes())])),
            ("an array of arrays", file(1, &[entry("tokenizer.x", 9, &array(9, 0, &[]))])),
            ("deep arrays", file(1, &[entry("x", 9, &[array(9, 1, &[]).repeat(6), array(0, 0, &[])].concat())])),
            ("an unknown type", file(1, &[entry("x", 13, &[0; 8])])),
            ("a text that is none", file(1, &[entry("tokenizer.x", 8, &[1, 0, 0, 0, 0, 0, 0, 0, 0xFF])])),
            ("the same key twice", file(2, &[entry("tokenizer.x", 7, &[1]), entry("tokenizer.x", 7, &[1])])),
        ] {
            assert!(read(bytes).is_err(), "{what}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(count in 0u64..5, bytes in prop::collection::vec(prop_oneof![Just(0u8), Just(1), Just(8), Just(9), any::<u8>()], 0..200)) {
            let _ = read(file(count, std::slice::from_ref(&bytes)));
            let _ = read(file(count, &[text("tokenizer.x"), bytes]));
        }
    }
}
