//! I6: when a life was declared dead for its silence, the node's lease for it is past, by its own clock.

use model::Life;

use crate::world::World;

pub fn check(world: &World, node: usize, life: Life) -> Option<String> {
    let until = world.leases.get(&(node, life)).copied().unwrap_or_default();
    let now = world.machines[node].clock.show(world.now);
    (now < until)
        .then(|| format!("I6: node {node} was declared dead in life {life}, its lease lasts {:?} more", until - now))
}
