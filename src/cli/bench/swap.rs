//! `tunegate bench swap`: adapters are loaded, replaced in place, rolled back and unloaded under clients that stream without
//! pause, and every answer is held against its version's own. Then what a cold adapter takes, stage by stage.

mod cold;
mod names;
mod place;
mod report;
mod server;
mod streams;

use std::{
    collections::HashMap,
    path::PathBuf,
    thread,
    time::{Duration, Instant},
};

use names::{Change, Names};
use place::{Adapter, Place};
use report::Report;
use server::Server;
use streams::{Asked, Prompt, Streams};

/// Change adapters under clients that stream without pause, hold every answer against its version's own, and time a cold
/// adapter by stage
#[derive(Debug, clap::Args)]
pub struct SwapArgs {
    /// A GGUF file or a Hugging Face folder; a server of our own serves it, on a free port and a data directory that is
    /// removed afterwards
    model: PathBuf,
    /// Folders of adapters for it, at least two: the versions that every name goes through
    #[arg(required = true, num_args = 2.., value_name = "ADAPTER")]
    adapters: Vec<PathBuf>,
    /// How often a name is replaced, rolled back, unloaded and loaded again
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Clients that stream at the same time
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    clients: u16,
    /// Names whose adapters are changed, in turn
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    names: u16,
    /// Tokens that all prompts begin with
    #[arg(long, default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..))]
    prefix_tokens: u32,
    /// Tokens in each answer
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(8..))]
    output_tokens: u32,
    /// The adapter that is timed cold afterwards; the first of the others by default
    #[arg(long, value_name = "ADAPTER")]
    cold_adapter: Option<PathBuf>,
    /// How often it is timed
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    cold: u16,
    /// Write the figures to this file as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Flags for the server
    #[arg(last = true)]
    serve: Vec<String>,
}

/// Different prompts that clients ask.
const PROMPTS: usize = 8;
/// Prompts that are tried for those.
const TRIED: usize = 64;
/// The versions' answers part within so many tokens.
const PARTED_WITHIN: usize = 5;
/// What a busy machine may take for anything that is waited for.
const PATIENCE: Duration = Duration::from_secs(300);

