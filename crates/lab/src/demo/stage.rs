//! A cluster at one moment, as a figure of the thesis shows it: from its own answers, and from what the machine on which
//! the lab runs sees of cables and processes.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, ensure};
use opcodes::disks::{DiskReport, NodeReplica, ReplicaReport};
use opcodes::wire::{Cell, Query, Request, Resource, Table};
use serde::Serialize;
use serde_json::Value;

use crate::cluster::Status;
use crate::parts::{command_lines, guest, namespace};
use crate::process::is_stopped;
use crate::{Api, Cut, Lab, Node, layout};

/// How long a node may take to say how the cluster is. It waits some seconds itself for nodes that don't answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// A cluster at one moment.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Stage {
    /// Name of the cluster.
    pub cluster: String,
    /// Its address.
    pub address: Option<Ipv4Addr>,
    /// The nodes that have the cluster's address; more than one would be a fault.
    pub holders: Vec<String>,
    pub nodes: Vec<Machine>,
    pub instances: Vec<Instance>,
    /// Who said so; `None` when no node did, and what was said before is shown.
    pub said_by: Option<String>,
}

/// A node, or the witness.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Machine {
    pub name: String,
    pub address: Ipv4Addr,
    pub role: Role,
    pub condition: Condition,
    /// Whether it may run instances; the witness may not.
    pub vm_capable: bool,
    /// What is wrong with its cable to the public network.
    pub public: Option<Cut>,
    /// What is wrong with its cable to the replication network.
    pub replication: Option<Cut>,
}

/// What a node is in the cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Role {
    Master,
    Candidate,
    Regular,
    /// Votes, and does nothing else.
    Witness,
    Drained,
    /// Marked so by an administrator.
    Offline,
    /// In no cluster, or nobody says.
    None,
}

/// How a machine is, whatever the cluster knows of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Condition {
    Alive,
    /// Switched off, or without power.
    Dead,
    /// It lives, but both its cables are cut.
    Isolated,
}

/// An instance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Instance {
    pub name: String,
    /// Its node, as the cluster knows it.
    pub primary: String,
    /// Its status, in Ganeti's words.
    pub status: String,
    /// Its processes, as the machine sees them.
    pub guests: Vec<Guest>,
    /// Its disks' replicas, one for each node that has one; none if its disks are not mirrored.
    pub replicas: Vec<Replica>,
}

/// A QEMU of an instance.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Guest {
    pub node: String,
    /// Stopped where it is (SIGSTOP): its node's lease has run out.
    pub stopped: bool,
}

/// A node's copy of an instance's disks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Replica {
    pub node: String,
    /// `UpToDate` and so on; the worst of several disks. `None`: its node does not say.
    pub state: Option<String>,
    pub primary: bool,
    pub standing: Standing,
}

/// What a replica is to the others.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Standing {
    /// It holds every acknowledged write.
    InSync,
    /// It is being brought up to date; per cent that are done.
    Syncing(f64),
    /// It may lack writes.
    Outdated,
}

impl Stage {
    /// How a lab's cluster is now, as the node `seen_by` says; where it can't say that (it has no master), what an earlier
    /// stage of the same nodes showed, with what the machine sees now.
    pub fn gather(lab: &Lab, seen_by: &str, before: Option<&Stage>) -> anyhow::Result<Stage> {
        let members = members(lab)?;
        let mut stage = match (said_in_time(lab.node(seen_by)?), before.filter(|stage| stage.is_of(&members))) {
            (Some(said), _) => Stage { said_by: Some(seen_by.to_owned()), ..said.stage(&members)? },
            (None, Some(before)) => Stage { said_by: None, ..before.clone() },
            (None, None) => Stage::of_machines(&members),
        };
        stage.see(lab, &members)?;
        Ok(stage)
    }

    /// The same, with what the machine sees now: for what has just happened, which the nodes can't know yet. Asked now they
    /// would say how it is in some seconds.
    pub fn right_after(&self, lab: &Lab) -> anyhow::Result<Stage> {
        let members = members(lab)?;
        ensure!(self.is_of(&members), "the stage before is that of another lab");
        let mut stage = Stage { said_by: None, ..self.clone() };
        stage.see(lab, &members)?;
        Ok(stage)
    }

    fn is_of(&self, members: &[Status]) -> bool {
        self.nodes.iter().map(|node| &node.name).eq(members.iter().map(|member| &member.name))
    }

    fn see(&mut self, lab: &Lab, members: &[Status]) -> anyhow::Result<()> {
        for (node, member) in self.nodes.iter_mut().zip(members) {
            node.see(member);
        }
        self.holders = holders(lab, members, self.address)?;
        let guests = guests(members)?;
        for instance in &mut self.instances {
            instance.guests = guests.get(&instance.name).cloned().unwrap_or_default();
        }
        Ok(())
    }

