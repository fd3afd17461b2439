//! How many prompt rows a step may hold, so that it ends in time.

use std::time::Duration;

use super::{
    cost::{StepCost, StepLoad},
    share::largest,
};

/// Keeps steps within a time, by what steps have been found to cost.
#[derive(Debug)]
pub struct StepBudget {
    /// In seconds; zero sets no limit.
    target: f64,
    cost: StepCost,
    /// The most prompt rows that a measured step had.
    tried: usize,
}

/// What shares a step with prompts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Beside {
    Nothing,
    Answers {
        /// How many prompts there are for each answer.
        prompts: f64,
        /// Whether a prompt is of a lane that has not had its part, unlike the answers.
        newcomer: bool,
    },
}

impl StepBudget {
    /// The first chunk of all is a guess, and no later one is more than twice the largest before it.
    const FIRST: usize = 16;
    /// Where answers alone take long, prompts may make a step so many times as long: they have to be read some time. Half of
    /// the time is then theirs, and answers come at half their pace.
    const BESIDE: f64 = 2.0;
    /// The same where the prompt is of a lane that has had next to nothing lately: its first token comes before the others' pace.
    const FOR_NEWCOMERS: f64 = 4.0;
    /// A step may take longer where more prompts are read than answers run, in that proportion and up to so many times: more wait
    /// for a first token than for a next one, and a larger chunk is read at less cost a row.
    const CROWD: f64 = 4.0;
    /// So many times as long may a step be that nobody waits for: somebody new may want to join, and a step cannot be left.
    const ALONE: f64 = 8.0;

    pub fn new(target: Duration) -> Self {
        Self { target: target.as_secs_f64(), cost: StepCost::new(), tried: 0 }
    }

    /// The most prompt rows, up to `most`, with which a step keeps within the time. `load` tells what a step with so many of
    /// them consists of; `beside` whether it has rows of answers too.
    pub fn rows(&self, beside: Beside, most: usize, load: impl Fn(usize) -> StepLoad) -> usize {
        if self.target <= 0.0 {
            return most;
        }
        let most = most.min(Self::FIRST.max(2 * self.tried));
        if !self.cost.is_known() {
            return most;
        }
        let seconds = |rows| self.cost.seconds(load(rows));
        let budget = match beside {
            Beside::Answers { prompts, newcomer } => {
                let longer = if newcomer { Self::FOR_NEWCOMERS } else { Self::BESIDE };
                self.target.max(longer * seconds(0)) * prompts.clamp(1.0, Self::CROWD)
            }
            Beside::Nothing => Self::ALONE * self.target.max(Self::BESIDE * seconds(0)),
        };
        // However slow the steps are, a prompt goes on.
        largest(most, |rows| seconds(rows) <= budget).max(1.min(most))
    }

    /// What a step should take, in seconds; without meaning before the first has been measured.
    pub fn foreseen(&self, load: StepLoad) -> f64 {
        self.cost.seconds(load)
    }

    /// Takes in what a step took that had `prompt_rows` rows of prompts.
    pub fn learn(&mut self, load: StepLoad, prompt_rows: usize, took: Duration) {
        self.cost.learn(load, took);
        self.tried = self.tried.max(prompt_rows);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine that takes 10 ms for a step and 1 ms for each row.
    fn took(load: StepLoad) -> Duration {
        Duration::from_millis(10 + load.rows as u64)
    }

    fn load(answers: usize, rows: usize) -> StepLoad {
        let mut load = StepLoad { asks: answers, ..StepLoad::default() };
        (0..answers).for_each(|_| load.add(0, 1));
        load.rows += rows;
        load
    }

    /// One that has seen answers alone, and prompts of many sizes beside them.
    fn learned(target_ms: u64, answers: usize) -> StepBudget {
        let mut budget = StepBudget::new(Duration::from_millis(target_ms));
        for step in 0..200 {
            let rows = if step % 2 == 0 { 0 } else { step % 50 };
            budget.learn(load(answers, rows), rows, took(load(answers, rows)));
        }
        budget
    }

    fn beside(answers: usize, prompts: f64, newcomer: bool) -> Beside {
        if answers > 0 { Beside::Answers { prompts, newcomer } } else { Beside::Nothing }
    }

    fn rows(budget: &StepBudget, answers: usize, most: usize) -> usize {
        budget.rows(beside(answers, 1.0, false), most, |rows| load(answers, rows))
    }

    #[test]
    fn a_step_takes_the_time_it_may() {
        let found = rows(&learned(60, 4), 4, 512);
        assert!((43..=49).contains(&found), "{found}: 60 ms hold 14 ms of answers and 46 rows");
        assert_eq!(rows(&learned(60, 4), 4, 20), 20, "there are no more");
        assert_eq!(rows(&learned(0, 4), 4, 512), 512, "no target, no limit");
    }

    #[test]
    fn slow_answers_leave_as_much_time_to_prompts() {
        let found = rows(&learned(5, 30), 30, 512);
        assert!((37..=43).contains(&found), "{found}: as long again as the 40 ms of the answers");
    }

    #[test]
    fn a_newcomer_has_more_of_a_step() {
        let budget = learned(5, 20);
        let found = budget.rows(beside(20, 0.1, true), 512, |rows| load(20, rows));
        assert!((85..=95).contains(&found), "{found}: three times the 30 ms of the answers");
    }

    #[test]
    fn the_more_wait_for_a_first_token_the_longer_is_a_step() {
        let budget = learned(20, 2);
        let found = |prompts| budget.rows(beside(2, prompts, false), 512, |rows| load(2, rows));
        assert_eq!(found(0.5), found(1.0));
        assert!((43..=53).contains(&found(2.5)), "{}: 60 ms hold 12 ms of answers and 48 rows", found(2.5));
        assert_eq!(found(4.0), found(7.0), "but not without end");
    }

    #[test]
    fn a_step_that_nobody_waits_for_may_take_longer() {
        let budget = learned(11, 0);
        let found = rows(&budget, 0, 512);
        // Eight times twice the 10 ms of any step; but nobody has seen more than 49 rows yet.
        assert_eq!(found, 98);
    }

    #[test]
    fn chunks_grow_from_a_guess_and_never_shrink_to_nothing() {
        let mut budget = StepBudget::new(Duration::from_millis(1));
        assert_eq!(rows(&budget, 1, 512), StepBudget::FIRST);
        assert_eq!(rows(&budget, 1, 4), 4);
        for _ in 0..20 {
            budget.learn(load(1, 16), 16, Duration::from_secs(5));
        }
        let dear = |rows| StepLoad { rows, positions: 1_000_000 * rows, ..load(1, 0) };
        assert_eq!(budget.rows(beside(1, 1.0, false), 512, dear), 1);
        assert_eq!(budget.rows(beside(1, 1.0, false), 0, dear), 0);
    }
}
