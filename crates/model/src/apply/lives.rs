//! Commands on lives: a node is declared dead, what it had goes to others, it may be judged at all (protocol, 7.3 and 9).

use super::unknown;
use crate::command::{Applied, Rejection};
use crate::disk::{Mirror, MirrorMode};
use crate::history::{Evidence, Happening, Record};
use crate::ids::{InstanceId, Life, NodeId, RunId, Timestamp};
use crate::instance::{AdminState, DiskTemplate, Instance, NodeLife, Provision};
use crate::state::State;

impl State {
    /// Whether an owner is one in name only: its life has ended or was declared dead, or its node is gone.
    pub fn is_void(&self, owner: NodeLife) -> bool {
        self.nodes.get(&owner.node).is_none_or(|node| node.dead || node.life != owner.life)
    }

    /// The life in which a node may be given something: it has joined, and was not declared dead.
    pub fn live(&self, node: NodeId) -> Option<NodeLife> {
        let it = self.nodes.get(&node).filter(|it| !it.dead && it.life != Life(0))?;
        Some(NodeLife { node, life: it.life })
    }

    /// Why nobody takes an instance over by itself when its node dies, whatever other nodes have of it: its class (protocol,
    /// 8.5) or the mode of its disks. For people: one sentence, without a full stop. `None`: nothing stands in the way.
    pub fn unprotected(&self, instance: &Instance) -> Option<String> {
        match instance.disk_template {
            DiskTemplate::Drbd => {}
            DiskTemplate::File => return Some("its disks are files that only its node has".into()),
            DiskTemplate::Diskless => {
                return Some("it has no disks, and without them nothing would keep two of it from running".into());
            }
        }
        let mirrors = instance.disks.iter().map(|disk| disk.mirror.as_ref()).enumerate();
        for (index, mirror) in mirrors {
            let Some(mirror) = mirror else {
                return Some(format!("disk/{index} is not mirrored"));
            };
            if mirror.doubtful {
                return Some(format!("disk/{index} is doubtful since the forced recovery of the cluster"));
            }
            if mirror.mode == MirrorMode::Manual {
                return Some(match self.unarmed(mirror).filter(|_| self.wants_ha()) {
                    Some(node) => format!(
                        "disk/{index} is in manual mode: {}, which has a replica of it, is not armed",
                        self.node_name(node)
                    ),
                    None => format!("disk/{index} is in manual mode: automatic failover is switched off"),
                });
            }
        }
        None
    }

    /// The state as it will be once this life of a node was declared dead, whatever the evidence: for plans.
    pub fn after_death(&self, node: NodeId) -> State {
        let mut next = self.clone();
        next.bury(node);
        next
    }

    fn wants_ha(&self) -> bool {
        self.cluster.as_ref().is_some_and(|cluster| cluster.ha)
    }

    fn unarmed(&self, mirror: &Mirror) -> Option<NodeId> {
        let armed = |node| self.nodes.get(&node).is_some_and(|node| node.armed);
        mirror.replicas.values().map(|replica| replica.node).find(|node| !armed(*node))
    }

    /// The mode that a disk has to have (protocol, 7.3).
    pub(super) fn mode_of(&self, mirror: &Mirror) -> MirrorMode {
        if self.wants_ha() && self.unarmed(mirror).is_none() { MirrorMode::Strict } else { MirrorMode::Manual }
    }

    /// Puts every disk into the mode that it has to have. For its primary that is a change like any other.
    pub(super) fn settle_modes(&mut self) {
        let mirrors = || self.instances.values().flat_map(|it| &it.disks).filter_map(|disk| disk.mirror.as_ref());
        if mirrors().all(|mirror| mirror.mode == self.mode_of(mirror)) {
            return;
        }
        let modes: Vec<MirrorMode> = mirrors().map(|mirror| self.mode_of(mirror)).collect();
        let n = self.incarnation.n;
        for (mirror, mode) in self.mirrors_mut().zip(modes) {
            if mirror.mode != mode {
                mirror.mode = mode;
                mirror.touch(n);
            }
        }
    }

    /// Every mirrored disk, in the order of the instances.
    pub(super) fn mirrors_mut(&mut self) -> impl Iterator<Item = &mut Mirror> {
        self.instances.values_mut().flat_map(|it| &mut it.disks).filter_map(|disk| disk.mirror.as_mut())
    }

    pub(super) fn record(&mut self, at: Timestamp, what: Happening) {
        let (term, master) = (self.office.map_or(0, |office| office.term), self.office.map(|office| office.node));
        self.history.add(Record { at, term, master, what });
    }

