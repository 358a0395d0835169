//! I2: the content of every member contains all acknowledged writes (G2), its durable content all flushed ones (G1).

use crate::cluster::index;
use crate::disk::mirror_in;
use crate::world::World;

pub fn check(world: &World) -> Option<String> {
    world.touched.iter().find_map(|disk| of_disk(world, *disk))
}

fn of_disk(world: &World, disk: usize) -> Option<String> {
    let oracle = &world.shared[disk].oracle;
    let members = mirror_in(&world.raft.state, disk)?.replicas.values().filter(|replica| replica.member.is_some());
    let members: Vec<usize> = members.map(|replica| index(replica.node)).collect();
    for unit in 0..oracle.units() {
        let durable = oracle.allowed_durable(unit);
        let allowed = oracle.allowed(unit);
        for member in &members {
            let store = world.machines[*member].stores.get(&disk)?;
            let (holds, kept) = (store.medium.cache[unit], store.medium.durable[unit]);
            if !durable.contains(&kept) {
                return Some(format!(
                    "I2: unit {unit} of disk {disk} on member {member} durably holds {kept:#x}, of flushed writes {durable:x?}"
                ));
            }
            // A member that lost its power may lack what was not flushed.
            let allowed = if store.relaxed { &durable } else { &allowed };
            if !allowed.contains(&holds) {
                return Some(format!(
                    "I2: unit {unit} of disk {disk} on member {member} holds {holds:#x}, of {allowed:x?}"
                ));
            }
        }
    }
    None
}
