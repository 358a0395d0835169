//! Mirrored disks under guests that write: nothing is lost, and no guest is told that anything happened.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use lab::probe::Continuity;
use lab::{Cable, Cut};
use opcodes::disks::DiskReport;

use crate::support::*;

const VM1: [u8; 4] = [10, 0, 0, 10];
const ANSWERS: usize = 20;

#[test]
fn a_peer_that_goes_away_is_never_noticed_and_gets_what_it_missed() {
    let cluster = formed(2, true);
    cluster.ok("node01", &format!("{ADD_MIRRORED} --net 0:ip=10.0.0.10 -n node01:node02 vm1"));
    let guest = Continuity::start(&cluster.client().unwrap(), VM1.into()).unwrap();
    guest.wait(ANSWERS, PATIENCE).unwrap();
    // Born in sync, on both nodes.
    cluster.wait_for_sync("witness");
    for node in ["node01", "node02"] {
        assert_eq!(replicas(&cluster, node).len(), 1, "replicas on {node}");
    }
    let said = cluster.ok("node02", "cardume disk status");
    assert!(said.contains("node01 Primary/UpToDate <-> node02 Secondary/UpToDate"), "{said}");
    cluster.in_console("node01", "vm1", "cardume-guest work &", "work &");
    let mut writes = still_works(&cluster, VM1.into(), 0);

    // The peer ends in good order, loses its cable: each time it gets what it missed, and not more. Not oftener: a third
    // absence within ten minutes makes it wait.
    let all = replicas(&cluster, "node01").iter().map(|file| fs::metadata(file).unwrap().blocks() * 512).sum::<u64>();
    for cable in [false, true] {
        if cable {
            cluster.cut("node02", Cable::Both, Cut::Both).unwrap();
        } else {
            cluster.stop("node02").unwrap();
        }
        writes = still_works(&cluster, VM1.into(), writes);
        guest.wait(ANSWERS, PATIENCE).unwrap();
        if cable {
            cluster.heal("node02").unwrap();
        } else {
            cluster.start("node02").unwrap();
            cluster.wait_for_master("node02");
        }
        writes = still_works(&cluster, VM1.into(), writes);
        cluster.wait_for_sync("witness");
        if !cable {
            let disks = cluster.disk_reports("node02").unwrap();
            let back = disks[0].replicas.iter().find(|replica| replica.node == "node02").unwrap();
            let received = back.report.as_ref().unwrap().counters.received;
            println!("{received} bytes came to node02 after its absence, of {all} on the disk");
            assert!(received < all / 2, "{received} bytes were copied, of {all} on the disk");
        }
    }
    guest.wait(ANSWERS, PATIENCE).unwrap();
    let history = guest.finish();
    assert_eq!(history.broken(), None);
    cluster.assert_on_disk("node01", "vm1", &history);
    cluster.stop_and_compare("node01", "vm1");

    // A disk that nobody writes to meanwhile is not copied when its peer comes back.
    cluster.ok("node01", &format!("{ADD_MIRRORED} --no-start --no-name-check -n node01:node02 vm9"));
    cluster.stop("node02").unwrap();
    cluster.start("node02").unwrap();
    cluster.wait_for_master("node02");
    cluster.wait_for_sync("witness");
    cluster.ok("node01", "gnt-instance startup vm1");
    cluster.wait_for_sync("witness");
    cluster.ok("node01", "gnt-instance shutdown --timeout=0 vm1");
    for name in ["vm1", "vm9"] {
        cluster.ok("node01", &format!("gnt-instance remove -f {name}"));
    }
    for node in ["node01", "node02"] {
        assert_eq!(replicas(&cluster, node), Vec::<PathBuf>::new(), "replicas left on {node}");
    }
    cluster.assert_whole("node01");
}

