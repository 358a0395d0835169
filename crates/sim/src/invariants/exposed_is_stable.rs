//! I4: what a newly admitted guest is shown equals the content of all members, and is flushed (G3).

use crate::cluster::{index, node_id};
use crate::disk::mirror_in;
use crate::world::World;

pub fn serving(world: &mut World, node: usize, disk: usize) -> Option<String> {
    let mirror = mirror_in(&world.raft.state, disk)?;
    if mirror.primary.is_none_or(|primary| primary.node != node_id(node)) {
        // It was replaced before it began to serve; it will find out.
        return None;
    }
    let (run, epoch) = (mirror.run, mirror.epoch);
    let members = mirror.replicas.values().filter(|replica| replica.member.is_some());
    let members: Vec<usize> = members.map(|replica| index(replica.node)).collect();
    let source = if members.contains(&node) { node } else { *members.first()? };
    let store = world.machines[source].stores.get(&disk)?;
    let shown = store.medium.cache.clone();
    for (unit, value) in shown.iter().enumerate() {
        let oracle = &world.shared[disk].oracle;
        let allowed = if store.relaxed { oracle.allowed_durable(unit) } else { oracle.allowed(unit) };
        if !allowed.contains(value) {
            return Some(format!("I4: unit {unit} of disk {disk} is shown as {value:#x}, allowed is {allowed:x?}"));
        }
    }
    for member in members {
        let store = world.machines[member].stores.get_mut(&disk)?;
        let medium = &store.medium;
        if medium.cache != shown || medium.durable != shown {
            return Some(format!(
                "I4: member {member} of disk {disk} differs from what is shown: {:x?} (durable {:x?}), not {shown:x?}",
                medium.cache, medium.durable
            ));
        }
        store.relaxed = false;
    }
    let pending = crate::guest::pending(world, disk, run);
    world.shared[disk].oracle.expose(&shown, &pending);
    crate::guest::is_shown(world, disk, &shown);
    world.shared[disk].exposed.insert(epoch, shown);
    None
}
