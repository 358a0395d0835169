//! Instances (virtual machines), their disks and network interfaces.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::disk::{Migration, Mirror};
use crate::ids::{DiskId, InstanceId, JobId, Life, NodeId, RunId, Timestamp, Uuid};
use crate::params::Params;

/// A node in one of its lives: what owns an instance. When the life ends, the ownership is void.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeLife {
    /// The node.
    pub node: NodeId,
    /// Its life at that time.
    pub life: Life,
}

/// What the administrator wants of an instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AdminState {
    /// It shall run.
    Up,
    /// It shall not run.
    Down,
    /// It shall not run, and no memory is kept free for it.
    Offline,
}

impl AdminState {
    /// Ganeti's word.
    pub fn word(self) -> &'static str {
        match self {
            AdminState::Up => "up",
            AdminState::Down => "down",
            AdminState::Offline => "offline",
        }
    }
}

/// How an instance's disks are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskTemplate {
    /// No disks.
    Diskless,
    /// A file on one node.
    File,
    /// Mirrored between nodes.
    Drbd,
}

impl DiskTemplate {
    /// Every template, in the order in which users see them. A new cluster has them all, the first one is its usual one.
    pub const ALL: [DiskTemplate; 3] = [DiskTemplate::Drbd, DiskTemplate::File, DiskTemplate::Diskless];

    /// Its name in commands and in the API.
    pub fn name(self) -> &'static str {
        match self {
            DiskTemplate::Diskless => "diskless",
            DiskTemplate::File => "file",
            DiskTemplate::Drbd => "drbd",
        }
    }
}

impl fmt::Display for DiskTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for DiskTemplate {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        DiskTemplate::ALL
            .into_iter()
            .find(|template| template.name() == name)
            .ok_or_else(|| format!("unknown disk template '{name}'"))
    }
}

/// Whether the guest may write to a disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DiskAccess {
    /// It may read and write.
    #[default]
    Rw,
    /// It may only read.
    Ro,
}

/// A virtual disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Disk {
    /// Its identity.
    pub id: DiskId,
    /// A name given by the administrator.
    pub name: Option<String>,
    /// Size in MiB.
    pub size_mib: u64,
    /// Whether the guest may write.
    pub access: DiskAccess,
    /// When it was made.
    pub ctime: Timestamp,
    /// What the cluster agrees on about its replicas; only of a mirrored disk.
    #[serde(default)]
    pub mirror: Option<Mirror>,
}

/// A virtual network interface.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Nic {
    /// Its identity.
    pub uuid: Uuid,
    /// A name given by the administrator.
    pub name: Option<String>,
    /// Hardware address, lower case.
    pub mac: String,
    /// Address that the guest is told to use.
    pub ip: Option<String>,
    /// `mode`, `link`, `vlan` where they differ from the cluster's.
    #[serde(default)]
    pub params: Params,
}

/// Whether an instance is complete.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Provision {
    /// A job is making it. It is started, changed or removed by that job alone; if the job fails, it goes.
    Creating(JobId),
    /// It is complete.
    Ready,
    /// A job copies its content into these disks. It is started, changed or removed by that job alone; the disks that it had
    /// before are kept until the copy is complete, and are its disks again if the job fails.
    Converting(JobId),
    /// A job is taking it away.
    Removing(JobId),
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Instance {
    /// Its identity.
    pub id: InstanceId,
    /// Its name, unique in the cluster.
    pub name: String,
    /// Whether it is complete.
    pub provision: Provision,
    /// The node that has it, running or not.
    pub primary: NodeId,
    /// Nodes that hold further replicas of its disks.
    #[serde(default)]
    pub secondaries: Vec<NodeId>,
    /// What the administrator wants.
    pub want: AdminState,
    /// The node that may run it now, in which of its lives; committed *before* the hypervisor is started.
    pub owner: Option<NodeLife>,
    /// The start that [`Self::owner`] was given it for.
    pub run: Option<RunId>,
    /// The live migration that is under way.
    #[serde(default)]
    pub migration: Option<Migration>,
    /// Hypervisor that runs it.
    pub hypervisor: String,
    /// Operating system, `os+variant`.
    pub os: String,
    /// Hypervisor parameters that differ from the cluster's.
    #[serde(default)]
    pub hvparams: Params,
    /// Back-end parameters that differ from the cluster's.
    #[serde(default)]
    pub beparams: Params,
    /// Parameters for the operating system's scripts.
    #[serde(default)]
    pub osparams: Params,
    /// How its disks are stored.
    pub disk_template: DiskTemplate,
    /// Its disks, in the order in which the guest sees them.
    pub disks: Vec<Disk>,
    /// Its network interfaces, in the order in which the guest sees them.
    pub nics: Vec<Nic>,
    /// When it was made.
    pub ctime: Timestamp,
    /// When its configuration was last changed.
    pub mtime: Timestamp,
    /// Grows with each change.
    pub serial_no: u64,
    /// Its tags.
    #[serde(default)]
    pub tags: BTreeSet<String>,
}

/// Other disks for an instance, stored in another way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NewStorage {
    /// See [`Instance::disk_template`].
    pub template: DiskTemplate,
    /// See [`Instance::disks`].
    pub disks: Vec<Disk>,
    /// See [`Instance::secondaries`].
    pub secondaries: Vec<NodeId>,
}

/// A change of an instance's configuration; absent fields stay.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct InstanceChange {
    /// See [`Instance::want`].
    pub want: Option<AdminState>,
    /// See [`Instance::provision`].
    pub provision: Option<Provision>,
    /// One of the secondary nodes, with which the primary node changes places. Only of an instance that nobody owns.
    #[serde(default)]
    pub primary: Option<NodeId>,
    /// Other disks in place of those that it has. Only of an instance that nobody owns.
    #[serde(default)]
    pub storage: Option<NewStorage>,
    /// See [`Instance::os`].
    pub os: Option<String>,
    /// Hypervisor parameters to set (`Some`) or to give back to the cluster's (`None`).
    #[serde(default)]
    pub hvparams: std::collections::BTreeMap<String, Option<crate::params::ParamValue>>,
    /// Back-end parameters likewise.
    #[serde(default)]
    pub beparams: std::collections::BTreeMap<String, Option<crate::params::ParamValue>>,
    /// Parameters of the operating system likewise.
    #[serde(default)]
    pub osparams: std::collections::BTreeMap<String, Option<crate::params::ParamValue>>,
    /// The new list of interfaces.
    pub nics: Option<Vec<Nic>>,
    /// Tags to add.
    #[serde(default)]
    pub add_tags: BTreeSet<String>,
    /// Tags to take away.
    #[serde(default)]
    pub remove_tags: BTreeSet<String>,
}

impl InstanceChange {
    /// Only what is wanted of it changes.
    pub fn want(state: AdminState) -> Self {
        Self { want: Some(state), ..Self::default() }
    }
}
