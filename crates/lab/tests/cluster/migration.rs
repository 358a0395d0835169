//! Live migration: a guest goes to another node while it runs, and whatever dies on the way there is one of it afterwards,
//! with everything that it had acknowledged.

use std::thread;
use std::time::{Duration, Instant};

use lab::Part;
use lab::probe::Continuity;

use crate::support::*;

const VM1: [u8; 4] = [10, 0, 0, 10];
const ANSWERS: usize = 10;

/// How long a guest that has crashed is waited for, before somebody starts it by hand.
const RESTART: Duration = Duration::from_secs(10);

/// The steps of a migration, as points at which whoever does them waits; with the side that does it.
const STEPS: [(&str, Side); 9] = [
    ("master.prepare.after", Side::Master),
    ("node.receive.after", Side::Destination),
    ("node.send.after", Side::Source),
    ("node.sending.complete", Side::Source),
    ("node.quiesce.after", Side::Source),
    ("node.take_frames.after", Side::Destination),
    ("master.handover.before", Side::Master),
    ("master.handover.after", Side::Master),
    ("node.continue.before", Side::Destination),
];

#[derive(Clone, Copy, Debug, PartialEq)]
enum Side {
    Master,
    Source,
    Destination,
}

/// What is ended.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Victim {
    SourceDaemon,
    DestinationDaemon,
    SourceGuest,
    DestinationGuest,
    Source,
    Destination,
}

/// A cluster with one guest that works.
fn with_guest() -> (Cluster, Continuity) {
    let cluster = formed(2, true);
    cluster.ok("node01", &format!("{ADD_MIRRORED} --net 0:ip=10.0.0.10 -n node01:node02 vm1"));
    let guest = Continuity::start(&cluster.client().unwrap(), VM1.into()).unwrap();
    guest.wait(ANSWERS, PATIENCE).unwrap();
    (cluster, guest)
}

#[test]
fn a_guest_that_writes_goes_on_elsewhere_with_all_that_it_wrote() {
    let (cluster, guest) = with_guest();
    cluster.in_console("node01", "vm1", "cardume-guest work &", "work &");
    let mut writes = still_works(&cluster, VM1.into(), 0);
    for (line, home) in [
        ("gnt-instance migrate -f vm1", "node02"),
        ("gnt-instance migrate -f --non-live vm1", "node01"),
        ("gnt-node migrate -f node01", "node02"),
        ("gnt-instance migrate -f vm1", "node01"),
    ] {
        let said = cluster.ok("node01", line);
        assert!(!said.contains("dual-master"), "{said}");
        assert_eq!(cluster.homes("vm1"), [home], "after '{line}'");
        guest.wait(ANSWERS, PATIENCE).unwrap();
        writes = still_works(&cluster, VM1.into(), writes);
    }
    let history = guest.finish();
    assert_eq!(history.broken(), None);
    println!("{} answers, {writes} writes, longest gap {:?}", history.0.len(), history.longest_gap());
    cluster.assert_on_disk("node01", "vm1", &history);
    cluster.stop_and_compare("node01", "vm1");
    cluster.assert_whole("node01");
}

#[test]
fn whenever_a_daemon_dies_one_guest_runs_afterwards() {
    at_every_step(&[Victim::SourceDaemon, Victim::DestinationDaemon]);
}

#[test]
fn whenever_the_guest_dies_one_guest_runs_afterwards() {
    at_every_step(&[Victim::SourceGuest, Victim::DestinationGuest]);
}

#[test]
fn a_node_that_dies_while_memory_is_sent_never_leaves_two_guests() {
    nodes_die_at(0..3);
}

#[test]
fn a_node_that_dies_while_the_guest_stands_still_never_leaves_two_guests() {
    nodes_die_at(3..6);
}

#[test]
fn a_node_that_dies_around_the_decision_never_leaves_two_guests() {
    nodes_die_at(6..9);
}

/// At each of these steps one of the two nodes dies; where `CARDUME_TEST_EVERY_DEATH` is set, either of them.
fn nodes_die_at(steps: std::ops::Range<usize>) {
    let every = std::env::var_os("CARDUME_TEST_EVERY_DEATH").is_some();
    let (cluster, guest) = with_guest();
    for (index, (step, side)) in STEPS.into_iter().enumerate().skip(steps.start).take(steps.len()) {
        let chosen = if index % 2 == 0 { Victim::Destination } else { Victim::Source };
        for victim in [Victim::Source, Victim::Destination] {
            if every || victim == chosen {
                interrupt(&cluster, step, side, victim);
                guest.wait(1, PATIENCE).unwrap();
            }
        }
    }
    finish(&cluster, guest);
}

