//! Machines and their processes: how these begin, stand still and end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use ha::Now;
use model::{NodeId, RunId};

use crate::clock::Clock;
use crate::cluster::{boot_name, node_id};
use crate::daemon::{Daemon, Message, Token};
use crate::disk::Store;
use crate::guards::Watchman;
use crate::guest::Guest;
use crate::raft::Outcome;
use crate::world::{Ev, World};

/// Which of a node's two processes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The daemon.
    Daemon,
    /// The guard.
    Guard,
}

/// What a process is given.
#[derive(Clone, Debug)]
pub enum Input {
    /// Its timer.
    Tick,
    /// From a node.
    Message(usize, Message),
    /// From the other process on this node.
    Local(Local),
    /// For the replica of a disk.
    Disk(usize, mirror::engine::Event),
    /// A proposal made here was committed.
    Outcome(Token, Outcome),
    /// The leases of a master in that term are due.
    Leases(u64),
}

/// What the two processes of a node say to each other.
#[derive(Clone, Debug)]
pub enum Local {
    /// The daemon lives, and says who the node is.
    Daemon(Option<ha::guard::Identity>),
    /// A run is there; it is protected.
    Register(RunId),
    /// It is known to the guard.
    Registered(RunId),
    /// A guest's process has ended: what the guard sees by itself.
    Ended(RunId),
    /// The guard lives.
    Guard,
    /// The lease lasts that long.
    Lease(Now),
    /// Put the cluster's address on, as the master of that term.
    Address(u64),
}

/// One process in one of its starts.
pub struct Process<T> {
    /// Which start.
    pub start: u64,
    /// It was sent SIGSTOP.
    pub paused: bool,
    inbox: VecDeque<Input>,
    /// What it is.
    pub it: T,
}

/// A signal to a guest's process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It stands still.
    Stop,
    /// It goes on.
    Continue,
    /// It ends.
    Kill,
}

/// A node's hardware, kernel and processes.
pub struct Machine {
    /// Its clock.
    pub clock: Clock,
    /// It runs.
    pub up: bool,
    /// How often it was booted.
    pub boot: u64,
    starts: u64,
    /// Its daemon.
    pub daemon: Option<Process<Daemon>>,
    /// Its guard.
    pub guard: Option<Process<Watchman>>,
    /// Since when the guard has been running without a break; or since when not.
    pub guarded: (bool, u64),
    /// The same of the daemon.
    pub served: (bool, u64),
    /// The processes of guests.
    pub guests: BTreeMap<RunId, Guest>,
    /// Runs that were started in this boot.
    pub started: BTreeSet<RunId>,
    /// The cluster's address is on its interface.
    pub has_address: bool,
    /// Its replicas, by disk.
    pub stores: BTreeMap<usize, Store>,
    last_signal: u64,
}

impl Machine {
    /// One that is switched off.
    pub fn new(clock: Clock) -> Self {
        Self {
            clock,
            up: true,
            boot: 0,
            starts: 0,
            daemon: None,
            guard: None,
            guarded: (false, 0),
            served: (false, 0),
            guests: BTreeMap::new(),
            started: BTreeSet::new(),
            has_address: false,
            stores: BTreeMap::new(),
            last_signal: 0,
        }
    }
}

impl World {
    /// What a node's clock shows.
    pub fn clock(&self, node: usize) -> Now {
        self.machines[node].clock.show(self.now)
    }

    /// The name of a node's present boot.
    pub fn boot_of(&self, node: usize) -> String {
        boot_name(node, self.machines[node].boot)
    }

    /// A machine or both of its processes begin.
    pub fn start(&mut self, node: usize, role: Role) {
        let now = self.now;
        let voter = self.voter(node);
        let watchman = self.watchman(node);
        let machine = &mut self.machines[node];
        if !machine.up {
            return;
        }
        machine.starts += 1;
        let start = machine.starts;
        match role {
            Role::Daemon if machine.daemon.is_none() => {
                machine.served = (true, now);
                let it = Daemon::new(voter, now);
                machine.daemon = Some(Process { start, paused: false, inbox: VecDeque::new(), it });
                self.note(|| format!("node {node}: daemon start {start}"));
                self.raft_starts(node);
                self.open_disks(node, start);
            }
            Role::Guard if machine.guard.is_none() => {
                machine.guarded = (true, now);
                machine.guard = Some(Process { start, paused: false, inbox: VecDeque::new(), it: watchman });
                self.note(|| format!("node {node}: guard start {start}"));
            }
            _ => return,
        }
        self.put(node, role, Some(start), Input::Tick);
    }

    /// Gives a process something, if it still is the one that is meant: at once, or when it goes on.
    pub fn put(&mut self, node: usize, role: Role, start: Option<u64>, input: Input) {
        fn waits<T>(process: &mut Option<Process<T>>, start: Option<u64>, input: Input) -> Option<Input> {
            let process = process.as_mut().filter(|process| start.is_none_or(|start| process.start == start))?;
            if process.paused {
                process.inbox.push_back(input);
                return None;
            }
            Some(input)
        }
        let machine = &mut self.machines[node];
        match role {
            Role::Daemon => {
                if let Some(input) = waits(&mut machine.daemon, start, input) {
                    self.daemon_takes(node, input);
                }
            }
            Role::Guard => {
                if let Some(input) = waits(&mut machine.guard, start, input) {
                    self.guard_takes(node, input);
                }
            }
        }
    }

