//! The pool of KV cache blocks: which are free, who holds which, and what is in the full ones.
//!
//! A block is `block_size` consecutive positions of a sequence. Blocks are counted by reference, so
//! that sequences with the same beginning share theirs. A full block can be *published* under its
//! content: its tokens and everything before them. When nobody holds it any more it stays, found by
//! its content, until its room is needed; the least recently released goes first.
//!
//! Content is named, not just hashed: a published block has a [`ContentId`] that is never used
//! again, and it is found under (content id of the block before it, its tokens), with the tokens
//! compared. By induction two blocks of the same content id have the same tokens from position 0
//! on; a collision of hashes makes a miss, never a mix of two sequences.
//!
//! Every operation is O(1), but for the comparison of a block's tokens.

use std::collections::HashMap;

/// No block; ends the list of unheld blocks.
const NONE: u32 = u32::MAX;

/// Names the tokens of a published block together with all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ContentId(u64);

impl ContentId {
    /// What stands before the first block: nothing.
    pub const START: Self = Self(0);
}

/// Hash of a block's tokens and of the hash before it. Only speeds up finding: see the module.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PrefixHash(u64);

impl PrefixHash {
    /// The hash before the first block.
    pub const START: Self = Self(0x243f_6a88_85a3_08d3);

    /// The hash of this prefix followed by a block of `tokens`.
    pub fn extended(self, tokens: &[u32]) -> Self {
        let mut state = self.0;
        for &token in tokens {
            // One round of multiply and fold; odd constant from the golden ratio.
            state = (state ^ u64::from(token)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            state ^= state >> 29;
        }
        Self(state)
    }
}

/// What is in a published block.
#[derive(Debug)]
struct Content {
    id: ContentId,
    before: ContentId,
    hash: PrefixHash,
    tokens: Box<[u32]>,
}

#[derive(Debug)]
struct Block {
    /// Sequences that hold it.
    references: u32,
    content: Option<Content>,
    /// Neighbors in the list of unheld published blocks, while it is there.
    older: u32,
    newer: u32,
}

/// How the blocks are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockCounts {
    /// Held by a sequence.
    pub used: usize,
    /// Held by none, kept for their content; given away when needed.
    pub cached: usize,
    /// Empty.
    pub free: usize,
}

/// The blocks of one KV cache.
#[derive(Debug)]
pub struct BlockPool {
    block_size: usize,
    blocks: Vec<Block>,
    free: Vec<u32>,
    /// Unheld published blocks: a doubly linked list from the least to the most recently released.
    oldest: u32,
    newest: u32,
    cached: usize,
    by_hash: HashMap<PrefixHash, u32>,
    next_content: u64,
}

impl BlockPool {
    /// `blocks` empty blocks of `block_size` positions.
    ///
    /// # Panics
    /// When `block_size` is 0 or `blocks` is not below `u32::MAX`; the options' validation sees to
    /// both.
    pub fn new(blocks: usize, block_size: usize) -> Self {
        assert!(block_size > 0, "a block holds at least one position");
        assert!(blocks < NONE as usize, "block numbers are u32");
        Self {
            block_size,
            blocks: (0..blocks)
                .map(|_| Block {
                    references: 0,
                    content: None,
                    older: NONE,
                    newer: NONE,
                })
                .collect(),
            // Low numbers first.
            free: (0..blocks as u32).rev().collect(),
            oldest: NONE,
            newest: NONE,
            cached: 0,
            by_hash: HashMap::new(),
            next_content: ContentId::START.0 + 1,
        }
    }

    /// Positions of a block.
    pub fn block_size(&self) -> usize {
        self.block_size
    }

    /// Blocks that hold `positions` positions.
    pub fn blocks_for(&self, positions: usize) -> usize {
        positions.div_ceil(self.block_size)
    }

    /// All blocks there are.
    pub fn total(&self) -> usize {
        self.blocks.len()
    }

    /// Blocks that [`BlockPool::allocate`] can give: the free and the unheld ones.
    pub fn available(&self) -> usize {
        self.free.len() + self.cached
    }

    /// How the blocks are used now.
    pub fn counts(&self) -> BlockCounts {
        BlockCounts {
            used: self.total() - self.available(),
            cached: self.cached,
            free: self.free.len(),
        }
    }

