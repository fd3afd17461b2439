//! Text to ids. Added tokens are found here, so that it can be said where a special token may be matched and where the
//! same characters are only text; normalizer, pre-tokenizer and merges are the tokenizer's own.

use std::{
    collections::{HashMap, HashSet},
    iter,
};

use regex::Regex;
use tokenizers::{
    AddedToken, Model, NormalizedString, Normalizer, OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer,
    Token, Tokenizer, normalizer::Range,
};

/// Where special tokens may be matched.
#[derive(Clone, Copy)]
pub(super) enum Specials<'a> {
    /// Nowhere: their characters are text.
    AsText,
    /// Everywhere but across these byte offsets of the text (ascending).
    Unless(&'a [usize]),
}

impl Specials<'_> {
    /// Whether the special token that `original` spells at `start` may be matched. A break at its beginning concerns
    /// it only when it is one character, which has no inside.
    fn allowed(self, start: usize, original: &str) -> bool {
        match self {
            Self::AsText => false,
            Self::Unless(breaks) => {
                let first = original.chars().next().map_or(0, char::len_utf8);
                let inside = if original.len() == first { start } else { start + 1 };
                let next = breaks.partition_point(|&at| at < inside);
                breaks.get(next).is_none_or(|&at| at >= start + original.len())
            }
        }
    }
}

pub(super) struct Encoder {
    tokenizer: Tokenizer,
    /// Added tokens matched in the text as it came.
    literal: AddedTokens,
    /// Added tokens matched after normalization.
    normalized: AddedTokens,
    special: HashSet<u32>,
}

type Piece = (NormalizedString, Option<Vec<Token>>);

impl Encoder {
    pub(super) fn new(tokenizer: Tokenizer) -> Result<Self, tokenizers::Error> {
        let mut literal = Vec::new();
        let mut normalized = Vec::new();
        let mut special = HashSet::new();
        for (id, token) in tokenizer.get_added_tokens_decoder() {
            if token.content.is_empty() {
                continue;
            }
            if token.special {
                special.insert(id);
            }
            if !token.normalized {
                literal.push((token.content.clone(), id, token));
                continue;
            }
            let mut pattern = NormalizedString::from(token.content.as_str());
            if let Some(normalizer) = tokenizer.get_normalizer() {
                normalizer.normalize(&mut pattern)?;
            }
            if !pattern.get().is_empty() {
                normalized.push((pattern.get().to_owned(), id, token));
            }
        }
        Ok(Self { literal: AddedTokens::new(literal)?, normalized: AddedTokens::new(normalized)?, special, tokenizer })
    }

    pub(super) fn encode(&self, text: &str, specials: Specials<'_>) -> Result<Vec<u32>, tokenizers::Error> {
        let mut pieces = PreTokenizedString::from(text);
        pieces.split(|_, piece| self.literal.split(piece, specials))?;
        pieces.split(|_, mut piece| {
            if let Some(normalizer) = self.tokenizer.get_normalizer() {
                normalizer.normalize(&mut piece)?;
            }
            self.normalized.split(piece, specials)
        })?;
        if let Some(pre_tokenizer) = self.tokenizer.get_pre_tokenizer() {
            pre_tokenizer.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|piece| self.merge(piece.get()))?;
        let splits = pieces.get_splits(OffsetReferential::Normalized, OffsetType::None);
        Ok(splits.iter().flat_map(|(_, _, tokens)| tokens.iter().flatten()).map(|token| token.id).collect())
    }

    /// The tokens of plain text. A vocabulary may reach a special token by its merges; such text is merged in two halves
    /// instead, so that no plain text ever becomes one.
    fn merge(&self, text: &str) -> Result<Vec<Token>, tokenizers::Error> {
        let tokens = self.tokenizer.get_model().tokenize(text)?;
        let Some(stray) = tokens.iter().find(|token| self.special.contains(&token.id) && token.value.len() > 1) else {
            return Ok(tokens);
        };
        let (start, end) = stray.offsets;
        let is_verbatim = text.get(start..end).is_some_and(|covered| covered == stray.value);
        let Some(middle) = (start + 1..end).find(|&at| is_verbatim && text.is_char_boundary(at)) else {
            return Ok(tokens);
        };
        let (left, right) = text.split_at(middle);
        let mut tokens = self.merge(left)?;
        tokens.extend(self.merge(right)?);
        Ok(tokens)
    }
}

