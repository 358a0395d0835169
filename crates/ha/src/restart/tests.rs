//! Tables: what is done about a crash, given the crashes before it.

use model::{Command, NodeChange, RunId};

use super::*;
use crate::testing::{add, cluster, outdate, run, run_at, vm};

const MINUTE: u64 = 60 * 1_000_000;
const NOW: u64 = 100 * MINUTE;

/// An instance on node01, mirrored on node02, that crashed so many minutes ago on these nodes.
fn crashed(before: &[(u64, u64)]) -> State {
    let mut state = cluster();
    add(&mut state, 1, 128, 5, &[1, 2]);
    add(&mut state, 2, 128, 5, &[1, 2]);
    for (minutes, node) in before {
        for number in 1..=2 {
            // The other one crashes all the time.
            let mut times = if number == 1 { 1 } else { 6 };
            while times > 0 {
                times -= 1;
                let crash = Happening::Crashed {
                    instance: vm(number),
                    name: format!("vm{number}"),
                    node: NodeId(*node),
                    run: RunId(1),
                    how: "killed by signal 9".into(),
                    decision: "it is started again".into(),
                };
                run_at(&mut state, Timestamp(NOW - minutes * MINUTE), Command::Note(Box::new(crash)));
            }
        }
    }
    state
}

#[test]
fn two_restarts_then_the_other_node_and_an_end() {
    let to = |node| Verdict::Move(NodeId(node));
    let given_up = || {
        Verdict::GiveUp(
            "it crashed 6 times within ten minutes, the last time on node01; 'gnt-instance startup vm1' starts it again"
                .into(),
        )
    };
    for (what, before, verdict) in [
        ("the first", &[][..], Verdict::Restart),
        ("the second", &[(1, 1)], Verdict::Restart),
        ("the third", &[(2, 1), (1, 1)], to(2)),
        ("long ago", &[(11, 1), (1, 1)], Verdict::Restart),
        ("the first after it was moved", &[(3, 2), (2, 2)], Verdict::Restart),
        ("it went there and back", &[(5, 1), (4, 1), (3, 2), (2, 2)], Verdict::Restart),
        ("six", &[(5, 1), (4, 1), (3, 1), (2, 2), (1, 2)], given_up()),
        ("six, the first of them forgotten", &[(10, 1), (4, 1), (3, 1), (2, 2), (1, 2)], Verdict::Restart),
    ] {
        assert_eq!(judge(&crashed(before), vm(1), Timestamp(NOW)), verdict, "{what}");
    }
}

#[test]
fn it_moves_only_where_its_data_is_and_it_is_welcome() {
    let before = &[(2, 1), (1, 1)];
    let mut state = crashed(before);
    outdate(&mut state, 1, 2);
    assert_eq!(judge(&state, vm(1), Timestamp(NOW)), Verdict::Restart, "no data there");
    let mut state = crashed(before);
    let change = NodeChange { drained: Some(true), ..NodeChange::default() };
    run(&mut state, Command::ModifyNode { node: NodeId(2), change });
    assert_eq!(judge(&state, vm(1), Timestamp(NOW)), Verdict::Restart, "drained");
    assert!(matches!(judge(&state, vm(7), Timestamp(NOW)), Verdict::GiveUp(_)), "it is gone");
}
