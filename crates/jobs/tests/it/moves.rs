//! Moving instances: live and by failover.

use std::sync::Arc;

use model::{AdminState, Command, InstanceChange, JobStatus, NodeChange, NodeId, RunId};
use opcodes::Opcode;
use opcodes::op::*;
use serde_json::json;

use crate::disks::created_mirrored;
use crate::lab::{Fault, Lab};
use crate::machine::Guest;
use crate::operations::*;

/// So often that nobody asks any more.
pub const ALWAYS: usize = 1000;

pub fn migrate(name: &str, change: impl FnOnce(&mut InstanceMigrate)) -> Opcode {
    let mut op = InstanceMigrate { instance_name: name.into(), ..Default::default() };
    change(&mut op);
    Opcode::InstanceMigrate(op)
}

pub fn cleanup(name: &str) -> Opcode {
    migrate(name, |op| op.cleanup = true)
}

pub fn failover(name: &str) -> Opcode {
    let (instance_name, shutdown_timeout, ignore_consistency) = (name.into(), 30, false);
    Opcode::InstanceFailover(InstanceFailover { instance_name, shutdown_timeout, ignore_consistency })
}

/// vm1 runs on node01, in run 2, and is mirrored to node02.
pub fn running(lab: &Arc<Lab>) {
    lab.run(created_mirrored("vm1", true)).unwrap();
    lab.take_journal();
}

/// vm1 is stopped.
pub fn stopped(lab: &Arc<Lab>) {
    lab.run(created_mirrored("vm1", false)).unwrap();
    lab.take_journal();
}

/// The only guest of vm1 that there is, and the node that it is on.
pub fn only(lab: &Lab) -> Option<(u64, RunId, Guest)> {
    let all: Vec<_> = (1..=4)
        .flat_map(|node| lab.machine(node).guests.into_iter().map(move |(run, guest)| (node, run, guest)))
        .collect();
    assert!(all.len() <= 1, "{all:?}");
    all.into_iter().next()
}

/// The guest of vm1 runs on that node, with the memory of the run in which it was booted.
pub fn assert_runs(lab: &Arc<Lab>, node: u64, booted: u64) {
    let (at, run, guest) = only(lab).expect("it does not run");
    let instance = lab.instance("vm1").unwrap();
    assert_eq!((at, guest.booted, guest.paused), (node, RunId(booted), false));
    assert_eq!((instance.primary, instance.run, instance.migration), (NodeId(node), Some(run), None));
    assert_eq!(instance.secondaries, [NodeId(3 - node)]);
    lab.check();
}

fn outdate(lab: &Arc<Lab>, node: u64) {
    let vm1 = lab.instance("vm1").unwrap();
    let disk = &vm1.disks[1];
    let mirror = disk.mirror.clone().unwrap();
    let replicas = vec![mirror.replica_on(NodeId(node)).unwrap().0];
    lab.inner().no_resync = true;
    let (by, epoch, ver) = (mirror.primary.unwrap(), mirror.epoch, mirror.ver);
    lab.apply(vec![Command::Outdate { disk: disk.id, by, epoch, ver, replicas }]).unwrap();
}

#[test]
fn an_instance_is_migrated_and_the_guest_notices_nothing() {
    let lab = Lab::new();
    running(&lab);
    let job = lab.submit(migrate("vm1", |_| ()));
    lab.take_office(1).settle();
    assert_eq!(lab.outcome(job).unwrap(), json!({"total_ms": 600, "downtime_ms": 12, "bytes": 40 << 20}));
    assert_eq!(
        lab.lines(job),
        [
            "Migrating instance vm1",
            "* checking disk consistency between source and target",
            "* preparing node02 to accept the instance",
            "* migrating instance to node02",
            "* starting memory transfer",
            "* memory transfer complete",
            "* 40.0 MiB of memory sent in 0.60 s, the guest stood still for 12 ms of it",
            "* done",
        ]
    );
    assert_eq!(
        lab.take_journal(),
        [
            "node01 look_at_run 2",
            "node01 facts",
            "node02 facts",
            "node02 check vm1",
            "node02 receive vm1 3",
            "node01 send vm1 2",
            "node01 look_at_sending 2",
            "node02 look_at_run 3",
            "node01 quiesce",
            "node02 take_frames",
            "node02 continue vm1 3",
            "node01 stop vm1 2",
        ]
    );
    assert_runs(&lab, 2, 2);
    // and back
    lab.run(migrate("vm1", |op| op.mode = MigrationMode::NonLive)).unwrap();
    assert_runs(&lab, 1, 2);
}

