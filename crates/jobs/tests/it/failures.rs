//! What is left when a node fails in the middle of an operation.

use opcodes::Opcode;
use serde_json::json;

use crate::lab::{Fault, Lab};
use crate::operations::*;

/// So often that nobody asks any more.
const ALWAYS: usize = 1000;

#[test]
fn an_instance_that_can_not_be_made_is_undone() {
    for fault in [Fault::Refused, Fault::Failed, Fault::Unreachable, Fault::AnswerLost] {
        for call in ["facts", "check", "create_disk vm1/0", "create_disk vm1/1", "install"] {
            let lab = Lab::new();
            lab.fault(call, ALWAYS, fault.clone());
            let failure = lab.run(created("vm1", true)).expect_err(call);
            let cause = match fault {
                Fault::Refused | Fault::Failed => "no such luck",
                _ => "Node 'node01' does not answer: connection refused",
            };
            assert_eq!(failure.text, cause, "{call} {fault:?}");
            assert_eq!(lab.instance("vm1"), None, "{call} {fault:?}");
            assert!(lab.machine(1).disks.is_empty(), "{call} {fault:?}");
            lab.check();
        }
    }
}

#[test]
fn a_disk_that_can_not_be_removed_after_a_failure_is_named() {
    let lab = Lab::new();
    lab.fault("install", ALWAYS, Fault::Refused);
    lab.fault("remove_disk vm1/1", ALWAYS, Fault::Refused);
    let id = lab.submit(created("vm1", true));
    lab.take_office(1).settle();
    assert_eq!(lab.outcome(id).unwrap_err().text, "no such luck");
    assert_eq!(
        lab.lines(id).last().unwrap(),
        " - WARNING: Could not remove disk 1 of 'vm1' on node 'node01': no such luck"
    );
    assert_eq!(lab.instance("vm1"), None);
    assert_eq!(lab.machine(1).disks.len(), 1);
}

#[test]
fn a_call_that_is_lost_is_repeated() {
    for fault in [Fault::Unreachable, Fault::AnswerLost] {
        let lab = Lab::new();
        for call in ["facts", "check", "create_disk", "install", "start", "stop", "remove_disk"] {
            lab.fault(call, 2, fault.clone());
        }
        lab.run(created("vm1", true)).unwrap();
        lab.check();
        lab.run(reboot("vm1", opcodes::op::RebootType::Hard)).unwrap();
        lab.check();
        lab.run(remove("vm1", false)).unwrap();
        lab.check();
    }
}

/// The instance is whole; it is the start that failed.
#[test]
fn an_instance_that_does_not_start_is_left_stopped() {
    for fault in [Fault::Refused, Fault::Failed, Fault::Unreachable, Fault::AnswerLost] {
        for made in [false, true] {
            let lab = Lab::new();
            if made {
                lab.run(created("vm1", false)).unwrap();
            }
            lab.fault("start", ALWAYS, fault.clone());
            let failure = lab.run(if made { startup("vm1") } else { created("vm1", true) }).unwrap_err();
            assert!(failure.text.starts_with("Could not start instance 'vm1': "), "{failure}");
            let vm1 = lab.instance("vm1").unwrap();
            assert_eq!((vm1.owner, vm1.run), (None, None));
            assert_eq!(guest(&lab, "vm1"), None);
            lab.check();
        }
    }
}

/// Nobody knows whether the guest runs: the right to run it stays where it is until the node says.
#[test]
fn a_start_of_which_nothing_is_known_keeps_the_right_to_run() {
    let lab = Lab::new();
    lab.run(created("vm1", false)).unwrap();
    lab.fault("start", ALWAYS, Fault::AnswerLost);
    lab.fault("stop", 30, Fault::Unreachable);
    let failure = lab.run(startup("vm1")).unwrap_err();
    assert_eq!(
        failure.text,
        "Could not start instance 'vm1': Node 'node01' does not answer: connection refused; what may be left of it could \
         not be ended: Node 'node01' does not answer: connection refused"
    );
    assert!(lab.instance("vm1").unwrap().owner.is_some());
    assert!(guest(&lab, "vm1").is_some());
    // it runs after all
    lab.run(startup("vm1")).unwrap();
    lab.check();
    lab.run(shutdown("vm1")).unwrap();
    lab.check();
}

