//! The protocol's invariants (section 14), checked after every step. One file each.

mod acked_write_survives;
mod address_on_one_node;
mod dead_means_lapsed;
mod exposed_is_stable;
mod one_running_owner;
mod one_writer_per_epoch;

use model::{Command, Epoch, Proposal};

use crate::guest::Asked;
use crate::world::World;

/// After every step.
pub fn check(world: &mut World) {
    let broken = one_running_owner::check(world)
        .or_else(|| address_on_one_node::check(world))
        .or_else(|| acked_write_survives::check(world));
    world.touched.clear();
    note(world, broken);
}

/// An entry was committed and accepted.
pub fn committed(world: &mut World, proposal: &Proposal) {
    for command in &proposal.commands {
        match command {
            Command::NodeDead { node, life, .. } => {
                world.tally.deaths += 1;
                let broken = dead_means_lapsed::check(world, crate::cluster::index(*node), *life);
                note(world, broken);
            }
            Command::Takeover { .. } => world.tally.takeovers += 1,
            Command::TakeOffice { .. } => world.tally.offices += 1,
            _ => {}
        }
        if let Some((disk, node)) = crate::disk::joined(command)
            && let Some(store) = world.machines[node].stores.get_mut(&disk)
            && store.is_intact()
        {
            store.relaxed = false;
        }
    }
    world.touched.extend(0..world.plan.disks);
}

/// A node admits a run to a disk.
pub fn serving(world: &mut World, node: usize, disk: usize, epoch: Epoch) {
    let broken = one_writer_per_epoch::serving(world, node, disk, epoch)
        .or_else(|| exposed_is_stable::serving(world, node, disk));
    note(world, broken);
}

/// A guest, or one that was, is answered.
pub fn replied(world: &mut World, node: usize, disk: usize, asked: &Asked) {
    let broken = one_writer_per_epoch::replied(world, node, disk, asked);
    note(world, broken);
}

fn note(world: &mut World, broken: Option<String>) {
    if let Some(what) = broken {
        world.violate(what);
    }
}
