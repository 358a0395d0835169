//! What the operations do when all goes well, and what they refuse.

use model::{AdminState, JobStatus, NodeId, NodeRole, ParamValue};
use opcodes::op::*;
use opcodes::{ErrorCode, Failure, Opcode};
use serde_json::json;

use crate::lab::{Fault, Lab};

/// vm1: two disks, an interface, an operating system, on node01.
pub fn create(name: &str) -> InstanceCreate {
    let json = json!({
        "instance_name": name,
        "pnode": "node01",
        "disk_template": "file",
        "disks": [{"size": 1024}, {"size": 64}],
        "nics": [{}],
        "os_type": "busybox+default",
        "name_check": false,
        "ip_check": false,
    });
    serde_json::from_value(json).unwrap()
}

pub fn created(name: &str, start: bool) -> Opcode {
    Opcode::InstanceCreate(Box::new(InstanceCreate { start, ..create(name) }))
}

pub fn startup(name: &str) -> Opcode {
    Opcode::InstanceStartup(InstanceStartup { instance_name: name.into(), ..Default::default() })
}

pub fn shutdown(name: &str) -> Opcode {
    Opcode::InstanceShutdown(InstanceShutdown {
        instance_name: name.into(),
        timeout: 30,
        no_remember: false,
        force: false,
    })
}

pub fn reboot(name: &str, reboot_type: RebootType) -> Opcode {
    Opcode::InstanceReboot(InstanceReboot { instance_name: name.into(), reboot_type, shutdown_timeout: 30 })
}

pub fn remove(name: &str, ignore_failures: bool) -> Opcode {
    Opcode::InstanceRemove(InstanceRemove { instance_name: name.into(), shutdown_timeout: 30, ignore_failures })
}

pub fn modify(name: &str) -> Opcode {
    let json = json!({
        "instance_name": name,
        "beparams": {"memory": 256},
        "nics": [{"action": "add", "index": -1, "nic": {}}],
    });
    Opcode::InstanceSetParams(serde_json::from_value(json).unwrap())
}

pub fn node_add(name: &str) -> Opcode {
    Opcode::NodeAdd(serde_json::from_value(json!({"node_name": name})).unwrap())
}

pub fn node_modify(name: &str, change: serde_json::Value) -> Opcode {
    let mut op = json!({"node_name": name});
    op.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
    Opcode::NodeSetParams(serde_json::from_value(op).unwrap())
}

pub fn node_remove(name: &str) -> Opcode {
    Opcode::NodeRemove { node_name: name.into() }
}

/// The guest of an instance: its run, whether it is paused, how often it was reset.
pub fn guest(lab: &Lab, name: &str) -> Option<(u64, bool, u32)> {
    let found: Vec<_> = (1..=4)
        .flat_map(|node| lab.machine(node).guests)
        .filter(|(_, guest)| guest.name == name)
        .map(|(run, guest)| (run.0, guest.paused, guest.resets))
        .collect();
    assert!(found.len() <= 1, "{name} runs {} times", found.len());
    found.first().copied()
}

#[test]
fn an_instance_is_made_installed_and_started() {
    let lab = Lab::new();
    let id = lab.submit(created("vm1", true));
    lab.take_office(1).settle();
    assert_eq!(lab.outcome(id).unwrap(), json!(["node01"]));
    assert_eq!(
        lab.take_journal(),
        [
            "node01 facts",
            "node01 check vm1",
            "node01 create_disk vm1/0",
            "node01 create_disk vm1/1",
            "node01 install vm1",
            "node01 start vm1 1",
        ]
    );
    assert_eq!(
        lab.lines(id),
        [
            "* disk 0, size 1.0G",
            "* disk 1, size 64M",
            "* creating instance disks...",
            "adding instance vm1 to cluster config",
            "adding disks to cluster config",
            "* running the instance OS create scripts...",
            "* starting instance...",
        ]
    );
    assert_eq!(lab.instance("vm1").unwrap().want, AdminState::Up);
    assert_eq!(guest(&lab, "vm1"), Some((1, false, 0)));
    assert_eq!(lab.machine(1).disks[&("vm1".to_owned(), 0)].content, "busybox+default of vm1");
    lab.check();
}

