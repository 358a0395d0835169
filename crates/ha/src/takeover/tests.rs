//! Tables: where instances go, and why.

use model::{Command, Evidence, InstanceChange, NodeChange};

use super::*;
use crate::testing::{add, boot, cluster, outdate, run, vm};

fn die(state: &mut State, number: u64) {
    let node = NodeId(number);
    let evidence = Evidence::LeaseEnded { silent_ms: 1460, wait_ms: 1451, of_older_master: false, voters: vec![] };
    let life = state.nodes[&node].life;
    run(state, Command::NodeDead { node, life, evidence });
}

fn modify(state: &mut State, number: u64, change: NodeChange) {
    run(state, Command::ModifyNode { node: NodeId(number), change });
}

fn offline(state: &mut State, number: u64) {
    modify(state, number, NodeChange { offline: Some(true), ..NodeChange::default() });
}

fn drain(state: &mut State, number: u64) {
    modify(state, number, NodeChange { drained: Some(true), ..NodeChange::default() });
}

fn rooms(memory: &[(u64, u64)]) -> BTreeMap<NodeId, Room> {
    memory.iter().map(|(node, mib)| (NodeId(*node), Room { memory_mib: Some(*mib) })).collect()
}

fn lines(state: &State, choices: Vec<Choice>) -> Vec<String> {
    let line = |choice: Choice| {
        let name = &state.instances[&choice.instance].name;
        match choice.to {
            Ok((node, why)) => format!("{name} -> {}: {why}", state.node_name(node)),
            Err(why) => format!("{name} stays: {why}"),
        }
    };
    choices.into_iter().map(line).collect()
}

