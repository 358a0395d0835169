//! Death, takeover, arming, and what the history keeps of them.

use std::collections::BTreeMap;

use super::super::testing::run;
use super::*;
use crate::{
    Applied, ClusterChange, Evidence, ForkPoint, Happening, Incarnation, Mirror, MirrorMode, ReplicaId, Version,
};

const EMPTY: InstanceId = InstanceId(Uuid::from_u128(0xf4));

fn lease_ended() -> Evidence {
    Evidence::LeaseEnded { silent_ms: 1470, wait_ms: 1451, of_older_master: false, voters: vec![NodeId(1), NodeId(3)] }
}

fn dead(node: u64, life: u64) -> Command {
    Command::NodeDead { node: NodeId(node), life: Life(life), evidence: lease_ended() }
}

fn takeover(instance: InstanceId, to: u64) -> Command {
    Command::Takeover { instance, to: NodeId(to), reason: "node01 has all data of it in sync".into() }
}

fn join(node: u64, boot: &str, previous: u64, runs: &[u64]) -> Command {
    let runs = runs.iter().copied().map(RunId).collect();
    Command::JoinNode { node: NodeId(node), boot: boot.into(), previous: Life(previous), runs }
}

fn rid(instance: InstanceId, node: u64) -> ReplicaId {
    ReplicaId(Uuid::from_u128(instance.0.as_u128() << 8 | u128::from(node)))
}

/// An instance that shall run, mirrored on these nodes; the first is its primary node.
fn mirrored(id: InstanceId, name: &str, nodes: [u64; 2]) -> Command {
    let mut instance = instance(id, name, nodes[0]);
    let replicas = nodes.map(|node| (rid(id, node), NodeId(node), format!("boot{node}")));
    instance.disks[0].mirror = Some(Mirror::new(MirrorMode::Manual, replicas));
    instance.disk_template = DiskTemplate::Drbd;
    instance.secondaries = vec![NodeId(nodes[1])];
    instance.want = AdminState::Up;
    Command::AddInstance(Box::new(instance))
}

fn arm(node: u64, life: u64) -> Command {
    Command::Arm { node: NodeId(node), life: Life(life) }
}

/// node01 (master), node02, node03 (witness), node04, in lives 1 to 4, all armed. On node02 vm1 runs in run 1 and vm2 in run 2,
/// mirrored to node01; vm3 runs on node01 in run 3, mirrored to node02; file1 runs on node02 in run 4 and has a file.
fn armed() -> State {
    let mut state = cluster_of("ccwc");
    let mut commands = Vec::new();
    for node in 1..=4 {
        commands.extend([join(node, &format!("boot{node}"), 0, &[]), arm(node, node)]);
    }
    let mut file = instance(EMPTY, "file1", 2);
    file.want = AdminState::Up;
    commands.extend([
        mirrored(VM1, "vm1", [2, 1]),
        mirrored(VM2, "vm2", [2, 1]),
        mirrored(VM3, "vm3", [1, 2]),
        Command::AddInstance(Box::new(file)),
    ]);
    for (instance, node) in [(VM1, 2), (VM2, 2), (VM3, 1), (EMPTY, 2)] {
        commands.push(Command::Own { instance, node: NodeId(node) });
    }
    run(&mut state, commands).unwrap();
    state
}

fn mirror(state: &State, id: InstanceId) -> &Mirror {
    state.instances[&id].disks[0].mirror.as_ref().unwrap()
}

fn members(state: &State, id: InstanceId) -> Vec<u64> {
    let replicas = mirror(state, id).replicas.values();
    replicas.filter(|replica| replica.member.is_some()).map(|replica| replica.node.0).collect()
}

fn newest(state: &State) -> &Happening {
    &state.history.iter().next_back().unwrap().what
}

fn refused(state: &mut State, command: Command) -> String {
    let before = state.clone();
    let answer = match run(state, vec![command]) {
        Err(rejection) => rejection.to_string(),
        Ok(applied) => match &applied[..] {
            [Applied::Refused(why)] => why.clone(),
            other => panic!("{other:?}"),
        },
    };
    assert_eq!(*state, before, "what is refused changes nothing");
    answer
}

