//! `tunegate adapter`: what a running server serves, and changing it; or what a server would make of adapters.

mod offline;
mod shown;

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use self::offline::{Outcome, Question};
use super::operator::{Server, escaped_name};
use crate::{
    config::{Layer, Settings},
    model_files,
};

/// List, check, load, unload, roll back and release adapters of a running server
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The server is the one that holds --data-dir, through the socket that it keeps there, or the one at --url, which needs a key
where others than its own machine can connect. With --model, list and check need no server.

Examples:
  tunegate adapter list
  tunegate adapter load ticket-triage /adapters/ticket-triage-v2 --replace --expect 1a2b3c4d --why 'better on dates'
  tunegate adapter rollback ticket-triage
  tunegate adapter check adapters/ticket-triage --model models/demo.gguf")]
pub struct AdapterArgs {
    #[command(subcommand)]
    command: AdapterCommand,
    /// Ask the server at this address, without /v1, instead of the one that holds the data directory
    #[arg(long, value_name = "URL", global = true)]
    url: Option<String>,
    /// Sent as `Authorization: Bearer`; --admin-key of the settings by default
    #[arg(long, value_name = "KEY", global = true, requires = "url")]
    key: Option<String>,
    /// The data directory of the server (default: data)
    #[arg(long, value_name = "DIR", global = true, conflicts_with = "url")]
    data_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long, global = true)]
    json: bool,
    /// The base model, as for `serve`: list and check without a server
    #[arg(long, global = true)]
    model: Option<String>,
    /// Settings from a TOML file, as for `serve`; the environment counts too
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
    /// Without a server: a folder whose subfolders are adapters (repeatable)
    #[arg(long, value_name = "DIR", global = true)]
    adapter_dir: Vec<PathBuf>,
    /// Without a server: an adapter by name (repeatable)
    #[arg(long, value_name = "NAME=PATH", global = true)]
    lora_modules: Vec<String>,
    /// Without a server: largest rank that is accepted
    #[arg(long, value_name = "RANK", global = true)]
    max_lora_rank: Option<usize>,
}

#[derive(Debug, clap::Subcommand)]
enum AdapterCommand {
    /// List every adapter: its version, where it is, who manages it; or why it is refused
    List,
    /// Print what each folder would change in the base, or every reason why it is refused; the exit code is 1 then
    Check {
        /// PEFT folders: below the server's --adapter-root, or anywhere with --model
        #[arg(required = true)]
        folders: Vec<PathBuf>,
    },
    /// Give a name an adapter, or another version in its place
    Load {
        name: String,
        /// A folder on the server's machine, below its --adapter-root: absolute, or relative to it
        path: PathBuf,
        /// Take the place of the version that the name has
        #[arg(long)]
        replace: bool,
        /// Keep its weights in memory, or no longer (--pin=false)
        #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
        pin: Option<bool>,
        /// A suite below the server's --suite-dir: the new version must not be worse by it than the one in force
        #[arg(long, value_name = "NAME")]
        suite: Option<String>,
        #[command(flatten)]
        change: Change,
    },
    /// Take a name away; answers under way end on its version
    Unload {
        name: String,
        #[command(flatten)]
        change: Change,
    },
    /// Give a name a version back that it had
    Rollback {
        name: String,
        /// 6 or more digits of the version; one step back if absent
        #[arg(long, value_name = "VERSION")]
        to: Option<String>,
        #[command(flatten)]
        change: Change,
    },
    /// End a name's hold: the file of desired adapters may move it again
    Release {
        name: String,
        #[command(flatten)]
        change: Change,
    },
    /// Print a name's versions and everything that was done to it
    History { name: String },
}

/// What every change may say.
#[derive(Debug, clap::Args)]
struct Change {
    /// Refuse unless the name has this version now (6 or more digits, or `none`)
    #[arg(long, value_name = "VERSION")]
    expect: Option<String>,
    /// Why; it stands in the history
    #[arg(long, value_name = "TEXT")]
    why: Option<String>,
}

/// Runs the command and prints its result. An error is for a person, one line for each fault.
pub fn run(args: AdapterArgs) -> Result<(), String> {
    let without_server = args.model.is_some();
    let flags = Layer {
        model: args.model,
        data_dir: args.data_dir,
        adapter_dir: (!args.adapter_dir.is_empty()).then_some(args.adapter_dir),
        lora_modules: (!args.lora_modules.is_empty()).then_some(args.lora_modules),
        max_lora_rank: args.max_lora_rank,
        ..Layer::default()
    };
    let settings = Settings::gather_here(args.config.as_deref(), flags);
    let outcome = if without_server {
        offline(args.command, args.json, &settings)?
    } else {
        let server = match args.url {
            Some(url) => Server::at(&url, args.key.or_else(|| settings.said.admin_key.clone())),
            None => Server::holding(&settings.data_dir()),
        };
        match remote(&args.command, args.json, &server)? {
            Some(outcome) => outcome,
            // Nobody is there to ask, but what is known is enough.
            None if settings.said.model.is_some() => offline(args.command, args.json, &settings)?,
            None => {
                let dir = settings.data_dir();
                return Err(format!(
                    "no server holds {} (--data-dir, or --url for one elsewhere; --model lists and checks without a server)",
                    dir.display()
                ));
            }
        }
    };
    let Outcome { text, refused } = outcome;
    // A reader that has enough closes the pipe.
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
    refused.map_or(Ok(()), Err)
}

