//! I1: completed writes of an epoch come from its primary; after a higher epoch serves, none completes that is not in what
//! it was admitted with.

use model::Epoch;

use crate::guest::Asked;
use crate::medium::units;
use crate::world::World;

pub fn serving(world: &mut World, node: usize, epoch: Epoch) -> Option<String> {
    let before = *world.served.entry(epoch).or_insert(node);
    if before != node {
        return Some(format!("I1: nodes {before} and {node} both serve epoch {epoch}"));
    }
    None
}

pub fn reply(world: &World, node: usize, asked: &Asked) -> Option<String> {
    let epoch = world.nodes[node].daemon.as_ref()?.status().epoch;
    let (newest, _) = world.served.last_key_value()?;
    let Asked::Write(range, stamp, ..) = asked else { return None };
    let admitted = units(*range).all(|unit| world.exposed[unit] == *stamp);
    (epoch < *newest && !admitted)
        .then(|| format!("I1: node {node} acknowledged a write in epoch {epoch}, but {newest} is served"))
}
