//! Commands on nodes.

use super::{exists, touch, unknown};
use crate::command::{Applied, Rejection};
use crate::history::Happening;
use crate::ids::{Life, NodeId, RunId, Timestamp, Uuid};
use crate::instance::NodeLife;
use crate::node::{NewNode, Node, NodeChange};
use crate::state::State;

impl State {
    pub(super) fn insert_node(&mut self, new: &NewNode, at: Timestamp) -> Result<NodeId, Rejection> {
        self.check_new_node(new)?;
        let group = match new.group {
            Some(group) => group,
            None => {
                let oldest = self.groups.iter().min_by_key(|(id, group)| (group.ctime, **id));
                *oldest.ok_or_else(|| unknown("Group", "default"))?.0
            }
        };
        let pool = self.cluster.as_ref().map_or(0, |cluster| cluster.candidate_pool_size as usize);
        let candidates = self.nodes.values().filter(|node| node.master_candidate).count();
        self.last_node += 1;
        let id = NodeId(self.last_node);
        self.nodes.insert(
            id,
            Node {
                name: new.name.clone(),
                uuid: new.uuid,
                primary_ip: new.primary_ip,
                secondary_ip: new.secondary_ip,
                group,
                master_candidate: new.master_capable && candidates < pool,
                master_capable: new.master_capable,
                vm_capable: new.vm_capable,
                offline: false,
                drained: false,
                powered: true,
                ndparams: Default::default(),
                ctime: at,
                mtime: at,
                serial_no: 1,
                tags: Default::default(),
                life: Life(0),
                boot: String::new(),
                dead: false,
                armed: false,
            },
        );
        Ok(id)
    }

    fn check_new_node(&self, new: &NewNode) -> Result<(), Rejection> {
        if self.node_by_name(&new.name).is_some() {
            return Err(exists("Node", &new.name));
        }
        for (id, node) in &self.nodes {
            for address in [new.primary_ip, new.secondary_ip] {
                if node.primary_ip == address || node.secondary_ip == address {
                    return Err(Rejection::Invalid(format!(
                        "Address {address} is already used by node '{}'",
                        self.node_name(*id)
                    )));
                }
            }
        }
        if let Some(group) = new.group
            && !self.groups.contains_key(&group)
        {
            return Err(unknown("Group", group));
        }
        Ok(())
    }

    pub(super) fn add_token(
        &mut self,
        id: Uuid,
        secret_sha256: &str,
        node: &NewNode,
        expires: Timestamp,
    ) -> Result<Applied, Rejection> {
        self.check_new_node(node)?;
        let token = crate::cluster::JoinToken { secret_sha256: secret_sha256.to_owned(), node: node.clone(), expires };
        self.tokens.insert(id, token);
        Ok(Applied::Done)
    }

    pub(super) fn drop_token(&mut self, id: Uuid) -> Result<Applied, Rejection> {
        self.tokens.remove(&id);
        self.joined.remove(&id);
        Ok(Applied::Done)
    }

    pub(super) fn add_node(&mut self, token: Uuid, at: Timestamp) -> Result<Applied, Rejection> {
        let Some(permission) = self.tokens.get(&token).cloned() else {
            return Err(Rejection::Invalid(
                "the join token is not valid: it was used, withdrawn, or never given; run 'gnt-node add' again".into(),
            ));
        };
        if at > permission.expires {
            return Err(Rejection::Invalid("the join token has expired; run 'gnt-node add' again".into()));
        }
        let id = self.insert_node(&permission.node, at)?;
        self.tokens.remove(&token);
        self.joined.insert(token, id);
        Ok(Applied::Node(id))
    }

