//! From layers to settled values: file < environment < flags, then defaults, once. Every fault is found, not the first.

mod adapters;
mod record;
mod s3;

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, FromArgMatches};
use serde::Deserialize;

use super::{
    AWS_VARIABLES, AdminConfig, Config, CpuConfig, Device, EngineConfig, FlagRules, Instructions, Layer, LimitsConfig,
    ModelConfig, ServerConfig,
    value::{Bytes, ContextLength, DeviceName, DtypeName, Switch, Tokens},
};

/// One thing that is wrong with the settings, and where it was said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    pub place: String,
    pub reason: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.reason)
    }
}

/// Settings as given, layer on layer, with the place where each was said.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub said: Layer,
    /// By field name: a file, a variable, or a flag.
    places: BTreeMap<&'static str, String>,
    /// Variables of ours that mean nothing, one line each.
    pub warnings: Vec<String>,
    faults: Vec<Fault>,
}

impl Settings {
    /// Reads the file (if any) and the environment, and lays the flags over them. Faults are kept for [`Settings::settle`].
    pub fn gather(file: Option<&Path>, environment: impl Iterator<Item = (String, String)>, flags: Layer) -> Self {
        let mut settings = Self::default();
        let below = file.map(|path| settings.read_file(path)).unwrap_or_default();
        for (name, _) in below.said() {
            let file = file.map(|path| path.display().to_string()).unwrap_or_default();
            settings.places.insert(name, format!("{file}, {}", name.replace('_', "-")));
        }
        let middle = settings.read_environment(environment.collect());
        for (name, _) in flags.said() {
            settings.places.insert(name, Layer::flag(name));
        }
        settings.said = flags.over(middle).over(below);
        settings
    }

    /// As [`Settings::gather`], from this process's environment.
    pub fn gather_here(file: Option<&Path>, flags: Layer) -> Self {
        let environment = std::env::vars_os().filter_map(|(name, value)| {
            // What is not UTF-8 cannot be a setting of ours.
            Some((name.into_string().ok()?, value.into_string().ok()?))
        });
        Self::gather(file, environment, flags)
    }

