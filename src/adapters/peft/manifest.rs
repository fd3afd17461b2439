use serde::Deserialize;

use super::MANIFEST_FILE;
use crate::{
    adapters::{
        GoldenAnswer, RefusalCode,
        faults::{Faults, shown},
        fingerprint,
    },
    terms::{SamplingLayer, TemplateSource},
};

/// `adapter.toml`, which may stand beside PEFT's files: how the adapter is meant to be asked.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Manifest {
    pub description: Option<String>,
    /// The base that it was made for, by its first digits.
    pub base_digest: Option<String>,
    /// A chat template, in full.
    template: Option<String>,
    pub sampling: SamplingLayer,
    pub golden: Vec<GoldenAnswer>,
}

const KEYS: &[&str] = &["description", "base_digest", "template", "sampling", "golden"];
/// Golden answers of one adapter: each is run before the adapter is served.
const MAX_GOLDEN: usize = 64;

impl Manifest {
    /// Reads the file where there is one, adding every fault.
    pub fn read(bytes: Option<&[u8]>, faults: &mut Faults) -> Self {
        let Some(bytes) = bytes else { return Self::default() };
        let Ok(text) = str::from_utf8(bytes) else {
            faults.add(RefusalCode::MalformedConfig, MANIFEST_FILE, "is not UTF-8");
            return Self::default();
        };
        let table = match text.parse::<toml::Table>() {
            Ok(table) => table,
            Err(error) => {
                faults.add(RefusalCode::MalformedConfig, MANIFEST_FILE, shown(error.message()));
                return Self::default();
            }
        };
        let mut known = true;
        for key in table.keys().filter(|key| !KEYS.contains(&key.as_str())) {
            let reason = format!("is not a key of {MANIFEST_FILE}; known are {}", KEYS.join(", "));
            faults.add(RefusalCode::UnknownKey, shown(key), reason);
            known = false;
        }
        if !known {
            return Self::default();
        }
        let manifest: Self = match table.try_into() {
            Ok(manifest) => manifest,
            Err(error) => {
                faults.add(RefusalCode::MalformedConfig, MANIFEST_FILE, shown(error.message()));
                return Self::default();
            }
        };
        if let Some((_, reason)) = manifest.sampling.fault() {
            faults.add(RefusalCode::MalformedConfig, "sampling", reason);
        }
        if manifest.template.as_ref().is_some_and(|template| template.trim().is_empty()) {
            faults.add(RefusalCode::MalformedConfig, "template", "is empty");
        }
        if let Some(reason) = manifest.base_digest.as_deref().and_then(fingerprint::fault) {
            faults.add(RefusalCode::MalformedConfig, "base_digest", reason);
        }
        if manifest.golden.len() > MAX_GOLDEN {
            let reason = format!("has {} answers; {MAX_GOLDEN} are allowed", manifest.golden.len());
            faults.add(RefusalCode::MalformedConfig, "golden", reason);
        }
        for golden in &manifest.golden {
            if golden.prompt.is_empty() || golden.answer.is_empty() {
                faults.add(RefusalCode::MalformedConfig, "golden", "has an empty prompt or answer");
            }
            if golden.logprob.is_some_and(|logprob| !(logprob <= 0.0 && logprob.is_finite())) {
                faults.add(RefusalCode::MalformedConfig, "golden", "has a logprob that is not 0 or below");
            }
        }
        manifest
    }

    pub fn template(&self) -> Option<TemplateSource> {
        self.template.as_deref().map(TemplateSource::new)
    }
}
