//! Moves while masters and machines are lost.

use model::{Command, JobId, JobStatus, NodeId};
use opcodes::Opcode;
use opcodes::op::EvacuationMode;
use serde_json::json;

use crate::evacuation::evacuate;
use crate::interruption::{Case, case, failure, success};
use crate::lab::{Fault, Lab};
use crate::moves::*;
use crate::operations::startup;

/// Prints where a test was when it failed.
struct Place(String);

impl Drop for Place {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in {}", self.0);
        }
    }
}

/// Both machines, at every step, gone for good or back at once; and the job that was under way, and whatever an
/// administrator does then.
#[test]
fn a_machine_that_is_lost_anywhere_on_the_way_never_makes_two_guests_or_none() {
    let ops: [fn() -> Opcode; 2] = [|| migrate("vm1", |_| ()), || failover("vm1")];
    for op in ops {
        let lab = Lab::new();
        running(&lab);
        let job = lab.submit(op());
        lab.stop_at(usize::MAX, crate::lab::Stop::Death);
        lab.take_office(1).settle();
        assert_eq!(lab.status(job), JobStatus::Success);
        let points = lab.points();
        assert!(points > 10);
        for point in 1..=points {
            for node in [1, 2] {
                for back in [false, true] {
                    let place = format!("{}, point {point}, node {node}, back {back}", op().summary());
                    let _place = Place(place.clone());
                    let lab = Lab::new();
                    running(&lab);
                    let job = lab.submit(op());
                    lab.stop_at(usize::MAX, crate::lab::Stop::Death);
                    lab.crash_at(point, node, back);
                    assert!(lab.take_office(1).settle());
                    assert!(lab.status(job).is_final(), "{place}");
                    if !back {
                        // Who can't answer is waited for.
                        if lab.status(job) == JobStatus::Error {
                            let text = lab.outcome(job).unwrap_err().text;
                            assert!(text.contains("node0"), "{place}: {text}");
                        }
                        lab.boot(NodeId(node));
                    }
                    lab.run(cleanup("vm1")).unwrap_or_else(|failure| panic!("{place}: {failure}"));
                    assert_eq!(lab.instance("vm1").unwrap().migration, None, "{place}");
                    lab.run(startup("vm1")).unwrap_or_else(|failure| panic!("{place}: {failure}"));
                    let (at, run, guest) = only(&lab).unwrap_or_else(|| panic!("{place}: it does not run"));
                    let vm1 = lab.instance("vm1").unwrap();
                    assert_eq!((vm1.primary, vm1.run), (NodeId(at), Some(run)), "{place}");
                    assert!(!guest.paused, "{place}");
                    lab.check();
                }
            }
        }
    }
}

/// What is interrupted at every point.
pub fn cases() -> Vec<Case> {
    vec![
        case(
            "migrate",
            running,
            || migrate("vm1", |_| ()),
            |lab, job| {
                success(lab, job);
                assert_runs(lab, 2, 2);
            },
        ),
        case(
            "migrate that fails",
            |lab| {
                running(lab);
                lab.fault("quiesce", ALWAYS, Fault::Failed);
            },
            || migrate("vm1", |_| ()),
            |lab, job| {
                let why = "its disks could not be closed on node 'node01': no such luck";
                failure(lab, job, &format!("Could not migrate instance 'vm1': {why}"));
                assert_runs(lab, 1, 2);
            },
        ),
        case(
            "migrate that can't be carried out",
            |lab| {
                running(lab);
                lab.fault("continue", ALWAYS, Fault::Refused);
            },
            || migrate("vm1", |_| ()),
            |lab, job| {
                success(lab, job);
                assert_runs(lab, 2, 4);
            },
        ),
        case(
            "migrate of what is stopped",
            stopped,
            || migrate("vm1", |op| op.allow_failover = true),
            |lab, job| {
                success(lab, job);
                assert_eq!(lab.instance("vm1").unwrap().primary, NodeId(2));
            },
        ),
        case(
            "cleanup of a migration that nobody decided",
            |lab| {
                running(lab);
                let (instance, migration) = (lab.instance("vm1").unwrap().id, model::Uuid::from_u128(77));
                lab.apply(vec![Command::Prepare { instance, migration, to: NodeId(2) }]).unwrap();
            },
            || cleanup("vm1"),
            |lab, job| {
                success(lab, job);
                assert_runs(lab, 1, 2);
            },
        ),
        case(
            "cleanup of a migration that was decided",
            |lab| {
                running(lab);
                lab.fault("continue", ALWAYS, Fault::Unreachable);
                lab.run(migrate("vm1", |_| ())).unwrap_err();
                lab.inner().faults.clear();
            },
            || cleanup("vm1"),
            |lab, job| {
                success(lab, job);
                assert_runs(lab, 2, 2);
            },
        ),
        case(
            "failover",
            running,
            || failover("vm1"),
            |lab, job| {
                success(lab, job);
                assert_runs(lab, 2, 3);
            },
        ),
        case(
            "failover of what is stopped",
            stopped,
            || failover("vm1"),
            |lab, job| {
                success(lab, job);
                assert_eq!(lab.instance("vm1").unwrap().primary, NodeId(2));
            },
        ),
        case(
            "node evacuate",
            running,
            || evacuate(EvacuationMode::All, None),
            |lab, job| {
                success(lab, job);
                assert_eq!(lab.outcome(job).unwrap(), json!({"jobs": [[true, job.0 + 1]]}));
                success(lab, JobId(job.0 + 1));
                let vm1 = lab.instance("vm1").unwrap();
                assert_eq!((vm1.primary, vm1.secondaries), (NodeId(2), vec![NodeId(4)]));
            },
        ),
    ]
}