#[test]
fn a_disk_is_strict_while_ha_is_on_and_all_its_nodes_are_armed() {
    let mut state = armed();
    let mut expect = |what: &str, command: Command, mode: MirrorMode| {
        let before = mirror(&state, VM1).clone();
        run(&mut state, vec![command]).unwrap();
        let after = mirror(&state, VM1);
        assert_eq!(after.mode, mode, "{what}");
        assert_eq!(after.ver > before.ver, after.mode != before.mode, "{what}: a change of the mode is a new version");
    };
    let ha = |on| Command::ModifyCluster(ClusterChange { ha: Some(on), ..ClusterChange::default() });
    expect("a node that has nothing of it", Command::Disarm { node: NodeId(4) }, MirrorMode::Strict);
    expect("its secondary", Command::Disarm { node: NodeId(1) }, MirrorMode::Manual);
    expect("its primary too", Command::Disarm { node: NodeId(2) }, MirrorMode::Manual);
    expect("one is not enough", arm(1, 1), MirrorMode::Manual);
    expect("both", arm(2, 2), MirrorMode::Strict);
    expect("switched off", ha(false), MirrorMode::Manual);
    expect("switched on", ha(true), MirrorMode::Strict);
    run(&mut state, vec![dead(2, 2)]).unwrap();
    assert_eq!(mirror(&state, VM1).mode, MirrorMode::Strict, "a death does not disarm");
}

#[test]
fn a_third_replica_on_a_node_that_is_not_armed_makes_a_disk_manual() {
    let mut state = armed();
    run(&mut state, vec![Command::Disarm { node: NodeId(4) }]).unwrap();
    let (disk, replica) = (DiskId(VM1.0), rid(VM1, 4));
    let ver = mirror(&state, VM1).ver;
    run(&mut state, vec![Command::AddReplica { disk, ver, replica, node: NodeId(4), slot: 2 }]).unwrap();
    assert_eq!(mirror(&state, VM1).mode, MirrorMode::Manual);
    let ver = mirror(&state, VM1).ver;
    run(&mut state, vec![Command::RemoveReplica { disk, ver, replica }]).unwrap();
    assert_eq!(mirror(&state, VM1).mode, MirrorMode::Strict);
}

#[test]
fn only_what_has_surely_ended_is_declared_dead() {
    let off = |node: u64| Command::NodeDead { node: NodeId(node), life: Life(node), evidence: Evidence::AssertedOff };
    let boot = |boot: &str| Command::NodeDead {
        node: NodeId(2),
        life: Life(2),
        evidence: Evidence::NewBoot { boot: boot.into() },
    };
    let mut state = armed();
    for (what, command, answer) in [
        ("unknown", dead(9, 9), "Node '9' not known"),
        ("an earlier life", dead(2, 1), "node 'node02' is in life 2, not 1"),
        ("never joined", dead(2, 0), "node 'node02' is in life 2, not 0"),
        ("the master", dead(1, 1), "node 'node01' is the master in office, which can't declare itself dead"),
        ("the boot that it is in", boot("boot2"), "node 'node02' is in boot boot2 still"),
    ] {
        assert_eq!(refused(&mut state, command), answer, "{what}");
    }
    run(&mut state, vec![Command::Disarm { node: NodeId(2) }]).unwrap();
    assert_eq!(
        refused(&mut state, dead(2, 2)),
        "node 'node02' is not armed: nobody stops its guests when its lease ends"
    );
    for (what, command) in [("an operator's word", off(2)), ("it was booted", boot("other"))] {
        let mut state = state.clone();
        run(&mut state, vec![command]).unwrap();
        assert!(state.nodes[&NodeId(2)].dead, "{what}");
        assert_eq!(refused(&mut state, off(2)), "node 'node02' has been declared dead in life 2 already");
    }
}

