//! What was flagged, as lines; and as training rows only where a person said what would have been right.

use futures_util::StreamExt;
use serde_json::{Value, json};
use tunegate::{
    feedback::export::{Shape, Summary, Wanted, lines, summary},
    journal::{Completion, Feedback, FlagState, Resolved, Source, Standing, Target, Verdict},
    terms::{Assignment, ConversationBy, Digest, Ending, FinishReason, Placement, Split, SplitBy},
};

use super::{Desk, TRUNCATED, all_flags, cut};

fn placed(id: &str, split: Split) -> Completion {
    Completion {
        placement: Some(Placement {
            conversation: id.to_owned(),
            conversation_by: ConversationBy::Own,
            assignment: Assignment { split, by: SplitBy::Message, audit_share: 0.05 },
        }),
        ..cut(id)
    }
}

fn correction(completion: &str, text: &str, source: Source) -> Feedback {
    Feedback {
        id: format!("fb-{}", Digest::of(format!("{completion}{text}").as_bytes()).short()),
        client_id: None,
        at_ms: 0,
        target: Target::Answer { completion: completion.to_owned(), choice: Some(0) },
        name: "correction".to_owned(),
        value: None,
        comment: None,
        correction: Some(text.to_owned()),
        source,
        author: None,
        key: None,
        any_key: true,
        tags: Default::default(),
        digest: None,
        arrived: Standing::Aside,
        retracted_ms: None,
        erased_ms: None,
    }
}

fn all() -> Wanted {
    Wanted { rule: None, adapter: None, state: FlagState::All }
}

async fn rows(desk: &Desk, wanted: Wanted, shape: Shape) -> Vec<Value> {
    let lines: Vec<_> = lines(&desk.journal, wanted, shape).collect().await;
    lines
        .into_iter()
        .map(|line| {
            let line = line.unwrap();
            assert!(line.ends_with(b"\n") && line.iter().filter(|byte| **byte == b'\n').count() == 1);
            serde_json::from_slice(&line).unwrap()
        })
        .collect()
}

/// Flagged answers of every kind, and one that is not flagged.
async fn shelf(folder: &std::path::Path) -> Desk {
    let loops = "[[rule]]\nname = 'rains'\nkind = 'regex'\npattern = 'rains'\n";
    let desk = Desk::with(folder, &[TRUNCATED, loops].concat());
    let mut two = placed("two", Split::Train);
    let mut second = two.choices[0].clone();
    (second.index, two.options.n) = (1, 2);
    two.choices.push(second);
    let mut bare = placed("bare", Split::Train);
    bare.content = None;
    let mut fine = placed("fine", Split::Train);
    fine.choices[0].ending = Ending::Finished(FinishReason::Stop);
    fine.choices[0].text = Some("It is dry.".to_owned());
    let unplaced = Completion { placement: None, ..cut("unplaced") };
    let (held, audit) = (placed("held", Split::HeldOut), placed("audit", Split::Audit));
    let rest = ["right", "by-code", "retracted", "uncorrected", "blank"].map(|id| placed(id, Split::Train));
    desk.record(rest.into_iter().chain([two, bare, fine, unplaced, held, audit])).await;
    let mut said: Vec<Feedback> = ["bare", "fine", "unplaced", "held", "audit", "right", "retracted"]
        .map(|id| correction(id, &format!("better {id}"), Source::Reviewer))
        .into();
    said.push(correction("right", "best right", Source::EndUser));
    said.push(correction("by-code", "coded", Source::Code));
    said.push(correction("blank", " ", Source::EndUser));
    let second = Target::Answer { completion: "two".to_owned(), choice: Some(1) };
    said.push(Feedback { target: second, ..correction("two", "better second", Source::EndUser) });
    // Of two answers it does not say which one it corrects.
    let both = Target::Answer { completion: "two".to_owned(), choice: None };
    said.push(Feedback { target: both, ..correction("two", "which?", Source::EndUser) });
    let retracted = correction("retracted", "better retracted", Source::Reviewer).id;
    desk.journal.give(said, None).await.unwrap();
    assert!(desk.journal.retract(&retracted).await.unwrap());
    let following = desk.flags.follow();
    desk.looked().await;
    drop(following);
    desk
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn training_rows_are_corrections_by_people_and_never_held_out_or_audited() {
    let folder = tempfile::tempdir().unwrap();
    let desk = shelf(folder.path()).await;
    let openai = rows(&desk, all(), Shape::OpenAi).await;
    let user = json!({"role": "user", "content": "Tell me of rain"});
    let row = |text: &str| json!({"messages": [user, {"role": "assistant", "content": text, "weight": 1}]});
    assert_eq!(openai, [row("best right"), row("better second")], "the last correction of each counts");
    let trl = rows(&desk, all(), Shape::Trl).await;
    let row = |text: &str| json!({"prompt": [user], "completion": [{"role": "assistant", "content": text}]});
    assert_eq!(trl, [row("best right"), row("better second")]);
    let found = summary(&desk.journal, all(), Shape::Trl).await.unwrap();
    let left_out = [
        ("held_out", 1),
        ("audit", 1),
        ("without_a_split", 1),
        ("without_words", 1),
        ("empty_correction", 1),
        // By code, retracted, none at all, and the first of two choices.
        ("without_a_correction_by_a_person", 4),
    ];
    assert_eq!(found, Summary { lines: 2, left_out: left_out.into() });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_lines_are_every_flagged_choice_once_with_its_split() {
    let folder = tempfile::tempdir().unwrap();
    let desk = shelf(folder.path()).await;
    let plain = rows(&desk, all(), Shape::Plain).await;
    assert_eq!(plain.len(), 11, "one for each choice that has a flag, however many it has");
    let of = |id: &str| plain.iter().find(|row| row["id"] == id).unwrap();
    assert_eq!((&of("held")["split"], &of("audit")["split"]), (&json!("held_out"), &json!("audit")));
    let right = of("right");
    let rules: Vec<&Value> = right["flags"].as_array().unwrap().iter().map(|flag| &flag["rule"]).collect();
    assert_eq!(rules, [&json!("cut"), &json!("rains")]);
    assert_eq!(
        (&right["correction"], &right["choices"][0]["text"]),
        (&json!("best right"), &json!("it rains and rains on"))
    );
    assert_eq!(right["prompts"][0]["messages"][0]["content"], "Tell me of rain");
    let flag = all_flags(&desk.journal).await.into_iter().find(|flag| flag.completion == "right").unwrap();
    let resolved = Resolved { verdict: Verdict::Confirmed, at_ms: 5, by: "ada".to_owned(), note: None };
    assert!(desk.journal.resolve(flag.id, Some(resolved)).await.unwrap());
    let confirmed = Wanted { state: FlagState::Resolved(Verdict::Confirmed), ..all() };
    let confirmed = rows(&desk, confirmed, Shape::Plain).await;
    assert_eq!((confirmed.len(), &confirmed[0]["flags"][0]["state"]), (1, &json!("confirmed")));
    let elsewhere = Wanted { adapter: Some("lawyer".to_owned()), ..all() };
    assert!(rows(&desk, elsewhere, Shape::Plain).await.is_empty());
    let rains = Wanted { rule: Some("rains".to_owned()), ..all() };
    assert_eq!(rows(&desk, rains, Shape::Plain).await.len(), 11);
}
