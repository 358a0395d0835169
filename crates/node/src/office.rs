//! The master's office: what a node does while it leads.
//!
//! Being Raft's leader is not permission to act. The leader *takes office* by an entry of its own term; from then on it
//! proposes in the name of that term, and every order to a node carries it. When the term is over everything that was
//! under way here is dropped, and what was proposed too late is rejected by the state machine.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use consensus::{NodeInfo, ProposeError};
use ha::Times;
use jobs::agent::{Call, Reply};
use jobs::{Runner, World};
use model::{Applied, Command, Incarnation, JobId, NodeId, Proposal, State, Timestamp, Uuid, voters};
use opcodes::{ErrorCode, Failure};
use rpc::{Envelope, JoinToken};
use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::archive;
use crate::failover::{Failover, STRICT_VOTERS};
use crate::leases::{Desk, Inbox};
use crate::member::{Member, names, now};

/// How often the master looks after what no event announces.
pub(crate) const TICK: Duration = Duration::from_millis(250);
/// How often it is looked for jobs to be archived.
const ARCHIVE: Duration = Duration::from_secs(60);
/// How long a change of members may take.
const MEMBERSHIP: Duration = Duration::from_secs(20);
/// How long a planned change of master may take.
const TRANSFER: Duration = Duration::from_secs(5);

/// One term in office.
pub struct Office {
    pub(crate) member: Arc<Member>,
    incarnation: Incarnation,
    pub(crate) term: u64,
    /// The office is about to be given up: the address is not taken again. Locked while it is brought up, so that it can't
    /// come up behind the back of whoever takes it off.
    pub(crate) leaving: Mutex<bool>,
    /// Where guards get their nodes' leases.
    pub(crate) desk: Arc<Desk>,
    /// What becomes of lives and guests that end.
    pub(crate) failover: Failover,
    /// How long the entry took by which it took office.
    pub(crate) commit: Duration,
}

/// Takes office whenever this node leads, and leaves it when it does not any more.
pub async fn lead(member: Arc<Member>) {
    let mut statuses = member.log.watch_status();
    // A daemon that was killed as master may have left the address behind.
    drop_address(&member).await;
    loop {
        let (leads, term) = {
            let status = statuses.borrow_and_update();
            (status.is_leader, status.term)
        };
        if leads {
            let closed = tokio::select! {
                () = serve(Arc::clone(&member), term) => false,
                ended = statuses.wait_for(|status| !status.is_leader || status.term != term) => ended.is_err(),
            };
            drop_address(&member).await;
            if closed {
                return;
            }
        } else if statuses.changed().await.is_err() {
            return;
        }
    }
}

/// Takes the cluster's address off this node, if it is on it.
async fn drop_address(member: &Member) {
    let state = member.state();
    if let Some(cluster) = &state.cluster
        && let Err(failure) = member.agent.address.down(cluster.address, cluster.netmask, &cluster.netdev).await
    {
        tracing::error!(failure = failure.text, "the cluster's address could not be taken off this node");
    }
}

/// The end of a term, however it comes.
struct Term<'a>(&'a Member);

impl Drop for Term<'_> {
    fn drop(&mut self) {
        self.0.office.send_replace(None);
    }
}

/// One term, from taking office to its end, which comes by being dropped.
async fn serve(member: Arc<Member>, term: u64) {
    let Some((office, inbox)) = take(&member, term).await else {
        // Leads, but may not be master, or there is no cluster: a caretaker.
        tokio::time::sleep(TICK).await;
        return;
    };
    tracing::info!(term, "in office as master");
    member.office.send_replace(Some(Arc::clone(&office)));
    let _term = Term(&member);
    let runner = Runner::new(Arc::clone(&office) as Arc<dyn World>);
    // In tasks of their own: leases and takeovers wait for nothing else that the master does.
    let mut urgent = JoinSet::new();
    let (sentences, condemned) = mpsc::unbounded_channel();
    urgent.spawn(Arc::clone(&office.desk).run(Arc::clone(&member), inbox, sentences));
    urgent.spawn(Arc::clone(&office).mind_lives(condemned));
    let bugs = async {
        while let Some(ended) = urgent.join_next().await {
            if let Err(error) = ended
                && error.is_panic()
            {
                std::panic::resume_unwind(error.into_panic());
            }
        }
    };
    tokio::join!(
        runner.run(),
        office.keep_address(),
        office.keep_members(),
        office.keep_queue(),
        office.keep_armed(),
        office.keep_rooms(),
        office.keep_watch(),
        office.check_leases(),
        crate::recovery::welcome::welcome(&member),
        bugs
    );
}

