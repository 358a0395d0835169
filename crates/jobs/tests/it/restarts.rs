//! What the watcher orders: an instance that has ended although it should run is started again, if that is still so.

use std::sync::Arc;

use model::{Command, Evidence, Happening, NodeId, RunId};
use opcodes::Opcode;
use opcodes::op::InstanceRestart;
use serde_json::Value;

use crate::lab::{Fault, Lab};
use crate::moves::{ALWAYS, assert_runs, only, running};
use crate::operations::*;

fn restart(run: Option<u64>, target: &str) -> Opcode {
    let (instance_name, target_node) = ("vm1".into(), target.into());
    Opcode::InstanceRestart(InstanceRestart { instance_name, run: run.map(RunId), target_node })
}

/// vm1, in run 2 on node01 and mirrored to node02, has ended by itself.
fn crashed(lab: &Arc<Lab>) {
    running(lab);
    lab.change_machine(1, |machine| machine.guests.clear());
}

#[test]
fn a_guest_that_ended_is_started_again_on_its_node() {
    let lab = Lab::new();
    crashed(&lab);
    lab.run(restart(Some(2), "node01")).unwrap();
    assert_eq!(lab.take_journal(), ["node01 facts", "node01 detach vm1", "node01 stop vm1 2", "node01 start vm1 3"]);
    assert_runs(&lab, 1, 3);
    let state = lab.state();
    let last = &state.history.iter().last().unwrap().what;
    assert!(matches!(last, Happening::Started { node: NodeId(1), run: RunId(3), .. }), "{last:?}");
}

#[test]
fn or_on_the_other_node() {
    let lab = Lab::new();
    crashed(&lab);
    lab.run(restart(Some(2), "node02")).unwrap();
    assert_runs(&lab, 2, 3);
}

#[test]
fn nothing_is_started_that_was_seen_to_meanwhile() {
    let lab = Lab::new();
    running(&lab);
    // It runs.
    assert_eq!(lab.run(restart(Some(2), "node01")).unwrap(), Value::Null);
    // It was in an earlier run.
    assert_eq!(lab.run(restart(Some(1), "node01")).unwrap(), Value::Null);
    assert_runs(&lab, 1, 2);
    lab.run(shutdown("vm1")).unwrap();
    for run in [Some(2), None] {
        assert_eq!(lab.run(restart(run, "node01")).unwrap(), Value::Null);
        assert_eq!(only(&lab), None, "an administrator has shut it down");
    }
    lab.check();
}

#[test]
fn an_instance_that_nobody_owns_is_started() {
    let lab = Lab::new();
    crashed(&lab);
    lab.fault("start", ALWAYS, Fault::Refused);
    lab.run(restart(Some(2), "node01")).unwrap_err();
    assert_eq!(lab.instance("vm1").unwrap().run, None);
    lab.inner().faults.clear();
    lab.run(restart(None, "node01")).unwrap();
    assert_runs(&lab, 1, 4);
}

/// A second job waits for the lock, and finds nothing left to do.
#[test]
fn two_that_were_ordered_start_it_once() {
    let lab = Lab::new();
    crashed(&lab);
    let jobs = [lab.submit(restart(Some(2), "node01")), lab.submit(restart(Some(2), "node02"))];
    lab.take_office(1).settle();
    for job in jobs {
        lab.outcome(job).unwrap();
    }
    assert_runs(&lab, 1, 3);
}

#[test]
fn nobody_waits_for_a_node_that_is_declared_dead() {
    let lab = Lab::new();
    running(&lab);
    let job = lab.submit(shutdown("vm1"));
    lab.fault("stop", ALWAYS, Fault::Gate);
    let office = lab.take_office(2);
    office.settle();
    let before = lab.inner().clock;
    let life = lab.state().nodes[&NodeId(1)].life;
    let evidence = Evidence::AssertedOff;
    lab.apply(vec![Command::NodeDead { node: NodeId(1), life, evidence }]).unwrap();
    office.settle();
    lab.outcome(job).unwrap_err();
    assert!(lab.inner().clock < before + 1_000_000, "it took the time that a node gets that only does not answer");
}
