//! How mirrored disks are: what `/proc/drbd` showed, and what the cluster's log says besides.

use model::{DiskId, ReplicaId, RunId, Version};
use serde::{Deserialize, Serialize};

/// A mirrored disk, with what each of its nodes says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskReport {
    /// Name of its instance.
    pub instance: String,
    /// Its place in the instance.
    pub index: usize,
    /// Its identity.
    pub disk: DiskId,
    /// Its size, MiB.
    pub size_mib: u64,
    /// `strict` or `manual`.
    pub mode: String,
    /// Its generation in the log, `0.3`.
    pub epoch: String,
    /// Version of its record in the log, `0.7`.
    pub version: String,
    /// Nodes whose replicas hold every acknowledged write, by name.
    pub in_sync: Vec<String>,
    /// Name of the node that serves it.
    pub primary: Option<String>,
    /// Its replicas, the primary's first.
    pub replicas: Vec<NodeReplica>,
}

/// A replica with its node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeReplica {
    /// Name of the node.
    pub node: String,
    /// What the node says of it; `None`: it does not answer, or has no such replica.
    pub report: Option<ReplicaReport>,
    /// Why there is no report.
    pub why: Option<String>,
}

/// What a node says of its replica of a disk. The words are DRBD's.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ReplicaReport {
    /// Its disk.
    pub disk: DiskId,
    /// The replica.
    pub replica: ReplicaId,
    /// `Primary`, `Secondary`, `Unknown`.
    pub role: String,
    /// `UpToDate`, `Outdated`, `Inconsistent`, `Failed`, `Diskless`, `DUnknown`.
    pub state: String,
    /// The other replicas, as this one sees them.
    pub peers: Vec<PeerReport>,
    /// The run that is served here.
    pub serving: Option<RunId>,
    /// Bytes since the replica was opened.
    pub counters: DiskCounters,
    /// Guest writes under way.
    pub pending: u64,
    /// Guest requests that wait, for whatever reason.
    pub waiting: u64,
    /// Whether acknowledgements are held for a member that does not answer.
    pub holding: bool,
    /// Whether its guest is suspended, because nothing can be acknowledged.
    pub suspended: bool,
    /// Why it can't be used, if it can't.
    pub failed: Option<String>,
    /// Up to which version of the disk's record it has followed: what a forced promotion needs to know. `None` while its
    /// content is no state of the disk, or can't be read.
    #[serde(default)]
    pub held: Option<Version>,
}

/// Another replica, as one sees it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerReport {
    /// Name of its node.
    pub node: String,
    /// `Connected`, `WFConnection`, `StandAlone`, `SyncSource`, `SyncTarget`.
    pub connection: String,
    /// Its role, in the words of [`ReplicaReport::role`].
    pub role: String,
    /// The state of its data, in the words of [`ReplicaReport::state`].
    pub state: String,
    /// Bytes that it lacks or may lack.
    pub out_of_sync: u64,
    /// The resync to it that is under way.
    pub resync: Option<ResyncReport>,
    /// Why it is kept aside, if it is.
    pub refused: Option<String>,
}

/// A resync under way.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct ResyncReport {
    /// Bytes that it had to copy.
    pub total: u64,
    /// Bytes that are done.
    pub done: u64,
    /// Bytes in a second, by the last measurement.
    pub rate: u64,
    /// Seconds that the rest takes at that rate; `None`: not known yet.
    pub eta_s: Option<u64>,
}

/// What was moved, in bytes (DRBD's `nr`, `ns`, `dw`, `dr`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCounters {
    /// Sent to other replicas.
    pub sent: u64,
    /// Received from other replicas.
    pub received: u64,
    /// Written to the medium.
    pub written: u64,
    /// Read from the medium.
    pub read: u64,
}