async fn take(member: &Arc<Member>, term: u64) -> Option<(Arc<Office>, Inbox)> {
    if let Err(error) = member.log.read_barrier(Duration::from_secs(2)).await {
        tracing::debug!(%error, "not in office yet");
        return None;
    }
    let state = member.state();
    let cluster = state.cluster.as_ref()?;
    if !state.nodes.get(&member.id)?.may_be_master() {
        let status = member.log.status();
        let may = |id: &&NodeId| state.nodes.get(id).is_some_and(|node| node.may_be_master());
        for candidate in status.voters.iter().filter(may) {
            if member.log.transfer_leader(*candidate, TRANSFER).await.is_ok() {
                return None;
            }
        }
        return None;
    }
    let incarnation = state.incarnation;
    let commands = vec![Command::TakeOffice { node: member.id, term }];
    let proposal = Proposal { incarnation, office: None, at: now(), commands };
    let begun = Instant::now();
    match member.log.propose(proposal).await {
        Ok(_) => {}
        // A restart of the daemon within one term finds itself in office already.
        Err(_) if member.state().office == Some(model::Office { node: member.id, term }) => {}
        Err(error) => {
            tracing::info!(%error, term, "could not take office");
            return None;
        }
    }
    let commit = begun.elapsed();
    let times = Times::for_lease(Duration::from_millis(u64::from(cluster.lease_ms)));
    let (desk, inbox) = Desk::new(times, incarnation, term);
    let office = Office {
        member: Arc::clone(member),
        incarnation,
        term,
        leaving: Mutex::default(),
        desk: Arc::new(desk),
        failover: Failover::default(),
        commit,
    };
    Some((Arc::new(office), inbox))
}

/// Gives up leadership in favour of another node. Called on the node that leads.
pub async fn hand_over(member: &Arc<Member>, to: NodeId) -> Result<(), Failure> {
    let Some(office) = member.office.borrow().clone() else {
        return Err(Failure::no_master("this node is not the master any more; try again"));
    };
    let state = member.state();
    let Some(node) = state.nodes.get(&to) else {
        return Err(Failure::unknown("Node", to));
    };
    if !node.may_be_master() {
        return Err(Failure::refused(ErrorCode::WrongState, format!("Node '{}' is not a master candidate", node.name)));
    }
    *office.leaving.lock().await = true;
    let outcome = office.step_down(to).await;
    if let Err(failure) = &outcome {
        tracing::warn!(failure = failure.text, "the office was not handed over");
        *office.leaving.lock().await = false;
    }
    outcome
}

impl Office {
    pub(crate) fn log(&self) -> &dyn consensus::Log {
        &*self.member.log
    }

    async fn step_down(&self, to: NodeId) -> Result<(), Failure> {
        // The address goes first: at no time two nodes have it.
        let state = self.member.state();
        if state.address_owner == Some(self.member.id) {
            if let Some(cluster) = &state.cluster {
                self.member.agent.address.down(cluster.address, cluster.netmask, &cluster.netdev).await?;
            }
            self.propose(vec![Command::SetAddressOwner(None)]).await.map_err(|error| match error {
                jobs::ProposeError::Rejected(rejection) => rejection.into(),
                jobs::ProposeError::Interrupted => Failure::no_master("the office ended while it was handed over"),
            })?;
        }
        let failed = |error: &dyn std::error::Error| Failure::failed(crate::chain(error));
        if !self.log().status().voters.contains(&to) {
            let both = BTreeSet::from([self.member.id, to]);
            let wanted = voters(&state, &both, to);
            // With a single vote both have it for the moment of the change; the new master puts that right.
            let wanted = if wanted.len() < STRICT_VOTERS { both } else { wanted };
            if wanted.len() < STRICT_VOTERS {
                self.disarm_all().await?;
            }
            self.log().set_voters(wanted, MEMBERSHIP).await.map_err(|error| failed(&error))?;
        }
        self.log().transfer_leader(to, TRANSFER).await.map_err(|error| failed(&error))
    }

