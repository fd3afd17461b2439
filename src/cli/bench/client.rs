//! One streamed request to an OpenAI-compatible server, timed.

use std::{
    io::{BufRead, BufReader},
    time::{Duration, Instant},
};

use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::nobody;

/// What is asked of the server, again and again.
#[derive(Clone, Debug)]
pub struct Target {
    /// `http://host:port`, without `/v1`.
    pub url: String,
    pub api_key: Option<String>,
    pub timeout: Duration,
}

/// One request and its times.
#[derive(Clone, Debug)]
pub struct Timed {
    /// From sending to the first chunk with a token; `None` if none came.
    pub first_token: Option<Duration>,
    /// Between consecutive chunks.
    pub gaps: Vec<Duration>,
    pub total: Duration,
    pub prompt_tokens: u64,
    pub completion_tokens: u64,
    /// Why it counts as failed: a status, an error in the stream, or an answer that was cut short.
    pub error: Option<String>,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Value>,
    usage: Option<Usage>,
    error: Option<Value>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl Target {
    fn agent(&self) -> ureq::Agent {
        ureq::Agent::config_builder().timeout_global(Some(self.timeout)).http_status_as_error(false).build().new_agent()
    }

    fn post(&self, path: &str, body: &Value) -> Result<http::Response<ureq::Body>, ureq::Error> {
        let mut request = self.agent().post(format!("{}{path}", self.url));
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        request.send_json(body)
    }

    /// Token ids of `text`, by the server's own tokenizer.
    pub fn tokenize(&self, model: &str, text: &str) -> Result<Vec<u32>, String> {
        #[derive(Deserialize)]
        struct Tokens {
            tokens: Vec<u32>,
        }
        let body = json!({"model": model, "prompt": text, "add_special_tokens": false});
        let mut response = self.post("/tokenize", &body).map_err(|error| error.to_string())?;
        if response.status() != 200 {
            return Err(format!("/tokenize answered {}", response.status()));
        }
        response.body_mut().read_json::<Tokens>().map(|tokens| tokens.tokens).map_err(|error| error.to_string())
    }

    /// The base's name and its adapters' names, from `/v1/models`.
    pub fn models(&self) -> Result<(String, Vec<String>), String> {
        #[derive(Deserialize)]
        struct Models {
            data: Vec<Card>,
        }
        #[derive(Deserialize)]
        struct Card {
            id: String,
            #[serde(default)]
            parent: Option<String>,
        }
        let mut request = self.agent().get(format!("{}/v1/models", self.url));
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.call().map_err(|error| nobody(&self.url, &error, "--url, --start"))?;
        if response.status() != 200 {
            return Err(format!("/v1/models answered {}", response.status()));
        }
        let models = response.body_mut().read_json::<Models>().map_err(|error| error.to_string())?;
        let (adapters, bases): (Vec<Card>, Vec<Card>) = models.data.into_iter().partition(|card| card.parent.is_some());
        let base = bases.into_iter().next().ok_or("the server lists no base model")?;
        Ok((base.id, adapters.into_iter().map(|card| card.id).collect()))
    }

    /// Asks for `max_tokens` tokens after a prompt given as ids, streamed, and waits for the end.
    pub fn complete(&self, model: &str, prompt: &[u32], max_tokens: usize) -> Timed {
        let body = json!({
            "model": model, "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "ignore_eos": true,
            "stream": true, "stream_options": {"include_usage": true},
        });
        let sent = Instant::now();
        let mut timed = Timed {
            first_token: None,
            gaps: Vec::new(),
            total: Duration::ZERO,
            prompt_tokens: 0,
            completion_tokens: 0,
            error: None,
        };
        timed.error = self.read_stream(&body, sent, &mut timed).err();
        timed.total = sent.elapsed();
        timed
    }

    fn read_stream(&self, body: &Value, sent: Instant, timed: &mut Timed) -> Result<(), String> {
        let mut response = self.post("/v1/completions", body).map_err(|error| error.to_string())?;
        if response.status() != 200 {
            let text = response.body_mut().read_to_string().unwrap_or_default();
            return Err(format!("{}: {}", response.status(), text.chars().take(200).collect::<String>()));
        }
        let mut last = sent;
        for line in BufReader::new(response.into_body().into_reader()).lines() {
            let line = line.map_err(|error| format!("the stream broke: {error}"))?;
            let Some(chunk) = line.strip_prefix("data: ") else { continue };
            if chunk == "[DONE]" {
                return Ok(());
            }
            let now = Instant::now();
            let chunk: Chunk = serde_json::from_str(chunk).map_err(|error| format!("a chunk is no JSON: {error}"))?;
            if let Some(error) = chunk.error {
                return Err(format!("in the stream: {error}"));
            }
            if let Some(usage) = chunk.usage {
                (timed.prompt_tokens, timed.completion_tokens) = (usage.prompt_tokens, usage.completion_tokens);
            }
            let token = chunk.choices.iter().any(|choice| choice["finish_reason"].is_null());
            if token {
                match timed.first_token {
                    None => timed.first_token = Some(now - sent),
                    Some(_) => timed.gaps.push(now - last),
                }
                last = now;
            }
        }
        Err("the stream ended without [DONE]".to_owned())
    }
}
