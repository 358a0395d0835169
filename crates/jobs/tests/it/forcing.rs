//! Taking instances off a node that is off: by an operator's word, or because it was declared dead.

use std::sync::Arc;

use model::{
    AdminState, Command, Evidence, ForkPoint, Incarnation, InstanceChange, JobStatus, NodeChange, NodeId, Proposal,
    State, Timestamp, Uuid,
};
use opcodes::Opcode;
use opcodes::op::*;
use serde_json::json;

use crate::disks::mirrored;
use crate::interruption::{Case, case, success};
use crate::lab::Lab;
use crate::moves::failover;
use crate::operations::*;

fn forced(name: &str) -> Opcode {
    let (instance_name, shutdown_timeout, ignore_consistency) = (name.into(), 30, true);
    Opcode::InstanceFailover(InstanceFailover { instance_name, shutdown_timeout, ignore_consistency })
}

/// Mirrored from node04, which is never the master, to node01.
fn create(lab: &Arc<Lab>, name: &str, start: bool) {
    let (pnode, snode) = (Some("node04".into()), Some("node01".into()));
    lab.run(Opcode::InstanceCreate(Box::new(InstanceCreate { pnode, snode, start, ..mirrored(name) }))).unwrap();
}

/// As in a cluster without a witness.
fn in_manual_mode(lab: &Arc<Lab>) {
    for node in 1..=4 {
        lab.apply(vec![Command::Disarm { node: NodeId(node) }]).unwrap();
    }
}

fn loses_power(lab: &Lab, node: u64) {
    lab.change_machine(node, |machine| {
        machine.down = true;
        machine.ended.extend(std::mem::take(&mut machine.guests).into_keys());
        machine.mirrored.served.clear();
    });
}

fn set_up(lab: &Arc<Lab>) {
    create(lab, "vm1", true);
    in_manual_mode(lab);
    loses_power(lab, 4);
    lab.take_journal();
}

fn declare_dead(lab: &Arc<Lab>, evidence: Evidence) {
    let life = lab.state().nodes[&NodeId(4)].life;
    lab.apply(vec![Command::NodeDead { node: NodeId(4), life, evidence }]).unwrap();
}

fn by_lease() -> Evidence {
    Evidence::LeaseEnded { silent_ms: 1500, wait_ms: 1450, of_older_master: false, voters: vec![NodeId(1), NodeId(3)] }
}

/// The nodes that have a guest of that name.
fn homes(lab: &Lab, name: &str) -> Vec<u64> {
    (1..=4).filter(|node| lab.machine(*node).guests.values().any(|guest| guest.name == name)).collect()
}

/// vm1 runs on node01 and nowhere else.
fn assert_moved(lab: &Arc<Lab>) {
    assert_eq!(homes(lab, "vm1"), [1]);
    let vm1 = lab.instance("vm1").unwrap();
    assert_eq!((vm1.primary, vm1.secondaries), (NodeId(1), vec![NodeId(4)]));
    assert!(lab.state().nodes[&NodeId(4)].dead);
    lab.check();
}

pub fn cases() -> Vec<Case> {
    let case_of = |name, set_up| {
        case(
            name,
            set_up,
            || forced("vm1"),
            |lab, job| {
                success(lab, job);
                assert_moved(lab);
            },
        )
    };
    vec![
        case_of("forced failover", set_up as fn(&Arc<Lab>)),
        case(
            "forced failover of what is stopped",
            |lab| {
                create(lab, "vm1", false);
                in_manual_mode(lab);
                loses_power(lab, 4);
            },
            || forced("vm1"),
            |lab, job| {
                success(lab, job);
                let vm1 = lab.instance("vm1").unwrap();
                assert_eq!((vm1.primary, vm1.owner, vm1.want), (NodeId(1), None, AdminState::Down));
            },
        ),
    ]
}

