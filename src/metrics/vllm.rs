//! The series that Kubernetes' endpoint pickers and existing dashboards read, under vLLM's names.

use std::{
    fmt::Write,
    time::{SystemTime, UNIX_EPOCH},
};

use super::Metrics;

/// What vLLM's series say beyond the collectors.
#[derive(Clone, Debug, Default)]
pub struct VllmView {
    /// The base's name.
    pub model_name: String,
    pub running: usize,
    pub waiting: usize,
    /// Different adapters that one batch may hold.
    pub max_lora: usize,
    /// Names of the adapters whose weights are in memory, busy or idle.
    pub resident: Vec<String>,
    /// Names of the adapters that are being loaded.
    pub loading: Vec<String>,
}

/// Appends vLLM's series to `text`. `vllm:lora_requests_info` is exactly one series, from the start: readers take the
/// newest of several, and a missing one costs a server its affinity.
pub(super) fn render(metrics: &Metrics, view: &VllmView, text: &mut String) {
    let model = escaped(&view.model_name);
    let labels = format!("model_name=\"{model}\",engine=\"0\"");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let lora = format!(
        "max_lora=\"{}\",running_lora_adapters=\"{}\",waiting_lora_adapters=\"{}\"",
        view.max_lora,
        escaped(&view.resident.join(",")),
        escaped(&view.loading.join(",")),
    );
    let cache = format!(
        "{labels},block_size=\"{}\",num_gpu_blocks=\"{}\"",
        metrics.kv_block_tokens.get(),
        metrics.kv_blocks.get()
    );
    let usage = match metrics.kv_blocks.get() {
        0 => 0.0,
        blocks => metrics.kv_blocks_used.get() as f64 / blocks as f64,
    };
    let series = [
        ("num_requests_running", "Sequences with a place in the batch.", &labels, view.running as f64),
        ("num_requests_waiting", "Sequences waiting for a place.", &labels, view.waiting as f64),
        ("kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1.", &labels, usage),
        ("lora_requests_info", "Adapters in memory and being loaded; the value is the Unix time.", &lora, now),
        ("cache_config_info", "Geometry of the KV cache.", &cache, 1.0),
    ];
    for (name, help, labels, value) in series {
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "# HELP vllm:{name} {help}\n# TYPE vllm:{name} gauge\nvllm:{name}{{{labels}}} {value}");
    }
    let counters = [
        ("num_preemptions_total", "Sequences computed again for lack of room.", metrics.preemptions.get()),
        ("prefix_cache_queries_total", "Prompt tokens looked for in the prefix cache.", metrics.prefix_queried.get()),
        ("prefix_cache_hits_total", "Prompt tokens found in the prefix cache.", metrics.prefix_hits.get()),
    ];
    for (name, help, value) in counters {
        let _ =
            writeln!(text, "# HELP vllm:{name} {help}\n# TYPE vllm:{name} counter\nvllm:{name}{{{labels}}} {value}");
    }
}

/// A label's value as the text format wants it.
fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lora_series_is_one_line_from_the_start() {
        let metrics = Metrics::new();
        let view = VllmView {
            model_name: "tiny \"base\"".into(),
            running: 3,
            waiting: 0,
            max_lora: 4,
            resident: vec!["poet".into(), "team/sql".into()],
            loading: vec!["lawyer".into()],
        };
        for view in [&VllmView::default(), &view] {
            let text = metrics.render(view);
            let lora = text.lines().filter(|line| line.starts_with("vllm:lora_requests_info{"));
            assert_eq!(lora.count(), 1, "{text}");
        }
        let text = metrics.render(&view);
        assert!(
            text.contains(r#"max_lora="4",running_lora_adapters="poet,team/sql",waiting_lora_adapters="lawyer"} 1"#),
            "{text}"
        );
        assert!(
            text.contains(r#"vllm:num_requests_running{model_name="tiny \"base\"",engine="0"} 3"#),
            "quotes in a name are escaped: {text}"
        );
    }
}
