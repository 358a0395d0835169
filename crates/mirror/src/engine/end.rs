//! Closing admission: for a handover (H4), and for good (5.7).

use model::Uuid;

use super::base::Base;
use super::effect::{BootChange, Notice};
use super::peer::Stage;
use super::primary::{Closed, Primary, Step};
use crate::wire::Frame;

impl Primary {
    /// H4 begins. If it was done already it is reported again.
    pub fn quiesce(&mut self, base: &mut Base, migration: Uuid) {
        match self.closed {
            Closed::Quiesce(id, _, true) if id == migration => self.report_quiesced(base, migration),
            Closed::Quiesce(id, ..) if id == migration => {}
            Closed::Release(..) => {}
            _ => self.closed = Closed::Quiesce(migration, None, false),
        }
    }

    /// The migration ended without a handover, as was seen committed.
    pub fn resume(&mut self, base: &mut Base, migration: Uuid) {
        if matches!(self.closed, Closed::Quiesce(id, ..) if id == migration) {
            self.closed = Closed::Open;
            if base.boot.quiesced.is_some() {
                base.change_boot(BootChange::Quiesced(None));
            }
            if self.step == Step::Serve {
                base.tell(Notice::Serving { epoch: self.session.epoch, run: self.run });
            }
        }
    }

    pub fn release_disk(&mut self) {
        if !matches!(self.closed, Closed::Release(..)) {
            self.closed = Closed::Release(None, false);
        }
    }

    /// Whether the disk is coming to an orderly end.
    pub fn is_ending(&self) -> bool {
        matches!(self.closed, Closed::Release(..)) && self.step == Step::Serve
    }

    fn is_drained(&self) -> bool {
        let guest_flush = self.flushes.values().any(|flush| flush.request().is_some());
        self.writes.is_empty() && self.waiting_writes.is_empty() && self.reads.is_empty() && !guest_flush
    }

    /// Gets on with what was begun.
    pub fn close_down(&mut self, base: &mut Base) {
        if self.step < Step::Serve || self.deposed {
            return;
        }
        match self.closed {
            Closed::Open | Closed::Quiesce(_, _, true) => {}
            Closed::Quiesce(id, None, false) => {
                if self.is_drained() {
                    let upto = self.last_flush(base);
                    self.closed = Closed::Quiesce(id, Some(upto), false);
                }
            }
            Closed::Quiesce(id, Some(upto), false) => {
                if self.take_flush(upto) {
                    base.change_boot(BootChange::Quiesced(Some(id)));
                    self.closed = Closed::Quiesce(id, Some(upto), true);
                    self.report_quiesced(base, id);
                }
            }
            Closed::Release(None, _) => {
                if self.is_drained() {
                    let upto = self.last_flush(base);
                    self.closed = Closed::Release(Some(upto), false);
                }
            }
            Closed::Release(Some(upto), false) => {
                let joins = self
                    .peers
                    .values()
                    .any(|peer| peer.stage > Stage::Flushing(u64::MAX) && peer.stage < Stage::Member);
                if !joins && self.take_flush(upto) && self.outdating.is_disjoint(&self.must_ack) {
                    self.say_bye(base);
                    self.closed = Closed::Release(Some(upto), true);
                }
            }
            Closed::Release(Some(_), true) => {
                let told = self.byes.is_empty() || base.now >= self.bye_until;
                let own = !self.must_ack.contains(&self.own) || base.failed || base.is_clean();
                if told && own {
                    self.released = true;
                }
            }
        }
    }

    pub fn report_quiesced(&self, base: &mut Base, migration: Uuid) {
        let (epoch, seq) = (self.session.epoch, self.next_seq - 1);
        base.tell(Notice::Quiesced { migration, epoch, seq });
    }

    /// Nothing is under way: members may forget their windows, and flush.
    fn last_flush(&mut self, base: &mut Base) -> u64 {
        let stable = self.stable();
        for data in self.peers.values().filter(|peer| peer.receives()).filter_map(|peer| peer.data) {
            base.send(data, Frame::Ping { stable });
        }
        let members = self.must_ack.clone();
        self.begin_flush(base, None, members)
    }

    /// All members are equal and flushed, and are told that this is the end.
    fn say_bye(&mut self, base: &mut Base) {
        for peer in self.peers.values().filter(|peer| !peer.local && peer.stage == Stage::Member) {
            if let Some(data) = peer.data {
                base.send(data, Frame::Bye);
                self.byes.insert(peer.rid);
            }
        }
        self.bye_until = base.now.plus_ms(base.cfg.t_peer_ms);
        base.prune_window(|_| true);
        if self.must_ack.contains(&self.own) && !base.failed {
            base.begin_clean();
        }
    }
}
