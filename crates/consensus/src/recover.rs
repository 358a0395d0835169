//! Forced recovery: one member goes on alone, in a new incarnation of the cluster (protocol, section 11).

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::Path;
use std::sync::Arc;

use model::{Command, ForkPoint, Incarnation, NodeId, Proposal, State, Timestamp, Uuid};
use openraft::EntryPayload;
use openraft::entry::RaftEntry as _;
use openraft::vote::RaftLeaderId as _;

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

/// Makes node `me` the only voter of a new incarnation, offline: its daemon must not run. `id` is the random identity of
/// the new incarnation, `at` the time now. The whole local log counts from now on, entries included that were never
/// committed. The caller has made sure that the others are off.
///
/// The next start of the daemon leads alone within some tens of milliseconds.
///
/// # Errors
/// [`RecoverError`]; then nothing was changed.
pub async fn recover(dir: &Path, me: NodeId, id: Uuid, at: Timestamp) -> Result<Recovered, RecoverError> {
    recover_store(&Store::open(dir, me, None)?, id, at).await
}

/// As [`recover`], on a store that is open already; closes it.
pub(crate) async fn recover_store(store: &Store, id: Uuid, at: Timestamp) -> Result<Recovered, RecoverError> {
    let failed = |source| RecoverError::Io { path: store.path().display().to_string(), source };
    let plan = plan(store, id, at).map_err(failed)?.ok_or(RecoverError::Empty);
    let result = match plan {
        // One transaction: all of them wait together, behind this one call.
        Ok((recovered, op)) => store.write(op).await.map(|()| recovered).map_err(failed),
        Err(empty) => Err(empty),
    };
    store.close().await;
    result
}

/// What to write. `None` if there is no cluster in the store.
fn plan(store: &Store, id: Uuid, at: Timestamp) -> io::Result<Option<(Recovered, Op)>> {
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
    let found = Command::Found {
        incarnation: recovered.incarnation,
        fork_point: recovered.fork_point,
        node: Some(me),
        off: Vec::new(),
    };
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
