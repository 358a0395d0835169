//! What a replica is told.

use std::collections::BTreeMap;

use bytes::Bytes;
use model::{DiskRejection, Incarnation, Life, Mirror, NodeId, ReplicaId, RunId, Uuid};

use super::DiskCommand;
use crate::wire::{Content, Frame, Hello, Range};

/// A request of a guest; chosen by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u64);

/// An I/O on the medium or a store; chosen by the replica, not used twice while it is open.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IoId(pub u64);

/// A proposal; chosen by the replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProposalId(pub u64);

/// A connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Conn {
    /// One that this replica asked for by [`Effect::Open`](super::Effect::Open); the number is its choice.
    Out(u64),
    /// One that came in; the number is the driver's choice.
    In(u64),
}

/// What a guest asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GuestOp {
    /// Read a range.
    Read(Range),
    /// Write.
    Write {
        /// Where to.
        offset: u64,
        /// What. The buffer is the replica's from now on: nobody changes it.
        data: Bytes,
        /// Durable before it is answered.
        fua: bool,
    },
    /// Make a range read as zeroes: write-zeroes, and discard on a backing that reads zeroes after it.
    Zero {
        /// Where.
        range: Range,
        /// Durable before it is answered.
        fua: bool,
    },
    /// Make every write durable that was acknowledged before.
    Flush,
}

/// A request with its origin.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GuestRequest {
    /// To match the answer.
    pub id: RequestId,
    /// The run whose export it came through.
    pub run: RunId,
    /// What it asks for.
    pub op: GuestOp,
}

/// What the log said about the disk at some time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct View {
    /// Incarnation of the cluster.
    pub inc: Incarnation,
    /// The disk's record.
    pub mirror: Mirror,
    /// Current life of each node that has a replica.
    pub lives: BTreeMap<NodeId, Life>,
    /// The migration of the disk's instance, with the run that it prepares.
    pub migration: Option<(Uuid, RunId)>,
}

/// An I/O failed; the message has been logged by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IoFailed;

/// How an I/O or a store ended. `Some`: the content that was read.
pub type IoResult = Result<Option<Content>, IoFailed>;

/// How a proposal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It was committed and has taken effect.
    Accepted,
    /// It was committed and refused, or refused before: it will never take effect.
    Rejected(DiskRejection),
    /// It was refused for another reason and will never take effect.
    Refused,
    /// Not known: it may still take effect, at any time.
    Unknown,
}

/// What a replica is told.
#[derive(Clone, Debug)]
pub enum Event {
    /// The time that was asked for by [`Effect::Wake`](super::Effect::Wake) has come.
    Tick,
    /// News of the disk's record.
    View(View),
    /// The node has begun another life in the same boot.
    Life(Life),
    /// This node is the primary by a committed entry, or was before a restart of its daemon: begin to serve (protocol,
    /// 5.6). The view was read with a barrier. Harmless if repeated.
    Promote(View),
    /// A destination's export for `run`: reads are served, flushes succeed, writes wait (protocol, H2).
    Standby(RunId),
    /// A run is over, its hypervisor gone: its requests are refused from now on, also the held ones.
    EndRun(RunId),
    /// Close admission, drain and flush for this migration (H4); answered by
    /// [`Notice::Quiesced`](super::Notice::Quiesced).
    Quiesce(Uuid),
    /// The end of this migration without a handover was seen committed: admit the run again.
    Resume(Uuid),
    /// The run is over and the disk will be disowned: bring it to an orderly end (5.7); answered by
    /// [`Notice::Released`](super::Notice::Released).
    Release,
    /// The daemon is about to end in good order. A secondary leaves cleanly; answered by
    /// [`Notice::Stopped`](super::Notice::Stopped). A primary does not: its run goes on when the daemon is back.
    Shutdown,
    /// Whether the node's lease is valid (R2). Valid until told otherwise.
    Lease(bool),
    /// Whether the node was told to get ready for leases (protocol, 7.3): the replica is strict then, durably, whatever the
    /// log says. Not until told so.
    Strict(bool),
    /// The backing has grown to this size in bytes.
    Grown(u64),
    /// A guest's request.
    Guest(GuestRequest),
    /// A connection that was asked for is there.
    Connected(Conn),
    /// A connection came in and said this. Its channel is in the Hello.
    Accepted(Conn, Hello),
    /// A frame came.
    Received(Conn, Frame),
    /// A connection ended, or could not be made.
    Disconnected(Conn),
    /// An I/O or a store has ended.
    IoDone(IoId, IoResult),
    /// A proposal's outcome.
    Proposed(ProposalId, Outcome),
}

impl View {
    /// What it is after a command that was compared with its version and accepted. `boot`: of a replica's node.
    pub(super) fn after(&self, command: &DiskCommand, boot: impl Fn(ReplicaId) -> Option<String>) -> Self {
        let mut next = self.clone();
        let mirror = &mut next.mirror;
        let before = mirror.ver;
        match command {
            DiskCommand::Outdate(rids) | DiskCommand::Solo(rids) => {
                for (_, replica) in mirror.replicas.iter_mut().filter(|(rid, _)| rids.contains(rid)) {
                    if replica.member.take().is_some() {
                        replica.left = before;
                    }
                }
            }
            DiskCommand::InSync(rid, _) => {
                if let Some(replica) = mirror.replicas.get_mut(rid) {
                    replica.member = Some(boot(*rid).unwrap_or_default());
                }
            }
        }
        // The log counts within the incarnation that it is in.
        mirror.ver = model::Version { n: self.inc.n, v: before.v + 1 };
        next
    }
}