    /// What one process says to the other comes there, unless that one is gone.
    pub fn tell(&mut self, node: usize, role: Role, local: Local) {
        let delay = self.rng.range(50, 600);
        self.after(delay, Ev::At(node, role, None, Input::Local(local)));
    }

    /// SIGSTOP.
    pub fn pause(&mut self, node: usize, role: Role) {
        let now = self.now;
        let machine = &mut self.machines[node];
        let paused = match role {
            Role::Daemon => machine.daemon.as_mut().map(|process| std::mem::replace(&mut process.paused, true)),
            Role::Guard => machine.guard.as_mut().map(|process| std::mem::replace(&mut process.paused, true)),
        };
        if paused == Some(false) {
            match role {
                Role::Daemon => machine.served = (false, now),
                Role::Guard => machine.guarded = (false, now),
            }
            self.note(|| format!("node {node}: {role:?} stands still"));
        }
    }

    /// SIGCONT: it takes what has come meanwhile.
    pub fn go_on(&mut self, node: usize, role: Role) {
        let now = self.now;
        let machine = &mut self.machines[node];
        let (start, inbox) = match role {
            Role::Daemon => match machine.daemon.as_mut().filter(|process| process.paused) {
                Some(process) => {
                    process.paused = false;
                    machine.served = (true, now);
                    (process.start, std::mem::take(&mut process.inbox))
                }
                None => return,
            },
            Role::Guard => match machine.guard.as_mut().filter(|process| process.paused) {
                Some(process) => {
                    process.paused = false;
                    machine.guarded = (true, now);
                    (process.start, std::mem::take(&mut process.inbox))
                }
                None => return,
            },
        };
        self.note(|| format!("node {node}: {role:?} goes on"));
        for input in inbox {
            self.put(node, role, Some(start), input);
        }
    }

    /// SIGKILL of a process.
    pub fn kill(&mut self, node: usize, role: Role) {
        let now = self.now;
        let machine = &mut self.machines[node];
        match role {
            Role::Daemon => {
                if machine.daemon.take().is_none() {
                    return;
                }
                machine.served = (false, now);
                self.raft.step_down(node);
                self.close_disks(node, true);
            }
            Role::Guard => {
                if machine.guard.take().is_none() {
                    return;
                }
                machine.guarded = (false, now);
            }
        }
        self.note(|| format!("node {node}: {role:?} killed"));
    }

    /// The power goes.
    pub fn cut_power(&mut self, node: usize) {
        let now = self.now;
        let machine = &mut self.machines[node];
        if !machine.up {
            return;
        }
        machine.up = false;
        machine.daemon = None;
        machine.guard = None;
        machine.guarded = (false, now);
        machine.served = (false, now);
        machine.has_address = false;
        machine.guests.clear();
        machine.started.clear();
        self.raft.step_down(node);
        self.note(|| format!("node {node}: power lost"));
        self.lose_disks(node);
    }

    /// The power is back.
    pub fn boot(&mut self, node: usize) {
        if self.machines[node].up {
            return;
        }
        self.machines[node].up = true;
        self.machines[node].boot += 1;
        self.note(|| format!("node {node}: booted"));
        self.start(node, Role::Guard);
        self.start(node, Role::Daemon);
    }

    /// Signals come in the order in which they were sent, within the guard's slack.
    pub fn signal(&mut self, node: usize, runs: impl IntoIterator<Item = RunId>, signal: Signal) {
        let delay = if self.rng.chance(90) { self.rng.range(20, 5_000) } else { self.rng.range(5_000, 140_000) };
        let at = (self.now + delay).max(self.machines[node].last_signal);
        self.machines[node].last_signal = at;
        for run in runs {
            let boot = self.machines[node].boot;
            self.after(at - self.now, Ev::Signal(node, boot, run, signal));
        }
    }

    /// A signal takes effect.
    pub fn signalled(&mut self, node: usize, boot: u64, run: RunId, signal: Signal) {
        let machine = &mut self.machines[node];
        let Some(guest) = machine.guests.get_mut(&run).filter(|_| machine.boot == boot && machine.up) else { return };
        self.hash = self.hash.rotate_left(1) ^ run.0;
        match signal {
            Signal::Stop => guest.stopped = true,
            Signal::Continue => guest.stopped = false,
            Signal::Kill => {
                machine.guests.remove(&run);
                self.tell(node, Role::Guard, Local::Ended(run));
            }
        }
        self.note(|| format!("node {node}: run {run}: {signal:?}"));
    }

    /// The node, in the life that it has in the present boot as its daemon knows it.
    pub fn own_life(&self, node: usize) -> Option<model::NodeLife> {
        let id: NodeId = node_id(node);
        let it = self.raft.members[node].state.nodes.get(&id)?;
        (it.boot == self.boot_of(node)).then_some(model::NodeLife { node: id, life: it.life })
    }
}
