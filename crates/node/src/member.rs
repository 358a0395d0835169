//! A node that is part of a cluster: its place in the log, its port, its agent.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use consensus::Log;
use ha::message::{Confirm, Fence, Renew};
use jobs::agent::{Call, Reply};
use model::{Applied, Command, Incarnation, Life, NodeId, NodeLife, Proposal, RunId, State, Timestamp};
use opcodes::wire::Request;
use opcodes::{ErrorCode, Failure};
use rpc::{CallError, Client, Envelope, Fault, FaultKind, Gate, Identity, Lane, PeerIdentity, Upgrade};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;

use crate::agent::Agent;
use crate::authority::{self, Answer, Asked};
use crate::clock::boottime;
use crate::config::Config;
use crate::failover::Ended;
use crate::guard::LEASE_PATH;
use crate::home::Home;
use crate::leases::{CONFIRM_PATH, FENCE_PATH, Voting, runs_of};
use crate::migration::{self, Shipment};
use crate::office::Office;
use crate::recovery::greeting::{self, Greeting, Relation};
use crate::transport::RAFT_PATH;

/// Paths on the port between nodes.
const AGENT_PATH: &str = "/agent";
const REQUEST_PATH: &str = "/request";
pub(crate) const LIFE_PATH: &str = "/life";
pub(crate) const ENDED_PATH: &str = "/ended";
const HANDOVER_PATH: &str = "/handover";
const CONSOLE_PATH: &str = "/console";
const PROPOSE_PATH: &str = "/propose";
const READ_PATH: &str = "/read";

/// How long a console may take to open.
const OPEN: Duration = Duration::from_secs(5);
/// How long this node waits for the entry that gives it a run.
const GIVEN: Duration = Duration::from_secs(10);
/// How long this node waits for an entry of the log that it is asked about. Whoever asks gives up before.
const CATCH_UP: Duration = Duration::from_secs(60);

/// A request that another node passes on to the master.
#[derive(Debug, Serialize, Deserialize)]
struct Forwarded {
    request: Request,
    user: String,
}

/// A node's report that it was booted.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Booted {
    pub boot: String,
    pub previous: Life,
    pub runs: Vec<RunId>,
}

/// A node in a cluster.
pub struct Member {
    pub id: NodeId,
    pub config: Arc<Config>,
    home: Arc<Home>,
    pub identity: Arc<Identity>,
    pub log: Arc<dyn Log>,
    pub client: Client,
    pub agent: Arc<Agent>,
    /// What the master does here, while this node is in office.
    pub office: watch::Sender<Option<Arc<Office>>>,
    /// This process as a voter about leases.
    pub(crate) voting: Voting,
    gate: Mutex<Gate>,
    /// Set when this node has to forget the cluster.
    leave: watch::Sender<bool>,
    /// Set when a member of a newer incarnation of the cluster was met.
    overtaken: watch::Sender<Option<(NodeId, Greeting)>>,
    /// Names of nodes that went apart from this one by a forced recovery of their own: an operator decides who stays.
    apart: Mutex<BTreeSet<NodeId>>,
}

impl Member {
    pub fn new(
        config: Arc<Config>,
        home: Arc<Home>,
        identity: Arc<Identity>,
        log: Arc<dyn Log>,
        client: Client,
        agent: Arc<Agent>,
    ) -> Arc<Self> {
        Arc::new(Self {
            id: NodeId(identity.node_id()),
            config,
            home,
            identity,
            log,
            client,
            agent,
            office: watch::Sender::new(None),
            voting: Voting::new(boottime()),
            gate: Mutex::default(),
            leave: watch::Sender::new(false),
            overtaken: watch::Sender::new(None),
            apart: Mutex::default(),
        })
    }

    pub fn state(&self) -> Arc<State> {
        self.log.state()
    }

    /// This node's life, if the newest one in the state is of this boot and was not declared dead.
    pub fn life(&self) -> Option<NodeLife> {
        let state = self.state();
        let of_this_boot = state.nodes.get(&self.id).is_some_and(|node| node.boot == self.config.boot);
        state.live(self.id).filter(|_| of_this_boot)
    }

    /// This node's name, as the cluster knows it.
    pub fn name(&self) -> String {
        self.state().node_name(self.id)
    }

    /// Where a node's port is.
    pub fn address_of(&self, node: NodeId) -> Option<SocketAddr> {
        let state = self.state();
        let node = state.nodes.get(&node)?;
        Some(SocketAddr::from((node.primary_ip, self.config.node_port)))
    }

