//! The mirror under simulation: random faults from a seed, the protocol's invariants after every step, and in the end
//! everything healed, in sync and equal. The same seed gives the same run.
//!
//! `SEEDS=a..b` runs those seeds instead of the few of a normal run, `TRACE=1` prints what happens.
#![allow(clippy::expect_used, reason = "helpers of tests are tests too")]

mod agent;
mod faults;
mod guest;
mod invariants;
mod log;
mod medium;
mod mutants;
mod net;
mod node;
mod oracle;
mod rng;
mod scenarios;
mod world;

use mirror::engine::Mutant;
use model::MirrorMode;
use world::{Plan, World};

/// A rule that is left out on purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// By the engine.
    Engine(Mutant),
    /// By the log: commands are not compared with the version.
    NoCas,
}

impl Fault {
    fn mutant(self) -> Option<Mutant> {
        match self {
            Fault::Engine(mutant) => Some(mutant),
            Fault::NoCas => None,
        }
    }
}

fn plan(seed: u64, nodes: usize) -> Plan {
    Plan { seed, nodes, mutant: None, faults_ms: 6_000, mode: MirrorMode::Strict, continue_alone: true }
}

fn run(plan: Plan) -> Result<u64, String> {
    World::new(plan).run()
}

/// The seeds to run: `SEEDS=a..b`, or the first few.
#[allow(clippy::disallowed_methods, reason = "which seeds are run is no part of a run")]
fn seeds(usual: u64) -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("SEEDS") else { return 0..usual };
    let parsed = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    parsed.unwrap_or_else(|| panic!("SEEDS is {text:?}, not like 100..200"))
}

fn run_all(nodes: usize, usual: u64) {
    for seed in seeds(usual) {
        if let Err(violation) = run(plan(seed, nodes)) {
            panic!("seed {seed} with {nodes} replicas: {violation}");
        }
    }
}

#[test]
fn two_replicas_keep_every_promise() {
    run_all(2, 120);
}

#[test]
fn three_replicas_keep_every_promise() {
    run_all(3, 80);
}

/// Seeds that have found a fault once.
#[test]
fn what_was_found_stays_mended() {
    for (nodes, seed) in [(2, 31), (2, 277), (2, 393), (2, 420), (2, 564), (3, 111), (3, 209), (3, 260), (3, 474)] {
        if let Err(violation) = run(plan(seed, nodes)) {
            panic!("seed {seed} with {nodes} replicas: {violation}");
        }
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for nodes in [2, 3] {
        assert_eq!(run(plan(7, nodes)), run(plan(7, nodes)));
        assert_ne!(run(plan(7, nodes)), run(plan(8, nodes)));
    }
}
