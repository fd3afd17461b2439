//! Ids to text, a token at a time. Only whole UTF-8 characters leave; a token that ends inside one waits for the next.

use std::sync::Arc;

use super::{
    Text,
    pieces::{PieceKind, Pieces},
};

/// Turns one answer's tokens into text as they come. All pushes and the finish together are what decoding all tokens at
/// once gives.
pub struct Detokenizer {
    text: Arc<Text>,
    stream: PieceStream,
}

impl Detokenizer {
    pub(super) fn new(text: Arc<Text>, skip_special: bool, prompt: &[u32]) -> Self {
        let mut stream = PieceStream::new(skip_special);
        stream.begun = prompt.iter().any(|&id| !stream.passes(&text.pieces, id).is_empty());
        Self { text, stream }
    }

    /// Takes the next token; gives the text that is complete with it, often "".
    pub fn push(&mut self, token: u32) -> String {
        self.stream.push(&self.text.pieces, token)
    }

    /// What was held back at the end: the beginning of a character that never came, as U+FFFD.
    pub fn finish(&mut self) -> String {
        self.stream.finish()
    }
}

/// The text of all tokens at once.
pub(super) fn decode(pieces: &Pieces, tokens: &[u32], skip_special: bool) -> String {
    let mut stream = PieceStream::new(skip_special);
    let mut bytes: Vec<u8> = Vec::new();
    for &token in tokens {
        bytes.extend_from_slice(stream.take(pieces, token));
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

struct PieceStream {
    skip_special: bool,
    /// Something has been seen: a space at the beginning now belongs to the text.
    begun: bool,
    /// The bytes of a character whose end has not come.
    held: Vec<u8>,
}

impl PieceStream {
    const fn new(skip_special: bool) -> Self {
        Self { skip_special, begun: false, held: Vec::new() }
    }

    fn passes<'p>(&self, pieces: &'p Pieces, token: u32) -> &'p [u8] {
        match pieces.kind(token) {
            PieceKind::Plain => pieces.bytes(token),
            PieceKind::Special if !self.skip_special => pieces.bytes(token),
            PieceKind::Special | PieceKind::Absent => &[],
        }
    }

    fn take<'p>(&mut self, pieces: &'p Pieces, token: u32) -> &'p [u8] {
        let bytes = self.passes(pieces, token);
        if self.begun || bytes.is_empty() {
            return bytes;
        }
        self.begun = true;
        if pieces.drops_first_space { bytes.strip_prefix(b" ").unwrap_or(bytes) } else { bytes }
    }

    fn push(&mut self, pieces: &Pieces, token: u32) -> String {
        let bytes = self.take(pieces, token);
        self.held.extend_from_slice(bytes);
        let mut text = String::new();
        let mut taken = 0;
        for chunk in self.held.utf8_chunks() {
            let is_last = taken + chunk.valid().len() + chunk.invalid().len() == self.held.len();
            text.push_str(chunk.valid());
            taken += chunk.valid().len();
            if is_last && may_begin_character(chunk.invalid()) {
                break;
            }
            if !chunk.invalid().is_empty() {
                text.push(char::REPLACEMENT_CHARACTER);
                taken += chunk.invalid().len();
            }
        }
        self.held.drain(..taken);
        text
    }

    fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.held)).into_owned()
    }
}

/// Whether more bytes could complete these to a character.
fn may_begin_character(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.valid_up_to() == 0 && error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// One token for every byte, then ` a`, `é`, a special one and an id without a token.
    fn pieces(drops_first_space: bool) -> Pieces {
        let mut pieces = Pieces::new(drops_first_space);
        for byte in 0..=255u8 {
            pieces.push(&[byte], PieceKind::Plain);
        }
        pieces.push(b" a", PieceKind::Plain);
        pieces.push("é".as_bytes(), PieceKind::Plain);
        pieces.push(b"<end>", PieceKind::Special);
        pieces.push(b"", PieceKind::Absent);
        pieces
    }

    fn pushed(pieces: &Pieces, tokens: &[u32], skip_special: bool) -> Vec<String> {
        let mut stream = PieceStream::new(skip_special);
        let mut shown: Vec<String> = tokens.iter().map(|&token| stream.push(pieces, token)).collect();
        shown.push(stream.finish());
        shown
    }

    #[test]
    fn only_whole_characters_leave() {
        let grin: Vec<u32> = "😀".bytes().map(u32::from).collect();
        assert_eq!(pushed(&pieces(false), &grin, true), ["", "", "", "😀", ""]);
        assert_eq!(pushed(&pieces(false), &grin[..3], true), ["", "", "", "\u{FFFD}"]);
        let broken_off = [grin[0], grin[1], u32::from(b'x'), 0xFF, 0xC3];
        assert_eq!(pushed(&pieces(false), &broken_off, true), ["", "", "\u{FFFD}x", "\u{FFFD}", "", "\u{FFFD}"]);
    }

    #[test]
    fn the_first_space_of_a_text_is_dropped_once_where_the_encoding_adds_one() {
        assert_eq!(pushed(&pieces(true), &[258, 256, 256], true).concat(), "a a");
        assert_eq!(pushed(&pieces(true), &[258, 256, 256], false).concat(), "<end> a a");
        assert_eq!(pushed(&pieces(false), &[256], true).concat(), " a");
        assert_eq!(decode(&pieces(true), &[259, 256, 999], true), "a");
    }

    proptest! {
        #[test]
        fn pushing_equals_decoding(tokens in prop::collection::vec(prop_oneof![0u32..260, 0xC0u32..=0xF4, 0x80u32..0xC0], 0..60), skip in any::<bool>(), drops in any::<bool>()) {
            let pieces = pieces(drops);
            prop_assert_eq!(pushed(&pieces, &tokens, skip).concat(), decode(&pieces, &tokens, skip));
        }
    }
}