#[test]
fn a_long_transfer_tells_how_far_it_is_and_a_paused_guest_stays_paused() {
    let lab = Lab::new();
    running(&lab);
    lab.change_machine(1, |machine| {
        machine.moving.slow = 3;
        machine.guests.values_mut().for_each(|guest| guest.paused = true);
    });
    let job = lab.submit(migrate("vm1", |_| ()));
    lab.take_office(1).settle();
    assert_eq!(lab.status(job), JobStatus::Success);
    let lines = lab.lines(job);
    assert_eq!(lines.iter().filter(|line| *line == "* memory transfer progress: 25.00 %").count(), 1, "{lines:?}");
    assert!(only(&lab).unwrap().2.paused);
}

/// Nothing of this changes anything.
#[test]
fn what_can_not_be_migrated_or_failed_over_is_refused_with_the_reason() {
    type SetUp = fn(&Arc<Lab>);
    let only_live = "Instance 'vm1' is marked to be down, so it can't be migrated; 'gnt-instance failover vm1' moves it, and so does '--allow-failover'";
    let cases: Vec<(SetUp, &str, Option<&str>)> = vec![
        (stopped, only_live, None),
        (
            |lab| {
                running(lab);
                lab.change_machine(1, |it| it.ended.extend(std::mem::take(&mut it.guests).into_keys()));
            },
            "Instance 'vm1' is not running, so it can't be migrated; 'gnt-instance failover vm1' moves it, and so does '--allow-failover'",
            None,
        ),
        (
            |lab| {
                running(lab);
                outdate(lab, 2);
            },
            "Disk 1 of instance 'vm1' is degraded: its replica on target node 'node02' is not in sync. Wait for its resync, which 'cardume disk status' shows, and try again",
            Some(
                "Disk 1 of instance 'vm1' is degraded: its replica on target node 'node02' is not in sync. Wait for its resync, which 'cardume disk status' shows, and try again",
            ),
        ),
        (
            |lab| {
                running(lab);
                lab.change_machine(2, |it| it.memory_free_mib = 64);
            },
            "Not enough memory on target node node02 for instance vm1: needed 128 MiB, available 64 MiB",
            Some("Not enough memory on target node node02 for instance vm1: needed 128 MiB, available 64 MiB"),
        ),
        (
            |lab| {
                running(lab);
                lab.fault("check", ALWAYS, Fault::Refused);
            },
            "Instance 'vm1' can't run on target node 'node02': no such luck",
            Some("Instance 'vm1' can't run on target node 'node02': no such luck"),
        ),
        (
            |lab| {
                running(lab);
                lab.change_machine(2, |it| it.down = true);
            },
            "Node 'node02' does not answer: no route to host",
            Some("Node 'node02' does not answer: no route to host"),
        ),
        (
            |lab| {
                running(lab);
                lab.change_machine(1, |it| it.down = true);
            },
            "Node 'node01', which has instance 'vm1', does not answer (no route to host). It keeps the instance until it is back, because nobody can tell whether it still runs there; nothing was changed",
            Some(
                "Node 'node01', which has instance 'vm1', does not answer (no route to host). It keeps the instance until it is back, because nobody can tell whether it still runs there; nothing was changed. If 'node01' is surely off, 'gnt-instance failover --ignore-consistency vm1' starts the instance on 'node02' from the replicas there ('gnt-node failover --ignore-consistency node01': all of its instances); what 'node01' wrote after losing sight of 'node02' is lost then",
            ),
        ),
        (
            |lab| {
                running(lab);
                let change = NodeChange { offline: Some(true), ..NodeChange::default() };
                lab.apply(vec![Command::ModifyNode { node: NodeId(2), change }]).unwrap();
            },
            "Can't use offline node 'node02' as the target of instance 'vm1'",
            Some("Can't use offline node 'node02' as the target of instance 'vm1'"),
        ),
        (
            |lab| {
                running(lab);
                let change = NodeChange { drained: Some(true), ..NodeChange::default() };
                lab.apply(vec![Command::ModifyNode { node: NodeId(2), change }]).unwrap();
            },
            "Can't use drained node 'node02' as the target of instance 'vm1'",
            Some("Can't use drained node 'node02' as the target of instance 'vm1'"),
        ),
        (
            |lab| {
                running(lab);
                let instance = lab.instance("vm1").unwrap().id;
                let migration = model::Uuid::from_u128(77);
                lab.apply(vec![Command::Prepare { instance, migration, to: NodeId(2) }]).unwrap();
            },
            "Instance 'vm1' is migrating to node 'node02' already, by a job that did not bring it to an end; 'gnt-instance migrate --cleanup vm1' settles that first",
            Some(
                "Instance 'vm1' is migrating to node 'node02' already, by a job that did not bring it to an end; 'gnt-instance migrate --cleanup vm1' settles that first",
            ),
        ),
        (
            |lab| {
                lab.run(created("vm1", true)).unwrap();
            },
            "Instance's disk layout 'file' does not allow migrations",
            Some("Instance's disk layout 'file' does not allow failovers"),
        ),
        (|_| (), "Instance 'vm1' not known", Some("Instance 'vm1' not known")),
    ];
    for (set_up, live, by_failover) in cases {
        let ops = [(migrate("vm1", |_| ()), Some(live)), (failover("vm1"), by_failover)];
        for (op, expected) in ops {
            let Some(expected) = expected else { continue };
            let lab = Lab::new();
            set_up(&lab);
            let before = lab.instance("vm1");
            assert_eq!(lab.run(op).unwrap_err().text, expected);
            assert_eq!(lab.instance("vm1"), before, "{expected}");
        }
    }
}

