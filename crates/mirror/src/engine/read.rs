//! The read path of a primary (5.3).

use std::collections::BTreeSet;

use model::{MirrorMode, ReplicaId};

use super::base::{Base, Job};
use super::effect::{Effect, GuestError, GuestReply, Io};
use super::event::{IoResult, RequestId};
use super::peer::{Peer, Stage};
use super::primary::Primary;
use crate::wire::{Content, Frame, Range};

/// A guest's read under way.
pub(super) struct ReadOp {
    pub request: RequestId,
    range: Range,
    /// Who was asked.
    asked: Option<ReplicaId>,
    /// Who could not read it.
    failed: BTreeSet<ReplicaId>,
}

impl Primary {
    pub fn begin_read(&mut self, base: &mut Base, request: RequestId, range: Range) {
        let id = base.fresh();
        self.reads.insert(id, ReadOp { request, range, asked: None, failed: BTreeSet::new() });
        self.dispatch_reads(base);
    }

    /// Asks for every read that nobody was asked for: the own medium, else another member (R1). With no member at hand it
    /// waits.
    pub fn dispatch_reads(&mut self, base: &mut Base) {
        if self.deposed || !self.has_lease(base) {
            return;
        }
        for (id, read) in self.reads.iter_mut().filter(|(_, read)| read.asked.is_none()) {
            let can = |peer: &&Peer| {
                peer.stage == Stage::Member && self.must_ack.contains(&peer.rid) && !read.failed.contains(&peer.rid)
            };
            let own = self.peers.get(&self.own).filter(can);
            let Some(peer) = own.or_else(|| self.peers.values().find(can)) else {
                let lost_all = self.must_ack.iter().all(|rid| read.failed.contains(rid));
                if lost_all {
                    base.out.push(Effect::Reply(read.request, GuestReply::Error(GuestError::Medium)));
                }
                continue;
            };
            read.asked = Some(peer.rid);
            if peer.local {
                base.submit(Io::Read(read.range), Job::GuestRead(*id));
            } else if let Some(data) = peer.data {
                base.send(data, Frame::Read { id: *id, range: read.range });
            }
        }
        let must_ack = &self.must_ack;
        self.reads.retain(|_, read| read.asked.is_some() || !must_ack.iter().all(|rid| read.failed.contains(rid)));
    }

    /// The own medium has answered.
    pub fn own_read(&mut self, base: &mut Base, id: u64, result: IoResult) {
        let own = self.own;
        self.was_read(base, own, id, result.ok().flatten());
    }

    /// A replica has answered; with nothing if it can't read that.
    pub fn was_read(&mut self, base: &mut Base, from: ReplicaId, id: u64, content: Option<Content>) {
        let Some(read) = self.reads.get_mut(&id).filter(|read| read.asked == Some(from)) else { return };
        read.asked = None;
        let Some(content) = content else {
            read.failed.insert(from);
            return self.dispatch_reads(base);
        };
        let (request, range, mend) = (read.request, read.range, read.failed.contains(&self.own));
        // R2: the lease has to be valid after the data was fetched; else it is fetched again when it is.
        if self.deposed || !self.has_lease(base) {
            return;
        }
        self.reads.remove(&id);
        base.out.push(Effect::Reply(request, GuestReply::Read(content)));
        if mend && let Some(own) = self.peers.get_mut(&self.own) {
            // It is copied over, under the range's lock like every copy.
            own.todo.set(range);
        }
    }

    fn has_lease(&self, base: &Base) -> bool {
        base.lease || base.mode() == MirrorMode::Manual
    }

    /// Whoever was asked is gone: ask another.
    pub fn reads_lost(&mut self, rid: ReplicaId) {
        for read in self.reads.values_mut().filter(|read| read.asked == Some(rid)) {
            read.asked = None;
        }
    }
}