#[test]
fn an_instance_need_not_be_started_or_installed_or_have_disks() {
    let lab = Lab::new();
    lab.run(Opcode::InstanceCreate(Box::new(InstanceCreate { no_install: true, start: false, ..create("vm1") })))
        .unwrap();
    assert_eq!(lab.instance("vm1").unwrap().want, AdminState::Down);
    assert_eq!(lab.machine(1).disks[&("vm1".to_owned(), 0)].content, "");
    let diskless = InstanceCreate {
        disk_template: Some(model::DiskTemplate::Diskless),
        disks: vec![],
        pnode: Some("node04".into()),
        ..create("vm2")
    };
    lab.run(Opcode::InstanceCreate(Box::new(diskless))).unwrap();
    assert_eq!(guest(&lab, "vm2"), Some((1, false, 0)));
    lab.check();
}

#[test]
fn an_instance_that_can_not_be_is_refused_before_anything_is_made() {
    let lab = Lab::new();
    lab.run(created("vm1", false)).unwrap();
    lab.run(node_modify("node04", json!({"drained": true}))).unwrap();
    lab.take_journal();
    let change = |change: fn(&mut InstanceCreate)| {
        let mut op = create("vm2");
        change(&mut op);
        op
    };
    use ErrorCode::*;
    for (what, op, code) in [
        ("its name", change(|op| op.instance_name = "vm1".into()), Some(AlreadyExists)),
        ("a name that is no host's", change(|op| op.instance_name = "../vm".into()), Some(WrongInput)),
        ("no node", change(|op| op.pnode = None), Some(WrongInput)),
        ("an unknown node", change(|op| op.pnode = Some("node09".into())), Some(UnknownEntity)),
        ("a witness", change(|op| op.pnode = Some("node03".into())), Some(WrongState)),
        ("a drained node", change(|op| op.pnode = Some("node04".into())), Some(WrongState)),
        ("a second node", change(|op| op.snode = Some("node02".into())), Some(WrongInput)),
        ("no disks", change(|op| op.disks.clear()), Some(WrongInput)),
        ("an empty disk", change(|op| op.disks[0].size = 0), Some(WrongInput)),
        ("too much disk", change(|op| op.disks[0].size = 1 << 40), Some(InsufficientResources)),
        (
            "too much memory",
            change(|op| {
                op.beparams.insert("memory".into(), ParamValue::Text("1t".into()));
            }),
            Some(InsufficientResources),
        ),
        (
            "an unknown parameter",
            change(|op| {
                op.beparams.insert("nosuch".into(), ParamValue::Int(1));
            }),
            Some(WrongInput),
        ),
        ("an unknown hypervisor", change(|op| op.hypervisor = Some("xen".into())), Some(WrongState)),
        ("an unknown system", change(|op| op.os_type = Some("plan9".into())), None),
        (
            "no such name",
            change(|op| {
                op.name_check = true;
                op.instance_name = "ghost".into();
            }),
            Some(ResolverError),
        ),
    ] {
        let before = lab.state().instances.clone();
        let failure = lab.run(Opcode::InstanceCreate(Box::new(op))).expect_err(what);
        assert_eq!(failure.code, code, "{what}: {failure}");
        assert_eq!(lab.state().instances, before, "{what}");
        let asked = |line: &String| ["facts", "check vm2"].iter().any(|only| line.ends_with(only));
        assert!(lab.take_journal().iter().all(asked), "{what}");
    }
    lab.check();
}

#[test]
fn an_instance_is_started_once_and_stopped() {
    let lab = Lab::new();
    lab.run(created("vm1", false)).unwrap();
    lab.take_journal();
    lab.run(startup("vm1")).unwrap();
    lab.run(startup("vm1")).unwrap();
    assert_eq!(lab.take_journal(), ["node01 facts", "node01 start vm1 1", "node01 facts", "node01 facts"]);
    assert_eq!(lab.instance("vm1").unwrap().want, AdminState::Up);

    let id = lab.submit(shutdown("vm1"));
    lab.take_office(1).settle();
    assert_eq!(lab.take_journal(), ["node01 stop vm1 1"]);
    assert!(lab.lines(id).is_empty());
    let vm1 = lab.instance("vm1").unwrap();
    assert_eq!((vm1.want, vm1.owner, vm1.run), (AdminState::Down, None, None));
    // stopping what is stopped is fine
    lab.run(shutdown("vm1")).unwrap();
    assert_eq!(lab.take_journal(), [""; 0]);
    lab.check();
}

