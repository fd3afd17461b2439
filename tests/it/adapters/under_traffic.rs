//! Bad adapters, and paths that lead elsewhere, loaded by the API while clients stream: the good ones answer as they did.

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::{
    bad::{Kind, kinds, write},
    draft::{Draft, LIMITS},
};
use crate::support::{
    server::{COMPLETIONS, TestServer, text_body},
    wire::Answer,
};

const LOAD: &str = "/v1/load_lora_adapter";
const CHECK: &str = "/v1/adapters/check";
const GOOD: [&str; 2] = ["poet", "lawyer"];
const CLIENTS: usize = 4;
const TOKENS: usize = 24;

/// A server that may load from `root`, and serves two adapters of it.
async fn server(root: &Path) -> TestServer {
    for (name, path) in GOOD.into_iter().zip(["adapters/llama/rslora", "adapters/llama/all7"]) {
        Draft::of(path).write(&root.join(name));
    }
    let server = TestServer::with(|config, _| {
        config.adapters.dirs = Vec::new();
        config.adapters.roots = vec![root.to_owned()];
        config.adapters.max_file_bytes = LIMITS.max_file_bytes;
        config.adapters.max_lora_rank = LIMITS.max_rank;
    })
    .await;
    for name in GOOD {
        let loaded = server.post(LOAD, &json!({"lora_name": name, "lora_path": name})).await;
        assert_eq!(loaded.status, 200, "{}", loaded.text());
    }
    server
}

async fn said(server: &TestServer, model: &str) -> String {
    let body = text_body(model, json!("the quick brown fox"), json!({"stream": true, "max_tokens": TOKENS}));
    let events = server.stream(COMPLETIONS, &body).await.all().await;
    assert_eq!(events.last().map(String::as_str), Some("[DONE]"));
    let piece = |event: &String| {
        let event: Value = serde_json::from_str(event).unwrap();
        assert!(event.get("error").is_none(), "{event}");
        event["choices"][0]["text"].as_str().unwrap_or_default().to_owned()
    };
    events[..events.len() - 1].iter().map(piece).collect()
}

