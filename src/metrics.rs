//! Every Prometheus collector, declared once with its help text and labels.

use prometheus::{
    Gauge, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder,
};

/// The collectors of one server, registered in a registry of its own.
pub struct Metrics {
    registry: Registry,
    /// Requests by adapter, version and outcome (a finish, an ending or a refusal code).
    pub requests: IntCounterVec,
    pub prompt_tokens: IntCounterVec,
    pub generated_tokens: IntCounterVec,
    pub time_to_first_token: HistogramVec,
    pub inter_token: HistogramVec,
    pub queue_seconds: Histogram,
    pub running: IntGauge,
    pub waiting: IntGauge,
    pub kv_blocks_used: IntGauge,
    pub kv_blocks: IntGauge,
    pub kv_usage: Gauge,
    pub step_seconds: Histogram,
    pub step_rows: Histogram,
    pub record_failures: IntCounter,
    pub recorded: IntCounterVec,
    pub adapters_resident: IntGauge,
    pub adapter_bytes: IntGauge,
    pub adapter_loads: IntCounterVec,
    pub adapter_load_seconds: Histogram,
    pub http_responses: IntCounterVec,
}

const SECONDS: &[f64] =
    &[0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];

impl Metrics {
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
                "Answered or refused requests, by adapter, version and outcome.",
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
            queue_seconds: histogram("tunegate_queue_seconds", "From submission to a place in the batch.", SECONDS),
            running: gauge("tunegate_running_sequences", "Sequences with a place in the batch."),
            waiting: gauge("tunegate_waiting_sequences", "Sequences waiting for a place."),
            kv_blocks_used: gauge("tunegate_kv_blocks_used", "KV blocks held by sequences."),
            kv_blocks: gauge("tunegate_kv_blocks", "KV blocks in all."),
            kv_usage: ratio("tunegate_kv_usage_ratio", "Share of the KV blocks in use."),
            step_seconds: histogram("tunegate_step_seconds", "One forward pass.", SECONDS),
            step_rows: histogram(
                "tunegate_step_rows",
                "Rows in one forward pass.",
                &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0],
            ),
            record_failures: counter("tunegate_record_failures_total", "Answers that could not be recorded."),
            recorded: counters("tunegate_recorded_total", "Recorded choices, by ending.", &["ending"]),
            adapters_resident: gauge("tunegate_adapters_resident", "Adapter versions whose weights are in memory."),
            adapter_bytes: gauge("tunegate_adapter_bytes", "Bytes of packed adapter weights in memory."),
            adapter_loads: counters("tunegate_adapter_loads_total", "Adapter loads, by outcome.", &["outcome"]),
            adapter_load_seconds: histogram("tunegate_adapter_load_seconds", "Reading, checking and packing.", SECONDS),
            http_responses: counters(
                "tunegate_http_responses_total",
                "Responses by route and status.",
                &["route", "status"],
            ),
            registry,
        }
    }

    /// The whole state in Prometheus' text format.
    pub fn render(&self) -> String {
        let mut text = String::new();
        // Writing to a `String` cannot fail; a collector that cannot be encoded is left out.
        let _ = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text);
        text
    }

    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}
