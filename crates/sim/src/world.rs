//! One run: virtual time, the machines, and everything around them.

use std::collections::{BTreeMap, BTreeSet};

use ha::{Now, Times};
use mirror::engine::{IoId, ProposalId, Superblock};
use model::{Life, MirrorMode, RunId};

use crate::clock::Clock;
use crate::cluster;
use crate::daemon::Message;
use crate::disk::{Shared, Store};
use crate::invariants;
use crate::links::{Net, Parcel};
use crate::medium::UNIT;
use crate::node::{Input, Machine, Role, Signal};
use crate::plan::Plan;
use crate::raft::Raft;
use crate::rng::Rng;

/// Units of a disk: eight blocks of the bitmap.
pub const UNITS: usize = 16;

/// How long everything may take to be in order again, microseconds.
const CONVERGE: u64 = 60_000_000;

/// What happens.
pub enum Ev {
    /// A process is given something.
    At(usize, Role, Option<u64>, Input),
    /// A message comes.
    Arrive {
        /// From this node.
        from: usize,
        /// To this one.
        to: usize,
        /// To that process.
        role: Role,
        /// What.
        message: Message,
    },
    /// A node's clock of Raft.
    Raft(usize),
    /// A leader sends what it has under way.
    Replicate(usize),
    /// A node applies the log up to there.
    Apply(usize, usize),
    /// An I/O ends.
    Io(usize, usize, u64, IoId),
    /// A disk's proposal was not answered.
    Unknown(usize, u64, usize, ProposalId),
    /// A connection.
    Connected(usize),
    /// One that could not be made.
    ConnectFailed(usize),
    /// What travels in one.
    Parcel(usize, usize, Parcel),
    /// A guest's clock.
    Guest(usize, RunId),
    /// A signal to a guest's process, in this boot of its node.
    Signal(usize, u64, RunId, Signal),
    /// Something goes wrong.
    Fault,
    /// A process is started.
    Start(usize, Role),
    /// A process goes on.
    GoOn(usize, Role),
    /// A machine is switched on.
    Boot(usize),
    /// A cut begins.
    Cut(usize, usize),
    /// It is over.
    Heal(usize, usize),
}

/// What happened in a run, in numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Lives that were declared dead.
    pub deaths: u64,
    /// Instances that were taken over.
    pub takeovers: u64,
    /// Offices that were taken.
    pub offices: u64,
}

/// Everything.
pub struct World {
    /// What is run.
    pub plan: Plan,
    /// All chance.
    pub rng: Rng,
    /// Microseconds since the beginning.
    pub now: u64,
    queue: BTreeMap<(u64, u64), Ev>,
    ties: u64,
    /// The times of leases.
    pub times: Times,
    /// The nodes.
    pub machines: Vec<Machine>,
    /// The network.
    pub net: Net,
    /// The log.
    pub raft: Raft,
    /// The disks.
    pub shared: Vec<Shared>,
    /// Disks whose content or members have changed in this step.
    pub touched: BTreeSet<usize>,
    /// How far a lease of a node in a life ever reached, by its own clock.
    pub leases: BTreeMap<(usize, Life), Now>,
    /// Until when storing entries of the log takes for ever, though nodes talk.
    pub log_slow: u64,
    /// Until when there is no room for an instance on another node.
    pub no_room: BTreeMap<model::InstanceId, u64>,
    /// Whether things go wrong.
    pub faults: bool,
    /// What happened.
    pub tally: Tally,
    /// A fingerprint of everything that happened.
    pub hash: u64,
    violation: Option<String>,
}

impl World {
    /// At the beginning: every node runs, has joined and is armed; no instance runs yet.
    ///
    /// # Errors
    /// What is wrong with the plan.
    pub fn new(plan: Plan) -> Result<Self, String> {
        let mut rng = Rng::new(plan.seed);
        let size = UNITS as u64 * UNIT;
        let times = Times::default();
        let state = cluster::founding(&plan, size).map_err(|rejection| rejection.to_string())?;
        let inc = state.incarnation;
        let count = plan.kinds.len();
        let mut machines: Vec<Machine> =
            (0..count).map(|_| Machine::new(Clock::new(&mut rng, times.rho_ppm))).collect();
        for disk in 0..plan.disks {
            for node in cluster::homes(&plan, disk) {
                let (of, rid) = (cluster::disk_id(disk), cluster::rid(disk, node));
                let superblock = Superblock::newborn(of, rid, size, inc, MirrorMode::Strict);
                machines[node].stores.insert(disk, Store::new(UNITS, superblock));
            }
        }
        let mut world = Self {
            rng,
            now: 0,
            queue: BTreeMap::new(),
            ties: 0,
            times,
            machines,
            net: Net::default(),
            raft: Raft::new(state, count),
            shared: (0..plan.disks).map(|_| Shared::new(UNITS)).collect(),
            touched: BTreeSet::new(),
            leases: BTreeMap::new(),
            log_slow: 0,
            no_room: BTreeMap::new(),
            faults: true,
            tally: Tally::default(),
            hash: 0xcbf2_9ce4_8422_2325,
            violation: None,
            plan,
        };
        for node in 0..count {
            world.start(node, Role::Guard);
            world.start(node, Role::Daemon);
            world.after(1_000 * node as u64, Ev::Raft(node));
        }
        world.after(2_500_000, Ev::Fault);
        Ok(world)
    }

