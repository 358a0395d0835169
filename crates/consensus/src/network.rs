//! openraft's network on top of a [`Transport`]: addresses, incarnations, deadlines.

use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use model::{NodeId, State};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::{RPCOption, RaftNetworkFactory, RaftNetworkV2};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest, TransferLeaderResponse,
    VoteRequest, VoteResponse,
};
use openraft::type_config::alias::SnapshotOf;
use openraft::{AsyncRuntime, OptionalSend};

use crate::log::NodeInfo;
use crate::store::Store;
use crate::transport::{Transport, TransportError};
use crate::types::{Types, Vote};
use crate::wire::{AppendReply, RaftRequest, ReplyBody, RequestBody};

/// Makes [`Peer`]s.
pub(crate) struct Network<Rt> {
    pub(crate) store: Store,
    pub(crate) transport: Arc<dyn Transport>,
    pub(crate) runtime: PhantomData<fn() -> Rt>,
}

/// One other member.
pub(crate) struct Peer<Rt> {
    to: NodeId,
    address: String,
    store: Store,
    transport: Arc<dyn Transport>,
    /// The last refusal that was logged; the same again says nothing new.
    refused: Mutex<Option<String>>,
    runtime: PhantomData<fn() -> Rt>,
}

impl<Rt: AsyncRuntime> RaftNetworkFactory<Types<Rt>> for Network<Rt> {
    type Network = Peer<Rt>;

    async fn new_client(&mut self, to: u64, info: &NodeInfo) -> Peer<Rt> {
        Peer {
            to: NodeId(to),
            address: info.address.clone(),
            store: self.store.clone(),
            transport: Arc::clone(&self.transport),
            refused: Mutex::new(None),
            runtime: PhantomData,
        }
    }
}

type Failure<Rt> = RPCError<Types<Rt>>;

fn unreachable<Rt: AsyncRuntime>(reason: impl ToString) -> Failure<Rt> {
    RPCError::Unreachable(Unreachable::from_string(reason))
}

fn odd_reply<Rt: AsyncRuntime>() -> Failure<Rt> {
    RPCError::Network(NetworkError::from_string("the reply is of another kind than the request"))
}

impl<Rt: AsyncRuntime> Peer<Rt> {
    async fn call(&self, body: RequestBody, within: Duration) -> Result<ReplyBody, Failure<Rt>> {
        let incarnation = self.store.incarnation();
        let request = RaftRequest { incarnation, from: self.store.owner(), to: self.to, body };
        let sent = self.transport.send(self.to, &self.address, request, within);
        // The transport has the deadline too; a reply that never comes would hold up this follower for ever.
        let reply = match Rt::timeout(within, sent).await {
            Ok(Ok(reply)) => reply,
            Ok(Err(TransportError::Timeout)) | Err(_) => {
                return Err(RPCError::Network(NetworkError::from_string(TransportError::Timeout)));
            }
            Ok(Err(error @ TransportError::Unreachable(_))) => return Err(unreachable(error)),
            Ok(Err(TransportError::Refused(reason))) => return Err(self.refused(reason)),
        };
        match reply.body {
            ReplyBody::Refused(refusal) => {
                // Who recovers must choose a higher number than every one in use (protocol, 11.2).
                if let Err(error) = self.store.saw_incarnation(reply.incarnation.n).await {
                    tracing::warn!(%error, "can't note the incarnation of node {}", self.to);
                }
                Err(self.refused(refusal.to_string()))
            }
            _ if reply.incarnation != incarnation => {
                Err(self.refused(format!("it answers in incarnation {}", reply.incarnation.n)))
            }
            body => {
                self.refused.lock().unwrap_or_else(PoisonError::into_inner).take();
                Ok(body)
            }
        }
    }

    fn refused(&self, reason: String) -> Failure<Rt> {
        let mut last = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_deref() != Some(&reason) {
            tracing::warn!(node = %self.to, address = self.address, "refuses our messages: {reason}");
        }
        let failure = unreachable(&reason);
        *last = Some(reason);
        failure
    }
}

impl<Rt: AsyncRuntime> RaftNetworkV2<Types<Rt>> for Peer<Rt> {
    type SnapshotData = Arc<State>;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types<Rt>>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types<Rt>>, Failure<Rt>> {
        let body = RequestBody::Append {
            vote: request.vote,
            prev: request.prev_log_id,
            entries: request.entries,
            commit: request.leader_commit,
        };
        match self.call(body, option.soft_ttl()).await? {
            ReplyBody::Append(AppendReply::Success) => Ok(AppendEntriesResponse::Success),
            ReplyBody::Append(AppendReply::Partial(last)) => Ok(AppendEntriesResponse::PartialSuccess(last)),
            ReplyBody::Append(AppendReply::Conflict) => Ok(AppendEntriesResponse::Conflict),
            ReplyBody::Append(AppendReply::HigherVote(vote)) => Ok(AppendEntriesResponse::HigherVote(vote)),
            _ => Err(odd_reply()),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types<Rt>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<Rt>>, Failure<Rt>> {
        let body =
            RequestBody::Vote { vote: request.vote, last: request.last_log_id, transfer: request.leadership_transfer };
        match self.call(body, option.soft_ttl()).await? {
            ReplyBody::Vote { vote, last, granted } => Ok(VoteResponse::new(vote, last, granted)),
            _ => Err(odd_reply()),
        }
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types<Rt>>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types<Rt>>, Failure<Rt>> {
        let body = RequestBody::PreVote { vote: request.vote, last: request.last_log_id };
        match self.call(body, option.soft_ttl()).await? {
            ReplyBody::Vote { vote, last, granted } => Ok(VoteResponse::new(vote, last, granted)),
            _ => Err(odd_reply()),
        }
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: SnapshotOf<Types<Rt>, Arc<State>>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types<Rt>>, StreamingError<Types<Rt>>> {
        let body = RequestBody::Snapshot { vote, meta: snapshot.meta, state: snapshot.snapshot };
        match Rt::select2(cancel, self.call(body, option.soft_ttl())).await {
            openraft_rt::Select2::First(closed) => Err(closed.into()),
            openraft_rt::Select2::Second(reply) => match reply? {
                ReplyBody::Snapshot { vote } => Ok(SnapshotResponse::new(vote)),
                _ => Err(odd_reply().into()),
            },
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types<Rt>>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types<Rt>>, Failure<Rt>> {
        let body = RequestBody::Transfer {
            leader: *request.from_leader(),
            to: *request.to_node_id(),
            last: request.last_log_id().copied(),
        };
        match self.call(body, option.soft_ttl()).await? {
            ReplyBody::Transfer(Ok(())) => Ok(Ok(())),
            ReplyBody::Transfer(Err(reason)) => Err(unreachable(reason)),
            _ => Err(odd_reply()),
        }
    }
}
