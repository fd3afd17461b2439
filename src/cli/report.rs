//! `tunegate report`: two versions of an adapter side by side.

use std::{io::Write, path::PathBuf};

use serde_json::Value;

use super::{
    operator::{Server, escaped, escaped_name},
    table::{moment, short, table, text},
};
use crate::config::{Layer, Settings};

/// Hold two versions of an adapter side by side: endings, flags, feedback, confidence, length and time
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The server is the one that holds --data-dir, through the socket that it keeps there, or the one at --url, with an admin's key.
Under 200 answers of each version it says `not enough`.

Examples:
  tunegate report ticket-triage
  tunegate report ticket-triage --versions 1a2b3c,4d5e6f --higher right --html report.html
  tunegate report ticket-triage --versions 1a2b3c,1a2b3c    (what chance alone does)")]
pub struct ReportArgs {
    /// The adapter's name, or the base's
    adapter: String,
    /// Two versions by 6 or more digits; the one in force and the one before it if absent
    #[arg(long, value_name = "A,B")]
    versions: Option<String>,
    /// Only answers of so many last hours
    #[arg(long, value_name = "HOURS")]
    hours: Option<f64>,
    /// The last answers of each version (default: 20000)
    #[arg(long, value_name = "COUNT")]
    last: Option<usize>,
    /// Feedback of this name is better where it is higher (repeatable); thumbs are
    #[arg(long, value_name = "NAME")]
    higher: Vec<String>,
    /// Feedback of this name is better where it is lower (repeatable)
    #[arg(long, value_name = "NAME")]
    lower: Vec<String>,
    /// Write a page of its own with charts
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Ask the server at this address, without /v1, instead of the one that holds the data directory
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Sent as `Authorization: Bearer`; --admin-key of the settings by default
    #[arg(long, value_name = "KEY", requires = "url")]
    key: Option<String>,
    /// The data directory of the server (default: data)
    #[arg(long, value_name = "DIR", conflicts_with = "url")]
    data_dir: Option<PathBuf>,
    /// Settings from a TOML file, as for `serve`; the environment counts too
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

/// Runs the command and prints its result.
///
/// # Errors
/// A sentence for a person.
pub fn run(args: ReportArgs) -> Result<(), String> {
    let settings =
        Settings::gather_here(args.config.as_deref(), Layer { data_dir: args.data_dir.clone(), ..Layer::default() });
    let server = match &args.url {
        Some(url) => Server::at(url, args.key.clone().or_else(|| settings.said.admin_key.clone())),
        None => Server::holding(&settings.data_dir()),
    };
    let nobody =
        || format!("no server holds {} (--data-dir, or --url for one elsewhere)", settings.data_dir().display());
    let path = path(&args)?;
    let report = server.get(&path)?.ok_or_else(nobody)?;
    if let Some(file) = &args.html {
        let page = server.text(&format!("{path}format=html"))?.ok_or_else(nobody)?;
        std::fs::write(file, page).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    let shown = if args.json { format!("{report:#}\n") } else { shown(&report) };
    // A reader that has enough closes the pipe.
    let _ = std::io::stdout().lock().write_all(shown.as_bytes());
    Ok(())
}

fn path(args: &ReportArgs) -> Result<String, String> {
    let mut path = format!("/v1/adapters/{}/report?", escaped_name(&args.adapter));
    let mut with = |name: &str, value: String| path += &format!("{name}={}&", escaped(&value));
    if let Some(versions) = &args.versions {
        with("versions", versions.clone());
    }
    if let Some(hours) = args.hours {
        let since = std::time::SystemTime::now()
            .duration_since(std::time::UNIX_EPOCH)
            .map_or(0.0, |now| now.as_secs_f64() - hours * 3600.0);
        if hours.is_nan() || hours <= 0.0 {
            return Err("--hours has to be above 0".to_owned());
        }
        with("since", format!("{:.0}", since.max(0.0)));
    }
    if let Some(last) = args.last {
        with("last", last.to_string());
    }
    for (name, names) in [("higher", &args.higher), ("lower", &args.lower)] {
        if !names.is_empty() {
            with(name, names.join(","));
        }
    }
    Ok(path)
}

fn shown(report: &Value) -> String {
    let verdict = report["verdict"].as_str().unwrap_or("").replace('_', " ");
    let mut out = format!("{}: {verdict}\n{}\n\n", text(&report["adapter"]), text(&report["summary"]));
    for side in ["first", "second"] {
        let side_value = &report[side];
        let version = if side_value["version"].is_null() { "base".to_owned() } else { short(&side_value["version"]) };
        let part =
            if side_value["part"].is_null() { String::new() } else { format!(", {}", text(&side_value["part"])) };
        out += &format!(
            "{side:<7} {version}{part}: {} answers, {} to {}\n",
            side_value["answers"],
            moment(&side_value["from"]),
            moment(&side_value["to"]),
        );
    }
    out.push('\n');
    let mut rows = vec![["", "FIRST", "", "SECOND", "", "DIFFERENCE", ""].map(str::to_owned)];
    for metric in report["metrics"].as_array().into_iter().flatten() {
        let (first, second, unit) = (&metric["first"], &metric["second"], metric["unit"].as_str().unwrap_or(""));
        let lines = sparklines(&first["course"], &second["course"]);
        rows.push([
            text(&metric["name"]),
            figure(&first["value"], unit),
            lines[0].clone(),
            figure(&second["value"], unit),
            lines[1].clone(),
            difference(metric, unit),
            metric["verdict"].as_str().unwrap_or("").replace('_', " "),
        ]);
    }
    out += &table(&rows);
    out.push('\n');
    for note in report["notes"].as_array().into_iter().flatten() {
        out += &format!("{}\n", text(note));
    }
    out
}

fn figure(value: &Value, unit: &str) -> String {
    let Some(value) = value.as_f64() else { return "-".to_owned() };
    match unit {
        "share" => format!("{:.1} %", value * 100.0),
        "tokens" => format!("{value:.1}"),
        "seconds" => format!("{value:.3} s"),
        _ => format!("{value:.3}"),
    }
}

fn difference(metric: &Value, unit: &str) -> String {
    let bound = |value: f64| match unit {
        "share" => format!("{:+.1}", value * 100.0),
        "tokens" => format!("{value:+.1}"),
        "seconds" => format!("×{value:.2}"),
        _ => format!("{value:+.3}"),
    };
    let Some(difference) = metric["difference"].as_f64() else { return "-".to_owned() };
    let between = match (metric["interval"][0].as_f64(), metric["interval"][1].as_f64()) {
        (Some(low), Some(high)) => format!(" [{}, {}]", bound(low), bound(high)),
        _ => String::new(),
    };
    bound(difference) + &between
}

/// Both courses on one scale.
fn sparklines(first: &Value, second: &Value) -> [String; 2] {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let read = |course: &Value| -> Vec<Option<f64>> {
        course.as_array().map_or(Vec::new(), |points| points.iter().map(Value::as_f64).collect())
    };
    let both = [read(first), read(second)];
    let points = both.iter().flatten().flatten();
    let (low, high) = points.fold((f64::MAX, f64::MIN), |(low, high), point| (low.min(*point), high.max(*point)));
    both.map(|course| {
        let bar = |point: &Option<f64>| match point {
            None => ' ',
            Some(_) if high <= low => BARS[0],
            Some(point) => BARS[(((point - low) / (high - low) * 8.0) as usize).min(7)],
        };
        // Half as many, so that a table fits into a terminal.
        course.iter().step_by(2).map(bar).collect()
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_is_a_table_with_both_courses_on_one_scale() {
        let side = |version: &str| json!({"version": version, "answers": 300, "from": 0, "to": 60});
        let course = |scale: f64| (0..24).map(|at| f64::from(at) * scale).collect::<Vec<f64>>();
        let report = json!({
            "adapter": "poet", "verdict": "cannot_tell", "summary": "cannot tell", "first": side("a".repeat(64).as_str()),
            "second": side("b".repeat(64).as_str()), "notes": ["a note"],
            "metrics": [{
                "name": "flags/loop", "unit": "share", "verdict": "worse", "difference": 0.08, "interval": [0.02, 0.14],
                "first": {"value": 0.01, "course": course(0.5)}, "second": {"value": 0.09, "course": course(1.0)},
            }, {
                "name": "times/total", "unit": "seconds", "verdict": "not_enough", "difference": null, "interval": null,
                "first": {"value": null, "course": [null]}, "second": {"value": 1.5, "course": [1.5]},
            }],
        });
        let shown = shown(&report);
        for part in [
            "poet: cannot tell",
            "first   aaaaaaaaaaaa: 300 answers",
            "1.0 %",
            "+8.0 [+2.0, +14.0]",
            "worse",
            "1.500 s",
            "a note",
        ] {
            assert!(shown.contains(part), "{part} is not in\n{shown}");
        }
        let line = shown.lines().find(|line| line.starts_with("flags/loop")).unwrap();
        assert!(line.contains('▁') && line.contains('▄') && line.contains('█'), "{line}");
    }
}
