//! Answers in another language than their question's.

use serde::{Deserialize, Serialize};
use whatlang::{Lang, detect};

use super::Finding;

/// When two texts are of different languages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Language {
    /// Letters that a text has at least; the language of less is a guess.
    letters: usize,
    /// How sure of each language one has to be, from 0 to 1.
    confidence: f64,
    /// The language that answers have to have, whatever the question's: an ISO 639-3 code such as `deu`.
    #[serde(skip_serializing_if = "Option::is_none")]
    expect: Option<String>,
}

impl Default for Language {
    fn default() -> Self {
        Self { letters: 40, confidence: 0.9, expect: None }
    }
}

impl Language {
    pub fn fault(&self) -> Option<String> {
        if !(0.0..=1.0).contains(&self.confidence) {
            return Some("confidence is between 0 and 1".to_owned());
        }
        let code = self.expect.as_ref()?;
        Lang::from_code(code)
            .is_none()
            .then(|| format!("'{code}' is no language that is known here (ISO 639-3: eng, deu, …)"))
    }

    pub fn look(&self, answer: &str, question: &str) -> Option<Finding> {
        let of_answer = self.language(answer)?;
        let wanted = match &self.expect {
            Some(code) => Lang::from_code(code)?,
            None => self.language(question)?,
        };
        let whose = if self.expect.is_some() { "it has to be in" } else { "the question is in" };
        (of_answer != wanted).then(|| Finding {
            reason: format!("the answer is in {}, {whose} {}", of_answer.eng_name(), wanted.eng_name()),
            value: None,
        })
    }

    /// The language of a text; `None` where it is too short, not clear, or no text: JSON, code, figures.
    fn language(&self, text: &str) -> Option<Lang> {
        let text = text.trim();
        let letters = text.chars().filter(|c| c.is_alphabetic()).count();
        let visible = text.chars().filter(|c| !c.is_whitespace()).count();
        if letters < self.letters || letters * 10 < visible * 8 || text.starts_with(['{', '[', '<', '`']) {
            return None;
        }
        let found = detect(text)?;
        (found.confidence() >= self.confidence).then(|| found.lang())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENGLISH: &str = "The hydraulic press leaks oil again and the line has stopped. What should we do first?";
    const GERMAN: &str =
        "Schließen Sie zuerst das Ventil, und rufen Sie dann den Kundendienst an, damit die Pumpe geprüft wird.";
    const FRENCH: &str = "Fermez d'abord la vanne, puis appelez le service après-vente pour faire vérifier la pompe.";
    const JAPANESE: &str = "まずバルブを閉めてから、サービス担当者に連絡してポンプを点検してもらってください。作業が終わるまで機械を動かさないでください。";

    fn reason(answer: &str, question: &str) -> Option<String> {
        Language::default().look(answer, question).map(|finding| finding.reason)
    }

    #[test]
    fn an_answer_in_another_language_is_found() {
        assert_eq!(reason(GERMAN, ENGLISH).unwrap(), "the answer is in German, the question is in English");
        for (answer, question) in [(FRENCH, GERMAN), (ENGLISH, FRENCH), (JAPANESE, ENGLISH)] {
            assert!(reason(answer, question).is_some(), "{answer}");
        }
    }

    #[test]
    fn the_same_language_short_text_and_what_is_no_text_are_left_alone() {
        for text in [ENGLISH, GERMAN, FRENCH, JAPANESE] {
            assert_eq!(reason(text, text), None);
        }
        for answer in [
            "Ja, gern.",
            "{\"category\": \"hydraulics\", \"urgency\": \"high\", \"machine\": null}",
            "42, 17, 3.5; 12 %",
            "",
        ] {
            assert_eq!(reason(answer, ENGLISH), None, "{answer}");
        }
        assert_eq!(reason(GERMAN, "HX-310?"), None, "a question of no language");
    }

    #[test]
    fn a_language_may_be_expected_whatever_the_question_s() {
        let german = Language { expect: Some("deu".to_owned()), ..Language::default() };
        assert_eq!(german.fault(), None);
        assert!(german.look(ENGLISH, "").is_some());
        assert!(german.look(GERMAN, ENGLISH).is_none());
        assert!(Language { expect: Some("german".to_owned()), ..Language::default() }.fault().is_some());
    }
}
