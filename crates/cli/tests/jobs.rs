//! Commands that submit jobs and follow them, against a daemon that answers from a script.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod common;

use std::time::Duration;

use common::{FakeDaemon, Reply, failed, job, run, session, success};
use model::{DiskTemplate, JobStatus};
use opcodes::wire::{Request, Submit};
use opcodes::{ErrorCode, Failure, Opcode};
use serde_json::{Value, json};

const ADD: &[&str] =
    &["gnt-instance", "add", "-t", "diskless", "-H", "fake", "-o", "noop", "--no-ip-check", "--no-name-check", "fake1"];

fn ok(value: Value) -> Reply {
    Reply::Ok(value)
}

fn named(names: &[&str]) -> Reply {
    let fields =
        ["name", "pnode", "snodes"].map(|name| opcodes::fields::column(opcodes::wire::Resource::Instance, name));
    let rows: Vec<Value> = names.iter().map(|name| json!([[0, name], [0, "node1"], [0, ["node2"]]])).collect();
    ok(json!({"fields": fields, "data": rows}))
}

#[test]
fn the_log_of_a_job_is_written_as_it_comes() {
    let daemon = FakeDaemon::script(vec![
        ok(json!(10)),
        job(
            10,
            JobStatus::Running,
            &[(1, "* creating instance disks..."), (2, "adding instance fake1 to cluster config")],
            Value::Null,
        ),
        job(10, JobStatus::Running, &[(3, "adding disks to cluster config")], Value::Null),
        job(10, JobStatus::Success, &[(4, " - INFO: done")], json!(["node2"])),
    ]);
    daemon.run(ADD).is(
        0,
        "Mon Nov 23 05:02:48 2026 * creating instance disks...\n\
         Mon Nov 23 05:02:49 2026 adding instance fake1 to cluster config\n\
         Mon Nov 23 05:02:50 2026 adding disks to cluster config\n\
         Mon Nov 23 05:02:51 2026  - INFO: done\n",
        "",
    );
    let asked = daemon.asked();
    let Request::Submit(Submit { ops, priority: 0, depends }) = &asked[0] else { panic!("{:?}", asked[0]) };
    assert!(depends.is_empty());
    let [Opcode::InstanceCreate(create)] = &ops[..] else { panic!("{ops:?}") };
    assert_eq!((create.instance_name.as_str(), create.disk_template), ("fake1", Some(DiskTemplate::Diskless)));
    let after: Vec<u64> = asked
        .iter()
        .filter_map(|request| if let Request::Job { after, .. } = request { Some(*after) } else { None })
        .collect();
    assert_eq!(after, [0, 2, 3]);
}

#[test]
fn a_failed_job_says_why() {
    let failure = Failure::refused(ErrorCode::UnknownEntity, "Node 'nosuchnode' not known");
    let daemon = FakeDaemon::script(vec![ok(json!(10)), failed(10, &failure)]);
    daemon.run(ADD).is(
        1,
        "",
        "Failure: prerequisites not met for this operation:\nerror type: unknown_entity, error details:\n\
         Node 'nosuchnode' not known\n",
    );
    let daemon = FakeDaemon::script(vec![ok(json!(10)), failed(10, &Failure::failed("No space left on device"))]);
    daemon.run(ADD).is(1, "", "Failure: command execution error:\nNo space left on device\n");
    let daemon = FakeDaemon::script(vec![ok(json!(10)), job(10, JobStatus::Canceled, &[], Value::Null)]);
    daemon.run(ADD).is(1, "", "Failure: command execution error:\nJob 10 was canceled\n");
}

#[test]
fn a_job_can_be_left_alone() {
    let daemon = FakeDaemon::script(vec![ok(json!(10))]);
    daemon.run(&["gnt-debug", "delay", "--submit", "--priority=high", "0"]).is(0, "JobID: 10\n", "");
    assert!(matches!(&daemon.asked()[0], Request::Submit(Submit { priority: -10, .. })));
    let daemon = FakeDaemon::script(vec![ok(json!(11)), success(11)]);
    daemon.run(&["gnt-debug", "delay", "--print-jobid", "0"]).is(0, "11\n", "");
}

