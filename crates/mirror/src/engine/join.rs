//! Bringing a replica in sync (5.5), and the copies of which that consists.

use std::collections::BTreeSet;

use model::{MAX_REPLICAS, ReplicaId, Version};

use super::base::{Base, Job};
use super::effect::{Effect, Io, Notice};
use super::event::{Conn, View};
use super::mutant::Mutant;
use super::peer::{Peer, Stage};
use super::primary::{Holder, Primary, Step};
use crate::wire::{Channel, Content, Frame, HighWater, MAX_RANGES, Mark, Range, ReplicaState};

/// Bytes that are copied before a replica is asked to flush, so that an interrupted resync goes on where it was.
const FLUSH_EVERY: u64 = 64 << 20;

/// A copy under way. It holds the lock of its range from before it is read until it is written.
pub(super) struct Copy {
    pub target: ReplicaId,
    pub range: Range,
    /// Where it is read, once its range is free.
    source: Option<ReplicaId>,
}

impl Primary {
    /// Gets on with every replica that is not in sync.
    pub fn get_on_joining(&mut self, base: &mut Base) {
        if self.step != Step::Serve || self.deposed {
            return;
        }
        let ends = self.is_ending();
        if self.peers.get(&self.own).is_some_and(|own| own.stage == Stage::Down) && !base.failed && !ends {
            self.join_own(base);
        }
        // At an orderly end only those get on whose InSync may be decided any moment.
        let wanted = |rid: &&ReplicaId| !ends || self.must_ack.contains(rid);
        let rids: Vec<ReplicaId> = self.peers.keys().filter(wanted).copied().collect();
        for rid in rids {
            self.get_on_with(base, rid);
        }
    }

    fn get_on_with(&mut self, base: &mut Base, rid: ReplicaId) {
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        match peer.stage {
            Stage::Starting if peer.local && base.is_settled() => peer.stage = Stage::Syncing,
            Stage::Syncing => {
                let busy = self.copies.values().any(|copy| copy.target == rid);
                if peer.todo.is_empty() && !busy {
                    let skip = base.broken(Mutant::NoFlushBeforeInSync);
                    let whom = if skip { BTreeSet::new() } else { BTreeSet::from([rid]) };
                    let upto = self.begin_flush(base, None, whom);
                    self.set_stage(rid, Stage::Flushing(upto));
                    self.get_on_with(base, rid);
                }
            }
            Stage::Flushing(upto) => {
                if !self.take_flush(upto) {
                    return;
                }
                // J4: from here on it leaves `must_ack` only through a committed Outdate.
                if !base.broken(Mutant::InSyncBeforeMustAck) {
                    self.must_ack.insert(rid);
                }
                let last = self.next_seq - 1;
                self.set_stage(rid, Stage::Confirming(last));
                self.get_on_with(base, rid);
            }
            Stage::Confirming(last) => {
                let all = self.writes.range(..=last).all(|(_, write)| !write.waiting.contains(&rid));
                if all {
                    self.finish(base, rid);
                }
            }
            Stage::Finishing if peer.local && base.is_settled() && base.sb.consistent => peer.stage = Stage::Joined,
            _ => {}
        }
    }

    fn set_stage(&mut self, rid: ReplicaId, stage: Stage) {
        if let Some(peer) = self.peers.get_mut(&rid) {
            peer.stage = stage;
        }
    }

    fn set_adopted(&mut self, rid: ReplicaId, ver: Version) {
        if let Some(peer) = self.peers.get_mut(&rid) {
            peer.adopted = ver;
        }
    }

    /// Everything is on the replica: it says so durably, after it has flushed the writes that were answered since.
    fn finish(&mut self, base: &mut Base, rid: ReplicaId) {
        self.set_stage(rid, Stage::Finishing);
        let ver = self.ver;
        let mode = base.view.as_ref().map(|view| view.mirror.mode).unwrap_or_default();
        let Some(peer) = self.peers.get(&rid) else { return };
        if peer.local {
            base.submit(Io::Sync, Job::FinishSync);
        } else if let Some(data) = peer.data {
            self.send_marks(base, rid, true);
            base.send(data, Frame::Adopt { ver, settled: false });
            base.send(data, Frame::FinishSync { ver, mode });
            self.set_adopted(rid, Version::default());
        }
    }

