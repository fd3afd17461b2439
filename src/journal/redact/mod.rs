//! The one door before storage: what the policy does not keep never reaches the store.

use serde_json::Map;

use crate::{
    store::Completion,
    terms::{ConversationBy, RecordPolicy},
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
            completion.safety_identifier = None;
            completion.system = None;
            if let Some(placement) = &mut completion.placement
                && placement.conversation_by == ConversationBy::Given
            {
                placement.conversation.clone_from(&completion.id);
                placement.conversation_by = ConversationBy::Own;
            }
            completion.metadata = Map::new();
            completion.stored = false;
        }
    }
    completion
}

fn drop_content(completion: &mut Completion) {
    completion.content = None;
    completion.sketch = None;
    completion.options.stop = Vec::new();
    for choice in &mut completion.choices {
        choice.text = None;
        choice.scores = Vec::new();
        choice.tool_calls = None;
        choice.thread = None;
    }
}
