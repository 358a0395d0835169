//! The master is lost at every single proposal and call, before it takes effect and after. The next one has to bring the
//! job to an end, and leave the cluster as if nothing had happened.

use std::collections::BTreeSet;
use std::sync::Arc;

use model::{JobId, JobStatus};
use opcodes::Opcode;
use opcodes::op::{RebootType, TestDelay, Verify};
use serde_json::json;

use crate::lab::{Fault, Lab, Stop};
use crate::machine::Machine;
use crate::operations::*;

pub struct Case {
    name: &'static str,
    /// What is there before.
    set_up: fn(&Arc<Lab>),
    op: fn() -> Opcode,
    /// What must hold after the job has ended, interrupted or not.
    check: fn(&Arc<Lab>, JobId),
    /// It asks a node something only once, so it may fail where its answer is lost.
    once: bool,
}

pub fn case(name: &'static str, set_up: fn(&Arc<Lab>), op: fn() -> Opcode, check: fn(&Arc<Lab>, JobId)) -> Case {
    Case { name, set_up, op, check, once: false }
}

fn nothing(_: &Arc<Lab>) {}

fn stopped(lab: &Arc<Lab>) {
    lab.run(created("vm1", false)).unwrap();
}

fn running(lab: &Arc<Lab>) {
    lab.run(created("vm1", true)).unwrap();
}

pub fn success(lab: &Arc<Lab>, job: JobId) {
    assert_eq!(lab.status(job), JobStatus::Success, "{:?}", lab.outcome(job));
}

pub fn failure(lab: &Arc<Lab>, job: JobId, text: &str) {
    assert_eq!(lab.outcome(job).unwrap_err().text, text);
}

