//! Nodes: joining, changing, leaving.

use std::net::Ipv4Addr;

use super::super::testing::{new_node, run};
use super::*;
use crate::{Applied, GroupId, NewNode, NodeChange, NodeRole};

fn token(node: NewNode) -> Command {
    Command::AddToken { id: Uuid::from_u128(0x7003), secret_sha256: String::new(), node, expires: Timestamp(u64::MAX) }
}

fn modify(node: u64, change: NodeChange) -> Command {
    Command::ModifyNode { node: NodeId(node), change }
}

fn join(node: u64, boot: &str, previous: u64, runs: &[u64]) -> Command {
    let runs = runs.iter().copied().map(RunId).collect();
    Command::JoinNode { node: NodeId(node), boot: boot.into(), previous: Life(previous), runs }
}

#[test]
fn a_new_node_is_unlike_all_others() {
    let none = NodeChange::default;
    let group = GroupId(Uuid::from_u128(0xdead));
    check_refused(vec![
        ("name", token(NewNode { name: "node02".into(), ..new_node(7) }), "Node 'node02' is already in the cluster"),
        (
            "primary address",
            token(NewNode { primary_ip: Ipv4Addr::new(10, 1, 0, 6), ..new_node(7) }),
            "Address 10.1.0.6 is already used by node 'node02'",
        ),
        (
            "secondary address",
            token(NewNode { secondary_ip: Ipv4Addr::new(10, 0, 0, 5), ..new_node(7) }),
            "Address 10.0.0.5 is already used by node 'node01'",
        ),
        (
            "group",
            token(NewNode { group: Some(group), ..new_node(7) }),
            "Group '00000000-0000-0000-0000-00000000dead' not known",
        ),
        ("modified", modify(9, none()), "Node '9' not known"),
    ]);
}

#[test]
fn a_token_lets_one_machine_in_once_and_in_time() {
    let never = "the join token is not valid: it was used, withdrawn, or never given; run 'gnt-node add' again";
    check_refused(vec![
        ("never given", Command::AddNode { token: Uuid::from_u128(1) }, never),
        ("expired", Command::AddNode { token: EXPIRED }, "the join token has expired; run 'gnt-node add' again"),
    ]);
    let add = Command::AddNode { token: TOKEN };
    let mut state = busy();
    assert_eq!(run(&mut state, vec![add.clone()]), Ok(vec![Applied::Node(NodeId(5))]));
    assert_eq!(state.joined[&TOKEN], NodeId(5));
    assert_eq!(run(&mut state, vec![add.clone()]).unwrap_err().to_string(), never);

    let mut state = after(vec![Command::DropToken { id: TOKEN }]);
    assert_eq!(run(&mut state, vec![add]).unwrap_err().to_string(), never);
}

#[test]
fn a_node_becomes_a_candidate_while_the_pool_has_room() {
    let mut state = busy();
    state.cluster.as_mut().unwrap().candidate_pool_size = 2;
    run(&mut state, vec![Command::AddNode { token: TOKEN }]).unwrap();
    assert_eq!(state.role(NodeId(5)), Some(NodeRole::Regular));
    state.cluster.as_mut().unwrap().candidate_pool_size = 3;
    run(&mut state, vec![token(new_node(7)), Command::AddNode { token: Uuid::from_u128(0x7003) }]).unwrap();
    assert_eq!(state.role(NodeId(6)), Some(NodeRole::MasterCandidate));
}

#[test]
fn a_change_of_a_node_leaves_the_cluster_workable() {
    let change = NodeChange::default;
    let failover = "The master role can be changed only via master-failover";
    check_refused(vec![
        ("master offline", modify(1, NodeChange { offline: Some(true), ..change() }), failover),
        ("master drained", modify(1, NodeChange { drained: Some(true), ..change() }), failover),
        ("master demoted", modify(1, NodeChange { master_candidate: Some(false), ..change() }), failover),
        ("master incapable", modify(1, NodeChange { master_capable: Some(false), ..change() }), failover),
        (
            "a witness as candidate",
            modify(3, NodeChange { master_candidate: Some(true), ..change() }),
            "Node node03 is not master capable, so it can't be a master candidate",
        ),
        (
            "instances on it",
            modify(2, NodeChange { vm_capable: Some(false), ..change() }),
            "Node node02 hosts instances ('vm2' for one), cannot unset 'vm_capable'",
        ),
    ]);
}