#[test]
fn what_can_not_be_migrated_is_failed_over_where_that_is_allowed() {
    let lab = Lab::new();
    stopped(&lab);
    lab.run(migrate("vm1", |op| op.allow_failover = true)).unwrap();
    let vm1 = lab.instance("vm1").unwrap();
    assert_eq!((vm1.primary, vm1.secondaries, vm1.owner), (NodeId(2), vec![NodeId(1)], None));
    lab.check();

    let lab = Lab::new();
    running(&lab);
    let beparams = [("always_failover".to_owned(), Some(model::ParamValue::Bool(true)))].into();
    let change = Box::new(InstanceChange { beparams, ..InstanceChange::default() });
    let instance = lab.instance("vm1").unwrap().id;
    lab.apply(vec![Command::ModifyInstance { instance, change }]).unwrap();
    lab.run(migrate("vm1", |_| ())).unwrap();
    assert_runs(&lab, 2, 3);
}

/// Whatever fails before it is decided: the guest stays where it is, with all that it has in memory.
#[test]
fn a_migration_that_fails_leaves_the_guest_where_it_is() {
    for fault in [Fault::Refused, Fault::Failed, Fault::Unreachable, Fault::AnswerLost] {
        for call in ["receive", "send", "look_at_sending", "look_at_run 3", "quiesce", "take_frames"] {
            let lab = Lab::new();
            running(&lab);
            lab.fault(call, ALWAYS, fault.clone());
            let failure = lab.run(migrate("vm1", |_| ())).expect_err(call);
            assert!(failure.text.starts_with("Could not migrate instance 'vm1': "), "{failure}");
            assert_runs(&lab, 1, 2);
            lab.inner().faults.clear();
            lab.run(migrate("vm1", |_| ())).unwrap();
            assert_runs(&lab, 2, 2);
        }
    }
    let broken: [fn(&Lab); 3] = [
        |lab| lab.change_machine(1, |it| it.moving.fails = Some("broken pipe".into())),
        |lab| lab.change_machine(2, |it| it.moving.loses = true),
        |lab| lab.change_machine(2, |it| it.mirrored.stored.clear()),
    ];
    for (index, break_it) in broken.into_iter().enumerate() {
        let lab = Lab::new();
        running(&lab);
        break_it(&lab);
        let failure = lab.run(migrate("vm1", |_| ())).unwrap_err();
        assert!(failure.text.starts_with("Could not migrate instance 'vm1': "), "{failure}");
        let (node, _, guest) = only(&lab).unwrap();
        assert_eq!((node, guest.booted, guest.paused), (1, RunId(2), false), "{index}");
    }
}

