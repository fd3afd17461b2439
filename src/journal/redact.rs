//! The one door before storage: what the policy does not keep never reaches the store.

use serde_json::Map;

use crate::{
    store::{Completion, Feedback, Target},
    terms::RecordPolicy,
};

/// The row as it may be stored. `limit` is the server's own policy: a row may ask for less, never for more.
pub fn redacted(mut completion: Completion, limit: RecordPolicy) -> Completion {
    completion.policy = completion.policy.min(limit);
    match completion.policy {
        RecordPolicy::Full => {}
        RecordPolicy::Metadata => drop_content(&mut completion),
        RecordPolicy::None => {
            drop_content(&mut completion);
            completion.user = None;
            completion.metadata = Map::new();
            completion.stored = false;
        }
    }
    completion
}

fn drop_content(completion: &mut Completion) {
    completion.content = None;
    completion.options.stop = Vec::new();
    for choice in &mut completion.choices {
        choice.text = None;
        choice.scores = Vec::new();
    }
}

/// The field of feedback that a policy does not keep, if it has one.
pub fn refused(feedback: &Feedback, policy: RecordPolicy) -> Option<&'static str> {
    let words = [("comment", feedback.comment.is_some()), ("correction", feedback.correction.is_some())];
    let persons = [("user", matches!(feedback.target, Target::User(_))), ("tags", !feedback.tags.is_empty())];
    let said = |list: [(&'static str, bool); 2]| list.into_iter().find(|(_, there)| *there).map(|(field, _)| field);
    match policy {
        RecordPolicy::Full => None,
        RecordPolicy::Metadata => said(words),
        RecordPolicy::None => said(words).or_else(|| said(persons)),
    }
}
