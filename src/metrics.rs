//! Every Prometheus collector, declared once with its help text and labels.
//!
//! What is counted by adapter goes through [`Metrics::adapter`], which bounds the number of label values.

mod vllm;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts, Registry,
    TextEncoder,
};
pub use vllm::{LoadedAdapter, VllmView};

/// The collectors of one server, registered in a registry of its own.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    prompt_tokens: IntCounterVec,
    generated_tokens: IntCounterVec,
    time_to_first_token: HistogramVec,
    inter_token: HistogramVec,
    series: Mutex<HashMap<(String, String), Arc<AdapterSeries>>>,
    pub queue_seconds: Histogram,
    pub running: IntGauge,
    pub waiting: IntGauge,
    pub kv_blocks_used: IntGauge,
    pub kv_blocks: IntGauge,
    /// Tokens in one KV block.
    pub kv_block_tokens: IntGauge,
    pub kv_usage: Gauge,
    /// What memory is for: the base's weights, all KV blocks, and all that adapters may take.
    pub weight_bytes: IntGauge,
    pub kv_bytes: IntGauge,
    pub adapter_bytes_limit: IntGauge,
    /// Sequences whose blocks were taken away, to be computed again.
    pub preemptions: IntCounter,
    /// Prompt tokens of those admitted, and how many of them were found computed.
    pub prefix_queried: IntCounter,
    pub prefix_hits: IntCounter,
    pub step_seconds: Histogram,
    pub step_rows: Histogram,
    /// Tokens that a device could not decide.
    pub logits_fetched: IntCounter,
    /// Choices whose client got an error because their row could not be written.
    pub record_failures: IntCounter,
    /// Choices whose client has its finish and whose row there will never be.
    pub record_lost: IntCounter,
    /// Choices that wait in memory for a store that cannot be written.
    pub record_held: IntGauge,
    /// Set when it is read.
    pub record_up: IntGauge,
    /// Answers that retention took content or all from.
    pub retention_removed: IntCounterVec,
    /// Answers that it left alone because they are held.
    pub retention_held: IntGauge,
    pub record_bytes: IntGauge,
    /// What was replaced before it was stored, by rule.
    pub redacted: IntCounterVec,
    pub recorded: IntCounterVec,
    pub record_commit_seconds: Histogram,
    /// What was said of answers, by how its target stood; `repeated`: it was known already.
    feedback: IntCounterVec,
    /// Answers that a rule found something in, and that it looked at, by its name.
    pub flags: IntCounterVec,
    pub flag_looks: IntCounterVec,
    /// Durable answers that no rule has looked at yet.
    pub flag_lag: IntGauge,
    pub flag_rule_faults: IntGauge,
    pub adapters_resident: IntGauge,
    pub adapter_bytes: IntGauge,
    pub adapter_loads: IntCounterVec,
    pub adapter_load_seconds: Histogram,
    /// By stage: read, hash, check, pack; or place, from host memory.
    pub adapter_load_stage_seconds: HistogramVec,
    /// Requests for an adapter, by where its weights were: memory, loading, host, disk.
    pub adapter_lookups: IntCounterVec,
    pub adapter_evictions: IntCounter,
    /// Copies in host memory, beside a device with its own.
    pub adapter_host_bytes: IntGauge,
    pub adapter_host_bytes_limit: IntGauge,
    pub adapter_host_evictions: IntCounter,
    /// Names, by where their weights are: memory, loading, host, disk. Set when they are read.
    pub adapter_names: IntGaugeVec,
    /// Requests that hold an adapter's weights.
    pub adapter_leases: IntGauge,
    /// Names in the file of desired adapters, by how they stand to it.
    pub adapters_desired: IntGaugeVec,
    /// Adapters that failed and are not tried again for a while.
    pub adapters_quarantined: IntGauge,
    /// Trials of candidates: `passed`, or the test that failed.
    pub adapter_trials: IntCounterVec,
    pub http_responses: IntCounterVec,
    pub http_connections: IntGauge,
    pub http_in_flight: IntGauge,
    /// Requests refused with an error code, by that code.
    pub refused: IntCounterVec,
}

/// What is counted for one version of one adapter (or for the base). Versions beyond [`Metrics::MAX_ADAPTER_SERIES`]
/// share one, labelled `other`.
pub struct AdapterSeries {
    adapter: String,
    version: String,
    requests: IntCounterVec,
    pub prompt_tokens: IntCounter,
    pub generated_tokens: IntCounter,
    /// Seconds from admission to a choice's first token.
    pub time_to_first_token: Histogram,
    /// Seconds between two tokens of one choice.
    pub inter_token: Histogram,
}