#[test]
fn a_source_that_can_not_be_told_is_named_and_settled_later() {
    for fault in [Fault::Refused, Fault::Unreachable] {
        let lab = Lab::new();
        running(&lab);
        lab.fault("take_frames", 1, Fault::Refused);
        lab.fault("stay", ALWAYS, fault.clone());
        let failure = lab.run(migrate("vm1", |_| ())).unwrap_err();
        assert!(failure.text.contains("belongs to node 'node01'"), "{failure}");
        assert!(failure.text.contains("'gnt-instance migrate --cleanup vm1' settles it"), "{failure}");
        assert_eq!(lab.instance("vm1").unwrap().migration, None);
        lab.run(cleanup("vm1")).unwrap_err();
        lab.inner().faults.clear();
        lab.run(cleanup("vm1")).unwrap();
        assert_runs(&lab, 1, 2);
    }
}

#[test]
fn a_migration_that_nobody_decided_is_settled_also_when_its_source_was_started_anew() {
    let lab = Lab::new();
    running(&lab);
    let (instance, migration) = (lab.instance("vm1").unwrap().id, model::Uuid::from_u128(77));
    lab.apply(vec![Command::Prepare { instance, migration, to: NodeId(2) }]).unwrap();
    lab.boot(NodeId(1));
    lab.run(cleanup("vm1")).unwrap();
    assert_eq!(lab.instance("vm1").unwrap().migration, None);
    lab.run(startup("vm1")).unwrap();
    assert_runs(&lab, 1, 4);
}

/// The state gives it to the destination: there is no way back.
#[test]
fn a_guest_that_can_not_go_on_at_its_destination_is_restarted_there() {
    let lab = Lab::new();
    running(&lab);
    lab.fault("continue", ALWAYS, Fault::Refused);
    let job = lab.submit(migrate("vm1", |_| ()));
    lab.take_office(1).settle();
    assert_eq!(lab.status(job), JobStatus::Success);
    assert!(lab.lines(job).contains(
        &" - WARNING: Instance 'vm1' could not go on with what it did on node 'node02' and is restarted there: no such luck"
            .to_owned()
    ));
    assert_runs(&lab, 2, 4);
}

#[test]
fn a_destination_that_does_not_answer_after_the_handover_keeps_the_guest() {
    let lab = Lab::new();
    running(&lab);
    lab.fault("continue", ALWAYS, Fault::Unreachable);
    let failure = lab.run(migrate("vm1", |_| ())).unwrap_err();
    assert_eq!(
        failure.text,
        "Instance 'vm1' was handed over to node 'node02', which does not answer now (connection refused): it belongs to that node and waits for it. When the node is back, 'gnt-instance migrate --cleanup vm1' settles it"
    );
    lab.inner().faults.clear();
    lab.run(cleanup("vm1")).unwrap();
    assert_runs(&lab, 2, 2);
}

