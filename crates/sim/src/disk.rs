//! The replicas: `mirror::engine` on simulated media, and what a daemon does for it.

use std::collections::{BTreeMap, BTreeSet};

use mirror::engine::{
    BootRecord, Config, Conn, DiskCommand, Effect, Event, GuestError, GuestReply, Io, IoId, MarkRecord, Micros, Notice,
    Opening, Outcome, ProposalId, Replica, RoleStatus, StoreKind, Stored, Superblock, View,
};
use mirror::wire::Content;
use model::{Command, Epoch, Life, Mirror, NodeLife, Rejection, RunId, State, Version};

use crate::cluster::{disk_id, instance_id, node_id, rid};
use crate::daemon::Token;
use crate::invariants;
use crate::links::{End, Parcel};
use crate::medium::Medium;
use crate::node::{Input, Role};
use crate::world::{Ev, World};

/// An I/O or a store that is under way.
#[derive(Debug)]
pub enum Pending {
    /// Of the medium.
    Io(Io, u64),
    /// Of the superblock.
    Superblock(Box<Superblock>),
    /// Of the bitmaps.
    Marks,
}

/// A replica's backing, and the replica while a daemon has it open.
pub struct Store {
    /// Its content.
    pub medium: Medium,
    /// Durable.
    pub superblock: Superblock,
    saved_marks: BTreeMap<u8, MarkRecord>,
    /// Of this boot.
    boot_record: Option<BootRecord>,
    pending: BTreeMap<IoId, Pending>,
    /// Open.
    pub replica: Option<Replica>,
    /// It lost writes with its power that were not flushed, and was not brought in sync or admitted since (G2).
    pub relaxed: bool,
}

impl Store {
    /// Of a new disk.
    pub fn new(units: usize, superblock: Superblock) -> Self {
        Self {
            medium: Medium::new(units),
            superblock,
            saved_marks: BTreeMap::new(),
            boot_record: None,
            pending: BTreeMap::new(),
            replica: None,
            relaxed: false,
        }
    }

    /// Whether it has not lost its power since it knew what was under way.
    pub fn is_intact(&self) -> bool {
        self.boot_record.as_ref().is_some_and(|record| record.valid)
    }

    fn complete(&mut self, pending: Pending) -> Option<Content> {
        match pending {
            Pending::Io(Io::Read(range), _) => return Some(self.medium.read(range)),
            Pending::Io(Io::Write { range, content, fua }, _) => self.medium.write(range, &content, fua),
            Pending::Io(Io::Sync, covered) => self.medium.end_sync(covered),
            Pending::Superblock(superblock) => self.superblock = *superblock,
            Pending::Marks => {
                self.saved_marks = self.boot_record.as_ref().map(|record| record.marks.clone()).unwrap_or_default();
            }
        }
        None
    }
}

/// A disk's record in a state.
pub fn mirror_in(state: &State, disk: usize) -> Option<&Mirror> {
    state.instances.get(&instance_id(disk))?.disks.first()?.mirror.as_ref()
}

impl World {
    fn config(&self) -> Config {
        Config {
            copy_bytes: 8192,
            max_writes: 8,
            max_span: 32,
            t_reconnect_ms: 30,
            flap_joins: 1_000,
            t_disk_ms: 20_000,
            ..Config::default()
        }
    }

    fn view(&self, node: usize, disk: usize) -> Option<View> {
        let state = &self.raft.members[node].state;
        let mirror = mirror_in(state, disk)?.clone();
        let lives = state.nodes.iter().map(|(id, it)| (*id, it.life)).collect();
        Some(View { inc: state.incarnation, mirror, lives, migration: None })
    }