    /// Resolves when this node has to forget the cluster.
    pub async fn told_to_leave(&self) {
        let mut leave = self.leave.subscribe();
        // The sender lives as long as this member.
        let _ = leave.wait_for(|leave| *leave).await;
    }

    /// Makes [`Self::told_to_leave`] resolve.
    pub fn tell_to_leave(&self) {
        self.leave.send_replace(true);
    }

    /// Resolves when a member of a newer incarnation of the cluster was met, with its greeting.
    pub async fn is_overtaken(&self) -> (NodeId, Greeting) {
        let mut overtaken = self.overtaken.subscribe();
        match overtaken.wait_for(Option::is_some).await.map(|met| met.clone()) {
            Ok(Some(met)) => met,
            // The sender lives as long as this member.
            _ => std::future::pending().await,
        }
    }

    /// Takes note of another member's greeting.
    pub fn meet(&self, peer: NodeId, theirs: Greeting) {
        match Greeting::of(self).relation(&theirs) {
            Relation::Same | Relation::Older => {}
            Relation::Newer(_) => {
                self.overtaken.send_if_modified(|met| {
                    let first = met.is_none();
                    met.get_or_insert((peer, theirs));
                    first
                });
            }
            Relation::Fork => self.stands_apart(peer),
        }
    }

    /// Notes that another node went on apart from this one, and neither yields by itself.
    pub fn stands_apart(&self, peer: NodeId) {
        let first = self.apart.lock().unwrap_or_else(PoisonError::into_inner).insert(peer);
        if first {
            let name = self.state().node_name(peer);
            tracing::error!(name, "went on apart from this node, by 'master-failover --no-voting'");
        }
    }

    /// What an operator has to decide about other nodes.
    pub fn conflicts(&self) -> Vec<String> {
        let state = self.state();
        let apart = self.apart.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let text = |node: NodeId| {
            format!(
                "node '{0}' went on apart from node '{1}', by 'master-failover --no-voting' while others lived. They refuse each other. \
                 Decide who stays; on the other one stop the daemon and clear its state directory, then \
                 'gnt-node remove {0}' and 'gnt-node add {0}'",
                state.node_name(node),
                self.name()
            )
        };
        apart.into_iter().filter(|node| state.nodes.contains_key(node)).map(text).collect()
    }

    /// Whether this node is about to forget the cluster.
    pub fn is_leaving(&self) -> bool {
        *self.leave.borrow() || is_destroyed(&self.state())
    }

    /// The refusal of an `init` or `join` here.
    pub fn already_in_a_cluster(&self) -> Failure {
        let state = self.state();
        let name = state.cluster.as_ref().map_or("?", |cluster| cluster.name.as_str());
        let text = match state.nodes.get(&self.id) {
            Some(node) => format!("This node is in the cluster {name} already, as '{}'", node.name),
            None => format!(
                "This node was in the cluster {name} and could not be told that it was removed; \
                 stop its daemon, clear its state directory, start it and try again"
            ),
        };
        Failure::refused(ErrorCode::WrongState, text)
    }

    /// Whether a peer is a member now.
    pub fn admits(&self, peer: &PeerIdentity) -> bool {
        is_admitted(&self.state(), NodeId(peer.node))
    }

    /// Asks a node's agent in the name of an office; this node's own directly.
    pub async fn ask(
        &self,
        node: NodeId,
        address: SocketAddr,
        order: Envelope<Call>,
        within: Duration,
    ) -> Result<Reply, jobs::CallError> {
        if node == self.id {
            self.pass(&order).map_err(|_| jobs::CallError::Deposed)?;
            let carried_out = self.carry_out(order.payload);
            return match tokio::time::timeout(within, carried_out).await {
                Ok(outcome) => outcome.map_err(jobs::CallError::Failed),
                Err(_) => Err(jobs::CallError::Unreachable(format!("no answer within {} s", within.as_secs()))),
            };
        }
        let answer: Result<Result<Reply, Failure>, CallError> =
            self.client.call_json(node.0, address, Lane::Control, AGENT_PATH, &order, within).await;
        match answer {
            Ok(outcome) => outcome.map_err(jobs::CallError::Failed),
            Err(CallError::Refused { fault, .. }) if fault.kind == FaultKind::Stale => Err(jobs::CallError::Deposed),
            Err(error) => Err(jobs::CallError::Unreachable(crate::chain(&error))),
        }
    }