#[test]
fn a_dead_node_is_in_sync_only_where_nobody_else_is_and_its_migrations_end() {
    let mut state = armed();
    let prepare =
        |instance, id: u128, to| Command::Prepare { instance, migration: Uuid::from_u128(id), to: NodeId(to) };
    run(&mut state, vec![prepare(VM1, 1, 1), prepare(VM3, 3, 2)]).unwrap();
    // vm2 is only on node02
    let by = state.instances[&VM2].owner.unwrap();
    let Mirror { epoch, ver, .. } = *mirror(&state, VM2);
    let replicas = vec![rid(VM2, 1)];
    run(&mut state, vec![Command::Outdate { disk: DiskId(VM2.0), by, epoch, ver, replicas }]).unwrap();
    let before: BTreeMap<_, Version> = [VM1, VM2, VM3].map(|id| (id, mirror(&state, id).ver)).into();

    run(&mut state, vec![dead(2, 2)]).unwrap();
    assert_eq!([VM1, VM2, VM3].map(|id| members(&state, id)), [vec![1], vec![2], vec![1]]);
    assert_eq!(mirror(&state, VM1).replicas[&rid(VM1, 2)].left, before[&VM1]);
    assert_eq!([VM1, VM2, VM3].map(|id| mirror(&state, id).ver > before[&id]), [true, false, true]);
    assert!(state.instances.values().all(|instance| instance.migration.is_none()));
    assert_eq!(run_of(&state, VM1), Some((2, 2, 1)), "whose it was stays known");
    assert!(state.is_void(state.instances[&VM1].owner.unwrap()));
    // Neither its owner nor its primary has a say any more.
    let by = state.instances[&VM1].owner.unwrap();
    let Mirror { epoch, ver, .. } = *mirror(&state, VM1);
    let late = Command::Outdate { disk: DiskId(VM1.0), by, epoch, ver, replicas: vec![rid(VM1, 1)] };
    assert_eq!(refused(&mut state, late), "the life of node 2 in which this was asked for (2) has ended");
}

#[test]
fn a_takeover_gives_instance_and_disks_in_a_new_epoch() {
    let mut state = armed();
    // node01 was booted since its replicas became members
    run(&mut state, vec![join(1, "again", 1, &[3]), Command::Arm { node: NodeId(1), life: Life(5) }]).unwrap();
    let epoch = mirror(&state, VM1).epoch;
    let applied = run(&mut state, vec![dead(2, 2), takeover(VM1, 1), takeover(EMPTY, 1), takeover(VM2, 1)]).unwrap();
    let [Applied::Done, Applied::Run(first), Applied::Refused(why), Applied::Run(second)] = &applied[..] else {
        panic!("{applied:?}");
    };
    assert!(first < second);
    assert_eq!(why, "Instance 'file1' can't be taken over: its disks are files that only its node has");
    assert_eq!(run_of(&state, VM1), Some((1, 5, first.0)));
    let disk = mirror(&state, VM1);
    assert_eq!((disk.primary, disk.run), (state.instances[&VM1].owner, Some(*first)));
    assert_eq!(disk.epoch.e, epoch.e + 1);
    assert_eq!(disk.replicas[&rid(VM1, 1)].member.as_deref(), Some("again"), "no longer shaken");
    assert_eq!((state.instances[&VM1].primary, &state.instances[&VM1].secondaries[..]), (NodeId(1), &[NodeId(2)][..]));
    assert_eq!(
        state.history.iter().nth_back(1).map(|record| &record.what),
        Some(&Happening::TakenOver {
            instance: VM1,
            name: "vm1".into(),
            from: NodeId(2),
            to: NodeId(1),
            run: *first,
            reason: "node01 has all data of it in sync".into(),
        })
    );
}