struct Added {
    id: u32,
    token: AddedToken,
}

/// A set of added tokens, found leftmost first and longest first.
struct AddedTokens {
    by_text: HashMap<String, Added>,
    all: Option<Regex>,
    /// Those that are not special, at the beginning of a text only.
    leading_not_special: Option<Regex>,
}

impl AddedTokens {
    fn new(tokens: Vec<(String, u32, AddedToken)>) -> Result<Self, tokenizers::Error> {
        let any_of = |anchor: &str, mut texts: Vec<&str>| {
            if texts.is_empty() {
                return Ok(None);
            }
            texts.sort_unstable_by_key(|text| (std::cmp::Reverse(text.len()), *text));
            let pattern = texts.iter().map(|text| regex::escape(text)).collect::<Vec<_>>().join("|");
            regex::RegexBuilder::new(&format!("{anchor}(?:{pattern})")).size_limit(256 << 20).build().map(Some)
        };
        let all = any_of("", tokens.iter().map(|(text, ..)| text.as_str()).collect())?;
        let leading_not_special =
            any_of("^", tokens.iter().filter(|(.., token)| !token.special).map(|(text, ..)| text.as_str()).collect())?;
        let by_text = tokens.into_iter().map(|(text, id, token)| (text, Added { id, token })).collect();
        Ok(Self { by_text, all, leading_not_special })
    }

    /// The first match at or after `from`: start, end, token.
    fn find(
        &self,
        text: &str,
        mut from: usize,
        allowed: impl Fn(usize, &Added, usize) -> bool,
    ) -> Option<(usize, usize, &Added)> {
        loop {
            let longest = self.all.as_ref()?.find_at(text, from)?;
            let (start, rest) = (longest.start(), &text[longest.start()..]);
            let not_special = || self.leading_not_special.as_ref()?.find(rest);
            for found in iter::once(longest.as_str()).chain(iter::from_fn(not_special).take(1).map(|m| m.as_str())) {
                let Some(added) = self.by_text.get(found) else { continue };
                let end = start + found.len();
                let word_ok =
                    !added.token.single_word || !(text[..start].ends_with(is_word) || text[end..].starts_with(is_word));
                if word_ok && (!added.token.special || allowed(start, added, end)) {
                    return Some((start, end, added));
                }
            }
            from = start + rest.chars().next().map_or(1, char::len_utf8);
        }
    }

    fn split(&self, piece: NormalizedString, specials: Specials<'_>) -> Result<Vec<Piece>, tokenizers::Error> {
        if self.all.is_none() {
            return Ok(vec![(piece, None)]);
        }
        let shift = piece.offsets_original().0;
        let allowed = |start, added: &Added, end| match specials {
            Specials::AsText => false,
            Specials::Unless([]) => true,
            // Only what was written out is known to be free of breaks, not what normalization makes of other characters.
            Specials::Unless(_) => piece.convert_offsets(Range::Normalized(start..end)).is_some_and(|original| {
                let written = piece.get_original().get(original.clone());
                written == Some(added.token.content.as_str())
                    && specials.allowed(shift + original.start, &added.token.content)
            }),
        };
        let slice = |start: usize, end: usize| {
            piece.slice(Range::Normalized(start..end)).ok_or("an added token lies outside the text")
        };
        let text = piece.get();
        let mut pieces = Vec::new();
        let mut done = 0;
        while let Some((mut start, mut end, added)) = self.find(text, done, allowed) {
            if added.token.lstrip {
                start = done + text[done..start].trim_end().len();
            }
            if added.token.rstrip {
                end = text.len() - text[end..].trim_start().len();
            }
            if done < start {
                pieces.push((slice(done, start)?, None));
            }
            pieces.push((slice(start, end)?, Some(vec![Token::new(added.id, String::new(), (0, end - start))])));
            done = end;
        }
        if done < text.len() {
            pieces.push((slice(done, text.len())?, None));
        }
        Ok(pieces)
    }
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}
