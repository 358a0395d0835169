//! What must hold of mirrored disks, by hand and over random histories.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use crate::apply::testing::{cluster_of, run};
use crate::{
    AdminState, Applied, ClusterChange, Command, Disk, DiskAccess, DiskId, DiskRejection, DiskTemplate, Epoch,
    Evidence, ForkPoint, Incarnation, Instance, InstanceId, Life, Mirror, MirrorMode, NodeChange, NodeId, NodeLife,
    Provision, Rejection, ReplicaId, RunId, State, Timestamp, Uuid, Version,
};

const INSTANCE: InstanceId = InstanceId(Uuid::from_u128(1));
const DISK: DiskId = DiskId(Uuid::from_u128(2));

fn rid(number: u64) -> ReplicaId {
    ReplicaId(Uuid::from_u128(0x70 + u128::from(number)))
}

fn join(state: &mut State, node: u64, boot: &str, runs: Vec<RunId>) -> Life {
    let previous = state.nodes[&NodeId(node)].life;
    match run(state, vec![Command::JoinNode { node: NodeId(node), boot: boot.into(), previous, runs }]).unwrap()[..] {
        [Applied::Life(life)] => life,
        ref other => panic!("{other:?}"),
    }
}

/// Three nodes; an instance with a disk that is mirrored on the first two.
fn mirrored() -> State {
    let mut state = cluster_of("ccc");
    for node in 1..=3 {
        let life = join(&mut state, node, &format!("boot{node}"), Vec::new());
        one(&mut state, Command::Arm { node: NodeId(node), life }).unwrap();
    }
    let replicas = (1..=2).map(|node| (rid(node), NodeId(node), format!("boot{node}")));
    let disk = Disk {
        id: DISK,
        name: None,
        size_mib: 128,
        access: DiskAccess::Rw,
        ctime: Timestamp(0),
        mirror: Some(Mirror::new(MirrorMode::Strict, replicas)),
    };
    let instance = Instance {
        id: INSTANCE,
        name: "vm1".into(),
        provision: Provision::Ready,
        primary: NodeId(1),
        secondaries: vec![NodeId(2)],
        want: AdminState::Up,
        owner: None,
        run: None,
        migration: None,
        hypervisor: "kvm".into(),
        os: "busybox".into(),
        hvparams: Default::default(),
        beparams: Default::default(),
        osparams: Default::default(),
        disk_template: DiskTemplate::Drbd,
        disks: vec![disk],
        nics: Vec::new(),
        ctime: Timestamp(0),
        mtime: Timestamp(0),
        serial_no: 0,
        tags: Default::default(),
    };
    run(&mut state, vec![Command::AddInstance(Box::new(instance))]).unwrap();
    state
}

fn mirror(state: &State) -> &Mirror {
    state.instances[&INSTANCE].disks[0].mirror.as_ref().unwrap()
}

fn one(state: &mut State, command: Command) -> Result<Applied, Rejection> {
    run(state, vec![command]).map(|mut applied| applied.remove(0))
}

fn own(state: &mut State, node: u64) -> RunId {
    match one(state, Command::Own { instance: INSTANCE, node: NodeId(node) }).unwrap() {
        Applied::Run(run) => run,
        other => panic!("{other:?}"),
    }
}

fn outdate(state: &State, replicas: &[u64]) -> Command {
    let mirror = mirror(state);
    Command::Outdate {
        disk: DISK,
        by: mirror.primary.unwrap(),
        epoch: mirror.epoch,
        ver: mirror.ver,
        replicas: replicas.iter().map(|number| rid(*number)).collect(),
    }
}

#[test]
fn a_disk_is_born_in_sync_and_nobodys() {
    let state = mirrored();
    let mirror = mirror(&state);
    assert_eq!(mirror.in_sync(), BTreeSet::from([rid(1), rid(2)]));
    assert_eq!((mirror.epoch, mirror.ver), (Epoch { n: 1, e: 0 }, Version { n: 1, v: 1 }));
    assert_eq!(mirror.primary, None);
}

#[test]
fn the_owner_becomes_the_primary_and_where_the_instance_lives_follows_it() {
    let mut state = mirrored();
    let first = own(&mut state, 2);
    assert_eq!(mirror(&state).primary, state.instances[&INSTANCE].owner);
    assert_eq!((mirror(&state).run, mirror(&state).epoch.e), (Some(first), 1));
    assert_eq!(state.instances[&INSTANCE].primary, NodeId(2));
    assert_eq!(state.instances[&INSTANCE].secondaries, [NodeId(1)]);
    one(&mut state, Command::Disown { instance: INSTANCE, run: first, want: None }).unwrap();
    assert_eq!((mirror(&state).primary, mirror(&state).epoch.e), (None, 1));
    own(&mut state, 1);
    assert_eq!(mirror(&state).epoch.e, 2);
}

