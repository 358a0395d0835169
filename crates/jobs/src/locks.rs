//! Who may work on what at the same time. No I/O: a table that is asked and told.
//!
//! An opcode gets all its locks at once or none, so there are no deadlocks. Who waits keeps its place: a later request of
//! the same or lower priority does not overtake an earlier one that it conflicts with, so nobody starves.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use model::{JobId, NodeId};

/// What can be locked, by level as in Ganeti.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Lock {
    /// The cluster as a whole (Ganeti's BGL). Everything holds it shared.
    Cluster,
    /// An instance, by name, also one that is about to be made.
    Instance(String),
    /// A node.
    Node(NodeId),
    /// The name of a node, also of one that is about to be added.
    NodeName(String),
}

impl fmt::Display for Lock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Lock::Cluster => f.write_str("cluster/BGL"),
            Lock::Instance(name) => write!(f, "instance/{name}"),
            Lock::Node(id) => write!(f, "node/{id}"),
            Lock::NodeName(name) => write!(f, "node/{name}"),
        }
    }
}

/// How a lock is held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Together with others.
    Shared,
    /// Alone.
    Exclusive,
}

/// A set of locks that an opcode needs.
pub type Wants = BTreeMap<Lock, Mode>;

#[derive(Clone, Debug)]
struct Waiting {
    job: JobId,
    priority: i8,
    /// Place in the line.
    ticket: u64,
    wants: Wants,
}

/// The table of locks.
#[derive(Clone, Debug, Default)]
pub struct LockTable {
    held: BTreeMap<JobId, Wants>,
    /// In the order in which they are served: by priority, then by arrival.
    waiting: Vec<Waiting>,
    tickets: u64,
}

fn conflict(one: &Wants, other: &Wants) -> bool {
    one.iter()
        .any(|(lock, mode)| other.get(lock).is_some_and(|held| *mode == Mode::Exclusive || *held == Mode::Exclusive))
}

impl LockTable {
    /// Asks for locks. `true`: granted at once. Otherwise the job waits, and a later [`Self::release`] names it.
    /// A job that holds or waits for locks has to [release](Self::release) them before it asks again.
    pub fn request(&mut self, job: JobId, priority: i8, wants: Wants) -> bool {
        self.tickets += 1;
        self.waiting.push(Waiting { job, priority, ticket: self.tickets, wants });
        self.waiting.sort_by_key(|waiting| (waiting.priority, waiting.ticket));
        self.grant().contains(&job)
    }

    /// Gives back what a job holds or waits for. Returns the jobs that have got their locks through that.
    pub fn release(&mut self, job: JobId) -> Vec<JobId> {
        self.held.remove(&job);
        self.waiting.retain(|waiting| waiting.job != job);
        self.grant()
    }

    fn grant(&mut self) -> Vec<JobId> {
        let mut granted = Vec::new();
        let mut ahead: Vec<Waiting> = Vec::new();
        for waiting in std::mem::take(&mut self.waiting) {
            let blocked = self.held.values().any(|held| conflict(&waiting.wants, held))
                || ahead.iter().any(|other| conflict(&waiting.wants, &other.wants));
            if blocked {
                ahead.push(waiting);
            } else {
                granted.push(waiting.job);
                self.held.insert(waiting.job, waiting.wants);
            }
        }
        self.waiting = ahead;
        granted
    }

    /// Jobs that hold locks.
    pub fn holders(&self) -> BTreeSet<JobId> {
        self.held.keys().copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn wants(locks: &[(&str, Mode)]) -> Wants {
        locks.iter().map(|(name, mode)| (Lock::Instance((*name).to_owned()), *mode)).collect()
    }

    use Mode::{Exclusive as X, Shared as S};

    #[test]
    fn shared_locks_are_held_together_and_exclusive_ones_alone() {
        let mut table = LockTable::default();
        assert!(table.request(JobId(1), 0, wants(&[("a", S)])));
        assert!(table.request(JobId(2), 0, wants(&[("a", S)])));
        assert!(!table.request(JobId(3), 0, wants(&[("a", X)])));
        assert!(table.request(JobId(4), 0, wants(&[("b", X)])));
        assert_eq!(table.release(JobId(1)), []);
        assert_eq!(table.release(JobId(2)), [JobId(3)]);
    }

    #[test]
    fn who_waits_is_not_overtaken_by_who_conflicts_with_it() {
        let mut table = LockTable::default();
        assert!(table.request(JobId(1), 0, wants(&[("a", S)])));
        assert!(!table.request(JobId(2), 0, wants(&[("a", X)])));
        // would be compatible with the holder, but would keep job 2 waiting for ever
        assert!(!table.request(JobId(3), 0, wants(&[("a", S)])));
        // but a job of higher priority goes first
        assert!(table.request(JobId(4), -10, wants(&[("a", S)])));
        assert_eq!(table.release(JobId(1)), []);
        assert_eq!(table.release(JobId(4)), [JobId(2)]);
        assert_eq!(table.release(JobId(2)), [JobId(3)]);
    }

    #[test]
    fn all_locks_or_none() {
        let mut table = LockTable::default();
        assert!(table.request(JobId(1), 0, wants(&[("a", X)])));
        assert!(!table.request(JobId(2), 0, wants(&[("a", X), ("b", X)])));
        assert_eq!(table.holders(), BTreeSet::from([JobId(1)]));
        assert_eq!(table.release(JobId(1)), [JobId(2)]);
    }

    proptest! {
        /// Whatever is asked and given back in whatever order: no two holders conflict, and when nobody holds anything
        /// nobody waits.
        #[test]
        fn holders_never_conflict_and_nobody_waits_for_nothing(
            actions in prop::collection::vec((0u64..12, 0i8..3, prop::collection::btree_map(0u8..4, any::<bool>(), 1..4)), 1..80)
        ) {
            let mut table = LockTable::default();
            let mut known = BTreeSet::new();
            for (job, priority, locks) in actions {
                let job = JobId(job);
                if known.insert(job) {
                    let wants = locks
                        .into_iter()
                        .map(|(name, shared)| (Lock::Instance(name.to_string()), if shared { S } else { X }))
                        .collect();
                    table.request(job, priority, wants);
                } else {
                    known.remove(&job);
                    table.release(job);
                }
                let held: Vec<_> = table.held.values().collect();
                for (index, one) in held.iter().enumerate() {
                    for other in &held[index + 1..] {
                        prop_assert!(!conflict(one, other));
                    }
                }
                prop_assert!(!table.held.is_empty() || table.waiting.is_empty());
            }
            while let Some(job) = table.holders().first().copied() {
                table.release(job);
            }
            prop_assert!(table.waiting.is_empty());
        }
    }
}
