//! `cardume disk` and `gnt-cluster verify-disks`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod common;

use common::{FakeDaemon, Reply, failed, job, run, session};
use model::{DiskId, JobStatus, ReplicaId, RunId, Uuid};
use opcodes::disks::{DiskCounters, DiskReport, NodeReplica, PeerReport, ReplicaReport, ResyncReport};
use opcodes::wire::Request;
use opcodes::{ErrorCode, Failure};
use serde_json::{Value, json};

fn replica(role: &str, state: &str, other: &str, connection: &str, peer: (&str, &str)) -> ReplicaReport {
    ReplicaReport {
        disk: DiskId(Uuid::from_u128(1)),
        replica: ReplicaId(Uuid::from_u128(2)),
        role: role.into(),
        state: state.into(),
        peers: vec![PeerReport {
            node: other.into(),
            connection: connection.into(),
            role: peer.0.into(),
            state: peer.1.into(),
            out_of_sync: 0,
            resync: None,
            refused: None,
        }],
        serving: (role == "Primary").then_some(RunId(7)),
        counters: DiskCounters { sent: 0, received: 0, written: 2048, read: 0 },
        pending: 0,
        waiting: 0,
        holding: false,
        suspended: false,
        failed: None,
        held: None,
    }
}

/// A disk that is served on node01 and in sync.
fn healthy() -> DiskReport {
    DiskReport {
        instance: "vm1".into(),
        index: 0,
        disk: DiskId(Uuid::from_u128(1)),
        size_mib: 4096,
        mode: "strict".into(),
        epoch: "1.1".into(),
        version: "1.2".into(),
        in_sync: vec!["node01".into(), "node02".into()],
        primary: Some("node01".into()),
        replicas: vec![
            NodeReplica {
                node: "node01".into(),
                report: Some(replica("Primary", "UpToDate", "node02", "Connected", ("Secondary", "UpToDate"))),
                why: None,
            },
            NodeReplica {
                node: "node02".into(),
                report: Some(replica("Secondary", "UpToDate", "node01", "Connected", ("Primary", "UpToDate"))),
                why: None,
            },
        ],
    }
}

/// The same while node02 is brought up to date.
fn syncing() -> DiskReport {
    let mut disk = healthy();
    disk.in_sync.pop();
    let report = disk.replicas[0].report.as_mut().unwrap();
    report.peers[0].connection = "SyncSource".into();
    report.peers[0].state = "Inconsistent".into();
    report.peers[0].out_of_sync = 1024;
    report.peers[0].resync = Some(ResyncReport { total: 4096, done: 3072, rate: 1024, eta_s: Some(1) });
    disk
}

fn disks(disks: &[DiskReport]) -> Reply {
    Reply::Ok(serde_json::to_value(disks).unwrap())
}

const HEALTHY: &str = "\
vm1 disk/0  4.0 GiB  node01 Primary/UpToDate <-> node02 Secondary/UpToDate  Connected C
  epoch 1.1  version 1.2  mode strict  in sync: node01, node02
  node01  cs:Connected ro:Primary/Secondary ds:UpToDate/UpToDate C  ns:0 nr:0 dw:2 dr:0 pe:0 oos:0
  node02  cs:Connected ro:Secondary/Primary ds:UpToDate/UpToDate C  ns:0 nr:0 dw:2 dr:0 pe:0 oos:0
";

#[test]
fn the_status_of_disks_is_shown() {
    let daemon = FakeDaemon::script(vec![disks(&[healthy()])]);
    daemon.run(&["disk", "status", "vm1"]).is(0, HEALTHY, "");
    assert_eq!(daemon.asked(), [Request::Disks { names: vec!["vm1".into()] }]);
    let daemon = FakeDaemon::script(vec![disks(&[healthy(), healthy()])]);
    daemon.run(&["disk", "status"]).is(0, &format!("{HEALTHY}\n{HEALTHY}"), "");
    FakeDaemon::script(vec![disks(&[])]).run(&["disk", "status"]).is(0, "There are no mirrored disks.\n", "");
    let unknown = Failure::unknown("Instance", "vm9");
    let done = FakeDaemon::script(vec![Reply::Refused(unknown)]).run(&["disk", "status", "vm9"]);
    assert!(done.code == 1 && done.err.contains("Instance 'vm9' not known"), "{done:?}");
}

#[test]
fn the_status_as_json_is_what_the_daemon_said() {
    let daemon = FakeDaemon::script(vec![disks(&[syncing()])]);
    let done = daemon.run(&["disk", "status", "--json"]);
    let shown: Vec<DiskReport> = serde_json::from_str(&done.out).unwrap();
    assert_eq!((done.code, shown), (0, vec![syncing()]));
}

