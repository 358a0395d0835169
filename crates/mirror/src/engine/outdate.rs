//! Members that do not answer (5.4), and going on alone in manual mode (7.2).

use model::{MirrorMode, ReplicaId, Version};

use super::base::Base;
use super::event::{Outcome, ProposalId};
use super::mutant::Mutant;
use super::peer::Stage;
use super::primary::{Primary, Step, close_link};
use crate::wire::{Frame, Range};

impl Primary {
    /// A replica's link is gone.
    pub fn lose(&mut self, base: &mut Base, rid: ReplicaId) {
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        let was = peer.stage;
        close_link(base, peer);
        peer.stage = Stage::Down;
        peer.waiting_since = None;
        peer.retry_at = base.now.plus_ms(base.cfg.t_reconnect_ms);
        self.copies_lost(base, rid);
        self.reads_lost(rid);
        self.byes.remove(&rid);
        if !self.must_ack.contains(&rid) {
            self.forget_answers(rid);
            return;
        }
        match was {
            // J5: it holds everything, but what became of its InSync is not known.
            Stage::Confirming(_) | Stage::Finishing | Stage::Joined => {
                if base.broken(Mutant::DropBeforeVersionGrew) && !self.in_sync.contains(&rid) {
                    return self.drop_member(base, rid);
                }
                self.outdating.insert(rid);
            }
            // The only one whose content counts is waited for.
            Stage::Ready if self.source == Some(rid) => {
                self.source = None;
                self.step = Step::Greet(super::Micros(u64::MAX));
            }
            Stage::Ready => {
                self.outdating.insert(rid);
            }
            _ => {}
        }
    }

    /// Nothing waits for a replica any more.
    fn forget_answers(&mut self, rid: ReplicaId) {
        for write in self.writes.values_mut() {
            write.waiting.remove(&rid);
        }
        for flush in self.flushes.values_mut() {
            flush.waiting.remove(&rid);
        }
        // A flush that was for it alone is nobody's.
        self.flushes.retain(|_, flush| flush.request().is_some() || !flush.waiting.is_empty());
    }

    /// Whether something waits for a replica.
    fn is_awaited(&self, rid: ReplicaId) -> bool {
        self.writes.values().any(|write| write.waiting.contains(&rid))
            || self.flushes.values().any(|flush| flush.waiting.contains(&rid))
            || self.copies.values().any(|copy| copy.target == rid)
            || self.byes.contains(&rid)
    }

    /// Whether acknowledgements are held until a member has stored what to mark (S5).
    fn is_gating(&self, rid: ReplicaId) -> bool {
        let behind = self.peers.get(&rid).is_some_and(|peer| peer.adopted != self.ver);
        behind && self.must_ack.contains(&rid) && !(self.writes.is_empty() && self.flushes.is_empty())
    }

    /// Looks at the time (O1, O3, `t_peer`).
    pub fn look_at_links(&mut self, base: &mut Base) {
        let rids: Vec<ReplicaId> = self.peers.values().filter(|peer| !peer.local).map(|peer| peer.rid).collect();
        for rid in rids {
            let awaited = self.is_awaited(rid) || self.is_gating(rid);
            let stable = self.stable();
            let Some(peer) = self.peers.get_mut(&rid) else { continue };
            if peer.stage == Stage::Down {
                if base.now >= peer.retry_at {
                    self.try_link(base, rid);
                }
            } else {
                let steady = peer.stage == Stage::Member && peer.adopted == self.ver;
                let waits = awaited || !steady;
                // From when something began to wait, because a steady link is silent for longer.
                let (since, limit) = match waits {
                    true => {
                        let since = *peer.waiting_since.get_or_insert(base.now);
                        (since.max(peer.last_heard), base.cfg.t_peer_ms)
                    }
                    false => {
                        peer.waiting_since = None;
                        (peer.last_heard, base.cfg.t_peer_ms + IDLE_PING_MS)
                    }
                };
                if base.now.ms_since(since) >= limit {
                    self.lose(base, rid);
                } else if peer.is_linked()
                    && let Some(data) = peer.data
                    && (waits || base.now.ms_since(peer.last_ping) >= IDLE_PING_MS)
                {
                    peer.last_ping = base.now;
                    base.send(data, Frame::Ping { stable });
                }
            }
            self.look_at_member(base, rid, awaited);
        }
    }

