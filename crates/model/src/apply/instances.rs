//! Commands on instances.

use std::collections::BTreeMap;

use super::{exists, touch, unknown};
use crate::command::{Applied, Rejection};
use crate::history::Happening;
use crate::ids::{InstanceId, NodeId, RunId, Timestamp};
use crate::instance::{AdminState, DiskTemplate, Instance, InstanceChange, NodeLife, Provision};
use crate::params::{ParamValue, Params};
use crate::state::State;

impl State {
    pub(super) fn add_instance(&mut self, new: &Instance, at: Timestamp) -> Result<Applied, Rejection> {
        if self.instance_by_name(&new.name).is_some() {
            return Err(Rejection::Exists { kind: "Instance".into(), name: new.name.clone() });
        }
        if self.instances.contains_key(&new.id) {
            return Err(exists("Instance", new.id));
        }
        for node in std::iter::once(&new.primary).chain(&new.secondaries) {
            self.check_vm_capable(*node)?;
        }
        if (new.disk_template == DiskTemplate::Diskless) != new.disks.is_empty() {
            return Err(Rejection::Invalid("No disk information specified".into()));
        }
        self.check_nics(new)?;
        self.check_new_mirrors(new)?;
        if new.owner.is_some() || new.run.is_some() || new.migration.is_some() {
            return Err(Rejection::Invalid(format!("a new instance ('{}') can't be running already", new.name)));
        }
        let mut instance = Instance { ctime: at, mtime: at, serial_no: 1, ..new.clone() };
        self.number_mirrors(&mut instance);
        self.instances.insert(new.id, instance);
        Ok(Applied::Done)
    }

    fn check_nics(&self, instance: &Instance) -> Result<(), Rejection> {
        for (index, nic) in instance.nics.iter().enumerate() {
            let own = instance.nics[..index].iter();
            let others = self.instances.values().filter(|other| other.id != instance.id).flat_map(|other| &other.nics);
            for other in own.chain(others) {
                if other.mac == nic.mac {
                    return Err(exists("MAC address", &nic.mac));
                }
                if nic.ip.is_some() && other.ip == nic.ip {
                    return Err(exists("IP address", nic.ip.as_deref().unwrap_or_default()));
                }
            }
        }
        Ok(())
    }

    pub(super) fn modify_instance(
        &mut self,
        id: InstanceId,
        change: &InstanceChange,
        at: Timestamp,
    ) -> Result<Applied, Rejection> {
        let Some(instance) = self.instances.get(&id) else {
            return Err(unknown("Instance", id));
        };
        let mut next = instance.clone();
        if let Some(want) = change.want {
            if want == AdminState::Offline && next.owner.is_some_and(|owner| !self.is_void(owner)) {
                return Err(Rejection::State(format!(
                    "Instance '{}' is running, stop it before it is marked offline",
                    next.name
                )));
            }
            next.want = want;
        }
        if let Some(provision) = change.provision {
            next.provision = provision;
        }
        if let Some(node) = change.primary.filter(|node| *node != next.primary) {
            if next.owner.is_some_and(|owner| !self.is_void(owner)) {
                return Err(Rejection::State(format!(
                    "Instance '{}' is running, its primary node can't be changed",
                    next.name
                )));
            }
            let old = next.primary;
            let Some(place) = next.secondaries.iter_mut().find(|secondary| **secondary == node) else {
                return Err(Rejection::Invalid(format!(
                    "Node '{}' is not a secondary node of instance '{}'",
                    self.node_name(node),
                    next.name
                )));
            };
            *place = old;
            next.primary = node;
        }
        if let Some(storage) = &change.storage {
            if next.owner.is_some_and(|owner| !self.is_void(owner)) {
                return Err(Rejection::State(format!(
                    "Instance '{}' is running, its disks can't be replaced by others",
                    next.name
                )));
            }
            for node in &storage.secondaries {
                self.check_vm_capable(*node)?;
            }
            if (storage.template == DiskTemplate::Diskless) != storage.disks.is_empty() {
                return Err(Rejection::Invalid("No disk information specified".into()));
            }
            next.owner = None;
            next.run = None;
            next.disk_template = storage.template;
            next.disks.clone_from(&storage.disks);
            next.secondaries.clone_from(&storage.secondaries);
            self.check_new_mirrors(&next)?;
            self.number_mirrors(&mut next);
        }
        if let Some(os) = &change.os {
            next.os.clone_from(os);
        }
        overlay(&mut next.hvparams, &change.hvparams);
        overlay(&mut next.beparams, &change.beparams);
        overlay(&mut next.osparams, &change.osparams);
        if let Some(nics) = &change.nics {
            next.nics.clone_from(nics);
            self.check_nics(&next)?;
        }
        next.tags.extend(change.add_tags.iter().cloned());
        next.tags.retain(|tag| !change.remove_tags.contains(tag));
        touch(&mut next.serial_no, &mut next.mtime, at);
        self.instances.insert(id, next);
        Ok(Applied::Done)
    }