    /// Ends the cluster, which has this node only.
    pub async fn destroy(&self) -> Result<(), Failure> {
        let state = self.member.state();
        if let Some(job) = state.jobs.values().find(|job| !job.status.is_final()) {
            return Err(Failure::refused(
                ErrorCode::WrongState,
                format!("Job {} ({}) has not ended yet", job.id, job.ops.first().map_or("", |op| op.summary.as_str())),
            ));
        }
        // What will be refused is refused before anything is touched.
        State::clone(&state).apply(&self.proposal(vec![Command::Destroy])).map_err(Failure::from)?;
        let Some(cluster) = &state.cluster else { return Err(Failure::not_a_cluster()) };
        *self.leaving.lock().await = true;
        let outcome = async {
            // The address first: a daemon that dies behind the destruction would not know of it any more.
            self.member.agent.address.down(cluster.address, cluster.netmask, &cluster.netdev).await?;
            self.submit(vec![Command::Destroy]).await
        };
        if let Err(failure) = outcome.await {
            *self.leaving.lock().await = false;
            return Err(failure);
        }
        self.member.tell_to_leave();
        Ok(())
    }

    /// Keeps the log's members and voters as the state says they should be.
    async fn keep_members(&self) {
        let mut views = self.log().watch();
        let mut statuses = self.log().watch_status();
        loop {
            if !*self.leaving.lock().await {
                self.arrange_members().await;
            }
            tokio::select! {
                _ = views.changed() => {}
                _ = statuses.changed() => {}
                () = tokio::time::sleep(TICK * 4) => {}
            }
        }
    }

    async fn arrange_members(&self) {
        let state = self.member.state();
        let status = self.log().status();
        let wanted = wanted_voters(&state, &status, self.member.id);
        if wanted != status.voters {
            if let Err(why) = self.may_change_voters(&state, &wanted).await {
                tracing::info!(why, "voters not changed yet");
                return;
            }
            match self.log().set_voters(wanted.clone(), MEMBERSHIP).await {
                Ok(()) => tracing::info!(voters = ?names(&state, &wanted), "voters changed"),
                Err(error) => tracing::info!(%error, "voters not changed yet"),
            }
            return;
        }
        for gone in status.members.keys().filter(|id| !state.nodes.contains_key(id)) {
            match self.log().remove(*gone, MEMBERSHIP).await {
                Ok(()) => self.member.client.forget(gone.0),
                Err(error) => tracing::info!(%error, node = %gone, "a removed node is still a member of the log"),
            }
        }
    }

    /// Whether the voters may be changed to these. With fewer than three nobody may be declared dead any more, so the nodes
    /// are disarmed first (protocol, 7.3); and what older masters granted has to be over, because the new voters don't
    /// remember it (L6).
    async fn may_change_voters(&self, state: &State, wanted: &BTreeSet<NodeId>) -> Result<(), String> {
        if !state.nodes.values().any(|node| node.armed) {
            return Ok(());
        }
        if wanted.len() < STRICT_VOTERS {
            return self.disarm_all().await.map_err(|failure| failure.text);
        }
        match self.desk.is_settled() {
            true => Ok(()),
            false => Err("leases of an older master may not have ended yet".into()),
        }
    }

