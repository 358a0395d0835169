//! The protocol of the replicated disk, without I/O (protocol, sections 2 to 6 and 10).
//!
//! [`Replica`] is one replica of one disk on one node, in whatever role it has. It is a state machine: its driver hands it
//! [`Event`]s with the time, and carries out the [`Effect`]s that it answers. It has no clock, no thread, no socket and no
//! file, so the code that ships is the code that runs under the simulator.
//!
//! # What the driver promises
//! - The effects of one step are begun in the order in which they were given. Effects that change the *boot-scoped* record
//!   ([`Effect::Boot`]) have taken place before the next effect is begun: they are plain stores into a mapped file.
//! - Every [`Effect::Io`], [`Effect::Store`] and [`Effect::Propose`] is answered exactly once, in any order. An I/O that
//!   was begun is never reported as ended before it has ended.
//! - Frames of one connection are sent and delivered in order, or the connection ends. Nothing is delivered for a
//!   connection after its [`Event::Disconnected`] or [`Effect::Close`]. A frame for a connection that has ended is dropped.
//! - A [`View`] is what the log had committed at some time; views may be late, skip states, and repeat.
//!   [`Event::Promote`] carries one that was read with a barrier after the promotion was committed.
//! - A boot-scoped record of another boot is emptied before the replica is opened, and given as absent.
//! - Guest requests lie within the disk; their number is bounded by the export.

mod base;
mod bitmap;
mod config;
mod effect;
mod end;
mod event;
mod flush;
mod guest;
mod join;
mod link;
mod locks;
mod mutant;
mod outdate;
mod peer;
mod primary;
mod promote;
mod read;
mod replica;
mod secondary;
mod status;
mod stored;
mod write;

pub use bitmap::{BLOCK, Bitmap};
pub use config::Config;
pub use effect::{BootChange, DiskCommand, Effect, GuestError, GuestReply, Io, Notice, StoreKind};
pub use event::{Conn, Event, GuestOp, GuestRequest, IoFailed, IoId, IoResult, Outcome, ProposalId, RequestId, View};
#[cfg(feature = "mutants")]
pub use mutant::Mutant;
pub use replica::{Opening, Replica};
pub use status::{PeerStatus, ReplicaStatus, RoleStatus, Status};
pub use stored::{BootRecord, MarkRecord, Session, Stored, Superblock, WindowEntry};

/// Microseconds of the driver's monotonic clock, from any origin.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Micros(pub u64);

impl Micros {
    /// `ms` milliseconds later.
    pub fn plus_ms(self, ms: u64) -> Self {
        Self(self.0 + ms * 1000)
    }

    /// Milliseconds since `earlier`.
    pub fn ms_since(self, earlier: Micros) -> u64 {
        self.0.saturating_sub(earlier.0) / 1000
    }
}
