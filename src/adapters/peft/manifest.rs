use serde::Deserialize;

use super::MANIFEST_FILE;
use crate::{
    adapters::{
        GoldenAnswer, RefusalCode,
        faults::{Faults, shown},
    },
    terms::{SamplingLayer, TemplateSource},
};

/// `adapter.toml`, which may stand beside PEFT's files: how the adapter is meant to be asked.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Manifest {
    pub description: Option<String>,
    /// A chat template, in full.
    template: Option<String>,
    pub sampling: SamplingLayer,
    pub golden: Vec<GoldenAnswer>,
}

const KEYS: &[&str] = &["description", "template", "sampling", "golden"];

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
        manifest
    }

    pub fn template(&self) -> Option<TemplateSource> {
        self.template.as_deref().map(TemplateSource::new)
    }
}
