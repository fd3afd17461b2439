//! KV blocks as integers: which are free, and how many hold each of the others. Storage and layout are the decoder's.

use crate::model::KvShape;

/// Owns every block id of one engine.
#[derive(Debug)]
pub struct BlockPool {
    block_tokens: usize,
    /// Taken from the end.
    free: Vec<u32>,
    /// How many hold each block, by id; 0 is free.
    holders: Vec<u32>,
}

impl BlockPool {
    pub fn new(kv: KvShape) -> Self {
        let mut pool = Self { block_tokens: kv.block_tokens.max(1), free: Vec::new(), holders: vec![0; kv.blocks] };
        pool.restore();
        pool
    }

    /// Makes every block free, whoever held it.
    pub fn restore(&mut self) {
        self.holders.fill(0);
        self.free = (0..self.holders.len() as u32).rev().collect();
    }

    /// Blocks that `positions` positions fill.
    pub fn needed(&self, positions: usize) -> usize {
        positions.div_ceil(self.block_tokens)
    }

    pub fn free(&self) -> usize {
        self.free.len()
    }

    pub fn total(&self) -> usize {
        self.holders.len()
    }

    pub fn used(&self) -> usize {
        self.total() - self.free()
    }

    /// Adds `count` free blocks to `held`, each with one holder: all of them, or none and `false`.
    pub fn take(&mut self, count: usize, held: &mut Vec<u32>) -> bool {
        let Some(kept) = self.free.len().checked_sub(count) else { return false };
        for block in self.free.drain(kept..).rev() {
            self.holders[block as usize] = 1;
            held.push(block);
        }
        true
    }

    /// Lets go of every block in `held`; a block is free when its last holder has let go.
    ///
    /// # Panics
    /// If one of them is free already: two sequences would write to it.
    pub fn release(&mut self, held: &mut Vec<u32>) {
        for block in held.drain(..) {
            let holders = &mut self.holders[block as usize];
            assert!(*holders > 0, "block {block} is released twice");
            *holders -= 1;
            if *holders == 0 {
                self.free.push(block);
            }
        }
    }

    /// Whether every block is free and listed once, as it must be when nothing runs.
    pub fn is_whole(&self) -> bool {
        let mut listed = vec![false; self.total()];
        self.free.iter().for_each(|&block| listed[block as usize] = true);
        self.free.len() == self.total() && listed.iter().all(|&listed| listed) && self.holders.iter().all(|&n| n == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(blocks: usize) -> BlockPool {
        BlockPool::new(KvShape { block_tokens: 4, blocks, block_bytes: 64 })
    }

    #[test]
    fn blocks_are_taken_all_together_or_not_at_all() {
        let mut pool = pool(3);
        let (mut one, mut other) = (Vec::new(), Vec::new());
        assert!(pool.take(2, &mut one));
        assert!(!pool.take(2, &mut other), "only one is left");
        assert_eq!((one, other.len(), pool.free()), (vec![0, 1], 0, 1));
    }

    #[test]
    fn positions_fill_whole_blocks() {
        let pool = pool(1);
        assert_eq!([0, 1, 4, 5, 8].map(|positions| pool.needed(positions)), [0, 1, 1, 2, 2]);
    }

    #[test]
    fn the_pool_is_whole_when_every_block_came_back() {
        let mut pool = pool(3);
        let (mut one, mut other) = (Vec::new(), Vec::new());
        assert!(pool.take(1, &mut one) && pool.take(2, &mut other));
        pool.release(&mut one);
        assert_eq!(pool.used(), 2);
        assert!(!pool.is_whole());
        pool.release(&mut other);
        assert!(pool.is_whole());
        assert!(pool.take(3, &mut one));
        pool.restore();
        assert!(pool.is_whole());
    }

    #[test]
    #[should_panic(expected = "released twice")]
    fn a_block_cannot_be_released_twice() {
        let mut pool = pool(1);
        let mut held = Vec::new();
        assert!(pool.take(1, &mut held));
        let mut again = held.clone();
        pool.release(&mut held);
        pool.release(&mut again);
    }
}
