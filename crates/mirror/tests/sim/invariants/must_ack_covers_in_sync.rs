//! I3 (W6): what the primary of the current epoch waits for contains the in-sync set, whatever is still unknown.

use crate::world::World;

pub fn check(world: &World) -> Option<String> {
    let mirror = world.log.mirror();
    for (index, node) in world.nodes.iter().enumerate() {
        let Some((epoch, must_ack)) = node.daemon.as_ref().and_then(|daemon| daemon.must_ack()) else { continue };
        let missing: Vec<_> = mirror.in_sync().into_iter().filter(|rid| !must_ack.contains(rid)).collect();
        if epoch == mirror.epoch && !missing.is_empty() {
            return Some(format!("I3: node {index} does not wait for {missing:?}, which are in sync"));
        }
    }
    None
}
