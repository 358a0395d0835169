//! The daemon's own API: what its clients ask, and what they get.
//!
//! A client posts a [`Request`] as JSON to [`CALL_PATH`] on the daemon's socket. It gets status 200 with the reply named at
//! the request, or 4xx/5xx with a [`Failure`](crate::Failure). Any node takes any request; what needs the master goes on to it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use model::{DiskTemplate, Job, JobId, JobStatus, Params, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::op::Opcode;

/// Socket of the daemon, unless it is told otherwise.
pub const SOCKET: &str = "/run/cardume/api.sock";
/// Where requests are posted.
pub const CALL_PATH: &str = "/cardume/1/call";
/// Where a console is opened: `POST {CONSOLE_PATH}/{instance}` with `Upgrade: cardume-console`; then a stream of bytes.
pub const CONSOLE_PATH: &str = "/cardume/1/console";
/// Protocol named in the `Upgrade` header of a console.
pub const CONSOLE_PROTOCOL: &str = "cardume-console";
/// Port of the API over TLS.
pub const API_PORT: u16 = 5080;
/// Port between nodes.
pub const NODE_PORT: u16 = 5081;
/// Port for replication between nodes.
pub const MIRROR_PORT: u16 = 5082;

/// A request.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub enum Request {
    /// What this node is. Answered by the node itself, cluster or not. Reply: [`NodeStatus`].
    Status,
    /// Makes a cluster with this node as its first. Only on an uninitialised daemon. Reply: null.
    Init(Box<Init>),
    /// Joins a cluster with a token. Only on an uninitialised daemon. Reply: null, when the node is a member.
    Join(Join),
    /// Ends the cluster. On the master. Reply: null.
    Destroy,
    /// Makes this node the master. Reply: null, when it is in office.
    MasterFailover,
    /// Forced recovery (protocol, section 11): this node goes on alone, in a new incarnation of the cluster. Answered by the
    /// node itself, and only on its local socket. Reply: [`Recovery`].
    Recover {
        /// Names of the nodes that the operator asserts to be off: all the others.
        off: Vec<String>,
        /// Do it; otherwise only say what would be done and lost.
        commit: bool,
    },
    /// What happened to an instance or a node, and why. Reply: [`Why`].
    Why {
        /// Its name.
        name: String,
    },
    /// For each instance, how long a takeover takes at the most. Reply: a list of [`InstanceBound`].
    HaBound,
    /// For each node, what happens if it dies now. Reply: a list of [`NodePlan`].
    HaPlan {
        /// Which ones; none: all.
        names: Vec<String>,
    },
    /// How leases are. Reply: a list of [`NodeLease`].
    HaStatus,
    /// Switches automatic failover on or off for the whole cluster. Reply: null, when all nodes that answer have followed.
    HaSwitch {
        /// On.
        on: bool,
    },
    /// Queues a job. Reply: its [`JobId`].
    Submit(Submit),
    /// A job; waits up to `wait` seconds for a line after `after`, for another state than `status`, or for its end.
    /// Reply: [`Job`], in its `ops[].log` only lines after `after`.
    Job {
        /// Its number.
        id: JobId,
        /// Serial of the last line that the client has.
        after: u64,
        /// State that the client knows.
        status: Option<JobStatus>,
        /// Seconds to wait at the most; 0: answer at once.
        wait: u32,
    },
    /// Cancels a job that has not begun. Reply: null.
    CancelJob {
        /// Its number.
        id: JobId,
    },
    /// Takes finished jobs out of the queue. Reply: null.
    ArchiveJob {
        /// Its number.
        id: JobId,
    },
    /// A table. Reply: [`Table`].
    Query(Query),
    /// What `gnt-cluster info` shows. Reply: [`Tree`].
    ClusterInfo,
    /// What `gnt-node info` shows. Reply: [`Tree`].
    NodeInfo {
        /// Which ones; none: all.
        names: Vec<String>,
    },
    /// What `gnt-instance info` shows. Reply: [`Tree`].
    InstanceInfo {
        /// Which ones; none: all.
        names: Vec<String>,
        /// Don't ask the nodes.
        is_static: bool,
    },
    /// How mirrored disks are. Reply: a list of [`DiskReport`](crate::disks::DiskReport), by instance and index.
    Disks {
        /// Of which instances; none: all.
        names: Vec<String>,
    },
}

