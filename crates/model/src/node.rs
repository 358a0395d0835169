//! Nodes: the machines that run the daemon.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::ids::{GroupId, Life, Timestamp, Uuid};
use crate::params::Params;

/// A node, as it is configured, and what the cluster knows of its current boot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Node {
    /// Its name.
    pub name: String,
    /// Its identity for users and tools; certificates and messages use the number.
    pub uuid: Uuid,
    /// Address for management and, on its bridge, for guests.
    pub primary_ip: Ipv4Addr,
    /// Address for replication and migration; the primary one where there is no second network.
    pub secondary_ip: Ipv4Addr,
    /// Its group.
    pub group: GroupId,
    /// Holds a copy of the replicated state and may become master.
    pub master_candidate: bool,
    /// May be a master candidate at all.
    pub master_capable: bool,
    /// May run instances.
    pub vm_capable: bool,
    /// Marked by an operator as being away; not contacted.
    pub offline: bool,
    /// Takes no new instances.
    pub drained: bool,
    /// Switched on, as far as is known.
    pub powered: bool,
    /// Node parameters that differ from its group's.
    #[serde(default)]
    pub ndparams: Params,
    /// When it was added.
    pub ctime: Timestamp,
    /// When its configuration was last changed.
    pub mtime: Timestamp,
    /// Grows with each change.
    pub serial_no: u64,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeSet<String>,
    /// Its current life (protocol, section 2); zero until its daemon has joined.
    pub life: Life,
    /// Identity of the boot to which [`Self::life`] belongs.
    pub boot: String,
    /// [`Self::life`] was declared dead: what it owned may be taken over. A new life ends this.
    #[serde(default)]
    pub dead: bool,
    /// Its guard enforces leases and its replicas know it (protocol, 7.3): it may be declared dead without an operator.
    /// Outlives its lives.
    #[serde(default)]
    pub armed: bool,
}

/// What `gnt-node add` asks for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewNode {
    /// Its name.
    pub name: String,
    /// Its identity for users.
    pub uuid: Uuid,
    /// Address for management.
    pub primary_ip: Ipv4Addr,
    /// Address for replication; the primary one where there is no second network.
    pub secondary_ip: Ipv4Addr,
    /// Its group; the oldest one if absent.
    pub group: Option<GroupId>,
    /// May become master.
    pub master_capable: bool,
    /// May run instances.
    pub vm_capable: bool,
}

/// A change of [`Node`]; absent fields stay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct NodeChange {
    /// See [`Node::master_candidate`].
    pub master_candidate: Option<bool>,
    /// See [`Node::master_capable`].
    pub master_capable: Option<bool>,
    /// See [`Node::vm_capable`].
    pub vm_capable: Option<bool>,
    /// See [`Node::offline`].
    pub offline: Option<bool>,
    /// See [`Node::drained`].
    pub drained: Option<bool>,
    /// See [`Node::secondary_ip`].
    pub secondary_ip: Option<Ipv4Addr>,
    /// Tags to add.
    #[serde(default)]
    pub add_tags: BTreeSet<String>,
    /// Tags to take away.
    #[serde(default)]
    pub remove_tags: BTreeSet<String>,
}

/// What a node is in the cluster, Ganeti's words and letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeRole {
    /// Leads: runs jobs, takes decisions.
    Master,
    /// May become master.
    MasterCandidate,
    /// Neither.
    Regular,
    /// Takes no new instances.
    Drained,
    /// Marked as away.
    Offline,
}

impl NodeRole {
    /// The letter in `gnt-node list -o role`.
    pub fn letter(self) -> char {
        match self {
            NodeRole::Master => 'M',
            NodeRole::MasterCandidate => 'C',
            NodeRole::Regular => 'R',
            NodeRole::Drained => 'D',
            NodeRole::Offline => 'O',
        }
    }

    /// The words used in messages.
    pub fn words(self) -> &'static str {
        match self {
            NodeRole::Master => "master",
            NodeRole::MasterCandidate => "master candidate",
            NodeRole::Regular => "regular",
            NodeRole::Drained => "drained",
            NodeRole::Offline => "offline",
        }
    }
}

impl Node {
    /// A witness votes and does nothing else.
    pub fn is_witness(&self) -> bool {
        !self.master_capable && !self.vm_capable
    }

    /// Whether it may be given a vote.
    pub fn may_vote(&self) -> bool {
        self.is_witness() || self.master_candidate
    }

    /// Whether it may take office as master. A witness that is elected only keeps the log until another can lead.
    pub fn may_be_master(&self) -> bool {
        self.master_capable && self.master_candidate && !self.offline
    }
}
