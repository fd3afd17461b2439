//! What several rooms' tests need: the tiny real model with its adapters, in a folder of its own.

pub mod depot;
pub mod server;
pub mod wire;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use tempfile::TempDir;
use tunegate::{
    adapters::Refusal,
    app::{self, Built},
    config::{
        AdapterConfig, AdminConfig, Config, CpuConfig, Device, Dtype, EngineConfig, FlagRules, FollowConfig,
        LimitsConfig, ModelConfig, RecordConfig, ServerConfig,
    },
    feedback::Flags,
    gateway::{Ask, Caller, Gateway, Prompt, Reply, ReplyError, ReplyEvent},
    journal::CompletionKind,
    metrics::Metrics,
    model::DeviceChoice,
    terms::{FinishReason, SamplingLayer, TokenScore, Usage},
};

/// A file or folder below `tests/golden`.
pub fn golden(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// What the decoder runs on, in float32: the CPU, or what `TUNEGATE_TEST_DEVICE` names (`cuda`, `metal:1`; `make test-gpu`).
pub fn device() -> Device {
    let named = std::env::var("TUNEGATE_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned());
    let (kind, index) = named.split_once(':').unwrap_or((&named, "0"));
    let index = index.parse().unwrap_or_else(|_| panic!("TUNEGATE_TEST_DEVICE={named}: no device number"));
    match kind {
        "cpu" => Device::Cpu,
        "cuda" => Device::Cuda(index),
        "metal" => Device::Metal(index),
        _ => panic!("TUNEGATE_TEST_DEVICE={named}: it is cpu, cuda, cuda:N, metal or metal:N"),
    }
}

/// The same for a decoder without a server.
pub fn device_choice() -> DeviceChoice {
    match device() {
        Device::Cpu => DeviceChoice::Cpu,
        Device::Cuda(index) => DeviceChoice::Cuda(index),
        Device::Metal(index) => DeviceChoice::Metal(index),
    }
}

/// The base's name in these tests.
pub const BASE: &str = "tiny";

/// Settings for the tiny llama and all adapters made for it, recording into `data_dir`.
pub fn config(data_dir: PathBuf) -> Config {
    Config {
        server: ServerConfig {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            served_names: vec![BASE.to_owned()],
            api_keys: Vec::new(),
            keys_file: None,
            admin: AdminConfig::default(),
            shutdown_timeout: Duration::from_secs(10),
        },
        model: ModelConfig {
            path: golden("models/llama"),
            device: device(),
            dtype: Some(Dtype::Float32),
            kv_bytes: 4 << 20,
            block_tokens: 16,
            max_model_len: None,
            chat_template: None,
            own_sampling: true,
            cpu: CpuConfig { exact: true, threads: Some(2), pin: false, tensors: false, instructions: None },
        },
        // No target: how a prompt is cut into chunks, and so the last digits of its scores, would hang on the clock.
        engine: EngineConfig { max_model_len: 512, step_target: Duration::ZERO, ..EngineConfig::default() },
        // The trial has tests of its own; elsewhere nothing is in memory before it is asked for.
        adapters: AdapterConfig {
            dirs: vec![golden("adapters/llama")],
            trial: false,
            follow: FollowConfig { interval: Duration::ZERO, ..FollowConfig::default() },
            ..AdapterConfig::default()
        },
        record: RecordConfig { data_dir, max_pending: 256, ..RecordConfig::default() },
        // Flags have tests of their own.
        flag_rules: FlagRules::None,
        limits: LimitsConfig { default_max_tokens: 32, ..LimitsConfig::default() },
    }
}

/// A gateway over the tiny model; its folder goes with it.
pub struct TestGateway {
    pub gateway: Gateway,
    pub flags: Flags,
    built: Option<Built>,
    _folder: TempDir,
}

impl TestGateway {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// With settings changed by `change`.
    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let mut config = config(folder.path().join("data"));
        change(&mut config);
        let metrics = Arc::new(Metrics::new());
        let built = app::build(&config, &metrics).expect("the tiny model builds");
        Self { gateway: built.gateway.clone(), flags: built.flags.clone(), built: Some(built), _folder: folder }
    }

    /// The adapters that are not served, with the reasons.
    pub fn refused(&self) -> &[(String, Vec<Refusal>)] {
        self.built.as_ref().map_or(&[], |built| &built.refused)
    }

    pub async fn ask(&self, ask: Ask) -> Answer {
        let reply = self.gateway.ask(ask).await.expect("admitted");
        Answer::collect(reply).await.expect("finished")
    }
}

impl Drop for TestGateway {
    fn drop(&mut self) {
        if let Some(built) = self.built.take() {
            built.stop();
        }
    }
}

/// A greedy question of `max_tokens` tokens to `model` that does not stop early.
pub fn question(model: &str, prompt: Prompt, max_tokens: usize) -> Ask {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    Ask {
        id: format!("cmpl-test-{number}"),
        request_id: format!("req-{number}"),
        kind: CompletionKind::Completions,
        model: model.to_owned(),
        prompts: vec![prompt],
        sampling: SamplingLayer { temperature: Some(0.0), ..SamplingLayer::default() },
        n: 1,
        max_tokens: Some(max_tokens),
        min_tokens: 0,
        stop: Vec::new(),
        include_stop: false,
        stop_token_ids: Vec::new(),
        ignore_eos: true,
        skip_special_tokens: true,
        logit_bias: Vec::new(),
        top_logprobs: Some(0),
        echo: false,
        seed: Some(7),
        caller: Caller::default(),
        record: None,
        adapter_wait: None,
        store: false,
        user: None,
        safety_identifier: None,
        conversation: None,
        metadata: Default::default(),
        origin: Default::default(),
    }
}

/// A whole answer.
#[derive(Debug, Default)]
pub struct Answer {
    pub model: String,
    pub choices: Vec<ChoiceAnswer>,
    pub usage: Usage,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChoiceAnswer {
    pub text: String,
    pub scores: Vec<TokenScore>,
    pub finish: Option<FinishReason>,
}

impl ChoiceAnswer {
    pub fn tokens(&self) -> Vec<u32> {
        self.scores.iter().map(|score| score.token).collect()
    }
}

impl Answer {
    pub async fn collect(mut reply: Reply) -> Result<Self, ReplyError> {
        let mut answer = Self { model: reply.head().model.clone(), ..Self::default() };
        while let Some(event) = reply.next().await? {
            match event {
                ReplyEvent::Echo { choice, text, .. } => answer.choice(choice).text.push_str(&text),
                ReplyEvent::Piece { choice, text, scores } => {
                    let choice = answer.choice(choice);
                    choice.text.push_str(&text);
                    choice.scores.extend(scores);
                }
                ReplyEvent::Finished { choice, reason } => answer.choice(choice).finish = Some(reason),
                ReplyEvent::Done { usage } => answer.usage = usage,
            }
        }
        Ok(answer)
    }

    fn choice(&mut self, index: u32) -> &mut ChoiceAnswer {
        let wanted = index as usize + 1;
        if self.choices.len() < wanted {
            self.choices.resize_with(wanted, ChoiceAnswer::default);
        }
        &mut self.choices[index as usize]
    }
}
