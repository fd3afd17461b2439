//! The file that says which adapters there shall be: names, sources, versions. Our own form in TOML, YAML or JSON, or the
//! form of the LoRA sidecar that Kubernetes' inference gateway had (`vLLMLoRAConfig`: `tools/dynamic-lora-sidecar` in
//! kubernetes-sigs/gateway-api-inference-extension up to 1.4).
//!
//! ```toml
//! absent = ["old-adapter"]
//!
//! [adapters.ticket-triage]
//! source = "bucket:ticket-triage"     # an object of a source, or a path under an --adapter-dir
//! version = "1a2b3c4d5e6f"            # perhaps: only these bytes
//! pinned = true                       # perhaps: stays in memory
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    path::Path,
};

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::yaml;
use crate::terms::AdapterName;

/// What the file says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    pub adapters: BTreeMap<AdapterName, Wish>,
    /// Names that shall not be served.
    pub absent: BTreeSet<AdapterName>,
    /// A name that this file brought and no longer has goes. The sidecar left such names alone.
    pub complete: bool,
    /// Entries that cannot be followed, one sentence each; the others are.
    pub faults: Vec<String>,
}

/// One adapter that shall be served.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    pub source: String,
    /// The first digits of the version that it has to be, 6 or more.
    #[serde(default)]
    pub version: Option<String>,
    #[serde(default)]
    pub pinned: Option<bool>,
}

const MAX_BYTES: u64 = 4 << 20;

impl Desired {
    /// # Errors
    /// If the file cannot be read or has neither form.
    pub fn read(path: &Path) -> Result<Self, String> {
        let mut text = String::new();
        let file = std::fs::File::open(path).map_err(|error| error.to_string())?;
        file.take(MAX_BYTES + 1).read_to_string(&mut text).map_err(|error| error.to_string())?;
        if text.len() as u64 > MAX_BYTES {
            return Err(format!("it has more than {MAX_BYTES} bytes"));
        }
        Self::parse(&text, path.extension().is_some_and(|kind| kind == "toml"))
    }

    fn parse(text: &str, toml: bool) -> Result<Self, String> {
        let value = if toml {
            toml::from_str::<Value>(text).map_err(|error| error.to_string().trim_end().to_owned())?
        } else {
            // JSON is YAML as well.
            yaml::parse(text)?
        };
        match value {
            Value::Object(mut table) => match table.remove("vLLMLoRAConfig") {
                Some(sidecar) => Self::of_sidecar(sidecar),
                None => Self::of_own(Value::Object(table)),
            },
            // An empty file says nothing. It does not say that there shall be nothing.
            _ => Err("it says nothing: there is neither 'adapters' nor 'vLLMLoRAConfig' in it".to_owned()),
        }
    }

    fn of_own(value: Value) -> Result<Self, String> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Own {
            #[serde(deserialize_with = "or_default")]
            adapters: BTreeMap<String, Value>,
            #[serde(default, deserialize_with = "or_default")]
            absent: Vec<String>,
        }
        let own: Own = serde_json::from_value(value).map_err(|error| error.to_string())?;
        let mut desired = Self { complete: true, ..Self::default() };
        for (name, wish) in own.adapters {
            match serde_json::from_value::<Wish>(wish) {
                Ok(wish) => desired.wish(&name, wish),
                Err(error) => desired.faults.push(format!("'{}': {error}", name.escape_debug())),
            }
        }
        for name in own.absent {
            desired.not(&name);
        }
        desired.without_both();
        Ok(desired)
    }

    fn of_sidecar(value: Value) -> Result<Self, String> {
        #[derive(Default, Deserialize)]
        struct Models {
            #[serde(default, deserialize_with = "or_default")]
            models: Vec<Value>,
        }
        #[derive(Deserialize)]
        struct Sidecar {
            #[serde(default, rename = "ensureExist", deserialize_with = "or_default")]
            exist: Models,
            #[serde(default, rename = "ensureNotExist", deserialize_with = "or_default")]
            not_exist: Models,
        }
        #[derive(Deserialize)]
        struct Model {
            id: String,
            source: String,
            /// In the first versions of the sidecar.
            #[serde(default, rename = "toRemove")]
            to_remove: bool,
        }
        #[derive(Deserialize)]
        struct Gone {
            id: String,
        }
        let sidecar: Sidecar = serde_json::from_value(value).map_err(|error| format!("vLLMLoRAConfig: {error}"))?;
        let mut desired = Self::default();
        for (at, model) in sidecar.exist.models.into_iter().enumerate() {
            match serde_json::from_value::<Model>(model) {
                Ok(Model { id, to_remove: true, .. }) => desired.not(&id),
                Ok(Model { id, source, .. }) => desired.wish(&id, Wish { source, version: None, pinned: None }),
                Err(error) => desired.faults.push(format!("ensureExist, model {}: {error}", at + 1)),
            }
        }
        for (at, model) in sidecar.not_exist.models.into_iter().enumerate() {
            match serde_json::from_value::<Gone>(model) {
                Ok(gone) => desired.not(&gone.id),
                Err(error) => desired.faults.push(format!("ensureNotExist, model {}: {error}", at + 1)),
            }
        }
        desired.without_both();
        Ok(desired)
    }

    fn wish(&mut self, name: &str, wish: Wish) {
        let version_ok = wish.version.as_deref().is_none_or(|version| {
            (6..=64).contains(&version.len()) && version.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'))
        });
        match AdapterName::parse(name) {
            Ok(_) if !version_ok => {
                self.faults.push(format!("'{name}': a version is 6 to 64 lower-case hex digits"));
            }
            Ok(name) => match self.adapters.get(&name) {
                Some(first) if *first != wish => {
                    let fault = format!("'{name}' stands there twice with different sources; the first counts");
                    self.faults.push(fault);
                }
                Some(_) => {}
                None => {
                    self.adapters.insert(name, wish);
                }
            },
            Err(error) => self.faults.push(error.to_string()),
        }
    }

    fn not(&mut self, name: &str) {
        match AdapterName::parse(name) {
            Ok(name) => {
                self.absent.insert(name);
            }
            Err(error) => self.faults.push(error.to_string()),
        }
    }

    /// What is wished for and not is left as it is, as the sidecar did.
    fn without_both(&mut self) {
        let both: Vec<AdapterName> =
            self.absent.iter().filter(|name| self.adapters.contains_key(*name)).cloned().collect();
        for name in both {
            self.adapters.remove(&name);
            self.absent.remove(&name);
            self.faults.push(format!("'{name}' shall be there and shall not; it is left as it is"));
        }
    }

    /// Whether the file speaks of a name at all.
    pub fn names(&self, name: &AdapterName) -> bool {
        self.adapters.contains_key(name) || self.absent.contains(name)
    }
}

