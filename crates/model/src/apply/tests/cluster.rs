//! The cluster as a whole: founding, offices, the cluster's address.

use super::super::testing::{new_cluster, new_node, run};
use super::*;
use crate::{ClusterChange, ForkPoint, Incarnation, Office, Proposal, Rejection};

fn init(id: u128) -> Command {
    Command::Init {
        cluster: Box::new(new_cluster()),
        incarnation: Uuid::from_u128(id),
        group: Uuid::from_u128(0x9),
        node: new_node(1),
    }
}

fn every_command() -> Vec<Command> {
    let node = NodeId(1);
    vec![
        Command::Destroy,
        Command::ModifyCluster(ClusterChange::default()),
        Command::SetAddressOwner(None),
        Command::AddToken { id: TOKEN, secret_sha256: String::new(), node: new_node(9), expires: Timestamp(u64::MAX) },
        Command::DropToken { id: TOKEN },
        Command::AddNode { token: TOKEN },
        Command::ModifyNode { node, change: Default::default() },
        Command::RemoveNode { node: NodeId(4) },
        Command::AddInstance(Box::new(instance(NOBODY, "vm9", 1))),
        Command::ModifyInstance { instance: VM2, change: Default::default() },
        Command::RemoveInstance { instance: VM2 },
        Command::Own { instance: VM2, node: NodeId(2) },
        Command::Disown { instance: VM1, run: RunId(1), want: None },
        submit(1),
        record(3, vec![]),
        Command::CancelJob { job: JobId(1) },
        Command::ArchiveJob { job: JobId(4) },
    ]
}

#[test]
fn before_init_there_is_no_cluster() {
    let others = [
        Command::TakeOffice { node: NodeId(1), term: 1 },
        Command::JoinNode { node: NodeId(1), boot: "b".into(), previous: Life(0), runs: vec![] },
    ];
    for command in every_command().into_iter().chain(others) {
        let mut state = State::default();
        assert_eq!(run(&mut state, vec![command.clone()]), Err(Rejection::NoCluster), "{command:?}");
        assert_eq!(state, State::default());
    }
}

#[test]
fn a_cluster_is_made_once() {
    let mut state = State::default();
    run(&mut state, vec![init(1)]).unwrap();
    assert_eq!(state.incarnation, Incarnation::first(Uuid::from_u128(1)));
    assert!(state.nodes[&NodeId(1)].master_candidate);
    let whole = state.clone();
    assert_eq!(run(&mut state, vec![init(2)]), Err(Rejection::AlreadyInitialised));
    assert_eq!(state, whole);
}

#[test]
fn numbers_go_on_after_destroy_and_init() {
    let mut state = busy();
    let (jobs, lives, runs) = (state.last_job, state.last_life, state.last_run);
    for instance in [VM2, VM3] {
        run(&mut state, vec![Command::RemoveInstance { instance }]).unwrap();
    }
    let stop = Command::Disown { instance: VM1, run: RunId(1), want: None };
    run(&mut state, vec![stop, Command::RemoveInstance { instance: VM1 }]).unwrap();
    for node in [2, 3, 4] {
        run(&mut state, vec![Command::RemoveNode { node: NodeId(node) }]).unwrap();
    }
    run(&mut state, vec![Command::Destroy]).unwrap();
    assert!(state.cluster.is_none() && state.nodes.is_empty() && state.jobs.is_empty() && state.office.is_none());

    run(&mut state, vec![init(2)]).unwrap();
    assert_eq!(state.incarnation, Incarnation { n: 2, id: Uuid::from_u128(2) });
    assert_eq!(state.nodes.keys().copied().collect::<Vec<_>>(), [NodeId(5)]);
    let join = Command::JoinNode { node: NodeId(5), boot: "b".into(), previous: Life(0), runs: vec![] };
    let add = Command::AddInstance(Box::new(instance(VM1, "vm1", 5)));
    let own = Command::Own { instance: VM1, node: NodeId(5) };
    run(&mut state, vec![join, add, own, submit(1)]).unwrap();
    assert_eq!(state.nodes[&NodeId(5)].life, Life(lives + 1));
    assert_eq!(state.instances[&VM1].run, Some(RunId(runs + 1)));
    assert!(state.jobs.contains_key(&JobId(jobs + 1)));
}

#[test]
fn a_cluster_with_instances_or_nodes_is_not_destroyed() {
    check_refused(vec![(
        "instances",
        Command::Destroy,
        "There are still 3 instance(s) in this cluster, 'vm1' for one; remove them first",
    )]);
    let mut state = super::super::testing::cluster_of("cc");
    let rejection = run(&mut state, vec![Command::Destroy]).unwrap_err();
    assert_eq!(rejection.to_string(), "There are still 2 node(s) in this cluster; remove all but the master first");
}

