//! Moving everything off a node.

use std::sync::Arc;

use model::{JobId, JobStatus, NodeId};
use opcodes::Opcode;
use opcodes::op::*;

use crate::disks::created_mirrored;
use crate::lab::{Fault, Lab};
use crate::moves::{assert_runs, running};
use crate::operations::*;

fn jobs_of(lab: &Arc<Lab>, op: Opcode) -> Vec<JobId> {
    let result = lab.run(op).unwrap();
    let ids = result["jobs"].as_array().unwrap().iter().map(|pair| {
        assert_eq!(pair[0], true);
        JobId(pair[1].as_u64().unwrap())
    });
    ids.collect()
}

pub fn evacuate(mode: EvacuationMode, remote_node: Option<&str>) -> Opcode {
    let (node_name, remote_node) = ("node01".into(), remote_node.map(Into::into));
    Opcode::NodeEvacuate(NodeEvacuate { node_name, mode, remote_node })
}

#[test]
fn everything_is_migrated_off_a_node_at_the_same_time() {
    let lab = Lab::new();
    for name in ["vm1", "vm2", "vm3"] {
        lab.run(created_mirrored(name, name != "vm3")).unwrap();
    }
    let op = NodeMigrate { node_name: "node01".into(), allow_failover: true, ..Default::default() };
    // All of them have begun before any of them is let go on.
    lab.fault("receive", 2, Fault::Gate);
    let job = lab.submit(Opcode::NodeMigrate(op));
    let office = lab.take_office(1);
    office.settle();
    let begun: Vec<_> = ["vm1", "vm2"].iter().filter(|name| lab.instance(name).unwrap().migration.is_some()).collect();
    assert_eq!(begun.len(), 2);
    lab.open_gate();
    office.settle();
    drop(office);
    assert_eq!(lab.outcome(job).unwrap()["jobs"].as_array().unwrap().len(), 3);
    for name in ["vm1", "vm2", "vm3"] {
        assert_eq!(lab.instance(name).unwrap().primary, NodeId(2), "{name}");
    }
    lab.check();
    assert_eq!(jobs_of(&lab, evacuate(EvacuationMode::PrimaryOnly, None)), []);
}

#[test]
fn a_node_is_evacuated() {
    let lab = Lab::new();
    running(&lab);
    let jobs = jobs_of(&lab, evacuate(EvacuationMode::PrimaryOnly, None));
    assert_eq!(jobs.len(), 1);
    assert_runs(&lab, 2, 2);
    // Its second replica is there now.
    assert_eq!(jobs_of(&lab, evacuate(EvacuationMode::PrimaryOnly, None)), []);
    let jobs = jobs_of(&lab, evacuate(EvacuationMode::SecondaryOnly, None));
    assert_eq!(jobs.len(), 1);
    assert_eq!(lab.status(jobs[0]), JobStatus::Success, "{:?}", lab.outcome(jobs[0]));
    assert_eq!(lab.instance("vm1").unwrap().secondaries, [NodeId(4)]);
    assert!(lab.machine(1).mirrored.stored.is_empty());
    lab.check();

    let lab = Lab::new();
    running(&lab);
    let jobs = jobs_of(&lab, evacuate(EvacuationMode::All, Some("node04")));
    assert_eq!(lab.status(jobs[0]), JobStatus::Success, "{:?}", lab.outcome(jobs[0]));
    let vm1 = lab.instance("vm1").unwrap();
    assert_eq!((vm1.primary, vm1.secondaries), (NodeId(2), vec![NodeId(4)]));
    lab.check();
}

#[test]
fn an_evacuation_that_has_no_place_is_refused_with_a_reason_for_each_instance() {
    let refused = |lab: &Arc<Lab>, op| {
        let before = lab.state().jobs.len();
        let text = lab.run(op).unwrap_err().text;
        assert_eq!(lab.state().jobs.len(), before + 1, "nothing was submitted");
        text
    };
    let lab = Lab::new();
    running(&lab);
    lab.run(created("vm2", false)).unwrap();
    let text = refused(&lab, evacuate(EvacuationMode::PrimaryOnly, None));
    assert_eq!(text, "Unable to evacuate instances vm2 (Instances of type file cannot be relocated)");
    lab.run(remove("vm2", false)).unwrap();
    lab.change_machine(4, |it| it.mirror_free_mib = 100);
    let text = refused(&lab, evacuate(EvacuationMode::All, None));
    assert_eq!(
        text,
        "Unable to evacuate instances vm1 (its second replica needs 1088 MiB, and node node04, which has most space, has 100 MiB)"
    );
    lab.change_machine(4, |it| it.down = true);
    let text = refused(&lab, evacuate(EvacuationMode::All, None));
    assert_eq!(text, "Unable to evacuate instances vm1 (no other node can take its second replica)");
    let text = refused(&lab, evacuate(EvacuationMode::All, Some("node01")));
    assert_eq!(text, "Node 'node01' can't be evacuated to itself");
    let text = refused(&lab, evacuate(EvacuationMode::All, Some("node03")));
    assert_eq!(text, "Can't use node 'node03' for second replicas: it is offline, drained or not vm_capable");
}
