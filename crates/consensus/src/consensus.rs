//! [`Log`] by openraft.

use std::collections::{BTreeMap, BTreeSet};
use std::marker::PhantomData;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use model::{Incarnation, NodeId, Proposal};
use openraft::async_runtime::WatchReceiver as _;
use openraft::errors::{
    ChangeMembershipError, ClientWriteError, Fatal, ForwardReason, InitializeError, LinearizableReadError, RaftError,
};
use openraft::raft::ClientWriteResponse;
use openraft::{AsyncRuntime, ChangeMembers, Instant as _, Raft, RaftMetrics, ReadPolicy, ServerState};
use tokio::sync::watch;

use crate::config::Config;
use crate::handler;
use crate::log::{Committed, Log, MembershipError, NodeInfo, ProposeError, ReadError, Status, TransferError, View};
use crate::machine::Machine;
use crate::network::Network;
use crate::store::{LogStore, Store};
use crate::transport::Transport;
use crate::types::{Request, Types};
use crate::wire::{RaftReply, RaftRequest};

/// Why consensus could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The timings contradict each other.
    #[error("the timings of consensus make no sense: {0}")]
    Config(String),
    /// The store was opened but can't be read.
    #[error("can't start consensus from {path}: {reason}")]
    Store {
        /// The file.
        path: String,
        /// What went wrong.
        reason: String,
    },
}

/// How long [`Log::bootstrap`] waits until the first voter leads itself.
const BOOTSTRAP: Duration = Duration::from_secs(5);

type Written<Rt> = ClientWriteResponse<Types<Rt>>;
type WriteError<Rt> = RaftError<Types<Rt>, ClientWriteError<Types<Rt>>>;
pub(crate) type RaftOf<Rt> = Raft<Types<Rt>, Machine<Rt>>;

/// A member of the group, on runtime `Rt`.
pub struct Consensus<Rt: AsyncRuntime> {
    raft: RaftOf<Rt>,
    store: Store,
    config: Config,
    view: watch::Receiver<View>,
    status: watch::Receiver<Status>,
    /// When the leader was last heard of; only a caretaker needs it.
    heard: Arc<Mutex<Rt::Instant>>,
}

impl<Rt: AsyncRuntime> Consensus<Rt> {
    /// Starts this member from its store. A new one waits: for [`Log::bootstrap`], or until a leader adds it.
    ///
    /// # Errors
    /// [`StartError`].
    pub async fn start(store: Store, config: Config, transport: Arc<dyn Transport>) -> Result<Arc<Self>, StartError> {
        let settings = config.to_openraft().map_err(|error| StartError::Config(error.to_string()))?;
        let failed = |reason: String| StartError::Store { path: store.path().display().to_string(), reason };
        let machine = Machine::restore(store.clone()).map_err(|error| failed(error.to_string()))?;
        let view = machine.watch();
        let network = Network { store: store.clone(), transport, runtime: PhantomData };
        let log = LogStore::new(store.clone());
        let raft: RaftOf<Rt> = Raft::new(store.owner().0, Arc::new(settings), network, log, machine)
            .await
            .map_err(|error| failed(error.to_string()))?;
        let (publish, status) = watch::channel(status_of::<Rt>(&raft.metrics().borrow_watched()));
        drop(Rt::spawn(follow_status::<Rt>(raft.clone(), publish)));
        let heard = Arc::new(Mutex::new(Rt::Instant::now()));
        if config.caretaker {
            drop(Rt::spawn(stand_in::<Rt>(raft.clone(), config.clone(), Arc::clone(&heard))));
        }
        Ok(Arc::new(Self { raft, store, config, view, status, heard }))
    }

