//! The primary: what it knows, and how it gets on.

use std::collections::{BTreeMap, BTreeSet};

use model::{MirrorMode, ReplicaId, RunId, Uuid, Version};

use super::Micros;
use super::base::{Base, Job};
use super::effect::{DiskCommand, Effect, Notice};
use super::event::{IoResult, ProposalId, View};
use super::flush::FlushOp;
use super::guest::Guest;
use super::join::Copy;
use super::locks::Locks;
use super::mutant::Mutant;
use super::peer::{Peer, Stage};
use super::read::ReadOp;
use super::stored::Session;
use super::write::{WaitingWrite, Write};
use crate::wire::{Frame, HighWater};

/// What a lock on a range is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder {
    /// A write that waits, by its ticket.
    Ticket(u64),
    /// A write under way, by its number.
    Write(u64),
    /// A copy.
    Copy(u64),
}

/// How far the promotion has come (5.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Step {
    /// The I/O of earlier roles and links has to end, the superblock to promise the epoch, and after a restart the empty
    /// Outdate to be committed.
    Drain,
    /// The other members are asked; until then.
    Greet(Micros),
    /// Windows are copied.
    Reconcile,
    /// Everything is flushed.
    Settle(u64),
    /// Members forget the windows.
    Adopt,
    /// The run is admitted.
    Serve,
}

/// Why admission is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Closed {
    /// It is not.
    Open,
    /// For a migration; with the number of the flush, and whether all is done.
    Quiesce(Uuid, Option<u64>, bool),
    /// For good; with the number of the flush, and whether members were told.
    Release(Option<u64>, bool),
}

/// A proposal whose outcome is awaited.
pub(super) struct Proposal {
    pub id: ProposalId,
    pub ver: Version,
    pub command: DiskCommand,
}

pub(super) struct Primary {
    pub own: ReplicaId,
    pub session: Session,
    pub step: Step,
    pub run: Option<RunId>,
    pub closed: Closed,
    pub ver: Version,
    pub in_sync: BTreeSet<ReplicaId>,
    pub must_ack: BTreeSet<ReplicaId>,
    /// Members that it goes on without in manual mode, before the log knows (7.2).
    pub soloed: BTreeSet<ReplicaId>,
    pub peers: BTreeMap<ReplicaId, Peer>,
    /// To be outdated; what is here leaves `must_ack` only by a committed Outdate.
    pub outdating: BTreeSet<ReplicaId>,
    pub proposal: Option<Proposal>,
    pub propose_after: Micros,
    /// The log is at this version; nothing is proposed before that was read.
    pub unread: Option<Version>,
    /// An Outdate has to be committed whatever it names (5.6, step 1).
    pub restarted: bool,
    /// Where the content of this epoch comes from, once that is decided.
    pub source: Option<ReplicaId>,
    pub suspended: bool,
    pub deposed: bool,
    /// The orderly end is done.
    pub released: bool,
    pub next_link: u64,
    pub next_seq: u64,
    pub writes: BTreeMap<u64, Write>,
    pub waiting_writes: BTreeMap<u64, WaitingWrite>,
    pub write_bytes: u64,
    pub flushes: BTreeMap<u64, FlushOp>,
    pub reads: BTreeMap<u64, ReadOp>,
    pub copies: BTreeMap<u64, Copy>,
    pub locks: Locks<Holder>,
    pub byes: BTreeSet<ReplicaId>,
    pub bye_until: Micros,
}

impl Primary {
    /// Whether what was done under this version may be acknowledged (S2, S5).
    pub fn may_acknowledge(&self, base: &Base) -> bool {
        let hw = self.high_water();
        // A replica that may be a member by now has to have stored what to mark; one that just begins to join is told later.
        let mut members = self.peers.values().filter(|peer| {
            let begins = peer.stage >= Stage::Starting && peer.stage < Stage::Finishing;
            !peer.local && !begins && self.must_ack.contains(&peer.rid)
        });
        // A medium that failed holds no member: there is nothing to promise on it.
        (base.failed || base.durably(|sb| sb.hw == hw)) && members.all(|peer| peer.adopted == self.ver)
    }

    pub fn high_water(&self) -> HighWater {
        HighWater { ver: self.ver, solo: !self.soloed.is_empty() }
    }

