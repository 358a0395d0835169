//! Messages between members. Each carries the incarnation of the cluster that it belongs to.

use std::sync::Arc;

use model::{Incarnation, NodeId, State};
use serde::{Deserialize, Serialize};

use crate::types::{Entry, LogId, SnapshotMeta, Vote};

/// A message to another member. What is in it is between the two; the caller only carries it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RaftRequest {
    pub(crate) incarnation: Incarnation,
    pub(crate) from: NodeId,
    pub(crate) to: NodeId,
    pub(crate) body: RequestBody,
}

impl RaftRequest {
    /// Whether it may be large (a snapshot of the whole state), so that a transport can use another connection for it
    /// and heartbeats don't wait behind it.
    pub fn is_bulk(&self) -> bool {
        matches!(self.body, RequestBody::Snapshot { .. })
    }

    /// Kind of message, for logs and fault injection.
    pub fn kind(&self) -> &'static str {
        match &self.body {
            RequestBody::Append { entries, .. } if entries.is_empty() => "heartbeat",
            RequestBody::Append { .. } => "append",
            RequestBody::Vote { .. } => "vote",
            RequestBody::PreVote { .. } => "pre-vote",
            RequestBody::Snapshot { .. } => "snapshot",
            RequestBody::Transfer { .. } => "transfer",
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum RequestBody {
    Append { vote: Vote, prev: Option<LogId>, entries: Vec<Entry>, commit: Option<LogId> },
    Vote { vote: Vote, last: Option<LogId>, transfer: bool },
    PreVote { vote: Vote, last: Option<LogId> },
    Snapshot { vote: Vote, meta: SnapshotMeta, state: Arc<State> },
    Transfer { leader: Vote, to: u64, last: Option<LogId> },
}

/// The answer to a [`RaftRequest`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RaftReply {
    pub(crate) incarnation: Incarnation,
    pub(crate) body: ReplyBody,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReplyBody {
    Append(AppendReply),
    Vote {
        vote: Vote,
        last: Option<LogId>,
        granted: bool,
    },
    Snapshot {
        vote: Vote,
    },
    /// `Err`: why it can't take over.
    Transfer(Result<(), String>),
    Refused(Refusal),
}

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AppendReply {
    Success,
    Partial(Option<LogId>),
    Conflict,
    HigherVote(Vote),
}

/// Why a message was not even looked at.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Refusal {
    #[error("it belongs to incarnation {n} of the cluster, this node to {mine}", n = .theirs.n, mine = .mine.n)]
    Incarnation { mine: Incarnation, theirs: Incarnation },
    #[error("it is for node {to}, this is node {me}")]
    NotMe { me: NodeId, to: NodeId },
    #[error("it says that it comes from node {said}, but it comes from node {from}")]
    Impostor { said: NodeId, from: NodeId },
    #[error("consensus has stopped: {0}")]
    Stopped(String),
}
