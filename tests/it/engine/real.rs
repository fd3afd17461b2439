//! The same promises on a real model: two layers, but attention, rotary positions, PEFT adapters, and the answers that
//! `transformers` and `peft` give to compare with.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;
use tunegate::{
    adapters::{AdapterLimits, folder::AdapterFiles, peft},
    config::{Dtype, EngineConfig},
    engine::{Event, Work},
    model::{self, Batch, CpuOptions, KvShape, LanguageModel, LoadOptions, LoraAdapter, ModelSource},
    terms::FinishReason,
};

use crate::support::device_choice;

use super::{
    bent::{self, Bent},
    config, finished,
    gate::{Answer, Ask, TestEngine},
};

/// Eight adapters of different ranks and targets.
const ADAPTERS: [&str; 8] =
    ["plain-qv", "all7", "rslora", "patterns", "rslora-patterns", "exclude-list", "o-down", "rank-1"];

/// Digits of pi, three bits for each pause.
const ARRIVALS: u64 = 0x243f_6a88_85a3_08d3;

#[derive(Deserialize)]
struct Golden {
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

struct Llama {
    golden: Golden,
    adapters: HashMap<String, Arc<LoraAdapter>>,
    decoder: Option<Box<dyn LanguageModel>>,
}

fn golden_path(below: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(below)
}

impl Llama {
    /// With room for `blocks` KV blocks of 16 positions.
    fn load(blocks: u64) -> Self {
        let source = ModelSource::detect(&golden_path("models/llama")).expect("a model folder");
        // Keys and values of 2 layers of 2 heads of 16 dimensions, in f32.
        let block_bytes = 16 * 2 * 2 * 2 * 16 * 4;
        let options = LoadOptions {
            device: device_choice(),
            dtype: Some(Dtype::Float32),
            kv_bytes: blocks * block_bytes,
            block_tokens: 16,
            max_model_len: Some(176),
            cpu: CpuOptions { exact: true, ..CpuOptions::default() },
        };
        let loaded = model::load(&source, &options).expect("the model loads");
        assert_eq!(loaded.decoder.kv_shape().blocks as u64, blocks);
        let text = fs::read_to_string(golden_path("scores/llama.json")).expect("golden scores");
        let golden: Golden = serde_json::from_str(&text).expect("golden scores as their README says");
        let limits = AdapterLimits { max_rank: 64, max_file_bytes: 1 << 20 };
        let adapter = |name: &str| {
            let folder = golden_path(&format!("adapters/llama/{name}"));
            let files = AdapterFiles::read(&folder, &folder, limits.max_file_bytes).expect("adapter files");
            let adapter = peft::read(&files, &loaded.shape, limits, Some(&*loaded.base)).expect("a good adapter");
            Arc::new(loaded.packer.pack(files.version(), adapter.sites).expect("it fits the base"))
        };
        let adapters = ADAPTERS.map(|name| (format!("adapters/llama/{name}"), adapter(name))).into();
        Self { golden, adapters, decoder: Some(loaded.decoder) }
    }

    fn take_decoder(&mut self) -> Box<dyn LanguageModel> {
        self.decoder.take().expect("one engine for each load")
    }

    /// Sixteen questions, to the base and each adapter in turn, each with another prompt than the last.
    fn questions(&self, max_tokens: usize) -> Vec<Question> {
        let contenders: Vec<(usize, Option<&Arc<LoraAdapter>>)> = (self.golden.cases.iter().enumerate())
            .filter_map(|(index, case)| match &case.adapter {
                None => Some((index, None)),
                Some(path) => self.adapters.get(path).map(|adapter| (index, Some(adapter))),
            })
            .collect();
        assert_eq!(contenders.len(), 9, "the base and eight adapters");
        (0..16)
            .map(|i| {
                let (case, adapter) = contenders[i % contenders.len()];
                let prompt = i % self.golden.prompts.len();
                let ask = Ask::greedy(self.golden.prompts[prompt].tokens.clone(), max_tokens);
                let ask = adapter.map_or(ask.clone(), |adapter| ask.adapter(adapter));
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

/// What sixteen questions came to.
struct Outcome {
    /// Answers that are not the oracle's.
    wrong: usize,
    /// Rows that were computed more than once.
    repeated: usize,
}

/// How the sixteen questions are asked.
struct Scene {
    bend: fn(&mut Batch, KvShape),
    blocks: u64,
    /// In one step, at most.
    rows: usize,
    /// Draws how many steps, up to five, run between two questions.
    arrivals: u64,
    max_tokens: usize,
}

/// What shows a wrong build in a few tokens.
const BRIEF: Scene = Scene { bend: bent::straight, blocks: 256, rows: 64, arrivals: ARRIVALS, max_tokens: 8 };

fn ask_all(scene: &Scene) -> Outcome {
    let Scene { bend, blocks, rows, arrivals, max_tokens } = *scene;
    let mut llama = Llama::load(blocks);
    let questions = llama.questions(max_tokens);
    let config = EngineConfig { max_num_batched_tokens: rows, ..config() };
    let mut engine = TestEngine::stepped(Bent::new(llama.take_decoder(), bend), config);
    let asks: Vec<Ask> = questions.iter().map(|question| question.ask.clone()).collect();
    let answers = engine.ask_one_by_one(&asks, |i| (arrivals >> (3 * i)) as usize % 6);
    let wrong = questions.iter().zip(&answers).filter(|(question, answer)| {
        assert!(finished(&answer.last, FinishReason::Length), "{:?}", answer.last);
        !llama.agrees(question, answer)
    });
    let wrong = wrong.count();
    let needed: usize = asks.iter().map(|ask| ask.tokens.len() + max_tokens - 1).sum();
    let computed = engine.metrics.step_rows.get_sample_sum() as usize;
    engine.ends_whole();
    Outcome { wrong, repeated: computed - needed }
}

#[test]
fn among_fifteen_neighbours_everybody_gets_the_oracles_answer() {
    for (rows, arrivals) in [(512, 0), (16, ARRIVALS), (29, !ARRIVALS)] {
        let Outcome { wrong, repeated } = ask_all(&Scene { rows, arrivals, max_tokens: 24, ..BRIEF });
        assert_eq!((wrong, repeated), (0, 0), "{rows} rows in a step, arrivals {arrivals:x}");
    }
}

#[test]
fn preempted_answers_are_the_oracles_too() {
    // 12 blocks hold 192 positions; the sixteen want up to 40 + 24 each at the same time.
    let Outcome { wrong, repeated } = ask_all(&Scene { blocks: 12, arrivals: 0, max_tokens: 24, ..BRIEF });
    assert_eq!(wrong, 0);
    assert!(repeated > 0, "somebody was preempted");
}

#[test]
fn a_build_that_ignores_a_lease_is_noticed() {
    assert_eq!(ask_all(&Scene { bend: bent::no_adapters, ..BRIEF }).wrong, 14, "all but the two that asked the base");
}

#[test]
fn a_build_with_rows_or_weights_mixed_up_is_noticed() {
    for bend in [bent::one_adapter, bent::adapter_rows_shifted, bent::blocks_swapped, bent::asks_shifted] {
        assert!(ask_all(&Scene { bend, ..BRIEF }).wrong > 0);
    }
}

#[test]
fn texts_are_scored_as_the_oracle_scores_them_while_answers_run() {
    let mut llama = Llama::load(256);
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
        let mut llama = Llama::load(256);
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
