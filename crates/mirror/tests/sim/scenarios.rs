//! Single faults, and exactly what has to come of them.

use model::{Command, MirrorMode};

use crate::guest;
use crate::log::{DISK, node_id, rid};
use crate::plan;
use crate::world::{Plan, World};

fn quiet(nodes: usize, mode: MirrorMode) -> (World, usize) {
    let mut world = World::quiet(Plan { mode, ..plan(1, nodes) });
    world.run_until("service", |world| world.guest.done() > 30);
    let owner = world.owner().expect("somebody serves");
    (world, owner)
}

fn goes_on(world: &mut World) {
    let before = world.guest.done();
    world.run_until("service", |world| world.guest.done() > before + 100);
}

/// The guest is idle, and what it wrote is flushed.
fn rest(world: &mut World) {
    world.guest.paused = true;
    world.run_until("rest", |world| world.guest.is_quiet());
    guest::flush(world);
    world.run_until("a flush", |world| world.guest.is_quiet());
}

fn heal(world: &mut World) {
    for (from, to) in world.net.cut.clone() {
        world.heal_cut(from, to);
    }
}

#[test]
fn a_short_cut_costs_a_pause_and_nothing_else() {
    let (mut world, _) = quiet(2, MirrorMode::Strict);
    let ver = world.log.mirror().ver;
    world.cut_both(0, 1);
    world.run_for(600);
    heal(&mut world);
    goes_on(&mut world);
    assert_eq!(world.log.mirror().ver, ver, "nobody was outdated");
    assert_eq!(world.copied, 0);
    world.finish();
}

#[test]
fn an_idle_disk_keeps_its_members_through_a_long_cut() {
    let (mut world, _) = quiet(2, MirrorMode::Strict);
    rest(&mut world);
    let ver = world.log.mirror().ver;
    world.cut_both(0, 1);
    world.run_for(10_000);
    assert_eq!(world.log.mirror().ver, ver);
    heal(&mut world);
    world.guest.paused = false;
    goes_on(&mut world);
    assert_eq!(world.log.mirror().ver, ver);
    world.finish();
}

#[test]
fn a_lost_member_is_outdated_and_gets_only_what_was_written_meanwhile() {
    let (mut world, owner) = quiet(2, MirrorMode::Strict);
    rest(&mut world);
    world.cut_both(0, 1);
    guest::write(&mut world, 3);
    world.run_until("the write", |world| world.guest.is_quiet());
    assert!(!world.log.mirror().is_member_on(node_id(1 - owner)));
    heal(&mut world);
    world.run_until("in sync", |world| world.log.mirror().in_sync().len() == 2);
    assert_eq!(world.copied, 4096, "one block");
    world.finish();
}

#[test]
fn a_member_that_loses_power_gets_only_what_it_may_lack() {
    let (mut world, owner) = quiet(2, MirrorMode::Strict);
    rest(&mut world);
    guest::write(&mut world, 3);
    world.run_until("the write", |world| world.guest.is_quiet());
    world.cut_power(1 - owner);
    world.run_until("it to be away", |world| !world.log.mirror().is_member_on(node_id(1 - owner)));
    world.run_until("in sync", |world| world.log.mirror().in_sync().len() == 2);
    assert_eq!(world.copied, 4096, "the block that was not flushed");
    world.finish();
}

#[test]
fn a_primary_whose_medium_fails_serves_from_the_other() {
    let (mut world, owner) = quiet(2, MirrorMode::Strict);
    world.nodes[owner].broken = true;
    goes_on(&mut world);
    assert_eq!(world.log.mirror().in_sync().into_iter().collect::<Vec<_>>(), [rid(1 - owner)]);
}

#[test]
fn a_member_whose_medium_fails_is_outdated() {
    let (mut world, owner) = quiet(3, MirrorMode::Strict);
    let broken = (owner + 1) % 3;
    world.nodes[broken].broken = true;
    goes_on(&mut world);
    assert!(!world.log.mirror().is_member_on(node_id(broken)));
    assert_eq!(world.log.mirror().in_sync().len(), 2);
}

#[test]
fn in_manual_mode_a_primary_goes_on_alone_and_says_so_afterwards() {
    let (mut world, owner) = quiet(2, MirrorMode::Manual);
    let other = 1 - owner;
    world.cut_both(0, 1);
    world.log_down = true;
    goes_on(&mut world);
    assert!(world.nodes[owner].superblock.hw.solo, "that is on the disk before anything is acknowledged");
    assert!(world.log.mirror().is_member_on(node_id(other)), "the log does not know yet");
    world.log_down = false;
    world.run_until("the record", |world| !world.log.mirror().is_member_on(node_id(other)));
    world.run_until("the superblock", |world| !world.nodes[owner].superblock.hw.solo);
    heal(&mut world);
    world.run_until("in sync", |world| world.log.mirror().in_sync().len() == 2);
    world.finish();
}