#[test]
fn what_may_not_be_taken_over_is_refused_and_the_rest_of_the_batch_is_done() {
    let change = |change: InstanceChange| Command::ModifyInstance { instance: VM1, change: Box::new(change) };
    let vm1 = |why: &str| format!("Instance 'vm1' can't be taken over: {why}");
    for (what, before, command, answer) in [
        ("unknown", vec![dead(2, 2)], takeover(NOBODY, 1), format!("Instance '{NOBODY}' not known")),
        ("its owner lives", vec![], takeover(VM1, 1), vm1("node 'node02' has it and lives")),
        ("dead", vec![dead(2, 2)], takeover(VM1, 2), vm1("node 'node02' is dead or has not joined")),
        ("a witness", vec![dead(2, 2)], takeover(VM1, 3), vm1("Node 'node03' is not vm_capable")),
        (
            "without a replica",
            vec![dead(2, 2)],
            takeover(VM1, 4),
            format!(
                "Instance 'vm1' can't run on node 'node04': the replica of disk {} there is missing or not in sync",
                DiskId(VM1.0)
            ),
        ),
        (
            "manual",
            vec![dead(2, 2), Command::Disarm { node: NodeId(1) }],
            takeover(VM1, 1),
            vm1("disk/0 is in manual mode: node01, which has a replica of it, is not armed"),
        ),
        (
            "switched off",
            vec![dead(2, 2), Command::ModifyCluster(ClusterChange { ha: Some(false), ..ClusterChange::default() })],
            takeover(VM1, 1),
            vm1("disk/0 is in manual mode: automatic failover is switched off"),
        ),
        (
            "not wanted",
            vec![dead(2, 2), change(InstanceChange::want(AdminState::Down))],
            takeover(VM1, 1),
            vm1("it is not wanted to run"),
        ),
        (
            "under work",
            vec![dead(2, 2), provision(VM1, Provision::Removing(JobId(1)))],
            takeover(VM1, 1),
            vm1("a job is making it, converting it or taking it away"),
        ),
    ] {
        let mut state = armed();
        run(&mut state, before).unwrap();
        assert_eq!(refused(&mut state, command.clone()), answer, "{what}");
        let applied = run(&mut state, vec![submit(1), command, submit(1)]).unwrap();
        assert!(matches!(applied[..], [Applied::Job(_), Applied::Refused(_), Applied::Job(_)]), "{what}: {applied:?}");
    }
}

/// Each row: what happened before, how node02 joins again, its life then, and who owns vm1 and file1.
#[test]
fn a_dead_life_is_followed_by_a_new_one_that_keeps_what_nobody_took() {
    let mine = |life, run| Some((2, life, run));
    for (what, before, join, life, vm1, file1) in [
        ("the same boot, its guests killed", vec![dead(2, 2)], join(2, "boot2", 2, &[]), 5, mine(2, 1), mine(2, 4)),
        // The agent ends what the state does not give to it before it joins; what it names is still its own.
        ("the same boot, with its guests", vec![dead(2, 2)], join(2, "boot2", 2, &[1, 4]), 5, mine(5, 1), mine(5, 4)),
        (
            "vm1 was taken over meanwhile",
            vec![dead(2, 2), takeover(VM1, 1)],
            join(2, "boot2", 2, &[1, 4]),
            5,
            Some((1, 1, 5)),
            mine(5, 4),
        ),
        ("another boot", vec![dead(2, 2)], join(2, "again", 2, &[]), 5, mine(2, 1), mine(2, 4)),
    ] {
        let mut state = armed();
        run(&mut state, before).unwrap();
        assert_eq!(run(&mut state, vec![join]), Ok(vec![Applied::Life(Life(life))]), "{what}");
        let node = &state.nodes[&NodeId(2)];
        assert!(!node.dead && node.armed, "{what}");
        assert_eq!((run_of(&state, VM1), run_of(&state, EMPTY)), (vm1, file1), "{what}");
        assert_eq!(newest(&state), &Happening::NodeJoined { node: NodeId(2), life: Life(5), was_dead: true }, "{what}");
    }
}

#[test]
fn a_node_may_take_its_own_instance_over_in_its_new_life() {
    let mut state = armed();
    run(&mut state, vec![join(2, "again", 2, &[])]).unwrap();
    assert!(matches!(run(&mut state, vec![takeover(VM1, 2)]).unwrap()[..], [Applied::Run(_)]));
    assert_eq!(run_of(&state, VM1), Some((2, 5, 5)));
    assert_eq!(members(&state, VM1), [1, 2]);
}

