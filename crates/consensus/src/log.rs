//! What the rest of the daemon sees of consensus: a replicated log of proposals, and the state that they make.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use model::{Applied, Incarnation, NodeId, Proposal, Rejection, State};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::wire::{RaftReply, RaftRequest};

/// What every member knows of a member.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeInfo {
    /// Where its daemon is reached, as [`crate::Transport`] understands it: `10.0.0.5:5081`.
    pub address: String,
}

/// A proposal that is in the state.
#[derive(Clone, Debug, PartialEq)]
pub struct Committed {
    /// What each of its commands did, in their order.
    pub applied: Vec<Applied>,
    /// Index of its log entry.
    pub index: u64,
    /// Raft term of its log entry.
    pub term: u64,
}

/// The state after a prefix of the log.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// Index of the last entry that was applied; 0 before the first.
    pub index: u64,
    /// Raft term of that entry.
    pub term: u64,
    /// The state. Who keeps this for long costs the next change one copy of the state; nothing else.
    pub state: Arc<State>,
}

/// What this member knows of the group.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// This member.
    pub id: NodeId,
    /// Highest Raft term that it knows; durable.
    pub term: u64,
    /// Who leads, as far as it knows. `None` during an election or after a loss of contact that was noticed.
    pub leader: Option<NodeId>,
    /// Whether it leads itself. No permission to act: that is [`model::State::office`].
    pub is_leader: bool,
    /// Who votes; during a joint change the voters of both configurations.
    pub voters: BTreeSet<NodeId>,
    /// The same by configuration: a decision needs a majority of each. One, during a joint change two; none before the
    /// first.
    pub configurations: Vec<BTreeSet<NodeId>>,
    /// Who only receives the log.
    pub learners: BTreeSet<NodeId>,
    /// Everybody's [`NodeInfo`], voters and learners.
    pub members: BTreeMap<NodeId, NodeInfo>,
    /// Whether a change of the voters is under way (both configurations count).
    pub joint: bool,
    /// Index of the last entry in its log; 0 if there is none.
    pub last_log: u64,
    /// Index of the last entry that it has applied; 0 if there is none.
    pub applied: u64,
    /// Why it has stopped for good, for instance a full disk. It takes no part any more until the daemon is restarted.
    pub failed: Option<String>,
}

/// Why a proposal was not answered with [`Committed`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// It went through the log and was refused there; nothing changed.
    #[error(transparent)]
    Rejected(#[from] Rejection),
    /// It was not even appended: another member leads, or nobody. Safe to send to the leader.
    #[error("this node does not lead the cluster (leader: {})", .leader.map_or_else(|| "none known".into(), |id| id.to_string()))]
    NotLeader {
        /// Who leads, if that is known.
        leader: Option<NodeId>,
    },
    /// It may take effect or not, now or later. Never treat it as absent: read the state behind a
    /// [`Log::read_barrier`], and propose again only what does no harm twice.
    #[error("it is not known whether the change was made: {0}")]
    Unknown(String),
    /// Consensus has stopped on this node; the proposal was not appended here.
    #[error("consensus has stopped on this node: {0}")]
    Stopped(String),
}

/// Why it can't be said that the local state is current.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// Another member leads, or nobody.
    #[error("this node does not lead the cluster (leader: {})", .leader.map_or_else(|| "none known".into(), |id| id.to_string()))]
    NotLeader {
        /// Who leads, if that is known.
        leader: Option<NodeId>,
    },
    /// A majority of the voters did not answer in time.
    #[error("no majority of the voters answered within {0:?}")]
    NoQuorum(Duration),
    /// Consensus has stopped on this node.
    #[error("consensus has stopped on this node: {0}")]
    Stopped(String),
}

/// Why the members were not changed, or may not have been.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MembershipError {
    /// Another member leads, or nobody.
    #[error("this node does not lead the cluster (leader: {})", .leader.map_or_else(|| "none known".into(), |id| id.to_string()))]
    NotLeader {
        /// Who leads, if that is known.
        leader: Option<NodeId>,
    },
    /// An earlier change is not finished.
    #[error("another change of the voters is under way")]
    Busy,
    /// What was asked for makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// Not finished in time; it may still happen. Ask for the same again.
    #[error("the change of members was not finished: {0}")]
    Unknown(String),
    /// Consensus has stopped on this node.
    #[error("consensus has stopped on this node: {0}")]
    Stopped(String),
}

