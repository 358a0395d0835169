//! Instances: who may run them.

use super::super::testing::run;
use super::*;
use crate::{Applied, DiskId, Mirror, MirrorMode, NewStorage, ParamValue, ReplicaId, Version};

fn add(change: impl FnOnce(&mut Instance)) -> Command {
    let mut new = instance(NOBODY, "vm9", 1);
    change(&mut new);
    Command::AddInstance(Box::new(new))
}

fn own(instance: InstanceId, node: u64) -> Command {
    Command::Own { instance, node: NodeId(node) }
}

fn disown(instance: InstanceId, run: u64, want: Option<AdminState>) -> Command {
    Command::Disown { instance, run: RunId(run), want }
}

/// node01 is booted anew; none of its guests is left.
fn reboot() -> Command {
    Command::JoinNode { node: NodeId(1), boot: "again".into(), previous: Life(1), runs: vec![] }
}

#[test]
fn an_instance_is_added_whole_and_unlike_all_others() {
    check_refused(vec![
        ("name", add(|new| new.name = "vm1".into()), "Instance 'vm1' is already in the cluster"),
        (
            "identity",
            add(|new| new.id = VM1),
            "Instance '00000000-0000-0000-0000-0000000000f1' is already in the cluster",
        ),
        ("node", add(|new| new.primary = NodeId(9)), "Node '9' not known"),
        ("second node", add(|new| new.secondaries = vec![NodeId(9)]), "Node '9' not known"),
        ("a witness", add(|new| new.primary = NodeId(3)), "Node 'node03' is not vm_capable"),
        ("no disks", add(|new| new.disks.clear()), "No disk information specified"),
        ("disks", add(|new| new.disk_template = DiskTemplate::Diskless), "No disk information specified"),
        (
            "hardware address",
            add(|new| new.nics[0].mac = "aa:00:00:00:00:f1".into()),
            "MAC address 'aa:00:00:00:00:f1' is already in the cluster",
        ),
        (
            "address",
            add(|new| new.nics[0].ip = Some("10.0.0.241".into())),
            "IP address '10.0.0.241' is already in the cluster",
        ),
        (
            "its own interfaces",
            add(|new| new.nics.push(new.nics[0].clone())),
            "MAC address 'aa:00:00:00:00:ff' is already in the cluster",
        ),
        ("running", add(|new| new.run = Some(RunId(1))), "a new instance ('vm9') can't be running already"),
    ]);
    let state = after(vec![add(|_| ())]);
    assert_eq!((state.instances[&NOBODY].serial_no, run_of(&state, NOBODY)), (1, None));
}

/// vm1 runs on node01, vm2 is stopped, vm3 is being removed. (Batches of `check_refused` own vm2 first.)
#[test]
fn the_right_to_run_an_instance_is_given_once() {
    check_refused(vec![
        ("unknown instance", own(NOBODY, 1), "Instance '00000000-0000-0000-0000-0000000000ff' not known"),
        ("unknown node", own(VM1, 9), "Node '9' not known"),
        ("runs", own(VM1, 1), "Instance 'vm1' is already running on node 'node01'"),
        ("runs elsewhere", own(VM1, 2), "Instance 'vm1' is already running on node 'node01'"),
        ("being removed", own(VM3, 2), "Instance 'vm3' is being removed"),
        ("no disks there", own(VM3, 1), "node 'node01' does not hold the disks of instance 'vm3'"),
    ]);
    let mut state = busy();
    assert_eq!(run(&mut state, vec![own(VM2, 2)]), Ok(vec![Applied::Run(RunId(2))]));
    assert_eq!(run_of(&state, VM2), Some((2, 2, 2)));
    assert!(run(&mut state, vec![own(VM2, 2)]).is_err());
}

