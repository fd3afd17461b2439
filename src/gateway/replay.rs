//! A recorded request, run again: same versions, same sampling, same seed.

use serde::{Deserialize, Serialize};

use super::{Ask, AskError, Caller, Gateway, Prompt, ReplyError};
use crate::{
    engine::KvSalt,
    journal::{ChoiceRecord, Completion, Content, JournalError, NOT_KEPT, as_kept},
    terms::{Digest, Ending, Origin, RecordPolicy, SamplingLayer},
};

/// What became of a recorded request when it ran again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replay {
    /// The recorded completion's.
    pub id: String,
    pub model: String,
    /// Base and adapter versions, as in the header `x-tunegate-version`.
    pub version: String,
    pub seed: u64,
    pub choices: Vec<ReplayedChoice>,
}

/// One choice, then and now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplayedChoice {
    pub index: u32,
    pub recorded: Side,
    pub replayed: Side,
    /// Same tokens, text and ending. A choice that was broken off is compared as far as it came.
    pub identical: bool,
    /// The first position where the tokens are not the same, or where one answer has none.
    pub parts_at: Option<usize>,
    /// The largest difference between the log-probabilities of the same tokens, up to where they part.
    pub max_logprob_gap: f32,
}

/// One of two answers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// `stop`, `length`, `cut_off`, `failed` or `client_left`.
    pub ending: String,
    pub text: String,
    pub tokens: Vec<u32>,
}

/// Why a recorded request cannot be run again.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("there is no completion '{id}' on record")]
    Unknown { id: String },
    #[error("'{id}' was recorded under policy '{}', which keeps no content to run again", .policy.as_str())]
    NotKept { id: String, policy: RecordPolicy },
    #[error("the content of '{id}' has been erased")]
    Erased { id: String },
    #[error("the content of '{id}' was older than is kept")]
    Expired { id: String },
    #[error("'{id}' was redacted before it was stored, so there is nothing to run again and compare")]
    Redacted { id: String },
    #[error("'{id}' asked for no tokens, so there is nothing to compare")]
    Empty { id: String },
    #[error("'{id}' was answered by the base {recorded}; this server has the base {here}")]
    OtherBase { id: String, recorded: String, here: String },
    #[error("'{id}' was answered with the tokenizer {recorded}; this server has the tokenizer {here}")]
    OtherTokenizer { id: String, recorded: String, here: String },
    #[error(transparent)]
    Ask(#[from] AskError),
    #[error(transparent)]
    Reply(#[from] ReplyError),
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Replay {
    pub fn is_identical(&self) -> bool {
        self.choices.iter().all(|choice| choice.identical)
    }
}

impl Gateway {
    /// Runs the completion `id` again and compares, choice by choice. The model reads the recorded prompt tokens, so a
    /// template that has changed since makes no difference. The run itself is recorded under policy `none`.
    ///
    /// # Errors
    /// [`ReplayError`]; what was recorded on another base or tokenizer is refused.
    pub async fn replay(&self, id: &str) -> Result<Replay, ReplayError> {
        let completion = self.journal().get(id).await?.ok_or_else(|| ReplayError::Unknown { id: id.to_owned() })?;
        let content = self.replayable(&completion)?;
        let run = getrandom::u64().map_err(|error| AskError::Invalid {
            parameter: "id",
            reason: format!("the system gave no random number: {error}"),
        })?;
        let reply = self.ask(again(&completion, content, self.base_name(), run)).await?;
        let version = reply.head().version.clone();
        let replayed = reply.into_records().await?;
        let choices = completion
            .choices
            .iter()
            .map(|then| Some(compared(then, replayed.iter().find(|now| now.index == then.index)?)))
            .collect::<Option<Vec<_>>>()
            .ok_or_else(|| ReplayError::Empty { id: id.to_owned() })?;
        Ok(Replay { id: completion.id, model: completion.model, version, seed: completion.seed, choices })
    }

    fn replayable<'a>(&self, completion: &'a Completion) -> Result<&'a Content, ReplayError> {
        let id = || completion.id.clone();
        let (recorded, here) = (completion.base, self.settings().base);
        if recorded != here {
            return Err(ReplayError::OtherBase { id: id(), recorded: recorded.short(), here: here.short() });
        }
        let (recorded, here) = (completion.tokenizer, self.text().digest());
        if recorded != here {
            return Err(ReplayError::OtherTokenizer { id: id(), recorded: recorded.short(), here: here.short() });
        }
        if completion.options.max_tokens.iter().all(|&tokens| tokens == 0) {
            return Err(ReplayError::Empty { id: id() });
        }
        match (&completion.content, completion.erased_ms) {
            (Some(content), _) if is_redacted(completion, content) => Err(ReplayError::Redacted { id: id() }),
            (Some(content), _) => Ok(content),
            (None, Some(_)) => Err(ReplayError::Erased { id: id() }),
            (None, None) if completion.expired_ms.is_some() => Err(ReplayError::Expired { id: id() }),
            (None, None) => Err(ReplayError::NotKept { id: id(), policy: completion.policy }),
        }
    }
}

