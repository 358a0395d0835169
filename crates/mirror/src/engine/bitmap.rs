//! Sparse sets of blocks of a disk.

use std::collections::BTreeMap;

use crate::wire::Range;

/// Bytes of a block, the unit in which differences are noted.
pub const BLOCK: u64 = 4096;

/// Words of 64 blocks in one piece: 16 MiB of disk.
const WORDS: usize = 64;
/// Blocks in one piece.
const PIECE: u64 = WORDS as u64 * 64;

/// A set of blocks. Takes memory only where something is set: 512 bytes for 16 MiB of disk.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Bitmap {
    pieces: BTreeMap<u64, Box<[u64; WORDS]>>,
}

impl std::fmt::Debug for Bitmap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.ranges().map(|range| (range.offset, range.len))).finish()
    }
}

impl Bitmap {
    /// Every block of a disk of `size` bytes.
    pub fn full(size: u64) -> Self {
        let mut all = Self::default();
        all.set(Range::new(0, size));
        all
    }

    /// Adds the blocks that `range` touches.
    pub fn set(&mut self, range: Range) {
        for (piece, word, mask) in words(outer(range)) {
            self.pieces.entry(piece).or_insert_with(|| Box::new([0; WORDS]))[word] |= mask;
        }
    }

    /// Takes away the blocks that `range` touches.
    pub fn clear(&mut self, range: Range) {
        for (piece, word, mask) in words(outer(range)) {
            if let Some(words) = self.pieces.get_mut(&piece) {
                words[word] &= !mask;
                if words.iter().all(|word| *word == 0) {
                    self.pieces.remove(&piece);
                }
            }
        }
    }

    /// Whether one of the blocks that `range` touches is in the set.
    pub fn touches(&self, range: Range) -> bool {
        words(outer(range))
            .any(|(piece, word, mask)| self.pieces.get(&piece).is_some_and(|words| words[word] & mask != 0))
    }

    /// Adds all blocks of `other`.
    pub fn add(&mut self, other: &Bitmap) {
        for (piece, words) in &other.pieces {
            let own = self.pieces.entry(*piece).or_insert_with(|| Box::new([0; WORDS]));
            for (own, word) in own.iter_mut().zip(words.iter()) {
                *own |= word;
            }
        }
    }

    /// Takes away all blocks of `other`.
    pub fn subtract(&mut self, other: &Bitmap) {
        for (piece, words) in &other.pieces {
            let Some(own) = self.pieces.get_mut(piece) else { continue };
            for (own, word) in own.iter_mut().zip(words.iter()) {
                *own &= !word;
            }
            if own.iter().all(|word| *word == 0) {
                self.pieces.remove(piece);
            }
        }
    }

    /// Whether nothing is in it.
    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Number of blocks in it.
    pub fn count(&self) -> u64 {
        self.pieces.values().flat_map(|words| words.iter()).map(|word| u64::from(word.count_ones())).sum()
    }

    /// The first run of blocks from byte `from` on, at most `most` bytes of it.
    pub fn next_run(&self, from: u64, most: u64) -> Option<Range> {
        let first = self.next_block(from / BLOCK)?;
        let mut end = first + 1;
        while (end - first) * BLOCK < most && self.has(end) {
            end += 1;
        }
        Some(Range::new(first * BLOCK, (end - first) * BLOCK))
    }

    /// All runs of blocks, ascending, whole blocks.
    pub fn ranges(&self) -> impl Iterator<Item = Range> + '_ {
        let mut from = 0;
        std::iter::from_fn(move || {
            let run = self.next_run(from, u64::MAX)?;
            from = run.end();
            Some(run)
        })
    }

    fn has(&self, block: u64) -> bool {
        let at = (block % PIECE) as usize;
        self.pieces.get(&(block / PIECE)).is_some_and(|words| words[at / 64] >> (at % 64) & 1 == 1)
    }

    fn next_block(&self, from: u64) -> Option<u64> {
        for (piece, words) in self.pieces.range(from / PIECE..) {
            let start = from.saturating_sub(piece * PIECE) as usize;
            for (index, word) in words.iter().enumerate().skip(start / 64) {
                let word = if index == start / 64 { word & (u64::MAX << (start % 64)) } else { *word };
                if word != 0 {
                    return Some(piece * PIECE + index as u64 * 64 + u64::from(word.trailing_zeros()));
                }
            }
        }
        None
    }
}

/// The blocks that a range touches: first, and one after the last.
fn outer(range: Range) -> (u64, u64) {
    (range.offset / BLOCK, range.end().div_ceil(BLOCK))
}

/// Piece, word and mask for each word with blocks of `first..end`.
fn words((first, end): (u64, u64)) -> impl Iterator<Item = (u64, usize, u64)> {
    let mut at = first;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let until = end.min((at / 64 + 1) * 64);
        let (low, count) = (at % 64, until - at);
        let mask = if count == 64 { u64::MAX } else { ((1 << count) - 1) << low };
        let found = (at / PIECE, (at % PIECE / 64) as usize, mask);
        at = until;
        Some(found)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// It is the set of blocks that a set of numbers would be.
        #[test]
        fn is_a_set_of_blocks(steps in proptest::collection::vec((0u64..9000, 1u64..400, any::<bool>()), 0..20)) {
            let (mut bitmap, mut blocks) = (Bitmap::default(), BTreeSet::new());
            for (first, count, set) in steps {
                let range = Range::new(first * BLOCK + 5, count * BLOCK - 5);
                for block in first..first + count {
                    if set { blocks.insert(block); } else { blocks.remove(&block); }
                }
                if set { bitmap.set(range) } else { bitmap.clear(range) }
            }
            prop_assert_eq!(bitmap.count(), blocks.len() as u64);
            prop_assert_eq!(bitmap.is_empty(), blocks.is_empty());
            let runs: Vec<u64> = bitmap.ranges().flat_map(|run| run.offset / BLOCK..run.end() / BLOCK).collect();
            prop_assert_eq!(runs, blocks.into_iter().collect::<Vec<_>>());
        }
    }
}
