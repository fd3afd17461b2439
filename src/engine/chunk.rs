//! How many prompt rows one step may hold.

use std::time::Duration;

/// Follows the measured time of steps, so that a long prompt does not hold up those beside it.
#[derive(Debug)]
pub struct ChunkLimit {
    /// Zero sets no limit.
    target: Duration,
    most: usize,
    rows: usize,
    /// Recent time of a step without prompt rows; zero where there is none.
    bare: Duration,
}

impl ChunkLimit {
    /// A prompt goes on by this much however slow the steps are.
    const FEWEST: usize = 8;
    /// The first chunk of all is a guess; where it was too small, a few steps make up for it.
    const FIRST: usize = 16;

    pub fn new(target: Duration, most: usize) -> Self {
        let first = if target.is_zero() { most } else { Self::FIRST.min(most) };
        Self { target, most, rows: first, bare: Duration::ZERO }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Takes in how long a step with `rows` prompt rows took.
    pub fn learn(&mut self, rows: usize, took: Duration) {
        if rows == 0 {
            self.bare = if self.bare.is_zero() { took } else { (self.bare * 3 + took) / 4 };
        }
        if self.target.is_zero() || rows == 0 {
            return;
        }
        // Where answers alone take longer than the target, prompts may double the step: they must be read some time.
        let spare = self.target.max(self.bare * 2).saturating_sub(self.bare).as_secs_f64();
        let each = took.saturating_sub(self.bare).as_secs_f64() / rows as f64;
        // By zero it is infinite, and cast to the largest integer.
        let fits = (spare / each) as usize;
        if fits < self.rows {
            self.rows = fits.max(Self::FEWEST).min(self.rows);
        } else if rows >= self.rows {
            self.rows = fits.min(self.rows * 2).min(self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    fn limit_of(rows: usize) -> ChunkLimit {
        ChunkLimit { rows, ..ChunkLimit::new(100 * MS, 512) }
    }

    #[test]
    fn slow_steps_shrink_the_chunk_and_quick_ones_widen_it() {
        let mut limit = limit_of(64);
        limit.learn(64, 400 * MS);
        assert_eq!(limit.rows(), 16);
        limit.learn(16, 20 * MS);
        assert_eq!(limit.rows(), 32, "at most twofold at once");
        limit.learn(5, 2 * MS);
        assert_eq!(limit.rows(), 32, "a chunk that was not full does not widen it");
        limit.learn(32, 80 * MS);
        assert_eq!(limit.rows(), 40);
    }

    #[test]
    fn what_answers_take_alone_is_not_laid_to_the_prompts() {
        let mut limit = limit_of(64);
        limit.learn(0, 40 * MS);
        limit.learn(64, 104 * MS);
        assert_eq!(limit.rows(), 60, "1 ms for each row, 60 ms to spare");
        let mut slow = limit_of(64);
        slow.learn(0, 500 * MS);
        slow.learn(64, 1140 * MS);
        assert_eq!(slow.rows(), 50, "10 ms for each row, and the step may double");
    }

    #[test]
    fn the_chunk_never_shrinks_to_nothing_nor_grows_beyond_a_step() {
        let mut limit = ChunkLimit::new(MS, 128);
        for _ in 0..9 {
            limit.learn(limit.rows(), 5000 * MS);
        }
        assert_eq!(limit.rows(), ChunkLimit::FEWEST);
        for _ in 0..9 {
            limit.learn(limit.rows(), Duration::ZERO);
        }
        assert_eq!(limit.rows(), 128);
        assert_eq!(ChunkLimit::new(Duration::ZERO, 512).rows(), 512, "no target, no limit");
        assert_eq!(ChunkLimit::new(MS, 4).rows(), 4);
    }
}
