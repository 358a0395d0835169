//! The disks of an instance: showing, growing, comparing them.

use std::time::Duration;

use model::{Command, DiskTemplate, Instance, InstanceId, NodeId, RunId, State};
use opcodes::Failure;
use opcodes::op::{InstanceActivateDisks, InstanceDeactivateDisks, InstanceGrowDisk};
use serde_json::{Value, json};

use super::attachment::{self, check_not_running};
use super::instance::{check_online, current_run, find, find_id, is_running, unexpected};
use super::mirrors::{self, check_room, commit_on_newest, holders, not_in_sync, wait_for_sync};
use super::spec::disks;
use super::{wrong_input, wrong_state};
use crate::agent::{Call, DIGEST_CHUNK, DiskRef, Reply};
use crate::context::{Context, Halt};

/// How long a node may take to read a whole disk.
const READ: Duration = Duration::from_secs(86_400);

/// Refuses what needs a node while that is marked offline.
pub fn check_nodes_online(state: &State, nodes: &[NodeId], instance: &Instance, doing: &str) -> Result<(), Failure> {
    match nodes.iter().filter_map(|node| state.nodes.get(node)).find(|node| node.offline) {
        Some(node) => {
            Err(wrong_state(format!("Cannot {doing} instance '{}': node '{}' is offline", instance.name, node.name)))
        }
        None => Ok(()),
    }
}

/// Makes a disk larger: on every node first, then for the cluster.
pub async fn grow(ctx: &Context, op: InstanceGrowDisk) -> Result<Value, Halt> {
    let (id, size_mib) = ctx.step("check", || check_growth(ctx, &op)).await?;
    let state = ctx.state();
    let instance = find_id(&state, id)?;
    let refs = disks(&state, instance);
    let disk = refs.get(op.disk).ok_or_else(|| no_disk(instance, op.disk))?;
    for node in holders(instance, &disk.disk) {
        let call = Call::GrowDisk { disk: disk.clone(), size_mib };
        ctx.step(&format!("grow-{node}"), || async { ctx.call(node, call).await.map(drop) }).await?;
    }
    commit_on_newest(ctx, "grow", |state| {
        let instance = find_id(state, id)?;
        let disk = instance.disks.get(op.disk).ok_or_else(|| no_disk(instance, op.disk))?;
        let ver = disk.mirror.as_ref().map(|mirror| mirror.ver).unwrap_or_default();
        Ok(vec![Command::Grow { disk: disk.id, ver, size_mib }])
    })
    .await?;
    let running = ctx
        .step("look", || async {
            match current_run(&state, instance) {
                Some(run) => is_running(ctx, instance, run).await,
                None => Ok(false),
            }
        })
        .await?;
    if running {
        ctx.say(format!(
            " - INFO: The guest of '{}' sees the new size of disk {} after 'gnt-instance reboot {}'",
            instance.name, op.disk, instance.name
        ))
        .await?;
    }
    Ok(Value::Null)
}

fn no_disk(instance: &Instance, index: usize) -> Failure {
    wrong_input(format!("There is no disk {index}, instance '{}' has {}", instance.name, instance.disks.len()))
}

/// The instance, and the size that the disk shall have, MiB.
async fn check_growth(ctx: &Context, op: &InstanceGrowDisk) -> Result<(InstanceId, u64), Halt> {
    let state = ctx.state();
    let instance = find(&state, &op.instance_name)?;
    let disk = instance.disks.get(op.disk).ok_or_else(|| no_disk(instance, op.disk))?;
    let old = disk.size_mib;
    let new = match op.absolute {
        true => op.amount,
        false => old
            .checked_add(op.amount)
            .ok_or_else(|| wrong_input(format!("A disk can't be {} MiB larger", op.amount)))?,
    };
    if new < old {
        let text = format!("Requested size ({new} MiB) is smaller than current disk size ({old} MiB)");
        return Err(wrong_state(text).into());
    }
    if new == old {
        return Err(wrong_input(format!("Disk {} has {old} MiB already", op.disk)).into());
    }
    let nodes = holders(instance, disk);
    check_nodes_online(&state, &nodes, instance, "grow a disk of")?;
    for node in nodes {
        let facts = mirrors::facts(ctx, &state, node).await?;
        check_room(&state, node, &facts, instance.disk_template, new - old)?;
    }
    Ok((instance.id, new))
}

/// Shows the disks of an instance on its primary node.
pub async fn activate(ctx: &Context, op: InstanceActivateDisks) -> Result<Value, Halt> {
    let (id, old) = ctx
        .step("check", || async {
            let state = ctx.state();
            let instance = find(&state, &op.instance_name)?;
            check_online(&state, instance)?;
            let old = check_not_running(ctx, instance, "activate disks").await?;
            // A node that does not answer would only be given a right that it can't use.
            mirrors::facts(ctx, &state, instance.primary).await?;
            Ok((instance.id, old))
        })
        .await?;
    let state = ctx.state();
    let instance = find_id(&state, id)?;
    let mirrored = instance.disk_template == DiskTemplate::Drbd;
    let run = match (mirrored, old) {
        (false, _) => None,
        (true, Some(run)) => Some(run),
        (true, None) => Some(attachment::own(ctx, "own", id).await?),
    };
    let attached: Result<Vec<String>, Failure> = ctx
        .step("attach", || async {
            match attachment::attach(ctx, id, run).await {
                Ok(paths) => Ok(Ok(paths)),
                Err(Halt::Failed(failure)) => Ok(Err(failure)),
                Err(halt) => Err(halt),
            }
        })
        .await?;
    let paths = match attached {
        Ok(paths) => paths,
        Err(failure) => {
            // What was attached before stays so.
            if old.is_none() {
                give_back(ctx, id, run, true).await?;
            }
            return Err(failure.into());
        }
    };
    if op.wait_for_sync && mirrored {
        wait_for_sync(ctx, id, &mirrors::nodes_of(instance)).await?;
    }
    let node = state.node_name(instance.primary);
    let names = paths.into_iter().enumerate().map(|(index, path)| json!([node, format!("disk/{index}"), path]));
    Ok(names.collect())
}

