//! Takes an adapter's tensors out of the file, site by site.

use safetensors::tensor::TensorView;

use super::{
    PREFIX,
    config::{LoraConfig, TrainedBias},
    targets::TargetSite,
    weights::{self, Tensors},
};
use crate::{
    adapters::{
        RefusalCode,
        check::PlannedSite,
        faults::{Faults, shown},
    },
    model::{Matrix, ModelShape, Site, SiteDelta},
};

/// What one claim gives: a delta and how it is shown. `None` after adding why the tensors do not serve.
pub type Claimed = Option<(SiteDelta, PlannedSite)>;

/// Takes everything that belongs to one targeted site.
pub fn targeted(
    target: &TargetSite,
    config: &LoraConfig,
    shape: &ModelShape,
    tensors: &mut Tensors<'_>,
    faults: &mut Faults,
) -> Claimed {
    let path = target.site.to_string();
    let Some((outputs, inputs)) = shape.site_shape(target.site) else {
        faults.add(RefusalCode::UnknownTarget, path, "is not a module of this base");
        return None;
    };
    let mut take = Take { path: &path, tensors, faults };
    if target.site == Site::Embedding {
        let (vocab, hidden) = (outputs, inputs);
        let halves = take.halves(["lora_embedding_A", "lora_embedding_B"], "", [vocab, target.rank, hidden]);
        let magnitude = take.wanted(config.dora, MAGNITUDE, hidden);
        let (a, b, dtype) = halves?;
        let delta = SiteDelta::EmbedLowRank { a, b, scale: target.scale, magnitude: magnitude? };
        return Some((delta, planned(target, config, [hidden, target.rank, vocab], dtype)));
    }
    let halves = take.halves(["lora_A", "lora_B"], ".weight", [inputs, target.rank, outputs]);
    let lora_bias = take.wanted(config.lora_bias, &["lora_B.bias", "lora_B.default.bias"], outputs);
    let magnitude = take.wanted(config.dora, MAGNITUDE, outputs);
    let biased = config.bias != TrainedBias::None && shape.has_bias(target.site);
    let base_bias = take.wanted(biased, &["base_layer.bias"], outputs);
    let (a, b, dtype) = halves?;
    let (lora_bias, base_bias, magnitude) = (lora_bias?, base_bias?, magnitude?);
    let delta = SiteDelta::LowRank { a, b, scale: target.scale, lora_bias, base_bias, magnitude };
    Some((delta, planned(target, config, [outputs, target.rank, inputs], dtype)))
}

fn planned(target: &TargetSite, config: &LoraConfig, shape: [usize; 3], dtype: &'static str) -> PlannedSite {
    let kind = if config.dora { "dora" } else { "lora" };
    PlannedSite::new(target.site, shape, target.alpha, target.scale, dtype, kind)
}

/// Takes the trained bias of a site that is not targeted.
pub fn bias(site: Site, shape: &ModelShape, tensors: &mut Tensors<'_>, faults: &mut Faults) -> Claimed {
    let path = site.to_string();
    let (outputs, inputs) = shape.site_shape(site)?;
    let mut take = Take { path: &path, tensors, faults };
    let bias = take.wanted(true, &["bias"], outputs)??;
    Some((SiteDelta::Bias(bias), PlannedSite::new(site, [outputs, 0, inputs], 0.0, 1.0, "f32", "bias")))
}

/// PEFT writes no `.weight` here; other tools do.
const MAGNITUDE: &[&str] = &[
    "lora_magnitude_vector",
    "lora_magnitude_vector.weight",
    "lora_magnitude_vector.default",
    "lora_magnitude_vector.default.weight",
];

/// Takes the tensors of one module.
struct Take<'t, 'f, 'a> {
    path: &'t str,
    tensors: &'t mut Tensors<'a>,
    faults: &'f mut Faults,
}

impl<'a> Take<'_, '_, 'a> {
    /// A `[r, in]` and B `[out, r]`, and the dtype of A.
    fn halves(
        &mut self,
        [a_name, b_name]: [&str; 2],
        end: &str,
        [inputs, rank, outputs]: [usize; 3],
    ) -> Option<(Matrix, Matrix, &'static str)> {
        // PEFT strips the adapter's name when it saves; other tools leave `default` in.
        let mut take = |half: &str| self.one_of(&[&format!("{half}{end}"), &format!("{half}.default{end}")]);
        let (a, b) = match (take(a_name), take(b_name)) {
            (Some(a), Some(b)) => (a, b),
            (Some(_), None) => {
                self.faults.add(RefusalCode::MissingTensor, self.path, format!("has {a_name} without {b_name}"));
                return None;
            }
            (None, Some(_)) => {
                self.faults.add(RefusalCode::MissingTensor, self.path, format!("has {b_name} without {a_name}"));
                return None;
            }
            (None, None) => {
                let reason = "is targeted by the configuration and has no tensors";
                self.faults.add(RefusalCode::MissingTensor, self.path, reason);
                return None;
            }
        };
        let mut fits = |half: &str, tensor: &TensorView<'_>, expected: [usize; 2]| {
            let fits = tensor.shape() == expected;
            if !fits {
                let reason = format!(
                    "has shape {:?}; this base makes {expected:?} with rank {rank} from the configuration",
                    tensor.shape(),
                );
                self.faults.add(RefusalCode::Shape, format!("{}.{half}", self.path), reason);
            }
            fits
        };
        let (a_fits, b_fits) = (fits(a_name, &a, [rank, inputs]), fits(b_name, &b, [outputs, rank]));
        // A dtype that is not served was refused when the file was opened.
        (a_fits && b_fits).then_some((weights::matrix(&a)?, weights::matrix(&b)?, weights::dtype_name(&a)))
    }

    /// A vector under one of some names, `[length]`: `Some(None)` if it is not wanted, `None` after adding why it does not serve.
    fn wanted(&mut self, wanted: bool, names: &[&str], length: usize) -> Option<Option<Vec<f32>>> {
        if !wanted {
            return Some(None);
        }
        let name = names.first().copied().unwrap_or_default();
        let Some(tensor) = self.one_of(names) else {
            let reason = format!("has no {name}, which the configuration asks for");
            self.faults.add(RefusalCode::MissingTensor, self.path, reason);
            return None;
        };
        if tensor.shape() != [length] {
            let reason = format!("has shape {:?}; this base makes {:?}", tensor.shape(), [length]);
            self.faults.add(RefusalCode::Shape, format!("{}.{name}", self.path), reason);
            return None;
        }
        Some(Some(weights::values(&tensor)?.to_f32()))
    }

    fn one_of(&mut self, names: &[&str]) -> Option<TensorView<'a>> {
        let mut found = None;
        for name in names {
            let name = format!("{PREFIX}{}.{name}", self.path);
            let Some(tensor) = self.tensors.take(&name) else { continue };
            if found.is_some() {
                let reason = "stands there twice, with the name 'default' and without";
                self.faults.add(RefusalCode::UnknownTensor, shown(&name), reason);
            } else {
                found = Some(tensor);
            }
        }
        found
    }
}
