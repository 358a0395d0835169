//! What guards, the master and voters say to each other about leases.

use std::collections::BTreeSet;

use model::{Incarnation, Life, NodeId, RunId};
use serde::{Deserialize, Serialize};

/// A guard asks for its node's lease (L1).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Renew {
    /// Incarnation of the cluster.
    pub inc: Incarnation,
    /// The node.
    pub node: NodeId,
    /// Its life.
    pub life: Life,
    /// Number of the request; grows. The guard knows when it was sent, nobody else needs to.
    pub q: u64,
    /// Raft term up to which this node surely does not have the cluster's address as a master of that term: it was taken
    /// off, or never put on, after a [`Grant`] of that term had said that another node leads.
    pub without_address: u64,
}

/// A lease (L2): the guard's node may run guests until [`Self::lease_ms`] after the moment at which it sent request `q`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Incarnation of the cluster.
    pub inc: Incarnation,
    /// Term of the master that grants it.
    pub term: u64,
    /// The node's life.
    pub life: Life,
    /// The request that is answered.
    pub q: u64,
    /// Length, milliseconds.
    pub lease_ms: u32,
    /// The master: everybody else drops the cluster's address.
    pub master: NodeId,
    /// The runs that this life of the node has the right to, read behind the confirmed round: those that it owns and those
    /// that migrations prepare for it. A guest that was stopped goes on only if it is among them (L8).
    pub runs: BTreeSet<RunId>,
}

/// The answer to a [`Renew`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Here it is.
    Granted(Grant),
    /// This node is not the master in office; who is, as far as it knows.
    NotMaster(Option<NodeId>),
    /// That life has ended, or is about to be declared dead: no lease for it any more. The node has to join anew.
    Ended {
        /// The life that the node has in the state.
        now: Life,
        /// Term of the master that says so.
        term: u64,
    },
    /// The master could not get a round confirmed in time, or has not taken office yet.
    NotYet,
}

/// The master asks a voter to confirm that it has not been deposed (L2, L3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirm {
    /// Incarnation of the cluster.
    pub inc: Incarnation,
    /// The master's term.
    pub term: u64,
    /// Number of the round.
    pub round: u64,
}

/// A new master asks a voter how long ago it confirmed an older one (L6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// Incarnation of the cluster.
    pub inc: Incarnation,
    /// The master's term.
    pub term: u64,
}

/// The answer to a [`Fence`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fenced {
    /// Age of the voter's last confirmation of a lower term, milliseconds, rounded down; at the most the age of its process.
    pub age_ms: u64,
}
