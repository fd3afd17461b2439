//! Every setting, once. File < environment < flags; nothing else reads the environment.
//!
//! The structs here are settled values, as the rooms use them; layering, flags and the TOML form live beside them.

mod layer;
mod record;
mod s3;
mod settings;
mod source;
mod value;
pub mod vllm;
mod vllm_flags;

use std::{net::SocketAddr, path::PathBuf, time::Duration};

pub use layer::Layer;
pub use record::{Durability, OnFault, RecordConfig, RetentionConfig, SplitConfig};
pub use s3::{AWS_VARIABLES, ContainerRole, S3Credentials, S3Keys, WebIdentity};
pub use settings::{Fault, LogFormat, Settings};
pub use source::{
    DEFAULT_REGION, FetchConfig, FollowConfig, HubConfig, S3Place, Secret, SourceConfig, SourcePlace, ip_of,
    parse as parse_source,
};

/// What one engine may hold and how it steps.
#[derive(Clone, Debug)]
pub struct EngineConfig {
    /// Sequences that may run at the same time.
    pub max_num_seqs: usize,
    /// Rows in one step: running answers first, prompt chunks fill the rest.
    pub max_num_batched_tokens: usize,
    /// Sequences that may wait; beyond it a request is refused.
    pub max_queued: usize,
    /// Different adapters in one batch; more wait.
    pub max_loras: usize,
    /// Prompt and answer together, in tokens.
    pub max_model_len: usize,
    /// How long one step may take while answers are running; prompts are read in chunks that fit. Where answers alone take
    /// longer than half of it, prompts may take as long again. Zero sets no limit.
    pub step_target: Duration,
    /// Keys and values of equal beginnings, under one version and caller, are computed once and kept while there is room.
    pub prefix_caching: bool,
    /// No step for this long while work is running means that the engine is stalled.
    pub stall: Duration,
}

impl Default for EngineConfig {
    fn default() -> Self {
        Self {
            max_num_seqs: 64,
            max_num_batched_tokens: 512,
            max_queued: 256,
            max_loras: 64,
            max_model_len: 4096,
            step_target: Duration::from_millis(30),
            prefix_caching: true,
            stall: Duration::from_secs(60),
        }
    }
}

/// Which adapters are served and how much memory they may take.
#[derive(Clone, Debug)]
pub struct AdapterConfig {
    /// Folders whose subfolders are adapters.
    pub dirs: Vec<PathBuf>,
    /// Adapters under given names.
    pub modules: Vec<(String, PathBuf)>,
    /// Folders below which load requests may name adapters.
    pub roots: Vec<PathBuf>,
    /// Whether each version is run before a name points at it for the first time.
    pub trial: bool,
    /// Folders of the suites that a load may name.
    pub suites: Vec<PathBuf>,
    /// What this many of a name's last steps name is never removed from disk.
    pub keep_steps: usize,
    /// Threads that read and pack adapters at the same time.
    pub load_threads: usize,
    /// How long a request waits for an adapter that is not in memory, unless it says so itself.
    pub wait: Duration,
    /// Bytes of kept adapters on disk; `None`: nothing is removed.
    pub max_vault_bytes: Option<u64>,
    /// The largest rank that is accepted.
    pub max_lora_rank: usize,
    /// Adapters kept in host memory, where a count is wanted beside the bytes: on a GPU the copies there, on a CPU all.
    pub max_cpu_loras: Option<usize>,
    /// Bytes of copies of packed adapters in host memory, beside a device with its own; 0: none are kept.
    pub max_host_bytes: u64,
    /// Bytes of packed adapters in memory, leased ones included.
    pub max_bytes: u64,
    /// Largest `adapter_model.safetensors`, in bytes.
    pub max_file_bytes: u64,
    /// Places that adapters are fetched from.
    pub sources: Vec<SourceConfig>,
    pub s3: S3Credentials,
    pub hub: HubConfig,
    /// Certificates that sources may be known by, beside the well-known ones.
    pub ca_file: Option<PathBuf>,
    pub fetch: FetchConfig,
    pub follow: FollowConfig,
}

impl Default for AdapterConfig {
    fn default() -> Self {
        Self {
            dirs: Vec::new(),
            modules: Vec::new(),
            roots: Vec::new(),
            trial: true,
            suites: Vec::new(),
            keep_steps: 5,
            load_threads: 2,
            wait: Duration::from_secs(30),
            max_vault_bytes: None,
            max_lora_rank: 512,
            max_cpu_loras: None,
            max_host_bytes: 0,
            max_bytes: 4 << 30,
            max_file_bytes: 2 << 30,
            sources: Vec::new(),
            s3: S3Credentials::default(),
            hub: HubConfig::default(),
            ca_file: None,
            fetch: FetchConfig::default(),
            follow: FollowConfig::default(),
        }
    }
}