    /// Lets an order through if nobody newer has given one, and nobody newer is known to be in office: the second is what
    /// counts after a restart of the daemon.
    fn pass(&self, order: &Envelope<Call>) -> Result<(), rpc::Stale> {
        let state = self.state();
        let mut gate = self.gate.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(office) = state.office {
            // Refused where an order of somebody newer than the state has come already.
            let _ = gate.check(&state.incarnation, office.term);
        }
        gate.check(&order.inc, order.term)
    }

    async fn carry_out(&self, call: Call) -> Result<Reply, Failure> {
        let (folder, name) = (self.config.fault_points.as_ref(), call.name());
        crate::fault::point(folder, || format!("node.{name}.before")).await;
        let outcome = self.do_now(call).await;
        crate::fault::point(folder, || format!("node.{name}.after")).await;
        outcome
    }

    async fn do_now(&self, call: Call) -> Result<Reply, Failure> {
        match call {
            Call::Leave => {
                // Durable before the answer: nobody tells this node a second time.
                self.home.renounce().map_err(|error| Failure::failed(crate::chain(&error)))?;
                self.tell_to_leave();
                Ok(Reply::Done)
            }
            Call::CaughtUp { index } => {
                let mut view = self.log.watch();
                match tokio::time::timeout(CATCH_UP, view.wait_for(|view| view.index >= index)).await {
                    Ok(Ok(_)) => Ok(Reply::Done),
                    Ok(Err(_)) => Err(Failure::failed("the log was closed meanwhile")),
                    Err(_) => Err(Failure::failed(format!(
                        "it has not got the newest configuration within {} s",
                        CATCH_UP.as_secs()
                    ))),
                }
            }
            Call::Send { hypervisor, instance, run, migration, to, to_run, mode } => {
                let shipment = Shipment { hypervisor, instance, run, migration, to, to_run, mode };
                self.send(shipment).await.map(Reply::Sending)
            }
            call => {
                self.check_run(&call).await?;
                if let Call::Start { spec, .. } = &call {
                    self.end_others(&spec.name).await?;
                }
                self.agent.carry_out(call).await
            }
        }
    }

    /// Refuses to make what the state does not give to this node. It was committed before the order was sent, but may be over
    /// by the time when an order comes that was late.
    async fn check_run(&self, call: &Call) -> Result<(), Failure> {
        let (spec, run) = match call {
            Call::Start { spec, run, .. } | Call::Receive { spec, run, .. } => (spec, *run),
            _ => return Ok(()),
        };
        let mut views = self.log.watch();
        let waiting = tokio::time::timeout(GIVEN, views.wait_for(|view| view.state.last_run >= run.0));
        let known = matches!(waiting.await, Ok(Ok(_)));
        let state = self.state();
        let given = state.instances.get(&spec.id).is_some_and(|instance| match call {
            Call::Receive { migration, .. } => {
                let here = self.life();
                let coming = |it: model::Migration| it.id == *migration && it.run == run && here == Some(it.to);
                instance.migration.is_some_and(coming)
            }
            _ => instance.run == Some(run) && instance.owner.is_some() && instance.owner == self.life(),
        });
        if known && given {
            return Ok(());
        }
        Err(Failure::failed(format!(
            "node '{}' does not know, or not any more, that run {run} of instance '{}' is to be here",
            self.name(),
            spec.name
        )))
    }

    /// Ends what is still here of an instance in runs that the state does not have any more: the copy that a migration was
    /// making when its source died.
    async fn end_others(&self, instance: &str) -> Result<(), Failure> {
        let state = self.state();
        let Some(at) = self.life() else { return Ok(()) };
        self.agent.end_others(&state, Some(instance), &runs_of(&state, at)).await
    }

    /// What this node asks of another that is no order: with the incarnation and the office that it knows of.
    pub(crate) fn letter<T>(&self, payload: T) -> Envelope<T> {
        let state = self.state();
        let term = state.office.map_or(0, |office| office.term);
        Envelope { inc: state.incarnation, term, job: None, payload }
    }

    /// Reads a [letter](Self::letter). One of another incarnation is refused; an older term is not, because who asks may
    /// simply not have heard of the newest master yet.
    fn open_letter<T: serde::de::DeserializeOwned>(&self, body: &[u8]) -> Result<T, Fault> {
        let letter: Envelope<T> = rpc::server::from_json(body)?;
        let own = self.incarnation();
        if letter.inc != own {
            return Err(Fault::new(
                FaultKind::Stale,
                format!("the request is of incarnation {} of the cluster, this node is in {}", letter.inc.n, own.n),
            ));
        }
        Ok(letter.payload)
    }

