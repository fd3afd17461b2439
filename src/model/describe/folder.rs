//! A Hugging Face folder: `config.json` and, where there is one, `generation_config.json`.
//!
//! Defaults are those of `transformers`' configuration classes, which apply when a key is absent.

use std::{
    fs,
    io::Read as _,
    path::{Path, PathBuf},
};

use serde_json::{Map, Value};

use super::{Description, check, check_layers};
use crate::{
    model::{Family, LoadError, ModelShape, Rope},
    terms::SamplingLayer,
};

/// A configuration is a few kilobytes.
const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// Reads a folder's description; also the bytes of `config.json`, for the digest.
///
/// # Errors
/// [`LoadError`] if a file is absent or malformed, the family is not ours, or a setting asks for what we do not compute.
pub fn read_folder(folder: &Path) -> Result<(Description, Vec<u8>), LoadError> {
    let path = folder.join("config.json");
    let bytes = read_capped(&path)?;
    let config = Fields::parse(&path, &bytes)?;
    let shape = shape(&config)?;
    check(&shape)?;
    let mut described = Description {
        shape,
        eos_tokens: config.tokens("eos_token_id")?,
        sampling: SamplingLayer::default(),
        notes: Vec::new(),
    };
    let path = folder.join("generation_config.json");
    if path.is_file() {
        generation(&mut described, &Fields::parse(&path, &read_capped(&path)?)?)?;
    }
    described.eos_tokens.sort_unstable();
    described.eos_tokens.dedup();
    Ok((described, bytes))
}

fn generation(described: &mut Description, config: &Fields) -> Result<(), LoadError> {
    described.eos_tokens.extend(config.tokens("eos_token_id")?);
    let number = |key: &str| Ok::<_, LoadError>(config.number(key)?.map(|value| value as f32));
    let sampling = SamplingLayer {
        temperature: number("temperature")?,
        top_p: number("top_p")?,
        top_k: config.count("top_k")?.map(|top_k| u32::try_from(top_k).unwrap_or(u32::MAX)),
        min_p: number("min_p")?,
        repetition_penalty: number("repetition_penalty")?,
        frequency_penalty: None,
        presence_penalty: None,
    };
    match sampling.fault() {
        None => described.sampling = sampling,
        Some((_, fault)) => {
            described.notes.push(format!("the sampling defaults of generation_config.json are not used: {fault}"));
        }
    }
    Ok(())
}

fn shape(config: &Fields) -> Result<ModelShape, LoadError> {
    let family = match config.text("model_type")? {
        Some("llama") => Family::Llama,
        Some("mistral") => Family::Mistral,
        Some("qwen2") => Family::Qwen2,
        Some("qwen3") => Family::Qwen3,
        Some("smollm3") => Family::SmolLm3,
        Some(other) => return Err(LoadError::Family(other.to_owned())),
        None => return Err(config.wrong("model_type", "a family's name")),
    };
    refuse_what_we_do_not_compute(config)?;
    let (hidden, layers) = (config.needed("hidden_size")?, check_layers(config.needed("num_hidden_layers")?)?);
    let heads = config.needed("num_attention_heads")?;
    let kv_heads = match (config.count("num_key_value_heads")?, family) {
        (Some(kv_heads), _) => kv_heads,
        (None, _) if config.is_null("num_key_value_heads") => heads,
        (None, Family::Llama) => heads,
        (None, Family::Mistral) => 8,
        (None, Family::Qwen2 | Family::Qwen3) => 32,
        (None, Family::SmolLm3) => 4,
    };
    let head_dim = match (config.count("head_dim")?, family) {
        (Some(head_dim), _) => head_dim,
        (None, Family::Qwen3) => 128,
        (None, Family::Llama | Family::Mistral | Family::Qwen2 | Family::SmolLm3) => hidden / heads.max(1),
    };
    let trained = match (config.count("max_position_embeddings")?, family) {
        (Some(positions), _) => positions,
        (None, Family::Llama) => 2048,
        (None, Family::Mistral) => 131_072,
        (None, Family::Qwen2 | Family::Qwen3 | Family::SmolLm3) => 32_768,
    };
    let (rope, max_positions) = rope(config, family, trained)?;
    let attention_bias = config.flag("attention_bias")?.unwrap_or(false);
    let (qkv_bias, output_bias) = match family {
        Family::Qwen2 => (true, false),
        Family::Mistral => (false, false),
        Family::Llama | Family::Qwen3 | Family::SmolLm3 => (attention_bias, attention_bias),
    };
    let ffn_bias = match family {
        Family::Llama | Family::SmolLm3 => config.flag("mlp_bias")?.unwrap_or(false),
        Family::Mistral | Family::Qwen2 | Family::Qwen3 => false,
    };
    let no_rope = no_rope(config, family, layers)?;
    Ok(ModelShape {
        family,
        hidden,
        layers,
        heads,
        kv_heads,
        head_dim,
        ffn: config.needed("intermediate_size")?,
        vocab: config.needed("vocab_size")?,
        max_positions,
        norm_eps: config.number("rms_norm_eps")?.unwrap_or(1e-6),
        rope,
        window: window(config, family, layers, &no_rope)?,
        no_rope,
        tied: config.flag("tie_word_embeddings")?.unwrap_or(family == Family::SmolLm3),
        qkv_bias,
        output_bias,
        ffn_bias,
        qk_norm: family == Family::Qwen3,
    })
}

