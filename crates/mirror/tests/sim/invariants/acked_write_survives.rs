//! I2: the content of every member contains all acknowledged writes (G2), its durable content all flushed ones (G1).

use crate::log::node_id;
use crate::world::World;

pub fn check(world: &World) -> Option<String> {
    for (index, node) in world.nodes.iter().enumerate() {
        if !world.log.mirror().is_member_on(node_id(index)) {
            continue;
        }
        for unit in 0..world.oracle.units() {
            let durable = world.oracle.allowed_durable(unit);
            if !durable.contains(&node.medium.durable[unit]) {
                let holds = node.medium.durable[unit];
                return Some(format!(
                    "I2: unit {unit} of member {index} durably holds {holds:#x}, of flushed writes {durable:x?}"
                ));
            }
            // A member that lost its power may lack what was not flushed.
            let allowed = if node.relaxed { durable } else { world.oracle.allowed(unit) };
            if !allowed.contains(&node.medium.cache[unit]) {
                let holds = node.medium.cache[unit];
                return Some(format!("I2: unit {unit} of member {index} holds {holds:#x}, of writes {allowed:x?}"));
            }
        }
    }
    None
}
