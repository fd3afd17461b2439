//! The engine end to end: jobs in, events out, on a decoder whose every answer depends on every block, position and
//! row.

mod bent;
mod gate;
mod neighbours;
mod real;
mod toy;

use std::time::Duration;

use gate::{Ask, Go, TestEngine};
use proptest::prelude::*;
use toy::{Toy, greedy};
use tunegate::{
    config::EngineConfig,
    engine::{EngineFault, EngineLoad, Event, SubmitError, Work},
    model::{Batch, KvShape, LanguageModel, LoraAdapter, ModelShape, RowAnswer, StepError, StepOutput, Want},
    terms::{FinishReason, Sampling, TokenScore},
};

/// Small enough that prompts are read in several chunks; steps take whatever they take.
fn config() -> EngineConfig {
    EngineConfig {
        max_num_seqs: 16,
        max_num_batched_tokens: 24,
        max_queued: 64,
        max_loras: 16,
        max_model_len: 256,
        step_target: Duration::ZERO,
        ..Default::default()
    }
}

fn prompt(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32).map(|i| (seed.wrapping_mul(31) + i * i * 7 + i) % toy::VOCAB as u32).collect()
}

/// The greedy answer to `ask`, computed without an engine.
fn expected(ask: &Ask, count: usize) -> Vec<u32> {
    greedy(&ask.tokens, ask.adapter.as_deref(), count)
}

fn toy_score(tokens: &[u32], want: &Want) -> TokenScore {
    match toy::oracle(tokens, None, want) {
        RowAnswer::Score(score) => score,
        other => panic!("a score was asked for, not {other:?}"),
    }
}

/// An event that says that the job was in a step that failed.
fn step_failed(event: &Option<Event>) -> bool {
    matches!(event, Some(Event::Failed(EngineFault::Step(_))))
}

fn finished(event: &Option<Event>, reason: FinishReason) -> bool {
    matches!(event, Some(Event::Finished(got)) if *got == reason)
}

#[test]
fn a_job_starts_reports_its_tokens_and_finishes() {
    let engine = TestEngine::free(Toy::new(64, 4), config());
    let ask = Ask::greedy(prompt(1, 50), 9).adapter(&toy::adapter("poet"));
    let answer = engine.ask(&ask).answer();
    assert!(answer.started);
    assert_eq!(answer.tokens(), expected(&ask, 9));
    assert!(finished(&answer.last, FinishReason::Length));
    engine.ends_whole();
}

/// A device that can decide nothing.
struct Undecided(Toy);

impl LanguageModel for Undecided {
    fn shape(&self) -> &ModelShape {
        self.0.shape()
    }

    fn kv_shape(&self) -> KvShape {
        self.0.kv_shape()
    }

    fn forward(&mut self, batch: &Batch, out: &mut StepOutput) -> Result<(), StepError> {
        self.0.forward(batch, out)?;
        out.fetched = out.answers.len() as u32;
        Ok(())
    }
}

#[test]
fn rows_that_a_device_could_not_decide_are_counted() {
    let engine = TestEngine::free(Undecided(Toy::new(64, 4)), config());
    assert_eq!(engine.ask(&Ask::greedy(prompt(1, 50), 9)).answer().tokens().len(), 9);
    assert_eq!(engine.metrics.logits_fetched.get(), 9);
    engine.ends_whole();
}

#[test]
fn a_prompt_is_read_in_chunks_while_answers_go_on() {
    let engine = TestEngine::stepped(Toy::new(64, 4), config());
    let short = engine.ask(&Ask::greedy([7], 50));
    assert_eq!(engine.at_step().tokens, [7]);
    let long = engine.ask(&Ask::greedy(prompt(3, 60), 2));
    let sizes: Vec<Vec<u32>> =
        (0..4).map(|_| engine.next_step().sequences.iter().map(|rows| rows.rows).collect()).collect();
    assert_eq!(sizes, [vec![1, 23], vec![1, 23], vec![1, 14], vec![1, 1]]);
    engine.ends_whole();
    assert_eq!(short.answer().scores.len(), 50);
    assert_eq!(long.answer().tokens(), greedy(&prompt(3, 60), None, 2));
}

