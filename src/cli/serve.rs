//! `tunegate serve`: loads the model, listens, and says how to try it.

use std::{
    fmt::Write as _,
    future,
    io::{self, Write as _},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use tokio::sync::oneshot;
use tracing_subscriber::EnvFilter;

use super::line::Line;
use crate::{
    app::{self, Ready},
    config::{Config, Fault, Layer, LogFormat, Settings, vllm},
    data_dir::DataDir,
    feedback::RuleSet,
    http::auth::{Keys, KeysError},
    journal::Redactor,
    model::{self, ModelSource},
    terms::RecordPolicy,
};

/// Serve a base model and its adapters over the OpenAI API
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every setting is a flag, a key of the file (max-num-seqs = 8) and an environment variable (TUNEGATE_MAX_NUM_SEQS=8); a
flag holds over the environment, and that over the file. A pasted `vllm serve` line starts: docs/vllm-flags.md says
what becomes of each of its flags.

Examples:
  tunegate serve models/SmolLM2-135M-Instruct.Q4_1.gguf
  tunegate serve ./my-model --adapter-dir ./adapters --port 9000
  tunegate serve --config tunegate.toml --check-config")]
pub struct ServeArgs {
    /// The base model; the same as --model
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    base: Option<String>,
    /// Settings from a TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Read all settings, list every fault or show what would hold, and end
    #[arg(long)]
    check_config: bool,
    /// Print what becomes of each of vLLM's flags, and end
    #[arg(long)]
    vllm_flags: bool,
    /// End when standard input is closed, as it is when the command that started this server ends, however it ends
    #[arg(long, hide = true)]
    end_with_stdin: bool,
    #[command(flatten)]
    layer: Layer,
}

/// The command's exit code: 0 after a drain, 1 if the server failed, 2 if the settings are wrong.
pub fn run(line: Line) -> ExitCode {
    let Line { args, warnings, mut faults, lost_words } = line;
    if args.vllm_flags {
        print!("{}", vllm::page());
        return ExitCode::SUCCESS;
    }
    let mut layer = args.layer;
    layer.model = layer.model.or(args.base);
    let unnamed = layer.model.is_none() && lost_words;
    let mut settings = Settings::gather_here(args.config.as_deref(), layer);
    settings.warnings.extend(warnings);
    let hint = if faults.is_empty() { None } else { Some("tunegate serve --help lists every flag") };
    match settled(&settings, args.check_config || !faults.is_empty()) {
        Ok(config) if faults.is_empty() && !args.check_config => {
            let parent = args.end_with_stdin.then(end_of_stdin);
            return serve(&settings, config, parent);
        }
        Ok(_) => {}
        // The model's name may be among the words that were not understood.
        Err(more) => {
            faults.extend(more.iter().filter(|fault| !(unnamed && fault.reason == NO_MODEL)).map(Fault::to_string))
        }
    }
    if faults.is_empty() {
        show(&settings);
        return ExitCode::SUCCESS;
    }
    faults.iter().map(String::as_str).chain(hint).for_each(|fault| eprintln!("tunegate: {fault}"));
    ExitCode::from(2)
}

/// Everything settled, or every fault. Fetches the model's files if need be, unless only the settings are checked; for
/// settings that are wrong nothing is fetched.
pub(super) fn settled(settings: &Settings, check_only: bool) -> Result<Config, Vec<Fault>> {
    let config = checked(settings, locate(settings, true))?;
    if check_only {
        return Ok(config);
    }
    let found = locate(settings, false);
    if found.as_ref().is_ok_and(|path| *path == config.model.path) { Ok(config) } else { checked(settings, found) }
}

fn checked(settings: &Settings, model: Result<PathBuf, Fault>) -> Result<Config, Vec<Fault>> {
    let (model, mut faults) = match model {
        Ok(model) => {
            let fault = fault_of_model(&model).map(|reason| Fault { place: settings.place("model"), reason });
            (model, Vec::from_iter(fault))
        }
        Err(fault) => (PathBuf::new(), vec![fault]),
    };
    faults.extend(fault_of_keys(settings));
    faults.extend(fault_of_rules(settings));
    faults.extend(faults_of_rules(settings));
    match settings.settle(model) {
        Ok(config) if faults.is_empty() => Ok(config),
        config => {
            faults.extend(config.err().unwrap_or_default());
            Err(faults)
        }
    }
}

/// What is wrong with a model that is here, as far as its description tells. One that is not fetched yet tells nothing.
fn fault_of_model(path: &Path) -> Option<String> {
    let known = |path: &Path| model::shape_of(&ModelSource::detect(path)?);
    if path.exists() { known(path).err().map(|error| error.to_string()) } else { None }
}

fn fault_of_keys(settings: &Settings) -> Option<Fault> {
    let said = &settings.said;
    let keys = Keys::read(
        said.api_key.as_deref().unwrap_or_default(),
        said.api_keys_file.as_deref(),
        said.admin_key.as_deref(),
        true,
    );
    let error = keys.err()?;
    let name = if matches!(error, KeysError::Empty) { "api_key" } else { "api_keys_file" };
    Some(Fault { place: settings.place(name), reason: error.to_string() })
}

fn fault_of_rules(settings: &Settings) -> Option<Fault> {
    let reason = Redactor::check(settings.said.redact_rules.as_deref()?).err()?;
    Some(Fault { place: settings.place("redact_rules"), reason })
}

fn faults_of_rules(settings: &Settings) -> Vec<Fault> {
    let faults = RuleSet::of(&settings.flag_rules()).err().unwrap_or_default();
    faults.into_iter().map(|reason| Fault { place: settings.place("flag_rules"), reason }).collect()
}

const NO_MODEL: &str = "no model is given: name a folder, a GGUF file or a hub id (`make run` fetches a small one)";

/// The model's files. A hub id is fetched, unless only the settings are checked.
fn locate(settings: &Settings, check_only: bool) -> Result<PathBuf, Fault> {
    let fault = |reason: String| Fault { place: settings.place("model"), reason };
    let Some(model) = &settings.said.model else {
        return Err(Fault { place: "--model".to_owned(), reason: NO_MODEL.to_owned() });
    };
    crate::model_files::locate(model, settings, check_only).map_err(|error| fault(error.to_string()))
}

fn show(settings: &Settings) {
    for (name, value, place) in settings.shown() {
        println!("{name:<26} {value:<40} {place}");
    }
    settings.warnings.iter().for_each(|warning| println!("warning: {warning}"));
    println!("the settings are sound; all others have their defaults (tunegate serve --help)");
}

/// Resolves when standard input has ended.
fn end_of_stdin() -> oneshot::Receiver<()> {
    let (ended, end) = oneshot::channel();
    std::thread::spawn(move || {
        // An input that cannot be read has ended as well.
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        // Nobody waits any more if the server has ended first.
        let _ = ended.send(());
    });
    end
}

fn serve(settings: &Settings, config: Config, parent: Option<oneshot::Receiver<()>>) -> ExitCode {
    start_log(settings);
    settings.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    match start(config, parent) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tunegate: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `parent` resolves when the command that this server belongs to is gone.
fn start(config: Config, parent: Option<oneshot::Receiver<()>>) -> Result<(), String> {
    let address = config.server.listen;
    let mut held =
        DataDir::hold(&config.record.data_dir, &format!("serving on {address}")).map_err(|e| e.to_string())?;
    // Half of the cores at most: the engine's own threads do the work.
    let workers = std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 4).clamp(1, 4));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    let welcome = Welcome {
        policy: config.record.policy,
        record: app::record_file(&config.record.data_dir),
        keyed: !config.server.api_keys.is_empty() || config.server.keys_file.is_some(),
    };
    runtime
        .block_on(async {
            let socket = match held.listen().and_then(|socket| {
                socket.set_nonblocking(true)?;
                tokio::net::UnixListener::from_std(socket)
            }) {
                Ok(socket) => Some(socket),
                Err(error) => {
                    tracing::warn!(%error, "no socket in the data directory: commands cannot ask this server there");
                    None
                }
            };
            eprintln!("loading {} …", config.model.path.display());
            let orphaned = async {
                match parent {
                    // A sender that is gone has seen the end.
                    Some(parent) => drop(parent.await),
                    None => future::pending().await,
                }
            };
            app::serve(config, socket, orphaned, |ready| {
                // Whoever started the server may have closed its output; that is no reason not to serve.
                let _ = io::stdout().lock().write_all(welcome.text(ready).as_bytes());
            })
            .await
        })
        .map_err(|error| error.to_string())
}

