//! `tunegate bench`: drives a running server, or starts one, and prints what its clients would see.

mod client;
mod engine;
pub mod numerics;
mod report;
mod swap;

use std::{
    path::PathBuf,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use client::{Target, Timed};
use report::Report;

use super::started::Started;

/// Measure a server with streamed completions of fixed length
#[derive(Debug, clap::Args)]
#[command(
    args_conflicts_with_subcommands = true,
    after_help = "\
Examples:
  tunegate bench --concurrency 8                       eight streams on the base of a running server
  tunegate bench --concurrency 8 --adapters 8          eight streams on eight different adapters
  tunegate bench --start models/demo.gguf --json out.json -- --adapter-dir adapters
  tunegate bench engine models/demo.gguf --profile     where a step of the decoder goes, without a server
  tunegate bench numerics models/demo.gguf --text t    what int8 activations and 16-bit keys and values change
  tunegate bench swap models/demo.gguf v1 v2           adapters changed under streams, every answer held against its version"
)]
pub struct BenchArgs {
    #[command(subcommand)]
    part: Option<Part>,
    /// The server to drive
    #[arg(long, default_value = "http://127.0.0.1:8000", conflicts_with = "start")]
    url: String,
    /// Start a server of our own with this model, on a free port and a data directory that is removed afterwards
    #[arg(long, value_name = "MODEL")]
    start: Option<PathBuf>,
    /// Sent as `Authorization: Bearer`
    #[arg(long)]
    api_key: Option<String>,
    /// Models to ask, in turn (repeatable); by default the base, or the adapters of --adapters
    #[arg(long, value_name = "NAME")]
    model: Vec<String>,
    /// Spread the requests over this many of the server's adapters
    #[arg(long, value_name = "COUNT", conflicts_with = "model")]
    adapters: Option<usize>,
    /// While the clock runs, ask these models for one token each, in turn, again and again (repeatable): with
    /// --max-cpu-loras 1 on the server every such request is a cold load
    #[arg(long, value_name = "NAME")]
    beside: Vec<String>,
    /// Requests under way at the same time
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    concurrency: u16,
    /// Requests in all; by default four for each stream
    #[arg(long)]
    requests: Option<usize>,
    /// Requests before the clock starts; by default one for each stream
    #[arg(long)]
    warmup: Option<usize>,
    /// Tokens in each prompt
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_tokens: u32,
    /// Tokens in each answer
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    output_tokens: u32,
    /// The longest a request may take, in seconds
    #[arg(long, default_value_t = 600)]
    timeout_s: u64,
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Flags for the server that --start starts
    #[arg(last = true, requires = "start")]
    serve: Vec<String>,
}

/// A part that is measured by itself.
#[derive(Debug, clap::Subcommand)]
enum Part {
    Engine(engine::EngineArgs),
    Numerics(numerics::NumericsArgs),
    Swap(swap::SwapArgs),
}

/// Runs the measurement and prints it. An error is one line for a person.
pub fn run(args: BenchArgs) -> Result<(), String> {
    match &args.part {
        Some(Part::Engine(args)) => return engine::run(args),
        Some(Part::Numerics(args)) => return numerics::run(args),
        Some(Part::Swap(args)) => return swap::run(args),
        None => {}
    }
    let started = args.start.as_deref().map(|model| Started::spawn(model, &args.serve)).transpose()?;
    let url = started.as_ref().map_or(args.url.as_str(), Started::url);
    let target = Target {
        url: url.trim_end_matches('/').to_owned(),
        api_key: args.api_key.clone(),
        timeout: Duration::from_secs(args.timeout_s),
    };
    let models = models(&args, &target)?;
    let concurrency = usize::from(args.concurrency);
    let prompts = Prompts::of(&target, &models[0], args.prompt_tokens as usize)?;
    let drive = |requests: usize, first: usize| {
        drive(&target, &models, concurrency, requests, |i| prompts.take(first + i), args.output_tokens as usize)
    };
    let warmup = args.warmup.unwrap_or(concurrency);
    drive(warmup, 0);
    let begin = Instant::now();
    let (timed, beside) =
        disturbed(&target, &args.beside, &prompts, || drive(args.requests.unwrap_or(4 * concurrency), warmup));
    let ready_after_s = started.as_ref().map(|started| started.took().as_secs_f64());
    let report = Report { ready_after_s, ..Report::of(&models, concurrency, begin.elapsed(), &timed).beside(&beside) };
    print!("{report}");
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?;
        std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))?;
    }
    if report.errors > 0 { Err(format!("{} of {} requests failed", report.errors, report.requests)) } else { Ok(()) }
}