#[test]
fn the_base_and_several_adapters_share_one_step() {
    let engine = TestEngine::stepped(Toy::new(64, 4), config());
    let first = engine.ask(&Ask::greedy([9], 9));
    engine.at_step();
    let (poet, lawyer) = (toy::adapter("poet"), toy::adapter("lawyer"));
    let asks = [(1, Some(&poet)), (2, Some(&lawyer)), (3, None), (4, Some(&poet))];
    let ask = |(token, adapter): (u32, Option<&std::sync::Arc<_>>)| {
        let ask = Ask::greedy([token], 9);
        engine.ask(&adapter.map_or(ask.clone(), |adapter| ask.adapter(adapter)))
    };
    let readers = asks.map(ask);
    let step = engine.next_step();
    let row_of = |token| step.tokens.iter().position(|&t| t == token).expect("it is in the step") as u32;
    let rows = |adapter: &LoraAdapter| {
        let listed = step.adapters.iter().filter(|(version, _)| *version == adapter.version());
        listed.flat_map(|(_, rows)| rows.clone()).collect::<Vec<_>>()
    };
    let mut poets = [row_of(1), row_of(4)];
    poets.sort_unstable();
    assert_eq!((rows(&poet), rows(&lawyer)), (poets.to_vec(), vec![row_of(2)]));
    assert_eq!(poets[1] - poets[0], 1, "rows of one adapter stand together");
    assert_eq!((step.tokens.len(), step.adapters.len()), (5, 2), "whoever is not listed runs on the base");
    assert_eq!(step.positions.iter().filter(|&&position| position == 0).count(), 4);
    engine.ends_whole();
    assert!(readers.into_iter().chain([first]).all(|reader| reader.answer().scores.len() == 9));
}

#[test]
fn a_stop_token_is_reported_and_ends_the_answer() {
    let engine = TestEngine::free(Toy::new(64, 4), config());
    let ask = Ask::greedy(prompt(2, 9), 30);
    let tokens = expected(&ask, 30);
    let place = (1..30).find(|&i| !tokens[..i].contains(&tokens[i])).expect("a token that was not there before");
    let stop = tokens[place];
    let answer = engine.ask(&ask.clone().generate(|g| g.stop_tokens = [stop, 9999].into())).answer();
    assert_eq!(answer.tokens(), tokens[..=place]);
    assert!(finished(&answer.last, FinishReason::Stop));
    // Banned at first, the stop token may come back later, but not among the first twenty.
    let longer = ask.generate(|g| (g.stop_tokens, g.min_tokens) = ([stop, 9999].into(), 20));
    let answer = engine.ask(&longer).answer();
    assert!(answer.scores.len() >= 20);
    assert!(!answer.tokens()[..20].contains(&stop));
    engine.ends_whole();
}

#[test]
fn drawn_answers_depend_on_their_seed_and_choice_alone() {
    let engine = TestEngine::free(Toy::new(256, 4), config());
    let ask = |seed, choice| {
        Ask::greedy(prompt(2, 30), 20).generate(|g| {
            g.sampling = Sampling { temperature: 1.0, frequency_penalty: 0.5, ..Default::default() };
            (g.seed, g.choice) = (seed, choice);
        })
    };
    let alone: Vec<_> = [(1, 0), (1, 1), (2, 0)].map(|(s, c)| engine.ask(&ask(s, c)).answer().tokens()).into();
    assert!(alone[0] != alone[1] && alone[0] != alone[2] && alone[1] != alone[2]);
    let together: Vec<_> = [(2, 0), (1, 1), (1, 0)].map(|(s, c)| engine.ask(&ask(s, c))).into();
    let together: Vec<_> = together.into_iter().rev().map(|reader| reader.answer().tokens()).collect();
    assert_eq!(together, [&alone[0], &alone[1], &alone[2]].map(Clone::clone));
    engine.ends_whole();
}

#[test]
fn penalties_and_bias_reach_the_decoder() {
    let engine = TestEngine::free(Toy::new(64, 4), config());
    let ask = Ask::greedy(prompt(2, 9), 12);
    let biased = engine.ask(&ask.clone().generate(|g| g.logit_bias = [(5, 100.0)].into())).answer();
    assert_eq!(biased.tokens(), [5; 12]);
    let penalized = engine.ask(&ask.generate(|g| {
        g.logit_bias = [(5, 100.0)].into();
        g.sampling.frequency_penalty = 25.0;
    }));
    let tokens = penalized.answer().tokens();
    assert_eq!(tokens[..4], [5; 4]);
    assert!(tokens[4..].iter().any(|&token| token != 5), "after four times the penalty outweighs the bias");
    engine.ends_whole();
}

