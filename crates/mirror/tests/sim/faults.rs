//! What goes wrong, and what is done on purpose meanwhile.

use crate::agent::{self, Doing};
use crate::world::{Ev, World};

pub fn act(world: &mut World) {
    if !world.faults {
        return;
    }
    let pause = world.rng.range(20_000, 600_000);
    world.after(pause, Ev::Fault);
    let count = world.nodes.len() as u64;
    let node = world.rng.range(0, count) as usize;
    let other = (node + world.rng.range(1, count) as usize) % world.nodes.len();
    match world.rng.range(0, 100) {
        0..18 => {
            world.kill_daemon(node);
            let back = world.rng.range(1_000, 400_000);
            world.after(back, Ev::Restart(node));
        }
        18..30 => {
            world.cut_power(node);
            let back = world.rng.range(100_000, 2_500_000);
            world.after(back, Ev::Boot(node));
        }
        30..48 => cut(world, node, other),
        48..54 => {
            world.log_down = true;
            let back = world.rng.range(100_000, 1_500_000);
            world.after(back, Ev::LogBack);
        }
        54..56 => {
            for node in 0..world.nodes.len() {
                world.cut_power(node);
                let back = world.rng.range(100_000, 1_500_000);
                world.after(back, Ev::Boot(node));
            }
        }
        _ => on_purpose(world, other),
    }
}

/// A fault between these two.
pub fn strike(world: &mut World, node: usize, other: usize) {
    let victim = if world.rng.chance(60) { node } else { other };
    match world.rng.range(0, 10) {
        _ if !world.faults => {}
        0..5 => {
            world.kill_daemon(victim);
            let back = world.rng.range(1_000, 200_000);
            world.after(back, Ev::Restart(victim));
        }
        5..6 => {
            world.cut_power(victim);
            let back = world.rng.range(100_000, 1_500_000);
            world.after(back, Ev::Boot(victim));
        }
        _ => cut(world, node, other),
    }
}

fn cut(world: &mut World, from: usize, to: usize) {
    let last = match world.rng.chance(60) {
        true => world.rng.range(10_000, 700_000),
        false => world.rng.range(500_000, 3_000_000),
    };
    let both = world.rng.chance(70);
    world.note(|| format!("cut from node {from} to node {to}, both ways: {both}"));
    for (from, to) in [(from, to), (to, from)].into_iter().take(1 + usize::from(both)) {
        world.net.cut.insert((from, to));
        world.after(last, Ev::Heal(from, to));
    }
}

fn on_purpose(world: &mut World, other: usize) {
    let Some(owner) = world.owner() else { return };
    if world.agent.doing != Doing::Nothing || !world.guest.alive {
        return;
    }
    match world.rng.range(0, 100) {
        0..35 => agent::fail_over(world, owner),
        35..80 if other != owner => agent::migrate(world, owner, other),
        80.. => agent::take_over(world, owner),
        _ => {}
    }
}
