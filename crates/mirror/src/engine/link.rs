//! A primary's links (5.1).

use model::ReplicaId;

use super::base::Base;
use super::effect::Effect;
use super::event::Conn;
use super::flush::send_flush;
use super::peer::Stage;
use super::primary::{Primary, Step};
use super::write::send_write;
use crate::wire::{Channel, Frame, Hello, Link, RefuseReason, ReplicaState};

impl Primary {
    /// Opens a link if there is to be one.
    pub fn try_link(&mut self, base: &mut Base, rid: ReplicaId) {
        let wanted = match self.must_ack.contains(&rid) {
            true => self.step >= Step::Greet(super::Micros(0)) && !self.outdating.contains(&rid),
            false => self.step == Step::Serve && !self.soloed.contains(&rid) && !self.is_ending(),
        };
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        if !wanted {
            return;
        }
        // A replica that joins again and again waits longer each time.
        let joins = peer.joins.iter().filter(|at| base.now.ms_since(**at) < base.cfg.t_flap_ms).count();
        if joins >= base.cfg.flap_joins
            && let Some(last) = peer.joins.last()
            && base.now < last.plus_ms(FLAP_WAIT_MS * joins as u64)
        {
            return;
        }
        self.next_link += 1;
        let conn = Conn::Out(base.fresh());
        peer.link = Link { start: self.session.start, k: self.next_link };
        peer.data = Some(conn);
        peer.stage = Stage::Opening;
        peer.last_heard = base.now;
        peer.waiting_since = None;
        base.out.push(Effect::Open { conn, node: peer.node, replica: rid, channel: Channel::Data });
    }

    /// Opens the resync connection of a link.
    pub fn open_resync(&mut self, base: &mut Base, rid: ReplicaId) {
        let Some(peer) = self.peers.get_mut(&rid).filter(|peer| !peer.local && peer.resync.is_none()) else { return };
        let conn = Conn::Out(base.fresh());
        peer.resync = Some((conn, false));
        base.out.push(Effect::Open { conn, node: peer.node, replica: rid, channel: Channel::Resync });
    }

    fn whose(&self, conn: Conn) -> Option<(ReplicaId, Channel)> {
        self.peers.values().find_map(|peer| {
            if peer.data == Some(conn) {
                return Some((peer.rid, Channel::Data));
            }
            let resync = peer.resync.is_some_and(|(of, _)| of == conn);
            resync.then_some((peer.rid, Channel::Resync))
        })
    }

    /// A connection that was asked for is there.
    pub fn connected(&mut self, base: &mut Base, conn: Conn) {
        let (Some((rid, channel)), Some(view)) = (self.whose(conn), &base.view) else { return base.close(conn) };
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        let hello = Hello {
            inc: view.inc,
            disk: base.sb.disk,
            from: self.own,
            to: rid,
            epoch: self.session.epoch,
            link: peer.link,
            channel,
            ver: self.ver,
        };
        peer.last_heard = base.now;
        match channel {
            Channel::Data => peer.stage = Stage::Greeting,
            Channel::Resync => peer.resync = Some((conn, true)),
        }
        base.send(conn, Frame::Hello(hello));
    }

    pub fn disconnected(&mut self, base: &mut Base, conn: Conn) {
        let Some((rid, channel)) = self.whose(conn) else { return };
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        // It has ended already.
        match channel {
            Channel::Data => peer.data = None,
            Channel::Resync => peer.resync = None,
        }
        self.lose(base, rid);
    }

    /// A frame of a replica.
    pub fn received(&mut self, base: &mut Base, conn: Conn, frame: Frame) {
        let Some((rid, channel)) = self.whose(conn) else { return };
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        peer.last_heard = base.now;
        match (channel, frame) {
            (Channel::Data, Frame::State(state)) if peer.stage == Stage::Greeting => self.stated(base, rid, state),
            (Channel::Data, Frame::Ack { seq }) => self.answered(base, rid, seq),
            (Channel::Data, Frame::Flushed { upto }) => self.flushed(base, rid, upto),
            (Channel::Data, Frame::Adopted { ver }) => peer.adopted = ver,
            (Channel::Data, Frame::SyncStarted) if peer.stage == Stage::Starting => peer.stage = Stage::Syncing,
            (Channel::Data, Frame::SyncFinished) if peer.stage == Stage::Finishing => peer.stage = Stage::Joined,
            (Channel::Data, Frame::Data { id, content }) => match self.reads.contains_key(&id) {
                true => self.was_read(base, rid, id, content),
                false => self.copy_was_read(base, id, content),
            },
            (Channel::Resync, Frame::Copied { range }) => {
                if let Some(id) = self.copy_of(rid, range) {
                    self.copied(base, id);
                }
            }
            (Channel::Data, Frame::Pong) => {}
            (Channel::Data, Frame::Bye) => {
                if !self.byes.remove(&rid) {
                    peer.left = true;
                    self.lose(base, rid);
                }
            }
            (_, Frame::Refused { reason, .. }) => {
                if reason == RefuseReason::Failed && self.must_ack.contains(&rid) {
                    self.outdating.insert(rid);
                }
                self.lose(base, rid);
            }
            // Nothing else makes sense here.
            _ => self.lose(base, rid),
        }
    }

    /// A replica says what it is.
    fn stated(&mut self, base: &mut Base, rid: ReplicaId, state: Box<ReplicaState>) {
        if !self.must_ack.contains(&rid) {
            return self.begin_join(base, rid, state);
        }
        if self.step < Step::Settle(0) {
            return self.greeted(base, rid, state);
        }
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        let same = peer.boot.as_ref() == Some(&state.boot)
            && state.window.is_some()
            && state.consistent
            && state.epoch == self.session.epoch
            && !peer.went_back(&state, self.session.start);
        if !same {
            // O4: it may have lost writes that were not flushed.
            self.outdating.insert(rid);
            return self.lose(base, rid);
        }
        peer.stage = Stage::Member;
        peer.state = Some(state);
        peer.held_since = None;
        peer.left = false;
        self.suspended = false;
        self.resend(base, rid);
    }

    /// O2: a member is back as it was; what it has not answered is sent again.
    fn resend(&mut self, base: &mut Base, rid: ReplicaId) {
        self.send_marks(base, rid, false);
        let (ver, stable) = (self.ver, self.stable());
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        peer.adopted = model::Version::default();
        if let Some(data) = peer.data {
            base.send(data, Frame::Adopt { ver, settled: false });
        }
        for (seq, write) in self.writes.iter().filter(|(_, write)| write.waiting.contains(&rid)) {
            send_write(base, peer, *seq, write, stable);
        }
        for (upto, _) in self.flushes.iter().filter(|(_, flush)| flush.waiting.contains(&rid)) {
            send_flush(base, peer, *upto);
        }
    }
}

/// How much longer a flapping replica waits with each join, milliseconds.
const FLAP_WAIT_MS: u64 = 10_000;
