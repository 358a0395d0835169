//! Replicas of mirrored disks: where new ones may lie, changing the list of them, waiting until they are in sync.

use std::collections::BTreeSet;
use std::time::Duration;

use model::{Command, Disk, DiskTemplate, Instance, InstanceId, Mirror, MirrorMode, NodeId, ReplicaId, State, voters};
use opcodes::disks::ReplicaReport;
use opcodes::{ErrorCode, Failure};

use super::instance::{current_run, unexpected};
use super::{find_node, wrong_input, wrong_state};
use crate::agent::{Call, Facts, Reply};
use crate::context::{Context, Halt};

/// How often is looked how far a resync is.
const LOOK: Duration = Duration::from_secs(1);
/// Looks without any progress after which is told why.
const HINT: u32 = 5;
/// Looks without any progress after which waiting for a resync is given up.
const PATIENCE: u32 = 60;

/// By which rules new replicas go on alone: strictly where three nodes or more vote, or nodes are still armed from when they
/// did. What is agreed on about the disk may be less strict than its replicas, never more.
pub fn mode(state: &State) -> MirrorMode {
    let master = state.office.map_or(NodeId(1), |office| office.node);
    match voters(state, &BTreeSet::new(), master).len() {
        0..=2 if !state.nodes.values().any(|node| node.armed) => MirrorMode::Manual,
        _ => MirrorMode::Strict,
    }
}

/// A new disk's replicas on these nodes, all empty and so in sync. Choose inside a step.
pub fn new_mirror(ctx: &Context, state: &State, nodes: &[NodeId]) -> Mirror {
    let boot = |node: &NodeId| state.nodes.get(node).map_or_else(String::new, |node| node.boot.clone());
    Mirror::new(mode(state), nodes.iter().map(|node| (ReplicaId(ctx.new_uuid()), *node, boot(node))))
}

/// The node of that name, if it may take an instance or a replica; `role` is `primary` or `secondary`.
pub fn usable_node(state: &State, name: &str, role: &str) -> Result<NodeId, Failure> {
    let id = find_node(state, name)?;
    let node = &state.nodes[&id];
    let refused = if node.offline {
        "offline"
    } else if node.drained {
        "drained"
    } else if !node.vm_capable {
        "non-vm_capable"
    } else {
        return Ok(id);
    };
    Err(wrong_state(format!("Cannot use {refused} {role} node '{name}'")))
}

/// The node for the second replica, by its name.
pub fn secondary_node(state: &State, name: Option<&str>, primary: NodeId) -> Result<NodeId, Failure> {
    let Some(name) = name else {
        return Err(wrong_input(
            "The networked disk templates need a secondary node; name it as in '-n NODE:SECONDARY'",
        ));
    };
    let id = usable_node(state, name, "secondary")?;
    if id == primary {
        return Err(wrong_input("The secondary node cannot be the primary node."));
    }
    Ok(id)
}

/// What a node has and runs.
pub async fn facts(ctx: &Context, state: &State, node: NodeId) -> Result<Facts, Halt> {
    match ctx.call(node, Call::facts(state)).await? {
        Reply::Facts(facts) => Ok(*facts),
        other => Err(unexpected(&other)),
    }
}

/// Refuses what a node has not enough space for.
pub fn check_room(
    state: &State,
    node: NodeId,
    facts: &Facts,
    template: DiskTemplate,
    needed_mib: u64,
) -> Result<(), Failure> {
    let free = match template {
        DiskTemplate::Drbd => facts.mirror_free_mib,
        DiskTemplate::File => facts.disk_free_mib,
        DiskTemplate::Diskless => return Ok(()),
    };
    if needed_mib <= free {
        return Ok(());
    }
    Err(Failure::refused(
        ErrorCode::InsufficientResources,
        format!(
            "Not enough disk space on target node {}: required {needed_mib} MiB, available {free} MiB",
            state.node_name(node)
        ),
    ))
}