#[test]
fn a_scored_text_gets_one_score_for_each_token_after_the_first() {
    let engine = TestEngine::stepped(Toy::new(64, 4), config());
    let text = prompt(5, 70);
    let scored = engine.ask(&Ask::work(text.clone(), Work::Score { top: 3 }));
    assert_eq!(engine.at_step().tokens, text[..24], "it is read in chunks like any prompt");
    engine.ends_whole();
    let answer = scored.answer();
    let want = |i: usize| Want::Score { token: text[i], top: 3 };
    let oracle: Vec<_> = (1..text.len()).map(|i| toy_score(&text[..i], &want(i))).collect();
    assert_eq!(answer.scores, oracle);
    assert!(finished(&answer.last, FinishReason::Length));
}

#[test]
fn an_embedding_is_the_mean_over_all_positions() {
    let engine = TestEngine::free(Toy::new(64, 4), config());
    let text = prompt(6, 61);
    let answer = engine.ask(&Ask::work(text.clone(), Work::Embed).background()).answer();
    let mut mean = [0.0f64; toy::HIDDEN];
    for end in 1..=text.len() {
        let RowAnswer::Hidden(state) = toy::oracle(&text[..end], None, &Want::Hidden) else { panic!("a state") };
        mean.iter_mut().zip(&state).for_each(|(sum, &value)| *sum += f64::from(value) / text.len() as f64);
    }
    let Some(Event::Hidden(got)) = answer.last else { panic!("{:?}", answer.last) };
    assert_eq!(got.len(), toy::HIDDEN);
    assert!(got.iter().zip(&mean).all(|(&got, &mean)| (f64::from(got) - mean).abs() < 1e-6), "{got:?} {mean:?}");
    engine.ends_whole();
}

#[test]
fn background_work_waits_until_nobody_else_runs() {
    let engine = TestEngine::stepped(Toy::new(64, 4), config());
    let normal = engine.ask(&Ask::greedy([7], 3));
    let probe = engine.ask(&Ask::work(prompt(6, 5), Work::Embed).background());
    assert_eq!(engine.at_step().tokens.len(), 1);
    assert_eq!([engine.next_step(), engine.next_step()].map(|step| step.tokens.len()), [1, 1]);
    assert_eq!(engine.next_step().tokens, prompt(6, 5));
    engine.ends_whole();
    assert_eq!(normal.answer().scores.len(), 3);
    assert!(matches!(probe.answer().last, Some(Event::Hidden(_))));
}

#[test]
fn a_client_that_leaves_frees_its_place_before_the_next_step() {
    let engine = TestEngine::stepped(Toy::new(64, 4), EngineConfig { max_num_seqs: 2, ..config() });
    let mid_answer = engine.ask(&Ask::greedy([1], 50));
    let mid_prompt = engine.ask(&Ask::greedy(prompt(9, 100), 50));
    let in_queue = engine.ask(&Ask::greedy([3], 50));
    let waits = engine.ask(&Ask::greedy([4], 1));
    let mut first = mid_answer;
    while engine.at_step().sequences.len() < 2 {
        engine.go(Go::Run);
    }
    engine.next_step();
    assert!(matches!(first.next(), Some(Event::Started { .. })));
    assert!(matches!(first.next(), Some(Event::Token { .. })), "it is in the middle of its answer");
    assert_eq!(engine.handle.load().running, 2);
    drop(first);
    drop(in_queue);
    let step = engine.next_step();
    assert_eq!(step.rows_from(4), 1, "the next in the queue has the place");
    assert_eq!(step.sequences.len(), 2);
    mid_prompt.cancel.cancel();
    let last = engine.ask(&Ask::greedy([5], 1));
    assert_eq!(engine.next_step().tokens, [5], "the rest of the long prompt is not read");
    engine.ends_whole();
    assert_eq!(waits.answer().scores.len(), 1);
    assert_eq!(last.answer().scores.len(), 1);
    let cancelled = mid_prompt.answer();
    assert!(cancelled.last.is_none() && cancelled.scores.is_empty());
}

