//! The machine is not as it should be: what is wrong is said, with its name.

use std::fs;

use crate::support::*;

const INIT: &str = "gnt-cluster init --master-netdev=br0 --enabled-hypervisors=fake cluster01";

#[test]
fn a_taken_port_a_damaged_store_and_a_full_disk_are_named() {
    let cluster = up(1, false);
    let log = || fs::read_to_string(cluster.at("node01").daemon_log()).unwrap();

    // A taken port: nothing of the cluster is left, and it can be made afterwards.
    let mut thief = cluster.at("node01").command(["socat", "-d", "-d", "TCP-LISTEN:5081", "STDOUT"]).pty().unwrap();
    thief.read_until("listening on", PATIENCE).unwrap();
    cluster.refused("node01", INIT, 1, &["cannot listen on 0.0.0.0:5081", "port 5081 is taken by another process"]);
    cluster.refused("node01", "gnt-cluster info", 5, &["This node is not part of a cluster yet"]);
    drop(thief);
    cluster.ok("node01", INIT);
    cluster.ok("node01", "gnt-debug delay 0");

    // A damaged store: the daemon does not start, and says which file it is and what to do.
    let store = cluster.at("node01").state_dir().join("raft/raft.redb");
    let good = fs::read(&store).unwrap();
    fs::write(&store, vec![0x5a; 100_000]).unwrap();
    cluster.at("node01").kill_daemon().unwrap();
    eventually("the damage is in the log", || log().contains("/var/lib/cardume/raft/raft.redb is damaged"));
    let output = cluster.run("node01", "gnt-cluster info");
    assert_eq!(output.code(), 1, "{}", output.stderr);
    assert!(output.stderr.contains("daemon does not answer"), "{}", output.stderr);
    fs::write(&store, good).unwrap();
    cluster.wait_for_master("node01");
    cluster.ok("node01", "gnt-debug delay 0");
    cluster.ok("node01", "gnt-cluster destroy --yes-do-it");

    // A full disk: nothing is acknowledged that is not kept, and it goes on when there is room.
    cluster.ok("node01", "mount -t tmpfs -o size=2m none /var/lib/cardume");
    cluster.at("node01").kill_daemon().unwrap();
    eventually("the daemon is back", || cluster.run("node01", "gnt-cluster getmaster").code() == 5);
    cluster.ok("node01", INIT);
    cluster.ok("node01", "dd if=/dev/zero of=/var/lib/cardume/ballast bs=4k 2>/dev/null; true");
    cluster.refused(
        "node01",
        "for n in $(seq 100); do gnt-debug delay 0 || exit; done",
        1,
        &["No space left on device"],
    );
    assert!(log().contains("can't write /var/lib/cardume/raft/raft.redb"));
    cluster.ok("node01", "rm /var/lib/cardume/ballast");
    if cluster.at("node01").daemon_pid().unwrap().is_some() {
        cluster.at("node01").kill_daemon().unwrap();
    }
    cluster.wait_for_master("node01");
    cluster.ok("node01", "gnt-debug delay 0");
}

#[test]
fn an_installation_that_runs_out_of_space_leaves_no_instance() {
    let cluster = formed(1, false);
    let before = cluster.configuration("node01");
    // Where the system is put together before it goes on its disk.
    cluster.ok("node01", "mount -o remount,size=64k /tmp");
    cluster.refused("node01", &format!("{ADD} -n node01 vm1"), 1, &["Failure", "No space left on device"]);
    assert_eq!(cluster.configuration("node01"), before);
    cluster.assert_whole("node01");
    cluster.ok("node01", "mount -o remount,size=100m /tmp");
    cluster.ok("node01", &format!("{ADD} -n node01 vm1"));
    cluster.assert_whole("node01");
}