/// Why leadership was not handed over.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// This node has no leadership to hand over.
    #[error("this node does not lead the cluster (leader: {})", .leader.map_or_else(|| "none known".into(), |id| id.to_string()))]
    NotLeader {
        /// Who leads, if that is known.
        leader: Option<NodeId>,
    },
    /// The other has no vote, so it can't lead.
    #[error("node {0} is not a voter, it can't lead")]
    NotVoter(NodeId),
    /// It did not lead in time. Somebody else may lead now: see [`Log::status`].
    #[error("node {to} did not take over within {within:?}")]
    TimedOut {
        /// Who should have.
        to: NodeId,
        /// How long it was waited for.
        within: Duration,
    },
    /// Consensus has stopped on this node.
    #[error("consensus has stopped on this node: {0}")]
    Stopped(String),
}

/// Consensus, as the rest of the daemon uses it. Kept narrow so that what is behind it can be replaced.
///
/// All waits have a bound: `within` where there is one, else that of [`crate::Config`].
#[async_trait]
pub trait Log: Send + Sync {
    /// Makes this member, which must be new and empty, the only voter of a new group. On one that is a member of a group
    /// already it does nothing, so it may be called again after a crash.
    async fn bootstrap(&self, info: NodeInfo) -> Result<(), MembershipError>;

    /// Appends a proposal and waits until it is applied here, at most [`crate::Config::propose_timeout`].
    async fn propose(&self, proposal: Proposal) -> Result<Committed, ProposeError>;

    /// Makes sure that [`Self::state`] contains everything that was committed before the call (Raft's ReadIndex: a
    /// majority confirms the leader). Returns the index up to which it does. Only the leader can.
    async fn read_barrier(&self, within: Duration) -> Result<u64, ReadError>;

    /// The newest applied state. Cheap. On a member that lags it is an older one; see [`Self::read_barrier`].
    fn view(&self) -> View;

    /// As [`Self::view`], the state only.
    fn state(&self) -> Arc<State> {
        self.view().state
    }

    /// Follows [`Self::view`]: wakes after each batch of applied entries. Don't hold a borrow across anything slow.
    fn watch(&self) -> watch::Receiver<View>;

    /// What this member knows of the group now.
    fn status(&self) -> Status;

    /// Follows [`Self::status`].
    fn watch_status(&self) -> watch::Receiver<Status>;

    /// On the leader: how long ago the newest contact with a majority began, one that a majority has confirmed. `None`
    /// on others, and before the first.
    fn quorum_age(&self) -> Option<Duration>;

    /// Incarnation that messages to and from this member must carry; `n` is 0 while it belongs to none.
    fn incarnation(&self) -> Incarnation;

    /// Adds a member without a vote and waits until it has the log. A known member stays what it is.
    async fn add_learner(&self, id: NodeId, info: NodeInfo, within: Duration) -> Result<(), MembershipError>;

    /// Replaces the voters by `voters`, who must be members, in one joint change. Who loses the vote stays as a learner.
    async fn set_voters(&self, voters: BTreeSet<NodeId>, within: Duration) -> Result<(), MembershipError>;

    /// Takes a member, voter or learner, out of the group. The leader can't remove itself. Unknown ones are fine.
    async fn remove(&self, id: NodeId, within: Duration) -> Result<(), MembershipError>;

    /// Hands leadership to `to`, a voter; returns when it leads. While that is under way this node takes no proposals.
    async fn transfer_leader(&self, to: NodeId, within: Duration) -> Result<(), TransferError>;

    /// Starts an election now in which this member is the candidate. For tests and for a voter that knows the leader to
    /// be gone; the others still judge.
    async fn elect(&self) -> Result<(), TransferError>;

    /// Asks for a snapshot now; it is made in the background.
    async fn snapshot(&self) -> Result<(), ReadError>;

    /// Answers a message of the member `from`, whose identity the caller has checked.
    async fn handle(&self, from: NodeId, request: RaftRequest) -> RaftReply;

    /// Stops this member: nothing is appended or answered after it returned, and the store is closed.
    async fn shutdown(&self);
}
