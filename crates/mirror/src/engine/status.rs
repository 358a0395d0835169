//! What `disk status` shows.

use model::{Epoch, NodeId, ReplicaId, Version};

use super::base::Base;
use super::bitmap::BLOCK;
use super::peer::{Peer, Stage};
use super::primary::{Closed, Primary, Step};
use super::replica::Replica;

/// The role of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoleStatus {
    /// It follows.
    Secondary,
    /// It is becoming primary.
    Promoting,
    /// It serves its run.
    Primary,
    /// It is primary, and admission is closed for a migration or for good.
    Closed,
}

/// How far a primary is with another replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerStatus {
    /// There is no link.
    Disconnected,
    /// A link is being made.
    Connecting,
    /// It gets what it lacks; bytes that are left.
    Syncing(u64),
    /// It has every acknowledged write.
    InSync,
    /// It is kept aside, for this reason.
    Refused(&'static str),
}

/// A replica as its primary sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReplicaStatus {
    /// The replica.
    pub rid: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// Whether it is in the in-sync set as far as is known.
    pub member: bool,
    /// Where it is.
    pub state: PeerStatus,
    /// Bytes that it lacks or may lack.
    pub lacks: u64,
}

/// A replica's own account of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its role.
    pub role: RoleStatus,
    /// The epoch that it has promised.
    pub epoch: Epoch,
    /// The version that it has adopted.
    pub ver: Version,
    /// Whether its content is one that the disk had at some time.
    pub consistent: bool,
    /// Whether it is strict, durably.
    pub strict: bool,
    /// Whether its medium failed.
    pub failed: bool,
    /// Whether a secondary has a link to its primary.
    pub linked: bool,
    /// The replicas, on the primary only; its own is among them.
    pub replicas: Vec<ReplicaStatus>,
    /// Writes under way.
    pub writes: usize,
    /// Requests that wait, for whatever reason.
    pub waiting: usize,
    /// Whether the guest is suspended: see [`Notice::Suspended`](super::Notice::Suspended).
    pub suspended: bool,
    /// Whether acknowledgements are held because of a member that does not answer.
    pub holding: bool,
}

impl Replica {
    /// What it knows about itself.
    pub fn status(&self) -> Status {
        let base = &self.base;
        let role = match &self.primary {
            None => RoleStatus::Secondary,
            Some(primary) if primary.step < Step::Serve => RoleStatus::Promoting,
            Some(primary) if primary.closed != Closed::Open => RoleStatus::Closed,
            Some(_) => RoleStatus::Primary,
        };
        let primary = self.primary.as_ref();
        Status {
            role,
            epoch: base.sb.epoch,
            ver: primary.map_or(base.sb.hw.ver, |primary| primary.ver),
            consistent: base.sb.consistent,
            strict: base.durably(|sb| sb.mode == model::MirrorMode::Strict),
            failed: base.failed,
            linked: self.secondary.linked().is_some(),
            replicas: primary.map(|primary| replicas(primary, base)).unwrap_or_default(),
            writes: primary.map_or(0, |primary| primary.writes.len()),
            waiting: self.guest.waiting(),
            suspended: primary.is_some_and(|primary| primary.suspended),
            holding: primary.is_some_and(|primary| primary.peers.values().any(|peer| peer.held_since.is_some())),
        }
    }

    /// The replicas whose answers a write needs, on a primary that serves: for the tests of invariant I3.
    pub fn must_ack(&self) -> Option<(Epoch, Vec<ReplicaId>)> {
        let primary = self.primary.as_ref().filter(|primary| primary.step == Step::Serve)?;
        Some((primary.session.epoch, primary.must_ack.iter().copied().collect()))
    }
}

fn replicas(primary: &Primary, base: &Base) -> Vec<ReplicaStatus> {
    let status = |peer: &Peer| {
        let state = match (peer.stage, peer.refused) {
            (Stage::Down, Some(why)) => PeerStatus::Refused(why),
            (Stage::Down, None) => PeerStatus::Disconnected,
            (Stage::Opening | Stage::Greeting, _) => PeerStatus::Connecting,
            (Stage::Member | Stage::Ready, _) => PeerStatus::InSync,
            _ => PeerStatus::Syncing(peer.todo.count() * BLOCK),
        };
        let marks = base.boot.marks.get(&peer.slot).filter(|marks| marks.rid == peer.rid);
        ReplicaStatus {
            rid: peer.rid,
            node: peer.node,
            member: primary.in_sync.contains(&peer.rid),
            state,
            lacks: marks.map_or(0, |marks| marks.bits.count() * BLOCK),
        }
    };
    primary.peers.values().map(status).collect()
}
