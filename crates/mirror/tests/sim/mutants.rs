//! The simulation finds what it is there to find: each rule that is left out leads to a violation within a few seeds.

use mirror::engine::Mutant;

use crate::{Fault, plan, run};

/// How many seeds are tried.
const SEEDS: u64 = 1_000;

/// The first seed from `from` on that shows the fault, with what it breaks.
fn caught(fault: Fault, nodes: usize, from: u64) -> Option<(u64, String)> {
    (from..from + SEEDS).find_map(|seed| {
        let mut plan = plan(seed, nodes);
        plan.mutant = Some(fault);
        Some((seed, run(plan).err()?))
    })
}

/// `from`: a seed that is known to show it, so that a run is short.
fn must_catch(fault: Fault, nodes: usize, from: u64) {
    match caught(fault, nodes, from) {
        Some((seed, violation)) => eprintln!("{fault:?}: seed {seed}: {violation}"),
        None => panic!("{fault:?} was not found by {SEEDS} seeds with {nodes} replicas"),
    }
}

macro_rules! mutants {
    ($($name:ident: $fault:expr, $nodes:expr, $from:expr;)*) => {
        $(#[test]
        fn $name() {
            must_catch($fault, $nodes, $from);
        })*
    };
}

mutants! {
    acknowledge_before_outdate: Fault::Engine(Mutant::AckBeforeOutdate), 2, 1;
    no_compare_and_set: Fault::NoCas, 2, 6;
    no_empty_outdate_at_restart: Fault::Engine(Mutant::NoEmptyOutdate), 2, 540;
    dropped_before_the_version_grew: Fault::Engine(Mutant::DropBeforeVersionGrew), 2, 139;
    in_sync_before_must_ack: Fault::Engine(Mutant::InSyncBeforeMustAck), 2, 0;
    no_drain_at_hello: Fault::Engine(Mutant::NoDrainAtHello), 2, 26;
    old_link_still_read: Fault::Engine(Mutant::OldLinkStillRead), 2, 162;
    link_kept_after_outdate: Fault::Engine(Mutant::LinkKeptAfterOutdate), 2, 30;
    no_reconcile: Fault::Engine(Mutant::NoReconcile), 2, 2;
    copy_without_lock: Fault::Engine(Mutant::CopyWithoutLock), 2, 1;
    no_flush_at_finish: Fault::Engine(Mutant::NoFlushAtFinish), 2, 0;
    no_flush_before_in_sync: Fault::Engine(Mutant::NoFlushBeforeInSync), 2, 0;
    window_not_seeded: Fault::Engine(Mutant::WindowNotSeeded), 2, 10;
    joining_not_marked: Fault::Engine(Mutant::JoiningNotMarked), 2, 52;
    marks_only_at_primary: Fault::Engine(Mutant::MarksOnlyAtPrimary), 3, 1;
    no_flush_at_promotion: Fault::Engine(Mutant::NoFlushAtPromotion), 2, 0;
    any_run: Fault::Engine(Mutant::AnyRun), 2, 2;
}