    /// Appends a proposal and waits until it is applied. A leader that has not heard of a majority yet, because it was
    /// elected a moment ago, or that missed a heartbeat or two, refuses before it appends: that is tried again.
    async fn append(&self, proposal: Proposal) -> Result<Written<Rt>, WriteError<Rt>> {
        let lease = self.config.lease;
        let give_up = Rt::Instant::now() + lease;
        loop {
            let error = match self.raft.client_write(Request(proposal.clone())).await {
                Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))
                    if forward.reason == ForwardReason::LeaseExpired && Rt::Instant::now() < give_up =>
                {
                    RaftError::APIError(ClientWriteError::ForwardToLeader(forward))
                }
                result => return result,
            };
            let heard = |metrics: &RaftMetrics<Types<Rt>>| {
                metrics.state != ServerState::Leader
                    || metrics.last_quorum_acked.is_some_and(|acked| acked.elapsed() < lease)
            };
            if !self.wait(give_up - Rt::Instant::now().min(give_up), heard).await {
                return Err(error);
            }
        }
    }

    async fn change(
        &self,
        change: ChangeMembers<u64, NodeInfo>,
        retain: bool,
        within: Duration,
    ) -> Result<(), MembershipError> {
        match Rt::timeout(within, self.raft.change_membership(change, retain)).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(error)) => Err(membership_error(error)),
            Err(_) => Err(MembershipError::Unknown(format!("no majority agreed within {within:?}"))),
        }
    }

    /// Waits until the metrics are so; false after `within`, or when consensus stopped.
    async fn wait(&self, within: Duration, so: impl Fn(&RaftMetrics<Types<Rt>>) -> bool + Send + Sync) -> bool {
        let mut metrics = self.raft.metrics();
        matches!(Rt::timeout(within, metrics.wait_until(so)).await, Ok(Ok(_)))
    }
}

/// Keeps the published status current until the member is stopped.
async fn follow_status<Rt: AsyncRuntime>(raft: RaftOf<Rt>, publish: watch::Sender<Status>) {
    let mut metrics = raft.metrics();
    // The task must not keep the member alive.
    drop(raft);
    loop {
        let now = status_of::<Rt>(&metrics.borrow_and_update());
        publish.send_if_modified(|status| {
            let changed = *status != now;
            *status = now;
            changed
        });
        if metrics.changed().await.is_err() || publish.is_closed() {
            return;
        }
    }
}

/// A caretaker's elections: only when everybody else had three times their chance.
async fn stand_in<Rt: AsyncRuntime>(raft: RaftOf<Rt>, config: Config, heard: Arc<Mutex<Rt::Instant>>) {
    let silence = 3 * config.election_max();
    let metrics = raft.metrics();
    loop {
        let until = *heard.lock().unwrap_or_else(PoisonError::into_inner) + silence;
        Rt::sleep_until(until).await;
        let (voter, leads) = {
            let metrics = metrics.borrow_watched();
            if metrics.running_state.is_err() {
                return;
            }
            let voter = metrics.membership_config.membership().voter_ids().any(|id| id == metrics.id);
            (voter, metrics.state == ServerState::Leader)
        };
        let silent = {
            let mut heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            let silent = !leads && *heard + silence <= Rt::Instant::now();
            if silent || leads {
                *heard = Rt::Instant::now();
            }
            silent
        };
        if silent && voter && raft.trigger().elect(true).await.is_err() {
            return;
        }
    }
}

fn status_of<Rt: AsyncRuntime>(metrics: &RaftMetrics<Types<Rt>>) -> Status {
    let membership = metrics.membership_config.membership();
    let members: BTreeMap<NodeId, NodeInfo> =
        membership.nodes().map(|(id, info)| (NodeId(*id), info.clone())).collect();
    Status {
        id: NodeId(metrics.id),
        term: metrics.current_term,
        leader: metrics.current_leader.map(NodeId),
        is_leader: metrics.state == ServerState::Leader,
        voters: membership.voter_ids().map(NodeId).collect(),
        configurations: membership
            .get_joint_config()
            .iter()
            .map(|voters| voters.iter().map(|id| NodeId(*id)).collect())
            .collect(),
        learners: membership.learner_ids().map(NodeId).collect(),
        members,
        joint: membership.get_joint_config().len() > 1,
        last_log: metrics.last_log_index.unwrap_or(0),
        applied: metrics.last_applied.map_or(0, |id| id.index),
        failed: metrics.running_state.as_ref().err().map(ToString::to_string),
    }
}

