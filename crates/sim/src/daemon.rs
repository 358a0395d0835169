//! The daemon: it votes, follows the log, has the replicas, and looks after guests: what an agent does.

use std::collections::{BTreeMap, BTreeSet};

use ha::Now;
use ha::guard::Identity;
use ha::message::{Answer, Confirm, Fence, Renew};
use ha::voter::Voter;
use mirror::engine::{Event, ProposalId};
use model::{Command, Incarnation, InstanceId, Life, NodeLife, Proposal, RunId, Timestamp};

use crate::cluster::{instance_id, node_id};
use crate::guest::Guest;
use crate::node::{Input, Local, Role, Signal};
use crate::office::Office;
use crate::raft::Outcome;
use crate::world::{Ev, World};

/// How long a guest is suspended before it is given up, microseconds.
const SUSPENDED: u64 = 3_000_000;

/// What nodes say to each other.
#[derive(Clone, Debug)]
pub enum Message {
    /// A guard asks, in this start of it.
    Renew(Renew, u64),
    /// It is answered.
    Answer {
        /// The start that asked.
        start: u64,
        /// The request.
        q: u64,
        /// The answer.
        answer: Answer,
    },
    /// A master asks for a round.
    Confirm(Confirm),
    /// A voter confirms it.
    Confirmed(Confirm),
    /// A master asks after older ones.
    Fence(Fence),
    /// A voter answers.
    Fenced(Fence, Now),
    /// A master orders a run to be started.
    Start(InstanceId, RunId),
    /// What runs on a node, and what has ended there.
    Report {
        /// Processes that exist.
        runs: BTreeSet<RunId>,
        /// Runs that are this node's by the state, and whose processes have ended.
        ended: BTreeSet<RunId>,
    },
    /// Something to commit, for a daemon in one of its starts.
    Propose(Box<Proposal>, u64, Token),
    /// It was committed.
    Proposed(u64, Token, Outcome),
}

/// By what who proposes knows what he proposed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// A node's join.
    Join,
    /// A disk's command.
    Disk(usize, ProposalId),
    /// The death of a life.
    Condemn(NodeLife),
    /// Anything else of the master; it looks at the state.
    Office,
    /// Of a daemon on another node.
    Remote(usize, u64, Box<Token>),
}

/// A daemon's memory.
pub struct Daemon {
    /// Its vote.
    pub voter: Voter,
    /// Until when the node has a lease, as the guard said.
    pub until: Now,
    /// What the disks were told of it.
    lease: bool,
    /// When the guard was last heard.
    guard_heard: u64,
    /// Runs that the guard has acknowledged; of the guard in this start.
    registered: (u64, BTreeSet<RunId>),
    /// From where on the log is behind nothing that was committed before this daemon started.
    barrier: Option<usize>,
    /// When it may join again.
    join_at: u64,
    /// Proposals of disks that were not answered yet.
    pub proposals: BTreeSet<(usize, ProposalId)>,
    /// What it does as the master.
    pub office: Option<Office>,
    report_at: u64,
    /// Since when disks have been suspended.
    suspended: BTreeMap<usize, u64>,
    /// The newest lives and modes that its disks were told.
    told: Option<Life>,
}

impl Daemon {
    /// One that has just started.
    pub fn new(voter: Voter, now: u64) -> Self {
        Self {
            voter,
            until: Now::ZERO,
            lease: false,
            guard_heard: now,
            registered: (0, BTreeSet::new()),
            barrier: None,
            join_at: 0,
            proposals: BTreeSet::new(),
            office: None,
            report_at: 0,
            suspended: BTreeMap::new(),
            told: None,
        }
    }
}

impl World {
    /// Of a process that has just started.
    pub fn voter(&self, node: usize) -> Voter {
        let voter = Voter::new(self.clock(node));
        #[cfg(feature = "mutants")]
        let voter = voter.with(self.plan.mutant);
        voter
    }

