//! Token ids and scores as bytes, little-endian. The form of a row's bytes stands beside them: [`FORM`] is what is written
//! today, what earlier builds wrote can be read.

use half::f16;

use crate::terms::TokenScore;

/// Scores: the width of ids in bytes (2, 3 or 4), the count as `u32`, whether alternatives follow; then all ids, all
/// log-probabilities and all entropies, the latter as half-precision numbers; then, if they follow, the number of
/// alternatives of each token as `u8`, all their ids and all their log-probabilities. So a token takes 6 bytes with a
/// vocabulary of up to 65,535, else 7 or 8. Tokens: the width, then all ids.
pub const FORM: i64 = 1;
/// Scores: for each token `id u32, logprob f32, entropy f32, alternatives u8`, then for each alternative `id u32, logprob
/// f32`. Tokens: ids as `u32`.
const SINGLES: i64 = 0;

/// An id that is not kept, in every width.
const UNKNOWN: u32 = u32::MAX;

/// A score as it is read back from the record.
pub fn as_kept(score: f32) -> f32 {
    f16::from_f32(score).to_f32()
}

/// In [`FORM`]. More than 255 alternatives are cut; the API allows 20.
pub fn pack(scores: &[TokenScore]) -> Vec<u8> {
    let tops = || scores.iter().map(|score| &score.top[..score.top.len().min(usize::from(u8::MAX))]);
    let alternatives: usize = tops().map(<[_]>::len).sum();
    let ids = || scores.iter().map(|score| score.token).chain(tops().flatten().map(|&(token, _)| token));
    let width = width(ids());
    let mut bytes = Vec::with_capacity(6 + scores.len() * (width + 5) + alternatives * (width + 2));
    bytes.push(width as u8);
    bytes.extend((scores.len() as u32).to_le_bytes());
    bytes.push(u8::from(alternatives > 0));
    let halves = |bytes: &mut Vec<u8>, value: f32| bytes.extend(f16::from_f32(value).to_le_bytes());
    scores.iter().for_each(|score| push_id(&mut bytes, width, score.token));
    scores.iter().for_each(|score| halves(&mut bytes, score.logprob));
    scores.iter().for_each(|score| halves(&mut bytes, score.entropy));
    if alternatives > 0 {
        bytes.extend(tops().map(|top| top.len() as u8));
        tops().flatten().for_each(|&(token, _)| push_id(&mut bytes, width, token));
        tops().flatten().for_each(|&(_, logprob)| halves(&mut bytes, logprob));
    }
    bytes
}

/// `None` if the form is not known or the bytes end too early or too late.
pub fn unpack(form: i64, bytes: &[u8]) -> Option<Vec<TokenScore>> {
    match form {
        _ if bytes.is_empty() => Some(Vec::new()),
        SINGLES => unpack_singles(bytes),
        FORM => {
            let mut rest = bytes;
            let width = read_width(&mut rest)?;
            let count = u32::from_le_bytes(word(&mut rest)?) as usize;
            let [more] = word(&mut rest)?;
            let ids = read_ids(&mut rest, width, count)?;
            let logprobs = read_halves(&mut rest, count)?;
            let entropies = read_halves(&mut rest, count)?;
            let counts = if more == 0 { vec![0; count] } else { take(&mut rest, count)?.to_vec() };
            let alternatives = counts.iter().map(|&count| usize::from(count)).sum();
            let others = read_ids(&mut rest, width, alternatives)?;
            let others = others.into_iter().zip(read_halves(&mut rest, alternatives)?).collect::<Vec<_>>();
            let mut others = others.into_iter();
            let scores = ids.into_iter().zip(logprobs).zip(entropies).zip(counts);
            let scores = scores.map(|(((token, logprob), entropy), count)| TokenScore {
                token,
                logprob,
                entropy,
                top: others.by_ref().take(usize::from(count)).collect(),
            });
            let scores = scores.collect();
            rest.is_empty().then_some(scores)
        }
        _ => None,
    }
}

/// Token ids in [`FORM`].
pub fn pack_tokens(tokens: &[u32]) -> Vec<u8> {
    if tokens.is_empty() {
        return Vec::new();
    }
    let width = width(tokens.iter().copied());
    let mut bytes = vec![width as u8];
    tokens.iter().for_each(|&token| push_id(&mut bytes, width, token));
    bytes
}

/// As [`unpack`].
pub fn unpack_tokens(form: i64, bytes: &[u8]) -> Option<Vec<u32>> {
    match form {
        _ if bytes.is_empty() => Some(Vec::new()),
        SINGLES => {
            let (tokens, rest) = bytes.as_chunks();
            rest.is_empty().then(|| tokens.iter().copied().map(u32::from_le_bytes).collect())
        }
        FORM => {
            let mut rest = bytes;
            let width = read_width(&mut rest)?;
            let count = rest.len() / width;
            let tokens = read_ids(&mut rest, width, count)?;
            rest.is_empty().then_some(tokens)
        }
        _ => None,
    }
}