/// Reply to [`Request::Recover`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Recovery {
    /// The last master that this node knows of.
    pub master: Option<String>,
    /// Nodes that have to be asserted off: all the others.
    pub others: Vec<String>,
    /// Those of them that answer, on which network; nothing is done then.
    pub answering: Vec<String>,
    /// Per mirrored disk, in sentences, what may be lost.
    pub risks: Vec<String>,
    /// The new incarnation, once it was done.
    pub incarnation: Option<u64>,
}

/// Reply to [`Request::Why`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Why {
    /// `instance` or `node`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// How it is now, one sentence each.
    pub now: Vec<String>,
    /// What happened, oldest first.
    pub events: Vec<WhyEvent>,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WhyEvent {
    /// When.
    pub at: Timestamp,
    /// What, for people, with its evidence.
    pub text: String,
    /// What, for programs.
    pub record: model::Record,
}

/// How long a takeover of one instance takes at the most.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InstanceBound {
    /// Its name.
    pub instance: String,
    /// Its node.
    pub node: String,
    /// Milliseconds by name, in the order of the sum: `election`, `wait`, then `commit`, `promote`, `start`, or `measured` for
    /// these three together, as they were in its slowest takeover.
    pub terms: Vec<(String, u64)>,
    /// `max(election, wait)` and the other terms, milliseconds; `None`: nobody takes it over by itself.
    pub total_ms: Option<u64>,
    /// Why nobody does; or, how the last takeover went.
    pub note: Option<String>,
}

/// What happens if a node dies now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodePlan {
    /// Its name.
    pub node: String,
    /// Whether that happens by itself.
    pub automatic: bool,
    /// Why not.
    pub note: Option<String>,
    /// Its instances, in the order in which they are taken over.
    pub instances: Vec<PlannedMove>,
}

/// What happens to one instance.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PlannedMove {
    /// Its name.
    pub instance: String,
    /// Where it goes; `None`: nowhere.
    pub to: Option<String>,
    /// Memory that it needs there, MiB.
    pub memory_mib: u64,
    /// Why there, or why nowhere.
    pub reason: String,
}

/// How a node's lease is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeLease {
    /// Its name.
    pub node: String,
    /// Its life.
    pub life: u64,
    /// Whether that was declared dead.
    pub dead: bool,
    /// Whether it may be, without an operator.
    pub armed: bool,
    /// How long ago the newest confirmed round began that granted it a lease, milliseconds.
    pub age_ms: Option<u64>,
    /// Why it is not armed, one sentence.
    pub note: Option<String>,
}

/// Parameters of [`Request::Init`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Init {
    /// Name of the cluster; resolved on the node to get its address.
    pub cluster_name: String,
    /// Interface that carries the cluster's address.
    pub master_netdev: Option<String>,
    /// Its prefix length.
    pub master_netmask: Option<u8>,
    /// Address of this node for replication.
    pub secondary_ip: Option<Ipv4Addr>,
    /// First three octets of the instances' hardware addresses.
    pub mac_prefix: Option<String>,
    /// Enabled hypervisors, the default one first.
    pub enabled_hypervisors: Option<Vec<String>>,
    /// Enabled disk templates, the default one first.
    pub enabled_disk_templates: Option<Vec<DiskTemplate>>,
    /// Hypervisor parameters.
    #[serde(default)]
    pub hvparams: BTreeMap<String, Params>,
    /// Back-end parameters.
    #[serde(default)]
    pub beparams: Params,
    /// Parameters of network interfaces.
    #[serde(default)]
    pub nicparams: Params,
    /// Folder for disks of the template `file`.
    pub file_storage_dir: Option<String>,
    /// How many nodes are master candidates at the most.
    pub candidate_pool_size: Option<u32>,
    /// Length of a node's lease, milliseconds.
    #[serde(default)]
    pub lease_ms: Option<u32>,
}

/// Parameters of [`Request::Join`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Join {
    /// Address of a member, with or without a port.
    pub address: String,
    /// The one-time token that `gnt-node add` printed.
    pub token: String,
}

/// Parameters of [`Request::Submit`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Submit {
    /// Done one after the other.
    pub ops: Vec<Opcode>,
    /// −20 (first) to 19 (last).
    #[serde(default)]
    pub priority: i8,
    /// Jobs that must have ended before, and in which state.
    #[serde(default)]
    pub depends: Vec<(JobId, Vec<JobStatus>)>,
}