    /// Passes a request on to the node that leads. `None`: it could not be reached, and nothing was sent.
    pub async fn forward(
        &self,
        leader: NodeId,
        request: &Request,
        user: &str,
        within: Duration,
    ) -> Option<Result<Value, Failure>> {
        let address = self.address_of(leader)?;
        let forwarded = self.letter(Forwarded { request: request.clone(), user: user.to_owned() });
        let answer: Result<Result<Value, Failure>, CallError> =
            self.client.call_json(leader.0, address, Lane::Control, REQUEST_PATH, &forwarded, within).await;
        match answer {
            Ok(outcome) => Some(outcome),
            Err(error) if error.never_sent() => None,
            Err(CallError::Refused { fault, .. }) => Some(Err(Failure::no_master(fault.message))),
            Err(error) => Some(Err(Failure::no_master(format!(
                "The master '{}' did not answer; whether the request was carried out is not known: {}",
                self.state().node_name(leader),
                crate::chain(&error)
            )))),
        }
    }

    /// Asks the node that leads to hand over to this one. `None`: it could not be reached, and nothing was sent.
    pub async fn ask_for_handover(&self, leader: NodeId, within: Duration) -> Option<Result<(), Failure>> {
        let address = self.address_of(leader)?;
        let answer: Result<Result<(), Failure>, CallError> =
            self.client.call_json(leader.0, address, Lane::Control, HANDOVER_PATH, &self.letter(()), within).await;
        match answer {
            Ok(outcome) => Some(outcome),
            Err(error) if error.never_sent() => None,
            Err(error) => {
                let name = self.state().node_name(leader);
                Some(Err(Failure::failed(format!("The master '{name}' did not hand over: {}", crate::chain(&error)))))
            }
        }
    }

    /// Asks the leader to propose a command of a disk's primary.
    pub(crate) async fn ask_to_propose(&self, leader: NodeId, asked: &Asked, within: Duration) -> Answer {
        let Some(address) = self.address_of(leader) else { return Answer::NotLeader };
        let answer: Result<Answer, CallError> =
            self.client.call_json(leader.0, address, Lane::Control, PROPOSE_PATH, &self.letter(asked), within).await;
        match answer {
            Ok(answer) => answer,
            Err(error) if error.never_sent() => Answer::NotLeader,
            Err(error) => {
                tracing::debug!(%leader, error = crate::chain(&error), "what became of a disk's command is not known");
                Answer::Unknown
            }
        }
    }

    /// Asks the leader up to which index the log has everything that is committed by now.
    pub(crate) async fn ask_for_read_index(&self, leader: NodeId, within: Duration) -> Option<u64> {
        let address = self.address_of(leader)?;
        let millis = within.as_millis() as u64;
        let answer: Result<Option<u64>, CallError> =
            self.client.call_json(leader.0, address, Lane::Control, READ_PATH, &self.letter(millis), within).await;
        answer.ok().flatten()
    }

    /// Opens a console on the node that runs the instance.
    pub async fn console(&self, instance: &str) -> Result<Box<dyn jobs::Console>, Failure> {
        let state = self.state();
        let found = state.instance_by_name(instance).ok_or_else(|| Failure::unknown("Instance", instance))?;
        let not_running = || {
            Failure::refused(ErrorCode::WrongState, format!("Instance {instance} is not running, can't get console"))
        };
        let run = found.run.ok_or_else(not_running)?;
        if found.primary == self.id {
            return Ok(Box::new(self.agent.console(&found.hypervisor, instance, run).await?));
        }
        let address = self.address_of(found.primary).ok_or_else(not_running)?;
        let path = format!("{CONSOLE_PATH}/{instance}");
        match self.client.open_stream(found.primary.0, address, Lane::Bulk, &path, Bytes::new(), OPEN).await {
            Ok(stream) => Ok(Box::new(stream)),
            Err(CallError::Refused { fault, .. }) => Err(from_fault(fault)),
            Err(error) => Err(Failure::failed(format!(
                "Node '{}' does not answer: {}",
                state.node_name(found.primary),
                crate::chain(&error)
            ))),
        }
    }

