//! Random faults, one after the other, under a guest that counts: whatever happens, it never runs twice, nothing that it
//! acknowledged is missing, and it runs again without a human once the fault is over.

use std::thread;
use std::time::{Duration, Instant};

use lab::{Cable, Cut, Part};
use model::Happening;

use crate::support::*;
use crate::vigil::{Moment, Vigil};

/// How many faults, unless `CARDUME_TEST_FAULTS` says otherwise.
const FAULTS: u32 = 6;
/// How long a fault lasts at the most: well beyond a takeover.
const LONGEST: Duration = Duration::from_secs(5);
/// How long replicas are waited for before the next fault. One that has missed its chance goes on without.
const SYNC: Duration = Duration::from_secs(15);

#[derive(Clone, Debug)]
enum Fault {
    /// The plug is pulled.
    Kill,
    /// Both cables, or one, in these directions.
    Cut(Cable, Cut),
    /// A process hangs.
    Hang(Part),
}

impl Fault {
    fn strike(&self, cluster: &Cluster, node: &str) {
        println!("    {self:?} of {node}");
        match self {
            Fault::Kill => cluster.kill(node).unwrap(),
            Fault::Cut(cable, cut) => cluster.cut(node, *cable, *cut).unwrap(),
            Fault::Hang(part) => cluster.at(node).stop_part(part).unwrap(),
        }
    }

    fn end(&self, cluster: &Cluster, node: &str) {
        match self {
            Fault::Kill => cluster.start(node).unwrap(),
            Fault::Cut(..) => cluster.heal(node).unwrap(),
            // It may have been ended because it hung.
            Fault::Hang(part) => drop(cluster.at(node).continue_part(part)),
        }
    }
}

/// The kinds of faults: each comes once before any comes again.
#[derive(Clone, Copy, Debug)]
enum Kind {
    Kill,
    Cut,
    OneWay,
    HangDaemon,
    HangGuard,
    HangGuest,
}

const KINDS: [Kind; 6] = [Kind::Kill, Kind::Cut, Kind::OneWay, Kind::HangDaemon, Kind::HangGuard, Kind::HangGuest];

/// A fault of that kind, and the node that it strikes: the guest's own as often as all others together.
fn random(dice: &mut Random, kind: Kind, home: &str) -> (String, Fault) {
    let nodes = [home, home, home, "node01", "node02", "witness"];
    let node = nodes[dice.below(nodes.len())].to_owned();
    let cables = [Cable::Both, Cable::Both, Cable::Public, Cable::Replication];
    let cable = cables[dice.below(cables.len())];
    match kind {
        Kind::Kill => (node, Fault::Kill),
        Kind::Cut => (node, Fault::Cut(cable, Cut::Both)),
        Kind::OneWay => (node, Fault::Cut(cable, [Cut::Out, Cut::In][dice.below(2)])),
        Kind::HangDaemon => (node, Fault::Hang(Part::Daemon)),
        Kind::HangGuard => (node, Fault::Hang(Part::Guard)),
        Kind::HangGuest => (home.to_owned(), Fault::Hang(Part::Guest("vm1".to_owned()))),
    }
}

#[test]
fn after_random_faults_the_guest_runs_once_with_all_that_it_acknowledged() {
    let faults =
        std::env::var("CARDUME_TEST_FAULTS").map_or(FAULTS, |count| count.parse().expect("a number of faults"));
    let mut dice = Random::seeded();
    let cluster = formed_for_failover(2, true);
    let mut vigil = Vigil::over_new_guest(&cluster, "node01");
    let mut takeovers = 0;
    let mut kinds = Vec::new();
    for number in 1..=faults {
        let home = vigil.home().expect("it runs");
        if kinds.is_empty() {
            kinds = KINDS.to_vec();
        }
        let kind = kinds.remove(dice.below(kinds.len()));
        let (node, fault) = random(&mut dice, kind, &home);
        let lasts = LONGEST.mul_f64(dice.next());
        println!("--- fault {number} of {faults}, vm1 on {home}, for {lasts:?}");
        let struck = Moment::now();
        fault.strike(&cluster, &node);
        // For that long it is to last; nothing is waited for.
        thread::sleep(lasts);
        fault.end(&cluster, &node);

        // Everything is to come right without a human, and the guest is to have lost nothing.
        for name in ["node01", "node02", "witness"] {
            cluster.wait_for_master(name);
        }
        eventually("the guest runs on one node", || {
            vigil.home().is_some()
                && cluster.homes("vm1").len() == 1
                && cluster.run("witness", "gnt-instance list --no-headers -o status vm1").stdout.trim() == "running"
        });
        vigil.is_sound();
        let now = vigil.home().expect("it runs");
        if now != home {
            takeovers += 1;
            vigil.takeover_is_explained(&home, &now, struck);
        } else if vigil.runs.so_far().first("vm1", &now, true, struck.at).is_some_and(|_| has_booted(&vigil, struck)) {
            let why = |what: &Happening| matches!(what, Happening::TakenOver { .. } | Happening::Crashed { .. });
            println!("    {}", vigil.told("witness", "vm1", struck, why).text);
        }
        let patience = Instant::now() + SYNC;
        while Instant::now() < patience && !cluster.is_in_sync("witness") {
            thread::sleep(Duration::from_millis(100));
        }
    }
    println!("{faults} faults, {takeovers} takeovers");
    cluster.wait_for_sync("witness");
    vigil.is_sound();
    drop(vigil);
    cluster.stop_and_compare("witness", "vm1");
    cluster.assert_whole("witness");
}

/// Whether another process of the guest began to run after that moment: not one that was only stopped for a while.
fn has_booted(vigil: &Vigil<'_>, since: Moment) -> bool {
    let seen = vigil.runs.so_far();
    let is_new =
        |pid: i32| seen.changes.iter().find(|change| change.pid == pid).is_some_and(|first| first.at >= since.at);
    seen.changes.iter().any(|change| change.running && change.at >= since.at && is_new(change.pid))
}
