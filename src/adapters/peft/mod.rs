//! A PEFT folder to a change at each site of the base. Applies exactly what PEFT would, or refuses with every reason:
//! never a part of an adapter, never the base alone.

mod claim;
mod config;
mod dialect;
mod json;
mod manifest;
mod pattern;
mod targets;
mod weights;
mod whole;

use std::collections::BTreeMap;

use safetensors::tensor::TensorView;

use self::{
    config::{LoraConfig, TrainedBias},
    manifest::Manifest,
    weights::Tensors,
    whole::Wholes,
};
use super::{
    AdapterCard, AdapterLimits, Refusal, RefusalCode,
    check::AdapterPlan,
    faults::{Faults, shown},
    folder::{AdapterFiles, CONFIG_FILE, MANIFEST_FILE, WEIGHTS_FILE},
};
use crate::model::{BaseWeights, ModelShape, Site, SiteDelta};

/// What PEFT puts before every path in its files.
const PREFIX: &str = "base_model.model.";

/// An adapter that was read and checked in full.
#[derive(Debug)]
pub struct PeftAdapter {
    pub card: AdapterCard,
    pub plan: AdapterPlan,
    /// In the order of the network. Embedding and head may stand there twice: a whole matrix, and what is added to it.
    pub sites: Vec<(Site, SiteDelta)>,
}

/// Reads an adapter for the base of `shape`. With `base`, full copies of embedding and head that PEFT saved by itself are
/// compared with the base's, and taken in its place if they differ; without, they are taken to be the same.
///
/// # Errors
/// Every fault that was found, not only the first.
pub fn read(
    files: &AdapterFiles,
    shape: &ModelShape,
    limits: AdapterLimits,
    base: Option<&dyn BaseWeights>,
) -> Result<PeftAdapter, Vec<Refusal>> {
    let mut faults = Faults::default();
    let manifest = Manifest::read(files.manifest(), &mut faults);
    let config = LoraConfig::read(files.config(), &mut faults);
    let tensors = Tensors::open(files.weights(), &mut faults);
    let (Some(config), Some(mut tensors)) = (config, tensors) else { return Err(faults.into_list()) };
    let Some(targeted) = targets::targeted(&config, shape, limits.max_rank, &mut faults) else {
        return Err(faults.into_list());
    };

    let mut notes = Vec::new();
    let is_target = |site: Site| targeted.iter().any(|target| target.site == site);
    let wholes = Wholes { config: &config, shape, base, targeted: &is_target };
    let mut claimed = wholes.claim(&mut tensors, &mut notes, &mut faults);
    for target in &targeted {
        let taken = claim::targeted(target, &config, shape, &mut tensors, &mut faults);
        claimed.extend(taken.map(|(delta, planned)| (target.site, delta, planned)));
    }
    if config.bias == TrainedBias::All {
        for site in shape.layer_sites().filter(|site| shape.has_bias(*site) && !is_target(*site)) {
            let taken = claim::bias(site, shape, &mut tensors, &mut faults);
            claimed.extend(taken.map(|(delta, planned)| (site, delta, planned)));
        }
    }
    // Stable: a whole matrix stays before what is added to it.
    claimed.sort_by_key(|(site, ..)| *site);
    let mut sites = Vec::with_capacity(claimed.len());
    let mut planned = Vec::with_capacity(claimed.len());
    for (site, delta, plan) in claimed {
        sites.push((site, delta));
        planned.push(plan);
    }
    refuse_what_is_left(tensors.into_left(), shape, &mut faults);
    if config.fan_in_fan_out {
        notes.push("fan_in_fan_out has no effect on linear layers, as in PEFT".to_owned());
    }
    if !faults.is_empty() {
        return Err(faults.into_list());
    }

    let mut modules: Vec<String> = planned.iter().map(|site| site.short_name().to_owned()).collect();
    modules.sort();
    modules.dedup();
    let card = AdapterCard {
        rank: planned.iter().map(|site| site.rank).max().unwrap_or(0),
        targets: modules,
        file_bytes: files.weights().len() as u64,
        trained_on: config.trained_on,
        template: manifest.template(),
        base_digest: manifest.base_digest,
        sampling: manifest.sampling,
        description: manifest.description,
        golden: manifest.golden,
        notes,
    };
    let plan = AdapterPlan::new(files.version(), &card, planned);
    Ok(PeftAdapter { card, plan, sites })
}

/// Every tensor must have been claimed: what is left would be left out in silence.
fn refuse_what_is_left(left: BTreeMap<String, TensorView<'_>>, shape: &ModelShape, faults: &mut Faults) {
    for (name, _) in left {
        let subject = shown(&name);
        match name.strip_prefix(PREFIX) {
            None => {
                let reason = format!("does not begin with {PREFIX}, as PEFT's names do");
                faults.add(RefusalCode::UnknownTensor, subject, reason);
            }
            Some(path) if path.contains("trainable_tokens") => {
                faults.add(
                    RefusalCode::Unsupported,
                    subject,
                    "holds trained token rows, and those are not supported yet",
                );
            }
            Some(path) => faults.add(RefusalCode::UnknownTensor, subject, reason_unclaimed(path, shape)),
        }
    }
}

fn reason_unclaimed(path: &str, shape: &ModelShape) -> &'static str {
    let asked_for = [
        ("lora_magnitude_vector", "holds DoRA's magnitudes, and the configuration does not use them there"),
        ("lora_B.bias", "is a bias on lora_B, and the configuration has none there"),
        (".bias", "is a bias, and the configuration trains none there or this base has none"),
    ];
    let module = path.split_once(".lora_").map(|(module, _)| module);
    match module {
        _ if asked_for.iter().any(|(part, _)| path.contains(part)) => {
            asked_for.iter().find(|(part, _)| path.contains(part)).map_or("", |(_, reason)| reason)
        }
        Some(module) if shape.layer_sites().any(|site| site.to_string() == module) => {
            "belongs to a module that the configuration does not target"
        }
        Some(_) => "belongs to a module that this base does not have",
        None => "is nothing that LoRA uses",
    }
}

#[cfg(test)]
mod tests;