/// Runs `work` while clients stream from the good adapters without pause, and holds each answer against what that adapter
/// said before. Every client has answered more than once before the work is over.
async fn under_traffic<F: Future<Output = ()>>(server: Arc<TestServer>, work: impl FnOnce(Arc<TestServer>) -> F) {
    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut alone = Vec::new();
    for name in GOOD {
        alone.push(said(&server, name).await);
    }
    assert_ne!(alone[0], alone[1]);
    let mut clients = JoinSet::new();
    for client in 0..CLIENTS {
        let (server, over, answered) = (Arc::clone(&server), Arc::clone(&over), Arc::clone(&answered));
        let (name, expected) = (GOOD[client % GOOD.len()], alone[client % GOOD.len()].clone());
        clients.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                assert_eq!(said(&server, name).await, expected, "{name}");
                answered.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    work(Arc::clone(&server)).await;
    while answered.load(Ordering::Relaxed) < 2 * CLIENTS && clients.try_join_next().is_none() {
        tokio::task::yield_now().await;
    }
    over.store(true, Ordering::Relaxed);
    while let Some(client) = clients.join_next().await {
        client.unwrap();
    }
    for (name, alone) in GOOD.into_iter().zip(alone) {
        assert_eq!(said(&server, name).await, alone);
    }
}

fn message(answer: &Answer) -> String {
    answer.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bad_adapters_loaded_one_after_another_break_no_good_one() {
    let place = tempfile::tempdir().unwrap();
    let root = place.path().join("root");
    fs::create_dir(&root).unwrap();
    let server = Arc::new(server(&root).await);
    kinds().for_each(|kind| drop(write(kind, &root)));
    let secret = place.path().display().to_string();
    under_traffic(Arc::clone(&server), async |server| {
        for (index, Kind(name, _, code, reason)) in kinds().enumerate() {
            // One in two would take the place of a good one.
            let to = if index % 2 == 0 { (*name).to_owned() } else { GOOD[index / 2 % GOOD.len()].to_owned() };
            let body = json!({"lora_name": to, "lora_path": name, "load_inplace": true});
            let answer = server.post(LOAD, &body).await;
            let told = message(&answer);
            assert_eq!(answer.status, 400, "{name}: {told}");
            assert!(told.contains(&to) && !told.contains(&secret), "{name}: {told}");
            let checked = server.post(CHECK, &json!({"lora_path": name})).await.json();
            assert_eq!(checked["loadable"], false, "{name}: {checked}");
            let refusals = checked["refused"].as_array().unwrap();
            let fits = |refusal: &&Value| {
                let said = format!("{}: {}", refusal["subject"].as_str().unwrap(), refusal["reason"].as_str().unwrap());
                refusal["code"] == code.as_str() && said.contains(reason)
            };
            // This one's link leads out of its folder, but not out of the root, where nothing has that name.
            let found = *name == "link-up" || refusals.iter().any(|refusal| fits(&refusal));
            assert!(found, "{name}: {code:?} {reason:?} is not in {checked}");
        }
    })
    .await;
    assert!(kinds().count() >= 50);
    let listed = server.get("/v1/adapters").await.json();
    let serving = listed["data"].as_array().unwrap().iter().filter(|adapter| adapter["version"].is_string());
    let names: Vec<&str> = serving.map(|adapter| adapter["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["lawyer", "poet"]);
    for name in GOOD {
        let shown = server.get(&format!("/v1/adapters/{name}")).await.json();
        assert_eq!((shown["history"].as_array().unwrap().len(), &shown["status"]), (1, &json!("serving")), "{shown}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_path_link_or_url_leads_out_of_the_root() {
    let place = tempfile::tempdir().unwrap();
    let (root, outside) = (place.path().join("root"), place.path().join("outside"));
    fs::create_dir(&root).unwrap();
    Draft::plain().write(&outside);
    Draft::plain().write(&place.path().join("root-2"));
    let server = Arc::new(server(&root).await);
    symlink(&outside, root.join("link")).unwrap();
    symlink("link", root.join("chain")).unwrap();
    symlink("circle", root.join("circle")).unwrap();
    symlink("/proc/self", root.join("proc")).unwrap();
    symlink("..", root.join("up")).unwrap();
    for (name, file) in [("files", "adapter_model.safetensors"), ("config", "adapter_config.json")] {
        Draft::plain().write(&root.join(name));
        fs::remove_file(root.join(name).join(file)).unwrap();
        symlink(outside.join(file), root.join(name).join(file)).unwrap();
    }
    let absolute = outside.display().to_string();
    let beside = place.path().join("root-2").display().to_string();
    let dotted = root.join("../outside").display().to_string();
    let through = root.join("poet/../../outside").display().to_string();
    under_traffic(server, async |server| {
        for path in [
            "..",
            "../outside",
            "../root-2",
            "poet/../../outside",
            "./../outside",
            "..//outside",
            "%2e%2e/outside",
            "..%2foutside",
            "..\\outside",
            "....//outside",
            "~/outside",
            "/",
            "/etc",
            "/proc/self/root/etc",
            "/proc/self/cwd",
            "//outside",
            "link",
            "link/",
            "chain",
            "circle",
            "up/outside",
            "proc/root/etc",
            "proc/cwd",
            "files",
            "config",
            "poet\0/../../outside",
            "",
            " ",
            "file:///etc/passwd",
            "http://127.0.0.1/adapter",
            "https://169.254.169.254/latest/meta-data",
            "s3://bucket/adapter",
            "gs://bucket/adapter",
            "hf://owner/adapter",
            "ftp://host/x",
            "HTTP://127.0.0.1/",
            &absolute,
            &beside,
            &dotted,
            &through,
            &format!("file://{absolute}"),
            &"a/".repeat(3000),
        ] {
            for (route, body) in [
                (LOAD, json!({"lora_name": "poet", "lora_path": path, "load_inplace": true})),
                (LOAD, json!({"lora_name": "stranger", "lora_path": path})),
                (CHECK, json!({"lora_path": path})),
            ] {
                let answer = server.post(route, &body).await;
                let body = answer.json();
                let refused = matches!(answer.status, 400 | 403 | 404) || body["loadable"] == false;
                assert!(refused, "{route} {path:?}: {} {body}", answer.status);
            }
        }
        for name in ["../stranger", "/stranger", "a/../b", ".", "..", "a\0b", "%2e%2e", "a\\b", "", "a//b"] {
            let answer = server.post(LOAD, &json!({"lora_name": name, "lora_path": "poet"})).await;
            assert_eq!(answer.status, 400, "{name:?}: {}", answer.text());
        }
        let listed = server.get("/v1/adapters").await.json();
        let serving = listed["data"].as_array().unwrap().iter().filter(|one| one["version"].is_string()).count();
        assert_eq!(serving, GOOD.len(), "{listed}");
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_becomes_a_link_while_it_is_read_leads_nowhere() {
    let place = tempfile::tempdir().unwrap();
    let (root, outside) = (place.path().join("root"), place.path().join("outside"));
    fs::create_dir(&root).unwrap();
    Draft::of("adapters/llama/o-down").write(&outside);
    Draft::plain().write(&root.join("inside"));
    symlink("inside", root.join("now")).unwrap();
    let server = Arc::new(server(&root).await);
    let checked = server.post(CHECK, &json!({"lora_path": "inside"})).await.json();
    let inside = checked["plan"]["version"].clone();
    assert!(inside.is_string(), "{checked}");
    let over = Arc::new(AtomicBool::new(false));
    let flipping = {
        let (root, over) = (root.clone(), Arc::clone(&over));
        std::thread::spawn(move || {
            let mut turns = 0;
            while !over.load(Ordering::Relaxed) {
                let target = if turns % 2 == 0 { outside.as_path() } else { Path::new("inside") };
                symlink(target, root.join("next")).unwrap();
                fs::rename(root.join("next"), root.join("now")).unwrap();
                turns += 1;
            }
            turns
        })
    };
    let (mut found, mut refused) = (0, 0);
    // Both have to be seen, and neither may be the only one that is possible.
    while found < 20 || refused < 20 {
        let checked = server.post(CHECK, &json!({"lora_path": "now"})).await;
        let body = checked.json();
        match body["plan"]["version"].as_str() {
            Some(version) => {
                assert_eq!(inside, version, "what is outside was read");
                found += 1;
            }
            None => refused += 1,
        }
    }
    over.store(true, Ordering::Relaxed);
    assert!(flipping.join().unwrap() > 2);
}