    /// Answers a guard that asks for its node's lease.
    async fn lease(&self, peer: NodeId, renew: Renew) -> Result<ha::message::Answer, Fault> {
        if renew.node != peer {
            let text = format!("node {peer} can't ask for the lease of node {}", renew.node);
            return Err(Fault::new(FaultKind::Conflict, text));
        }
        if renew.inc != self.incarnation() {
            let text = "the lease is asked for in another incarnation of the cluster";
            return Err(Fault::new(FaultKind::Stale, text));
        }
        let office = self.office.borrow().clone();
        Ok(match (office, self.log.status().leader) {
            (Some(office), _) => office.desk.renew(renew).await,
            (None, leader) if leader == Some(self.id) => ha::message::Answer::NotYet,
            (None, leader) => ha::message::Answer::NotMaster(leader),
        })
    }

    /// Takes note of when this node gets a vote, for as long as the log goes on.
    pub async fn watch_vote(self: Arc<Self>) {
        let mut statuses = self.log.watch_status();
        loop {
            self.voting.look(&statuses.borrow_and_update(), boottime());
            if statuses.changed().await.is_err() {
                return;
            }
        }
    }

    /// Commits that a node was booted. On the leader.
    pub(crate) async fn give_life(&self, node: NodeId, booted: Booted) -> Result<Life, Failure> {
        let Booted { boot, previous, runs } = booted;
        let proposal = Proposal {
            incarnation: self.incarnation(),
            office: None,
            at: now(),
            commands: vec![Command::JoinNode { node, boot, previous, runs }],
        };
        match self.log.propose(proposal).await {
            Ok(committed) => match committed.applied.as_slice() {
                [Applied::Life(life)] => Ok(*life),
                _ => Err(Failure::failed("a boot was recorded, but no life given for it")),
            },
            Err(error) => Err(Failure::no_master(error.to_string())),
        }
    }

    pub fn incarnation(&self) -> Incarnation {
        self.state().incarnation
    }
}

/// The other nodes' side of this node.
pub struct PeerService(pub Arc<Member>);

#[async_trait]
impl rpc::Service for PeerService {
    async fn call(&self, peer: PeerIdentity, path: &str, body: Bytes) -> Result<Bytes, Fault> {
        let member = &self.0;
        match path {
            RAFT_PATH => {
                let request = rpc::server::from_json(&body)?;
                rpc::server::to_json(&member.log.handle(NodeId(peer.node), request).await)
            }
            AGENT_PATH => {
                let order: Envelope<Call> = rpc::server::from_json(&body)?;
                member.pass(&order)?;
                rpc::server::to_json(&member.carry_out(order.payload).await)
            }
            REQUEST_PATH => {
                let Forwarded { request, user } = member.open_letter(&body)?;
                rpc::server::to_json(&crate::requests::as_master(member, request, &user).await)
            }
            LIFE_PATH => {
                let booted = member.open_letter(&body)?;
                rpc::server::to_json(&member.give_life(NodeId(peer.node), booted).await)
            }
            HANDOVER_PATH => {
                let () = member.open_letter(&body)?;
                rpc::server::to_json(&crate::office::hand_over(member, NodeId(peer.node)).await)
            }
            PROPOSE_PATH => {
                let asked = member.open_letter(&body)?;
                rpc::server::to_json(&authority::propose_for(member, NodeId(peer.node), asked).await?)
            }
            greeting::PATH => {
                member.meet(NodeId(peer.node), rpc::server::from_json(&body)?);
                rpc::server::to_json(&Greeting::of(member))
            }
            LEASE_PATH => {
                let renew: Renew = rpc::server::from_json(&body)?;
                rpc::server::to_json(&member.lease(NodeId(peer.node), renew).await?)
            }
            CONFIRM_PATH => {
                let asked: Confirm = rpc::server::from_json(&body)?;
                let (own, status) = (member.incarnation(), member.log.status());
                rpc::server::to_json(&member.voting.confirm(own, &status, &asked, boottime()))
            }
            FENCE_PATH => {
                let asked: Fence = rpc::server::from_json(&body)?;
                let (own, status) = (member.incarnation(), member.log.status());
                rpc::server::to_json(&member.voting.fence(own, &status, &asked, boottime()))
            }
            ENDED_PATH => {
                let ended: Ended = member.open_letter(&body)?;
                let office = member.office.borrow().clone();
                let heard = match office {
                    Some(office) => Some(office.hear_of_end(NodeId(peer.node), &ended).await),
                    None => None,
                };
                rpc::server::to_json(&heard)
            }
            READ_PATH => {
                let millis = member.open_letter(&body)?;
                rpc::server::to_json(&authority::read_index(member, Duration::from_millis(millis)).await)
            }
            other => Err(Fault::new(FaultKind::NotFound, format!("there is no call {other}"))),
        }
    }

