//! The cluster's incarnation: which of its possible histories a message or a replica belongs to (protocol, section 2).

use serde::{Deserialize, Serialize};

use crate::ids::Uuid;

/// Incarnation of a cluster. `n` grows at each forced recovery and `id` is random, so that two recoveries made apart
/// from each other are told from one another: same `n` with another `id` is a *fork*, and both refuse each other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Incarnation {
    /// 1 for a new cluster; one more for every forced recovery. 0 only before `init`.
    pub n: u64,
    /// Random identity of this incarnation.
    pub id: Uuid,
}

impl Incarnation {
    /// The first incarnation of a cluster.
    pub fn first(id: Uuid) -> Self {
        Self { n: 1, id }
    }

    /// Whether the two can't both be true of one cluster.
    pub fn forks_from(&self, other: &Incarnation) -> bool {
        self.n == other.n && self.id != other.id
    }
}

/// Where an incarnation ended: the last log entry that was adopted by the one after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForkPoint {
    /// Raft term of the entry.
    pub term: u64,
    /// Its index.
    pub index: u64,
}
