//! A replica that is not primary: it answers Hellos, and applies what it is sent.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use model::{Epoch, Version};

use super::base::{Base, Job};
use super::effect::{BootChange, Io, Notice};
use super::event::{Conn, IoResult};
use super::mutant::Mutant;
use super::stored::Session;
use crate::wire::{Channel, Content, Frame, Hello, HighWater, Link, Mark, Range, RefuseReason, ReplicaState};

/// The link whose frames are accepted.
struct Current {
    epoch: Epoch,
    link: Link,
    data: Conn,
    resync: Option<Conn>,
    /// The version named in the Hello.
    ver: Version,
    /// Not answered yet: the state as it was before this Hello.
    unanswered: Option<Before>,
}

/// What a Hello's answer tells of the time before it.
struct Before {
    epoch: Epoch,
    clean: bool,
}

#[derive(Default)]
pub(super) struct Secondary {
    current: Option<Current>,
    /// Frames of the current link that were not handled yet, each connection's in order.
    data_frames: VecDeque<Frame>,
    resync_frames: VecDeque<Frame>,
    /// Places in the window of the writes of this session, by number.
    places: BTreeMap<u64, u32>,
    /// An orderly end that the primary asked for: answer Bye.
    bye: bool,
    /// An orderly end that this daemon wants.
    leaving: bool,
    stopped: bool,
    /// A reply waits until the superblock is durable.
    replies: Vec<Frame>,
    /// For tests of the tests: links that should be dead.
    zombies: BTreeSet<Conn>,
}

impl Secondary {
    fn session(&self) -> Option<Session> {
        self.current.as_ref().map(|current| Session { epoch: current.epoch, start: current.link.start })
    }

    /// This node becomes primary: all links end.
    pub fn end(&mut self, base: &mut Base) {
        if let Some(current) = self.current.take() {
            close(base, &current);
        }
        let leaving = self.leaving;
        *self = Self { leaving, ..Self::default() };
        base.orphan();
    }

    /// A primary has opened a connection. The caller has made sure that this node is not primary in that epoch.
    pub fn accepted(&mut self, base: &mut Base, conn: Conn, hello: &Hello) {
        let reason = self.reason_to_refuse(base, hello);
        if let Some(reason) = reason {
            return refuse(base, conn, reason);
        }
        match hello.channel {
            Channel::Resync => {
                if let Some(current) = &mut self.current
                    && let Some(old) = current.resync.replace(conn)
                {
                    base.close(old);
                }
                self.resync_frames.clear();
            }
            Channel::Data => self.begin_link(base, conn, hello),
        }
    }

    fn reason_to_refuse(&self, base: &Base, hello: &Hello) -> Option<RefuseReason> {
        if hello.disk != base.sb.disk || hello.to != base.sb.rid {
            return Some(RefuseReason::WrongReplica);
        }
        if base.failed || self.leaving {
            return Some(RefuseReason::Failed).filter(|_| base.failed).or(Some(RefuseReason::Stale));
        }
        if hello.inc.forks_from(&base.sb.inc) {
            return Some(RefuseReason::Foreign);
        }
        let named = (hello.epoch, hello.link);
        let current = self.current.as_ref().map(|current| (current.epoch, current.link));
        let stale = match hello.channel {
            Channel::Data => {
                hello.inc.n < base.sb.inc.n
                    || hello.epoch < base.sb.epoch
                    || current.is_some_and(|current| named <= current)
            }
            Channel::Resync => {
                current != Some(named) || self.current.as_ref().is_some_and(|current| current.unanswered.is_some())
            }
        };
        stale.then_some(RefuseReason::Stale)
    }