#[test]
fn an_adapter_is_let_go_of_before_the_last_event() {
    let engine = TestEngine::free(Toy::new(64, 4), config());
    for ask in [Ask::greedy([1], 3), Ask::work([1, 2, 3], Work::Embed), Ask::work([1, 2, 3], Work::Score { top: 0 })] {
        let adapter = toy::adapter("poet");
        let (job, mut reader) = ask.adapter(&adapter).job();
        engine.handle.submit(job).expect("the engine takes the job");
        while !matches!(reader.next(), Some(Event::Finished(_) | Event::Hidden(_))) {}
        assert_eq!(std::sync::Arc::strong_count(&adapter), 1);
    }
    engine.ends_whole();
}

#[test]
fn new_jobs_join_at_the_next_step() {
    let engine = TestEngine::stepped(Toy::new(64, 4), config());
    let one = engine.ask(&Ask::greedy([1], 9));
    engine.at_step();
    let other = engine.ask(&Ask::greedy([2], 9));
    assert_eq!(engine.next_step().sequences.len(), 2);
    engine.ends_whole();
    assert_eq!([one, other].map(|reader| reader.answer().scores.len()), [9, 9]);
}

#[test]
fn the_queue_is_bounded_and_says_when_to_come_again() {
    let config = EngineConfig { max_num_seqs: 2, max_queued: 3, ..config() };
    let engine = TestEngine::stepped(Toy::new(64, 4), config);
    let mut taken: Vec<_> = (1..3).map(|token| engine.ask(&Ask::greedy([token], 4))).collect();
    while engine.at_step().sequences.len() < 2 {
        engine.go(Go::Run);
    }
    taken.extend((3..6).map(|token| engine.ask(&Ask::greedy([token], 4))));
    let refused = engine.try_ask(&Ask::greedy([9], 4)).err();
    let Some(SubmitError::QueueFull { waiting: 3, limit: 3, retry_after_ms }) = refused else { panic!("{refused:?}") };
    assert!((1..=60_000).contains(&retry_after_ms));
    let EngineLoad { running, waiting, .. } = engine.handle.load();
    assert_eq!((running, waiting), (2, 3));
    // One leaves the queue, so one may join it.
    drop(taken.pop());
    engine.next_step();
    taken.push(engine.ask(&Ask::greedy([6], 4)));
    assert!(engine.try_ask(&Ask::greedy([9], 4)).is_err());
    engine.ends_whole();
    assert!(taken.into_iter().all(|reader| reader.answer().scores.len() == 4));
}

#[test]
fn a_burst_at_an_idle_engine_may_fill_its_places_and_its_queue() {
    let engine = TestEngine::stepped(Toy::new(64, 4), EngineConfig { max_num_seqs: 4, max_queued: 0, ..config() });
    // The first may be running already when the others come; four there may be in all.
    let taken: Vec<_> = (1..5).map(|token| engine.ask(&Ask::greedy([token], 40))).collect();
    assert!(engine.try_ask(&Ask::greedy([9], 4)).is_err());
    engine.ends_whole();
    assert!(taken.into_iter().all(|reader| reader.answer().scores.len() == 40));
}

#[test]
fn what_cannot_run_is_refused_with_the_limit() {
    let engine = TestEngine::free(Toy::new(16, 4), config());
    let refusal = |ask: Ask| engine.try_ask(&ask).err();
    assert_eq!(engine.handle.limits().max_model_len, 64, "no more than all blocks hold");
    assert_eq!(refusal(Ask::greedy([], 1)), Some(SubmitError::EmptyPrompt));
    let too_long = |prompt, wanted| Some(SubmitError::TooLong { prompt, wanted, limit: 64 });
    assert_eq!(refusal(Ask::greedy(prompt(1, 60), 5)), too_long(60, 5));
    assert_eq!(refusal(Ask::greedy([1], usize::MAX)), too_long(1, usize::MAX));
    assert_eq!(refusal(Ask::work(prompt(1, 65), Work::Embed)), too_long(65, 0));
    let unknown = |token| Some(SubmitError::UnknownToken { token, vocab: toy::VOCAB });
    assert_eq!(refusal(Ask::greedy([1, 64], 1)), unknown(64));
    assert_eq!(refusal(Ask::greedy([1], 1).generate(|g| g.logit_bias = [(70, 1.0)].into())), unknown(70));
    assert_eq!(engine.ask(&Ask::greedy(prompt(1, 60), 4)).answer().scores.len(), 4, "what fits exactly runs");
    assert_eq!(engine.ask(&Ask::work(prompt(1, 64), Work::Score { top: 0 })).answer().scores.len(), 63);
    engine.ends_whole();
}

