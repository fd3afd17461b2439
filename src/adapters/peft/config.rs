use indexmap::IndexMap;

use super::json::Json;
use crate::{
    adapters::{
        RefusalCode,
        faults::{Faults, shown},
    },
    model::Site,
};

/// What `adapter_config.json` says about the maths, with PEFT's defaults
/// (`peft/tuners/lora/config.py`, class `LoraConfig`).
#[derive(Clone, Debug, PartialEq)]
pub struct LoraConfig {
    pub rank: usize,
    pub alpha: f64,
    /// The scale is alpha over the root of the rank, not over the rank.
    pub rank_stabilized: bool,
    /// In the file's order: the first key that fits a module decides.
    pub rank_pattern: IndexMap<String, usize>,
    pub alpha_pattern: IndexMap<String, f64>,
    pub targets: Targets,
    pub exclude: Option<Choice>,
    /// Layers that are changed; `None` is all.
    pub layers: Option<Vec<i64>>,
    /// Where in a path the layer's number stands; empty takes the first number.
    pub layers_pattern: Vec<String>,
    /// `base_model_name_or_path`.
    pub trained_on: Option<String>,
    pub fan_in_fan_out: bool,
    /// `use_dora`
    pub dora: bool,
    /// B has a bias of its own.
    pub lora_bias: bool,
    pub bias: TrainedBias,
    /// `modules_to_save`: embedding and head, trained whole beside the adapter.
    pub saved: Vec<Site>,
}

/// `bias`: which of the base's biases were trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrainedBias {
    None,
    /// Every one that there is.
    All,
    /// Those of targeted modules.
    Targeted,
}

/// `target_modules`.
#[derive(Clone, Debug, PartialEq)]
pub enum Targets {
    /// Null: what PEFT chooses for the family.
    FamilyDefault,
    /// `"all-linear"`: every linear layer except the head.
    AllLinear,
    Chosen(Choice),
}

/// Modules by one pattern for whole paths, or by the ends of their paths.
#[derive(Clone, Debug, PartialEq)]
pub enum Choice {
    Pattern(String),
    Names(Vec<String>),
}

/// Keys without effect on what a trained adapter computes, or without effect unless another, refused key is set.
const HARMLESS: &[&str] = &[
    "auto_mapping",
    "base_model_name_or_path",
    "corda_config",
    "eva_config",
    "fan_in_fan_out",
    "inference_mode",
    "loftq_config",
    "lora_dropout",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// Keys that are read below.
const READ: &[&str] = &[
    "alpha_pattern",
    "bias",
    "exclude_modules",
    "init_lora_weights",
    "layers_pattern",
    "layers_to_transform",
    "lora_alpha",
    "lora_bias",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "target_modules",
    "use_dora",
    "use_rslora",
];

/// Features that change what is computed and are not applied yet, with what they are.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("alora_invocation_tokens", "activated LoRA, an adapter that is switched on within the prompt"),
    ("arrow_config", "routing between adapters (Arrow)"),
    ("ensure_weight_tying", "an adapter shared by embedding and head"),
    ("kasa_config", "a truncated base with a diagonal (KaSA)"),
    ("layer_replication", "a network with repeated layers"),
    ("megatron_config", "Megatron's layout of parallel layers"),
    ("monteclora_config", "MonteCLoRA"),
    ("target_parameters", "LoRA on bare parameters (mixture of experts)"),
    ("trainable_token_indices", "trained token rows"),
    ("use_bdlora", "block-diagonal matrices (BD-LoRA)"),
    ("use_qalora", "QA-LoRA's pooled input"),
    ("velora_config", "VeLoRA"),
];

/// Initialisations that subtract the first product from the base, so that the adapter is right for that base only
/// (`peft/tuners/lora/layer.py`, `pissa_init`, `olora_init`, `corda_init`, `loftq_init`, `lora_ga_init`).
const BASE_CHANGING: &[&str] = &["pissa", "olora", "corda", "loftq", "lora_ga"];
const SAFE_INITIALISATIONS: &[&str] = &["gaussian", "eva", "orthogonal", "mica"];

