//! Keeps what is served in step with the watched folders and with the file of desired adapters, at the start, whenever one
//! of them changes, and from time to time: so restarts and replicas converge with nobody to tell them.
//!
//! Everything goes through the publisher, whose precedence holds: a folder moves only names that folders brought; the file
//! moves every name but those that somebody moved away from it by hand, which are reported as held.

mod desired;
mod file;
mod yaml;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use file::FileFollower;
use serde::Serialize;
use tokio::{
    sync::watch,
    task::JoinHandle,
    time::{MissedTickBehavior, interval},
};

use super::{
    Gateway,
    publish::{Candidate, Expected, Load, Origin, PublishError},
};
use crate::{
    adapters::{
        AdapterError, ManagedBy, Refusal,
        source::{Place, Settled, SourceError, Stamp, Watch},
    },
    config::FollowConfig,
    terms::AdapterName,
};

/// How the last look came out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Looks so far, and how often the work that they found has ended.
    pub looks: u64,
    /// Why the file of desired adapters says nothing; what it said before stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// Entries of the file that cannot be followed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<String>,
    /// Names of the file, and how each stands.
    pub names: BTreeMap<AdapterName, Standing>,
    /// Folders that are not served as they are, and why.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub folders: BTreeMap<AdapterName, Standing>,
}

/// How a name stands to what is wished of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Standing {
    /// As it shall be.
    InPlace,
    /// It was moved by hand, and stays until it is released or its entry changes.
    Held,
    /// Work is under way, or the next look may succeed.
    Waiting { reason: String },
    /// It stays as it is until its entry or its source changes.
    Failed { reason: String },
    /// Somebody who goes before folders manages the name.
    PassedOver { managed_by: ManagedBy },
}

impl Standing {
    const WORDS: [&'static str; 4] = ["in_place", "held", "waiting", "failed"];

    /// As metrics have it. A name of the file is never passed over: the file goes before all others.
    fn word(&self) -> &'static str {
        match self {
            Self::InPlace => "in_place",
            Self::Held => "held",
            Self::Waiting { .. } => "waiting",
            Self::Failed { .. } | Self::PassedOver { .. } => "failed",
        }
    }
}

/// Follows until it is dropped.
pub struct Following(JoinHandle<()>);

impl Drop for Following {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What following needs.
pub struct Follow {
    pub gateway: Gateway,
    /// Begun before what stands in the folders was first published.
    pub watch: Watch,
    pub config: FollowConfig,
    /// Fetches and loads for the file at the same time.
    pub at_once: usize,
}

impl Follow {
    /// Begins. The first look is at once; [`Gateway::reports`] tells of each.
    pub fn start(self) -> Following {
        let Self { gateway, watch, config, at_once } = self;
        let hands = (gateway.publisher().clone(), Arc::clone(gateway.sources()));
        let file = config.desired.map(|path| FileFollower::new(path, hands, config.interval, at_once));
        // What a folder had when the server started was published from it then.
        let known = watch.seen().settled.into_iter();
        let known = known.filter(|(name, _)| gateway.adapters().find(name.as_str()).is_ok());
        let folders = known.map(|(name, settled)| (name, settled.stamp)).collect();
        let follower = Follower { gateway, watch, folders, file };
        Following(tokio::spawn(follower.run(config.interval)))
    }
}

struct Follower {
    gateway: Gateway,
    watch: Watch,
    /// What each folder was when it was last read.
    folders: BTreeMap<AdapterName, Stamp>,
    file: Option<FileFollower>,
}

impl Follower {
    async fn run(mut self, every: Duration) {
        let mut changes = self.watch.changes();
        let mut ticks = interval(every);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let work = async {
                match &mut self.file {
                    Some(file) => file.done().await,
                    None => std::future::pending().await,
                }
            };
            let look = tokio::select! {
                // The watch lives as long as this does.
                changed = changes.changed() => changed.is_ok(),
                _ = ticks.tick() => true,
                () = self.gateway.0.look.notified() => true,
                () = work => false,
            };
            if look {
                self.follow_folders().await;
                if let Some(file) = &mut self.file {
                    file.look().await;
                }
            }
            self.tell(look);
        }
    }

    fn told(&self) -> &watch::Sender<Report> {
        &self.gateway.0.reports
    }