/// Runs `measured` while one more client asks `models` in turn; that client's requests come second.
fn disturbed(
    target: &Target,
    models: &[String],
    prompts: &Prompts,
    measured: impl FnOnce() -> Vec<Timed>,
) -> (Vec<Timed>, Vec<Timed>) {
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let client = scope.spawn(|| {
            let mut timed = Vec::new();
            for model in models.iter().cycle().take_while(|_| !over.load(Ordering::Acquire)) {
                timed.push(target.complete(model, &prompts.take(timed.len())[..1], 1));
            }
            timed
        });
        let timed = measured();
        over.store(true, Ordering::Release);
        (timed, client.join().unwrap_or_default())
    })
}

/// The models to ask, in turn.
fn models(args: &BenchArgs, target: &Target) -> Result<Vec<String>, String> {
    if !args.model.is_empty() {
        return Ok(args.model.clone());
    }
    let (base, adapters) = target.models()?;
    match args.adapters {
        None | Some(0) => Ok(vec![base]),
        Some(wanted) if wanted <= adapters.len() => Ok(adapters.into_iter().take(wanted).collect()),
        Some(wanted) => Err(format!("the server has {} adapters; --adapters asks for {wanted}", adapters.len())),
    }
}

/// Sends `requests` requests, `concurrency` at a time, each to the next model in turn.
fn drive(
    target: &Target,
    models: &[String],
    concurrency: usize,
    requests: usize,
    prompt: impl Fn(usize) -> Vec<u32> + Sync,
    output_tokens: usize,
) -> Vec<Timed> {
    let next = AtomicUsize::new(0);
    let done = Mutex::new(Vec::with_capacity(requests));
    thread::scope(|scope| {
        for _ in 0..concurrency.min(requests) {
            scope.spawn(|| {
                loop {
                    let index = next.fetch_add(1, Ordering::Relaxed);
                    if index >= requests {
                        return;
                    }
                    let timed = target.complete(&models[index % models.len()], &prompt(index), output_tokens);
                    done.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).push(timed);
                }
            });
        }
    });
    done.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// Prompts of one length, no two with a common beginning, so that no prefix cache helps.
struct Prompts {
    tokens: Vec<u32>,
    length: usize,
}

const TEXT: &str = "The pump on line four stopped twice during the night shift, and the technician who wrote the report \
    noted a smell of hot oil, a pressure of six bar where eleven is usual, and a valve that closed late. ";

impl Prompts {
    fn of(target: &Target, model: &str, length: usize) -> Result<Self, String> {
        let tokens = target.tokenize(model, TEXT)?;
        if tokens.is_empty() {
            return Err("the server's tokenizer gave no tokens".to_owned());
        }
        Ok(Self { tokens, length })
    }

    /// The `index`-th prompt: it begins with `index` written in the tokens at hand, then goes round the text.
    fn take(&self, index: usize) -> Vec<u32> {
        let base = self.tokens.len();
        let digits = [index % base, index / base % base, index / base / base % base];
        let start = index * 7;
        let body = (0..).map(|i| self.tokens[(start + i) % base]);
        digits.into_iter().map(|digit| self.tokens[digit]).chain(body).take(self.length).collect()
    }
}
