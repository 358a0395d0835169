//! The master's part: leases in confirmed rounds, the fence of older terms, and when a life may be declared dead (L2, L5–L7).

use std::collections::{BTreeMap, BTreeSet};

use model::{Evidence, Incarnation, Life, NodeId};

use crate::message::Renew;
use crate::{Now, Times};

/// A node, as the master's state has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its life; zero: it has not joined.
    pub life: Life,
    /// That life was declared dead.
    pub dead: bool,
    /// It may be declared dead without an operator.
    pub armed: bool,
}

/// What the master's leases react to.
#[derive(Clone, Debug)]
pub enum Event {
    /// The nodes as the newest applied state has them. The first one comes after the office entry was applied.
    Nodes(BTreeMap<NodeId, Standing>),
    /// Who votes; two sets during a joint change.
    Voters(Vec<BTreeSet<NodeId>>),
    /// A guard asks.
    Renew(Renew),
    /// A voter confirmed a round (its answer to [`Effect::Confirm`]).
    Confirmed {
        /// The voter.
        voter: NodeId,
        /// The round.
        round: u64,
    },
    /// A voter's answer to [`Effect::Fence`], as it came in.
    Fenced {
        /// The voter.
        voter: NodeId,
        /// Age of its last confirmation of a lower term.
        age: std::time::Duration,
    },
    /// What was proposed for [`Effect::Condemn`] was rejected: the life goes on, or has ended another way.
    Pardoned {
        /// The node.
        node: NodeId,
        /// Its life.
        life: Life,
    },
    /// Time has passed. At the latest [`Grants::next`].
    Tick,
}

/// What the master's leases want done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Ask all voters to confirm this round, the master's own [`Voter`](crate::voter::Voter) included: it has to remember that
    /// it confirmed, and it may have followed a later term already. The answers come as [`Event::Confirmed`].
    Confirm {
        /// The round.
        round: u64,
    },
    /// Ask these voters how long ago they confirmed a lower term, the master's own [`Voter`](crate::voter::Voter) included;
    /// again after a while those that did not answer. The answers come as [`Event::Fenced`].
    Fence {
        /// Those that have not answered.
        voters: BTreeSet<NodeId>,
    },
    /// Answer the request `q` of a node's guard with a grant; the runs are to be read from the state *now*.
    Grant {
        /// The node.
        node: NodeId,
        /// Its life.
        life: Life,
        /// The request.
        q: u64,
    },
    /// Tell a node's guard that its life has ended.
    Refuse {
        /// The node.
        node: NodeId,
        /// The request.
        q: u64,
        /// The life that the node has in the state.
        now: Life,
    },
    /// Propose [`model::Command::NodeDead`] with the takeovers; that life gets no lease any more. Comes once, and again
    /// only after [`Event::Pardoned`].
    Condemn {
        /// The node.
        node: NodeId,
        /// Its life.
        life: Life,
        /// Why it is safe.
        evidence: Evidence,
    },
}

/// The leases of one term in office.
#[derive(Debug)]
pub struct Grants {
    _times: Times,
}

impl Grants {
    /// Of the master `own` in `term`, which has just taken office.
    pub fn new(times: Times, inc: Incarnation, term: u64, own: NodeId, now: Now) -> Self {
        let _ = (inc, term, own, now);
        Self { _times: times }
    }

    /// Takes an event.
    pub fn step(&mut self, now: Now, event: Event, out: &mut Vec<Effect>) {
        let _ = (now, event, out);
    }

    /// When [`Event::Tick`] is due at the latest.
    pub fn next(&self) -> Option<Now> {
        None
    }

    /// Up to which term a node is surely without the cluster's address, by its own word ([`Renew::without_address`]).
    pub fn without_address(&self, node: NodeId) -> u64 {
        let _ = node;
        0
    }

    /// Whether a node has surely no lease of any master at that time (L7), or never had one that counts.
    pub fn has_lapsed(&self, node: NodeId, now: Now) -> bool {
        let _ = (node, now);
        false
    }

    /// How long ago the newest round began that could have granted the node a lease, for reports.
    pub fn age(&self, node: NodeId, now: Now) -> Option<std::time::Duration> {
        let _ = (node, now);
        None
    }
}
