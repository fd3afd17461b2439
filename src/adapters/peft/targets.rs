use super::{
    config::{Choice, LoraConfig, Targets},
    pattern::{PatternError, PythonPattern},
};
use crate::{
    adapters::{
        RefusalCode,
        faults::{Faults, shown},
    },
    model::{Family, ModelShape, Site},
};

/// One module of the base, as PEFT sees it when it walks the network.
#[derive(Clone, Debug, PartialEq)]
pub struct Module {
    pub path: String,
    pub kind: ModuleKind,
}

/// What a module is to LoRA.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum ModuleKind {
    /// A linear layer inside a decoder layer.
    Linear(Site),
    Embedding,
    /// The linear layer that `all-linear` leaves out.
    Head,
    /// A norm, an activation or a part that holds others: PEFT has no LoRA for it.
    Other,
}

/// Every module of the base, in the network's order.
pub fn modules(shape: &ModelShape) -> Vec<Module> {
    let mut modules = Vec::new();
    let mut add = |path: String, kind| modules.push(Module { path, kind });
    add("model".to_owned(), ModuleKind::Other);
    add("model.embed_tokens".to_owned(), ModuleKind::Embedding);
    add("model.layers".to_owned(), ModuleKind::Other);
    for layer in 0..shape.layers {
        let mut parts = vec!["", ".self_attn", ".mlp", ".mlp.act_fn", ".input_layernorm", ".post_attention_layernorm"];
        if shape.qk_norm {
            parts.extend([".self_attn.q_norm", ".self_attn.k_norm"]);
        }
        parts.into_iter().for_each(|part| add(format!("model.layers.{layer}{part}"), ModuleKind::Other));
    }
    shape.layer_sites().for_each(|site| add(site.to_string(), ModuleKind::Linear(site)));
    add("model.norm".to_owned(), ModuleKind::Other);
    add("model.rotary_emb".to_owned(), ModuleKind::Other);
    add("lm_head".to_owned(), ModuleKind::Head);
    modules
}

/// One targeted site with its own rank and alpha.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TargetSite {
    pub site: Site,
    pub rank: usize,
    pub alpha: f64,
    /// s, computed in double precision and rounded once, as PyTorch does with a Python number.
    pub scale: f32,
}

/// Which sites of the base the configuration means, and with which rank, alpha and scale: as
/// `check_target_module_exists` (`peft/tuners/tuners_utils.py`) and `_create_and_replace` (`peft/tuners/lora/model.py`)
/// decide. Adds every fault; `None` if a pattern cannot be read, so that nothing is known.
pub fn targeted(
    config: &LoraConfig,
    shape: &ModelShape,
    max_rank: usize,
    faults: &mut Faults,
) -> Option<Vec<TargetSite>> {
    let modules = modules(shape);
    let rules = Rules::compile(config, shape, faults)?;
    rules.refuse_what_fits_nothing(config, &modules, shape, faults);
    let mut sites = Vec::new();
    let mut any = false;
    for module in &modules {
        // What is trained whole is never given a low rank as well.
        let saved = match module.kind {
            ModuleKind::Embedding => config.saved.contains(&Site::Embedding),
            ModuleKind::Head => config.saved.contains(&Site::Head),
            ModuleKind::Linear(_) | ModuleKind::Other => false,
        };
        if saved {
            continue;
        }
        let targeted = match rules.select(module) {
            Ok(targeted) => targeted,
            Err((key, error)) => {
                faults.add(RefusalCode::Pattern, key, error.to_string());
                return None;
            }
        };
        if !targeted {
            continue;
        }
        any = true;
        let path = &module.path;
        let site = match module.kind {
            ModuleKind::Linear(site) => site,
            ModuleKind::Embedding if config.lora_bias => {
                let reason = format!("takes in {path}, and lora_bias is for linear layers");
                faults.add(RefusalCode::Unsupported, "target_modules", reason);
                continue;
            }
            ModuleKind::Embedding => Site::Embedding,
            ModuleKind::Head => Site::Head,
            ModuleKind::Other => {
                let reason = format!("takes in {path}, which is no linear layer");
                faults.add(RefusalCode::Unsupported, "target_modules", reason);
                continue;
            }
        };
        match rules.rank_and_alpha(config, path, max_rank, faults) {
            Ok(Some((rank, alpha, scale))) => sites.push(TargetSite { site, rank, alpha, scale }),
            Ok(None) => {}
            Err((key, error)) => {
                faults.add(RefusalCode::Pattern, key, error.to_string());
                return None;
            }
        }
    }
    if !any {
        faults.add(RefusalCode::UnknownTarget, "target_modules", "fits no module of this base");
    }
    Some(sites)
}