#[test]
fn the_right_ends_with_the_life_that_it_was_given_to() {
    let state = after(vec![reboot(), own(VM1, 1)]);
    assert_eq!(run_of(&state, VM1), Some((1, 4, 2)));
    // an instance of an ended life is not running: it may be marked offline, and be removed
    let offline = Command::ModifyInstance { instance: VM1, change: want(AdminState::Offline) };
    assert_eq!(after(vec![reboot(), offline]).instances[&VM1].want, AdminState::Offline);
    assert!(!after(vec![reboot(), Command::RemoveInstance { instance: VM1 }]).instances.contains_key(&VM1));
}

#[test]
fn the_right_is_given_back_by_its_run_alone() {
    check_refused(vec![
        ("unknown", disown(NOBODY, 1, None), "Instance '00000000-0000-0000-0000-0000000000ff' not known"),
        ("another run", disown(VM1, 7, None), "instance 'vm1' is not in run 7 any more"),
        ("stopped", disown(VM3, 1, None), "instance 'vm3' is not in run 1 any more"),
    ]);
    for (want, wanted, changed) in [
        (None, AdminState::Down, 0),
        (Some(AdminState::Down), AdminState::Down, 0),
        (Some(AdminState::Up), AdminState::Up, 1),
    ] {
        let state = after(vec![disown(VM1, 1, want)]);
        let vm1 = &state.instances[&VM1];
        assert_eq!((vm1.owner, vm1.run, vm1.want), (None, None, wanted));
        assert_eq!(vm1.serial_no, busy().instances[&VM1].serial_no + changed);
    }
    // twice is once too often, also when it runs again meanwhile
    let mut state = after(vec![disown(VM1, 1, None), own(VM1, 1)]);
    assert!(run(&mut state, vec![disown(VM1, 1, None)]).is_err());
    assert_eq!(run_of(&state, VM1), Some((1, 1, 2)));
}

#[test]
fn a_running_instance_is_neither_removed_nor_marked_offline() {
    let offline = |instance| Command::ModifyInstance { instance, change: want(AdminState::Offline) };
    let remove = |instance| Command::RemoveInstance { instance };
    check_refused(vec![
        ("offline", offline(VM1), "Instance 'vm1' is running, stop it before it is marked offline"),
        ("unknown", offline(NOBODY), "Instance '00000000-0000-0000-0000-0000000000ff' not known"),
        ("removed", remove(VM1), "Instance 'vm1' is still running on node 'node01'"),
        ("unknown", remove(NOBODY), "Instance '00000000-0000-0000-0000-0000000000ff' not known"),
    ]);
    assert!(!after(vec![remove(VM2)]).instances.contains_key(&VM2));
}

#[test]
fn a_change_sets_and_gives_back_single_parameters() {
    let set = |pairs: &[(&str, Option<i64>)]| {
        let beparams = pairs.iter().map(|(name, value)| ((*name).to_owned(), value.map(ParamValue::Int))).collect();
        let change = InstanceChange { beparams, ..InstanceChange::default() };
        Command::ModifyInstance { instance: VM2, change: Box::new(change) }
    };
    let state = after(vec![set(&[("vcpus", Some(2)), ("maxmem", Some(512))]), set(&[("vcpus", None)])]);
    let beparams = &state.instances[&VM2].beparams;
    assert_eq!(beparams.get("maxmem"), Some(&ParamValue::Int(512)));
    assert_eq!(beparams.get("vcpus"), None);
    assert_eq!(state.memory_mib(&state.instances[&VM2]), 512);
}

#[test]
fn a_change_of_interfaces_keeps_addresses_unique() {
    let nics = |of: InstanceId| {
        let change = InstanceChange { nics: Some(instance(of, "", 1).nics), ..InstanceChange::default() };
        Command::ModifyInstance { instance: VM2, change: Box::new(change) }
    };
    check_refused(vec![("another's", nics(VM1), "MAC address 'aa:00:00:00:00:f1' is already in the cluster")]);
    after(vec![nics(VM2)]);
}

