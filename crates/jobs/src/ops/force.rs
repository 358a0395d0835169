//! Moving an instance off a node that an operator says is off: what the other node has counts from then on (protocol,
//! sections 7.2 and 11).

use std::time::Duration;

use model::{AdminState, Command, DiskId, Evidence, Instance, InstanceId, Life, NodeId, Params, State, Version};
use opcodes::Failure;
use opcodes::disks::ReplicaReport;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::failover::run_of;
use super::instance::{STOP, find_id, launch, mirrored, stop_call, unexpected};
use super::target::check_room;
use super::wrong_state;
use crate::agent::{Call, Reply};
use crate::context::{Context, Halt};

/// Name of the step that records what is forced where.
pub const PLAN: &str = "force";
/// How long a node may take to say how its replicas are.
const LOOK: Duration = Duration::from_secs(30);

/// What is forced where.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    id: InstanceId,
    /// The node that it was on.
    from: NodeId,
    to: NodeId,
    /// Of each disk, up to which version the replica that is promoted has followed.
    bases: Vec<(DiskId, Version)>,
    /// Start it there.
    start: bool,
}

/// Refuses what can't work, and records what is done. `to` may be the node where the instance lives, if its disks are
/// doubtful.
pub async fn begin(ctx: &Context, state: &State, instance: &Instance, to: NodeId) -> Result<Plan, Halt> {
    let start = instance.want == AdminState::Up;
    let memory = start.then(|| state.memory_mib(instance));
    let asked = ctx.call_briefly(to, Call::Replicas { disks: mirrored(instance) }, LOOK);
    let (asked, room) = futures::join!(asked, check_room(ctx, state, instance, to, memory));
    let reports = match asked? {
        Reply::Replicas(reports) => reports,
        other => return Err(unexpected(&other)),
    };
    room?;
    let plan =
        Plan { id: instance.id, from: instance.primary, to, bases: bases(state, instance, to, &reports)?, start };
    let (from, to_name) = (state.node_name(plan.from), state.node_name(to));
    let mut entry =
        ctx.entry("force-begins", Vec::new()).note(PLAN, &plan)?.say(format!("Failover instance {}", instance.name));
    entry = match plan.from == to {
        true => entry.say(format!("* not checking disk consistency: what node {to_name} has counts")),
        false => entry.say(format!("* not checking disk consistency, as node {from} is taken to be off")),
    };
    let mirrors = instance.disks.iter().enumerate().filter_map(|(index, disk)| Some((index, disk.mirror.as_ref()?)));
    for (index, mirror) in mirrors {
        if mirror.doubtful || !mirror.is_member_on(to) {
            entry = entry.say(format!(" - WARNING: ignoring degraded disk {index} on target node {to_name}"));
        }
    }
    entry.commit().await?;
    Ok(plan)
}

/// Up to where the replicas on a node have followed; a refusal if one of them is of no use.
fn bases(
    state: &State,
    instance: &Instance,
    to: NodeId,
    reports: &[ReplicaReport],
) -> Result<Vec<(DiskId, Version)>, Failure> {
    let node = state.node_name(to);
    let base = |(index, disk): (usize, &model::Disk)| {
        let name = &instance.name;
        let rid = disk.mirror.as_ref().and_then(|mirror| mirror.replica_on(to)).map(|(rid, _)| rid);
        let report = reports.iter().find(|it| it.disk == disk.id && Some(it.replica) == rid);
        let refuse = |why: &str| {
            wrong_state(format!(
                "Disk {index} of instance '{name}' can't be used on node '{node}': {why}. Its data is on another node alone; \
                 start that, and try again"
            ))
        };
        match report {
            None => Err(refuse("it has no replica open there")),
            Some(ReplicaReport { failed: Some(why), .. }) => Err(refuse(why)),
            Some(ReplicaReport { held: None, .. }) => Err(refuse("its replica there was in the middle of a resync")),
            Some(ReplicaReport { held: Some(held), .. }) => Ok((disk.id, *held)),
        }
    };
    instance.disks.iter().enumerate().map(base).collect()
}

pub async fn carry_out(ctx: &Context, plan: &Plan) -> Result<Value, Halt> {
    let state = ctx.state();
    let to = state.node_name(plan.to);
    let run = run_of(&promote(ctx, plan).await?)?;
    if plan.start {
        launch(ctx, plan.id, plan.to, run, &Params::new(), &Params::new(), false).await?;
        return Ok(Value::Null);
    }
    // Nobody is to write: the disks are brought to their orderly end, and the right to them is given back.
    if !ctx.is_done("disown") {
        let instance = find_id(&state, plan.id)?;
        match ctx.call_within(plan.to, stop_call(instance, run, 0, true), STOP).await {
            Ok(_) => ctx.commit("disown", vec![Command::Disown { instance: plan.id, run, want: None }]).await?,
            Err(Halt::Failed(failure)) => {
                let text = format!(
                    "The disks of instance '{}' are node '{to}'s now, but could not be brought to their orderly end there: \
                     {}; 'gnt-instance deactivate-disks' tries again",
                    instance.name, failure.text
                );
                return Err(Failure { text, ..failure }.into());
            }
            Err(halt) => return Err(halt),
        };
    }
    Ok(Value::Null)
}

/// Commits it. The node that is taken to be off is dead from then on: if it was not off it begins a new life when it is
/// heard of again, and ends what it still runs.
async fn promote(ctx: &Context, plan: &Plan) -> Result<Vec<model::Applied>, Halt> {
    loop {
        let state = ctx.state();
        let (from, to) = (state.node_name(plan.from), state.node_name(plan.to));
        let mut commands = Vec::new();
        let alive =
            state.nodes.get(&plan.from).filter(|node| !node.dead && node.life != Life(0) && plan.from != plan.to);
        commands.extend(alive.map(|node| Command::NodeDead {
            node: plan.from,
            life: node.life,
            evidence: Evidence::AssertedOff,
        }));
        let asserted_off = true;
        commands.push(Command::Force { instance: plan.id, node: plan.to, bases: plan.bases.clone(), asserted_off });
        let mut entry = ctx.entry("move", commands);
        if plan.from != plan.to {
            entry = entry.say(format!(" - WARNING: Please make sure that node {from} is off"));
        }
        entry = entry.say(format!("* activating the instance's disks on target node {to}"));
        if plan.start {
            entry = entry.say(format!("* starting the instance on the target node {to}"));
        }
        match entry.commit().await {
            // Another job has declared it dead at the same time: once is enough.
            Err(Halt::Failed(_)) if alive.is_some() && ctx.state().nodes.get(&plan.from).is_none_or(|it| it.dead) => {}
            outcome => return outcome,
        }
    }
}