fn start_log(settings: &Settings) {
    // The level was checked with the other settings.
    let filter = EnvFilter::new(settings.log_level());
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = match settings.log_format() {
        LogFormat::Json => log.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init(),
        LogFormat::Text => log.try_init(),
    };
    if let Err(error) = started {
        eprintln!("tunegate: no log: {error}");
    }
}

/// What a person is told beside the server's own news.
struct Welcome {
    policy: RecordPolicy,
    record: PathBuf,
    /// Whether clients have to send a key.
    keyed: bool,
}

impl Welcome {
    /// What stands on the screen once requests can be answered.
    fn text(&self, ready: &Ready<'_>) -> String {
        let mut text = String::new();
        // Writing to a string cannot fail.
        let _ = self.write(ready, &mut text);
        text
    }

    fn write(&self, ready: &Ready<'_>, out: &mut String) -> std::fmt::Result {
        let url = format!("http://{}", reachable(ready.address));
        ready.notes.iter().try_for_each(|note| writeln!(out, "note: {note}"))?;
        for (name, refusals) in ready.refused {
            writeln!(out, "adapter '{name}' is refused:")?;
            refusals.iter().try_for_each(|refusal| writeln!(out, "  {refusal}"))?;
        }
        writeln!(out, "\n{} is ready after {:.1} s on {url}", ready.base, ready.took.as_secs_f64())?;
        for (name, version) in &ready.adapters {
            writeln!(out, "  adapter {name} @ {}", version.short())?;
        }
        // Of the demo adapters it is the last that the question is for.
        let model = ready.adapters.last().map_or(ready.base, |(name, _)| name.as_str());
        let (try_it, header, key) = match self.keyed {
            false => ("Try it", "", "none"),
            true => ("Try it, with one of your keys for YOUR_KEY", " -H 'authorization: Bearer YOUR_KEY'", "YOUR_KEY"),
        };
        writeln!(
            out,
            "\n{try_it}:\n\n\
             curl {url}/v1/chat/completions{header} -H 'content-type: application/json' -d \
             '{{\"model\": \"{model}\", \"messages\": [{{\"role\": \"user\", \"content\": \"{QUESTION}\"}}]}}'\n\n\
             or in Python (pip install openai):\n\n\
             from openai import OpenAI\n\
             client = OpenAI(base_url=\"{url}/v1\", api_key=\"{key}\")\n\
             for model in client.models.list():\n    \
             answer = client.chat.completions.create(model=model.id, max_tokens=80, messages=[{{\"role\": \"user\", \"content\": \"{QUESTION}\"}}])\n    \
             print(model.id, \"→\", answer.choices[0].message.content)\n"
        )?;
        let file = self.record.display();
        match self.policy {
            RecordPolicy::Full => writeln!(
                out,
                "Recorded: every question and answer, in {file} (--record metadata or --record none keeps less)."
            ),
            RecordPolicy::Metadata => {
                writeln!(
                    out,
                    "Recorded: who asked what model when, without words, in {file} (--record none keeps less)."
                )
            }
            RecordPolicy::None => {
                writeln!(out, "Recorded: that answers were given, in {file}; nothing of what was said.")
            }
        }
    }
}

const QUESTION: &str = "Hello, the hydraulic press HX-220 leaks oil again and the line has stopped.";

/// An address that a client on this machine can use.
fn reachable(address: SocketAddr) -> SocketAddr {
    if !address.ip().is_unspecified() {
        return address;
    }
    let loopback: std::net::IpAddr = match address {
        SocketAddr::V4(_) => std::net::Ipv4Addr::LOCALHOST.into(),
        SocketAddr::V6(_) => std::net::Ipv6Addr::LOCALHOST.into(),
    };
    SocketAddr::new(loopback, address.port())
}
