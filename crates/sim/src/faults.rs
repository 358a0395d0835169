//! What goes wrong.

use crate::node::{Role, Signal};
use crate::world::{Ev, World};

/// Something goes wrong, and the next thing a while later.
pub fn act(world: &mut World) {
    if !world.faults {
        return;
    }
    let next = world.rng.range(50_000, 1_500_000);
    world.after(next, Ev::Fault);
    let count = world.machines.len() as u64;
    let node = world.rng.range(0, count) as usize;
    let other = (node + world.rng.range(1, count) as usize) % world.machines.len();
    match world.rng.range(0, 100) {
        0..10 => kill(world, node, Role::Daemon),
        10..17 => kill(world, node, Role::Guard),
        17..29 => {
            world.cut_power(node);
            let back = world.rng.range(200_000, 5_000_000);
            world.after(back, Ev::Boot(node));
        }
        29..31 => {
            for node in 0..world.machines.len() {
                world.cut_power(node);
                let back = world.rng.range(100_000, 2_000_000);
                world.after(back, Ev::Boot(node));
            }
        }
        31..50 => isolate(world, node),
        50..64 => cut(world, node, other),
        64..74 => pause(world, node, &[Role::Daemon]),
        74..80 => pause(world, node, &[Role::Guard]),
        80..84 => pause(world, node, &[Role::Daemon, Role::Guard]),
        84..88 => behead(world),
        88..92 => slow_log(world),
        _ => crash(world, node),
    }
}

fn kill(world: &mut World, node: usize, role: Role) {
    world.kill(node, role);
    let back = world.rng.range(10_000, 600_000);
    world.after(back, Ev::Start(node, role));
}

fn pause(world: &mut World, node: usize, roles: &[Role]) {
    let back = match world.rng.chance(50) {
        true => world.rng.range(50_000, 900_000),
        false => world.rng.range(900_000, 6_000_000),
    };
    for role in roles {
        world.pause(node, *role);
        world.after(back, Ev::GoOn(node, *role));
    }
}

/// The leader is cut off, and every other daemon begins anew: what it remembers of that leader is gone.
fn behead(world: &mut World) {
    let leads = |node: &usize| world.raft.members[*node].leader.is_some();
    let Some(leader) = (0..world.machines.len()).find(leads) else { return };
    isolate(world, leader);
    for node in (0..world.machines.len()).filter(|node| *node != leader) {
        world.kill(node, Role::Daemon);
        let back = world.rng.range(5_000, 100_000);
        world.after(back, Ev::Start(node, Role::Daemon));
    }
}

/// A node is about to be declared dead. Just then it can be reached again, and perhaps the master can't hear any more whether
/// others have what it sent them.
pub fn condemned(world: &mut World, master: usize, node: usize) {
    if !world.faults || !world.rng.chance(35) {
        return;
    }
    for other in (0..world.machines.len()).filter(|other| *other != node) {
        world.after(0, Ev::Heal(node, other));
        world.after(0, Ev::Heal(other, node));
    }
    world.after(1, Ev::GoOn(node, Role::Guard));
    world.after(1, Ev::GoOn(node, Role::Daemon));
    if world.rng.chance(70) {
        slow_log(world);
    }
    if world.rng.chance(50) {
        world.note(|| format!("master {master} is cut off just now"));
        for other in (0..world.machines.len()).filter(|other| *other != master) {
            let after = world.rng.range(3_000, 10_000);
            let last = world.rng.range(200_000, 3_000_000);
            for (from, to) in [(other, master), (master, other)] {
                world.after(after, Ev::Cut(from, to));
                world.after(last, Ev::Heal(from, to));
            }
        }
    }
}

/// Voters answer, but what they are sent for the log is long in being stored.
fn slow_log(world: &mut World) {
    world.log_slow = world.now + world.rng.range(50_000, 1_500_000);
    world.note(|| format!("the log is slow until {}", world.log_slow));
}

/// A guest's process dies.
fn crash(world: &mut World, node: usize) {
    let runs: Vec<_> = world.machines[node].guests.keys().copied().collect();
    if let Some(run) = world.rng.pick(&runs).copied() {
        world.note(|| format!("node {node}: the hypervisor of run {run} crashes"));
        world.signal(node, [run], Signal::Kill);
    }
}

fn last(world: &mut World) -> u64 {
    match world.rng.chance(50) {
        true => world.rng.range(20_000, 1_200_000),
        false => world.rng.range(1_200_000, 5_000_000),
    }
}

/// A node is cut off from all others, both ways or one.
fn isolate(world: &mut World, node: usize) {
    let (last, way) = (last(world), world.rng.range(0, 5));
    world.note(|| format!("node {node} is cut off (way {way})"));
    for other in (0..world.machines.len()).filter(|other| *other != node) {
        if way != 3 {
            world.net.cut.insert((node, other));
            world.after(last, Ev::Heal(node, other));
        }
        if way != 4 {
            world.net.cut.insert((other, node));
            world.after(last, Ev::Heal(other, node));
        }
    }
}

fn cut(world: &mut World, from: usize, to: usize) {
    let (last, both) = (last(world), world.rng.chance(70));
    world.note(|| format!("cut from node {from} to node {to}, both ways: {both}"));
    for (from, to) in [(from, to), (to, from)].into_iter().take(1 + usize::from(both)) {
        world.net.cut.insert((from, to));
        world.after(last, Ev::Heal(from, to));
    }
}
