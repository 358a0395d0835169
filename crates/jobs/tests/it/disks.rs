//! Instances with mirrored disks: making, starting, removing them, and what is done with their disks.

use model::{Command, DiskTemplate, MirrorMode, NodeChange, NodeId};
use opcodes::Opcode;
use opcodes::op::*;
use serde_json::json;

use crate::lab::{Fault, Lab};
use crate::operations::*;

/// As [`create`], mirrored between node01 and node02.
pub fn mirrored(name: &str) -> InstanceCreate {
    InstanceCreate { disk_template: Some(DiskTemplate::Drbd), snode: Some("node02".into()), ..create(name) }
}

pub fn created_mirrored(name: &str, start: bool) -> Opcode {
    Opcode::InstanceCreate(Box::new(InstanceCreate { start, ..mirrored(name) }))
}

/// Why a creation is refused; nothing is made.
fn refused(lab: &std::sync::Arc<Lab>, op: InstanceCreate) -> String {
    let failure = lab.run(Opcode::InstanceCreate(Box::new(op))).unwrap_err();
    assert!(lab.instance("vm1").is_none());
    let made: Vec<String> = lab.take_journal().into_iter().filter(|line| line.contains("create_disk")).collect();
    assert_eq!(made, Vec::<String>::new());
    lab.check();
    failure.text
}

#[test]
fn a_mirrored_instance_is_made_on_both_nodes_installed_and_started() {
    let lab = Lab::new();
    let job = lab.submit(created_mirrored("vm1", true));
    lab.take_office(1).settle();
    assert_eq!(lab.outcome(job).unwrap(), json!(["node01", "node02"]));
    let told = [
        "* disk 0, size 1.0G",
        "* disk 1, size 64M",
        "* creating instance disks...",
        "adding instance vm1 to cluster config",
        "adding disks to cluster config",
        "* running the instance OS create scripts...",
        "* starting instance...",
    ];
    assert_eq!(lab.lines(job), told);
    let instance = lab.instance("vm1").unwrap();
    assert_eq!((instance.primary, instance.secondaries), (NodeId(1), vec![NodeId(2)]));
    for disk in &instance.disks {
        let mirror = disk.mirror.as_ref().unwrap();
        assert_eq!(mirror.mode, MirrorMode::Strict);
        assert_eq!(mirror.in_sync().len(), 2);
        assert_eq!(mirror.run, instance.run);
    }
    let contents = |node| lab.machine(node).mirrored.stored.into_values().map(|it| it.content).collect::<Vec<_>>();
    let mut here = contents(1);
    here.sort();
    assert_eq!(here, ["", "busybox+default of vm1"]);
    assert_eq!(guest(&lab, "vm1"), Some((2, false, 0)));
    lab.check();
}

#[test]
fn a_mirrored_instance_needs_another_node_that_can_take_a_replica() {
    let lab = Lab::new();
    let with = |snode: Option<&str>| InstanceCreate { snode: snode.map(Into::into), ..mirrored("vm1") };
    assert_eq!(
        refused(&lab, with(None)),
        "The networked disk templates need a secondary node; name it as in '-n NODE:SECONDARY'"
    );
    assert_eq!(refused(&lab, with(Some("node01"))), "The secondary node cannot be the primary node.");
    assert_eq!(refused(&lab, with(Some("node09"))), "Node 'node09' not known");
    assert_eq!(refused(&lab, with(Some("node03"))), "Cannot use non-vm_capable secondary node 'node03'");
    let mark = |change| lab.apply(vec![Command::ModifyNode { node: NodeId(4), change }]).unwrap();
    mark(NodeChange { drained: Some(true), ..NodeChange::default() });
    assert_eq!(refused(&lab, with(Some("node04"))), "Cannot use drained secondary node 'node04'");
    mark(NodeChange { offline: Some(true), ..NodeChange::default() });
    assert_eq!(refused(&lab, with(Some("node04"))), "Cannot use offline secondary node 'node04'");
    lab.change_machine(2, |machine| machine.mirror_free_mib = 1000);
    assert_eq!(
        refused(&lab, mirrored("vm1")),
        "Not enough disk space on target node node02: required 1088 MiB, available 1000 MiB"
    );
}

#[test]
fn a_creation_that_fails_leaves_nothing_on_either_node() {
    for (fault, kind) in [
        ("create_disk vm1/1", Fault::Failed),
        ("install", Fault::Failed),
        ("detach", Fault::Failed),
        ("install", Fault::Unreachable),
    ] {
        let lab = Lab::new();
        lab.fault(fault, 1000, kind);
        lab.run(created_mirrored("vm1", true)).unwrap_err();
        lab.fault(fault, 0, Fault::Failed);
        assert!(lab.instance("vm1").is_none(), "{fault}");
        for node in [1, 2] {
            assert!(lab.machine(node).mirrored.stored.is_empty(), "{fault}");
        }
    }
}

#[test]
fn a_mirrored_instance_is_not_removed_without_its_other_node_unless_that_is_said() {
    let lab = Lab::new();
    lab.run(created_mirrored("vm1", false)).unwrap();
    lab.fault("ping", 1000, Fault::Unreachable);
    let failure = lab.run(remove("vm1", false)).unwrap_err();
    assert!(failure.text.starts_with("Secondary node 'node02' of instance 'vm1' can't be asked"), "{failure}");
    assert!(failure.text.contains("--ignore-failures"));
    assert_eq!(lab.machine(1).mirrored.stored.len(), 2);
    lab.fault("remove_disk", 1000, Fault::Unreachable);
    lab.run(remove("vm1", true)).unwrap();
    assert!(lab.instance("vm1").is_none());
}

#[test]
fn a_node_that_lacks_writes_does_not_get_the_instance() {
    let lab = Lab::new();
    lab.run(created_mirrored("vm1", true)).unwrap();
    outdate(&lab, "vm1", 1);
    lab.run(shutdown("vm1")).unwrap();
    let failure = lab.run(startup("vm1")).unwrap_err();
    assert!(failure.text.contains("Instance 'vm1' can't run on node 'node01'"), "{failure}");
    assert!(failure.text.contains("gnt-instance failover"), "{failure}");
}

/// The primary of an instance's disks goes on without the replicas on a node.
pub fn outdate(lab: &Lab, name: &str, node: u64) {
    for disk in lab.instance(name).unwrap().disks {
        let mirror = disk.mirror.unwrap();
        let (rid, _) = mirror.replica_on(NodeId(node)).unwrap();
        let (by, epoch, ver) = (mirror.primary.unwrap(), mirror.epoch, mirror.ver);
        lab.apply(vec![Command::Outdate { disk: disk.id, by, epoch, ver, replicas: vec![rid] }]).unwrap();
    }
}