#[test]
fn a_node_without_a_member_can_not_own() {
    let mut state = mirrored();
    assert!(matches!(one(&mut state, Command::Own { instance: INSTANCE, node: NodeId(3) }), Err(Rejection::State(_))));
    let run = own(&mut state, 1);
    let command = outdate(&state, &[2]);
    one(&mut state, command).unwrap();
    one(&mut state, Command::Disown { instance: INSTANCE, run, want: None }).unwrap();
    assert!(matches!(one(&mut state, Command::Own { instance: INSTANCE, node: NodeId(2) }), Err(Rejection::State(_))));
}

#[test]
fn an_outdate_counts_once_and_kills_every_older_proposal() {
    let mut state = mirrored();
    own(&mut state, 1);
    let (empty, late) = (outdate(&state, &[]), outdate(&state, &[2]));
    let before = mirror(&state).ver;
    one(&mut state, empty).unwrap();
    assert_eq!(mirror(&state).ver, before.next());
    let moved = DiskRejection::VersionMoved { now: before.next(), then: before };
    assert_eq!(one(&mut state, late), Err(Rejection::Disk(moved)));
    let command = outdate(&state, &[2]);
    one(&mut state, command).unwrap();
    assert_eq!(mirror(&state).in_sync(), BTreeSet::from([rid(1)]));
    assert_eq!(mirror(&state).replicas[&rid(2)].left, before.next());
    let command = outdate(&state, &[1]);
    assert!(matches!(one(&mut state, command), Err(Rejection::State(_))), "the last member stays");
}

#[test]
fn the_rejections_tell_a_primary_what_it_is() {
    let mut state = mirrored();
    own(&mut state, 1);
    let old = outdate(&state, &[2]);
    let life = mirror(&state).primary.unwrap();
    join(&mut state, 1, "boot1-again", Vec::new());
    assert_eq!(one(&mut state, old.clone()), Err(Rejection::Disk(DiskRejection::LifeEnded(life))));
    own(&mut state, 2);
    let Command::Outdate { disk, epoch, ver, replicas, .. } = old else { panic!() };
    let by = NodeLife { node: NodeId(1), life: state.nodes[&NodeId(1)].life };
    let late = Command::Outdate { disk, by, epoch, ver, replicas };
    let deposed = DiskRejection::Deposed { now: mirror(&state).epoch, then: epoch };
    assert_eq!(one(&mut state, late), Err(Rejection::Disk(deposed)));
}

#[test]
fn in_sync_is_of_the_life_in_which_it_was_found() {
    let mut state = mirrored();
    own(&mut state, 1);
    let command = outdate(&state, &[2]);
    one(&mut state, command).unwrap();
    let life = state.nodes[&NodeId(2)].life;
    join(&mut state, 2, "boot2-again", Vec::new());
    let in_sync = |state: &State, life| Command::InSync {
        disk: DISK,
        by: mirror(state).primary.unwrap(),
        epoch: mirror(state).epoch,
        ver: mirror(state).ver,
        replica: rid(2),
        life,
    };
    let (late, now) = (in_sync(&state, life), in_sync(&state, state.nodes[&NodeId(2)].life));
    assert!(one(&mut state, late).is_err());
    one(&mut state, now).unwrap();
    assert_eq!(mirror(&state).replicas[&rid(2)].member.as_deref(), Some("boot2-again"));
}

#[test]
fn a_daemon_that_comes_back_keeps_its_disks_in_its_new_life() {
    let mut state = mirrored();
    let run = own(&mut state, 1);
    let before = mirror(&state).clone();
    let life = join(&mut state, 1, "elsewhere", vec![run]);
    assert_eq!(mirror(&state).primary, Some(NodeLife { node: NodeId(1), life }));
    assert_eq!(mirror(&state).epoch, before.epoch);
    assert!(mirror(&state).ver > before.ver);
}