/// At each step each of these is ended.
fn at_every_step(victims: &[Victim]) {
    let (cluster, guest) = with_guest();
    for (step, side) in STEPS {
        for victim in victims {
            interrupt(&cluster, step, side, *victim);
            guest.wait(1, PATIENCE).unwrap();
        }
    }
    finish(&cluster, guest);
}

/// Nothing that was acknowledged is missing, neither from what it said nor from its disks.
fn finish(cluster: &Cluster, guest: Continuity) {
    guest.wait(ANSWERS, PATIENCE).unwrap();
    let history = guest.finish();
    assert_eq!(history.forgotten(), None);
    cluster.assert_on_disk(&cluster.homes("vm1")[0], "vm1", &history);
    cluster.stop_and_compare("witness", "vm1");
    cluster.assert_whole("witness");
}

/// Migrates the guest, ends something when the migration has come to a step, and looks what became of it.
fn interrupt(cluster: &Cluster, step: &str, side: Side, victim: Victim) {
    println!("--- {victim:?} at {step}");
    let homes = cluster.homes("vm1");
    let [source] = &*homes else { panic!("the guest is on {homes:?}") };
    let source = source.as_str();
    let destination = if source == "node01" { "node02" } else { "node01" };
    let holder = match side {
        Side::Master => cluster.master("witness"),
        Side::Source => source.to_owned(),
        Side::Destination => destination.to_owned(),
    };
    let hold = cluster.hold_at(&holder, step);
    let mut migrating = cluster.at("witness").command(["gnt-instance", "migrate", "-f", "vm1"]).spawn().unwrap();
    assert!(hold.reached(&mut migrating), "the migration ended without coming to {step}");
    match victim {
        Victim::SourceDaemon => cluster.at(source).kill_daemon().unwrap(),
        Victim::DestinationDaemon => cluster.at(destination).kill_daemon().unwrap(),
        Victim::SourceGuest => kill_guest(cluster, source),
        Victim::DestinationGuest => kill_guest(cluster, destination),
        Victim::Source => cluster.kill(source).unwrap(),
        Victim::Destination => cluster.kill(destination).unwrap(),
    }
    drop(hold);
    let ended = migrating.finish(2 * PATIENCE).unwrap();
    print!("{}{}", ended.stdout, ended.stderr);
    if matches!(victim, Victim::Source | Victim::Destination) {
        let (gone, left) = if victim == Victim::Source { (source, destination) } else { (destination, source) };
        // Nobody has to do anything: it runs on, or is taken over by the node that is left.
        eventually("the guest runs on the node that is left", || runs_on(cluster, left));
        cluster.start(gone).unwrap();
        for node in ["node01", "node02", "witness"] {
            cluster.wait_for_master(node);
        }
        cluster.wait_for_jobs("witness");
        assert!(runs_on(cluster, left), "the return of {gone} has changed something");
    }
    settle(cluster);
}

fn runs_on(cluster: &Cluster, node: &str) -> bool {
    cluster.homes("vm1") == [node] && status(cluster).as_deref() == Some("running")
}

/// `status` of the guest; `None` while there is no master.
fn status(cluster: &Cluster) -> Option<String> {
    let output = cluster.run("witness", "gnt-instance list --no-headers -o status vm1");
    output.status.success().then(|| output.stdout.trim().to_owned())
}

/// Waits until the guest runs again, and its replicas are in sync. A guest that has crashed too often, or whose migration has
/// ended half way, needs an administrator.
fn settle(cluster: &Cluster) {
    for node in ["node01", "node02", "witness"] {
        cluster.wait_for_master(node);
    }
    cluster.wait_for_jobs("witness");
    let begun = Instant::now();
    while begun.elapsed() < RESTART
        && (cluster.homes("vm1").len() != 1 || status(cluster).as_deref() != Some("running"))
    {
        thread::sleep(Duration::from_millis(100));
    }
    cluster.wait_for_jobs("witness");
    if cluster.homes("vm1").len() != 1 || status(cluster).as_deref() != Some("running") {
        println!("settling by hand: on {:?}, {:?}", cluster.homes("vm1"), status(cluster));
        cluster.ok("witness", "gnt-instance migrate -f --cleanup vm1");
        if status(cluster).as_deref() != Some("running") {
            cluster.ok("witness", "gnt-instance startup vm1");
        }
    }
    let home = cluster.table("witness", "instance", "pnode")[0][0].clone();
    assert_eq!(cluster.homes("vm1"), [home]);
    cluster.wait_for_sync("witness");
}

/// Kills the QEMU of a node, if there is one.
fn kill_guest(cluster: &Cluster, node: &str) {
    let node = cluster.at(node);
    if node.pid_of(&Part::named("vm1")).unwrap().is_some() {
        node.kill_guest("vm1").unwrap();
    }
}
