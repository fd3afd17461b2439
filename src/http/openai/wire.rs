//! What answers look like on the wire. Every field that OpenAI's clients require is always there, if only as null.

use serde::{Serialize, Serializer, ser::SerializeMap};

use crate::terms::Usage;

/// `chat.completion`.
#[derive(Debug, Serialize)]
pub struct ChatAnswer<'a> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: i64,
    pub model: &'a str,
    pub choices: Vec<ChatChoice<'a>>,
    pub usage: UsageBody,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_tier: Option<&'static str>,
    pub system_fingerprint: &'a str,
}

#[derive(Debug, Serialize)]
pub struct ChatChoice<'a> {
    pub index: u32,
    pub message: ChatMessage<'a>,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: &'static str,
}

#[derive(Debug, Serialize)]
pub struct ChatMessage<'a> {
    pub role: &'static str,
    /// Null in a stored answer whose text was not recorded.
    pub content: Option<&'a str>,
    pub refusal: Option<&'static str>,
}

/// `chat.completion.chunk`.
#[derive(Debug, Serialize)]
pub struct ChatChunk<'a> {
    #[serde(flatten)]
    pub head: ChunkHead<'a>,
    pub choices: Vec<ChatDelta<'a>>,
    #[serde(flatten)]
    pub tail: ChunkTail,
}

/// What every chunk of one stream says alike.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct ChunkHead<'a> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: i64,
    pub model: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_tier: Option<&'static str>,
    pub system_fingerprint: &'a str,
}

#[derive(Debug, Default, Serialize)]
pub struct ChunkTail {
    /// Outer `None`: no usage was asked for. Inner `None`: it comes with the last chunk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<Option<UsageBody>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub obfuscation: Option<String>,
}

#[derive(Debug, Serialize)]
pub struct ChatDelta<'a> {
    pub index: u32,
    pub delta: Delta<'a>,
    pub logprobs: Option<ChatLogprobs>,
    pub finish_reason: Option<&'static str>,
}

#[derive(Debug, Default, Serialize)]
pub struct Delta<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
}

#[derive(Clone, Debug, Default, Serialize)]
pub struct ChatLogprobs {
    pub content: Vec<ChatToken>,
    pub refusal: Option<Vec<ChatToken>>,
}

/// One token of a chat answer.
#[derive(Clone, Debug, Serialize)]
pub struct ChatToken {
    #[serde(flatten)]
    pub token: TokenBody,
    pub top_logprobs: Vec<TokenBody>,
}

#[derive(Clone, Debug, Serialize)]
pub struct TokenBody {
    pub token: String,
    pub logprob: f32,
    /// Exactly the token's bytes, which alone need not be text.
    pub bytes: Vec<u8>,
}

/// `text_completion`, whole.
#[derive(Debug, Serialize)]
pub struct TextAnswer<'a> {
    pub id: &'a str,
    pub object: &'static str,
    pub created: i64,
    pub model: &'a str,
    pub choices: Vec<TextChoice<'a>>,
    pub usage: UsageBody,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_tier: Option<&'static str>,
    pub system_fingerprint: &'a str,
}

/// `text_completion`, in a stream.
#[derive(Debug, Serialize)]
pub struct TextChunk<'a> {
    #[serde(flatten)]
    pub head: ChunkHead<'a>,
    pub choices: Vec<TextChoice<'a>>,
    #[serde(flatten)]
    pub tail: ChunkTail,
}

#[derive(Debug, Serialize)]
pub struct TextChoice<'a> {
    pub index: u32,
    pub text: &'a str,
    pub logprobs: Option<TextLogprobs>,
    pub finish_reason: Option<&'static str>,
}

/// The older form of log-probabilities: lists beside each other, one entry for each token.
#[derive(Clone, Debug, Default, Serialize)]
pub struct TextLogprobs {
    pub tokens: Vec<String>,
    /// Null for the first token of an echoed prompt, before which there is nothing.
    pub token_logprobs: Vec<Option<f32>>,
    pub top_logprobs: Vec<Option<Alternatives>>,
    /// Where each token begins in the choice's `text`, in characters.
    pub text_offset: Vec<usize>,
}

/// The most likely tokens with their log-probabilities, best first; of two with the same text, the better.
#[derive(Clone, Debug)]
pub struct Alternatives(pub Vec<(String, f32)>);

impl Serialize for Alternatives {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (index, (token, logprob)) in self.0.iter().enumerate() {
            if !self.0[..index].iter().any(|(better, _)| better == token) {
                map.serialize_entry(token, logprob)?;
            }
        }
        map.end()
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct UsageBody {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    pub total_tokens: usize,
    pub prompt_tokens_details: PromptDetails,
    pub completion_tokens_details: CompletionDetails,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PromptDetails {
    pub cached_tokens: usize,
    pub audio_tokens: usize,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct CompletionDetails {
    pub reasoning_tokens: usize,
    pub audio_tokens: usize,
    pub accepted_prediction_tokens: usize,
    pub rejected_prediction_tokens: usize,
}

impl From<Usage> for UsageBody {
    fn from(usage: Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            total_tokens: usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details: PromptDetails { cached_tokens: usage.cached_tokens, audio_tokens: 0 },
            completion_tokens_details: CompletionDetails::default(),
        }
    }
}