fn cases() -> Vec<Case> {
    let mut cases = vec![
        case(
            "create",
            nothing,
            || created("vm1", true),
            |lab, job| {
                success(lab, job);
                assert_eq!(guest(lab, "vm1"), Some((1, false, 0)));
            },
        ),
        case(
            "create, not started",
            nothing,
            || created("vm1", false),
            |lab, job| {
                success(lab, job);
                assert_eq!(guest(lab, "vm1"), None);
                assert!(lab.instance("vm1").is_some());
            },
        ),
        case(
            "create that fails",
            |lab| lab.fault("install", 1000, Fault::Failed),
            || created("vm1", true),
            |lab, job| {
                failure(lab, job, "no such luck");
                assert_eq!(lab.instance("vm1"), None);
            },
        ),
        case(
            "create that can't start",
            |lab| lab.fault("start", 1000, Fault::Failed),
            || created("vm1", true),
            |lab, job| {
                failure(lab, job, "Could not start instance 'vm1': no such luck");
                assert_eq!(guest(lab, "vm1"), None);
                assert!(lab.instance("vm1").is_some());
            },
        ),
        case(
            "startup",
            stopped,
            || startup("vm1"),
            |lab, job| {
                success(lab, job);
                assert_eq!(guest(lab, "vm1"), Some((1, false, 0)));
            },
        ),
        case(
            "startup of what runs",
            running,
            || startup("vm1"),
            |lab, job| {
                success(lab, job);
                assert_eq!(guest(lab, "vm1"), Some((1, false, 0)));
            },
        ),
        case(
            "startup of what has crashed",
            |lab| {
                running(lab);
                lab.change_machine(1, |machine| machine.ended.extend(std::mem::take(&mut machine.guests).into_keys()));
            },
            || startup("vm1"),
            |lab, job| {
                success(lab, job);
                assert_eq!(guest(lab, "vm1"), Some((2, false, 0)));
            },
        ),
        case(
            "startup that fails",
            |lab| {
                stopped(lab);
                lab.fault("start", 1000, Fault::Failed);
            },
            || startup("vm1"),
            |lab, job| {
                failure(lab, job, "Could not start instance 'vm1': no such luck");
                assert_eq!(lab.instance("vm1").unwrap().owner, None);
            },
        ),
        case(
            "shutdown",
            running,
            || shutdown("vm1"),
            |lab, job| {
                success(lab, job);
                assert_eq!(guest(lab, "vm1"), None);
                assert_eq!(lab.instance("vm1").unwrap().want, model::AdminState::Down);
            },
        ),
        case("shutdown of what is stopped", stopped, || shutdown("vm1"), success),
        case(
            "hard reboot",
            running,
            || reboot("vm1", RebootType::Hard),
            |lab, job| {
                success(lab, job);
                assert_eq!(guest(lab, "vm1"), Some((2, false, 0)));
            },
        ),
        Case {
            once: true,
            ..case(
                "soft reboot",
                running,
                || reboot("vm1", RebootType::Soft),
                |lab, job| {
                    let (run, _, resets) = guest(lab, "vm1").unwrap();
                    assert_eq!(run, 1);
                    match lab.outcome(job) {
                        Ok(_) => assert_eq!(resets, 1),
                        Err(failure) => {
                            assert!(resets <= 1);
                            assert!(failure.text.starts_with("It is not known whether instance 'vm1' was restarted: "));
                        }
                    }
                },
            )
        },
        case(
            "remove",
            running,
            || remove("vm1", false),
            |lab, job| {
                success(lab, job);
                assert_eq!(lab.instance("vm1"), None);
            },
        ),
        case(
            "remove of what is stopped",
            stopped,
            || remove("vm1", false),
            |lab, job| {
                success(lab, job);
                assert_eq!(lab.instance("vm1"), None);
            },
        ),
        case(
            "remove that ignores failures",
            |lab| {
                running(lab);
                lab.change_machine(1, |machine| machine.guests.clear());
                lab.fault("stop", 1000, Fault::Refused);
            },
            || remove("vm1", true),
            |lab, job| {
                success(lab, job);
                assert_eq!(lab.instance("vm1"), None);
            },
        ),
        case(
            "instance set_params",
            stopped,
            || modify("vm1"),
            |lab, job| {
                success(lab, job);
                assert_eq!(lab.instance("vm1").unwrap().nics.len(), 2);
            },
        ),
        case(
            "node add",
            |lab| lab.machine_joins(),
            || node_add("node05"),
            |lab, job| {
                success(lab, job);
                assert!(lab.state().node_by_name("node05").is_some());
            },
        ),
        case(
            "node add, nobody comes",
            nothing,
            || node_add("node05"),
            |lab, job| {
                failure(lab, job, "'node05' did not join within 5 minutes; run 'gnt-node add node05' again");
            },
        ),
        case(
            "node add that fails",
            |lab| {
                lab.machine_joins();
                lab.fault("caught_up", 1000, Fault::Refused);
            },
            || node_add("node05"),
            |lab, job| {
                failure(lab, job, "'node05' joined, but then could not be reached: no such luck");
                assert!(lab.state().node_by_name("node05").is_none());
            },
        ),
        case(
            "node set_params",
            nothing,
            || node_modify("node04", json!({"drained": true})),
            |lab, job| {
                success(lab, job);
                assert!(lab.state().node_by_name("node04").unwrap().1.drained);
            },
        ),
        Case {
            once: true,
            ..case(
                "node back online",
                |lab| {
                    lab.run(node_modify("node04", json!({"offline": true}))).unwrap();
                },
                || node_modify("node04", json!({"offline": false})),
                |lab, job| {
                    let offline = lab.state().node_by_name("node04").unwrap().1.offline;
                    match lab.outcome(job) {
                        Ok(_) => assert!(!offline),
                        Err(failure) => {
                            assert!(offline);
                            assert!(failure.text.starts_with("Node 'node04' does not answer"), "{failure}");
                        }
                    }
                },
            )
        },
        case(
            "node remove",
            nothing,
            || node_remove("node04"),
            |lab, job| {
                success(lab, job);
                assert!(lab.machine(4).left);
            },
        ),
        case(
            "verify",
            running,
            || Opcode::ClusterVerify(Verify::default()),
            |lab, job| {
                success(lab, job);
                let ids = lab.outcome(job).unwrap();
                assert_eq!(ids, json!({"jobs": [[true, job.0 + 1], [true, job.0 + 2]]}));
                for id in [job.0 + 1, job.0 + 2] {
                    // what it finds depends on who answers
                    assert!(lab.outcome(JobId(id)).unwrap().is_boolean());
                }
            },
        ),
        case("redist-conf", nothing, || Opcode::ClusterRedistConf {}, success),
        case(
            "delay",
            nothing,
            || {
                let on_nodes = vec!["node02".to_owned()];
                Opcode::TestDelay(TestDelay { duration: 1.5, on_master: true, on_nodes, ..Default::default() })
            },
            success,
        ),
    ];
    cases.extend(crate::losses::cases());
    cases.extend(crate::disks::cases());
    cases.extend(crate::forcing::cases());
    cases
}