    /// A daemon has started: it opens every replica that its node has.
    pub fn open_disks(&mut self, node: usize, start: u64) {
        let disks: Vec<usize> = self.machines[node].stores.keys().copied().collect();
        for disk in disks {
            let life = self.own_life(node).map_or(Life(0), |own| own.life);
            let (config, boot, now) = (self.config(), self.boot_of(node), self.now);
            let Some(store) = self.machines[node].stores.get_mut(&disk) else { continue };
            let stored = Stored {
                superblock: store.superblock.clone(),
                boot: store.boot_record.clone(),
                saved_marks: store.saved_marks.clone(),
            };
            store.boot_record.get_or_insert_default();
            let mut out = Vec::new();
            let opening = Opening { config, node: node_id(node), life, boot, stored };
            store.replica = Some(Replica::open(opening, Micros(now), &mut out));
            self.carry_out(node, disk, start, out);
            crate::guest::resend(self, node, disk);
        }
        self.every_disk(node, |_| Event::Lease(false));
        self.show_disks(node);
    }

    /// A daemon was killed: what it had asked of the kernel happens or not.
    pub fn close_disks(&mut self, node: usize, told: bool) {
        let disks: Vec<usize> = self.machines[node].stores.keys().copied().collect();
        for disk in disks {
            let Some(store) = self.machines[node].stores.get_mut(&disk) else { continue };
            store.replica = None;
            for (_, pending) in std::mem::take(&mut store.pending) {
                if self.rng.chance(50) {
                    store.complete(pending);
                }
            }
            self.touched.insert(disk);
        }
        self.close_all(node, told);
    }

    /// The power went.
    pub fn lose_disks(&mut self, node: usize) {
        let disks: Vec<usize> = self.machines[node].stores.keys().copied().collect();
        for disk in disks {
            let Some(store) = self.machines[node].stores.get_mut(&disk) else { continue };
            store.replica = None;
            for (_, pending) in std::mem::take(&mut store.pending) {
                if self.rng.chance(50) && !matches!(pending, Pending::Io(Io::Sync, _)) {
                    store.complete(pending);
                }
            }
            store.medium.lose_power(&mut self.rng);
            store.boot_record = None;
            store.relaxed |= !store.superblock.clean;
            self.touched.insert(disk);
            crate::guest::forget(self, node, disk);
        }
        let told = self.rng.chance(50);
        self.close_all(node, told);
    }

    /// Every replica of a node is told something.
    pub fn every_disk(&mut self, node: usize, event: impl Fn(usize) -> Event) {
        let disks: Vec<usize> = self.machines[node].stores.keys().copied().collect();
        for disk in disks {
            self.disk_takes(node, disk, event(disk));
        }
    }

    /// Replicas see the newest state.
    pub fn show_disks(&mut self, node: usize) {
        let disks: Vec<usize> = self.machines[node].stores.keys().copied().collect();
        for disk in disks {
            if let Some(view) = self.view(node, disk) {
                self.disk_takes(node, disk, Event::View(view));
            }
        }
    }

    /// The run's node opens the disk for it, if the state gives it that.
    pub fn promote(&mut self, node: usize, disk: usize, run: RunId) {
        let own = self.own_life(node).filter(|_| self.is_current(node));
        let Some(view) = self.view(node, disk) else { return };
        let mine = own.is_some() && view.mirror.primary == own && view.mirror.run == Some(run);
        let role = self.status(node, disk).map(|(role, _)| role);
        if mine && role == Some(RoleStatus::Secondary) {
            self.disk_takes(node, disk, Event::Promote(view));
        }
    }

    fn status(&self, node: usize, disk: usize) -> Option<(RoleStatus, Epoch)> {
        let status = self.machines[node].stores.get(&disk)?.replica.as_ref()?.status();
        Some((status.role, status.epoch))
    }

    /// Whether the guest of a disk waits for a member that may never come.
    pub fn is_suspended(&self, node: usize, disk: usize) -> bool {
        let replica = self.machines[node].stores.get(&disk).and_then(|store| store.replica.as_ref());
        replica.is_some_and(|replica| replica.status().suspended)
    }

