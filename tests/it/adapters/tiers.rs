//! A device, host memory and the disk as one server's tiers, played on a CPU by the decoder that GPUs use.

use std::fs;

use serde_json::{Value, json};
use tunegate::config::{AdapterConfig, Device};

use crate::support::{golden, server::TestServer};

/// Every kind of adapter, on tensors.
async fn server(change: impl FnOnce(&mut AdapterConfig)) -> TestServer {
    TestServer::with(|config, _| {
        config.model.cpu.tensors = true;
        config.adapters.dirs = vec![golden("kinds/llama")];
        change(&mut config.adapters);
    })
    .await
}

async fn names(server: &TestServer) -> Vec<(String, u64)> {
    let listed = server.get("/v1/adapters").await.json();
    let one = |adapter: &Value| {
        (adapter["id"].as_str().unwrap().to_owned(), adapter["bytes"].as_u64().expect("it is served"))
    };
    listed["data"].as_array().unwrap().iter().map(one).collect()
}

/// What an adapter says, with the scores of what it says.
async fn answer(server: &TestServer, adapter: &str) -> Value {
    let answer = server.complete(adapter, json!("the quick brown fox"), json!({"logprobs": 3})).await;
    assert_eq!(answer.status, 200, "{adapter}: {}", answer.text());
    answer.json()["choices"][0].clone()
}

/// Series of `/metrics` that begin with `start`.
async fn series(server: &TestServer, start: &str) -> Vec<String> {
    let answer = server.get("/metrics").await;
    let text = answer.text();
    text.lines().filter(|line| line.starts_with(start)).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn adapters_of_every_kind_come_back_from_host_memory_as_they_were_without_a_file() {
    let plain = server(|_| {}).await;
    let names = names(&plain).await;
    assert_eq!(names.len(), 11);
    let mut expected = Vec::new();
    for (name, _) in &names {
        expected.push(answer(&plain, name).await);
    }

    let room = names.iter().map(|(_, bytes)| *bytes).max().unwrap();
    let tiered = server(|config| (config.max_bytes, config.max_host_bytes) = (room, 64 << 20)).await;
    for ((name, _), expected) in names.iter().zip(&expected) {
        assert_eq!(&answer(&tiered, name).await, expected, "{name}");
    }
    // From now on nothing can be read.
    fs::remove_dir_all(tiered.data.join("vault")).unwrap();
    for ((name, _), expected) in names.iter().zip(&expected) {
        assert_eq!(&answer(&tiered, name).await, expected, "{name}, from its copy");
    }
    let listed = tiered.get("/v1/adapters").await.json();
    assert!(listed["memory"]["bytes"].as_u64().unwrap() <= room, "{}", listed["memory"]);
    assert_eq!(listed["memory"]["host"]["count"], 11);
    let tiers: Vec<&str> = listed["data"].as_array().unwrap().iter().map(|one| one["tier"].as_str().unwrap()).collect();
    let hosted = tiers.iter().filter(|tier| **tier == "host").count();
    assert!(hosted > 0 && tiers.iter().all(|tier| ["host", "memory"].contains(tier)), "{tiers:?}");
    assert_eq!(
        series(&tiered, "tunegate_adapters{tier=\"host\"}").await,
        [format!("tunegate_adapters{{tier=\"host\"}} {hosted}")]
    );
    assert_eq!(
        series(&tiered, "vllm:num_cpu_loaded_lora_adapters").await,
        [format!("vllm:num_cpu_loaded_lora_adapters {hosted}")]
    );
    let last = tiered.get(&format!("/v1/adapters/{}", names.last().unwrap().0)).await.json();
    assert_eq!((&last["load"]["from"], &last["load"]["read_ms"]), (&json!("host"), &json!(0.0)), "{last}");

    // What is unloaded is nowhere any more.
    let (first, _) = &names[0];
    let before = listed["memory"]["host"]["bytes"].as_u64().unwrap();
    assert_eq!(tiered.post("/v1/unload_lora_adapter", &json!({"lora_name": first})).await.status, 200);
    let after = tiered.get("/v1/adapters").await.json()["memory"]["host"].clone();
    assert!(after["count"] == 10 && after["bytes"].as_u64().unwrap() < before, "{after}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_weights_are_computed_with_in_host_memory_there_is_no_tier_beside() {
    // Asked for, and all the same not there.
    let on_cpu = async |tensors: bool, host: u64| {
        TestServer::with(|config, _| {
            (config.model.device, config.model.cpu.tensors) = (Device::Cpu, tensors);
            config.adapters.max_host_bytes = host;
        })
        .await
    };
    for server in [on_cpu(false, 64 << 20).await, on_cpu(true, 0).await] {
        let names = names(&server).await;
        answer(&server, &names[0].0).await;
        let listed = server.get("/v1/adapters").await.json();
        assert_eq!(listed["memory"]["host"], Value::Null);
        assert!(series(&server, "tunegate_adapters{tier=\"host\"}").await.is_empty());
        assert_eq!(
            series(&server, "tunegate_adapters{tier=\"memory\"}").await,
            ["tunegate_adapters{tier=\"memory\"} 1"]
        );
        assert_eq!(series(&server, "tunegate_adapter_host_bytes_limit").await, ["tunegate_adapter_host_bytes_limit 0"]);
    }
}
