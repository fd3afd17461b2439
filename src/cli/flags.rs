//! `tunegate flags`: what rules found in answers, and the rules themselves.

use std::{
    io::Write,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value, json};

use super::{
    operator::{Server, escaped},
    table::{moment, short, text, words},
};
use crate::{
    config::{Layer, Settings},
    feedback::{DEFAULT_RULES, inlined},
};

/// List, show and resolve what rules found in answers; try rules on the past
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The server is the one that holds --data-dir, through the socket that it keeps there, or the one at --url, with a key whose
role is reviewer or admin.

Examples:
  tunegate flags list --rule loop
  tunegate flags show flag-12
  tunegate flags resolve flag-12 confirmed --note 'the third line comes back'
  tunegate flags try rules.toml --last 5000
  tunegate flags apply --rule loop --last 5000")]
pub struct FlagsArgs {
    #[command(subcommand)]
    command: FlagsCommand,
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
    /// Settings from a TOML file, as for `serve`; the environment counts too
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum FlagsCommand {
    /// List flags, the latest first
    List {
        /// Of this rule
        #[arg(long, value_name = "NAME")]
        rule: Option<String>,
        /// On answers of this adapter
        #[arg(long, value_name = "NAME")]
        adapter: Option<String>,
        /// On this completion
        #[arg(long, value_name = "ID")]
        completion: Option<String>,
        /// Which
        #[arg(long, value_parser = ["open", "confirmed", "dismissed", "all"], default_value = "open")]
        state: String,
        /// The flag before the page
        #[arg(long, value_name = "FLAG")]
        after: Option<String>,
        /// How many
        #[arg(long, value_name = "COUNT", default_value_t = 20)]
        limit: usize,
    },
    /// Show one flag with question, answer and what was said of it
    Show { flag: String },
    /// Say whether a flag was right
    Resolve {
        #[arg(required = true)]
        flags: Vec<String>,
        /// confirmed: something was wrong; dismissed: a false alarm; open: takes the verdict back
        #[arg(long, value_parser = ["confirmed", "dismissed", "open"])]
        verdict: String,
        /// Why; it stands with the verdict
        #[arg(long, value_name = "TEXT")]
        note: Option<String>,
    },
    /// Show the rules that hold, how far they have come, and how often each was right
    Rules {
        /// Print the rules that hold by default, as a file to begin with
        #[arg(long)]
        default: bool,
    },
    /// Show what a file of rules would have found in the last answers; writes nothing
    Try {
        file: PathBuf,
        /// Answers of the past
        #[arg(long, value_name = "COUNT", default_value_t = 1000)]
        last: usize,
    },
    /// Apply the rules that hold to the last answers, in the background
    Apply {
        /// Only this rule (repeatable)
        #[arg(long, value_name = "NAME")]
        rule: Vec<String>,
        /// Answers of the past; all if absent
        #[arg(long, value_name = "COUNT")]
        last: Option<usize>,
    },
}

/// Runs the command and prints its result.
///
/// # Errors
/// A sentence for a person.
pub fn run(args: FlagsArgs) -> Result<(), String> {
    if matches!(args.command, FlagsCommand::Rules { default: true }) {
        print(DEFAULT_RULES);
        return Ok(());
    }
    let settings = Settings::gather_here(args.config.as_deref(), Layer { data_dir: args.data_dir, ..Layer::default() });
    let server = match args.url {
        Some(url) => Server::at(&url, args.key.or_else(|| settings.said.admin_key.clone())),
        None => Server::holding(&settings.data_dir()),
    };
    let nobody =
        || format!("no server holds {} (--data-dir, or --url for one elsewhere)", settings.data_dir().display());
    let mut text = String::new();
    for (value, shown) in ask(&args.command, &server)? {
        let value = value.ok_or_else(nobody)?;
        text += &if args.json { format!("{value:#}\n") } else { shown(&value) };
    }
    print(&text);
    Ok(())
}

/// A reader that has enough closes the pipe.
fn print(text: &str) {
    let _ = std::io::stdout().lock().write_all(text.as_bytes());
}

type Answered = (Option<Value>, fn(&Value) -> String);

fn ask(command: &FlagsCommand, server: &Server) -> Result<Vec<Answered>, String> {
    let one = |value: Option<Value>, shown: fn(&Value) -> String| vec![(value, shown)];
    Ok(match command {
        FlagsCommand::List { rule, adapter, completion, state, after, limit } => {
            let filters = [("rule", rule), ("adapter", adapter), ("completion_id", completion), ("after", after)];
            let mut path = format!("/v1/flags?state={state}&limit={limit}");
            for (name, value) in filters.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?))) {
                path += &format!("&{name}={}", escaped(value));
            }
            one(server.get(&path)?, shown_list)
        }
        FlagsCommand::Show { flag } => one(server.get(&format!("/v1/flags/{}", escaped(flag)))?, shown_one),
        FlagsCommand::Resolve { flags, verdict, note } => {
            let mut body = Map::from_iter([("verdict".to_owned(), json!(verdict))]);
            body.extend(note.as_ref().map(|note| ("note".to_owned(), json!(note))));
            let path = |flag: &String| format!("/v1/flags/{}", escaped(flag));
            flags
                .iter()
                .map(|flag| Ok((server.post(&path(flag), body.clone().into())?, line as fn(&Value) -> String)))
                .collect::<Result<Vec<_>, String>>()?
        }
        FlagsCommand::Rules { .. } => one(server.get("/v1/flag-rules")?, shown_rules),
        FlagsCommand::Try { file, last } => {
            let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
            // The files that rules name are here, not there.
            let rules = inlined(&text, file.parent().unwrap_or(Path::new("")))?;
            one(server.post("/v1/flag-rules/try", json!({"rules": rules, "last": last}))?, shown_tried)
        }
        FlagsCommand::Apply { rule, last } => {
            let mut body = Map::from_iter([("rules".to_owned(), json!(rule))]);
            body.extend(last.map(|last| ("last".to_owned(), json!(last))));
            one(server.post("/v1/flag-rules/apply", body.into())?, shown_applying)
        }
    })
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