#[test]
fn a_source_that_keeps_its_old_run_is_warned_of_and_cleaned_up_later() {
    let lab = Lab::new();
    running(&lab);
    lab.fault("stop vm1 2", ALWAYS, Fault::Refused);
    let job = lab.submit(migrate("vm1", |_| ()));
    lab.take_office(1).settle();
    assert_eq!(lab.status(job), JobStatus::Success);
    assert!(lab.lines(job).iter().any(|line| line.contains("WARNING: What instance 'vm1' left on node 'node01'")));
    lab.inner().faults.clear();
    let job = lab.submit(cleanup("vm1"));
    lab.take_office(1).settle();
    assert_eq!(
        lab.lines(job),
        [
            "Migrating instance vm1",
            "* checking where the instance actually runs (if this hangs, the hypervisor might be in a bad state)",
            "* run 2 of the instance, left on node01, was ended",
            "* instance confirmed to be running on its primary node (node02)",
            "* done",
        ]
    );
    assert_runs(&lab, 2, 2);
}

#[test]
fn an_instance_is_failed_over() {
    let lab = Lab::new();
    running(&lab);
    let job = lab.submit(failover("vm1"));
    lab.take_office(1).settle();
    assert_eq!(lab.status(job), JobStatus::Success);
    assert_eq!(
        lab.lines(job),
        [
            "Failover instance vm1",
            "* checking disk consistency between source and target",
            "* shutting down instance on source node",
            "* deactivating the instance's disks on source node",
            "* activating the instance's disks on target node node02",
            "* starting the instance on the target node node02",
        ]
    );
    assert_eq!(
        lab.take_journal(),
        ["node01 facts", "node02 facts", "node02 check vm1", "node01 stop vm1 2", "node02 start vm1 3"]
    );
    assert_runs(&lab, 2, 3);
    lab.run(failover("vm1")).unwrap();
    assert_runs(&lab, 1, 4);

    lab.run(shutdown("vm1")).unwrap();
    lab.run(failover("vm1")).unwrap();
    let vm1 = lab.instance("vm1").unwrap();
    assert_eq!(
        (vm1.primary, &vm1.secondaries, vm1.owner, vm1.want),
        (NodeId(2), &vec![NodeId(1)], None, AdminState::Down)
    );
    assert!(only(&lab).is_none());
    lab.check();
    lab.run(startup("vm1")).unwrap();
    assert_runs(&lab, 2, 5);
}

#[test]
fn a_failover_that_can_not_go_on_starts_the_instance_where_it_was() {
    let lab = Lab::new();
    running(&lab);
    lab.fault("stop", 1, Fault::Gate);
    let job = lab.submit(failover("vm1"));
    let office = lab.take_office(1);
    office.settle();
    outdate(&lab, 2);
    lab.open_gate();
    office.settle();
    let failure = lab.outcome(job).unwrap_err();
    assert!(failure.text.starts_with("Could not fail over instance 'vm1' to node 'node02': "), "{failure}");
    assert!(failure.text.ends_with("; it was started again on node 'node01'"), "{failure}");
    drop(office);
    let (node, run, _) = only(&lab).unwrap();
    assert_eq!((node, run), (1, RunId(3)));
}

#[test]
fn a_failover_whose_source_does_not_answer_any_more_changes_nothing() {
    let lab = Lab::new();
    running(&lab);
    lab.fault("stop", ALWAYS, Fault::Unreachable);
    let failure = lab.run(failover("vm1")).unwrap_err();
    assert!(failure.text.contains("It stays on that node"), "{failure}");
    assert_runs(&lab, 1, 2);
}

#[test]
fn what_can_not_start_at_its_new_node_is_left_stopped_there() {
    let lab = Lab::new();
    running(&lab);
    lab.fault("start", ALWAYS, Fault::Failed);
    let failure = lab.run(failover("vm1")).unwrap_err();
    assert_eq!(failure.text, "Could not start instance 'vm1': no such luck");
    let vm1 = lab.instance("vm1").unwrap();
    assert_eq!((vm1.primary, vm1.owner), (NodeId(2), None));
    lab.check();
}
