//! Commands on mirrored disks (protocol, section 3). Whatever changes a disk's record goes through [`Mirror::touch`], so
//! that its version grows with every accepted command.

use std::collections::BTreeSet;

use super::unknown;
use crate::command::{Applied, Rejection};
use crate::disk::{DiskRejection, Epoch, Forced, MAX_REPLICAS, Migration, Mirror, MirrorMode, MirrorReplica, Version};
use crate::history::Happening;
use crate::ids::{DiskId, InstanceId, Life, NodeId, ReplicaId, RunId, Timestamp, Uuid};
use crate::instance::{DiskTemplate, Instance, NodeLife, Provision};
use crate::state::State;

/// As whom, and on which knowledge of the disk, a primary proposes.
pub(super) struct Primary {
    pub disk: DiskId,
    pub by: NodeLife,
    pub epoch: Epoch,
    pub ver: Version,
}

impl Mirror {
    /// One more accepted command.
    pub(super) fn touch(&mut self, n: u64) {
        self.ver = Version { n, v: self.ver.v + 1 };
    }

    /// A new primary: the next epoch.
    fn promote(&mut self, n: u64, owner: NodeLife, run: RunId) {
        self.epoch = Epoch { n, e: self.epoch.e + 1 };
        self.primary = Some(owner);
        self.run = Some(run);
        self.touch(n);
    }

    pub(super) fn leave(&mut self, replicas: &[ReplicaId]) {
        for rid in replicas {
            if let Some(replica) = self.replicas.get_mut(rid)
                && replica.member.take().is_some()
            {
                replica.left = self.ver;
            }
        }
    }
}

impl State {
    fn mirror(&self, disk: DiskId) -> Result<&Mirror, Rejection> {
        let mut disks = self.instances.values().flat_map(|instance| &instance.disks);
        disks.find(|it| it.id == disk).and_then(|it| it.mirror.as_ref()).ok_or_else(|| unknown("Mirrored disk", disk))
    }

    fn mirror_mut(&mut self, disk: DiskId) -> Result<&mut Mirror, Rejection> {
        let mut disks = self.instances.values_mut().flat_map(|instance| &mut instance.disks);
        disks.find(|it| it.id == disk).and_then(|it| it.mirror.as_mut()).ok_or_else(|| unknown("Mirrored disk", disk))
    }

    /// Whether the proposer is the disk's primary and knows its newest version.
    fn check_primary(&self, proposer: &Primary) -> Result<&Mirror, Rejection> {
        let mirror = self.mirror(proposer.disk)?;
        if self.is_void(proposer.by) {
            return Err(Rejection::Disk(DiskRejection::LifeEnded(proposer.by)));
        }
        if mirror.epoch != proposer.epoch || mirror.primary != Some(proposer.by) {
            return Err(Rejection::Disk(DiskRejection::Deposed { now: mirror.epoch, then: proposer.epoch }));
        }
        check_version(mirror, proposer.ver)?;
        Ok(mirror)
    }

    pub(super) fn outdate(
        &mut self,
        proposer: Primary,
        replicas: &[ReplicaId],
        at: Timestamp,
    ) -> Result<Applied, Rejection> {
        let mirror = self.check_primary(&proposer)?;
        if mirror.in_sync().iter().all(|member| replicas.contains(member)) {
            return Err(Rejection::State(format!(
                "disk {} would be left without a replica that holds its data",
                proposer.disk
            )));
        }
        let left: Vec<NodeId> = mirror
            .replicas
            .iter()
            .filter(|(rid, replica)| replica.member.is_some() && replicas.contains(rid))
            .map(|(_, replica)| replica.node)
            .collect();
        let n = self.incarnation.n;
        let mirror = self.mirror_mut(proposer.disk)?;
        mirror.leave(replicas);
        mirror.touch(n);
        if !left.is_empty() {
            let (instance, name, index) = self.place_of(proposer.disk)?;
            self.record(at, Happening::Outdated { instance, name, index, nodes: left });
        }
        Ok(Applied::Done)
    }

    pub(super) fn solo(
        &mut self,
        proposer: Primary,
        replicas: &[ReplicaId],
        at: Timestamp,
    ) -> Result<Applied, Rejection> {
        if self.check_primary(&proposer)?.mode != MirrorMode::Manual {
            return Err(Rejection::State(format!("disk {} is in strict mode", proposer.disk)));
        }
        self.outdate(proposer, replicas, at)
    }