    /// Only what the machine sees.
    fn of_machines(members: &[Status]) -> Stage {
        let node = |member: &Status| Machine {
            name: member.name.clone(),
            address: member.address,
            role: Role::None,
            condition: Condition::Alive,
            vm_capable: true,
            public: None,
            replication: None,
        };
        Stage {
            cluster: String::new(),
            address: None,
            holders: Vec::new(),
            nodes: members.iter().map(node).collect(),
            instances: Vec::new(),
            said_by: None,
        }
    }
}

impl Machine {
    fn see(&mut self, member: &Status) {
        self.public = member.public;
        self.replication = member.replication;
        self.condition = match (member.pid, member.public, member.replication) {
            (None, _, _) => Condition::Dead,
            (Some(_), Some(Cut::Both), Some(Cut::Both)) => Condition::Isolated,
            _ => Condition::Alive,
        };
    }
}

/// Nodes and witness.
fn members(lab: &Lab) -> anyhow::Result<Vec<Status>> {
    Ok(lab.status()?.into_iter().filter(|member| member.name != layout::CLIENT).collect())
}

/// What a cluster says of itself.
struct Said {
    cluster: String,
    nodes: Vec<Vec<Cell>>,
    instances: Vec<Vec<Cell>>,
    disks: Vec<DiskReport>,
}

/// What a node says; `None`: it can't, or not in time.
fn said_in_time(node: Node) -> Option<Said> {
    let (to, said) = mpsc::channel();
    // One that waits for a node that is gone ends long after there is anybody to hear it.
    thread::spawn(move || {
        if let Ok(said) = Said::ask(&node) {
            let _ = to.send(said);
        }
    });
    said.recv_timeout(PATIENCE).ok()
}

const NODE: [&str; 3] = ["name", "role", "vm_capable"];
const INSTANCE: [&str; 3] = ["name", "pnode", "status"];

impl Said {
    fn ask(node: &Node) -> anyhow::Result<Said> {
        let api = Api::of(node)?;
        let table = |what, fields: [&str; 3]| {
            let fields = fields.map(str::to_owned).into();
            anyhow::Ok(api.call::<Table>(&Request::Query(Query { what, fields, names: None }))?.data)
        };
        let status = api.status()?;
        Ok(Said {
            cluster: status.cluster.context("the node is in no cluster")?,
            nodes: table(Resource::Node, NODE)?,
            instances: table(Resource::Instance, INSTANCE)?,
            disks: api.call(&Request::Disks { names: Vec::new() })?,
        })
    }

    fn stage(&self, members: &[Status]) -> anyhow::Result<Stage> {
        let mut stage = Stage::of_machines(members);
        stage.cluster.clone_from(&self.cluster);
        stage.address = layout::other(&self.cluster);
        for node in &mut stage.nodes {
            let row = self.nodes.iter().find(|row| row.first().is_some_and(|cell| cell.1 == *node.name));
            if let Some([_, role, vm_capable]) = row.map(Vec::as_slice) {
                node.vm_capable = vm_capable.1 != false;
                node.role = role_of(role, node.vm_capable);
            }
        }
        let text = |cell: &Cell| cell.1.as_str().map(str::to_owned).context("a list's cell has no text");
        for row in &self.instances {
            let [name, primary, status] = row.as_slice() else { continue };
            let name = text(name)?;
            let disks: Vec<&DiskReport> = self.disks.iter().filter(|disk| disk.instance == name).collect();
            stage.instances.push(Instance {
                primary: text(primary)?,
                status: text(status)?,
                guests: Vec::new(),
                replicas: replicas(&disks),
                name,
            });
        }
        Ok(stage)
    }
}

fn role_of(cell: &Cell, vm_capable: bool) -> Role {
    match &cell.1 {
        Value::String(letter) => match letter.as_str() {
            "M" => Role::Master,
            "O" => Role::Offline,
            "D" => Role::Drained,
            _ if !vm_capable => Role::Witness,
            "C" => Role::Candidate,
            _ => Role::Regular,
        },
        _ => Role::None,
    }
}

/// The replicas of an instance by node. Of several disks the worst counts.
fn replicas(disks: &[&DiskReport]) -> Vec<Replica> {
    let mut replicas: Vec<Replica> = Vec::new();
    for disk in disks {
        for replica in &disk.replicas {
            let one = replica_of(disk, replica);
            match replicas.iter_mut().find(|other| other.node == one.node) {
                Some(other) if badness(one.standing) > badness(other.standing) => *other = one,
                Some(_) => {}
                None => replicas.push(one),
            }
        }
    }
    replicas
}

fn badness(standing: Standing) -> f64 {
    match standing {
        Standing::InSync => 0.0,
        Standing::Syncing(done) => 200.0 - done,
        Standing::Outdated => 300.0,
    }
}