    fn tell(&self, looked: bool) {
        let busy = self.file.as_ref().is_some_and(FileFollower::is_busy);
        let (file, faults, names) = self.file.as_ref().map(FileFollower::report).unwrap_or_default();
        for word in Standing::WORDS {
            let count = names.values().filter(|standing| standing.word() == word).count();
            self.gateway.metrics().adapters_desired.with_label_values(&[word]).set(count as i64);
        }
        self.told().send_modify(|report| {
            for (name, standing) in &names {
                if report.names.get(name) != Some(standing) {
                    log(name, standing, "the file of desired adapters");
                }
            }
            report.looks += u64::from(looked || !busy);
            (report.file, report.faults, report.names) = (file, faults, names);
        });
    }

    /// Brings every folder that is whole and not as it was to its name.
    async fn follow_folders(&mut self) {
        let seen = self.watch.seen();
        let mut standings: BTreeMap<AdapterName, Standing> = seen
            .waiting
            .iter()
            .map(|(name, reason)| (name.clone(), Standing::Waiting { reason: reason.clone() }))
            .collect();
        for (name, settled) in &seen.settled {
            if self.folders.get(name) == Some(&settled.stamp) {
                // What became of it is known.
                if let Some(standing) =
                    self.told().borrow().folders.get(name).filter(|s| !matches!(s, Standing::Waiting { .. }))
                {
                    standings.insert(name.clone(), standing.clone());
                }
                continue;
            }
            let standing = self.follow_folder(name, settled).await;
            if !matches!(standing, Standing::Waiting { .. }) {
                self.folders.insert(name.clone(), settled.stamp.clone());
            }
            log(name, &standing, "a watched folder");
            if standing != Standing::InPlace {
                standings.insert(name.clone(), standing);
            }
        }
        self.folders.retain(|name, _| {
            let there = seen.settled.contains_key(name) || seen.waiting.contains_key(name) || !seen.unlisted.is_empty();
            if !there {
                tracing::info!(adapter = %name, "the folder is gone; the name goes on with what it has");
            }
            there
        });
        self.told().send_modify(|report| report.folders = standings);
    }

    async fn follow_folder(&self, name: &AdapterName, settled: &Settled) -> Standing {
        let place = Place::Folder { root: settled.found.root.clone(), path: settled.found.path.clone() };
        let delivery = match self.gateway.sources().open_place(&place).await {
            Ok(delivery) => delivery,
            Err(SourceError::Refused(refusals)) => {
                let reason = refusals.first().map_or_else(String::new, ToString::to_string);
                self.refuse(name, refusals);
                return Standing::Failed { reason };
            }
            Err(error) => return Standing::Waiting { reason: error.to_string() },
        };
        let load = Load {
            name: name.clone(),
            candidate: Candidate::Files(delivery.files),
            replace: true,
            expected: Expected::Anything,
            pinned: None,
            warm: false,
            origin: Origin {
                managed_by: ManagedBy::Folder,
                who: ManagedBy::Folder.as_str().to_owned(),
                why: None,
                source: Some(settled.found.path.display().to_string()),
            },
        };
        match self.gateway.publisher().load(load).await {
            Ok(_) => Standing::InPlace,
            Err(PublishError::Managed { by, .. }) => Standing::PassedOver { managed_by: by },
            Err(PublishError::Adapter(AdapterError::Refused { refusals, .. })) => {
                let reason = refusals.first().map_or_else(String::new, ToString::to_string);
                self.refuse(name, refusals.to_vec());
                Standing::Failed { reason }
            }
            Err(error @ PublishError::BaseName { .. }) => Standing::Failed { reason: error.to_string() },
            Err(error) => Standing::Waiting { reason: error.to_string() },
        }
    }

    /// Whoever asks for a name that nothing else serves is told why its folder does not.
    fn refuse(&self, name: &AdapterName, refusals: Vec<Refusal>) {
        let adapters = self.gateway.adapters();
        if adapters.find(name.as_str()).is_err() {
            adapters.refuse(name.as_str(), refusals);
        }
    }
}

fn log(name: &AdapterName, standing: &Standing, what: &str) {
    match standing {
        Standing::InPlace => tracing::info!(adapter = %name, "as {what} has it"),
        Standing::Held => tracing::warn!(adapter = %name, "on hold: it was moved by hand, {what} does not move it"),
        Standing::Waiting { reason } => tracing::info!(adapter = %name, reason, "not yet as {what} has it"),
        Standing::Failed { reason } => tracing::warn!(adapter = %name, reason, "not as {what} has it"),
        Standing::PassedOver { managed_by } => {
            tracing::info!(adapter = %name, managed_by = managed_by.as_str(), "{what} of this name is passed over");
        }
    }
}