    pub(super) fn in_sync(
        &mut self,
        proposer: Primary,
        replica: ReplicaId,
        life: Life,
        at: Timestamp,
    ) -> Result<Applied, Rejection> {
        let mirror = self.check_primary(&proposer)?;
        let Some(joining) = mirror.replicas.get(&replica) else {
            return Err(unknown("Replica", replica));
        };
        let (node, joins) = (joining.node, joining.member.is_none());
        if self.is_void(NodeLife { node, life }) {
            return Err(Rejection::State(format!(
                "node '{}' has begun another life since its replica was found in sync",
                self.node_name(node)
            )));
        }
        let boot = self.boot(node);
        let n = self.incarnation.n;
        let mirror = self.mirror_mut(proposer.disk)?;
        if let Some(joining) = mirror.replicas.get_mut(&replica) {
            joining.member = Some(boot);
        }
        mirror.touch(n);
        if joins {
            let (instance, name, index) = self.place_of(proposer.disk)?;
            self.record(at, Happening::InSync { instance, name, index, node });
        }
        Ok(Applied::Done)
    }

    pub(super) fn add_replica(
        &mut self,
        disk: DiskId,
        ver: Version,
        replica: ReplicaId,
        node: NodeId,
        slot: u8,
    ) -> Result<Applied, Rejection> {
        let mirror = self.mirror(disk)?;
        check_version(mirror, ver)?;
        self.check_vm_capable(node)?;
        if usize::from(slot) >= MAX_REPLICAS {
            return Err(Rejection::Invalid(format!("a disk has {MAX_REPLICAS} replicas at the most")));
        }
        if mirror.replicas.contains_key(&replica)
            || mirror.replicas.values().any(|it| it.node == node || it.slot == slot)
        {
            return Err(Rejection::State(format!(
                "disk {disk} has a replica on node '{}' or in slot {slot} already",
                self.node_name(node)
            )));
        }
        let n = self.incarnation.n;
        let instance = self.instance_of(disk)?;
        let id = instance.id;
        let follow = instance.primary != node && !instance.secondaries.contains(&node);
        let mirror = self.mirror_mut(disk)?;
        mirror.replicas.insert(replica, MirrorReplica { node, slot, member: None, left: Version::default() });
        mirror.touch(n);
        if follow && let Some(instance) = self.instances.get_mut(&id) {
            instance.secondaries.push(node);
        }
        self.settle_modes();
        Ok(Applied::Done)
    }

    pub(super) fn remove_replica(
        &mut self,
        disk: DiskId,
        ver: Version,
        replica: ReplicaId,
    ) -> Result<Applied, Rejection> {
        let mirror = self.mirror(disk)?;
        check_version(mirror, ver)?;
        let Some(removed) = mirror.replicas.get(&replica) else {
            return Err(unknown("Replica", replica));
        };
        let instance = self.instance_of(disk)?;
        if removed.member.is_some() {
            // The members that stay hold everything that was acknowledged.
            if mirror.in_sync().len() == 1 {
                return Err(Rejection::State(format!("replica {replica} is the only one that is in sync")));
            }
            if removed.node == instance.primary {
                return Err(Rejection::State(format!(
                    "replica {replica} is in sync on node '{}', where instance '{}' lives",
                    self.node_name(removed.node),
                    instance.name
                )));
            }
        }
        if let Some(migration) = instance.migration.filter(|migration| migration.to.node == removed.node) {
            return Err(Rejection::State(format!(
                "instance '{}' is about to move to node '{}', where replica {replica} is",
                instance.name,
                self.node_name(migration.to.node)
            )));
        }
        let (n, id) = (self.incarnation.n, instance.id);
        let mirror = self.mirror_mut(disk)?;
        mirror.replicas.remove(&replica);
        mirror.touch(n);
        if let Some(instance) = self.instances.get_mut(&id) {
            let disks = &instance.disks;
            instance.secondaries.retain(|node| {
                disks.iter().filter_map(|disk| disk.mirror.as_ref()).any(|mirror| mirror.replica_on(*node).is_some())
            });
        }
        self.settle_modes();
        Ok(Applied::Done)
    }

    pub(super) fn grow(&mut self, disk: DiskId, ver: Version, size_mib: u64) -> Result<Applied, Rejection> {
        let disks = &self.instance_of(disk)?.disks;
        if let Some(mirror) = disks.iter().find(|it| it.id == disk).and_then(|it| it.mirror.as_ref()) {
            check_version(mirror, ver)?;
        }
        let n = self.incarnation.n;
        let disks = self.instances.values_mut().flat_map(|instance| &mut instance.disks);
        for it in disks.filter(|it| it.id == disk) {
            if size_mib < it.size_mib {
                return Err(Rejection::Invalid(format!(
                    "a disk of {} MiB can't shrink to {size_mib} MiB",
                    it.size_mib
                )));
            }
            it.size_mib = size_mib;
            if let Some(mirror) = &mut it.mirror {
                mirror.touch(n);
            }
        }
        Ok(Applied::Done)
    }

