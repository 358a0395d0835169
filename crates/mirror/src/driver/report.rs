//! How a replica is, with what its driver has counted.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use model::ReplicaId;
use serde::{Deserialize, Serialize};

use crate::engine::{PeerStatus, Status};

/// Bytes that were moved since the replica was opened.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Sent to other replicas.
    pub sent: u64,
    /// Received from other replicas.
    pub received: u64,
    /// Written to the own medium.
    pub written: u64,
    /// Read from the own medium.
    pub read: u64,
}

/// A resync under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resync {
    /// Bytes that were copied.
    pub done: u64,
    /// Bytes that were to be copied as it began.
    pub total: u64,
    /// Bytes copied in a second, on the average since it began.
    pub rate: u64,
}

/// A replica's account of itself and its driver's.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    pub status: Status,
    /// Whether a connection of a primary is open.
    pub linked: bool,
    pub counters: Counters,
    pub resyncs: BTreeMap<ReplicaId, Resync>,
}

/// Watches resyncs, to know how fast they are.
#[derive(Default)]
pub(super) struct Resyncs {
    seen: BTreeMap<ReplicaId, Seen>,
    looked: Option<Instant>,
}

struct Seen {
    began: Instant,
    total: u64,
    left: u64,
}

/// How often it is worth to look.
const LOOK_EVERY: Duration = Duration::from_millis(250);

impl Resyncs {
    pub fn is_due(&self, now: Instant) -> bool {
        self.looked.is_none_or(|looked| now.duration_since(looked) >= LOOK_EVERY)
    }

    pub fn look(&mut self, now: Instant, status: &Status) {
        self.looked = Some(now);
        let left: BTreeMap<ReplicaId, u64> = status
            .replicas
            .iter()
            .filter_map(|replica| match replica.state {
                PeerStatus::Syncing(left) => Some((replica.rid, left)),
                _ => None,
            })
            .collect();
        self.seen.retain(|rid, _| left.contains_key(rid));
        for (rid, left) in left {
            let seen = self.seen.entry(rid).or_insert(Seen { began: now, total: left, left });
            if left > seen.total {
                // There is more to do than before: another one has begun.
                *seen = Seen { began: now, total: left, left };
            }
            seen.left = left;
        }
    }

    pub fn report(&self, now: Instant) -> BTreeMap<ReplicaId, Resync> {
        let report = |seen: &Seen| {
            let done = seen.total.saturating_sub(seen.left);
            let millis = now.duration_since(seen.began).as_millis().max(1) as u64;
            Resync { done, total: seen.total, rate: done.saturating_mul(1000) / millis }
        };
        self.seen.iter().map(|(rid, seen)| (*rid, report(seen))).collect()
    }
}