    /// Something happens later.
    pub fn after(&mut self, micros: u64, ev: Ev) {
        self.ties += 1;
        self.queue.insert((self.now + micros, self.ties), ev);
    }

    /// A promise is broken.
    pub fn violate(&mut self, what: String) {
        if self.violation.is_none() {
            self.note(|| format!("VIOLATION: {what}"));
            self.violation = Some(format!("at {} µs: {what}", self.now));
        }
    }

    /// For the trace.
    pub fn note(&self, what: impl FnOnce() -> String) {
        if self.plan.trace {
            eprintln!("{:>10} {}", self.now, what());
        }
    }

    /// Runs to the end.
    ///
    /// # Errors
    /// The first promise that was broken, or what did not come in order again.
    pub fn run(mut self) -> Result<(u64, Tally), String> {
        let until = self.plan.faults_ms * 1000;
        while self.violation.is_none() && self.now < until {
            self.next();
        }
        self.heal();
        let limit = self.now + CONVERGE;
        let mut look_at = 0;
        while self.violation.is_none() {
            if self.now >= look_at {
                look_at = self.now + 20_000;
                match self.disorder() {
                    None => break,
                    Some(what) if self.now > limit => {
                        self.violate(format!("liveness: a minute after everything was healed, {what}"))
                    }
                    Some(_) => {}
                }
            }
            self.next();
        }
        match self.violation {
            Some(violation) => Err(violation),
            None => Ok((self.hash, self.tally)),
        }
    }

    /// Nothing goes wrong any more, and what went wrong is mended.
    fn heal(&mut self) {
        self.note(|| "healing".to_owned());
        self.faults = false;
        self.log_slow = 0;
        self.queue.retain(|_, ev| !matches!(ev, Ev::Cut(..)));
        for (from, to) in self.net.cut.clone() {
            self.after(0, Ev::Heal(from, to));
        }
        for node in 0..self.machines.len() {
            self.after(0, Ev::Boot(node));
            for role in [Role::Guard, Role::Daemon] {
                self.after(1, Ev::GoOn(node, role));
                self.after(2, Ev::Start(node, role));
            }
        }
    }

    fn next(&mut self) {
        let Some(((at, _), ev)) = self.queue.pop_first() else { return };
        self.now = at;
        self.hash = (self.hash ^ at).wrapping_mul(0x0000_0100_0000_01b3);
        match ev {
            Ev::At(node, role, start, input) => self.put(node, role, start, input),
            Ev::Arrive { from, to, role, message } => self.arrives(from, to, role, message),
            Ev::Raft(node) => self.raft_tick(node),
            Ev::Replicate(node) => self.replicate(node),
            Ev::Apply(node, upto) => self.apply(node, upto),
            Ev::Io(node, disk, start, id) => self.end_io(node, disk, start, id),
            Ev::Unknown(node, start, disk, id) => {
                if self.daemon_start(node) == start {
                    self.disk_proposed(node, disk, id, None);
                }
            }
            Ev::Connected(id) => self.connected(id),
            Ev::ConnectFailed(id) => self.end_side(id, 0),
            Ev::Parcel(id, from, parcel) => self.parcel_arrives(id, from, parcel),
            Ev::Guest(node, run) => self.guest_acts(node, run),
            Ev::Signal(node, boot, run, signal) => self.signalled(node, boot, run, signal),
            Ev::Fault => crate::faults::act(self),
            Ev::Start(node, role) => self.start(node, role),
            Ev::GoOn(node, role) => self.go_on(node, role),
            Ev::Boot(node) => self.boot(node),
            Ev::Cut(from, to) => {
                self.net.cut.insert((from, to));
            }
            Ev::Heal(from, to) => self.heal_cut(from, to),
        }
        if self.violation.is_none() {
            invariants::check(self);
        }
    }

    /// What is not in order. `None`: all nodes live, all replicas are in sync, every instance runs once and gets on, one node
    /// has the address, and the replicas are equal.
    fn disorder(&self) -> Option<String> {
        let state = &self.raft.state;
        for (id, node) in &state.nodes {
            let index = cluster::index(*id);
            if node.dead || node.boot != self.boot_of(index) {
                return Some(format!("node {index} has not joined: {node:?}"));
            }
        }
        for disk in 0..self.plan.disks {
            if !self.is_in_sync(disk) {
                return Some(format!("disk {disk} is not in sync: {:?}", crate::disk::mirror_in(state, disk)));
            }
            let guests: Vec<_> = self
                .machines
                .iter()
                .flat_map(|machine| &machine.guests)
                .filter(|(_, guest)| guest.disk == disk)
                .map(|(run, guest)| (*run, guest.runs()))
                .collect();
            let run = state.instances.get(&cluster::instance_id(disk)).and_then(|it| it.run);
            if guests.len() != 1 || guests.first().copied() != run.map(|run| (run, true)) {
                return Some(format!("of vm{} there is {guests:?}, the state has {run:?}", disk + 1));
            }
            if self.shared[disk].done <= 30 {
                return Some(format!("vm{} does not get on", disk + 1));
            }
        }
        let holders: Vec<usize> = (0..self.machines.len()).filter(|node| self.machines[*node].has_address).collect();
        if holders.len() != 1 || state.address_owner.map(cluster::index) != holders.first().copied() {
            return Some(format!("the address is on {holders:?}, the state has {:?}", state.address_owner));
        }
        None
    }
}