#[test]
fn preemption_does_not_change_an_answer() {
    // 12 blocks of 4 hold 48 positions; six answers would fill 6 * 30.
    let engine = TestEngine::free(Toy::new(12, 4), config());
    let roomy = TestEngine::free(Toy::new(256, 4), config());
    let asks: Vec<_> = (0..6)
        .map(|seed| {
            Ask::greedy(prompt(seed, 6 + seed as usize), 20).adapter(&toy::adapter(&format!("voice {seed}"))).generate(
                |g| {
                    g.sampling = Sampling { temperature: 0.8, repetition_penalty: 1.3, ..Default::default() };
                    g.seed = 40 + u64::from(seed);
                },
            )
        })
        .collect();
    let readers: Vec<_> = asks.iter().map(|ask| engine.ask(ask)).collect();
    for (ask, reader) in asks.iter().zip(readers) {
        assert_eq!(reader.answer().scores, roomy.ask(ask).answer().scores);
    }
    let rows = |engine: &TestEngine| engine.metrics.step_rows.get_sample_sum();
    assert!(rows(&engine) > rows(&roomy), "rows were computed again, so somebody was preempted");
    engine.ends_whole();
    roomy.ends_whole();
}

#[test]
fn what_is_scored_or_embedded_goes_on_where_it_was_after_preemption() {
    // 12 blocks of 4; with two rows in a step, the answer grows while the text beside it is read row by row.
    let config = EngineConfig { max_num_seqs: 2, max_num_batched_tokens: 2, ..config() };
    let text = prompt(5, 30);
    for work in [Work::Score { top: 2 }, Work::Embed] {
        let beside = Ask::work(text.clone(), work);
        let alone = TestEngine::free(Toy::new(12, 4), config.clone());
        let expected = alone.ask(&beside).answer();
        alone.ends_whole();
        let mut engine = TestEngine::stepped(Toy::new(12, 4), config.clone());
        let answers = engine.ask_one_by_one(&[Ask::greedy([1], 40), beside], |_| 1);
        assert_eq!(answers[0].scores.len(), 40);
        assert_eq!(answers[1].scores, expected.scores);
        assert_eq!(format!("{:?}", answers[1].last), format!("{:?}", expected.last));
        assert!(engine.metrics.step_rows.get_sample_sum() > 40.0 + 30.0, "rows were computed again");
        engine.ends_whole();
    }
}

#[test]
fn scores_that_are_not_finite_end_only_their_sequence() {
    let engine = TestEngine::stepped(Toy::new(64, 4), config());
    let readers: Vec<_> = (0..3).map(|token| engine.ask(&Ask::greedy([token], 5))).collect();
    while engine.at_step().sequences.len() < 3 {
        engine.go(Go::Run);
    }
    engine.go(Go::NotFinite(1));
    engine.ends_whole();
    let lasts: Vec<_> = readers.into_iter().map(|reader| reader.answer().last).collect();
    let faults = lasts.iter().filter(|last| matches!(last, Some(Event::Failed(EngineFault::NotFinite)))).count();
    let complete = lasts.iter().filter(|last| finished(last, FinishReason::Length)).count();
    assert_eq!((faults, complete), (1, 2));
}

#[test]
fn a_failed_step_ends_those_in_it_and_the_engine_goes_on() {
    for go in [Go::Fail, Go::Panic, Go::Short] {
        let engine = TestEngine::stepped(Toy::new(64, 4), config());
        let unlucky = engine.ask(&Ask::greedy([1], 5));
        engine.at_step();
        let later = engine.ask(&Ask::greedy([2], 5));
        engine.go(go);
        engine.ends_whole();
        let answer = unlucky.answer();
        assert!(step_failed(&answer.last), "{:?}", answer.last);
        assert_eq!(later.answer().tokens(), greedy(&[2], None, 5));
    }
}