    /// How long a member may stay away (O1, O3, 7.2).
    fn look_at_member(&mut self, base: &mut Base, rid: ReplicaId, awaited: bool) {
        let manual = base.mode() == MirrorMode::Manual;
        let member = self.must_ack.contains(&rid);
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        if !member || peer.stage == Stage::Member || self.step < Step::Adopt {
            peer.held_since = None;
            return;
        }
        if peer.held_since.is_none() && (awaited || self.step < Step::Serve || !peer.unflushed.is_empty()) {
            peer.held_since = Some(base.now);
        }
        let Some(since) = peer.held_since else { return };
        let held = base.now.ms_since(since);
        if held >= base.cfg.t_out_strict_ms || peer.left || base.broken(Mutant::AckBeforeOutdate) {
            self.outdating.insert(rid);
        }
        if manual && base.cfg.continue_alone && held >= base.cfg.t_out_manual_ms {
            self.go_on_alone(base, rid);
        }
    }

    /// Manual mode: the master can't be reached, and the peer neither (7.2).
    fn go_on_alone(&mut self, base: &mut Base, rid: ReplicaId) {
        let own_holds = self.must_ack.contains(&self.own) && !self.outdating.contains(&self.own);
        if !own_holds || !self.in_sync.contains(&rid) || self.soloed.contains(&rid) {
            return;
        }
        self.soloed.insert(rid);
        let left = self.ver;
        self.let_go(base, rid, left);
        self.adopt(base, false);
    }

    /// An Outdate of this member was seen committed.
    pub fn drop_member(&mut self, base: &mut Base, rid: ReplicaId) {
        let left = base.view.as_ref().and_then(|view| view.mirror.replicas.get(&rid)).map(|replica| replica.left);
        self.let_go(base, rid, left.unwrap_or_default());
    }

    /// Goes on without a member: what it lacks is marked from here on (O3).
    fn let_go(&mut self, base: &mut Base, rid: ReplicaId, left: Version) {
        self.outdating.remove(&rid);
        let exact = self.step == Step::Serve;
        let Some(peer) = self.peers.get_mut(&rid) else {
            self.must_ack.remove(&rid);
            return;
        };
        let slot = peer.slot;
        peer.held_since = None;
        peer.exact = exact;
        let marked = base.boot.marks.get(&slot).is_some_and(|marks| marks.rid == rid);
        // A replica that was lost before its InSync was known has a bitmap already, from before it began to join.
        if !marked {
            base.begin_marks(slot, rid, left);
        }
        let mut lacks: Vec<Range> = base.window();
        lacks.extend(peer.unflushed.all().ranges());
        peer.unflushed = Default::default();
        if !base.boot.valid {
            lacks = vec![base.everything()];
        }
        if base.broken(Mutant::WindowNotSeeded) {
            lacks.clear();
        }
        for range in &lacks {
            base.mark(slot, *range);
        }
        self.tell_members(base, slot, rid, !marked, &lacks);
        self.must_ack.remove(&rid);
        self.forget_answers(rid);
        if base.broken(Mutant::LinkKeptAfterOutdate) && self.peers.get(&rid).is_some_and(|peer| peer.receives()) {
            return;
        }
        self.lose(base, rid);
    }

    /// A proposal's outcome.
    pub fn proposed(&mut self, base: &mut Base, id: ProposalId, outcome: Outcome) {
        let Some(proposal) = self.proposal.take_if(|proposal| proposal.id == id) else { return };
        let again = base.now.plus_ms(base.cfg.t_propose_ms);
        match outcome {
            Outcome::Accepted => {
                // It was compared with the version, so the record is what it was with this change.
                if let Some(view) = base.view.as_ref().filter(|view| view.mirror.ver == proposal.ver) {
                    let boot = |rid| self.peers.get(&rid).and_then(|peer| Some(peer.state.as_ref()?.boot.clone()));
                    let view = view.after(&proposal.command, boot);
                    self.learn_own(base, view);
                } else if self.ver <= proposal.ver {
                    self.unread = Some(proposal.ver.next());
                }
            }
            Outcome::Rejected(model::DiskRejection::VersionMoved { now, .. }) => {
                self.unread = (now > self.ver).then_some(now);
            }
            Outcome::Rejected(_) => self.depose(base),
            Outcome::Refused => {
                self.propose_after = again;
                // The life that was named is over, or the replica is none any more.
                if let super::DiskCommand::InSync(rid, _) = proposal.command {
                    self.outdating.insert(rid);
                }
            }
            Outcome::Unknown => self.propose_after = again,
        }
    }

    fn learn_own(&mut self, base: &mut Base, view: super::View) {
        if base.see(&view) {
            self.learn(base, &view);
        }
    }
}

/// A steady link is looked after this often, milliseconds.
const IDLE_PING_MS: u64 = 1_000;
