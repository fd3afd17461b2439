//! Answers that took too long.

use serde::{Deserialize, Serialize};

use super::Finding;
use crate::feedback::subject::Subject;

/// How long is too long; at least one of these is given.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Slow {
    #[serde(skip_serializing_if = "Option::is_none")]
    total_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    first_token_ms: Option<u64>,
    /// After the first one.
    #[serde(skip_serializing_if = "Option::is_none")]
    least_tokens_per_second: Option<f64>,
}

impl Slow {
    pub fn fault(&self) -> Option<String> {
        if self.least_tokens_per_second.is_some_and(|least| least.is_nan() || least <= 0.0) {
            return Some("least_tokens_per_second has to be above 0".to_owned());
        }
        let silent = self.total_ms.is_none() && self.first_token_ms.is_none() && self.least_tokens_per_second.is_none();
        silent.then(|| "it needs total_ms, first_token_ms or least_tokens_per_second".to_owned())
    }

    pub fn look(&self, subject: &Subject<'_>) -> Option<Finding> {
        let timing = subject.completion.timing;
        let seconds = |us: u64| us as f64 / 1e6;
        let above = |what: &str, us: Option<u64>, limit: Option<u64>| {
            let (us, limit) = (us?, limit?);
            (us > limit * 1000).then(|| Finding {
                reason: format!("{what} {:.1} s, more than {:.1} s", seconds(us), limit as f64 / 1000.0),
                value: Some(seconds(us)),
            })
        };
        above("it took", Some(timing.total_us), self.total_ms)
            .or_else(|| above("the first token took", timing.first_token_us, self.first_token_ms))
            .or_else(|| {
                let (least, first) = (self.least_tokens_per_second?, timing.first_token_us?);
                let after = subject.choice.tokens.checked_sub(1).filter(|after| *after > 0)?;
                let rate = after as f64 / seconds(timing.total_us.saturating_sub(first)).max(1e-6);
                (rate < least).then(|| Finding {
                    reason: format!("{rate:.1} tokens a second, less than {least:.1}"),
                    value: Some(rate),
                })
            })
    }
}