    /// All writes up to this one are on all members.
    pub fn stable(&self) -> u64 {
        self.writes.keys().next().copied().unwrap_or(self.next_seq) - 1
    }

    /// Gives the news of the disk's record.
    pub fn learn(&mut self, base: &mut Base, view: &View) {
        let mirror = &view.mirror;
        if mirror.ver < self.ver || self.deposed {
            return;
        }
        let mine = mirror.primary.is_some_and(|primary| primary.node == base.node);
        if mirror.epoch != self.session.epoch || !mine {
            return self.depose(base);
        }
        let grew = mirror.ver > self.ver;
        let before = std::mem::replace(&mut self.in_sync, mirror.in_sync());
        self.ver = mirror.ver;
        if self.unread.is_some_and(|unread| unread <= self.ver) {
            self.unread = None;
        }
        self.learn_replicas(base, view);
        if !grew {
            return;
        }
        self.restarted = false;
        // Solo has been recorded for those that the log has let go.
        self.soloed.retain(|rid| self.in_sync.contains(rid));
        let joined: Vec<ReplicaId> = self.in_sync.difference(&before).copied().collect();
        for rid in joined {
            self.joined(base, rid);
        }
        let gone: Vec<ReplicaId> = self.must_ack.difference(&self.in_sync).copied().collect();
        for rid in gone {
            let Some(peer) = self.peers.get(&rid) else { continue };
            let joining = peer.stage >= Stage::Confirming(0) && peer.stage < Stage::Member;
            if joining && !self.outdating.contains(&rid) {
                continue;
            }
            // As long as an InSync that was proposed for it may still be accepted, it stays; an Outdate ends that (J5).
            if peer.proposed.is_none_or(|ver| ver < self.ver) {
                self.drop_member(base, rid);
            } else {
                self.outdating.insert(rid);
            }
        }
        self.adopt(base, false);
    }

    /// Replicas that were added or removed.
    fn learn_replicas(&mut self, base: &mut Base, view: &View) {
        for (rid, replica) in &view.mirror.replicas {
            let local = *rid == self.own;
            let peer = Peer::new(*rid, replica.slot, replica.node, local, base.now);
            self.peers.entry(*rid).or_insert(peer);
        }
        let removed: Vec<ReplicaId> =
            self.peers.keys().filter(|rid| !view.mirror.replicas.contains_key(rid)).copied().collect();
        for rid in removed {
            // A member may be removed while others stay: from then on nothing waits for it.
            self.must_ack.remove(&rid);
            self.outdating.remove(&rid);
            self.lose(base, rid);
            if let Some(peer) = self.peers.remove(&rid) {
                base.end_marks(peer.slot);
            }
            if self.source == Some(rid) && self.step < Step::Serve {
                // Its content was to count; one of those that stay has to be chosen.
                self.source = None;
                self.step = Step::Greet(base.now.plus_ms(base.cfg.t_out_strict_ms));
            }
        }
    }

    /// Raises the high-water marks to the current version (S2).
    pub fn adopt(&mut self, base: &mut Base, settled: bool) {
        let hw = self.high_water();
        base.set_superblock(|sb| sb.hw = hw);
        let ver = self.ver;
        for peer in self.peers.values_mut().filter(|peer| !peer.local && peer.is_linked()) {
            if let Some(data) = peer.data {
                peer.adopted = Version::default();
                base.send(data, Frame::Adopt { ver, settled });
            }
        }
    }

    /// Another epoch has begun, or this life is over: nothing is acknowledged or read any more (O3).
    pub fn depose(&mut self, base: &mut Base) {
        self.deposed = true;
        base.tell(Notice::Deposed { epoch: self.session.epoch });
    }

    /// What is left when the role ends: no links, and no answers for what was begun.
    pub fn abandon(mut self, base: &mut Base, guest: &mut Guest) {
        let rids: Vec<ReplicaId> = self.peers.keys().copied().collect();
        for rid in rids {
            if let Some(peer) = self.peers.get_mut(&rid) {
                close_link(base, peer);
            }
        }
        let run = self.run.unwrap_or_default();
        let writes = self.writes.values().filter(|write| !write.acked).map(|write| write.request);
        let waiting = self.waiting_writes.values().map(|write| write.request);
        let flushes = self.flushes.values().filter_map(FlushOp::request);
        let reads = self.reads.values().map(|read| read.request);
        for request in writes.chain(waiting).chain(flushes).chain(reads) {
            guest.park(request, run);
        }
        base.orphan();
    }