fn refuse_what_we_do_not_compute(config: &Fields) -> Result<(), LoadError> {
    if let Some(activation) = config.text("hidden_act")?.filter(|activation| *activation != "silu") {
        return Err(LoadError::Unsupported(format!("hidden_act '{activation}' is not supported; silu is")));
    }
    if config.object.get("quantization_config").is_some_and(|value| !value.is_null()) {
        let reason = "quantization_config: quantized safetensors are not supported; use f32, f16, bf16 or a GGUF file";
        return Err(LoadError::Unsupported(reason.to_owned()));
    }
    Ok(())
}

/// The rotary frequencies, and the longest context they are meant for.
fn rope(config: &Fields, family: Family, trained: usize) -> Result<(Rope, usize), LoadError> {
    // `rope_parameters` holds all since transformers 5; before, `rope_theta` stood beside `rope_scaling`.
    let scaling = match config.section("rope_parameters")? {
        Some(section) => section,
        None => config.section("rope_scaling")?.unwrap_or_else(|| config.empty()),
    };
    if let Some((key, _)) = scaling.object.iter().find(|(_, value)| value.is_object()) {
        return Err(LoadError::Unsupported(format!("rope_parameters for each layer type ('{key}') are not supported")));
    }
    for fields in [config, &scaling] {
        if let Some(part) = fields.number("partial_rotary_factor")?.filter(|part| *part != 1.0) {
            return Err(LoadError::Unsupported(format!("partial_rotary_factor {part} is not supported; 1 is")));
        }
    }
    let default_theta = if family == Family::SmolLm3 { 2_000_000.0 } else { 10_000.0 };
    let theta = match scaling.number("rope_theta")? {
        Some(theta) => theta,
        None => config.number("rope_theta")?.unwrap_or(default_theta),
    };
    let kind = match scaling.text("rope_type")? {
        Some(kind) => kind,
        None => scaling.text("type")?.unwrap_or("default"),
    };
    let factor = || scaling.number("factor")?.ok_or_else(|| scaling.wrong("factor", "a number"));
    let original_max_positions = match config.count("original_max_position_embeddings")? {
        Some(positions) => positions,
        None => scaling.count("original_max_position_embeddings")?.unwrap_or(trained),
    };
    let stretched = |length: usize, factor: f64| ((length as f64 * factor) as usize).max(trained);
    Ok(match kind {
        "default" => (Rope::Plain { theta }, trained),
        "linear" => (Rope::Linear { theta, factor: factor()? }, stretched(trained, factor()?)),
        "llama3" => {
            let needed = |key: &str| scaling.number(key)?.ok_or_else(|| scaling.wrong(key, "a number"));
            let (low_freq_factor, high_freq_factor) = (needed("low_freq_factor")?, needed("high_freq_factor")?);
            let factor = factor()?;
            (Rope::Llama3 { theta, factor, low_freq_factor, high_freq_factor, original_max_positions }, trained)
        }
        "yarn" => {
            let factor = factor()?;
            let attention_factor = match scaling.number("attention_factor")? {
                Some(given) => given,
                None => match (scaling.number("mscale")?, scaling.number("mscale_all_dim")?) {
                    (Some(one), Some(all)) if one != 0.0 && all != 0.0 => {
                        Rope::yarn_attention(factor, one) / Rope::yarn_attention(factor, all)
                    }
                    _ => Rope::yarn_attention(factor, 1.0),
                },
            };
            let beta = |key: &str, default: f64| {
                Ok::<_, LoadError>(scaling.number(key)?.filter(|beta| *beta != 0.0).unwrap_or(default))
            };
            let rope = Rope::Yarn {
                theta,
                factor,
                beta_fast: beta("beta_fast", 32.0)?,
                beta_slow: beta("beta_slow", 1.0)?,
                attention_factor,
                original_max_positions,
                truncate: scaling.flag("truncate")?.unwrap_or(true),
            };
            (rope, stretched(original_max_positions, factor))
        }
        other => {
            let reason = format!("rope type '{other}' is not supported; default, linear, llama3 and yarn are");
            return Err(LoadError::Unsupported(reason));
        }
    })
}