#[test]
fn force_promotes_what_is_there_and_remembers_it() {
    let mut state = mirrored();
    own(&mut state, 1);
    let force = |asserted_off| Command::Force {
        instance: INSTANCE,
        node: NodeId(2),
        bases: vec![(DISK, Version { n: 1, v: 1 })],
        asserted_off,
    };
    assert!(one(&mut state, force(false)).is_err(), "the owner lives");
    one(&mut state, force(true)).unwrap();
    let mirror = mirror(&state);
    assert_eq!(mirror.in_sync(), BTreeSet::from([rid(2)]));
    assert_eq!(mirror.primary.map(|primary| primary.node), Some(NodeId(2)));
    assert_eq!(mirror.forces.len(), 1);
    assert_eq!((mirror.forces[0].base, mirror.forces[0].at), (Version { n: 1, v: 1 }, mirror.ver));
}

#[test]
fn a_replica_is_added_empty_and_removed_as_long_as_one_stays_that_is_in_sync() {
    let mut state = mirrored();
    own(&mut state, 1);
    let add = |ver, slot| Command::AddReplica { disk: DISK, ver, replica: rid(3), node: NodeId(3), slot };
    let ver = mirror(&state).ver;
    assert!(one(&mut state, add(ver, 1)).is_err(), "the slot is taken");
    one(&mut state, add(ver, 2)).unwrap();
    assert!(!mirror(&state).is_member(rid(3)));
    assert_eq!(state.instances[&INSTANCE].secondaries, [NodeId(2), NodeId(3)]);
    let remove = |ver, number| Command::RemoveReplica { disk: DISK, ver, replica: rid(number) };
    let ver = mirror(&state).ver;
    assert!(one(&mut state, remove(ver, 1)).is_err(), "the primary's");
    assert!(one(&mut state, Command::RemoveNode { node: NodeId(3) }).is_err());
    one(&mut state, remove(ver, 3)).unwrap();
    assert_eq!(state.instances[&INSTANCE].secondaries, [NodeId(2)]);
    one(&mut state, Command::RemoveNode { node: NodeId(3) }).unwrap();
    let stale = outdate(&state, &[2]);
    let ver = mirror(&state).ver;
    one(&mut state, remove(ver, 2)).unwrap();
    assert_eq!(mirror(&state).in_sync(), BTreeSet::from([rid(1)]));
    assert!(state.instances[&INSTANCE].secondaries.is_empty());
    assert!(matches!(one(&mut state, stale), Err(Rejection::Disk(DiskRejection::VersionMoved { .. }))));
}

#[test]
fn a_node_that_holds_a_second_replica_stays_able_to_run_guests() {
    let mut state = mirrored();
    let unset = |node| {
        let change = NodeChange { vm_capable: Some(false), ..NodeChange::default() };
        Command::ModifyNode { node: NodeId(node), change }
    };
    assert!(one(&mut state, unset(2)).is_err());
    one(&mut state, unset(3)).unwrap();
}

#[test]
fn the_last_that_is_in_sync_and_the_destination_of_a_migration_are_not_removed() {
    let mut state = mirrored();
    let remove =
        |state: &State, number| Command::RemoveReplica { disk: DISK, ver: mirror(state).ver, replica: rid(number) };
    own(&mut state, 1);
    one(&mut state, Command::Prepare { instance: INSTANCE, migration: Uuid::from_u128(5), to: NodeId(2) }).unwrap();
    let command = remove(&state, 2);
    assert!(one(&mut state, command).is_err(), "a migration is about to use it");
    one(&mut state, Command::Cancel { migration: Uuid::from_u128(5) }).unwrap();
    let command = outdate(&state, &[1]);
    one(&mut state, command).unwrap();
    let command = remove(&state, 2);
    assert!(one(&mut state, command).is_err(), "the primary is diskless");
}