    pub(super) fn remove_instance(&mut self, id: InstanceId) -> Result<Applied, Rejection> {
        let Some(instance) = self.instances.get(&id) else {
            return Err(unknown("Instance", id));
        };
        if let Some(owner) = instance.owner
            && !self.is_void(owner)
        {
            return Err(Rejection::State(format!(
                "Instance '{}' is still running on node '{}'",
                instance.name,
                self.node_name(owner.node)
            )));
        }
        self.instances.remove(&id);
        Ok(Applied::Done)
    }

    pub(super) fn own(&mut self, id: InstanceId, node: NodeId, time: Timestamp) -> Result<Applied, Rejection> {
        let Some(instance) = self.instances.get(&id) else {
            return Err(unknown("Instance", id));
        };
        let Some(at) = self.nodes.get(&node) else {
            return Err(unknown("Node", node));
        };
        if let Some(owner) = instance.owner
            && !self.is_void(owner)
        {
            return Err(Rejection::State(format!(
                "Instance '{}' is already running on node '{}'",
                instance.name,
                self.node_name(owner.node)
            )));
        }
        if instance.disk_template == DiskTemplate::Drbd {
            self.check_own_mirrors(instance, node)?;
        } else if instance.primary != node {
            return Err(Rejection::State(format!(
                "node '{}' does not hold the disks of instance '{}'",
                at.name, instance.name
            )));
        }
        if matches!(instance.provision, Provision::Removing(_)) {
            return Err(Rejection::State(format!("Instance '{}' is being removed", instance.name)));
        }
        if at.dead {
            return Err(Rejection::State(format!(
                "node '{}' was declared dead; it is given nothing before it has joined again",
                at.name
            )));
        }
        let (from, name) = (instance.primary, instance.name.clone());
        let owner = NodeLife { node, life: at.life };
        self.last_run += 1;
        let run = RunId(self.last_run);
        self.own_mirrors(id, owner, run);
        if from != node {
            self.record(time, Happening::Moved { instance: id, name, from, to: node, live: false });
        }
        Ok(Applied::Run(run))
    }

    pub(super) fn disown(
        &mut self,
        id: InstanceId,
        run: RunId,
        want: Option<AdminState>,
        at: Timestamp,
    ) -> Result<Applied, Rejection> {
        let n = self.incarnation.n;
        let Some(instance) = self.instances.get_mut(&id) else {
            return Err(unknown("Instance", id));
        };
        if instance.run != Some(run) {
            return Err(Rejection::State(format!("instance '{}' is not in run {run} any more", instance.name)));
        }
        instance.owner = None;
        instance.run = None;
        Self::disown_mirrors(instance, n);
        if let Some(want) = want
            && instance.want != want
        {
            instance.want = want;
            touch(&mut instance.serial_no, &mut instance.mtime, at);
        }
        Ok(Applied::Done)
    }
}

/// Sets what is `Some`, gives back to the level above what is `None`.
fn overlay(params: &mut Params, change: &BTreeMap<String, Option<ParamValue>>) {
    for (name, value) in change {
        match value {
            Some(value) => params.insert(name.clone(), value.clone()),
            None => params.remove(name),
        };
    }
}
