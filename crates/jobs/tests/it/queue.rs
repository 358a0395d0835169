//! Which job runs when: locks, priorities, dependencies, cancellation.

use std::sync::Arc;

use model::{Command, JobId, JobStatus, Provision};
use opcodes::Opcode;
use opcodes::op::TestDelay;

use crate::lab::{Fault, Lab, Stop};
use crate::operations::*;

/// Holds node02 alone, until the gate is opened.
fn gated(lab: &Lab) -> JobId {
    lab.fault("delay 7", 1, Fault::Gate);
    lab.submit(delay(0.007))
}

/// Needs node02 alone.
fn delay(duration: f64) -> Opcode {
    let on_nodes = vec!["node02".to_owned()];
    Opcode::TestDelay(TestDelay { duration, on_master: false, on_nodes, ..Default::default() })
}

fn free() -> Opcode {
    Opcode::TestDelay(TestDelay { on_master: true, ..Default::default() })
}

fn millis(journal: Vec<String>) -> Vec<String> {
    journal.into_iter().filter_map(|line| line.strip_prefix("node02 delay ").map(str::to_owned)).collect()
}

fn limit(lab: &Lab, max_running_jobs: u32) {
    // There is no command for it yet; a cluster that is made with it is the same.
    lab.change_cluster(|cluster| cluster.max_running_jobs = max_running_jobs);
}

#[test]
fn jobs_run_by_priority_then_by_number() {
    let lab = Lab::new();
    limit(&lab, 1);
    for (millis, priority) in [(1, 0), (2, 10), (3, -10), (4, 0)] {
        lab.submit_job(&[delay(f64::from(millis) / 1000.0)], |job| job.priority = priority);
    }
    lab.take_office(1).settle();
    assert_eq!(millis(lab.take_journal()), ["3", "1", "4", "2"]);
    lab.check();
}

#[test]
fn who_waits_for_locks_gets_them_by_priority_then_by_number() {
    let lab = Lab::new();
    let holder = gated(&lab);
    let office = lab.take_office(1);
    office.settle();
    for (millis, priority) in [(1, 0), (2, 10), (3, -10), (4, 0)] {
        lab.submit_job(&[delay(f64::from(millis) / 1000.0)], |job| job.priority = priority);
    }
    let other = lab.submit(free());
    office.settle();
    assert_eq!(lab.status(holder), JobStatus::Running);
    assert_eq!(lab.status(JobId(holder.0 + 1)), JobStatus::Waiting);
    // what does not conflict does not wait
    assert_eq!(lab.status(other), JobStatus::Success);
    lab.open_gate();
    office.settle();
    assert_eq!(millis(lab.take_journal()), ["7", "3", "1", "4", "2"]);
    drop(office);
    lab.check();
}

#[test]
fn no_more_jobs_run_than_are_allowed() {
    let lab = Lab::new();
    limit(&lab, 2);
    lab.fault("delay", 2, Fault::Gate);
    let on = |node: &str| {
        let on_nodes = vec![node.to_owned()];
        Opcode::TestDelay(TestDelay { on_master: false, on_nodes, ..Default::default() })
    };
    let jobs = ["node01", "node02", "node03", "node04"].map(|node| lab.submit(on(node)));
    let office = lab.take_office(1);
    office.settle();
    let statuses = || jobs.map(|job| lab.status(job));
    use JobStatus::{Queued, Running, Success};
    assert_eq!(statuses(), [Running, Running, Queued, Queued]);
    lab.open_gate();
    office.settle();
    assert_eq!(statuses(), [Success; 4]);
    drop(office);
    lab.check();
}

/// Each row: how the first job ends, what the second demands, how that ends.
#[test]
fn a_job_waits_for_those_that_it_depends_on() {
    use JobStatus::{Canceled, Error, Success};
    for (first, wanted, second) in [
        (Success, vec![Success], Success),
        (Success, vec![], Success),
        (Error, vec![], Success),
        (Error, vec![Success], Error),
        (Error, vec![Error, Success], Success),
        (Canceled, vec![Success], Error),
        (Canceled, vec![Canceled], Success),
        (Success, vec![Error], Error),
    ] {
        let lab = Lab::new();
        let holder = gated(&lab);
        let office = lab.take_office(1);
        office.settle();
        let op = if first == Error { startup("nobody") } else { delay(0.001) };
        // It waits for the holder, by its locks or by dependency.
        let before = lab.submit_job(&[op], |job| job.depends = vec![(holder, vec![])]);
        let after = lab.submit_job(&[free(), free()], |job| job.depends = vec![(before, wanted.clone())]);
        office.settle();
        assert_eq!(lab.status(after), JobStatus::Queued);
        if first == Canceled {
            lab.apply(vec![Command::CancelJob { job: before }]).unwrap();
        }
        lab.open_gate();
        office.settle();
        assert_eq!((lab.status(before), lab.status(after)), (first, second), "{wanted:?}");
        if second == Error {
            let text = lab.outcome(after).unwrap_err().text;
            let word = first.word();
            assert_eq!(text, format!("Dependency failed: job {before}, which it depends on, ended with status {word}"));
        }
        drop(office);
        lab.check();
    }
}

