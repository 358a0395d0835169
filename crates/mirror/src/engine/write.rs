//! The write path of a primary (5.2).

use std::collections::BTreeSet;

use model::ReplicaId;

use super::base::{Base, Job};
use super::effect::{Effect, GuestReply, Io};
use super::event::{GuestOp, GuestRequest, RequestId};
use super::guest::Guest;
use super::mutant::Mutant;
use super::peer::{Peer, Stage};
use super::primary::{Closed, Holder, Primary, Step};
use crate::wire::{Content, Frame, Range};

/// A write that waits for its range.
pub(super) struct WaitingWrite {
    pub request: RequestId,
    pub range: Range,
    pub content: Content,
    pub fua: bool,
}

/// A write under way.
pub(super) struct Write {
    pub request: RequestId,
    pub range: Range,
    pub content: Content,
    pub fua: bool,
    /// Who has not answered yet, joining replicas too.
    pub waiting: BTreeSet<ReplicaId>,
    pub acked: bool,
    /// Its place in the window.
    pub place: u32,
}

impl Primary {
    /// Whether a run may use the disk now (W1).
    fn is_admitted(&self, base: &Base, request: &GuestRequest) -> bool {
        self.step == Step::Serve
            && self.closed == Closed::Open
            && !self.deposed
            && (self.run == Some(request.run) || base.broken(Mutant::AnyRun))
    }

    /// Begins what is held and may be begun.
    pub fn admit(&mut self, base: &mut Base, guest: &mut Guest) {
        if guest.held.is_empty() || self.step != Step::Serve {
            return;
        }
        let mut full = false;
        for request in std::mem::take(&mut guest.held) {
            let is_write = matches!(request.op, GuestOp::Write { .. } | GuestOp::Zero { .. });
            full |= is_write && self.is_full(base);
            if full || !self.is_admitted(base, &request) {
                guest.held.push_back(request);
                continue;
            }
            match request.op {
                GuestOp::Read(range) => self.begin_read(base, request.id, range),
                GuestOp::Flush => self.begin_guest_flush(base, request.id),
                GuestOp::Write { offset, data, fua } => {
                    let range = Range::new(offset, data.len() as u64);
                    self.wait_for_range(base, request.id, range, Content::Data(data), fua);
                }
                GuestOp::Zero { range, fua } => self.wait_for_range(base, request.id, range, Content::Zeroes, fua),
            }
        }
    }

    /// Whether as much is under way as may be.
    fn is_full(&self, base: &Base) -> bool {
        self.writes.len() + self.waiting_writes.len() >= base.cfg.max_writes
            || self.next_seq - self.stable() > base.cfg.max_span
            || self.write_bytes >= base.cfg.max_write_bytes
    }

    fn wait_for_range(&mut self, base: &mut Base, request: RequestId, range: Range, content: Content, fua: bool) {
        if let Content::Data(data) = &content {
            self.write_bytes += data.len() as u64;
        }
        let ticket = base.fresh();
        self.waiting_writes.insert(ticket, WaitingWrite { request, range, content, fua });
        if self.locks.acquire(range, Holder::Ticket(ticket)) {
            self.begin_write(base, ticket);
        }
    }

    /// Its range is free (W3).
    pub fn begin_write(&mut self, base: &mut Base, ticket: u64) {
        let Some(write) = self.waiting_writes.remove(&ticket) else { return };
        let seq = self.next_seq;
        self.next_seq += 1;
        let place = base.enter_window(self.session, seq, write.range);
        self.mark_for_absent(base, write.range);
        let waiting: BTreeSet<ReplicaId> = self
            .peers
            .values()
            .filter(|peer| peer.receives() || self.must_ack.contains(&peer.rid))
            .map(|peer| peer.rid)
            .collect();
        let WaitingWrite { request, range, content, fua } = write;
        let write = Write { request, range, content, fua, waiting, acked: false, place };
        let stable = self.stable();
        for peer in self.peers.values_mut().filter(|peer| peer.receives()) {
            send_write(base, peer, seq, &write, stable);
        }
        // The lock is known by the write's number from now on.
        self.locks.rename(Holder::Ticket(ticket), Holder::Write(seq));
        self.writes.insert(seq, write);
    }

    /// Marks a write for all that are not in sync, joining ones included (S4).
    fn mark_for_absent(&self, base: &mut Base, range: Range) {
        if base.broken(Mutant::JoiningNotMarked) {
            let absent = self.peers.values().filter(|peer| peer.stage < Stage::Ready);
            for slot in absent.map(|peer| peer.slot).collect::<Vec<_>>() {
                base.mark(slot, range);
            }
            return;
        }
        base.mark_all(range);
    }

    /// A replica has a write (W4).
    pub fn answered(&mut self, base: &mut Base, rid: ReplicaId, seq: u64) {
        let Some(write) = self.writes.get_mut(&seq) else { return };
        if !write.waiting.remove(&rid) {
            return;
        }
        if let Some(peer) = self.peers.get_mut(&rid) {
            peer.acked = peer.acked.max(seq);
            if !write.fua {
                peer.unflushed.answered(write.range);
            }
        }
        self.settle_write(base, seq);
    }

    /// Acknowledges what may be, and ends what every end has done with (W5).
    pub fn acknowledge(&mut self, base: &mut Base) {
        let open: Vec<u64> = self.writes.keys().copied().collect();
        for seq in open {
            self.settle_write(base, seq);
        }
        self.settle_flushes(base);
    }

    fn settle_write(&mut self, base: &mut Base, seq: u64) {
        if self.deposed {
            return;
        }
        let may = self.may_acknowledge(base);
        let Some(write) = self.writes.get(&seq) else { return };
        let complete = write.waiting.iter().all(|rid| !self.must_ack.contains(rid) || self.ignores(base, *rid));
        let answer = !write.acked && complete && may;
        let done = (write.acked || answer) && write.waiting.is_empty();
        if answer && let Some(write) = self.writes.get_mut(&seq) {
            write.acked = true;
            base.out.push(Effect::Reply(write.request, GuestReply::Done));
        }
        if done && let Some(write) = self.writes.remove(&seq) {
            base.leave_window(write.place);
            if let Content::Data(data) = &write.content {
                self.write_bytes -= data.len() as u64;
            }
            self.release(base, Holder::Write(seq));
        }
    }

    /// Gives a range back, and begins what waited for it.
    pub fn release(&mut self, base: &mut Base, holder: Holder) {
        for granted in self.locks.release(holder) {
            match granted {
                Holder::Ticket(ticket) => self.begin_write(base, ticket),
                Holder::Write(_) => {}
                Holder::Copy(id) => self.begin_copy(base, id),
            }
        }
    }
}

/// Gives a replica its part of a write.
pub(super) fn send_write(base: &mut Base, peer: &mut Peer, seq: u64, write: &Write, stable: u64) {
    let (range, content, fua) = (write.range, write.content.clone(), write.fua);
    if peer.local {
        base.submit(Io::Write { range, content, fua }, Job::OwnWrite(seq));
    } else if let Some(data) = peer.data {
        base.send(data, Frame::Write { seq, range, content, fua, stable });
    }
}
