//! Nodes: their daemons, kernels and disks, and the ways in which these end and begin.

use std::collections::BTreeMap;

use mirror::engine::{
    BootRecord, Event, Io, IoFailed, IoId, IoResult, MarkRecord, Micros, Replica, Stored, Superblock,
};
use model::Life;

use crate::log::{boot_name, node_id};
use crate::medium::Medium;
use crate::world::{Ev, World};

/// An I/O or a store that is under way.
pub enum Pending {
    Read(mirror::wire::Range),
    Write(mirror::wire::Range, mirror::wire::Content, bool),
    Sync(u64),
    Superblock(Box<Superblock>),
    Marks,
}

pub struct Node {
    pub boot: u64,
    /// The kernel runs.
    pub up: bool,
    /// How many daemons there were.
    pub start: u64,
    pub daemon: Option<Replica>,
    pub life: Life,
    pub medium: Medium,
    pub superblock: Superblock,
    pub saved_marks: BTreeMap<u8, MarkRecord>,
    pub boot_record: Option<BootRecord>,
    pub pending: BTreeMap<IoId, Pending>,
    /// Every I/O of the medium fails.
    pub broken: bool,
    /// It lost writes with its power that were not flushed, and was not brought in sync or admitted since (G2).
    pub relaxed: bool,
}

impl Node {
    /// An I/O or a store takes effect.
    pub fn complete(&mut self, pending: Pending) -> Option<mirror::wire::Content> {
        match pending {
            Pending::Read(range) => return Some(self.medium.read(range)),
            Pending::Write(range, content, fua) => self.medium.write(range, &content, fua),
            Pending::Sync(covered) => self.medium.end_sync(covered),
            Pending::Superblock(superblock) => self.superblock = *superblock,
            Pending::Marks => {
                self.saved_marks = self.boot_record.as_ref().map(|record| record.marks.clone()).unwrap_or_default();
            }
        }
        None
    }
}

impl World {
    pub fn start_daemon(&mut self, index: usize) {
        let size = self.oracle.size();
        let config = self.config();
        let node = &mut self.nodes[index];
        if !node.up || node.daemon.is_some() {
            return;
        }
        node.start += 1;
        assert_eq!(node.superblock.size, size);
        let stored = Stored {
            superblock: node.superblock.clone(),
            boot: node.boot_record.clone(),
            saved_marks: node.saved_marks.clone(),
        };
        node.boot_record.get_or_insert_default();
        let opening = mirror::engine::Opening {
            config,
            node: node_id(index),
            life: node.life,
            boot: boot_name(index, node.boot),
            stored,
        };
        let mut out = Vec::new();
        let start = node.start;
        let replica = Replica::open(opening, Micros(self.now), &mut out);
        self.nodes[index].daemon = Some(replica);
        self.note(|| format!("node {index}: daemon start {start}"));
        self.carry_out(index, out);
        crate::guest::resend(self, index);
    }

    fn config(&mut self) -> mirror::engine::Config {
        mirror::engine::Config {
            mutant: self.plan.mutant.and_then(crate::Fault::mutant),
            copy_bytes: 8192,
            max_writes: 8,
            max_span: 32,
            t_reconnect_ms: 30,
            flap_joins: 1_000,
            t_disk_ms: 20_000,
            continue_alone: self.plan.continue_alone,
            ..mirror::engine::Config::default()
        }
    }

    /// The daemon is killed: what it had asked of the kernel happens or not.
    pub fn kill_daemon(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if node.daemon.take().is_none() {
            return;
        }
        for (_, pending) in std::mem::take(&mut node.pending) {
            if self.rng.chance(50) {
                node.complete(pending);
            }
        }
        self.note(|| format!("node {index}: daemon killed"));
        self.close_all(index, true);
    }

    /// The power goes.
    pub fn cut_power(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if !node.up {
            return;
        }
        node.daemon = None;
        for (_, pending) in std::mem::take(&mut node.pending) {
            if self.rng.chance(50) && !matches!(pending, Pending::Sync(_)) {
                node.complete(pending);
            }
        }
        node.medium.lose_power(&mut self.rng);
        node.boot_record = None;
        node.up = false;
        node.relaxed |= !node.superblock.clean;
        self.note(|| format!("node {index}: power lost"));
        let told = self.rng.chance(50);
        self.close_all(index, told);
        crate::guest::node_lost(self, index);
    }

    pub fn boot(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        if node.up {
            return;
        }
        node.up = true;
        node.boot += 1;
        let boot = boot_name(index, node.boot);
        let life = self.log.join(index, boot, Vec::new());
        self.nodes[index].life = life;
        self.note(|| format!("node {index}: booted, life {life}"));
        self.changed();
        self.start_daemon(index);
    }

    pub fn begin_io(&mut self, index: usize, start: u64, id: IoId, io: Io) {
        let node = &mut self.nodes[index];
        let pending = match io {
            Io::Read(range) => Pending::Read(range),
            Io::Write { range, content, fua } => Pending::Write(range, content, fua),
            Io::Sync => Pending::Sync(node.medium.begin_sync()),
        };
        node.pending.insert(id, pending);
        let delay = match self.faults && self.rng.chance(3) {
            true => self.rng.range(5_000, 300_000),
            false => self.rng.range(50, 2_000),
        };
        self.after(delay, Ev::Io(index, start, id));
    }

    pub fn end_io(&mut self, index: usize, start: u64, id: IoId) {
        let node = &mut self.nodes[index];
        if node.start != start {
            return;
        }
        let Some(pending) = node.pending.remove(&id) else { return };
        let medium = matches!(pending, Pending::Read(_) | Pending::Write(..) | Pending::Sync(_));
        let result: IoResult = match node.broken && medium {
            true => Err(IoFailed),
            false => Ok(node.complete(pending)),
        };
        self.step(index, start, Event::IoDone(id, result));
    }
}