/// In manual mode nobody knows what a silent node wrote alone, whatever the in-sync set says (7.2).
#[test]
fn in_manual_mode_only_an_operator_takes_an_instance_off_a_node_that_is_silent() {
    let lab = Lab::new();
    set_up(&lab);
    let refused = lab.run(failover("vm1")).unwrap_err();
    for text in [
        "Node 'node04', which has instance 'vm1', does not answer (no route to host)",
        "nothing was changed",
        "'gnt-instance failover --ignore-consistency vm1' starts the instance on 'node01' from the replicas there",
        "what 'node04' wrote after losing sight of 'node01' is lost then",
    ] {
        assert!(refused.text.contains(text), "{refused}");
    }
    assert!(!lab.state().nodes[&NodeId(4)].dead);

    let before = lab.instance("vm1").unwrap().disks[0].mirror.clone().unwrap();
    let job = lab.submit(forced("vm1"));
    lab.take_office(1).settle();
    assert_eq!(lab.outcome(job).unwrap(), json!(null));
    assert_eq!(
        lab.lines(job),
        [
            "Failover instance vm1",
            "* not checking disk consistency, as node node04 is taken to be off",
            " - WARNING: Please make sure that node node04 is off",
            "* activating the instance's disks on target node node01",
            "* starting the instance on the target node node01",
        ]
    );
    assert_moved(&lab);
    let after = lab.instance("vm1").unwrap().disks[0].mirror.clone().unwrap();
    assert_eq!(after.in_sync().len(), 1);
    assert!(after.is_member_on(NodeId(1)) && after.epoch > before.epoch);
    assert_eq!(after.forces.len(), 1);
    assert_eq!(after.forces[0].base, before.ver, "what node01's replica had followed");
}

#[test]
fn a_node_that_was_declared_dead_gives_up_what_is_in_sync_elsewhere_without_a_word() {
    let lab = Lab::new();
    create(&lab, "vm1", true);
    loses_power(&lab, 4);
    declare_dead(&lab, by_lease());
    let job = lab.submit(failover("vm1"));
    lab.take_office(1).settle();
    assert_eq!(lab.outcome(job).unwrap(), json!(null));
    assert_eq!(lab.lines(job)[1], "* checking disk consistency between source and target");
    assert_moved(&lab);
    assert_eq!(lab.instance("vm1").unwrap().disks[0].mirror.as_ref().unwrap().forces, []);
}

#[test]
fn a_node_that_is_dead_or_offline_in_manual_mode_is_named_with_the_way_out() {
    let offline = |lab: &Arc<Lab>| {
        let change = NodeChange { offline: Some(true), ..NodeChange::default() };
        lab.apply(vec![Command::ModifyNode { node: NodeId(4), change }]).unwrap();
    };
    let dead = |lab: &Arc<Lab>| declare_dead(lab, Evidence::AssertedOff);
    for (is_offline, how) in [(true, "is marked offline"), (false, "was declared dead")] {
        let lab = Lab::new();
        set_up(&lab);
        if is_offline {
            offline(&lab)
        } else {
            dead(&lab)
        }
        let refused = lab.run(failover("vm1")).unwrap_err();
        assert!(refused.text.starts_with(&format!("Node 'node04', which has instance 'vm1', {how}. ")), "{refused}");
        assert!(refused.text.contains("'gnt-node failover --ignore-consistency node04'"), "{refused}");
        assert_eq!(lab.take_journal(), [""; 0], "a node is asked of which the state says that it is away");
        lab.run(forced("vm1")).unwrap();
        assert_moved(&lab);
    }
}

/// `gnt-node failover`: all at the same time, and the node is declared dead once.
#[test]
fn all_instances_of_a_node_are_taken_off_it_at_once() {
    let lab = Lab::new();
    create(&lab, "vm2", true);
    set_up(&lab);
    let jobs = [lab.submit(forced("vm1")), lab.submit(forced("vm2"))];
    lab.take_office(1).settle();
    for job in jobs {
        assert_eq!(lab.status(job), JobStatus::Success, "{:?}", lab.outcome(job));
    }
    assert_moved(&lab);
    assert_eq!(homes(&lab, "vm2"), [1]);
}

#[test]
fn a_replica_in_the_middle_of_a_resync_is_not_promoted() {
    let lab = Lab::new();
    set_up(&lab);
    lab.change_machine(1, |machine| machine.mirrored.inconsistent = true);
    let refused = lab.run(forced("vm1")).unwrap_err();
    assert!(refused.text.contains("its replica there was in the middle of a resync"), "{refused}");
    assert!(refused.text.ends_with("start that, and try again"), "{refused}");
    assert!(!lab.state().nodes[&NodeId(4)].dead);
}