    /// Whether a run's disk is served there.
    pub fn is_served(&self, node: usize, disk: usize, run: RunId) -> bool {
        let given = mirror_in(&self.raft.members[node].state, disk).filter(|mirror| mirror.run == Some(run));
        given.is_some_and(|mirror| self.status(node, disk) == Some((RoleStatus::Primary, mirror.epoch)))
    }

    /// A replica is given something.
    pub fn disk_takes(&mut self, node: usize, disk: usize, event: Event) {
        if !self.may_hear(node, disk, &event) {
            return;
        }
        if matches!(event, Event::Guest(_) | Event::IoDone(..)) {
            self.apply_lease(node);
        }
        let (now, start) = (Micros(self.now), self.daemon_start(node));
        let Some(replica) = self.machines[node].stores.get_mut(&disk).and_then(|store| store.replica.as_mut()) else {
            return;
        };
        let mut out = Vec::new();
        replica.step(now, event, &mut out);
        self.hash = (self.hash ^ (node as u64) << 8 ^ out.len() as u64).wrapping_mul(0x0000_0100_0000_01b3);
        self.carry_out(node, disk, start, out);
    }

    fn carry_out(&mut self, node: usize, disk: usize, start: u64, out: Vec<Effect>) {
        for effect in out {
            let end = |conn: Conn| End { node, disk, start, conn };
            match effect {
                Effect::Io(id, io) => self.begin_io(node, disk, start, id, io),
                Effect::Store(id, kind) => {
                    let pending = match kind {
                        StoreKind::Superblock(superblock) => Pending::Superblock(superblock),
                        StoreKind::Marks => Pending::Marks,
                    };
                    let delay = self.rng.range(200, 3_000);
                    self.pend(node, disk, start, id, pending, delay);
                }
                Effect::Boot(change) => {
                    let store = self.machines[node].stores.get_mut(&disk);
                    if let Some(record) = store.and_then(|store| store.boot_record.as_mut()) {
                        record.change(&change);
                    }
                }
                Effect::Open { conn, replica, .. } => self.open(end(conn), crate::cluster::node_of(replica)),
                Effect::Send(conn, frame) => self.send_frame(end(conn), Parcel::Frame(frame)),
                Effect::Close(conn) => self.close(end(conn)),
                Effect::Propose { id, epoch, ver, command } => self.disk_proposes(node, disk, id, epoch, ver, command),
                Effect::Reply(request, reply) => crate::guest::replied(self, node, disk, request, reply),
                Effect::Wake(at) => {
                    let delay = at.0.saturating_sub(self.now);
                    self.after(delay, Ev::At(node, Role::Daemon, Some(start), Input::Disk(disk, Event::Tick)));
                }
                Effect::Tell(notice) => self.disk_says(node, disk, start, &notice),
            }
        }
    }

    fn begin_io(&mut self, node: usize, disk: usize, start: u64, id: IoId, io: Io) {
        let Some(store) = self.machines[node].stores.get(&disk) else { return };
        let covered = store.medium.begin_sync();
        let delay = match self.faults && self.rng.chance(2) {
            true => self.rng.range(5_000, 200_000),
            false => self.rng.range(50, 2_000),
        };
        self.pend(node, disk, start, id, Pending::Io(io, covered), delay);
    }

    fn pend(&mut self, node: usize, disk: usize, start: u64, id: IoId, pending: Pending, delay: u64) {
        if let Some(store) = self.machines[node].stores.get_mut(&disk) {
            store.pending.insert(id, pending);
            self.after(delay, Ev::Io(node, disk, start, id));
        }
    }

    /// The kernel has done an I/O. A daemon that stands still hears of it later.
    pub fn end_io(&mut self, node: usize, disk: usize, start: u64, id: IoId) {
        if self.daemon_start(node) != start {
            return;
        }
        let Some(store) = self.machines[node].stores.get_mut(&disk) else { return };
        let Some(pending) = store.pending.remove(&id) else { return };
        let result = Ok(store.complete(pending));
        self.touched.insert(disk);
        self.put(node, Role::Daemon, Some(start), Input::Disk(disk, Event::IoDone(id, result)));
    }

