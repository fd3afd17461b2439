//! `tunegate eval`: asks each item of a suite of every contender, scores the answers, and compares the contenders.

use std::{
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use serde::Deserialize;
use serde_json::{Map, Value};

use super::{nobody, started::Started};
use crate::eval::{
    Contender, Item, Report, Suite,
    gate::scored,
    report::{Answer, Asked},
};

/// Ask a suite of every contender and compare their answers pair by pair
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The suite format is described in recipes/SUITES.md. A contender is MODEL or MODEL+PRESET, where PRESET is a prompt from
the suite's prompts file.

Examples:
  tunegate eval recipes/ticket-triage/heldout.jsonl --model smollm2-135m+best --model ticket-triage
  tunegate eval suite.jsonl --model my-model --model other --against https://api.example.com --api-key $KEY")]
pub struct EvalArgs {
    /// The suite, a JSONL file
    suite: PathBuf,
    /// A contender: MODEL or MODEL+PRESET (repeatable)
    #[arg(long = "model", value_name = "MODEL[+PRESET]", required = true)]
    models: Vec<String>,
    /// Any endpoint that speaks OpenAI's API, without /v1
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8000", conflicts_with = "start")]
    against: String,
    /// Start a server of our own with this base model, on a free port
    #[arg(long, value_name = "MODEL")]
    start: Option<PathBuf>,
    /// The prompts file, instead of the suite's own
    #[arg(long, value_name = "FILE")]
    prompts: Option<PathBuf>,
    /// Sent as `Authorization: Bearer`
    #[arg(long)]
    api_key: Option<String>,
    /// Requests under way at the same time
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=256))]
    concurrency: u16,
    /// The longest a request may take, in seconds
    #[arg(long, default_value_t = 300)]
    timeout_s: u64,
    /// Write everything, every answer included, to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Flags for the server that --start starts
    #[arg(last = true, requires = "start")]
    serve: Vec<String>,
}

/// Runs the evaluation and prints it. An error is one line for a person.
pub fn run(args: EvalArgs) -> Result<(), String> {
    let suite = Suite::read(&args.suite).map_err(|error| error.to_string())?;
    let prompts = args.prompts.as_ref().or(suite.prompts.as_ref());
    let contenders: Vec<Contender> = args
        .models
        .iter()
        .map(|label| Contender::read(label, prompts.map(PathBuf::as_path)))
        .collect::<Result<_, _>>()
        .map_err(|error| error.to_string())?;
    for contender in &contenders {
        for item in &suite.items {
            contender.messages(item).map_err(|error| error.to_string())?;
        }
    }
    let started = args.start.as_deref().map(|model| Started::spawn(model, &args.serve)).transpose()?;
    let url = started.as_ref().map_or(args.against.as_str(), Started::url);
    let endpoint = Endpoint::new(url, args.api_key.clone(), Duration::from_secs(args.timeout_s));
    let mut asked = Vec::new();
    for contender in &contenders {
        eprintln!("asking {} ({} items)", contender.label, suite.items.len());
        asked.push(ask_all(&endpoint, &suite, contender, usize::from(args.concurrency))?);
    }
    let report = Report::of(&suite, asked);
    // Figures of nothing would only mislead.
    if report.contenders.iter().any(|contender| contender.failed < suite.items.len()) {
        print!("{report}");
    }
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?;
        std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))?;
    }
    match report.contenders.iter().find(|contender| contender.failed == suite.items.len()) {
        Some(silent) => Err(format!("'{}' answered nothing: {}", silent.label, first_error(silent))),
        None => Ok(()),
    }
}

fn first_error(contender: &crate::eval::report::ContenderReport) -> String {
    contender.answers.iter().find_map(|answer| answer.error.clone()).unwrap_or_default()
}

