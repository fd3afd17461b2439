//! The server that is driven, over HTTP as any client would.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    place::{Adapter, Place},
    streams::{Answer, Asked},
};
use crate::cli::started::Started;

/// A server of this run's own.
pub struct Server {
    started: Started,
    agent: ureq::Agent,
    base: String,
}

/// How long the stages of a change took, in milliseconds, as its answer tells.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Times {
    pub read_ms: f64,
    pub hash_ms: f64,
    pub check_ms: f64,
    pub keep_ms: f64,
    pub warm_ms: f64,
    pub sync_ms: f64,
    pub flip_ms: f64,
}

/// The same of a load into memory.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct LoadTimes {
    pub read_ms: f64,
    pub hash_ms: f64,
    pub check_ms: f64,
    pub pack_ms: f64,
}

/// What a change answers.
#[derive(Clone, Debug, Deserialize)]
pub struct Changed {
    /// Its first digits.
    pub version: String,
    pub rank: Option<usize>,
    pub file_bytes: Option<u64>,
    pub bytes: Option<u64>,
    pub times: Times,
    pub load: Option<LoadTimes>,
}

/// Digits that answers name a version by.
const SHORT: usize = 12;
/// Between two looks at what is waited for.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

impl Server {
    pub fn start(model: &Path, place: &Place, flags: &[String]) -> Result<Self, String> {
        let none = place.root().join("none");
        std::fs::create_dir_all(&none).map_err(|error| format!("{}: {error}", none.display()))?;
        let own = ["--adapter-dir", &none.display().to_string(), "--adapter-root", &place.root().display().to_string()];
        let flags: Vec<String> = own.into_iter().map(str::to_owned).chain(flags.iter().cloned()).collect();
        let started = Started::spawn(model, &flags)?;
        let agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
        let mut server = Self { started, agent, base: String::new() };
        let models = server.get("/v1/models")?;
        let base = models["data"][0]["id"].as_str().ok_or("the server lists no base model")?;
        server.base = base.to_owned();
        Ok(server)
    }

    fn get(&self, path: &str) -> Result<Value, String> {
        let answer = self.agent.get(format!("{}{path}", self.started.url())).call();
        body(path, answer)
    }

    fn post(&self, path: &str, ask: &Value) -> Result<Value, String> {
        let request = self.agent.post(format!("{}{path}", self.started.url())).header("accept", "application/json");
        body(path, request.send_json(ask))
    }

    /// Token ids of `text`, by the server's own tokenizer.
    pub fn tokenize(&self, text: &str) -> Result<Vec<u32>, String> {
        let answer =
            self.post("/tokenize", &json!({"model": self.base, "prompt": text, "add_special_tokens": false}))?;
        let tokens: Vec<u32> =
            serde_json::from_value(answer["tokens"].clone()).map_err(|error| format!("/tokenize: {error}"))?;
        if tokens.is_empty() { Err("the server's tokenizer gave no tokens".to_owned()) } else { Ok(tokens) }
    }

    pub fn load(&self, name: &str, adapter: &Adapter, replace: bool) -> Result<Changed, String> {
        let ask = json!({"lora_name": name, "lora_path": adapter.path, "load_inplace": replace});
        changed(self.post("/v1/load_lora_adapter", &ask)?)
    }

    pub fn roll_back(&self, name: &str) -> Result<Changed, String> {
        changed(self.post(&format!("/v1/adapters/{name}/rollback"), &json!({}))?)
    }

    pub fn unload(&self, name: &str) -> Result<(), String> {
        self.post("/v1/unload_lora_adapter", &json!({"lora_name": name})).map(drop)
    }

    /// The first digits of the version that a folder would have.
    pub fn version_of(&self, adapter: &Adapter) -> Result<String, String> {
        let answer = self.post("/v1/adapters/check", &json!({"lora_path": adapter.path}))?;
        let version = answer["plan"]["version"].as_str().ok_or_else(|| format!("{}: {answer}", adapter.path))?;
        Ok(short(version))
    }

    /// Bytes of adapters in memory.
    pub fn adapter_bytes(&self) -> Result<u64, String> {
        let list = self.get("/v1/adapters")?;
        list["memory"]["bytes"].as_u64().ok_or_else(|| format!("/v1/adapters: {list}"))
    }

