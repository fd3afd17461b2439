//! An answer does not depend on its neighbours; and decoders that are wrong in one way each, which this must notice.

use std::sync::Arc;

use tunegate::{
    model::{AdapterRows, Batch, KvShape, LanguageModel, LoraAdapter, ModelShape, StepError, StepOutput},
    terms::FinishReason,
};

use super::{
    config, expected, finished,
    gate::{Ask, TestEngine},
    prompt,
    toy::{self, Toy},
};

/// A decoder that gets each batch bent in one way.
struct Bent {
    inner: Toy,
    bend: fn(&mut Batch),
}

impl LanguageModel for Bent {
    fn shape(&self) -> &ModelShape {
        self.inner.shape()
    }

    fn kv_shape(&self) -> KvShape {
        self.inner.kv_shape()
    }

    fn forward(&mut self, batch: &Batch, out: &mut StepOutput) -> Result<(), StepError> {
        let adapters = batch.adapters.iter();
        let mut bent = Batch {
            tokens: batch.tokens.clone(),
            positions: batch.positions.clone(),
            sequences: batch.sequences.clone(),
            copies: batch.copies.clone(),
            adapters: adapters.map(|a| AdapterRows { rows: a.rows.clone(), weights: Arc::clone(&a.weights) }).collect(),
            asks: batch.asks.clone(),
        };
        (self.bend)(&mut bent);
        self.inner.forward(&bent, out)
    }
}

/// Sixteen questions to eight adapters and the base; some share a prompt, some an adapter.
fn questions() -> Vec<Ask> {
    let adapters: Vec<Arc<LoraAdapter>> = (0..8).map(|i| toy::adapter(&format!("voice {i}"))).collect();
    (0..16)
        .map(|i| {
            let ask = Ask::greedy(prompt(i / 4, 3 + 11 * (i as usize / 4)), 12);
            match i % 9 {
                0 => ask,
                voice => ask.adapter(&adapters[voice as usize - 1]),
            }
        })
        .collect()
}

/// Asks all sixteen, one more after every `pause` steps, with `rows` rows in a step; counts those whose answer is not the
/// one that the oracle gives.
fn wrong_answers(bend: fn(&mut Batch), rows: usize, pause: usize) -> usize {
    let config = tunegate::config::EngineConfig { max_num_batched_tokens: rows, ..config() };
    let mut engine = TestEngine::stepped(Bent { inner: Toy::new(256, 4), bend }, config);
    let asks = questions();
    let mut readers = Vec::new();
    for ask in &asks {
        readers.push(engine.ask(ask));
        (0..pause).for_each(|_| engine.run_one());
    }
    engine.let_go();
    let wrong = asks.iter().zip(readers).filter_map(|(ask, reader)| {
        let answer = reader.answer();
        assert!(finished(&answer.last, FinishReason::Length), "a bent batch is still a valid one: {:?}", answer.last);
        (answer.tokens() != expected(ask, 12)).then_some(())
    });
    let wrong = wrong.count();
    engine.ends_whole();
    wrong
}

#[test]
fn an_answer_does_not_depend_on_its_neighbours_nor_on_its_chunks() {
    for rows in [16, 17, 29, 512] {
        for pause in [0, 1, 2, 5] {
            assert_eq!(wrong_answers(|_| {}, rows, pause), 0, "{rows} rows in a step, {pause} steps between arrivals");
        }
    }
}

#[test]
fn base_and_adapters_answer_differently() {
    let asks: Vec<Ask> = questions().into_iter().take(4).collect();
    assert!(asks.iter().all(|ask| ask.tokens == asks[0].tokens));
    for (i, ask) in asks.iter().enumerate() {
        assert!(asks[..i].iter().all(|other| expected(other, 12) != expected(ask, 12)));
    }
}

#[test]
fn a_build_that_ignores_adapters_is_noticed() {
    let tuned = questions().iter().filter(|ask| ask.adapter.is_some()).count();
    assert_eq!(wrong_answers(|batch| batch.adapters.clear(), 24, 1), tuned);
}

#[test]
fn a_build_that_runs_all_on_the_adapter_of_one_is_noticed() {
    fn one_for_all(batch: &mut Batch) {
        let Some(first) = batch.adapters.first() else { return };
        let weights = Arc::clone(&first.weights);
        batch.adapters.iter_mut().for_each(|adapter| adapter.weights = Arc::clone(&weights));
    }
    assert!(wrong_answers(one_for_all, 24, 1) > 0);
}

#[test]
fn a_build_that_shifts_adapter_rows_by_one_is_noticed() {
    fn shift(batch: &mut Batch) {
        let rows = batch.rows() as u32;
        for adapter in &mut batch.adapters {
            adapter.rows.iter_mut().for_each(|row| *row = (*row + 1) % rows);
            adapter.rows.sort_unstable();
        }
    }
    assert!(wrong_answers(shift, 24, 1) > 0);
}

#[test]
fn a_build_that_reads_a_neighbours_blocks_is_noticed() {
    fn swap(batch: &mut Batch) {
        let sizes: Vec<usize> = batch.sequences.iter().map(|sequence| sequence.blocks.len()).collect();
        let pair = (1..sizes.len()).find(|&i| sizes[i - 1] == sizes[i]);
        let Some(second) = pair else { return };
        let (left, right) = batch.sequences.split_at_mut(second);
        std::mem::swap(&mut left[second - 1].blocks, &mut right[0].blocks);
    }
    assert!(wrong_answers(swap, 24, 0) > 0);
}

#[test]
fn a_build_that_shifts_positions_by_one_is_noticed() {
    fn shift(batch: &mut Batch) {
        for sequence in &batch.sequences {
            let rows = sequence.first_row as usize..(sequence.first_row + sequence.rows) as usize;
            // Only where the last row still lies in the sequence's blocks.
            if (batch.positions[rows.end - 1] as usize + 1) < sequence.blocks.len() * 4 {
                batch.positions[rows].iter_mut().for_each(|position| *position += 1);
            }
        }
    }
    assert!(wrong_answers(shift, 24, 1) > 0);
}

#[test]
fn a_build_that_answers_for_the_row_before_is_noticed() {
    fn shift(batch: &mut Batch) {
        batch.asks.iter_mut().for_each(|ask| ask.row = ask.row.saturating_sub(1));
    }
    assert!(wrong_answers(shift, 24, 1) > 0);
}