/// Entries of one pattern map; each is compiled and tried on every module.
const MAX_PATTERNS: usize = 10_000;

impl LoraConfig {
    /// Reads the configuration, adding every fault. `None` if it cannot be known which modules and ranks are meant.
    pub fn read(bytes: &[u8], faults: &mut Faults) -> Option<Self> {
        let map = match Json::parse(bytes) {
            Ok(Json::Map(map)) => map,
            Ok(other) => {
                let reason = format!("holds {} where an object belongs", other.kind());
                faults.add(RefusalCode::MalformedConfig, super::CONFIG_FILE, reason);
                return None;
            }
            Err(error) => {
                faults.add(RefusalCode::MalformedConfig, super::CONFIG_FILE, shown(&error));
                return None;
            }
        };
        let keys = Keys { map: &map };
        keys.refuse_foreign(faults);
        let before = faults.total();
        let config = Self {
            rank: keys.rank(faults),
            alpha: keys.alpha(faults),
            rank_stabilized: keys.flag("use_rslora", faults),
            rank_pattern: keys.pattern_map("rank_pattern", faults, |value| match value {
                Json::Int(rank) => usize::try_from(*rank).ok(),
                _ => None,
            }),
            alpha_pattern: keys.pattern_map("alpha_pattern", faults, number),
            targets: keys.targets(faults),
            exclude: keys.choice("exclude_modules", faults),
            layers: keys.layers(faults),
            layers_pattern: keys.names("layers_pattern", faults),
            trained_on: keys.text("base_model_name_or_path", faults).map(label),
            fan_in_fan_out: keys.flag("fan_in_fan_out", faults),
            dora: keys.flag("use_dora", faults),
            lora_bias: keys.flag("lora_bias", faults),
            bias: keys.bias(faults),
            saved: keys.saved(faults),
        };
        config.check_layers(faults);
        if config.dora && config.lora_bias {
            faults.add(RefusalCode::MalformedConfig, "lora_bias", "cannot be used with use_dora");
        }
        (faults.total() == before).then_some(config)
    }

    /// The combinations that PEFT itself refuses.
    fn check_layers(&self, faults: &mut Faults) {
        let by_names = matches!(self.targets, Targets::FamilyDefault | Targets::Chosen(Choice::Names(_)));
        if self.layers.is_some() && !by_names {
            let reason = "cannot be used when target_modules is a text";
            faults.add(RefusalCode::MalformedConfig, "layers_to_transform", reason);
        }
        if self.layers.is_none() && !self.layers_pattern.is_empty() {
            faults.add(RefusalCode::MalformedConfig, "layers_pattern", "needs layers_to_transform beside it");
        }
    }
}

/// `base_model_name_or_path` as a label: of a path on the machine that trained it, only the last part.
fn label(name: String) -> String {
    let is_path = name.starts_with(['/', '.', '~']) || name.contains('\\') || name.matches('/').count() > 1;
    let last = name.rsplit(['/', '\\']).find(|part| !part.is_empty()).unwrap_or_default();
    shown(if is_path { last } else { &name })
}

fn number(value: &Json) -> Option<f64> {
    match value {
        Json::Int(value) => Some(*value as f64),
        Json::Float(value) => Some(*value),
        Json::Null | Json::Bool(_) | Json::Text(_) | Json::List(_) | Json::Map(_) => None,
    }
}

struct Keys<'a> {
    map: &'a IndexMap<String, Json>,
}

