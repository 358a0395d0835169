//! One replica of one disk on one node.

use std::collections::BTreeMap;

use model::{Life, NodeId, ReplicaId};

use super::base::{Base, Job};
use super::effect::{Effect, Notice};
use super::event::{Event, GuestRequest, View};
use super::guest::Guest;
use super::primary::Primary;
use super::secondary::{Secondary, refuse};
use super::stored::{BootRecord, Session, Stored, WindowEntry};
use super::{Config, Micros};
use crate::wire::{Hello, Range, RefuseReason};

/// What a replica has to know to be opened.
#[derive(Clone, Debug)]
pub struct Opening {
    /// Times and limits.
    pub config: Config,
    /// The node that it is on.
    pub node: NodeId,
    /// The node's current life.
    pub life: Life,
    /// Identity of the node's boot.
    pub boot: String,
    /// What was found, under the exclusive lock of the backing.
    pub stored: Stored,
}

/// One replica of one disk on one node, in whatever role. See the [module](super).
pub struct Replica {
    pub(super) base: Base,
    pub(super) guest: Guest,
    pub(super) secondary: Secondary,
    pub(super) primary: Option<Primary>,
    wake_at: Option<Micros>,
}

impl Replica {
    /// Opens a replica (protocol, section 6). It is a secondary and does not serve: that needs a
    /// [`Hello`] or [`Event::Promote`]. The effects begin with the boot-scoped record, which is written whole, and the
    /// superblock with its new `start`; it answers nobody before that is durable.
    pub fn open(opening: Opening, now: Micros, out: &mut Vec<Effect>) -> Self {
        let Opening { config, node, life, boot, stored } = opening;
        let Stored { superblock, boot: found, saved_marks } = stored;
        let record = found.unwrap_or_else(|| after_boot(superblock.clean, &superblock.left_window, saved_marks));
        let mut base = Base::new(config, node, life, boot, superblock, record);
        base.now = now;
        for change in base.boot.changes() {
            base.out.push(Effect::Boot(change));
        }
        base.set_superblock(|sb| sb.start += 1);
        out.append(&mut base.out);
        Self { base, guest: Guest::default(), secondary: Secondary::default(), primary: None, wake_at: None }
    }

    /// Takes an event, and gives what it wants done.
    pub fn step(&mut self, now: Micros, event: Event, out: &mut Vec<Effect>) {
        self.base.now = self.base.now.max(now);
        self.take(event);
        self.settle();
        self.wake();
        out.append(&mut self.base.out);
    }

    fn take(&mut self, event: Event) {
        let base = &mut self.base;
        match event {
            Event::Tick => self.tick(),
            Event::View(view) => self.see(view),
            Event::Life(life) => base.life = life,
            Event::Promote(view) => self.promote(view),
            Event::Standby(run) => self.guest.set_standby(run),
            Event::EndRun(run) => self.guest.end_run(base, run),
            Event::Quiesce(migration) => {
                if let Some(primary) = &mut self.primary {
                    primary.quiesce(base, migration);
                }
            }
            Event::Resume(migration) => {
                if let Some(primary) = &mut self.primary {
                    primary.resume(base, migration);
                }
            }
            Event::Release => match &mut self.primary {
                Some(primary) => primary.release_disk(),
                None => base.tell(Notice::Released),
            },
            Event::Shutdown => match &self.primary {
                Some(_) => base.tell(Notice::Stopped),
                None => self.secondary.leave(),
            },
            Event::Lease(valid) => base.lease = valid,
            Event::Strict(held) => {
                base.held_strict = held;
                base.store_mode();
            }
            Event::Grown(size) => base.set_superblock(|sb| sb.size = sb.size.max(size)),
            Event::Guest(request) => self.request(request),
            Event::Connected(conn) => match &mut self.primary {
                Some(primary) => primary.connected(base, conn),
                None => base.close(conn),
            },
            Event::Accepted(conn, hello) => self.accepted(conn, &hello),
            Event::Received(conn, frame) => match &mut self.primary {
                Some(primary) => primary.received(base, conn, frame),
                None => self.secondary.received(conn, frame),
            },
            Event::Disconnected(conn) => match &mut self.primary {
                Some(primary) => primary.disconnected(base, conn),
                None => self.secondary.disconnected(base, conn),
            },
            Event::IoDone(id, result) => base.io_done(id, result),
            Event::Proposed(id, outcome) => {
                if let Some(primary) = &mut self.primary {
                    primary.proposed(base, id, outcome);
                }
            }
        }
    }