/// `0.83 (5 of 6)`, or that nobody has looked yet.
fn precision(value: &Value) -> String {
    let count = |name: &str| value[name].as_u64().unwrap_or(0);
    match value["share"].as_f64() {
        Some(share) => {
            let interval: Vec<f64> = list(&value["interval"]).filter_map(Value::as_f64).collect();
            let between =
                if let [low, high] = interval[..] { format!(" [{low:.2}, {high:.2}]") } else { String::new() };
            format!("{share:.2}{between} of {} verdicts", count("confirmed") + count("dismissed"))
        }
        None => "no verdicts yet".to_owned(),
    }
}

fn line(flag: &Value) -> String {
    let adapter = if flag["adapter"].is_null() {
        text(&flag["model"])
    } else {
        format!("{}@{}", text(&flag["adapter"]), short(&flag["version"]))
    };
    format!(
        "{:<10} {}  {:<16} {:<28} {}\n{:11}{}, choice {}, {}\n",
        text(&flag["id"]),
        moment(&flag["at"]),
        text(&flag["rule"]),
        adapter,
        text(&flag["state"]),
        "",
        text(&flag["completion_id"]),
        flag["choice_index"],
        text(&flag["reason"]),
    )
}

fn shown_list(value: &Value) -> String {
    let mut out: String = list(&value["data"]).map(line).collect();
    if out.is_empty() {
        return "no flags\n".to_owned();
    }
    if list(&value["data"]).any(|flag| text(&flag["reason"]).contains("log-probability")) {
        out += &format!("\n{}\n", text(&value["note"]));
    }
    if value["has_more"] == true {
        out += &format!("more: --after {}\n", text(&value["last_id"]));
    }
    out
}