#[test]
fn a_dead_node_is_given_nothing() {
    let mut state = armed();
    run(&mut state, vec![dead(2, 2)]).unwrap();
    let own = Command::Own { instance: EMPTY, node: NodeId(2) };
    assert_eq!(
        refused(&mut state, own),
        "node 'node02' was declared dead; it is given nothing before it has joined again"
    );
    let prepare = Command::Prepare { instance: VM3, migration: Uuid::from_u128(7), to: NodeId(2) };
    assert!(refused(&mut state, prepare).contains("dead or has not joined"));
    let bases = vec![(DiskId(VM1.0), Version::default())];
    let force = Command::Force { instance: VM1, node: NodeId(2), bases, asserted_off: true };
    assert_eq!(refused(&mut state, force), "Node 'node02' is dead or has not joined");
    assert!(refused(&mut state, arm(2, 2)).contains("has ended"));
}

#[test]
fn nodes_are_armed_in_the_life_that_is_ready_and_while_ha_is_on() {
    let mut state = armed();
    run(&mut state, vec![Command::Disarm { node: NodeId(2) }]).unwrap();
    assert_eq!(newest(&state), &Happening::Armed { node: NodeId(2), armed: false });
    assert_eq!(
        refused(&mut state, arm(2, 1)),
        "the life of node 'node02' in which it was found ready to be armed (1) has ended"
    );
    run(&mut state, vec![Command::ModifyCluster(ClusterChange { ha: Some(false), ..ClusterChange::default() })])
        .unwrap();
    assert_eq!(refused(&mut state, arm(2, 2)), "automatic failover is switched off, so no node is armed");
    let records = state.history.iter().count();
    run(&mut state, vec![Command::Disarm { node: NodeId(2) }]).unwrap();
    assert_eq!(state.history.iter().count(), records, "nothing happened");
}

/// After forced recovery the in-sync sets prove nothing, but for what the founding node serves itself.
#[test]
fn a_founding_node_believes_only_itself() {
    let found = |node: Option<u64>, off: &[u64]| Command::Found {
        incarnation: Incarnation { n: 2, id: Uuid::from_u128(0x22) },
        fork_point: ForkPoint { term: 3, index: 77 },
        node: node.map(NodeId),
        off: off.iter().copied().map(NodeId).collect(),
    };
    let mut state = armed();
    let prepare = Command::Prepare { instance: VM3, migration: Uuid::from_u128(7), to: NodeId(2) };
    run(&mut state, vec![Command::SetAddressOwner(Some(NodeId(2))), prepare, found(Some(1), &[2, 3, 4])]).unwrap();
    assert_eq!((state.office, state.address_owner), (None, None));
    assert_eq!(state.nodes.values().map(|node| node.dead).collect::<Vec<_>>(), [false, true, true, true]);
    assert!(state.nodes.values().all(|node| !node.armed));
    for (id, doubtful) in [(VM1, true), (VM2, true), (VM3, false)] {
        let disk = mirror(&state, id);
        assert_eq!((disk.mode, disk.doubtful, disk.ver.n), (MirrorMode::Manual, doubtful, 2));
        assert_eq!(members(&state, id), [1]);
    }
    assert!(state.instances[&VM3].migration.is_none());
    let off = vec![NodeId(2), NodeId(3), NodeId(4)];
    assert_eq!(newest(&state), &Happening::Founded { node: NodeId(1), off });

    run(&mut state, vec![Command::TakeOffice { node: NodeId(1), term: 1 }]).unwrap();
    let own = Command::Own { instance: VM1, node: NodeId(1) };
    assert!(refused(&mut state, own).contains("doubtful"));
    let bases = vec![(DiskId(VM1.0), Version { n: 1, v: 2 })];
    let force = Command::Force { instance: VM1, node: NodeId(1), bases, asserted_off: false };
    run(&mut state, vec![force]).unwrap();
    assert!(!mirror(&state, VM1).doubtful);
    assert_eq!(
        newest(&state),
        &Happening::Forced { instance: VM1, name: "vm1".into(), from: Some(NodeId(2)), to: NodeId(1) }
    );

    let mut state = armed();
    run(&mut state, vec![found(None, &[2, 3, 4])]).unwrap();
    assert!([VM1, VM2, VM3].iter().all(|id| mirror(&state, *id).doubtful), "nobody serves in the new incarnation");
}

