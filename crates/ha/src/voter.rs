//! A voter's part in leases (L3, L6). It needs no disk: after a restart the age of its process stands for what it forgot.

use std::time::Duration;

use crate::Now;

/// What a voter remembers of the masters that it confirmed.
#[derive(Clone, Debug)]
pub struct Voter {
    /// When its process started.
    started: Now,
}

impl Voter {
    /// A voter whose process has just started.
    pub fn new(started: Now) -> Self {
        Self { started }
    }

    /// Whether it confirms the master of `term`, its durable Raft term being `durable`: only if they are the same (L3).
    pub fn confirm(&mut self, term: u64, durable: u64, now: Now) -> bool {
        let _ = now;
        term == durable
    }

    /// How long ago it last confirmed a master of a lower term than `term`; the age of its process if it does not remember
    /// one. `None`: its durable term is lower, it can't promise anything yet (L6).
    pub fn fence(&self, term: u64, durable: u64, now: Now) -> Option<Duration> {
        (durable >= term).then(|| now.saturating_sub(self.started))
    }
}
