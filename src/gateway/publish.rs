//! The only way a version gets a name, whoever asks: open, check, keep, flip. Each is one step for its name: it happens in
//! full and is durable when the caller hears of it, or nothing has changed.

mod configured;
mod proof;
mod request;
mod restored;

use std::{
    collections::HashMap,
    future::Future,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

pub use proof::Gate;
pub use request::{
    Candidate, Expected, Load, Origin, PublishError, PublishTimes, Published, Release, Rollback, Unload, VaultLimits,
};
use tokio::sync::{OwnedMutexGuard, OwnedSemaphorePermit, RwLock, Semaphore};

use crate::{
    adapters::{
        AdapterError, AdapterLease, AdapterStore, AdmitTimes, Admitted, Changed, ManagedBy, MoveTimes, NameChange,
        NameRow, Named, Operation, Serving, Step, check::AdapterPlan, folder::AdapterFiles,
    },
    gateway::trial::Trial,
    terms::{AdapterName, AdapterVersion, Moment},
};

/// Gives versions their names. Cheap to clone.
#[derive(Clone)]
pub struct Publisher(Arc<Inner>);

struct Inner {
    adapters: Arc<AdapterStore>,
    limits: VaultLimits,
    /// `None`: candidates are served untried.
    trial: Option<Trial>,
    /// Changes under way or waiting, over all names.
    seats: Arc<Semaphore>,
    /// Candidates that are read and checked at the same time, each held in memory whole.
    readers: Arc<Semaphore>,
    /// One at a time for each name.
    turns: Mutex<HashMap<AdapterName, Arc<tokio::sync::Mutex<()>>>>,
    /// Read by everyone who brings kept bytes to a name, written by whoever removes kept bytes.
    vault: Arc<RwLock<()>>,
}

/// Changes that may be under way or waiting.
const SEATS: usize = 256;
/// Candidates that may be read at the same time: the machine is shared with answers under way.
const READERS: usize = 2;
/// When to come back if every seat is taken: about as long as a few loads take.
const RETRY_AFTER_MS: u64 = 1000;

impl Publisher {
    /// Without a trial: candidates are checked and not run.
    pub fn new(adapters: Arc<AdapterStore>, limits: VaultLimits) -> Self {
        Self::trying(adapters, limits, None)
    }

    /// With a trial of each version before the first time that a name points at it.
    pub fn trying(adapters: Arc<AdapterStore>, limits: VaultLimits, trial: Option<Trial>) -> Self {
        Self(Arc::new(Inner {
            adapters,
            limits,
            trial,
            seats: Arc::new(Semaphore::new(SEATS)),
            readers: Arc::new(Semaphore::new(READERS)),
            turns: Mutex::default(),
            vault: Arc::default(),
        }))
    }

    pub fn adapters(&self) -> &Arc<AdapterStore> {
        &self.0.adapters
    }

    /// Gives a name a version: the first, or another in place of the one that it has. The same bytes again change nothing.
    /// Goes on if the caller leaves.
    ///
    /// # Errors
    /// [`PublishError`]; then the name serves what it served before.
    pub async fn load(&self, load: Load) -> Result<Published, PublishError> {
        self.load_if(load, None).await
    }

    /// As [`Publisher::load`], if the gate lets the candidate take the place of the version in force. Where there is none,
    /// nothing is compared.
    ///
    /// # Errors
    /// [`PublishError`]; then the name serves what it served before.
    pub async fn load_if(&self, load: Load, gate: Option<Gate>) -> Result<Published, PublishError> {
        self.apart(load.name.clone(), |this| async move { this.load_now(load, gate).await }).await
    }

    /// Gives a name a version back that it had before. Goes on if the caller leaves.
    ///
    /// # Errors
    /// As [`Publisher::load`].
    pub async fn rollback(&self, rollback: Rollback) -> Result<Published, PublishError> {
        self.apart(rollback.name.clone(), |this| async move { this.rollback_now(rollback).await }).await
    }

    /// Takes a name away. Requests that have begun end on its version; its memory goes with the last of them. Gives the
    /// version that it had. Goes on if the caller leaves.
    ///
    /// # Errors
    /// As [`Publisher::load`].
    pub async fn unload(&self, unload: Unload) -> Result<AdapterVersion, PublishError> {
        self.apart(unload.name.clone(), |this| async move { this.unload_now(unload).await }).await
    }

    /// Ends a hold: the desired-state file may move the name again. Gives what was written down, `None` if there was no
    /// hold. Goes on if the caller leaves.
    ///
    /// # Errors
    /// As [`Publisher::load`].
    pub async fn release(&self, release: Release) -> Result<Option<Step>, PublishError> {
        self.apart(release.name.clone(), |this| async move { this.release_now(release).await }).await
    }

    /// What a candidate would change, or every reason why it is refused; keeps and loads nothing.
    ///
    /// # Errors
    /// [`PublishError::Adapter`] with the reasons.
    pub async fn check(&self, name: String, candidate: Candidate) -> Result<AdapterPlan, PublishError> {
        let _seat = self.seat()?;
        let _reader = self.reader().await?;
        let adapters = Arc::clone(&self.0.adapters);
        blocking(move || {
            let files = open(&adapters, &name, candidate)?;
            let refused = |refusals: Vec<_>| AdapterError::Refused { name, refusals: refusals.into() };
            adapters.plan(&files).map_err(|refusals| refused(refusals).into())
        })
        .await
    }

    /// Runs on a task of its own, in turn with everything else that is done to the name.
    async fn apart<T, F>(
        &self,
        name: AdapterName,
        work: impl FnOnce(Self) -> F + Send + 'static,
    ) -> Result<T, PublishError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, PublishError>> + Send + 'static,
    {
        if self.0.adapters.is_base(name.as_str()) {
            return Err(PublishError::BaseName { name });
        }
        let seat = self.seat()?;
        let this = self.clone();
        let task = tokio::spawn(async move {
            let _seat = seat;
            let _turn = this.turn(&name).await;
            work(this.clone()).await
        });
        task.await.map_err(|error| PublishError::Failed { reason: error.to_string() })?
    }

    fn seat(&self) -> Result<OwnedSemaphorePermit, PublishError> {
        let busy = |_| PublishError::Busy { limit: SEATS, retry_after_ms: RETRY_AFTER_MS };
        Arc::clone(&self.0.seats).try_acquire_owned().map_err(busy)
    }

    async fn reader(&self) -> Result<OwnedSemaphorePermit, PublishError> {
        let reader = Arc::clone(&self.0.readers).acquire_owned().await;
        reader.map_err(|error| PublishError::Failed { reason: error.to_string() })
    }

    async fn turn(&self, name: &AdapterName) -> OwnedMutexGuard<()> {
        let turn = {
            let mut turns = self.0.turns.lock().unwrap_or_else(PoisonError::into_inner);
            turns.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(turns.entry(name.clone()).or_default())
        };
        turn.lock_owned().await
    }

    async fn load_now(self, load: Load, gate: Option<Gate>) -> Result<Published, PublishError> {
        let (name, mut version) = (load.name.clone(), None);
        let loaded = self.load_candidate(load, gate, &mut version).await;
        match &loaded {
            Ok(_) => self.0.adapters.release_name(&name),
            Err(error) => self.remember(&name, version, error),
        }
        loaded
    }

    /// `opened` is told the candidate's version once its bytes are read.
    async fn load_candidate(
        &self,
        load: Load,
        gate: Option<Gate>,
        opened: &mut Option<AdapterVersion>,
    ) -> Result<Published, PublishError> {
        let Load { name, candidate, replace, expected, pinned, warm, origin } = load;
        let (adapters, by) = (&self.0.adapters, origin.managed_by);
        if by == ManagedBy::FirstUse {
            // Many may ask; a folder is looked at again by one.
            self.not_barred(&name, None, by)?;
        }
        let reader = self.reader().await?;
        let (files, read_us) = {
            let (adapters, name) = (Arc::clone(adapters), name.to_string());
            blocking(move || {
                let begun = Instant::now();
                let files = open(&adapters, &name, candidate)?;
                let read_us = micros(begun).saturating_sub(files.hash_us());
                Ok((files, read_us))
            })
            .await?
        };
        let times = PublishTimes { read_us, hash_us: files.hash_us(), ..PublishTimes::default() };
        let version = files.version();
        *opened = Some(version);
        let named = adapters.named(name.as_str());
        let row = named.as_ref().map(|named| &named.row);
        may_move(row, &name, &origin)?;
        expected.check(&name, row)?;
        let pinned = pinned.unwrap_or_else(|| row.is_some_and(|row| row.pinned));
        let serving = named.as_ref().and_then(|named| Some((named.row.version?, named.serving.clone()?)));
        match serving {
            Some((current, serving)) if current == version => {
                if by == ManagedBy::Api && adapters.release_version(version) {
                    // Its weights could not be read: the copy is mended with the same bytes.
                    let (adapters, name) = (Arc::clone(adapters), name.clone());
                    blocking(move || Ok(adapters.admit(&name, &files)?)).await?;
                }
                let admitted = Admitted { version, serving, times: AdmitTimes::default() };
                return self.settle(named, admitted, pinned, origin).await;
            }
            Some(_) if !replace => return Err(PublishError::AlreadyLoaded { name, version }),
            Some(_) | None => {}
        }
        self.not_barred(&name, Some(version), by)?;
        // Until the name points at them, nothing else says that the kept bytes are wanted.
        let _kept = Arc::clone(&self.0.vault).read_owned().await;
        let admitted = {
            let (adapters, name) = (Arc::clone(adapters), name.clone());
            blocking(move || Ok(adapters.admit(&name, &files)?)).await?
        };
        adapters.release_version(version);
        drop(reader);
        let operation = if row.is_some_and(|row| row.version.is_some()) { Operation::Replace } else { Operation::Load };
        let target = Target { name, admitted, operation, pinned, warm, gate, times };
        let published = self.point(row.cloned(), target, origin).await?;
        drop(_kept);
        self.prune().await;
        Ok(published)
    }

    async fn rollback_now(self, rollback: Rollback) -> Result<Published, PublishError> {
        let Rollback { name, to, expected, mut origin } = rollback;
        let adapters = &self.0.adapters;
        let Some(named) = adapters.named(name.as_str()) else { return Err(PublishError::NotLoaded { name }) };
        may_move(Some(&named.row), &name, &origin)?;
        expected.check(&name, Some(&named.row))?;
        let version = match to {
            Some(prefix) => adapters.find_version(name.as_str(), &prefix)?.1,
            None => named.one_step_back().ok_or_else(|| PublishError::NoEarlier { name: name.clone() })?,
        };
        origin.source = named.source_of(version);
        if let (Some(current), Some(serving)) = (named.row.version, named.serving.clone())
            && current == version
        {
            let pinned = named.row.pinned;
            let admitted = Admitted { version, serving, times: AdmitTimes::default() };
            return self.settle(Some(named), admitted, pinned, origin).await;
        }
        let _kept = Arc::clone(&self.0.vault).read_owned().await;
        let admitted = {
            let (adapters, name) = (Arc::clone(adapters), name.clone());
            blocking(move || Ok(adapters.readmit(&name, version)?)).await?
        };
        adapters.release_version(version);
        let pinned = named.row.pinned;
        let operation = Operation::Rollback;
        let target =
            Target { name, admitted, operation, pinned, warm: true, gate: None, times: PublishTimes::default() };
        let published = self.point(Some(named.row), target, origin).await?;
        adapters.release_name(&published.row.name);
        Ok(published)
    }

    async fn unload_now(self, unload: Unload) -> Result<AdapterVersion, PublishError> {
        let Unload { name, expected, origin } = unload;
        let Some(named) = self.0.adapters.named(name.as_str()) else { return Err(PublishError::NotLoaded { name }) };
        let row = named.row;
        let Some(version) = row.version else { return Err(PublishError::NotLoaded { name }) };
        may_move(Some(&row), &name, &origin)?;
        expected.check(&name, Some(&row))?;
        let change = change(Some(&row), &name, None, Operation::Unload, false, origin);
        self.write(change, None).await?;
        self.0.adapters.release_name(&name);
        Ok(version)
    }

    async fn release_now(self, release: Release) -> Result<Option<Step>, PublishError> {
        let Release { name, expected, origin } = release;
        let Some(named) = self.0.adapters.named(name.as_str()) else { return Err(PublishError::NotLoaded { name }) };
        expected.check(&name, Some(&named.row))?;
        if !named.row.hold {
            return Ok(None);
        }
        let row = NameRow { hold: false, ..named.row };
        let change = NameChange {
            seen: row.version,
            operation: Operation::Release,
            at_ms: Moment::unix_ms(),
            who: origin.who,
            why: origin.why,
            row,
        };
        let (step, _) = self.write(change, named.serving).await?;
        Ok(Some(step))
    }

    /// The name has the version already: at most its pin or who manages it changes.
    async fn settle(
        &self,
        named: Option<Named>,
        admitted: Admitted,
        pinned: bool,
        origin: Origin,
    ) -> Result<Published, PublishError> {
        let Some(Named { row, .. }) = named else {
            return Err(PublishError::Failed { reason: "a version without its name".to_owned() });
        };
        let name = row.name.clone();
        let origin_is_admin = origin.managed_by == ManagedBy::Api;
        let mut change = change(Some(&row), &name, Some(admitted.version), Operation::Settings, pinned, origin);
        change.row.since_ms = row.since_ms;
        if origin_is_admin && row.managed_by == ManagedBy::File {
            // Nothing is moved, so nothing is an exception from the file.
            (change.row.managed_by, change.row.hold) = (row.managed_by, row.hold);
        }
        let same =
            (change.row.managed_by, change.row.hold, change.row.pinned) == (row.managed_by, row.hold, row.pinned);
        if same {
            let times = PublishTimes::default();
            return Ok(Published { row, was: Some(admitted.version), step: None, admitted, times });
        }
        if pinned {
            self.0.adapters.pin(&name, admitted.version).await?;
        }
        self.publish(change, admitted, PublishTimes::default()).await
    }

    /// Brings a candidate that was checked and kept to its name.
    async fn point(&self, row: Option<NameRow>, target: Target, origin: Origin) -> Result<Published, PublishError> {
        let Target { name, admitted, operation, pinned, warm, gate, mut times } = target;
        let version = admitted.version;
        // In memory before any request asks for it; held until the name points at it.
        let begun = Instant::now();
        let weights = self.warm(&name, version, pinned, warm).await?;
        times.warm_us = micros(begun);
        if let Err(error) = self.prove(row.as_ref(), (&name, version), weights.as_ref(), gate, origin.managed_by).await
        {
            self.0.adapters.let_go(version);
            return Err(error);
        }
        let change = change(row.as_ref(), &name, Some(version), operation, pinned, origin);
        self.publish(change, admitted, times).await
    }

    async fn publish(
        &self,
        change: NameChange,
        admitted: Admitted,
        times: PublishTimes,
    ) -> Result<Published, PublishError> {
        let (was, version) = (change.seen, admitted.version);
        let row = change.row.clone();
        match self.write(change, Some(admitted.serving.clone())).await {
            Ok((step, moved)) => {
                let times = PublishTimes { admit: admitted.times, moved, ..times };
                Ok(Published { row, was, step: Some(step), admitted, times })
            }
            Err(error) => {
                self.0.adapters.let_go(version);
                Err(error)
            }
        }
    }

    /// A pin that does not fit is refused; what is not pinned may stay on disk until it is asked for.
    async fn warm(
        &self,
        name: &AdapterName,
        version: AdapterVersion,
        pinned: bool,
        warm: bool,
    ) -> Result<Option<AdapterLease>, PublishError> {
        let adapters = &self.0.adapters;
        if pinned && let Err(error) = adapters.pin(name, version).await {
            adapters.let_go(version);
            return Err(error.into());
        }
        if !pinned && !warm {
            return Ok(None);
        }
        match adapters.lease(name, version).await {
            Ok(lease) => Ok(Some(lease)),
            Err(AdapterError::NoRoom { .. } | AdapterError::Busy { .. }) => Ok(None),
            Err(error) => {
                adapters.let_go(version);
                Err(error.into())
            }
        }
    }

    async fn write(&self, change: NameChange, serving: Option<Serving>) -> Result<(Step, MoveTimes), PublishError> {
        let adapters = Arc::clone(&self.0.adapters);
        blocking(move || match adapters.change(&change, serving)? {
            (Changed::Applied(step), times) => {
                tracing::info!(
                    adapter = %change.row.name,
                    version = change.row.version.map(|version| version.short()),
                    operation = step.operation.as_str(),
                    managed_by = step.managed_by.as_str(),
                    who = step.who,
                    "a name was moved"
                );
                Ok((step, times))
            }
            (Changed::Moved { found }, _) => {
                let name = change.row.name;
                Err(PublishError::Conflict { name, expected: shown(change.seen), found: shown(found) })
            }
        })
        .await
    }

    /// Keeps the vault within its bound. What cannot be removed now is tried again after the next change.
    async fn prune(&self) {
        let VaultLimits { steps, max_bytes: Some(max_bytes) } = self.0.limits else { return };
        let Ok(alone) = Arc::clone(&self.0.vault).try_write_owned() else { return };
        let adapters = Arc::clone(&self.0.adapters);
        let pruned = blocking(move || {
            let _alone = alone;
            adapters.prune(steps, max_bytes).map_err(|error| PublishError::Failed { reason: error.to_string() })
        });
        match pruned.await {
            Ok(removed) if removed.is_empty() => {}
            Ok(removed) => tracing::info!(removed = removed.len(), "old versions of adapters were removed from disk"),
            Err(error) => tracing::warn!(%error, "old versions of adapters could not be removed from disk"),
        }
    }
}

/// Where a checked candidate is to go.
struct Target {
    name: AdapterName,
    admitted: Admitted,
    operation: Operation,
    pinned: bool,
    warm: bool,
    times: PublishTimes,
    gate: Option<Gate>,
}

fn open(adapters: &AdapterStore, name: &str, candidate: Candidate) -> Result<AdapterFiles, AdapterError> {
    match candidate {
        Candidate::Files(files) => Ok(files),
        Candidate::Folder { root, path } => adapters.files(name, &root, &path),
    }
}

/// The precedence of those who move names.
fn may_move(row: Option<&NameRow>, name: &AdapterName, origin: &Origin) -> Result<(), PublishError> {
    let Some(row) = row else { return Ok(()) };
    match origin.managed_by {
        ManagedBy::Api => Ok(()),
        ManagedBy::File if row.hold => Err(PublishError::Held { name: name.clone() }),
        by if by >= row.managed_by => Ok(()),
        ManagedBy::FirstUse | ManagedBy::Folder | ManagedBy::Flag | ManagedBy::File => {
            Err(PublishError::Managed { name: name.clone(), by: row.managed_by })
        }
    }
}

/// The row after a move, and the step that leads there.
fn change(
    row: Option<&NameRow>,
    name: &AdapterName,
    version: Option<AdapterVersion>,
    operation: Operation,
    pinned: bool,
    origin: Origin,
) -> NameChange {
    let at_ms = Moment::unix_ms();
    // What an administrator does to a name of the file is an exception from it, until somebody ends it.
    let held = origin.managed_by == ManagedBy::Api
        && row.is_some_and(|row| row.managed_by == ManagedBy::File && (row.version.is_some() || row.hold));
    NameChange {
        seen: row.and_then(|row| row.version),
        row: NameRow {
            name: name.clone(),
            version,
            since_ms: at_ms,
            managed_by: if held { ManagedBy::File } else { origin.managed_by },
            hold: held,
            pinned,
            source: origin.source,
        },
        operation,
        at_ms,
        who: origin.who,
        why: origin.why,
    }
}

fn shown(version: Option<AdapterVersion>) -> String {
    version.map_or_else(|| "no version".to_owned(), |version| version.short())
}

fn micros(begun: Instant) -> u64 {
    begun.elapsed().as_micros() as u64
}

/// Disk and hashing, off the threads that answer.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, PublishError> + Send + 'static,
) -> Result<T, PublishError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| PublishError::Failed { reason: error.to_string() })?
}
