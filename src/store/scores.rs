//! Token ids and scores as bytes, little-endian: 13 bytes a token, and 8 for each alternative.

use crate::terms::TokenScore;

/// `token u32, logprob f32, entropy f32, alternatives u8`, then for each alternative `token u32, logprob f32`.
/// More than 255 alternatives are cut; the API allows 20.
pub fn pack(scores: &[TokenScore]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(scores.iter().map(|score| 13 + 8 * score.top.len()).sum());
    for score in scores {
        let top = &score.top[..score.top.len().min(usize::from(u8::MAX))];
        bytes.extend(score.token.to_le_bytes());
        bytes.extend(score.logprob.to_le_bytes());
        bytes.extend(score.entropy.to_le_bytes());
        bytes.push(top.len() as u8);
        for (token, logprob) in top {
            bytes.extend(token.to_le_bytes());
            bytes.extend(logprob.to_le_bytes());
        }
    }
    bytes
}

/// `None` if the bytes end within a score.
pub fn unpack(bytes: &[u8]) -> Option<Vec<TokenScore>> {
    let mut rest = bytes;
    let mut scores = Vec::with_capacity(bytes.len() / 13);
    while !rest.is_empty() {
        let (token, logprob, entropy) = (word(&mut rest)?, word(&mut rest)?, word(&mut rest)?);
        let (&alternatives, after) = rest.split_first()?;
        rest = after;
        let top = (0..alternatives)
            .map(|_| Some((u32::from_le_bytes(word(&mut rest)?), f32::from_le_bytes(word(&mut rest)?))))
            .collect::<Option<Vec<_>>>()?;
        scores.push(TokenScore {
            token: u32::from_le_bytes(token),
            logprob: f32::from_le_bytes(logprob),
            entropy: f32::from_le_bytes(entropy),
            top,
        });
    }
    Some(scores)
}

/// Token ids, `u32` each.
pub fn pack_tokens(tokens: &[u32]) -> Vec<u8> {
    tokens.iter().flat_map(|token| token.to_le_bytes()).collect()
}

/// `None` if the bytes end within a token.
pub fn unpack_tokens(bytes: &[u8]) -> Option<Vec<u32>> {
    let (tokens, rest) = bytes.as_chunks();
    rest.is_empty().then(|| tokens.iter().copied().map(u32::from_le_bytes).collect())
}

fn word(rest: &mut &[u8]) -> Option<[u8; 4]> {
    let (word, after) = rest.split_first_chunk()?;
    *rest = after;
    Some(*word)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn scores_survive_being_packed(
            rows in prop::collection::vec(
                (any::<u32>(), -50.0f32..0.0, 0.0f32..12.0, prop::collection::vec((any::<u32>(), -50.0f32..0.0), 0..21)),
                0..40,
            ),
        ) {
            let scores: Vec<TokenScore> = rows
                .into_iter()
                .map(|(token, logprob, entropy, top)| TokenScore { token, logprob, entropy, top })
                .collect();
            let bytes = pack(&scores);
            prop_assert_eq!(unpack(&bytes), Some(scores));
        }
    }

    #[test]
    fn bytes_that_end_early_are_no_scores() {
        let score = TokenScore { token: 7, logprob: -0.5, entropy: 1.5, top: vec![(7, -0.5), (8, -2.0)] };
        let bytes = pack(&[score]);
        assert_eq!(bytes.len(), 29);
        for len in 1..bytes.len() {
            assert_eq!(unpack(&bytes[..len]), None, "{len} bytes");
        }
        assert_eq!(unpack_tokens(&[1, 0, 0, 0, 2]), None);
        assert_eq!(unpack_tokens(&pack_tokens(&[1, u32::MAX])), Some(vec![1, u32::MAX]));
    }
}
