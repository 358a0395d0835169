//! The protocol's invariants (section 14), checked after every step.

mod acked_write_survives;
mod dirty_covers_difference;
mod exposed_is_stable;
mod handover_once;
mod must_ack_covers_in_sync;
mod one_writer_per_epoch;

use mirror::engine::GuestReply;
use model::Epoch;

use crate::guest::Asked;
use crate::world::World;

/// After every step.
pub fn check(world: &mut World) {
    // In manual mode a primary may go on alone before the log knows (7.2): what its peer lacks then is what it may cost.
    let strict = world.plan.mode == model::MirrorMode::Strict;
    let members = |world: &World| acked_write_survives::check(world).or_else(|| must_ack_covers_in_sync::check(world));
    let broken = if strict { members(world) } else { None }
        .or_else(|| dirty_covers_difference::check(world))
        .or_else(|| handover_once::check(world));
    if let Some(what) = broken {
        world.violate(what);
    }
}

/// A node admits a run.
pub fn serving(world: &mut World, node: usize, epoch: Epoch) {
    let broken = one_writer_per_epoch::serving(world, node, epoch).or_else(|| exposed_is_stable::serving(world, node));
    if let Some(what) = broken {
        world.violate(what);
    }
}

/// A guest is answered.
pub fn reply(world: &mut World, node: usize, asked: &Asked) {
    let broken = one_writer_per_epoch::reply(world, node, asked).or_else(|| handover_once::reply(world, node));
    if let Some(what) = broken {
        world.violate(what);
    }
}

/// A guest that was stopped is answered.
pub fn late_reply(world: &mut World, node: usize, asked: &Asked, reply: &GuestReply) {
    if *reply == GuestReply::Done
        && let Some(what) = one_writer_per_epoch::reply(world, node, asked)
    {
        world.violate(what);
    }
}
