//! One layer of settings: what a file, the environment or the command line says, silent where it says nothing.

use std::path::PathBuf;

use serde::Deserialize;

use super::{
    record::{DurabilityName, OnFault},
    value::{Bytes, ContextLength, DeviceName, DtypeName, Switch, Tokens},
};
use crate::terms::RecordPolicy;

/// Declares every setting once: its name is its flag (`--max-num-seqs`), its key in the file (`max-num-seqs`) and its
/// environment variable (`TUNEGATE_MAX_NUM_SEQS`).
macro_rules! settings {
    ($( $(#[$meta:meta])* $name:ident : $kind:ty, )*) => {
        /// Every setting, where it is given.
        #[derive(Clone, Debug, Default, clap::Args, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        pub struct Layer {
            // A negative number is a wrong value of its flag, not a flag that is not known.
            $( $(#[$meta])* #[arg(allow_negative_numbers = true)] pub $name: Option<$kind>, )*
        }

        impl Layer {
            /// Field names, as `snake_case`.
            pub const NAMES: &'static [&'static str] = &[$(stringify!($name)),*];

            /// This layer over `below`: what is said here holds.
            pub fn over(self, below: Self) -> Self {
                Self { $( $name: self.$name.or(below.$name), )* }
            }

            /// What is said here, by field name, as it is shown to people.
            pub fn said(&self) -> Vec<(&'static str, String)> {
                let mut said = Vec::new();
                $( if let Some(value) = &self.$name { said.push((stringify!($name), format!("{value:?}"))); } )*
                said
            }
        }
    };
}

settings! {
    /// The base model: a Hugging Face folder, a GGUF file, or a hub id (`org/name`, `org/name@revision`)
    #[arg(long, value_name = "MODEL", help_heading = "Model")]
    model: String,
    /// Names that clients use for the base; the first is the one that answers carry
    #[arg(long, value_name = "NAME", num_args = 1.., help_heading = "Model")]
    served_model_name: Vec<String>,
    /// Longest prompt and answer together, in tokens (8192, 8K); auto is as much as model and memory allow (default: auto)
    #[arg(long, value_name = "TOKENS", help_heading = "Model")]
    max_model_len: ContextLength,
    /// A chat template instead of the model's own: a file, or the template itself
    #[arg(long, value_name = "FILE|TEMPLATE", help_heading = "Model")]
    chat_template: String,
    /// Whose sampling defaults hold where request and adapter are silent: auto (the model's own) or vllm (OpenAI's) (default: auto)
    #[arg(long, value_name = "WHOSE", value_parser = ["auto", "vllm"], help_heading = "Model")]
    generation_config: String,
    /// What the model runs on: cpu, cuda, cuda:N, metal, metal:N (default: cpu)
    #[arg(long, help_heading = "Model")]
    device: DeviceName,
    /// In which numbers a GPU computes: auto, float32, float16 (half), bfloat16; a CPU keeps float32 (default: auto)
    #[arg(long, help_heading = "Model")]
    dtype: DtypeName,
    /// Compute in f32 throughout, instead of int8 and 16 bits where they do well; on a CPU (default: false)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Model")]
    exact: Switch,
    /// Compute threads on a CPU; one for each core by default
    #[arg(long, value_name = "COUNT", help_heading = "Model")]
    cpu_threads: usize,
    /// Keep each compute thread on a core of its own: where nothing else runs on this machine
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Model")]
    cpu_pin: Switch,
    /// What computes on a CPU: fused (packed weights) or tensor (slow, to compare with) (default: fused)
    #[arg(long, value_name = "DECODER", value_parser = ["fused", "tensor"], help_heading = "Model")]
    cpu_decoder: String,
    /// Which vector instructions a CPU computes with: auto (the most it has), plain, avx2, avx512, amx (default: auto)
    #[arg(long, value_name = "LEVEL", value_parser = ["auto", "plain", "avx2", "avx512", "amx"], help_heading = "Model")]
    cpu_instructions: String,
    /// Where models from a hub are kept (default: models)
    #[arg(long, value_name = "DIR", help_heading = "Model")]
    download_dir: PathBuf,
    /// The branch, tag or commit of a model from a hub (default: main)
    #[arg(long, value_name = "REVISION", help_heading = "Model")]
    revision: String,
    /// The model hub's URL
    #[arg(long, help = "The model hub's URL (default: https://huggingface.co)", value_name = "URL", help_heading = "Model")]
    hub_endpoint: String,
    /// The token for the model hub
    #[arg(long, value_name = "TOKEN", help_heading = "Model")]
    hf_token: String,

    /// Address to listen on (default: 127.0.0.1)
    #[arg(long, help_heading = "Server")]
    host: String,
    /// Port to listen on (default: 8000)
    #[arg(long, help_heading = "Server")]
    port: u16,
    /// Keys that clients have to send; without any, everybody who can connect may ask
    #[arg(long, value_name = "KEY", num_args = 1.., help_heading = "Server")]
    api_key: Vec<String>,
    /// A TOML file of keys with names, roles, models and recording policies
    #[arg(long, value_name = "FILE", help_heading = "Server")]
    api_keys_file: PathBuf,
    /// The key for routes that change what is served (/v1/load_lora_adapter, /v1/adapters, …)
    #[arg(long, value_name = "KEY", help_heading = "Server")]
    admin_key: String,
    /// A port of its own for those routes, on the same address; the other port refuses them then
    #[arg(long, value_name = "PORT", help_heading = "Server")]
    admin_port: u16,
    /// Let everybody who can connect change what is served (default: false)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Server")]
    admin_unauthenticated: Switch,
    /// How long running answers may go on after SIGTERM, in seconds (default: 30)
    #[arg(long, value_name = "SECONDS", help_heading = "Server")]
    shutdown_timeout: u64,
    /// Refuse request fields that are not known, instead of ignoring them (default: false)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Server")]
    strict_fields: Switch,
    /// Answer tokens where a request names no limit (default: 1024)
    #[arg(long, value_name = "TOKENS", help_heading = "Server")]
    default_max_tokens: usize,
    /// The longest an answer may take, in seconds (default: 600)
    #[arg(long, value_name = "SECONDS", help_heading = "Server")]
    answer_timeout: u64,
    /// Open connections for each listener (default: 1024)
    #[arg(long, value_name = "COUNT", help_heading = "Server")]
    max_connections: usize,
    /// Largest request body (default: 4MiB)
    #[arg(long, value_name = "BYTES", help_heading = "Server")]
    max_body_bytes: Bytes,
    /// Largest request head (default: 64KiB)
    #[arg(long, value_name = "BYTES", help_heading = "Server")]
    max_header_bytes: Bytes,
    /// Choices in one request, over all its prompts (default: 16)
    #[arg(long, value_name = "COUNT", help_heading = "Server")]
    max_choices: u32,

    /// Serve adapters; `false` serves the base alone (default: true)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Adapters")]
    enable_lora: Switch,
    /// Folders whose subfolders are adapters; `adapters` by default, if there is one
    #[arg(long, value_name = "DIR", num_args = 1.., help_heading = "Adapters")]
    adapter_dir: Vec<PathBuf>,
    /// Adapters by name: NAME=PATH, or {"name": …, "path": …}
    #[arg(long, value_name = "NAME=PATH", num_args = 1.., help_heading = "Adapters")]
    lora_modules: Vec<String>,
    /// Folders below which load requests may name adapters; those of --adapter-dir by default
    #[arg(long, value_name = "DIR", num_args = 1.., help_heading = "Adapters")]
    adapter_root: Vec<PathBuf>,
    /// Run each adapter before a name points at it, and refuse one that fails; `false` serves it untried (default: true)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Adapters")]
    adapter_trial: Switch,
    /// Folders of suites that a load may name: the new version must not be worse than the old one
    #[arg(long, value_name = "DIR", num_args = 1.., help_heading = "Adapters")]
    suite_dir: Vec<PathBuf>,
    /// The versions of this many last steps of each name are never removed from disk (default: 5)
    #[arg(long, value_name = "COUNT", help_heading = "Adapters")]
    adapter_keep_steps: usize,
    /// Threads that read and pack adapters at the same time (default: 2)
    #[arg(long, value_name = "COUNT", help_heading = "Adapters")]
    adapter_load_threads: usize,
    /// How long a request waits for an adapter that is not in memory, unless its x-tunegate-adapter-wait-ms says
    /// otherwise (default: 30000)
    #[arg(long, value_name = "MS", help_heading = "Adapters")]
    adapter_wait_ms: u64,
    /// Disk for kept versions of adapters; by default none is removed
    #[arg(long, value_name = "BYTES", help_heading = "Adapters")]
    adapter_vault_bytes: Bytes,
    /// Different adapters in one batch (default: 64)
    #[arg(long, value_name = "COUNT", help_heading = "Adapters")]
    max_loras: usize,
    /// Largest rank that is accepted (default: 512)
    #[arg(long, value_name = "RANK", help_heading = "Adapters")]
    max_lora_rank: usize,
    /// Adapters kept in host memory: on a GPU copies of those loaded, on a CPU all; as many as the bytes hold by default
    #[arg(long, value_name = "COUNT", help_heading = "Adapters")]
    max_cpu_loras: usize,
    /// Memory for adapters where they are computed with, the device's (default: 4GiB)
    #[arg(long, value_name = "BYTES", help_heading = "Adapters")]
    adapter_memory_bytes: Bytes,
    /// Host memory for copies of adapters, from which they come back to a GPU without disk; 0 keeps none; 4GiB with a GPU
    #[arg(long, value_name = "BYTES", help_heading = "Adapters")]
    adapter_host_bytes: Bytes,
    /// Largest adapter file (default: 2GiB)
    #[arg(long, value_name = "BYTES", help_heading = "Adapters")]
    max_adapter_file_bytes: Bytes,
    /// Places that adapters are fetched from: NAME=/dir, NAME=s3://bucket/prefix, NAME=https://host/path, NAME=hf://owner
    #[arg(long, value_name = "NAME=PLACE", num_args = 1.., help_heading = "Adapters")]
    adapter_source: Vec<String>,
    /// Which adapters there shall be: a TOML, YAML or JSON file, read again when it changes
    #[arg(long, value_name = "FILE", help_heading = "Adapters")]
    adapters_file: PathBuf,
    /// How often folders, sources and --adapters-file are looked at beside file events, in seconds; 0 follows none of them (default: 30)
    #[arg(long, value_name = "SECONDS", help_heading = "Adapters")]
    adapter_interval: u64,
    /// How long a folder has to stay the same before it is read, in milliseconds (default: 1000)
    #[arg(long, value_name = "MILLISECONDS", help_heading = "Adapters")]
    adapter_settle_ms: u64,
    /// Look for a name that is not known in folders and sources when it is first asked for (default: false)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Adapters")]
    adapters_on_first_use: Switch,
    /// The longest that fetching an adapter may take, in seconds (default: 600)
    #[arg(long, value_name = "SECONDS", help_heading = "Adapters")]
    fetch_timeout: u64,
    /// A connection that gives nothing for this long is opened again, in seconds (default: 20)
    #[arg(long, value_name = "SECONDS", help_heading = "Adapters")]
    fetch_stall_timeout: u64,
    /// Adapters that are fetched at the same time (default: 4)
    #[arg(long, value_name = "COUNT", help_heading = "Adapters")]
    max_fetches: usize,
    /// Certificates (PEM) that sources may be known by, beside the well-known ones
    #[arg(long, value_name = "FILE", help_heading = "Adapters")]
    adapter_ca_file: PathBuf,
    /// The region of S3 buckets that do not say theirs; AWS_REGION counts as well (default: us-east-1)
    #[arg(long, value_name = "REGION", help_heading = "Adapters")]
    s3_region: String,
    /// Who signs requests to S3 sources: auto (keys, else a service account's token, else a container's agent, where one of them
    /// is given), instance (the machine's own role), none (default: auto)
    #[arg(long, value_name = "WHO", value_parser = ["auto", "instance", "none"], help_heading = "Adapters")]
    s3_credentials: String,
    /// Keys for S3 sources; AWS_ACCESS_KEY_ID counts as well, and so do AWS's other variables for what follows
    #[arg(long, value_name = "ID", help_heading = "Adapters")]
    s3_access_key_id: String,
    /// The secret that belongs to --s3-access-key-id
    #[arg(long, value_name = "KEY", help_heading = "Adapters")]
    s3_secret_access_key: String,
    /// The session token that belongs to --s3-access-key-id, where there is one
    #[arg(long, value_name = "TOKEN", help_heading = "Adapters")]
    s3_session_token: String,
    /// A file with the token of a service account that may take --s3-role-arn; AWS_WEB_IDENTITY_TOKEN_FILE
    #[arg(long, value_name = "FILE", help_heading = "Adapters")]
    s3_web_identity_token_file: PathBuf,
    /// The role that the token's owner takes; AWS_ROLE_ARN
    #[arg(long, value_name = "ARN", help_heading = "Adapters")]
    s3_role_arn: String,
    /// What the role's user is called in its logs; AWS_ROLE_SESSION_NAME
    #[arg(long, value_name = "NAME", help_heading = "Adapters")]
    s3_role_session_name: String,
    /// The service that gives keys for the token; AWS's in the bucket's region by default; AWS_ENDPOINT_URL_STS
    #[arg(long, value_name = "URL", help_heading = "Adapters")]
    s3_sts_endpoint: String,
    /// Where a container's agent gives keys: a path at ECS's, or a whole URL; AWS_CONTAINER_CREDENTIALS_RELATIVE_URI, …_FULL_URI
    #[arg(long, value_name = "URI", help_heading = "Adapters")]
    s3_container_credentials_uri: String,
    /// A file with the token for a whole URL; AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE
    #[arg(long, value_name = "FILE", help_heading = "Adapters")]
    s3_container_token_file: PathBuf,
    /// The machine's metadata service, where it is elsewhere; AWS_EC2_METADATA_SERVICE_ENDPOINT
    #[arg(long, value_name = "URL", help_heading = "Adapters")]
    s3_metadata_endpoint: String,

    /// Sequences that may run at the same time (default: 64)
    #[arg(long, value_name = "COUNT", help_heading = "Engine")]
    max_num_seqs: usize,
    /// Rows in one step: running answers first, prompt chunks fill the rest (default: 512)
    #[arg(long, value_name = "TOKENS", help_heading = "Engine")]
    max_num_batched_tokens: Tokens,
    /// Sequences that may wait; beyond them requests are refused (default: 256)
    #[arg(long, value_name = "COUNT", help_heading = "Engine")]
    max_num_queued_reqs: usize,
    /// Memory for keys and values (default: 1GiB)
    #[arg(long, value_name = "BYTES", help_heading = "Engine")]
    kv_cache_memory_bytes: Bytes,
    /// Positions in one block of keys and values (default: 32)
    #[arg(long, value_name = "TOKENS", help_heading = "Engine")]
    block_size: usize,
    /// Compute equal beginnings of prompts once; `false` computes every prompt whole (default: true)
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", help_heading = "Engine")]
    enable_prefix_caching: Switch,
    /// How long a step may take while answers are running, in milliseconds: prompts are read in chunks that fit; 0 sets no limit (default: 30)
    #[arg(long, value_name = "MILLISECONDS", help_heading = "Engine")]
    step_ms: u64,
    /// No step for this long while work is running means that the engine is stalled, in seconds (default: 60)
    #[arg(long, value_name = "SECONDS", help_heading = "Engine")]
    stall_timeout: u64,

    /// Where the record, kept adapters and the server's own socket are (default: data)
    #[arg(long, value_name = "DIR", help_heading = "Record")]
    data_dir: PathBuf,
    /// How much of each answer is recorded: full, metadata or none (default: full)
    #[arg(long, value_name = "POLICY", value_parser = policy, help_heading = "Record")]
    record: RecordPolicy,
    /// Choices that may be under way or waiting to be recorded (default: 1024)
    #[arg(long, value_name = "COUNT", help_heading = "Record")]
    record_max_pending: usize,
    /// When an answer's finish may reach its client: strict (its row is on disk), group (at once; on disk within
    /// --record-group-ms) or best-effort (at once; on disk when the system likes) (default: strict)
    #[arg(long, value_name = "PROMISE", value_parser = DurabilityName::parse, help_heading = "Record")]
    record_durability: DurabilityName,
    /// With --record-durability group: within how many milliseconds an answer is on disk; 50 by default
    #[arg(long, value_name = "MILLISECONDS", help_heading = "Record")]
    record_group_ms: u64,
    /// While the record cannot be written: refuse new requests, or serve them and count what is lost (default: refuse)
    #[arg(long, value_name = "POLICY", value_parser = OnFault::parse, help_heading = "Record")]
    record_on_fault: OnFault,
    /// A write of the record that takes longer counts as a fault, in milliseconds (default: 5000)
    #[arg(long, value_name = "MILLISECONDS", help_heading = "Record")]
    record_stall_ms: u64,
    /// The share of conversations whose answers are only for measuring, never for training (default: 0.1)
    #[arg(long, value_name = "SHARE", help_heading = "Record")]
    split_held_out: f64,
    /// The share of conversations that are the uniform sample for people to look at, never for training (default: 0.05)
    #[arg(long, value_name = "SHARE", help_heading = "Record")]
    split_audit: f64,
    /// What decides who is held out; a secret of the data directory by default
    #[arg(long, value_name = "SECRET", help_heading = "Record")]
    split_secret: String,
    /// A TOML file of rules for what is replaced before anything is stored: addresses, numbers, patterns
    #[arg(long, value_name = "FILE", help_heading = "Record")]
    redact_rules: PathBuf,
    /// Days after which the content of an answer is removed; kept for ever by default
    #[arg(long, value_name = "DAYS", help_heading = "Record")]
    retain_content_days: u32,
    /// Days after which the facts of an answer are removed as well; kept for ever by default
    #[arg(long, value_name = "DAYS", help_heading = "Record")]
    retain_facts_days: u32,
    /// What the database may use before content is removed, oldest first; no limit by default
    #[arg(long, value_name = "BYTES", help_heading = "Record")]
    retain_bytes: Bytes,
    /// Rules that flag answers: a TOML file, read again when it changes; `default` for those that come with the program, or `none`
    /// (default: default)
    #[arg(long, value_name = "FILE", help_heading = "Record")]
    flag_rules: String,

    /// Log lines as json or as text (default: json)
    #[arg(long, value_name = "FORMAT", value_parser = ["json", "text"], help_heading = "Log")]
    log_format: String,
    /// What is logged: error, warn, info, debug, trace, or a filter by module (default: info)
    #[arg(long, value_name = "FILTER", help_heading = "Log")]
    log_level: String,
}

fn policy(text: &str) -> Result<RecordPolicy, String> {
    RecordPolicy::parse(text).ok_or_else(|| "it is full, metadata or none".to_owned())
}

impl Layer {
    /// The flag of a field.
    pub fn flag(name: &str) -> String {
        format!("--{}", name.replace('_', "-"))
    }

    /// The environment variable of a field.
    pub fn variable(name: &str) -> String {
        format!("TUNEGATE_{}", name.to_uppercase())
    }
}