#[test]
fn a_stop_that_fails_changes_nothing() {
    let lab = Lab::new();
    lab.run(created("vm1", true)).unwrap();
    let before = lab.instance("vm1");
    for op in [shutdown("vm1"), reboot("vm1", opcodes::op::RebootType::Hard), remove("vm1", false)] {
        lab.fault("stop", 1, Fault::Refused);
        assert_eq!(lab.run(op).unwrap_err().text, "no such luck");
        assert_eq!(lab.instance("vm1"), before);
        lab.check();
    }
}

#[test]
fn a_restart_in_the_same_process_is_tried_once() {
    for (fault, resets, text) in [
        (Fault::Refused, 0, "no such luck"),
        (
            Fault::AnswerLost,
            1,
            "It is not known whether instance 'vm1' was restarted: node 'node01' does not answer: connection refused",
        ),
    ] {
        let lab = Lab::new();
        lab.run(created("vm1", true)).unwrap();
        lab.fault("reset", 1, fault);
        let failure = lab.run(reboot("vm1", opcodes::op::RebootType::Soft)).unwrap_err();
        assert_eq!(failure.text, text);
        assert_eq!(guest(&lab, "vm1"), Some((1, false, resets)));
        lab.check();
    }
}

#[test]
fn a_removal_that_fails_can_be_tried_again() {
    let lab = Lab::new();
    lab.run(created("vm1", true)).unwrap();
    lab.fault("remove_disk vm1/1", 1, Fault::Refused);
    assert_eq!(lab.run(remove("vm1", false)).unwrap_err().text, "no such luck");
    assert_eq!(lab.instance("vm1").unwrap().provision, model::Provision::Ready);
    lab.run(remove("vm1", false)).unwrap();
    lab.check();
}

#[test]
fn a_removal_that_ignores_failures_removes_the_instance_whatever_its_node_does() {
    for fault in [Fault::Refused, Fault::Unreachable] {
        let lab = Lab::new();
        lab.run(created("vm1", false)).unwrap();
        lab.run(created("vm2", true)).unwrap();
        // the node's own guests can't be ended, and neither can its disks be removed
        lab.fault("stop", ALWAYS, fault.clone());
        lab.fault("remove_disk", ALWAYS, fault.clone());
        for name in ["vm1", "vm2"] {
            let id = lab.submit(remove(name, true));
            lab.take_office(1).settle();
            lab.outcome(id).unwrap();
            assert_eq!(lab.instance(name), None);
            assert!(lab.lines(id).iter().all(|line| line.starts_with(" - WARNING: Could not ")));
        }
    }
}

#[test]
fn a_machine_that_joins_and_goes_away_leaves_nothing() {
    for call in ["enrol", "caught_up"] {
        let lab = Lab::new();
        lab.fault(call, ALWAYS, Fault::Unreachable);
        lab.machine_joins();
        let failure = lab.run(node_add("node05")).unwrap_err();
        assert!(failure.text.starts_with("'node05' joined, but then could not be reached: "), "{failure}");
        assert_eq!(lab.state().nodes.len(), 4);
        lab.check();
    }
}

#[test]
fn a_node_that_can_not_be_told_to_leave_is_removed_with_a_warning() {
    let lab = Lab::new();
    lab.fault("expel", 1, Fault::Unreachable);
    let id = lab.submit(node_remove("node04"));
    lab.take_office(1).settle();
    lab.outcome(id).unwrap();
    assert_eq!(lab.lines(id).len(), 1);
    lab.check();
}

#[test]
fn an_opcode_of_a_newer_version_is_an_error() {
    let lab = Lab::new();
    for input in [json!({"OP_ID": "OP_FROM_THE_FUTURE"}), json!({}), json!(null), json!({"OP_ID": "OP_NODE_ADD"})] {
        let id = lab.submit_job(&[Opcode::ClusterRedistConf {}], |job| job.ops[0].0 = input.clone());
        lab.take_office(1).settle();
        let failure = lab.outcome(id).unwrap_err();
        assert!(failure.text.starts_with("this version does not know the opcode: "), "{failure}");
    }
    lab.check();
}
