//! How the prompt rows of a step are shared.

use std::collections::HashMap;

use super::sequence::Lane;

/// What each lane has had of the steps lately, answers and prompts alike, in rows: whoever had least is served first. So a
/// burst on one adapter, or from one caller, does not hold up another, however many answers it has running.
#[derive(Debug)]
pub struct Ledger {
    /// Of those who had more than the least that anybody is taken to have had.
    had: HashMap<Lane, f64>,
    /// What a lane has had that took its even part of every step.
    even: f64,
    /// How far behind that a lane may be: nobody saves up for long by asking for nothing.
    credit: f64,
}

impl Ledger {
    pub fn new(credit: usize) -> Self {
        Self { had: HashMap::new(), even: 0.0, credit: credit as f64 }
    }

    fn least(&self) -> f64 {
        self.even - self.credit
    }

    fn had(&self, lane: &Lane) -> f64 {
        self.had.get(lane).map_or(self.least(), |had| had.max(self.least()))
    }

    /// Whether a lane has had much less than its part.
    pub fn is_new(&self, lane: &Lane) -> bool {
        self.had(lane) < self.even - self.credit / 4.0
    }

    /// Takes in a step's rows. Everybody who runs is named, with rows or without: a lane is behind only those who are there.
    pub fn count(&mut self, rows: impl IntoIterator<Item = (Lane, usize)>) {
        let mut step: HashMap<Lane, usize> = HashMap::new();
        rows.into_iter().for_each(|(lane, rows)| *step.entry(lane).or_default() += rows);
        if step.is_empty() {
            return;
        }
        let had = |(lane, rows): (&Lane, &usize)| (*lane, self.had(lane) + *rows as f64);
        let had: Vec<(Lane, f64)> = step.iter().map(had).collect();
        self.even += step.values().sum::<usize>() as f64 / step.len() as f64;
        let most = had.iter().map(|(_, had)| *had).fold(f64::NEG_INFINITY, f64::max);
        let raise = (self.even - most).max(0.0);
        self.had.extend(had.into_iter().map(|(lane, had)| (lane, had + raise)));
        let least = self.least();
        self.had.retain(|_, had| *had > least);
    }

    /// Shares `left` rows among prompts, given as (index, rows wanted) in order of admission, so that all lanes come as near
    /// as they can to having had the same; `answers` are the lanes of this step's other rows. See [`share_lane`] for what a
    /// lane does with its rows.
    pub fn share(
        &self,
        left: usize,
        answers: &[Lane],
        prompts: &[(usize, usize)],
        lane: impl Fn(usize) -> Lane,
    ) -> Vec<(usize, usize)> {
        let mut lanes: Vec<(Lane, Vec<(usize, usize)>)> = Vec::new();
        for &prompt in prompts {
            let of = lane(prompt.0);
            match lanes.iter_mut().find(|(other, _)| *other == of) {
                Some((_, prompts)) => prompts.push(prompt),
                None => lanes.push((of, vec![prompt])),
            }
        }
        let had = |lane: &Lane| self.had(lane) + answers.iter().filter(|other| *other == lane).count() as f64;
        let had: Vec<f64> = lanes.iter().map(|(lane, _)| had(lane)).collect();
        let least = had.iter().copied().fold(f64::INFINITY, f64::min);
        let wishes: Vec<Wish> = lanes
            .iter()
            .zip(had)
            .map(|((_, prompts), had)| Wish {
                ahead: (had - least).round() as usize,
                rows: prompts.iter().map(|&(_, rows)| rows).sum(),
            })
            .collect();
        let dealt = deal(left, &wishes);
        lanes.into_iter().zip(dealt).flat_map(|((_, prompts), rows)| share_lane(rows, prompts)).collect()
    }
}

/// A lane's, in a step.
#[derive(Clone, Copy)]
struct Wish {
    /// Rows that it has had more than the one that had least.
    ahead: usize,
    rows: usize,
}

/// Deals `left` rows so that all come up to one level as far as they want to; the earliest have what cannot be divided.
fn deal(left: usize, wishes: &[Wish]) -> Vec<usize> {
    let at = |level: usize| wishes.iter().map(move |wish| level.saturating_sub(wish.ahead).min(wish.rows));
    let top = wishes.iter().map(|wish| wish.ahead + wish.rows).max().unwrap_or(0);
    let level = largest(top, |level| at(level).sum::<usize>() <= left);
    let mut dealt: Vec<usize> = at(level).collect();
    let mut rest = left - dealt.iter().sum::<usize>();
    for (dealt, more) in dealt.iter_mut().zip(at(level + 1)) {
        let one = (more - *dealt).min(rest);
        *dealt += one;
        rest -= one;
    }
    dealt
}