    fn tick(&mut self) {
        self.wake_at = None;
        if self.base.is_overdue() {
            self.base.fail();
        }
        if let Some(primary) = &mut self.primary {
            primary.look_at_links(&mut self.base);
        }
    }

    /// Gets on as far as possible.
    fn settle(&mut self) {
        // What is done may let other things be done; each pass that changes something has effects.
        loop {
            let before = self.base.out.len();
            while let Some((job, result)) = self.base.ended.pop_front() {
                match (&mut self.primary, job) {
                    (_, Job::Standby(request)) => self.guest.standby_done(&mut self.base, request, result),
                    (Some(primary), job) => primary.io_done(&mut self.base, job, result),
                    (None, job) => self.secondary.io_done(&mut self.base, job, result),
                }
            }
            match &mut self.primary {
                Some(primary) => primary.progress(&mut self.base, &mut self.guest),
                None => {
                    self.secondary.progress(&mut self.base);
                    self.guest.serve_standby(&mut self.base);
                }
            }
            self.end_role();
            self.guest.refuse_ended(&mut self.base);
            if self.base.out.len() == before {
                return;
            }
        }
    }

    /// The primary's role ends when it is deposed or the disk was released.
    fn end_role(&mut self) {
        let Some(primary) = self.primary.take_if(|primary| primary.deposed || primary.released) else { return };
        let released = primary.released && !primary.deposed;
        primary.abandon(&mut self.base, &mut self.guest);
        if released {
            self.base.tell(Notice::Released);
        }
    }

    fn see(&mut self, view: View) {
        if self.base.see(&view)
            && let Some(primary) = &mut self.primary
        {
            primary.learn(&mut self.base, &view);
        }
        self.end_role();
    }

    fn promote(&mut self, view: View) {
        let own = self.base.sb.rid;
        self.see(view.clone());
        let newest = self.base.view.as_ref() == Some(&view);
        let mine = view.mirror.primary.is_some_and(|primary| primary.node == self.base.node);
        let serving = self.primary.is_some();
        if !newest || !mine || serving || view.mirror.epoch < self.base.sb.epoch {
            return;
        }
        if view.mirror.replicas.contains_key(&own) {
            self.secondary.end(&mut self.base);
            self.primary = Some(Primary::begin(&mut self.base, own, &view));
        }
    }

    fn request(&mut self, request: GuestRequest) {
        self.guest.held.push_back(request);
    }

    fn accepted(&mut self, conn: super::Conn, hello: &Hello) {
        let Some(primary) = &mut self.primary else {
            return self.secondary.accepted(&mut self.base, conn, hello);
        };
        let newer = hello.epoch > primary.session.epoch && hello.to == self.base.sb.rid;
        if !newer || hello.inc.forks_from(&self.base.sb.inc) {
            return refuse(&mut self.base, conn, RefuseReason::Stale);
        }
        primary.depose(&mut self.base);
        self.end_role();
        self.secondary.accepted(&mut self.base, conn, hello);
    }

    /// Asks to be woken while there is a time to look at.
    fn wake(&mut self) {
        let timed = self.primary.is_some() || self.base.has_jobs();
        if timed && self.wake_at.is_none() {
            let at = self.base.now.plus_ms(self.base.cfg.t_tick_ms);
            self.wake_at = Some(at);
            self.base.out.push(Effect::Wake(at));
        }
    }

    /// The replica's identity.
    pub fn rid(&self) -> ReplicaId {
        self.base.sb.rid
    }
}

/// The boot-scoped record of a kernel that has not seen the replica yet. After an orderly end everything is known;
/// else the window is lost, and no bitmap counts.
fn after_boot(clean: bool, window: &[(u64, u64)], marks: BTreeMap<u8, super::MarkRecord>) -> BootRecord {
    if !clean {
        return BootRecord::default();
    }
    let entry = |(offset, len): &(u64, u64)| WindowEntry {
        session: Session::default(),
        seq: 0,
        range: Range::new(*offset, *len),
    };
    BootRecord { valid: true, window: (0..).zip(window.iter().map(entry)).collect(), marks, ..BootRecord::default() }
}
