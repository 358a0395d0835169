//! Commands that move instances between nodes and change their mirrored disks.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod common;

use std::sync::{Arc, Mutex};

use common::{FakeDaemon, Person, Reply, alone, failed, job, run, session, success};
use model::{DiskTemplate, JobStatus};
use opcodes::op::{EvacuationMode, MigrationMode, ReplaceMode};
use opcodes::wire::{Request, Resource};
use opcodes::{ErrorCode, Failure, Opcode};
use serde_json::{Value, json};

fn ok(value: Value) -> Reply {
    Reply::Ok(value)
}

/// The opcodes that were submitted, one a job.
fn submitted(daemon: &FakeDaemon) -> Vec<Opcode> {
    let ops = daemon.asked().into_iter().filter_map(|request| match request {
        Request::Submit(mut submit) => Some(submit.ops.remove(0)),
        _ => None,
    });
    ops.collect()
}

/// Runs a command that submits one opcode; gives that and the exit code.
fn opcode(line: &[&str]) -> Opcode {
    let daemon = FakeDaemon::script(vec![ok(json!(7)), success(7)]);
    daemon.run(line).is(0, "", "");
    submitted(&daemon).remove(0)
}

/// The answer about a node: the instances whose primary or secondary node it is.
fn node(primary: &[&str], secondary: &[&str]) -> Reply {
    let fields = ["pinst_list", "sinst_list"].map(|name| opcodes::fields::column(Resource::Node, name));
    ok(json!({"fields": fields, "data": [[[0, primary], [0, secondary]]]}))
}

/// Runs a command and answers its questions; gives what it did and what it asked.
fn answered(daemon: &FakeDaemon, answers: Vec<&'static str>, line: &[&str]) -> (common::Done, String) {
    let asked = Arc::new(Mutex::new(String::new()));
    let mut session = session(daemon.socket());
    session.answers = Box::new(Person { answers, asked: asked.clone() });
    let done = run(session, line);
    let asked = asked.lock().unwrap().clone();
    (done, asked)
}

fn refused(text: &str) -> String {
    format!("Failure: prerequisites not met for this operation:\nerror type: wrong_input, error details:\n{text}\n")
}

#[test]
fn an_instance_is_migrated() {
    let Opcode::InstanceMigrate(op) = opcode(&["gnt-instance", "migrate", "-f", "vm2"]) else { panic!() };
    assert_eq!(
        (op.instance_name.as_str(), op.mode, op.cleanup, op.allow_failover),
        ("vm2", MigrationMode::Live, false, false)
    );
    let line = ["gnt-instance", "migrate", "--force", "--non-live", "--allow-failover", "vm2"];
    let Opcode::InstanceMigrate(op) = opcode(&line) else { panic!() };
    assert!(op.mode == MigrationMode::NonLive && op.allow_failover);
    let Opcode::InstanceMigrate(op) = opcode(&["gnt-instance", "migrate", "-f", "--cleanup", "vm2"]) else { panic!() };
    assert!(op.cleanup);

    let lines = [(1, "Migrating instance vm2"), (2, "* checking disk consistency between source and target")];
    let daemon = FakeDaemon::script(vec![ok(json!(9)), job(9, JobStatus::Success, &lines, Value::Null)]);
    daemon.run(&["gnt-instance", "migrate", "-f", "vm2"]).is(
        0,
        "Mon Nov 23 05:02:48 2026 Migrating instance vm2\n\
         Mon Nov 23 05:02:49 2026 * checking disk consistency between source and target\n",
        "",
    );
    let failure = Failure::refused(ErrorCode::WrongState, "Instance's disk layout 'file' does not allow migrations");
    let daemon = FakeDaemon::script(vec![ok(json!(9)), failed(9, &failure)]);
    let done = daemon.run(&["gnt-instance", "migrate", "-f", "vm2"]);
    assert!(done.code == 1 && done.err.ends_with("does not allow migrations\n"), "{done:?}");
    let daemon = FakeDaemon::script(vec![ok(json!(9))]);
    daemon.run(&["gnt-instance", "migrate", "-f", "--submit", "vm2"]).is(0, "JobID: 9\n", "");
}

