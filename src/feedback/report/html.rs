//! A report as one page: no script, nothing fetched, readable by itself in ten years.

use std::fmt::Write;

use super::{Figure, Metric, Report, Side, Unit, Verdict};
use crate::terms::Moment;

const STYLE: &str = "
body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1c2330;background:#fff}
h1{font-size:1.4rem;margin:0 0 .2rem}p{margin:.4rem 0}.muted{color:#667}
.verdict{display:inline-block;padding:.1rem .6rem;border-radius:1rem;font-weight:600;background:#e8eaef}
.worse{background:#fbd9d6;color:#8b1a10}.better{background:#d7f0dc;color:#14602b}.mixed{background:#fdeccb;color:#7a4b00}
.differs{background:#dfe8fb;color:#1f3f86}
table{border-collapse:collapse;width:100%;margin:1rem 0}th,td{text-align:left;padding:.35rem .6rem;border-bottom:1px solid #e3e6ec;vertical-align:middle}
th{font-weight:600;color:#556}td.n{font-variant-numeric:tabular-nums;white-space:nowrap}
svg{display:block}.one{stroke:#7b8aa5}.two{stroke:#d06a1f}.dot1{fill:#7b8aa5}.dot2{fill:#d06a1f}
@media(prefers-color-scheme:dark){body{background:#14171d;color:#dfe3ea}th,.muted{color:#9aa3b2}td,th{border-color:#2a303a}.verdict{background:#2a303a}
.worse{background:#58211c;color:#ffc9c4}.better{background:#173f24;color:#bdf0c9}.mixed{background:#4d3a12;color:#ffe1a6}.differs{background:#1e3158;color:#c4d6ff}}
";
/// Of a line, in pixels.
const WIDTH: f64 = 150.0;
const HEIGHT: f64 = 34.0;
/// Of an interval.
const SPAN: f64 = 190.0;

pub fn page(report: &Report) -> String {
    let mut out = String::new();
    // Writing to a string cannot fail.
    let _ = write(report, &mut out);
    out
}

fn write(report: &Report, out: &mut String) -> std::fmt::Result {
    let (adapter, summary) = (escaped(&report.adapter), escaped(&report.summary));
    write!(
        out,
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>{adapter}: {}</title><style>{STYLE}</style></head><body>\n\
         <h1>{adapter}</h1><p><span class=\"verdict {}\">{}</span> {summary}</p>\n",
        report.verdict.words(),
        class(report.verdict),
        report.verdict.words(),
    )?;
    write!(out, "<table><tr><th></th><th>version</th><th>answers</th><th>from</th><th>to</th></tr>")?;
    for (side, name, dot) in [(&report.first, "first", "dot1"), (&report.second, "second", "dot2")] {
        side_row(side, name, dot, out)?;
    }
    write!(
        out,
        "</table>\n<table><tr><th>figure</th><th>first</th><th>second</th><th>course</th><th>difference</th>\
         <th>interval</th><th></th></tr>\n"
    )?;
    for metric in &report.metrics {
        metric_row(metric, out)?;
    }
    out.push_str("</table>\n");
    for note in &report.notes {
        writeln!(out, "<p class=\"muted\">{}</p>", escaped(note))?;
    }
    writeln!(
        out,
        "<p class=\"muted\">tunegate {}, {}</p></body></html>",
        env!("CARGO_PKG_VERSION"),
        moment(Some(report.at))
    )
}

fn side_row(side: &Side, name: &str, dot: &str, out: &mut String) -> std::fmt::Result {
    write!(
        out,
        "<tr><td><svg width=\"10\" height=\"10\" style=\"display:inline\"><circle class=\"{dot}\" cx=\"5\" cy=\"5\" r=\"5\"/></svg> {name}</td>\
         <td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td></tr>",
        escaped(&side.label()),
        side.answers,
        moment(side.from),
        moment(side.to),
    )
}

fn metric_row(metric: &Metric, out: &mut String) -> std::fmt::Result {
    let note = metric.note.map_or_else(String::new, |note| format!(" title=\"{}\"", escaped(note)));
    let mark = if metric.note.is_some() { " *" } else { "" };
    writeln!(
        out,
        "<tr{note}><td>{}{mark}</td><td class=\"n\">{}</td><td class=\"n\">{}</td><td>{}</td><td class=\"n\">{}</td><td>{}</td>\
         <td><span class=\"verdict {}\">{}</span></td></tr>",
        escaped(&metric.name),
        figure(&metric.first, metric.unit),
        figure(&metric.second, metric.unit),
        lines(&metric.first, &metric.second),
        difference(metric),
        interval(metric),
        class(metric.verdict),
        metric.verdict.words(),
    )
}

fn class(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Better => "better",
        Verdict::Worse => "worse",
        Verdict::Mixed => "mixed",
        Verdict::Differs => "differs",
        Verdict::CannotTell | Verdict::NotEnough => "",
    }
}

fn figure(figure: &Figure, unit: Unit) -> String {
    let Some(value) = figure.value else { return "–".to_owned() };
    let shown = match unit {
        Unit::Share => format!("{:.1} %", value * 100.0),
        Unit::Tokens => format!("{value:.1}"),
        Unit::Nats => format!("{value:.3}"),
        Unit::Seconds => format!("{value:.3} s"),
        Unit::Number => format!("{value:.3}"),
    };
    format!("{shown}<br><span class=\"muted\">of {}</span>", figure.of)
}

fn bound(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Share => format!("{:+.1}", value * 100.0),
        Unit::Tokens => format!("{value:+.1}"),
        Unit::Nats | Unit::Number => format!("{value:+.3}"),
        Unit::Seconds => format!("×{value:.2}"),
    }
}

fn difference(metric: &Metric) -> String {
    let Some(difference) = metric.difference else { return "–".to_owned() };
    let points = if metric.unit == Unit::Share { " points" } else { "" };
    let between = metric.interval.map_or_else(String::new, |[low, high]| {
        format!("<br><span class=\"muted\">[{}, {}]</span>", bound(low, metric.unit), bound(high, metric.unit))
    });
    format!("{}{points}{between}", bound(difference, metric.unit))
}

/// Both courses in one frame.
fn lines(first: &Figure, second: &Figure) -> String {
    let points = first.course.iter().chain(&second.course).flatten();
    let (low, high) = points.fold((f64::MAX, f64::MIN), |(low, high), point| (low.min(*point), high.max(*point)));
    if low > high {
        return String::new();
    }
    let span = if high > low { high - low } else { 1.0 };
    let line = |figure: &Figure, class: &str| {
        let steps = figure.course.len().saturating_sub(1).max(1) as f64;
        let points: Vec<String> = figure
            .course
            .iter()
            .enumerate()
            .filter_map(|(at, point)| {
                let point = (*point)?;
                let (x, y) =
                    (2.0 + at as f64 / steps * (WIDTH - 4.0), HEIGHT - 3.0 - (point - low) / span * (HEIGHT - 6.0));
                Some(format!("{x:.1},{y:.1}"))
            })
            .collect();
        format!("<polyline class=\"{class}\" fill=\"none\" stroke-width=\"1.5\" points=\"{}\"/>", points.join(" "))
    };
    format!(
        "<svg width=\"{WIDTH}\" height=\"{HEIGHT}\" role=\"img\" aria-label=\"course of both\">{}{}</svg>",
        line(first, "one"),
        line(second, "two")
    )
}

/// The interval with the place of no difference.
fn interval(metric: &Metric) -> String {
    let (Some([low, high]), Some(middle)) = (metric.interval, metric.difference) else { return String::new() };
    // Ratios are drawn by their logarithms: twice and half are as far from the middle.
    let place = |value: f64| if metric.unit == Unit::Seconds { value.max(1e-9).ln() } else { value };
    let (low, middle, high) = (place(low), place(middle), place(high));
    let reach = low.abs().max(high.abs()).max(1e-12) * 1.1;
    let x = |value: f64| SPAN / 2.0 + value / reach * (SPAN / 2.0 - 4.0);
    format!(
        "<svg width=\"{SPAN}\" height=\"22\" role=\"img\" aria-label=\"interval of the difference\">\
         <line x1=\"{0:.1}\" y1=\"2\" x2=\"{0:.1}\" y2=\"20\" stroke=\"#9aa3b2\" stroke-dasharray=\"2 2\"/>\
         <line class=\"two\" stroke-width=\"2\" x1=\"{1:.1}\" y1=\"11\" x2=\"{2:.1}\" y2=\"11\"/>\
         <circle class=\"dot2\" cx=\"{3:.1}\" cy=\"11\" r=\"3.5\"/></svg>",
        x(0.0),
        x(low),
        x(high),
        x(middle)
    )
}

fn moment(seconds: Option<i64>) -> String {
    seconds.map_or_else(|| "–".to_owned(), |seconds| Moment::from_unix(seconds).to_string())
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::{
        super::{Drawn, Good},
        *,
    };
    use crate::terms::Digest;

    #[test]
    fn a_page_needs_nothing_else_and_no_name_can_break_out_of_it() {
        let side =
            || Side { version: None, base: Digest::of(b"b"), part: None, answers: 300, from: Some(0), to: Some(60) };
        let drawn = |name: &str, unit: Unit, values: [Vec<f64>; 2]| Drawn {
            name: name.to_owned(),
            unit,
            good: Some(Good::Lower),
            counts: true,
            values,
            note: Some("a \"note\""),
        };
        let half: Vec<f64> = (0..300).map(|at| f64::from(at % 2)).collect();
        let drawn = vec![
            drawn("feedback/<script>", Unit::Share, [vec![0.0; 300], half.clone()]),
            drawn("times/total", Unit::Seconds, [half.clone(), half]),
            drawn("empty", Unit::Number, [Vec::new(), Vec::new()]),
        ];
        let report = Report::of("<b>poet".to_owned(), 0, [side(), side()], drawn, vec!["<i>".to_owned()]);
        let page = page(&report);
        for absent in ["<script", "<b>poet", "<i>", "http:", "https:", "src=", "@import", "url("] {
            assert!(!page.contains(absent), "{absent}");
        }
        for there in
            ["<svg", "<polyline", "feedback/&lt;script&gt;", "worse", "+50.0 points", "title=\"a &quot;note&quot;\""]
        {
            assert!(page.contains(there), "{there}");
        }
        assert!(!page.contains("NaN") && !page.contains("inf"), "no figure of nothing");
    }
}
