//! What the state says about the disks of a node.

use std::collections::BTreeMap;

use model::{DiskId, Instance, Life, Mirror, NodeId, NodeLife, ReplicaId, RunId, State, Uuid};

use crate::engine::View;

/// A mirrored disk, with its instance.
pub(super) fn find(state: &State, disk: DiskId) -> Option<(&Instance, &Mirror)> {
    state.instances.values().find_map(|instance| {
        let found = instance.disks.iter().find(|it| it.id == disk)?;
        Some((instance, found.mirror.as_ref()?))
    })
}

/// All replicas that a node has.
pub(super) fn replicas_on(state: &State, node: NodeId) -> BTreeMap<DiskId, ReplicaId> {
    let disks = state.instances.values().flat_map(|instance| &instance.disks);
    disks.filter_map(|disk| Some((disk.id, disk.mirror.as_ref()?.replica_on(node)?.0))).collect()
}

/// What a replica of the disk has to know.
pub(super) fn view(state: &State, disk: DiskId) -> Option<View> {
    let (instance, mirror) = find(state, disk)?;
    let nodes = mirror.replicas.values().map(|replica| replica.node);
    Some(View {
        inc: state.incarnation,
        mirror: mirror.clone(),
        lives: nodes.filter_map(|node| Some((node, state.nodes.get(&node)?.life))).collect(),
        migration: instance.migration.map(|migration| (migration.id, migration.run)),
    })
}

/// A node's life, if it is one in this boot that was not declared dead.
pub(super) fn life(state: &State, node: NodeId, boot: &str) -> Option<Life> {
    state.nodes.get(&node).filter(|it| it.boot == boot && it.life != Life(0) && !it.dead).map(|it| it.life)
}

/// The run that `me` may serve as the disk's primary.
pub(super) fn run_of(mirror: &Mirror, me: NodeLife) -> Option<RunId> {
    mirror.run.filter(|_| mirror.primary == Some(me))
}

/// Whether a migration of the disk's instance is undecided.
pub(super) fn is_pending(state: &State, disk: DiskId, migration: Uuid) -> bool {
    let found = find(state, disk).and_then(|(instance, _)| instance.migration);
    found.is_some_and(|pending| pending.id == migration)
}

/// The run that a migration prepares for `me`.
pub(super) fn prepared_for(instance: &Instance, me: NodeLife) -> Option<RunId> {
    instance.migration.filter(|migration| migration.to == me).map(|migration| migration.run)
}