#[test]
fn a_move_is_asked_about_in_ganetis_words() {
    for (line, question) in [
        (
            &["gnt-instance", "migrate", "vm2"][..],
            "Instance vm2 will be migrated. Note that migration might impact the\n\
             instance if anything goes wrong (e.g. due to bugs in the hypervisor).\nContinue?\ny/[n]/?: ",
        ),
        (
            &["gnt-instance", "migrate", "--cleanup", "vm2"],
            "Instance vm2 will be recovered from a failed migration. Note that the\n\
             migration procedure (including cleanup) might impact the instance if\n\
             anything goes wrong (e.g. due to bugs in the hypervisor). Continue?\ny/[n]/?: ",
        ),
        (
            &["gnt-instance", "failover", "vm2"],
            "Failover will happen to image vm2. This requires a shutdown of the\ninstance. Continue?\ny/[n]/?: ",
        ),
    ] {
        let daemon = FakeDaemon::script(vec![]);
        let (done, asked) = answered(&daemon, vec!["n"], line);
        assert_eq!((done.code, asked.as_str(), daemon.asked().len()), (13, question, 0));
        let daemon = FakeDaemon::script(vec![ok(json!(9)), success(9)]);
        assert_eq!(answered(&daemon, vec!["y"], line).0.code, 0);
    }
    assert_eq!(alone(&["gnt-instance", "migrate", "vm2"]).code, 13);
}

#[test]
fn an_instance_is_failed_over() {
    let Opcode::InstanceFailover(op) = opcode(&["gnt-instance", "failover", "-f", "vm2"]) else { panic!() };
    assert_eq!((op.instance_name.as_str(), op.shutdown_timeout, op.ignore_consistency), ("vm2", 120, false));
    let line = ["gnt-instance", "failover", "-f", "--ignore-consistency", "--shutdown-timeout=0", "vm2"];
    let Opcode::InstanceFailover(op) = opcode(&line) else { panic!() };
    assert!(op.shutdown_timeout == 0 && op.ignore_consistency);
}

#[test]
fn disks_get_another_secondary_node() {
    let Opcode::InstanceReplaceDisks(op) = opcode(&["gnt-instance", "replace-disks", "-n", "node03", "vm2"]) else {
        panic!()
    };
    assert_eq!((op.mode, op.remote_node.as_deref()), (ReplaceMode::NewSecondary, Some("node03")));
    let Opcode::InstanceReplaceDisks(op) = opcode(&["gnt-instance", "replace-disks", "-s", "vm2"]) else { panic!() };
    assert_eq!((op.mode, op.remote_node), (ReplaceMode::OnSecondary, None));
    let one = refused("One and only one of the -n and -s options must be passed");
    for (line, text) in [
        (&["vm2"][..], one.as_str()),
        (&["-s", "-n", "node03", "vm2"], &one),
        (&["-p", "vm2"], "Replacing the disks on the primary node (-p) is not offered"),
        (&["-a", "vm2"], "Replacing what is broken (-a) is not offered"),
        (&["-I", "hail", "vm2"], "Choosing a node by an allocator (-I) is not offered"),
    ] {
        let done = alone(&[&["gnt-instance", "replace-disks"], line].concat());
        assert!(done.code == 1 && done.err.contains(text), "{line:?}: {done:?}");
    }
}

#[test]
fn a_disk_grows() {
    let Opcode::InstanceGrowDisk(op) = opcode(&["gnt-instance", "grow-disk", "vm2", "0", "2g"]) else { panic!() };
    assert_eq!((op.instance_name.as_str(), op.disk, op.amount, op.absolute), ("vm2", 0, 2048, false));
    let line = ["gnt-instance", "grow-disk", "--absolute", "vm2", "disk/1", "512"];
    let Opcode::InstanceGrowDisk(op) = opcode(&line) else { panic!() };
    assert_eq!((op.disk, op.amount, op.absolute), (1, 512, true));
    let grow = |args: &[&str]| alone(&[&["gnt-instance", "grow-disk"], args].concat());
    grow(&["vm2", "first", "1g"]).is(1, "", &refused("Invalid disk index 'first': write a number from 0"));
    grow(&["vm2", "0", "lots"]).is(
        1,
        "",
        &refused("Invalid amount 'lots' to grow by: write a size such as 512m, 4g or 1.5t"),
    );
    grow(&["vm2", "0"]).is(1, "", "Error: Command grow-disk expects 3 argument(s)\n");
}