/// Whether ids of tokens were left out because they would say what was replaced.
fn is_redacted(completion: &Completion, content: &Content) -> bool {
    let answered = completion.choices.iter().flat_map(|choice| &choice.scores);
    content.prompts.iter().any(|prompt| prompt.tokens.is_empty()) || answered.into_iter().any(|s| s.token == NOT_KEPT)
}

/// The request once more, every setting as it was settled then. `run` tells one replay from another.
fn again(completion: &Completion, content: &Content, base_name: &str, run: u64) -> Ask {
    let (sampling, options) = (&completion.sampling, &completion.options);
    // Limits that differ between prompts came from the default and the room that each prompt left.
    let same_limit = options.max_tokens.windows(2).all(|pair| pair[0] == pair[1]);
    Ask {
        id: format!("replay-{run:016x}"),
        request_id: format!("replay-of-{}", completion.id),
        kind: completion.kind,
        model: match &completion.adapter {
            Some((name, version)) => format!("{name}@{version}"),
            None => base_name.to_owned(),
        },
        prompts: content.prompts.iter().map(|prompt| Prompt::Tokens(prompt.tokens.clone())).collect(),
        sampling: SamplingLayer {
            temperature: Some(sampling.temperature),
            top_p: Some(sampling.top_p),
            top_k: Some(sampling.top_k),
            min_p: Some(sampling.min_p),
            repetition_penalty: Some(sampling.repetition_penalty),
            frequency_penalty: Some(sampling.frequency_penalty),
            presence_penalty: Some(sampling.presence_penalty),
        },
        n: options.n,
        max_tokens: options.max_tokens.first().copied().filter(|_| same_limit),
        min_tokens: options.min_tokens,
        stop: options.stop.clone(),
        include_stop: options.include_stop,
        stop_token_ids: options.stop_token_ids.clone(),
        ignore_eos: options.ignore_eos,
        skip_special_tokens: options.skip_special_tokens,
        logit_bias: options.logit_bias.clone(),
        top_logprobs: options.top_logprobs,
        echo: false,
        seed: Some(completion.seed),
        // A cache of its own: what is replayed is computed, not remembered.
        caller: Caller { salt: KvSalt(*Digest::of(&run.to_le_bytes()).as_bytes()), ..Caller::default() },
        record: Some(RecordPolicy::None),
        adapter_wait: None,
        store: false,
        user: None,
        safety_identifier: None,
        conversation: None,
        metadata: serde_json::Map::new(),
        origin: Origin::Replayed,
    }
}

fn compared(then: &ChoiceRecord, now: &ChoiceRecord) -> ReplayedChoice {
    let (recorded, replayed) = (side(then), side(now));
    let length = match then.ending {
        Ending::Finished(_) => then.scores.len().max(now.scores.len()),
        Ending::CutOff | Ending::Failed | Ending::ClientLeft => then.scores.len(),
    };
    let parts_at = (0..length).find(|&at| recorded.tokens.get(at) != replayed.tokens.get(at));
    let same = then.scores.iter().zip(&now.scores).take(parts_at.unwrap_or(length));
    let max_logprob_gap = same
        // What is on record was rounded; so is what it is compared with.
        .map(|(then, now)| (as_kept(then.logprob), as_kept(now.logprob)))
        .map(|(then, now)| if then == now { 0.0 } else { (then - now).abs() })
        .fold(0.0, f32::max)
        .min(f32::MAX);
    let ends_alike = match then.ending {
        Ending::Finished(_) => then.ending == now.ending && recorded.text == replayed.text,
        Ending::CutOff | Ending::Failed | Ending::ClientLeft => replayed.text.starts_with(&recorded.text),
    };
    let identical = parts_at.is_none() && ends_alike;
    ReplayedChoice { index: then.index, recorded, replayed, identical, parts_at, max_logprob_gap }
}

fn side(choice: &ChoiceRecord) -> Side {
    Side {
        ending: choice.ending.as_str().to_owned(),
        text: choice.text.clone().unwrap_or_default(),
        tokens: choice.scores.iter().map(|score| score.token).collect(),
    }
}
