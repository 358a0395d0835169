//! What is not to be disturbed: guests, and the cluster's address.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use lab::probe::Continuity;

use crate::support::*;

/// Answers of a guest that are waited for between two disturbances.
const ANSWERS: usize = 10;

#[test]
fn a_guest_outlives_its_daemon_and_the_address_is_never_on_two_nodes() {
    let cluster = formed(2, true);
    let watch = AddressWatch::start(&cluster);
    eventually("the address is on the master", || watch.holders() == ["node01"]);
    cluster.ok("node01", &format!("{ADD} --net 0:ip=10.0.0.10 -n node01 vm1"));
    let guest = Continuity::start(&cluster.client().unwrap(), [10, 0, 0, 10].into()).unwrap();
    guest.wait(ANSWERS, PATIENCE).unwrap();

    // Its daemon dies: as the master's, and as another node's.
    for master in ["node01", "node02"] {
        if cluster.master("node01") != master {
            cluster.ok(master, "gnt-cluster master-failover");
            eventually("the address has followed", || watch.holders() == [master]);
        }
        let before = cluster.at("node01").daemon_pid().unwrap();
        cluster.at("node01").kill_daemon().unwrap();
        cluster.wait_for_master("node01");
        assert_ne!(cluster.at("node01").daemon_pid().unwrap(), before);
        assert_eq!(cluster.status_of("node01", "vm1").as_deref(), Some("running"));
        guest.wait(ANSWERS, PATIENCE).unwrap();
    }

    // Its console, through another node's daemon and after its own was replaced.
    let mut console = cluster.at("node02").command(["gnt-instance", "console", "vm1"]).pty().unwrap();
    console.read_until("Connected to the console", PATIENCE).unwrap();
    console.write(b"echo $((6 * 7))-\n").unwrap();
    console.read_until("42-", PATIENCE).unwrap();
    console.write(b"\x1d").unwrap();
    assert!(console.finish(PATIENCE).unwrap().0.success());

    let history = guest.finish();
    assert_eq!(history.broken(), None);
    println!("{} answers, longest gap {:?}", history.0.len(), history.longest_gap());

    // The master is gone at once, with no chance to give up its address by itself.
    cluster.ok("node02", "gnt-instance shutdown --timeout=0 vm1");
    let master = cluster.master("witness");
    let other = if master == "node01" { "node02" } else { "node01" };
    cluster.kill(&master).unwrap();
    eventually("the address is on the node that is left", || watch.holders() == [other]);
    cluster.start(&master).unwrap();
    cluster.wait_for_master(&master);
    eventually("the address stays where the master is", || watch.holders() == [cluster.master("witness")]);
    assert!(!watch.finish(), "two nodes had the cluster's address at the same time");
}

#[test]
fn a_sole_voter_keeps_the_address_while_nothing_happens() {
    let cluster = formed(1, false);
    let watch = AddressWatch::start(&cluster);
    eventually("the address is on the master", || watch.holders() == ["node01"]);
    // Longer than a master keeps it that nobody follows.
    let end = Instant::now() + Duration::from_secs(4);
    while Instant::now() < end {
        assert_eq!(watch.holders(), ["node01"]);
        thread::sleep(Duration::from_millis(20));
    }
}

/// Looks all the time on which nodes the cluster's address is.
struct AddressWatch<'a> {
    cluster: &'a Cluster,
    twice: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

/// Has this node the address? As the kernel lists the addresses of the network that the process is in.
fn has_address(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/net/fib_trie")).is_ok_and(|trie| trie.contains("10.0.0.20\n"))
}

impl<'a> AddressWatch<'a> {
    fn start(cluster: &'a Cluster) -> Self {
        let (twice, stop) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        // The witness can't be master; on a cluster of one there is nothing to see twice.
        let nodes = ["node01", "node02"].map(|name| cluster.node(name).ok());
        let (seen, end) = (Arc::clone(&twice), Arc::clone(&stop));
        let thread = thread::spawn(move || {
            while !end.load(Ordering::Relaxed) {
                let [one, two] =
                    nodes.each_ref().map(|node| node.as_ref().and_then(|node| node.pid().ok()).unwrap_or(-1));
                // Looked at one after the other: it was on both at once if the first still has it after the second had.
                if has_address(one) && has_address(two) && has_address(one) {
                    seen.store(true, Ordering::Relaxed);
                }
                thread::sleep(Duration::from_millis(2));
            }
        });
        Self { cluster, twice, stop, thread: Some(thread) }
    }

    fn holders(&self) -> Vec<&'static str> {
        let has = |name: &&str| self.cluster.node(name).is_ok_and(|node| node.pid().is_ok_and(has_address));
        ["node01", "node02", "witness"].into_iter().filter(has).collect()
    }

    /// Was it ever on two nodes?
    fn finish(mut self) -> bool {
        self.end();
        self.twice.load(Ordering::Relaxed)
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for AddressWatch<'_> {
    fn drop(&mut self) {
        self.end();
    }
}