#[test]
fn an_engine_whose_steps_keep_failing_stops_and_says_so() {
    let engine = TestEngine::stepped(Toy::new(64, 4), EngineConfig { max_num_seqs: 1, ..config() });
    let readers: Vec<_> = (0..4).map(|token| engine.ask(&Ask::greedy([token], 5))).collect();
    for go in [Go::Fail, Go::Panic, Go::Fail] {
        engine.at_step();
        engine.go(go);
    }
    let lasts: Vec<_> = readers.into_iter().map(|reader| reader.answer().last).collect();
    assert!(lasts[..3].iter().all(step_failed), "{lasts:?}");
    assert!(matches!(lasts[3], Some(Event::Failed(EngineFault::Stopped))));
    let metrics = std::sync::Arc::clone(&engine.metrics);
    let handle = engine.join();
    assert!(handle.load().stopped);
    assert_eq!(metrics.kv_blocks_used.get(), 0);
    let (job, _reader) = Ask::greedy([1], 1).job();
    assert_eq!(handle.submit(job), Err(SubmitError::Stopped));
}

#[test]
fn two_failures_apart_do_not_stop_the_engine() {
    let engine = TestEngine::stepped(Toy::new(64, 4), config());
    for _ in 0..4 {
        let failed = engine.ask(&Ask::greedy([1], 1));
        engine.at_step();
        engine.go(Go::Fail);
        assert!(step_failed(&failed.answer().last));
        let good = engine.ask(&Ask::greedy([1], 1));
        engine.at_step();
        engine.go(Go::Run);
        assert!(finished(&good.answer().last, FinishReason::Length));
    }
    engine.ends_whole();
}

#[test]
fn a_stopped_engine_fails_what_runs_and_what_waits() {
    let engine = TestEngine::stepped(Toy::new(64, 4), EngineConfig { max_num_seqs: 1, ..config() });
    let readers: Vec<_> = (0..5).map(|token| engine.ask(&Ask::greedy([token], 100))).collect();
    engine.at_step();
    engine.handle.stop();
    let (job, _reader) = Ask::greedy([1], 1).job();
    assert_eq!(engine.handle.submit(job), Err(SubmitError::Stopped), "nothing new comes in");
    engine.go(Go::Run);
    for reader in readers {
        assert!(matches!(reader.answer().last, Some(Event::Failed(EngineFault::Stopped))));
    }
    let load = engine.join().load();
    assert!(load.stopped && !load.stalled);
    assert_eq!((load.running, load.waiting, load.kv_blocks_used), (0, 0, 0));
}

#[test]
fn an_idle_engine_stops_when_told() {
    let engine = TestEngine::free(Toy::new(64, 4), config());
    engine.ask(&Ask::greedy([1], 1)).answer();
    engine.handle.stop();
    assert!(engine.join().load().stopped);
}

#[test]
fn the_heartbeat_shows_an_engine_that_hangs_in_a_step() {
    let engine = TestEngine::stepped(Toy::new(64, 4), EngineConfig { stall: Duration::ZERO, ..config() });
    assert!(!engine.handle.load().stalled, "an idle engine has nothing to do");
    let reader = engine.ask(&Ask::greedy([1], 1));
    engine.at_step();
    while !engine.handle.load().stalled {
        std::thread::yield_now();
    }
    let EngineLoad { running, kv_blocks_used, kv_blocks, stopped, .. } = engine.handle.load();
    assert_eq!((running, kv_blocks_used, kv_blocks, stopped), (1, 1, 64, false));
    assert_eq!(engine.metrics.running.get(), 1);
    assert_eq!(engine.metrics.kv_blocks_used.get(), 1);
    engine.go(Go::Run);
    assert!(finished(&reader.answer().last, FinishReason::Length));
    while engine.handle.load().stalled {
        std::thread::yield_now();
    }
    assert_eq!(engine.metrics.queue_seconds.get_sample_count(), 1);
    assert_eq!(engine.metrics.step_seconds.get_sample_count(), 1);
    engine.ends_whole();
}

#[derive(Clone, Debug)]
struct Visit {
    seed: u32,
    len: usize,
    max_tokens: usize,
    voice: u8,
    /// Steps that run before this visitor comes.
    pause: usize,
    /// The visitor leaves after reading this many events.
    leaves_after: Option<usize>,
}

