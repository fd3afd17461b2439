//! What is shown of an adapter.

use serde::Serialize;
use serde_json::Value;

use crate::{
    adapters::{
        AdapterStore, Confined, LoadTimes, ManagedBy, NameFault, Named, Operation, Refusal, Residency, Step, TrialRow,
        VersionUse,
    },
    gateway::publish::PublishTimes,
    terms::{AdapterVersion, Digest},
};

/// A name, what it points at, and where that is.
#[derive(Debug, Serialize)]
pub struct AdapterBody {
    id: String,
    object: &'static str,
    /// `serving`, `refused`, `quarantined`, or `unloaded`.
    status: &'static str,
    version: Option<AdapterVersion>,
    managed_by: Option<ManagedBy>,
    hold: bool,
    pinned: bool,
    source: Option<String>,
    /// Unix seconds when it got this version.
    since: Option<i64>,
    tier: Option<&'static str>,
    /// Bytes of its packed weights, in memory or when they will be.
    bytes: Option<u64>,
    file_bytes: Option<u64>,
    rank: Option<usize>,
    targets: Vec<String>,
    trained_on: Option<String>,
    description: Option<String>,
    notes: Vec<String>,
    leases: usize,
    /// Unix seconds.
    last_used: Option<i64>,
    load: Option<LoadBody>,
    /// Why it is not served.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    refused: Vec<Refusal>,
    /// What failed last, and until when it is not tried again.
    quarantine: Option<QuarantineBody>,
    #[serde(skip_serializing_if = "Option::is_none")]
    versions: Option<Vec<VersionBody>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    history: Option<Vec<StepBody>>,
}

/// One version that a name has or had.
#[derive(Debug, Serialize)]
struct VersionBody {
    version: AdapterVersion,
    current: bool,
    /// `gone` where its files are not kept any more.
    tier: &'static str,
    /// In memory; 0 elsewhere.
    bytes: u64,
    /// Of a copy in host memory, beside the device's.
    host_bytes: u64,
    kept_bytes: u64,
    leases: usize,
    pinned: bool,
    last_used: Option<i64>,
    load: Option<LoadBody>,
    trial: Option<TrialBody>,
}

/// The latest verdict on a version, on this base.
#[derive(Debug, Serialize)]
struct TrialBody {
    passed: bool,
    /// Unix seconds.
    at: i64,
    test: Option<String>,
    reason: Option<String>,
    suite: Digest,
    figures: Value,
}

#[derive(Debug, Serialize)]
struct QuarantineBody {
    reason: String,
    /// Of the candidate; null where it could not be read.
    version: Option<AdapterVersion>,
    failures: u32,
    /// Unix seconds.
    since: i64,
    until: i64,
}

/// How long the stages of the last load took, in milliseconds.
#[derive(Debug, Serialize)]
struct LoadBody {
    /// `disk` or `host`.
    from: &'static str,
    read_ms: f64,
    hash_ms: f64,
    check_ms: f64,
    pack_ms: f64,
    place_ms: f64,
}

#[derive(Debug, Serialize)]
struct StepBody {
    /// Unix seconds.
    at: i64,
    operation: Operation,
    version: Option<AdapterVersion>,
    managed_by: ManagedBy,
    who: String,
    why: Option<String>,
    source: Option<String>,
    /// Of the server that did it.
    base: Option<Digest>,
}

impl AdapterBody {
    /// A name of the catalog; `whole` with every version and step, the latest first.
    pub fn of(named: &Named, adapters: &AdapterStore, refusals: Option<&[Refusal]>, whole: bool) -> Self {
        let row = &named.row;
        let usage = row.version.map(|version| adapters.usage(version));
        let serving = named.serving.as_ref();
        let card = serving.map(|serving| &serving.card);
        Self {
            id: row.name.to_string(),
            object: "adapter",
            status: match (row.version, serving) {
                (None, _) => "unloaded",
                (Some(_), None) => "refused",
                (Some(_), Some(_)) => "serving",
            },
            version: row.version,
            managed_by: Some(row.managed_by),
            hold: row.hold,
            pinned: row.pinned,
            source: row.source.clone(),
            since: Some(seconds(row.since_ms)),
            tier: usage.map(|usage| usage.residency.tier()),
            bytes: serving.map(|serving| serving.packed_bytes),
            file_bytes: card.map(|card| card.file_bytes),
            rank: card.map(|card| card.rank),
            targets: card.map(|card| card.targets.clone()).unwrap_or_default(),
            trained_on: card.and_then(|card| card.trained_on.clone()),
            description: card.and_then(|card| card.description.clone()),
            notes: card.map(|card| card.notes.clone()).unwrap_or_default(),
            leases: usage.map_or(0, |usage| usage.leases),
            last_used: usage.and_then(|usage| usage.last_used_ms).map(seconds),
            load: usage.and_then(|usage| usage.load).map(LoadBody::of),
            refused: refusals.map(<[Refusal]>::to_vec).unwrap_or_default(),
            quarantine: adapters.confined_as(row.name.as_str(), row.version).map(QuarantineBody::of),
            versions: whole.then(|| versions(named, adapters)),
            history: whole.then(|| named.steps.iter().rev().map(StepBody::of).collect()),
        }
    }

