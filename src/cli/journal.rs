//! `tunegate journal`: reads, exports, fills and cleans the record, through the server that holds it or, where there is none,
//! here.

mod desk;
mod shown;

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

use self::desk::Desk;
use crate::{
    config::{Layer, Settings},
    feedback::export::Shape,
    journal::Format,
    terms::Moment,
};

/// Look at the record, export it, fill it from other logs, and erase a user from it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The server that holds --data-dir is asked, through the socket that it keeps there, or the one at --url, which needs a key
with the role reviewer (admin for import, erase and access). Without a server the record is opened here. Whoever looks is
put on record: `tunegate journal access`.

Examples:
  tunegate journal tail
  tunegate journal search --adapter ticket-triage --since 7d --ending length
  tunegate journal export --format parquet --out answers.parquet --split held_out
  tunegate journal import old-logs.jsonl --map prompt=question --map answer=reply.text
  tunegate journal erase --user customer-9")]
pub struct JournalArgs {
    #[command(subcommand)]
    command: JournalCommand,
    /// Ask the server at this address, without /v1, instead of the one that holds the data directory
    #[arg(long, value_name = "URL", global = true)]
    url: Option<String>,
    /// Sent as `Authorization: Bearer`; --admin-key of the settings by default
    #[arg(long, value_name = "KEY", global = true, requires = "url")]
    key: Option<String>,
    /// The data directory (default: data)
    #[arg(long, value_name = "DIR", global = true, conflicts_with = "url")]
    data_dir: Option<PathBuf>,
    /// Print JSON, one line for each
    #[arg(long, global = true)]
    json: bool,
    /// Settings from a TOML file, as for `serve`; the environment counts too
    #[arg(long, value_name = "FILE", global = true)]
    config: Option<PathBuf>,
}

#[derive(Debug, clap::Subcommand)]
enum JournalCommand {
    /// Print answers as they become durable, until it is interrupted
    Tail {
        /// Begin with the whole record, and not with what comes from now on
        #[arg(long)]
        all: bool,
    },
    /// Print one request with its choices, token by token
    Show {
        /// The completion's id
        id: String,
    },
    /// Print the answers that fit, the latest first
    Search {
        #[command(flatten)]
        filters: Filters,
        /// How many at most
        #[arg(long, value_name = "COUNT", default_value_t = 20)]
        limit: usize,
    },
    /// Write the answers that fit into a file, the oldest first
    Export {
        #[command(flatten)]
        filters: Filters,
        /// jsonl (a request a line), csv or parquet (a choice a row); by the file's name if absent. With --flagged: jsonl (a
        /// choice a line), or openai or trl (training rows of corrections by people; never of held-out or audited answers)
        #[arg(long, value_parser = format)]
        format: Option<FileFormat>,
        /// Only flagged answers, with their flags
        #[arg(long)]
        flagged: bool,
        /// With --flagged: of this rule
        #[arg(long, value_name = "NAME", requires = "flagged")]
        rule: Option<String>,
        /// With --flagged: open, confirmed, dismissed or all
        #[arg(long, value_name = "STATE", requires = "flagged")]
        state: Option<String>,
        /// The file; standard output if absent
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
        /// Leave messages and texts out
        #[arg(long)]
        no_content: bool,
        /// With ids of tokens, their scores, and the sketch of the prompt (emb_0 to emb_63 in tables)
        #[arg(long)]
        scores: bool,
    },
    /// Put answers of other programs on record, marked as imported: lines of JSON in OpenAI's shapes, or any other with --map
    Import {
        /// The log; - is standard input
        file: PathBuf,
        /// Where a part of a row is: PART=PATH, as in answer=response.text (repeatable)
        #[arg(long, value_name = "PART=PATH")]
        map: Vec<String>,
        /// Tells one log from another; the file's name by default
        #[arg(long, value_name = "NAME")]
        source: Option<String>,
    },
    /// Take a user's content and names out of the record; the facts stay
    Erase {
        /// As the client named it: `user` or `safety_identifier`
        #[arg(long)]
        user: String,
    },
    /// Print who has looked at recorded content, the latest first
    Access {
        /// A time, or how long ago: 7d, 24h, 30m
        #[arg(long, value_name = "TIME")]
        since: Option<String>,
        /// How many at most
        #[arg(long, value_name = "COUNT", default_value_t = 20)]
        limit: usize,
    },
}

