//! Instances with mirrored disks: making, starting, removing them, and what is done with their disks.

use std::sync::Arc;

use model::{Command, DiskTemplate, JobId, MirrorMode, NodeChange, NodeId};
use opcodes::Opcode;
use opcodes::op::*;
use serde_json::json;

use crate::interruption::{Case, case, success};
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
fn refused(lab: &Arc<Lab>, op: InstanceCreate) -> String {
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

pub fn activate(name: &str, wait_for_sync: bool) -> Opcode {
    Opcode::InstanceActivateDisks(InstanceActivateDisks { instance_name: name.into(), wait_for_sync })
}

pub fn deactivate(name: &str, force: bool) -> Opcode {
    Opcode::InstanceDeactivateDisks(InstanceDeactivateDisks { instance_name: name.into(), force })
}

pub fn grow(name: &str, disk: usize, amount: u64) -> Opcode {
    Opcode::InstanceGrowDisk(InstanceGrowDisk { instance_name: name.into(), disk, amount, absolute: false })
}

pub fn verify_disks(name: &str) -> Opcode {
    Opcode::InstanceVerifyDisks { instance_name: name.into() }
}

/// The second replicas go to that node; `None`: they are made anew.
pub fn replace(name: &str, node: Option<&str>) -> Opcode {
    Opcode::InstanceReplaceDisks(InstanceReplaceDisks {
        instance_name: name.into(),
        mode: if node.is_some() { ReplaceMode::NewSecondary } else { ReplaceMode::OnSecondary },
        remote_node: node.map(Into::into),
    })
}

/// Whether the host has an instance's disks.
pub fn attached(lab: &Lab, name: &str) -> bool {
    let disks = lab.instance(name).unwrap().disks;
    (1..=4).any(|node| disks.iter().any(|disk| lab.machine(node).mirrored.attached.contains_key(&disk.id)))
}

/// Nodes with replicas of an instance's disks that are in sync, per disk.
pub fn in_sync(lab: &Lab, name: &str) -> Vec<Vec<u64>> {
    let members = |mirror: model::Mirror| {
        let replicas = mirror.replicas.into_values().filter(|replica| replica.member.is_some());
        let mut nodes: Vec<u64> = replicas.map(|replica| replica.node.0).collect();
        nodes.sort();
        nodes
    };
    lab.instance(name).unwrap().disks.into_iter().map(|disk| members(disk.mirror.unwrap())).collect()
}

#[test]
fn disks_of_a_stopped_instance_are_shown_on_its_node() {
    let lab = Lab::new();
    lab.run(created_mirrored("vm1", false)).unwrap();
    let paths = json!([["node01", "disk/0", "/disks/vm1/0"], ["node01", "disk/1", "/disks/vm1/1"]]);
    assert_eq!(lab.run(activate("vm1", false)).unwrap(), paths);
    assert!(attached(&lab, "vm1"));
    lab.check();
    // again: it is the same attachment
    let run = lab.instance("vm1").unwrap().run;
    assert_eq!(lab.run(activate("vm1", false)).unwrap(), paths);
    assert_eq!(lab.instance("vm1").unwrap().run, run);

    lab.change_machine(1, |machine| machine.busy = true);
    let failure = lab.run(deactivate("vm1", false)).unwrap_err();
    assert_eq!(failure.text, "disk 0 of 'vm1' is in use");
    // nor is it started on disks that somebody has open
    lab.run(startup("vm1")).unwrap_err();
    assert_eq!(guest(&lab, "vm1"), None);
    lab.run(deactivate("vm1", true)).unwrap();
    assert!(!attached(&lab, "vm1"));
    assert_eq!(lab.instance("vm1").unwrap().owner, None);
    lab.run(deactivate("vm1", false)).unwrap();
    lab.check();
}

#[test]
fn disks_that_nobody_has_open_are_taken_from_the_host_for_a_start() {
    let lab = Lab::new();
    lab.run(created_mirrored("vm1", false)).unwrap();
    lab.run(activate("vm1", false)).unwrap();
    lab.run(startup("vm1")).unwrap();
    assert!(guest(&lab, "vm1").is_some() && !attached(&lab, "vm1"));
    for op in [activate("vm1", false), deactivate("vm1", true)] {
        let failure = lab.run(op).unwrap_err();
        assert!(failure.text.starts_with("Instance 'vm1' is running, cannot "), "{failure}");
    }
    lab.check();
}

#[test]
fn the_disks_of_an_instance_with_files_are_where_they_are() {
    let lab = Lab::new();
    lab.run(created("vm1", false)).unwrap();
    assert_eq!(lab.run(activate("vm1", true)).unwrap()[1], json!(["node01", "disk/1", "/disks/vm1/1"]));
    assert_eq!(lab.instance("vm1").unwrap().owner, None);
    lab.run(deactivate("vm1", false)).unwrap();
    lab.check();
}

#[test]
fn an_attachment_that_fails_gives_the_right_to_the_disks_back() {
    let lab = Lab::new();
    lab.run(created_mirrored("vm1", false)).unwrap();
    lab.fault("attach", 1, Fault::Failed);
    assert_eq!(lab.run(activate("vm1", false)).unwrap_err().text, "no such luck");
    assert_eq!(lab.instance("vm1").unwrap().owner, None);
    lab.check();
}

#[test]
fn a_replica_that_lacks_writes_is_filled_while_the_disks_are_served() {
    let lab = Lab::new();
    lab.run(created_mirrored("vm1", true)).unwrap();
    lab.inner().no_resync = true;
    outdate(&lab, "vm1", 2);
    lab.run(shutdown("vm1")).unwrap();
    let failure = lab.run(verify_disks("vm1")).unwrap_err();
    assert!(failure.text.starts_with("The disks of instance 'vm1' are not in sync on node02; "), "{failure}");
    // nothing comes of it
    let failure = lab.run(activate("vm1", true)).unwrap_err();
    assert!(failure.text.starts_with("the replica on node 'node02' is not brought up to date: "), "{failure}");

    lab.inner().no_resync = false;
    let job = lab.submit(activate("vm1", true));
    lab.take_office(1).settle();
    lab.outcome(job).unwrap();
    let told = [
        " - INFO: Waiting for instance vm1 to sync disks",
        " - INFO: - device disk/0:  0.00% done, 1m 40s remaining (estimated)",
        " - INFO: - device disk/1:  0.00% done, 1m 40s remaining (estimated)",
        " - INFO: - device disk/0: 40.00% done, 1m 0s remaining (estimated)",
        " - INFO: - device disk/1: 40.00% done, 1m 0s remaining (estimated)",
        " - INFO: - device disk/0: 80.00% done, 20s remaining (estimated)",
        " - INFO: - device disk/1: 80.00% done, 20s remaining (estimated)",
        " - INFO: Instance vm1's disks are in sync",
    ];
    assert_eq!(lab.lines(job), told);
    assert_eq!(in_sync(&lab, "vm1"), [[1, 2], [1, 2]]);
    lab.run(deactivate("vm1", false)).unwrap();
    lab.check();
}

#[test]
fn a_disk_grows_on_all_its_nodes() {
    for create in [created("vm1", true), created_mirrored("vm1", true)] {
        let lab = Lab::new();
        lab.run(create).unwrap();
        let job = lab.submit(grow("vm1", 1, 36));
        lab.take_office(1).settle();
        lab.outcome(job).unwrap();
        let told = " - INFO: The guest of 'vm1' sees the new size of disk 1 after 'gnt-instance reboot vm1'";
        assert_eq!(lab.lines(job), [told]);
        assert_eq!(lab.instance("vm1").unwrap().disks[1].size_mib, 100);
        lab.run(shutdown("vm1")).unwrap();
        lab.run(grow("vm1", 1, 1)).unwrap();
        assert_eq!(lab.instance("vm1").unwrap().disks[1].size_mib, 101);
        lab.check();
    }
}

#[test]
fn a_disk_neither_shrinks_nor_grows_beyond_the_space() {
    let lab = Lab::new();
    lab.run(created_mirrored("vm1", false)).unwrap();
    let absolute = |amount| {
        let op = InstanceGrowDisk { instance_name: "vm1".into(), disk: 0, amount, absolute: true };
        Opcode::InstanceGrowDisk(op)
    };
    let refused = |op| lab.run(op).unwrap_err().text;
    assert_eq!(refused(absolute(1000)), "Requested size (1000 MiB) is smaller than current disk size (1024 MiB)");
    assert_eq!(refused(absolute(1024)), "Disk 0 has 1024 MiB already");
    assert_eq!(refused(grow("vm1", 2, 1)), "There is no disk 2, instance 'vm1' has 2");
    lab.change_machine(2, |machine| machine.mirror_free_mib = 10);
    assert_eq!(
        refused(grow("vm1", 0, 11)),
        "Not enough disk space on target node node02: required 11 MiB, available 10 MiB"
    );
    lab.run(grow("vm1", 0, 10)).unwrap();
    lab.check();
}

#[test]
fn replicas_are_compared_while_nobody_uses_them() {
    let lab = Lab::new();
    lab.run(created_mirrored("vm1", true)).unwrap();
    let failure = lab.run(verify_disks("vm1")).unwrap_err();
    assert!(failure.text.starts_with("The disks of instance 'vm1' are in use on node 'node01'"), "{failure}");
    lab.run(shutdown("vm1")).unwrap();
    let disk =
        |index, chunks| json!({"index": index, "replicas": ["node01", "node02"], "chunks": chunks, "different": []});
    assert_eq!(lab.run(verify_disks("vm1")).unwrap(), json!({"disks": [disk(0, 256), disk(1, 16)]}));

    let id = lab.instance("vm1").unwrap().disks[1].id;
    lab.change_machine(2, |machine| {
        machine.mirrored.stored.values_mut().find(|it| it.disk == id).unwrap().content = "rot".into();
    });
    let job = lab.submit(verify_disks("vm1"));
    lab.take_office(1).settle();
    assert!(lab.outcome(job).unwrap_err().text.starts_with("The replicas of disk/1 of instance 'vm1' are not equal"));
    let told = [
        "* disk/0: 256 chunks compared on node01, node02: equal",
        "* disk/1: 1 of 16 chunks of 4 MiB differ between node01, node02, the first is chunk 0",
    ];
    assert_eq!(lab.lines(job), told);
    // as the failure advises
    lab.run(replace("vm1", None)).unwrap();
    lab.run(verify_disks("vm1")).unwrap();
    lab.check();
}

#[test]
fn the_second_replica_goes_to_another_node() {
    for start in [false, true] {
        let lab = Lab::new();
        lab.run(created_mirrored("vm1", start)).unwrap();
        let job = lab.submit(replace("vm1", Some("node04")));
        lab.take_office(1).settle();
        lab.outcome(job).unwrap();
        let steps: Vec<String> = lab.lines(job).into_iter().filter(|line| line.starts_with("STEP")).collect();
        let told = [
            "STEP 1/4 Allocate new storage",
            "STEP 2/4 Changing drbd configuration",
            "STEP 3/4 Sync devices",
            "STEP 4/4 Removing old storage",
        ];
        assert_eq!(steps, told);
        let instance = lab.instance("vm1").unwrap();
        assert_eq!((instance.primary, instance.secondaries), (NodeId(1), vec![NodeId(4)]));
        assert_eq!(in_sync(&lab, "vm1"), [[1, 4], [1, 4]]);
        assert!(lab.machine(2).mirrored.stored.is_empty());
        assert_eq!(guest(&lab, "vm1").is_some(), start);
        assert!(!attached(&lab, "vm1"));
        lab.check();
    }
}

#[test]
fn no_replica_goes_while_the_right_to_the_disks_is_given_but_nothing_serves_them() {
    let lab = Lab::new();
    lab.run(created_mirrored("vm1", false)).unwrap();
    let instance = lab.instance("vm1").unwrap().id;
    lab.apply(vec![Command::Own { instance, node: NodeId(1) }]).unwrap();
    for node in [None, Some("node04")] {
        let refused = lab.run(replace("vm1", node)).unwrap_err();
        assert!(refused.text.contains("are not served on its primary node 'node01'"), "{}", refused.text);
        assert_eq!(in_sync(&lab, "vm1"), [[1, 2], [1, 2]]);
    }
}

#[test]
fn an_old_secondary_that_does_not_answer_is_replaced_all_the_same() {
    let lab = Lab::new();
    lab.run(created_mirrored("vm1", true)).unwrap();
    outdate(&lab, "vm1", 2);
    let change = NodeChange { offline: Some(true), ..NodeChange::default() };
    lab.apply(vec![Command::ModifyNode { node: NodeId(2), change }]).unwrap();
    let job = lab.submit(replace("vm1", Some("node04")));
    lab.take_office(1).settle();
    lab.outcome(job).unwrap();
    let warning = " - WARNING: Can't remove the old storage of disk/0 on node 'node02': it is offline";
    assert!(lab.lines(job).iter().any(|line| line == warning), "{:?}", lab.lines(job));
    assert_eq!(in_sync(&lab, "vm1"), [[1, 4], [1, 4]]);
}

#[test]
fn a_replacement_that_fails_leaves_the_old_secondary() {
    for start in [false, true] {
        for fault in ["create_disk vm1/1", "attach", "sync"] {
            let lab = Lab::new();
            lab.run(created_mirrored("vm1", start)).unwrap();
            if start && fault == "attach" {
                continue;
            }
            lab.inner().no_resync = fault == "sync";
            lab.fault(fault, 1000, Fault::Failed);
            lab.run(replace("vm1", Some("node04"))).unwrap_err();
            assert_eq!(lab.instance("vm1").unwrap().secondaries, [NodeId(2)], "{fault}");
            assert_eq!(in_sync(&lab, "vm1"), [[1, 2], [1, 2]]);
            assert!(lab.machine(4).mirrored.stored.is_empty());
            assert_eq!(guest(&lab, "vm1").is_some(), start);
            lab.check();
        }
    }
}

#[test]
fn a_replacement_needs_a_mirrored_instance_and_another_node() {
    let lab = Lab::new();
    lab.run(created("vm1", false)).unwrap();
    lab.run(created_mirrored("vm2", false)).unwrap();
    let refused = |op| lab.run(op).unwrap_err().text;
    assert_eq!(refused(replace("vm1", Some("node04"))), "Instance's disk layout 'file' does not allow replacing disks");
    assert_eq!(refused(replace("vm2", Some("node01"))), "The specified node is the primary node of the instance");
    assert_eq!(
        refused(replace("vm2", Some("node02"))),
        "The specified node is already the secondary node of the instance"
    );
    assert_eq!(refused(replace("vm2", Some("node03"))), "Cannot use non-vm_capable secondary node 'node03'");
    lab.change_machine(4, |machine| machine.mirror_free_mib = 0);
    assert_eq!(
        refused(replace("vm2", Some("node04"))),
        "Not enough disk space on target node node04: required 1088 MiB, available 0 MiB"
    );
    lab.check();
}

/// Mirrored, if there is a second node; else files.
pub fn convert(name: &str, node: Option<&str>) -> Opcode {
    let disk_template = Some(if node.is_some() { DiskTemplate::Drbd } else { DiskTemplate::File });
    let remote_node = node.map(Into::into);
    Opcode::InstanceSetParams(Box::new(InstanceSetParams {
        instance_name: name.into(),
        disk_template,
        remote_node,
        ..Default::default()
    }))
}

#[test]
fn files_become_mirrored_disks_and_files_again() {
    let lab = Lab::new();
    lab.run(created("vm1", false)).unwrap();
    let job = lab.submit(convert("vm1", Some("node02")));
    lab.take_office(1).settle();
    assert_eq!(lab.outcome(job).unwrap(), json!([["disk_template", "drbd"]]));
    let told = [
        " - INFO: Converting disk template from 'file' to 'drbd'",
        "* creating new disks...",
        "* copying disk/0...",
        "* copying disk/1...",
        "* removing old disks...",
    ];
    assert_eq!(lab.lines(job), told);
    assert!(lab.machine(1).disks.is_empty());
    let installed = |node| lab.machine(node).mirrored.stored.values().any(|it| it.content == "busybox+default of vm1");
    assert!(installed(1) && installed(2));
    lab.check();
    lab.run(startup("vm1")).unwrap();
    lab.run(shutdown("vm1")).unwrap();

    assert_eq!(lab.run(convert("vm1", None)).unwrap(), json!([["disk_template", "file"]]));
    assert_eq!(lab.instance("vm1").unwrap().secondaries, []);
    assert_eq!(lab.machine(1).disks[&("vm1".to_owned(), 0)].content, "busybox+default of vm1");
    lab.check();
    lab.run(startup("vm1")).unwrap();
    lab.check();
}

#[test]
fn a_conversion_that_fails_leaves_the_disks_as_they_were() {
    for mirrored in [false, true] {
        for (fault, kind) in [
            ("create_disk vm1/1", Fault::Failed),
            ("attach", Fault::Failed),
            ("copy vm1/1", Fault::Refused),
            ("copy vm1/0", Fault::Unreachable),
        ] {
            let lab = Lab::new();
            lab.run(if mirrored { created_mirrored("vm1", false) } else { created("vm1", false) }).unwrap();
            let before = lab.instance("vm1").unwrap();
            lab.fault(fault, 1000, kind);
            lab.run(convert("vm1", if mirrored { None } else { Some("node02") })).unwrap_err();
            let after = lab.instance("vm1").unwrap();
            assert_eq!(after.disk_template, before.disk_template);
            assert_eq!(after.secondaries, before.secondaries);
            let ids = |instance: &model::Instance| instance.disks.iter().map(|disk| disk.id).collect::<Vec<_>>();
            assert_eq!(ids(&after), ids(&before), "{fault}");
            assert_eq!(after.owner, None);
            lab.check();
        }
    }
}

#[test]
fn a_node_that_is_restarted_during_the_copy_ends_the_conversion() {
    for mirrored in [false, true] {
        let lab = Lab::new();
        lab.run(if mirrored { created_mirrored("vm1", false) } else { created("vm1", false) }).unwrap();
        lab.fault("copy vm1/1", 1, Fault::Gate);
        let job = lab.submit(convert("vm1", if mirrored { None } else { Some("node02") }));
        let office = lab.take_office(2);
        office.settle();
        lab.boot(NodeId(1));
        drop(office);
        lab.take_office(2).settle();
        assert_eq!(lab.outcome(job).unwrap_err().text, "node 'node01' was restarted in the meantime");
        assert_eq!(lab.instance("vm1").unwrap().disk_template == DiskTemplate::Drbd, mirrored);
        lab.check();
    }
}

#[test]
fn a_conversion_is_refused_where_it_makes_no_sense() {
    let lab = Lab::new();
    lab.run(created("vm1", true)).unwrap();
    lab.run(created_mirrored("vm2", false)).unwrap();
    let refused = |op| lab.run(op).unwrap_err().text;
    assert_eq!(
        refused(convert("vm1", Some("node02"))),
        "Instance 'vm1' is running, cannot change disk template; stop it first"
    );
    lab.run(shutdown("vm1")).unwrap();
    assert_eq!(refused(convert("vm1", None)), "Instance already has disk template file");
    assert_eq!(refused(convert("vm1", Some("node01"))), "The secondary node cannot be the primary node.");
    lab.run(activate("vm2", false)).unwrap();
    assert!(refused(convert("vm2", None)).contains("deactivate-disks"));
    lab.run(deactivate("vm2", false)).unwrap();
    lab.change_machine(2, |machine| machine.mirror_free_mib = 0);
    assert_eq!(
        refused(convert("vm1", Some("node02"))),
        "Not enough disk space on target node node02: required 1088 MiB, available 0 MiB"
    );
    lab.change_machine(1, |machine| machine.disk_free_mib = 0);
    assert_eq!(
        refused(convert("vm2", None)),
        "Not enough disk space on target node node01: required 1088 MiB, available 0 MiB"
    );
    lab.check();
}

/// What the verification of the nodes finds about disks.
fn faulty_disks(lab: &Arc<Lab>) -> Vec<String> {
    let options = Verify { error_codes: true, ..Verify::default() };
    let job = lab.submit(Opcode::ClusterVerifyGroup(VerifyGroup { group_name: "default".into(), options }));
    lab.take_office(1).settle();
    lab.outcome(job).unwrap();
    let of_instances = |line: &String| line.contains("EINSTANCE");
    lab.lines(job).into_iter().filter(of_instances).map(|line| line.trim_start_matches("  - ").to_owned()).collect()
}

#[test]
fn a_verification_finds_replicas_that_are_not_as_they_should_be() {
    let lab = Lab::new();
    lab.run(created_mirrored("vm1", true)).unwrap();
    assert_eq!(faulty_disks(&lab), Vec::<String>::new());
    lab.inner().no_resync = true;
    outdate(&lab, "vm1", 2);
    let degraded = |index| {
        format!(
            "ERROR:EINSTANCEFAULTYDISK:instance:vm1:disk/{index} on node02 is degraded; local disk state is 'inconsistent'"
        )
    };
    assert_eq!(faulty_disks(&lab), [degraded(0), degraded(1)]);
    lab.change_machine(2, |machine| drop(machine.mirrored.stored.pop_last()));
    let gone = "couldn't retrieve status for disk/1 on node02: no such replica is open there";
    let found = faulty_disks(&lab);
    assert!(found.contains(&format!("ERROR:EINSTANCEFAULTYDISK:instance:vm1:{gone}")), "{found:?}");
    let change = NodeChange { offline: Some(true), ..NodeChange::default() };
    lab.apply(vec![Command::ModifyNode { node: NodeId(2), change }]).unwrap();
    let offline = "ERROR:EINSTANCEBADNODE:instance:vm1:instance has offline secondary node(s) node02";
    assert_eq!(faulty_disks(&lab), [offline]);
}

/// Interruptions of all this; see [`crate::interruption`].
pub fn cases() -> Vec<Case> {
    fn stopped(lab: &Arc<Lab>) {
        lab.run(created_mirrored("vm1", false)).unwrap();
    }
    fn running(lab: &Arc<Lab>) {
        lab.run(created_mirrored("vm1", true)).unwrap();
    }
    fn is_stopped(lab: &Arc<Lab>, job: JobId) {
        success(lab, job);
        assert_eq!(lab.instance("vm1").unwrap().owner, None);
    }
    fn runs(lab: &Arc<Lab>, job: JobId) {
        success(lab, job);
        assert!(guest(lab, "vm1").is_some());
    }
    fn is_attached(lab: &Arc<Lab>, job: JobId) {
        success(lab, job);
        assert!(attached(lab, "vm1"));
    }
    fn is_gone(lab: &Arc<Lab>, job: JobId) {
        success(lab, job);
        assert_eq!(lab.instance("vm1"), None);
    }
    fn failed(lab: &Arc<Lab>, job: JobId) {
        lab.outcome(job).unwrap_err();
    }
    fn activated(lab: &Arc<Lab>) {
        stopped(lab);
        lab.run(activate("vm1", false)).unwrap();
    }
    vec![
        case("create mirrored", |_| (), || created_mirrored("vm1", true), runs),
        case(
            "create mirrored that fails",
            |lab| lab.fault("install", 1000, Fault::Failed),
            || created_mirrored("vm1", true),
            |lab, job| {
                failed(lab, job);
                assert_eq!(lab.instance("vm1"), None);
            },
        ),
        case("startup mirrored", stopped, || startup("vm1"), runs),
        case("startup of what is attached", activated, || startup("vm1"), runs),
        case("shutdown mirrored", running, || shutdown("vm1"), is_stopped),
        case("shutdown of what is attached", activated, || shutdown("vm1"), is_stopped),
        case("remove mirrored", running, || remove("vm1", false), is_gone),
        case("activate", stopped, || activate("vm1", false), is_attached),
        case(
            "activate that fails",
            |lab| {
                stopped(lab);
                lab.fault("attach", 1000, Fault::Failed);
            },
            || activate("vm1", false),
            |lab, job| {
                failed(lab, job);
                assert_eq!(lab.instance("vm1").unwrap().owner, None);
            },
        ),
        case("deactivate", activated, || deactivate("vm1", false), is_stopped),
        case(
            "grow",
            running,
            || grow("vm1", 0, 10),
            |lab, job| {
                success(lab, job);
                assert_eq!(lab.instance("vm1").unwrap().disks[0].size_mib, 1034);
            },
        ),
        case("compare", stopped, || verify_disks("vm1"), is_stopped),
        case("replace under a guest", running, || replace("vm1", Some("node04")), runs),
        case("replace of what is stopped", stopped, || replace("vm1", Some("node04")), is_stopped),
        case("replace on the same node", stopped, || replace("vm1", None), is_stopped),
        case(
            "replace that fails",
            |lab| {
                stopped(lab);
                lab.fault("attach", 1000, Fault::Failed);
            },
            || replace("vm1", Some("node04")),
            failed,
        ),
        case(
            "convert to mirrored",
            |lab| drop(lab.run(created("vm1", false)).unwrap()),
            || convert("vm1", Some("node02")),
            is_stopped,
        ),
        case("convert to files", stopped, || convert("vm1", None), is_stopped),
        case(
            "convert to mirrored that fails",
            |lab| {
                lab.run(created("vm1", false)).unwrap();
                lab.fault("copy vm1/1", 1000, Fault::Refused);
            },
            || convert("vm1", Some("node02")),
            failed,
        ),
        case(
            "convert to files that fails",
            |lab| {
                stopped(lab);
                lab.fault("copy vm1/1", 1000, Fault::Failed);
            },
            || convert("vm1", None),
            failed,
        ),
    ]
}