/// What can be seen of a cluster, but for who is in office, and what depends on the time or on how often was tried.
fn picture(lab: &Lab) -> Vec<String> {
    let state = lab.state();
    let instances = state.instances.values().map(|instance| {
        let disks: Vec<u64> = instance.disks.iter().map(|disk| disk.size_mib).collect();
        format!(
            "{} {:?} {:?} {:?} {disks:?} {} {:?} {}",
            instance.name,
            instance.provision,
            instance.want,
            instance.owner,
            instance.nics.len(),
            instance.beparams,
            instance.serial_no,
        )
    });
    let nodes = state.nodes.iter().map(|(id, node)| {
        let flags = (node.master_candidate, node.offline, node.drained, node.serial_no);
        let disks = |machine: Machine| (machine.disks.len(), machine.mirrored.stored.len());
        let disks = if node.vm_capable && id.0 <= 4 { disks(lab.machine(id.0)) } else { (0, 0) };
        format!("{id} {} {flags:?} {disks:?}", node.name)
    });
    let mut picture: Vec<String> = instances.chain(nodes).collect();
    picture.sort();
    picture
}

fn unique(lines: &[String]) -> bool {
    lines.iter().collect::<BTreeSet<_>>().len() == lines.len()
}

/// Points at which a job of this case can be stopped, and what it leaves when it is not.
fn undisturbed(case: &Case) -> (usize, Vec<String>, Vec<String>) {
    let lab = Lab::new();
    (case.set_up)(&lab);
    let job = lab.submit((case.op)());
    lab.stop_at(usize::MAX, Stop::Death);
    assert!(lab.take_office(1).settle());
    let points = lab.points();
    (case.check)(&lab, job);
    let (picture, lines) = (picture(&lab), lab.lines(job));
    lab.check();
    (points, picture, lines)
}

fn disturbed(case: &Case, points: &[usize], stop: Stop) -> (Arc<Lab>, JobId) {
    let lab = Lab::new();
    (case.set_up)(&lab);
    let job = lab.submit((case.op)());
    for (index, point) in points.iter().enumerate() {
        lab.stop_at(*point, stop);
        let finished = lab.take_office(1 + index as u64 % 2).settle();
        if index == 0 {
            assert_eq!(finished, stop == Stop::Doubt);
        }
    }
    lab.stop_at(usize::MAX, Stop::Death);
    assert!(lab.take_office(2).settle());
    (lab, job)
}

fn check(case: &Case, lab: &Arc<Lab>, job: JobId, before: &[String], lines: &[String]) {
    (case.check)(lab, job);
    if !case.once || lab.outcome(job).is_ok() {
        assert_eq!(picture(lab), before);
    }
    let said = lab.lines(job);
    assert!(unique(&said), "said twice: {said:?}");
    // The administrator is told the address of the master of that moment.
    let expected = |line: &String| lines.contains(&line.replace("10.0.0.6", "10.0.0.5")) || line.contains("WARNING");
    assert!(said.iter().all(expected), "{said:?}");
    lab.check();
}

/// Prints the point at which a check failed.
struct Place<'a>(&'a Case, Vec<usize>, Stop);

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("in '{}', {:?} at {:?}", self.0.name, self.2, self.1);
        }
    }
}

fn everywhere(stop: Stop) {
    let mut all = 0;
    for case in cases() {
        let (points, before, lines) = undisturbed(&case);
        for point in 1..=points {
            let _place = Place(&case, vec![point], stop);
            let (lab, job) = disturbed(&case, &[point], stop);
            check(&case, &lab, job, &before, &lines);
        }
        println!("{}: {points} points", case.name);
        all += points;
    }
    println!("{all} points");
    // The scenario is not empty: a job has at least its beginning and its end, each with a before and an after.
    assert!(all > 4 * cases().len());
}

#[test]
fn a_master_that_dies_anywhere_is_replaced_without_a_trace() {
    everywhere(Stop::Death);
}

#[test]
fn a_master_that_does_not_know_an_outcome_anywhere_goes_on_without_a_trace() {
    everywhere(Stop::Doubt);
}

/// The second master dies as well, anywhere on its way.
#[test]
fn two_masters_that_die_anywhere_are_replaced_without_a_trace() {
    let of = ["startup of what has crashed", "hard reboot", "node add"];
    for case in cases().into_iter().filter(|case| of.contains(&case.name)) {
        let (points, before, lines) = undisturbed(&case);
        for first in 1..=points {
            for second in 1..=points {
                let _place = Place(&case, vec![first, second], Stop::Death);
                let (lab, job) = disturbed(&case, &[first, second], Stop::Death);
                check(&case, &lab, job, &before, &lines);
            }
        }
    }
}