/// Which answers are wanted.
#[derive(Debug, clap::Args)]
struct Filters {
    #[arg(long)]
    user: Option<String>,
    #[arg(long, value_name = "ID")]
    conversation: Option<String>,
    /// As answers echo it
    #[arg(long)]
    model: Option<String>,
    #[arg(long, value_name = "NAME")]
    adapter: Option<String>,
    /// 6 or more digits of the adapter's version
    #[arg(id = "adapter_version", long = "adapter-version", value_name = "VERSION")]
    version: Option<String>,
    /// The API key's name
    #[arg(long = "of-key", value_name = "NAME")]
    of_key: Option<String>,
    /// train, held_out or audit
    #[arg(long)]
    split: Option<String>,
    /// served, replayed, evaluated or imported
    #[arg(long)]
    origin: Option<String>,
    /// stop, length, cut_off, failed or client_left
    #[arg(long)]
    ending: Option<String>,
    /// A time, or how long ago: 7d, 24h, 30m
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    #[arg(long, value_name = "TIME")]
    until: Option<String>,
    /// Words as they stand in a message, prompt or answer
    #[arg(long, value_name = "WORDS")]
    contains: Option<String>,
}

impl Filters {
    fn pairs(&self) -> Result<Vec<(&'static str, String)>, String> {
        let plain = [
            ("user", &self.user),
            ("conversation", &self.conversation),
            ("model", &self.model),
            ("adapter", &self.adapter),
            ("version", &self.version),
            ("key", &self.of_key),
            ("split", &self.split),
            ("origin", &self.origin),
            ("ending", &self.ending),
            ("contains", &self.contains),
        ];
        let mut pairs: Vec<_> =
            plain.into_iter().filter_map(|(name, value)| Some((name, value.as_ref()?.clone()))).collect();
        for (name, value) in [("since", &self.since), ("until", &self.until)] {
            if let Some(value) = value {
                pairs.push((name, moment(value)?));
            }
        }
        Ok(pairs)
    }
}

/// A time as it is asked for: what is some days, hours or minutes ago becomes Unix milliseconds.
fn moment(text: &str) -> Result<String, String> {
    let ago = text.char_indices().next_back().and_then(|(at, unit)| {
        let minutes = match unit {
            'd' => 24 * 60,
            'h' => 60,
            'm' => 1,
            _ => return None,
        };
        text[..at].parse::<i64>().ok().map(|count| count.saturating_mul(minutes * 60_000))
    });
    match ago {
        Some(ago) if ago >= 0 => Ok(Moment::unix_ms().saturating_sub(ago).max(0).to_string()),
        Some(_) => Err(format!("'{text}' is no time")),
        None => Ok(text.to_owned()),
    }
}

/// A kind of file, as it is asked for.
#[derive(Clone, Copy, Debug)]
enum FileFormat {
    Record(Format),
    /// Only of what is flagged.
    Training(Shape),
}

fn format(text: &str) -> Result<FileFormat, String> {
    match (Format::parse(text), Shape::parse(text)) {
        (Some(format), _) => Ok(FileFormat::Record(format)),
        (None, Some(shape)) => Ok(FileFormat::Training(shape)),
        (None, None) => Err("it is jsonl, csv or parquet; with --flagged jsonl, openai or trl".to_owned()),
    }
}

/// What a flagged export is asked for.
fn flagged(
    filters: &Filters,
    format: Option<FileFormat>,
    (rule, state): (Option<String>, Option<String>),
) -> Result<Vec<(&'static str, String)>, String> {
    let shape = match format {
        None | Some(FileFormat::Record(Format::Jsonl)) => Shape::Plain,
        Some(FileFormat::Training(shape)) => shape,
        Some(FileFormat::Record(format @ (Format::Csv | Format::Parquet))) => {
            return Err(format!("--flagged writes jsonl, openai or trl, not {}", format.as_str()));
        }
    };
    let mut pairs = filters.pairs()?;
    if let Some((name, _)) = pairs.iter().find(|(name, _)| *name != "adapter") {
        return Err(format!("--{name} does not go with --flagged; --adapter, --rule and --state do"));
    }
    pairs.push(("format", shape.as_str().to_owned()));
    pairs.extend(rule.map(|rule| ("rule", rule)));
    pairs.extend(state.map(|state| ("state", state)));
    Ok(pairs)
}

