//! The master's daemon dies in the middle of a job. The job ends all the same: in success or in a failure with a name,
//! and nothing is left half done.

use std::thread;
use std::time::{Duration, Instant};

use lab::Output;

use crate::support::*;

/// How often each is interrupted.
const TIMES: u32 = 5;

/// Types a line on the witness and kills the master's daemon some time later.
fn interrupted(cluster: &Cluster, line: &str, after: Duration) -> Output {
    let master = cluster.master("witness");
    let started = Instant::now();
    let running = cluster.at("witness").command(["sh", "-c", line]).spawn().unwrap();
    thread::sleep(after.saturating_sub(started.elapsed()));
    cluster.at(&master).kill_daemon().unwrap();
    let output = running.finish(2 * PATIENCE).unwrap();
    println!(
        "'{line}', daemon of {master} killed after {after:?}: {}\n{}{}",
        output.code(),
        output.stdout,
        output.stderr
    );
    for node in ["node01", "node02"] {
        cluster.wait_for_master(node);
    }
    output
}

/// How a command that was interrupted ended.
#[derive(Debug, PartialEq)]
enum End {
    Success,
    /// The job failed, and said why.
    Failure,
    /// The connection was lost while the job was submitted: whether there is one is not known, and that was said.
    Unknown,
}

#[track_caller]
fn end(output: &Output) -> End {
    if output.status.success() {
        return End::Success;
    }
    assert_eq!(output.code(), 1);
    if output.stderr.contains("is not known") {
        return End::Unknown;
    }
    assert!(output.stderr.contains("Failure: ") || output.stderr.contains("has failed: "), "{}", output.stderr);
    End::Failure
}

#[test]
fn an_interrupted_add_ends_in_an_instance_or_in_nothing() {
    let cluster = formed(2, true);
    let begun = Instant::now();
    cluster.ok("witness", &format!("{ADD} -n node01 vm1"));
    let usual = begun.elapsed();
    cluster.assert_whole("witness");

    for (round, moment) in Random::seeded().moments(TIMES, usual).into_iter().enumerate() {
        // On the master as well as on another node.
        let node = ["node01", "node02"][round % 2];
        let end = end(&interrupted(&cluster, &format!("{ADD} -n {node} vm2"), moment));
        cluster.assert_whole("witness");
        let status = cluster.status_of("witness", "vm2");
        match end {
            End::Success => assert_eq!(status.as_deref(), Some("running")),
            End::Failure => assert_eq!(status, None, "a failed creation left something"),
            End::Unknown => assert!(status.is_none() || status.as_deref() == Some("running"), "{status:?}"),
        }
        if status.is_some() {
            cluster.ok("witness", "gnt-instance remove -f --shutdown-timeout=0 vm2");
            cluster.assert_whole("witness");
        }
        // The guest that was there all the time has been taken over by each new daemon.
        assert_eq!(cluster.status_of("witness", "vm1").as_deref(), Some("running"));
    }
}

#[test]
fn an_interrupted_startup_ends_in_a_guest_that_runs_once_or_not_at_all() {
    let cluster = formed(2, true);
    for (node, name) in [("node01", "vm1"), ("node02", "vm2")] {
        cluster.ok("witness", &format!("{ADD} --no-start -n {node} {name}"));
    }
    let begun = Instant::now();
    cluster.ok("witness", "gnt-instance startup vm1");
    let usual = begun.elapsed();
    cluster.ok("witness", "gnt-instance shutdown --timeout=0 vm1");

    for (round, moment) in Random::seeded().moments(TIMES, usual).into_iter().enumerate() {
        let name = ["vm1", "vm2"][round % 2];
        let end = end(&interrupted(&cluster, &format!("gnt-instance startup {name}"), moment));
        cluster.wait_for_jobs("witness");
        let status = cluster.status_of("witness", name).expect("it is still there");
        match end {
            End::Success => assert_eq!(status, "running"),
            End::Failure => assert!(["ADMIN_down", "ERROR_down"].contains(&&*status), "{status}"),
            End::Unknown => assert!(["ADMIN_down", "running"].contains(&&*status), "{status}"),
        }
        if status == "ERROR_down" {
            // What should run and does not is a finding of `verify`, to be put right by hand.
            cluster.ok("witness", &format!("gnt-instance shutdown {name}"));
        }
        cluster.assert_whole("witness");
        cluster.ok("witness", &format!("gnt-instance shutdown --timeout=0 {name}"));
        cluster.assert_whole("witness");
    }
}
