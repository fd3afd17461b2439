//! Embedding and head as whole matrices: trained beside the adapter, or copied into the file by PEFT.

use safetensors::tensor::TensorView;

use super::{
    PREFIX,
    config::LoraConfig,
    weights::{self, Tensors},
};
use crate::{
    adapters::{RefusalCode, check::PlannedSite, faults::Faults},
    model::{BaseWeights, Matrix, ModelShape, Site, SiteDelta},
};

const SITES: [Site; 2] = [Site::Embedding, Site::Head];

/// Whole matrices that take the place of the base's.
pub struct Wholes<'a> {
    pub config: &'a LoraConfig,
    pub shape: &'a ModelShape,
    /// What copies are compared with.
    pub base: Option<&'a dyn BaseWeights>,
    /// The sites that have low-rank deltas.
    pub targeted: &'a dyn Fn(Site) -> bool,
}

/// A matrix for a site, and how it is shown.
pub type Whole = (Site, SiteDelta, PlannedSite);

impl Wholes<'_> {
    /// Takes every whole matrix out of the file.
    pub fn claim(&self, tensors: &mut Tensors<'_>, notes: &mut Vec<String>, faults: &mut Faults) -> Vec<Whole> {
        let mut wholes = Vec::new();
        for site in self.config.saved.iter().copied() {
            let name = format!("{PREFIX}{site}.weight");
            match tensors.take(&name) {
                Some(tensor) => wholes.extend(self.matrix(site, &name, &tensor, faults)),
                None => {
                    let reason = "is to be saved whole by the configuration and has no weight";
                    faults.add(RefusalCode::MissingTensor, site.to_string(), reason);
                }
            }
        }
        wholes.extend(self.copies(tensors, notes, faults));
        wholes
    }

    /// Embedding and head of the base, which PEFT saves by itself beside an adapter that targets them (`get_peft_model_state_dict` in
    /// `peft/utils/save_and_load.py`), and loads over the base's.
    fn copies(&self, tensors: &mut Tensors<'_>, notes: &mut Vec<String>, faults: &mut Faults) -> Vec<Whole> {
        let mut copies: Vec<(String, Site, Matrix)> = Vec::new();
        for site in SITES.into_iter().filter(|site| !self.config.saved.contains(site)) {
            let layer = if (self.targeted)(site) { "base_layer." } else { "" };
            let name = format!("{PREFIX}{site}.{layer}weight");
            let Some(tensor) = tensors.take(&name) else { continue };
            if let Some((site, SiteDelta::Full(matrix), _)) = self.matrix(site, &name, &tensor, faults) {
                copies.push((name, site, matrix));
            }
        }
        if let [(_, _, one), (name, _, other)] = &copies[..]
            && self.shape.tied
        {
            if one != other {
                let reason = "differs from the embedding beside it; this base has one matrix for both";
                faults.add(RefusalCode::Unsupported, name.clone(), reason);
            }
            copies.truncate(1);
        }
        let mut wholes = Vec::new();
        for (name, site, matrix) in copies {
            let Some(base) = self.base else {
                let reason = "is taken for a copy of the base's; only the server, which has the base, can see";
                notes.push(format!("{name} {reason}"));
                continue;
            };
            if self.is_the_bases(base, site, &matrix) {
                notes.push(format!("{name} is a copy of the base's and is passed over"));
                continue;
            }
            notes.push(format!("{name} differs from the base's and takes its place, as it does in PEFT"));
            // Where one matrix is both, PEFT's copy goes over both, but for what is saved apart.
            let over = if self.shape.tied { SITES.as_slice() } else { &[site] };
            let over = over.iter().copied().filter(|site| !self.config.saved.contains(site));
            wholes.extend(over.map(|site| self.planned(site, matrix.clone())));
        }
        wholes
    }

    fn matrix(&self, site: Site, name: &str, tensor: &TensorView<'_>, faults: &mut Faults) -> Option<Whole> {
        let expected = [self.shape.vocab, self.shape.hidden];
        if tensor.shape() != expected {
            let got = tensor.shape();
            let reason = format!("has shape {got:?}, the base has {expected:?}: the vocabulary was resized");
            faults.add(RefusalCode::Unsupported, name, reason);
            return None;
        }
        Some(self.planned(site, weights::matrix(tensor)?))
    }

    fn planned(&self, site: Site, matrix: Matrix) -> Whole {
        let dtype = weights::name_of(&matrix.values);
        let planned = PlannedSite::new(site, [matrix.rows, 0, matrix.cols], 0.0, 1.0, dtype, "full");
        (site, SiteDelta::Full(matrix), planned)
    }

    fn is_the_bases(&self, base: &dyn BaseWeights, site: Site, matrix: &Matrix) -> bool {
        let site = if self.shape.tied { Site::Embedding } else { site };
        let values = matrix.values.to_f32();
        values.chunks_exact(matrix.cols).enumerate().all(|(row, copy)| {
            base.row(site, row).is_some_and(|row| row.iter().map(|x| x.to_bits()).eq(copy.iter().map(|x| x.to_bits())))
        })
    }
}
