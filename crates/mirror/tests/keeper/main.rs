//! Replicas of real nodes: real files, TLS over loopback, NBD, and a log; kept equal through restarts, losses, planned
//! failovers and handovers.
//!
//! `MIRROR_SEED=n` repeats the choices of a run; times are the machine's own.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the shell around the engine has clocks and threads"
)]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "helpers of tests are tests too")]

mod guest;
mod lab;

use std::process::Stdio;
use std::sync::Arc;

use bytes::Bytes;
use guest::{Guest, Rng, same};
use lab::{Lab, PATIENCE, TestDisk, identity, patient};
use mirror::device::{Device, IoRefusal};
use mirror::engine::Config;
use mirror::keeper::{Connection, DiskState, Export, KeeperError, NewReplica, Role};
use mirror::wire::Frame;
use model::{Applied, Command, DiskId, Evidence, MirrorMode, NodeId, ReplicaId, RunId, State, Uuid, Version};
use rpc::ClusterCa;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};

/// Runs `qemu-io` commands on an export.
async fn qemu_io(export: &Export, commands: &[&str]) -> String {
    let uri = format!("nbd+unix:///{}?socket={}", export.name, export.socket.display());
    let mut qemu = tokio::process::Command::new("qemu-io");
    qemu.arg("-f").arg("raw").arg(uri).stdin(Stdio::null()).kill_on_drop(true);
    for command in commands {
        qemu.arg("-c").arg(command);
    }
    let output = tokio::time::timeout(PATIENCE, qemu.output()).await.expect("qemu-io hangs").unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !text.contains("failed"), "{text}");
    text
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_disk_is_in_sync_and_what_a_hypervisor_writes_is_on_both_nodes() {
    let lab = Lab::new(2, patient()).await;
    let disk = lab.add_disk(&[1, 2], 16).await;
    let (run, export) = lab.own(&disk, 1).await;
    assert_eq!(export.name, format!("{}-{run}", disk.disk));

    qemu_io(&export, &["write -P 0xa5 1M 64k", "write -P 0x5a 3584 1024", "flush", "read -P 0xa5 1M 64k"]).await;
    let (one, two) = (lab.content(1, &disk), lab.content(2, &disk));
    same(&one, &two, 0);
    assert!(one[1 << 20..(1 << 20) + 65536].iter().all(|byte| *byte == 0xa5));
    assert!(one[3584..4608].iter().all(|byte| *byte == 0x5a) && one[4608] == 0);

    let status = lab.status(1, &disk).await;
    assert_eq!((status.role, status.state), (Role::Primary, DiskState::UpToDate));
    let peer = &status.peers[0];
    assert_eq!((peer.connection, peer.role, peer.disk), (Connection::Connected, Role::Secondary, DiskState::UpToDate));
    let status = lab.status(2, &disk).await;
    assert_eq!((status.role, status.state), (Role::Secondary, DiskState::UpToDate));
    assert_eq!((status.peers[0].connection, status.peers[0].role), (Connection::Connected, Role::Primary));
    assert!(status.counters.written >= 65536 + 1024);
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strict_disk_is_read_only_with_a_lease_and_written_without() {
    let lab = Lab::new(2, patient()).await;
    let disk = lab.add_disk(&[1, 2], 16).await;
    assert_eq!(disk.mirror(&lab.log.state()).mode, MirrorMode::Strict);
    let (run, _) = lab.own(&disk, 1).await;
    let device = lab.keeper(1).device(disk.disk, run).unwrap();
    device.write(0, Bytes::from_static(&[7; 4096]), false).await.unwrap();

    lab.lease(1, false);
    let mut read = device.read(0, 4096);
    // What the engine has decided about the read is known when a later request was answered.
    tokio::select! {
        biased;
        _ = &mut read => panic!("read without a lease"),
        written = device.write(4096, Bytes::from_static(&[8; 4096]), false) => written.unwrap(),
    }
    assert!(futures::poll!(&mut read).is_pending());
    lab.lease(1, true);
    assert_eq!(tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap(), [7; 4096][..]);
    lab.end().await;
}

/// Nobody could take its guest over, so that the node goes on with it when it is back.
#[tokio::test(flavor = "multi_thread")]
async fn a_hypervisor_whose_node_was_declared_dead_is_answered_in_the_nodes_next_life() {
    let lab = Lab::new(2, patient()).await;
    let disk = lab.add_disk(&[1, 2], 16).await;
    let (run, export) = lab.own(&disk, 2).await;

    // A write that waits for the other node, and for the log.
    lab.cut_log(2, true);
    lab.kill(1).await;
    let server = format!("server.type=unix,server.path={}", export.socket.display());
    let image = format!("driver=nbd,{server},export={},reconnect-delay=600", export.name);
    let mut qemu = tokio::process::Command::new("qemu-io");
    qemu.arg("--image-opts").arg(image).args(["-c", "write -P 0xa5 1M 64k"]).stdin(Stdio::null()).kill_on_drop(true);
    let written = tokio::spawn(async move { qemu.output().await.unwrap() });
    lab.unanswered(2, 1).await;

    let (node, state) = (NodeId(2), lab.log.state());
    let (previous, boot) = (state.nodes[&node].life, state.nodes[&node].boot.clone());
    lab.log.run(vec![Command::NodeDead { node, life: previous, evidence: Evidence::AssertedOff }]);
    lab.log.run(vec![Command::JoinNode { node, boot, previous, runs: vec![run] }]);
    lab.cut_log(2, false);
    lab.start(1).await;

    let output = tokio::time::timeout(PATIENCE, written).await.expect("the write is never answered").unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    lab.in_sync(&disk).await;
    assert!(lab.content(2, &disk)[1 << 20..(1 << 20) + 65536].iter().all(|byte| *byte == 0xa5));
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_was_told_to_be_strict_is_so_whatever_the_log_says() {
    let lab = Lab::new(2, patient()).await;
    let disk = lab.add_disk(&[1, 2], 16).await;
    lab.log.run(vec![Command::Disarm { node: NodeId(2) }]);
    assert_eq!(disk.mirror(&lab.log.state()).mode, MirrorMode::Manual);
    let (run, _) = lab.own(&disk, 1).await;
    let device = lab.keeper(1).device(disk.disk, run).unwrap();
    lab.lease(1, false);
    tokio::time::timeout(PATIENCE, device.read(0, 4096)).await.unwrap().unwrap();

    for node in [1, 2] {
        lab.strict(node, true);
        lab.keeper(node).all_strict(PATIENCE).await.unwrap();
    }
    let mut read = device.read(0, 4096);
    tokio::select! {
        biased;
        _ = &mut read => panic!("read without a lease"),
        written = device.write(4096, Bytes::from_static(&[8; 4096]), false) => written.unwrap(),
    }
    assert!(futures::poll!(&mut read).is_pending());
    // It is stored: a daemon that is started anew knows it before it has heard anything.
    lab.kill(2).await;
    lab.start(2).await;
    lab.in_sync(&disk).await;
    lab.keeper(2).all_strict(PATIENCE).await.unwrap();

    lab.strict(1, false);
    tokio::time::timeout(PATIENCE, read).await.unwrap().unwrap();
    lab.end().await;
}

/// A disk in use on node 1, its copy on node 2, and a guest that works on it.
async fn busy(lab: &Lab, rng: &mut Rng) -> (TestDisk, RunId, Guest) {
    let disk = lab.add_disk(&[1, 2], 16).await;
    let (run, _) = lab.own(&disk, 1).await;
    let guest = Guest::new(rng);
    guest.attach(lab.keeper(1).device(disk.disk, run).unwrap());
    guest.gets_on(50).await;
    (disk, run, guest)
}

/// Pauses the guest and compares what it should see, what it sees, and what every replica holds.
async fn compare(lab: &Lab, disk: &TestDisk, guest: &mut Guest, device: &Arc<dyn Device>, nodes: &[usize]) {
    guest.pause().await;
    guest.verify(device).await;
    for node in nodes {
        let content = lab.content(*node, disk);
        let expected = guest.expected();
        same(&content[..expected.len()], &expected, 0);
        assert!(content[expected.len()..].iter().all(|byte| *byte == 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_comes_back_and_nothing_acknowledged_is_lost() {
    let mut rng = Rng::new("killed");
    let lab = Lab::new(2, patient()).await;
    let (disk, run, mut guest) = busy(&lab, &mut rng).await;

    for _ in 0..3 {
        lab.kill(1).await;
        lab.start(1).await;
        // The run is the same: its hypervisor connects again. The keeper has promoted itself.
        lab.serving(&disk, 1, run).await;
        guest.attach(lab.keeper(1).device(disk.disk, run).unwrap());
        guest.gets_on(50).await;
    }
    for _ in 0..3 {
        // The primary waits for what this node has not answered, and it is a member all the time.
        let ver = disk.mirror(&lab.log.state()).ver;
        lab.kill(2).await;
        lab.start(2).await;
        guest.gets_on(50).await;
        lab.in_sync(&disk).await;
        assert_eq!(disk.mirror(&lab.log.state()).ver, ver, "it was back in time, so nobody had to be outdated");
    }
    let device = lab.keeper(1).device(disk.disk, run).unwrap();
    compare(&lab, &disk, &mut guest, &device, &[1, 2]).await;
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_its_peer_the_primary_goes_on_and_only_what_it_wrote_meanwhile_is_copied() {
    let mut rng = Rng::new("away");
    let lab = Lab::new(2, Config { t_out_strict_ms: 200, ..patient() }).await;
    let disk = lab.add_disk(&[1, 2], 64).await;
    let (run, _) = lab.own(&disk, 1).await;
    let device = lab.keeper(1).device(disk.disk, run).unwrap();
    for mib in 32..64 {
        device.write(mib << 20, Bytes::from(vec![mib as u8; 1 << 20]), false).await.unwrap();
    }
    device.flush().await.unwrap();
    let mut guest = Guest::new(&mut rng);
    guest.attach(device.clone());
    guest.gets_on(20).await;

    // It can be left in good order, or its daemon can die.
    for in_order in [true, false] {
        match in_order {
            true => lab.stop(2).await,
            false => lab.kill(2).await,
        }
        lab.log.until("the peer is outdated", |state| disk.members(state) == 1).await;
        guest.gets_on(50).await;
        guest.pause().await;
        let peer = lab.status(1, &disk).await.peers.remove(0);
        assert_eq!((peer.connection, peer.disk), (Connection::WFConnection, DiskState::Outdated));
        assert!(peer.out_of_sync > 0 && peer.out_of_sync < 16 << 20, "{} bytes", peer.out_of_sync);

        lab.start(2).await;
        lab.in_sync(&disk).await;
        // What was under way as it was lost counts besides.
        let copied = lab.status(2, &disk).await.counters.written;
        assert!(copied < peer.out_of_sync + (1 << 20), "{copied} bytes copied for {}", peer.out_of_sync);
        compare_all(&lab, &disk, &mut guest, &device).await;
        guest.resume(&mut rng);
        guest.gets_on(50).await;
    }
    guest.pause().await;
    lab.end().await;
}

/// As `compare`, for a disk of which the guest knows only the beginning.
async fn compare_all(lab: &Lab, disk: &TestDisk, guest: &mut Guest, device: &Arc<dyn Device>) {
    guest.verify(device).await;
    same(&lab.content(1, disk), &lab.content(2, disk), 0);
    assert!(lab.content(2, disk)[63 << 20..].iter().all(|byte| *byte == 63));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_boot_of_the_secondary_is_outdated_and_brought_in_sync_again() {
    let mut rng = Rng::new("boot");
    let lab = Lab::new(2, Config { t_out_strict_ms: 200, ..patient() }).await;
    let (disk, run, mut guest) = busy(&lab, &mut rng).await;
    lab.kill(2).await;
    lab.boot(2).await;
    let outdated = |state: &State| disk.mirror(state).replicas[&disk.replica(2)].left > Version { n: 1, v: 0 };
    lab.log.until("the replica that lost its kernel is outdated", outdated).await;
    lab.in_sync(&disk).await;
    guest.gets_on(50).await;
    let device = lab.keeper(1).device(disk.disk, run).unwrap();
    compare(&lab, &disk, &mut guest, &device, &[1, 2]).await;
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn planned_failovers_back_and_forth_under_load() {
    let mut rng = Rng::new("failover");
    let lab = Lab::new(2, patient()).await;
    let (disk, mut run, mut guest) = busy(&lab, &mut rng).await;
    let (mut here, mut there) = (1, 2);
    for round in 0..100 {
        guest.gets_on(5).await;
        guest.pause().await;
        guest.detach();
        lab.disown(&disk, here, run).await;
        (run, _) = lab.own(&disk, there).await;
        (here, there) = (there, here);
        let device = lab.keeper(here).device(disk.disk, run).unwrap();
        // The guest's own reads check it as well, but not everything.
        if round % 10 == 0 {
            guest.verify(&device).await;
        }
        guest.attach(device);
        guest.resume(&mut rng);
    }
    assert_eq!(disk.members(&lab.log.state()), 2);
    let device = lab.keeper(here).device(disk.disk, run).unwrap();
    compare(&lab, &disk, &mut guest, &device, &[1, 2]).await;
    lab.end().await;
}

/// Prepares a migration and the destination's export.
async fn prepare(lab: &Lab, disk: &TestDisk, to: usize) -> (Uuid, RunId, Export) {
    let migration = Uuid::new_v4();
    let command = Command::Prepare { instance: disk.instance, migration, to: NodeId(to as u64) };
    let [Applied::Run(run)] = lab.log.run(vec![command])[..] else { panic!("no run") };
    let export = lab.keeper(to).standby(disk.disk, run).await.unwrap();
    (migration, run, export)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handover_moves_the_right_to_write_and_nothing_else() {
    let mut rng = Rng::new("handover");
    let lab = Lab::new(2, patient()).await;
    let (disk, mut run, mut guest) = busy(&lab, &mut rng).await;
    let (mut here, mut there) = (1, 2);
    for _ in 0..6 {
        guest.gets_on(20).await;
        let (migration, next, export) = prepare(&lab, &disk, there).await;
        // An incoming hypervisor probes, and flushes; what it writes waits.
        qemu_io(&export, &["read 0 512", "flush"]).await;
        let coming = lab.keeper(there).device(disk.disk, next).unwrap();
        let marked = Bytes::from(vec![0xee; 4096]);
        let early = tokio::spawn({
            let (coming, marked) = (coming.clone(), marked.clone());
            async move { coming.write(12 << 20, marked, false).await }
        });

        guest.pause().await;
        guest.detach();
        let (epoch, _) = lab.keeper(here).quiesce(disk.disk, migration, PATIENCE).await.unwrap();
        assert_eq!(epoch, disk.mirror(&lab.log.state()).epoch);
        assert!(!early.is_finished());
        same(&lab.content(here, &disk), &lab.content(there, &disk), 0);

        lab.log.run(vec![Command::Handover { migration }]);
        lab.serving(&disk, there, next).await;
        early.await.unwrap().unwrap();
        coming.write_zeroes(12 << 20, 4096, false, true).await.unwrap();
        guest.verify(&coming).await;

        // The source's run is over: what its hypervisor still asks has no effect, and then no answer but a refusal.
        let old = lab.keeper(here).device(disk.disk, run).unwrap();
        let late = tokio::spawn(async move { old.write(0, marked, false).await });
        lab.keeper(here).end_run(disk.disk, run).await;
        assert_eq!(late.await.unwrap(), Err(IoRefusal::Closing));
        assert!(lab.keeper(here).resume(disk.disk, migration).await.is_err(), "it was handed over");

        guest.attach(coming);
        guest.resume(&mut rng);
        (run, here, there) = (next, there, here);
    }
    let device = lab.keeper(here).device(disk.disk, run).unwrap();
    compare(&lab, &disk, &mut guest, &device, &[1, 2]).await;
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cancelled_migration_goes_on_at_the_source_also_after_a_restart_of_its_daemon() {
    let mut rng = Rng::new("cancel");
    let lab = Lab::new(2, patient()).await;
    let (disk, run, mut guest) = busy(&lab, &mut rng).await;
    for restart in [false, true] {
        let (migration, next, _) = prepare(&lab, &disk, 2).await;
        lab.keeper(1).quiesce(disk.disk, migration, PATIENCE).await.unwrap();
        if restart {
            lab.kill(1).await;
            lab.start(1).await;
            // It remembers, and promotes itself without admitting the run.
            lab.keeper(1).quiesce(disk.disk, migration, PATIENCE).await.unwrap();
        }
        let held = guest.answered();
        assert!(lab.keeper(1).resume(disk.disk, migration).await.is_err(), "it is not decided yet");
        lab.log.run(vec![Command::Cancel { migration }]);
        lab.keeper(2).end_run(disk.disk, next).await;
        lab.keeper(1).resume(disk.disk, migration).await.unwrap();
        lab.serving(&disk, 1, run).await;
        // An order that comes late would close the disk for good.
        assert!(lab.keeper(1).quiesce(disk.disk, migration, PATIENCE).await.is_err(), "it was cancelled");
        guest.attach(lab.keeper(1).device(disk.disk, run).unwrap());
        guest.gets_on(50).await;
        assert!(guest.answered() >= held + 50);
    }
    let device = lab.keeper(1).device(disk.disk, run).unwrap();
    compare(&lab, &disk, &mut guest, &device, &[1, 2]).await;
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hypervisor_that_is_connected_does_not_notice_a_restart_of_the_daemon() {
    let lab = Lab::new(2, patient()).await;
    let disk = lab.add_disk(&[1, 2], 16).await;
    let (run, export) = lab.own(&disk, 1).await;
    let json = format!(
        r#"json:{{"driver":"raw","file":{{"driver":"nbd","server":{{"type":"unix","path":"{}"}},"export":"{}","reconnect-delay":60}}}}"#,
        export.socket.display(),
        export.name
    );
    let mut qemu = tokio::process::Command::new("qemu-io")
        .arg(&json)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let (mut say, out) = (qemu.stdin.take().unwrap(), qemu.stdout.take().unwrap());
    let mut lines = BufReader::new(out).lines();
    let mut write = async |command: &str| {
        say.write_all(command.as_bytes()).await.unwrap();
        loop {
            let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("qemu-io hangs").unwrap();
            let line = line.expect("qemu-io ended");
            assert!(!line.contains("failed") && !line.contains("error"), "{line}");
            if line.contains("wrote 65536/65536") {
                return;
            }
        }
    };
    write("write -P 1 0 64k\n").await;
    lab.kill(1).await;
    lab.start(1).await;
    write("write -P 2 64k 64k\n").await;
    lab.stop(1).await;
    lab.start(1).await;
    write("write -P 3 128k 64k\n").await;
    drop(say);
    assert!(tokio::time::timeout(PATIENCE, qemu.wait()).await.expect("qemu-io hangs").unwrap().success());
    lab.serving(&disk, 1, run).await;
    for node in [1, 2] {
        let content = lab.content(node, &disk);
        for (number, piece) in content[..3 << 16].chunks(1 << 16).enumerate() {
            assert!(piece.iter().all(|byte| usize::from(*byte) == number + 1), "node {node}, piece {number}");
        }
    }
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_the_wrong_certificate_is_no_peer() {
    let lab = Lab::new(3, Config { t_out_strict_ms: 200, ..patient() }).await;
    let disk = lab.add_disk(&[1, 2], 16).await;
    lab.stop(2).await;

    // Node 3, at node 2's address and with its files: the primary does not talk to it.
    let imposter = identity(&lab.ca, lab.cluster, 3);
    lab.start_as(2, Arc::new(imposter)).await;
    let (run, _) = lab.own(&disk, 1).await;
    assert_eq!(disk.members(&lab.log.state()), 1, "it was outdated as one that is not there");
    let device = lab.keeper(1).device(disk.disk, run).unwrap();
    device.write(0, Bytes::from(vec![7; 4096]), true).await.unwrap();
    assert!(lab.content(2, &disk)[..4096].iter().all(|byte| *byte == 0));
    lab.stop(2).await;

    // Node 3 as itself, and a node of another cluster with the right number, say Hello as node 1's replica.
    lab.start(2).await;
    lab.in_sync(&disk).await;
    let stranger = ClusterCa::generate("other").unwrap();
    for who in [identity(&lab.ca, lab.cluster, 3), identity(&stranger, lab.cluster, 1)] {
        let answer = tokio::time::timeout(PATIENCE, lab.say_hello(&disk, 1, 2, &who)).await.expect("it hangs");
        assert!(answer.is_none(), "{answer:?}");
    }
    // And the one that it is: this is why the others got no answer.
    let answer = tokio::time::timeout(PATIENCE, lab.say_hello(&disk, 1, 2, &identity(&lab.ca, lab.cluster, 1))).await;
    assert!(matches!(answer.expect("it hangs"), Some(Frame::State(_))));
    // It said that it was a later link, so the real primary is refused until nobody knows of that any more.
    lab.kill(2).await;
    lab.start(2).await;
    device.write(4096, Bytes::from(vec![8; 4096]), true).await.unwrap();
    lab.in_sync(&disk).await;
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_made_once_or_not_at_all_and_removed_once() {
    let lab = Lab::new(2, patient()).await;
    let disk = lab.add_disk(&[1, 2], 16).await;
    let keeper = lab.keeper(1);
    let incarnation = lab.log.state().incarnation;
    let new = |size| NewReplica {
        disk: DiskId(Uuid::new_v4()),
        replica: ReplicaId(Uuid::new_v4()),
        size,
        incarnation,
        mode: MirrorMode::Strict,
        born_in_sync: true,
    };
    let huge = new(1 << 60);
    let error = keeper.create(huge).await.unwrap_err();
    assert!(matches!(error, KeeperError::NoSpace { .. }), "{error}");
    assert!(!lab.folder(1).join(huge.disk.to_string()).exists());

    let (run, _) = lab.own(&disk, 1).await;
    let again = NewReplica { disk: disk.disk, replica: disk.replica(1), ..new(16 << 20) };
    let device = keeper.device(disk.disk, run).unwrap();
    device.write(0, Bytes::from(vec![7; 4096]), true).await.unwrap();
    keeper.create(again).await.unwrap();
    assert!(lab.content(1, &disk)[..4096].iter().all(|byte| *byte == 7), "what is there is left alone");

    lab.disown(&disk, 1, run).await;
    for node in [1, 2] {
        for _ in 0..2 {
            lab.keeper(node).remove(disk.disk, disk.replica(node)).await.unwrap();
        }
        assert!(!lab.folder(node).join(disk.disk.to_string()).exists());
    }
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_cannot_be_opened_leaves_the_others_alone() {
    let lab = Lab::new(2, Config { t_out_strict_ms: 200, ..patient() }).await;
    let (damaged, sound) = (lab.add_disk(&[1, 2], 16).await, lab.add_disk(&[2, 1], 16).await);
    let (run, _) = lab.own(&damaged, 1).await;
    lab.stop(2).await;
    std::fs::write(lab.data(2, &damaged).with_extension("meta"), [0; 8192]).unwrap();
    lab.start(2).await;
    lab.keeper(1).device(damaged.disk, run).unwrap().write(0, Bytes::from(vec![1; 512]), true).await.unwrap();
    let (run, _) = lab.own(&sound, 2).await;
    lab.keeper(2).device(sound.disk, run).unwrap().flush().await.unwrap();
    lab.log.until("the damaged replica is outdated", |state| damaged.members(state) == 1).await;
    let status = lab.status(2, &damaged).await;
    assert_eq!(status.state, DiskState::Diskless);
    assert!(status.failed.unwrap().contains("superblock"));
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_grows_while_it_is_in_use() {
    let mut rng = Rng::new("grow");
    let lab = Lab::new(2, patient()).await;
    let (disk, run, mut guest) = busy(&lab, &mut rng).await;
    for node in [1, 2] {
        lab.keeper(node).grow(disk.disk, 32 << 20).await.unwrap();
    }
    let ver = disk.mirror(&lab.log.state()).ver;
    lab.log.run(vec![Command::Grow { disk: disk.disk, ver, size_mib: 32 }]);
    let device = lab.keeper(1).device(disk.disk, run).unwrap();
    assert_eq!(device.size(), 32 << 20);
    device.write(31 << 20, Bytes::from(vec![9; 1 << 20]), true).await.unwrap();
    guest.gets_on(20).await;
    guest.pause().await;
    guest.verify(&device).await;
    same(&lab.content(1, &disk), &lab.content(2, &disk), 0);
    assert!(lab.content(2, &disk)[31 << 20..].iter().all(|byte| *byte == 9));
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_is_replaced_by_an_empty_one_on_another_node_while_the_disk_is_in_use() {
    let mut rng = Rng::new("replaced");
    // Nobody is outdated by the clock.
    let lab = Lab::new(3, Config { t_out_strict_ms: 600_000, ..patient() }).await;
    let (mut disk, run, mut guest) = busy(&lab, &mut rng).await;
    // The guest waits for the one that is lost, until it is removed although it is in sync.
    lab.kill(2).await;
    let old = disk.replicas.pop().unwrap().1;
    let ver = disk.mirror(&lab.log.state()).ver;
    lab.log.run(vec![Command::RemoveReplica { disk: disk.disk, ver, replica: old }]);
    guest.gets_on(50).await;

    let replica = ReplicaId(Uuid::new_v4());
    let state = lab.log.state();
    let new = NewReplica {
        disk: disk.disk,
        replica,
        size: 16 << 20,
        incarnation: state.incarnation,
        mode: MirrorMode::Strict,
        born_in_sync: false,
    };
    lab.keeper(3).create(new).await.unwrap();
    let ver = disk.mirror(&state).ver;
    lab.log.run(vec![Command::AddReplica { disk: disk.disk, ver, replica, node: NodeId(3), slot: 1 }]);
    disk.replicas.push((3, replica));
    lab.in_sync(&disk).await;
    guest.gets_on(50).await;
    let device = lab.keeper(1).device(disk.disk, run).unwrap();
    compare(&lab, &disk, &mut guest, &device, &[1, 3]).await;

    // The node that was lost has nothing to open any more, and can take its files away.
    lab.start(2).await;
    lab.keeper(2).remove(disk.disk, old).await.unwrap();
    assert!(lab.keeper(2).status().await.is_empty());
    assert!(!lab.folder(2).join(disk.disk.to_string()).exists());

    // What is on both is the same, and is not looked at while somebody writes.
    assert!(matches!(lab.keeper(1).digests(disk.disk, 1 << 20).await, Err(KeeperError::Served { .. })));
    lab.disown(&disk, 1, run).await;
    let (one, three) = (lab.keeper(1), lab.keeper(3));
    let digests = one.digests(disk.disk, 5 << 20).await.unwrap();
    assert_eq!(digests.len(), 4, "the last is of less");
    assert_eq!(digests, three.digests(disk.disk, 5 << 20).await.unwrap());
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn three_replicas_through_random_restarts() {
    let mut rng = Rng::new("restarts");
    let lab = Lab::new(3, Config { t_out_strict_ms: 150, t_flap_ms: 0, ..patient() }).await;
    let disk = lab.add_disk(&[1, 2, 3], 16).await;
    let (mut run, _) = lab.own(&disk, 1).await;
    let mut here = 1;
    let mut guest = Guest::new(&mut rng);
    guest.attach(lab.keeper(1).device(disk.disk, run).unwrap());
    for step in 0..12 {
        guest.gets_on(1 + rng.below(40)).await;
        let node = 1 + rng.below(3) as usize;
        let what = rng.below(6);
        println!("step {step}: {what} on node {node}, served by {here}");
        match what {
            0..3 => {
                lab.kill(node).await;
                if rng.below(2) == 0 && node != here {
                    lab.log.until("it is outdated", |state| !disk.mirror(state).is_member(disk.replica(node))).await;
                }
                lab.start(node).await;
            }
            3 => {
                lab.stop(node).await;
                lab.start(node).await;
            }
            4 if node != here => {
                lab.kill(node).await;
                lab.boot(node).await;
            }
            _ => {
                guest.pause().await;
                guest.detach();
                lab.in_sync(&disk).await;
                lab.disown(&disk, here, run).await;
                here = node;
                (run, _) = lab.own(&disk, here).await;
                guest.resume(&mut rng);
            }
        }
        lab.serving(&disk, here, run).await;
        guest.attach(lab.keeper(here).device(disk.disk, run).unwrap());
    }
    lab.in_sync(&disk).await;
    let device = lab.keeper(here).device(disk.disk, run).unwrap();
    compare(&lab, &disk, &mut guest, &device, &[1, 2, 3]).await;
    lab.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_peer_and_log_a_strict_primary_acknowledges_nothing() {
    let lab = Lab::new(2, Config { t_out_strict_ms: 200, ..patient() }).await;
    let disk = lab.add_disk(&[1, 2], 16).await;
    let (run, _) = lab.own(&disk, 1).await;
    let device = lab.keeper(1).device(disk.disk, run).unwrap();
    lab.cut_log(1, true);
    lab.kill(2).await;
    let write = tokio::spawn({
        let device = device.clone();
        async move { device.write(0, Bytes::from(vec![7; 4096]), false).await }
    });
    lab.unanswered(1, 3).await;
    assert!(!write.is_finished());
    assert!(lab.status(1, &disk).await.holding);
    lab.cut_log(1, false);
    write.await.unwrap().unwrap();
    assert_eq!(disk.members(&lab.log.state()), 1);
    lab.end().await;
}