    /// A daemon in its present start.
    pub fn daemon(&mut self, node: usize) -> Option<&mut Daemon> {
        self.machines[node].daemon.as_mut().map(|process| &mut process.it)
    }

    /// Its start.
    pub fn daemon_start(&self, node: usize) -> u64 {
        self.machines[node].daemon.as_ref().map_or(0, |process| process.start)
    }

    /// The incarnation of the cluster.
    pub fn inc(&self) -> Incarnation {
        self.raft.state.incarnation
    }

    /// It takes something.
    pub fn daemon_takes(&mut self, node: usize, input: Input) {
        match input {
            Input::Tick => self.daemon_ticks(node),
            Input::Message(from, message) => self.daemon_hears(node, from, message),
            Input::Local(local) => self.daemon_is_told(node, local),
            Input::Disk(disk, event) => self.disk_takes(node, disk, event),
            Input::Outcome(token, outcome) => self.proposed(node, token, outcome),
            Input::Leases(term) => self.leases_due(node, term),
        }
    }

    fn daemon_is_told(&mut self, node: usize, local: Local) {
        let now = self.now;
        let guard = self.machines[node].guard.as_ref().map_or(0, |process| process.start);
        let Some(daemon) = self.daemon(node) else { return };
        match local {
            Local::Guard => daemon.guard_heard = now,
            Local::Lease(until) => daemon.until = until,
            Local::Registered(run) => {
                if daemon.registered.0 != guard {
                    daemon.registered = (guard, BTreeSet::new());
                }
                daemon.registered.1.insert(run);
            }
            _ => {}
        }
        self.look_after_guests(node);
    }

    fn daemon_hears(&mut self, node: usize, from: usize, message: Message) {
        let now = self.clock(node);
        let (term, inc) = (self.raft.members[node].term, self.inc());
        let hint = self.raft.members[node].hint.map(node_id);
        match message {
            Message::Renew(renew, start) => {
                let in_office = self.daemon(node).is_some_and(|daemon| daemon.office.is_some());
                if in_office {
                    return self.office_is_asked(node, renew, start);
                }
                let (q, answer) = (renew.q, Answer::NotMaster(hint));
                self.send(node, from, Role::Guard, Message::Answer { start, q, answer });
            }
            Message::Confirm(confirm) => {
                let Some(daemon) = self.daemon(node) else { return };
                if confirm.inc == inc && daemon.voter.confirm(confirm.term, term, now) {
                    self.send(node, from, Role::Daemon, Message::Confirmed(confirm));
                }
            }
            Message::Fence(fence) => {
                let Some(daemon) = self.daemon(node) else { return };
                if let Some(age) = daemon.voter.fence(fence.term, term, now) {
                    let age = Now::from_millis(age.as_millis() as u64);
                    self.send(node, from, Role::Daemon, Message::Fenced(fence, age));
                }
            }
            Message::Start(instance, run) => self.start_run(node, instance, run),
            Message::Propose(proposal, start, token) => {
                let token = Token::Remote(from, start, Box::new(token));
                let own = self.daemon_start(node);
                self.propose(node, *proposal, own, token);
            }
            Message::Proposed(start, token, outcome) => {
                self.put(node, Role::Daemon, Some(start), Input::Outcome(token, outcome));
            }
            Message::Confirmed(_) | Message::Fenced(..) | Message::Report { .. } => {
                self.office_hears(node, from, message)
            }
            Message::Answer { .. } => {}
        }
    }

    /// A proposal for whoever leads, as far as this node knows.
    pub fn ask_to_commit(&mut self, node: usize, commands: Vec<Command>, office: Option<u64>, token: Token) {
        let proposal = Proposal { incarnation: self.inc(), office, at: Timestamp(self.now), commands };
        let start = self.daemon_start(node);
        match self.raft.members[node].hint {
            Some(leader) if leader == node => self.propose(node, proposal, start, token),
            Some(leader) => self.send(node, leader, Role::Daemon, Message::Propose(Box::new(proposal), start, token)),
            None => {}
        }
    }

