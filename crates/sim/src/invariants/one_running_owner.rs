//! I7: of an instance whose node may be judged by its lease, at most one guest runs that is not stopped. Guests count while
//! their node has a lease, and while somebody on it does his duty: the guard that knows the run, or the daemon that has seen
//! no guard for long enough. What runs beyond that has no disk: I1.

use crate::world::World;

/// How long a signal takes at the most, and how long after it has begun a process has caught up; microseconds.
const SLACK: u64 = 150_000;

pub fn check(world: &World) -> Option<String> {
    for disk in 0..world.plan.disks {
        let mut counted = (0..world.machines.len()).flat_map(|node| {
            let machine = &world.machines[node];
            let guests = machine.guests.iter().filter(move |(_, guest)| guest.disk == disk && guest.runs());
            guests.filter(move |(run, _)| counts(world, node, **run)).map(move |(run, _)| (node, *run))
        });
        if let (Some((one, first)), Some((other, second))) = (counted.next(), counted.next()) {
            return Some(format!(
                "I7: vm{} runs twice: run {first} on node {one}, run {second} on node {other}",
                disk + 1
            ));
        }
    }
    None
}

fn counts(world: &World, node: usize, run: model::RunId) -> bool {
    let machine = &world.machines[node];
    let clock = machine.clock.show(world.now);
    let guard = machine.guard.as_ref().map(|process| &process.it);
    let leased = guard.is_some_and(|it| it.guard.holds(clock));
    let (guarded, since) = machine.guarded;
    let knows = guard.is_some_and(|it| it.knows.contains(&run));
    let stops = guarded && knows && world.now > since + SLACK;
    let silence = world.times.guard_silence.as_micros() as u64 + 2 * SLACK;
    let (served, from) = machine.served;
    let watched = !guarded && world.now > since + silence && served && world.now > from + silence;
    leased || stops || watched
}