    async fn stream(&self, _peer: PeerIdentity, path: &str, body: Bytes, upgrade: Upgrade) -> Result<(), Fault> {
        let member = &self.0;
        if path == migration::PATH {
            return member.arrive(member.open_letter(&body)?, upgrade).await;
        }
        if path == migration::FRAMES_PATH {
            return member.await_frames(member.open_letter(&body)?, upgrade).await;
        }
        let Some(instance) = path.strip_prefix(CONSOLE_PATH).and_then(|rest| rest.strip_prefix('/')) else {
            return Err(Fault::new(FaultKind::NotFound, format!("there is no stream {path}")));
        };
        let state = member.state();
        let here = state.instance_by_name(instance).filter(|found| found.primary == member.id);
        let Some((found, run)) = here.and_then(|found| found.run.map(|run| (found, run))) else {
            return Err(Fault::new(FaultKind::Conflict, format!("Instance {instance} does not run on this node")));
        };
        let console = member.agent.console(&found.hypervisor, instance, run).await.map_err(to_fault)?;
        let stream = match upgrade.accept().await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, instance, "a console was not taken");
                return Ok(());
            }
        };
        // Until either side ends: a guest never does by itself, so the end of what the caller sends has to do. There is nobody
        // to tell.
        let (mut from_caller, mut to_caller) = tokio::io::split(stream);
        let (mut from_guest, mut to_guest) = tokio::io::split(console);
        tokio::select! {
            _ = tokio::io::copy(&mut from_caller, &mut to_guest) => {}
            _ = tokio::io::copy(&mut from_guest, &mut to_caller) => {}
        }
        Ok(())
    }
}

/// Whether the cluster was destroyed. Before `init` no number was given yet.
pub fn is_destroyed(state: &State) -> bool {
    state.cluster.is_none() && state.last_node > 0
}

/// Whether the holder of that number's certificate is a member, as far as a node with this state can know. Numbers are never
/// given twice: one that was given and is not in the state was taken away. A higher one was given later than what this node has
/// of the log, and its holder may be the very master that brings the rest.
fn is_admitted(state: &State, node: NodeId) -> bool {
    state.nodes.contains_key(&node) || node.0 > state.last_node
}

/// Carries a failure through a fault and back.
pub(crate) fn to_fault(failure: Failure) -> Fault {
    let detail = serde_json::to_value(&failure).unwrap_or_default();
    Fault::new(FaultKind::Conflict, failure.text).with_detail(detail)
}

fn from_fault(fault: Fault) -> Failure {
    serde_json::from_value(fault.detail).unwrap_or_else(|_| Failure::failed(fault.message))
}

/// The time, for records.
pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(since.as_micros() as u64)
}

/// Names of nodes, for people.
pub fn names(state: &State, ids: &BTreeSet<NodeId>) -> BTreeSet<String> {
    ids.iter().map(|id| state.node_name(*id)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_removed_is_refused_and_who_came_later_is_not() {
        let mut state = State::default();
        assert!(is_admitted(&state, NodeId(1)), "nothing is known yet");
        state.last_node = 3;
        let node = model::Node {
            name: "node01".into(),
            uuid: uuid::Uuid::nil(),
            primary_ip: [10, 0, 0, 5].into(),
            secondary_ip: [10, 0, 0, 5].into(),
            group: model::GroupId(uuid::Uuid::nil()),
            master_candidate: true,
            master_capable: true,
            vm_capable: true,
            offline: false,
            drained: false,
            powered: true,
            ndparams: Default::default(),
            ctime: Timestamp(0),
            mtime: Timestamp(0),
            serial_no: 1,
            tags: Default::default(),
            life: Life(1),
            boot: String::new(),
            dead: false,
            armed: false,
        };
        state.nodes.insert(NodeId(1), node);
        assert!(is_admitted(&state, NodeId(1)));
        assert!(!is_admitted(&state, NodeId(2)), "removed");
        assert!(is_admitted(&state, NodeId(4)), "added later than what this node knows of");
    }
}
