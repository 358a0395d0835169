//! Answers requests: here, or on the master.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use consensus::ReadError;
use jobs::agent::{Call, Reply};
use model::{Applied, Command, Job, JobId, JobStatus, NewJob, NodeId, State};
use opcodes::wire::{NodeStatus, Query, Request, Submit};
use opcodes::{ErrorCode, Failure};
use serde_json::Value;
use tokio::time::Instant;

use crate::config::{ADDRESS_LEASE, MASTER_PATIENCE};
use crate::explain::{self, Known};
use crate::failover::STRICT_VOTERS;
use crate::member::{Member, names};
use crate::office::Office;
use crate::tables::{self, Asked, Live};
use crate::trees;

/// How long a node may take to tell what it runs, before a listing goes on without it.
const LOOK: Duration = Duration::from_millis(900);
/// How long the majority may take to confirm the master before it answers from its state.
const CONFIRM: Duration = Duration::from_secs(3);
/// Pause before something that may work a moment later is tried again.
const RETRY: Duration = Duration::from_millis(100);
/// The longest that a client may wait for news of a job in one request.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long nodes may take to be armed, before the answer is that they are asked.
const FOLLOW: Duration = Duration::from_secs(5);
/// How long a change of master may take altogether.
const FAILOVER: Duration = Duration::from_secs(15);

/// Answers a request that came to this member.
pub async fn answer(member: &Arc<Member>, request: Request, user: &str) -> Result<Value, Failure> {
    match request {
        Request::Status => to_json(&status(member)),
        Request::MasterFailover => master_failover(member).await.map(|()| Value::Null),
        request => ask_master(member, &request, user).await,
    }
}

