//! What a cold adapter takes until its first token, stage by stage, on a server that does nothing else; beside what the same
//! bytes take without us.

use std::{
    fmt,
    fs::{self, File},
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use serde::Serialize;

use super::{
    place::Place,
    server::{Changed, Server},
    streams::{Asked, Prompt},
};
use crate::{adapters::folder::WEIGHTS_FILE, terms::Hasher};

/// Medians, in milliseconds.
#[derive(Debug, Default, Serialize)]
pub struct Cold {
    pub adapters: usize,
    pub rank: usize,
    pub file_bytes: u64,
    pub packed_bytes: u64,
    /// A load by the API of files that the server has never seen, then a first question.
    pub load: Vec<Stage>,
    pub load_to_first_token_ms: f64,
    /// The first question to an adapter that is kept on disk and not in memory.
    pub asked: Vec<Stage>,
    pub asked_to_first_token_ms: f64,
    /// The same question once it is in memory.
    pub warm_first_token_ms: f64,
}

/// One stage, and what the same bytes take without us, where that can be told.
#[derive(Debug, Serialize)]
pub struct Stage {
    pub name: &'static str,
    pub ms: f64,
    pub bound: Option<Bound>,
}

#[derive(Debug, Serialize)]
pub struct Bound {
    pub what: &'static str,
    pub ms: f64,
}

/// One adapter's measurements.
struct One {
    changed: Changed,
    whole: Duration,
    warm: Duration,
    asked: Duration,
    asked_load: super::server::LoadTimes,
    again: Duration,
}

const NAME: &str = "cold";

/// Loads each of the cold adapters and asks it for a token, then asks for it again once its memory is freed.
pub fn measure(server: &Server, place: &Place, prompt: &Prompt) -> Result<Cold, String> {
    // A prompt of one block or less: the prefix cache changes nothing.
    let prompt = &prompt.tokens[prompt.tokens.len().saturating_sub(8)..];
    let mut all = Vec::new();
    let mut bounds = Vec::new();
    for adapter in place.cold() {
        bounds.push(Bounds::of(&place.root().join(&adapter.path))?);
        let begin = Instant::now();
        let changed = server.load(NAME, adapter, true)?;
        let whole = begin.elapsed();
        let warm = first_token(server, NAME, prompt)?;
        server.unload(NAME)?;
        server.bytes_when_quiet(0, super::PATIENCE)?;
        // Nothing points at it, so it is brought into memory for this question alone.
        let digits = format!("{NAME}@{}", changed.version);
        let asked = first_token(server, &digits, prompt)?;
        let asked_load = server.load_times(NAME, &changed.version)?;
        server.load(NAME, adapter, true)?;
        first_token(server, NAME, prompt)?;
        let again = first_token(server, NAME, prompt)?;
        server.unload(NAME)?;
        all.push(One { changed, whole, warm, asked, asked_load, again });
    }
    Ok(Cold::of(&all, &bounds))
}

fn first_token(server: &Server, model: &str, prompt: &[u32]) -> Result<Duration, String> {
    match server.stream(model, prompt, 1, |_| {})? {
        Asked::Answered(answer) => answer.first_token.ok_or_else(|| format!("{model}: no token")),
        Asked::Absent => Err(format!("{model} is not served")),
    }
}

/// What the bytes take without us.
struct Bounds {
    read: f64,
    hash: f64,
    keep: f64,
}

impl Bounds {
    fn of(folder: &Path) -> Result<Self, String> {
        let failed = |error: std::io::Error| format!("{}: {error}", folder.display());
        let begin = Instant::now();
        let bytes = fs::read(folder.join(WEIGHTS_FILE)).map_err(failed)?;
        let read = millis(begin.elapsed());
        let begin = Instant::now();
        std::hint::black_box(Hasher::new().part(WEIGHTS_FILE, &bytes).finish());
        let hash = millis(begin.elapsed());
        let copy = folder.with_extension("copy");
        let begin = Instant::now();
        let written = File::create(&copy).and_then(|mut file| {
            file.write_all(&bytes)?;
            file.sync_all()
        });
        let keep = millis(begin.elapsed());
        written.and_then(|()| fs::remove_file(&copy)).map_err(failed)?;
        Ok(Self { read, hash, keep })
    }
}

impl Cold {
    fn of(all: &[One], bounds: &[Bounds]) -> Self {
        let Some(first) = all.first() else { return Self::default() };
        let stage = |name, of: &dyn Fn(&One) -> f64| Stage { name, ms: median(all.iter().map(of)), bound: None };
        let bound = |what, of: &dyn Fn(&Bounds) -> f64| Some(Bound { what, ms: median(bounds.iter().map(of)) });
        let known = |one: &One| {
            let times = one.changed.times;
            let stages = times.read_ms + times.hash_ms + times.check_ms + times.keep_ms + times.warm_ms;
            stages + times.sync_ms + times.flip_ms
        };
        let asked_known = |one: &One| {
            let load = one.asked_load;
            load.read_ms + load.hash_ms + load.check_ms + load.pack_ms
        };
        let packed = |one: &One| one.changed.load.map_or(0.0, |load| load.pack_ms);
        Self {
            adapters: all.len(),
            rank: first.changed.rank.unwrap_or_default(),
            file_bytes: first.changed.file_bytes.unwrap_or_default(),
            packed_bytes: first.changed.bytes.unwrap_or_default(),
            load: vec![
                Stage {
                    bound: bound("reading the file", &|of| of.read),
                    ..stage("read", &|one| one.changed.times.read_ms)
                },
                Stage { bound: bound("SHA-256", &|of| of.hash), ..stage("hash", &|one| one.changed.times.hash_ms) },
                stage("parse and check", &|one| one.changed.times.check_ms),
                Stage {
                    bound: bound("writing and syncing one file", &|of| of.keep),
                    ..stage("copy, synced", &|one| one.changed.times.keep_ms)
                },
                stage("pack", &packed),
                stage("read, hash, parse again", &|one| (one.changed.times.warm_ms - packed(one)).max(0.0)),
                stage("catalog, synced", &|one| one.changed.times.sync_ms),
                stage("flip", &|one| one.changed.times.flip_ms),
                stage("HTTP and waiting", &|one| (millis(one.whole) - known(one)).max(0.0)),
                stage("first token", &|one| millis(one.warm)),
            ],
            load_to_first_token_ms: median(all.iter().map(|one| millis(one.whole + one.warm))),
            asked: vec![
                Stage {
                    bound: bound("reading the file", &|of| of.read),
                    ..stage("read", &|one| one.asked_load.read_ms)
                },
                Stage { bound: bound("SHA-256", &|of| of.hash), ..stage("hash", &|one| one.asked_load.hash_ms) },
                stage("parse and check", &|one| one.asked_load.check_ms),
                stage("pack", &|one| one.asked_load.pack_ms),
                stage("first token", &|one| (millis(one.asked) - asked_known(one)).max(0.0)),
            ],
            asked_to_first_token_ms: median(all.iter().map(|one| millis(one.asked))),
            warm_first_token_ms: median(all.iter().map(|one| millis(one.again))),
        }
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

impl fmt::Display for Cold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "cold adapter of rank {}, {} bytes in the page cache, {} packed; nothing else runs; ms, median of {}",
            self.rank, self.file_bytes, self.packed_bytes, self.adapters
        )?;
        show(f, "  a load by the API, and its first token", &self.load, self.load_to_first_token_ms)?;
        show(f, "  a first question to one that is on disk", &self.asked, self.asked_to_first_token_ms)?;
        writeln!(f, "  the first token once it is in memory{:>14.3}", self.warm_first_token_ms)
    }
}

fn show(f: &mut fmt::Formatter<'_>, title: &str, stages: &[Stage], whole: f64) -> fmt::Result {
    writeln!(f, "{title:<42}{whole:>8.3}")?;
    for Stage { name, ms, bound } in stages {
        let beside = bound.as_ref().map(|bound| format!("   {} alone: {:.3}", bound.what, bound.ms));
        writeln!(f, "    {name:<38}{ms:>8.3}{}", beside.unwrap_or_default())?;
    }
    match stages.iter().max_by(|one, other| one.ms.total_cmp(&other.ms)) {
        Some(longest) => writeln!(f, "    bound by: {}", longest.name),
        None => Ok(()),
    }
}
