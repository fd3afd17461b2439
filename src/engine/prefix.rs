//! What a full KV block holds, by name, so that equal beginnings are computed once.

use sha2::{Digest as _, Sha256};

use super::KvSalt;
use crate::terms::AdapterVersion;

/// Names the keys and values of one full block: SHA-256 over the key of the block before it and this block's tokens. The
/// first block follows a root that stands for the adapter's version in force and the salt, so one version's blocks are never
/// another's, nor one tenant's another's. The base, its dtype and the block's size are the engine's own: a key is never
/// seen outside the engine that made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BlockKey([u8; 32]);

impl BlockKey {
    /// What the first block of a chain follows; `None` is the base.
    pub fn root(version: Option<AdapterVersion>, salt: &KvSalt) -> Self {
        let hash = Sha256::new().chain_update(salt.0);
        let hash = match version {
            // One byte tells the base from an adapter whose digest is anything.
            None => hash.chain_update([0]),
            Some(version) => hash.chain_update([1]).chain_update(version.0.as_bytes()),
        };
        Self(hash.finalize().into())
    }

    /// The key of the block that holds `tokens` after the one that this key names.
    pub fn next(self, tokens: &[u32]) -> Self {
        let hash = Sha256::new().chain_update(self.0);
        Self(tokens.iter().fold(hash, |hash, token| hash.chain_update(token.to_le_bytes())).finalize().into())
    }
}

/// The keys of one sequence's full blocks, in order; made as they are wanted.
#[derive(Debug)]
pub struct Chain {
    last: BlockKey,
    keys: Vec<BlockKey>,
}

impl Chain {
    pub fn new(root: BlockKey) -> Self {
        Self { last: root, keys: Vec::new() }
    }

    /// Makes sure of the first `blocks` keys; `tokens` gives the tokens of a block by its number.
    pub fn reach(&mut self, blocks: usize, tokens: impl Fn(usize) -> Vec<u32>) {
        while self.keys.len() < blocks {
            self.last = self.last.next(&tokens(self.keys.len()));
            self.keys.push(self.last);
        }
    }

    /// The keys made so far.
    pub fn made(&self) -> &[BlockKey] {
        &self.keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::terms::Digest;

    #[test]
    fn a_key_stands_for_everything_that_its_block_depends_on() {
        let version = |byte: u8| Some(AdapterVersion(Digest::of(&[byte])));
        let roots = [
            BlockKey::root(None, &KvSalt([0; 32])),
            BlockKey::root(None, &KvSalt([1; 32])),
            BlockKey::root(version(1), &KvSalt([0; 32])),
            BlockKey::root(version(2), &KvSalt([0; 32])),
        ];
        let keys: Vec<BlockKey> = roots
            .iter()
            .flat_map(|root| [root.next(&[1, 2]), root.next(&[2, 1]), root.next(&[1]).next(&[2])])
            .collect();
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key), "{index}");
        }
        assert_eq!(roots[2].next(&[7]), BlockKey::root(version(1), &KvSalt([0; 32])).next(&[7]));
    }

    #[test]
    fn a_chain_grows_with_its_tokens() {
        let root = BlockKey::root(None, &KvSalt::default());
        let mut chain = Chain::new(root);
        let tokens = |block: usize| vec![block as u32; 2];
        chain.reach(1, tokens);
        assert_eq!(chain.made(), [root.next(&[0, 0])]);
        chain.reach(2, tokens);
        assert_eq!(chain.made(), [root.next(&[0, 0]), root.next(&[0, 0]).next(&[1, 1])]);
        chain.reach(1, |_| unreachable!());
    }
}
