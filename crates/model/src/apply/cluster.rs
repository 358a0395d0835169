//! Commands on the cluster as a whole.

use super::touch;
use crate::cluster::{Cluster, ClusterChange};
use crate::command::{Applied, Rejection};
use crate::disk::MirrorMode;
use crate::group::{AllocPolicy, Group};
use crate::history::Happening;
use crate::ids::{GroupId, NodeId, Timestamp, Uuid};
use crate::incarnation::{ForkPoint, Incarnation};
use crate::node::NewNode;
use crate::state::{Office, State};

impl State {
    pub(super) fn init(
        &mut self,
        cluster: &Cluster,
        incarnation: Uuid,
        group: Uuid,
        node: &NewNode,
        at: Timestamp,
    ) -> Result<Applied, Rejection> {
        // Numbers go on counting where a destroyed cluster left off; nothing else of it counts any more.
        let mut fresh = State {
            incarnation: Incarnation { n: self.incarnation.n + 1, id: incarnation },
            cluster: Some(Cluster { ctime: at, mtime: at, serial_no: 1, ..cluster.clone() }),
            last_node: self.last_node,
            last_job: self.last_job,
            last_life: self.last_life,
            last_run: self.last_run,
            ..State::default()
        };
        fresh.groups.insert(
            GroupId(group),
            Group {
                name: "default".into(),
                alloc_policy: AllocPolicy::Preferred,
                ndparams: Default::default(),
                ctime: at,
                mtime: at,
                serial_no: 1,
                tags: Default::default(),
            },
        );
        let id = fresh.insert_node(node, at)?;
        *self = fresh;
        Ok(Applied::Node(id))
    }

    pub(super) fn destroy(&mut self) -> Result<Applied, Rejection> {
        if let Some(instance) = self.instances.values().next() {
            return Err(Rejection::State(format!(
                "There are still {} instance(s) in this cluster, '{}' for one; remove them first",
                self.instances.len(),
                instance.name
            )));
        }
        if self.nodes.len() > 1 {
            return Err(Rejection::State(format!(
                "There are still {} node(s) in this cluster; remove all but the master first",
                self.nodes.len()
            )));
        }
        *self = State {
            incarnation: self.incarnation,
            last_node: self.last_node,
            last_job: self.last_job,
            last_life: self.last_life,
            last_run: self.last_run,
            ..State::default()
        };
        Ok(Applied::Done)
    }

    pub(super) fn modify_cluster(&mut self, change: &ClusterChange, at: Timestamp) -> Result<Applied, Rejection> {
        let Some(cluster) = self.cluster.as_mut() else {
            return Err(Rejection::NoCluster);
        };
        if let Some(drained) = change.drained {
            cluster.drained = drained;
        }
        if let Some(ha) = change.ha {
            cluster.ha = ha;
        }
        cluster.tags.extend(change.add_tags.iter().cloned());
        cluster.tags.retain(|tag| !change.remove_tags.contains(tag));
        touch(&mut cluster.serial_no, &mut cluster.mtime, at);
        self.settle_modes();
        Ok(Applied::Done)
    }

    pub(super) fn take_office(&mut self, node: NodeId, term: u64, at: Timestamp) -> Result<Applied, Rejection> {
        if let Some(office) = self.office
            && term <= office.term
        {
            return Err(Rejection::Office { now: office.term, then: term });
        }
        let Some(candidate) = self.nodes.get(&node) else {
            return Err(super::unknown("Node", node));
        };
        if !candidate.may_be_master() {
            return Err(Rejection::State(format!("Node '{}' is not a master candidate", candidate.name)));
        }
        let before = self.office.replace(Office { node, term });
        if before.is_none_or(|before| before.node != node) {
            self.record(at, Happening::Office { node });
        }
        Ok(Applied::Done)
    }

    pub(super) fn set_address_owner(&mut self, owner: Option<NodeId>) -> Result<Applied, Rejection> {
        // From one holder to another only by way of nobody: the old one has to have dropped the address.
        if let (Some(old), Some(new)) = (self.address_owner, owner)
            && old != new
        {
            return Err(Rejection::State(format!(
                "the cluster address is still held by node '{}'",
                self.node_name(old)
            )));
        }
        if let Some(node) = owner
            && !self.nodes.contains_key(&node)
        {
            return Err(super::unknown("Node", node));
        }
        self.address_owner = owner;
        Ok(Applied::Done)
    }

    pub(super) fn found(
        &mut self,
        incarnation: Incarnation,
        fork_point: ForkPoint,
        node: Option<NodeId>,
        off: &[NodeId],
        at: Timestamp,
    ) -> Result<Applied, Rejection> {
        if incarnation.n <= self.incarnation.n {
            return Err(Rejection::Incarnation { now: self.incarnation.n, then: incarnation.n });
        }
        self.lineage.push((self.incarnation, fork_point));
        self.incarnation = incarnation;
        self.office = None;
        self.address_owner = None;
        for id in off.iter().filter(|id| node != Some(**id)) {
            self.bury(*id);
        }
        for node in self.nodes.values_mut() {
            node.armed = false;
        }
        for instance in self.instances.values_mut() {
            instance.migration = None;
        }
        // This copy of the log may be behind. Only what this node itself serves is known to be as it says.
        let own = node.and_then(|node| self.live(node));
        for mirror in self.mirrors_mut() {
            mirror.mode = MirrorMode::Manual;
            mirror.doubtful |= own.is_none() || mirror.primary != own;
            mirror.touch(incarnation.n);
        }
        if let Some(node) = node {
            self.record(at, Happening::Founded { node, off: off.to_vec() });
        }
        Ok(Applied::Done)
    }
}