fn visits() -> impl Strategy<Value = Vec<Visit>> {
    let visit = (any::<u16>(), 1..50usize, 1..14usize, 0..6u8, 0..4usize, prop::option::weighted(0.3, 0..6usize));
    let visit = visit.prop_map(|(seed, len, max_tokens, voice, pause, leaves_after)| Visit {
        seed: seed.into(),
        len,
        max_tokens,
        voice,
        pause,
        leaves_after,
    });
    prop::collection::vec(visit, 1..24)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

    #[test]
    fn whoever_comes_and_goes_the_others_get_their_own_answer(
        visits in visits(), places in 1..9usize, rows in 9..40usize, blocks in 16..48usize, loras in 1..5usize,
    ) {
        let config =
            EngineConfig { max_num_seqs: places, max_num_batched_tokens: rows, max_loras: loras, ..config() };
        let mut engine = TestEngine::stepped(Toy::new(blocks, 4), config);
        let mut readers = Vec::new();
        for visit in visits {
            let tenant = u64::from(visit.seed % 3);
            let mut ask = Ask::greedy(prompt(visit.seed, visit.len), visit.max_tokens).tenant(tenant);
            if visit.voice > 0 {
                ask = ask.adapter(&toy::adapter(&format!("voice {}", visit.voice)));
            }
            for _ in 0..visit.pause {
                engine.run_one();
            }
            readers.push((engine.ask(&ask), ask, visit));
        }
        engine.let_go();
        for (mut reader, ask, visit) in readers {
            let Some(leaves_after) = visit.leaves_after else {
                prop_assert_eq!(reader.answer().tokens(), expected(&ask, visit.max_tokens));
                continue;
            };
            for _ in 0..leaves_after {
                reader.next();
            }
            if visit.seed % 2 == 0 {
                reader.cancel.cancel();
            }
        }
        engine.ends_whole();
    }
}

#[test]
fn what_was_computed_for_one_question_answers_another_that_begins_alike() {
    let engine = TestEngine::free(Toy::new(256, 4), config());
    let first = Ask::greedy(prompt(2, 41), 11);
    let said = engine.ask(&first).answer().tokens();
    assert_eq!(said, expected(&first, 11));
    // The next turn of the conversation begins with the first one's question and answer.
    let turn = Ask::greedy([first.tokens.to_vec(), said, prompt(5, 9)].concat(), 6);
    let answer = engine.ask(&turn).answer();
    assert_eq!((answer.tokens(), answer.cached_tokens), (expected(&turn, 6), 48));
    let other = Ask::greedy(turn.tokens.to_vec(), 6).adapter(&toy::adapter("poet"));
    let answer = engine.ask(&other).answer();
    assert_eq!((answer.tokens(), answer.cached_tokens), (expected(&other, 6), 0), "another version shares nothing");
    engine.ends_whole();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() })]

    /// However the kept blocks come and go, every answer is the oracle's.
    #[test]
    fn shared_beginnings_never_change_an_answer(
        asks in prop::collection::vec((0..3u32, 0..60usize, 0..4u32, 0..12usize, 1..10usize, 0..3usize), 1..40),
        blocks in 30..80usize, together in 1..9usize,
    ) {
        let engine = TestEngine::free(Toy::new(blocks, 4), EngineConfig { max_num_seqs: 6, max_model_len: 100, ..config() });
        let adapters = [toy::adapter("poet"), toy::adapter("clerk")];
        let asks: Vec<Ask> = asks
            .into_iter()
            .map(|(system, length, question, more, count, voice)| {
                let tokens = [prompt(system, length), prompt(100 + question, more + 1)].concat();
                let ask = Ask::greedy(tokens, count);
                if voice == 0 { ask } else { ask.adapter(&adapters[voice - 1]) }
            })
            .collect();
        for group in asks.chunks(together) {
            let running: Vec<_> = group.iter().map(|ask| engine.ask(ask)).collect();
            for (ask, running) in group.iter().zip(running) {
                let answer = running.answer();
                prop_assert_eq!(answer.tokens(), expected(ask, answer.scores.len()));
            }
        }
        engine.ends_whole();
    }
}
