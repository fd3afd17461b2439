//! `tunegate serve`: loads the model, listens, and says how to try it.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
};

use tracing_subscriber::EnvFilter;

use crate::{
    app::{self, Ready},
    config::{Config, Fault, Layer, LogFormat, Settings, vllm},
    data_dir::DataDir,
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
    #[command(flatten)]
    layer: Layer,
}

/// The command's exit code: 0 after a drain, 1 if the server failed, 2 if the settings are wrong.
pub fn run(args: ServeArgs, warnings: Vec<String>) -> ExitCode {
    if args.vllm_flags {
        print!("{}", vllm::page());
        return ExitCode::SUCCESS;
    }
    let mut layer = args.layer;
    layer.model = layer.model.or(args.base);
    let mut settings = Settings::gather_here(args.config.as_deref(), layer);
    settings.warnings.extend(warnings);
    match settled(&settings, args.check_config) {
        Ok(_) if args.check_config => {
            show(&settings);
            ExitCode::SUCCESS
        }
        Ok(config) => serve(&settings, config),
        Err(faults) => {
            faults.iter().for_each(|fault| eprintln!("tunegate: {fault}"));
            ExitCode::from(2)
        }
    }
}

/// Everything settled, or every fault. Fetches the model's files if need be, unless only the settings are checked.
pub(super) fn settled(settings: &Settings, check_only: bool) -> Result<Config, Vec<Fault>> {
    match locate(settings, check_only) {
        Ok(model) => settings.settle(model),
        Err(fault) => {
            let others = settings.settle(PathBuf::new()).err().unwrap_or_default();
            Err([vec![fault], others].concat())
        }
    }
}

/// The model's files. A hub id is fetched, unless only the settings are checked.
fn locate(settings: &Settings, check_only: bool) -> Result<PathBuf, Fault> {
    let fault = |reason: String| Fault { place: settings.place("model"), reason };
    let Some(model) = &settings.said.model else {
        let reason = "no model is given: name a folder, a GGUF file or a hub id (`make run` fetches a small one)";
        return Err(Fault { place: "--model".to_owned(), reason: reason.to_owned() });
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

fn serve(settings: &Settings, config: Config) -> ExitCode {
    start_log(settings);
    settings.warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
    match start(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("tunegate: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> Result<(), String> {
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
    if config.server.api_keys.is_empty() && config.server.keys_file.is_none() && !address.ip().is_loopback() {
        tracing::warn!("{address} can be reached by others and no keys are set: everybody may ask (--api-key)");
    }
    let (policy, data_dir) = (config.record.policy, config.record.data_dir.clone());
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
            app::serve(config, socket, |ready| welcome(ready, policy, &data_dir)).await
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

/// What stands on the screen once requests can be answered.
fn welcome(ready: &Ready<'_>, policy: RecordPolicy, data_dir: &Path) {
    let url = format!("http://{}", reachable(ready.address));
    for note in ready.notes {
        println!("note: {note}");
    }
    for (name, refusals) in ready.refused {
        println!("adapter '{name}' is refused:");
        refusals.iter().for_each(|refusal| println!("  {refusal}"));
    }
    println!("\n{} is ready after {:.1} s on {url}", ready.base, ready.took.as_secs_f64());
    for (name, version) in &ready.adapters {
        println!("  adapter {name} @ {}", version.short());
    }
    let model = ready.adapters.first().map_or(ready.base, |(name, _)| name.as_str());
    println!(
        "\nTry it:\n\n\
         curl {url}/v1/chat/completions -H 'content-type: application/json' -d \
         '{{\"model\": \"{model}\", \"messages\": [{{\"role\": \"user\", \"content\": \"{QUESTION}\"}}]}}'\n\n\
         or in Python (pip install openai):\n\n\
         from openai import OpenAI\n\
         client = OpenAI(base_url=\"{url}/v1\", api_key=\"none\")\n\
         for model in client.models.list():\n    \
         answer = client.chat.completions.create(model=model.id, max_tokens=80, messages=[{{\"role\": \"user\", \"content\": \"{QUESTION}\"}}])\n    \
         print(model.id, \"→\", answer.choices[0].message.content)\n"
    );
    let file = app::record_file(data_dir);
    match policy {
        RecordPolicy::Full => println!(
            "Recorded: every question and answer, in {} (--record metadata or --record none keeps less).",
            file.display()
        ),
        RecordPolicy::Metadata => {
            println!(
                "Recorded: who asked what model when, without words, in {} (--record none keeps less).",
                file.display()
            );
        }
        RecordPolicy::None => {
            println!("Recorded: that answers were given, in {}; nothing of what was said.", file.display())
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
