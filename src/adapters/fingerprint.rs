//! Whether an adapter was made for this base. What its tensors say is judged elsewhere: shapes and vocabulary have to fit.
//! A digest in its `adapter.toml` has to be the base's; a name in its configuration is a label, and one that looks like
//! another model's is worth a note.

use super::{Refusal, RefusalCode, faults::shown};
use crate::terms::Digest;

/// The fewest digits by which a base may be named.
pub const LEAST_DIGITS: usize = 12;

/// Why `text` cannot name a base.
pub fn fault(text: &str) -> Option<String> {
    let hex = text.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte));
    let fits = (LEAST_DIGITS..=64).contains(&text.len()) && hex;
    (!fits).then(|| format!("has to be {LEAST_DIGITS} to 64 lower-case hex digits"))
}

/// The refusal of an adapter that names another base.
pub fn digest_refusal(wanted: Option<&str>, base: Digest) -> Option<Refusal> {
    let wanted = wanted.filter(|wanted| !base.starts_with(wanted))?;
    let reason = format!("is {}; this base is {base}", shown(wanted));
    Some(Refusal { code: RefusalCode::Base, subject: "base_digest".to_owned(), reason })
}

/// A note on an adapter whose configuration names another model than any of `names`.
pub fn name_note(trained_on: Option<&str>, names: &[String]) -> Option<String> {
    let trained_on = trained_on?;
    let model = letters(trained_on.trim_end_matches('/').rsplit('/').next().unwrap_or(trained_on));
    let like = |name: &String| {
        let name = letters(name.rsplit('/').next().unwrap_or(name));
        !name.is_empty() && (name.contains(&model) || model.contains(&name))
    };
    if model.is_empty() || names.iter().any(like) {
        return None;
    }
    let first = names.first().map_or("", String::as_str);
    Some(format!("it was trained on '{}', as its file says, and this base is '{first}'", shown(trained_on)))
}

/// Letters and digits alone: people write the same model's name in many ways.
fn letters(name: &str) -> String {
    name.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_is_spelled_otherwise_is_no_reason_for_a_note() {
        let trained = Some("HuggingFaceTB/SmolLM2-135M-Instruct");
        for same in ["SmolLM2-135M-Instruct.Q4_1", "smollm2-135m", "org/smollm2_135m_instruct"] {
            assert_eq!(name_note(trained, &["gpt".to_owned(), same.to_owned()]), None, "{same}");
        }
        let note = name_note(trained, &["llama-3".to_owned()]).unwrap();
        assert!(note.contains("SmolLM2-135M-Instruct") && note.contains("'llama-3'"), "{note}");
        assert_eq!(name_note(None, &["llama-3".to_owned()]), None);
        assert_eq!(name_note(Some("/"), &["llama-3".to_owned()]), None);
    }

    #[test]
    fn a_digest_is_hard_and_may_be_given_by_its_first_digits() {
        let base = Digest::of(b"base");
        for fits in [base.to_string(), base.short()] {
            assert_eq!((fault(&fits), digest_refusal(Some(&fits), base)), (None, None), "{fits}");
        }
        let refusal = digest_refusal(Some(&Digest::of(b"another").short()), base).unwrap();
        assert_eq!(refusal.code, RefusalCode::Base);
        assert!(refusal.reason.contains(&base.to_string()), "{refusal}");
        assert_eq!(digest_refusal(None, base), None);
        for wrong in ["", "0123456789a", "0123456789AB", "xyzxyzxyzxyz", &"a".repeat(65)] {
            assert!(fault(wrong).is_some(), "{wrong}");
        }
    }
}
