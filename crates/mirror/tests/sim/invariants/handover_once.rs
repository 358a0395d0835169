//! I9: Handover and Cancel of one migration are never both accepted, and no guest continues before either is seen.

use crate::world::World;

pub fn check(world: &World) -> Option<String> {
    let both = world.log.handed_over.iter().find(|id| world.log.cancelled.contains(id))?;
    Some(format!("I9: migration {both} was both handed over and cancelled"))
}

pub fn reply(world: &World, node: usize) -> Option<String> {
    let quiesced = world.nodes[node].boot_record.as_ref()?.quiesced?;
    let pending = world.log.instance().migration.is_some_and(|migration| migration.id == quiesced);
    pending.then(|| format!("I9: node {node} answered its guest while migration {quiesced} is undecided"))
}
