//! I12: the cluster's address is on one node at the most, as far as guards do their duty: one that has just
//! started hears from its daemon that there is an address.

use crate::world::World;

/// How long a guard that goes on needs to see that its lease has ended, microseconds.
const SLACK: u64 = 150_000;

pub fn check(world: &World) -> Option<String> {
    let counts = |node: &usize| {
        let machine = &world.machines[*node];
        let clock = machine.clock.show(world.now);
        let leased = machine.guard.as_ref().is_some_and(|process| process.it.guard.holds(clock));
        let (guarded, since) = machine.guarded;
        let told = machine.guard.as_ref().is_some_and(|process| process.it.identity.is_some());
        machine.has_address && (leased || guarded && told && world.now > since + SLACK)
    };
    let mut holders = (0..world.machines.len()).filter(counts);
    let (one, other) = (holders.next()?, holders.next()?);
    Some(format!("I12: nodes {one} and {other} both have the cluster's address"))
}