    fn read_file(&mut self, path: &Path) -> Layer {
        let place = path.display().to_string();
        let text = match std::fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) => {
                self.faults.push(Fault { place, reason: error.to_string() });
                return Layer::default();
            }
        };
        let table: toml::Table = match toml::from_str(&text) {
            Ok(table) => table,
            Err(error) => {
                let yaml = path.extension().is_some_and(|kind| kind == "yaml" || kind == "yml");
                let hint = if yaml { "settings are read from TOML, not from vLLM's YAML: " } else { "" };
                self.faults.push(Fault { place, reason: format!("{hint}{}", error.to_string().trim_end()) });
                return Layer::default();
            }
        };
        // Key by key, so that one wrong value does not hide the next.
        let mut whole = Layer::default();
        for (key, value) in table {
            let one = toml::Table::from_iter([(key.clone(), value)]);
            match Layer::deserialize(one) {
                Ok(layer) => whole = layer.over(whole),
                Err(error) => {
                    let known = Layer::NAMES.iter().any(|name| name.replace('_', "-") == key);
                    let reason =
                        if known { error.message().trim().to_owned() } else { "there is no such setting".to_owned() };
                    self.faults.push(Fault { place: format!("{place}, {key}"), reason });
                }
            }
        }
        whole
    }

    fn read_environment(&mut self, environment: BTreeMap<String, String>) -> Layer {
        let mut whole = Layer::default();
        // What AWS's own programs read as well counts below our own variables. An empty one is none, as with them.
        for (variable, name) in AWS_VARIABLES {
            let Some(value) = environment.get(*variable).filter(|value| !value.is_empty()) else { continue };
            match layer_of(name, value) {
                Ok(layer) => {
                    whole = layer.over(whole);
                    self.places.insert(name, (*variable).to_owned());
                }
                Err(reason) => self.faults.push(Fault { place: (*variable).to_owned(), reason }),
            }
        }
        for (variable, value) in environment {
            let Some(rest) = variable.strip_prefix("TUNEGATE_") else { continue };
            if rest.starts_with("TEST_") || is_service_link(rest, &value) {
                continue;
            }
            let Some(name) = Layer::NAMES.iter().find(|name| name.to_uppercase() == rest) else {
                self.warnings.push(format!("{variable} is no setting and is ignored"));
                continue;
            };
            match layer_of(name, &value) {
                Ok(layer) => {
                    whole = layer.over(whole);
                    self.places.insert(name, variable);
                }
                Err(reason) => self.faults.push(Fault { place: variable, reason }),
            }
        }
        whole
    }

    /// Where a setting was said; `default` where it was not.
    pub fn place(&self, name: &str) -> String {
        self.places.get(name).cloned().unwrap_or_else(|| "default".to_owned())
    }

    /// Every setting that was given, with where; secrets are not shown.
    pub fn shown(&self) -> Vec<(String, String, String)> {
        const SECRETS: [&str; 7] = [
            "api_key",
            "admin_key",
            "hf_token",
            "s3_secret_access_key",
            "s3_session_token",
            "split_secret",
            // Whoever knows the path gets the keys.
            "s3_container_credentials_uri",
        ];
        let secret = |name: &str| SECRETS.contains(&name);
        self.said
            .said()
            .into_iter()
            .map(|(name, value)| {
                let value = if secret(name) { "(not shown)".to_owned() } else { value };
                (name.replace('_', "-"), value, self.place(name))
            })
            .collect()
    }

    /// Settles everything but where the model's files are, which may have to be fetched first: `model` says.
    ///
    /// # Errors
    /// Every fault, at least one.
    pub fn settle(&self, model: PathBuf) -> Result<Config, Vec<Fault>> {
        let mut check = Check { settings: self, faults: self.faults.clone() };
        let engine = check.engine();
        let limits = check.limits();
        let config = Config {
            server: check.server(),
            model: check.model(model),
            adapters: check.adapters(),
            record: check.record(&limits),
            flag_rules: self.flag_rules(),
            limits,
            engine,
        };
        check.log();
        if check.faults.is_empty() { Ok(config) } else { Err(check.faults) }
    }

    /// The rules that flag answers. Whether they can be read is for whoever reads them to say.
    pub fn flag_rules(&self) -> FlagRules {
        match self.said.flag_rules.as_deref() {
            None | Some("default") => FlagRules::Default,
            Some("none") => FlagRules::None,
            Some(path) => FlagRules::File(path.into()),
        }
    }

    pub fn data_dir(&self) -> PathBuf {
        self.said.data_dir.clone().unwrap_or_else(|| "data".into())
    }

    pub fn log_format(&self) -> LogFormat {
        match self.said.log_format.as_deref() {
            Some("text") => LogFormat::Text,
            Some(_) | None => LogFormat::Json,
        }
    }

    pub fn log_level(&self) -> &str {
        self.said.log_level.as_deref().unwrap_or("info")
    }
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

/// What Kubernetes puts into every pod for a Service named `tunegate`: `TUNEGATE_SERVICE_HOST`,
/// `TUNEGATE_PORT=tcp://…`, `TUNEGATE_PORT_8000_TCP_ADDR`, ….
fn is_service_link(rest: &str, value: &str) -> bool {
    rest.contains("SERVICE_HOST")
        || rest.contains("SERVICE_PORT")
        || rest.starts_with("PORT_")
        || (rest.ends_with("PORT") && value.contains("://"))
}

/// One value as a layer, read as the command line would read it. Lists are separated by commas.
fn layer_of(name: &str, value: &str) -> Result<Layer, String> {
    const LISTS: [&str; 6] =
        ["served_model_name", "api_key", "adapter_dir", "adapter_root", "adapter_source", "suite_dir"];
    let list = LISTS.contains(&name);
    let command =
        Layer::augment_args(clap::Command::new("tunegate").no_binary_name(true).color(clap::ColorChoice::Never));
    let flag = Layer::flag(name);
    let values: Vec<String> =
        if list { value.split(',').map(|v| v.trim().to_owned()).collect() } else { vec![value.to_owned()] };
    let line = values.into_iter().map(|value| format!("{flag}={value}"));
    let matches = command.try_get_matches_from(line).map_err(|error| first_line(&error.to_string()))?;
    Layer::from_arg_matches(&matches).map_err(|error| first_line(&error.to_string()))
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
}