#[test]
fn startup_and_shutdown_name_their_jobs() {
    let daemon = FakeDaemon::script(vec![named(&["fake1.gnt.test"]), ok(json!(98)), success(98)]);
    daemon.run(&["gnt-instance", "startup", "fake1"]).is(0, "Waiting for job 98 for fake1.gnt.test ...\n", "");
    let failure = Failure::refused(ErrorCode::WrongState, "Instance 'fake1' is marked as offline");
    let daemon = FakeDaemon::script(vec![named(&["fake1"]), ok(json!(97)), failed(97, &failure)]);
    daemon.run(&["instance", "stop", "--timeout=0", "fake1"]).is(
        1,
        "Waiting for job 97 for fake1 ...\n",
        "Job 97 for fake1 has failed: Failure: prerequisites not met for this operation:\n\
         error type: wrong_state, error details:\nInstance 'fake1' is marked as offline\n",
    );
    let asked = daemon.asked();
    let Request::Submit(submit) = &asked[1] else { panic!("{:?}", asked[1]) };
    assert!(matches!(&submit.ops[0], Opcode::InstanceShutdown(op) if op.timeout == 0 && op.instance_name == "fake1"));
}

#[test]
fn several_instances_are_asked_for_and_followed_in_turn() {
    let daemon = FakeDaemon::script(vec![
        named(&["vm1", "vm2"]),
        ok(json!(5)),
        ok(json!(6)),
        failed(5, &Failure::failed("no")),
        success(6),
    ]);
    daemon.run(&["gnt-instance", "reboot", "--force-multiple", "vm1", "vm2"]).is(
        1,
        "Submitted jobs 5, 6\nWaiting for job 5 for vm1 ...\nWaiting for job 6 for vm2 ...\n",
        "Job 5 for vm1 has failed: Failure: command execution error:\nno\n",
    );
    let daemon = FakeDaemon::script(vec![named(&["vm1", "vm2"])]);
    let done = daemon.run(&["gnt-instance", "startup", "--all"]);
    assert_eq!(done.code, 13);
    assert!(done.err.contains("will operate on 2 instances") && done.err.contains("--force-multiple"), "{}", done.err);
    assert_eq!(daemon.asked().len(), 1);
}

#[test]
fn nothing_that_fits_is_an_error() {
    let daemon = FakeDaemon::script(vec![Reply::Refused(Failure::unknown("Instance", "nosuch"))]);
    daemon.run(&["gnt-instance", "startup", "nosuch"]).is(
        1,
        "",
        "Failure: prerequisites not met for this operation:\nerror type: wrong_input, error details:\n\
         Selection filter does not match any instances\n",
    );
    let daemon = FakeDaemon::script(vec![named(&[])]);
    daemon.run(&["gnt-instance", "startup", "--all"]).is(0, "Cluster is empty, no instances to startup\n", "");
}

#[test]
fn a_verification_follows_the_jobs_that_it_submitted() {
    let first = || job(74, JobStatus::Success, &[(1, "hidden")], json!({"jobs": [[true, 75], [true, 76]]}));
    let group = |sound: bool| job(76, JobStatus::Success, &[(1, "* Verifying group 'default'")], json!(sound));
    let config = || job(75, JobStatus::Success, &[(1, "* Verifying cluster config")], json!(true));
    let text = "Submitted jobs 75, 76\n\
                Waiting for job 75 ...\n\
                Mon Nov 23 05:02:48 2026 * Verifying cluster config\n\
                Waiting for job 76 ...\n\
                Mon Nov 23 05:02:48 2026 * Verifying group 'default'\n";
    for sound in [true, false] {
        let daemon = FakeDaemon::script(vec![ok(json!(74)), first(), config(), group(sound)]);
        daemon.run(&["gnt-cluster", "verify"]).is(u8::from(!sound), text, "");
    }
    let daemon = FakeDaemon::script(vec![ok(json!(74)), first(), config(), group(false)]);
    let done = daemon.run(&["gnt-cluster", "verify", "--json"]);
    let shown: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!((done.code, &shown["ok"], &shown["jobs"][1]["id"]), (1, &json!(false), &json!(76)));
    assert_eq!(shown["jobs"][0]["ops"][0]["log"][0]["message"], "* Verifying cluster config");
}

