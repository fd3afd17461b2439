//! A PEFT folder to a change at each site of the base. Applies exactly what PEFT would, or refuses with every reason:
//! never a part of an adapter, never the base alone.

mod config;
mod dialect;
mod json;
mod manifest;
mod pattern;
mod targets;
mod weights;

use std::collections::BTreeMap;

use safetensors::tensor::TensorView;

use self::{config::LoraConfig, manifest::Manifest, targets::TargetSite, weights::Tensors};
use super::{
    AdapterCard, AdapterLimits, Refusal, RefusalCode,
    check::{AdapterPlan, PlannedSite},
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
    /// In the order of the network, each site once.
    pub sites: Vec<(Site, SiteDelta)>,
}

/// Reads an adapter for the base of `shape`. With `base`, full copies of embedding and head that PEFT saved by itself are
/// compared with the base's and passed over if they are the same; without, they are refused.
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
    let mut sites = Vec::with_capacity(targeted.len());
    let mut planned = Vec::with_capacity(targeted.len());
    for target in &targeted {
        if let Some((delta, site)) = claim(target, shape, &mut tensors, &mut faults) {
            sites.push((target.site, delta));
            planned.push(site);
        }
    }
    refuse_what_is_left(tensors.into_left(), shape, base, &mut notes, &mut faults);
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

/// Takes A and B of one site out of the file. `None` after adding why they do not serve.
fn claim(
    target: &TargetSite,
    shape: &ModelShape,
    tensors: &mut Tensors<'_>,
    faults: &mut Faults,
) -> Option<(SiteDelta, PlannedSite)> {
    let path = target.site.to_string();
    let Some((outputs, inputs)) = shape.site_shape(target.site) else {
        faults.add(RefusalCode::UnknownTarget, path, "is not a module of this base");
        return None;
    };
    let a = take_half(&path, "lora_A", tensors, faults);
    let b = take_half(&path, "lora_B", tensors, faults);
    let (a, b) = match (a, b) {
        (Some(a), Some(b)) => (a, b),
        (Some(_), None) => {
            faults.add(RefusalCode::MissingTensor, path, "has lora_A without lora_B");
            return None;
        }
        (None, Some(_)) => {
            faults.add(RefusalCode::MissingTensor, path, "has lora_B without lora_A");
            return None;
        }
        (None, None) => {
            faults.add(RefusalCode::MissingTensor, path, "is targeted by the configuration and has no tensors");
            return None;
        }
    };
    let mut fits = |half: &str, tensor: &TensorView<'_>, expected: [usize; 2], what: &str| {
        let fits = tensor.shape() == expected;
        if !fits {
            let reason = format!(
                "has shape {:?}; {what} makes {expected:?} with rank {} from the configuration",
                tensor.shape(),
                target.rank
            );
            faults.add(RefusalCode::Shape, format!("{path}.{half}"), reason);
        }
        fits
    };
    let a_fits = fits("lora_A", &a, [target.rank, inputs], "this base");
    let b_fits = fits("lora_B", &b, [outputs, target.rank], "this base");
    if !(a_fits && b_fits) {
        return None;
    }
    let dtype = weights::dtype_name(&a);
    // A dtype that is not served was refused when the file was opened.
    let (a, b) = (weights::matrix(&a)?, weights::matrix(&b)?);
    let delta = SiteDelta::LowRank { a, b, scale: target.scale, lora_bias: None, base_bias: None, gain: None };
    let dimensions = [outputs, target.rank, inputs];
    Some((delta, PlannedSite::new(target.site, dimensions, target.alpha, target.scale, dtype)))
}

/// PEFT strips the adapter's name when it saves; other tools leave `default` in.
fn take_half<'a>(path: &str, half: &str, tensors: &mut Tensors<'a>, faults: &mut Faults) -> Option<TensorView<'a>> {
    let plain = format!("{PREFIX}{path}.{half}.weight");
    let named = format!("{PREFIX}{path}.{half}.default.weight");
    if tensors.contains(&plain) && tensors.contains(&named) {
        faults.add(
            RefusalCode::UnknownTensor,
            shown(&named),
            "stands there twice, with the name 'default' and without",
        );
        tensors.take(&named);
    }
    tensors.take(&plain).or_else(|| tensors.take(&named))
}