    /// A higher link: the old one's connections end here, and it is answered when the old one's I/O has ended (5.1).
    fn begin_link(&mut self, base: &mut Base, conn: Conn, hello: &Hello) {
        let mut before = Before { epoch: base.sb.epoch, clean: base.sb.clean };
        if let Some(old) = self.current.take() {
            if base.broken(Mutant::OldLinkStillRead) {
                self.zombies.extend([old.data].into_iter().chain(old.resync));
            } else {
                close(base, &old);
            }
            if let Some(unanswered) = old.unanswered {
                before = unanswered;
            }
        }
        self.data_frames.clear();
        self.resync_frames.clear();
        self.replies.clear();
        self.bye = false;
        if !base.broken(Mutant::NoDrainAtHello) {
            base.orphan();
        }
        base.begin_use();
        let (epoch, inc) = (hello.epoch, hello.inc);
        base.set_superblock(|sb| {
            sb.epoch = epoch;
            sb.inc = inc;
        });
        let current =
            Current { epoch, link: hello.link, data: conn, resync: None, ver: hello.ver, unanswered: Some(before) };
        self.current = Some(current);
        // Writes of this session that were received by an earlier link are in the window under their numbers.
        let session = self.session();
        let known = base.boot.window.iter().filter(|(_, entry)| Some(entry.session) == session);
        self.places = known.map(|(place, entry)| (entry.seq, *place)).collect();
    }

    /// A frame came.
    pub fn received(&mut self, conn: Conn, frame: Frame) {
        let Some(current) = &self.current else { return };
        if conn == current.data || self.zombies.contains(&conn) {
            self.data_frames.push_back(frame);
        } else if Some(conn) == current.resync {
            self.resync_frames.push_back(frame);
        }
    }

    pub fn disconnected(&mut self, base: &mut Base, conn: Conn) {
        self.zombies.remove(&conn);
        let Some(current) = &mut self.current else { return };
        if Some(conn) == current.resync {
            current.resync = None;
            self.resync_frames.clear();
        } else if conn == current.data {
            // Frames that came before the end may be dropped as well: nobody waits for their answers.
            self.data_frames.clear();
            self.resync_frames.clear();
            self.replies.clear();
            if let Some(resync) = current.resync.take() {
                base.close(resync);
            }
        }
    }

    /// The daemon is to end: flush, and leave cleanly.
    pub fn leave(&mut self) {
        self.leaving = true;
    }

    /// Gets on as far as possible.
    pub fn progress(&mut self, base: &mut Base) {
        if base.failed {
            if let Some(current) = self.current.take() {
                refuse(base, current.data, RefuseReason::Failed);
                if let Some(resync) = current.resync {
                    base.close(resync);
                }
            }
            return;
        }
        self.answer_hello(base);
        if base.is_settled() {
            for reply in std::mem::take(&mut self.replies) {
                self.send(base, reply);
            }
        }
        // Whatever raises a promise in the superblock holds back what comes after it (S1, S2, S8).
        while base.is_settled() && !self.bye && !self.leaving && self.is_answered() {
            let Some(frame) = self.data_frames.pop_front() else { break };
            self.handle(base, frame);
        }
        while base.is_settled() && !self.bye && !self.leaving && self.is_answered() {
            let Some(frame) = self.resync_frames.pop_front() else { break };
            self.handle_copy(base, frame);
        }
        self.end_in_order(base);
    }

    fn is_answered(&self) -> bool {
        self.current.as_ref().is_some_and(|current| current.unanswered.is_none())
    }

    fn answer_hello(&mut self, base: &mut Base) {
        let drained = !base.is_busy() || base.broken(Mutant::NoDrainAtHello);
        if !drained || !base.is_settled() || self.leaving {
            return;
        }
        let session = self.session();
        let Some(current) = self.current.as_mut() else { return };
        let Some(before) = current.unanswered.take() else { return };
        let applied = base.boot.applied.filter(|(of, _)| Some(*of) == session);
        let state = ReplicaState {
            rid: base.sb.rid,
            size: base.sb.size,
            life: base.life,
            boot: base.boot_id.clone(),
            epoch: before.epoch,
            hw: base.sb.hw,
            mode: base.sb.mode,
            clean: before.clean,
            consistent: base.sb.consistent,
            window: base.boot.valid.then(|| base.window()),
            applied: applied.map(|(session, seq)| (session.start, seq)),
        };
        base.send(current.data, Frame::State(Box::new(state)));
    }

