//! Frames of the replication protocol (protocol, section 5.1) and their encoding. No I/O.
//!
//! Between a primary and a replica there is one *data* and one *resync* connection per link. Frames of one connection
//! keep their order; between the two there is none. The first frame on each is a [`Hello`].

mod codec;
mod fields;

use bytes::Bytes;
use model::{DiskId, Epoch, Incarnation, Life, MirrorMode, ReplicaId, Version};

pub use codec::{DecodeError, Encoded, HEADER_LEN, MAX_BODY, MAX_DATA, MAX_RANGES, PROTOCOL_VERSION, decode, encode};

/// Bytes of a disk, from `offset` up to `offset + len`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range {
    /// First byte.
    pub offset: u64,
    /// Number of bytes.
    pub len: u64,
}

impl Range {
    /// `len` bytes from `offset` on.
    pub fn new(offset: u64, len: u64) -> Self {
        Self { offset, len }
    }

    /// The first byte after it.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.len)
    }

    /// Whether the two share a byte.
    pub fn overlaps(self, other: Range) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }
}

/// What a range of a disk holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// These bytes.
    Data(Bytes),
    /// Zeroes, of which nothing needs to be stored. A medium that can punch holes may do so.
    Zeroes,
}

/// Generation of a primary's connection to a replica. Ordered as a pair.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Link {
    /// How often the primary's daemon had opened its replica, durably counted.
    pub start: u64,
    /// Number of the connection within that.
    pub k: u64,
}

/// Which of the two connections of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Channel {
    /// The guest's writes, and everything that has an order with them.
    Data,
    /// Copies.
    Resync,
}

/// Highest version under which a replica has applied or acknowledged anything; `solo` after it went on alone without the
/// log (protocol, 7.2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
pub struct HighWater {
    /// The version.
    pub ver: Version,
    /// Whether it went on alone in it.
    pub solo: bool,
}

/// A primary opens a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Incarnation of its cluster.
    pub inc: Incarnation,
    /// The disk.
    pub disk: DiskId,
    /// The primary's replica.
    pub from: ReplicaId,
    /// The replica that is meant.
    pub to: ReplicaId,
    /// The primary's epoch.
    pub epoch: Epoch,
    /// The link.
    pub link: Link,
    /// Which connection of it.
    pub channel: Channel,
    /// The version that the primary knows.
    pub ver: Version,
}

/// A replica's answer to a [`Hello`] on the data connection: what it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaState {
    /// The replica.
    pub rid: ReplicaId,
    /// Its size in bytes.
    pub size: u64,
    /// The current life of its node.
    pub life: Life,
    /// The boot of its node.
    pub boot: String,
    /// The epoch that it had promised before this Hello.
    pub epoch: Epoch,
    /// Its high-water mark.
    pub hw: HighWater,
    /// The mode in its superblock.
    pub mode: MirrorMode,
    /// Whether it came to an orderly end before this Hello.
    pub clean: bool,
    /// Whether its content is one that the disk had at some time; not in the middle of a resync.
    pub consistent: bool,
    /// The writes that are not yet known to be on all members; `None` if that was lost with the kernel.
    pub window: Option<Vec<Range>>,
    /// Up to which write of the session with this `start` it has applied every one that it was sent.
    pub applied: Option<(u64, u64)>,
}

/// Why a replica refuses a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefuseReason {
    /// It has promised a higher epoch, or serves a later link.
    Stale,
    /// It belongs to another incarnation of the cluster, or to a fork.
    Foreign,
    /// It is not the replica that is meant.
    WrongReplica,
    /// Its medium failed.
    Failed,
    /// A frame made no sense in its place.
    Protocol,
}

/// Writes that the receiver's bitmap for a replica which is not in sync has to cover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mark {
    /// The replica's slot.
    pub slot: u8,
    /// The replica.
    pub rid: ReplicaId,
    /// From which version on the bitmap covers every difference. `None`: the replica is in sync, its bitmap ends.
    pub since: Option<Version>,
    /// Whether the bitmap starts empty; else the ranges are added to what is there.
    pub fresh: bool,
    /// What to mark; at most [`MAX_RANGES`].
    pub ranges: Vec<Range>,
}

/// What the two ends of a link say to each other. P: the primary; X: the replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// P→X, first on each connection.
    Hello(Hello),
    /// X→P, the answer on the data connection, after everything of older links has ended.
    State(Box<ReplicaState>),
    /// X→P, on either connection; it is closed afterwards.
    Refused {
        /// The epoch that X has promised.
        epoch: Epoch,
        /// Why.
        reason: RefuseReason,
    },
    /// P→X: a write of the guest.
    Write {
        /// Its number within the session.
        seq: u64,
        /// Where.
        range: Range,
        /// What.
        content: Content,
        /// Durable before it is answered.
        fua: bool,
        /// All writes up to this one are on all members.
        stable: u64,
    },
    /// X→P: the write has completed.
    Ack {
        /// Its number.
        seq: u64,
    },
    /// P→X: make durable what was answered so far.
    Flush {
        /// A number of the same count as the writes': it covers the writes below it that were answered.
        upto: u64,
    },
    /// X→P: done.
    Flushed {
        /// The flush's number.
        upto: u64,
    },
    /// P→X: what to mark from now on; answered by the [`Frame::Adopted`] of the Adopt that follows.
    Mark(Mark),
    /// P→X: everything after this belongs to `ver`.
    Adopt {
        /// The version.
        ver: Version,
        /// All members are equal and flushed: windows of earlier sessions are void.
        settled: bool,
    },
    /// X→P: the marks before the Adopt are stored, and the high-water mark has been raised.
    Adopted {
        /// The version.
        ver: Version,
    },
    /// P→X: a resync begins; X is inconsistent from now on.
    StartSync {
        /// The version under which.
        ver: Version,
    },
    /// X→P: that is durable.
    SyncStarted,
    /// P→X: X holds everything.
    FinishSync {
        /// The version under which.
        ver: Version,
        /// The disk's mode.
        mode: MirrorMode,
    },
    /// X→P: X's superblock says so, durably.
    SyncFinished,
    /// P→X on the resync connection: content of a range.
    Copy {
        /// Where.
        range: Range,
        /// What.
        content: Content,
    },
    /// X→P on the resync connection: the copy has completed.
    Copied {
        /// Where.
        range: Range,
    },
    /// P→X: read a range.
    Read {
        /// To match the answer.
        id: u64,
        /// Where.
        range: Range,
    },
    /// X→P: what is there; `None` if it can't be read.
    Data {
        /// The read's.
        id: u64,
        /// What.
        content: Option<Content>,
    },
    /// P→X, when nothing else was sent for a while.
    Ping {
        /// As in [`Frame::Write`].
        stable: u64,
    },
    /// X→P: the answer.
    Pong,
    /// P→X: all writes of checkpoint `k` were sent (protocol, section 13). Reserved: nothing sends it yet.
    Barrier {
        /// The checkpoint.
        k: u64,
    },
    /// P→X: the disk is at an orderly end, all members are equal and flushed. X→P: done; or X leaves by itself.
    Bye,
}