/// What a failed membership change means to the caller.
fn membership_error<Rt: AsyncRuntime>(error: RaftError<Types<Rt>, ClientWriteError<Types<Rt>>>) -> MembershipError {
    match error {
        RaftError::APIError(ClientWriteError::ForwardToLeader(forward)) => {
            MembershipError::NotLeader { leader: forward.leader_id.map(NodeId) }
        }
        RaftError::APIError(ClientWriteError::LogEntryDiscarded(_)) => {
            MembershipError::Unknown("this node lost leadership meanwhile".into())
        }
        RaftError::APIError(ClientWriteError::ChangeMembershipError(error)) => match error {
            ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_) => {
                MembershipError::Busy
            }
            error => MembershipError::Invalid(error.to_string()),
        },
        RaftError::APIError(ClientWriteError::PreconditionFailed(_)) => MembershipError::Busy,
        RaftError::Fatal(fatal) => MembershipError::Stopped(fatal.to_string()),
    }
}

#[async_trait]
impl<Rt: AsyncRuntime> Log for Consensus<Rt> {
    async fn bootstrap(&self, info: NodeInfo) -> Result<(), MembershipError> {
        let me = self.store.owner();
        match self.raft.initialize(BTreeMap::from([(me.0, info)])).await {
            // Not allowed where there is a log: then it was done before.
            Ok(()) | Err(RaftError::APIError(InitializeError::NotAllowed(_))) => {}
            Err(RaftError::APIError(error)) => return Err(MembershipError::Invalid(error.to_string())),
            Err(RaftError::Fatal(fatal)) => return Err(MembershipError::Stopped(fatal.to_string())),
        }
        let leads_or_follows = self.wait(BOOTSTRAP, |metrics| metrics.current_leader.is_some()).await;
        leads_or_follows
            .then_some(())
            .ok_or_else(|| MembershipError::Unknown(format!("nobody led within {BOOTSTRAP:?}")))
    }