/// Takes the disks from the host, and gives back the right to them.
async fn give_back(ctx: &Context, id: InstanceId, run: Option<RunId>, force: bool) -> Result<(), Halt> {
    if ctx.is_done("disown") {
        return Ok(());
    }
    attachment::detach(ctx, id, run, force).await?;
    let disown = run.and_then(|run| attachment::disown(ctx, id, run));
    ctx.commit("disown", disown.into_iter().collect()).await.map(drop)
}

/// Ends what [`activate`] began.
pub async fn deactivate(ctx: &Context, op: InstanceDeactivateDisks) -> Result<Value, Halt> {
    let (id, run) = ctx
        .step("check", || async {
            let state = ctx.state();
            let instance = find(&state, &op.instance_name)?;
            check_online(&state, instance)?;
            Ok((instance.id, check_not_running(ctx, instance, "shutdown disks").await?))
        })
        .await?;
    let mirrored = find_id(&ctx.state(), id)?.disk_template == DiskTemplate::Drbd;
    if run.is_some() || !mirrored {
        give_back(ctx, id, run, op.force).await?;
    }
    Ok(Value::Null)
}

/// Compares the replicas of the disks of an instance that nobody uses. They are read as a whole on each node.
pub async fn verify(ctx: &Context, name: &str) -> Result<Value, Halt> {
    let state = ctx.state();
    let instance = find(&state, name)?;
    if instance.disk_template != DiskTemplate::Drbd {
        return Err(wrong_state(format!(
            "The disks of instance '{name}' are not mirrored, there is nothing to compare"
        ))
        .into());
    }
    if let Some(owner) = instance.owner.filter(|_| current_run(&state, instance).is_some()) {
        return Err(wrong_state(format!(
            "The disks of instance '{name}' are in use on node '{}'; stop it, or deactivate its disks, first",
            state.node_name(owner.node)
        ))
        .into());
    }
    let behind = not_in_sync(&state, instance);
    if !behind.is_empty() {
        return Err(wrong_state(format!(
            "The disks of instance '{name}' are not in sync on {}; they are brought up to date while the instance runs, or \
             by 'gnt-instance activate-disks --wait-for-sync {name}'",
            behind.join(",")
        ))
        .into());
    }
    let mut results = Vec::new();
    let mut wrong = Vec::new();
    for disk in disks(&state, instance) {
        let nodes = holders(instance, &disk.disk);
        let names: Vec<String> = nodes.iter().map(|node| state.node_name(*node)).collect();
        let (index, step) = (disk.index, format!("disk-{}", disk.index));
        let (chunks, different) = ctx.step(&step, || compare(ctx, &disk, &nodes)).await?;
        let text = match different.first() {
            None => format!("* disk/{index}: {chunks} chunks compared on {}: equal", names.join(", ")),
            Some(first) => format!(
                "* disk/{index}: {} of {chunks} chunks of {} MiB differ between {}, the first is chunk {first}",
                different.len(),
                DIGEST_CHUNK >> 20,
                names.join(", ")
            ),
        };
        ctx.say(text).await?;
        if !different.is_empty() {
            wrong.push(format!("disk/{index}"));
        }
        results.push(json!({"index": index, "replicas": names, "chunks": chunks, "different": different}));
    }
    if !wrong.is_empty() {
        return Err(Failure::failed(format!(
            "The replicas of {} of instance '{name}' are not equal; 'gnt-instance replace-disks --on-secondary {name}' makes \
             the second one anew from the primary's",
            wrong.join(", ")
        ))
        .into());
    }
    Ok(json!({"disks": results}))
}

/// The number of chunks of a disk, and those in which not all replicas are equal.
async fn compare(ctx: &Context, disk: &DiskRef, nodes: &[NodeId]) -> Result<(usize, Vec<usize>), Halt> {
    let asked = nodes.iter().map(|node| async {
        match ctx.call_within(*node, Call::DigestDisk(disk.clone()), READ).await? {
            Reply::Digests(digests) => Ok(digests),
            other => Err(unexpected(&other)),
        }
    });
    let digests = futures::future::try_join_all(asked).await?;
    let chunks = digests.iter().map(Vec::len).max().unwrap_or(0);
    let differs = |chunk: &usize| {
        let first = digests.first().and_then(|digests| digests.get(*chunk));
        digests.iter().any(|digests| digests.get(*chunk) != first)
    };
    Ok((chunks, (0..chunks).filter(differs).collect()))
}