/// Runs the command and prints its result. An error is for a person.
pub fn run(args: JournalArgs) -> Result<(), String> {
    let settings = Settings::gather_here(args.config.as_deref(), Layer { data_dir: args.data_dir, ..Layer::default() });
    let mut desk = Desk::open(args.url.as_deref(), args.key, &settings)?;
    let json = args.json;
    match args.command {
        JournalCommand::Tail { all } => tail(&desk, all, json),
        JournalCommand::Show { id } => {
            let answer = desk.show(&id)?;
            print(&if json { format!("{answer}\n") } else { shown::whole(&answer) });
            Ok(())
        }
        JournalCommand::Search { filters, limit } => search(&desk, filters.pairs()?, limit, json),
        JournalCommand::Export { filters, format, flagged: true, rule, state, out, no_content, scores } => {
            if no_content || scores {
                return Err("--no-content and --scores do not go with --flagged".to_owned());
            }
            let pairs = flagged(&filters, format, (rule, state))?;
            let summary = desk.flagged_summary(pairs.clone())?;
            written(out.as_deref(), |file| desk.flagged(pairs, file))?;
            // Beside the lines, which may go to a program.
            eprintln!("tunegate: {}", shown::left_out(&summary));
            Ok(())
        }
        JournalCommand::Export { filters, format, out, no_content, scores, .. } => {
            let format = match format {
                None => None,
                Some(FileFormat::Record(format)) => Some(format),
                Some(FileFormat::Training(shape)) => {
                    return Err(format!("--format {} needs --flagged", shape.as_str()));
                }
            };
            let mut pairs = filters.pairs()?;
            pairs.push(("content", (!no_content).to_string()));
            pairs.push(("scores", scores.to_string()));
            let named = out.as_deref().and_then(Path::extension).and_then(|kind| Format::parse(kind.to_str()?));
            let format = format.or(named).unwrap_or(Format::Jsonl);
            written(out.as_deref(), |file| desk.export(pairs, format, file))
        }
        JournalCommand::Import { file, map, source } => import(&desk, &file, &map, source, json),
        JournalCommand::Erase { user } => {
            let erasure = desk.erase(&user)?;
            print(&if json { format!("{erasure}\n") } else { shown::erasure(&erasure) });
            Ok(())
        }
        JournalCommand::Access { since, limit } => {
            let mut pairs = vec![("limit", limit.to_string())];
            if let Some(since) = since {
                pairs.push(("since", moment(&since)?));
            }
            let list = desk.access(pairs)?;
            let lines = rows(&list).iter().map(|row| if json { format!("{row}\n") } else { shown::access(row) });
            print(&lines.collect::<String>());
            Ok(())
        }
    }
}

fn rows(list: &Value) -> &[Value] {
    list["data"].as_array().map_or(&[], Vec::as_slice)
}

fn print(text: &str) {
    // A reader that has enough closes the pipe.
    let _ = io::stdout().lock().write_all(text.as_bytes());
}

fn tail(desk: &Desk, all: bool, json: bool) -> Result<(), String> {
    let mut cursor = all.then_some(0);
    loop {
        let list = desk.tail(cursor)?;
        cursor = list["cursor"].as_u64();
        for row in rows(&list) {
            let line = if json { format!("{row}\n") } else { shown::line(row) };
            if io::stdout().lock().write_all(line.as_bytes()).is_err() {
                return Ok(());
            }
        }
    }
}

