//! The same promises on a real model: two layers, but attention, rotary positions, PEFT adapters, and the answers that
//! `transformers` and `peft` give to compare with. On both decoders and in every format; in the fast class, for which there is no
//! oracle, an answer is compared to the bit with what the same question gets alone.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use tunegate::{
    adapters::{AdapterLimits, folder::AdapterFiles, peft},
    config::{Dtype, EngineConfig},
    engine::{Event, Work},
    model::{self, Batch, CpuDecoder, CpuOptions, KvShape, LanguageModel, LoadOptions, LoraAdapter, ModelSource},
    terms::{FinishReason, TokenScore},
};

use crate::support::device_choice;

use super::{
    bent::{self, Bent},
    config, finished,
    gate::{Answer, Ask, TestEngine},
};

/// At most this many adapters of different ranks and targets.
const ADAPTERS: usize = 8;

/// Every form of weights that a file may have, as the scores for it are called.
const FORMATS: [&str; 11] = [
    "llama-f32",
    "llama-f16",
    "llama-bf16",
    "llama-q8_0",
    "llama-q4_0",
    "llama-q4_1",
    "llama-q5_0",
    "llama-q5_1",
    "wide-q4_k",
    "wide-q5_k",
    "wide-q6_k",
];

/// The decoders and classes.
const DECODERS: [CpuOptions; 3] =
    [on(CpuDecoder::Fused, true), on(CpuDecoder::Tensor, true), on(CpuDecoder::Fused, false)];

const fn on(decoder: CpuDecoder, exact: bool) -> CpuOptions {
    CpuOptions { decoder, exact, threads: Some(2), pin: false, isa: None }
}

/// Digits of pi, three bits for each pause.
const ARRIVALS: u64 = 0x243f_6a88_85a3_08d3;

#[derive(Deserialize)]
struct Golden {
    model: String,
    prompts: Vec<GoldenPrompt>,
    cases: Vec<GoldenCase>,
}

#[derive(Deserialize)]
struct GoldenPrompt {
    tokens: Vec<u32>,
}

#[derive(Deserialize)]
struct GoldenCase {
    adapter: Option<String>,
    answers: Vec<GoldenAnswer>,
}

#[derive(Deserialize)]
struct GoldenAnswer {
    logprobs: Vec<f32>,
    greedy: GoldenGreedy,
}

#[derive(Deserialize)]
struct GoldenGreedy {
    tokens: Vec<u32>,
    margins: Vec<f32>,
}

/// A question, and where its golden answer stands.
struct Question {
    ask: Ask,
    case: usize,
    prompt: usize,
}

/// A model, its adapters and its oracle's answers.
struct Real {
    golden: Golden,
    /// One for each case; `None` is the base.
    adapters: Vec<Option<Arc<LoraAdapter>>>,
    decoder: Option<Box<dyn LanguageModel>>,
    fast: bool,
}

fn golden_path(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(below)
}

impl Real {
    /// With room for `blocks` KV blocks of 16 positions.
    fn load(scores: &str, cpu: CpuOptions, blocks: u64) -> Self {
        let text = fs::read_to_string(golden_path(&format!("scores/{scores}.json"))).expect("golden scores");
        let mut golden: Golden = serde_json::from_str(&text).expect("golden scores as their README says");
        golden.cases.truncate(1 + ADAPTERS);
        let source = ModelSource::detect(&golden_path(&golden.model)).expect("a model");
        let shape = model::shape_of(&source).expect("its shape");
        let value_bytes = if cpu.exact { 4 } else { 2 };
        let block_bytes = 16 * 2 * shape.layers * shape.kv_heads * shape.head_dim * value_bytes;
        let options = LoadOptions {
            device: device_choice(),
            dtype: Some(Dtype::Float32),
            kv_bytes: blocks * block_bytes as u64,
            block_tokens: 16,
            max_model_len: Some(176),
            cpu,
        };
        let loaded = model::load(&source, &options).expect("the model loads");
        assert_eq!(loaded.decoder.kv_shape().blocks as u64, blocks);
        let limits = AdapterLimits { max_rank: 64, max_file_bytes: 1 << 20 };
        let adapter = |path: &String| {
            let folder = golden_path(path);
            let files = AdapterFiles::read(&folder, &folder, limits.max_file_bytes).expect("adapter files");
            let adapter = peft::read(&files, &loaded.shape, limits, Some(&*loaded.base)).expect("a good adapter");
            Arc::new(loaded.packer.pack(files.version(), adapter.sites).expect("it fits the base"))
        };
        let adapters = golden.cases.iter().map(|case| case.adapter.as_ref().map(adapter)).collect();
        Self { golden, adapters, decoder: Some(loaded.decoder), fast: !cpu.exact }
    }

