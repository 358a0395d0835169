//! How a node's replicas are, in the words of `/proc/drbd`.

use std::fmt;

use model::{DiskId, Epoch, Mirror, MirrorMode, NodeId, ReplicaId, RunId, Version};
use serde::{Deserialize, Serialize};

use crate::driver::{Counters, Progress, Report, Resync};
use crate::engine::{PeerStatus as Link, RoleStatus};

macro_rules! words {
    ($($word:ident)*) => {
        $(impl fmt::Display for $word {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(self, f)
            }
        })*
    };
}

words!(Role DiskState Connection);

/// Role of a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Role {
    /// Its node serves the guest.
    Primary,
    /// It follows.
    Secondary,
    /// Not known here.
    Unknown,
}

/// State of a replica's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DiskState {
    /// It holds every acknowledged write.
    UpToDate,
    /// It holds a state that the disk once had.
    Outdated,
    /// It is in the middle of a resync, or was never filled.
    Inconsistent,
    /// Its medium failed.
    Failed,
    /// It is not open.
    Diskless,
    /// Not known here.
    DUnknown,
}

/// A connection to another replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Connection {
    /// None, and none is tried: the other is kept aside, or both are secondaries.
    StandAlone,
    /// It is waited for.
    WFConnection,
    /// It is there.
    Connected,
    /// It is there, and the other is given what it lacks.
    SyncSource,
    /// It is there, and this one is given what it lacks.
    SyncTarget,
}

/// Another replica of the disk, as this one sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PeerStatus {
    /// The replica.
    pub replica: ReplicaId,
    /// Its node.
    pub node: NodeId,
    /// The connection to it.
    pub connection: Connection,
    /// Its role.
    pub role: Role,
    /// The state of its data.
    pub disk: DiskState,
    /// Bytes that it lacks or may lack, as far as the primary knows.
    pub out_of_sync: u64,
    /// The resync to it that is under way.
    pub resync: Option<Resync>,
    /// Why it is kept aside, if it is.
    pub refused: Option<String>,
}

/// A replica of this node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplicaStatus {
    /// Its disk.
    pub disk: DiskId,
    /// The replica.
    pub replica: ReplicaId,
    /// Its role.
    pub role: Role,
    /// The state of its data.
    pub state: DiskState,
    /// The disk's other replicas.
    pub peers: Vec<PeerStatus>,
    /// The disk's epoch in the log.
    pub epoch: Epoch,
    /// The disk's version in the log.
    pub ver: Version,
    /// The disk's mode.
    pub mode: MirrorMode,
    /// The disk's in-sync set in the log.
    pub in_sync: Vec<ReplicaId>,
    /// The run that is served here.
    pub serving: Option<RunId>,
    /// What was moved since the replica was opened.
    pub counters: Counters,
    /// Guest writes under way.
    pub pending: u64,
    /// Guest requests that wait, for whatever reason.
    pub waiting: u64,
    /// Whether acknowledgements are held for a member that does not answer.
    pub holding: bool,
    /// Whether its guest is suspended, because nothing can be acknowledged.
    pub suspended: bool,
    /// Why it can't be used, if it can't.
    pub failed: Option<String>,
    /// The version under which it last applied or acknowledged anything; `None` while its content is no state of the disk,
    /// or can't be read.
    pub held: Option<Version>,
}

impl ReplicaStatus {
    pub(super) fn new(
        disk: DiskId,
        replica: ReplicaId,
        mirror: &Mirror,
        report: Option<&Report>,
        progress: &Progress,
    ) -> Self {
        let status = report.map(|report| &report.status);
        let role = match status.map(|status| status.role) {
            None => Role::Unknown,
            Some(RoleStatus::Secondary | RoleStatus::Promoting) => Role::Secondary,
            Some(RoleStatus::Primary | RoleStatus::Closed) => Role::Primary,
        };
        let state = match status {
            None => DiskState::Diskless,
            Some(status) if status.failed => DiskState::Failed,
            Some(status) if !status.consistent => DiskState::Inconsistent,
            Some(_) if mirror.is_member(replica) => DiskState::UpToDate,
            Some(_) => DiskState::Outdated,
        };
        let others = mirror.replicas.iter().filter(|(rid, _)| **rid != replica);
        let peers = others.map(|(rid, other)| match role {
            Role::Primary => seen_by_primary(mirror, *rid, other.node, report),
            _ => seen_by_secondary(mirror, *rid, other.node, report, state),
        });
        Self {
            disk,
            replica,
            role,
            state,
            peers: peers.collect(),
            epoch: mirror.epoch,
            ver: mirror.ver,
            mode: mirror.mode,
            in_sync: mirror.in_sync().into_iter().collect(),
            serving: progress.serving.and_then(|(_, run)| run),
            counters: report.map(|report| report.counters).unwrap_or_default(),
            pending: status.map_or(0, |status| status.writes as u64),
            waiting: status.map_or(0, |status| status.waiting as u64),
            holding: status.is_some_and(|status| status.holding),
            suspended: progress.suspended,
            failed: progress.failed.clone(),
            held: status.filter(|status| status.consistent && !status.failed).map(|status| status.ver),
        }
    }
}

fn seen_by_primary(mirror: &Mirror, rid: ReplicaId, node: NodeId, report: Option<&Report>) -> PeerStatus {
    let seen = report.and_then(|report| report.status.replicas.iter().find(|it| it.rid == rid));
    let member = if mirror.is_member(rid) { DiskState::UpToDate } else { DiskState::Outdated };
    let (connection, disk) = match seen.map(|seen| seen.state) {
        Some(Link::Syncing(_)) => (Connection::SyncSource, DiskState::Inconsistent),
        Some(Link::InSync) => (Connection::Connected, member),
        Some(Link::Refused(_)) => (Connection::StandAlone, DiskState::Outdated),
        Some(Link::Disconnected | Link::Connecting) if member == DiskState::Outdated => {
            (Connection::WFConnection, DiskState::Outdated)
        }
        Some(Link::Disconnected | Link::Connecting) | None => (Connection::WFConnection, DiskState::DUnknown),
    };
    let role = if connection == Connection::WFConnection { Role::Unknown } else { Role::Secondary };
    PeerStatus {
        replica: rid,
        node,
        connection,
        role,
        disk,
        out_of_sync: seen.map_or(0, |seen| seen.lacks),
        resync: report.and_then(|report| report.resyncs.get(&rid).copied()),
        refused: seen.and_then(|seen| match seen.state {
            Link::Refused(why) => Some(why.to_owned()),
            _ => None,
        }),
    }
}

fn seen_by_secondary(
    mirror: &Mirror,
    rid: ReplicaId,
    node: NodeId,
    report: Option<&Report>,
    own: DiskState,
) -> PeerStatus {
    let primary = mirror.primary.map(|primary| primary.node);
    let linked = report.is_some_and(|report| report.linked) && primary == Some(node);
    let connection = match (linked, own) {
        (true, DiskState::Inconsistent) => Connection::SyncTarget,
        (true, _) => Connection::Connected,
        // Secondaries have nothing to say to each other.
        (false, _) if primary.is_some_and(|primary| primary != node) => Connection::StandAlone,
        (false, _) => Connection::WFConnection,
    };
    let (role, disk) = match (linked, mirror.is_member(rid)) {
        (true, true) => (Role::Primary, DiskState::UpToDate),
        (true, false) => (Role::Primary, DiskState::DUnknown),
        (false, _) => (Role::Unknown, DiskState::DUnknown),
    };
    PeerStatus { replica: rid, node, connection, role, disk, out_of_sync: 0, resync: None, refused: None }
}
