//! KV blocks as integers: which are free, who holds the others, and which full ones are kept because their tokens may
//! come again. Storage and layout are the decoder's.

use std::collections::{BTreeMap, HashMap};

use super::prefix::BlockKey;
use crate::model::KvShape;

/// Owns every block id of one engine.
///
/// A block is *held* by running sequences, *idle* (held by nobody, but its content is known by key and may be used again),
/// or *free*. Idle blocks are given out when no free one is left, the least recently used first.
#[derive(Debug)]
pub struct BlockPool {
    block_tokens: usize,
    /// Taken from the end.
    free: Vec<u32>,
    /// How many hold each block, by id.
    holders: Vec<u32>,
    /// The content of each block that is full and known, by id.
    keys: Vec<Option<BlockKey>>,
    index: HashMap<BlockKey, u32>,
    /// By the time of their last use, oldest first.
    idle: BTreeMap<u64, u32>,
    /// Under which time a block is idle, by id.
    idle_since: Vec<u64>,
    clock: u64,
}

impl BlockPool {
    pub fn new(kv: KvShape) -> Self {
        let mut pool = Self {
            block_tokens: kv.block_tokens.max(1),
            free: Vec::new(),
            holders: vec![0; kv.blocks],
            keys: vec![None; kv.blocks],
            index: HashMap::new(),
            idle: BTreeMap::new(),
            idle_since: vec![0; kv.blocks],
            clock: 0,
        };
        pool.restore();
        pool
    }

    /// Makes every block free, whoever held it and whatever it held.
    pub fn restore(&mut self) {
        self.forget_all();
        self.holders.fill(0);
        self.free = (0..self.holders.len() as u32).rev().collect();
    }

    /// Positions in one block.
    pub fn block_tokens(&self) -> usize {
        self.block_tokens
    }

    /// Blocks that `positions` positions fill.
    pub fn needed(&self, positions: usize) -> usize {
        positions.div_ceil(self.block_tokens)
    }

    /// Blocks that can be taken now.
    pub fn free(&self) -> usize {
        self.free.len() + self.idle.len()
    }

    pub fn total(&self) -> usize {
        self.holders.len()
    }

    /// Blocks that somebody holds.
    pub fn used(&self) -> usize {
        self.total() - self.free()
    }

    /// Adds `count` blocks to `held`, each with one holder: all of them, or none and `false`.
    pub fn take(&mut self, count: usize, held: &mut Vec<u32>) -> bool {
        if count > self.free() {
            return false;
        }
        for _ in 0..count {
            let Some(block) = self.free.pop().or_else(|| self.evict()) else { return false };
            self.holders[block as usize] = 1;
            held.push(block);
        }
        true
    }

    /// The idle block that was used longest ago; its content is forgotten.
    fn evict(&mut self) -> Option<u32> {
        let (_, block) = self.idle.pop_first()?;
        self.forget(block);
        Some(block)
    }

    fn forget(&mut self, block: u32) {
        if let Some(key) = self.keys[block as usize].take() {
            self.index.remove(&key);
        }
    }

    /// Forgets what every block holds; idle ones become free.
    pub fn forget_all(&mut self) {
        self.free.extend(std::mem::take(&mut self.idle).into_values());
        self.keys.fill(None);
        self.index.clear();
    }

    /// Lets go of every block in `held`, in order of position. A block that nobody holds any more is idle if its content is
    /// known, free otherwise. The last of a chain counts as used longest ago: without those before it, it is worth nothing.
    ///
    /// # Panics
    /// If one of them is held by nobody: two sequences would write to it.
    pub fn release(&mut self, held: &mut Vec<u32>) {
        for block in held.drain(..).rev() {
            self.release_one(block);
        }
    }

    fn release_one(&mut self, block: u32) {
        let holders = &mut self.holders[block as usize];
        assert!(*holders > 0, "block {block} is released twice");
        *holders -= 1;
        if *holders > 0 {
            return;
        }
        if self.keys[block as usize].is_some() {
            self.clock += 1;
            self.idle_since[block as usize] = self.clock;
            self.idle.insert(self.clock, block);
        } else {
            self.free.push(block);
        }
    }

    /// Says what a full block holds, so that others may use it. Where another block holds the same already, that one
    /// stays the known one.
    pub fn publish(&mut self, block: u32, key: BlockKey) {
        if self.keys[block as usize].is_none() && !self.index.contains_key(&key) {
            self.keys[block as usize] = Some(key);
            self.index.insert(key, block);
        }
    }

    /// How many of `keys` lead, without a gap, to known blocks; and how many of these somebody holds, so that using them
    /// takes no block away.
    pub fn known(&self, keys: &[BlockKey]) -> (usize, usize) {
        let blocks = keys.iter().map_while(|key| self.index.get(key));
        blocks.fold((0, 0), |(all, held), &block| (all + 1, held + usize::from(self.holders[block as usize] > 0)))
    }