#[test]
fn only_the_master_in_office_in_this_incarnation_is_heard() {
    let state = busy();
    let here = state.incarnation;
    let elsewhere = [
        Incarnation { n: here.n, id: Uuid::from_u128(0xbad) },
        Incarnation { n: here.n + 1, id: here.id },
        Incarnation { n: 0, id: here.id },
    ];
    for command in every_command() {
        for office in [None, Some(0), Some(2)] {
            let mut after = state.clone();
            let proposal = Proposal { incarnation: here, office, at: Timestamp(9), commands: vec![command.clone()] };
            let refused = Err(Rejection::Office { now: 1, then: office.unwrap_or(0) });
            assert_eq!(after.apply(&proposal), refused, "{command:?}");
            assert_eq!(after, state);
        }
        for incarnation in elsewhere {
            let mut after = state.clone();
            let proposal = Proposal { incarnation, office: Some(1), at: Timestamp(9), commands: vec![command.clone()] };
            let refused = Err(Rejection::Incarnation { now: here.n, then: incarnation.n });
            assert_eq!(after.apply(&proposal), refused, "{command:?}");
            assert_eq!(after, state);
        }
    }
}

#[test]
fn what_an_old_master_had_under_way_is_rejected() {
    let mut state = busy();
    let mut late =
        Proposal { incarnation: state.incarnation, office: Some(1), at: Timestamp(9), commands: vec![submit(1)] };
    run(&mut state, vec![Command::TakeOffice { node: NodeId(2), term: 4 }]).unwrap();
    assert_eq!(state.office, Some(Office { node: NodeId(2), term: 4 }));
    assert_eq!(state.apply(&late), Err(Rejection::Office { now: 4, then: 1 }));
    late.office = Some(4);
    assert!(state.apply(&late).is_ok());
}

#[test]
fn office_is_taken_by_candidates_in_ascending_terms() {
    let take = |node: u64, term: u64| Command::TakeOffice { node: NodeId(node), term };
    check_refused(vec![
        ("the same term", take(2, 1), "the master of term 1 is no longer in office (now 1)"),
        ("an earlier term", take(2, 0), "the master of term 0 is no longer in office (now 1)"),
        ("no such node", take(9, 2), "Node '9' not known"),
        ("a witness", take(3, 2), "Node 'node03' is not a master candidate"),
        ("not a candidate", take(4, 2), "Node 'node04' is not a master candidate"),
    ]);
}

#[test]
fn the_address_goes_from_one_holder_to_another_by_way_of_nobody() {
    let set = |owner: Option<u64>| Command::SetAddressOwner(owner.map(NodeId));
    check_refused(vec![("held by another", set(Some(2)), "the cluster address is still held by node 'node01'")]);
    let state = after(vec![set(None), set(Some(2))]);
    assert_eq!(state.address_owner, Some(NodeId(2)));
    assert_eq!(after(vec![set(Some(1))]).address_owner, Some(NodeId(1)));
    let mut state = after(vec![set(None)]);
    assert_eq!(run(&mut state, vec![set(Some(9))]).unwrap_err().to_string(), "Node '9' not known");
}

#[test]
fn a_new_incarnation_is_higher_than_the_old_one() {
    let fork_point = ForkPoint { term: 3, index: 77 };
    let found = |n| Command::Found {
        incarnation: Incarnation { n, id: Uuid::from_u128(0x22) },
        fork_point,
        node: None,
        off: vec![],
    };
    check_refused(vec![
        ("the same", found(1), "the cluster is in incarnation 1, the request was made in incarnation 1"),
        ("a lower one", found(0), "the cluster is in incarnation 1, the request was made in incarnation 0"),
    ]);
    let old = busy().incarnation;
    let state = after(vec![found(5)]);
    assert_eq!(state.incarnation.n, 5);
    assert_eq!(state.lineage, [(old, fork_point)]);
}

#[test]
fn a_batch_goes_on_in_the_incarnation_and_office_that_it_was_made_in() {
    let mut state = busy();
    let whole = state.clone();
    let found = Command::Found {
        incarnation: Incarnation { n: 2, id: Uuid::from_u128(2) },
        fork_point: ForkPoint { term: 1, index: 1 },
        node: None,
        off: Vec::new(),
    };
    for first in [found, Command::TakeOffice { node: NodeId(2), term: 2 }] {
        assert!(run(&mut state, vec![first, submit(1)]).is_err());
        assert_eq!(state, whole);
    }
}
