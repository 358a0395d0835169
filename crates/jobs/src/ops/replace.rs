//! Giving a mirrored instance another second replica: on another node, or anew on the same one. The old one goes when the
//! new one is in sync, so that a failure on the way takes no redundancy away; only a replica that is made anew on its own
//! node has to go first, because a node has one replica of a disk.

use model::{
    Command, Disk, DiskTemplate, Instance, InstanceId, MirrorReplica, NodeId, Params, ReplicaId, RunId, State, Version,
};
use opcodes::Failure;
use opcodes::op::{InstanceReplaceDisks, ReplaceMode};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::attachment;
use super::disks::check_nodes_online;
use super::instance::{check_online, current_run, find, find_id, mirrored, unexpected};
use super::mirrors::{self, check_room, commit_on_newest, usable_node, wait_for_sync};
use super::spec::{disks, spec};
use super::{find_node, wrong_input, wrong_state};
use crate::agent::{Call, DiskRef, Reply};
use crate::context::{Context, Halt};

/// Name of the step that records why a replacement is given up. A new master that finds it goes on undoing.
const GIVEN_UP: &str = "given-up";

/// What is to be done.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Plan {
    id: InstanceId,
    /// The node of the new replicas.
    node: NodeId,
    /// The new replicas, by the place of their disk: identity and slot.
    fresh: Vec<(ReplicaId, u8)>,
    /// The replicas that go, with the records that they had.
    old: Vec<(NodeId, ReplicaId, DiskRef)>,
    /// Whether something serves the disks already: a guest, or an administrator's attachment.
    served: bool,
    /// The new replicas are on the node of the old ones.
    same_node: bool,
}

pub async fn replace(ctx: &Context, op: InstanceReplaceDisks) -> Result<Value, Halt> {
    let plan = ctx.step("check", || check(ctx, &op)).await?;
    let failure = match ctx.recorded::<Failure>(GIVEN_UP)? {
        Some(failure) => failure,
        None => match carry_out(ctx, &plan).await {
            Ok(()) => return Ok(Value::Null),
            Err(Halt::Failed(failure)) => ctx.step(GIVEN_UP, || async { Ok(failure) }).await?,
            Err(halt) => return Err(halt),
        },
    };
    undo(ctx, &plan).await?;
    Err(failure.into())
}

/// Refuses what can't work. The result is the whole plan: a repetition makes the same replicas.
async fn check(ctx: &Context, op: &InstanceReplaceDisks) -> Result<Plan, Halt> {
    let state = ctx.state();
    let instance = find(&state, &op.instance_name)?;
    let name = &instance.name;
    if instance.disk_template != DiskTemplate::Drbd {
        let template = instance.disk_template;
        return Err(wrong_input(format!("Instance's disk layout '{template}' does not allow replacing disks")).into());
    }
    check_online(&state, instance)?;
    let same_node = op.mode == ReplaceMode::OnSecondary;
    let node = chosen_node(&state, instance, op)?;
    let behind = |disk: &&Disk| disk.mirror.as_ref().is_some_and(|mirror| !mirror.is_member_on(instance.primary));
    if let Some(disk) = instance.disks.iter().find(behind) {
        return Err(wrong_state(format!(
            "The replica of disk {} on the primary node '{}' of instance '{name}' is not in sync, there is nothing to fill a new \
             one from",
            disk.id,
            state.node_name(instance.primary)
        ))
        .into());
    }
    let facts = mirrors::facts(ctx, &state, node).await?;
    let needed = instance.disks.iter().map(|disk| disk.size_mib).sum();
    check_room(&state, node, &facts, DiskTemplate::Drbd, needed)?;
    let spec = Box::new(spec(&state, instance, &Params::new(), &Params::new()));
    ctx.call(node, Call::CheckInstance { spec, install: false }).await?;

    let mut fresh = Vec::new();
    let mut old = Vec::new();
    for disk in disks(&state, instance) {
        let Some(mirror) = &disk.disk.mirror else { continue };
        let free = (0..).find(|slot| mirror.replicas.values().all(|replica| replica.slot != *slot)).unwrap_or_default();
        fresh.push((ReplicaId(ctx.new_uuid()), free));
        let going = mirror.replicas.iter().filter(|(_, replica)| replica.node != instance.primary);
        old.extend(going.map(|(rid, replica)| (replica.node, *rid, disk.clone())));
    }
    let run = current_run(&state, instance);
    if let Some(run) = run {
        check_served(ctx, instance, run).await?;
    }
    let served = run.is_some();
    Ok(Plan { id: instance.id, node, fresh, old, served, same_node })
}

