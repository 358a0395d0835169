//! The guard of a node: asks for its lease, and stops guests when it runs out (L1, L4, L8, L9).

use std::collections::BTreeSet;

use model::{Incarnation, Life, NodeId, RunId};

use crate::message::Answer;
use crate::{Now, Times};

/// As whom the guard asks: what its daemon told it last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Incarnation of the cluster.
    pub inc: Incarnation,
    /// The node.
    pub node: NodeId,
    /// Its life; zero: it has not joined, nothing is asked for.
    pub life: Life,
}

/// What a guard reacts to.
#[derive(Clone, Debug)]
pub enum Event {
    /// The daemon gives a sign of life, and says who the node is. `None`: it is in no cluster.
    Daemon(Option<Identity>),
    /// A run is there, still paused or adopted. `protected`: it is to be stopped when the lease runs out.
    Register {
        /// The run.
        run: RunId,
        /// Whether it is of an instance that another node may take over.
        protected: bool,
    },
    /// The run's process has ended.
    Ended(RunId),
    /// The master's answer to request `q`.
    Answer {
        /// The request.
        q: u64,
        /// What it said.
        answer: Answer,
    },
    /// Time has passed. At the latest [`Guard::next`].
    Tick,
}

/// What a guard wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask the master for the lease, with this number; everybody who may be the master, when it is not known.
    Renew {
        /// The request.
        q: u64,
        /// As whom.
        identity: Identity,
        /// See [`crate::message::Renew::without_address`].
        without_address: u64,
        /// The master, if it is known.
        master: Option<NodeId>,
    },
    /// Tell the daemon until when the lease lasts (it has, if that is past).
    Lease(Now),
    /// Stop these runs: their guests must not go on.
    Stop(BTreeSet<RunId>),
    /// Let these stopped runs go on.
    Continue(BTreeSet<RunId>),
    /// End these runs: they are not this node's any more.
    Kill(BTreeSet<RunId>),
    /// Take the cluster's address off this node.
    DropAddress,
    /// The daemon hangs: end it, and start it anew.
    ReplaceDaemon,
}

/// The guard of one node.
#[derive(Debug)]
pub struct Guard {
    _times: Times,
}

impl Guard {
    /// One that has just started: no lease, no daemon yet.
    pub fn new(times: Times, now: Now) -> Self {
        let _ = now;
        Self { _times: times }
    }

    /// Takes an event.
    pub fn step(&mut self, now: Now, event: Event, out: &mut Vec<Effect>) {
        let _ = (now, event, out);
    }

    /// Until when the node has a lease; past if it has none.
    pub fn until(&self) -> Now {
        Now::ZERO
    }

    /// Whether the lease holds.
    pub fn holds(&self, now: Now) -> bool {
        now < self.until()
    }

    /// When [`Event::Tick`] is due at the latest.
    pub fn next(&self) -> Now {
        Now::ZERO
    }
}