    pub(super) fn node_dead(
        &mut self,
        id: NodeId,
        life: Life,
        evidence: &Evidence,
        at: Timestamp,
    ) -> Result<Applied, Rejection> {
        let Some(node) = self.nodes.get(&id) else {
            return Err(unknown("Node", id));
        };
        let refuse = |why: String| Err(Rejection::State(format!("node '{}' {why}", node.name)));
        if node.life != life || life == Life(0) {
            return refuse(format!("is in life {}, not {life}", node.life));
        }
        if node.dead {
            return refuse(format!("has been declared dead in life {life} already"));
        }
        if self.office.is_some_and(|office| office.node == id) {
            return refuse("is the master in office, which can't declare itself dead".into());
        }
        match evidence {
            Evidence::LeaseEnded { .. } if !node.armed => {
                return refuse("is not armed: nobody stops its guests when its lease ends".into());
            }
            Evidence::NewBoot { boot } if *boot == node.boot => {
                return refuse(format!("is in boot {boot} still"));
            }
            Evidence::LeaseEnded { .. } | Evidence::NewBoot { .. } | Evidence::AssertedOff => {}
        }
        self.bury(id);
        self.record(at, Happening::NodeDead { node: id, life, evidence: evidence.clone() });
        Ok(Applied::Done)
    }

    /// Ends a node's life: its replicas leave the in-sync sets that have another member, its migrations end.
    pub(super) fn bury(&mut self, id: NodeId) {
        let n = self.incarnation.n;
        let Some(node) = self.nodes.get_mut(&id) else { return };
        node.dead = true;
        for instance in self.instances.values_mut() {
            let moves_there = instance.migration.is_some_and(|migration| migration.to.node == id);
            if moves_there || instance.owner.is_some_and(|owner| owner.node == id) {
                instance.migration = None;
            }
        }
        for mirror in self.mirrors_mut() {
            let Some((rid, _)) = mirror.replica_on(id) else { continue };
            if mirror.is_member(rid) && mirror.in_sync().len() > 1 {
                mirror.leave(&[rid]);
                mirror.touch(n);
            }
        }
    }

    pub(super) fn takeover(&mut self, id: InstanceId, to: NodeId, reason: &str, at: Timestamp) -> Applied {
        let (owner, from, name) = match self.check_takeover(id, to) {
            Ok((owner, instance)) => {
                let from = instance.owner.map_or(instance.primary, |owner| owner.node);
                (owner, from, instance.name.clone())
            }
            Err(why) => return Applied::Refused(why),
        };
        self.last_run += 1;
        let run = RunId(self.last_run);
        self.own_mirrors(id, owner, run);
        self.record(at, Happening::TakenOver { instance: id, name, from, to, run, reason: reason.to_owned() });
        Applied::Run(run)
    }

    /// As whom `to` gets the instance, and it; or why it doesn't.
    fn check_takeover(&self, id: InstanceId, to: NodeId) -> Result<(NodeLife, &Instance), String> {
        let Some(instance) = self.instances.get(&id) else {
            return Err(unknown("Instance", id).to_string());
        };
        let refuse = |why: String| Err(format!("Instance '{}' can't be taken over: {why}", instance.name));
        if let Some(owner) = instance.owner.filter(|owner| !self.is_void(*owner)) {
            return refuse(format!("node '{}' has it and lives", self.node_name(owner.node)));
        }
        if instance.provision != Provision::Ready {
            return refuse("a job is making it, converting it or taking it away".into());
        }
        if instance.want != AdminState::Up {
            return refuse("it is not wanted to run".into());
        }
        let Some(owner) = self.live(to) else {
            return refuse(format!("node '{}' is dead or has not joined", self.node_name(to)));
        };
        if let Err(why) = self.check_vm_capable(to) {
            return refuse(why.to_string());
        }
        if let Some(why) = self.unprotected(instance) {
            return refuse(why);
        }
        match self.check_own_mirrors(instance, to) {
            Ok(()) => Ok((owner, instance)),
            Err(why) => Err(why.to_string()),
        }
    }

    pub(super) fn arm(&mut self, id: NodeId, life: Life, at: Timestamp) -> Result<Applied, Rejection> {
        let Some(node) = self.nodes.get(&id) else {
            return Err(unknown("Node", id));
        };
        if self.is_void(NodeLife { node: id, life }) || life == Life(0) {
            return Err(Rejection::State(format!(
                "the life of node '{}' in which it was found ready to be armed ({life}) has ended",
                node.name
            )));
        }
        if !self.wants_ha() {
            return Err(Rejection::State("automatic failover is switched off, so no node is armed".into()));
        }
        self.set_armed(id, true, at);
        Ok(Applied::Done)
    }

    pub(super) fn disarm(&mut self, id: NodeId, at: Timestamp) -> Result<Applied, Rejection> {
        if !self.nodes.contains_key(&id) {
            return Err(unknown("Node", id));
        }
        self.set_armed(id, false, at);
        Ok(Applied::Done)
    }

    fn set_armed(&mut self, id: NodeId, armed: bool, at: Timestamp) {
        let Some(node) = self.nodes.get_mut(&id).filter(|node| node.armed != armed) else { return };
        node.armed = armed;
        self.settle_modes();
        self.record(at, Happening::Armed { node: id, armed });
    }

    pub(super) fn note(&mut self, what: &Happening, at: Timestamp) -> Applied {
        self.record(at, what.clone());
        Applied::Done
    }
}
