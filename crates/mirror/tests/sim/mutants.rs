//! The simulation finds what it is there to find: each rule that is left out leads to a violation within a few seeds.

use mirror::engine::Mutant;

use crate::{Fault, plan, run};

/// The first seed that shows the fault, with what it breaks.
fn caught(fault: Fault, nodes: usize, seeds: u64) -> Option<(u64, String)> {
    (0..seeds).find_map(|seed| {
        let mut plan = plan(seed, nodes);
        plan.mutant = Some(fault);
        Some((seed, run(plan).err()?))
    })
}

fn must_catch(fault: Fault, nodes: usize, seeds: u64) {
    match caught(fault, nodes, seeds) {
        Some((seed, violation)) => eprintln!("{fault:?}: seed {seed}: {violation}"),
        None => panic!("{fault:?} was not found by {seeds} seeds with {nodes} replicas"),
    }
}

macro_rules! mutants {
    ($($name:ident: $fault:expr, $nodes:expr, $seeds:expr;)*) => {
        $(#[test]
        fn $name() {
            must_catch($fault, $nodes, $seeds);
        })*
    };
}

mutants! {
    acknowledge_before_outdate: Fault::Engine(Mutant::AckBeforeOutdate), 2, 300;
    no_compare_and_set: Fault::NoCas, 2, 300;
    no_empty_outdate_at_restart: Fault::Engine(Mutant::NoEmptyOutdate), 2, 1000;
    dropped_before_the_version_grew: Fault::Engine(Mutant::DropBeforeVersionGrew), 2, 300;
    in_sync_before_must_ack: Fault::Engine(Mutant::InSyncBeforeMustAck), 2, 300;
    no_drain_at_hello: Fault::Engine(Mutant::NoDrainAtHello), 2, 300;
    old_link_still_read: Fault::Engine(Mutant::OldLinkStillRead), 2, 300;
    link_kept_after_outdate: Fault::Engine(Mutant::LinkKeptAfterOutdate), 2, 300;
    no_reconcile: Fault::Engine(Mutant::NoReconcile), 2, 300;
    copy_without_lock: Fault::Engine(Mutant::CopyWithoutLock), 2, 300;
    no_flush_before_in_sync: Fault::Engine(Mutant::NoFlushBeforeInSync), 2, 300;
    window_not_seeded: Fault::Engine(Mutant::WindowNotSeeded), 2, 300;
    joining_not_marked: Fault::Engine(Mutant::JoiningNotMarked), 2, 300;
    marks_only_at_primary: Fault::Engine(Mutant::MarksOnlyAtPrimary), 3, 300;
    no_flush_at_promotion: Fault::Engine(Mutant::NoFlushAtPromotion), 2, 300;
    any_run: Fault::Engine(Mutant::AnyRun), 2, 300;
}