    /// A replica has answered Hello and is not in sync (J1, J2).
    pub fn begin_join(&mut self, base: &mut Base, rid: ReplicaId, state: Box<ReplicaState>) {
        let Some(view) = base.view.clone() else { return };
        if let Some(why) = self.reason_to_refuse(base, &view, &state) {
            return self.refuse(base, rid, why);
        }
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        peer.refused = None;
        peer.joins.retain(|at| base.now.ms_since(*at) < base.cfg.t_flap_ms);
        peer.joins.push(base.now);
        let slot = peer.slot;
        let left = view.mirror.replicas.get(&rid).map(|replica| replica.left).unwrap_or_default();
        // S5, and whether the bitmap covers also what the replica may have lost with its kernel.
        let usable = base.boot.marks.get(&slot).is_some_and(|marks| marks.rid == rid && marks.since <= left);
        let everything = !usable || (state.window.is_none() && !peer.exact);
        let mut extra = base.window();
        if everything {
            base.begin_marks(slot, rid, Version::default());
            extra = vec![base.everything()];
        } else {
            extra.extend(state.window.iter().flatten());
        }
        extra.retain(|range| range.len > 0);
        for range in &extra {
            base.mark(slot, *range);
        }
        self.tell_members(base, slot, rid, everything, &extra);
        let todo = base.boot.marks.get(&slot).map(|marks| marks.bits.clone()).unwrap_or_default();
        let ver = self.ver;
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        peer.todo = todo;
        peer.cursor = 0;
        peer.copied = 0;
        // Of this boot it has answered nothing yet, or that was looked at just now.
        peer.acked = 0;
        // What it does not flush from here on stays in the bitmap.
        peer.unflushed = Default::default();
        // What it got from an earlier primary and has not flushed is in no bitmap: that it flushed has to be known first.
        peer.exact |= everything;
        peer.stage = Stage::Starting;
        peer.state = Some(state);
        if peer.local {
            base.set_superblock(|sb| sb.consistent = false);
        } else if let Some(data) = peer.data {
            let conn = Conn::Out(base.fresh());
            peer.resync = Some((conn, false));
            base.send(data, Frame::StartSync { ver });
            base.out.push(Effect::Open { conn, node: peer.node, replica: rid, channel: Channel::Resync });
        }
    }