type Failed = (&'static str, PatternError);

struct Rules {
    targets: Compiled,
    exclude: Option<Compiled>,
    /// With the layers that are meant, where only some are.
    layers: Option<(Vec<i64>, Vec<PythonPattern>)>,
    rank_pattern: Vec<(PythonPattern, usize)>,
    alpha_pattern: Vec<(PythonPattern, f64)>,
}

enum Compiled {
    AllLinear,
    Pattern(PythonPattern),
    Names(Vec<String>),
}

impl Compiled {
    /// `path == name or path.endswith("." + name)`; whether it is equal matters to the caller.
    fn names_fit(names: &[String], path: &str) -> (bool, bool) {
        let equal = names.iter().any(|name| name == path);
        let ends = || names.iter().any(|name| path.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.')));
        (equal, equal || ends())
    }
}

impl Rules {
    fn compile(config: &LoraConfig, shape: &ModelShape, faults: &mut Faults) -> Option<Self> {
        let before = faults.total();
        let mut compile = |key: &'static str, text: &str, how: fn(&str) -> Result<PythonPattern, PatternError>| {
            how(text).map_err(|error| faults.add(RefusalCode::Pattern, key, format!("'{}' {error}", shown(text)))).ok()
        };
        let mut choice = |key, choice: &Choice| match choice {
            Choice::Pattern(text) => compile(key, text, PythonPattern::full).map(Compiled::Pattern),
            Choice::Names(names) => Some(Compiled::Names(names.clone())),
        };
        let targets = match &config.targets {
            Targets::AllLinear => Some(Compiled::AllLinear),
            Targets::Chosen(chosen) => choice("target_modules", chosen),
            Targets::FamilyDefault => family_default(shape.family).map(Compiled::Names),
        };
        let exclude = config.exclude.as_ref().and_then(|exclude| choice("exclude_modules", exclude));
        let layers = config.layers.as_ref().map(|layers| {
            let patterns = match config.layers_pattern.as_slice() {
                [] => Vec::from_iter(PythonPattern::any_layer()),
                patterns => {
                    patterns.iter().filter_map(|text| compile("layers_pattern", text, PythonPattern::layer)).collect()
                }
            };
            (layers.clone(), patterns)
        });
        let mut rank_pattern = Vec::with_capacity(config.rank_pattern.len());
        for (text, rank) in &config.rank_pattern {
            rank_pattern.extend(compile("rank_pattern", text, PythonPattern::tail).map(|pattern| (pattern, *rank)));
        }
        let mut alpha_pattern = Vec::with_capacity(config.alpha_pattern.len());
        for (text, alpha) in &config.alpha_pattern {
            alpha_pattern.extend(compile("alpha_pattern", text, PythonPattern::tail).map(|pattern| (pattern, *alpha)));
        }
        if targets.is_none() && faults.total() == before {
            let reason = "is null, and PEFT has no default for this family: name the modules";
            faults.add(RefusalCode::MalformedConfig, "target_modules", reason);
        }
        (faults.total() == before).then_some(Self { targets: targets?, exclude, layers, rank_pattern, alpha_pattern })
    }

    fn select(&self, module: &Module) -> Result<bool, Failed> {
        let path = module.path.as_str();
        match &self.exclude {
            Some(Compiled::Pattern(pattern)) if pattern.matches(path).map_err(|e| ("exclude_modules", e))? => {
                return Ok(false);
            }
            Some(Compiled::Names(names)) if Compiled::names_fit(names, path).1 => return Ok(false),
            Some(Compiled::Pattern(_) | Compiled::Names(_) | Compiled::AllLinear) | None => {}
        }
        match &self.targets {
            Compiled::AllLinear => Ok(matches!(module.kind, ModuleKind::Linear(_))),
            Compiled::Pattern(pattern) => pattern.matches(path).map_err(|e| ("target_modules", e)),
            Compiled::Names(names) => match Compiled::names_fit(names, path) {
                // A module named in full is changed whatever its layer.
                (true, _) => Ok(true),
                (false, true) => self.layer_is_meant(path),
                (false, false) => Ok(false),
            },
        }
    }

    fn layer_is_meant(&self, path: &str) -> Result<bool, Failed> {
        let Some((layers, patterns)) = &self.layers else { return Ok(true) };
        for pattern in patterns {
            if let Some(layer) = pattern.layer_of(path).map_err(|e| ("layers_pattern", e))? {
                return Ok(layer.is_some_and(|layer| layers.iter().any(|meant| u64::try_from(*meant) == Ok(layer))));
            }
        }
        Ok(false)
    }

    /// Names and layers that the base does not have: the adapter was made for another one.
    fn refuse_what_fits_nothing(
        &self,
        config: &LoraConfig,
        modules: &[Module],
        shape: &ModelShape,
        faults: &mut Faults,
    ) {
        if let Compiled::Names(names) = &self.targets {
            for name in names {
                let one = std::slice::from_ref(name);
                if !modules.iter().any(|module| Compiled::names_fit(one, &module.path).1) {
                    let reason = format!("'{}' fits no module of this base", shown(name));
                    faults.add(RefusalCode::UnknownTarget, "target_modules", reason);
                }
            }
        }
        for layer in config.layers.iter().flatten() {
            if usize::try_from(*layer).map_or(true, |layer| layer >= shape.layers) {
                let reason = format!(
                    "layer {layer} does not exist; this base has layers 0 to {}",
                    shape.layers.saturating_sub(1)
                );
                faults.add(RefusalCode::UnknownTarget, "layers_to_transform", reason);
            }
        }
    }

    /// Rank, alpha and scale of one module; `None` after adding why they cannot be used.
    fn rank_and_alpha(
        &self,
        config: &LoraConfig,
        path: &str,
        max_rank: usize,
        faults: &mut Faults,
    ) -> Result<Option<(usize, f64, f32)>, Failed> {
        let (mut rank, mut rank_key) = (config.rank, "r");
        for (pattern, value) in &self.rank_pattern {
            if pattern.matches(path).map_err(|e| ("rank_pattern", e))? {
                (rank, rank_key) = (*value, "rank_pattern");
                break;
            }
        }
        let (mut alpha, mut alpha_key) = (config.alpha, "lora_alpha");
        for (pattern, value) in &self.alpha_pattern {
            if pattern.matches(path).map_err(|e| ("alpha_pattern", e))? {
                (alpha, alpha_key) = (*value, "alpha_pattern");
                break;
            }
        }
        if rank == 0 || rank > max_rank {
            let reason = format!("gives rank {rank}; ranks from 1 to {max_rank} are served");
            faults.add(RefusalCode::Rank, rank_key, reason);
            return Ok(None);
        }
        let divisor = if config.rank_stabilized { (rank as f64).sqrt() } else { rank as f64 };
        let scale = (alpha / divisor) as f32;
        if !(scale.is_finite() && scale > 0.0) {
            faults.add(RefusalCode::Rank, alpha_key, format!("gives alpha {alpha:?}; it must be positive and finite"));
            return Ok(None);
        }
        Ok(Some((rank, alpha, scale)))
    }
}

/// `TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING` in `peft/utils/constants.py`.
fn family_default(family: Family) -> Option<Vec<String>> {
    match family {
        Family::Llama | Family::Mistral | Family::Qwen2 | Family::Qwen3 => {
            Some(vec!["q_proj".to_owned(), "v_proj".to_owned()])
        }
        Family::SmolLm3 => None,
    }
}