#[test]
fn where_it_is_not_to_go_on_alone_a_primary_in_manual_mode_waits_for_the_log() {
    let mut world = World::quiet(Plan { mode: MirrorMode::Manual, continue_alone: false, ..plan(1, 2) });
    world.run_until("service", |world| world.guest.done() > 30);
    let owner = world.owner().expect("somebody serves");
    rest(&mut world);
    world.cut_both(0, 1);
    world.log_down = true;
    guest::write(&mut world, 3);
    world.run_for(30_000);
    assert!(!world.guest.is_quiet(), "it is held");
    assert!(!world.nodes[owner].superblock.hw.solo);
    world.log_down = false;
    world.run_until("the write", |world| world.guest.is_quiet());
    assert!(!world.log.mirror().is_member_on(node_id(1 - owner)));
    world.finish();
}

/// The daemon that went on alone ends before the log is back: its superblock knows, and nobody else's content counts.
#[test]
fn a_primary_that_went_on_alone_still_knows_it_after_a_restart_of_its_daemon() {
    let (mut world, owner) = quiet(2, MirrorMode::Manual);
    let other = 1 - owner;
    world.cut_both(0, 1);
    world.log_down = true;
    goes_on(&mut world);
    assert!(world.nodes[owner].superblock.hw.solo);
    world.kill_daemon(owner);
    heal(&mut world);
    world.log_down = false;
    world.start_daemon(owner);
    world.run_until("the record", |world| !world.log.mirror().is_member_on(node_id(other)));
    world.run_until("in sync", |world| world.log.mirror().in_sync().len() == 2);
    world.finish();
}

#[test]
fn in_strict_mode_nothing_is_acknowledged_without_the_log() {
    let (mut world, owner) = quiet(2, MirrorMode::Strict);
    rest(&mut world);
    world.cut_both(0, 1);
    world.log_down = true;
    guest::write(&mut world, 3);
    world.run_for(30_000);
    assert!(!world.guest.is_quiet(), "it is held");
    assert!(world.log.mirror().is_member_on(node_id(1 - owner)));
    world.log_down = false;
    world.run_until("the write", |world| world.guest.is_quiet());
    world.finish();
}

#[test]
fn a_member_that_is_removed_is_not_waited_for() {
    let (mut world, owner) = quiet(3, MirrorMode::Strict);
    rest(&mut world);
    let other = (owner + 1) % 3;
    let (stays, ver) = ((owner + 2) % 3, world.log.mirror().ver);
    world.cut_both(owner, other);
    guest::write(&mut world, 3);
    world.run_for(300);
    assert!(!world.guest.is_quiet(), "it is held");
    world.log.apply(Command::RemoveReplica { disk: DISK, ver, replica: rid(other) }).expect("others stay");
    world.changed();
    world.run_until("the write", |world| world.guest.is_quiet());
    let next = model::Version { n: ver.n, v: ver.v + 1 };
    assert_eq!(world.log.mirror().ver, next, "nothing had to be proposed");
    world.guest.paused = false;
    goes_on(&mut world);
    assert_eq!(world.log.mirror().in_sync(), [rid(owner), rid(stays)].into());
}

#[test]
fn an_outdate_that_comes_after_the_removal_is_rejected_and_does_no_harm() {
    let (mut world, owner) = quiet(3, MirrorMode::Strict);
    rest(&mut world);
    let (one, two) = ((owner + 1) % 3, (owner + 2) % 3);
    world.cut_both(owner, one);
    world.cut_both(owner, two);
    world.log_down = true;
    guest::write(&mut world, 3);
    // The primary has proposed to go on without both.
    world.run_for(1_500);
    let ver = world.log.mirror().ver;
    world.log.apply(Command::RemoveReplica { disk: DISK, ver, replica: rid(one) }).expect("others stay");
    world.log_down = false;
    world.run_until("the write", |world| world.guest.is_quiet());
    assert_eq!(world.log.mirror().in_sync(), [rid(owner)].into());
    assert_eq!(world.log.mirror().replicas.len(), 2);
    heal(&mut world);
    world.run_until("in sync", |world| world.log.mirror().in_sync().len() == 2);
    world.guest.paused = false;
    goes_on(&mut world);
}