    pub(super) fn prepare(&mut self, id: InstanceId, migration: Uuid, to: NodeId) -> Result<Applied, Rejection> {
        let Some(instance) = self.instances.get(&id) else {
            return Err(unknown("Instance", id));
        };
        if !self.nodes.contains_key(&to) {
            return Err(unknown("Node", to));
        }
        let owner = instance.owner.filter(|owner| !self.is_void(*owner));
        let refuse = |why: String| Err(Rejection::State(format!("Instance '{}' {why}", instance.name)));
        if owner.is_none_or(|owner| owner.node == to) {
            return refuse(format!("is not running on a node other than '{}'", self.node_name(to)));
        }
        if instance.migration.is_some() {
            return refuse("is migrating already".to_owned());
        }
        let Some(destination) = self.live(to) else {
            return refuse(format!("can't move to node '{}', which is dead or has not joined", self.node_name(to)));
        };
        if let Some(why) = lacks_member(instance, to) {
            return refuse(format!("can't move to node '{}': {why}", self.node_name(to)));
        }
        self.last_run += 1;
        let run = RunId(self.last_run);
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.migration = Some(Migration { id: migration, to: destination, run });
        }
        Ok(Applied::Run(run))
    }

    fn migrating(&self, migration: Uuid) -> Result<(&Instance, Migration), Rejection> {
        let found = self.instances.values().find_map(|instance| {
            let current = instance.migration.filter(|current| current.id == migration)?;
            Some((instance, current))
        });
        found.ok_or_else(|| unknown("Migration", migration))
    }

    pub(super) fn handover(&mut self, migration: Uuid, at: Timestamp) -> Result<Applied, Rejection> {
        let (instance, Migration { to, run, .. }) = self.migrating(migration)?;
        if instance.owner.is_none_or(|owner| self.is_void(owner)) || self.is_void(to) {
            return Err(Rejection::State(format!(
                "Instance '{}' can't be handed over: one of the two nodes has begun another life",
                instance.name
            )));
        }
        if let Some(why) = lacks_member(instance, to.node) {
            return Err(Rejection::State(format!(
                "Instance '{}' can't be handed over to node '{}': {why}",
                instance.name,
                self.node_name(to.node)
            )));
        }
        let (id, n, name, from) = (instance.id, self.incarnation.n, instance.name.clone(), instance.owner);
        if let Some(instance) = self.instances.get_mut(&id) {
            give(instance, n, to, run);
        }
        if let Some(from) = from.map(|owner| owner.node) {
            self.record(at, Happening::Moved { instance: id, name, from, to: to.node, live: true });
        }
        Ok(Applied::Done)
    }

    pub(super) fn cancel(&mut self, migration: Uuid) -> Result<Applied, Rejection> {
        let id = self.migrating(migration)?.0.id;
        if let Some(instance) = self.instances.get_mut(&id) {
            instance.migration = None;
        }
        Ok(Applied::Done)
    }

    pub(super) fn force(
        &mut self,
        id: InstanceId,
        node: NodeId,
        bases: &[(DiskId, Version)],
        asserted_off: bool,
        at: Timestamp,
    ) -> Result<Applied, Rejection> {
        let Some(instance) = self.instances.get(&id) else {
            return Err(unknown("Instance", id));
        };
        if !self.nodes.contains_key(&node) {
            return Err(unknown("Node", node));
        }
        let Some(owner) = self.live(node) else {
            return Err(Rejection::State(format!("Node '{}' is dead or has not joined", self.node_name(node))));
        };
        if !asserted_off && instance.owner.is_some_and(|owner| !self.is_void(owner)) {
            return Err(Rejection::State(format!(
                "Instance '{}' is owned by a node that is not known to be dead; its being off has to be asserted",
                instance.name
            )));
        }
        if matches!(instance.provision, Provision::Removing(_)) {
            return Err(Rejection::State(format!("Instance '{}' is being removed", instance.name)));
        }
        for disk in &instance.disks {
            let known = bases.iter().any(|(id, _)| *id == disk.id);
            if !known || disk.mirror.as_ref().is_none_or(|mirror| mirror.replica_on(node).is_none()) {
                return Err(Rejection::State(format!(
                    "disk {} of instance '{}' has no replica on node '{}' whose version is known",
                    disk.id,
                    instance.name,
                    self.node_name(node)
                )));
            }
        }
        let (n, boot) = (self.incarnation.n, self.boot(node));
        let (name, from) = (instance.name.clone(), instance.owner.map(|owner| owner.node));
        self.last_run += 1;
        let run = RunId(self.last_run);
        if let Some(instance) = self.instances.get_mut(&id) {
            for disk in &mut instance.disks {
                let base = bases.iter().find(|(id, _)| *id == disk.id).map(|(_, base)| *base);
                if let (Some(mirror), Some(base)) = (&mut disk.mirror, base) {
                    let to = mirror.replica_on(node).map(|(rid, _)| rid);
                    let others: Vec<_> = mirror.replicas.keys().copied().filter(|rid| Some(*rid) != to).collect();
                    mirror.leave(&others);
                    if let Some(replica) = to.and_then(|rid| mirror.replicas.get_mut(&rid)) {
                        replica.member = Some(boot.clone());
                    }
                    mirror.doubtful = false;
                    mirror.forces.push(Forced { base, at: Version { n, v: mirror.ver.v + 1 } });
                }
            }
            give(instance, n, owner, run);
        }
        self.record(at, Happening::Forced { instance: id, name, from, to: node });
        Ok(Applied::Run(run))
    }

    /// Whether `node` may become the primary of all disks of an instance that nobody owns.
    pub(super) fn check_own_mirrors(&self, instance: &Instance, node: NodeId) -> Result<(), Rejection> {
        let held = |mirror: &Mirror| mirror.primary.is_some_and(|primary| !self.is_void(primary));
        for mirror in instance.disks.iter().filter_map(|disk| disk.mirror.as_ref()) {
            if mirror.doubtful {
                return Err(Rejection::State(format!(
                    "the disks of instance '{}' are doubtful after forced recovery; --ignore-consistency promotes them",
                    instance.name
                )));
            }
            if held(mirror) {
                return Err(Rejection::State(format!("a disk of instance '{}' has a primary already", instance.name)));
            }
        }
        match lacks_member(instance, node) {
            Some(why) => Err(Rejection::State(format!(
                "Instance '{}' can't run on node '{}': {why}",
                instance.name,
                self.node_name(node)
            ))),
            None => Ok(()),
        }
    }

    /// What a new owner is given with the instance.
    pub(super) fn own_mirrors(&mut self, id: InstanceId, owner: NodeLife, run: RunId) {
        let (n, boot) = (self.incarnation.n, self.boot(owner.node));
        let dead: BTreeSet<NodeId> = self.nodes.iter().filter(|(_, node)| node.dead).map(|(id, _)| *id).collect();
        let Some(instance) = self.instances.get_mut(&id) else { return };
        for mirror in instance.disks.iter_mut().filter_map(|disk| disk.mirror.as_mut()) {
            let own = mirror.replicas.values_mut().find(|replica| replica.node == owner.node);
            if let Some(own) = own {
                own.member = Some(boot.clone());
            }
            let gone: Vec<ReplicaId> =
                mirror.replicas.iter().filter(|(_, it)| dead.contains(&it.node)).map(|(rid, _)| *rid).collect();
            mirror.leave(&gone);
        }
        give(instance, n, owner, run);
    }

    /// The disks of an instance that its owner gave back.
    pub(super) fn disown_mirrors(instance: &mut Instance, n: u64) {
        instance.migration = None;
        for mirror in instance.disks.iter_mut().filter_map(|disk| disk.mirror.as_mut()) {
            mirror.primary = None;
            mirror.run = None;
            mirror.touch(n);
        }
    }

    /// The disks of an instance that lives on in its owner's new life.
    pub(super) fn renew_mirrors(instance: &mut Instance, n: u64, owner: NodeLife) {
        for mirror in instance.disks.iter_mut().filter_map(|disk| disk.mirror.as_mut()) {
            if mirror.primary.is_some_and(|primary| primary.node == owner.node) {
                mirror.primary = Some(owner);
                mirror.touch(n);
            }
        }
    }

    /// Whether the disks of a new instance are as its template wants them.
    pub(super) fn check_new_mirrors(&self, new: &Instance) -> Result<(), Rejection> {
        for disk in &new.disks {
            let Some(mirror) = &disk.mirror else {
                if new.disk_template == DiskTemplate::Drbd {
                    return Err(Rejection::Invalid(format!("disk {} of '{}' has no replicas", disk.id, new.name)));
                }
                continue;
            };
            let nodes: BTreeSet<NodeId> = mirror.replicas.values().map(|replica| replica.node).collect();
            let slots: BTreeSet<u8> = mirror.replicas.values().map(|replica| replica.slot).collect();
            let known = std::iter::once(&new.primary).chain(&new.secondaries).all(|node| nodes.contains(node));
            let right = new.disk_template == DiskTemplate::Drbd
                && known
                && nodes.len() == mirror.replicas.len()
                && nodes.len() == 1 + new.secondaries.len()
                && slots.len() == nodes.len()
                && slots.iter().all(|slot| usize::from(*slot) < MAX_REPLICAS)
                && !mirror.in_sync().is_empty()
                && mirror.primary.is_none()
                && mirror.run.is_none();
            if !right {
                return Err(Rejection::Invalid(format!(
                    "the replicas of disk {} don't fit the nodes of instance '{}'",
                    disk.id, new.name
                )));
            }
        }
        Ok(())
    }

    /// The numbers of a new instance's disks begin in this incarnation, and their mode is what their nodes allow.
    pub(super) fn number_mirrors(&self, new: &mut Instance) {
        let n = self.incarnation.n;
        for mirror in new.disks.iter_mut().filter_map(|disk| disk.mirror.as_mut()) {
            mirror.mode = self.mode_of(mirror);
            mirror.epoch = Epoch { n, e: 0 };
            mirror.ver = Version { n, v: 1 };
            for replica in mirror.replicas.values_mut() {
                replica.left = Version { n, v: 0 };
            }
        }
    }

    fn instance_of(&self, disk: DiskId) -> Result<&Instance, Rejection> {
        let has = |instance: &&Instance| instance.disks.iter().any(|it| it.id == disk);
        self.instances.values().find(has).ok_or_else(|| unknown("Disk", disk))
    }

    /// Which of an instance's disks it is.
    fn place_of(&self, disk: DiskId) -> Result<(InstanceId, String, usize), Rejection> {
        let instance = self.instance_of(disk)?;
        let index = instance.disks.iter().position(|it| it.id == disk).unwrap_or_default();
        Ok((instance.id, instance.name.clone(), index))
    }

    fn boot(&self, node: NodeId) -> String {
        self.nodes.get(&node).map(|node| node.boot.clone()).unwrap_or_default()
    }

    pub(super) fn check_vm_capable(&self, node: NodeId) -> Result<(), Rejection> {
        let Some(node) = self.nodes.get(&node) else {
            return Err(unknown("Node", node));
        };
        if !node.vm_capable {
            return Err(Rejection::State(format!("Node '{}' is not vm_capable", node.name)));
        }
        Ok(())
    }
}

