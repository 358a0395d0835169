//! Answers the messages of other members.

use model::{Incarnation, NodeId};
use openraft::AsyncRuntime;
use openraft::raft::{AppendEntriesRequest, AppendEntriesResponse, TransferLeaderRequest, VoteRequest};
use openraft::storage::Snapshot;

use crate::consensus::RaftOf;
use crate::store::Store;
use crate::types::Types;
use crate::wire::{AppendReply, RaftRequest, Refusal, ReplyBody, RequestBody};

/// `heard` is called when a leader was obeyed.
pub(crate) async fn answer<Rt: AsyncRuntime>(
    raft: &RaftOf<Rt>,
    store: &Store,
    from: NodeId,
    request: RaftRequest,
    heard: impl Fn() + Send,
) -> ReplyBody {
    if let Err(refusal) = admit(store, from, &request).await {
        tracing::debug!(%from, kind = request.kind(), "message refused: {refusal}");
        return ReplyBody::Refused(refusal);
    }
    match deliver(raft, request.body, heard).await {
        Ok(reply) => reply,
        Err(stopped) => ReplyBody::Refused(Refusal::Stopped(stopped)),
    }
}

/// Whether a message is for us and of our incarnation. One that belongs to no cluster yet belongs to the first that
/// speaks to it: the sender has been authenticated as a member.
async fn admit(store: &Store, from: NodeId, request: &RaftRequest) -> Result<(), Refusal> {
    if request.to != store.owner() {
        return Err(Refusal::NotMe { me: store.owner(), to: request.to });
    }
    if request.from != from {
        return Err(Refusal::Impostor { said: request.from, from });
    }
    let (mine, theirs) = (store.incarnation(), request.incarnation);
    if mine == theirs {
        return Ok(());
    }
    let stopped = |error: std::io::Error| Refusal::Stopped(error.to_string());
    if mine == Incarnation::default() {
        return store.set_incarnation(theirs).await.map_err(stopped);
    }
    store.saw_incarnation(theirs.n).await.map_err(stopped)?;
    Err(Refusal::Incarnation { mine, theirs })
}

async fn deliver<Rt: AsyncRuntime>(
    raft: &RaftOf<Rt>,
    body: RequestBody,
    heard: impl Fn() + Send,
) -> Result<ReplyBody, String> {
    match body {
        RequestBody::Append { vote, prev, entries, commit } => {
            let request = AppendEntriesRequest::<Types<Rt>> { vote, prev_log_id: prev, entries, leader_commit: commit };
            let reply = match raft.append_entries(request).await.map_err(|error| error.to_string())? {
                AppendEntriesResponse::Success => AppendReply::Success,
                AppendEntriesResponse::PartialSuccess(last) => AppendReply::Partial(last),
                AppendEntriesResponse::Conflict => AppendReply::Conflict,
                AppendEntriesResponse::HigherVote(vote) => AppendReply::HigherVote(vote),
            };
            if !matches!(reply, AppendReply::HigherVote(_)) {
                heard();
            }
            Ok(ReplyBody::Append(reply))
        }
        RequestBody::Vote { vote, last, transfer } => {
            let mut request = VoteRequest::<Types<Rt>>::new(vote, last);
            request.leadership_transfer = transfer;
            let reply = raft.vote(request).await.map_err(|error| error.to_string())?;
            if reply.vote_granted {
                heard();
            }
            Ok(ReplyBody::Vote { vote: reply.vote, last: reply.last_log_id, granted: reply.vote_granted })
        }
        RequestBody::PreVote { vote, last } => {
            let request = VoteRequest::<Types<Rt>>::new(vote, last);
            let reply = raft.pre_vote(request).await.map_err(|error| error.to_string())?;
            Ok(ReplyBody::Vote { vote: reply.vote, last: reply.last_log_id, granted: reply.vote_granted })
        }
        RequestBody::Snapshot { vote, meta, state } => {
            let snapshot = Snapshot { meta, snapshot: state };
            let reply = raft.install_full_snapshot(vote, snapshot).await.map_err(|error| error.to_string())?;
            heard();
            Ok(ReplyBody::Snapshot { vote: reply.vote })
        }
        RequestBody::Transfer { leader, to, last } => {
            let request = TransferLeaderRequest::<Types<Rt>>::new(leader, to, last);
            let reply = raft.handle_transfer_leader(request).await.map_err(|error| error.to_string())?;
            Ok(ReplyBody::Transfer(reply.map_err(|error| error.to_string())))
        }
    }
}