    fn proposed(&mut self, node: usize, token: Token, outcome: Outcome) {
        match token {
            Token::Remote(from, start, token) => {
                self.send(node, from, Role::Daemon, Message::Proposed(start, *token, outcome));
            }
            Token::Disk(disk, id) => self.disk_proposed(node, disk, id, Some(outcome)),
            Token::Condemn(life) => self.sentence_ended(node, life, &outcome),
            Token::Join | Token::Office => {}
        }
    }

    fn daemon_ticks(&mut self, node: usize) {
        let pause = self.rng.range(10_000, 30_000);
        let start = self.daemon_start(node);
        self.after(pause, Ev::At(node, Role::Daemon, Some(start), Input::Tick));
        if self.daemon(node).is_some_and(|daemon| daemon.barrier.is_none())
            && let Some(barrier) = self.barrier(node)
            && let Some(daemon) = self.daemon(node)
        {
            daemon.barrier = Some(barrier);
        }
        self.watch_guard(node);
        self.apply_lease(node);
        self.live(node);
        self.look_after_guests(node);
        self.report(node);
        self.office_ticks(node);
    }

    /// Whether it has applied everything that was committed before it started.
    pub fn is_current(&self, node: usize) -> bool {
        let barrier = self.machines[node].daemon.as_ref().and_then(|daemon| daemon.it.barrier);
        barrier.is_some_and(|barrier| self.raft.members[node].applied >= barrier)
    }

    /// The guard and the daemon look after each other (L9).
    fn watch_guard(&mut self, node: usize) {
        let identity = self.own_life(node).map(|own| Identity { inc: self.inc(), node: own.node, life: own.life });
        self.tell(node, Role::Guard, Local::Daemon(identity));
        let now = self.now;
        let silence = self.times.guard_silence.as_micros() as u64;
        let Some(daemon) = self.daemon(node) else { return };
        if now < daemon.guard_heard + silence {
            return;
        }
        daemon.guard_heard = now;
        self.note(|| format!("node {node}: the guard is silent"));
        let runs: Vec<RunId> = self.machines[node].guests.keys().copied().collect();
        self.signal(node, runs, Signal::Stop);
        self.kill(node, Role::Guard);
        let delay = self.rng.range(10_000, 100_000);
        self.after(delay, Ev::Start(node, Role::Guard));
    }

    /// The disks answer reads only while the lease holds (R2).
    pub fn apply_lease(&mut self, node: usize) {
        let now = self.clock(node);
        let Some(daemon) = self.daemon(node) else { return };
        let holds = now < daemon.until;
        if std::mem::replace(&mut daemon.lease, holds) != holds {
            self.every_disk(node, |_| Event::Lease(holds));
        }
    }

    /// The newest state was applied.
    pub fn state_changed(&mut self, node: usize) {
        self.show_disks(node);
        self.office_sees(node);
    }

    /// The node's life: it joins in a new boot, and when its life was declared dead; guests that the state does not give to it
    /// are ended first.
    fn live(&mut self, node: usize) {
        if !self.is_current(node) {
            return;
        }
        let (id, boot, inc_now) = (node_id(node), self.boot_of(node), self.now);
        let state = &self.raft.members[node].state;
        let Some(it) = state.nodes.get(&id) else { return };
        let (life, alive) = (it.life, it.boot == boot && !it.dead);
        let own = |run: &RunId| {
            state
                .instances
                .values()
                .any(|instance| instance.run == Some(*run) && instance.owner == Some(NodeLife { node: id, life }))
        };
        let machine = &self.machines[node];
        let lost: Vec<RunId> = machine.guests.keys().filter(|run| !own(run)).copied().collect();
        let runs: Vec<RunId> = machine.guests.keys().copied().collect();
        if !lost.is_empty() {
            self.note(|| format!("node {node}: ends {lost:?}, which are not its any more"));
            self.signal(node, lost, Signal::Kill);
            return;
        }
        if alive {
            if self.daemon(node).is_some_and(|daemon| daemon.told.replace(life) != Some(life)) {
                self.every_disk(node, |_| Event::Life(life));
                // Hypervisors are connected anew: what was begun in a life that ended is never answered.
                for disk in 0..self.plan.disks {
                    crate::guest::resend(self, node, disk);
                }
            }
            return;
        }
        let Some(daemon) = self.daemon(node).filter(|daemon| inc_now >= daemon.join_at) else { return };
        daemon.join_at = inc_now + 300_000;
        let join = Command::JoinNode { node: id, boot, previous: life, runs };
        self.ask_to_commit(node, vec![join], None, Token::Join);
    }

