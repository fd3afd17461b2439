//! `tunegate replay`: runs a recorded request again and shows the difference.

use std::{fmt, path::PathBuf, process::ExitCode, sync::Arc};

use super::{operator, serve};
use crate::{
    app,
    config::{Config, Layer, Settings},
    data_dir::DataDir,
    gateway::{Replay, ReplayedChoice},
    metrics::Metrics,
};

/// Run a recorded request again on its recorded versions, and show the difference
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The server that holds the data directory runs it, if there is one; otherwise the model is loaded here, so it has to be
named. The base and the tokenizer must be those that answered; the adapter's version is taken from the data directory,
whatever its name means today.

Exit codes: 0 the same tokens, texts and endings; 1 a difference; 2 it could not be run again.

Examples:
  tunegate replay chatcmpl-0123
  tunegate replay chatcmpl-0123 models/SmolLM2-135M-Instruct.Q4_1.gguf --data-dir data")]
pub struct ReplayArgs {
    /// The completion's id, as its answer carried it
    #[arg(value_name = "ID")]
    id: String,
    /// The base model, for when no server runs; the same as --model
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    base: Option<String>,
    /// Print the comparison as JSON
    #[arg(long)]
    json: bool,
    /// Settings from a TOML file
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    layer: Layer,
}

/// What could not be compared exits with this, so that it is not taken for a difference.
const TROUBLE: u8 = 2;

pub fn run(args: ReplayArgs) -> ExitCode {
    let mut layer = args.layer;
    layer.model = layer.model.or(args.base);
    let settings = Settings::gather_here(args.config.as_deref(), layer);
    match replay(&settings, &args.id).and_then(|replay| print(&replay, args.json)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(faults) => {
            faults.iter().for_each(|fault| eprintln!("tunegate: {fault}"));
            ExitCode::from(TROUBLE)
        }
    }
}

fn replay(settings: &Settings, id: &str) -> Result<Replay, Vec<String>> {
    let shown = |faults: Vec<crate::config::Fault>| faults.iter().map(ToString::to_string).collect::<Vec<_>>();
    // A setting that is wrong might be the data directory's.
    settings.settle(PathBuf::new()).map_err(shown)?;
    let data_dir = settings.data_dir();
    if let Some(body) = operator::post(&data_dir, &path(id)).map_err(|reason| vec![reason])? {
        return serde_json::from_slice(&body).map_err(|error| vec![format!("the server's answer: {error}")]);
    }
    if !app::record_file(&data_dir).is_file() {
        return Err(vec![format!("there is no record in {} (--data-dir)", data_dir.display())]);
    }
    let config = serve::settled(settings, false).map_err(shown)?;
    run_here(&config, id).map_err(|reason| vec![reason])
}

/// Without a server: this process holds the directory and loads the model.
fn run_here(config: &Config, id: &str) -> Result<Replay, String> {
    let _held = DataDir::hold(&config.record.data_dir, &format!("replaying {id}")).map_err(|e| e.to_string())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .map_err(|error| error.to_string())?;
    eprintln!("no server holds {}: loading {} …", config.record.data_dir.display(), config.model.path.display());
    let built = app::build(config, &Arc::new(Metrics::new())).map_err(|error| error.to_string())?;
    let replay = runtime.block_on(built.gateway.replay(id)).map_err(|error| error.to_string());
    built.stop();
    replay
}

/// The route of an id.
fn path(id: &str) -> String {
    format!("/admin/replay/{}", operator::escaped(id))
}

/// True if both answers are the same.
fn print(replay: &Replay, json: bool) -> Result<bool, Vec<String>> {
    if json {
        println!("{}", serde_json::to_string_pretty(replay).map_err(|error| vec![error.to_string()])?);
    } else {
        print!("{}", Shown(replay));
    }
    Ok(replay.is_identical())
}

/// A replay for a person. Texts are quoted and escaped: what a model said may not drive a terminal.
struct Shown<'a>(&'a Replay);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Replay { id, model, version, seed, choices } = self.0;
        writeln!(f, "{id}: {model} ({version}), seed {seed}")?;
        choices.iter().try_for_each(|choice| show_choice(choice, f))
    }
}

fn show_choice(choice: &ReplayedChoice, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let ReplayedChoice { index, recorded, replayed, identical, parts_at, max_logprob_gap } = choice;
    let tokens = recorded.tokens.len();
    write!(f, "choice {index}: ")?;
    match (identical, parts_at) {
        (true, _) if recorded.ending == replayed.ending => {
            write!(f, "identical, {tokens} tokens ({})", recorded.ending)?
        }
        (true, _) => write!(f, "identical as far as it came, {tokens} tokens ({})", recorded.ending)?,
        (false, Some(at)) => write!(f, "different from token {at} on")?,
        (false, None) => write!(f, "the same {tokens} tokens, another text or ending")?,
    }
    writeln!(f, "; log-probabilities of the same tokens differ by at most {max_logprob_gap:.1e}")?;
    if *identical {
        return Ok(());
    }
    for (name, side) in [("recorded", recorded), ("replayed", replayed)] {
        write!(f, "  {name}, {} tokens ({}): {:?}", side.tokens.len(), side.ending, side.text)?;
        match parts_at.map(|at| side.tokens.get(at)) {
            Some(Some(token)) => writeln!(f, ", token {token}")?,
            Some(None) => writeln!(f, ", no more tokens")?,
            None => writeln!(f)?,
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::Side;

    fn side(ending: &str, text: &str, tokens: &[u32]) -> Side {
        Side { ending: ending.to_owned(), text: text.to_owned(), tokens: tokens.to_vec() }
    }

    #[test]
    fn a_difference_shows_where_and_what_and_nothing_that_drives_a_terminal() {
        let same = side("stop", "hello", &[1, 2]);
        let choice = |index, recorded, replayed, identical, parts_at| ReplayedChoice {
            index,
            recorded,
            replayed,
            identical,
            parts_at,
            max_logprob_gap: 0.00025,
        };
        let replay = Replay {
            id: "chatcmpl-1".to_owned(),
            model: "poet".to_owned(),
            version: "base=0123".to_owned(),
            seed: 7,
            choices: vec![
                choice(0, same.clone(), same.clone(), true, None),
                choice(1, side("client_left", "he", &[1]), same.clone(), true, None),
                choice(2, side("length", "h\u{1b}[31m", &[1, 3, 4]), same, false, Some(1)),
            ],
        };
        let expected = "\
chatcmpl-1: poet (base=0123), seed 7
choice 0: identical, 2 tokens (stop); log-probabilities of the same tokens differ by at most 2.5e-4
choice 1: identical as far as it came, 1 tokens (client_left); log-probabilities of the same tokens differ by at most 2.5e-4
choice 2: different from token 1 on; log-probabilities of the same tokens differ by at most 2.5e-4
  recorded, 3 tokens (length): \"h\\u{1b}[31m\", token 3
  replayed, 2 tokens (stop): \"hello\", token 2
";
        assert_eq!(Shown(&replay).to_string(), expected);
    }

    #[test]
    fn an_id_cannot_lead_to_another_route() {
        assert_eq!(path("chatcmpl-a_1"), "/admin/replay/chatcmpl-a_1");
        assert_eq!(
            path("../../v1/models?x#y%2f\r\n"),
            "/admin/replay/%2E%2E%2F%2E%2E%2Fv1%2Fmodels%3Fx%23y%252f%0D%0A"
        );
    }
}
