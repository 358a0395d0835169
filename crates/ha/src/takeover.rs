//! Who takes over what, in which order (T4, 8.5).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use model::{AdminState, Instance, InstanceId, NodeId, Provision, State};

/// What the master knows of a node besides the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Memory for further guests, MiB; of a node that was never asked it is taken to be enough.
    pub memory_mib: Option<u64>,
}

/// What becomes of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// It.
    pub instance: InstanceId,
    /// Where it goes and why there, or why it goes nowhere; each one sentence for people.
    pub to: Result<(NodeId, String), String>,
}

/// Where every instance goes that should run and whose owner's life has ended, the important ones first (parameter
/// `ha_priority`, then the name). `state` is as it will be: with the dead node's death applied. Nodes that are dead, offline or
/// not `vm_capable` get nothing; drained ones only if there is nobody else.
pub fn plan(state: &State, rooms: &BTreeMap<NodeId, Room>) -> Vec<Choice> {
    let mut orphans: Vec<&Instance> = state.instances.values().filter(|instance| is_orphan(state, instance)).collect();
    orphans.sort_by_key(|instance| (Reverse(priority(state, instance)), &instance.name));
    let mut free: BTreeMap<NodeId, u64> =
        rooms.iter().filter_map(|(node, room)| Some((*node, room.memory_mib?))).collect();
    let place = |instance: &Instance| {
        let to = place(state, instance, &free);
        if let Ok((node, _)) = &to
            && let Some(memory) = free.get_mut(node)
        {
            *memory = memory.saturating_sub(state.memory_mib(instance));
        }
        Choice { instance: instance.id, to }
    };
    orphans.into_iter().map(place).collect()
}

/// What [`plan`] would do if `node` died now; for a node that is dead already, or owns nothing, empty.
pub fn rehearse(state: &State, node: NodeId, rooms: &BTreeMap<NodeId, Room>) -> Vec<Choice> {
    let owned = |choice: &Choice| {
        let owner = state.instances.get(&choice.instance).and_then(|instance| instance.owner);
        owner.is_some_and(|owner| owner.node == node && !state.is_void(owner))
    };
    let mut choices = plan(&state.after_death(node), rooms);
    choices.retain(owned);
    choices
}

/// A node on which an instance could run without the one that it is on, or was.
pub(crate) struct Candidate {
    pub node: NodeId,
    pub drained: bool,
    /// It was booted since its replicas became members: what was not flushed before may be missing (protocol, section 4).
    pub shaken: bool,
}

/// The nodes that live, may run guests, and have a replica in sync of each of an instance's disks.
pub(crate) fn candidates(state: &State, instance: &Instance) -> Vec<Candidate> {
    let suits = |(id, node): (&NodeId, &model::Node)| {
        let mirrors = instance.disks.iter().map(|disk| disk.mirror.as_ref());
        let boots: Option<Vec<&String>> = mirrors.map(|mirror| mirror?.replica_on(*id)?.1.member.as_ref()).collect();
        let boots = boots.filter(|boots| !boots.is_empty())?;
        let able = node.vm_capable && !node.offline && state.live(*id).is_some();
        let shaken = boots.iter().any(|boot| **boot != node.boot);
        able.then_some(Candidate { node: *id, drained: node.drained, shaken })
    };
    state.nodes.iter().filter_map(suits).collect()
}

fn is_orphan(state: &State, instance: &Instance) -> bool {
    instance.want == AdminState::Up
        && instance.provision == Provision::Ready
        && instance.owner.is_some_and(|owner| state.is_void(owner))
}

fn priority(state: &State, instance: &Instance) -> i64 {
    let filled = state.filled_beparams(&instance.beparams);
    filled.get("ha_priority").and_then(|value| value.as_int()).unwrap_or(0)
}

fn place(state: &State, instance: &Instance, free: &BTreeMap<NodeId, u64>) -> Result<(NodeId, String), String> {
    if let Some(why) = state.unprotected(instance) {
        return Err(why);
    }
    let needs = state.memory_mib(instance);
    let has = |candidate: &Candidate| free.get(&candidate.node).copied();
    let all = candidates(state, instance);
    let fits = all.iter().filter(|candidate| has(candidate).is_none_or(|memory| memory >= needs));
    let best = fits.min_by_key(|candidate| {
        let memory = has(candidate).unwrap_or(u64::MAX);
        // After a loss of power everywhere it stays at home, if its data is as good there.
        (candidate.drained, candidate.shaken, candidate.node != instance.primary, Reverse(memory), candidate.node)
    });
    let Some(best) = best else {
        return Err(why_nowhere(state, instance, &all, needs, free));
    };
    let mut reason = format!("{} has all data of it in sync", state.node_name(best.node));
    if let Some(memory) = has(best) {
        reason += &format!(" and {memory} MiB free");
    }
    if best.drained {
        reason += "; it is drained, but no other node could take it";
    }
    if best.shaken {
        reason += "; it was booted since it got them: what its guest had not flushed before may be missing";
    }
    Ok((best.node, reason))
}

fn why_nowhere(
    state: &State,
    instance: &Instance,
    all: &[Candidate],
    needs: u64,
    free: &BTreeMap<NodeId, u64>,
) -> String {
    if !all.is_empty() {
        let memory = |candidate: &Candidate| {
            let free = free.get(&candidate.node).copied().unwrap_or_default();
            format!("{} has {free} MiB free", state.node_name(candidate.node))
        };
        let each: Vec<String> = all.iter().map(memory).collect();
        return format!("its {needs} MiB of memory fit nowhere that has its data: {}", each.join(", "));
    }
    let owner = instance.owner.map(|owner| owner.node);
    let others: Vec<String> =
        other_nodes(instance, owner).into_iter().map(|node| lacks(state, instance, node)).collect();
    match &others[..] {
        [] => "no other node has a replica of its disks".into(),
        others => format!("no other node can run it with its data: {}", others.join("; ")),
    }
}

/// Nodes with replicas, but for the one that the instance was on.
fn other_nodes(instance: &Instance, owner: Option<NodeId>) -> Vec<NodeId> {
    let mirrors = instance.disks.iter().filter_map(|disk| disk.mirror.as_ref());
    let mut nodes: Vec<NodeId> =
        mirrors.flat_map(|mirror| mirror.replicas.values().map(|replica| replica.node)).collect();
    nodes.sort_unstable();
    nodes.dedup();
    nodes.retain(|node| Some(*node) != owner);
    nodes
}

/// Why a node with a replica can't run an instance: one clause.
fn lacks(state: &State, instance: &Instance, id: NodeId) -> String {
    let name = state.node_name(id);
    let Some(node) = state.nodes.get(&id) else { return format!("{name} is gone") };
    let missing = instance.disks.iter().enumerate().find_map(|(index, disk)| {
        let mirror = disk.mirror.as_ref()?;
        (!mirror.is_member_on(id)).then(|| match mirror.replica_on(id) {
            Some((_, replica)) if replica.left.v > 0 => {
                format!("the replica of disk/{index} on {name} is not in sync: it left in version {}", replica.left)
            }
            Some(_) => format!("the replica of disk/{index} on {name} has not been in sync yet"),
            None => format!("{name} has no replica of disk/{index}"),
        })
    });
    match missing {
        _ if node.dead => format!("{name} is dead"),
        Some(missing) => missing,
        None if node.offline => format!("{name} is marked offline"),
        None if !node.vm_capable => format!("{name} is not vm_capable"),
        None => format!("{name} has not joined"),
    }
}

#[cfg(test)]
mod tests;
