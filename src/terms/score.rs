use serde::{Deserialize, Serialize};

/// What the model thought of one token, by the distribution before temperature, penalties and bias.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenScore {
    pub token: u32,
    /// Natural logarithm of the token's probability.
    pub logprob: f32,
    /// Entropy of the whole distribution, in nats.
    pub entropy: f32,
    /// The most likely tokens with their log-probabilities, best first; as many as were asked for.
    pub top: Vec<(u32, f32)>,
}

/// Why a choice stopped of its own accord.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FinishReason {
    /// The model ended its turn, or a stop token or stop string came.
    Stop,
    /// The token limit was reached.
    Length,
}

impl FinishReason {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// How an admitted answer ended. Each is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    Finished(FinishReason),
    /// The server ended it: shutdown, or a deadline.
    CutOff,
    /// The engine or the record failed.
    Failed,
    /// The client hung up first.
    ClientLeft,
}

impl Ending {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Finished(reason) => reason.as_str(),
            Self::CutOff => "cut_off",
            Self::Failed => "failed",
            Self::ClientLeft => "client_left",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "stop" => Self::Finished(FinishReason::Stop),
            "length" => Self::Finished(FinishReason::Length),
            "cut_off" => Self::CutOff,
            "failed" => Self::Failed,
            "client_left" => Self::ClientLeft,
            _ => return None,
        })
    }
}

/// Token counts of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    pub prompt_tokens: usize,
    pub completion_tokens: usize,
    /// Prompt tokens whose keys and values were already there.
    pub cached_tokens: usize,
}

/// How much of an answer is kept. Ordered: the strictest of several is the smallest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RecordPolicy {
    /// The fact only, without user, metadata, content or scores.
    None,
    /// The fact with user and metadata; no content, no scores.
    Metadata,
    /// Everything.
    Full,
}

impl RecordPolicy {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Metadata => "metadata",
            Self::Full => "full",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "none" => Self::None,
            "metadata" => Self::Metadata,
            "full" => Self::Full,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_strictest_policy_is_the_smallest() {
        assert_eq!(
            [RecordPolicy::Full, RecordPolicy::None, RecordPolicy::Metadata].into_iter().min(),
            Some(RecordPolicy::None)
        );
    }

    #[test]
    fn every_ending_survives_its_name() {
        use FinishReason::{Length, Stop};
        for ending in
            [Ending::Finished(Stop), Ending::Finished(Length), Ending::CutOff, Ending::Failed, Ending::ClientLeft]
        {
            assert_eq!(Ending::parse(ending.as_str()), Some(ending));
        }
    }
}
