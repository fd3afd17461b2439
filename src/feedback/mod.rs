//! What the server notices about answers by itself: rules that follow the record from a stored place, and flag what a person
//! should look at. Nobody calls them, and no answer waits for them; what they missed while the process was down they read
//! afterwards.

mod checks;
pub mod export;
mod follow;
mod look;
pub mod report;
mod rules;
mod subject;
mod trial;

use std::sync::Arc;

use tokio::sync::watch;

pub use follow::Following;
pub use rules::{Action, DEFAULT as DEFAULT_RULES, Filter, Rule, RuleSet, inlined};
pub use trial::{Tried, TriedRule};

use crate::{
    config::FlagRules,
    journal::{Cursor, Journal, JournalError},
    metrics::Metrics,
    terms::Digest,
};

/// The rules of a server and how far they have come. Cheap to clone.
#[derive(Clone)]
pub struct Flags(Arc<Inner>);

struct Inner {
    journal: Journal,
    metrics: Arc<Metrics>,
    source: FlagRules,
    /// What holds now, and why the file's last change does not.
    rules: watch::Sender<Loaded>,
    /// How far the rules have come; everything up to there that they found is on record.
    followed: watch::Sender<Cursor>,
    /// The stretch of the past that is gone through again, where one is: place and end.
    again: watch::Sender<Option<(Cursor, Cursor)>>,
}

/// Rules as they were last read.
#[derive(Clone, Debug)]
pub struct Loaded {
    pub rules: Arc<RuleSet>,
    /// What is wrong with the file as it stands now; the rules before it go on then.
    pub faults: Vec<String>,
    /// Of the file that was read last.
    stamp: Option<Digest>,
}

/// Why a stretch of the past is not gone through.
#[derive(Debug, thiserror::Error)]
pub enum AgainError {
    #[error("rules are being applied to the past already, up to {}", .to.0)]
    Busy { to: Cursor },
    #[error("there is no rule '{name}'; there are {known}")]
    Unknown { name: String, known: String },
    #[error(transparent)]
    Journal(#[from] JournalError),
}

impl Flags {
    /// Reads the rules. Nothing is followed yet.
    ///
    /// # Errors
    /// Every fault of the rules.
    pub fn open(source: FlagRules, journal: Journal, metrics: Arc<Metrics>) -> Result<Self, Vec<String>> {
        let rules = Arc::new(RuleSet::of(&source)?);
        Ok(Self(Arc::new(Inner {
            journal,
            metrics,
            source,
            rules: watch::Sender::new(Loaded { rules, faults: Vec::new(), stamp: None }),
            followed: watch::Sender::default(),
            again: watch::Sender::default(),
        })))
    }

    /// The rules that hold now.
    pub fn loaded(&self) -> Loaded {
        self.0.rules.borrow().clone()
    }

    /// Word of every change of the rules.
    pub fn watch_rules(&self) -> watch::Receiver<Loaded> {
        self.0.rules.subscribe()
    }

    /// How far the rules have come; what they found up to there is on record.
    pub fn watch_followed(&self) -> watch::Receiver<Cursor> {
        self.0.followed.subscribe()
    }

    /// Where the past is gone through again, if it is: place and end.
    pub fn watch_again(&self) -> watch::Receiver<Option<(Cursor, Cursor)>> {
        self.0.again.subscribe()
    }

    /// Reads the rules' file again, if there is one. A file with faults changes nothing but the list of faults.
    pub fn reload(&self) {
        let FlagRules::File(path) = &self.0.source else { return };
        let stamp = rules::stamp(path);
        if stamp.is_some() && stamp == self.0.rules.borrow().stamp {
            return;
        }
        let read = RuleSet::read(path);
        self.0.rules.send_if_modified(|loaded| {
            loaded.stamp = stamp;
            match read {
                Ok(rules) => {
                    let other = rules.digest != loaded.rules.digest;
                    let changed = other || !loaded.faults.is_empty();
                    if other {
                        tracing::info!(rules = %rules::listed(&rules), "the rules for flags have changed");
                        loaded.rules = Arc::new(rules);
                    }
                    loaded.faults.clear();
                    changed
                }
                Err(faults) if faults == loaded.faults => false,
                Err(faults) => {
                    let fault = faults.join("; ");
                    tracing::warn!(file = %path.display(), fault, "the rules for flags stay as they were");
                    loaded.faults = faults;
                    true
                }
            }
        });
        self.0.metrics.flag_rule_faults.set(self.0.rules.borrow().faults.len() as i64);
    }
}