#[test]
fn a_guest_that_does_not_obey_is_ended_and_that_is_said() {
    let lab = Lab::new();
    lab.run(created("vm1", true)).unwrap();
    lab.change_machine(1, |machine| machine.stubborn = true);
    let id = lab.submit(shutdown("vm1"));
    lab.take_office(1).settle();
    assert_eq!(lab.lines(id), [" - WARNING: Instance 'vm1' did not shut down within 30 seconds and was ended"]);
    lab.check();
}

#[test]
fn a_guest_that_has_gone_by_itself_is_started_in_a_new_run() {
    let lab = Lab::new();
    lab.run(created("vm1", true)).unwrap();
    lab.change_machine(1, |machine| machine.ended.extend(std::mem::take(&mut machine.guests).into_keys()));
    lab.run(startup("vm1")).unwrap();
    assert_eq!(guest(&lab, "vm1"), Some((2, false, 0)));
    lab.check();
    // and so is one whose node was booted
    lab.boot(NodeId(1));
    lab.run(startup("vm1")).unwrap();
    assert_eq!(guest(&lab, "vm1"), Some((3, false, 0)));
    lab.check();
}

#[test]
fn an_instance_is_restarted_as_asked() {
    let lab = Lab::new();
    lab.run(created("vm1", true)).unwrap();
    lab.run(reboot("vm1", RebootType::Soft)).unwrap();
    assert_eq!(guest(&lab, "vm1"), Some((1, false, 1)));
    for (kind, run) in [(RebootType::Hard, 2), (RebootType::Full, 3)] {
        lab.run(reboot("vm1", kind)).unwrap();
        assert_eq!(guest(&lab, "vm1"), Some((run, false, 0)));
    }
    lab.run(shutdown("vm1")).unwrap();
    let failure = lab.run(reboot("vm1", RebootType::Hard)).unwrap_err();
    assert_eq!(failure.code, Some(ErrorCode::WrongState));
    lab.check();
}

#[test]
fn an_instance_is_removed_with_its_disks() {
    let lab = Lab::new();
    lab.run(created("vm1", true)).unwrap();
    lab.take_journal();
    lab.run(remove("vm1", false)).unwrap();
    assert_eq!(lab.take_journal(), ["node01 stop vm1 1", "node01 remove_disk vm1/0", "node01 remove_disk vm1/1"]);
    assert_eq!(lab.instance("vm1"), None);
    assert_eq!(lab.run(remove("vm1", false)), Err(Failure::unknown("Instance", "vm1")));
    lab.check();
}

#[test]
fn an_instance_is_changed() {
    let lab = Lab::new();
    lab.run(created("vm1", false)).unwrap();
    let told = lab.run(modify("vm1")).unwrap();
    let vm1 = lab.instance("vm1").unwrap();
    assert_eq!(vm1.beparams["maxmem"], ParamValue::Int(256));
    assert_eq!(vm1.nics.len(), 2);
    assert_eq!(told, json!([["be/memory", "256"], ["nic.1", format!("add:mac={}", vm1.nics[1].mac)]]));

    let offline = |offline: bool| {
        Opcode::InstanceSetParams(Box::new(InstanceSetParams {
            instance_name: "vm1".into(),
            offline: Some(offline),
            ..Default::default()
        }))
    };
    lab.run(offline(true)).unwrap();
    assert_eq!(lab.run(startup("vm1")).unwrap_err().code, Some(ErrorCode::WrongState));
    lab.run(offline(false)).unwrap();
    lab.run(startup("vm1")).unwrap();
    assert_eq!(lab.run(offline(true)).unwrap_err().code, Some(ErrorCode::WrongState));
    // what was running on a node that was booted since is not running
    lab.boot(NodeId(1));
    lab.run(offline(true)).unwrap();
    lab.check();
}

