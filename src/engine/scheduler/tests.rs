mod shared;

use std::{collections::HashSet, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::{
    engine::{CancelFlag, Event, EventReceiver, Generate, Job, KvSalt, Work, event_channel, pulse::Pulse},
    model::{Family, LoraAdapter, ModelShape, Rope, RowAnswer, Want},
    terms::{Digest, Sampling, TokenScore},
};

const VOCAB: usize = 32;

fn config(max_num_seqs: usize, max_num_batched_tokens: usize) -> EngineConfig {
    let prefix_caching = false;
    EngineConfig {
        max_num_seqs,
        max_num_batched_tokens,
        step_target: Duration::ZERO,
        prefix_caching,
        ..Default::default()
    }
}

/// A scheduler whose decoder always answers with the token 1. Steps take no time, unless a test says how long.
struct Bench {
    scheduler: Scheduler,
    step: Step,
    kv: KvShape,
    pulse: Arc<Pulse>,
    max_loras: usize,
    /// Whether equal beginnings are computed once.
    shared: bool,
    /// Of a step that consists of so much.
    took: fn(StepLoad) -> Duration,
}

/// What one planned step holds: (first token of the prompt, rows) in order of rows.
type Rows = Vec<(u32, usize)>;

struct Asked {
    events: EventReceiver,
    cancel: CancelFlag,
    wanted: usize,
}

impl Bench {
    fn new(config: &EngineConfig, blocks: usize) -> Self {
        let kv = KvShape { block_tokens: 4, blocks, block_bytes: 1 };
        Self {
            scheduler: Scheduler::new(config, kv, VOCAB),
            step: Step::default(),
            kv,
            pulse: Arc::new(Pulse::new(Duration::ZERO, blocks, 10_000, places(config))),
            max_loras: config.max_loras,
            shared: config.prefix_caching,
            took: |_| Duration::ZERO,
        }
    }

    /// One that computes equal beginnings once.
    fn sharing(blocks: usize) -> Self {
        Self::new(&EngineConfig { prefix_caching: true, ..config(8, 24) }, blocks)
    }

    /// A prompt of `len` tokens that are all `token`, answered by `wanted` tokens.
    fn push(&mut self, token: u32, len: usize, wanted: usize) -> Asked {
        self.push_as(token, len, generate(wanted), |_| {})
    }

    fn push_as(&mut self, token: u32, len: usize, work: Work, change: impl FnOnce(&mut Job)) -> Asked {
        let wanted = match &work {
            Work::Generate(generate) => generate.max_tokens,
            Work::Score { .. } => len - 1,
            Work::Embed => 0,
        };
        let (events, receiver) = event_channel(&work, len);
        let cancel = CancelFlag::default();
        let mut job = Job {
            work,
            tokens: vec![token; len].into(),
            adapter: None,
            salt: KvSalt::default(),
            tenant: 0,
            priority: Priority::Normal,
            cancel: cancel.clone(),
            events,
        };
        change(&mut job);
        let seat = self.pulse.seat().expect("a long queue");
        self.scheduler.push(Sequence::new(job, seat, self.shared.then_some(self.kv.block_tokens)));
        Asked { events: receiver, cancel, wanted }
    }

    /// Plans a step and checks everything that must hold of every step.
    fn plan(&mut self) -> bool {
        let planned = self.scheduler.plan(&mut self.step);
        let Scheduler { running, pool, places, max_rows, .. } = &self.scheduler;
        assert!(running.len() <= *places);
        let held: Vec<u32> = running.iter().flat_map(|sequence| sequence.blocks.iter().copied()).collect();
        let distinct: HashSet<u32> = held.iter().copied().collect();
        assert!(self.shared || distinct.len() == held.len(), "two sequences hold one block");
        assert_eq!(distinct.len(), pool.used(), "a block is held by nobody");
        assert_eq!(planned, self.scheduler.has_work(), "where there is work, somebody can go on");
        let (batch, turns) = (&self.step.batch, &self.step.turns);
        assert_eq!(batch.check(&shape(), self.kv), Ok(()));
        assert!(batch.rows() <= *max_rows);
        assert!(batch.adapters.len() <= self.max_loras);
        let in_step: HashSet<usize> = turns.iter().map(|turn| turn.index).collect();
        let first = running.first().map(|sequence| sequence.priority);
        for (index, sequence) in running.iter().enumerate() {
            let runs = in_step.contains(&index);
            assert!(!runs || Some(sequence.priority) == first, "priorities do not share a step");
            assert!(runs || sequence.pending() > 1 || Some(sequence.priority) != first, "an answer was held up");
        }
        for (turn, rows) in turns.iter().zip(&batch.sequences) {
            let version = running[turn.index].version();
            let listed = batch.adapters.iter().find(|adapter| adapter.rows.contains(&rows.first_row));
            assert_eq!(listed.map(|adapter| adapter.weights.version()), version, "rows run under another adapter");
            let positions = &batch.positions[rows.first_row as usize..(rows.first_row + rows.rows) as usize];
            for block in positions.iter().map(|&position| rows.blocks[position as usize / self.kv.block_tokens]) {
                let holders = held.iter().filter(|&&other| other == block).count();
                assert_eq!(holders, 1, "a row is written into a block that others read");
            }
        }
        planned
    }

    fn rows(&self) -> Rows {
        let turns = self.step.turns.iter();
        turns.map(|turn| (self.scheduler.running[turn.index].first_token(), turn.rows)).collect()
    }

    /// Plans a step, answers it, and tells what it held; `None` when there is nothing to do.
    fn step(&mut self) -> Option<Rows> {
        self.scheduler.drop_abandoned();
        if !self.plan() {
            return None;
        }
        let rows = self.rows();
        let answers = self.step.batch.asks.iter().map(|ask| answer(&ask.want)).collect();
        let mut output = StepOutput { answers, fetched: 0 };
        self.scheduler.advance(&self.step, &mut output, (self.took)(self.step.load));
        Some(rows)
    }

    /// Steps until nothing is left to do.
    fn finish(&mut self, at_most: usize) -> Vec<Rows> {
        let steps: Vec<Rows> = (0..at_most).map_while(|_| self.step()).collect();
        assert!(!self.scheduler.has_work(), "not done after {at_most} steps");
        assert!(self.scheduler.is_whole());
        steps
    }

    /// The prompts that run at all, in the order in which they first do.
    fn order(steps: &[Rows]) -> Vec<u32> {
        let mut order = Vec::new();
        for &(token, _) in steps.iter().flatten() {
            if !order.contains(&token) {
                order.push(token);
            }
        }
        order
    }
}

impl Asked {
    /// The tokens it got, and its last event.
    fn read(mut self) -> (usize, Option<Event>) {
        let (mut tokens, mut last) = (0, None);
        while let Ok(event) = self.events.try_recv() {
            assert!(last.is_none(), "{event:?} after the last event");
            match event {
                Event::Started { .. } => assert_eq!(tokens, 0, "the start is told first"),
                Event::Token { .. } => tokens += 1,
                Event::Finished(_) | Event::Hidden(_) | Event::Failed(_) => last = Some(event),
            }
        }
        (tokens, last)
    }

    /// The prompt tokens that were found computed, once that is told.
    fn cached(&mut self) -> Option<usize> {
        match self.events.try_recv().ok()? {
            Event::Started { cached_tokens, .. } => Some(cached_tokens),
            other => panic!("{other:?} before the start"),
        }
    }

    fn got_all(self) -> bool {
        let wanted = self.wanted;
        let (tokens, last) = self.read();
        tokens == wanted && matches!(last, Some(Event::Finished(_) | Event::Hidden(_)))
    }
}

fn answer(want: &Want) -> RowAnswer {
    match want {
        Want::Sample(_) | Want::Score { .. } => {
            RowAnswer::Score(TokenScore { token: 1, logprob: -1.0, entropy: 1.0, top: Vec::new() })
        }
        Want::Hidden => RowAnswer::Hidden(vec![1.0; 2]),
        Want::Logits => panic!("the engine never asks for logits"),
    }
}

fn generate(max_tokens: usize) -> Work {
    Work::Generate(Generate {
        sampling: Sampling::default(),
        max_tokens,
        min_tokens: 0,
        stop_tokens: [].into(),
        logit_bias: [].into(),
        top: 0,
        seed: 0,
        choice: 0,
    })
}

fn adapter(name: u8) -> Arc<LoraAdapter> {
    Arc::new(LoraAdapter::new(AdapterVersion(Digest::of(&[name])), 1, Arc::new(())))
}

fn shape() -> ModelShape {
    ModelShape {
        family: Family::Llama,
        hidden: 2,
        layers: 1,
        heads: 1,
        kv_heads: 1,
        head_dim: 2,
        ffn: 2,
        vocab: VOCAB,
        max_positions: 1 << 20,
        norm_eps: 1e-5,
        rope: Rope::Plain { theta: 1e4 },
        no_rope: vec![false],
        window: vec![None],
        tied: true,
        qkv_bias: false,
        output_bias: false,
        ffn_bias: false,
        qk_norm: false,
    }
}

#[test]
fn answers_go_first_and_prompts_share_what_is_left() {
    let mut bench = Bench::new(&config(8, 10), 64);
    let _answers: Vec<_> = (1..4).map(|token| bench.push(token, 1, 9)).collect();
    bench.step();
    let _long = bench.push(10, 20, 1);
    let _short = bench.push(11, 3, 1);
    // Seven rows are left beside three answers: half goes to the older prompt, the shorter one is read whole, and what
    // it does not need goes back.
    assert_eq!(bench.step(), Some(vec![(1, 1), (2, 1), (3, 1), (10, 4), (11, 3)]));
}

/// 5 ms for a step, and 1 ms for each row.
fn steady(load: StepLoad) -> Duration {
    Duration::from_millis(5 + load.rows as u64)
}

/// Rows of a long prompt in each step beside `answers` answers, while both run, from when chunks have found their size.
fn chunks_beside(answers: usize, target_ms: u64) -> Vec<usize> {
    let config = EngineConfig { step_target: Duration::from_millis(target_ms), ..config(64, 256) };
    let mut bench = Bench { took: steady, ..Bench::new(&config, 4096) };
    let _answers: Vec<_> = (0..answers).map(|_| bench.push(1, 1, 400)).collect();
    (0..40).for_each(|_| _ = bench.step());
    let _long = bench.push(2, 2000, 1);
    let steps: Vec<Rows> = (0..30).map_while(|_| bench.step()).collect();
    let chunk = |step: &Rows| step.iter().find(|&&(token, _)| token == 2).expect("the prompt goes on").1;
    assert!(steps.iter().all(|step| step.len() == answers + 1), "answers go on");
    steps.iter().skip(10).map(chunk).collect()
}

#[test]
fn a_prompt_takes_the_time_that_a_step_has_left() {
    for rows in chunks_beside(5, 40) {
        assert!((25..=33).contains(&rows), "{rows}: 40 ms hold 5 ms, 5 answers and 30 rows");
    }
}

#[test]
fn beside_many_answers_a_prompt_takes_as_long_again() {
    for rows in chunks_beside(40, 40) {
        assert!((38..=52).contains(&rows), "{rows}: 45 ms more");
    }
}

#[test]
fn a_prompt_alone_is_read_in_long_steps() {
    let config = EngineConfig { step_target: Duration::from_millis(20), ..config(8, 512) };
    let mut bench = Bench { took: steady, ..Bench::new(&config, 4096) };
    let _long = bench.push(2, 3000, 1);
    let chunks: Vec<usize> = (0..20).map_while(|_| Some(bench.step()?[0].1)).collect();
    assert_eq!(chunks[..4], [16, 32, 64, 128], "the first are guesses");
    assert!(chunks[8..14].iter().all(|rows| (130..=170).contains(rows)), "{chunks:?}: eight times 20 ms");
}

#[test]
fn a_prompt_that_came_first_goes_on_whatever_comes_later() {
    let mut bench = Bench::new(&config(64, 8), 512);
    let long = bench.push(31, 64, 1);
    for round in 0..16 {
        let _short: Vec<_> = (0..2).map(|i| bench.push(round % 30 + i, 2, 1)).collect();
        bench.step();
    }
    assert!(long.got_all(), "4 rows of 64 in each of 16 steps");
}

#[test]
fn a_burst_on_one_adapter_does_not_hold_up_anothers_prompt() {
    let mut bench = Bench::new(&config(64, 16), 512);
    let burst: Vec<_> =
        (0..20).map(|_| bench.push_as(1, 30, generate(1), |job| job.adapter = Some(adapter(1)))).collect();
    bench.step();
    let other = bench.push_as(2, 16, generate(1), |job| job.adapter = Some(adapter(2)));
    bench.step();
    bench.step();
    assert!(other.got_all(), "at least half of the rows are its own");
    bench.finish(99);
    assert!(burst.into_iter().all(Asked::got_all));
}

#[test]
fn a_burst_of_answers_does_not_hold_up_anothers_prompt() {
    // 20 answers of one adapter fill most of a step, and 20 more prompts of theirs wait for the rest.
    let mut bench = Bench::new(&config(64, 40), 2048);
    let tuned = |bench: &mut Bench, token, len, wanted, lora| {
        bench.push_as(token, len, generate(wanted), |job| job.adapter = Some(adapter(lora)))
    };
    let _answers: Vec<_> = (0..20).map(|_| tuned(&mut bench, 1, 1, 300, 1)).collect();
    (0..20).for_each(|_| _ = bench.step());
    let _prompts: Vec<_> = (0..20).map(|_| tuned(&mut bench, 3, 200, 1, 1)).collect();
    (0..5).for_each(|_| _ = bench.step());
    let _other = tuned(&mut bench, 2, 100, 1, 2);
    for _ in 0..5 {
        let rows = bench.step().expect("a step");
        assert_eq!(rows.iter().find(|&&(token, _)| token == 2), Some(&(2, 20)), "all that answers leave is its own");
    }
    assert!(bench.step().is_some_and(|rows| rows.iter().any(|&(token, _)| token == 3)));
}

#[test]
fn a_lane_without_a_place_gets_one_from_the_lane_that_has_most() {
    let mut bench = Bench::new(&config(3, 16), 64);
    let tuned =
        |bench: &mut Bench, token, lora| bench.push_as(token, 2, generate(20), |job| job.adapter = Some(adapter(lora)));
    let burst: Vec<_> = (1..6).map(|token| tuned(&mut bench, token, 1)).collect();
    bench.step();
    let other = tuned(&mut bench, 10, 2);
    let third = tuned(&mut bench, 20, 3);
    let step = |bench: &mut Bench| {
        let mut rows = bench.step().expect("a step");
        rows.sort_unstable();
        rows
    };
    assert_eq!(step(&mut bench), [(1, 1), (10, 2), (20, 2)], "the last two of the burst make way");
    let fourth = tuned(&mut bench, 30, 4);
    assert_eq!(step(&mut bench), [(1, 1), (10, 1), (20, 1)], "nobody has more than one any more");
    let order = Bench::order(&bench.finish(99)).into_iter().filter(|token| ![1, 10, 20].contains(token));
    assert_eq!(order.collect::<Vec<_>>(), [2, 3, 4, 30, 5], "those that made way return before anybody new");
    assert!([other, third, fourth].into_iter().chain(burst).all(Asked::got_all));
}

#[test]
fn places_go_round_among_tenants_and_adapters() {
    let mut bench = Bench::new(&config(1, 8), 64);
    let tenant = |tenant| move |job: &mut Job| job.tenant = tenant;
    let _burst: Vec<_> = (1..5).map(|token| bench.push_as(token, 2, generate(1), tenant(7))).collect();
    let _other = bench.push_as(10, 2, generate(1), tenant(8));
    let lora = adapter(1);
    let _tuned = bench.push_as(11, 2, generate(1), |job| (job.tenant, job.adapter) = (7, Some(lora)));
    assert_eq!(Bench::order(&bench.finish(99)), [1, 10, 11, 2, 3, 4]);
}

#[test]
fn a_step_never_mixes_more_adapters_than_allowed() {
    let mut bench = Bench::new(&EngineConfig { max_loras: 2, ..config(8, 16) }, 64);
    let tuned = |token| bench.push_as(token, 2, generate(2), |job| job.adapter = Some(adapter(token as u8)));
    let _tuned: Vec<_> = (0..6).map(tuned).collect();
    let _base = bench.push(9, 2, 2);
    let steps = bench.finish(99);
    let first: Vec<u32> = steps[0].iter().map(|&(token, _)| token).collect();
    assert!(first.contains(&9), "the base passes: it takes no adapter's place");
    assert_eq!(Bench::order(&steps).len(), 7);
}

#[test]
fn who_waits_for_an_adapters_place_is_passed_over_only_so_often() {
    let mut bench = Bench::new(&EngineConfig { max_loras: 1, ..config(2, 8) }, 64);
    let (popular, rare) = (adapter(1), adapter(2));
    let mut popular_asks = Vec::new();
    let mut ask_popular = |bench: &mut Bench, wanted| {
        let popular = popular.clone();
        popular_asks.push(bench.push_as(1, 2, generate(wanted), |job| job.adapter = Some(popular)));
    };
    // They end in turn, so that one of them always runs.
    (2..4).for_each(|wanted| ask_popular(&mut bench, wanted));
    bench.step();
    let rare = bench.push_as(2, 2, generate(1), |job| job.adapter = Some(rare));
    for _ in 0..20 {
        ask_popular(&mut bench, 2);
        bench.step();
    }
    assert!(rare.got_all());
}

#[test]
fn a_prompt_too_large_for_now_is_passed_over_only_so_often() {
    let mut bench = Bench::new(&config(4, 64), 10);
    let mut small = vec![bench.push(1, 8, 4)];
    bench.step();
    let large = bench.push_as(2, 36, generate(2), |job| job.tenant = 1);
    for _ in 0..40 {
        small.push(bench.push(1, 8, 4));
        bench.step();
    }
    assert!(large.got_all());
    bench.finish(999);
}

#[test]
fn background_work_runs_only_when_nothing_else_does() {
    let mut bench = Bench::new(&config(2, 8), 8);
    let background = |job: &mut Job| job.priority = Priority::Background;
    let probe = bench.push_as(1, 4, generate(9), background);
    let embed = bench.push_as(2, 4, Work::Embed, background);
    assert_eq!(bench.step(), Some(vec![(1, 4), (2, 4)]), "nobody else is there");
    let normal = bench.push(3, 4, 2);
    assert_eq!(bench.step(), Some(vec![(3, 4)]));
    // Places and blocks are taken from the background where they are needed.
    let large = bench.push(4, 20, 2);
    assert_eq!(bench.step(), Some(vec![(3, 1), (4, 7)]));
    bench.finish(99);
    assert!([probe, embed, normal, large].into_iter().all(Asked::got_all));
}

#[test]
fn the_last_admitted_makes_way_and_returns_before_anybody_new() {
    // 6 blocks of 4: two prompts of 8 fill 4 of them, and each answer of 8 wants 2 more.
    let mut bench = Bench::new(&config(4, 32), 6);
    let (old, young) = (bench.push(1, 8, 9), bench.push(2, 8, 9));
    let mut steps = Vec::new();
    while bench.scheduler.occupancy().preempted == 0 {
        steps.extend(bench.step());
    }
    assert_eq!(bench.scheduler.take_preemptions(), 1);
    let new = bench.push(3, 1, 1);
    assert_eq!(bench.rows(), [(1, 1)], "the older goes on");
    let rest = bench.finish(99);
    let order = Bench::order(&rest);
    assert_eq!(order, [1, 2, 3], "the younger returns first");
    assert!([old, young, new].into_iter().all(Asked::got_all));
}

#[test]
fn a_cancelled_sequence_is_gone_before_the_next_step() {
    let mut bench = Bench::new(&config(2, 8), 16);
    let (one, other) = (bench.push(1, 4, 9), bench.push(2, 20, 9));
    let waits = bench.push(3, 4, 1);
    bench.step();
    one.cancel.cancel();
    drop(other);
    assert_eq!(bench.step(), Some(vec![(3, 4)]), "both places are free, one by its flag, one by its reader");
    assert!(waits.got_all());
    assert!(matches!(one.read(), (_, None)), "no last event for who has left");
    bench.finish(1);
}

#[test]
fn a_failed_step_ends_those_in_it_and_the_others_begin_again() {
    let mut bench = Bench::new(&config(2, 8), 16);
    let probe = bench.push_as(1, 4, generate(3), |job| job.priority = Priority::Background);
    bench.step();
    let normal = bench.push(2, 4, 3);
    assert!(bench.plan());
    let fault = EngineFault::Step("unplugged".to_owned());
    assert_eq!(bench.scheduler.fail(&bench.step, &fault), 1);
    assert_eq!(bench.scheduler.occupancy(), Occupancy { running: 0, preempted: 1, kv_used: 0, room: 0 });
    assert!(matches!(normal.read(), (0, Some(Event::Failed(failed))) if failed == fault));
    bench.finish(9);
    assert!(probe.got_all());
}

#[test]
fn what_asks_for_nothing_ends_at_once() {
    let mut bench = Bench::new(&config(2, 8), 16);
    let (silent, single) = (bench.push(1, 4, 0), bench.push_as(2, 1, Work::Score { top: 0 }, |_| {}));
    assert!(!bench.scheduler.has_work());
    assert!(silent.got_all() && single.got_all());
}

#[derive(Clone, Debug)]
enum Op {
    Arrive { len: usize, wanted: usize, kind: u8, tenant: u64, adapter: Option<u8>, background: bool },
    Cancel(prop::sample::Index),
    Leave(prop::sample::Index),
    Step,
    Fail,
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let arrive = (1..40usize, 0..20usize, 0..8u8, 0..3u64, prop::option::of(0..5u8), prop::bool::weighted(0.2))
        .prop_map(|(len, wanted, kind, tenant, adapter, background)| Op::Arrive {
            len,
            wanted,
            kind,
            tenant,
            adapter,
            background,
        });
    let op = prop_oneof![
        6 => arrive,
        8 => Just(Op::Step),
        1 => any::<prop::sample::Index>().prop_map(Op::Cancel),
        1 => any::<prop::sample::Index>().prop_map(Op::Leave),
        1 => Just(Op::Fail),
    ];
    prop::collection::vec(op, 1..120)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..Default::default() })]

    /// Every job ends exactly once with all it asked for, unless it left or was in a failed step; and every block comes
    /// back.
    #[test]
    fn whatever_comes_and_goes_everybody_ends_and_no_block_is_lost(
        ops in ops(), places in 1..6usize, rows in 1..24usize, blocks in 15..40usize, loras in 1..4usize, shared: bool,
    ) {
        let settings = EngineConfig { max_loras: loras, prefix_caching: shared, ..config(places, rows) };
        let mut bench = Bench::new(&settings, blocks);
        let (mut asked, mut failed) = (Vec::new(), 0);
        for op in ops {
            match op {
                Op::Arrive { len, wanted, kind, tenant, adapter: lora, background } => {
                    let work = match kind {
                        0 => Work::Embed,
                        1 => Work::Score { top: 0 },
                        _ => generate(wanted),
                    };
                    asked.push(bench.push_as(len as u32 % 32, len, work, |job| {
                        job.tenant = tenant;
                        job.adapter = lora.map(adapter);
                        job.priority = if background { Priority::Background } else { Priority::Normal };
                    }));
                }
                Op::Cancel(index) if !asked.is_empty() => index.get(&asked).cancel.cancel(),
                Op::Leave(index) if !asked.is_empty() => drop(asked.swap_remove(index.index(asked.len()))),
                Op::Cancel(_) | Op::Leave(_) => {}
                Op::Step => _ = bench.step(),
                Op::Fail => {
                    bench.scheduler.drop_abandoned();
                    if bench.plan() {
                        failed += bench.scheduler.fail(&bench.step, &EngineFault::Step(String::new()));
                    }
                }
            }
        }
        bench.finish(20_000);
        prop_assert_eq!(bench.pulse.waiting(), 0, "a seat was kept");
        let mut ends_early = 0;
        for asked in asked {
            let (cancelled, wanted) = (asked.cancel.is_cancelled(), asked.wanted);
            match asked.read() {
                (tokens, Some(Event::Finished(_) | Event::Hidden(_))) => prop_assert_eq!(tokens, wanted),
                (_, Some(Event::Failed(EngineFault::Step(_)))) => ends_early += 1,
                (_, None) => prop_assert!(cancelled),
                (_, Some(other)) => prop_assert!(false, "{other:?}"),
            }
        }
        prop_assert!(ends_early <= failed);
    }
}