#[test]
fn a_daemon_that_goes_away_is_found_again() {
    let daemon = FakeDaemon::script(vec![
        ok(json!(10)),
        job(10, JobStatus::Running, &[(1, "* one")], Value::Null),
        Reply::Dies,
        Reply::Refused(Failure::no_master("there is no master just now")),
        job(10, JobStatus::Running, &[(2, "* two")], Value::Null),
        Reply::Dies,
        job(10, JobStatus::Success, &[(3, "* three")], Value::Null),
    ]);
    daemon.run(&["gnt-debug", "delay", "0"]).is(
        0,
        "Mon Nov 23 05:02:48 2026 * one\nMon Nov 23 05:02:49 2026 * two\nMon Nov 23 05:02:50 2026 * three\n",
        "Lost connection to the daemon, retrying...\nLost connection to the daemon, retrying...\n",
    );
}

#[test]
fn a_daemon_that_stays_away_ends_the_command_and_not_the_job() {
    let daemon = FakeDaemon::script(vec![ok(json!(10)), Reply::Dies]);
    let mut session = session(daemon.socket());
    session.patience = Duration::ZERO;
    let done = run(session, &["gnt-debug", "delay", "0"]);
    assert_eq!(done.code, 1);
    assert!(done.err.contains("Lost connection") && done.err.contains("gnt-job watch 10"), "{}", done.err);
}

#[test]
fn a_request_whose_answer_is_lost_is_not_repeated() {
    let daemon = FakeDaemon::script(vec![Reply::Dies]);
    let done = daemon.run(&["gnt-debug", "delay", "0"]);
    assert_eq!((done.code, daemon.asked().len()), (1, 1));
    assert!(done.err.contains("may have been done"), "{}", done.err);
}

#[test]
fn a_job_that_waits_says_so_once() {
    let waiting = || job(10, JobStatus::Waiting, &[], Value::Null);
    let queued = || job(10, JobStatus::Queued, &[], Value::Null);
    let daemon =
        FakeDaemon::script(vec![ok(json!(10)), queued(), queued(), waiting(), waiting(), waiting(), success(10)]);
    daemon.run(&["gnt-debug", "delay", "0"]).is(
        0,
        "",
        "Job 10 is waiting in queue\nJob 10 is trying to acquire all necessary locks\n",
    );
}

#[test]
fn modifications_are_listed() {
    let result = json!([["be/memory", 128], ["offline", true], ["hv/acpi", null]]);
    let daemon = FakeDaemon::script(vec![ok(json!(100)), job(100, JobStatus::Success, &[], result)]);
    let done = daemon.run(&["gnt-instance", "modify", "-B", "memory=128", "fake1"]);
    assert!(done.out.starts_with(
        "Modified instance fake1\n - be/memory -> 128\n - offline -> True\n - hv/acpi -> None\nPlease don't forget"
    ));
    let daemon =
        FakeDaemon::script(vec![ok(json!(101)), job(101, JobStatus::Success, &[], json!([["offline", true]]))]);
    daemon.run(&["gnt-node", "modify", "--offline=yes", "node1"]).is(
        0,
        "Modified node node1\n - offline -> True\n",
        "",
    );
}

#[test]
fn jobs_are_watched_waited_for_and_cancelled() {
    let daemon = FakeDaemon::script(vec![job(7, JobStatus::Success, &[(1, "* one")], Value::Null)]);
    daemon.run(&["gnt-job", "watch", "7"]).is(
        0,
        "Output from job 7 follows\n-------------------------\nMon Nov 23 05:02:48 2026 * one\n",
        "",
    );
    let daemon = FakeDaemon::script(vec![failed(7, &Failure::failed("no"))]);
    daemon.run(&["gnt-job", "wait", "7"]).is(1, "", "Job 7 failed: Failure: command execution error:\nno\n");
    let unknown = || Reply::Refused(Failure::unknown("Job", 7));
    let daemon = FakeDaemon::script(vec![unknown(), ok(Value::Null)]);
    daemon.run(&["gnt-job", "cancel", "7", "8"]).is(1, "Job 8 has been canceled\n", "Job 7 not found in queue\n");
    let daemon = FakeDaemon::script(vec![unknown()]);
    daemon.run(&["gnt-job", "info", "7"]).is(1, "- Job ID 7 not found\n", "");
    let daemon = FakeDaemon::script(vec![unknown()]);
    daemon.run(&["gnt-job", "watch", "7"]).is(
        1,
        "Output from job 7 follows\n-------------------------\n",
        "Job 7 failed: Failure: command execution error:\nJob 7 not found\n",
    );
    assert_eq!(common::alone(&["gnt-job", "watch", "seven"]).code, 1);
}