    pub(super) fn modify_node(&mut self, id: NodeId, change: &NodeChange, at: Timestamp) -> Result<Applied, Rejection> {
        let is_master = self.office.is_some_and(|office| office.node == id);
        let Some(node) = self.nodes.get(&id) else {
            return Err(unknown("Node", id));
        };
        let mut next = node.clone();
        if let Some(value) = change.master_capable {
            next.master_capable = value;
            next.master_candidate &= value;
        }
        if let Some(value) = change.vm_capable {
            next.vm_capable = value;
        }
        if let Some(value) = change.master_candidate {
            next.master_candidate = value;
        }
        if let Some(value) = change.offline {
            next.offline = value;
        }
        if let Some(value) = change.drained {
            next.drained = value;
        }
        if next.offline || next.drained {
            next.master_candidate = false;
        } else if (node.offline || node.drained) && next.master_capable && change.master_candidate.is_none() {
            // Back in service: a candidate again while the pool has room, as in Ganeti. Else a cluster that lost a vote by
            // marking a node would not get it back by taking the mark away.
            let pool = self.cluster.as_ref().map_or(0, |cluster| cluster.candidate_pool_size as usize);
            let candidates = self.nodes.values().filter(|node| node.master_candidate).count();
            next.master_candidate = candidates < pool;
        }
        if let Some(address) = change.secondary_ip {
            next.secondary_ip = address;
        }
        next.tags.extend(change.add_tags.iter().cloned());
        next.tags.retain(|tag| !change.remove_tags.contains(tag));

        if next.master_candidate && !next.master_capable {
            return Err(Rejection::State(format!(
                "Node {} is not master capable, so it can't be a master candidate",
                node.name
            )));
        }
        if is_master && !next.may_be_master() {
            return Err(Rejection::State("The master role can be changed only via master-failover".into()));
        }
        if !next.vm_capable
            && let Some(instance) =
                self.instances.values().find(|instance| instance.primary == id || instance.secondaries.contains(&id))
        {
            return Err(Rejection::State(format!(
                "Node {} hosts instances ('{}' for one), cannot unset 'vm_capable'",
                node.name, instance.name
            )));
        }
        touch(&mut next.serial_no, &mut next.mtime, at);
        self.nodes.insert(id, next);
        Ok(Applied::Done)
    }

    pub(super) fn remove_node(&mut self, id: NodeId) -> Result<Applied, Rejection> {
        let Some(node) = self.nodes.get(&id) else {
            return Err(unknown("Node", id));
        };
        if self.office.is_some_and(|office| office.node == id) {
            return Err(Rejection::Invalid("Node is the master node, failover to another node is required".into()));
        }
        if let Some(instance) =
            self.instances.values().find(|instance| instance.primary == id || instance.secondaries.contains(&id))
        {
            return Err(Rejection::Invalid(format!(
                "Instance {} is still on node {}, please remove or move it first",
                instance.name, node.name
            )));
        }
        let disks = self.instances.values().flat_map(|instance| &instance.disks);
        if let Some(disk) =
            disks.clone().find(|disk| disk.mirror.as_ref().is_some_and(|it| it.replica_on(id).is_some()))
        {
            return Err(Rejection::Invalid(format!(
                "A replica of disk {} is still on node {}, please remove or move it first",
                disk.id, node.name
            )));
        }
        self.nodes.remove(&id);
        if self.address_owner == Some(id) {
            self.address_owner = None;
        }
        Ok(Applied::Done)
    }

    pub(super) fn join_node(
        &mut self,
        id: NodeId,
        boot: &str,
        previous: Life,
        runs: &[RunId],
        at: Timestamp,
    ) -> Result<Applied, Rejection> {
        let n = self.incarnation.n;
        let Some(node) = self.nodes.get_mut(&id) else {
            return Err(unknown("Node", id));
        };
        if node.life != previous {
            return Err(Rejection::State(format!(
                "node '{}' is in life {}, not {previous}: a later boot of it has joined already",
                node.name, node.life
            )));
        }
        if node.boot == boot && node.life != Life(0) && !node.dead {
            // A restart of the daemon: the same life goes on.
            return Ok(Applied::Life(node.life));
        }
        self.last_life += 1;
        node.life = Life(self.last_life);
        node.boot = boot.to_owned();
        let was_dead = std::mem::take(&mut node.dead);
        let owner = NodeLife { node: id, life: node.life };
        for instance in self.instances.values_mut() {
            let was_owner = instance.owner.is_some_and(|old| old.node == id);
            if was_owner && instance.run.is_some_and(|run| runs.contains(&run)) {
                instance.owner = Some(owner);
                Self::renew_mirrors(instance, n, owner);
            }
        }
        self.record(at, Happening::NodeJoined { node: id, life: owner.life, was_dead });
        Ok(Applied::Life(owner.life))
    }
}
