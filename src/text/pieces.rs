//! What each token id stands for, as bytes. Decoding is laying pieces end to end.

use super::byte_level;

/// What a token is to encoding and decoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PieceKind {
    /// No token has this id.
    Absent,
    /// Text, or a part of a character.
    Plain,
    /// Steers the model (turn marks, beginning, end); skipped when only the answer's text is wanted.
    Special,
}

/// How a plain token's name in the vocabulary turns into bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spelling {
    /// Each character of the name stands for one byte (GPT-2's table).
    ByteLevel,
    /// `▁` stands for a space, `<0xNN>` for one byte (SentencePiece with byte fallback).
    SentencePiece { byte_fallback: bool },
}

impl Spelling {
    /// The bytes of a plain token. A name with characters outside GPT-2's table stands for itself.
    pub(super) fn bytes_of(self, name: &str) -> Vec<u8> {
        match self {
            Self::ByteLevel => byte_level::bytes_of(name).unwrap_or_else(|| name.as_bytes().to_vec()),
            Self::SentencePiece { byte_fallback } => match byte_of_name(name) {
                Some(byte) if byte_fallback => vec![byte],
                Some(_) | None => name.replace('▁', " ").into_bytes(),
            },
        }
    }
}

/// The byte that a name of the form `<0xNN>` stands for.
pub(super) fn byte_of_name(name: &str) -> Option<u8> {
    let digits = name.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

/// Every token's bytes and kind, by id. Ids need not be dense.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    bytes: Vec<u8>,
    /// Where the piece of id `i` ends in `bytes`; it begins where the one before ends.
    ends: Vec<u32>,
    kinds: Vec<PieceKind>,
    /// One space at the very beginning of a text belongs to the encoding, not to the text.
    pub(super) drops_first_space: bool,
}

impl Pieces {
    pub(super) fn new(drops_first_space: bool) -> Self {
        Self { drops_first_space, ..Self::default() }
    }

    /// Appends the next id's piece.
    pub(super) fn push(&mut self, bytes: &[u8], kind: PieceKind) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len() as u32);
        self.kinds.push(kind);
    }

    /// One more than the largest id.
    pub(super) fn len(&self) -> usize {
        self.kinds.len()
    }

    /// The token's bytes; empty for ids that no token has.
    pub(super) fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = if id == 0 { 0 } else { self.ends[id - 1] };
        &self.bytes[start as usize..end as usize]
    }

    pub(super) fn kind(&self, id: u32) -> PieceKind {
        self.kinds.get(id as usize).copied().unwrap_or(PieceKind::Absent)
    }
}