    /// J1.
    fn reason_to_refuse(&self, base: &Base, view: &View, state: &ReplicaState) -> Option<&'static str> {
        let hw = state.hw;
        if state.epoch > self.session.epoch || hw.ver > self.ver {
            return Some("it follows a later version of the disk than the cluster knows: state went back in time");
        }
        let fork = |base: Version, at: Version| {
            let (low, high) = (HighWater { ver: base, solo: false }, HighWater { ver: at, solo: false });
            low < hw && hw < high
        };
        if hw.solo || view.mirror.forces.iter().any(|force| fork(force.base, force.at)) {
            return Some("it holds writes that are not part of the disk's history");
        }
        if state.size < base.sb.size {
            return Some("it is smaller than the disk");
        }
        // The own medium was held all the time: what it answered is there.
        let peer = self.peers.get(&state.rid).filter(|peer| !peer.local)?;
        peer.went_back(state, self.session.start)
            .then_some("it has lost writes that it had answered: it went back in time")
    }

    /// Keeps a replica aside.
    pub fn refuse(&mut self, base: &mut Base, rid: ReplicaId, why: &'static str) {
        self.lose(base, rid);
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        peer.retry_at = base.now.plus_ms(base.cfg.t_reconnect_ms * 20);
        if peer.refused != Some(why) {
            peer.refused = Some(why);
            base.tell(Notice::Refused { replica: rid, why });
        }
    }

    /// The primary's own replica is not in sync: it joins like any other, without a link.
    fn join_own(&mut self, base: &mut Base) {
        let state = ReplicaState {
            rid: self.own,
            size: base.sb.size,
            life: base.life,
            boot: base.boot_id.clone(),
            epoch: self.session.epoch,
            hw: HighWater::default(),
            mode: base.sb.mode,
            clean: false,
            consistent: false,
            window: None,
            applied: None,
        };
        let own = self.own;
        self.begin_join(base, own, Box::new(state));
    }

    /// Its `InSync` was seen committed.
    pub fn joined(&mut self, base: &mut Base, rid: ReplicaId) {
        let Some(peer) = self.peers.get_mut(&rid) else { return };
        let slot = peer.slot;
        self.must_ack.insert(rid);
        if peer.stage != Stage::Joined {
            // It was lost after InSync was proposed: what it lacks is still being marked.
            return;
        }
        peer.stage = Stage::Member;
        peer.boot = peer.state.as_ref().map(|state| state.boot.clone());
        peer.held_since = None;
        peer.left = false;
        base.end_marks(slot);
        for conn in self.members_but(rid) {
            base.send(conn, Frame::Mark(Mark { slot, rid, since: None, fresh: false, ranges: Vec::new() }));
        }
    }

    /// Data connections of the linked members besides one replica.
    fn members_but(&self, rid: ReplicaId) -> Vec<Conn> {
        let others = self.peers.values().filter(|peer| peer.rid != rid && peer.stage >= Stage::Finishing);
        others.filter_map(|peer| peer.data).collect()
    }

    /// Tells the other members what to mark for a replica (S4, S5).
    pub fn tell_members(&self, base: &mut Base, slot: u8, rid: ReplicaId, fresh: bool, ranges: &[Range]) {
        let Some(since) = base.boot.marks.get(&slot).map(|marks| marks.since) else { return };
        for conn in self.members_but(rid) {
            send_marks_for(base, conn, slot, rid, since, fresh, ranges);
        }
    }

    /// Tells a replica what it has to know as a member about those that are not in sync. `fresh`: in place of what it knew.
    pub fn send_marks(&self, base: &mut Base, to: ReplicaId, fresh: bool) {
        let Some((conn, own_slot)) = self.peers.get(&to).and_then(|peer| Some((peer.data?, peer.slot))) else { return };
        for slot in (0..MAX_REPLICAS as u8).filter(|slot| *slot != own_slot) {
            match base.boot.marks.get(&slot) {
                Some(marks) => {
                    let (rid, since) = (marks.rid, marks.since);
                    let ranges: Vec<Range> = marks.bits.ranges().collect();
                    send_marks_for(base, conn, slot, rid, since, fresh, &ranges);
                }
                None => {
                    let rid = self.peers.values().find(|peer| peer.slot == slot).map(|peer| peer.rid);
                    let Some(rid) = rid else { continue };
                    base.send(conn, Frame::Mark(Mark { slot, rid, since: None, fresh, ranges: Vec::new() }));
                }
            }
        }
    }

    /// Begins copies, as many as may be under way (5.5: paced, and yielding to the guest).
    pub fn copy(&mut self, base: &mut Base) {
        if self.deposed || self.is_ending() {
            return;
        }
        let idle = self.writes.is_empty() && self.reads.is_empty();
        let most = if idle { base.cfg.max_copies } else { base.cfg.busy_copies };
        let targets: Vec<ReplicaId> = self.peers.values().filter(|peer| peer.is_copied_to()).map(|it| it.rid).collect();
        for target in targets {
            while self.copies.values().filter(|copy| copy.target == target).count() < most {
                let Some(range) = self.next_copy(base, target) else { break };
                let id = base.fresh();
                self.copies.insert(id, Copy { target, range, source: None });
                if base.broken(Mutant::CopyWithoutLock) || self.locks.acquire(range, Holder::Copy(id)) {
                    self.begin_copy(base, id);
                }
            }
        }
    }

    /// The next range to copy to a replica, which is taken off its list.
    fn next_copy(&mut self, base: &mut Base, target: ReplicaId) -> Option<Range> {
        self.source_for(target)?;
        let most = base.cfg.copy_bytes;
        let peer = self.peers.get_mut(&target)?;
        if !peer.local && !peer.resync.is_some_and(|(_, open)| open) {
            return None;
        }
        let found = peer.todo.next_run(peer.cursor, most).or_else(|| peer.todo.next_run(0, most))?;
        peer.cursor = found.end();
        peer.todo.clear(found);
        let range = base.within(found);
        if range.len == 0 {
            return self.next_copy(base, target);
        }
        peer.copied += range.len;
        if peer.copied >= FLUSH_EVERY && peer.stage == Stage::Syncing {
            peer.copied = 0;
            self.begin_flush(base, None, BTreeSet::from([target]));
        }
        Some(range)
    }

    /// Who holds what `target` is to get: the source of a promotion, else the own replica if it is a member, else another.
    fn source_for(&self, target: ReplicaId) -> Option<&Peer> {
        let holds = |peer: &&Peer| {
            let member = peer.stage == Stage::Member && self.must_ack.contains(&peer.rid);
            peer.rid != target && (member || (self.source == Some(peer.rid) && peer.stage == Stage::Ready))
        };
        let first = match self.source {
            Some(source) if self.step < Step::Serve => source,
            _ => self.own,
        };
        self.peers.get(&first).filter(holds).or_else(|| self.peers.values().find(holds))
    }

    /// The range of a copy is free: read it.
    pub fn begin_copy(&mut self, base: &mut Base, id: u64) {
        let Some((target, range)) = self.copies.get(&id).map(|copy| (copy.target, copy.range)) else { return };
        let Some(source) = self.source_for(target) else { return self.give_up_copy(base, id) };
        if source.local {
            base.submit(Io::Read(range), Job::CopyRead(id));
        } else if let Some(data) = source.data {
            base.send(data, Frame::Read { id, range });
        }
        let source = source.rid;
        if let Some(copy) = self.copies.get_mut(&id) {
            copy.source = Some(source);
        }
    }

    /// It was read.
    pub fn copy_was_read(&mut self, base: &mut Base, id: u64, content: Option<Content>) {
        let Some(copy) = self.copies.get(&id) else { return };
        let (target, range) = (copy.target, copy.range);
        let Some(content) = content else {
            // The source can't read it: then it is no source any more.
            if copy.source == Some(self.own) {
                base.fail();
            }
            return self.give_up_copy(base, id);
        };
        let Some(peer) = self.peers.get(&target) else { return };
        if peer.local {
            base.submit(Io::Write { range, content, fua: false }, Job::CopyWrite(id));
        } else if let Some((conn, true)) = peer.resync {
            base.send(conn, Frame::Copy { range, content });
        }
    }

    /// A replica has a copy.
    pub fn copied(&mut self, base: &mut Base, id: u64) {
        let Some(copy) = self.copies.remove(&id) else { return };
        if let Some(peer) = self.peers.get_mut(&copy.target) {
            peer.unflushed.answered(copy.range);
        }
        self.release(base, Holder::Copy(id));
    }

    /// The copy to a replica that has this range.
    pub fn copy_of(&self, target: ReplicaId, range: Range) -> Option<u64> {
        self.copies.iter().find(|(_, copy)| copy.target == target && copy.range == range).map(|(id, _)| *id)
    }

    fn give_up_copy(&mut self, base: &mut Base, id: u64) {
        if let Some(copy) = self.copies.remove(&id)
            && let Some(peer) = self.peers.get_mut(&copy.target)
            && peer.is_copied_to()
        {
            peer.todo.set(copy.range);
        }
        self.release(base, Holder::Copy(id));
    }

    /// Copies from or to a replica that was lost are begun anew, or not at all.
    pub fn copies_lost(&mut self, base: &mut Base, rid: ReplicaId) {
        let hit = |copy: &Copy| copy.target == rid || copy.source == Some(rid);
        let lost: Vec<u64> = self.copies.iter().filter(|(_, copy)| hit(copy)).map(|(id, _)| *id).collect();
        for id in lost {
            self.give_up_copy(base, id);
        }
    }
}

impl Peer {
    /// Whether it has applied less than it answered, although its kernel has not been away (J1).
    pub fn went_back(&self, state: &ReplicaState, start: u64) -> bool {
        let applied = state.applied.filter(|(of, _)| *of == start).map_or(0, |(_, seq)| seq);
        self.boot.as_ref() == Some(&state.boot) && applied < self.acked
    }
}

fn send_marks_for(
    base: &mut Base,
    conn: Conn,
    slot: u8,
    rid: ReplicaId,
    since: Version,
    mut fresh: bool,
    ranges: &[Range],
) {
    let mut pieces = ranges.chunks(MAX_RANGES);
    let mut piece = pieces.next().unwrap_or(&[]);
    loop {
        let mark = Mark { slot, rid, since: Some(since), fresh, ranges: piece.to_vec() };
        base.send(conn, Frame::Mark(mark));
        fresh = false;
        match pieces.next() {
            Some(next) => piece = next,
            None => return,
        }
    }
}