fn offline(command: AdapterCommand, json: bool, settings: &Settings) -> Result<Outcome, String> {
    let question = match command {
        AdapterCommand::List => Question::List,
        AdapterCommand::Check { folders } => Question::Check { folders },
        AdapterCommand::Load { .. }
        | AdapterCommand::Unload { .. }
        | AdapterCommand::Rollback { .. }
        | AdapterCommand::Release { .. }
        | AdapterCommand::History { .. } => {
            return Err("only list and check work without a server; leave --model out".to_owned());
        }
    };
    let model = settings.said.model.as_deref().unwrap_or_default();
    let path = model_files::locate(model, settings, false).map_err(|error| error.to_string())?;
    let config = settings.settle(path).map_err(|faults| {
        let lines: Vec<String> = faults.iter().map(ToString::to_string).collect();
        lines.join("\ntunegate: ")
    })?;
    offline::outcome(&question, json, &config.adapters, &config.model.path)
}

/// `None` if no server holds the data directory.
fn remote(command: &AdapterCommand, json: bool, server: &Server) -> Result<Option<Outcome>, String> {
    let done = |value: Value, shown: fn(&Value) -> String| {
        Some(Outcome { text: if json { format!("{value:#}\n") } else { shown(&value) }, refused: None })
    };
    let answered = match command {
        AdapterCommand::List => server.get("/v1/adapters")?.and_then(|value| done(value, shown::list)),
        AdapterCommand::Check { folders } => return check(folders, json, server),
        AdapterCommand::Load { name, path, replace, pin, suite, change } => {
            let mut body = change.body();
            body.insert("lora_name".to_owned(), json!(name));
            body.insert("lora_path".to_owned(), json!(whole(path)));
            body.insert("load_inplace".to_owned(), json!(replace));
            body.extend(pin.map(|pin| ("pinned".to_owned(), json!(pin))));
            body.extend(suite.as_ref().map(|suite| ("suite".to_owned(), json!(suite))));
            server.post("/v1/load_lora_adapter", body.into())?.and_then(|value| done(value, shown::change))
        }
        AdapterCommand::Unload { name, change } => {
            let mut body = change.body();
            body.insert("lora_name".to_owned(), json!(name));
            server.post("/v1/unload_lora_adapter", body.into())?.and_then(|value| done(value, shown::change))
        }
        AdapterCommand::Rollback { name, to, change } => {
            let mut body = change.body();
            body.extend(to.as_ref().map(|to| ("version".to_owned(), json!(to))));
            let path = format!("/v1/adapters/{}/rollback", escaped_name(name));
            server.post(&path, body.into())?.and_then(|value| done(value, shown::change))
        }
        AdapterCommand::Release { name, change } => {
            let path = format!("/v1/adapters/{}/release", escaped_name(name));
            server.post(&path, change.body().into())?.and_then(|value| done(value, shown::released))
        }
        AdapterCommand::History { name } => {
            let path = format!("/v1/adapters/{}", escaped_name(name));
            server.get(&path)?.and_then(|value| done(value, shown::history))
        }
    };
    Ok(answered)
}

/// Every folder, also after one is refused.
fn check(folders: &[PathBuf], json: bool, server: &Server) -> Result<Option<Outcome>, String> {
    let mut checked = Vec::new();
    for folder in folders {
        let path = whole(folder);
        let Some(answer) = server.post("/v1/adapters/check", json!({"lora_path": path}))? else { return Ok(None) };
        checked.push(match answer["loadable"].as_bool() {
            Some(true) => json!({"name": path, "plan": answer["plan"]}),
            Some(false) | None => json!({"name": path, "refused": answer["refused"]}),
        });
    }
    let count = checked.iter().filter(|one| one.get("refused").is_some()).count();
    let refused = (count > 0).then(|| format!("{count} of {} refused", checked.len()));
    let text = if json { format!("{:#}\n", Value::from(checked)) } else { shown::checked(&checked) };
    Ok(Some(Outcome { text, refused }))
}

impl Change {
    fn body(&self) -> Map<String, Value> {
        let said = [("expected_version", &self.expect), ("why", &self.why)];
        said.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value.as_ref()?)))).collect()
    }
}

/// A folder that is here, by its whole path; anything else as it was given, for the server to find below its root.
fn whole(path: &Path) -> String {
    let path = path.canonicalize().ok().filter(|path| path.is_dir()).unwrap_or_else(|| path.to_owned());
    path.display().to_string()
}
