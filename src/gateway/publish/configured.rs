//! What flags and folders name, published before the first request.

use std::{collections::HashSet, sync::Arc};

use futures_util::{StreamExt, stream};

use super::{Candidate, Expected, Load, Origin, PublishError, Publisher};
use crate::{
    adapters::{
        AdapterError, Refusal, RefusalCode,
        source::{self, Found},
    },
    config::AdapterConfig,
};

/// Folders that are published at the same time: while one is tried, others are read and copied.
const AT_ONCE: usize = 4;

impl Publisher {
    /// Publishes every adapter that flags and folders name, runs what the catalog brought back and has not been run on this
    /// base, and brings pinned ones into memory. A name that somebody else moved meanwhile keeps what it has; one that nobody
    /// moved follows its folder. A bad adapter never stops the others: gives every one that is not served, with the reasons.
    /// Blocks.
    ///
    /// # Errors
    /// If a configured folder of adapters is not there, or the catalog cannot be written.
    pub fn publish_configured(&self, config: &AdapterConfig) -> Result<Vec<(String, Vec<Refusal>)>, PublishError> {
        let failed = |reason: String| PublishError::Failed { reason };
        // A thread of its own, since a caller's may already drive tasks.
        std::thread::scope(|scope| {
            let work = || {
                let runtime =
                    tokio::runtime::Builder::new_current_thread().build().map_err(|error| failed(error.to_string()))?;
                runtime.block_on(self.publish_all(config))
            };
            scope.spawn(work).join().unwrap_or_else(|_| Err(failed("publishing broke off".to_owned())))
        })
    }

    async fn publish_all(&self, config: &AdapterConfig) -> Result<Vec<(String, Vec<Refusal>)>, PublishError> {
        let findings = source::configured(config)?;
        // Nobody asks for anything yet, and nobody is served before it is known that it may be.
        let aside = self.set_aside();
        let mut refused: Vec<(String, Vec<Refusal>)> = Vec::new();
        for (name, refusal) in findings.refused {
            refused.push((name, vec![refusal]));
        }
        let mut taken = HashSet::new();
        let mut loads = Vec::new();
        for found in findings.found {
            let name = found.name.to_string();
            match taken.insert(name.clone()) {
                true => loads.push(load(found)),
                false => refused.push((name.clone(), vec![Refusal::of_name(&name, "is taken by another folder")])),
            }
        }
        let mut loads = stream::iter(loads)
            .map(|load| async move { (load.name.to_string(), self.load(load).await) })
            .buffered(AT_ONCE);
        while let Some((name, loaded)) = loads.next().await {
            match loaded {
                Ok(_) => {}
                Err(PublishError::Managed { by, .. }) => {
                    tracing::info!(adapter = name, managed_by = by.as_str(), "a folder of this name is passed over");
                }
                Err(PublishError::Adapter(AdapterError::Refused { refusals, .. })) => {
                    refused.push((name, refusals.to_vec()));
                }
                Err(PublishError::BaseName { .. }) => {
                    refused.push((name.clone(), vec![Refusal::of_name(&name, "is the base's name")]));
                }
                Err(
                    error @ (PublishError::Adapter(
                        AdapterError::Unreadable { .. } | AdapterError::NoRoom { .. } | AdapterError::Busy { .. },
                    )
                    | PublishError::Quarantined { .. }
                    | PublishError::Untried { .. }
                    | PublishError::Failed { .. }),
                ) => {
                    let (subject, reason) = (name.clone(), error.to_string());
                    refused.push((name, vec![Refusal { code: RefusalCode::Trial, subject, reason }]));
                }
                Err(error) => return Err(error),
            }
        }
        drop(loads);
        for (name, refusals) in self.restore(aside).await {
            if !refused.iter().any(|(known, _)| *known == name) {
                refused.push((name, refusals));
            }
        }
        let adapters = Arc::clone(self.adapters());
        for (name, refusals) in &refused {
            // A name that goes on with what it had says nothing of the folder to those who ask it.
            if matches!(adapters.find(name), Err(AdapterError::Unknown { .. })) {
                adapters.refuse(name, refusals.clone());
            }
        }
        for named in adapters.names() {
            if let (true, Some(version), Some(_)) = (named.row.pinned, named.row.version, &named.serving)
                && let Err(error) = adapters.pin(&named.row.name, version).await
            {
                tracing::warn!(adapter = %named.row.name, %error, "a pinned adapter could not be brought into memory");
            }
        }
        Ok(refused)
    }
}

fn load(found: Found) -> Load {
    let Found { name, root, path, managed_by } = found;
    Load {
        name,
        origin: Origin {
            managed_by,
            who: managed_by.as_str().to_owned(),
            why: None,
            source: Some(path.display().to_string()),
        },
        candidate: Candidate::Folder { root, path },
        replace: true,
        expected: Expected::Anything,
        pinned: None,
        warm: false,
    }
}