    /// The same, once it is down to `expected`, or what is still there after all patience.
    pub fn bytes_when_quiet(&self, expected: u64, patience: Duration) -> Result<u64, String> {
        let begin = Instant::now();
        loop {
            let bytes = self.adapter_bytes()?;
            if bytes <= expected || begin.elapsed() > patience {
                return Ok(bytes);
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits until only what a name points at is in memory.
    ///
    /// # Errors
    /// What is still there when patience ends, and who uses it.
    pub fn freed(&self, name: &str, patience: Duration) -> Result<(), String> {
        let begin = Instant::now();
        loop {
            let shown = self.get(&format!("/v1/adapters/{name}"))?;
            let versions = shown["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
            let left = versions.iter().find(|version| version["current"] == false && version["bytes"] != 0);
            let Some(left) = left else { return Ok(()) };
            if begin.elapsed() > patience {
                return Err(format!("{name}: version {} outlives its leases: {left}", left["version"]));
            }
            thread::sleep(LOOK_AGAIN);
        }
    }

    /// How long the stages of a version's last load took.
    pub fn load_times(&self, name: &str, version: &str) -> Result<LoadTimes, String> {
        let shown = self.get(&format!("/v1/adapters/{name}"))?;
        let versions = shown["versions"].as_array().map(Vec::as_slice).unwrap_or_default();
        let found = versions.iter().find(|found| found["version"].as_str().is_some_and(|v| v.starts_with(version)));
        let times = found.map(|found| found["load"].clone()).unwrap_or_default();
        serde_json::from_value(times).map_err(|error| format!("{name}: {error}: {shown}"))
    }

    /// A greedy answer of `count` tokens, streamed; `at_token` hears of each token, with the version that answers.
    ///
    /// # Errors
    /// Whatever is neither a whole answer nor 404.
    pub fn stream(
        &self,
        model: &str,
        prompt: &[u32],
        count: usize,
        mut at_token: impl FnMut(&str),
    ) -> Result<Asked, String> {
        let ask = json!({
            "model": model, "prompt": prompt, "max_tokens": count, "temperature": 0, "ignore_eos": true, "logprobs": 0,
            "stream": true, "stream_options": {"include_usage": true},
        });
        let sent = Instant::now();
        let answer = self.agent.post(format!("{}/v1/completions", self.started.url())).send_json(&ask);
        let mut answer = answer.map_err(|error| format!("{model}: {error}"))?;
        match answer.status().as_u16() {
            200 => {}
            404 => return Ok(Asked::Absent),
            status => {
                let text = answer.body_mut().read_to_string().unwrap_or_default();
                return Err(format!("{model}: {status}: {}", text.chars().take(200).collect::<String>()));
            }
        }
        let version = answer.headers().get("x-tunegate-version").and_then(|value| value.to_str().ok());
        let version = version.and_then(|text| text.rsplit_once("adapter=")).map(|(_, digits)| short(digits));
        let mut whole = Answer {
            version: version.ok_or_else(|| format!("{model}: the answer names no adapter's version"))?,
            tokens: Vec::with_capacity(count),
            cached_tokens: 0,
            begun: sent.elapsed(),
            first_token: None,
        };
        for line in BufReader::new(answer.into_body().into_reader()).lines() {
            let line = line.map_err(|error| format!("{model}: the stream broke: {error}"))?;
            let Some(chunk) = line.strip_prefix("data: ") else { continue };
            if chunk == "[DONE]" {
                let got = whole.tokens.len();
                return if got == count { Ok(Asked::Answered(whole)) } else { Err(format!("{model}: {got} tokens")) };
            }
            let chunk: Value = serde_json::from_str(chunk).map_err(|error| format!("{model}: no JSON: {error}"))?;
            if let Some(error) = chunk.get("error") {
                return Err(format!("{model}: in the stream: {error}"));
            }
            if let Some(cached) = chunk["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64() {
                whole.cached_tokens = cached;
            }
            for token in chunk["choices"][0]["logprobs"]["tokens"].as_array().into_iter().flatten() {
                whole.first_token.get_or_insert_with(|| sent.elapsed());
                whole.tokens.push(token.as_str().unwrap_or_default().to_owned());
                at_token(&whole.version);
            }
        }
        Err(format!("{model}: the stream ended without [DONE]"))
    }
}

fn short(version: &str) -> String {
    version.chars().take(SHORT).collect()
}

fn changed(answer: Value) -> Result<Changed, String> {
    let mut changed: Changed =
        serde_json::from_value(answer.clone()).map_err(|error| format!("a change answers {answer}: {error}"))?;
    changed.version = short(&changed.version);
    Ok(changed)
}

fn body(path: &str, answer: Result<http::Response<ureq::Body>, ureq::Error>) -> Result<Value, String> {
    let mut answer = answer.map_err(|error| format!("{path}: {error}"))?;
    let status = answer.status();
    let text = answer.body_mut().read_to_string().map_err(|error| format!("{path}: {error}"))?;
    if !status.is_success() {
        return Err(format!("{path}: {status}: {}", text.chars().take(400).collect::<String>()));
    }
    serde_json::from_str(&text).map_err(|error| format!("{path}: {error}"))
}
