//! Becoming primary (5.6).

use std::collections::{BTreeMap, BTreeSet};

use model::ReplicaId;

use super::Micros;
use super::base::Base;
use super::effect::{BootChange, Notice};
use super::event::View;
use super::locks::Locks;
use super::mutant::Mutant;
use super::peer::{Peer, Stage};
use super::primary::{Closed, Primary, Step};
use super::stored::Session;
use crate::wire::{Range, ReplicaState};

impl Primary {
    /// Begins. The view was read with a barrier, and names this node as primary.
    pub fn begin(base: &mut Base, own: ReplicaId, view: &View) -> Self {
        let mirror = &view.mirror;
        // The epoch was promised before: this node may have served in it. An InSync of that time may still be under way.
        let restarted = base.sb.epoch == mirror.epoch && !base.broken(Mutant::NoEmptyOutdate);
        base.begin_use();
        // What an earlier start wrote alone, no other has, and the log may not know that yet: the mark stays until it does.
        let alone = base.sb.hw.solo;
        let soloed = mirror.in_sync().into_iter().filter(|rid| alone && *rid != own).collect();
        let (epoch, inc) = (mirror.epoch, view.inc);
        base.set_superblock(|sb| {
            sb.epoch = epoch;
            sb.inc = inc;
        });
        let peer = |(rid, replica): (&ReplicaId, &model::MirrorReplica)| {
            let mut peer = Peer::new(*rid, replica.slot, replica.node, *rid == own, base.now);
            if *rid == own && replica.member.is_some() {
                peer.stage = Stage::Ready;
                peer.boot = Some(base.boot_id.clone());
            }
            (*rid, peer)
        };
        Self {
            own,
            session: Session { epoch, start: base.sb.start },
            step: Step::Drain,
            run: mirror.run,
            closed: Closed::Open,
            ver: mirror.ver,
            in_sync: mirror.in_sync(),
            must_ack: mirror.in_sync(),
            soloed,
            peers: mirror.replicas.iter().map(peer).collect(),
            outdating: BTreeSet::new(),
            proposal: None,
            propose_after: base.now,
            unread: None,
            restarted,
            source: None,
            suspended: false,
            deposed: false,
            released: false,
            next_link: 0,
            next_seq: 1,
            writes: BTreeMap::new(),
            waiting_writes: BTreeMap::new(),
            write_bytes: 0,
            flushes: BTreeMap::new(),
            reads: BTreeMap::new(),
            copies: BTreeMap::new(),
            locks: Locks::default(),
            byes: BTreeSet::new(),
            bye_until: base.now,
        }
    }

    /// Gets on with the promotion as far as possible.
    pub fn promote(&mut self, base: &mut Base) {
        loop {
            let before = self.step;
            self.promote_once(base);
            if self.step == before || self.deposed {
                return;
            }
        }
    }

    fn promote_once(&mut self, base: &mut Base) {
        match self.step {
            Step::Drain => {
                let epoch = self.session.epoch;
                let promised = base.failed || base.durably(|sb| sb.epoch == epoch && !sb.clean);
                if !base.is_busy() && promised && !self.restarted {
                    self.step = Step::Greet(base.now.plus_ms(base.cfg.t_out_strict_ms));
                    self.look_at_links(base);
                }
            }
            Step::Greet(until) => self.greet(base, until),
            Step::Reconcile => {
                let copying = self.peers.values().any(|peer| peer.stage == Stage::Ready && !peer.todo.is_empty());
                if !copying && self.copies.is_empty() && self.outdating.is_disjoint(&self.must_ack) {
                    self.settle(base);
                }
            }
            Step::Settle(upto) => {
                if self.take_flush(upto) && self.outdating.is_disjoint(&self.must_ack) {
                    self.settled(base);
                }
            }
            Step::Adopt => {
                if self.may_acknowledge(base) && self.outdating.is_disjoint(&self.must_ack) {
                    self.serve(base);
                }
            }
            Step::Serve => {}
        }
    }

    /// A member answers before the run is admitted.
    pub fn greeted(&mut self, base: &mut Base, rid: ReplicaId, state: Box<ReplicaState>) {
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        if state.hw.ver > self.ver || state.hw.solo || !state.consistent || state.size < base.sb.size {
            self.outdating.insert(rid);
            return self.lose(base, rid);
        }
        peer.state = Some(state);
        peer.stage = Stage::Ready;
        peer.left = false;
    }