/// Asks every item of one contender, several at a time, and scores the answers. A scoring program that fails ends it all.
fn ask_all(endpoint: &Endpoint, suite: &Suite, contender: &Contender, concurrency: usize) -> Result<Asked, String> {
    let next = AtomicUsize::new(0);
    let slots: Vec<Mutex<Option<Result<Answer, String>>>> = suite.items.iter().map(|_| Mutex::new(None)).collect();
    let (version, broken) = (Mutex::new(None), Mutex::new(None));
    thread::scope(|scope| {
        for _ in 0..concurrency.min(suite.items.len()) {
            scope.spawn(|| {
                while let Some(item) = suite.items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let at = slots.iter().zip(&suite.items).position(|(_, other)| std::ptr::eq(other, item));
                    let answer = endpoint.ask(contender, item).map(|(answer, named)| {
                        if named.is_some() {
                            *lock(&version) = named;
                        }
                        answer
                    });
                    let answer = match answer.map(|answer| scored(answer, item, suite)) {
                        Ok(Ok(answer)) => Ok(answer),
                        Ok(Err(fault)) => {
                            *lock(&broken) = Some(fault);
                            next.store(usize::MAX / 2, Ordering::Relaxed);
                            return;
                        }
                        Err(error) => Err(error),
                    };
                    if let Some(slot) = at.and_then(|at| slots.get(at)) {
                        *lock(slot) = Some(answer);
                    }
                }
            });
        }
    });
    if let Some(fault) = lock(&broken).take() {
        return Err(fault);
    }
    let unasked = || Err("not asked".to_owned());
    let answers = slots.iter().map(|slot| lock(slot).take().unwrap_or_else(unasked)).collect();
    let version = lock(&version).take();
    Ok(Asked { label: contender.label.clone(), version, answers })
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// An OpenAI-compatible chat endpoint.
struct Endpoint {
    agent: ureq::Agent,
    url: String,
    api_key: Option<String>,
}

#[derive(Deserialize)]
struct ChatAnswer {
    choices: Vec<Choice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Choice {
    message: Said,
}

#[derive(Deserialize)]
struct Said {
    content: Option<String>,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
}

impl Endpoint {
    fn new(url: &str, api_key: Option<String>, timeout: Duration) -> Self {
        let agent = ureq::Agent::config_builder().timeout_global(Some(timeout)).http_status_as_error(false).build();
        let url = url.trim_end_matches('/').trim_end_matches("/v1");
        Self { agent: agent.new_agent(), url: format!("{url}/v1/chat/completions"), api_key }
    }

    /// The answer without scores, and the version that the server says gave it.
    fn ask(&self, contender: &Contender, item: &Item) -> Result<(Answer, Option<String>), String> {
        let messages = contender.messages(item).map_err(|error| error.to_string())?;
        let mut body: Map<String, Value> = item.sampling.clone();
        body.insert("model".to_owned(), Value::from(contender.model.as_str()));
        body.insert("messages".to_owned(), serde_json::to_value(messages).map_err(|error| error.to_string())?);
        let mut request = self.agent.post(&self.url);
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = request.send_json(&body).map_err(|error| nobody(&self.url, &error, "--against, --start"))?;
        if response.status() != 200 {
            let text = response.body_mut().read_to_string().unwrap_or_default();
            return Err(format!("{}: {}", response.status(), text.chars().take(300).collect::<String>()));
        }
        let header = response.headers().get("x-tunegate-version");
        let version = header.and_then(|value| value.to_str().ok()).map(str::to_owned);
        let answer: ChatAnswer = response.body_mut().read_json().map_err(|error| error.to_string())?;
        let usage = answer.usage.unwrap_or(Usage { prompt_tokens: 0, completion_tokens: 0 });
        let text = answer.choices.into_iter().next().and_then(|choice| choice.message.content).unwrap_or_default();
        let Usage { prompt_tokens, completion_tokens } = usage;
        Ok((Answer { text, prompt_tokens, completion_tokens, scores: Vec::new() }, version))
    }
}