    fn disk_proposes(
        &mut self,
        node: usize,
        disk: usize,
        id: ProposalId,
        epoch: Epoch,
        ver: Version,
        command: DiskCommand,
    ) {
        let by = self.own_life(node).unwrap_or(NodeLife { node: node_id(node), life: Life(0) });
        let of = disk_id(disk);
        let command = match command {
            DiskCommand::Outdate(replicas) => Command::Outdate { disk: of, by, epoch, ver, replicas },
            DiskCommand::Solo(replicas) => Command::Solo { disk: of, by, epoch, ver, replicas },
            DiskCommand::InSync(replica, life) => Command::InSync { disk: of, by, epoch, ver, replica, life },
        };
        let token = Token::Disk(disk, id);
        if let Some(daemon) = self.daemon(node) {
            daemon.proposals.insert((disk, id));
        }
        self.ask_to_commit(node, vec![command], None, token);
        let (start, patience) = (self.daemon_start(node), self.rng.range(150_000, 400_000));
        self.after(patience, Ev::Unknown(node, start, disk, id));
    }

    /// What became of it. `None`: nobody knows.
    pub fn disk_proposed(&mut self, node: usize, disk: usize, id: ProposalId, outcome: Option<crate::raft::Outcome>) {
        if !self.daemon(node).is_some_and(|daemon| daemon.proposals.remove(&(disk, id))) {
            return;
        }
        let outcome = match outcome {
            None => Outcome::Unknown,
            Some(Ok(_)) => Outcome::Accepted,
            Some(Err(Rejection::Disk(rejection))) => Outcome::Rejected(rejection),
            Some(Err(_)) => Outcome::Refused,
        };
        self.disk_takes(node, disk, Event::Proposed(id, outcome));
    }

    fn disk_says(&mut self, node: usize, disk: usize, start: u64, notice: &Notice) {
        self.note(|| format!("node {node}: disk {disk}: {notice:?}"));
        if let Notice::Serving { epoch, .. } = notice
            && self.shared[disk].admissions.insert((*epoch, node, start))
        {
            invariants::serving(self, node, disk, *epoch);
        }
    }
}

/// What everybody together did to a disk.
pub struct Shared {
    /// What may be on it.
    pub oracle: crate::oracle::Oracle,
    /// Who served which epoch.
    pub served: BTreeMap<Epoch, usize>,
    admissions: BTreeSet<(Epoch, usize, u64)>,
    /// What the guests of each epoch were shown first.
    pub exposed: BTreeMap<Epoch, Vec<u64>>,
    /// Requests of guests that were not answered, also of those that are no more.
    pub requests: BTreeMap<mirror::engine::RequestId, crate::guest::Request>,
    /// Requests that were answered since everything was healed.
    pub done: u64,
    /// Requests so far.
    pub asked: u64,
}

impl Shared {
    /// Nothing yet.
    pub fn new(units: usize) -> Self {
        Self {
            oracle: crate::oracle::Oracle::new(units),
            served: BTreeMap::new(),
            admissions: BTreeSet::new(),
            exposed: BTreeMap::new(),
            requests: BTreeMap::new(),
            done: 0,
            asked: 0,
        }
    }
}

/// Whether the one who asked has no right to ask any more.
pub fn is_refused(reply: &GuestReply) -> bool {
    matches!(reply, GuestReply::Error(GuestError::RunOver))
}

/// The replica that a committed command brings in sync.
pub fn joined(command: &Command) -> Option<(usize, usize)> {
    let Command::InSync { disk, replica, .. } = command else { return None };
    let node = crate::cluster::node_of(*replica);
    let disk = (0..16).find(|index| disk_id(*index) == *disk)?;
    (rid(disk, node) == *replica).then_some((disk, node))
}
