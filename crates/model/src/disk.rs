//! Mirrored disks: what the cluster agrees on about each (protocol, sections 2 and 3).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{NodeId, ReplicaId, RunId, Uuid};
use crate::instance::NodeLife;

/// Most replicas that a disk can have: the number of slots.
pub const MAX_REPLICAS: usize = 3;

/// Generation of a disk: grows with each change of its primary. Ordered as a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch {
    /// The cluster's incarnation in which it began.
    pub n: u64,
    /// Number within the incarnation.
    pub e: u64,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.n, self.e)
    }
}

/// Version of a disk's configuration: grows with every accepted command on the disk, also with one that changes nothing
/// else. Ordered as a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Version {
    /// The cluster's incarnation in which it was reached.
    pub n: u64,
    /// Number within the incarnation.
    pub v: u64,
}

impl Version {
    /// The one after it.
    pub fn next(self) -> Self {
        Self { n: self.n, v: self.v + 1 }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.n, self.v)
    }
}

/// By which rules a disk's primary goes on alone (protocol, section 7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MirrorMode {
    /// Three voters or more: nothing is acknowledged alone before the log says so.
    Strict,
    /// Everything else: the primary may go on alone without the log where it is told to, and an operator decides what
    /// happens to an instance whose node is gone.
    #[default]
    Manual,
}

/// One node's copy of a mirrored disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MirrorReplica {
    /// The node that has it.
    pub node: NodeId,
    /// Its place in the other replicas' bitmaps: 0 to 2, unique within the disk.
    pub slot: u8,
    /// Set while it is a member of the in-sync set: the node's boot when it became one. With a newer boot the member is
    /// *shaken*: it may have lost writes that were not flushed.
    pub member: Option<String>,
    /// The last version in which it was a member.
    pub left: Version,
}

/// A forced promotion: what was acknowledged between these two versions anywhere else is a fork.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forced {
    /// Up to which version the promoted replica had followed.
    pub base: Version,
    /// The version that the promotion made.
    pub at: Version,
}

/// What the cluster agrees on about a mirrored disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirror {
    /// Its mode.
    pub mode: MirrorMode,
    /// Its generation.
    pub epoch: Epoch,
    /// Version of this record.
    pub ver: Version,
    /// The node that serves the guest, in which of its lives.
    pub primary: Option<NodeLife>,
    /// The run that may write.
    pub run: Option<RunId>,
    /// After forced recovery: the in-sync set proves nothing, only [`Force`](crate::Command::Force) promotes.
    pub doubtful: bool,
    /// The replicas.
    pub replicas: BTreeMap<ReplicaId, MirrorReplica>,
    /// Forced promotions, in order.
    #[serde(default)]
    pub forces: Vec<Forced>,
}

impl Mirror {
    /// A new disk: nobody's, all its replicas (node and its boot) in sync, because they all read as zeroes.
    /// [`AddInstance`](crate::Command::AddInstance) puts the incarnation into its numbers.
    pub fn new(mode: MirrorMode, replicas: impl IntoIterator<Item = (ReplicaId, NodeId, String)>) -> Self {
        let replicas = replicas.into_iter().zip(0u8..).map(|((rid, node, boot), slot)| {
            (rid, MirrorReplica { node, slot, member: Some(boot), left: Version::default() })
        });
        Self {
            mode,
            epoch: Epoch::default(),
            ver: Version::default(),
            primary: None,
            run: None,
            doubtful: false,
            replicas: replicas.collect(),
            forces: Vec::new(),
        }
    }

    /// The in-sync set: the replicas that hold every acknowledged write.
    pub fn in_sync(&self) -> BTreeSet<ReplicaId> {
        self.replicas.iter().filter(|(_, replica)| replica.member.is_some()).map(|(rid, _)| *rid).collect()
    }

    /// Whether a replica is in the in-sync set.
    pub fn is_member(&self, rid: ReplicaId) -> bool {
        self.replicas.get(&rid).is_some_and(|replica| replica.member.is_some())
    }

    /// A node's replica.
    pub fn replica_on(&self, node: NodeId) -> Option<(ReplicaId, &MirrorReplica)> {
        self.replicas.iter().find(|(_, replica)| replica.node == node).map(|(rid, replica)| (*rid, replica))
    }

    /// Whether a node's replica is in the in-sync set.
    pub fn is_member_on(&self, node: NodeId) -> bool {
        self.replica_on(node).is_some_and(|(_, replica)| replica.member.is_some())
    }
}

/// A live migration under way: exactly one of [`Handover`](crate::Command::Handover) and
/// [`Cancel`](crate::Command::Cancel) ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migration {
    /// Its identity.
    pub id: Uuid,
    /// Where the instance moves.
    pub to: NodeLife,
    /// The run that it will have there.
    pub run: RunId,
}

/// Why a command on a mirrored disk was refused, as its primary needs to tell apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskRejection {
    /// The disk's record has changed since: read it, and propose anew if there still is need.
    #[error("the disk's configuration is at version {now}, the command was made for {then}")]
    VersionMoved {
        /// The state's.
        now: Version,
        /// The command's.
        then: Version,
    },
    /// The proposer is the primary no more: another epoch has begun, or the disk has no primary.
    #[error("the disk is in epoch {now}; the primary of epoch {then} has been replaced")]
    Deposed {
        /// The state's.
        now: Epoch,
        /// The command's.
        then: Epoch,
    },
    /// The proposer's life has ended.
    #[error("the life of node {} in which this was asked for ({}) has ended", .0.node, .0.life)]
    LifeEnded(NodeLife),
}