    /// Adds one holder to the block that holds `key`'s content.
    pub fn share(&mut self, key: &BlockKey) -> Option<u32> {
        let block = *self.index.get(key)?;
        let holders = &mut self.holders[block as usize];
        if *holders == 0 {
            self.idle.remove(&self.idle_since[block as usize]);
        }
        *holders += 1;
        Some(block)
    }

    /// Puts the known block of `key` in place of `held`, which is let go of; `false` if there is none, or it is this one.
    pub fn exchange(&mut self, held: &mut u32, key: &BlockKey) -> bool {
        if self.index.get(key) == Some(held) {
            return false;
        }
        let Some(shared) = self.share(key) else { return false };
        self.release_one(std::mem::replace(held, shared));
        true
    }

    /// Whether nobody holds a block and every one is listed once, as it must be when nothing runs.
    pub fn is_whole(&self) -> bool {
        let mut listed = vec![false; self.total()];
        self.free.iter().chain(self.idle.values()).for_each(|&block| listed[block as usize] = true);
        self.free() == self.total() && listed.iter().all(|&listed| listed) && self.holders.iter().all(|&n| n == 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::KvSalt;

    fn pool(blocks: usize) -> BlockPool {
        BlockPool::new(KvShape { block_tokens: 4, blocks, block_bytes: 64 })
    }

    /// Keys of a chain of `count` blocks.
    fn chain(first: u32, count: usize) -> Vec<BlockKey> {
        let root = BlockKey::root(None, &KvSalt::default());
        std::iter::successors(Some(root.next(&[first])), |key| Some(key.next(&[first]))).take(count).collect()
    }

    /// Blocks of `keys`, taken and published.
    fn published(pool: &mut BlockPool, keys: &[BlockKey]) -> Vec<u32> {
        let mut held = Vec::new();
        assert!(pool.take(keys.len(), &mut held));
        held.iter().zip(keys).for_each(|(&block, &key)| pool.publish(block, key));
        held
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
    fn what_is_known_is_kept_until_its_place_is_needed() {
        let mut pool = pool(4);
        let keys = chain(1, 2);
        let mut held = published(&mut pool, &keys);
        let blocks = held.clone();
        assert_eq!(pool.known(&keys), (2, 2));
        pool.release(&mut held);
        assert_eq!((pool.known(&keys), pool.free()), ((2, 0), 4));
        assert!(pool.is_whole());
        assert_eq!(pool.share(&keys[0]), Some(blocks[0]));
        assert_eq!((pool.known(&keys), pool.free()), ((2, 1), 3));
        let mut others = Vec::new();
        assert!(pool.take(3, &mut others), "an idle block makes way");
        assert_eq!(pool.known(&keys), (1, 1));
        assert!(!others.contains(&blocks[0]), "a held one does not");
        assert!(!pool.take(1, &mut others));
    }

    #[test]
    fn the_longest_unused_goes_first_and_a_chain_from_its_end() {
        let mut pool = pool(4);
        let (old, new) = (chain(1, 2), chain(2, 2));
        let (mut one, mut other) = (published(&mut pool, &old), published(&mut pool, &new));
        pool.release(&mut one);
        pool.release(&mut other);
        let mut taken = Vec::new();
        for expected in [(1, 2), (0, 2), (0, 1), (0, 0)] {
            assert!(pool.take(1, &mut taken));
            assert_eq!((pool.known(&old).0, pool.known(&new).0), expected);
        }
    }

    #[test]
    fn one_content_has_one_known_block_and_who_computed_it_twice_may_change_over() {
        let mut pool = pool(3);
        let keys = chain(1, 1);
        let mut first = published(&mut pool, &keys);
        let mut second = published(&mut pool, &keys);
        assert_ne!(first, second);
        assert!(!pool.exchange(&mut first[0], &keys[0]), "it is that one");
        assert!(pool.exchange(&mut second[0], &keys[0]));
        assert_eq!((first.clone(), pool.free()), (second.clone(), 2));
        pool.release(&mut first);
        assert_eq!(pool.known(&keys), (1, 1));
        pool.release(&mut second);
        assert!(pool.is_whole());
    }

    #[test]
    fn what_is_forgotten_is_free() {
        let mut pool = pool(2);
        let keys = chain(1, 2);
        let mut held = published(&mut pool, &keys);
        let kept = held.split_off(1);
        pool.release(&mut held);
        pool.forget_all();
        assert_eq!((pool.known(&keys), pool.free()), ((0, 0), 1));
        pool.release(&mut kept.clone());
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
