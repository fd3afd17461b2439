//! An answer does not depend on its neighbours, exactly; and a decoder that mixes rows up is noticed.

use std::sync::Arc;

use tunegate::{
    config::EngineConfig,
    model::{Batch, KvShape, LoraAdapter},
    terms::FinishReason,
};

use super::{
    bent::{self, Bent},
    config, expected, finished,
    gate::{Ask, TestEngine},
    prompt,
    toy::{self, Toy},
};

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

/// Asks all sixteen, one more after every `pause` steps, with `rows` rows in a step; counts those whose answer is not
/// the one that the oracle gives.
fn wrong_answers(bend: fn(&mut Batch, KvShape), rows: usize, pause: usize) -> usize {
    let config = EngineConfig { max_num_batched_tokens: rows, ..config() };
    let mut engine = TestEngine::stepped(Bent::new(Box::new(Toy::new(256, 4)), bend), config);
    let asks = questions();
    let answers = engine.ask_one_by_one(&asks, |_| pause);
    let wrong = asks.iter().zip(answers).filter(|(ask, answer)| {
        assert!(finished(&answer.last, FinishReason::Length), "a bent batch is still a valid one: {:?}", answer.last);
        answer.tokens() != expected(ask, 12)
    });
    let wrong = wrong.count();
    engine.ends_whole();
    wrong
}

#[test]
fn an_answer_does_not_depend_on_its_neighbours_nor_on_its_chunks() {
    for rows in [16, 17, 29, 512] {
        for pause in [0, 1, 2, 5] {
            let wrong = wrong_answers(bent::straight, rows, pause);
            assert_eq!(wrong, 0, "{rows} rows in a step, {pause} steps between arrivals");
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
    assert_eq!(wrong_answers(bent::no_adapters, 24, 1), tuned);
}

#[test]
fn a_build_that_runs_all_on_the_adapter_of_one_is_noticed() {
    assert!(wrong_answers(bent::one_adapter, 24, 1) > 0);
}

#[test]
fn a_build_that_shifts_adapter_rows_by_one_is_noticed() {
    assert!(wrong_answers(bent::adapter_rows_shifted, 24, 1) > 0);
}

#[test]
fn a_build_that_reads_a_neighbours_blocks_is_noticed() {
    assert!(wrong_answers(bent::blocks_swapped, 24, 0) > 0);
}

#[test]
fn a_build_that_shifts_positions_by_one_is_noticed() {
    assert!(wrong_answers(bent::positions_shifted, 24, 1) > 0);
}

#[test]
fn a_build_that_answers_for_the_row_before_is_noticed() {
    assert!(wrong_answers(bent::asks_shifted, 24, 1) > 0);
}
