//! Locks on ranges: writes and copies that overlap follow each other (W2, J3).

use std::collections::VecDeque;

use crate::wire::Range;

/// First come, first served: a lock waits for those that overlap it and came before it, held or waiting. There are as
/// many as there are writes and copies under way, so lists are searched from end to end.
#[derive(Debug)]
pub(super) struct Locks<T> {
    held: Vec<(Range, T)>,
    waiting: VecDeque<(Range, T)>,
}

impl<T> Default for Locks<T> {
    fn default() -> Self {
        Self { held: Vec::new(), waiting: VecDeque::new() }
    }
}

impl<T: Copy + PartialEq> Locks<T> {
    /// Asks for a lock; whether it was granted at once. Else [`Self::release`] of another will grant it.
    pub fn acquire(&mut self, range: Range, who: T) -> bool {
        let mut before = self.held.iter().chain(&self.waiting);
        let free = !before.any(|(other, _)| other.overlaps(range));
        if free {
            self.held.push((range, who));
        } else {
            self.waiting.push_back((range, who));
        }
        free
    }

    /// Gives a lock back, or gives up waiting for it; who is granted one by that.
    pub fn release(&mut self, who: T) -> Vec<T> {
        self.held.retain(|(_, holder)| *holder != who);
        self.waiting.retain(|(_, waiter)| *waiter != who);
        let mut granted = Vec::new();
        let mut still = VecDeque::new();
        for (range, waiter) in std::mem::take(&mut self.waiting) {
            if self.held.iter().chain(&still).any(|(other, _)| other.overlaps(range)) {
                still.push_back((range, waiter));
            } else {
                self.held.push((range, waiter));
                granted.push(waiter);
            }
        }
        self.waiting = still;
        granted
    }

    /// A holder gets another name.
    pub fn rename(&mut self, old: T, new: T) {
        for (_, holder) in self.held.iter_mut().filter(|(_, holder)| *holder == old) {
            *holder = new;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_overlap_follow_each_other_in_the_order_in_which_they_came() {
        let mut locks = Locks::default();
        assert!(locks.acquire(Range::new(0, 10), 1));
        assert!(!locks.acquire(Range::new(5, 10), 2));
        assert!(!locks.acquire(Range::new(14, 2), 3), "it overlaps one that waits before it");
        assert!(locks.acquire(Range::new(20, 1), 4));
        assert_eq!(locks.release(1), [2]);
        assert_eq!(locks.release(2), [3]);
    }

    #[test]
    fn one_that_gives_up_lets_the_next_through() {
        let mut locks = Locks::default();
        assert!(locks.acquire(Range::new(0, 10), 1));
        assert!(!locks.acquire(Range::new(0, 30), 2));
        assert!(!locks.acquire(Range::new(20, 10), 3));
        assert_eq!(locks.release(2), [3]);
    }
}