fn no_rope(config: &Fields, family: Family, layers: usize) -> Result<Vec<bool>, LoadError> {
    if family != Family::SmolLm3 {
        return Ok(vec![false; layers]);
    }
    if let Some(list) = config.list("no_rope_layers")? {
        // 1 means that the layer uses rotary positions, whatever the key's name says.
        let flags: Option<Vec<bool>> =
            list.iter().take(layers).map(|flag| flag.as_u64().map(|flag| flag == 0)).collect();
        return flags
            .filter(|flags| flags.len() == layers)
            .ok_or_else(|| config.wrong("no_rope_layers", "a list of 0 and 1, one for each layer"));
    }
    let interval = config.count("no_rope_layer_interval")?.unwrap_or(4);
    if interval == 0 {
        return Err(config.wrong("no_rope_layer_interval", "at least 1"));
    }
    Ok((1..=layers).map(|layer| layer.is_multiple_of(interval)).collect())
}

fn window(config: &Fields, family: Family, layers: usize, no_rope: &[bool]) -> Result<Vec<Option<usize>>, LoadError> {
    let in_use = config.flag("use_sliding_window")?.unwrap_or(false);
    let absent = !config.object.contains_key("sliding_window");
    let size = config.count("sliding_window")?;
    let size = match family {
        Family::Llama => None,
        Family::Mistral => size.or(absent.then_some(4096)),
        Family::Qwen2 | Family::Qwen3 => size.or(absent.then_some(4096)).filter(|_| in_use),
        Family::SmolLm3 => size,
    };
    let types = match family {
        Family::Llama | Family::Mistral => None,
        Family::Qwen2 | Family::Qwen3 | Family::SmolLm3 => config.list("layer_types")?,
    };
    if let Some(types) = types {
        if types.len() != layers {
            return Err(config.wrong("layer_types", "one entry for each layer"));
        }
        return types
            .iter()
            .map(|kind| match kind.as_str() {
                Some("full_attention") => Ok(None),
                Some("sliding_attention") => Ok(size),
                _ => Err(LoadError::Unsupported(format!("layer type {kind} is not supported"))),
            })
            .collect();
    }
    let full_layers = config.count("max_window_layers")?.unwrap_or(28);
    let slides = |layer: usize| match family {
        Family::Llama | Family::Mistral => true,
        Family::Qwen2 | Family::Qwen3 => layer >= full_layers,
        Family::SmolLm3 => in_use && no_rope[layer],
    };
    Ok((0..layers).map(|layer| size.filter(|_| slides(layer))).collect())
}

fn read_capped(path: &Path) -> Result<Vec<u8>, LoadError> {
    let io = |error| LoadError::Io { path: path.to_owned(), error };
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(io)?.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > MAX_CONFIG_BYTES {
        let reason = format!("is larger than {MAX_CONFIG_BYTES} bytes");
        return Err(LoadError::Malformed { path: path.to_owned(), reason });
    }
    Ok(bytes)
}

/// A JSON object whose values are asked for by type; null counts as absent.
struct Fields {
    path: PathBuf,
    object: Map<String, Value>,
}

