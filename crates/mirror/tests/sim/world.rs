//! One run: virtual time, the daemons, and everything around them.

use std::collections::{BTreeMap, BTreeSet};

use mirror::engine::{
    BootChange, BootRecord, Conn, DiskCommand, Effect, Event, GuestError, GuestReply, Io, IoFailed, IoId, IoResult,
    MarkRecord, Micros, Notice, Outcome, ProposalId, Replica, StoreKind, Stored, Superblock, View,
};
use mirror::wire::{Channel, Frame};
use model::{Epoch, Life, MirrorMode, NodeLife, Version};

use crate::agent::Agent;
use crate::guest::Guest;
use crate::invariants;
use crate::log::{DISK, Log, boot_name, index, node_id, rid};
use crate::medium::{Medium, UNIT};
use crate::net::{End, Net, Parcel};
use crate::oracle::Oracle;
use crate::rng::Rng;

/// Units of the disk: eight blocks of the bitmap.
pub const UNITS: usize = 16;

/// What one run is.
#[derive(Clone, Debug)]
pub struct Plan {
    pub seed: u64,
    pub nodes: usize,
    pub mutant: Option<crate::Fault>,
    /// How long faults go on, milliseconds.
    pub faults_ms: u64,
    /// The disk's mode.
    pub mode: MirrorMode,
}

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

pub enum Ev {
    Tick(usize, u64),
    Io(usize, u64, IoId),
    Arrive(usize, usize, Parcel),
    Connected(usize),
    ConnectFailed(usize),
    Propose {
        node: usize,
        start: u64,
        id: ProposalId,
        by: NodeLife,
        epoch: Epoch,
        ver: Version,
        command: DiskCommand,
        reply: bool,
    },
    Outcome(usize, u64, ProposalId, Outcome),
    View(usize, u64, View),
    Guest,
    Agent,
    Fault,
    Restart(usize),
    Boot(usize),
    Heal(usize, usize),
    LogBack,
    /// A fault that was aimed at a delicate moment between these two nodes.
    Strike(usize, usize),
}

pub struct World {
    pub plan: Plan,
    pub rng: Rng,
    pub now: u64,
    queue: BTreeMap<(u64, u64), Ev>,
    ties: u64,
    pub nodes: Vec<Node>,
    pub net: Net,
    pub log: Log,
    pub log_down: bool,
    pub oracle: Oracle,
    pub guest: Guest,
    pub agent: Agent,
    pub faults: bool,
    /// Highest epoch that was served, and by whom.
    pub served: BTreeMap<Epoch, usize>,
    /// Which daemon's start admitted a run in which epoch.
    admissions: BTreeSet<(Epoch, usize, u64)>,
    /// What the guest of that epoch was shown first.
    pub exposed: Vec<u64>,
    pub violation: Option<String>,
    pub hash: u64,
    pub steps: u64,
    /// Bytes of copies that were sent.
    pub copied: u64,
    pub trace: bool,
}

impl World {
    pub fn new(plan: Plan) -> Self {
        let mut rng = Rng::new(plan.seed);
        let oracle = Oracle::new(UNITS);
        let mut log = Log::new(plan.nodes, oracle.size(), plan.mode);
        log.no_cas = plan.mutant == Some(crate::Fault::NoCas);
        let inc = log.state.incarnation;
        let nodes = (0..plan.nodes)
            .map(|node| Node {
                boot: 0,
                up: true,
                start: 0,
                daemon: None,
                life: log.life(node),
                medium: Medium::new(UNITS),
                superblock: Superblock::newborn(DISK, rid(node), oracle.size(), inc, plan.mode),
                saved_marks: BTreeMap::new(),
                boot_record: None,
                pending: BTreeMap::new(),
                broken: false,
                relaxed: false,
            })
            .collect();
        let agent = Agent::new(&mut rng);
        let mut world = Self {
            plan,
            rng,
            now: 0,
            queue: BTreeMap::new(),
            ties: 0,
            nodes,
            net: Net::default(),
            log,
            log_down: false,
            oracle,
            guest: Guest::default(),
            agent,
            faults: true,
            served: BTreeMap::new(),
            admissions: BTreeSet::new(),
            exposed: vec![0; UNITS],
            violation: None,
            hash: 0xcbf2_9ce4_8422_2325,
            steps: 0,
            copied: 0,
            trace: std::env::var_os("TRACE").is_some(),
        };
        for node in 0..world.nodes.len() {
            world.start_daemon(node);
        }
        world.after(1_000, Ev::Agent);
        world.after(2_000, Ev::Guest);
        world.after(50_000, Ev::Fault);
        world
    }

