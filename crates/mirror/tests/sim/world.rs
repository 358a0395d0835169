//! One run: virtual time, the daemons, and everything around them.

use std::collections::{BTreeMap, BTreeSet};

use mirror::engine::{
    BootChange, DiskCommand, Effect, Event, GuestError, GuestReply, IoId, Micros, Notice, Outcome, ProposalId, Replica,
    StoreKind, Superblock, View,
};
use mirror::wire::Frame;
use model::{Epoch, MirrorMode, NodeLife, Version};

use crate::agent::Agent;
use crate::guest::Guest;
use crate::invariants;
use crate::log::{DISK, Log, index, node_id, rid};
use crate::medium::{Medium, UNIT};
use crate::net::{End, Net, Parcel};
use crate::node::{Node, Pending};
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
    /// In manual mode, a primary that has lost its peer and the log goes on alone.
    pub continue_alone: bool,
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

    pub fn fold(&mut self, number: u64) {
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

    pub fn carry_out(&mut self, index: usize, out: Vec<Effect>) {
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
                Effect::Open { conn, replica, .. } => self.open(index, start, conn, replica),
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