#[test]
fn a_node_is_added_by_its_token_and_removed() {
    let lab = Lab::new();
    let id = lab.submit(node_add("node05"));
    lab.machine_joins();
    lab.take_office(1).settle();
    lab.outcome(id).unwrap();
    assert_eq!(
        lab.lines(id),
        [
            "On node05, as root, type within 5 minutes:",
            "  cardume join --token word 10.0.0.5",
            " - INFO: Node will be a master candidate",
        ]
    );
    assert_eq!(lab.state().role(NodeId(5)), Some(NodeRole::MasterCandidate));
    lab.check();

    assert_eq!(lab.run(node_add("node05")).unwrap_err().code, Some(ErrorCode::AlreadyExists));
    let id = lab.submit(node_remove("node05"));
    lab.take_office(1).settle();
    lab.outcome(id).unwrap();
    assert!(lab.lines(id).is_empty());
    lab.check();
}

#[test]
fn a_machine_that_does_not_come_leaves_nothing() {
    let lab = Lab::new();
    let failure = lab.run(node_add("node05")).unwrap_err();
    assert_eq!(failure.text, "'node05' did not join within 5 minutes; run 'gnt-node add node05' again");
    lab.check();
}

#[test]
fn a_nodes_roles_are_changed() {
    let lab = Lab::new();
    let told = lab.run(node_modify("node02", json!({"offline": true}))).unwrap();
    assert_eq!(told, json!([["offline", "True"]]));
    assert_eq!(lab.state().role(NodeId(2)), Some(NodeRole::Offline));
    lab.fault("ping", 1, Fault::Unreachable);
    let failure = lab.run(node_modify("node02", json!({"offline": false}))).unwrap_err();
    assert_eq!(failure.code, Some(ErrorCode::WrongState));
    lab.run(node_modify("node02", json!({"offline": false}))).unwrap();
    for (what, change) in [("nothing", json!({})), ("two states", json!({"offline": true, "drained": true}))] {
        assert_eq!(lab.run(node_modify("node02", change)).unwrap_err().code, Some(ErrorCode::WrongInput), "{what}");
    }
    let failure = lab.run(node_modify("node01", json!({"offline": true}))).unwrap_err();
    assert_eq!(failure.text, "The master role can be changed only via master-failover");
    assert!(lab.run(node_remove("node01")).is_err());
    lab.check();
}

#[test]
fn a_verification_is_a_job_for_the_configuration_and_one_for_each_group() {
    let lab = Lab::new();
    lab.run(created("vm1", true)).unwrap();
    let before = lab.state().last_job;
    let jobs = lab.run(Opcode::ClusterVerify(Verify::default())).unwrap();
    let (config, group) = (before + 2, before + 3);
    assert_eq!(jobs, json!({"jobs": [[true, config], [true, group]]}));
    for job in [config, group] {
        assert_eq!(lab.outcome(model::JobId(job)).unwrap(), json!(true), "{:?}", lab.lines(model::JobId(job)));
    }
    // a guest that is gone is found
    lab.change_machine(1, |machine| machine.guests.clear());
    let Opcode::ClusterVerifyGroup(op) = serde_json::from_value(json!({
        "OP_ID": "OP_CLUSTER_VERIFY_GROUP", "group_name": "default",
    }))
    .unwrap() else {
        unreachable!()
    };
    let id = lab.submit(Opcode::ClusterVerifyGroup(op));
    lab.take_office(1).settle();
    assert_eq!(lab.outcome(id).unwrap(), json!(false));
    assert!(lab.lines(id).contains(&"  - ERROR: instance vm1: instance not running on its primary node node01".into()));
    assert_eq!(lab.status(id), JobStatus::Success);
}

#[test]
fn the_configuration_is_waited_for_on_every_node_that_is_not_offline() {
    let lab = Lab::new();
    lab.run(node_modify("node04", json!({"offline": true}))).unwrap();
    lab.fault("caught_up", 1, Fault::Refused);
    lab.take_journal();
    let id = lab.submit(Opcode::ClusterRedistConf {});
    lab.take_office(1).settle();
    lab.outcome(id).unwrap();
    assert_eq!(lab.take_journal().len(), 2);
    assert_eq!(lab.lines(id), [" - WARNING: Copy of the configuration to node node01 failed: no such luck"]);
}
