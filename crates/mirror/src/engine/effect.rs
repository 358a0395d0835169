//! What a replica wants done.

use model::{Epoch, Life, NodeId, ReplicaId, RunId, Uuid, Version};

use super::event::{Conn, IoId, ProposalId, RequestId};
use super::stored::{Session, Superblock, WindowEntry};
use super::{Micros, stored};
use crate::wire::{Channel, Content, Frame, Range};

/// An I/O on the medium.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Io {
    /// Read a range; the answer has its content, [`Content::Zeroes`] for a hole.
    Read(Range),
    /// Write; with `fua` it is durable at its end. [`Content::Zeroes`] may punch a hole if that reads as zeroes.
    Write {
        /// Where.
        range: Range,
        /// What.
        content: Content,
        /// Durable.
        fua: bool,
    },
    /// Make durable every write that ended before this was begun.
    Sync,
}

/// What to store durably.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreKind {
    /// The superblock.
    Superblock(Box<Superblock>),
    /// The bitmaps as they are in the boot-scoped record.
    Marks,
}

/// A change of the boot-scoped record ([`stored::BootRecord`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BootChange {
    /// Whether the window is complete.
    Valid(bool),
    /// An entry of the window is set, or cleared.
    Window(u32, Option<WindowEntry>),
    /// See [`stored::BootRecord::quiesced`].
    Quiesced(Option<Uuid>),
    /// See [`stored::BootRecord::applied`].
    Applied(Session, u64),
    /// A bitmap begins, empty, or ends.
    Marks(u8, Option<(ReplicaId, Version)>),
    /// Blocks of a bitmap are set or cleared; the range is whole blocks.
    Bits(u8, Range, bool),
}

/// A command of the disk's primary, to which the driver adds the disk and who asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DiskCommand {
    /// [`model::Command::Outdate`].
    Outdate(Vec<ReplicaId>),
    /// [`model::Command::Solo`].
    Solo(Vec<ReplicaId>),
    /// [`model::Command::InSync`].
    InSync(ReplicaId, Life),
}

/// What the guest is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestReply {
    /// Done.
    Done,
    /// What was read.
    Read(Content),
    /// Not done.
    Error(GuestError),
}

/// Why a request is not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestError {
    /// Its run is over: the export has to be closed.
    RunOver,
    /// The medium failed, and there is no other copy.
    Medium,
}

/// What the node's agent has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The run is admitted: after the promotion, and again after [`Event::Resume`](super::Event::Resume).
    Serving {
        /// The epoch.
        epoch: Epoch,
        /// The run.
        run: Option<RunId>,
    },
    /// Another epoch has begun, or this life has ended: the guest has to be stopped.
    Deposed {
        /// The epoch in which this replica served.
        epoch: Epoch,
    },
    /// The run is closed for a migration, everything is on all members and flushed.
    Quiesced {
        /// The migration.
        migration: Uuid,
        /// The epoch.
        epoch: Epoch,
        /// Number of the last write.
        seq: u64,
    },
    /// The disk has come to an orderly end.
    Released,
    /// The replica has come to an orderly end; it can be closed.
    Stopped,
    /// The guest is suspended: no member can be reached, or none can be proved to hold what was acknowledged.
    Suspended,
    /// This replica's medium failed.
    MediumFailed,
    /// A replica is kept aside: it holds writes that are not part of the disk's history, or its state went back in time.
    Refused {
        /// The replica.
        replica: ReplicaId,
        /// Why, for people.
        why: &'static str,
    },
}

/// What a replica wants done, in order. See the module's contract.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// An I/O on the medium.
    Io(IoId, Io),
    /// A durable store.
    Store(IoId, StoreKind),
    /// A boot-scoped store, done before the next effect.
    Boot(BootChange),
    /// Open a connection to a node's replica.
    Open {
        /// Its name from now on.
        conn: Conn,
        /// The node.
        node: NodeId,
        /// The replica.
        replica: ReplicaId,
        /// Which connection of the link.
        channel: Channel,
    },
    /// Send a frame.
    Send(Conn, Frame),
    /// Close a connection; nothing is reported for it any more. What was sent may or may not arrive.
    Close(Conn),
    /// Propose a command.
    Propose {
        /// To match the outcome.
        id: ProposalId,
        /// The epoch to name.
        epoch: Epoch,
        /// The version to name.
        ver: Version,
        /// The command.
        command: DiskCommand,
    },
    /// Answer a guest.
    Reply(RequestId, GuestReply),
    /// Send [`Event::Tick`](super::Event::Tick) at this time. The last one counts.
    Wake(Micros),
    /// Tell the node's agent.
    Tell(Notice),
}

impl stored::BootRecord {
    /// The changes that make it from an empty record.
    pub fn changes(&self) -> Vec<BootChange> {
        let window = self.window.iter().map(|(place, entry)| BootChange::Window(*place, Some(*entry)));
        let marks = self.marks.iter().flat_map(|(slot, marks)| {
            let begin = BootChange::Marks(*slot, Some((marks.rid, marks.since)));
            let bits = marks.bits.ranges().map(|range| BootChange::Bits(*slot, range, true));
            std::iter::once(begin).chain(bits)
        });
        let applied = self.applied.map(|(session, seq)| BootChange::Applied(session, seq));
        let quiesced = self.quiesced.map(|id| BootChange::Quiesced(Some(id)));
        window.chain(marks).chain(applied).chain(quiesced).chain([BootChange::Valid(self.valid)]).collect()
    }

    /// Carries out a change; for drivers that keep the record in memory, and for the replica's own copy.
    pub fn change(&mut self, change: &BootChange) {
        match change {
            BootChange::Valid(valid) => self.valid = *valid,
            BootChange::Window(place, Some(entry)) => {
                self.window.insert(*place, *entry);
            }
            BootChange::Window(place, None) => {
                self.window.remove(place);
            }
            BootChange::Quiesced(migration) => self.quiesced = *migration,
            BootChange::Applied(session, seq) => self.applied = Some((*session, *seq)),
            BootChange::Marks(slot, Some((rid, since))) => {
                let record = stored::MarkRecord { rid: *rid, since: *since, bits: super::Bitmap::default() };
                self.marks.insert(*slot, record);
            }
            BootChange::Marks(slot, None) => {
                self.marks.remove(slot);
            }
            BootChange::Bits(slot, range, set) => {
                if let Some(record) = self.marks.get_mut(slot) {
                    if *set { record.bits.set(*range) } else { record.bits.clear(*range) }
                }
            }
        }
    }
}