    /// A name that was to be served and never was.
    pub fn refused(name: &str, refusals: &[Refusal], adapters: &AdapterStore) -> Self {
        let quarantine = adapters.confined_as(name, None).map(QuarantineBody::of);
        Self { refused: refusals.to_vec(), quarantine, ..Self::nameless(name, "refused") }
    }

    /// A name whose candidate failed and that never had another.
    pub fn quarantined(name: &str, confined: Confined<NameFault>) -> Self {
        Self { quarantine: Some(QuarantineBody::of(confined)), ..Self::nameless(name, "quarantined") }
    }

    pub fn id(&self) -> &str {
        &self.id
    }

    /// Of a name that the catalog does not know.
    fn nameless(name: &str, status: &'static str) -> Self {
        Self {
            id: name.to_owned(),
            object: "adapter",
            status,
            version: None,
            managed_by: None,
            hold: false,
            pinned: false,
            source: None,
            since: None,
            tier: None,
            bytes: None,
            file_bytes: None,
            rank: None,
            targets: Vec::new(),
            trained_on: None,
            description: None,
            notes: Vec::new(),
            leases: 0,
            last_used: None,
            load: None,
            refused: Vec::new(),
            quarantine: None,
            versions: None,
            history: None,
        }
    }
}

fn versions(named: &Named, adapters: &AdapterStore) -> Vec<VersionBody> {
    let body = |kept: crate::adapters::KeptVersion| {
        let VersionUse { residency, bytes, host_bytes, leases, pinned, last_used_ms, load } = kept.usage;
        VersionBody {
            version: kept.version,
            current: named.row.version == Some(kept.version),
            tier: if residency == Residency::Cold && kept.kept_bytes == 0 { "gone" } else { residency.tier() },
            bytes,
            host_bytes,
            kept_bytes: kept.kept_bytes,
            leases,
            pinned,
            last_used: last_used_ms.map(seconds),
            load: load.map(LoadBody::of),
            trial: adapters.latest_verdict(kept.version).map(TrialBody::of),
        }
    };
    adapters.versions(named).into_iter().map(body).collect()
}

impl LoadBody {
    fn of(times: LoadTimes) -> Self {
        let LoadTimes { read_us, hash_us, check_us, pack_us, place_us } = times;
        Self {
            from: if place_us > 0 { "host" } else { "disk" },
            read_ms: ms(read_us),
            hash_ms: ms(hash_us),
            check_ms: ms(check_us),
            pack_ms: ms(pack_us),
            place_ms: ms(place_us),
        }
    }
}

/// How long the stages of a change took, in milliseconds.
#[derive(Debug, Serialize)]
pub struct TimesBody {
    read_ms: f64,
    hash_ms: f64,
    check_ms: f64,
    keep_ms: f64,
    warm_ms: f64,
    sync_ms: f64,
    flip_ms: f64,
}

impl TimesBody {
    pub fn of(times: PublishTimes) -> Self {
        let PublishTimes { read_us, hash_us, admit, warm_us, moved } = times;
        Self {
            read_ms: ms(read_us),
            hash_ms: ms(hash_us),
            check_ms: ms(admit.check_us),
            keep_ms: ms(admit.keep_us),
            warm_ms: ms(warm_us),
            sync_ms: ms(moved.sync_us),
            flip_ms: ms(moved.flip_us),
        }
    }
}

impl TrialBody {
    fn of(row: TrialRow) -> Self {
        let (test, reason) = row.failed.unzip();
        Self {
            passed: test.is_none(),
            at: seconds(row.at_ms),
            test,
            reason,
            suite: row.suite,
            figures: serde_json::from_str(&row.figures).unwrap_or_default(),
        }
    }
}

fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

impl QuarantineBody {
    fn of(confined: Confined<NameFault>) -> Self {
        let Confined { fault: NameFault { version, reason }, failures, since_ms, until_ms } = confined;
        Self { reason, version, failures, since: seconds(since_ms), until: seconds(until_ms) }
    }
}

impl StepBody {
    fn of(step: &Step) -> Self {
        Self {
            at: seconds(step.at_ms),
            operation: step.operation,
            version: step.version,
            managed_by: step.managed_by,
            who: step.who.clone(),
            why: step.why.clone(),
            source: step.source.clone(),
            base: step.base,
        }
    }
}

fn seconds(ms: i64) -> i64 {
    ms.div_euclid(1000)
}