#[test]
fn disks_are_shown_on_the_node_and_taken_away() {
    let result = json!([["node01", "disk/0", "/run/cardume/disks/a/disk"], ["node01", "disk/1", "/run/b"]]);
    let daemon = FakeDaemon::script(vec![ok(json!(9)), job(9, JobStatus::Success, &[], result)]);
    daemon.run(&["gnt-instance", "activate-disks", "--wait-for-sync", "vm2"]).is(
        0,
        "node01:disk/0:/run/cardume/disks/a/disk\nnode01:disk/1:/run/b\n",
        "",
    );
    assert!(matches!(&submitted(&daemon)[0], Opcode::InstanceActivateDisks(op) if op.wait_for_sync));
    let Opcode::InstanceDeactivateDisks(op) = opcode(&["gnt-instance", "deactivate-disks", "--force", "vm2"]) else {
        panic!()
    };
    assert!(op.force);
    let failure = Failure::refused(ErrorCode::WrongState, "Instance 'vm2' is running");
    let daemon = FakeDaemon::script(vec![ok(json!(9)), failed(9, &failure)]);
    assert_eq!(daemon.run(&["gnt-instance", "deactivate-disks", "vm2"]).code, 1);
}

#[test]
fn disks_are_converted() {
    let result = json!([["disk_template", "drbd"]]);
    let daemon = FakeDaemon::script(vec![ok(json!(9)), job(9, JobStatus::Success, &[], result)]);
    let done = daemon.run(&["gnt-instance", "modify", "-t", "drbd", "-n", "node02", "vm3"]);
    assert!(done.code == 0 && done.out.starts_with("Modified instance vm3\n - disk_template -> drbd\n"), "{done:?}");
    let Opcode::InstanceSetParams(op) = submitted(&daemon).remove(0) else { panic!() };
    assert_eq!((op.disk_template, op.remote_node.as_deref()), (Some(DiskTemplate::Drbd), Some("node02")));
    alone(&["gnt-instance", "modify", "-t", "drbd", "vm3"]).is(
        1,
        "",
        "Changing the disk template to a mirrored one requires specifying a secondary node\n",
    );
    assert_eq!(alone(&["gnt-instance", "modify", "-n", "node02", "vm3"]).code, 2);
}

#[test]
fn all_instances_of_a_node_fail_over_at_once() {
    let daemon = FakeDaemon::script(vec![
        node(&["vm1", "vm2"], &["vm9"]),
        ok(json!(20)),
        ok(json!(21)),
        success(20),
        success(21),
    ]);
    daemon.run(&["gnt-node", "failover", "-f", "node01"]).is(
        0,
        "Submitted jobs 20, 21\nWaiting for job 20 for vm1 ...\nWaiting for job 21 for vm2 ...\n\
         All 2 instance(s) failed over successfully.\n",
        "",
    );
    // Both jobs are queued before one is followed.
    assert!(matches!(&daemon.asked()[1..3], [Request::Submit(_), Request::Submit(_)]));
    let names: Vec<_> = submitted(&daemon)
        .into_iter()
        .map(|op| if let Opcode::InstanceFailover(op) = op { op.instance_name } else { panic!("{op:?}") })
        .collect();
    assert_eq!(names, ["vm1", "vm2"]);
}

#[test]
fn a_failover_of_a_node_that_fails_in_part_does_not_end_with_success() {
    let daemon = FakeDaemon::script(vec![
        node(&["vm1", "vm2"], &[]),
        ok(json!(20)),
        ok(json!(21)),
        failed(20, &Failure::failed("no")),
        success(21),
    ]);
    daemon.run(&["gnt-node", "failover", "-f", "node01"]).is(
        1,
        "Submitted jobs 20, 21\nWaiting for job 20 for vm1 ...\nWaiting for job 21 for vm2 ...\n\
         There were errors during the failover:\n1 error(s) out of 2 instance(s).\n",
        "Job 20 for vm1 has failed: Failure: command execution error:\nno\n",
    );
    let daemon = FakeDaemon::script(vec![node(&["vm1"], &[]), Reply::Refused(Failure::no_master("no quorum"))]);
    let done = daemon.run(&["gnt-node", "failover", "-f", "node01"]);
    assert!(done.code == 1 && done.out.contains("1 error(s) out of 1 instance(s)."), "{done:?}");
}