/// The largest number up to `most` that fits, if whatever is smaller than one that fits does so too; 0 if none does.
pub fn largest(most: usize, fits: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, most);
    while low < high {
        let middle = low + (high - low).div_ceil(2);
        match fits(middle) {
            true => low = middle,
            false => high = middle - 1,
        }
    }
    low
}

/// Shares `left` rows among the prompts of one lane, given as (index, rows wanted) in order of admission. The first gets at
/// least half, so that it goes on whatever comes; the rest goes to the shortest, so that a short prompt does not stand
/// behind a long one.
fn share_lane(left: usize, mut prompts: Vec<(usize, usize)>) -> Vec<(usize, usize)> {
    let Some(((_, first), others)) = prompts.split_first_mut() else { return prompts };
    let wanted: usize = others.iter().map(|&(_, rows)| rows).sum();
    *first = (*first).min(left - wanted.min(left / 2));
    let mut left = left - *first;
    others.sort_by_key(|&(_, rows)| rows);
    for (_, rows) in others {
        *rows = (*rows).min(left);
        left -= *rows;
    }
    prompts.retain(|&(_, rows)| rows > 0);
    prompts
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: Lane = (1, None);
    const QUIET: Lane = (2, None);

    #[test]
    fn shares_never_exceed_what_is_left_nor_what_is_wanted() {
        assert_eq!(share_lane(0, vec![(0, 5)]), []);
        assert_eq!(share_lane(1, vec![(0, 5), (1, 5)]), [(0, 1)]);
        assert_eq!(share_lane(9, vec![(0, 5), (1, 3)]), [(0, 5), (1, 3)]);
        assert_eq!(share_lane(10, vec![(0, 100), (1, 50), (2, 2)]), [(0, 5), (2, 2), (1, 3)]);
    }

    #[test]
    fn every_lane_comes_to_the_same_as_far_as_it_wants_to() {
        let deal = |left, wishes: &[(usize, usize)]| {
            deal(left, &wishes.iter().map(|&(ahead, rows)| Wish { ahead, rows }).collect::<Vec<_>>())
        };
        assert_eq!(deal(10, &[]), Vec::<usize>::new());
        assert_eq!(deal(12, &[(0, 100), (0, 100), (0, 100)]), [4, 4, 4]);
        assert_eq!(deal(12, &[(0, 100), (0, 2), (0, 100)]), [5, 2, 5]);
        assert_eq!(deal(12, &[(0, 3), (0, 4), (0, 2)]), [3, 4, 2]);
        assert_eq!(deal(5, &[(0, 9), (0, 9), (0, 9)]), [2, 2, 1]);
        assert_eq!(deal(2, &[(0, 9), (0, 9), (0, 9)]), [1, 1, 0]);
        assert_eq!(deal(10, &[(6, 100), (0, 100)]), [2, 8], "six rows are made up for first");
        assert_eq!(deal(10, &[(50, 100), (0, 100)]), [0, 10]);
        assert_eq!(deal(10, &[(50, 100), (0, 7)]), [3, 7]);
    }

    #[test]
    fn a_lane_with_answers_leaves_prompt_rows_to_one_without() {
        let ledger = Ledger::new(0);
        let lane = |index| if index < 2 { BUSY } else { QUIET };
        assert_eq!(ledger.share(8, &[], &[(0, 50), (1, 50), (2, 50)], lane), [(0, 2), (1, 2), (2, 4)]);
        assert_eq!(ledger.share(8, &[BUSY; 6], &[(0, 50), (2, 50)], lane), [(0, 1), (2, 7)]);
    }

    #[test]
    fn who_comes_new_goes_before_who_has_had_much_but_not_for_long() {
        let mut ledger = Ledger::new(100);
        (0..50).for_each(|_| ledger.count([(BUSY, 20)]));
        assert!(ledger.is_new(&QUIET) && !ledger.is_new(&BUSY));
        let lane = |index| if index == 0 { BUSY } else { QUIET };
        let step = |ledger: &mut Ledger| {
            let dealt = ledger.share(20, &[], &[(0, 999), (1, 999)], lane);
            ledger.count(
                [(BUSY, 0), (QUIET, 0)].into_iter().chain(dealt.iter().map(|&(index, rows)| (lane(index), rows))),
            );
            dealt
        };
        let alone = (0..99).take_while(|_| step(&mut ledger) == [(1, 20)]).count();
        assert!((5..=10).contains(&alone), "{alone}");
        assert!(!ledger.is_new(&QUIET));
        (0..3).for_each(|_| _ = step(&mut ledger));
        assert_eq!(step(&mut ledger), [(0, 10), (1, 10)]);
    }

    #[test]
    fn who_has_left_is_forgotten_once_it_makes_no_difference() {
        let mut ledger = Ledger::new(100);
        for caller in 0..1000 {
            ledger.count([((caller, None), 30)]);
        }
        assert!(ledger.had.len() < 8, "{}", ledger.had.len());
    }
}