    fn send(&self, base: &mut Base, frame: Frame) {
        if let Some(current) = &self.current {
            let conn = match frame {
                Frame::Copied { .. } => current.resync,
                _ => Some(current.data),
            };
            if let Some(conn) = conn {
                base.send(conn, frame);
            }
        }
    }

    /// A frame of the data connection.
    fn handle(&mut self, base: &mut Base, frame: Frame) {
        match frame {
            Frame::Write { seq, range, content, fua, stable } => {
                self.forget(base, stable);
                self.write(base, seq, range, content, fua);
            }
            Frame::Flush { upto } => base.submit(Io::Sync, Job::ApplySync(upto)),
            Frame::Mark(mark) => note(base, mark),
            Frame::Adopt { ver, settled } => {
                raise(base, ver);
                if settled {
                    // All members are equal: what earlier sessions left open is closed.
                    let session = self.session();
                    base.prune_window(|entry| Some(entry.session) != session);
                }
                self.replies.push(Frame::Adopted { ver });
                self.flush_replies(base);
            }
            Frame::StartSync { ver } => {
                raise(base, ver);
                base.set_superblock(|sb| sb.consistent = false);
                self.replies.push(Frame::SyncStarted);
                self.flush_replies(base);
            }
            Frame::FinishSync { ver, mode }
                if base.broken(Mutant::NoFlushBeforeInSync) || base.broken(Mutant::NoFlushAtFinish) =>
            {
                base.ended.push_back((Job::ApplyFinish(ver, mode), Ok(None)));
            }
            Frame::FinishSync { ver, mode } => base.submit(Io::Sync, Job::ApplyFinish(ver, mode)),
            Frame::Read { id, range } if range.end() <= base.sb.size => base.submit(Io::Read(range), Job::Serve(id)),
            Frame::Ping { stable } => {
                self.forget(base, stable);
                self.send(base, Frame::Pong);
            }
            Frame::Bye => self.bye = true,
            _ => self.protocol_error(base),
        }
    }

    /// A reply to something that the superblock has to say first.
    fn flush_replies(&mut self, base: &mut Base) {
        if base.is_settled() {
            for reply in std::mem::take(&mut self.replies) {
                self.send(base, reply);
            }
        }
    }

    fn handle_copy(&mut self, base: &mut Base, frame: Frame) {
        match frame {
            Frame::Copy { range, content } if self.fits(base, range) => {
                // What is copied differs from what a third replica may have just as a write does.
                base.mark_all(range);
                base.submit(Io::Write { range, content, fua: false }, Job::ApplyCopy(range));
            }
            _ => self.protocol_error(base),
        }
    }

    /// Inside the disk, and over nothing that is under way: the primary locks ranges until both ends are done, so that
    /// overlapping writes need no order here (W4).
    fn fits(&self, base: &Base, range: Range) -> bool {
        let lenient = base.broken(Mutant::CopyWithoutLock) || base.broken(Mutant::OldLinkStillRead);
        range.end() <= base.sb.size && (lenient || !base.is_applying(range))
    }

    fn write(&mut self, base: &mut Base, seq: u64, range: Range, content: Content, fua: bool) {
        let Some(session) = self.session() else { return };
        let fitting = base.broken(Mutant::NoDrainAtHello) || self.fits(base, range);
        if !fitting {
            return self.protocol_error(base);
        }
        self.places.entry(seq).or_insert_with(|| base.enter_window(session, seq, range));
        if !base.broken(Mutant::MarksOnlyAtPrimary) {
            base.mark_all(range);
        }
        base.submit(Io::Write { range, content, fua }, Job::Apply(seq, range));
    }

    /// Writes up to this one are on all members.
    fn forget(&mut self, base: &mut Base, stable: u64) {
        let later = self.places.split_off(&(stable + 1));
        for (_, place) in std::mem::replace(&mut self.places, later) {
            base.leave_window(place);
        }
    }

