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
    /// The same as `resident`, one by one.
    pub loaded: Vec<LoadedAdapter>,
    /// Those in host memory that are not on the device.
    pub hosted: Vec<LoadedAdapter>,
}

/// An adapter whose weights are in a memory.
#[derive(Clone, Debug)]
pub struct LoadedAdapter {
    pub name: String,
    pub rank: usize,
    pub pinned: bool,
}

/// Adapters that have a series of their own among those in memory; a reader can count on `lora_requests_info` for the rest.
const MOST_LOADED: usize = 1000;

/// The gauges of residency that are proposed to vLLM (its pull requests 51433 and 54830) and that routers read already. What is where it
/// is computed with is at their level `gpu`, whatever the device; copies in host memory, beside a GPU, are at `cpu`.
fn render_residency(view: &VllmView, text: &mut String) {
    let count = view.resident.len();
    for (name, help, value) in [
        ("num_gpu_loaded_lora_adapters", "Adapters in memory, ready to be used.", count),
        (
            "num_cpu_loaded_lora_adapters",
            "Adapters held in a memory from which they are brought to the device.",
            view.hosted.len(),
        ),
        ("max_gpu_lora_adapters", "Different adapters that one batch may hold.", view.max_lora),
    ] {
        // Writing to a `String` cannot fail.
        let _ = writeln!(text, "# HELP vllm:{name} {help}\n# TYPE vllm:{name} gauge\nvllm:{name} {value}");
    }
    let name = "lora_adapter_loaded";
    let _ = writeln!(text, "# HELP vllm:{name} 1 for each adapter in memory.\n# TYPE vllm:{name} gauge");
    for (level, adapters) in [("gpu", &view.loaded), ("cpu", &view.hosted)] {
        for LoadedAdapter { name: adapter, rank, pinned } in adapters.iter().take(MOST_LOADED) {
            let adapter = escaped(adapter);
            let _ = writeln!(
                text,
                "vllm:{name}{{adapter_name=\"{adapter}\",level=\"{level}\",pinned=\"{pinned}\",rank=\"{rank}\"}} 1"
            );
        }
    }
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
    render_residency(view, text);
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
            loaded: vec![LoadedAdapter { name: "team/sql".into(), rank: 16, pinned: true }],
            hosted: vec![LoadedAdapter { name: "old".into(), rank: 8, pinned: false }],
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
        for line in [
            r#"vllm:lora_adapter_loaded{adapter_name="team/sql",level="gpu",pinned="true",rank="16"} 1"#,
            r#"vllm:lora_adapter_loaded{adapter_name="old",level="cpu",pinned="false",rank="8"} 1"#,
            "vllm:num_gpu_loaded_lora_adapters 2",
            "vllm:num_cpu_loaded_lora_adapters 1",
            "vllm:max_gpu_lora_adapters 4",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        }
        assert!(
            text.contains(r#"vllm:num_requests_running{model_name="tiny \"base\"",engine="0"} 3"#),
            "quotes in a name are escaped: {text}"
        );
    }
}