#[test]
fn the_primary_node_of_a_stopped_instance_changes_places_with_a_secondary() {
    let primary = |instance, node| {
        let change = InstanceChange { primary: Some(NodeId(node)), ..InstanceChange::default() };
        Command::ModifyInstance { instance, change: Box::new(change) }
    };
    check_refused(vec![("running", primary(VM1, 2), "Instance 'vm1' is running, its primary node can't be changed")]);
    let mut state = after(Vec::new());
    let vm2 = state.instances.get_mut(&VM2).unwrap();
    let old = vm2.primary;
    let new = NodeId(if old == NodeId(1) { 2 } else { 1 });
    (vm2.owner, vm2.run, vm2.secondaries) = (None, None, vec![NodeId(9), new]);
    run(&mut state, vec![primary(VM2, 7)]).unwrap_err();
    for _ in 0..2 {
        run(&mut state, vec![primary(VM2, new.0)]).unwrap();
        let vm2 = &state.instances[&VM2];
        assert_eq!((vm2.primary, &vm2.secondaries), (new, &vec![NodeId(9), old]));
    }
}

/// Other disks for an instance: mirrored between these nodes.
fn converted(id: InstanceId, nodes: [u64; 2], change: impl FnOnce(&mut NewStorage)) -> Command {
    let replicas =
        nodes.map(|node| (ReplicaId(Uuid::from_u128(u128::from(node))), NodeId(node), format!("boot{node}")));
    let mut disk = instance(id, "", nodes[0]).disks.remove(0);
    disk.id = DiskId(Uuid::from_u128(0xd9));
    disk.mirror = Some(Mirror::new(MirrorMode::Manual, replicas));
    let mut storage =
        NewStorage { template: DiskTemplate::Drbd, disks: vec![disk], secondaries: vec![NodeId(nodes[1])] };
    change(&mut storage);
    let change = InstanceChange { storage: Some(storage), ..InstanceChange::default() };
    Command::ModifyInstance { instance: id, change: Box::new(change) }
}

#[test]
fn a_stopped_instance_can_have_other_disks() {
    check_refused(vec![
        ("runs", converted(VM1, [1, 2], |_| ()), "Instance 'vm1' is running, its disks can't be replaced by others"),
        ("a witness", converted(VM3, [2, 3], |_| ()), "Node 'node03' is not vm_capable"),
        ("no disks", converted(VM3, [2, 1], |new| new.disks.clear()), "No disk information specified"),
    ]);
    let mismatch = converted(VM2, [2, 1], |new| new.secondaries.clear());
    assert!(run(&mut busy(), vec![mismatch]).unwrap_err().to_string().contains("don't fit the nodes"));
    let files = busy().instances[&VM2].clone();
    let state = after(vec![converted(VM2, [2, 1], |_| ())]);
    let vm2 = &state.instances[&VM2];
    assert_eq!((vm2.disk_template, vm2.secondaries.as_slice()), (DiskTemplate::Drbd, &[NodeId(1)][..]));
    assert_eq!(vm2.disks[0].mirror.as_ref().unwrap().ver, Version { n: state.incarnation.n, v: 1 });
    // and back
    let back = converted(VM2, [2, 1], |new| {
        *new = NewStorage { template: DiskTemplate::File, disks: files.disks.clone(), secondaries: Vec::new() };
    });
    let state = after(vec![converted(VM2, [2, 1], |_| ()), back]);
    assert_eq!(state.instances[&VM2].disks, files.disks);
}

#[test]
fn a_disk_without_replicas_grows_whatever_version_is_named() {
    let disk = busy().instances[&VM1].disks[0].clone();
    let grow = |size_mib| Command::Grow { disk: disk.id, ver: Version::default(), size_mib };
    let state = after(vec![grow(disk.size_mib + 1)]);
    assert_eq!(state.instances[&VM1].disks[0].size_mib, disk.size_mib + 1);
    assert!(run(&mut busy(), vec![grow(disk.size_mib - 1)]).is_err());
}