/// The rules that flag answers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum FlagRules {
    /// Those that come with the program.
    #[default]
    Default,
    /// No answer is flagged.
    None,
    /// A TOML file, read again when it changes.
    File(PathBuf),
}

/// What is wrong with a request before anybody looks at its meaning.
#[derive(Clone, Debug)]
pub struct LimitsConfig {
    pub max_body_bytes: usize,
    pub max_header_bytes: usize,
    /// How long a client may take to send its headers, and again its body.
    pub header_timeout: Duration,
    pub body_timeout: Duration,
    /// How long a connection without a request is kept.
    pub idle_timeout: Duration,
    /// How long a client may take nothing of an answer that is there for it.
    pub write_timeout: Duration,
    pub max_connections: usize,
    /// Requests at the same time on one HTTP/2 connection.
    pub max_streams: u32,
    /// Choices in one request, over all prompts.
    pub max_choices: u32,
    pub max_stop_strings: usize,
    pub max_stop_bytes: usize,
    /// Answer tokens where a request names no limit.
    pub default_max_tokens: usize,
    /// The longest an answer may take, from admission.
    pub answer_timeout: Duration,
    /// Unknown request fields are refused rather than ignored.
    pub strict_fields: bool,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            max_body_bytes: 4 << 20,
            max_header_bytes: 64 << 10,
            header_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(30),
            max_connections: 1024,
            max_streams: 64,
            max_choices: 16,
            max_stop_strings: 16,
            max_stop_bytes: 1024,
            default_max_tokens: 1024,
            answer_timeout: Duration::from_secs(600),
            strict_fields: false,
        }
    }
}

/// Where the server listens and whom it lets in.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    pub listen: SocketAddr,
    /// The base's names; the first is the one that answers echo.
    pub served_names: Vec<String>,
    pub api_keys: Vec<String>,
    pub keys_file: Option<PathBuf>,
    pub admin: AdminConfig,
    /// How long running answers may go on after SIGTERM.
    pub shutdown_timeout: Duration,
}

/// Who may change what is served, where others than this machine's users can connect.
#[derive(Clone, Debug, Default)]
pub struct AdminConfig {
    pub key: Option<String>,
    /// A port of its own, on the server's address.
    pub port: Option<u16>,
    /// Whoever can connect.
    pub unauthenticated: bool,
}

/// The base model: where its files are and how they are loaded.
#[derive(Clone, Debug)]
pub struct ModelConfig {
    /// A Hugging Face folder, a folder with one GGUF file, or a GGUF file.
    pub path: PathBuf,
    pub device: Device,
    /// In which numbers a GPU computes; `None` is bfloat16 with CUDA and float16 with Metal.
    pub dtype: Option<Dtype>,
    /// Bytes given to KV storage.
    pub kv_bytes: u64,
    /// Positions in one KV block.
    pub block_tokens: usize,
    /// The longest context to serve; `None` is the model's own.
    pub max_model_len: Option<usize>,
    /// Replaces the model's own chat template: its text.
    pub chat_template: Option<String>,
    /// Whether the sampling defaults that come with the model count.
    pub own_sampling: bool,
    pub cpu: CpuConfig,
}

/// How the model runs on a CPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuConfig {
    /// `f32` throughout.
    pub exact: bool,
    /// Compute threads; `None` is one for each core.
    pub threads: Option<usize>,
    /// Each compute thread stays on a core of its own.
    pub pin: bool,
    /// Tensors instead of packed weights.
    pub tensors: bool,
    /// Which vector instructions to compute with; `None` is the most that the machine has.
    pub instructions: Option<Instructions>,
}

/// A level of vector instructions. Which of them there are is for the kernels to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Instructions {
    Plain,
    Avx2,
    Avx512,
    Amx,
}

impl Instructions {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Amx => "amx",
        }
    }
}

/// What the decoder runs on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    Cpu,
    Cuda(usize),
    Metal(usize),
}

/// The floating-point numbers that a decoder computes in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dtype {
    Float32,
    Float16,
    Bfloat16,
}

/// Everything, settled.
#[derive(Clone, Debug)]
pub struct Config {
    pub server: ServerConfig,
    pub model: ModelConfig,
    pub engine: EngineConfig,
    pub adapters: AdapterConfig,
    pub record: RecordConfig,
    pub flag_rules: FlagRules,
    pub limits: LimitsConfig,
}