fn shown_one(flag: &Value) -> String {
    let mut out = line(flag);
    out += &format!(
        "\nrule        {}@{}, precision {}\n",
        text(&flag["rule"]),
        short(&flag["rule_version"]),
        precision(&flag["precision"])
    );
    if let Some(resolved) = flag["resolved"].as_object() {
        let note = if resolved["note"].is_null() { String::new() } else { format!(": {}", text(&resolved["note"])) };
        let (verdict, by) = (text(&resolved["verdict"]), text(&resolved["by"]));
        out += &format!("resolved    {verdict} by {by}, {}{note}\n", moment(&resolved["at"]));
    }
    for other in list(&flag["others"]) {
        out += &format!("also        {} {}: {}\n", text(&other["id"]), text(&other["rule"]), text(&other["reason"]));
    }
    for prompt in list(&flag["question"]) {
        match (&prompt["messages"], &prompt["text"]) {
            (Value::Array(messages), _) => {
                for message in messages {
                    out += &format!("\n[{}]\n{}\n", text(&message["role"]), words(&message["content"]));
                }
            }
            (_, prompt @ Value::String(_)) => out += &format!("\n[prompt]\n{}\n", words(prompt)),
            _ => {}
        }
    }
    match &flag["answer"] {
        answer @ Value::String(_) => out += &format!("\n[answer, {}]\n{}\n", text(&flag["ending"]), words(answer)),
        _ => out += &format!("\n[answer, {}] its words are not on record\n", text(&flag["ending"])),
    }
    for said in list(&flag["feedback"]) {
        out += &format!("\n[{} by {}] {}", text(&said["metric_name"]), text(&said["source"]), said["value"]);
        for name in ["comment", "correction"] {
            if said[name].is_string() {
                out += &format!("\n{name}: {}", words(&said[name]));
            }
        }
        out.push('\n');
    }
    out
}

fn shown_rules(value: &Value) -> String {
    let mut out = String::new();
    for rule in list(&value["data"]).filter(|rule| rule["in_force"] == true) {
        out += &format!(
            "{:<18} {:<15} {}  {:>6} flags  precision {}\n",
            text(&rule["name"]),
            text(&rule["kind"]),
            short(&rule["version"]),
            rule["flags"],
            precision(&rule["precision"]),
        );
    }
    if out.is_empty() {
        out += "no rules hold\n";
    }
    let earlier = list(&value["data"]).filter(|rule| rule["in_force"] == false).count();
    if earlier > 0 {
        out += &format!("{earlier} earlier versions of rules have flags (--json shows them)\n");
    }
    for fault in list(&value["faults"]) {
        out += &format!("fault in the file, which is not in force as it stands: {}\n", text(fault));
    }
    if let Some(applying) = value["applying"].as_object() {
        out += &format!("applying rules to the past: at {} of {}\n", applying["at"], applying["to"]);
    }
    out + &format!("looked at {} of {} answers\n{}\n", value["followed"], value["durable"], text(&value["note"]))
}

fn shown_tried(value: &Value) -> String {
    let mut out = format!("{} answers of the past", value["answers"]);
    if value["without_words"].as_u64() > Some(0) {
        out += &format!(", {} without their words", value["without_words"]);
    }
    out.push('\n');
    for rule in list(&value["rules"]) {
        let share = rule["share"].as_f64().map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0));
        let interval: Vec<f64> = list(&rule["interval"]).filter_map(Value::as_f64).map(|bound| bound * 100.0).collect();
        let between = if let [low, high] = interval[..] { format!("[{low:.1}, {high:.1}]") } else { String::new() };
        out += &format!(
            "\n{:<18} {:>6} of {:<8} {share:>7} {between}\n",
            text(&rule["name"]),
            rule["found"],
            rule["looked"]
        );
        for example in list(&rule["examples"]) {
            out += &format!(
                "  {}, choice {}: {}\n",
                text(&example["completion_id"]),
                example["choice_index"],
                text(&example["reason"])
            );
        }
    }
    out + &format!("\n{}\n", text(&value["note"]))
}

fn shown_applying(value: &Value) -> String {
    let (from, to) = (value["from"].as_u64().unwrap_or(0), value["to"].as_u64().unwrap_or(0));
    format!(
        "applying the rules to {} answers in the background (tunegate flags rules shows how far)\n",
        to.saturating_sub(from)
    )
}
