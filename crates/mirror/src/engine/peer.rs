//! A replica as its primary sees it. The primary's own replica is one like the others, only without a link.

use model::{NodeId, ReplicaId, Version};

use super::event::Conn;
use super::{Bitmap, Micros};
use crate::wire::{Link, Range, ReplicaState};

/// How far the primary is with a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stage {
    /// No link; it is tried again.
    Down,
    /// The data connection is being made.
    Opening,
    /// Hello was sent.
    Greeting,
    /// A member that has answered, before the promotion is complete. Copies go to it, writes don't yet.
    Ready,
    /// Its resync begins: from here on it gets every write.
    Starting,
    /// It gets copies of what differs.
    Syncing,
    /// Everything was copied; it flushes (number of the flush).
    Flushing(u64),
    /// It is in `must_ack`; it still has to answer the writes up to this one.
    Confirming(u64),
    /// It was told that it holds everything.
    Finishing,
    /// It is durably consistent; `InSync` is to be proposed, or was.
    Joined,
    /// It is a member.
    Member,
}

/// Writes that a replica has answered, but is not known to have flushed.
#[derive(Debug, Default)]
pub(super) struct Unflushed {
    /// Answered since the last flush was sent.
    fresh: Bitmap,
    /// Answered before the flush of that number was sent.
    flushing: Vec<(u64, Bitmap)>,
}

impl Unflushed {
    pub fn answered(&mut self, range: Range) {
        self.fresh.set(range);
    }

    /// A flush is sent.
    pub fn begin(&mut self, upto: u64) {
        self.flushing.push((upto, std::mem::take(&mut self.fresh)));
    }

    /// A flush is confirmed, and with it those that were sent before; what that covers.
    pub fn confirm(&mut self, upto: u64) -> Bitmap {
        let mut covered = Bitmap::default();
        self.flushing.retain(|(number, bits)| {
            if *number <= upto {
                covered.add(bits);
            }
            *number > upto
        });
        covered
    }

    pub fn is_empty(&self) -> bool {
        self.fresh.is_empty() && self.flushing.iter().all(|(_, bits)| bits.is_empty())
    }

    pub fn all(&self) -> Bitmap {
        let mut all = self.fresh.clone();
        for (_, bits) in &self.flushing {
            all.add(bits);
        }
        all
    }
}

pub(super) struct Peer {
    pub rid: ReplicaId,
    pub slot: u8,
    pub node: NodeId,
    /// The primary's own replica.
    pub local: bool,
    pub stage: Stage,
    pub link: Link,
    pub data: Option<Conn>,
    /// With whether it is there.
    pub resync: Option<(Conn, bool)>,
    pub last_heard: Micros,
    pub last_ping: Micros,
    /// Since when something waits for it, while linked.
    pub waiting_since: Option<Micros>,
    /// Since when an acknowledgement is held for it, while its link is lost.
    pub held_since: Option<Micros>,
    pub retry_at: Micros,
    /// Its last answer to a Hello.
    pub state: Option<Box<ReplicaState>>,
    /// The boot of its node in which it came to hold everything.
    pub boot: Option<String>,
    /// Highest number of a write that it has answered.
    pub acked: u64,
    pub unflushed: Unflushed,
    /// What it lacks is known from this session alone: all of it is in the bitmap, even if it loses what it did not flush.
    pub exact: bool,
    /// Blocks to copy.
    pub todo: Bitmap,
    pub cursor: u64,
    /// Bytes copied since the last flush.
    pub copied: u64,
    pub joins: Vec<Micros>,
    /// It was told why it is kept aside.
    pub refused: Option<&'static str>,
    /// It has said that it leaves.
    pub left: bool,
    /// The version that it has adopted.
    pub adopted: Version,
    /// The version named by the last `InSync` that was proposed for it.
    pub proposed: Option<Version>,
}

impl Peer {
    pub fn new(rid: ReplicaId, slot: u8, node: NodeId, local: bool, now: Micros) -> Self {
        Self {
            rid,
            slot,
            node,
            local,
            stage: Stage::Down,
            link: Link::default(),
            data: None,
            resync: None,
            last_heard: now,
            last_ping: now,
            waiting_since: None,
            held_since: None,
            retry_at: now,
            state: None,
            boot: None,
            acked: 0,
            unflushed: Unflushed::default(),
            exact: false,
            todo: Bitmap::default(),
            cursor: 0,
            copied: 0,
            joins: Vec::new(),
            refused: None,
            left: false,
            adopted: Version::default(),
            proposed: None,
        }
    }

    /// Whether it gets the guest's writes.
    pub fn receives(&self) -> bool {
        self.stage >= Stage::Starting
    }

    /// Whether it can be asked for something.
    pub fn is_linked(&self) -> bool {
        self.stage >= Stage::Ready
    }

    /// Whether it gets copies: windows before the run is admitted, what differs in a resync, and on the primary's own
    /// medium what could not be read there.
    pub fn is_copied_to(&self) -> bool {
        matches!(self.stage, Stage::Ready | Stage::Syncing) || (self.local && self.stage == Stage::Member)
    }
}