#[test]
fn the_option_does_not_take_an_instance_off_a_node_that_answers() {
    let lab = Lab::new();
    create(&lab, "vm1", true);
    in_manual_mode(&lab);
    // In sync: it is moved in good order.
    lab.run(forced("vm1")).unwrap();
    assert_eq!(homes(&lab, "vm1"), [1]);
    assert_eq!(lab.instance("vm1").unwrap().disks[0].mirror.as_ref().unwrap().forces, []);

    let vm1 = lab.instance("vm1").unwrap();
    let mirror = vm1.disks[0].mirror.clone().unwrap();
    let (replica, by) = (mirror.replica_on(NodeId(4)).unwrap().0, mirror.primary.unwrap());
    lab.inner().no_resync = true;
    let (disk, epoch, ver) = (vm1.disks[0].id, mirror.epoch, mirror.ver);
    lab.apply(vec![Command::Outdate { disk, by, epoch, ver, replicas: vec![replica] }]).unwrap();
    let refused = lab.run(forced("vm1")).unwrap_err();
    assert!(
        refused.text.ends_with("'--ignore-consistency' is for an instance whose node is off, and 'node01' answers")
    );
    assert_eq!(homes(&lab, "vm1"), [1]);
}

/// Forced recovery on node01: what node04 served may have gone on without this node's copy of the log.
#[test]
fn what_is_doubtful_after_a_forced_recovery_is_promoted_by_the_option_alone() {
    let found = |lab: &Arc<Lab>| {
        let (incarnation, fork_point) = (Incarnation { n: 2, id: Uuid::from_u128(2) }, ForkPoint { term: 1, index: 1 });
        let off = vec![NodeId(2), NodeId(3), NodeId(4)];
        let found = Command::Found { incarnation, fork_point, node: Some(NodeId(1)), off };
        let mut inner = lab.inner();
        let mut next = State::clone(&inner.state);
        let (incarnation, at) = (next.incarnation, Timestamp(5));
        next.apply(&Proposal { incarnation, office: None, at, commands: vec![found] }).unwrap();
        // Terms go on from the old ones.
        next.office = inner.state.office;
        inner.state = Arc::new(next);
        lab.states.send_replace(Arc::clone(&inner.state));
    };
    let lab = Lab::new();
    set_up(&lab);
    found(&lab);
    let refused = lab.run(failover("vm1")).unwrap_err();
    assert!(refused.text.starts_with("Node 'node04', which has instance 'vm1', was declared dead. "), "{refused}");
    let job = lab.submit(forced("vm1"));
    lab.take_office(1).settle();
    success(&lab, job);
    assert!(lab.lines(job).contains(&" - WARNING: ignoring degraded disk 0 on target node node01".to_owned()));
    assert_moved(&lab);

    // One that is stopped, and lives on the node that goes on: it stays there.
    let lab = Lab::new();
    create(&lab, "vm1", false);
    lab.run(failover("vm1")).unwrap();
    in_manual_mode(&lab);
    loses_power(&lab, 4);
    found(&lab);
    let refused = lab.run(startup("vm1")).unwrap_err();
    let typed = "'gnt-instance failover --ignore-consistency vm1' goes on with what node 'node01' has";
    assert!(refused.text.ends_with(typed), "{refused}");
    let instance = lab.instance("vm1").unwrap().id;
    let change = Box::new(InstanceChange::want(AdminState::Down));
    lab.apply(vec![Command::ModifyInstance { instance, change }]).unwrap();
    lab.run(forced("vm1")).unwrap();
    lab.run(startup("vm1")).unwrap();
    assert_moved(&lab);
}

#[test]
fn the_warning_stands_as_long_as_an_operator_would_be_needed() {
    // node01 and node02 may vote, node03 is the witness; node04 may not be master.
    let whole = Lab::new().state();
    let of = |change: &dyn Fn(&mut State)| {
        let mut state = State::clone(&whole);
        change(&mut state);
        jobs::standing_warning(&state)
    };
    let without_witness = |state: &mut State| state.nodes.retain(|node, _| node.0 <= 2);
    assert_eq!(of(&|_| ()), None);
    assert_eq!(of(&|state| state.nodes.retain(|node, _| node.0 == 1)), None, "there is nothing to fail over to");
    let says = |warning: Option<String>, text: &str| {
        assert!(warning.as_ref().is_some_and(|it| it.contains(text)), "{warning:?}")
    };
    says(
        of(&without_witness),
        "only 2 nodes may vote, and of two none can tell a dead peer from a cut cable; with a witness",
    );
    says(of(&|state| state.nodes.get_mut(&NodeId(2)).unwrap().armed = false), "not armed is node02");
    says(of(&|state| state.cluster.as_mut().unwrap().ha = false), "switched off, until 'cardume ha arm'");
}