    /// Takes old jobs out of the queue, which would grow for ever.
    async fn keep_queue(&self) {
        loop {
            let old = archive::due(&self.member.state(), now());
            if !old.is_empty() {
                tracing::info!(jobs = old.len(), "archiving");
                let commands = old.into_iter().map(|job| Command::ArchiveJob { job }).collect();
                if let Err(failure) = self.submit(commands).await {
                    // Somebody else has archived one of them, or the office ends. The next look knows.
                    tracing::info!(failure = failure.text, "not archived");
                }
            }
            tokio::time::sleep(ARCHIVE).await;
        }
    }

    fn order(&self, call: Call, job: Option<JobId>) -> Envelope<Call> {
        Envelope { inc: self.incarnation, term: self.term, job: job.map(|job| job.0), payload: call }
    }

    pub(crate) fn proposal(&self, commands: Vec<Command>) -> Proposal {
        Proposal { incarnation: self.incarnation, office: Some(self.term), at: now(), commands }
    }

    /// Changes the state in the name of this office, and tells an outcome that is not known from a refusal.
    pub async fn submit(&self, commands: Vec<Command>) -> Result<Vec<Applied>, Failure> {
        match self.log().propose(self.proposal(commands)).await {
            Ok(committed) => Ok(committed.applied),
            Err(ProposeError::Rejected(rejection)) => Err(rejection.into()),
            // It was not even appended.
            Err(ProposeError::NotLeader { .. }) => Err(crate::requests::no_master(&self.member)),
            Err(error) => Err(Failure::no_master(error.to_string())),
        }
    }

    pub(crate) async fn propose_now(&self, commands: Vec<Command>) -> Result<Vec<Applied>, jobs::ProposeError> {
        match self.log().propose(self.proposal(commands)).await {
            Ok(committed) => Ok(committed.applied),
            Err(ProposeError::Rejected(rejection)) => Err(jobs::ProposeError::Rejected(rejection)),
            Err(error) => {
                tracing::info!(%error, "a proposal has no known outcome");
                Err(jobs::ProposeError::Interrupted)
            }
        }
    }

    /// Asks a node something that belongs to no job.
    pub async fn ask(&self, node: NodeId, call: Call, within: Duration) -> Result<Reply, jobs::CallError> {
        match self.member.address_of(node) {
            Some(address) => self.member.ask(node, address, self.order(call, None), within).await,
            None => Err(jobs::CallError::Unreachable("it is no longer in the cluster".into())),
        }
    }
}

/// Who should vote, of those that are members of the log already: a node that is only about to join counts for nothing, or
/// the number of votes would be even until it has.
fn wanted_voters(state: &State, status: &consensus::Status, master: NodeId) -> BTreeSet<NodeId> {
    if state.nodes.keys().all(|id| status.members.contains_key(id)) {
        return voters(state, &status.voters, master);
    }
    let mut members = state.clone();
    members.nodes.retain(|id, _| status.members.contains_key(id));
    voters(&members, &status.voters, master)
}

/// A command's name for fault points.
fn command_name(command: &Command) -> &'static str {
    match command {
        Command::Prepare { .. } => "prepare",
        Command::Handover { .. } => "handover",
        Command::Cancel { .. } => "cancel",
        Command::Own { .. } => "own",
        Command::Disown { .. } => "disown",
        Command::RecordJob { .. } => "record",
        _ => "other",
    }
}

#[async_trait]
impl World for Office {
    fn state(&self) -> Arc<State> {
        self.member.state()
    }

    async fn changed(&self, seen: &Arc<State>) -> Arc<State> {
        let mut views = self.log().watch();
        loop {
            let state = Arc::clone(&views.borrow_and_update().state);
            if !Arc::ptr_eq(&state, seen) {
                return state;
            }
            drop(state);
            if views.changed().await.is_err() {
                // The log is closed: nothing will change any more, and the office is about to be dropped.
                std::future::pending::<()>().await;
            }
        }
    }