/// `models:` with nothing behind it is an empty list.
fn or_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> AdapterName {
        AdapterName::parse(text).unwrap()
    }

    #[test]
    fn our_own_form_reads_alike_in_toml_yaml_and_json() {
        let toml = r#"
            absent = ["old"]
            [adapters."team/sql"]
            source = "bucket:team/sql"
            version = "1a2b3c4d5e6f"
            pinned = true
            [adapters.triage]
            source = "triage"
        "#;
        let yaml = "
absent:
- old
adapters:
  team/sql: {source: 'bucket:team/sql', version: 1a2b3c4d5e6f, pinned: true}
  triage:
    source: triage
";
        let json = r#"{"absent": ["old"], "adapters": {"team/sql": {"source": "bucket:team/sql",
            "version": "1a2b3c4d5e6f", "pinned": true}, "triage": {"source": "triage"}}}"#;
        let read = Desired::parse(toml, true).unwrap();
        assert_eq!(read.adapters[&name("team/sql")].version.as_deref(), Some("1a2b3c4d5e6f"));
        assert_eq!(read.adapters[&name("team/sql")].pinned, Some(true));
        assert!(read.complete && read.absent.contains("old") && read.faults.is_empty());
        assert_eq!(Desired::parse(yaml, false).unwrap(), read);
        assert_eq!(Desired::parse(json, false).unwrap(), read);
        let none = Desired::parse("adapters:\n", false).unwrap();
        assert!(none.complete && none.adapters.is_empty());
    }

    #[test]
    fn the_sidecars_form_is_read_as_the_sidecar_read_it() {
        let read = Desired::parse(
            "
# what a ConfigMap holds
vLLMLoRAConfig:
  host: localhost
  port: 8000
  name: sql-loras
  defaultBaseModel: meta-llama/Llama-2-7b-hf
  ensureExist:
    models:
    - base-model: meta-llama/Llama-2-7b-hf
      id: sql-lora-v1
      source: yard1/llama-2-7b-sql-lora-test
    - id: sql-lora-v2
      source: /adapters/sql-lora-v2
    - id: both
      source: x
    - id: 2024
      source: year
    - source: nameless
  ensureNotExist:
    models:
    - id: tweet-summary-0
      source: vineetsharma/qlora-adapter-Llama-2-7b-hf-TweetSumm
    - id: both
      source: x
",
            false,
        )
        .unwrap();
        let names: Vec<&str> = read.adapters.keys().map(AdapterName::as_str).collect();
        assert_eq!(names, ["2024", "sql-lora-v1", "sql-lora-v2"]);
        assert_eq!(read.adapters[&name("sql-lora-v1")].source, "yard1/llama-2-7b-sql-lora-test");
        assert_eq!(read.absent.iter().map(AdapterName::as_str).collect::<Vec<_>>(), ["tweet-summary-0"]);
        assert!(!read.complete);
        assert_eq!(read.faults.len(), 2, "{:?}", read.faults);
        let empty = Desired::parse("vLLMLoRAConfig:\n  ensureExist:\n    models:\n", false).unwrap();
        assert_eq!(empty, Desired::default());
    }

    #[test]
    fn one_wrong_entry_does_not_stop_the_others_and_a_wrong_file_says_nothing() {
        let read = Desired::parse(
            "adapters: {good: {source: a}, ../x: {source: a}, none: {}, odd: {source: a, sorce: b}, short: {source: a, version: abc}}",
            false,
        )
        .unwrap();
        assert_eq!(read.adapters.keys().map(AdapterName::as_str).collect::<Vec<_>>(), ["good"]);
        assert_eq!(read.faults.len(), 4, "{:?}", read.faults);
        for wrong in
            ["", "- a", "adapter: {}", "adapters: [a]", "vLLMLoRAConfig: 3", "a: b: c", "adapters: &x {}\nabsent: *x"]
        {
            assert!(Desired::parse(wrong, false).is_err(), "{wrong:?}");
        }
        assert!(Desired::parse("adapters = 3", true).is_err());
    }
}
