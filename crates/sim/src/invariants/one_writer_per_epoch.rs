//! I1: completed writes of an epoch come from its primary; after a higher epoch serves, none completes that is not in what
//! it was admitted with (an acknowledgement may come so late that it has been overwritten since). I13: nor is a read answered then.

use std::ops::Bound::{Excluded, Unbounded};

use model::Epoch;

use crate::guest::Asked;
use crate::medium::units;
use crate::world::World;

pub fn serving(world: &mut World, node: usize, disk: usize, epoch: Epoch) -> Option<String> {
    let before = *world.shared[disk].served.entry(epoch).or_insert(node);
    (before != node).then(|| format!("I1: nodes {before} and {node} both serve epoch {epoch} of disk {disk}"))
}

pub fn replied(world: &World, node: usize, disk: usize, asked: &Asked) -> Option<String> {
    let shared = &world.shared[disk];
    let epoch = world.machines[node].stores.get(&disk)?.replica.as_ref()?.status().epoch;
    let (newest, _) = shared.served.last_key_value()?;
    if epoch >= *newest {
        return None;
    }
    match asked {
        Asked::Write(range, stamp, _) => {
            let (_, shown) = shared.exposed.range((Excluded(epoch), Unbounded)).next()?;
            let admitted = units(*range).all(|unit| shown[unit] == *stamp);
            (!admitted).then(|| {
                format!("I1: node {node} acknowledged a write to disk {disk} in epoch {epoch}, but {newest} is served")
            })
        }
        Asked::Read(..) => {
            Some(format!("I13: node {node} answered a read of disk {disk} in epoch {epoch}, but {newest} is served"))
        }
        Asked::Flush(_) => None,
    }
}