    async fn propose(&self, commands: Vec<Command>) -> Result<Vec<Applied>, jobs::ProposeError> {
        let folder = self.member.config.fault_points.as_ref();
        let name = commands.first().map_or("nothing", command_name);
        crate::fault::point(folder, || format!("master.{name}.before")).await;
        let outcome = self.propose_now(commands).await;
        crate::fault::point(folder, || format!("master.{name}.after")).await;
        outcome
    }

    async fn call(&self, node: NodeId, call: Call, job: JobId, deadline: Duration) -> Result<Reply, jobs::CallError> {
        let folder = self.member.config.fault_points.as_ref();
        let name = call.name();
        crate::fault::point(folder, || format!("master.{name}.before")).await;
        let outcome = match self.member.address_of(node) {
            Some(address) => self.member.ask(node, address, self.order(call, Some(job)), deadline).await,
            None => Err(jobs::CallError::Unreachable("it is no longer in the cluster".into())),
        };
        crate::fault::point(folder, || format!("master.{name}.after")).await;
        outcome
    }

    async fn enrol(&self, node: NodeId) -> Result<(), String> {
        let Some(address) = self.member.address_of(node) else {
            return Err("it is not in the cluster".into());
        };
        let info = NodeInfo { address: address.to_string() };
        self.log().add_learner(node, info, MEMBERSHIP).await.map_err(|error| crate::chain(&error))
    }

    async fn expel(&self, node: NodeId, address: Ipv4Addr) -> Result<Option<String>, String> {
        let mut statuses = self.log().watch_status();
        // `keep_members` takes it out, because the state does not have it any more.
        let gone = statuses.wait_for(|status| !status.members.contains_key(&node));
        match tokio::time::timeout(MEMBERSHIP, gone).await {
            Ok(Ok(_)) => {}
            Ok(Err(_)) => return Err("the log was closed".into()),
            Err(_) => return Err(format!("it is still a member after {} s", MEMBERSHIP.as_secs())),
        }
        let address = SocketAddr::from((address, self.member.config.node_port));
        match self.member.ask(node, address, self.order(Call::Leave, None), Duration::from_secs(5)).await {
            Ok(_) => Ok(None),
            Err(jobs::CallError::Failed(failure)) => Ok(Some(failure.text)),
            Err(jobs::CallError::Unreachable(why)) => Ok(Some(why)),
            Err(jobs::CallError::Deposed) => Ok(Some("it obeys another master".into())),
        }
    }

    async fn resolve(&self, name: &str) -> Result<Ipv4Addr, String> {
        crate::founding::resolve(name).await
    }

    fn applied_index(&self) -> u64 {
        self.log().view().index
    }

    fn conflicts(&self) -> Vec<String> {
        self.member.conflicts()
    }

    fn check_certificates(&self) -> Vec<String> {
        let state = self.member.state();
        let Some(cluster) = &state.cluster else { return Vec::new() };
        match rpc::ClusterCa::from_pem(&cluster.ca_key) {
            Ok(ca) if ca.fingerprint() == self.member.identity.ca_fingerprint() => Vec::new(),
            Ok(_) => vec![format!(
                "the certificate of node '{}' is of another authority than the cluster's",
                self.member.name()
            )],
            Err(error) => vec![format!("the cluster's certificate authority can't be used: {}", crate::chain(&error))],
        }
    }

    async fn answers(&self, address: Ipv4Addr, port: u16) -> bool {
        let connect = tokio::net::TcpStream::connect((address, port));
        matches!(tokio::time::timeout(crate::founding::PROBE, connect).await, Ok(Ok(_)))
    }

    fn new_token(&self) -> Result<(String, String), String> {
        let token = JoinToken::generate(self.member.identity.ca_fingerprint()).map_err(|error| crate::chain(&error))?;
        Ok((token.to_string(), token.secret.digest().to_string()))
    }

    fn now(&self) -> Timestamp {
        now()
    }

    async fn sleep(&self, duration: Duration) {
        tokio::time::sleep(duration).await;
    }

    fn new_uuid(&self) -> Uuid {
        Uuid::new_v4()
    }
}