#[test]
fn a_watch_goes_on_over_a_daemon_that_restarts_and_ends_at_a_refusal() {
    let script = || {
        vec![disks(&[syncing()]), Reply::Dies, disks(&[healthy()]), Reply::Refused(Failure::unknown("Instance", "vm1"))]
    };
    let line = ["disk", "status", "--watch", "--interval=0.001", "vm1"];
    let done = FakeDaemon::script(script()).run(&line);
    assert_eq!(done.code, 1);
    assert!(done.err.contains("Instance 'vm1' not known"), "{}", done.err);
    let (first, rest) = done.out.split_once("broke before it replied").unwrap();
    assert!(
        first.contains("sync'ed: 75.0% (1/4)K  node01 ==> node02\n    finish: 0:00:01 speed: 1 K/sec\n"),
        "{first}"
    );
    assert!(rest.ends_with(&format!("  every 1ms\n\n{HEALTHY}\n")), "{rest}");
    assert!(!done.out.contains('\x1b'), "no colours and no cursor where there is no terminal");

    let daemon = FakeDaemon::script(script());
    let mut session = session(daemon.socket());
    session.screen = true;
    let done = run(session, &line);
    assert!(done.out.starts_with("\x1b[2J\x1b[H") && done.out.ends_with("\x1b[J"), "{:?}", done.out);
    assert_eq!(common::alone(&["disk", "status", "--watch", "--json"]).code, 2);
    assert_eq!(common::alone(&["disk", "status", "--watch", "--interval=0"]).code, 2);
}

#[test]
fn replicas_are_compared() {
    let verify = |different: Value, line: &[&str]| {
        let result = json!({"disks": [
            {"index": 0, "replicas": ["node01", "node02"], "chunks": 1024, "different": []},
            {"index": 1, "replicas": ["node01", "node02"], "chunks": 64, "different": different},
        ]});
        FakeDaemon::script(vec![Reply::Ok(json!(9)), job(9, JobStatus::Success, &[], result)]).run(line)
    };
    verify(json!([]), &["disk", "verify", "vm1"]).is(0, "All replicas of the disks of vm1 are identical.\n", "");
    verify(json!([3, 17]), &["disk", "verify", "vm1"]).is(
        1,
        "vm1 disk/1: node01 and node02 differ in 2 of 64 chunks: 3, 17\n",
        "",
    );
    let many = json!((0..20).collect::<Vec<_>>());
    assert!(verify(many, &["disk", "verify", "vm1"]).out.ends_with("20 of 64 chunks: 0, 1, 2, 3, 4, 5, 6, 7, ...\n"));
    let done = verify(json!([3]), &["disk", "verify", "--json", "vm1"]);
    let shown: Value = serde_json::from_str(&done.out).unwrap();
    assert_eq!((done.code, &shown["disks"][1]["different"]), (1, &json!([3])));
    for failure in [
        Failure::refused(ErrorCode::WrongState, "The disks of instance 'vm1' are in use on node 'node01'"),
        Failure::failed("The replicas of disk/0 of instance 'vm1' are not equal"),
    ] {
        let daemon = FakeDaemon::script(vec![Reply::Ok(json!(9)), failed(9, &failure)]);
        daemon.run(&["disk", "verify", "--json", "vm1"]).is(1, "", &format!("{failure}\n"));
    }
}

#[test]
fn disks_that_lost_a_replica_are_found() {
    let verify = |found: &[DiskReport]| FakeDaemon::script(vec![disks(found)]).run(&["gnt-cluster", "verify-disks"]);
    verify(&[healthy()]).is(0, "No disks need to be activated.\n", "");
    verify(&[]).is(0, "No disks need to be activated.\n", "");
    verify(&[healthy(), syncing()]).is(
        1,
        "Instance vm1 disk/0 is degraded: node02 is not in sync; it is brought up to date as soon as it answers\n",
        "",
    );
    let mut stopped = syncing();
    stopped.primary = None;
    stopped.replicas[1] =
        NodeReplica { node: "node02".into(), report: None, why: Some("the node does not answer".into()) };
    verify(&[stopped]).is(
        1,
        "Error gathering data on node node02: the node does not answer\n\
         Instance vm1 disk/0 is degraded: node02 is not in sync; 'gnt-instance startup vm1' or 'gnt-instance \
         activate-disks --wait-for-sync vm1' brings it up to date\n",
        "",
    );
    let mut broken = healthy();
    broken.replicas[1].report.as_mut().unwrap().failed = Some("its medium failed".into());
    let done = verify(&[broken]);
    assert!(done.code == 1 && done.out.contains("the replica on node02 can't be used: its medium failed"), "{done:?}");
}