#[test]
fn an_offline_or_drained_node_is_no_candidate() {
    for (change, role) in [
        (NodeChange { offline: Some(true), ..NodeChange::default() }, NodeRole::Offline),
        (NodeChange { drained: Some(true), ..NodeChange::default() }, NodeRole::Drained),
        (NodeChange { master_candidate: Some(false), ..NodeChange::default() }, NodeRole::Regular),
        (NodeChange { master_capable: Some(false), ..NodeChange::default() }, NodeRole::Regular),
        (NodeChange::default(), NodeRole::MasterCandidate),
    ] {
        let state = after(vec![modify(2, change)]);
        assert_eq!(state.role(NodeId(2)), Some(role));
        assert_eq!(state.nodes[&NodeId(2)].may_be_master(), role == NodeRole::MasterCandidate);
        assert_eq!(state.nodes[&NodeId(2)].serial_no, busy().nodes[&NodeId(2)].serial_no + 1);
    }
}

#[test]
fn a_node_leaves_when_nothing_is_on_it() {
    let remove = |node: u64| Command::RemoveNode { node: NodeId(node) };
    check_refused(vec![
        ("unknown", remove(9), "Node '9' not known"),
        ("the master", remove(1), "Node is the master node, failover to another node is required"),
        ("instances", remove(2), "Instance vm2 is still on node node02, please remove or move it first"),
    ]);
    let mut replica = instance(NOBODY, "vm9", 1);
    replica.secondaries = vec![NodeId(4)];
    let mut state = after(vec![Command::AddInstance(Box::new(replica))]);
    let rejection = run(&mut state, vec![remove(4)]).unwrap_err();
    assert_eq!(rejection.to_string(), "Instance vm9 is still on node node04, please remove or move it first");

    assert!(!after(vec![remove(4)]).nodes.contains_key(&NodeId(4)));
    // its number is not given again
    let state = after(vec![remove(4), Command::AddNode { token: TOKEN }]);
    assert_eq!(state.nodes.keys().map(|id| id.0).collect::<Vec<_>>(), [1, 2, 3, 5]);
}

/// Each row: what joins, the life that node01 is in afterwards, who owns vm1 (node, life, run).
#[test]
fn a_new_boot_is_a_new_life_and_keeps_only_the_runs_that_it_has() {
    for (what, join, life, owner) in [
        ("the daemon is started again", join(1, "boot1", 1, &[1]), 1, Some((1, 1, 1))),
        (
            "also without its guests: who owns it is not for a restart to say",
            join(1, "boot1", 1, &[]),
            1,
            Some((1, 1, 1)),
        ),
        ("another boot that has the run", join(1, "again", 1, &[1]), 4, Some((1, 4, 1))),
        ("another boot without the run: the owner is one in name only", join(1, "again", 1, &[]), 4, Some((1, 1, 1))),
        ("another boot with other runs", join(1, "again", 1, &[7, 8]), 4, Some((1, 1, 1))),
        ("another node with a run of that number", join(2, "again", 2, &[1]), 1, Some((1, 1, 1))),
    ] {
        let state = after(vec![join]);
        assert_eq!(state.nodes[&NodeId(1)].life, Life(life), "{what}");
        assert_eq!(run_of(&state, VM1), owner, "{what}");
    }
}

#[test]
fn a_delayed_join_does_not_end_a_newer_life() {
    check_refused(vec![
        ("unknown", join(9, "b", 0, &[]), "Node '9' not known"),
        (
            "an earlier boot",
            join(1, "earlier", 0, &[]),
            "node 'node01' is in life 1, not 0: a later boot of it has joined already",
        ),
    ]);
}