    /// Guests are registered at the guard, and go on when their disks are there and the lease holds.
    fn look_after_guests(&mut self, node: usize) {
        let guard = self.machines[node].guard.as_ref().map_or(0, |process| process.start);
        let Some(daemon) = self.daemon(node) else { return };
        let holds_until = daemon.until;
        let registered = match daemon.registered.0 == guard {
            true => daemon.registered.1.clone(),
            false => BTreeSet::new(),
        };
        let holds = self.clock(node) < holds_until;
        let guests: BTreeMap<RunId, (usize, bool)> =
            self.machines[node].guests.iter().map(|(run, guest)| (*run, (guest.disk, guest.begun))).collect();
        for (run, (disk, begun)) in guests {
            if !registered.contains(&run) {
                self.tell(node, Role::Guard, Local::Register(run));
            } else if !begun && holds && self.is_served(node, disk, run) {
                self.guest_begins(node, run);
            }
            self.promote(node, disk, run);
            self.give_up(node, disk, run);
        }
    }

    /// A guest whose only member has lost what it had answered can't go on: it is ended, and started where the member is.
    fn give_up(&mut self, node: usize, disk: usize, run: RunId) {
        let (now, suspended) = (self.now, self.is_suspended(node, disk));
        let Some(daemon) = self.daemon(node) else { return };
        if !suspended {
            daemon.suspended.remove(&disk);
        } else if now > *daemon.suspended.entry(disk).or_insert(now) + SUSPENDED {
            daemon.suspended.remove(&disk);
            self.note(|| format!("node {node}: run {run} is given up, its last member is lost"));
            self.signal(node, [run], Signal::Kill);
        }
    }

    /// A master's order.
    fn start_run(&mut self, node: usize, instance: InstanceId, run: RunId) {
        let Some(own) = self.own_life(node).filter(|_| self.is_current(node)) else { return };
        let state = &self.raft.members[node].state;
        let given = state.instances.get(&instance).is_some_and(|it| it.run == Some(run) && it.owner == Some(own));
        let dead = state.nodes.get(&own.node).is_none_or(|it| it.dead);
        let Some(disk) = (0..self.plan.disks).find(|disk| instance_id(*disk) == instance) else { return };
        let machine = &mut self.machines[node];
        let busy = machine.guests.values().any(|guest| guest.disk == disk);
        if !given || dead || busy || !machine.started.insert(run) {
            return;
        }
        machine.guests.insert(run, Guest::new(disk));
        self.note(|| format!("node {node}: run {run} of vm{} is started", disk + 1));
        self.tell(node, Role::Guard, Local::Register(run));
        self.look_after_guests(node);
    }

    fn report(&mut self, node: usize) {
        let now = self.now;
        let Some(daemon) = self.daemon(node).filter(|daemon| now >= daemon.report_at) else { return };
        daemon.report_at = now + 80_000;
        let (Some(own), Some(master)) = (self.own_life(node), self.raft.members[node].hint) else { return };
        let machine = &self.machines[node];
        let runs: BTreeSet<RunId> = machine.guests.keys().copied().collect();
        let state = &self.raft.members[node].state;
        let mine = state.instances.values().filter(|it| it.owner == Some(own)).filter_map(|it| it.run);
        let ended = mine.filter(|run| machine.started.contains(run) && !runs.contains(run)).collect();
        self.send(node, master, Role::Daemon, Message::Report { runs, ended });
    }
}
