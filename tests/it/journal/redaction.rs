//! What the rules find never reaches the disk, from whatever writer.

use std::{path::Path, sync::Arc};

use serde_json::{Map, json};
use tunegate::{
    config::RecordConfig,
    journal::{ChoiceRecord, Completion, Content, Given, JournalError, NOT_KEPT, Options, Place, PromptContent},
    terms::{ConversationBy, Message, Role},
};

use super::{Desk, choice, fact, stored::is_on_disk};

const RULES: &str = "
[[rule]]
name = 'email'
detect = 'email'

[[rule]]
name = 'card'
detect = 'card'

[[rule]]
name = 'iban'
detect = 'iban'

[[rule]]
name = 'phone'
detect = 'phone'

[[rule]]
name = 'ticket'
regex = '\\bT-[0-9]+\\b'
replace = '[a ticket]'
in = ['prompt', 'answer']
";

fn desk(folder: &Path, rules: &str) -> Result<Desk, JournalError> {
    let file = folder.join("rules.toml");
    std::fs::write(&file, rules).unwrap();
    // The rules are no part of the record.
    let data = folder.join("data");
    std::fs::create_dir_all(&data).unwrap();
    Desk::try_of(&data, RecordConfig { redact_rules: Some(file), ..RecordConfig::default() })
}

/// A fact that says something private wherever it can.
fn private(id: &str) -> Completion {
    let mut fact = Completion {
        user: Some("ann@mail.example".to_owned()),
        safety_identifier: Some("ann@mail.example".to_owned()),
        request_id: "bob@mail.example".to_owned(),
        metadata: Map::from_iter([
            ("eve@mail.example".to_owned(), json!("+49 30 1234567")),
            ("ticket".to_owned(), json!("T-42")),
        ]),
        options: Options { stop: vec!["kim@mail.example".to_owned()], ..fact(id).options },
        content: Some(Arc::new(Content {
            prompts: vec![
                PromptContent {
                    given: Given::Messages(vec![
                        Message { role: Role::System, content: "Be kind to T-77.".to_owned(), name: None },
                        Message {
                            role: Role::User,
                            content: "My card 4111 1111 1111 1111, IBAN DE89 3704 0044 0532 0130 00.".to_owned(),
                            name: Some("joe@mail.example".to_owned()),
                        },
                    ]),
                    tokens: vec![1, 2, 3],
                },
                PromptContent { given: Given::Text("nothing private".to_owned()), tokens: vec![4, 5] },
            ],
        })),
        choices: vec![
            ChoiceRecord { text: Some("Call 0171 2345678 about T-77.".to_owned()), ..choice(0) },
            ChoiceRecord {
                tool_calls: Some(json!([{"function": {"arguments": "{\"to\":\"ida@mail.example\"}"}}])),
                ..choice(1)
            },
            choice(2),
        ],
        ..fact(id)
    };
    fact.placement.as_mut().unwrap().conversation = "lea@mail.example".to_owned();
    fact
}

#[tokio::test]
async fn nothing_that_the_rules_find_reaches_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let desk = desk(folder.path(), RULES).unwrap();
    desk.record(private("c1")).await;
    desk.journal.set_metadata("c1", Map::from_iter([("by".to_owned(), json!("max@mail.example"))])).await.unwrap();
    let data = folder.path().join("data");
    for word in ["mail.example", "4111", "3704", "2345678", "1234567", "T-77"] {
        assert!(!is_on_disk(&data, word), "{word}");
    }
    let row = desk.journal.get("c1").await.unwrap().unwrap();
    assert_eq!(row.redaction, desk.journal.redactor().version());
    let content = row.content.unwrap();
    let Given::Messages(messages) = &content.prompts[0].given else { panic!("messages") };
    assert_eq!(messages[0].content, "Be kind to [a ticket].");
    assert_eq!(messages[1].content, "My card [card], IBAN [iban].");
    assert_eq!(messages[1].name.as_deref(), Some("[email]"));
    assert_eq!(content.prompts[0].tokens, [0u32; 0], "ids would say it again");
    assert_eq!(content.prompts[1].tokens, [4, 5]);
    assert_eq!(row.choices[0].text.as_deref(), Some("Call [phone] about [a ticket]."));
    for redacted in &row.choices[..2] {
        assert!(redacted.scores.iter().all(|score| score.token == NOT_KEPT && score.top.is_empty()));
        assert_eq!(redacted.scores[0].logprob, choice(0).scores[0].logprob, "how sure it was is nobody's secret");
    }
    assert_eq!(row.choices[2], choice(2));
    assert_eq!(row.metadata, Map::from_iter([("by".to_owned(), json!("[email]"))]));
    let counted = |rule: &str| desk.metrics.redacted.with_label_values(&[rule]).get();
    assert_eq!((counted("card"), counted("iban"), counted("ticket")), (1, 1, 2));
}

#[tokio::test]
async fn a_name_stays_one_name_and_another_stays_another() {
    let folder = tempfile::tempdir().unwrap();
    let names = async |rules: &str, id: &str, user: &str| {
        let desk = desk(folder.path(), rules).unwrap();
        desk.record(Completion { user: Some(user.to_owned()), ..private(id) }).await;
        let row = desk.journal.get(id).await.unwrap().unwrap();
        let placement = row.placement.unwrap();
        assert_eq!(placement.conversation_by, ConversationBy::Given);
        (row.user.unwrap(), row.safety_identifier.unwrap(), placement.conversation)
    };
    let (ann, safety, talk) = names(RULES, "c1", "ann@mail.example").await;
    assert!(ann.starts_with("[email]") && ann.len() == "[email]".len() + 12, "{ann}");
    assert_eq!(ann, safety);
    assert_ne!(ann, talk);
    assert_eq!(names(RULES, "c2", "ann@mail.example").await.0, ann, "also after a restart");
    assert_ne!(names(RULES, "c3", "bob@mail.example").await.0, ann);
    assert_eq!(names(RULES, "c4", "customer-9").await.0, "customer-9");
}

#[tokio::test]
async fn an_earlier_rule_has_its_find_and_each_rule_keeps_to_its_places() {
    let folder = tempfile::tempdir().unwrap();
    let rules = "
[[rule]]
name = 'whole'
regex = '\\+49 [0-9 ]+'
in = ['prompt', 'comment']
[[rule]]
name = 'phone'
detect = 'phone'
";
    let desk = desk(folder.path(), rules).unwrap();
    let redactor = desk.journal.redactor();
    assert_eq!(redactor.text(Place::Prompt, "at +49 30 1234567!"), "at [whole]!");
    assert_eq!(redactor.text(Place::Comment, "at +49 30 1234567!"), "at [whole]!");
    assert_eq!(redactor.text(Place::Answer, "at +49 30 1234567!"), "at [phone]!");
    let untouched = "nothing here";
    assert!(std::ptr::eq(redactor.text(Place::Prompt, untouched).as_ref(), untouched), "not even copied");
    assert!(redactor.finds(Place::Answer, "+49 30 1234567") && !redactor.finds(Place::Answer, untouched));
}

#[test]
fn wrong_rules_are_an_error_and_not_no_rules() {
    let folder = tempfile::tempdir().unwrap();
    let refused = desk(folder.path(), "[[rule]]\nname = 'a'\n").err();
    assert!(matches!(&refused, Some(JournalError::Rules { reason }) if reason.contains("rule 'a'")), "{refused:?}");
}
