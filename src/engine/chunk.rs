//! How many prompt rows may ride along with running answers.

use std::time::Duration;

/// Follows the measured time of steps, so that a long prompt does not hold up the answers beside it.
#[derive(Debug)]
pub struct ChunkLimit {
    /// Zero sets no limit.
    target: Duration,
    most: usize,
    rows: usize,
}

impl ChunkLimit {
    /// Fewer rows than this cost nearly as much as one: the weights are read either way.
    const FEWEST: usize = 8;
    const FIRST: usize = 64;

    pub fn new(target: Duration, most: usize) -> Self {
        let first = if target.is_zero() { most } else { Self::FIRST.min(most) };
        Self { target, most, rows: first }
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Takes in a step of `riding` prompt rows beside running answers; without them there is nothing to learn.
    pub fn learn(&mut self, riding: usize, took: Duration) {
        if self.target.is_zero() || riding == 0 {
            return;
        }
        if took > self.target {
            let share = self.target.as_secs_f64() / took.as_secs_f64();
            self.rows = ((riding as f64 * share) as usize).clamp(Self::FEWEST.min(self.most), self.rows);
        } else if riding >= self.rows && took < self.target / 2 {
            self.rows = (self.rows * 2).min(self.most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_steps_shrink_the_chunk_and_quick_ones_widen_it() {
        let mut limit = ChunkLimit::new(Duration::from_millis(100), 512);
        limit.learn(64, Duration::from_millis(400));
        assert_eq!(limit.rows(), 16);
        limit.learn(16, Duration::from_millis(40));
        assert_eq!(limit.rows(), 32);
        limit.learn(5, Duration::from_millis(40));
        assert_eq!(limit.rows(), 32, "a chunk that was not full says nothing");
        limit.learn(32, Duration::from_millis(80));
        assert_eq!(limit.rows(), 32, "near the target it stays");
    }

    #[test]
    fn the_chunk_never_shrinks_to_nothing_nor_grows_beyond_a_step() {
        let mut limit = ChunkLimit::new(Duration::from_millis(1), 128);
        for _ in 0..9 {
            limit.learn(limit.rows(), Duration::from_secs(5));
        }
        assert_eq!(limit.rows(), ChunkLimit::FEWEST);
        for _ in 0..9 {
            limit.learn(limit.rows(), Duration::ZERO);
        }
        assert_eq!(limit.rows(), 128);
        assert_eq!(ChunkLimit::new(Duration::ZERO, 512).rows(), 512, "no target, no limit");
    }
}