impl Fields {
    fn parse(path: &Path, bytes: &[u8]) -> Result<Self, LoadError> {
        let malformed = |reason: String| LoadError::Malformed { path: path.to_owned(), reason };
        match serde_json::from_slice(bytes) {
            Ok(Value::Object(object)) => Ok(Self { path: path.to_owned(), object }),
            Ok(_) => Err(malformed("is no JSON object".to_owned())),
            Err(error) => Err(malformed(error.to_string())),
        }
    }

    fn empty(&self) -> Self {
        Self { path: self.path.clone(), object: Map::new() }
    }

    fn wrong(&self, key: &str, expected: &str) -> LoadError {
        let got = self.object.get(key).map_or_else(|| "absent".to_owned(), Value::to_string);
        LoadError::Malformed { path: self.path.clone(), reason: format!("{key} must be {expected}; it is {got}") }
    }

    fn is_null(&self, key: &str) -> bool {
        self.object.get(key).is_some_and(Value::is_null)
    }

    fn value<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, LoadError> {
        match self.object.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| self.wrong(key, expected)),
        }
    }

    fn text(&self, key: &str) -> Result<Option<&str>, LoadError> {
        self.value(key, "a string", Value::as_str)
    }

    fn flag(&self, key: &str) -> Result<Option<bool>, LoadError> {
        self.value(key, "true or false", Value::as_bool)
    }

    fn number(&self, key: &str) -> Result<Option<f64>, LoadError> {
        self.value(key, "a finite number", |value| value.as_f64().filter(|number| number.is_finite()))
    }

    fn count(&self, key: &str) -> Result<Option<usize>, LoadError> {
        self.value(key, "a whole number", |value| value.as_u64().and_then(|count| usize::try_from(count).ok()))
    }

    fn needed(&self, key: &str) -> Result<usize, LoadError> {
        self.count(key)?.ok_or_else(|| self.wrong(key, "a whole number"))
    }

    fn list(&self, key: &str) -> Result<Option<&Vec<Value>>, LoadError> {
        self.value(key, "a list", Value::as_array)
    }

    fn section(&self, key: &str) -> Result<Option<Self>, LoadError> {
        let object = self.value(key, "an object", Value::as_object)?;
        Ok(object.map(|object| Self { path: self.path.clone(), object: object.clone() }))
    }

    /// One token id or a list of them.
    fn tokens(&self, key: &str) -> Result<Vec<u32>, LoadError> {
        let token = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let tokens = self.value(key, "a token id or a list of them", |value| match value {
            Value::Array(list) => list.iter().map(token).collect(),
            single => token(single).map(|id| vec![id]),
        })?;
        Ok(tokens.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn described(config: Value) -> Result<ModelShape, LoadError> {
        let mut whole = json!({
            "model_type": "llama", "hidden_size": 64, "num_hidden_layers": 4, "num_attention_heads": 4,
            "intermediate_size": 128, "vocab_size": 512,
        });
        let object = whole.as_object_mut().unwrap();
        object.extend(config.as_object().unwrap().clone());
        shape(&Fields::parse(Path::new("config.json"), whole.to_string().as_bytes())?)
    }

    #[test]
    fn both_layouts_of_rotary_settings_say_the_same() {
        let scaling = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64});
        let old = described(json!({"rope_theta": 5e5, "rope_scaling": scaling})).unwrap();
        let mut parameters = scaling.clone();
        parameters["rope_theta"] = json!(5e5);
        let new = described(json!({"rope_parameters": parameters})).unwrap();
        assert_eq!(old, new);
        assert_eq!(
            old.rope,
            Rope::Llama3 {
                theta: 5e5,
                factor: 8.0,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_positions: 64
            }
        );
        let plain = described(json!({"rope_parameters": {"rope_type": "default", "rope_theta": 7e4}})).unwrap();
        assert_eq!(plain.rope, Rope::Plain { theta: 7e4 });
    }

    #[test]
    fn stretched_rotary_positions_stretch_the_context() {
        let linear = json!({"max_position_embeddings": 100, "rope_scaling": {"type": "linear", "factor": 4.0}});
        assert_eq!(described(linear).unwrap().max_positions, 400);
        let yarn = json!({"max_position_embeddings": 100,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}});
        let yarn = described(yarn).unwrap();
        assert_eq!(yarn.max_positions, 400);
        let Rope::Yarn { attention_factor, beta_fast, beta_slow, truncate, .. } = yarn.rope else { panic!() };
        assert!((attention_factor - (0.1 * 4f64.ln() + 1.0)).abs() < 1e-12);
        assert_eq!((beta_fast, beta_slow, truncate), (32.0, 1.0, true));
        let already = json!({"max_position_embeddings": 400,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 100}});
        assert_eq!(described(already).unwrap().max_positions, 400);
    }

    #[test]
    fn absent_keys_have_the_families_defaults() {
        let mistral = described(json!({"model_type": "mistral"})).unwrap();
        assert_eq!((mistral.kv_heads, mistral.max_positions), (8, 131_072));
        assert_eq!(mistral.window, [Some(4096); 4]);
        let open = described(json!({"model_type": "mistral", "sliding_window": null})).unwrap();
        assert_eq!(open.window, [None; 4]);
        let qwen3 = described(json!({"model_type": "qwen3"})).unwrap();
        assert_eq!((qwen3.head_dim, qwen3.kv_heads, qwen3.qk_norm), (128, 32, true));
        let smollm3 = described(json!({"model_type": "smollm3"})).unwrap();
        assert_eq!((smollm3.tied, smollm3.kv_heads), (true, 4));
        assert_eq!(smollm3.no_rope, [false, false, false, true]);
        assert_eq!(smollm3.rope, Rope::Plain { theta: 2_000_000.0 });
        let llama = described(json!({"attention_bias": true, "mlp_bias": true})).unwrap();
        assert_eq!((llama.kv_heads, llama.head_dim, llama.tied), (4, 16, false));
        assert!(llama.qkv_bias && llama.output_bias && llama.ffn_bias);
        let shared = described(json!({"model_type": "qwen2", "num_key_value_heads": null})).unwrap();
        assert_eq!((shared.kv_heads, shared.qkv_bias, shared.output_bias), (4, true, false));
    }

    #[test]
    fn windows_hold_for_the_layers_that_the_family_says() {
        let qwen2 = json!({"model_type": "qwen2", "use_sliding_window": true, "sliding_window": 32,
            "max_window_layers": 3});
        assert_eq!(described(qwen2).unwrap().window, [None, None, None, Some(32)]);
        let listed = json!({"model_type": "qwen3", "use_sliding_window": true, "sliding_window": 32,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"]});
        assert_eq!(described(listed).unwrap().window, [Some(32), None, None, Some(32)]);
        let idle = json!({"model_type": "qwen3", "sliding_window": 32,
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "full_attention"]});
        assert_eq!(described(idle).unwrap().window, [None; 4]);
        let smollm3 = json!({"model_type": "smollm3", "use_sliding_window": true, "sliding_window": 32});
        assert_eq!(described(smollm3).unwrap().window, [None, None, None, Some(32)]);
        let llama = json!({"sliding_window": 32});
        assert_eq!(described(llama).unwrap().window, [None; 4], "llama has none");
    }

    #[test]
    fn tokens_that_end_a_turn_come_from_both_files_and_defaults_out_of_range_are_named() {
        let folder = tempfile::tempdir().unwrap();
        let config = json!({"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 1,
            "num_attention_heads": 4, "intermediate_size": 128, "vocab_size": 512, "eos_token_id": 9});
        fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
        let generation = |text: Value| {
            fs::write(folder.path().join("generation_config.json"), text.to_string()).unwrap();
            read_folder(folder.path()).unwrap().0
        };
        let good = generation(json!({"eos_token_id": [9, 4], "temperature": 0.6, "top_k": 20, "do_sample": true}));
        assert_eq!(good.eos_tokens, [4, 9]);
        assert_eq!((good.sampling.temperature, good.sampling.top_k), (Some(0.6), Some(20)));
        assert!(good.notes.is_empty());
        let bad = generation(json!({"temperature": 7.0}));
        assert_eq!((bad.eos_tokens.as_slice(), bad.sampling.temperature), (&[9][..], None));
        assert!(bad.notes[0].contains("temperature must be between 0 and 2"), "{:?}", bad.notes);
    }
}