    /// Gets on as far as possible.
    pub fn progress(&mut self, base: &mut Base, guest: &mut Guest) {
        if base.failed {
            self.own_failed(base);
        }
        self.promote(base);
        self.acknowledge(base);
        self.dispatch_reads(base);
        self.get_on_joining(base);
        self.copy(base);
        self.close_down(base);
        self.admit(base, guest);
        self.propose(base);
    }

    /// The medium failed (O5).
    fn own_failed(&mut self, base: &mut Base) {
        let own = self.own;
        if self.peers.get(&own).is_some_and(|peer| peer.stage != Stage::Down) {
            self.lose(base, own);
        }
        if self.must_ack.contains(&own) {
            self.outdating.insert(own);
        }
    }

    /// Makes the proposal that is due, one at a time.
    fn propose(&mut self, base: &mut Base) {
        if self.proposal.is_some() || base.now < self.propose_after || self.unread.is_some() || self.deposed {
            return;
        }
        let solo: Vec<ReplicaId> = self.soloed.iter().copied().collect();
        let mut lost: Vec<ReplicaId> = self.outdating.intersection(&self.must_ack).copied().collect();
        lost.extend(&solo);
        let last = self.in_sync.iter().all(|rid| lost.contains(rid));
        if last {
            // One has to stay: another node's rather than the own, which is here only because its medium failed. It is
            // waited for, and the guest with it.
            let kept = self.in_sync.iter().find(|rid| **rid != self.own).copied().unwrap_or(self.own);
            lost.retain(|rid| *rid != kept);
            self.outdating.remove(&kept);
            if !std::mem::replace(&mut self.suspended, true) {
                base.tell(Notice::Suspended);
            }
        }
        let ready = self.peers.values().find(|peer| peer.stage == Stage::Joined);
        let manual = base.view.as_ref().is_some_and(|view| view.mirror.mode == MirrorMode::Manual);
        let command = if !solo.is_empty() && manual {
            DiskCommand::Solo(lost)
        } else if !lost.is_empty() {
            DiskCommand::Outdate(lost)
        } else if self.restarted && self.step == Step::Drain {
            DiskCommand::Outdate(Vec::new())
        } else if let Some((rid, life)) = ready.and_then(|it| Some((it.rid, it.state.as_ref()?.life))) {
            let ver = self.ver;
            if let Some(peer) = self.peers.get_mut(&rid) {
                peer.proposed = Some(ver);
            }
            DiskCommand::InSync(rid, life)
        } else {
            return;
        };
        let id = ProposalId(base.fresh());
        let (epoch, ver) = (self.session.epoch, self.ver);
        base.out.push(Effect::Propose { id, epoch, ver, command: command.clone() });
        self.proposal = Some(Proposal { id, ver, command });
    }

    /// An I/O of the own medium has ended.
    pub fn io_done(&mut self, base: &mut Base, job: Job, result: IoResult) {
        let own = self.own;
        match (job, result) {
            (Job::GuestRead(id), result) => self.own_read(base, id, result),
            (Job::CopyRead(id), result) => self.copy_was_read(base, id, result.ok().flatten()),
            (_, Err(_)) => base.fail(),
            (Job::OwnWrite(seq), Ok(_)) => self.answered(base, own, seq),
            (Job::OwnSync(upto), Ok(_)) => self.flushed(base, own, upto),
            (Job::CopyWrite(id), Ok(_)) => self.copied(base, id),
            (Job::FinishSync, Ok(_)) => {
                base.set_valid(true);
                base.set_superblock(|sb| sb.consistent = true);
            }
            _ => {}
        }
    }

    /// For tests of the tests: may an acknowledgement go out although `rid` did not answer?
    pub fn ignores(&self, base: &Base, rid: ReplicaId) -> bool {
        base.broken(Mutant::AckBeforeOutdate) && self.outdating.contains(&rid)
    }
}

/// Closes both connections of a link.
pub(super) fn close_link(base: &mut Base, peer: &mut Peer) {
    if let Some(conn) = peer.data.take() {
        base.close(conn);
    }
    if let Some((conn, _)) = peer.resync.take() {
        base.close(conn);
    }
}