    fn take_decoder(&mut self) -> Box<dyn LanguageModel> {
        self.decoder.take().expect("one engine for each load")
    }

    /// Sixteen questions, to the base and each adapter in turn, each with another prompt than the last.
    fn questions(&self, max_tokens: usize) -> Vec<Question> {
        (0..16)
            .map(|i| {
                let case = i % self.adapters.len();
                let prompt = (i + i / self.adapters.len()) % self.golden.prompts.len();
                let ask = Ask::greedy(self.golden.prompts[prompt].tokens.clone(), max_tokens);
                let ask = self.adapters[case].as_ref().map_or(ask.clone(), |adapter| ask.adapter(adapter));
                Question { ask, case, prompt }
            })
            .collect()
    }

    /// Whether this is the golden answer, or parts from it where the oracle's two best are within 1e-3.
    fn agrees(&self, question: &Question, answer: &Answer) -> bool {
        let GoldenGreedy { tokens, margins } = &self.golden.cases[question.case].answers[question.prompt].greedy;
        let got = answer.tokens();
        let parts = got.iter().zip(tokens).position(|(got, golden)| got != golden);
        parts.is_none_or(|place| margins[place] < 1e-3)
    }
}

/// Every token, with its scores to the bit.
fn bits(answer: &Answer) -> Vec<[u32; 3]> {
    let of = |score: &TokenScore| [score.token, score.logprob.to_bits(), score.entropy.to_bits()];
    answer.scores.iter().map(of).collect()
}

/// What sixteen questions came to.
struct Outcome {
    /// Answers that are not the oracle's.
    wrong: usize,
    /// Rows that were computed more than once. Questions that are alike find rows computed, which makes this less.
    repeated: usize,
}

/// How the sixteen questions are asked.
#[derive(Clone, Copy)]
struct Scene {
    /// Of the oracle; they name the model.
    scores: &'static str,
    cpu: CpuOptions,
    bend: fn(&mut Batch, KvShape),
    blocks: u64,
    /// In one step, at most.
    rows: usize,
    /// Draws how many steps, up to five, run between two questions.
    arrivals: u64,
    max_tokens: usize,
}

/// What shows a wrong build in a few tokens.
const BRIEF: Scene = Scene {
    scores: "llama",
    cpu: DECODERS[0],
    bend: bent::straight,
    blocks: 256,
    rows: 64,
    arrivals: ARRIVALS,
    max_tokens: 8,
};

/// Builds that are wrong in one way each.
const WRONG: [fn(&mut Batch, KvShape); 5] =
    [bent::one_adapter, bent::adapter_rows_shifted, bent::blocks_swapped, bent::asks_shifted, bent::no_adapters];

/// Every format on both decoders and in both classes.
fn everywhere() -> impl Iterator<Item = Scene> {
    FORMATS.into_iter().flat_map(|scores| DECODERS.map(|cpu| Scene { scores, cpu, ..BRIEF }))
}

fn ask_all(scene: &Scene) -> Outcome {
    let Scene { scores, cpu, bend, blocks, rows, arrivals, max_tokens } = *scene;
    let mut real = Real::load(scores, cpu, blocks);
    let questions = real.questions(max_tokens);
    let asks: Vec<Ask> = questions.iter().map(|question| question.ask.clone()).collect();
    let config = EngineConfig { max_num_batched_tokens: rows, ..config() };
    let mut engine = TestEngine::stepped(Bent::new(real.take_decoder(), bend), config.clone());
    let answers = engine.ask_one_by_one(&asks, |i| (arrivals >> (3 * i)) as usize % 6);
    assert!(answers.iter().all(|answer| finished(&answer.last, FinishReason::Length)), "{answers:?}");
    let needed: usize = asks.iter().map(|ask| ask.tokens.len() + max_tokens - 1).sum();
    let computed = engine.metrics.step_rows.get_sample_sum() as usize;
    engine.ends_whole();
    let wrong = match real.fast {
        false => questions.iter().zip(&answers).filter(|(question, answer)| !real.agrees(question, answer)).count(),
        true => {
            let straight = Real::load(scores, cpu, blocks).take_decoder();
            let engine = TestEngine::free(Bent::new(straight, bent::straight), config);
            let alone = |ask: &Ask| bits(&engine.ask(ask).answer());
            let wrong = asks.iter().zip(&answers).filter(|(ask, answer)| alone(ask) != bits(answer)).count();
            engine.ends_whole();
            wrong
        }
    };
    Outcome { wrong, repeated: computed.saturating_sub(needed) }
}

