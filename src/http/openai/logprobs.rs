//! Token scores in both of OpenAI's forms.

use super::wire::{Alternatives, ChatToken, TextLogprobs, TokenBody};
use crate::{
    terms::TokenScore,
    text::{Text, TokenPiece},
};

/// JSON has no infinity; a token that cannot come is as unlikely as OpenAI ever says.
const LEAST: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    logprob.max(LEAST)
}

fn token_body(text: &Text, token: u32, logprob: f32) -> TokenBody {
    let TokenPiece { text, bytes } = text.token_piece(token);
    TokenBody { token: text, logprob: finite(logprob), bytes }
}

/// The chat form.
pub fn chat_tokens(text: &Text, scores: &[TokenScore]) -> Vec<ChatToken> {
    let entry = |score: &TokenScore| ChatToken {
        token: token_body(text, score.token, score.logprob),
        top_logprobs: score.top.iter().map(|&(token, logprob)| token_body(text, token, logprob)).collect(),
    };
    scores.iter().map(entry).collect()
}

/// Where the next token of a choice begins in its text, over all chunks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Offset {
    characters: usize,
}

impl Offset {
    /// The place of a token with these bytes. Its first bytes may go on with a character that an earlier one began.
    fn advance(&mut self, bytes: &[u8]) -> usize {
        let continues = bytes.first().is_some_and(|&byte| is_continuation(byte));
        let place = self.characters - usize::from(continues && self.characters > 0);
        self.characters += bytes.iter().filter(|&&byte| !is_continuation(byte)).count();
        place
    }
}

fn is_continuation(byte: u8) -> bool {
    byte & 0b1100_0000 == 0b1000_0000
}

/// The older form of `/v1/completions`, built as tokens come.
pub struct TextTokens<'a> {
    text: &'a Text,
    skip_special: bool,
    offset: &'a mut Offset,
    out: TextLogprobs,
}

impl<'a> TextTokens<'a> {
    pub fn new(text: &'a Text, skip_special: bool, offset: &'a mut Offset) -> Self {
        Self { text, skip_special, offset, out: TextLogprobs::default() }
    }

    pub fn finish(self) -> TextLogprobs {
        self.out
    }

    /// A token without a score: the first of an echoed prompt.
    pub fn unscored(&mut self, token: u32) {
        self.place(token);
        self.out.token_logprobs.push(None);
        self.out.top_logprobs.push(None);
    }

    pub fn scored(&mut self, score: &TokenScore) {
        self.place(score.token);
        self.out.token_logprobs.push(Some(finite(score.logprob)));
        let alternatives =
            score.top.iter().map(|&(token, logprob)| (self.text.token_piece(token).text, finite(logprob)));
        self.out.top_logprobs.push((!score.top.is_empty()).then(|| Alternatives(alternatives.collect())));
    }

    fn place(&mut self, token: u32) {
        let piece = self.text.token_piece(token);
        let hidden = self.skip_special && self.text.is_special(token);
        self.out.text_offset.push(self.offset.advance(if hidden { &[] } else { &piece.bytes }));
        self.out.tokens.push(piece.text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offsets_count_characters_also_where_tokens_split_them() {
        let mut offset = Offset::default();
        let e_acute = "é".as_bytes();
        let places = [b"ab".as_slice(), &e_acute[..1], &e_acute[1..], b"", b"c"].map(|bytes| offset.advance(bytes));
        assert_eq!(places, [0, 2, 2, 3, 3]);
    }

    #[test]
    fn what_cannot_come_is_still_a_number() {
        assert_eq!(finite(f32::NEG_INFINITY), LEAST);
        assert_eq!(finite(-1.5), -1.5);
    }

    #[test]
    fn of_two_alternatives_with_one_text_the_better_stays() {
        let both = Alternatives(vec![("a".into(), -1.0), ("b".into(), -2.0), ("a".into(), -3.0)]);
        assert_eq!(serde_json::to_string(&both).unwrap(), r#"{"a":-1.0,"b":-2.0}"#);
    }
}
