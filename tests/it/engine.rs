//! The engine end to end: jobs in, events out, on a decoder whose every answer depends on every block, position and row.

mod gate;
mod toy;

use gate::{Ask, TestEngine};
use toy::Toy;
use tunegate::{
    config::EngineConfig,
    engine::{EngineFault, Event},
    model::{LoraAdapter, RowAnswer, Want},
    terms::FinishReason,
};

/// Small enough that prompts are read in several chunks.
fn config() -> EngineConfig {
    EngineConfig {
        max_num_seqs: 16,
        max_num_batched_tokens: 24,
        max_queued: 64,
        max_model_len: 256,
        ..Default::default()
    }
}

fn prompt(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (seed.wrapping_mul(31) + i * i * 7 + i) % toy::VOCAB as u32).collect()
}

/// The greedy answer, computed without an engine.
fn expected(ask: &Ask, count: usize) -> Vec<u32> {
    expected_by(&ask.tokens, ask.adapter.as_deref(), count)
}

fn expected_by(prompt: &[u32], adapter: Option<&LoraAdapter>, count: usize) -> Vec<u32> {
    let mut tokens = prompt.to_vec();
    for _ in 0..count {
        let RowAnswer::Logits(logits) = toy::oracle(&tokens, adapter, &Want::Logits) else {
            panic!("logits were asked for")
        };
        let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b]).then(b.cmp(&a)));
        tokens.push(best.expect("a vocabulary") as u32);
    }
    tokens.split_off(prompt.len())
}

#[test]
fn a_job_starts_reports_its_tokens_and_finishes() {
    let engine = TestEngine::free(Toy::new(64, 4), config());
    let ask = Ask::greedy(prompt(1, 50), 9).adapter(&toy::adapter("poet"));
    let answer = engine.ask(&ask).answer();
    assert!(answer.started);
    assert_eq!(answer.tokens(), expected(&ask, 9));
    assert!(matches!(answer.last, Some(Event::Finished(FinishReason::Length))));
    engine.ends_whole();
}

#[test]
fn a_stopped_engine_fails_what_runs() {
    let engine = TestEngine::stepped(Toy::new(64, 4), config());
    let running = engine.ask(&Ask::greedy(prompt(1, 5), 100));
    engine.at_step();
    engine.handle.stop();
    engine.go(gate::Go::Run);
    assert!(matches!(running.answer().last, Some(Event::Failed(EngineFault::Stopped))));
    let handle = engine.join();
    assert!(handle.load().stopped);
    assert_eq!(handle.load().kv_blocks_used, 0);
}