impl AdapterSeries {
    /// Counts one choice by how it came out: `stop`, `length`, `cut_off`, `failed`, `client_left`.
    pub fn ended(&self, outcome: &str) {
        self.requests.with_label_values(&[&self.adapter, &self.version, outcome]).inc();
    }
}

const SECONDS: &[f64] =
    &[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];

/// The label of versions beyond the bound.
const OTHER: &str = "other";

impl Metrics {
    /// Pairs of adapter and version that have series of their own.
    pub const MAX_ADAPTER_SERIES: usize = 128;

    /// # Panics
    /// Never in practice: the names below are valid and each is registered once.
    pub fn new() -> Self {
        let registry = Registry::new();
        let counters = |name: &str, help: &str, labels: &[&str]| {
            let counters = IntCounterVec::new(Opts::new(name, help), labels).expect("a valid name");
            registry.register(Box::new(counters.clone())).expect("registered once");
            counters
        };
        let counter = |name: &str, help: &str| {
            let counter = IntCounter::new(name, help).expect("a valid name");
            registry.register(Box::new(counter.clone())).expect("registered once");
            counter
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help).expect("a valid name");
            registry.register(Box::new(gauge.clone())).expect("registered once");
            gauge
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let gauges = IntGaugeVec::new(Opts::new(name, help), labels).expect("a valid name");
            registry.register(Box::new(gauges.clone())).expect("registered once");
            gauges
        };
        let ratio = |name: &str, help: &str| {
            let gauge = Gauge::new(name, help).expect("a valid name");
            registry.register(Box::new(gauge.clone())).expect("registered once");
            gauge
        };
        let histogram = |name: &str, help: &str, buckets: &[f64]| {
            let opts = HistogramOpts::new(name, help).buckets(buckets.to_vec());
            let histogram = Histogram::with_opts(opts).expect("valid buckets");
            registry.register(Box::new(histogram.clone())).expect("registered once");
            histogram
        };
        let histograms = |name: &str, help: &str, labels: &[&str]| {
            let opts = HistogramOpts::new(name, help).buckets(SECONDS.to_vec());
            let histograms = HistogramVec::new(opts, labels).expect("valid buckets");
            registry.register(Box::new(histograms.clone())).expect("registered once");
            histograms
        };
        let adapter = &["adapter", "version"];
        Self {
            requests: counters(
                "tunegate_requests_total",
                "Choices that ended, by adapter, version and outcome (a finish reason, cut_off, failed, client_left).",
                &["adapter", "version", "outcome"],
            ),
            prompt_tokens: counters("tunegate_prompt_tokens_total", "Prompt tokens read.", adapter),
            generated_tokens: counters("tunegate_generated_tokens_total", "Tokens generated.", adapter),
            time_to_first_token: histograms(
                "tunegate_time_to_first_token_seconds",
                "From admission to the first token.",
                adapter,
            ),
            inter_token: histograms("tunegate_inter_token_seconds", "Between two tokens of one choice.", adapter),
            series: Mutex::default(),
            queue_seconds: histogram("tunegate_queue_seconds", "From submission to a place in the batch.", SECONDS),
            running: gauge("tunegate_running_sequences", "Sequences with a place in the batch."),
            waiting: gauge("tunegate_waiting_sequences", "Sequences waiting for a place."),
            kv_blocks_used: gauge("tunegate_kv_blocks_used", "KV blocks held by sequences."),
            kv_blocks: gauge("tunegate_kv_blocks", "KV blocks in all."),
            kv_block_tokens: gauge("tunegate_kv_block_tokens", "Tokens in one KV block."),
            kv_usage: ratio("tunegate_kv_usage_ratio", "Share of the KV blocks in use."),
            weight_bytes: gauge("tunegate_weight_bytes", "Bytes of the base's weights in memory."),
            kv_bytes: gauge(
                "tunegate_kv_bytes",
                "Bytes of all KV blocks; the system gives them as they are first used.",
            ),
            adapter_bytes_limit: gauge("tunegate_adapter_bytes_limit", "Bytes that packed adapters may take."),
            preemptions: counter(
                "tunegate_preemptions_total",
                "Sequences that lost their place or their blocks to others, to be computed again.",
            ),
            prefix_queried: counter(
                "tunegate_prefix_cache_queried_tokens_total",
                "Prompt tokens that were looked for among the kept KV blocks.",
            ),
            prefix_hits: counter(
                "tunegate_prefix_cache_hit_tokens_total",
                "Prompt tokens that were found computed in kept KV blocks.",
            ),
            step_seconds: histogram("tunegate_step_seconds", "One forward pass.", SECONDS),
            step_rows: histogram(
                "tunegate_step_rows",
                "Rows in one forward pass.",
                &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0],
            ),
            logits_fetched: counter(
                "tunegate_logits_fetched_total",
                "Rows of logits that left a device, since it could not decide their token: draws beyond its candidates, near ties.",
            ),
            record_failures: counter(
                "tunegate_record_failures_total",
                "Choices whose client got an error because they could not be recorded in time.",
            ),
            record_lost: counter(
                "tunegate_record_lost_total",
                "Choices that were answered and are not on record. Anything but 0 deserves an alarm.",
            ),
            record_held: gauge(
                "tunegate_record_held",
                "Choices that have ended and wait in memory until the record can be written.",
            ),
            record_up: gauge("tunegate_record_up", "1 while the record can be written, else 0."),
            retention_removed: counters(
                "tunegate_retention_removed_total",
                "Answers that retention took something from: their content, or their facts.",
                &["what"],
            ),
            retention_held: gauge(
                "tunegate_retention_held",
                "Answers that are older than is kept and stay because something names them.",
            ),
            record_bytes: gauge(
                "tunegate_record_bytes",
                "What the database uses, as of the last look of retention; 0 without retention.",
            ),
            redacted: counters(
                "tunegate_redacted_total",
                "What was replaced before it was stored, by rule of --redact-rules.",
                &["rule"],
            ),
            recorded: counters("tunegate_recorded_total", "Recorded choices, by ending.", &["ending"]),
            record_commit_seconds: histogram(
                "tunegate_record_commit_seconds",
                "One durable commit of the record, for all that waited.",
                SECONDS,
            ),
            feedback: counters(
                "tunegate_feedback_total",
                "Feedback that was accepted, by how its target stood (joined, in_flight, aside: not known; repeated).",
                &["standing"],
            ),
            flags: counters("tunegate_flags_total", "Answers in which a rule found something, by rule.", &["rule"]),
            flag_looks: counters("tunegate_flag_looks_total", "Answers that a rule has looked at, by rule.", &["rule"]),
            flag_lag: gauge("tunegate_flag_lag", "Recorded answers that no rule has looked at yet."),
            flag_rule_faults: gauge(
                "tunegate_flag_rule_faults",
                "Faults in the rules' file as it stands; the rules before it hold while there are any.",
            ),
            adapters_resident: gauge("tunegate_adapters_resident", "Adapter versions whose weights are in memory."),
            adapter_bytes: gauge("tunegate_adapter_bytes", "Bytes of packed adapter weights in memory."),
            adapter_loads: counters("tunegate_adapter_loads_total", "Adapter loads, by outcome.", &["outcome"]),
            adapter_load_seconds: histogram("tunegate_adapter_load_seconds", "Reading, checking and packing.", SECONDS),
            adapter_load_stage_seconds: histograms(
                "tunegate_adapter_load_stage_seconds",
                "Loads of adapters by stage (read, hash, check, pack; or place, from host memory).",
                &["stage"],
            ),
            adapter_lookups: counters(
                "tunegate_adapter_lookups_total",
                "Requests for an adapter, by where its weights were: memory (a hit), loading, host, disk (misses).",
                &["tier"],
            ),
            adapter_evictions: counter(
                "tunegate_adapter_evictions_total",
                "Adapters that left memory to make room for others.",
            ),
            adapter_host_bytes: gauge(
                "tunegate_adapter_host_bytes",
                "Bytes of adapters in host memory, from which they come back to the device.",
            ),
            adapter_host_bytes_limit: gauge(
                "tunegate_adapter_host_bytes_limit",
                "Bytes that adapters may take in host memory; 0 where the device has none of its own.",
            ),
            adapter_host_evictions: counter(
                "tunegate_adapter_host_evictions_total",
                "Adapters that left host memory for others.",
            ),
            adapter_names: gauges(
                "tunegate_adapters",
                "Names of adapters, by where their weights are (memory, loading, host, disk).",
                &["tier"],
            ),
            adapter_leases: gauge("tunegate_adapter_leases", "Requests that hold the weights of an adapter."),
            adapters_desired: gauges(
                "tunegate_adapters_desired",
                "Names in the file of desired adapters, by state (in_place, held, waiting, failed).",
                &["state"],
            ),
            adapters_quarantined: gauge(
                "tunegate_adapters_quarantined",
                "Adapters that failed and are not tried again for a while.",
            ),
            adapter_trials: counters(
                "tunegate_adapter_trials_total",
                "Trials of adapters, by outcome: passed, or the test that failed.",
                &["outcome"],
            ),
            http_responses: counters(
                "tunegate_http_responses_total",
                "Responses by route and status.",
                &["route", "status"],
            ),
            http_connections: gauge("tunegate_http_connections", "Open connections."),
            http_in_flight: gauge("tunegate_http_requests_in_flight", "Requests whose response has not ended."),
            refused: counters("tunegate_refused_total", "Requests that ended in an error, by its code.", &["code"]),
            registry,
        }
    }

    /// The series of a version: `name` is the adapter's (or base's) name, `version` its short digest.
    pub fn adapter(&self, name: &str, version: &str) -> Arc<AdapterSeries> {
        // A panic elsewhere leaves the map whole: it only ever gains entries.
        let mut series = self.series.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name.to_owned(), version.to_owned());
        if let Some(known) = series.get(&key) {
            return Arc::clone(known);
        }
        let key = if series.len() < Self::MAX_ADAPTER_SERIES { key } else { (OTHER.to_owned(), OTHER.to_owned()) };
        Arc::clone(series.entry(key).or_insert_with_key(|(adapter, version)| {
            let labels = [adapter.as_str(), version.as_str()];
            Arc::new(AdapterSeries {
                requests: self.requests.clone(),
                prompt_tokens: self.prompt_tokens.with_label_values(&labels),
                generated_tokens: self.generated_tokens.with_label_values(&labels),
                time_to_first_token: self.time_to_first_token.with_label_values(&labels),
                inter_token: self.inter_token.with_label_values(&labels),
                adapter: adapter.clone(),
                version: version.clone(),
            })
        }))
    }

    /// Counts feedback by how its target stood when it came.
    pub fn count_feedback(&self, joined: usize, in_flight: usize, aside: usize, repeated: usize) {
        for (standing, count) in
            [("joined", joined), ("in_flight", in_flight), ("aside", aside), ("repeated", repeated)]
        {
            self.feedback.with_label_values(&[standing]).inc_by(count as u64);
        }
    }

    /// The whole state in Prometheus' text format, followed by vLLM's names for what schedulers read.
    pub fn render(&self, view: &VllmView) -> String {
        let mut text = String::new();
        // Writing to a `String` cannot fail; a collector that cannot be encoded is left out.
        let _ = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text);
        vllm::render(self, view, &mut text);
        text
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines_with<'a>(text: &'a str, start: &'a str) -> impl Iterator<Item = &'a str> {
        text.lines().filter(move |line| line.starts_with(start))
    }

    #[test]
    fn what_is_counted_by_adapter_has_its_name_and_version() {
        let metrics = Metrics::new();
        metrics.adapter("poet", "abc123").ended("stop");
        metrics.adapter("poet", "abc123").prompt_tokens.inc_by(7);
        let text = metrics.render(&VllmView::default());
        assert!(
            text.contains(r#"tunegate_requests_total{adapter="poet",outcome="stop",version="abc123"} 1"#),
            "{text}"
        );
        assert!(text.contains(r#"tunegate_prompt_tokens_total{adapter="poet",version="abc123"} 7"#), "{text}");
    }

    #[test]
    fn adapters_beyond_the_bound_share_one_label() {
        let metrics = Metrics::new();
        for index in 0..3 * Metrics::MAX_ADAPTER_SERIES {
            metrics.adapter(&format!("a{index}"), "v").prompt_tokens.inc();
        }
        metrics.adapter("a0", "v").prompt_tokens.inc();
        let text = metrics.render(&VllmView::default());
        assert_eq!(
            lines_with(&text, "tunegate_prompt_tokens_total{").count(),
            Metrics::MAX_ADAPTER_SERIES + 1,
            "one line for each known version and one for the rest"
        );
        let rest = 2 * Metrics::MAX_ADAPTER_SERIES;
        assert!(text.contains(&format!(r#"tunegate_prompt_tokens_total{{adapter="other",version="other"}} {rest}"#)));
        assert!(text.contains(r#"tunegate_prompt_tokens_total{adapter="a0",version="v"} 2"#), "known ones stay known");
    }
}