/// Every tensor must have been claimed: what is left would be left out in silence.
fn refuse_what_is_left(
    left: BTreeMap<String, TensorView<'_>>,
    shape: &ModelShape,
    base: Option<&dyn BaseWeights>,
    notes: &mut Vec<String>,
    faults: &mut Faults,
) {
    for (name, tensor) in left {
        let subject = shown(&name);
        let Some(path) = name.strip_prefix(PREFIX) else {
            let reason = format!("does not begin with {PREFIX}, as PEFT's names do");
            faults.add(RefusalCode::UnknownTensor, subject, reason);
            continue;
        };
        if let Some(site) = full_copy_of(path) {
            match same_as_base(&tensor, site, shape, base) {
                Ok(()) => notes.push(format!("{subject} is a copy of the base's and is passed over")),
                Err(reason) => faults.add(RefusalCode::Unsupported, subject, reason),
            }
            continue;
        }
        let unsupported = [
            ("lora_embedding_", "LoRA on the embedding is not supported yet"),
            ("lora_magnitude_vector", "DoRA's magnitudes are not supported yet"),
            ("lora_B.bias", "a bias on lora_B is not supported yet"),
            ("lora_B.default.bias", "a bias on lora_B is not supported yet"),
            ("modules_to_save", "whole modules trained beside the adapter are not supported yet"),
            ("trainable_tokens", "replaced embedding rows are not supported yet"),
            ("lm_head.lora_", "LoRA on the head is not supported yet"),
        ];
        match unsupported.iter().find(|(part, _)| path.contains(part)) {
            Some((_, reason)) => faults.add(RefusalCode::Unsupported, subject, *reason),
            None => faults.add(RefusalCode::UnknownTensor, subject, reason_unclaimed(path, shape)),
        }
    }
}

fn reason_unclaimed(path: &str, shape: &ModelShape) -> &'static str {
    let module = path.split_once(".lora_").map(|(module, _)| module);
    match module {
        Some(module) if shape.layer_sites().any(|site| site.to_string() == module) => {
            "belongs to a module that the configuration does not target"
        }
        Some(_) => "belongs to a module that this base does not have",
        None => "is nothing that plain LoRA uses",
    }
}

/// Whether the tensor is a whole embedding or head, under the names that PEFT saves them by itself.
fn full_copy_of(path: &str) -> Option<Site> {
    match path {
        "model.embed_tokens.weight" | "model.embed_tokens.base_layer.weight" => Some(Site::Embedding),
        "lm_head.weight" | "lm_head.base_layer.weight" => Some(Site::Head),
        _ => None,
    }
}

fn same_as_base(
    tensor: &TensorView<'_>,
    site: Site,
    shape: &ModelShape,
    base: Option<&dyn BaseWeights>,
) -> Result<(), String> {
    const UNSUPPORTED: &str = "whole modules trained beside the adapter are not supported yet";
    if tensor.shape() != [shape.vocab, shape.hidden] {
        let expected = [shape.vocab, shape.hidden];
        return Err(format!("has shape {:?}, the base has {expected:?}: the vocabulary was resized", tensor.shape()));
    }
    let Some(base) = base else {
        return Err(format!(
            "{UNSUPPORTED}; only the server, which has the base, can see whether this is a plain copy"
        ));
    };
    let site = if shape.tied { Site::Embedding } else { site };
    let values = weights::values(tensor).ok_or("has a dtype that is not served")?.to_f32();
    let same = values.chunks_exact(shape.hidden).enumerate().all(|(row, copy)| {
        base.row(site, row).is_some_and(|row| row.iter().map(|x| x.to_bits()).eq(copy.iter().map(|x| x.to_bits())))
    });
    if same { Ok(()) } else { Err(format!("differs from the base's; {UNSUPPORTED}")) }
}

#[cfg(test)]
mod tests;