    fn protocol_error(&mut self, base: &mut Base) {
        if let Some(current) = self.current.take() {
            refuse(base, current.data, RefuseReason::Protocol);
            if let Some(resync) = current.resync {
                base.close(resync);
            }
        }
    }

    /// An I/O has ended.
    pub fn io_done(&mut self, base: &mut Base, job: Job, result: IoResult) {
        match (job, result) {
            (Job::Serve(id), result) => self.send(base, Frame::Data { id, content: result.ok().flatten() }),
            (_, Err(_)) => base.fail(),
            (Job::Apply(seq, _), Ok(_)) => {
                if let Some(session) = self.session() {
                    let high = base.boot.applied.filter(|(of, _)| *of == session).map_or(0, |(_, high)| high);
                    base.change_boot(BootChange::Applied(session, high.max(seq)));
                }
                self.send(base, Frame::Ack { seq });
            }
            (Job::ApplySync(upto), Ok(_)) => self.send(base, Frame::Flushed { upto }),
            (Job::ApplyCopy(range), Ok(_)) => self.send(base, Frame::Copied { range }),
            (Job::ApplyFinish(ver, mode), Ok(_)) => {
                // It holds what every member holds; only this session's writes can still be open.
                let session = self.session();
                base.prune_window(|entry| Some(entry.session) != session);
                base.set_valid(true);
                raise(base, ver);
                let mode = if base.held_strict { model::MirrorMode::Strict } else { mode };
                base.set_superblock(|sb| {
                    sb.consistent = true;
                    sb.mode = mode;
                });
                self.replies.push(Frame::SyncFinished);
                self.flush_replies(base);
            }
            _ => {}
        }
    }

    /// Bye of the primary, or of this daemon.
    fn end_in_order(&mut self, base: &mut Base) {
        if self.stopped || !(self.bye || self.leaving) || (base.is_busy() && base.clean == super::base::Clean::No) {
            return;
        }
        if self.bye && base.clean == super::base::Clean::No {
            // The primary has said that all members are equal and flushed.
            base.prune_window(|_| true);
            self.places.clear();
        }
        base.begin_clean();
        if !base.is_clean() {
            return;
        }
        if self.bye {
            self.bye = false;
            self.send(base, Frame::Bye);
        }
        if self.leaving {
            self.send(base, Frame::Bye);
            if let Some(current) = self.current.take() {
                close(base, &current);
            }
            self.stopped = true;
            base.tell(Notice::Stopped);
        }
    }

    /// Which primary's link is accepted, for the status.
    pub fn linked(&self) -> Option<(Epoch, Version)> {
        self.current.as_ref().map(|current| (current.epoch, current.ver))
    }
}

/// Raises the high-water mark (S2).
fn raise(base: &mut Base, ver: Version) {
    let hw = HighWater { ver, solo: false };
    if base.sb.hw < hw {
        base.set_superblock(|sb| sb.hw = hw);
    }
}

/// Carries out a Mark (S4, S5).
fn note(base: &mut Base, mark: Mark) {
    let Some(since) = mark.since else { return base.end_marks(mark.slot) };
    if usize::from(mark.slot) >= model::MAX_REPLICAS {
        return;
    }
    let known = base.boot.marks.get(&mark.slot).filter(|marks| marks.rid == mark.rid && !mark.fresh);
    if known.is_none() {
        base.begin_marks(mark.slot, mark.rid, since);
    }
    for range in mark.ranges {
        let range = base.within(range);
        base.mark(mark.slot, range);
    }
}

fn close(base: &mut Base, current: &Current) {
    base.close(current.data);
    if let Some(resync) = current.resync {
        base.close(resync);
    }
}

pub(super) fn refuse(base: &mut Base, conn: Conn, reason: RefuseReason) {
    let epoch = base.sb.epoch;
    base.send(conn, Frame::Refused { epoch, reason });
    base.close(conn);
}