/// All nodes of an instance, the primary one first.
pub fn nodes_of(instance: &Instance) -> Vec<NodeId> {
    std::iter::once(instance.primary).chain(instance.secondaries.iter().copied()).collect()
}

/// The nodes that hold something of a disk.
pub fn holders(instance: &Instance, disk: &Disk) -> Vec<NodeId> {
    match &disk.mirror {
        None => vec![instance.primary],
        // The primary's first.
        Some(mirror) => {
            let mut nodes: Vec<NodeId> = mirror.replicas.values().map(|replica| replica.node).collect();
            nodes.sort_by_key(|node| *node != instance.primary);
            nodes
        }
    }
}

/// The nodes whose replicas of an instance's disks are not all in sync, by name.
pub fn not_in_sync(state: &State, instance: &Instance) -> Vec<String> {
    let replicas = instance.disks.iter().filter_map(|disk| disk.mirror.as_ref()).flat_map(|it| it.replicas.values());
    let nodes: BTreeSet<NodeId> =
        replicas.filter(|replica| replica.member.is_none()).map(|replica| replica.node).collect();
    nodes.into_iter().map(|node| state.node_name(node)).collect()
}

/// As [`Context::commit`], for commands that name versions of disks: they are made anew as long as they come too late
/// because a disk's record has changed meanwhile.
///
/// # Errors
/// What `commands` fails with; the rejection of commands that the newest state would have made just so.
pub async fn commit_on_newest(
    ctx: &Context,
    step: &str,
    commands: impl Fn(&State) -> Result<Vec<Command>, Failure>,
) -> Result<(), Halt> {
    loop {
        let made = if ctx.is_done(step) { Vec::new() } else { commands(&ctx.state())? };
        match ctx.commit(step, made.clone()).await {
            Ok(_) => return Ok(()),
            Err(Halt::Failed(failure)) if commands(&ctx.state())? == made => return Err(failure.into()),
            Err(Halt::Failed(_)) => {}
            Err(halt) => return Err(halt),
        }
    }
}

/// Waits until the replicas of an instance's disks on these nodes are in sync, and tells how far they are. They are filled
/// while the instance's node serves the disks.
///
/// # Errors
/// When nothing serves the disks any more, or nothing happens for a minute.
pub async fn wait_for_sync(ctx: &Context, id: InstanceId, nodes: &[NodeId]) -> Result<(), Halt> {
    let lacking = |state: &State| -> Vec<(usize, ReplicaId, NodeId)> {
        let disks = state.instances.get(&id).map_or(&[][..], |instance| &instance.disks);
        let mirrors = disks.iter().enumerate().filter_map(|(index, disk)| Some((index, disk.mirror.as_ref()?)));
        let replicas = mirrors
            .flat_map(|(index, mirror)| mirror.replicas.iter().map(move |(rid, replica)| (index, *rid, replica)));
        let lacking = replicas.filter(|(_, _, it)| it.member.is_none() && nodes.contains(&it.node));
        lacking.map(|(index, rid, replica)| (index, rid, replica.node)).collect()
    };
    let state = ctx.state();
    let name = state.instances.get(&id).map_or_else(String::new, |instance| instance.name.clone());
    ctx.say(format!(" - INFO: Waiting for instance {name} to sync disks")).await?;
    let mut told: Vec<String> = Vec::new();
    let mut quiet = 0;
    loop {
        let state = ctx.state();
        let missing = lacking(&state);
        let Some((_, _, node)) = missing.first() else { break };
        let instance = state.instances.get(&id).ok_or_else(|| Failure::unknown("Instance", id))?;
        if current_run(&state, instance).is_none() {
            return Err(wrong_state(format!("nothing serves the disks of instance '{name}' any more")).into());
        }
        let reports = reports(ctx, instance).await?;
        // What is in sync by now has no progress to tell.
        let now = ctx.state();
        let still = lacking(&now);
        let lines: Vec<String> = missing
            .iter()
            .filter(|replica| still.contains(replica))
            .map(|(index, rid, node)| progress(*index, instance, *rid, &state.node_name(*node), &reports))
            .collect();
        quiet = if lines == told { quiet + 1 } else { 0 };
        if quiet > PATIENCE {
            return Err(Failure::failed(format!(
                "the replica on node '{}' is not brought up to date: {}; see 'cardume disk status'",
                state.node_name(*node),
                lines.first().map_or("", |line| line.trim_start_matches(" - INFO: - "))
            ))
            .into());
        }
        // A replica that is only just being connected is nothing to tell of; one that stays so is.
        let new = |line: &&String| if line.contains("% done") { !told.contains(line) } else { quiet == HINT };
        for line in lines.iter().filter(new) {
            ctx.say(line.clone()).await?;
        }
        told = lines;
        let world = ctx.world();
        let changed = async {
            let mut seen = world.state();
            while lacking(&seen) == missing {
                seen = world.changed(&seen).await;
            }
        };
        futures::future::select(std::pin::pin!(changed), world.sleep(LOOK)).await;
    }
    ctx.say(format!(" - INFO: Instance {name}'s disks are in sync")).await
}