/// Settles one group after another and collects what is wrong.
struct Check<'a> {
    settings: &'a Settings,
    faults: Vec<Fault>,
}

impl Check<'_> {
    fn fault(&mut self, name: &str, reason: impl Into<String>) {
        let place = self.settings.place(name);
        let place = if place == "default" { Layer::flag(name) } else { place };
        self.faults.push(Fault { place, reason: reason.into() });
    }

    fn at_least<T: PartialOrd + fmt::Display + Copy>(
        &mut self,
        name: &str,
        said: Option<T>,
        default: T,
        least: T,
    ) -> T {
        match said {
            Some(value) if value < least => {
                self.fault(name, format!("it has to be at least {least}; it is {value}"));
                default
            }
            Some(value) => value,
            None => default,
        }
    }

    fn bytes(&mut self, name: &str, said: Option<Bytes>, default: u64, least: u64) -> u64 {
        self.at_least(name, said.map(|bytes| bytes.0), default, least)
    }

    fn server(&mut self) -> ServerConfig {
        let said = &self.settings.said;
        let host = said.host.clone().unwrap_or_else(|| "127.0.0.1".to_owned());
        let port = said.port.unwrap_or(8000);
        let listen = match host.parse::<IpAddr>() {
            Ok(ip) => Some(SocketAddr::new(ip, port)),
            Err(_) => (host.as_str(), port).to_socket_addrs().ok().and_then(|mut found| found.next()),
        };
        if listen.is_none() {
            self.fault("host", format!("'{host}' is no address of this machine"));
        }
        if said.served_model_name.iter().flatten().any(|name| name.trim().is_empty()) {
            self.fault("served_model_name", "a name may not be empty");
        }
        let admin = AdminConfig {
            key: said.admin_key.clone(),
            port: said.admin_port,
            unauthenticated: said.admin_unauthenticated == Some(Switch(true)),
        };
        if admin.key.as_ref().is_some_and(|key| key.trim().is_empty()) {
            self.fault("admin_key", "a key may not be empty");
        }
        if admin.unauthenticated && admin.key.is_some() {
            self.fault("admin_unauthenticated", "it is true, but a key is given (--admin-key)");
        }
        if admin.port.is_some_and(|admin| admin == port && admin != 0) {
            self.fault("admin_port", "it has to be another port than --port");
        }
        ServerConfig {
            listen: listen.unwrap_or(SocketAddr::from(([127, 0, 0, 1], port))),
            served_names: said.served_model_name.clone().unwrap_or_default(),
            api_keys: said.api_key.clone().unwrap_or_default(),
            keys_file: said.api_keys_file.clone(),
            admin,
            shutdown_timeout: Duration::from_secs(said.shutdown_timeout.unwrap_or(30)),
        }
    }

    fn model(&mut self, path: PathBuf) -> ModelConfig {
        let said = &self.settings.said;
        let chat_template = said.chat_template.as_ref().and_then(|given| {
            // A template has braces; anything else is the name of a file.
            if given.contains("{%") || given.contains("{{") {
                return Some(given.clone());
            }
            std::fs::read_to_string(given)
                .map_err(|error| self.fault("chat_template", format!("{given}: {error}")))
                .ok()
        });
        let block_tokens = self.at_least("block_size", said.block_size, 32, 1);
        if block_tokens > 1024 {
            self.fault("block_size", format!("it may be at most 1024; it is {block_tokens}"));
        }
        let max_model_len = self.context_length().map(|tokens| self.at_least("max_model_len", Some(tokens), 1, 1));
        let cpu = CpuConfig {
            exact: said.exact == Some(Switch(true)),
            threads: said.cpu_threads.map(|count| self.at_least("cpu_threads", Some(count), 1, 1)),
            pin: said.cpu_pin == Some(Switch(true)),
            tensors: self.word("cpu_decoder", said.cpu_decoder.as_deref(), ["fused", "tensor"]) == "tensor",
            instructions: self.cpu_instructions(),
        };
        ModelConfig {
            path,
            device: self.device(),
            dtype: said.dtype.and_then(|DtypeName(dtype)| dtype),
            kv_bytes: self.bytes("kv_cache_memory_bytes", said.kv_cache_memory_bytes, 1 << 30, 1 << 20),
            block_tokens,
            max_model_len,
            chat_template,
            own_sampling: self.word("generation_config", said.generation_config.as_deref(), ["auto", "vllm"]) == "auto",
            cpu,
        }
    }

    fn context_length(&self) -> Option<usize> {
        self.settings.said.max_model_len.and_then(|ContextLength(tokens)| tokens)
    }

    /// One of two words, the first by default. The command line knows them; a file does not.
    fn word(&mut self, name: &str, said: Option<&str>, words: [&'static str; 2]) -> &'static str {
        let [first, second] = words;
        match said {
            None => first,
            Some(said) if said == first => first,
            Some(said) if said == second => second,
            Some(other) => {
                self.fault(name, format!("it has to be {first} or {second}; it is '{other}'"));
                first
            }
        }
    }

    fn cpu_instructions(&mut self) -> Option<Instructions> {
        match self.settings.said.cpu_instructions.as_deref() {
            None | Some("auto") => None,
            Some("plain") => Some(Instructions::Plain),
            Some("avx2") => Some(Instructions::Avx2),
            Some("avx512") => Some(Instructions::Avx512),
            Some("amx") => Some(Instructions::Amx),
            Some(other) => {
                let reason = format!("it has to be auto, plain, avx2, avx512 or amx; it is '{other}'");
                self.fault("cpu_instructions", reason);
                None
            }
        }
    }

    fn engine(&mut self) -> EngineConfig {
        let said = &self.settings.said;
        let default = EngineConfig::default();
        EngineConfig {
            max_num_seqs: self.at_least("max_num_seqs", said.max_num_seqs, default.max_num_seqs, 1),
            max_num_batched_tokens: self.at_least(
                "max_num_batched_tokens",
                said.max_num_batched_tokens.map(|Tokens(tokens)| tokens),
                default.max_num_batched_tokens,
                1,
            ),
            max_queued: self.at_least("max_num_queued_reqs", said.max_num_queued_reqs, default.max_queued, 1),
            max_loras: self.at_least("max_loras", said.max_loras, default.max_loras, 1),
            // The engine takes the least of this, the model's own context and what the KV memory holds.
            max_model_len: self.context_length().unwrap_or(usize::MAX),
            step_target: said.step_ms.map_or(default.step_target, Duration::from_millis),
            prefix_caching: said.enable_prefix_caching != Some(Switch(false)),
            stall: Duration::from_secs(self.at_least("stall_timeout", said.stall_timeout, 60, 1)),
        }
    }

    /// The device that computes.
    fn device(&self) -> Device {
        self.settings.said.device.map_or(Device::Cpu, |DeviceName(device)| device)
    }

    fn limits(&mut self) -> LimitsConfig {
        let said = &self.settings.said;
        let default = LimitsConfig::default();
        LimitsConfig {
            max_body_bytes: self.bytes("max_body_bytes", said.max_body_bytes, default.max_body_bytes as u64, 1024)
                as usize,
            max_header_bytes: self.bytes(
                "max_header_bytes",
                said.max_header_bytes,
                default.max_header_bytes as u64,
                1024,
            ) as usize,
            max_connections: self.at_least("max_connections", said.max_connections, default.max_connections, 1),
            max_choices: self.at_least("max_choices", said.max_choices, default.max_choices, 1),
            default_max_tokens: self.at_least(
                "default_max_tokens",
                said.default_max_tokens,
                default.default_max_tokens,
                1,
            ),
            answer_timeout: Duration::from_secs(self.at_least("answer_timeout", said.answer_timeout, 600, 1)),
            strict_fields: said.strict_fields == Some(Switch(true)),
            ..default
        }
    }

    fn log(&mut self) {
        let level = self.settings.log_level().to_owned();
        if let Err(error) = level.parse::<tracing_subscriber::EnvFilter>() {
            self.fault("log_level", error.to_string());
        }
        self.word("log_format", self.settings.said.log_format.as_deref(), ["json", "text"]);
    }
}

#[cfg(test)]
mod tests;
