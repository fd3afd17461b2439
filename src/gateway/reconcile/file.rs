//! Follows the file of desired adapters: one task for each name that is not as the file has it, so that a source that is
//! slow or down holds up no other name.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    task::{Id, JoinSet},
    time::Instant,
};

use super::{
    Candidate, Expected, Load, Origin, PublishError, Standing,
    desired::{Desired, Wish},
};
use crate::{
    adapters::{
        AdapterError, ManagedBy, NameRow,
        source::{SourceError, Sources},
    },
    gateway::publish::{Publisher, Release, Unload},
    terms::AdapterName,
};

/// The longest pause before a name that failed is tried again.
const LONGEST_PAUSE: Duration = Duration::from_secs(600);

pub(super) struct FileFollower {
    path: PathBuf,
    hands: Hands,
    interval: Duration,
    desired: Desired,
    /// Why the file says nothing.
    unread: Option<String>,
    known: BTreeMap<AdapterName, Known>,
    work: JoinSet<Known>,
    under_way: BTreeMap<Id, AdapterName>,
    /// Names that were to be looked at while that was under way: what it has seen may be from before.
    missed: BTreeSet<AdapterName>,
}

/// What a task works with.
#[derive(Clone)]
struct Hands {
    publisher: Publisher,
    sources: Arc<Sources>,
    slots: Arc<Semaphore>,
}

/// What is known of one name of the file.
#[derive(Clone, Debug)]
struct Known {
    /// What was wished when it was last followed; `None` is that it be gone.
    wish: Option<Wish>,
    standing: Standing,
    /// What stood at the source when it was refused, and why: it is not fetched again.
    refused: Option<(String, String)>,
    failures: u32,
    again: Instant,
}

impl FileFollower {
    pub fn new(
        path: PathBuf,
        (publisher, sources): (Publisher, Arc<Sources>),
        interval: Duration,
        at_once: usize,
    ) -> Self {
        let hands = Hands { publisher, sources, slots: Arc::new(Semaphore::new(at_once.max(1))) };
        Self {
            path,
            hands,
            interval,
            desired: Desired::default(),
            unread: None,
            known: BTreeMap::new(),
            work: JoinSet::new(),
            under_way: BTreeMap::new(),
            missed: BTreeSet::new(),
        }
    }

    pub fn is_busy(&self) -> bool {
        !self.work.is_empty()
    }

    pub fn report(&self) -> (Option<String>, Vec<String>, BTreeMap<AdapterName, Standing>) {
        let standings = self.known.iter().map(|(name, known)| (name.clone(), known.standing.clone())).collect();
        (self.unread.clone(), self.desired.faults.clone(), standings)
    }

    /// Reads the file, and begins what has to be done. A file that cannot be read changes nothing.
    pub async fn look(&mut self) {
        let path = self.path.clone();
        let read = tokio::task::spawn_blocking(move || Desired::read(&path)).await;
        match read.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(desired) => (self.desired, self.unread) = (desired, None),
            Err(reason) => {
                if self.unread.as_ref() != Some(&reason) {
                    tracing::warn!(file = %self.path.display(), reason, "the file of desired adapters is not followed");
                }
                self.unread = Some(reason);
                return;
            }
        }
        let mut wished: BTreeMap<AdapterName, Option<Wish>> =
            self.desired.adapters.iter().map(|(name, wish)| (name.clone(), Some(wish.clone()))).collect();
        wished.extend(self.desired.absent.iter().map(|name| (name.clone(), None)));
        if self.desired.complete {
            let rows = self.hands.publisher.adapters().names().into_iter().map(|named| named.row);
            let brought = rows.filter(|row| row.managed_by == ManagedBy::File && row.version.is_some());
            for row in brought.filter(|row| !self.desired.names(&row.name)) {
                wished.entry(row.name).or_insert(None);
            }
        }
        self.known.retain(|name, _| wished.contains_key(name));
        let now = Instant::now();
        for (name, wish) in wished {
            self.begin(name, wish, now);
        }
    }

    /// One task has ended.
    pub async fn done(&mut self) {
        match self.work.join_next_with_id().await {
            None => std::future::pending().await,
            Some(ended) => {
                let (id, known) = match ended {
                    Ok((id, known)) => (id, Some(known)),
                    Err(error) => {
                        tracing::error!(%error, "following the file of desired adapters broke off for one name");
                        (error.id(), None)
                    }
                };
                let Some(name) = self.under_way.remove(&id) else { return };
                let missed = self.missed.remove(&name);
                let Some(known) = known else { return };
                let wish = self.desired.adapters.get(&name).cloned();
                // Not in the file any more, or never in it and gone now: nothing is left to report.
                let over = wish.is_none() && !self.desired.absent.contains(&name);
                if over && known.standing == Standing::InPlace {
                    self.known.remove(&name);
                    return;
                }
                let changed = known.wish != wish;
                self.known.insert(name.clone(), known);
                if changed || missed {
                    self.begin(name, wish, Instant::now());
                }
            }
        }
    }

    fn begin(&mut self, name: AdapterName, wish: Option<Wish>, now: Instant) {
        if self.under_way.values().any(|busy| *busy == name) {
            self.missed.insert(name);
            return;
        }
        let last = self.known.get(&name).cloned();
        let same = last.as_ref().filter(|last| last.wish == wish);
        if same.is_some_and(|last| last.again > now) {
            return;
        }
        if same.is_none() {
            let reason = "it is being looked at".to_owned();
            let known = Known {
                wish: wish.clone(),
                standing: Standing::Waiting { reason },
                refused: None,
                failures: 0,
                again: now,
            };
            self.known.insert(name.clone(), known);
        }
        let (hands, interval) = (self.hands.clone(), self.interval);
        let followed = name.clone();
        let task = self.work.spawn(async move {
            // Nobody closes it.
            let _slot = hands.slots.acquire().await;
            hands.follow(&followed, wish, last, interval).await
        });
        self.under_way.insert(task.id(), name);
    }
}

