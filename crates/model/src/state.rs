//! The replicated state.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::cluster::{Cluster, JoinToken};
use crate::group::Group;
use crate::history::History;
use crate::ids::{GroupId, InstanceId, JobId, NodeId, Uuid};
use crate::incarnation::{ForkPoint, Incarnation};
use crate::instance::Instance;
use crate::job::Job;
use crate::node::{Node, NodeRole};
use crate::params::{self, Params};

/// Who leads. Being Raft's leader is not permission to act: this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Office {
    /// The master.
    pub node: NodeId,
    /// The Raft term in which it took office.
    pub term: u64,
}

/// Everything that the nodes of a cluster agree on.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// Incarnation of the cluster.
    pub incarnation: Incarnation,
    /// Earlier incarnations and where they ended.
    #[serde(default)]
    pub lineage: Vec<(Incarnation, ForkPoint)>,
    /// Configuration; `None` before `init` and after `destroy`.
    pub cluster: Option<Cluster>,
    /// Who leads.
    pub office: Option<Office>,
    /// Who holds the cluster's address.
    pub address_owner: Option<NodeId>,
    /// Groups.
    pub groups: BTreeMap<GroupId, Group>,
    /// Nodes.
    pub nodes: BTreeMap<NodeId, Node>,
    /// Permissions to join that were not used yet.
    pub tokens: BTreeMap<Uuid, JoinToken>,
    /// Which node a used token became, while the job that waits for it lives.
    #[serde(default)]
    pub joined: BTreeMap<Uuid, NodeId>,
    /// Instances.
    pub instances: BTreeMap<InstanceId, Instance>,
    /// Jobs that are not archived.
    pub jobs: BTreeMap<JobId, Job>,
    /// Highest number of a node given so far.
    pub last_node: u64,
    /// Highest number of a job given so far.
    pub last_job: u64,
    /// Highest number of a life given so far.
    pub last_life: u64,
    /// Highest number of a run given so far.
    pub last_run: u64,
    /// What happened, for `cardume why`.
    #[serde(default)]
    pub history: History,
}

impl State {
    /// The node of that name.
    pub fn node_by_name(&self, name: &str) -> Option<(NodeId, &Node)> {
        self.nodes.iter().find(|(_, node)| node.name == name).map(|(id, node)| (*id, node))
    }

    /// The instance of that name.
    pub fn instance_by_name(&self, name: &str) -> Option<&Instance> {
        self.instances.values().find(|instance| instance.name == name)
    }

    /// Name of a node; its number if it is gone.
    pub fn node_name(&self, id: NodeId) -> String {
        self.nodes.get(&id).map_or_else(|| format!("#{id}"), |node| node.name.clone())
    }

    /// What a node is in the cluster.
    pub fn role(&self, id: NodeId) -> Option<NodeRole> {
        let node = self.nodes.get(&id)?;
        Some(if self.office.is_some_and(|office| office.node == id) {
            NodeRole::Master
        } else if node.offline {
            NodeRole::Offline
        } else if node.drained {
            NodeRole::Drained
        } else if node.master_candidate {
            NodeRole::MasterCandidate
        } else {
            NodeRole::Regular
        })
    }

    /// Back-end parameters that hold for an instance.
    pub fn filled_beparams(&self, instance: &Params) -> Params {
        let none = Params::new();
        let cluster = self.cluster.as_ref().map_or(&none, |cluster| &cluster.beparams);
        params::fill(params::BACKEND, &[cluster, instance])
    }

    /// Hypervisor parameters that hold for an instance.
    pub fn filled_hvparams(&self, hypervisor: &str, instance: &Params) -> Params {
        let none = Params::new();
        let cluster = self.cluster.as_ref().and_then(|cluster| cluster.hvparams.get(hypervisor)).unwrap_or(&none);
        params::fill(params::hypervisor(hypervisor).unwrap_or(&[]), &[cluster, instance])
    }

    /// Parameters that hold for a network interface.
    pub fn filled_nicparams(&self, nic: &Params) -> Params {
        let none = Params::new();
        let cluster = self.cluster.as_ref().map_or(&none, |cluster| &cluster.nicparams);
        params::fill(params::NIC, &[cluster, nic])
    }

    /// Memory that an instance is given when it starts, MiB.
    pub fn memory_mib(&self, instance: &Instance) -> u64 {
        let filled = self.filled_beparams(&instance.beparams);
        filled.get("maxmem").and_then(|value| value.as_int()).and_then(|mib| u64::try_from(mib).ok()).unwrap_or(0)
    }
}
