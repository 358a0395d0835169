//! Two nodes without a witness: what an operator's word does, and what becomes of one who was wrong (protocol, 11).

use lab::probe::Continuity;
use lab::{Cable, Cut};

use crate::support::*;

const VM1: [u8; 4] = [10, 0, 0, 10];
const ANSWERS: usize = 20;
const GO_ON_ALONE: &str = "gnt-cluster master-failover --no-voting --off=node02 --yes-do-it";

/// node02 is the master and has vm1, which writes.
fn about_to_lose_its_master() -> (Cluster, u64) {
    let cluster = formed(2, false);
    assert!(
        cluster.ok("node01", "gnt-cluster verify").contains("there is no automatic failover: only 2 nodes may vote")
    );
    cluster.ok("node01", &format!("{ADD_MIRRORED} --net 0:ip=10.0.0.10 -n node02:node01 vm1"));
    let guest = Continuity::start(&cluster.client().unwrap(), VM1.into()).unwrap();
    guest.wait(ANSWERS, PATIENCE).unwrap();
    cluster.ok("node02", "gnt-cluster master-failover");
    cluster.in_console("node02", "vm1", "cardume-guest work &", "work &");
    let writes = still_works(&cluster, VM1.into(), 0);
    cluster.wait_for_sync("node02");
    drop(guest);
    (cluster, writes)
}

/// vm1 runs on node01 by an operator's word, with what it had written.
fn go_on(cluster: &Cluster) {
    cluster.ok("node01", GO_ON_ALONE);
    assert_eq!(cluster.master("node01"), "node01");
    assert_eq!(cluster.status_of("node01", "vm1").as_deref(), Some("ERROR_nodedown"));
    let to_type = "'gnt-node failover --ignore-consistency node02'";
    cluster.refused("node01", "gnt-instance failover -f vm1", 1, &["'node02', which has instance 'vm1'", to_type]);
    cluster.ok("node01", "gnt-node failover -f --ignore-consistency node02");
    assert_eq!(cluster.status_of("node01", "vm1").as_deref(), Some("running"));
    let guest = Continuity::start(&cluster.client().unwrap(), VM1.into()).unwrap();
    guest.wait(ANSWERS, PATIENCE).unwrap();
}

#[test]
fn the_node_that_is_left_goes_on_by_an_operators_word_and_the_dead_one_follows_when_it_is_back() {
    let (cluster, _) = about_to_lose_its_master();
    // Nobody is overruled who is there.
    cluster.refused("node01", GO_ON_ALONE, 1, &["node02 at its primary address", "node02 at its secondary address"]);
    cluster.kill("node02").unwrap();
    let way_out = ["No master: the last one, 'node02', does not answer", "gnt-cluster master-failover --no-voting"];
    for line in ["gnt-instance list", "gnt-cluster master-failover"] {
        cluster.refused("node01", line, 1, &way_out);
    }
    cluster.refused("node01", "gnt-cluster master-failover --no-voting --yes-do-it </dev/null", 1, &["--off=node02"]);
    go_on(&cluster);

    cluster.start("node02").unwrap();
    cluster.wait_for_master("node02");
    assert_eq!(cluster.master("node02"), "node01");
    cluster.wait_for_sync("node01");
    assert_eq!(cluster.homes("vm1"), ["node01"]);
    assert!(cluster.ok("node02", "ls /var/lib/cardume").contains("log.1.saved"));
    assert!(cluster.ok("node01", "gnt-cluster verify").contains("only 2 nodes may vote"));
    cluster.stop_and_compare("node01", "vm1");
}

#[test]
fn a_node_that_was_not_off_after_all_stops_and_what_it_wrote_alone_is_kept() {
    let (cluster, writes) = about_to_lose_its_master();
    cluster.cut("node02", Cable::Both, Cut::Both).unwrap();
    // Seen from there node01 is gone; the guest goes on, on one replica.
    eventually("node02 goes on alone", || {
        let disks = cluster.disk_reports("node02").unwrap_or_default();
        disks.first().is_some_and(|disk| disk.in_sync == ["node02"])
    });
    cluster.ok("node02", "gnt-debug delay 0");
    go_on(&cluster);

    cluster.heal("node02").unwrap();
    eventually("node02 has heard of it", || {
        let said = cluster.run("node02", "gnt-instance list");
        said.code() == 1 && said.stderr.contains("this node has not been off since")
    });
    // Its guest stands still, its part in the cluster is over, the other side does not notice.
    let stopped =
        "for p in /proc/[0-9]*; do grep -q qemu $p/comm && grep -q 'State:.T' $p/status && echo stopped; done; true";
    assert_eq!(cluster.ok("node02", stopped).trim(), "stopped");
    let guest = Continuity::start(&cluster.client().unwrap(), VM1.into()).unwrap();
    guest.wait(ANSWERS, PATIENCE).unwrap();
    drop(guest);
    assert_eq!(cluster.status_of("node01", "vm1").as_deref(), Some("running"));

    // An operator restarts it: it joins, and what it has alone is not touched.
    cluster.kill("node02").unwrap();
    cluster.start("node02").unwrap();
    cluster.wait_for_master("node02");
    assert_eq!(cluster.master("node02"), "node01");
    let kept = "it holds writes that are not part of the disk's history";
    eventually("node02's replica is kept aside", || cluster.ok("node01", "cardume disk status").contains(kept));
    let said = cluster.run("node01", "gnt-cluster verify");
    assert_eq!(said.code(), 1);
    assert!(said.stdout.contains(kept) && said.stdout.contains("log.1.beyond"), "{}", said.stdout);
    let beyond = cluster.ok("node02", "cat /var/lib/cardume/log.1.beyond");
    assert!(beyond.contains("\"outdate\"") && beyond.contains("OP_TEST_DELAY"), "{beyond}");

    // He gives it up.
    cluster.ok("node02", "rm /var/lib/cardume/log.1.*");
    cluster.ok("node01", "gnt-instance replace-disks -s vm1");
    cluster.wait_for_sync("node01");
    cluster.in_console("node01", "vm1", "cardume-guest work &", "work &");
    still_works(&cluster, VM1.into(), writes);
    cluster.ok("node01", "gnt-cluster verify");
    cluster.stop_and_compare("node01", "vm1");
}
