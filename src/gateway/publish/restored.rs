//! Names that the catalog brings back, on a base that may be another than the one that they were loaded on. What has not shown
//! itself here serves nothing before it has.

use std::sync::Arc;

use super::{PublishError, Publisher, proof::refused};
use crate::{
    adapters::{AdapterError, Named, Refusal, RefusalCode, Serving, TrialRow},
    terms::{AdapterName, AdapterVersion, Digest},
};

/// Why a version may not serve on this base as things stand.
enum Doubt {
    /// Its trial here failed: the test, and what it found.
    Failed((String, String)),
    /// It was never run here.
    Untried,
    /// It was loaded on another base, and nobody runs anything.
    Elsewhere(Digest),
}

/// A name that serves nothing until it is known whether it may.
pub(super) struct Aside {
    name: AdapterName,
    version: AdapterVersion,
    serving: Serving,
}

impl Publisher {
    /// Why a version that the name has or had is not served on this base, where it is not: `name@version` leads past what the
    /// name points at.
    pub fn objection(&self, name: &AdapterName, version: AdapterVersion) -> Option<AdapterError> {
        let adapters = self.adapters();
        if adapters.find(name.as_str()).is_ok_and(|(_, current)| current == version) {
            return None;
        }
        let named = adapters.named(name.as_str())?;
        let doubt = self.doubt(&named, version)?;
        Some(self.against(name, version, doubt))
    }

    /// Takes away, for now, what every name points at that has not shown itself on this base.
    pub(super) fn set_aside(&self) -> Vec<Aside> {
        let adapters = self.adapters();
        let mut aside = Vec::new();
        for named in adapters.names() {
            let (Some(version), Some(serving)) = (named.row.version, named.serving.clone()) else { continue };
            if self.doubt(&named, version).is_some() {
                let name = named.row.name;
                adapters.suspend(&name);
                aside.push(Aside { name, version, serving });
            }
        }
        aside
    }

    /// Runs what was set aside and is still what its name points at; gives those that stay unserved, with the reasons.
    pub(super) async fn restore(&self, aside: Vec<Aside>) -> Vec<(String, Vec<Refusal>)> {
        let adapters = self.adapters();
        let mut refused = Vec::new();
        for Aside { name, version, serving } in aside {
            let Some(named) = adapters.named(name.as_str()) else { continue };
            if named.row.version != Some(version) || named.serving.is_some() {
                // A folder or a flag has brought it to where it is now.
                continue;
            }
            let failed = match (self.doubt(&named, version), &self.0.trial) {
                (None, _) => None,
                (Some(Doubt::Untried), Some(trial)) => match adapters.lease(&name, version).await {
                    Ok(lease) => self.try_out(trial, &lease).await.err(),
                    Err(error) => Some(error.into()),
                },
                (Some(doubt), _) => Some(self.against(&name, version, doubt).into()),
            };
            match failed {
                None => adapters.resume(&name, version, serving),
                Some(error) => {
                    tracing::warn!(adapter = %name, version = version.short(), %error, "a name is not served on this base");
                    let reasons = match error {
                        PublishError::Adapter(AdapterError::Refused { refusals, .. }) => refusals.to_vec(),
                        error => vec![Refusal {
                            code: RefusalCode::Trial,
                            subject: name.to_string(),
                            reason: error.to_string(),
                        }],
                    };
                    adapters.refuse(name.as_str(), reasons.clone());
                    refused.push((name.to_string(), reasons));
                }
            }
        }
        refused
    }

    fn doubt(&self, named: &Named, version: AdapterVersion) -> Option<Doubt> {
        let adapters = self.adapters();
        match (&self.0.trial, adapters.latest_verdict(version)) {
            (Some(_), Some(TrialRow { failed: None, .. })) => None,
            (Some(_), Some(TrialRow { failed: Some(failed), .. })) => Some(Doubt::Failed(failed)),
            (Some(_), None) => Some(Doubt::Untried),
            (None, _) => named.base_of(version).filter(|base| *base != adapters.base()).map(Doubt::Elsewhere),
        }
    }

    fn against(&self, name: &AdapterName, version: AdapterVersion, doubt: Doubt) -> AdapterError {
        let (code, reason) = match doubt {
            Doubt::Failed(failed) => return refused(name, failed),
            Doubt::Untried => (
                RefusalCode::Trial,
                "has not been run on this base; a rollback to it or a load of the same bytes runs it".to_owned(),
            ),
            Doubt::Elsewhere(base) => (
                RefusalCode::Base,
                format!(
                    "was loaded on the base {}; this is {}, and --adapter-trial=false runs nothing: load it again to have it \
                     served here",
                    base.short(),
                    self.adapters().base().short()
                ),
            ),
        };
        let refusal = Refusal { code, subject: format!("{name}@{}", version.short()), reason };
        AdapterError::Refused { name: name.to_string(), refusals: Arc::new(vec![refusal]) }
    }
}
