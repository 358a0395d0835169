//! I4: what a newly admitted guest is shown equals the content of all members, and is flushed (G3).

use crate::log::node_id;
use crate::world::World;

pub fn serving(world: &mut World, index: usize) -> Option<String> {
    let mirror = world.log.mirror();
    if mirror.primary.is_none_or(|primary| primary.node != node_id(index)) {
        // It was replaced before it began to serve; it will find out.
        return None;
    }
    let members: Vec<usize> = (0..world.nodes.len()).filter(|node| mirror.is_member_on(node_id(*node))).collect();
    let source = if members.contains(&index) { index } else { *members.first()? };
    let shown = world.nodes[source].medium.cache.clone();
    for (unit, value) in shown.iter().enumerate() {
        let allowed = match world.nodes[source].relaxed {
            true => world.oracle.allowed_durable(unit),
            false => world.oracle.allowed(unit),
        };
        if !allowed.contains(value) {
            return Some(format!("I4: unit {unit} is shown as {value:#x}, allowed is {allowed:x?}"));
        }
    }
    for member in members {
        let medium = &world.nodes[member].medium;
        if medium.cache != shown || medium.durable != shown {
            return Some(format!(
                "I4: member {member} differs from what is shown: {:x?} (durable {:x?}), not {shown:x?}",
                medium.cache, medium.durable
            ));
        }
        world.nodes[member].relaxed = false;
    }
    let pending = world.guest.pending(world.log.mirror().run);
    world.oracle.expose(&shown, &pending);
    world.guest.is_shown(&shown);
    world.exposed = shown;
    None
}