/// By the primary of vm3, as it knows its disk now.
fn outdate(state: &State, replicas: Vec<ReplicaId>) -> Command {
    let &Mirror { epoch, ver, primary, .. } = mirror(state, VM3);
    Command::Outdate { disk: DiskId(VM3.0), by: primary.unwrap(), epoch, ver, replicas }
}

fn in_sync(state: &State) -> Command {
    let &Mirror { epoch, ver, primary, .. } = mirror(state, VM3);
    let by = primary.unwrap();
    Command::InSync { disk: DiskId(VM3.0), by, epoch, ver, replica: rid(VM3, 2), life: Life(2) }
}

/// A command that is made for the state as it is then.
type Fitting = Box<dyn Fn(&State) -> Command>;

#[test]
fn the_history_has_changes_of_membership_and_moves_and_nothing_twice() {
    let mut state = armed();
    let tell = |state: &State| newest(state).clone();
    let name = || "vm3".to_owned();
    let mut play = |commands: Vec<Fitting>, expected: Happening| {
        let mut records = 0;
        for command in commands {
            let before = state.history.iter().count();
            let command = command(&state);
            run(&mut state, vec![command]).unwrap();
            records += state.history.iter().count() - before;
        }
        assert_eq!((records, tell(&state)), (1, expected));
    };
    play(
        vec![
            Box::new(|state| outdate(state, vec![])),
            Box::new(|state| outdate(state, vec![rid(VM3, 2)])),
            Box::new(|state| outdate(state, vec![rid(VM3, 2)])),
        ],
        Happening::Outdated { instance: VM3, name: name(), index: 0, nodes: vec![NodeId(2)] },
    );
    play(
        vec![Box::new(in_sync), Box::new(in_sync)],
        Happening::InSync { instance: VM3, name: name(), index: 0, node: NodeId(2) },
    );
    let migration = Uuid::from_u128(7);
    play(
        vec![
            Box::new(move |_| Command::Prepare { instance: VM3, migration, to: NodeId(2) }),
            Box::new(move |_| Command::Handover { migration }),
        ],
        Happening::Moved { instance: VM3, name: name(), from: NodeId(1), to: NodeId(2), live: true },
    );
    play(
        vec![
            Box::new(|state| Command::Disown { instance: VM3, run: state.instances[&VM3].run.unwrap(), want: None }),
            Box::new(|_| Command::Own { instance: VM3, node: NodeId(1) }),
        ],
        Happening::Moved { instance: VM3, name: name(), from: NodeId(2), to: NodeId(1), live: false },
    );
    let office = |node, term| -> Fitting { Box::new(move |_| Command::TakeOffice { node: NodeId(node), term }) };
    play(vec![office(1, 2), office(2, 3), office(2, 4)], Happening::Office { node: NodeId(2) });
    let note = Happening::Armed { node: NodeId(4), armed: true };
    let noted = note.clone();
    play(vec![Box::new(move |_| Command::Note(Box::new(noted.clone())))], note);
    let newest = state.history.iter().next_back().unwrap();
    assert_eq!((newest.term, newest.master), (4, Some(NodeId(2))));
}

#[test]
fn the_history_forgets_the_oldest() {
    let mut state = armed();
    let note = || Command::Note(Box::new(Happening::Armed { node: NodeId(4), armed: true }));
    run(&mut state, (0..crate::history::MAX_RECORDS + 5).map(|_| note()).collect()).unwrap();
    assert_eq!(state.history.iter().count(), crate::history::MAX_RECORDS);
    assert!(state.history.iter().all(|record| record.what == Happening::Armed { node: NodeId(4), armed: true }));
}
