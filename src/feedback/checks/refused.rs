//! Answers that refuse.

use std::sync::LazyLock;

use regex::{Regex, RegexSet};
use serde::{Deserialize, Serialize};

use super::Finding;

/// How a refusal begins, beside what is known here of English, German, French, Spanish, Italian, Portuguese and Dutch.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Refusal {
    /// More patterns, for the beginning of an answer; their case does not matter.
    also: Vec<String>,
}

/// A refusal that was understood.
#[derive(Debug)]
pub struct Refusals {
    also: Option<RegexSet>,
}

/// Characters of an answer in which it says so, if it does.
const BEGINNING: usize = 240;

static KNOWN: LazyLock<Regex> = LazyLock::new(|| {
    let no_help = r"(?:help|assist|provide|comply|do that|do this|answer|fulfil|fulfill|support|discuss|give|share|create|generate|write|continue|engage|process)";
    let patterns = [
        // English
        r"i(?:'|’)?(?: a)?m (?:really |very |so |truly )?sorry[,.]?(?: but)?[^.!?]{0,40}\b(?:can(?:'|’)?t|cannot|can not|unable|not able|won(?:'|’)?t)".to_string(),
        r"(?:sorry|apologies)[,.]? (?:but )?i (?:can(?:'|’)?t|cannot|can not|am unable|am not able|won(?:'|’)?t)".to_string(),
        format!(r"\bi (?:can(?:'|’)?t|cannot|can not|won(?:'|’)?t|will not) {no_help}\b"),
        format!(r"\bi(?:'|’| a)m (?:unable|not able|not allowed|not permitted) to {no_help}\b"),
        r"\bas an? (?:ai|artificial intelligence|language model|large language model)\b".to_owned(),
        r"\bi must (?:decline|refuse)\b|\bi (?:decline|refuse) to\b".to_owned(),
        r"\bi (?:do not|don(?:'|’)?t) (?:feel comfortable|have the ability)\b".to_owned(),
        // German
        r"\b(?:es )?tut mir (?:sehr )?leid[^.!?]{0,60}\b(?:kann|darf|möchte|werde)\b[^.!?]{0,60}\bnicht\b".to_owned(),
        r"\b(?:leider )?(?:kann|darf) ich (?:ihnen |dir |euch )?(?:dabei |das |hierbei |damit |leider |dazu )*(?:nicht|keine)\b".to_owned(),
        r"\bich (?:kann|darf|werde) (?:ihnen |dir |euch )?(?:dabei |das |hierbei |damit |leider |dazu )*nicht (?:helfen|beantworten|weiterhelfen|tun|unterstützen)\b".to_owned(),
        r"\bals (?:ki|künstliche intelligenz|sprachmodell)\b".to_owned(),
        // French
        r"\bje (?:suis )?(?:vraiment )?désolée?[^.!?]{0,60}\bne (?:peux|puis)\b".to_owned(),
        r"\bje ne (?:peux|puis) (?:pas )?(?:vous |t(?:'|’))?(?:aider|répondre|fournir|faire)".to_owned(),
        r"\ben tant qu(?:'|’)(?:ia|intelligence artificielle|modèle de langage)\b".to_owned(),
        // Spanish
        r"\blo siento[^.!?]{0,60}\bno puedo\b".to_owned(),
        r"\bno puedo (?:ayudar|responder|proporcionar|hacer)".to_owned(),
        r"\bcomo (?:ia|inteligencia artificial|modelo de lenguaje)\b".to_owned(),
        // Italian
        r"\bmi dispiace[^.!?]{0,60}\bnon posso\b".to_owned(),
        r"\bnon posso (?:aiutar|risponder|fornir|far)".to_owned(),
        // Portuguese
        r"\b(?:desculpe|lamento|sinto muito)[^.!?]{0,60}\bnão posso\b".to_owned(),
        r"\bnão posso (?:ajudar|responder|fornecer|fazer)".to_owned(),
        // Dutch
        r"\b(?:het spijt me|sorry)[^.!?]{0,60}\bkan (?:ik )?[^.!?]{0,30}\bniet\b".to_owned(),
    ];
    Regex::new(&format!("(?i){}", patterns.map(|one| format!("(?:{one})")).join("|"))).expect("a pattern of ours")
});

impl Refusal {
    /// # Errors
    /// A pattern that cannot be read.
    pub fn understood(&self) -> Result<Refusals, String> {
        let also = self.also.iter().map(|pattern| format!("(?i){pattern}"));
        let also = if self.also.is_empty() {
            None
        } else {
            Some(RegexSet::new(also).map_err(|error| format!("also: {error}"))?)
        };
        Ok(Refusals { also })
    }
}

impl Refusals {
    pub fn look(&self, answer: &str) -> Option<Finding> {
        let end = answer.char_indices().nth(BEGINNING).map_or(answer.len(), |(at, _)| at);
        let beginning = &answer[..end];
        let refuses = KNOWN.is_match(beginning) || self.also.as_ref().is_some_and(|also| also.is_match(beginning));
        refuses.then(|| Finding { reason: "its beginning reads like a refusal".to_owned(), value: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refuses(answer: &str) -> bool {
        Refusal::default().understood().unwrap().look(answer).is_some()
    }

    #[test]
    fn a_refusal_is_known_in_several_languages() {
        for answer in [
            "I'm sorry, but I can't assist with that.",
            "I’m really sorry, but I am unable to help you with this request.",
            "Sorry, I cannot do that.",
            "As an AI language model, I have no opinion.",
            "I must decline to answer.",
            "Es tut mir leid, aber ich kann Ihnen dabei nicht helfen.",
            "Leider kann ich dir keine Auskunft geben.",
            "Je suis désolé, mais je ne peux pas vous aider.",
            "Lo siento, pero no puedo ayudarte con eso.",
            "Mi dispiace, ma non posso aiutarti.",
            "Desculpe, mas não posso ajudar.",
            "Het spijt me, maar dat kan ik niet doen.",
        ] {
            assert!(refuses(answer), "{answer}");
        }
    }

    #[test]
    fn an_answer_is_not_taken_for_a_refusal() {
        for answer in [
            "I am sorry to hear that your press leaks. Close the valve first.",
            "You can't open the valve while the pump runs.",
            "The machine cannot be started without oil.",
            "Das kann ich gern tun: Die Pumpe ist bestellt.",
            "{\"category\": \"service\", \"urgency\": \"low\", \"machine\": null}",
            "",
        ] {
            assert!(!refuses(answer), "{answer}");
        }
        let late = format!("{} I cannot help with that.", "Here is what the manual says. ".repeat(10));
        assert!(!refuses(&late), "only the beginning counts");
    }

    #[test]
    fn an_owner_may_add_patterns() {
        let own = Refusal { also: vec!["computer says no".to_owned()] };
        assert!(own.understood().unwrap().look("Computer says NO.").is_some());
        assert!(Refusal { also: vec!["(".to_owned()] }.understood().is_err());
    }
}