fn unpack_singles(bytes: &[u8]) -> Option<Vec<TokenScore>> {
    let mut rest = bytes;
    let mut scores = Vec::with_capacity(bytes.len() / 13);
    while !rest.is_empty() {
        let (token, logprob, entropy) = (word(&mut rest)?, word(&mut rest)?, word(&mut rest)?);
        let [alternatives] = word(&mut rest)?;
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

/// Bytes that hold every id and, above them all, the one that means none.
fn width(ids: impl Iterator<Item = u32>) -> usize {
    match ids.filter(|&id| id != UNKNOWN).max().unwrap_or(0) {
        0..0xffff => 2,
        0xffff..0xff_ffff => 3,
        0xff_ffff.. => 4,
    }
}

fn push_id(bytes: &mut Vec<u8>, width: usize, id: u32) {
    bytes.extend(&id.to_le_bytes()[..width]);
}

fn read_width(rest: &mut &[u8]) -> Option<usize> {
    let [width] = word(rest)?;
    (2..=4).contains(&width).then_some(usize::from(width))
}

fn read_ids(rest: &mut &[u8], width: usize, count: usize) -> Option<Vec<u32>> {
    let none = UNKNOWN >> (32 - 8 * width);
    let ids = take(rest, count.checked_mul(width)?)?.chunks_exact(width).map(|id| {
        let id = id.iter().rev().fold(0, |id, &byte| id << 8 | u32::from(byte));
        if id == none { UNKNOWN } else { id }
    });
    Some(ids.collect())
}

fn read_halves(rest: &mut &[u8], count: usize) -> Option<Vec<f32>> {
    let (halves, _) = take(rest, count.checked_mul(2)?)?.as_chunks();
    Some(halves.iter().map(|&half| f16::from_le_bytes(half).to_f32()).collect())
}

fn take<'a>(rest: &mut &'a [u8], bytes: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(bytes)?;
    *rest = after;
    Some(taken)
}

fn word<const BYTES: usize>(rest: &mut &[u8]) -> Option<[u8; BYTES]> {
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
        fn scores_survive_being_packed_to_eleven_bits(
            most in prop::sample::select(vec![0xfffe_u32, 0xffff, 0xff_fffe, 0xff_ffff, u32::MAX]),
            rows in prop::collection::vec(
                (any::<u32>(), -50.0f32..0.0, 0.0f32..12.0, prop::collection::vec((any::<u32>(), -50.0f32..0.0), 0..21)),
                0..40,
            ),
        ) {
            let id = |id: u32| if id == UNKNOWN { id } else { id.min(most) };
            let top = |top: Vec<(u32, f32)>| top.into_iter().map(|(token, score)| (id(token), as_kept(score))).collect();
            let scores: Vec<TokenScore> = rows
                .into_iter()
                .map(|(token, logprob, entropy, others)| {
                    let (logprob, entropy) = (as_kept(logprob), as_kept(entropy));
                    TokenScore { token: id(token), logprob, entropy, top: top(others) }
                })
                .collect();
            prop_assert_eq!(unpack(FORM, &pack(&scores)), Some(scores.clone()));
            let tokens: Vec<u32> = scores.iter().map(|score| score.token).collect();
            prop_assert_eq!(unpack_tokens(FORM, &pack_tokens(&tokens)), Some(tokens));
        }

        #[test]
        fn a_kept_score_is_off_by_one_part_in_two_thousand_at_most(score in -60.0f32..-0.001) {
            prop_assert!((as_kept(score) - score).abs() <= score.abs() / 2048.0);
        }
    }

    fn plain(token: u32) -> TokenScore {
        TokenScore { token, logprob: -0.5, entropy: 1.5, top: Vec::new() }
    }

    #[test]
    fn a_token_takes_six_bytes_with_a_small_vocabulary_and_eight_at_most() {
        for (token, bytes) in [(49_151, 6), (151_935, 7), (20_000_000, 8)] {
            assert_eq!(pack(&vec![plain(token); 100]).len(), 6 + 100 * bytes, "{token}");
        }
        assert_eq!(pack_tokens(&[49_151; 100]).len(), 201);
    }

    #[test]
    fn an_id_that_is_not_kept_takes_no_more_room() {
        let scores = [plain(UNKNOWN), plain(7)];
        assert_eq!(pack(&scores).len(), 6 + 2 * 6);
        assert_eq!(unpack(FORM, &pack(&scores)).unwrap()[0].token, UNKNOWN);
    }

    #[test]
    fn what_earlier_builds_packed_is_read() {
        let mut bytes = Vec::new();
        for (token, logprob, entropy) in [(7u32, -0.123_456_7f32, 1.5f32), (9, -2.0, 0.25)] {
            bytes.extend(token.to_le_bytes());
            bytes.extend(logprob.to_le_bytes());
            bytes.extend(entropy.to_le_bytes());
            bytes.push(1);
            bytes.extend(8u32.to_le_bytes());
            bytes.extend((-3.0f32).to_le_bytes());
        }
        let read = unpack(SINGLES, &bytes).unwrap();
        assert_eq!((read[0].token, read[0].logprob, read[1].top[0]), (7, -0.123_456_7, (8, -3.0)));
        assert_eq!(unpack_tokens(SINGLES, &[1, 0, 0, 0, 255, 255, 255, 255]), Some(vec![1, u32::MAX]));
    }

    #[test]
    fn bytes_that_end_early_or_late_are_no_scores() {
        let score = TokenScore { token: 7, logprob: -0.5, entropy: 1.5, top: vec![(7, -0.5), (8, -2.0)] };
        let bytes = pack(&[score.clone(), score]);
        for len in 1..bytes.len() {
            assert_eq!(unpack(FORM, &bytes[..len]), None, "{len} bytes");
        }
        assert_eq!(unpack(FORM, &[bytes.as_slice(), &[0]].concat()), None);
        assert_eq!(unpack(2, &bytes), None, "a form of later builds");
        assert_eq!(unpack(FORM, &[]), Some(Vec::new()));
        assert_eq!(unpack_tokens(FORM, &[2, 1, 0, 2]), None);
        assert_eq!(unpack_tokens(FORM, &[9, 1, 0]), None);
        assert_eq!(unpack_tokens(SINGLES, &[1, 0, 0, 0, 2]), None);
    }
}