impl Keys<'_> {
    /// The value, unless it is null.
    fn get(&self, key: &str) -> Option<&Json> {
        self.map.get(key).filter(|value| **value != Json::Null)
    }

    /// Everything that is not plain LoRA for the base as it is.
    fn refuse_foreign(&self, faults: &mut Faults) {
        match self.map.get("peft_type") {
            Some(Json::Text(kind)) if kind == "LORA" => {}
            Some(Json::Text(kind)) => {
                faults.add(RefusalCode::NotLora, "peft_type", format!("is {}, only LORA is served", shown(kind)));
            }
            Some(_) | None => faults.add(RefusalCode::NotLora, "peft_type", "is missing; it must be LORA"),
        }
        self.check_initialisation(faults);
        for (key, value) in self.map {
            if value.is_nothing() || HARMLESS.contains(&key.as_str()) || READ.contains(&key.as_str()) {
                continue;
            }
            match UNSUPPORTED.iter().find(|(known, _)| known == key) {
                Some((known, what)) => {
                    faults.add(
                        RefusalCode::Unsupported,
                        *known,
                        format!("means {what}, and that is not supported yet"),
                    );
                }
                None => {
                    let reason = format!("is not a key that is known, and its value is {}", shown(&value.to_string()));
                    faults.add(RefusalCode::UnknownKey, shown(key), reason);
                }
            }
        }
    }

    fn check_initialisation(&self, faults: &mut Faults) {
        const KEY: &str = "init_lora_weights";
        match self.get(KEY) {
            None | Some(Json::Bool(_)) => {}
            Some(Json::Text(name)) => {
                let lower = name.to_lowercase();
                if BASE_CHANGING.iter().any(|known| lower.starts_with(known)) {
                    let reason = format!(
                        "is {}, which changed the base during training: save the adapter with \
                         path_initial_model_for_weight_conversion to make it fit the original base",
                        shown(name)
                    );
                    faults.add(RefusalCode::BaseChanging, KEY, reason);
                } else if !SAFE_INITIALISATIONS.contains(&lower.as_str()) {
                    faults.add(RefusalCode::BaseChanging, KEY, format!("is {}, which is not known", shown(name)));
                }
            }
            Some(other) => {
                faults.add(RefusalCode::MalformedConfig, KEY, format!("is {}", other.kind()));
            }
        }
    }

    fn wrong_kind(key: &str, value: &Json, expected: &str, faults: &mut Faults) {
        faults.add(RefusalCode::MalformedConfig, key, format!("is {} where {expected} belongs", value.kind()));
    }

    fn rank(&self, faults: &mut Faults) -> usize {
        match self.map.get("r") {
            None => 8,
            Some(Json::Int(rank)) => usize::try_from(*rank).unwrap_or(0),
            Some(other) => {
                Self::wrong_kind("r", other, "a whole number", faults);
                0
            }
        }
    }

    fn alpha(&self, faults: &mut Faults) -> f64 {
        let Some(value) = self.map.get("lora_alpha") else { return 8.0 };
        number(value).unwrap_or_else(|| {
            Self::wrong_kind("lora_alpha", value, "a number", faults);
            0.0
        })
    }

    fn flag(&self, key: &'static str, faults: &mut Faults) -> bool {
        match self.get(key) {
            None => false,
            Some(Json::Bool(value)) => *value,
            Some(other) => {
                Self::wrong_kind(key, other, "true or false", faults);
                false
            }
        }
    }

    fn bias(&self, faults: &mut Faults) -> TrainedBias {
        match self.get("bias") {
            None => TrainedBias::None,
            Some(Json::Text(bias)) if bias == "none" => TrainedBias::None,
            Some(Json::Text(bias)) if bias == "all" => TrainedBias::All,
            Some(Json::Text(bias)) if bias == "lora_only" => TrainedBias::Targeted,
            Some(bias) if bias.is_nothing() => TrainedBias::None,
            Some(bias) => {
                let reason = format!("is {}; it must be none, all or lora_only", shown(&bias.to_string()));
                faults.add(RefusalCode::MalformedConfig, "bias", reason);
                TrainedBias::None
            }
        }
    }

    /// Names that PEFT takes for the same modules by each of its ways of comparing them.
    fn saved(&self, faults: &mut Faults) -> Vec<Site> {
        const KEY: &str = "modules_to_save";
        let mut sites = Vec::new();
        for name in self.names(KEY, faults) {
            match name.as_str() {
                "embed_tokens" | "model.embed_tokens" => sites.push(Site::Embedding),
                "lm_head" => sites.push(Site::Head),
                _ => {
                    let reason =
                        format!("has {}; only embed_tokens and lm_head are served as whole modules", shown(&name));
                    faults.add(RefusalCode::Unsupported, KEY, reason);
                }
            }
        }
        sites.sort_unstable();
        sites.dedup();
        sites
    }

    fn text(&self, key: &'static str, faults: &mut Faults) -> Option<String> {
        match self.get(key)? {
            Json::Text(text) => Some(text.clone()),
            other => {
                Self::wrong_kind(key, other, "a text", faults);
                None
            }
        }
    }

    fn pattern_map<T>(
        &self,
        key: &'static str,
        faults: &mut Faults,
        read: impl Fn(&Json) -> Option<T>,
    ) -> IndexMap<String, T> {
        let entries = match self.get(key) {
            None => return IndexMap::new(),
            Some(Json::Map(entries)) => entries,
            Some(other) => {
                Self::wrong_kind(key, other, "an object", faults);
                return IndexMap::new();
            }
        };
        if entries.len() > MAX_PATTERNS {
            let reason = format!("has {} entries; {MAX_PATTERNS} are allowed", entries.len());
            faults.add(RefusalCode::TooLarge, key, reason);
            return IndexMap::new();
        }
        let mut map = IndexMap::with_capacity(entries.len());
        for (pattern, value) in entries {
            match read(value) {
                Some(value) => {
                    map.insert(pattern.clone(), value);
                }
                None => {
                    let reason = format!("has {} for {}", shown(&value.to_string()), shown(pattern));
                    faults.add(RefusalCode::MalformedConfig, key, reason);
                }
            }
        }
        map
    }

    fn targets(&self, faults: &mut Faults) -> Targets {
        match self.choice("target_modules", faults) {
            // PEFT lower-cases it before comparing.
            Some(Choice::Pattern(text)) if text.to_lowercase() == "all-linear" => Targets::AllLinear,
            Some(choice) => Targets::Chosen(choice),
            None if self.get("target_modules").is_some() => Targets::Chosen(Choice::Names(Vec::new())),
            None => Targets::FamilyDefault,
        }
    }

    /// `None` for null, an empty text and an empty list: Python takes all three as not given.
    fn choice(&self, key: &'static str, faults: &mut Faults) -> Option<Choice> {
        let value = self.get(key)?;
        if value.is_nothing() {
            return None;
        }
        match value {
            Json::Text(pattern) => Some(Choice::Pattern(pattern.clone())),
            _ => Some(Choice::Names(self.names(key, faults))),
        }
    }

    /// A list of texts; one text is a list of one.
    fn names(&self, key: &'static str, faults: &mut Faults) -> Vec<String> {
        let items = match self.get(key) {
            None => return Vec::new(),
            Some(Json::Text(text)) if text.is_empty() => return Vec::new(),
            Some(Json::Text(text)) => return vec![text.clone()],
            Some(Json::List(items)) => items,
            Some(other) => {
                Self::wrong_kind(key, other, "a text or a list of texts", faults);
                return Vec::new();
            }
        };
        if items.len() > MAX_PATTERNS {
            let reason = format!("has {} entries; {MAX_PATTERNS} are allowed", items.len());
            faults.add(RefusalCode::TooLarge, key, reason);
            return Vec::new();
        }
        let mut names = Vec::with_capacity(items.len());
        for item in items {
            match item {
                Json::Text(name) => names.push(name.clone()),
                other => Self::wrong_kind(key, other, "a text", faults),
            }
        }
        names
    }

    fn layers(&self, faults: &mut Faults) -> Option<Vec<i64>> {
        const KEY: &str = "layers_to_transform";
        match self.get(KEY)? {
            Json::Int(layer) => Some(vec![*layer]),
            // PEFT takes an empty list as no choice.
            Json::List(items) if items.is_empty() => None,
            Json::List(items) => {
                let layers: Option<Vec<i64>> = items
                    .iter()
                    .map(|item| match item {
                        Json::Int(layer) => Some(*layer),
                        _ => None,
                    })
                    .collect();
                if layers.is_none() {
                    faults.add(RefusalCode::MalformedConfig, KEY, "holds something that is no whole number");
                }
                layers
            }
            other => {
                Self::wrong_kind(KEY, other, "a whole number or a list of them", faults);
                None
            }
        }
    }
}