    async fn propose(&self, proposal: Proposal) -> Result<Committed, ProposeError> {
        let within = self.config.propose_timeout;
        match Rt::timeout(within, self.append(proposal)).await {
            Ok(Ok(done)) => Ok(Committed {
                applied: done.data.0?,
                index: done.log_id.index,
                term: done.log_id.committed_leader_id().term,
            }),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                Err(ProposeError::NotLeader { leader: forward.leader_id.map(NodeId) })
            }
            Ok(Err(RaftError::APIError(error))) => Err(ProposeError::Unknown(error.to_string())),
            // It may have been under way when consensus stopped.
            Ok(Err(RaftError::Fatal(fatal))) => match self.status().failed {
                Some(reason) => Err(ProposeError::Stopped(reason)),
                None => Err(ProposeError::Unknown(fatal.to_string())),
            },
            Err(_) => Err(ProposeError::Unknown(format!("no majority has confirmed it within {within:?}"))),
        }
    }

    async fn read_barrier(&self, within: Duration) -> Result<u64, ReadError> {
        match Rt::timeout(within, self.raft.ensure_linearizable(ReadPolicy::ReadIndex)).await {
            Ok(Ok(read)) => Ok(read.log_id().index),
            Ok(Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(forward)))) => {
                Err(ReadError::NotLeader { leader: forward.leader_id.map(NodeId) })
            }
            Ok(Err(RaftError::APIError(LinearizableReadError::QuorumNotEnough(_)))) | Err(_) => {
                Err(ReadError::NoQuorum(within))
            }
            Ok(Err(RaftError::Fatal(fatal))) => Err(ReadError::Stopped(fatal.to_string())),
        }
    }

    fn view(&self) -> View {
        self.view.borrow().clone()
    }

    fn watch(&self) -> watch::Receiver<View> {
        self.view.clone()
    }

    fn status(&self) -> Status {
        status_of::<Rt>(&self.raft.metrics().borrow_watched())
    }

    fn watch_status(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }

    fn quorum_age(&self) -> Option<Duration> {
        let status = self.status();
        if status.is_leader && status.voters == BTreeSet::from([status.id]) {
            // A sole voter is a majority by itself, also while there is nothing to replicate.
            return Some(Duration::ZERO);
        }
        let metrics = self.raft.metrics();
        let acked = metrics.borrow_watched().last_quorum_acked?;
        Some(acked.elapsed())
    }

    fn incarnation(&self) -> Incarnation {
        self.store.incarnation()
    }

    async fn add_learner(&self, id: NodeId, info: NodeInfo, within: Duration) -> Result<(), MembershipError> {
        let deadline = Rt::Instant::now() + within;
        let late = || MembershipError::Unknown(format!("node {id} did not get the log within {within:?}"));
        let added = match Rt::timeout(within, self.raft.add_learner(id.0, info, false)).await {
            Ok(Ok(done)) => done.log_id.index,
            Ok(Err(error)) => return Err(membership_error(error)),
            Err(_) => return Err(late()),
        };
        // It has the log when it has the entry that added it.
        let caught_up = |metrics: &RaftMetrics<Types<Rt>>| match &metrics.replication {
            Some(matched) => matched.get(&id.0).copied().flatten().is_some_and(|last| last.index >= added),
            None => true,
        };
        if !self.wait(deadline - Rt::Instant::now().min(deadline), caught_up).await {
            return Err(late());
        }
        if !self.status().is_leader {
            return Err(MembershipError::Unknown("this node lost leadership meanwhile".into()));
        }
        Ok(())
    }

    async fn set_voters(&self, voters: BTreeSet<NodeId>, within: Duration) -> Result<(), MembershipError> {
        let voters = voters.into_iter().map(|id| id.0).collect();
        self.change(ChangeMembers::ReplaceAllVoters(voters), true, within).await
    }

    async fn remove(&self, id: NodeId, within: Duration) -> Result<(), MembershipError> {
        let status = self.status();
        if !status.is_leader {
            return Err(MembershipError::NotLeader { leader: status.leader });
        }
        if id == status.id {
            return Err(MembershipError::Invalid("the leader can't remove itself; move leadership first".into()));
        }
        if status.voters.contains(&id) {
            self.change(ChangeMembers::RemoveVoters(BTreeSet::from([id.0])), false, within).await
        } else if status.learners.contains(&id) {
            self.change(ChangeMembers::RemoveNodes(BTreeSet::from([id.0])), true, within).await
        } else {
            Ok(())
        }
    }

    async fn transfer_leader(&self, to: NodeId, within: Duration) -> Result<(), TransferError> {
        let deadline = Rt::Instant::now() + within;
        let left = || deadline - Rt::Instant::now().min(deadline);
        let status = self.status();
        if !status.is_leader {
            return Err(TransferError::NotLeader { leader: status.leader });
        }
        if to == status.id {
            return Ok(());
        }
        if !status.voters.contains(&to) {
            return Err(TransferError::NotVoter(to));
        }
        // Only to one that answers and has the log: from the handover on nobody takes proposals until it leads.
        let lease = self.config.lease;
        let ready = |metrics: &RaftMetrics<Types<Rt>>| {
            let Some((replicated, heard)) = metrics.replication.as_ref().zip(metrics.heartbeat.as_ref()) else {
                return true;
            };
            let matched = replicated.get(&to.0).copied().flatten().map(|id| id.index);
            let alive = heard.get(&to.0).copied().flatten().is_some_and(|at| at.elapsed() < lease);
            alive && matched == metrics.last_log_index
        };
        if !self.wait(left(), ready).await {
            return Err(TransferError::TimedOut { to, within });
        }
        let stopped = |fatal: Fatal<Types<Rt>>| TransferError::Stopped(fatal.to_string());
        self.raft.trigger().transfer_leader(to.0).await.map_err(stopped)?;
        if self.wait(left(), |metrics| metrics.current_leader == Some(to.0)).await {
            return Ok(());
        }
        Err(TransferError::TimedOut { to, within })
    }

    async fn elect(&self) -> Result<(), TransferError> {
        self.raft.trigger().elect(true).await.map_err(|fatal| TransferError::Stopped(fatal.to_string()))
    }

    async fn snapshot(&self) -> Result<(), ReadError> {
        self.raft.trigger().snapshot().await.map_err(|fatal| ReadError::Stopped(fatal.to_string()))
    }

    async fn handle(&self, from: NodeId, request: RaftRequest) -> RaftReply {
        let body = handler::answer(&self.raft, &self.store, from, request, || {
            *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = Rt::Instant::now();
        })
        .await;
        RaftReply { incarnation: self.store.incarnation(), body }
    }

    async fn shutdown(&self) {
        if let Err(error) = self.raft.shutdown().await {
            tracing::error!(%error, "consensus did not stop cleanly");
        }
        self.store.close().await;
    }
}