#[test]
fn among_fifteen_neighbours_everybody_gets_the_oracles_answer() {
    for (rows, arrivals) in [(512, 0), (16, ARRIVALS), (29, !ARRIVALS)] {
        for cpu in DECODERS {
            let Outcome { wrong, repeated } = ask_all(&Scene { cpu, rows, arrivals, max_tokens: 24, ..BRIEF });
            assert_eq!((wrong, repeated), (0, 0), "{cpu:?}, {rows} rows in a step, arrivals {arrivals:x}");
        }
    }
}

#[test]
fn among_fifteen_neighbours_everybody_gets_the_oracles_answer_in_every_format() {
    for scene in everywhere() {
        assert_eq!(ask_all(&Scene { rows: 29, ..scene }).wrong, 0, "{}, {:?}", scene.scores, scene.cpu);
    }
}

#[test]
fn preempted_answers_are_the_oracles_too() {
    for cpu in DECODERS {
        // 12 blocks hold 192 positions; the sixteen want up to 40 + 24 each at the same time.
        let Outcome { wrong, repeated } = ask_all(&Scene { cpu, blocks: 12, arrivals: 0, max_tokens: 24, ..BRIEF });
        assert_eq!(wrong, 0, "{cpu:?}");
        assert!(repeated > 0, "somebody was preempted");
    }
}

#[test]
fn a_build_that_ignores_a_lease_is_noticed() {
    for cpu in DECODERS {
        let wrong = ask_all(&Scene { cpu, bend: bent::no_adapters, ..BRIEF }).wrong;
        assert_eq!(wrong, 14, "{cpu:?}: all but the two that asked the base");
    }
}

#[test]
fn a_build_with_rows_or_weights_mixed_up_is_noticed() {
    for (bend, cpu) in WRONG.into_iter().flat_map(|bend| DECODERS.map(|cpu| (bend, cpu))) {
        assert!(ask_all(&Scene { bend, cpu, ..BRIEF }).wrong > 0, "{cpu:?}");
    }
}

#[test]
fn wrong_builds_are_noticed_in_every_format() {
    // Each format meets three of them, each decoder all.
    for (index, scene) in everywhere().enumerate() {
        // Where there is one adapter alone, it cannot be taken for another.
        let wrong = if scene.scores.starts_with("wide") { &WRONG[1..] } else { &WRONG[..] };
        let bend = wrong[index % wrong.len()];
        assert!(ask_all(&Scene { bend, ..scene }).wrong > 0, "{}, {:?}", scene.scores, scene.cpu);
    }
}

#[test]
fn texts_are_scored_as_the_oracle_scores_them_while_answers_run() {
    let mut llama = Real::load("llama", DECODERS[0], 256);
    let questions = llama.questions(24);
    let engine = TestEngine::free(Bent::new(llama.take_decoder(), bent::straight), config());
    let beside = engine.ask(&questions[3].ask);
    let readers: Vec<_> =
        questions.iter().map(|q| engine.ask(&Ask { work: Work::Score { top: 0 }, ..q.ask.clone() })).collect();
    for (question, reader) in questions.iter().zip(readers) {
        let answer = reader.answer();
        let golden = &llama.golden.cases[question.case].answers[question.prompt].logprobs;
        assert_eq!(answer.scores.len(), golden.len());
        for (score, golden) in answer.scores.iter().zip(golden) {
            assert!((score.logprob - golden).abs() < 1e-3, "{} is not {golden}", score.logprob);
        }
    }
    assert!(llama.agrees(&questions[3], &beside.answer()));
    engine.ends_whole();
}

#[test]
fn an_embedding_does_not_depend_on_its_chunks() {
    let embed = |rows: usize| {
        let mut llama = Real::load("llama", DECODERS[0], 256);
        let config = EngineConfig { max_num_batched_tokens: rows, ..config() };
        let tokens = llama.golden.prompts.iter().map(|p| p.tokens.clone()).max_by_key(Vec::len).expect("prompts");
        let engine = TestEngine::free(Bent::new(llama.take_decoder(), bent::straight), config);
        let answer = engine.ask(&Ask::work(tokens, Work::Embed)).answer();
        engine.ends_whole();
        let Some(Event::Hidden(mean)) = answer.last else { panic!("{:?}", answer.last) };
        mean
    };
    let (chunked, whole) = (embed(17), embed(512));
    assert_eq!(whole.len(), 64);
    assert!(whole.iter().any(|value| value.abs() > 1e-3));
    assert!(chunked.iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-5));
}
