//! Forced recovery: one member goes on alone, in a new incarnation of the cluster (protocol, section 11).

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use model::{Command, ForkPoint, Incarnation, NodeId, Proposal, State, Timestamp, Uuid};
use openraft::EntryPayload;
use openraft::entry::RaftEntry as _;
use openraft::vote::RaftLeaderId as _;
use serde::Serialize;

use crate::log::NodeInfo;
use crate::store::{Op, Store, StoreError};
use crate::types::{Entry, LeaderId, LogId, Membership, Request, StoredMembership, Vote};

/// What forced recovery has done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recovered {
    /// The new incarnation.
    pub incarnation: Incarnation,
    /// The one before.
    pub previous: Incarnation,
    /// The last entry of the old incarnation; this copy of the log is adopted whole up to it.
    pub fork_point: ForkPoint,
    /// The other members of the old incarnation, voters and learners: whoever of them returns is refused.
    pub others: BTreeMap<NodeId, NodeInfo>,
}

/// What a store holds, as its own node sees it.
#[derive(Clone, Debug)]
pub struct Held {
    /// The incarnation of the cluster that this node speaks in.
    pub incarnation: Incarnation,
    /// The highest number of an incarnation of which it has heard.
    pub highest_seen: u64,
    /// The state after the whole log, entries included that may never have been committed.
    pub state: State,
    /// Who votes.
    pub voters: BTreeSet<NodeId>,
}

/// An entry of an older incarnation's log that the newer one does not have.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Surplus {
    /// Its place in the log.
    pub index: u64,
    /// Its Raft term.
    pub term: u64,
    /// When it was proposed.
    pub at: Timestamp,
    /// What it asked for.
    pub commands: Vec<Command>,
}

