//! What a replica stores, and what it finds when it is opened (protocol, sections 4 and 6).

use std::collections::BTreeMap;

use model::{DiskId, Epoch, Incarnation, MirrorMode, ReplicaId, Uuid, Version};
use serde::{Deserialize, Serialize};

use super::Bitmap;
use crate::wire::{HighWater, Range};

/// The durable record: two slots on the medium, the newer valid one counts.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Superblock {
    /// The disk.
    pub disk: DiskId,
    /// The replica.
    pub rid: ReplicaId,
    /// Size in bytes.
    pub size: u64,
    /// Incarnation of the cluster that it follows.
    pub inc: Incarnation,
    /// The highest epoch that it has promised; lower ones are refused for ever.
    pub epoch: Epoch,
    /// Its high-water mark.
    pub hw: HighWater,
    /// The mode that it was told.
    pub mode: MirrorMode,
    /// How often it was opened.
    pub start: u64,
    /// It came to an orderly end: flushed, `left_window` and the stored bitmaps are exact.
    pub clean: bool,
    /// Its content is one that the disk had at some time.
    pub consistent: bool,
    /// The window at the orderly end: pairs of offset and length.
    pub left_window: Vec<(u64, u64)>,
}

impl Superblock {
    /// Of a replica that is born with its disk, all zeroes, and in sync.
    pub fn newborn(disk: DiskId, rid: ReplicaId, size: u64, inc: Incarnation, mode: MirrorMode) -> Self {
        Self {
            disk,
            rid,
            size,
            inc,
            epoch: Epoch::default(),
            hw: HighWater::default(),
            mode,
            start: 0,
            clean: true,
            consistent: true,
            left_window: Vec::new(),
        }
    }

    /// Of a replica that is added to a disk later: it has to be filled first.
    pub fn added(disk: DiskId, rid: ReplicaId, size: u64, inc: Incarnation, mode: MirrorMode) -> Self {
        Self { consistent: false, ..Self::newborn(disk, rid, size, inc, mode) }
    }
}

/// Which primary's daemon sent a write: numbers of writes count within it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Session {
    /// The primary's epoch.
    pub epoch: Epoch,
    /// The `start` of its replica.
    pub start: u64,
}

/// A write that is not yet known to be on all members.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowEntry {
    /// Who sent it.
    pub session: Session,
    /// Its number there.
    pub seq: u64,
    /// Where it wrote.
    pub range: Range,
}

/// The boot-scoped record: a mapped file on tmpfs. It outlives the daemon, not the kernel, and counts only in the boot in
/// which it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BootRecord {
    /// Whether the window is complete. Not, after the kernel was lost, until the replica was brought in sync again.
    pub valid: bool,
    /// The window, by the entry's place in the file.
    pub window: BTreeMap<u32, WindowEntry>,
    /// The migration for which this replica's run was closed.
    pub quiesced: Option<Uuid>,
    /// Up to which write of a session every one that was received is applied.
    pub applied: Option<(Session, u64)>,
    /// The bitmaps of the other slots.
    pub marks: BTreeMap<u8, MarkRecord>,
}

/// The bitmap for a replica that is not in sync.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarkRecord {
    /// The replica.
    pub rid: ReplicaId,
    /// From which version on it covers every difference.
    pub since: Version,
    /// The blocks that may differ.
    pub bits: Bitmap,
}

/// What the driver finds when it opens a replica, under the exclusive lock of its backing.
#[derive(Clone, Debug)]
pub struct Stored {
    /// The newer valid superblock.
    pub superblock: Superblock,
    /// The boot-scoped record if it was written in this boot.
    pub boot: Option<BootRecord>,
    /// The bitmaps that were saved durably at the last orderly end.
    pub saved_marks: BTreeMap<u8, MarkRecord>,
}