    /// Waits until every other member has answered, or has to be done without (step 3).
    fn greet(&mut self, base: &mut Base, until: Micros) {
        let others: Vec<ReplicaId> = self.in_sync.iter().copied().filter(|rid| *rid != self.own).collect();
        for rid in others {
            let ready = self.peers.get(&rid).is_some_and(|peer| peer.stage == Stage::Ready);
            // What this node wrote alone, no other has.
            let alone = base.sb.hw.solo && base.durably(|sb| sb.hw.solo);
            if (!ready && base.now >= until) || alone {
                self.outdating.insert(rid);
            }
            if !ready && !self.outdating.contains(&rid) {
                return;
            }
        }
        let Some(source) = self.choose_source(base) else {
            // Nobody who could be asked holds everything for certain: wait for one who does.
            if !std::mem::replace(&mut self.suspended, true) {
                base.tell(Notice::Suspended);
            }
            self.outdating.clear();
            self.step = Step::Greet(Micros(u64::MAX));
            return;
        };
        self.source = Some(source);
        self.reconcile(base, source);
        self.step = Step::Reconcile;
        self.copy(base);
    }

    /// Whose content counts.
    fn choose_source(&mut self, base: &mut Base) -> Option<ReplicaId> {
        let own_member = self.in_sync.contains(&self.own) && !base.failed;
        if own_member && base.boot.valid {
            return Some(self.own);
        }
        let intact = |peer: &&Peer| {
            let window = peer.state.as_ref().is_some_and(|state| state.window.is_some());
            !peer.local && peer.stage == Stage::Ready && window && !self.outdating.contains(&peer.rid)
        };
        let other = self.peers.values().find(intact).map(|peer| peer.rid);
        match other {
            Some(other) => {
                if self.in_sync.contains(&self.own) {
                    let own = self.own;
                    self.outdating.insert(own);
                    self.lose(base, own);
                }
                Some(other)
            }
            // All windows are lost: the own content counts.
            None => own_member.then_some(self.own),
        }
    }

    /// Plans the copies that make the members equal; those whose window is lost are outdated instead.
    fn reconcile(&mut self, base: &mut Base, source: ReplicaId) {
        let window = |peer: &Peer| -> Option<Vec<Range>> {
            if peer.local {
                return base.boot.valid.then(|| base.window());
            }
            peer.state.as_ref()?.window.clone()
        };
        let windows: BTreeMap<ReplicaId, Option<Vec<Range>>> =
            self.peers.values().filter(|peer| peer.stage == Stage::Ready).map(|it| (it.rid, window(it))).collect();
        let from = windows.get(&source).cloned().flatten();
        for (rid, window) in windows.iter().filter(|(rid, _)| **rid != source) {
            match (window, &from) {
                (Some(window), Some(from)) if !self.outdating.contains(rid) => {
                    let Some(peer) = self.peers.get_mut(rid) else { continue };
                    if !base.broken(Mutant::NoReconcile) {
                        for range in window.iter().chain(from) {
                            peer.todo.set(*range);
                        }
                    }
                    self.open_resync(base, *rid);
                }
                _ => {
                    self.outdating.insert(*rid);
                    self.lose(base, *rid);
                }
            }
        }
        // Step 4, for those that have a bitmap by now; who is outdated gets its own from the own window.
        for range in windows.values().flatten().flatten() {
            base.mark_all(*range);
        }
    }

    /// Step 5.
    fn settle(&mut self, base: &mut Base) {
        let members = match base.broken(Mutant::NoFlushAtPromotion) {
            true => BTreeSet::new(),
            false => self.must_ack.clone(),
        };
        let windows: Vec<Range> =
            self.peers.values().filter_map(|peer| peer.state.as_ref()?.window.clone()).flatten().collect();
        for range in windows {
            base.mark_all(range);
        }
        let upto = self.begin_flush(base, None, members);
        self.step = Step::Settle(upto);
    }

    /// All members are equal and flushed.
    fn settled(&mut self, base: &mut Base) {
        let session = self.session;
        base.prune_window(|entry| entry.session != session);
        if self.must_ack.contains(&self.own) {
            base.set_valid(true);
        }
        let ready: Vec<ReplicaId> =
            self.peers.values().filter(|peer| peer.stage == Stage::Ready).map(|peer| peer.rid).collect();
        for rid in ready {
            if let Some(peer) = self.peers.get_mut(&rid) {
                peer.stage = Stage::Member;
                if let Some(state) = &peer.state {
                    peer.boot = Some(state.boot.clone());
                }
                if let Some((conn, _)) = peer.resync.take() {
                    base.close(conn);
                }
            }
            self.send_marks(base, rid, false);
        }
        self.step = Step::Adopt;
        self.adopt(base, true);
    }

    /// Step 6.
    fn serve(&mut self, base: &mut Base) {
        self.step = Step::Serve;
        self.suspended = false;
        let pending = base.view.as_ref().and_then(|view| view.migration).map(|(id, _)| id);
        match base.boot.quiesced {
            Some(id) if Some(id) == pending => {
                self.closed = Closed::Quiesce(id, None, true);
                self.report_quiesced(base, id);
            }
            Some(_) => base.change_boot(BootChange::Quiesced(None)),
            None => {}
        }
        if self.closed == Closed::Open {
            base.tell(Notice::Serving { epoch: self.session.epoch, run: self.run });
        }
    }
}