/// Answers on the master, wherever that is. While it is being replaced this waits, as long as nothing was sent.
async fn ask_master(member: &Arc<Member>, request: &Request, user: &str) -> Result<Value, Failure> {
    let within = match request {
        Request::Job { wait, .. } => MASTER_PATIENCE + patience(*wait),
        _ => MASTER_PATIENCE * 6,
    };
    let deadline = Instant::now() + MASTER_PATIENCE;
    loop {
        let leader = find_master(member, deadline).await?;
        if leader == member.id {
            return as_master(member, request.clone(), user).await;
        }
        if let Some(outcome) = member.forward(leader, request, user, within).await {
            return outcome;
        }
        if Instant::now() >= deadline {
            return Err(no_master(member));
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// How long a client waits that asks for so many seconds.
fn patience(seconds: u32) -> Duration {
    Duration::from_secs(u64::from(seconds)).min(LONGEST_WAIT)
}

/// Waits for a master, for a while.
async fn find_master(member: &Arc<Member>, deadline: Instant) -> Result<NodeId, Failure> {
    let mut statuses = member.log.watch_status();
    let mut offices = member.office.subscribe();
    loop {
        let status = statuses.borrow_and_update().clone();
        if member.is_leaving() {
            return Err(Failure::not_a_cluster());
        }
        if let Some(reason) = status.failed {
            return Err(Failure::no_master(format!("This node's copy of the configuration can't be used: {reason}")));
        }
        let in_office = offices.borrow_and_update().is_some();
        match status.leader {
            Some(leader) if leader == member.id && in_office => return Ok(leader),
            Some(leader)
                if leader != member.id
                    && member.state().nodes.get(&leader).is_some_and(|node| node.may_be_master()) =>
            {
                return Ok(leader);
            }
            _ => {}
        }
        let news = async {
            tokio::select! {
                _ = statuses.changed() => {}
                _ = offices.changed() => {}
            }
        };
        if tokio::time::timeout_at(deadline, news).await.is_err() {
            return Err(no_master(member));
        }
    }
}

/// The refusal where there is no master, or none that a majority follows. Nothing was changed.
pub fn no_master(member: &Member) -> Failure {
    let state = member.state();
    let status = member.log.status();
    let last = match state.office {
        Some(office) if office.node == member.id => "this node was the last one, but".to_owned(),
        Some(office) => format!("the last one, '{}', does not answer, and", state.node_name(office.node)),
        None => "there has been none yet, and".into(),
    };
    let voters: Vec<String> = names(&state, &status.voters).into_iter().collect();
    let alone = match state.nodes.get(&member.id).is_some_and(|own| own.may_be_master()) {
        true => {
            " If all other nodes are surely off, and can't be started, type 'gnt-cluster master-failover --no-voting' here: \
             it says what may be lost, asks, and makes this node the master alone."
        }
        false => "",
    };
    Failure::no_master(format!(
        "No master: {last} no majority of the voting nodes ({}) is there to choose another. Nothing was changed. \
         Start the missing nodes or mend their network, then try again.{alone}",
        voters.join(", ")
    ))
}

/// The refusal to make this node the master at all.
pub fn no_candidate(state: &State) -> Failure {
    let candidates: Vec<&str> =
        state.nodes.values().filter(|node| node.may_be_master()).map(|node| node.name.as_str()).collect();
    Failure::refused(
        ErrorCode::WrongState,
        format!(
            "This node is not among the nodes marked as master candidates. Only these nodes can become masters. \
             Current list of master candidates is: {}",
            candidates.join(" ")
        ),
    )
}

/// Whether this node is the master, and a majority follows it.
pub fn is_master(member: &Member) -> bool {
    member.log.status().leader == Some(member.id) && has_master(member, &member.state())
}

/// Whether somebody in office is followed, as far as this node knows. A leader that is cut off goes on calling itself one,
/// so of itself this node asks whether a majority has answered it lately.
pub fn has_master(member: &Member, state: &State) -> bool {
    let leader = member.log.status().leader;
    let in_office = leader.is_some() && leader == state.office.map(|office| office.node);
    let followed = leader != Some(member.id) || member.log.quorum_age().is_some_and(|age| age < ADDRESS_LEASE);
    in_office && followed
}

/// What this node is.
pub fn status(member: &Member) -> NodeStatus {
    let state = member.state();
    let log = member.log.status();
    NodeStatus {
        version: crate::VERSION.into(),
        node: Some(member.name()),
        cluster: state.cluster.as_ref().map(|cluster| cluster.name.clone()),
        master: state.office.map(|office| state.node_name(office.node)),
        has_master: has_master(member, &state),
        incarnation: state.incarnation.n,
        term: state.office.map_or(0, |office| office.term),
        voters: names(&state, &log.voters),
    }
}

/// Makes this node the master.
async fn master_failover(member: &Arc<Member>) -> Result<(), Failure> {
    let state = member.state();
    let name = member.name();
    let own = state.nodes.get(&member.id).ok_or_else(|| Failure::unknown("Node", &name))?;
    if !own.may_be_master() {
        return Err(no_candidate(&state));
    }
    let leader = find_master(member, Instant::now() + MASTER_PATIENCE).await?;
    if leader == member.id && !has_master(member, &member.state()) {
        return Err(no_master(member));
    }
    if leader == member.id {
        return Err(Failure::refused(
            ErrorCode::WrongInput,
            format!(
                "This commands must be run on the node where you want the new master to be. {name} is already the master"
            ),
        ));
    }
    let deadline = Instant::now() + FAILOVER;
    let mut offices = member.office.subscribe();
    member.ask_for_handover(leader, FAILOVER).await.unwrap_or_else(|| Err(no_master(member)))?;
    match tokio::time::timeout_at(deadline, offices.wait_for(Option::is_some)).await {
        Ok(Ok(_)) => Ok(()),
        _ => Err(Failure::failed(format!(
            "'{}' handed over, but this node is not in office after {} s; see 'gnt-cluster getmaster'",
            state.node_name(leader),
            FAILOVER.as_secs()
        ))),
    }
}

/// Answers on the node that is the master.
pub async fn as_master(member: &Arc<Member>, request: Request, user: &str) -> Result<Value, Failure> {
    let Some(office) = member.office.borrow().clone() else {
        return Err(Failure::no_master(format!("'{}' is not the master any more; try again", member.name())));
    };
    match request {
        Request::Submit(submit) => to_json(&queue(&office, submit, user).await?),
        Request::Job { id, after, status, wait } => to_json(&follow(member, id, after, status, patience(wait)).await?),
        Request::CancelJob { id } => office.submit(vec![Command::CancelJob { job: id }]).await.map(|_| Value::Null),
        Request::ArchiveJob { id } => office.submit(vec![Command::ArchiveJob { job: id }]).await.map(|_| Value::Null),
        Request::Destroy => office.destroy().await.map(|()| Value::Null),
        Request::Query(query) => {
            let state = confirmed(member).await?;
            let live = look(&office, &state, &query).await;
            to_json(&tables::table(&state, &live, &query)?)
        }
        Request::ClusterInfo => {
            let state = confirmed(member).await?;
            let status = member.log.status();
            to_json(&trees::cluster_info(&state, &status.voters, &member.config.os_search_path))
        }
        Request::NodeInfo { names } => to_json(&trees::node_info(&*confirmed(member).await?, &names)?),
        Request::InstanceInfo { names, is_static } => {
            let state = confirmed(member).await?;
            let query = Query {
                what: opcodes::wire::Resource::Instance,
                fields: if is_static { vec!["name".into()] } else { vec!["status".into()] },
                names: (!names.is_empty()).then(|| names.clone()),
            };
            let live = look(&office, &state, &query).await;
            to_json(&trees::instance_info(&state, &live, &names, is_static)?)
        }
        Request::Disks { names } => {
            let state = confirmed(member).await?;
            to_json(&crate::disks::reports(&office, &state, &names).await?)
        }
        Request::Why { name } => {
            let state = confirmed(member).await?;
            to_json(&explain::why(&state, &Known::asked(&office, &state, &name).await, &name)?)
        }
        Request::HaBound => {
            let state = confirmed(member).await?;
            to_json(&explain::bounds(&state, &Known::at_hand(&office, &state)))
        }
        Request::HaPlan { names } => {
            let state = confirmed(member).await?;
            to_json(&explain::plans(&state, &Known::at_hand(&office, &state), &names)?)
        }
        Request::HaStatus => {
            let state = confirmed(member).await?;
            to_json(&explain::status(&state, &Known::at_hand(&office, &state)))
        }
        Request::HaSwitch { on } => switch_ha(member, &office, on).await.map(|()| Value::Null),
        // The node that gets these answers them.
        Request::Status | Request::Init(_) | Request::Join(_) | Request::MasterFailover | Request::Recover { .. } => {
            Err(Failure::failed("this request is answered by the node that gets it, not by the master"))
        }
    }
}

/// Switches automatic failover on or off. On: waits for a while until the nodes that answer have followed.
async fn switch_ha(member: &Arc<Member>, office: &Office, on: bool) -> Result<(), Failure> {
    office.switch_ha(on).await?;
    if !on || member.log.status().voters.len() < STRICT_VOTERS {
        return Ok(());
    }
    let mut views = member.log.watch();
    let deadline = Instant::now() + FOLLOW;
    loop {
        let state = Arc::clone(&views.borrow_and_update().state);
        let follows = |(id, node): (&NodeId, &model::Node)| {
            let can = node.vm_capable && !node.offline && state.live(*id).is_some() && office.desk.is_served(*id);
            node.armed || !can
        };
        let news = tokio::time::timeout_at(deadline, views.changed());
        if state.nodes.iter().all(follows) || !matches!(news.await, Ok(Ok(()))) {
            return Ok(());
        }
    }
}

fn to_json<T: serde::Serialize>(reply: &T) -> Result<Value, Failure> {
    serde_json::to_value(reply).map_err(|error| Failure::failed(format!("the answer can't be written: {error}")))
}

/// The state, after a majority has confirmed that it is the newest.
async fn confirmed(member: &Arc<Member>) -> Result<Arc<State>, Failure> {
    let deadline = Instant::now() + CONFIRM;
    loop {
        match member.log.read_barrier(deadline.saturating_duration_since(Instant::now())).await {
            Ok(_) => return Ok(member.state()),
            Err(ReadError::NoQuorum(_)) if Instant::now() < deadline => tokio::time::sleep(RETRY).await,
            Err(_) => return Err(no_master(member)),
        }
    }
}

async fn queue(office: &Office, submit: Submit, user: &str) -> Result<JobId, Failure> {
    let mut ops = Vec::new();
    for op in &submit.ops {
        let input = serde_json::to_value(op)
            .map_err(|error| Failure::failed(format!("the opcode can't be written: {error}")))?;
        ops.push((input, op.summary()));
    }
    let job = NewJob { ops, priority: submit.priority, depends: submit.depends, user: user.to_owned() };
    match office.submit(vec![Command::SubmitJob(job)]).await?.as_slice() {
        [Applied::Job(id)] => Ok(*id),
        _ => Err(Failure::failed("the job was queued, but got no number; see 'gnt-job list'")),
    }
}

/// Waits for news of a job.
async fn follow(
    member: &Arc<Member>,
    id: JobId,
    after: u64,
    known: Option<JobStatus>,
    wait: Duration,
) -> Result<Job, Failure> {
    let mut views = member.log.watch();
    let deadline = Instant::now() + wait;
    loop {
        let state = Arc::clone(&views.borrow_and_update().state);
        let job = state.jobs.get(&id).ok_or_else(|| Failure::unknown("Job", id))?;
        let news = job.log_serial > after || known != Some(job.status) || job.status.is_final();
        if news || tokio::time::timeout_at(deadline, views.changed()).await.is_err() {
            let mut job = job.clone();
            for op in &mut job.ops {
                op.log.retain(|line| line.serial > after);
            }
            return Ok(job);
        }
    }
}

/// Asks the nodes for what a table needs, all at once. One that does not answer costs [`LOOK`].
async fn look(office: &Office, state: &State, query: &Query) -> Live {
    let needs = tables::needs(query);
    let nodes: Vec<NodeId> = tables::nodes_to_ask(state, query).into_iter().collect();
    let online = |id: &NodeId| state.nodes.get(id).is_some_and(|node| !node.offline);
    let mut live = Live { facts: BTreeMap::new(), systems: BTreeMap::new() };
    if needs.facts {
        let asked = nodes.iter().map(|id| async move {
            if !online(id) {
                return (*id, Asked::Offline);
            }
            match office.ask(*id, Call::facts(state), LOOK).await {
                Ok(Reply::Facts(facts)) => (*id, Asked::Answer(*facts)),
                _ => (*id, Asked::NoAnswer),
            }
        });
        live.facts = futures::future::join_all(asked).await.into_iter().collect();
    }
    if needs.systems {
        let asked = nodes.iter().map(|id| async move {
            if !online(id) {
                return (*id, Asked::Offline);
            }
            match office.ask(*id, Call::Systems, LOOK).await {
                Ok(Reply::Systems(systems)) => (*id, Asked::Answer(systems)),
                _ => (*id, Asked::NoAnswer),
            }
        });
        live.systems = futures::future::join_all(asked).await.into_iter().collect();
    }
    live
}
