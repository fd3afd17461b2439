//! What was found, as a table and as JSON.

use std::{collections::BTreeMap, fmt, time::Duration};

use serde::Serialize;

use super::{cold::Cold, names::Timed, server::Times};
use crate::cli::bench::report::Quantiles;

/// The findings of one run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    pub rounds: u32,
    pub names: u16,
    pub clients: u16,
    pub seconds: f64,
    pub prefix_tokens: u32,
    /// The versions' answers part within so many tokens.
    pub parted_within: usize,
    /// Whole answers.
    pub answered: usize,
    /// 404 while the name was unloaded.
    pub absent: usize,
    /// Anything else, 404 of a name that was served included.
    pub failed: usize,
    /// Answers that are not their version's own, from the first token to the last.
    pub mixed: usize,
    /// Answers of a version that the name did not have any more.
    pub stale: usize,
    pub with_cached_prefix: usize,
    /// Examples of what went wrong.
    pub faults: Vec<String>,
    /// Bytes of adapters in memory, the most that was seen, and what was left after the last unload.
    pub peak_bytes: u64,
    pub left_bytes: u64,
    pub changes: BTreeMap<&'static str, Changes>,
    pub cold: Cold,
    #[serde(skip)]
    pub times: BTreeMap<&'static str, Vec<Timed>>,
}

/// All changes of one kind.
#[derive(Debug, Default, Serialize)]
pub struct Changes {
    pub count: usize,
    /// Those during which a stream of that very name was between its first and its last token.
    pub met_a_stream: usize,
    /// From asking to the answer.
    pub whole_ms: Quantiles,
    /// Writing it down, synced.
    pub sync_ms: Quantiles,
    /// From then until every request sees it.
    pub flip_ms: Quantiles,
}

/// The share of the replacements that have to meet a stream.
const LEAST_MET: f64 = 0.9;

impl Report {
    /// Counts one change.
    pub fn changed(&mut self, kind: &'static str, timed: Timed, met_a_stream: bool) {
        let times = self.times.entry(kind).or_default();
        times.push(timed);
        let stage = |of: fn(&Times) -> f64| {
            let stages = times.iter().filter_map(|timed| timed.stages.as_ref());
            Quantiles::of(stages.map(|stages| Duration::from_secs_f64(of(stages) / 1e3)))
        };
        let changes = self.changes.entry(kind).or_default();
        changes.count += 1;
        changes.met_a_stream += usize::from(met_a_stream);
        changes.whole_ms = Quantiles::of(times.iter().map(|timed| timed.whole));
        changes.sync_ms = stage(|stages| stages.sync_ms);
        changes.flip_ms = stage(|stages| stages.flip_ms);
    }

    /// What did not hold.
    pub fn broken(&self) -> Vec<String> {
        let mut broken = Vec::new();
        let mut none = |count: usize, what: &str| {
            if count > 0 {
                broken.push(format!("{count} {what}"));
            }
        };
        none(self.failed, "requests failed");
        none(self.mixed, "answers are not their version's own");
        none(self.stale, "answers are of a version that the name had no more");
        none(self.left_bytes as usize, "bytes are left in memory after the last unload");
        let replaced = self.changes.get("replace").map_or((0, 0), |changes| (changes.met_a_stream, changes.count));
        if (replaced.0 as f64) < LEAST_MET * replaced.1 as f64 {
            broken.push(format!("only {} of {} replacements met a stream of their name", replaced.0, replaced.1));
        }
        if self.with_cached_prefix == 0 {
            broken.push("no answer used the prefix cache".to_owned());
        }
        broken
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { rounds, names, clients, seconds, answered, absent, failed, mixed, stale, .. } = self;
        writeln!(f, "{rounds} rounds over {names} names under {clients} clients: {seconds:.1} s")?;
        writeln!(f, "  requests   {answered} answered, {failed} failed; {absent} found their name unloaded (404)")?;
        writeln!(
            f,
            "  versions   {mixed} answers mixed, {stale} of a version that was gone; the versions part within {} tokens",
            self.parted_within
        )?;
        writeln!(
            f,
            "  prefix     {} tokens are common; {} of {answered} answers found them in the cache",
            self.prefix_tokens, self.with_cached_prefix
        )?;
        writeln!(f, "  memory     {} bytes of adapters at most, {} left at the end", self.peak_bytes, self.left_bytes)?;
        for fault in &self.faults {
            writeln!(f, "  fault: {fault}")?;
        }
        writeln!(f, "  {:<12}{:>7}{:>10}{:>9}{:>9}{:>9}", "", "", "ms: p50", "p95", "p99", "max")?;
        for (kind, changes) in &self.changes {
            let Changes { count, met_a_stream, whole_ms, sync_ms, flip_ms } = changes;
            let met = if *kind == "load" { String::new() } else { format!("; {met_a_stream} met a stream") };
            writeln!(f, "  {kind}: {count}{met}")?;
            for (stage, Quantiles { p50, p95, p99, max }) in [("whole", whole_ms), ("sync", sync_ms), ("flip", flip_ms)]
            {
                // An unload tells no stages.
                if *max > 0.0 {
                    writeln!(f, "    {stage:<17}{p50:>10.3}{p95:>9.3}{p99:>9.3}{max:>9.3}")?;
                }
            }
        }
        write!(f, "{}", self.cold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_may_break_is_named() {
        let timed = Timed { whole: Duration::from_millis(5), stages: None };
        let mut report = Report { with_cached_prefix: 1, ..Report::default() };
        for met in [true; 9].into_iter().chain([false]) {
            report.changed("replace", timed, met);
        }
        assert!(report.broken().is_empty(), "{:?}", report.broken());
        report.changed("replace", timed, false);
        (report.failed, report.mixed, report.stale, report.left_bytes) = (1, 2, 3, 4);
        report.with_cached_prefix = 0;
        assert_eq!(report.broken().len(), 6, "{:?}", report.broken());
        assert_eq!(report.changes["replace"].whole_ms.p50, 5.0);
    }
}