fn replica_of(disk: &DiskReport, replica: &NodeReplica) -> Replica {
    let is_member = disk.in_sync.contains(&replica.node);
    let reports = || disk.replicas.iter().filter_map(|other| other.report.as_ref());
    let resync = reports().flat_map(|report| &report.peers).filter(|peer| peer.node == replica.node);
    let resync = resync.filter_map(|peer| peer.resync).next();
    let standing = match (is_member, resync) {
        (true, _) => Standing::InSync,
        (false, Some(resync)) => Standing::Syncing(100.0 * resync.done as f64 / resync.total.max(1) as f64),
        (false, None) => Standing::Outdated,
    };
    let state = replica.report.as_ref().map(|report: &ReplicaReport| report.state.clone());
    Replica { node: replica.node.clone(), state, primary: disk.primary.as_ref() == Some(&replica.node), standing }
}

/// The nodes that have this address.
fn holders(lab: &Lab, members: &[Status], address: Option<Ipv4Addr>) -> anyhow::Result<Vec<String>> {
    let Some(address) = address else { return Ok(Vec::new()) };
    let mut holders = Vec::new();
    for member in members.iter().filter(|member| member.pid.is_some()) {
        let shown = lab.node(&member.name)?.exec(["ip", "-o", "-4", "address", "show"])?.stdout;
        if shown.contains(&format!(" {address}/")) {
            holders.push(member.name.clone());
        }
    }
    Ok(holders)
}

/// Every guest's processes, by the name of its instance.
fn guests(members: &[Status]) -> anyhow::Result<BTreeMap<String, Vec<Guest>>> {
    let mut homes = BTreeMap::new();
    for member in members {
        if let Some(inside) = member.pid.and_then(|pid| namespace(pid).ok()) {
            homes.insert(inside, &member.name);
        }
    }
    let mut guests: BTreeMap<String, Vec<Guest>> = BTreeMap::new();
    for (pid, line) in command_lines().context("can't look for guests")? {
        let Some(instance) = guest(&line) else { continue };
        let Some(node) = namespace(pid).ok().and_then(|inside| homes.get(&inside)) else { continue };
        let of_instance = guests.entry(instance.to_owned()).or_default();
        // What QEMU has just forked has its command line until it becomes what it is to be.
        if of_instance.iter().all(|guest| guest.node != **node) {
            of_instance.push(Guest { node: (*node).clone(), stopped: is_stopped(pid) });
        }
    }
    Ok(guests)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn disk(index: usize, in_sync: &[&str], second: Value) -> DiskReport {
        let report = |state: &str, peers: Value| {
            json!({
                "disk": "00000000-0000-0000-0000-000000000001", "replica": "00000000-0000-0000-0000-000000000002", "role": "Primary", "state": state, "peers": peers,
                "serving": null, "counters": {"sent": 0, "received": 0, "written": 0, "read": 0}, "pending": 0,
                "waiting": 0, "holding": false, "suspended": false, "failed": null,
            })
        };
        let peer = json!([{
            "node": "node02", "connection": "SyncSource", "role": "Secondary", "state": "Inconsistent",
            "out_of_sync": 1, "resync": second, "refused": null,
        }]);
        serde_json::from_value(json!({
            "instance": "vm1", "index": index, "disk": "00000000-0000-0000-0000-000000000001", "size_mib": 128,
            "mode": "strict", "epoch": "0.1", "version": "0.1", "in_sync": in_sync, "primary": "node01",
            "replicas": [
                {"node": "node01", "report": report("UpToDate", peer), "why": null},
                {"node": "node02", "report": null, "why": "no answer"},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn the_worst_of_several_disks_is_shown() {
        let good = disk(0, &["node01", "node02"], Value::Null);
        let synced = replicas(&[&good]);
        assert_eq!(synced[1].standing, Standing::InSync);
        assert_eq!((synced[0].primary, synced[1].primary), (true, false));
        assert_eq!((synced[0].state.as_deref(), synced[1].state.as_deref()), (Some("UpToDate"), None));
        let behind = disk(1, &["node01"], json!({"total": 200, "done": 50, "rate": 1, "eta_s": null}));
        assert_eq!(replicas(&[&good, &behind])[1].standing, Standing::Syncing(25.0));
        let gone = disk(2, &["node01"], Value::Null);
        assert_eq!(replicas(&[&gone, &good, &behind])[1].standing, Standing::Outdated);
        assert_eq!(replicas(&[]), Vec::new());
    }

    #[test]
    fn roles_are_the_lists_letters() {
        let role = |letter: &str, vm_capable| role_of(&Cell::value(letter), vm_capable);
        assert_eq!(role("M", true), Role::Master);
        assert_eq!(role("C", true), Role::Candidate);
        assert_eq!(role("R", false), Role::Witness);
        assert_eq!(role("O", false), Role::Offline);
    }
}
