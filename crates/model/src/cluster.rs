//! The cluster as a whole: its name, its address, and what holds unless a group, node or instance says otherwise.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

use crate::ids::{Timestamp, Uuid};
use crate::instance::DiskTemplate;
use crate::node::NewNode;
use crate::params::Params;

/// Usual length of a lease, milliseconds (protocol, section 8).
pub const LEASE_MS: u32 = 1300;

/// Configuration of the cluster.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cluster {
    /// Its name, as given to `gnt-cluster init`.
    pub name: String,
    /// Identity of the cluster; part of every node's certificate.
    pub uuid: Uuid,
    /// When it was made.
    pub ctime: Timestamp,
    /// When its configuration was last changed.
    pub mtime: Timestamp,
    /// Grows with each change.
    pub serial_no: u64,
    /// The address that follows the master.
    pub address: Ipv4Addr,
    /// Prefix length of [`Self::address`] on the master's interface.
    pub netmask: u8,
    /// Interface that carries [`Self::address`].
    pub netdev: String,
    /// First three octets of the hardware addresses given to instances, `aa:00:00`.
    pub mac_prefix: String,
    /// Enabled hypervisors; the first is the default.
    pub hypervisors: Vec<String>,
    /// Hypervisor parameters that differ from the built-in defaults.
    pub hvparams: BTreeMap<String, Params>,
    /// Back-end parameters that differ from the built-in defaults.
    pub beparams: Params,
    /// Default parameters of network interfaces.
    pub nicparams: Params,
    /// Node parameters that differ from the built-in defaults.
    pub ndparams: Params,
    /// Enabled disk templates; the first is the default.
    pub disk_templates: Vec<DiskTemplate>,
    /// Folder for disks of the template `file`.
    pub file_storage_dir: String,
    /// How many nodes are master candidates at the most.
    pub candidate_pool_size: u32,
    /// How many jobs run at once.
    pub max_running_jobs: u32,
    /// Tags of the cluster.
    #[serde(default)]
    pub tags: BTreeSet<String>,
    /// What is set for single operating systems.
    #[serde(default)]
    pub os: BTreeMap<String, OsSettings>,
    /// Whether no new jobs are taken.
    #[serde(default)]
    pub drained: bool,
    /// Whether nodes are armed for automatic failover as soon as they can be; `cardume ha disarm` takes it away.
    #[serde(default = "yes")]
    pub ha: bool,
    /// Length of a lease, milliseconds. Chosen when the cluster is made, and never changed.
    #[serde(default = "usual_lease")]
    pub lease_ms: u32,
    /// The cluster's certificate authority, PEM. Every node's certificate is signed by it.
    pub ca_certificate: String,
    /// Its private key, PEM. In the replicated state so that each node that can be master can sign; the store's files are
    /// readable by root alone.
    pub ca_key: String,
}

fn yes() -> bool {
    true
}

fn usual_lease() -> u32 {
    LEASE_MS
}

/// What is set for one operating system.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct OsSettings {
    /// Not shown in lists.
    pub hidden: bool,
    /// Not used for new instances.
    pub blacklisted: bool,
    /// Parameters for its scripts.
    pub osparams: Params,
}

/// A change of [`Cluster`]; absent fields stay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ClusterChange {
    /// Whether no new jobs are taken.
    pub drained: Option<bool>,
    /// See [`Cluster::ha`].
    #[serde(default)]
    pub ha: Option<bool>,
    /// Tags to add.
    #[serde(default)]
    pub add_tags: BTreeSet<String>,
    /// Tags to take away.
    #[serde(default)]
    pub remove_tags: BTreeSet<String>,
}

/// Permission for one machine to join as one node, used once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JoinToken {
    /// SHA-256 of the secret, hexadecimal. The secret itself is known only to who typed the command.
    pub secret_sha256: String,
    /// What the node will be.
    pub node: NewNode,
    /// Proposer's time after which it is refused.
    pub expires: Timestamp,
}