/// Each row: what the case is; what there is and what happens; free memory by node; what the plan says.
#[test]
fn instances_go_where_their_data_and_memory_are() {
    type Row = (&'static str, fn(&mut State), &'static [(u64, u64)], &'static [&'static str]);
    let rows: &[Row] = &[
        (
            "the important ones first, then by name",
            |state| {
                add(state, 1, 128, 5, &[1, 2]);
                add(state, 2, 128, 9, &[1, 2]);
                add(state, 3, 128, 5, &[1, 2]);
                die(state, 1);
            },
            &[(2, 1000)],
            &[
                "vm2 -> node02: node02 has all data of it in sync and 1000 MiB free",
                "vm1 -> node02: node02 has all data of it in sync and 872 MiB free",
                "vm3 -> node02: node02 has all data of it in sync and 744 MiB free",
            ],
        ),
        (
            "a node that was never asked is taken to have room",
            |state| {
                add(state, 1, 128, 5, &[1, 2]);
                die(state, 1);
            },
            &[],
            &["vm1 -> node02: node02 has all data of it in sync"],
        ),
        (
            "what does not fit leaves its place to a smaller one",
            |state| {
                add(state, 1, 600, 9, &[1, 2]);
                add(state, 2, 512, 5, &[1, 2]);
                add(state, 3, 200, 1, &[1, 2]);
                die(state, 1);
            },
            &[(2, 900)],
            &[
                "vm1 -> node02: node02 has all data of it in sync and 900 MiB free",
                "vm2 stays: its 512 MiB of memory fit nowhere that has its data: node02 has 300 MiB free",
                "vm3 -> node02: node02 has all data of it in sync and 300 MiB free",
            ],
        ),
        (
            "most free memory",
            |state| {
                add(state, 1, 128, 5, &[1, 2, 3]);
                die(state, 1);
            },
            &[(2, 400), (3, 500)],
            &["vm1 -> node03: node03 has all data of it in sync and 500 MiB free"],
        ),
        (
            "rather one that was not booted since",
            |state| {
                add(state, 1, 128, 5, &[1, 2, 3]);
                boot(state, 3, "second");
                die(state, 1);
            },
            &[(2, 400), (3, 500)],
            &["vm1 -> node02: node02 has all data of it in sync and 400 MiB free"],
        ),
        (
            "rather one that is not drained, even if it was booted",
            |state| {
                add(state, 1, 128, 5, &[1, 2, 3]);
                boot(state, 3, "second");
                drain(state, 2);
                die(state, 1);
            },
            &[(2, 400), (3, 500)],
            &[
                "vm1 -> node03: node03 has all data of it in sync and 500 MiB free; it was booted since it got them: what \
                 its guest had not flushed before may be missing",
            ],
        ),
        (
            "a drained one if there is nobody else",
            |state| {
                add(state, 1, 128, 5, &[1, 2]);
                drain(state, 2);
                die(state, 1);
            },
            &[(2, 400)],
            &[
                "vm1 -> node02: node02 has all data of it in sync and 400 MiB free; it is drained, but no other node could \
                 take it",
            ],
        ),
        (
            "never one that is offline",
            |state| {
                add(state, 1, 128, 5, &[1, 2]);
                offline(state, 2);
                die(state, 1);
            },
            &[(2, 400)],
            &["vm1 stays: no other node can run it with its data: node02 is marked offline"],
        ),
        (
            "never one that is dead, or not in sync",
            |state| {
                add(state, 1, 128, 5, &[1, 2]);
                add(state, 2, 128, 5, &[1, 2]);
                outdate(state, 1, 2);
                die(state, 1);
                die(state, 2);
            },
            &[],
            &[
                "vm1 stays: no other node can run it with its data: node02 is dead",
                "vm2 stays: no other node can run it with its data: node02 is dead",
            ],
        ),
        (
            "its replica left",
            |state| {
                add(state, 1, 128, 5, &[1, 2]);
                outdate(state, 1, 2);
                die(state, 1);
            },
            &[],
            &[
                "vm1 stays: no other node can run it with its data: the replica of disk/0 on node02 is not in sync: it left \
                 in version 1.2",
            ],
        ),
        (
            "the only replica",
            |state| {
                add(state, 1, 128, 5, &[1]);
                die(state, 1);
            },
            &[],
            &["vm1 stays: no other node has a replica of its disks"],
        ),
        (
            "files are not taken over, and neither is what is not strict",
            |state| {
                add(state, 1, 128, 5, &[]);
                add(state, 2, 128, 5, &[1, 2]);
                die(state, 1);
                run(state, Command::Disarm { node: NodeId(2) });
            },
            &[],
            &[
                "vm1 stays: its disks are files that only its node has",
                "vm2 stays: disk/0 is in manual mode: node02, which has a replica of it, is not armed",
            ],
        ),
        (
            "its own node, when it is back in another life",
            |state| {
                add(state, 1, 128, 5, &[1, 2]);
                outdate(state, 1, 2);
                boot(state, 1, "second");
            },
            &[(1, 700)],
            &[
                "vm1 -> node01: node01 has all data of it in sync and 700 MiB free; it was booted since it got them: what \
                 its guest had not flushed before may be missing",
            ],
        ),
        (
            "what is not to run, and what runs, is left alone",
            |state| {
                add(state, 1, 128, 5, &[1, 2]);
                add(state, 2, 128, 5, &[2, 1]);
                let change = Box::new(InstanceChange::want(AdminState::Down));
                run(state, Command::ModifyInstance { instance: vm(1), change });
                die(state, 1);
            },
            &[],
            &[],
        ),
    ];
    for (what, make, memory, expected) in rows {
        let mut state = cluster();
        make(&mut state);
        let choices = plan(&state, &rooms(memory));
        for choice in &choices {
            // What is planned is accepted.
            if let Ok((to, reason)) = &choice.to {
                let takeover = Command::Takeover { instance: choice.instance, to: *to, reason: reason.clone() };
                let applied = run(&mut state, takeover);
                assert!(matches!(applied, model::Applied::Run(_)), "{what}: {applied:?}");
            }
        }
        assert_eq!(lines(&state, choices), *expected, "{what}");
    }
}

#[test]
fn a_rehearsal_is_the_plan_for_one_node() {
    let mut state = cluster();
    add(&mut state, 1, 128, 5, &[1, 2]);
    add(&mut state, 2, 128, 5, &[2, 1]);
    add(&mut state, 3, 128, 5, &[3, 1]);
    let memory = rooms(&[(1, 1000), (2, 500)]);
    assert_eq!(
        lines(&state, rehearse(&state, NodeId(1), &memory)),
        ["vm1 -> node02: node02 has all data of it in sync and 500 MiB free"]
    );
    assert_eq!(
        lines(&state, rehearse(&state, NodeId(3), &memory)),
        ["vm3 -> node01: node01 has all data of it in sync and 1000 MiB free"],
        "the master's death too"
    );
    assert_eq!(rehearse(&state, NodeId(4), &memory), []);
    // Of several orphans only the dying node's are told, but all take room.
    die(&mut state, 2);
    assert_eq!(
        lines(&state, rehearse(&state, NodeId(3), &memory)),
        ["vm3 -> node01: node01 has all data of it in sync and 872 MiB free"]
    );
    assert_eq!(rehearse(&state, NodeId(2), &memory), [], "dead already");
}
