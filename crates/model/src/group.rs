//! Node groups, as in Ganeti. A new cluster has one, `default`.

use serde::{Deserialize, Serialize};

use crate::ids::Timestamp;
use crate::params::Params;

/// Whether new instances are put on the nodes of a group.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AllocPolicy {
    /// Yes.
    #[default]
    Preferred,
    /// Only when no preferred group has room.
    LastResort,
    /// Never.
    Unallocable,
}

/// A group of nodes between which instances may move.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// Its name, unique in the cluster.
    pub name: String,
    /// Whether new instances go there.
    pub alloc_policy: AllocPolicy,
    /// Node parameters that differ from the cluster's.
    #[serde(default)]
    pub ndparams: Params,
    /// When it was made.
    pub ctime: Timestamp,
    /// When it was last changed.
    pub mtime: Timestamp,
    /// Grows with each change.
    pub serial_no: u64,
    /// Its tags.
    #[serde(default)]
    pub tags: std::collections::BTreeSet<String>,
}
