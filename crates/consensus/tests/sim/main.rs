//! The shipped consensus under simulated time, network and disks.
//!
//! One seed is one history: crashes that lose or keep any part of what was not synced, one-way cuts, lost, late and
//! doubled messages, handovers, snapshots, while clients propose. What must hold is checked whenever a member publishes a
//! state or a status ([`oracle`]); at the end everything is healed and must converge.
//!
//! `SEEDS=17` runs one seed, `SEEDS=0..1000` many.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests: a failure is a failed test")]

#[path = "../common/mod.rs"]
mod common;
mod disk;
mod oracle;
mod world;

use std::ops::Range;

use openraft_rt::AsyncRuntime as _;
use openraft_rt_sim::SimRuntime;

/// What a normal test run takes.
const USUAL: Range<u64> = 0..12;

fn seeds() -> Range<u64> {
    let Ok(text) = std::env::var("SEEDS") else { return USUAL };
    let range = match text.split_once("..") {
        Some((from, to)) => from.parse().ok().zip(to.parse().ok()),
        None => text.parse().ok().map(|seed: u64| (seed, seed + 1)),
    };
    let (from, to) = range.unwrap_or_else(|| panic!("SEEDS={text}: give a number or a range such as 0..1000"));
    from..to
}

/// Says how to see a failure again.
struct Seed(u64);

impl Drop for Seed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("seed {} failed; again with: SEEDS={} cargo test -p consensus --test sim", self.0, self.0);
        }
    }
}

fn run(seed: u64) -> world::Outcome {
    let _seed = Seed(seed);
    SimRuntime::with_seed(seed).block_on(world::history())
}

#[test]
fn every_history_is_safe_and_converges() {
    let mut total = world::Outcome::default();
    for seed in seeds() {
        let outcome = run(seed);
        total.acked += outcome.acked;
        total.unknown += outcome.unknown;
        total.refused += outcome.refused;
        total.crashes += outcome.crashes;
        total.handovers += outcome.handovers;
        total.virtual_seconds += outcome.virtual_seconds;
    }
    eprintln!("{total:?}");
    // A run in which nothing happens proves nothing.
    assert!(total.acked > 0 && total.crashes > 0);
}

#[test]
fn the_same_seed_gives_the_same_history() {
    let seed = seeds().start;
    assert_eq!(run(seed), run(seed));
}