    /// A block for one holder, of no content. `None` when every block is held.
    pub fn allocate(&mut self) -> Option<u32> {
        let block = match self.free.pop() {
            Some(block) => block,
            None => self.evict()?,
        };
        self.blocks[block as usize].references = 1;
        Some(block)
    }

    /// The block published as `tokens` after `before`, and its content id. It is not held by this:
    /// see [`BlockPool::retain`].
    pub fn find(
        &self,
        before: ContentId,
        hash: PrefixHash,
        tokens: &[u32],
    ) -> Option<(u32, ContentId)> {
        let &block = self.by_hash.get(&hash)?;
        let content = self.blocks[block as usize].content.as_ref()?;
        (content.before == before && *content.tokens == *tokens).then_some((block, content.id))
    }

    /// Whether nobody holds the block.
    pub fn is_unheld(&self, block: u32) -> bool {
        self.blocks[block as usize].references == 0
    }

    /// Adds a holder to a block that is held or published.
    pub fn retain(&mut self, block: u32) {
        if self.is_unheld(block) {
            debug_assert!(self.blocks[block as usize].content.is_some());
            self.unlink(block);
        }
        self.blocks[block as usize].references += 1;
    }

    /// Takes a holder from a block. Blocks of a sequence are released from its last to its first,
    /// so that a block never outlives, unheld, what stands before it.
    pub fn release(&mut self, block: u32) {
        let held = &mut self.blocks[block as usize];
        debug_assert!(held.references > 0, "released more often than retained");
        held.references -= 1;
        if held.references > 0 {
            return;
        }
        if held.content.is_some() {
            self.link(block);
        } else {
            self.free.push(block);
        }
    }

    /// Publishes a full block that the caller holds as `tokens` after `before`. Returns what the
    /// caller holds from now on in its place: the same block, or the one that was published as the
    /// same before (the given one is released then). `None` when the hash is taken by other
    /// content: the block stays the caller's own.
    pub fn publish(
        &mut self,
        block: u32,
        before: ContentId,
        hash: PrefixHash,
        tokens: &[u32],
    ) -> Option<(u32, ContentId)> {
        debug_assert_eq!(tokens.len(), self.block_size, "only full blocks");
        debug_assert!(self.blocks[block as usize].content.is_none());
        if let Some(known) = self.find(before, hash, tokens) {
            self.retain(known.0);
            self.release(block);
            return Some(known);
        }
        if let Some(&other) = self.by_hash.get(&hash) {
            if !self.is_unheld(other) {
                return None;
            }
            // What stands before this one was evicted and came again under another id, so the old
            // one will never be found; or hashes collide, and then the newer is worth more.
            self.unlink(other);
            self.forget(other);
            self.free.push(other);
        }
        let id = ContentId(self.next_content);
        self.next_content += 1;
        self.by_hash.insert(hash, block);
        self.blocks[block as usize].content = Some(Content {
            id,
            before,
            hash,
            tokens: tokens.into(),
        });
        Some((block, id))
    }

    /// Asserts everything that must hold between calls, given how often each block is held.
    ///
    /// # Panics
    /// When an invariant is broken.
    pub fn check_invariants(&self, holders: impl IntoIterator<Item = u32>) {
        let mut references = vec![0; self.blocks.len()];
        for block in holders {
            references[block as usize] += 1;
        }
        let mut places = vec![0; self.blocks.len()];
        for &block in &self.free {
            assert!(self.blocks[block as usize].content.is_none());
            assert_eq!(references[block as usize], 0, "block {block} is free");
            places[block as usize] += 1;
        }
        let mut seen = Vec::new();
        let mut at = self.oldest;
        let mut before = NONE;
        while at != NONE {
            let block = &self.blocks[at as usize];
            let content = block.content.as_ref().expect("unheld blocks have content");
            assert_eq!(block.older, before, "the list runs both ways");
            assert!(
                !seen.contains(&content.before),
                "block {at} is to be evicted after what it continues"
            );
            assert_eq!(references[at as usize], 0, "block {at} is unheld");
            seen.push(content.id);
            places[at as usize] += 1;
            (before, at) = (at, block.newer);
        }
        assert_eq!(self.newest, before);
        assert_eq!(self.cached, seen.len());
        for (at, block) in self.blocks.iter().enumerate() {
            assert_eq!(block.references, references[at], "holders of block {at}");
            let lists = i32::from(block.references == 0);
            assert_eq!(places[at], lists, "block {at} is in one list, or held");
            if let Some(content) = &block.content {
                assert_eq!(self.by_hash.get(&content.hash), Some(&(at as u32)));
            }
        }
        let published = self.blocks.iter().filter(|block| block.content.is_some());
        assert_eq!(published.count(), self.by_hash.len());
    }

