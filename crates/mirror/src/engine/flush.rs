//! Flushes of a primary (W7), the guest's and its own.

use std::collections::BTreeSet;

use model::ReplicaId;

use super::base::{Base, Job};
use super::effect::{Effect, GuestReply, Io};
use super::event::RequestId;
use super::peer::{Peer, Stage};
use super::primary::Primary;
use crate::wire::Frame;

/// A flush under way.
pub(super) struct FlushOp {
    /// The guest's request; none for one of the primary's own.
    request: Option<RequestId>,
    /// Who has not confirmed yet.
    pub waiting: BTreeSet<ReplicaId>,
}

impl FlushOp {
    pub fn request(&self) -> Option<RequestId> {
        self.request
    }
}

impl Primary {
    pub fn begin_guest_flush(&mut self, base: &mut Base, request: RequestId) {
        let members = self.must_ack.clone();
        self.begin_flush(base, Some(request), members);
    }

    /// Begins a flush of these replicas; its number. A member whose link is lost gets it when it is back.
    pub fn begin_flush(&mut self, base: &mut Base, request: Option<RequestId>, waiting: BTreeSet<ReplicaId>) -> u64 {
        let upto = self.next_seq;
        self.next_seq += 1;
        for rid in &waiting {
            if let Some(peer) = self.peers.get_mut(rid) {
                peer.unflushed.begin(upto);
                if peer.is_linked() {
                    send_flush(base, peer, upto);
                }
            }
        }
        self.flushes.insert(upto, FlushOp { request, waiting });
        upto
    }

    /// A replica has confirmed a flush.
    pub fn flushed(&mut self, base: &mut Base, rid: ReplicaId, upto: u64) {
        if let Some(flush) = self.flushes.get_mut(&upto) {
            flush.waiting.remove(&rid);
        }
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        let mut covered = peer.unflushed.confirm(upto);
        if matches!(peer.stage, Stage::Syncing | Stage::Flushing(_)) {
            // S6: what is confirmed, and has not been touched since, does not differ any more.
            let slot = peer.slot;
            peer.exact = true;
            covered.subtract(&peer.todo);
            covered.subtract(&peer.unflushed.all());
            for write in self.writes.values() {
                covered.clear(write.range);
            }
            for copy in self.copies.values().filter(|copy| copy.target == rid) {
                covered.clear(copy.range);
            }
            base.unmark(slot, &covered);
        }
        self.settle_flushes(base);
    }

    /// Whether a flush of the primary's own is confirmed by all that still count; it is forgotten then.
    pub fn take_flush(&mut self, upto: u64) -> bool {
        let confirmed = self.flushes.get(&upto).is_none_or(|flush| flush.waiting.is_empty());
        if confirmed {
            self.flushes.remove(&upto);
        }
        confirmed
    }

    pub fn settle_flushes(&mut self, base: &mut Base) {
        if self.deposed || !self.may_acknowledge(base) {
            return;
        }
        let complete =
            |flush: &FlushOp| flush.waiting.iter().all(|rid| !self.must_ack.contains(rid) || self.ignores(base, *rid));
        let done: Vec<(u64, RequestId)> = self
            .flushes
            .iter()
            .filter_map(|(upto, flush)| Some((*upto, flush.request.filter(|_| complete(flush))?)))
            .collect();
        for (upto, request) in done {
            self.flushes.remove(&upto);
            base.out.push(Effect::Reply(request, GuestReply::Done));
        }
    }
}

pub(super) fn send_flush(base: &mut Base, peer: &mut Peer, upto: u64) {
    if peer.local {
        base.submit(Io::Sync, Job::OwnSync(upto));
    } else if let Some(data) = peer.data {
        base.send(data, Frame::Flush { upto });
    }
}
