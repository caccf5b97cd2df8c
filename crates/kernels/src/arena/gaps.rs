//! Which parts of a piece of memory are free: bookkeeping beside it, that touches none of it.

use std::collections::{BTreeMap, BTreeSet};

/// The gaps below the end of the farthest block that ever was. All beyond is free too, and fresh.
#[derive(Debug)]
pub(super) struct Gaps {
    /// Offset to length. No two gaps touch.
    by_place: BTreeMap<usize, usize>,
    /// The same as length and offset.
    by_length: BTreeSet<(usize, usize)>,
    end: usize,
}

impl Gaps {
    pub(super) const fn new() -> Self {
        Self {
            by_place: BTreeMap::new(),
            by_length: BTreeSet::new(),
            end: 0,
        }
    }

    /// No block ever reached beyond.
    pub(super) fn end(&self) -> usize {
        self.end
    }

    /// The offset of `length` bytes that are free: in the smallest gap that holds them, of several the first;
    /// otherwise at the end, which `may_end_at` is asked to allow.
    pub(super) fn take(
        &mut self,
        length: usize,
        may_end_at: impl FnOnce(usize) -> bool,
    ) -> Option<usize> {
        if let Some(&(free, offset)) = self.by_length.range((length, 0)..).next() {
            self.remove(offset, free);
            if free > length {
                self.insert(offset + length, free - length);
            }
            return Some(offset);
        }
        let last = self.by_place.last_key_value().map(|(o, l)| (*o, *l));
        let last = last.filter(|(offset, free)| offset + free == self.end);
        let offset = last.map_or(self.end, |(offset, _)| offset);
        let end = offset.checked_add(length)?;
        if !may_end_at(end) {
            return None;
        }
        if let Some((offset, free)) = last {
            self.remove(offset, free);
        }
        self.end = end;
        Some(offset)
    }

    /// Frees `length` bytes at `offset`, which were taken.
    pub(super) fn give(&mut self, offset: usize, length: usize) {
        let (mut offset, mut length) = (offset, length);
        if let Some((&before, &free)) = self.by_place.range(..offset).next_back()
            && before + free == offset
        {
            self.remove(before, free);
            offset = before;
            length += free;
        }
        if let Some(&free) = self.by_place.get(&(offset + length)) {
            self.remove(offset + length, free);
            length += free;
        }
        self.insert(offset, length);
    }

    fn insert(&mut self, offset: usize, length: usize) {
        self.by_place.insert(offset, length);
        self.by_length.insert((length, offset));
    }

    fn remove(&mut self, offset: usize, length: usize) {
        self.by_place.remove(&offset);
        self.by_length.remove(&(length, offset));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_smallest_gap_that_holds_it_comes_first() {
        let mut gaps = Gaps::new();
        let places: Vec<_> = [30, 1, 10, 1, 20, 1]
            .map(|length| gaps.take(length, |_| true).unwrap())
            .into();
        assert_eq!(places, [0, 30, 31, 41, 42, 62]);
        gaps.give(0, 30);
        gaps.give(31, 10);
        gaps.give(42, 20);
        assert_eq!(gaps.take(15, |_| true), Some(42));
        assert_eq!(gaps.take(10, |_| true), Some(31));
        assert_eq!(gaps.take(31, |_| true), Some(63));
        assert_eq!(gaps.end(), 94);
    }

    #[test]
    fn a_gap_at_the_end_grows_and_what_is_refused_changes_nothing() {
        let mut gaps = Gaps::new();
        assert_eq!(gaps.take(10, |end| end <= 15), Some(0));
        assert_eq!(gaps.take(10, |end| end <= 15), None);
        assert_eq!(gaps.end(), 10);
        gaps.give(0, 10);
        assert_eq!(gaps.take(15, |end| end <= 15), Some(0));
        assert_eq!(gaps.end(), 15);
        assert_eq!(gaps.take(usize::MAX, |_| true), None);
    }

    proptest! {
        #[test]
        fn blocks_never_overlap_and_all_freed_is_one_gap(
            steps in prop::collection::vec((1usize..200, any::<prop::sample::Index>(), any::<bool>()), 1..300)
        ) {
            let mut gaps = Gaps::new();
            let mut blocks: Vec<(usize, usize)> = Vec::new();
            for (length, which, free) in steps {
                if free && !blocks.is_empty() {
                    let (offset, length) = blocks.swap_remove(which.index(blocks.len()));
                    gaps.give(offset, length);
                } else {
                    let offset = gaps.take(length, |_| true).unwrap();
                    for (other, long) in &blocks {
                        prop_assert!(offset + length <= *other || other + long <= offset);
                    }
                    blocks.push((offset, length));
                }
                let held: usize = blocks.iter().map(|(_, length)| length).sum();
                let free: usize = gaps.by_place.values().sum();
                prop_assert_eq!(held + free, gaps.end());
                prop_assert_eq!(gaps.by_place.len(), gaps.by_length.len());
            }
            for (offset, length) in blocks {
                gaps.give(offset, length);
            }
            prop_assert_eq!(gaps.by_place.len(), 1);
            prop_assert_eq!(gaps.by_place.get(&0), Some(&gaps.end()));
        }
    }
}