    /// Empties the unheld block that was released first.
    fn evict(&mut self) -> Option<u32> {
        let block = self.oldest;
        if block == NONE {
            return None;
        }
        self.unlink(block);
        self.forget(block);
        Some(block)
    }

    fn forget(&mut self, block: u32) {
        if let Some(content) = self.blocks[block as usize].content.take() {
            self.by_hash.remove(&content.hash);
        }
    }

    fn link(&mut self, block: u32) {
        let last = std::mem::replace(&mut self.newest, block);
        self.blocks[block as usize].older = last;
        self.blocks[block as usize].newer = NONE;
        match last {
            NONE => self.oldest = block,
            last => self.blocks[last as usize].newer = block,
        }
        self.cached += 1;
    }

    fn unlink(&mut self, block: u32) {
        let Block { older, newer, .. } = self.blocks[block as usize];
        match older {
            NONE => self.oldest = newer,
            older => self.blocks[older as usize].newer = newer,
        }
        match newer {
            NONE => self.newest = older,
            newer => self.blocks[newer as usize].older = older,
        }
        self.cached -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Publishes a new block of `tokens` after `before`.
    fn publish(
        pool: &mut BlockPool,
        before: (ContentId, PrefixHash),
        tokens: &[u32],
    ) -> (u32, (ContentId, PrefixHash)) {
        let block = pool.allocate().expect("a free block");
        let hash = before.1.extended(tokens);
        let (block, id) = pool.publish(block, before.0, hash, tokens).unwrap();
        (block, (id, hash))
    }

    const START: (ContentId, PrefixHash) = (ContentId::START, PrefixHash::START);

    #[test]
    fn a_released_block_is_found_by_its_content_until_its_room_is_needed() {
        let mut pool = BlockPool::new(2, 2);
        let (first, after) = publish(&mut pool, START, &[1, 2]);
        let (second, _) = publish(&mut pool, after, &[3, 4]);
        pool.check_invariants([first, second]);
        pool.release(second);
        pool.release(first);
        pool.check_invariants([]);
        let hash = after.1.extended(&[3, 4]);
        assert!(pool.find(after.0, hash, &[3, 4]).is_some());
        assert_eq!(
            pool.allocate(),
            Some(second),
            "the end of the chain goes first"
        );
        assert!(pool.find(after.0, hash, &[3, 4]).is_none());
        assert!(pool.find(START.0, after.1, &[1, 2]).is_some());
        pool.check_invariants([second]);
    }

    #[test]
    fn a_collision_of_hashes_is_a_miss() {
        let mut pool = BlockPool::new(4, 2);
        let (block, (_, hash)) = publish(&mut pool, START, &[1, 2]);
        assert!(pool.find(ContentId::START, hash, &[1, 3]).is_none());
        assert!(pool.find(ContentId(77), hash, &[1, 2]).is_none());
        let own = pool.allocate().unwrap();
        assert_eq!(pool.publish(own, ContentId::START, hash, &[1, 3]), None);
        pool.check_invariants([block, own]);
        pool.release(block);
        let kept = pool.publish(own, ContentId::START, hash, &[1, 3]).unwrap();
        assert_eq!(kept.0, own, "an unheld block gives way");
        pool.check_invariants([own]);
    }

    #[test]
    fn publishing_what_is_known_gives_the_known_block() {
        let mut pool = BlockPool::new(4, 2);
        let (first, (id, _)) = publish(&mut pool, START, &[1, 2]);
        let (again, (same, _)) = publish(&mut pool, START, &[1, 2]);
        assert_eq!((first, id), (again, same));
        assert_eq!(pool.counts().used, 1);
        pool.check_invariants([first, first]);
    }

    #[test]
    fn a_pool_whose_blocks_are_all_held_gives_none() {
        let mut pool = BlockPool::new(1, 1);
        let block = pool.allocate().unwrap();
        assert_eq!(pool.allocate(), None);
        pool.release(block);
        assert_eq!(pool.allocate(), Some(block));
    }
}
