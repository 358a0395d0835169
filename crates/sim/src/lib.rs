//! The shipped decisions of a whole cluster in one process, under simulated time, network, disks and hypervisors: `ha` (leases,
//! deaths, takeovers), `model` (the replicated state) and `mirror::engine` (the disks). One seed is one run; the same seed gives
//! the same run.
//!
//! Raft is an oracle , and what the daemon does around the decisions is written anew and smaller
//! ([`daemon`], [`office`], [`guards`]). Everything that can go wrong does ([`faults`]); the protocol's invariants are checked
//! after every step, and when it is over everything has to come in order again by itself.

mod clock;
mod cluster;
mod daemon;
mod disk;
mod faults;
mod guards;
mod guest;
mod invariants;
mod links;
mod medium;
mod node;
mod office;
mod oracle;
mod plan;
mod raft;
mod rng;
mod world;

pub use plan::Plan;
pub use world::Tally;

/// Runs a plan: the fingerprint of all that happened, and some numbers.
///
/// # Errors
/// The first promise that was broken, or what did not come in order again.
pub fn run(plan: Plan) -> Result<(u64, Tally), String> {
    world::World::new(plan)?.run()
}