fn search(desk: &Desk, pairs: Vec<(&'static str, String)>, limit: usize, json: bool) -> Result<(), String> {
    let (mut left, mut after) = (limit, None);
    while left > 0 {
        let mut pairs = pairs.clone();
        pairs.push(("limit", left.min(200).to_string()));
        pairs.extend(after.take().map(|after| ("after", after)));
        let page = desk.search(pairs)?;
        let lines = rows(&page).iter().map(|row| if json { format!("{row}\n") } else { shown::line(row) });
        print(&lines.collect::<String>());
        left = left.saturating_sub(rows(&page).len());
        match page["next"].as_str() {
            Some(next) => after = Some(next.to_owned()),
            None => break,
        }
    }
    Ok(())
}

/// Written beside its place first: a file that broke off is not taken for a whole one.
fn written(out: Option<&Path>, write: impl FnOnce(&mut dyn Write) -> Result<(), String>) -> Result<(), String> {
    let Some(out) = out else {
        return write(&mut io::stdout().lock());
    };
    let failed = |error: io::Error| format!("{}: {error}", out.display());
    let mut name = out.as_os_str().to_owned();
    name.push(".part");
    let part = PathBuf::from(name);
    let mut file = io::BufWriter::new(fs::File::create(&part).map_err(failed)?);
    let written = write(&mut file).and_then(|()| {
        let file = file.into_inner().map_err(|error| failed(error.into_error()))?;
        file.sync_all().map_err(failed)
    });
    match written {
        Ok(()) => fs::rename(&part, out).map_err(failed),
        Err(reason) => {
            // What it has is of no use.
            let _ = fs::remove_file(&part);
            Err(reason)
        }
    }
}

/// Lines sent at a time, and their bytes.
const ROWS: usize = 200;
const BYTES: usize = 1 << 20;

fn import(desk: &Desk, file: &Path, map: &[String], source: Option<String>, json: bool) -> Result<(), String> {
    let mapping = mapping(map)?;
    let failed = |error: io::Error| format!("{}: {error}", file.display());
    let source = source.unwrap_or_else(|| file.file_name().unwrap_or_default().to_string_lossy().into_owned());
    let reader: Box<dyn BufRead> = match file.to_str() {
        Some("-") => Box::new(io::stdin().lock()),
        _ => Box::new(BufReader::new(fs::File::open(file).map_err(failed)?)),
    };
    let mut sum = shown::Sum::default();
    let (mut batch, mut numbers, mut bytes) = (Vec::new(), Vec::new(), 0);
    for (number, line) in (1..).zip(reader.lines()) {
        let line = line.map_err(failed)?;
        if line.trim().is_empty() {
            continue;
        }
        match serde_json::from_str::<Value>(&line) {
            Ok(row) => {
                bytes += line.len();
                batch.push(row);
                numbers.push(number);
            }
            Err(error) => sum.refused.push((number, format!("it is no JSON: {error}"))),
        }
        if batch.len() == ROWS || bytes > BYTES {
            sum.add(&desk.import(&source, std::mem::take(&mut batch), &mapping)?, &std::mem::take(&mut numbers));
            bytes = 0;
        }
    }
    if !batch.is_empty() {
        sum.add(&desk.import(&source, batch, &mapping)?, &numbers);
    }
    print(&if json { sum.json() } else { sum.to_string() });
    if sum.refused.is_empty() { Ok(()) } else { Err(format!("{} lines were not understood", sum.refused.len())) }
}

fn mapping(map: &[String]) -> Result<Value, String> {
    let mut mapping = json!({});
    for pair in map {
        let (part, path) = pair.split_once('=').ok_or_else(|| format!("--map {pair}: it has to be PART=PATH"))?;
        mapping[part] = path.into();
    }
    Ok(mapping)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_given_as_they_are_or_as_how_long_ago() {
        let ago = |text: &str| Moment::unix_ms() - moment(text).unwrap().parse::<i64>().unwrap();
        for (text, ms) in [("2d", 172_800_000), ("3h", 10_800_000), ("0m", 0)] {
            assert!((ago(text) - ms).abs() < 60_000, "{text}");
        }
        assert_eq!(moment("2026-09-21T14:13:20Z"), Ok("2026-09-21T14:13:20Z".to_owned()));
        assert!(moment("-1d").is_err());
    }

    #[test]
    fn a_mapping_is_given_part_by_part() {
        let map = ["prompt=a.b".to_owned(), "answer=c=d".to_owned()];
        assert_eq!(mapping(&map), Ok(json!({"prompt": "a.b", "answer": "c=d"})));
        assert!(mapping(&["prompt".to_owned()]).is_err());
    }
}