    pub fn after(&mut self, micros: u64, ev: Ev) {
        self.ties += 1;
        self.queue.insert((self.now + micros, self.ties), ev);
    }

    pub fn violate(&mut self, what: String) {
        if self.violation.is_none() {
            self.violation = Some(format!("at {} µs: {what}", self.now));
        }
    }

    pub fn note(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:>10} {}", self.now, what());
        }
    }

    fn fold(&mut self, number: u64) {
        self.hash = (self.hash ^ number).wrapping_mul(0x0000_0100_0000_01b3);
    }

    /// One without faults, for a scenario.
    pub fn quiet(plan: Plan) -> Self {
        let mut world = Self::new(plan);
        world.faults = false;
        world.guest.keeps_on = true;
        world
    }

    /// Goes on for a time.
    pub fn run_for(&mut self, ms: u64) {
        let until = self.now + ms * 1000;
        while self.now < until && self.violation.is_none() {
            self.next();
        }
        assert_eq!(self.violation, None);
    }

    /// Goes on until something holds.
    pub fn run_until(&mut self, what: &str, holds: impl Fn(&World) -> bool) {
        let until = self.now + 60_000_000;
        while !holds(self) && self.violation.is_none() {
            assert!(self.now < until, "{what} did not come to be; {}", self.why_not_converged());
            self.next();
        }
        assert_eq!(self.violation, None);
    }

    /// Cuts two nodes off from each other.
    pub fn cut_both(&mut self, one: usize, other: usize) {
        self.net.cut.extend([(one, other), (other, one)]);
    }

    /// Everything is in sync, at rest and equal.
    pub fn finish(mut self) {
        self.guest.keeps_on = false;
        self.heal();
        self.run_until("convergence", World::is_converged);
        self.check_equal();
        assert_eq!(self.violation, None);
    }

    /// Runs to the end; the hash of the trace.
    pub fn run(mut self) -> Result<u64, String> {
        let faults_until = self.plan.faults_ms * 1000;
        while self.violation.is_none() && self.now < faults_until {
            self.next();
        }
        self.heal();
        let limit = self.now + 60_000_000;
        while self.violation.is_none() && !self.is_converged() {
            if self.now > limit {
                let why = self.why_not_converged();
                self.violate(format!("liveness: a minute after everything was healed, {why}"));
            }
            self.next();
        }
        self.check_equal();
        match self.violation {
            Some(violation) => Err(violation),
            None => Ok(self.hash),
        }
    }

    fn heal(&mut self) {
        self.note(|| "healing".to_owned());
        self.faults = false;
        self.log_down = false;
        for (from, to) in std::mem::take(&mut self.net.cut) {
            self.after(0, Ev::Heal(from, to));
        }
    }

    fn is_converged(&self) -> bool {
        if self.agent.is_busy()
            || self.log.mirror().in_sync().len() != self.nodes.len()
            || !self.guest.is_served_since_heal()
        {
            return false;
        }
        // The guest stops asking when all are in sync; then everything has to come to rest.
        self.guest.is_quiet() && self.nodes.iter().all(|node| node.pending.is_empty())
    }

    fn why_not_converged(&self) -> String {
        let status: Vec<_> = self.nodes.iter().map(|node| node.daemon.as_ref().map(Replica::status)).collect();
        format!(
            "in sync are {:?}, owner {:?}, outstanding {:?}, agent {:?}; {status:#?}",
            self.log.mirror().in_sync(),
            self.log.instance().owner,
            self.guest.outstanding,
            self.agent,
        )
    }

    fn check_equal(&mut self) {
        if self.violation.is_none() {
            let first = &self.nodes[0].medium.cache;
            if let Some(other) = self.nodes.iter().position(|node| node.medium.cache != *first) {
                let text = format!("replicas differ at the end: {first:?} and {:?}", self.nodes[other].medium.cache);
                self.violate(text);
            }
        }
    }

    fn next(&mut self) {
        let Some(((at, _), ev)) = self.queue.pop_first() else { return };
        self.now = at;
        self.steps += 1;
        self.fold(at);
        match ev {
            Ev::Tick(node, start) => self.step(node, start, Event::Tick),
            Ev::Io(node, start, id) => self.end_io(node, start, id),
            Ev::Arrive(id, from, parcel) => self.arrive(id, from, parcel),
            Ev::Connected(id) => self.connected(id),
            Ev::ConnectFailed(id) => self.end_side(id, 0),
            Ev::Propose { node, start, id, by, epoch, ver, command, reply } => {
                let outcome = self.log.propose(by, epoch, ver, &command);
                self.note(|| format!("log: {command:?} of node {node} at {ver}: {outcome:?}"));
                if outcome == Outcome::Accepted {
                    if let DiskCommand::InSync(joined, _) = command {
                        for other in 0..self.nodes.len() {
                            let node = &mut self.nodes[other];
                            let intact = node.boot_record.as_ref().is_some_and(|record| record.valid);
                            node.relaxed &= rid(other) != joined || !intact;
                        }
                    }
                    self.changed();
                }
                if reply {
                    let delay = self.rng.range(500, 6_000);
                    self.after(delay, Ev::Outcome(node, start, id, outcome));
                }
            }
            Ev::Outcome(node, start, id, outcome) => self.step(node, start, Event::Proposed(id, outcome)),
            Ev::View(node, start, view) => self.step(node, start, Event::View(view)),
            Ev::Guest => crate::guest::act(self),
            Ev::Agent => crate::agent::act(self),
            Ev::Fault => crate::faults::act(self),
            Ev::Restart(node) => self.start_daemon(node),
            Ev::Boot(node) => self.boot(node),
            Ev::Heal(from, to) => self.heal_cut(from, to),
            Ev::Strike(node, other) => crate::faults::strike(self, node, other),
            Ev::LogBack => self.log_down = false,
        }
        if self.violation.is_none() {
            invariants::check(self);
        }
    }

    /// The record has changed: everybody hears of it some time.
    pub fn changed(&mut self) {
        let view = self.log.view();
        for node in 0..self.nodes.len() {
            let delay = match self.faults && self.rng.chance(15) {
                true => self.rng.range(50_000, 800_000),
                false => self.rng.range(500, 8_000),
            };
            let start = self.nodes[node].start;
            self.after(delay, Ev::View(node, start, view.clone()));
        }
    }

    // Daemons.

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
        self.guest_resend(index);
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
        self.guest_node_lost(index);
    }

    fn boot(&mut self, index: usize) {
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

    /// Gives an event to a node's daemon, if it still is the one that is meant.
    pub fn step(&mut self, index: usize, start: u64, event: Event) {
        let now = Micros(self.now);
        let node = &mut self.nodes[index];
        let Some(daemon) = node.daemon.as_mut().filter(|_| node.start == start) else { return };
        if self.trace && !matches!(event, Event::Tick | Event::View(_)) {
            eprintln!("{:>10} node {index} <- {}", self.now, brief(&event));
        }
        let mut out = Vec::new();
        daemon.step(now, event, &mut out);
        self.fold(index as u64 ^ (out.len() as u64) << 8);
        self.carry_out(index, out);
    }

    pub fn tell(&mut self, index: usize, event: Event) {
        let start = self.nodes[index].start;
        self.step(index, start, event);
    }

    fn carry_out(&mut self, index: usize, out: Vec<Effect>) {
        let start = self.nodes[index].start;
        for effect in out {
            if self.trace && !matches!(effect, Effect::Wake(_) | Effect::Boot(_)) {
                eprintln!("{:>10} node {index} -> {}", self.now, brief(&effect));
            }
            self.aim(index, &effect);
            if let Effect::Send(_, Frame::Copy { range, .. }) = &effect {
                self.copied += range.len;
            }
            match effect {
                Effect::Io(id, io) => self.begin_io(index, start, id, io),
                Effect::Store(id, kind) => {
                    let pending = match kind {
                        StoreKind::Superblock(superblock) => Pending::Superblock(superblock),
                        StoreKind::Marks => Pending::Marks,
                    };
                    self.nodes[index].pending.insert(id, pending);
                    let delay = self.rng.range(200, 3_000);
                    self.after(delay, Ev::Io(index, start, id));
                }
                Effect::Boot(change) => self.change_boot(index, &change),
                Effect::Open { conn, replica, channel, .. } => self.open(index, start, conn, replica, channel),
                Effect::Send(conn, frame) => self.send(End { node: index, start, conn }, Parcel::Frame(frame)),
                Effect::Close(conn) => self.close(End { node: index, start, conn }),
                Effect::Propose { id, epoch, ver, command } => self.propose(index, start, id, epoch, ver, command),
                Effect::Reply(request, reply) => crate::guest::replied(self, index, request, reply),
                Effect::Wake(at) => {
                    let delay = at.0.saturating_sub(self.now);
                    self.after(delay, Ev::Tick(index, start));
                }
                Effect::Tell(notice) => self.told(index, notice),
            }
        }
    }

    /// Faults at random times seldom meet what lasts a few milliseconds, so some are aimed.
    fn aim(&mut self, index: usize, effect: &Effect) {
        let delicate = match effect {
            Effect::Send(_, Frame::StartSync { .. } | Frame::FinishSync { .. } | Frame::State(_)) => 10,
            Effect::Propose { command: DiskCommand::InSync(..), .. } => 25,
            Effect::Propose { .. } => 10,
            _ => 0,
        };
        if self.faults && delicate > 0 && self.rng.chance(delicate) {
            let delay = self.rng.range(0, 20_000);
            let other = (index + 1) % self.nodes.len();
            self.after(delay, Ev::Strike(index, other));
        }
    }

    fn told(&mut self, index: usize, notice: Notice) {
        if let Notice::Serving { epoch, .. } = notice {
            // After a migration that was cancelled the run only goes on.
            let admission = (epoch, index, self.nodes[index].start);
            if self.admissions.insert(admission) {
                invariants::serving(self, index, epoch);
            }
        }
        crate::agent::told(self, index, &notice);
    }

    fn change_boot(&mut self, index: usize, change: &BootChange) {
        if let Some(record) = &mut self.nodes[index].boot_record {
            record.change(change);
        }
    }

    // The medium.

    fn begin_io(&mut self, index: usize, start: u64, id: IoId, io: Io) {
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

    fn end_io(&mut self, index: usize, start: u64, id: IoId) {
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

    // The network.

    fn open(&mut self, index: usize, start: u64, conn: Conn, replica: model::ReplicaId, _channel: Channel) {
        let Some(to) = (0..self.nodes.len()).find(|node| rid(*node) == replica) else { return };
        let id = self.net.open(End { node: index, start, conn }, to);
        let delay = self.rng.range(200, 2_000);
        let cut = self.net.is_cut(id, 0) || self.net.is_cut(id, 1);
        match !cut && self.nodes[to].daemon.is_some() {
            true => self.after(delay, Ev::Connected(id)),
            false => {
                let late = self.rng.range(1_000, 500_000);
                self.after(late, Ev::ConnectFailed(id));
            }
        }
    }

    fn connected(&mut self, id: usize) {
        let connection = &self.net.connections[id];
        if let (Some(end), true) = (connection.ends[0], connection.open[0]) {
            self.step(end.node, end.start, Event::Connected(end.conn));
        }
    }

    fn send(&mut self, end: End, parcel: Parcel) {
        let Some((id, side)) = self.net.find(end) else { return };
        if !self.net.connections[id].open[side] {
            return;
        }
        self.post(id, side, parcel);
    }

    fn post(&mut self, id: usize, side: usize, parcel: Parcel) {
        let delay = match self.faults && self.rng.chance(2) {
            true => self.rng.range(2_000, 300_000),
            false => self.rng.range(50, 1_000),
        };
        let cut = self.net.is_cut(id, side);
        let connection = &mut self.net.connections[id];
        if cut || !connection.stalled[side].is_empty() {
            connection.stalled[side].push_back(parcel);
            return;
        }
        let at = (self.now + delay).max(connection.last[side] + 1);
        connection.last[side] = at;
        let delay = at - self.now;
        self.after(delay, Ev::Arrive(id, side, parcel));
    }

    fn arrive(&mut self, id: usize, from: usize, parcel: Parcel) {
        if self.net.is_cut(id, from) {
            self.net.connections[id].stalled[from].push_back(parcel);
            return;
        }
        let to = 1 - from;
        let connection = &self.net.connections[id];
        let node = connection.nodes[to];
        if !connection.open[to] {
            return;
        }
        match (connection.ends[to], parcel) {
            (None, Parcel::Frame(Frame::Hello(hello))) => {
                if self.nodes[node].daemon.is_none() {
                    return self.refuse(id);
                }
                self.net.accepted += 1;
                let end = End { node, start: self.nodes[node].start, conn: Conn::In(self.net.accepted) };
                self.net.connections[id].ends[to] = Some(end);
                self.net.by_end.insert(end, id);
                self.step(node, end.start, Event::Accepted(end.conn, hello));
            }
            (None, _) => self.refuse(id),
            (Some(end), Parcel::Frame(frame)) => self.step(node, end.start, Event::Received(end.conn, frame)),
            (Some(_), Parcel::End) => self.end_side(id, to),
        }
    }

    /// Nobody is there: the opener learns that it has ended.
    fn refuse(&mut self, id: usize) {
        if self.net.connections[id].open[1] {
            self.net.connections[id].open[1] = false;
            self.post(id, 1, Parcel::End);
        }
    }

    fn end_side(&mut self, id: usize, side: usize) {
        let connection = &mut self.net.connections[id];
        if let (Some(end), true) = (connection.ends[side], connection.open[side]) {
            connection.open[side] = false;
            self.step(end.node, end.start, Event::Disconnected(end.conn));
        }
    }

    fn close(&mut self, end: End) {
        let Some((id, side)) = self.net.find(end) else { return };
        if std::mem::replace(&mut self.net.connections[id].open[side], false) {
            self.post(id, side, Parcel::End);
        }
    }

    /// A daemon is gone: its ends are closed, and the others are told, or not.
    fn close_all(&mut self, index: usize, told: bool) {
        for id in 0..self.net.connections.len() {
            for side in 0..2 {
                let connection = &mut self.net.connections[id];
                let own = connection.nodes[side] == index && connection.open[side];
                if own && (connection.ends[side].is_some() || side == 1) {
                    connection.open[side] = false;
                    if told {
                        self.post(id, side, Parcel::End);
                    }
                }
            }
        }
    }

    pub fn heal_cut(&mut self, from: usize, to: usize) {
        self.net.cut.remove(&(from, to));
        for id in 0..self.net.connections.len() {
            for side in 0..2 {
                let connection = &mut self.net.connections[id];
                if connection.nodes[side] == from && connection.nodes[1 - side] == to {
                    for parcel in std::mem::take(&mut connection.stalled[side]) {
                        self.post(id, side, parcel);
                    }
                }
            }
        }
    }

    // The log.

    fn propose(&mut self, node: usize, start: u64, id: ProposalId, epoch: Epoch, ver: Version, command: DiskCommand) {
        let by = NodeLife { node: node_id(node), life: self.nodes[node].life };
        let unknown_at = self.rng.range(100_000, 300_000);
        let fate = if self.faults { self.rng.range(0, 100) } else { 100 };
        let propose = |reply| Ev::Propose { node, start, id, by, epoch, ver, command: command.clone(), reply };
        let quick = self.rng.range(500, 8_000);
        let slow = self.rng.range(1_000, 3_000_000);
        match fate {
            _ if self.log_down => {
                self.after(unknown_at, Ev::Outcome(node, start, id, Outcome::Unknown));
                if fate < 30 {
                    self.after(slow, propose(false));
                }
            }
            0..5 => self.after(unknown_at, Ev::Outcome(node, start, id, Outcome::Unknown)),
            5..12 => {
                self.after(unknown_at, Ev::Outcome(node, start, id, Outcome::Unknown));
                self.after(slow, propose(false));
            }
            12..16 => {
                self.after(quick, propose(true));
                self.after(slow, propose(false));
            }
            16..20 => {
                self.after(quick, propose(false));
                self.after(unknown_at, Ev::Outcome(node, start, id, Outcome::Unknown));
            }
            _ => self.after(quick, propose(true)),
        }
    }

    /// The node that owns the instance in the log, if its life goes on.
    pub fn owner(&self) -> Option<usize> {
        let owner = self.log.instance().owner.filter(|owner| self.log.is_live(*owner))?;
        Some(index(owner.node))
    }

    pub fn guest_resend(&mut self, index: usize) {
        crate::guest::resend(self, index);
    }

    fn guest_node_lost(&mut self, index: usize) {
        crate::guest::node_lost(self, index);
    }
}

impl Node {
    /// An I/O or a store takes effect.
    fn complete(&mut self, pending: Pending) -> Option<mirror::wire::Content> {
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

/// What a request that was refused means for the one who asked.
pub fn is_refused(reply: &GuestReply) -> bool {
    matches!(reply, GuestReply::Error(GuestError::RunOver))
}

/// Something for a trace, without its bulk.
fn brief(what: &impl std::fmt::Debug) -> String {
    let mut text = format!("{what:?}");
    while let Some(at) = text.find("Data(b\"") {
        let end = text[at..].find("\")").map_or(text.len(), |end| at + end + 2);
        let stamp = text[at + 7..end].chars().take(24).collect::<String>();
        text.replace_range(at..end, &format!("<{stamp}>"));
    }
    text.truncate(400);
    text
}

/// Bytes of a number of units.
pub fn bytes(units: u64) -> u64 {
    units * UNIT
}
