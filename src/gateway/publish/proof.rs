//! What a candidate has to show before its name points at it, and what becomes of one that fails.

use std::sync::Arc;

use futures_util::future::BoxFuture;

use super::{Publisher, blocking, request::PublishError};
use crate::{
    adapters::{AdapterError, AdapterLease, Confined, ManagedBy, NameFault, NameRow, Refusal, RefusalCode, TrialRow},
    gateway::trial::{Trial, TrialError},
    terms::{AdapterName, AdapterVersion, Moment},
};

/// Compares the version in force (first) with a candidate (second). An error keeps the name where it is.
pub type Gate = Arc<dyn Fn(AdapterLease, AdapterLease) -> BoxFuture<'static, Result<(), PublishError>> + Send + Sync>;

/// When to come back if a trial could not be run.
const RETRY_AFTER_MS: u64 = 1000;

impl Publisher {
    /// The trial, unless its verdict is known, and then the comparison with what the name has. `weights` are the
    /// candidate's, if they are in memory.
    pub(super) async fn prove(
        &self,
        row: Option<&NameRow>,
        (name, version): (&AdapterName, AdapterVersion),
        weights: Option<&AdapterLease>,
        gate: Option<Gate>,
        by: ManagedBy,
    ) -> Result<(), PublishError> {
        let adapters = self.adapters();
        let pending = match &self.0.trial {
            None => None,
            Some(trial) => match adapters.verdict(version, trial.suite()) {
                Some(TrialRow { failed: None, .. }) => None,
                // Only who asks by hand has it run once more.
                Some(TrialRow { failed: Some(failed), .. }) if by != ManagedBy::Api => {
                    return Err(refused(name, failed).into());
                }
                Some(_) | None => Some(trial),
            },
        };
        let comparison = gate.zip(row.and_then(|row| row.version));
        if pending.is_none() && comparison.is_none() {
            return Ok(());
        }
        let candidate = match weights {
            Some(lease) => lease.clone(),
            None => adapters.lease(name, version).await?,
        };
        if let Some(trial) = pending {
            self.try_out(trial, &candidate).await?;
        }
        if let Some((gate, current)) = comparison {
            let in_force = adapters.lease(name, current).await.map_err(|error| PublishError::Uncompared {
                name: name.clone(),
                reason: format!("the version in force cannot be asked: {error}"),
            })?;
            gate(in_force, candidate).await?;
        }
        Ok(())
    }

    /// Runs the trial and keeps its verdict.
    pub(super) async fn try_out(&self, trial: &Trial, candidate: &AdapterLease) -> Result<(), PublishError> {
        let name = &candidate.name;
        let verdict = trial.run(candidate).await.map_err(|error| {
            let (reason, retry_after_ms) = match error {
                TrialError::Failed(reason) => (reason, RETRY_AFTER_MS),
                TrialError::Busy { reason, retry_after_ms } => (reason, retry_after_ms),
            };
            PublishError::Untried { name: name.clone(), reason, retry_after_ms }
        })?;
        let version = candidate.version.short();
        match &verdict.failed {
            None => {
                tracing::info!(adapter = %name, version, figures = ?verdict.figures, "a candidate passed its trial")
            }
            Some((test, reason)) => {
                tracing::warn!(adapter = %name, version, test, reason, figures = ?verdict.figures, "a candidate failed its trial");
            }
        }
        let row = TrialRow {
            version: candidate.version,
            base: self.adapters().base(),
            suite: trial.suite(),
            at_ms: Moment::unix_ms(),
            failed: verdict.failed.clone(),
            figures: serde_json::to_string(&verdict.figures)
                .map_err(|error| PublishError::Failed { reason: error.to_string() })?,
        };
        let adapters = Arc::clone(self.adapters());
        blocking(move || Ok(adapters.keep_verdict(row)?)).await?;
        match verdict.failed {
            None => Ok(()),
            Some(failed) => Err(refused(name, failed).into()),
        }
    }

    /// Refuses what failed a short while ago. Who asks by hand is never refused for that.
    pub(super) fn not_barred(
        &self,
        name: &AdapterName,
        version: Option<AdapterVersion>,
        by: ManagedBy,
    ) -> Result<(), PublishError> {
        match self.adapters().barred(name, version) {
            Some(Confined { fault, until_ms, .. }) if by != ManagedBy::Api => Err(PublishError::Quarantined {
                name: name.clone(),
                reason: fault.reason,
                retry_after_ms: u64::try_from(until_ms - Moment::unix_ms()).unwrap_or(0).max(1),
            }),
            Some(_) | None => Ok(()),
        }
    }

    /// Remembers a failure that lies in the candidate itself.
    pub(super) fn remember(&self, name: &AdapterName, version: Option<AdapterVersion>, error: &PublishError) {
        if error.is_of_the_candidate() {
            self.adapters().confine(name, NameFault { version, reason: error.to_string() });
        }
    }
}

pub(super) fn refused(name: &AdapterName, (test, reason): (String, String)) -> AdapterError {
    let reason = format!("{reason} (the trial before a load; --adapter-trial=false serves adapters untried)");
    let refusal = Refusal { code: RefusalCode::Trial, subject: test, reason };
    AdapterError::Refused { name: name.to_string(), refusals: Arc::new(vec![refusal]) }
}

impl PublishError {
    /// Whether the same candidate would fail again.
    fn is_of_the_candidate(&self) -> bool {
        match self {
            Self::Adapter(AdapterError::Refused { .. } | AdapterError::Unreadable { .. }) | Self::Failed { .. } => true,
            Self::Adapter(
                AdapterError::Unknown { .. }
                | AdapterError::UnknownVersion { .. }
                | AdapterError::AmbiguousVersion { .. }
                | AdapterError::NoRoom { .. }
                | AdapterError::NotYet { .. }
                | AdapterError::Busy { .. }
                | AdapterError::Catalog { .. },
            )
            | Self::BaseName { .. }
            | Self::AlreadyLoaded { .. }
            | Self::NotLoaded { .. }
            | Self::Conflict { .. }
            | Self::NoEarlier { .. }
            | Self::Managed { .. }
            | Self::Held { .. }
            | Self::Quarantined { .. }
            | Self::Untried { .. }
            | Self::Worse { .. }
            | Self::Uncompared { .. }
            | Self::Busy { .. } => false,
        }
    }
}
