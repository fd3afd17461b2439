//! Figures of one run: throughput, latencies, errors; as a table and as JSON.

use std::{fmt, time::Duration};

use serde::Serialize;

use super::client::Timed;

/// The figures of one run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// How long the bench's own server took from its start until it was ready, where there was one.
    pub ready_after_s: Option<f64>,
    pub models: Vec<String>,
    pub concurrency: usize,
    pub requests: usize,
    pub errors: usize,
    /// The first few different errors.
    pub error_examples: Vec<String>,
    pub seconds: f64,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// Completion tokens of all streams together, over the wall time of the run.
    pub output_tokens_per_second: f64,
    pub requests_per_second: f64,
    pub time_to_first_token_ms: Quantiles,
    pub inter_token_ms: Quantiles,
    pub request_ms: Quantiles,
    /// Of the client beside, where there was one.
    pub beside: Option<Beside>,
}

/// What a client got that asked other models while the measured ones ran.
#[derive(Debug, Serialize)]
pub struct Beside {
    pub requests: usize,
    pub errors: usize,
    pub request_ms: Quantiles,
}

/// Nearest-rank quantiles, in milliseconds.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Quantiles {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
    pub max: f64,
}

impl Quantiles {
    pub fn of(durations: impl Iterator<Item = Duration>) -> Self {
        let mut sorted: Vec<f64> = durations.map(|duration| duration.as_secs_f64() * 1e3).collect();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.max(1) - 1).copied().unwrap_or_default()
        };
        Self { p50: at(0.5), p95: at(0.95), p99: at(0.99), max: at(1.0) }
    }
}

impl Report {
    /// Sums up `timed`, all of one run that took `wall`.
    pub fn of(models: &[String], concurrency: usize, wall: Duration, timed: &[Timed]) -> Self {
        let good: Vec<&Timed> = timed.iter().filter(|one| one.error.is_none()).collect();
        let mut error_examples: Vec<String> = timed.iter().filter_map(|one| one.error.clone()).collect();
        error_examples.sort();
        error_examples.dedup();
        error_examples.truncate(5);
        let completion_tokens: u64 = timed.iter().map(|one| one.completion_tokens).sum();
        let seconds = wall.as_secs_f64();
        Self {
            ready_after_s: None,
            models: models.to_vec(),
            concurrency,
            requests: timed.len(),
            errors: timed.len() - good.len(),
            error_examples,
            seconds,
            prompt_tokens: timed.iter().map(|one| one.prompt_tokens).sum(),
            completion_tokens,
            output_tokens_per_second: completion_tokens as f64 / seconds,
            requests_per_second: good.len() as f64 / seconds,
            time_to_first_token_ms: Quantiles::of(good.iter().filter_map(|one| one.first_token)),
            inter_token_ms: Quantiles::of(good.iter().flat_map(|one| one.gaps.iter().copied())),
            request_ms: Quantiles::of(good.iter().map(|one| one.total)),
            beside: None,
        }
    }

    /// With the figures of the client beside, if it asked anything.
    pub fn beside(mut self, timed: &[Timed]) -> Self {
        self.beside = (!timed.is_empty()).then(|| Beside {
            requests: timed.len(),
            errors: timed.iter().filter(|one| one.error.is_some()).count(),
            request_ms: Quantiles::of(timed.iter().map(|one| one.total)),
        });
        self
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(seconds) = self.ready_after_s {
            writeln!(f, "the server was ready after {seconds:.2} s")?;
        }
        writeln!(
            f,
            "{} requests, {} at a time, over {} model{}: {:.1} s, {} errors",
            self.requests,
            self.concurrency,
            self.models.len(),
            if self.models.len() == 1 { "" } else { "s" },
            self.seconds,
            self.errors,
        )?;
        for example in &self.error_examples {
            writeln!(f, "  error: {example}")?;
        }
        writeln!(
            f,
            "  {:.1} output tokens/s, {:.2} requests/s ({} prompt, {} output tokens)",
            self.output_tokens_per_second, self.requests_per_second, self.prompt_tokens, self.completion_tokens
        )?;
        writeln!(f, "  {:<22}{:>10}{:>10}{:>10}{:>10}", "milliseconds", "p50", "p95", "p99", "max")?;
        for (name, quantiles) in [
            ("time to first token", &self.time_to_first_token_ms),
            ("between tokens", &self.inter_token_ms),
            ("whole request", &self.request_ms),
        ] {
            let Quantiles { p50, p95, p99, max } = quantiles;
            writeln!(f, "  {name:<22}{p50:>10.1}{p95:>10.1}{p99:>10.1}{max:>10.1}")?;
        }
        if let Some(Beside { requests, errors, request_ms: Quantiles { p50, p95, p99, max } }) = &self.beside {
            writeln!(f, "  {:<22}{p50:>10.1}{p95:>10.1}{p99:>10.1}{max:>10.1}", "beside: request")?;
            writeln!(f, "  beside: {requests} requests, {errors} errors")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_by_nearest_rank() {
        let quantiles = Quantiles::of((1..=100).map(Duration::from_millis));
        assert_eq!(quantiles, Quantiles { p50: 50.0, p95: 95.0, p99: 99.0, max: 100.0 });
        assert_eq!(Quantiles::of(std::iter::empty()), Quantiles::default());
    }

    #[test]
    fn a_failed_request_counts_as_an_error_and_not_towards_latencies() {
        let timed = |error: Option<&str>, first_ms| Timed {
            first_token: Some(Duration::from_millis(first_ms)),
            gaps: vec![],
            total: Duration::from_millis(first_ms),
            prompt_tokens: 1,
            completion_tokens: 2,
            error: error.map(Into::into),
        };
        let report = Report::of(&["m".into()], 2, Duration::from_secs(2), &[timed(None, 10), timed(Some("500"), 999)]);
        assert_eq!((report.requests, report.errors), (2, 1));
        assert_eq!(report.time_to_first_token_ms.max, 10.0);
        assert_eq!(report.output_tokens_per_second, 2.0);
    }
}
