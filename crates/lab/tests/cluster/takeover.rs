//! Automatic failover: a node dies or is cut off, and its guests run elsewhere, once, with everything that they had
//! acknowledged; a guest crashes and is restarted. `cardume why` tells each time what was decided and on which evidence.

use lab::{Cable, Cut, Part};
use model::Happening;

use crate::support::*;
use crate::vigil::{Moment, Vigil, other};

/// Waits until a node is back in the cluster with all of its replicas, and without guests that are not its any more.
#[track_caller]
fn is_back(cluster: &Cluster, node: &str) {
    cluster.wait_for_master(node);
    cluster.wait_for_sync(node);
    eventually("no guest is left that is another node's", || cluster.homes("vm1").len() == 1);
}

#[test]
fn the_guest_of_a_node_that_dies_runs_elsewhere_and_the_node_comes_back_as_a_follower() {
    let cluster = formed_for_failover(2, true);
    let mut vigil = Vigil::over_new_guest(&cluster, "node02");
    assert_eq!(cluster.master("witness"), "node01");

    // First a node that is not the master; then the one with the guest is the master too.
    for (home, survivor) in [("node02", "node01"), ("node01", "node02")] {
        let died = Moment::now();
        cluster.kill(home).unwrap();
        vigil.moved(survivor, died);
        assert_eq!(cluster.master("witness"), survivor);
        vigil.takeover_is_explained(home, survivor, died);
        assert_eq!(cluster.status_of(survivor, "vm1").as_deref(), Some("running"));
        vigil.is_sound();

        let started = Moment::now();
        cluster.start(home).unwrap();
        is_back(&cluster, home);
        assert_eq!(cluster.master(home), survivor);
        let joined =
            vigil.told(home, home, started, |what| matches!(what, Happening::NodeJoined { was_dead: true, .. }));
        assert!(joined.text.contains(home), "{}", joined.text);
        vigil.answers();
        let seen = vigil.runs.so_far();
        assert_eq!(seen.changes.iter().find(|change| change.running && change.at >= started.at), None);
    }
    vigil.is_sound();
    drop(vigil);
    cluster.stop_and_compare("witness", "vm1");
    cluster.assert_whole("witness");
}

#[test]
fn a_guest_that_is_cut_off_is_stopped_before_it_runs_elsewhere() {
    let cluster = formed_for_failover(2, true);
    let mut vigil = Vigil::over_new_guest(&cluster, "node02");

    // A node that is not the master; the master; and one whose daemon hangs besides.
    for hung in [false, false, true] {
        let home = vigil.home().expect("it runs");
        let survivor = other(&home);
        let cut = Moment::now();
        if hung {
            cluster.at(&home).stop_part(&Part::Daemon).unwrap();
        }
        cluster.cut(&home, Cable::Both, Cut::Both).unwrap();
        let ran = vigil.moved(survivor, cut);
        let stopped = vigil.runs.so_far().first("vm1", &home, false, cut.at).expect("it was stopped") - cut.at;
        println!("on {home}, hung: {hung}: stopped after {stopped:?}");
        assert!(stopped < ran, "it ran on {survivor} after {ran:?}, and was stopped on {home} after {stopped:?}");
        assert_eq!(cluster.master("witness"), survivor);
        vigil.takeover_is_explained(&home, survivor, cut);
        cluster.refused(&home, "gnt-instance list", 1, &[]);

        cluster.heal(&home).unwrap();
        is_back(&cluster, &home);
        assert_eq!(cluster.master(&home), survivor);
        vigil.is_sound();
    }
    replication_alone(&cluster, &mut vigil);
    drop(vigil);
    cluster.stop_and_compare("witness", "vm1");
    cluster.assert_whole("witness");
}

/// Where only the replication network is cut nothing moves: the peer is outdated, and gets what it missed.
fn replication_alone(cluster: &Cluster, vigil: &mut Vigil<'_>) {
    let home = vigil.home().expect("it runs");
    let cut = Moment::now();
    cluster.cut(&home, Cable::Replication, Cut::Both).unwrap();
    eventually("the peer is outdated", || {
        cluster.disk_reports("witness").is_some_and(|disks| disks.iter().all(|disk| disk.in_sync == [home.as_str()]))
    });
    vigil.answers();
    let told = vigil.told("witness", "vm1", cut, |what| matches!(what, Happening::Outdated { .. }));
    assert!(told.text.contains(other(&home)), "{}", told.text);
    cluster.heal(&home).unwrap();
    cluster.wait_for_sync("witness");
    vigil.told("witness", "vm1", cut, |what| matches!(what, Happening::InSync { .. }));
    let moved = vigil.runs.so_far().changes.into_iter().find(|change| change.running && change.at >= cut.at);
    assert_eq!(moved, None);
    vigil.is_sound();
}

#[test]
fn a_guest_that_crashes_is_restarted_and_moved_when_it_crashes_again_and_again() {
    let cluster = formed_for_failover(2, true);
    let mut vigil = Vigil::over_new_guest(&cluster, "node01");
    for home in ["node01", "node01", "node02"] {
        let before = vigil.home().expect("it runs");
        let crashed = Moment::now();
        cluster.at(&before).kill_guest("vm1").unwrap();
        vigil.moved(home, crashed);
        let told = vigil.told("witness", "vm1", crashed, |what| matches!(what, Happening::Crashed { .. }));
        assert!(told.text.contains(&before), "{}", told.text);
        println!("{}", told.text);
        cluster.wait_for_jobs("witness");
        vigil.is_sound();
    }
    // A guest that is told to end is none that crashes.
    let ended = Moment::now();
    cluster.ok("witness", "gnt-instance shutdown --timeout=0 vm1");
    cluster.wait_for_jobs("witness");
    let seen = vigil.runs.so_far();
    assert_eq!(seen.changes.iter().find(|change| change.running && change.at >= ended.at), None);
    assert_eq!(cluster.status_of("witness", "vm1").as_deref(), Some("ADMIN_down"));
    drop(vigil);
    cluster.assert_whole("witness");
}