/// The data files of a node's replicas.
fn replicas(cluster: &Cluster, node: &str) -> Vec<PathBuf> {
    let folder = cluster.at(node).state_dir().join("disks");
    let Ok(disks) = fs::read_dir(folder) else { return Vec::new() };
    let files = disks.flat_map(|disk| fs::read_dir(disk.unwrap().path()).into_iter().flatten());
    let mut files: Vec<PathBuf> = files.map(|file| file.unwrap().path()).collect();
    files.retain(|file| file.extension().is_some_and(|extension| extension == "data"));
    files
}

#[test]
fn what_can_not_be_moved_is_refused_with_the_reason() {
    let cluster = formed(2, true);
    let add =
        |options: &str, name: &str| format!("{ADD_MIRRORED} --no-name-check --no-start --no-nics {options} {name}");
    cluster.ok("node01", &add("-n node01:node02", "vm1"));
    cluster.ok(
        "node01",
        "gnt-instance add -t file -s 64m -o busybox+default -B memory=128 --no-start --no-nics -n node01 vm2",
    );
    cluster.ok("node01", &add("-n node01:node02", "vm3"));
    cluster.ok("node01", "gnt-instance startup vm3");
    let before = cluster.configuration("node01");
    let table: &[(&str, String, i32, &[&str])] = &[
        ("stopped", "gnt-instance migrate -f vm1".into(), 1, &["vm1"]),
        ("not mirrored", "gnt-instance migrate -f vm2".into(), 1, &["disk layout", "file"]),
        ("not mirrored", "gnt-instance failover -f vm2".into(), 1, &["disk layout", "file"]),
        ("unknown", "gnt-instance migrate -f nosuch".into(), 1, &["Instance 'nosuch' not known"]),
        ("secondary is primary", add("-n node01:node01", "vm4"), 1, &["primary node"]),
        ("no secondary", add("-n node01", "vm4"), 1, &["node"]),
        ("secondary unknown", add("-n node01:nosuch", "vm4"), 1, &["Node 'nosuch' not known"]),
        ("witness", add("-n node01:witness", "vm4"), 1, &["witness"]),
        ("no room", "gnt-instance grow-disk vm1 0 900t".into(), 1, &["Not enough disk space"]),
        ("no such disk", "gnt-instance grow-disk vm1 7 1g".into(), 1, &["7"]),
        ("not the secondary", "gnt-instance replace-disks -n node02 vm1".into(), 1, &["already the secondary node"]),
        ("runs", "cardume disk verify vm3".into(), 1, &["vm3"]),
        ("runs", "gnt-instance deactivate-disks vm3".into(), 1, &["vm3"]),
        (
            "no room",
            "gnt-instance add -t drbd -s 900t -o busybox+default -n node01:node02 --no-name-check vm4".into(),
            1,
            &["Not enough disk space"],
        ),
    ];
    for (why, line, code, words) in table {
        println!("{why}: {line}");
        cluster.refused("node01", line, *code, words);
    }
    assert_eq!(cluster.configuration("node01"), before);

    // A peer that is away is not moved to.
    cluster.stop("node02").unwrap();
    cluster.refused("node01", "gnt-instance migrate -f vm3", 1, &["node02"]);
    assert_eq!(cluster.status_of("node01", "vm3").as_deref(), Some("running"));
    cluster.start("node02").unwrap();
    cluster.wait_for_master("node02");
    // vm1 is not served: what its peer may have missed is looked into when it is started.
    let in_sync = |disk: &DiskReport| disk.instance == "vm3" && disk.in_sync.len() == 2;
    eventually("vm3 is in sync again", || cluster.disk_reports("node01").is_some_and(|it| it.iter().any(in_sync)));
    cluster.ok("node01", "gnt-instance migrate -f vm3");
    assert_eq!(cluster.homes("vm3"), ["node02"]);
    cluster.ok("node01", "gnt-instance startup vm1");
    cluster.wait_for_sync("node01");
    cluster.assert_whole("node01");
}