fn check_version(mirror: &Mirror, then: Version) -> Result<(), Rejection> {
    if mirror.ver != then {
        return Err(Rejection::Disk(DiskRejection::VersionMoved { now: mirror.ver, then }));
    }
    Ok(())
}

/// Why an instance's disks can't be served on `node`, if they can't.
fn lacks_member(instance: &Instance, node: NodeId) -> Option<String> {
    if instance.disks.iter().any(|disk| disk.mirror.is_none()) {
        return Some("its disks are not mirrored".to_owned());
    }
    if let Some(disk) = instance.disks.iter().find(|disk| disk.mirror.as_ref().is_some_and(|it| it.doubtful)) {
        return Some(format!("disk {} is doubtful since the forced recovery of the cluster", disk.id));
    }
    let lacking = |disk: &&crate::Disk| disk.mirror.as_ref().is_some_and(|mirror| !mirror.is_member_on(node));
    let disk = instance.disks.iter().find(lacking)?;
    Some(format!("the replica of disk {} there is missing or not in sync", disk.id))
}

/// The instance and all its disks at once; its configured nodes follow.
fn give(instance: &mut Instance, n: u64, owner: NodeLife, run: RunId) {
    instance.owner = Some(owner);
    instance.run = Some(run);
    instance.migration = None;
    for mirror in instance.disks.iter_mut().filter_map(|disk| disk.mirror.as_mut()) {
        mirror.promote(n, owner, run);
    }
    if instance.primary != owner.node {
        let old = std::mem::replace(&mut instance.primary, owner.node);
        for secondary in instance.secondaries.iter_mut().filter(|node| **node == owner.node) {
            *secondary = old;
        }
    }
}

#[cfg(test)]
mod tests;