fn chosen_node(state: &State, instance: &Instance, op: &InstanceReplaceDisks) -> Result<NodeId, Failure> {
    if op.mode == ReplaceMode::OnSecondary {
        let Some(node) = instance.secondaries.first() else {
            return Err(wrong_state(format!(
                "Instance '{0}' has no secondary node; 'gnt-instance replace-disks -n NODE {0}' gives it one",
                instance.name
            )));
        };
        check_nodes_online(state, &[*node], instance, "replace the disks of")?;
        return Ok(*node);
    }
    let Some(name) = &op.remote_node else {
        return Err(wrong_input("No new secondary node given; name it with '-n NODE'"));
    };
    let node = find_node(state, name)?;
    if node == instance.primary {
        return Err(wrong_input("The specified node is the primary node of the instance"));
    }
    if instance.secondaries.contains(&node) {
        return Err(wrong_input("The specified node is already the secondary node of the instance"));
    }
    usable_node(state, name, "secondary")
}

/// Refuses where the right to the disks was given, but nothing serves them: until they are served, a replica that goes may be
/// the only one with some of the writes.
async fn check_served(ctx: &Context, instance: &Instance, run: RunId) -> Result<(), Halt> {
    let reports = match ctx.call(instance.primary, Call::Replicas { disks: mirrored(instance) }).await? {
        Reply::Replicas(reports) => reports,
        other => return Err(unexpected(&other)),
    };
    let served = |disk| reports.iter().any(|report| report.disk == disk && report.serving == Some(run));
    match mirrored(instance).into_iter().all(served) {
        true => Ok(()),
        false => Err(wrong_state(format!(
            "Disks of instance '{0}' are not served on its primary node '{1}' although it has the right to them; \
             'gnt-instance shutdown {0}' or 'gnt-instance startup {0}' settles that first",
            instance.name,
            ctx.state().node_name(instance.primary)
        ))
        .into()),
    }
}

/// The disks as the new replicas' node has to know them.
fn with_fresh(state: &State, instance: &Instance, plan: &Plan) -> Vec<DiskRef> {
    let mut disks = disks(state, instance);
    for (disk, (rid, slot)) in disks.iter_mut().zip(&plan.fresh) {
        if let Some(mirror) = &mut disk.disk.mirror {
            mirror.replicas.retain(|_, replica| replica.node != plan.node);
            let new = MirrorReplica { node: plan.node, slot: *slot, member: None, left: Version::default() };
            mirror.replicas.insert(*rid, new);
        }
    }
    disks
}

async fn carry_out(ctx: &Context, plan: &Plan) -> Result<(), Halt> {
    let state = ctx.state();
    let instance = find_id(&state, plan.id)?;
    let node = state.node_name(plan.node);
    ctx.say("STEP 1/4 Allocate new storage").await?;
    for disk in with_fresh(&state, instance, plan) {
        ctx.say(format!(" - INFO: adding new local storage on {node} for disk/{}", disk.index)).await?;
        let step = format!("disk-{}", disk.index);
        ctx.step(&step, || async { ctx.call(plan.node, Call::CreateDisk(disk)).await.map(drop) }).await?;
    }
    ctx.say("STEP 2/4 Changing drbd configuration").await?;
    // Before anything is taken away: after a loss of power the replica that goes may have writes that the primary's lacks, until
    // the disks are served.
    let run = match plan.served {
        true => None,
        false => Some(attach(ctx, plan.id).await?),
    };
    commit_on_newest(ctx, "add", |state| added(state, plan)).await?;
    if plan.same_node {
        ctx.say("STEP 3/4 Removing old storage").await?;
        remove_old(ctx, plan).await?;
    }
    ctx.say(format!("STEP {}/4 Sync devices", if plan.same_node { 4 } else { 3 })).await?;
    ctx.step("sync", || async { wait_for_sync(ctx, plan.id, &[plan.node]).await }).await?;
    if !plan.same_node {
        commit_on_newest(ctx, "drop", |state| {
            removed(state, plan.id, |rid| plan.old.iter().any(|(_, old, _)| old == &rid))
        })
        .await?;
    }
    if let Some(run) = run {
        ctx.step("host-detach", || attachment::detach(ctx, plan.id, Some(run), true)).await?;
        ctx.commit("host-disown", vec![Command::Disown { instance: plan.id, run, want: None }]).await?;
    }
    if !plan.same_node {
        ctx.say("STEP 4/4 Removing old storage").await?;
        remove_old(ctx, plan).await?;
    }
    Ok(())
}