#[test]
fn an_archived_job_is_taken_to_have_ended_well() {
    let lab = Lab::new();
    let first = lab.submit(free());
    lab.take_office(1).settle();
    lab.apply(vec![Command::ArchiveJob { job: first }]).unwrap();
    let second = lab.submit_job(&[free()], |job| job.depends = vec![(first, vec![JobStatus::Success])]);
    lab.take_office(1).settle();
    assert_eq!(lab.status(second), JobStatus::Success);
}

#[test]
fn a_job_that_is_cancelled_in_the_queue_or_in_line_gives_its_place_up() {
    let lab = Lab::new();
    let holder = gated(&lab);
    let office = lab.take_office(1);
    office.settle();
    let in_line = lab.submit(delay(0.001));
    let next = lab.submit(delay(0.002));
    let queued = lab.submit_job(&[free()], |job| job.depends = vec![(holder, vec![])]);
    office.settle();
    assert_eq!(
        [in_line, next, queued].map(|job| lab.status(job)),
        [JobStatus::Waiting, JobStatus::Waiting, JobStatus::Queued]
    );
    for job in [in_line, queued] {
        lab.apply(vec![Command::CancelJob { job }]).unwrap();
    }
    office.settle();
    lab.open_gate();
    office.settle();
    assert_eq!(millis(lab.take_journal()), ["7", "2"]);
    assert_eq!(
        [in_line, next, queued].map(|job| lab.status(job)),
        [JobStatus::Canceled, JobStatus::Success, JobStatus::Canceled]
    );
    drop(office);
    lab.check();
}

#[test]
fn of_two_instances_of_one_name_one_is_made() {
    let lab = Lab::new();
    let (one, two) = (lab.submit(created("vm1", true)), lab.submit(created("vm1", true)));
    lab.take_office(1).settle();
    lab.outcome(one).unwrap();
    assert_eq!(lab.outcome(two).unwrap_err().text, "Instance 'vm1' is already in the cluster");
    lab.check();
}

#[test]
fn after_an_error_the_rest_of_a_job_is_not_tried() {
    let lab = Lab::new();
    let id = lab.submit_job(&[created("vm1", true), startup("nobody"), remove("vm1", false)], |_| ());
    lab.take_office(1).settle();
    let statuses: Vec<JobStatus> = lab.job(id).ops.iter().map(|op| op.status).collect();
    assert_eq!(statuses, [JobStatus::Success, JobStatus::Error, JobStatus::Error]);
    assert!(lab.instance("vm1").is_some());
    lab.check();
}

/// The half-done job is older, but of lower priority than the one that waits for its locks.
#[test]
fn a_half_done_job_gets_its_locks_back_before_those_who_waited() {
    let lab = Lab::new();
    lab.fault("install", 1, Fault::Gate);
    let make = lab.submit_job(&[created("vm1", false)], |job| job.priority = 10);
    let office = lab.take_office(1);
    office.settle();
    let start = lab.submit_job(&[startup("vm1")], |job| job.priority = -10);
    office.settle();
    assert_eq!([make, start].map(|job| lab.status(job)), [JobStatus::Running, JobStatus::Waiting]);
    assert_eq!(lab.instance("vm1").unwrap().provision, Provision::Creating(make));
    drop(office);
    lab.take_office(2).settle();
    assert_eq!([make, start].map(|job| lab.status(job)), [JobStatus::Success; 2]);
    lab.check();
}

/// A job whose record is refused has nothing more to say, and asks nodes for nothing any more.
#[test]
fn a_master_out_of_office_does_nothing_more() {
    let lab = Lab::new();
    lab.fault("create_disk vm1/0", 1, Fault::Gate);
    let id = lab.submit(created("vm1", true));
    let old = lab.take_office(1);
    old.settle();
    lab.take_journal();
    let new = lab.take_office(2);
    // The old one has not noticed yet; its nodes and the log have.
    lab.fault("facts", 0, Fault::Refused);
    new.settle();
    assert_eq!(lab.status(id), JobStatus::Success);
    let whole = lab.take_journal();
    assert!(whole.contains(&"node01 start vm1 1".into()));
    let state = lab.state();
    lab.open_gate();
    // Its clock goes on for ever: an interrupted job is tried again now and then until the runner is dropped.
    lab.stop_at(20, Stop::Death);
    old.settle();
    assert_eq!(lab.take_journal(), [""; 0]);
    assert_eq!(lab.state(), state);
    drop((old, new));
    lab.check();
}

#[test]
fn a_job_that_was_ended_by_another_stops() {
    let lab: Arc<Lab> = Lab::new();
    lab.fault("create_disk vm1/0", 1, Fault::Gate);
    let id = lab.submit(created("vm1", true));
    let office = lab.take_office(1);
    office.settle();
    let ended = model::JobChange::Ended { op: 0, end: model::JobEnd::Error("ended from outside".into()) };
    lab.apply(vec![Command::RecordJob { job: id, changes: vec![ended] }]).unwrap();
    lab.take_journal();
    lab.open_gate();
    office.settle();
    assert_eq!(lab.take_journal(), ["node01 create_disk vm1/0"]);
    assert_eq!(lab.status(id), JobStatus::Error);
    // its locks are free
    let next = lab.submit(created("vm1", true));
    office.settle();
    assert!(lab.status(next).is_final());
}