/// Runs it and prints what was found. An error is one line for a person: what did not hold.
pub fn run(args: &SwapArgs) -> Result<(), String> {
    let cold = args.cold_adapter.as_deref().unwrap_or(&args.adapters[0]);
    let place = Place::make(&args.adapters, usize::from(args.names), cold, usize::from(args.cold))?;
    let server = Server::start(&args.model, &place, &args.serve)?;
    let prompts = prompts(&server, &place, args)?;
    let mut report = Report { parted_within: PARTED_WITHIN, ..Report::default() };
    under_fire(&server, &place, &prompts, args, &mut report)?;
    report.cold = cold::measure(&server, &place, &prompts[0])?;
    print!("{report}");
    if let Some(path) = &args.json {
        let text = serde_json::to_string_pretty(&report).map_err(|error| error.to_string())?;
        std::fs::write(path, text + "\n").map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let broken = report.broken();
    if broken.is_empty() { Ok(()) } else { Err(broken.join("; ")) }
}

/// Prompts with one long beginning, and what every version answers to each of them, alone.
fn prompts(server: &Server, place: &Place, args: &SwapArgs) -> Result<Vec<Prompt>, String> {
    let text = server.tokenize(super::TEXT)?;
    let prefix = text.iter().copied().cycle().take(args.prefix_tokens as usize);
    let tokens = |index: usize| -> Vec<u32> {
        // Any token of the text may follow; two of them make enough differences.
        let tail =
            [text[index % text.len()], text[(7 * index + 3) % text.len()], text[(index / text.len()) % text.len()]];
        prefix.clone().chain(tail).collect()
    };
    let alone = |adapter: &Adapter, count: usize| -> Result<Vec<Vec<String>>, String> {
        server.load("alone", adapter, false)?;
        let ask = |index| -> Result<Vec<String>, String> {
            match server.stream("alone", &tokens(index), count, |_| {})? {
                Asked::Answered(answer) => Ok(answer.tokens),
                Asked::Absent => Err("'alone' is not served".to_owned()),
            }
        };
        let answers = (0..TRIED).map(ask).collect();
        server.unload("alone")?;
        answers
    };
    let firsts = place.alone().iter().map(|adapter| alone(adapter, PARTED_WITHIN)).collect::<Result<Vec<_>, _>>()?;
    let parts = |index: &usize| {
        firsts.iter().enumerate().all(|(at, one)| firsts[..at].iter().all(|other| one[*index] != other[*index]))
    };
    let chosen: Vec<usize> = (0..TRIED).filter(parts).take(PROMPTS).collect();
    if chosen.len() < 2 {
        return Err(format!(
            "the versions answer alike: of {TRIED} prompts they part within {PARTED_WITHIN} tokens on {}",
            chosen.len()
        ));
    }
    let mut prompts: Vec<Prompt> =
        chosen.iter().map(|index| Prompt { tokens: tokens(*index), answers: Vec::new() }).collect();
    for adapter in place.alone() {
        server.load("alone", adapter, false)?;
        for prompt in &mut prompts {
            match server.stream("alone", &prompt.tokens, args.output_tokens as usize, |_| {})? {
                Asked::Answered(answer) => prompt.answers.push(answer.tokens),
                Asked::Absent => return Err("'alone' is not served".to_owned()),
            }
        }
        server.unload("alone")?;
    }
    Ok(prompts)
}

/// The rounds: each name in turn is replaced, rolled back, unloaded and loaded again, each time in the middle of one of its
/// streams.
fn under_fire(
    server: &Server,
    place: &Place,
    prompts: &[Prompt],
    args: &SwapArgs,
    report: &mut Report,
) -> Result<(), String> {
    let before = server.adapter_bytes()?;
    let names = Names::new(usize::from(args.names));
    let kinds: HashMap<String, usize> = place.versions(server)?;
    let streams = Streams::new(prompts, &names, &kinds);
    for name in 0..names.len() {
        names.change(server, name, Change::Load(place.adapter(name, 0)))?;
    }
    let begin = Instant::now();
    let changed: Result<(), String> = thread::scope(|scope| {
        for client in 0..usize::from(args.clients) {
            let streams = &streams;
            scope.spawn(move || streams.ask_without_pause(client, server, args.output_tokens as usize));
        }
        let changed: Result<(), String> = (0..args.rounds as usize).try_for_each(|round| {
            let name = round % names.len();
            // It has the version before this one, since it was loaded last.
            let next = (round / names.len() + 1) % place.kinds();
            server.freed(&names.name(name), PATIENCE)?;
            for change in [
                Change::Replace(place.adapter(name, next)),
                Change::RollBack,
                Change::Unload,
                Change::Load(place.adapter(name, next)),
            ] {
                let met = if change.ends_nothing() { Vec::new() } else { streams.in_the_middle_of(name, PATIENCE)? };
                let (kind, absent) = (change.word(), streams.absent());
                let times = names.change(server, name, change)?;
                report.changed(kind, times, streams.any_lives(&met));
                report.peak_bytes = report.peak_bytes.max(server.adapter_bytes()?);
                if round < names.len() && matches!(change, Change::Unload) {
                    streams.more_absent_than(absent, PATIENCE)?;
                }
            }
            Ok(())
        });
        streams.stop();
        changed
    });
    report.seconds = begin.elapsed().as_secs_f64();
    changed?;
    for name in 0..names.len() {
        names.change(server, name, Change::Unload)?;
    }
    report.rounds = args.rounds;
    report.names = args.names;
    report.clients = args.clients;
    report.prefix_tokens = args.prefix_tokens;
    streams.report(report);
    report.left_bytes = server.bytes_when_quiet(before, PATIENCE)?.saturating_sub(before);
    Ok(())
}