/// Reply to [`Request::Job`]: the job, its log cut to what is new.
pub type JobReply = Job;

/// Reply to [`Request::Status`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeStatus {
    /// Version of the daemon.
    pub version: String,
    /// This node's name, as the cluster knows it; `None`: not in a cluster.
    pub node: Option<String>,
    /// Name of the cluster.
    pub cluster: Option<String>,
    /// Name of the last master that this node knows of, dead or alive.
    pub master: Option<String>,
    /// Whether a master is reachable that a majority follows.
    pub has_master: bool,
    /// Incarnation of the cluster.
    pub incarnation: u64,
    /// Term of the master's office.
    pub term: u64,
    /// Names of the nodes that vote.
    #[serde(default)]
    pub voters: BTreeSet<String>,
}

/// What is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Resource {
    /// Instances.
    Instance,
    /// Nodes.
    Node,
    /// Jobs.
    Job,
    /// Operating systems.
    Os,
}

/// Parameters of [`Request::Query`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Query {
    /// What is listed.
    pub what: Resource,
    /// Names of the columns.
    pub fields: Vec<String>,
    /// Only these objects, in this order; `None`: all, in natural order.
    pub names: Option<Vec<String>>,
}

/// Kind of a column (Ganeti's words).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FieldKind {
    /// Text.
    Text,
    /// `Y` or `N`.
    Bool,
    /// A number.
    Number,
    /// A size in MiB.
    Unit,
    /// Seconds since 1970.
    Timestamp,
    /// Anything else: lists, dictionaries.
    Other,
    /// No such field.
    Unknown,
}

/// A column of a [`Table`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Field {
    /// Its name in requests.
    pub name: String,
    /// Its heading.
    pub title: String,
    /// Its kind.
    pub kind: FieldKind,
    /// What it holds.
    pub doc: String,
}

/// Whether a cell has a value (Ganeti's numbers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CellState {
    /// It has.
    Normal,
    /// No such field.
    Unknown,
    /// The node did not answer.
    NoData,
    /// It makes no sense for this object.
    Unavailable,
    /// The node is marked offline.
    Offline,
}

impl CellState {
    /// The number on the wire.
    pub fn number(self) -> u8 {
        match self {
            CellState::Normal => 0,
            CellState::Unknown => 1,
            CellState::NoData => 2,
            CellState::Unavailable => 3,
            CellState::Offline => 4,
        }
    }

    /// From the number on the wire; one that is not known counts as no data.
    pub fn from_number(number: u8) -> Self {
        match number {
            0 => CellState::Normal,
            1 => CellState::Unknown,
            3 => CellState::Unavailable,
            4 => CellState::Offline,
            _ => CellState::NoData,
        }
    }
}

/// A cell of a [`Table`]: state and value, `[0, "vm1"]` on the wire.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cell(pub u8, pub Value);

impl Cell {
    /// A cell with a value.
    pub fn value(value: impl Into<Value>) -> Self {
        Cell(CellState::Normal.number(), value.into())
    }

    /// A cell without one.
    pub fn empty(state: CellState) -> Self {
        Cell(state.number(), Value::Null)
    }

    /// Whether it has a value.
    pub fn state(&self) -> CellState {
        CellState::from_number(self.0)
    }
}

/// Reply to [`Request::Query`].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Table {
    /// The columns.
    pub fields: Vec<Field>,
    /// The rows.
    pub data: Vec<Vec<Cell>>,
}

/// Nested information with an order, as `info` commands show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tree {
    /// A value.
    Text(String),
    /// Names and values, in this order.
    Map(Vec<(String, Tree)>),
    /// Values.
    List(Vec<Tree>),
}

impl Tree {
    /// A value as text.
    pub fn text(value: impl std::fmt::Display) -> Self {
        Tree::Text(value.to_string())
    }

    /// Names and values, in the order given.
    pub fn map<K: Into<String>>(entries: impl IntoIterator<Item = (K, Tree)>) -> Self {
        Tree::Map(entries.into_iter().map(|(key, value)| (key.into(), value)).collect())
    }
}

/// A time as `info` and `list` show it needs the zone of who reads it, so it travels as a number.
pub fn timestamp(at: Timestamp) -> Value {
    serde_json::json!(at.0 as f64 / 1e6)
}