/// Has the disks of a stopped instance served on its primary node, which fills new replicas meanwhile.
async fn attach(ctx: &Context, id: InstanceId) -> Result<RunId, Halt> {
    let run = attachment::own(ctx, "host-own", id).await?;
    ctx.step("host-attach", || async { attachment::attach(ctx, id, Some(run)).await.map(drop) }).await?;
    Ok(run)
}

/// What adds the new replicas; those that were on the same node go with the same entry.
fn added(state: &State, plan: &Plan) -> Result<Vec<Command>, Failure> {
    let mut commands = Vec::new();
    for (disk, (replica, slot)) in find_id(state, plan.id)?.disks.iter().zip(&plan.fresh) {
        let Some(mirror) = &disk.mirror else { continue };
        let mut ver = mirror.ver;
        if plan.same_node
            && let Some((old, _)) = mirror.replica_on(plan.node)
        {
            commands.push(Command::RemoveReplica { disk: disk.id, ver, replica: old });
            ver = ver.next();
        }
        let (replica, slot) = (*replica, *slot);
        commands.push(Command::AddReplica { disk: disk.id, ver, replica, node: plan.node, slot });
    }
    Ok(commands)
}

/// What takes replicas away.
fn removed(state: &State, id: InstanceId, going: impl Fn(ReplicaId) -> bool) -> Result<Vec<Command>, Failure> {
    let mut commands = Vec::new();
    for disk in &find_id(state, id)?.disks {
        let Some(mirror) = &disk.mirror else { continue };
        let mut ver = mirror.ver;
        for replica in mirror.replicas.keys().filter(|rid| going(**rid)) {
            commands.push(Command::RemoveReplica { disk: disk.id, ver, replica: *replica });
            ver = ver.next();
        }
    }
    Ok(commands)
}

/// Removes what the cluster does not count on any more. A node that can't be asked keeps it; that is not worth a failure.
async fn remove_old(ctx: &Context, plan: &Plan) -> Result<(), Halt> {
    for (node, rid, disk) in &plan.old {
        let step = format!("remove-{rid}");
        let call = Call::RemoveDisk(disk.clone());
        ctx.step(&step, || remove(ctx, *node, "old", disk.index, call)).await?;
    }
    Ok(())
}

async fn remove(ctx: &Context, node: NodeId, which: &str, index: usize, call: Call) -> Result<(), Halt> {
    let state = ctx.state();
    let why = if state.nodes.get(&node).is_none_or(|node| node.offline) {
        "it is offline".to_owned()
    } else {
        match ctx.call(node, call).await {
            Ok(_) => return Ok(()),
            Err(Halt::Failed(failure)) => failure.text,
            Err(halt) => return Err(halt),
        }
    };
    ctx.warn(format!("Can't remove the {which} storage of disk/{index} on node '{}': {why}", state.node_name(node)))
        .await
}

/// The instance has its old replicas again, and no others. One that was made anew on its own node stays, because the old one
/// there is gone: it is filled whenever the instance runs.
async fn undo(ctx: &Context, plan: &Plan) -> Result<(), Halt> {
    let state = ctx.state();
    let instance = find_id(&state, plan.id)?;
    let fresh = |rid: ReplicaId| plan.fresh.iter().any(|(fresh, _)| *fresh == rid);
    let counted = instance
        .disks
        .iter()
        .filter_map(|disk| disk.mirror.as_ref())
        .any(|it| it.replicas.keys().any(|rid| fresh(*rid)));
    let refs = with_fresh(&state, instance, plan);
    if !plan.same_node {
        commit_on_newest(ctx, "undo-add", |state| removed(state, plan.id, fresh)).await?;
    }
    if let (false, Some(run)) = (plan.served, instance.run) {
        match attachment::detach(ctx, plan.id, Some(run), true).await {
            Ok(()) => {
                let disown = attachment::disown(ctx, plan.id, run);
                ctx.commit("undo-own", disown.into_iter().collect()).await?;
            }
            Err(Halt::Failed(failure)) => {
                ctx.warn(format!("Could not detach the disks of '{}': {}", instance.name, failure.text)).await?;
            }
            Err(halt) => return Err(halt),
        }
    }
    if plan.same_node && counted {
        return Ok(());
    }
    for disk in refs {
        let index = disk.index;
        remove(ctx, plan.node, "new", index, Call::RemoveDisk(disk)).await?;
    }
    Ok(())
}
