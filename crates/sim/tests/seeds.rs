//! A cluster under random faults: the protocol's invariants hold after every step, and in the end everything is in order
//! again by itself.
//!
//! `SEEDS=a..b` runs those seeds instead of the few of a normal run, `TRACE=1` prints what happens.
#![allow(clippy::expect_used, reason = "helpers of tests are tests too")]

use std::ops::Range;

use sim::{Plan, Tally};

#[allow(clippy::disallowed_methods, reason = "which seeds are run is no part of a run")]
fn seeds(usual: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var("SEEDS") else { return usual };
    let parsed = text.split_once("..").and_then(|(from, to)| Some(from.parse().ok()?..to.parse().ok()?));
    parsed.unwrap_or_else(|| panic!("SEEDS is {text:?}, not like 100..200"))
}

fn plan(seed: u64) -> Plan {
    Plan { trace: std::env::var_os("TRACE").is_some(), ..Plan::new(seed) }
}

fn run(seed: u64) -> (u64, Tally) {
    sim::run(plan(seed)).unwrap_or_else(|violation| panic!("seed {seed}: {violation}"))
}

/// A part of them, so that several are run at once.
fn part(usual: Range<u64>) {
    let mut all = Tally::default();
    for seed in seeds(usual) {
        let (_, tally) = run(seed);
        all.deaths += tally.deaths;
        all.takeovers += tally.takeovers;
        all.offices += tally.offices;
    }
    eprintln!("{all:?}");
}

#[test]
fn every_promise_is_kept() {
    part(0..60);
}

#[test]
fn every_promise_is_kept_again() {
    part(60..120);
}

/// Seeds that have found a fault once.
#[test]
fn what_was_found_stays_mended() {
    for seed in [41, 59, 106, 192, 307] {
        run(seed);
    }
}

#[test]
fn the_same_seed_gives_the_same_run() {
    assert_eq!(run(7), run(7));
    assert_ne!(run(7).0, run(9).0);
}
