//! The types with which openraft is used: they are the same on every runtime, only [`Types`] names the runtime.

use std::cmp::Ordering;
use std::fmt;
use std::marker::PhantomData;

use model::{Applied, Proposal, Rejection};
use openraft::vote::RaftLeaderId;
use openraft::{AsyncRuntime, OptionalSend, RaftTypeConfig};
use serde::{Deserialize, Serialize};

use crate::log::NodeInfo;

/// Textbook leader ids: at most one leader in a term (protocol, section 2).
pub(crate) type LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>;
type CommittedLeaderId = <LeaderId as RaftLeaderId>::Committed;
pub(crate) type Vote = openraft::impls::Vote<LeaderId>;
pub(crate) type LogId = openraft::LogId<CommittedLeaderId>;
pub(crate) type Payload = openraft::EntryPayload<Request, u64, NodeInfo>;
pub(crate) type Entry = openraft::Entry<CommittedLeaderId, Payload>;
pub(crate) type Membership = openraft::Membership<u64, NodeInfo>;
pub(crate) type StoredMembership = openraft::StoredMembership<CommittedLeaderId, u64, NodeInfo>;
pub(crate) type SnapshotMeta = openraft::storage::SnapshotMeta<CommittedLeaderId, u64, NodeInfo>;

/// What a log entry asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Request(pub(crate) Proposal);

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} command(s) of incarnation {}", self.0.commands.len(), self.0.incarnation.n)
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Response(pub(crate) Result<Vec<Applied>, Rejection>);

/// openraft's configuration of types, on runtime `Rt`.
pub(crate) struct Types<Rt>(PhantomData<fn() -> Rt>);

impl<Rt: AsyncRuntime> RaftTypeConfig for Types<Rt> {
    type D = Request;
    type R = Response;
    type NodeId = u64;
    type Node = NodeInfo;
    type Term = u64;
    type LeaderId = LeaderId;
    type Vote = Vote;
    type Payload = Payload;
    type Entry = Entry;
    type AsyncRuntime = Rt;
    type Responder<T>
        = openraft::impls::ProgressResponder<Self, T>
    where
        T: OptionalSend + 'static;
    type Batch<T>
        = openraft::impls::InlineBatch<T>
    where
        T: OptionalSend + 'static;
    type ErrorSource = openraft::impls::BoxedErrorSource;
}

// By hand, because a derive would ask the same of the runtime. There is only one value.
impl<Rt> Clone for Types<Rt> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<Rt> Copy for Types<Rt> {}
impl<Rt> Default for Types<Rt> {
    fn default() -> Self {
        Self(PhantomData)
    }
}
impl<Rt> fmt::Debug for Types<Rt> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Types")
    }
}
impl<Rt> PartialEq for Types<Rt> {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}
impl<Rt> Eq for Types<Rt> {}
impl<Rt> PartialOrd for Types<Rt> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl<Rt> Ord for Types<Rt> {
    fn cmp(&self, _: &Self) -> Ordering {
        Ordering::Equal
    }
}