impl Hands {
    /// Brings one name to what is wished of it, if that can be.
    async fn follow(&self, name: &AdapterName, wish: Option<Wish>, last: Option<Known>, interval: Duration) -> Known {
        let changed = last.as_ref().is_some_and(|last| last.wish != wish);
        let (mut refused, failures) = match last {
            Some(last) if !changed => (last.refused, last.failures),
            Some(_) | None => (None, 0),
        };
        let standing = match &wish {
            Some(wish) => self.bring(name, wish, changed, &mut refused).await,
            None => self.take_away(name).await,
        };
        let failures = if matches!(standing, Standing::Waiting { .. }) { failures + 1 } else { 0 };
        let pause = interval.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LONGEST_PAUSE.max(interval));
        // What is in place is looked at each time; what failed less and less often.
        let again = if failures == 0 { Instant::now() } else { Instant::now() + pause.saturating_sub(interval / 2) };
        Known { wish, standing, refused, failures, again }
    }

    async fn bring(
        &self,
        name: &AdapterName,
        wish: &Wish,
        changed: bool,
        refused: &mut Option<(String, String)>,
    ) -> Standing {
        let row = self.row(name);
        if row.as_ref().is_some_and(|row| row.hold) {
            if !changed {
                return Standing::Held;
            }
            // Whoever changed the entry means it.
            let release = Release { name: name.clone(), expected: Expected::Anything, origin: origin(None) };
            if let Err(error) = self.publisher.release(release).await {
                return Standing::Waiting { reason: error.to_string() };
            }
        }
        let serves = self.publisher.adapters().find(name.as_str()).is_ok();
        let own = row.as_ref().filter(|row| {
            serves && row.managed_by == ManagedBy::File && wish.pinned.is_none_or(|pinned| pinned == row.pinned)
        });
        let fits = |row: &NameRow| {
            let wanted = wish.version.as_deref();
            wanted.is_none_or(|wanted| row.version.is_some_and(|version| version.0.starts_with(wanted)))
        };
        // A pinned version is what it is; nobody has to be asked.
        if wish.version.is_some() && own.is_some_and(fits) {
            return Standing::InPlace;
        }
        let place = match self.sources.place(&wish.source) {
            Ok(place) => place,
            Err(error) => return Standing::Waiting { reason: error.to_string() },
        };
        let stands = match self.sources.stands(&place).await {
            Ok(stands) => stands,
            Err(error) => return Standing::Waiting { reason: error.to_string() },
        };
        if own.is_some_and(|row| row.source.as_ref() == Some(&stands) && fits(row)) {
            return Standing::InPlace;
        }
        if let Some((stood, reason)) = refused.as_ref().filter(|(stood, _)| *stood == stands) {
            tracing::debug!(adapter = %name, stood, "what was refused has not changed");
            return Standing::Failed { reason: reason.clone() };
        }
        let delivery = match self.sources.open_place(&place).await {
            Ok(delivery) => delivery,
            Err(error @ SourceError::Refused(_)) => {
                *refused = Some((stands, error.to_string()));
                return Standing::Failed { reason: error.to_string() };
            }
            Err(error) => return Standing::Waiting { reason: error.to_string() },
        };
        let version = delivery.files.version();
        if let Some(wanted) = wish.version.as_deref().filter(|wanted| !version.0.starts_with(wanted)) {
            let reason = format!("its source has version {}, and {wanted} is wished for", version.short());
            *refused = Some((delivery.origin, reason.clone()));
            return Standing::Failed { reason };
        }
        let source = delivery.origin.clone();
        let load = Load {
            name: name.clone(),
            candidate: Candidate::Files(delivery.files),
            replace: true,
            expected: Expected::Anything,
            pinned: wish.pinned,
            warm: true,
            origin: origin(Some(source)),
        };
        match self.publisher.load(load).await {
            Ok(_) => Standing::InPlace,
            Err(PublishError::Held { .. }) => Standing::Held,
            Err(error @ PublishError::Adapter(AdapterError::Refused { .. })) => {
                *refused = Some((delivery.origin, error.to_string()));
                Standing::Failed { reason: error.to_string() }
            }
            Err(error @ PublishError::BaseName { .. }) => Standing::Failed { reason: error.to_string() },
            Err(error) => Standing::Waiting { reason: error.to_string() },
        }
    }

    async fn take_away(&self, name: &AdapterName) -> Standing {
        let unload = Unload { name: name.clone(), expected: Expected::Anything, origin: origin(None) };
        match self.publisher.unload(unload).await {
            Ok(_) | Err(PublishError::NotLoaded { .. }) => Standing::InPlace,
            Err(PublishError::Held { .. }) => Standing::Held,
            Err(error @ PublishError::BaseName { .. }) => Standing::Failed { reason: error.to_string() },
            Err(error) => Standing::Waiting { reason: error.to_string() },
        }
    }

    fn row(&self, name: &AdapterName) -> Option<NameRow> {
        self.publisher.adapters().named(name.as_str()).map(|named| named.row)
    }
}

fn origin(source: Option<String>) -> Origin {
    Origin { managed_by: ManagedBy::File, who: ManagedBy::File.as_str().to_owned(), why: None, source }
}