#[test]
fn a_node_without_instances_has_nothing_to_move() {
    let run = |line: &[&str]| FakeDaemon::script(vec![node(&[], &["vm9"])]).run(line);
    run(&["gnt-node", "failover", "node01"]).is(0, "", "No primary instances on node node01, exiting.\n");
    run(&["gnt-node", "migrate", "node01"]).is(0, "No primary instances on node node01, exiting.\n", "");
    run(&["gnt-node", "evacuate", "-p", "node01"]).is(0, "No primary instances on node node01, exiting.\n", "");
    let unknown = || Reply::Refused(Failure::unknown("Node", "node09"));
    let done = FakeDaemon::script(vec![unknown()]).run(&["gnt-node", "failover", "-f", "node09"]);
    assert!(done.code == 1 && done.err.contains("Node 'node09' not known"), "{done:?}");
    alone(&["gnt-node", "failover"]).is(1, "", "Error: Command failover expects 1 argument(s)\n");
}

#[test]
fn what_is_moved_off_a_node_is_asked_about() {
    for (line, question) in [
        (&["gnt-node", "failover", "node01"][..], "Fail over instance(s) 'vm1','vm2'?\ny/[n]/?: "),
        (&["gnt-node", "migrate", "node01"], "Migrate instance(s) vm1, vm2?\ny/[n]/?: "),
        (&["gnt-node", "evacuate", "node01"], "Relocate instance(s) vm1, vm2, vm9 from node node01?\ny/[n]/?: "),
        (&["gnt-node", "evacuate", "-s", "node01"], "Relocate instance(s) vm9 from node node01?\ny/[n]/?: "),
    ] {
        let daemon = FakeDaemon::script(vec![node(&["vm1", "vm2"], &["vm9"])]);
        let (done, asked) = answered(&daemon, vec!["n"], line);
        assert_eq!((done.code, asked.as_str(), daemon.asked().len()), (13, question, 1));
    }
}

#[test]
fn a_node_is_migrated_and_evacuated_by_jobs_that_are_followed() {
    let script = |second: Reply| {
        vec![
            node(&["vm1", "vm2"], &["vm9"]),
            ok(json!(30)),
            job(30, JobStatus::Success, &[], json!({"jobs": [[true, 31], [true, 32]]})),
            success(31),
            second,
        ]
    };
    let text = "Submitted jobs 31, 32\nWaiting for job 31 ...\nWaiting for job 32 ...\n";
    let daemon = FakeDaemon::script(script(success(32)));
    daemon.run(&["gnt-node", "migrate", "-f", "--non-live", "node01"]).is(
        0,
        &format!("{text}All instances migrated successfully.\n"),
        "",
    );
    let Opcode::NodeMigrate(op) = submitted(&daemon).remove(0) else { panic!() };
    assert_eq!((op.node_name.as_str(), op.mode, op.allow_failover), ("node01", MigrationMode::NonLive, false));

    let daemon = FakeDaemon::script(script(failed(32, &Failure::failed("no"))));
    daemon.run(&["gnt-node", "evacuate", "-f", "-s", "-n", "node03", "node01"]).is(
        1,
        &format!("{text}There were 1 errors during the evacuation.\n"),
        "Job 32 has failed: Failure: command execution error:\nno\n",
    );
    let Opcode::NodeEvacuate(op) = submitted(&daemon).remove(0) else { panic!() };
    assert_eq!((op.mode, op.remote_node.as_deref()), (EvacuationMode::SecondaryOnly, Some("node03")));
    assert_eq!(alone(&["gnt-node", "evacuate", "-p", "-s", "node01"]).code, 2);
}