/// Why forced recovery was not done. The store is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The store can't be opened. A running daemon holds it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// There is nothing to go on with.
    #[error("this node holds no copy of a cluster; there is nothing to recover")]
    Empty,
    /// Reading or writing failed.
    #[error("can't recover from {path}", path = .path)]
    Io {
        /// The file.
        path: String,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// Makes node `me` the only voter of a new incarnation, offline: no log is open on its store. `id` is the random identity of
/// the new incarnation, `at` the time now. The whole local log counts from now on, entries included that were never
/// committed. The caller has made sure that the others are off: `off` are those that an operator asserts it of.
///
/// The next start of the log leads alone within some tens of milliseconds.
///
/// # Errors
/// [`RecoverError`]; then nothing was changed.
pub async fn recover(
    dir: &Path,
    me: NodeId,
    id: Uuid,
    off: Vec<NodeId>,
    at: Timestamp,
) -> Result<Recovered, RecoverError> {
    let store = Store::open(dir, me, None)?;
    let result = recover_store(&store, id, off, at).await;
    store.close().await;
    result
}

async fn recover_store(store: &Store, id: Uuid, off: Vec<NodeId>, at: Timestamp) -> Result<Recovered, RecoverError> {
    let failed = failed_at(store);
    let (recovered, op) = plan(store, id, off, at).map_err(&failed)?.ok_or(RecoverError::Empty)?;
    // One transaction: all of them wait together, behind this one call.
    store.write(op).await.map_err(failed)?;
    Ok(recovered)
}

/// What a store holds.
///
/// # Errors
/// [`RecoverError::Io`].
pub fn held(store: &Store) -> Result<Held, RecoverError> {
    let read = || -> io::Result<Held> {
        let saved = store.read_snapshot()?.unwrap_or_default();
        let entries = store.entries(saved.last.map_or(0, |last| last.index + 1)..)?;
        let (state, membership) = replay(saved.state, saved.membership, &entries);
        let voters = membership.membership().voter_ids().map(NodeId).collect();
        let (incarnation, highest_seen) = (store.incarnation(), store.highest_incarnation());
        Ok(Held { incarnation, highest_seen, state, voters })
    };
    read().map_err(failed_at(store))
}

/// Empties the store of node `me`, offline, so that it can be given the log of the newer incarnation `into`, which its own
/// one is an ancestor of: from now on it listens to members of that one only. The store as it was is kept in the file
/// `keep`. Returns the entries that come after `fork_point`, the end of what both have.
///
/// # Errors
/// [`RecoverError`]; then the store is as it was.
pub async fn discard(
    dir: &Path,
    me: NodeId,
    into: Incarnation,
    fork_point: ForkPoint,
    keep: &Path,
) -> Result<Vec<Surplus>, RecoverError> {
    let store = Store::open(dir, me, None)?;
    let result = discard_store(&store, into, fork_point, keep).await;
    store.close().await;
    result
}

async fn discard_store(
    store: &Store,
    into: Incarnation,
    fork_point: ForkPoint,
    keep: &Path,
) -> Result<Vec<Surplus>, RecoverError> {
    let surplus = surplus(store, fork_point).map_err(failed_at(store))?;
    let copy = || {
        std::fs::copy(store.path(), keep)?;
        File::open(keep)?.sync_all()?;
        keep.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
    };
    copy().map_err(|source| RecoverError::Io { path: keep.display().to_string(), source })?;
    store.write(Op::Discard(into)).await.map_err(failed_at(store))?;
    Ok(surplus)
}

fn surplus(store: &Store, fork_point: ForkPoint) -> io::Result<Vec<Surplus>> {
    let beyond = |id: LogId| id.index > fork_point.index || id.committed_leader_id().term > fork_point.term;
    let entries = store.entries(..)?.into_iter().filter(|entry| beyond(entry.log_id));
    let surplus = entries.filter_map(|entry| match entry.payload {
        EntryPayload::Normal(Request(proposal)) => Some(Surplus {
            index: entry.log_id.index,
            term: entry.log_id.committed_leader_id().term,
            at: proposal.at,
            commands: proposal.commands,
        }),
        EntryPayload::Blank | EntryPayload::Membership(_) => None,
    });
    Ok(surplus.collect())
}

fn failed_at(store: &Store) -> impl Fn(io::Error) -> RecoverError {
    let path = store.path().display().to_string();
    move |source| RecoverError::Io { path: path.clone(), source }
}

/// What to write. `None` if there is no cluster in the store.
fn plan(store: &Store, id: Uuid, off: Vec<NodeId>, at: Timestamp) -> io::Result<Option<(Recovered, Op)>> {
    let me = store.owner();
    let saved = store.read_snapshot()?.unwrap_or_default();
    let entries = store.entries(saved.last.map_or(0, |last| last.index + 1)..)?;
    let Some(last) = entries.last().map(|entry| entry.log_id).max(saved.last) else {
        return Ok(None);
    };
    let (state, membership) = replay(saved.state, saved.membership, &entries);
    let mut others: BTreeMap<NodeId, NodeInfo> =
        membership.membership().nodes().map(|(id, info)| (NodeId(*id), info.clone())).collect();
    let info = others.remove(&me).unwrap_or_default();

    let highest = store.highest_incarnation().max(state.incarnation.n);
    let recovered = Recovered {
        incarnation: Incarnation { n: highest + 1, id },
        previous: state.incarnation,
        fork_point: ForkPoint { term: last.committed_leader_id().term, index: last.index },
        others,
    };
    let found =
        Command::Found { incarnation: recovered.incarnation, fork_point: recovered.fork_point, node: Some(me), off };
    let proposal = Proposal { incarnation: state.incarnation, office: None, at, commands: vec![found] };

    // As if this node had been elected once more, by itself, and had appended these two entries.
    let term = last.committed_leader_id().term.max(store.vote().map_or(0, |vote| vote.leader_id.term)) + 1;
    let leader = LeaderId::new(term, me.0);
    let next = |step| LogId::new(leader.to_committed(), last.index + step);
    let alone =
        Membership::new(vec![BTreeSet::from([me.0])], BTreeMap::from([(me.0, info)])).map_err(io::Error::other)?;
    let entries =
        vec![Entry::new_membership(next(1), alone), Entry::new(next(2), EntryPayload::Normal(Request(proposal)))];
    let op =
        Op::Recover { entries, vote: Vote { leader_id: leader, committed: true }, incarnation: recovered.incarnation };
    Ok(Some((recovered, op)))
}

/// The state and the members at the end of the log.
fn replay(state: Arc<State>, membership: StoredMembership, entries: &[Entry]) -> (State, StoredMembership) {
    let mut state = Arc::unwrap_or_clone(state);
    let mut membership = membership;
    for entry in entries {
        match &entry.payload {
            EntryPayload::Blank => {}
            EntryPayload::Normal(request) => {
                // A rejected one changed nothing then, and changes nothing now.
                let _ = state.apply(&request.0);
            }
            EntryPayload::Membership(new) => membership = StoredMembership::new(Some(entry.log_id), new.clone()),
        }
    }
    (state, membership)
}