/// A step of a random history; numbers choose among what there is.
#[derive(Clone, Debug)]
enum Step {
    Own(u64),
    Disown,
    /// By the primary that the history knew at that age, of these replicas.
    Outdate(usize, u8),
    InSync(usize, u64),
    Prepare(u64),
    Handover(u128),
    Cancel(u128),
    Boot(u64, bool),
    Dead(u64),
    Takeover(u64),
    Arm(u64),
    Disarm(u64),
    Ha(bool),
    Found(Option<u64>, u64),
    Add(usize),
    Remove(usize, u64),
    Grow(usize, u64),
    Force(u64, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let age = 0usize..4;
    prop_oneof![
        3 => (1u64..4).prop_map(Step::Own),
        2 => Just(Step::Disown),
        4 => (age.clone(), 0u8..8).prop_map(|(age, which)| Step::Outdate(age, which)),
        4 => (age.clone(), 1u64..4).prop_map(|(age, rid)| Step::InSync(age, rid)),
        3 => (1u64..4).prop_map(Step::Prepare),
        2 => (0u128..4).prop_map(Step::Handover),
        1 => (0u128..4).prop_map(Step::Cancel),
        2 => (1u64..4, any::<bool>()).prop_map(|(node, keeps)| Step::Boot(node, keeps)),
        2 => (1u64..4).prop_map(Step::Dead),
        3 => (1u64..4).prop_map(Step::Takeover),
        2 => (1u64..4).prop_map(Step::Arm),
        1 => (1u64..4).prop_map(Step::Disarm),
        1 => any::<bool>().prop_map(Step::Ha),
        1 => (prop::option::of(1u64..4), 1u64..4).prop_map(|(node, off)| Step::Found(node, off)),
        1 => age.clone().prop_map(Step::Add),
        1 => (age.clone(), 1u64..4).prop_map(|(age, rid)| Step::Remove(age, rid)),
        1 => (age, 100u64..200).prop_map(|(age, size)| Step::Grow(age, size)),
        1 => (1u64..4, any::<bool>()).prop_map(|(node, off)| Step::Force(node, off)),
    ]
}

/// The command that a step stands for; `known` are the records that proposers may still believe in, newest last.
fn command(state: &State, known: &[Mirror], migrations: u128, boots: u64, step: &Step) -> Option<Command> {
    let believed = |age: usize| known.get(known.len().checked_sub(age + 1)?);
    Some(match step {
        Step::Own(node) => Command::Own { instance: INSTANCE, node: NodeId(*node) },
        Step::Disown => Command::Disown { instance: INSTANCE, run: state.instances[&INSTANCE].run?, want: None },
        Step::Outdate(age, which) => {
            let known = believed(*age)?;
            let replicas = (1..4).filter(|number| which >> (number - 1) & 1 == 1).map(rid).collect();
            Command::Outdate { disk: DISK, by: known.primary?, epoch: known.epoch, ver: known.ver, replicas }
        }
        Step::InSync(age, number) => {
            let known = believed(*age)?;
            let life = state.nodes[&NodeId(*number)].life;
            let (by, epoch, ver) = (known.primary?, known.epoch, known.ver);
            Command::InSync { disk: DISK, by, epoch, ver, replica: rid(*number), life }
        }
        Step::Prepare(node) => {
            let migration = Uuid::from_u128(0x3000 + migrations);
            Command::Prepare { instance: INSTANCE, migration, to: NodeId(*node) }
        }
        Step::Handover(back) => {
            Command::Handover { migration: Uuid::from_u128((0x3000 + migrations).checked_sub(*back)?) }
        }
        Step::Cancel(back) => Command::Cancel { migration: Uuid::from_u128((0x3000 + migrations).checked_sub(*back)?) },
        Step::Boot(node, keeps) => {
            let (node, previous) = (NodeId(*node), state.nodes[&NodeId(*node)].life);
            let runs = state.instances[&INSTANCE].run.filter(|_| *keeps).into_iter().collect();
            Command::JoinNode { node, boot: format!("boot-{boots}"), previous, runs }
        }
        Step::Dead(node) => {
            let (node, life) = (NodeId(*node), state.nodes[&NodeId(*node)].life);
            let evidence =
                Evidence::LeaseEnded { silent_ms: 1500, wait_ms: 1451, of_older_master: false, voters: vec![] };
            Command::NodeDead { node, life, evidence }
        }
        Step::Takeover(node) => {
            Command::Takeover { instance: INSTANCE, to: NodeId(*node), reason: "it has all data".into() }
        }
        Step::Arm(node) => Command::Arm { node: NodeId(*node), life: state.nodes[&NodeId(*node)].life },
        Step::Disarm(node) => Command::Disarm { node: NodeId(*node) },
        Step::Ha(on) => Command::ModifyCluster(ClusterChange { ha: Some(*on), ..ClusterChange::default() }),
        Step::Found(node, off) => Command::Found {
            incarnation: Incarnation { n: state.incarnation.n + 1, id: Uuid::from_u128(boots.into()) },
            fork_point: ForkPoint { term: 1, index: boots },
            node: node.map(NodeId),
            off: vec![NodeId(*off)],
        },
        Step::Add(age) => {
            Command::AddReplica { disk: DISK, ver: believed(*age)?.ver, replica: rid(3), node: NodeId(3), slot: 2 }
        }
        Step::Remove(age, number) => {
            Command::RemoveReplica { disk: DISK, ver: believed(*age)?.ver, replica: rid(*number) }
        }
        Step::Grow(age, size_mib) => Command::Grow { disk: DISK, ver: believed(*age)?.ver, size_mib: *size_mib },
        Step::Force(node, asserted_off) => Command::Force {
            instance: INSTANCE,
            node: NodeId(*node),
            bases: vec![(DISK, mirror(state).ver)],
            asserted_off: *asserted_off,
        },
    })
}

/// What holds of the disk after every command that was accepted.
fn check_step(command: &Command, applied: &Applied, before: &State, after: &State) -> Result<(), TestCaseError> {
    let (old, new) = (mirror(before), mirror(after));
    let refused = matches!(applied, Applied::Refused(_));
    if refused {
        prop_assert_eq!(before, after, "what is refused changes nothing");
    }
    // These are about nodes and instances: the disk's record changes only if it has to.
    let elsewhere = matches!(
        command,
        Command::JoinNode { .. }
            | Command::Prepare { .. }
            | Command::Cancel { .. }
            | Command::NodeDead { .. }
            | Command::Arm { .. }
            | Command::Disarm { .. }
            | Command::ModifyCluster(_)
    );
    prop_assert!(
        new.ver > old.ver || ((elsewhere || refused) && new == old),
        "{:?} changed the disk, so the version has to grow",
        command
    );
    prop_assert!(new.epoch >= old.epoch);
    prop_assert!(!new.in_sync().is_empty(), "the data is always somewhere");

    let armed = new.replicas.values().all(|replica| after.nodes[&replica.node].armed);
    let ha = after.cluster.as_ref().unwrap().ha;
    prop_assert_eq!(new.mode == MirrorMode::Strict, armed && ha, "strict is what all nodes know of");

    let (was, is) = (&before.instances[&INSTANCE], &after.instances[&INSTANCE]);
    let given = new.epoch > old.epoch;
    if given {
        prop_assert!(!after.is_void(is.owner.unwrap()), "{:?} gave it to a dead life", command);
        let dead = new.replicas.values().any(|replica| replica.member.is_some() && after.nodes[&replica.node].dead);
        prop_assert!(!dead, "a dead node's replica stayed in sync beside the new primary's");
        let forced = matches!(command, Command::Force { .. });
        prop_assert!(forced || !old.doubtful, "a doubtful disk was promoted without force");
        let to = is.owner.unwrap().node;
        prop_assert!(forced || old.is_member_on(to), "the data is not there");
    }
    // The right to run it passes from a living owner only by its own word or an operator's.
    if let Some(owner) = was.owner
        && is.run != was.run
    {
        let by_word = matches!(command, Command::Disown { .. } | Command::Handover { .. } | Command::Force { .. });
        prop_assert!(by_word || before.is_void(owner), "{:?} took it from its living owner", command);
    }
    if let Command::Takeover { .. } = command
        && !refused
    {
        prop_assert_eq!(old.mode, MirrorMode::Strict);
        prop_assert!(is.migration.is_none());
    }
    if let Some(migration) = is.migration {
        let stale = |owner: NodeLife| after.nodes[&owner.node].dead;
        prop_assert!(!stale(migration.to) && !stale(is.owner.unwrap()), "a migration with a dead node goes on");
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_history_keeps_the_disk_whole(steps in proptest::collection::vec(step(), 1..80)) {
        let mut state = mirrored();
        let mut known = vec![mirror(&state).clone()];
        let mut primaries: BTreeMap<Epoch, NodeId> = BTreeMap::new();
        let (mut decided, mut migrations) = (BTreeSet::new(), 0);
        for (boots, step) in (0..).zip(steps) {
            if state.office.is_none() {
                run(&mut state, vec![Command::TakeOffice { node: NodeId(1), term: 1 }]).unwrap();
            }
            let Some(command) = command(&state, &known, migrations, boots, &step) else { continue };
            let before = state.clone();
            let Ok(applied) = one(&mut state, command.clone()) else {
                prop_assert_eq!(&before, &state, "what is rejected changes nothing");
                continue;
            };
            check_step(&command, &applied, &before, &state)?;
            let new = mirror(&state).clone();
            if let Some(primary) = new.primary {
                let first = *primaries.entry(new.epoch).or_insert(primary.node);
                prop_assert_eq!(first, primary.node, "one primary an epoch");
                prop_assert_eq!(state.instances[&INSTANCE].owner, Some(primary), "disk and instance move together");
                prop_assert_eq!(state.instances[&INSTANCE].run, new.run);
            }
            if let Command::Prepare { .. } = command {
                migrations += 1;
            }
            if let Command::Handover { migration } | Command::Cancel { migration } = command {
                prop_assert!(decided.insert(migration), "a migration is decided once");
            }
            known.push(new);
        }
    }
}