/// What the primary node says of an instance's replicas; nothing, while it does not answer.
async fn reports(ctx: &Context, instance: &Instance) -> Result<Vec<ReplicaReport>, Halt> {
    let disks = super::instance::mirrored(instance);
    match ctx.call(instance.primary, Call::Replicas { disks }).await {
        Ok(Reply::Replicas(reports)) => Ok(reports),
        Ok(other) => Err(unexpected(&other)),
        Err(Halt::Failed(_)) => Ok(Vec::new()),
        Err(halt) => Err(halt),
    }
}

/// How far a replica is, in Ganeti's words.
fn progress(index: usize, instance: &Instance, rid: ReplicaId, node: &str, reports: &[ReplicaReport]) -> String {
    let mirror = instance.disks.get(index).and_then(|disk| Some((disk.id, disk.mirror.as_ref()?)));
    let peer = mirror.filter(|(_, mirror)| mirror.replicas.contains_key(&rid)).and_then(|(disk, _)| {
        let report = reports.iter().find(|report| report.disk == disk)?;
        report.peers.iter().find(|peer| peer.node == node)
    });
    let Some(peer) = peer else {
        return format!(" - INFO: - device disk/{index}: {node} is not known to be connected");
    };
    if let Some(why) = &peer.refused {
        return format!(" - INFO: - device disk/{index}: {node} is kept aside: {why}");
    }
    let Some(resync) = peer.resync else {
        return format!(" - INFO: - device disk/{index}: {node} is {}", peer.connection);
    };
    let percent = match resync.total {
        0 => 100.0,
        total => resync.done as f64 / total as f64 * 100.0,
    };
    let left = match resync.eta_s {
        Some(seconds) => format!("{} remaining (estimated)", seconds_text(seconds)),
        None => "no time estimate".to_owned(),
    };
    format!(" - INFO: - device disk/{index}: {percent:5.2}% done, {left}")
}

/// `1h 2m 3s`.
fn seconds_text(seconds: u64) -> String {
    let (hours, minutes) = (seconds / 3600, seconds % 3600 / 60);
    let mut parts = Vec::new();
    if hours > 0 {
        parts.push(format!("{hours}h"));
    }
    if hours > 0 || minutes > 0 {
        parts.push(format!("{minutes}m"));
    }
    parts.push(format!("{}s", seconds % 60));
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_with_what_it_has() {
        for (seconds, text) in [(0, "0s"), (59, "59s"), (90, "1m 30s"), (3600, "1h 0m 0s"), (7384, "2h 3m 4s")] {
            assert_eq!(seconds_text(seconds), text);
        }
    }
}
