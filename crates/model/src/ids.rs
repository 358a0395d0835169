//! Identities. A name can be given anew to another thing; an identity never is.

use std::fmt;

use serde::{Deserialize, Serialize};
pub use uuid::Uuid;

/// Microseconds since 1970-01-01 00:00 UTC, read by the proposer. For display and logs, and to count how often a guest
/// crashed lately; what is safe does not depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

impl Timestamp {
    /// Whole seconds since 1970.
    pub fn seconds(self) -> i64 {
        (self.0 / 1_000_000) as i64
    }

    /// Microseconds within the second.
    pub fn subsec_micros(self) -> u32 {
        (self.0 % 1_000_000) as u32
    }
}

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

numbered! {
    /// Number of a node: also its id in Raft. Counts up for the life of the cluster and is never given twice, because
    /// a voter that comes back under an old number with an empty log could vote twice.
    NodeId
}
numbered! {
    /// Number of a job, ascending from 1.
    JobId
}
numbered! {
    /// Number given to a node for one boot of its kernel; never given twice. Zero: the node has not joined yet.
    Life
}
numbered! {
    /// One start of one instance. Never given twice; the names of its sockets and exports contain it.
    RunId
}

macro_rules! unique {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

unique! {
    /// Identity of an instance.
    InstanceId
}
unique! {
    /// Identity of a disk.
    DiskId
}
unique! {
    /// Identity of a replica of a mirrored disk; a replica that is removed and added again gets another one.
    ReplicaId
}
unique! {
    /// Identity of a node group.
    GroupId
}
