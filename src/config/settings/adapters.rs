//! Settles what is said of adapters: where they are, how they are fetched and followed, and how much they may take.

use std::{path::PathBuf, time::Duration};

use serde::Deserialize;

use super::Check;
use crate::{
    config::{
        AdapterConfig, DEFAULT_REGION, Device, FetchConfig, FollowConfig, HubConfig, S3Credentials, Secret,
        SourceConfig, SourcePlace, source, value::Switch,
    },
    terms::AdapterName,
};

impl Check<'_> {
    pub(super) fn adapters(&mut self) -> AdapterConfig {
        let said = &self.settings.said;
        let default = AdapterConfig::default();
        let wanted = said.enable_lora != Some(Switch(false));
        let dirs = match &said.adapter_dir {
            Some(dirs) => dirs.clone(),
            None => Some(PathBuf::from("adapters")).filter(|dir| dir.is_dir()).into_iter().collect(),
        };
        if said.adapter_dir.is_some() {
            for dir in dirs.iter().filter(|dir| !dir.is_dir()) {
                self.fault("adapter_dir", format!("there is no folder '{}'", dir.display()));
            }
        }
        for dir in said.adapter_root.iter().flatten().filter(|dir| !dir.is_dir()) {
            self.fault("adapter_root", format!("there is no folder '{}'", dir.display()));
        }
        for dir in said.suite_dir.iter().flatten().filter(|dir| !dir.is_dir()) {
            self.fault("suite_dir", format!("there is no folder '{}'", dir.display()));
        }
        let roots = said.adapter_root.clone().unwrap_or_else(|| dirs.clone());
        let mut modules = Vec::new();
        for given in said.lora_modules.iter().flatten() {
            match lora_module(given) {
                Ok(module) => modules.push(module),
                Err(reason) => self.fault("lora_modules", format!("{given}: {reason}")),
            }
        }
        let sources = self.sources();
        // A role that other programs here use is none of this server's affair.
        let to_s3 = sources.iter().any(|source| matches!(source.place, SourcePlace::S3(_)));
        let s3 = if to_s3 { self.s3_credentials() } else { S3Credentials::default() };
        let given = said.adapter_dir.is_some()
            || said.lora_modules.is_some()
            || said.adapter_root.is_some()
            || said.adapter_source.is_some()
            || said.adapters_file.is_some();
        if !wanted && given {
            self.fault("enable_lora", "it is false, but adapters are given");
        }
        // On a CPU adapters are computed with in host memory: copies there are for whoever tries out a GPU's tiers.
        let on_cpu = self.device() == Device::Cpu;
        let host_bytes = if on_cpu { 0 } else { default.max_bytes };
        if !on_cpu && said.max_cpu_loras.is_some() && said.adapter_host_bytes.is_some_and(|bytes| bytes.0 == 0) {
            self.fault("adapter_host_bytes", "it is 0, but --max-cpu-loras asks for copies in host memory");
        }
        AdapterConfig {
            dirs: if wanted { dirs } else { Vec::new() },
            modules,
            roots: if wanted { roots } else { Vec::new() },
            trial: said.adapter_trial != Some(Switch(false)),
            suites: said.suite_dir.clone().unwrap_or_default(),
            load_threads: self.at_least("adapter_load_threads", said.adapter_load_threads, default.load_threads, 1),
            wait: said.adapter_wait_ms.map_or(default.wait, Duration::from_millis),
            keep_steps: self.at_least("adapter_keep_steps", said.adapter_keep_steps, default.keep_steps, 1),
            max_vault_bytes: said.adapter_vault_bytes.map(|bytes| bytes.0),
            max_lora_rank: self.at_least("max_lora_rank", said.max_lora_rank, default.max_lora_rank, 1),
            max_cpu_loras: said.max_cpu_loras.map(|count| self.at_least("max_cpu_loras", Some(count), 1, 1)),
            max_host_bytes: said.adapter_host_bytes.map_or(host_bytes, |bytes| bytes.0),
            max_bytes: self.bytes("adapter_memory_bytes", said.adapter_memory_bytes, default.max_bytes, 1 << 20),
            max_file_bytes: self.bytes(
                "max_adapter_file_bytes",
                said.max_adapter_file_bytes,
                default.max_file_bytes,
                1 << 10,
            ),
            sources,
            s3,
            hub: self.hub(),
            ca_file: said.adapter_ca_file.clone(),
            fetch: self.fetch(),
            follow: self.follow(),
        }
    }

    fn sources(&mut self) -> Vec<SourceConfig> {
        let said = &self.settings.said;
        let region = said.s3_region.as_deref().unwrap_or(DEFAULT_REGION);
        let mut sources: Vec<SourceConfig> = Vec::new();
        for given in said.adapter_source.iter().flatten() {
            match source::parse(given, region) {
                Ok(source) if sources.iter().any(|known| known.name == source.name) => {
                    self.fault("adapter_source", format!("the name '{}' is given twice", source.name));
                }
                Ok(source) => sources.push(source),
                Err(reason) => self.fault("adapter_source", format!("{given}: {reason}")),
            }
        }
        sources
    }

    fn hub(&mut self) -> HubConfig {
        let said = &self.settings.said;
        let default = HubConfig::default();
        let endpoint = match said.hub_endpoint.as_deref().map(|url| source::web_address(url, true)) {
            None => default.endpoint,
            Some(Ok(endpoint)) => endpoint,
            Some(Err(reason)) => {
                self.fault("hub_endpoint", reason);
                default.endpoint
            }
        };
        HubConfig { endpoint, token: said.hf_token.clone().map(Secret) }
    }

    fn fetch(&mut self) -> FetchConfig {
        let said = &self.settings.said;
        let default = FetchConfig::default();
        let mut seconds =
            |name, said, default: Duration| Duration::from_secs(self.at_least(name, said, default.as_secs(), 1));
        FetchConfig {
            timeout: seconds("fetch_timeout", said.fetch_timeout, default.timeout),
            stall: seconds("fetch_stall_timeout", said.fetch_stall_timeout, default.stall),
            at_once: self.at_least("max_fetches", said.max_fetches, default.at_once, 1),
        }
    }

    fn follow(&mut self) -> FollowConfig {
        let said = &self.settings.said;
        let default = FollowConfig::default();
        FollowConfig {
            desired: said.adapters_file.clone(),
            interval: said.adapter_interval.map_or(default.interval, Duration::from_secs),
            settle: said.adapter_settle_ms.map_or(default.settle, Duration::from_millis),
            on_first_use: said.adapters_on_first_use == Some(Switch(true)),
        }
    }
}

/// `NAME=PATH`, or JSON with `name` and `path`; either may be wrapped in literal single quotes, as KServe passes them.
pub(super) fn lora_module(given: &str) -> Result<(String, PathBuf), String> {
    #[derive(Deserialize)]
    struct Module {
        name: String,
        path: PathBuf,
        #[serde(default, rename = "base_model_name")]
        _base_model_name: Option<String>,
    }
    let given = given.trim();
    let given = given.strip_prefix('\'').and_then(|rest| rest.strip_suffix('\'')).unwrap_or(given);
    let (name, path) = if given.starts_with('{') {
        let module: Module = serde_json::from_str(given).map_err(|error| error.to_string())?;
        (module.name, module.path)
    } else {
        let (name, path) = given.split_once('=').ok_or("it has to be NAME=PATH, or JSON with name and path")?;
        (name.to_owned(), path.into())
    };
    AdapterName::parse(&name).map_err(|error| error.to_string())?;
    if path.is_dir() { Ok((name, path)) } else { Err(format!("there is no folder '{}'", path.display())) }
}
