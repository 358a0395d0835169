//! Raft behind an oracle: terms, elections with bounded timeouts, commits that need a majority which is connected. What a
//! leader had under way when it was deposed takes effect under the next one, or does not.

use std::collections::BTreeSet;

use model::{Applied, Proposal, Rejection, State};

use crate::cluster;
use crate::daemon::Token;
use crate::invariants;
use crate::node::{Input, Role};
use crate::world::{Ev, World};

/// How a proposal ended.
pub type Outcome = Result<Vec<Applied>, Rejection>;

/// Longest that a leader goes on without a majority (rule L10), microseconds.
const LONELY: u64 = 1_300_000;
/// Shortest election timeout, microseconds.
const TIMEOUT: u64 = 300_000;

/// A node's part.
#[derive(Debug, Default)]
pub struct Member {
    /// Its durable term.
    pub term: u64,
    /// How much of the log its store has.
    has: usize,
    /// How much of the log it has applied.
    pub applied: usize,
    /// What that gives.
    pub state: State,
    /// It believes to lead.
    pub leader: Option<Leader>,
    /// Who leads, as far as it knows.
    pub hint: Option<usize>,
    heard: u64,
    timeout: u64,
}

/// What a leader has under way.
#[derive(Debug)]
pub struct Leader {
    /// Its term.
    pub term: u64,
    /// When a majority last followed it.
    pub followed: u64,
    pending: Vec<Pending>,
}

#[derive(Debug)]
struct Pending {
    proposal: Proposal,
    /// Who asked: a start of the leader's daemon, and what it will know it by.
    asked: Option<(u64, Token)>,
    stored: BTreeSet<usize>,
}

/// The log, as it is committed, and what each node has of it.
#[derive(Debug)]
pub struct Raft {
    log: Vec<Proposal>,
    /// The state after the whole log.
    pub state: State,
    /// The nodes' parts.
    pub members: Vec<Member>,
    /// What leaders had under way that are none any more, by term; the next election decides it.
    orphans: Vec<(u64, Vec<Pending>)>,
}

impl Raft {
    /// Every node has this state.
    pub fn new(state: State, nodes: usize) -> Self {
        let member = |_| Member { term: 1, state: state.clone(), ..Member::default() };
        Self { log: Vec::new(), members: (0..nodes).map(member).collect(), state, orphans: Vec::new() }
    }

    /// Entries that are committed.
    pub fn len(&self) -> usize {
        self.log.len()
    }

    fn is_majority(&self, count: usize) -> bool {
        count * 2 > self.members.len()
    }

    /// A leader steps down, or its daemon ends.
    pub fn step_down(&mut self, node: usize) {
        if let Some(leader) = self.members[node].leader.take() {
            self.orphans.push((leader.term, leader.pending));
        }
    }
}

impl World {
    /// A node's clock of Raft.
    pub fn raft_tick(&mut self, node: usize) {
        let pause = self.rng.range(15_000, 40_000);
        self.after(pause, Ev::Raft(node));
        if !self.is_awake(node) {
            return;
        }
        if self.raft.members[node].leader.is_some() {
            self.replicate(node);
            self.hand_leadership_on(node);
        } else {
            let member = &self.raft.members[node];
            if self.now >= member.heard + member.timeout {
                self.campaign(node, false);
            }
        }
    }

    /// A daemon has started: it waits before it campaigns.
    pub fn raft_starts(&mut self, node: usize) {
        self.raft.step_down(node);
        let timeout = self.timeout(node);
        let member = &mut self.raft.members[node];
        member.heard = self.now;
        member.timeout = timeout;
        member.hint = None;
    }

    fn timeout(&mut self, node: usize) -> u64 {
        let timeout = self.rng.range(TIMEOUT, 450_000);
        if cluster::is_witness(&self.plan, node) { timeout * 3 } else { timeout }
    }

    /// Its daemon runs, and is not stopped.
    fn is_awake(&self, node: usize) -> bool {
        self.machines[node].daemon.as_ref().is_some_and(|daemon| !daemon.paused)
    }

    fn are_linked(&self, one: usize, other: usize) -> bool {
        one == other || !self.is_cut(one, other) && !self.is_cut(other, one)
    }

    /// Something to commit. Nothing happens at a node that does not lead.
    pub fn propose(&mut self, node: usize, proposal: Proposal, start: u64, token: Token) {
        if let Some(leader) = &mut self.raft.members[node].leader {
            leader.pending.push(Pending { proposal, asked: Some((start, token)), stored: BTreeSet::from([node]) });
            let delay = self.delay();
            self.after(delay, Ev::Replicate(node));
        }
    }

    /// A leader's heartbeat, with everything that it has under way.
    pub fn replicate(&mut self, node: usize) {
        let Some(term) = self.raft.members[node].leader.as_ref().map(|leader| leader.term) else { return };
        if !self.is_awake(node) {
            return;
        }
        let mut follow = BTreeSet::from([node]);
        let mut reached = BTreeSet::from([node]);
        for other in (0..self.machines.len()).filter(|other| *other != node) {
            if !self.is_awake(other) || self.is_cut(node, other) {
                continue;
            }
            let its = self.raft.members[other].term;
            if its > term {
                if !self.is_cut(other, node) {
                    self.raft.members[node].term = its;
                    self.raft.step_down(node);
                    return;
                }
                continue;
            }
            if its < term {
                self.raft.step_down(other);
            }
            let member = &mut self.raft.members[other];
            member.term = term;
            member.heard = self.now;
            member.hint = Some(node);
            reached.insert(other);
            if !self.is_cut(other, node) {
                follow.insert(other);
            }
        }
        let now = self.now;
        let enough = self.raft.is_majority(follow.len());
        let Some(leader) = &mut self.raft.members[node].leader else { return };
        if !enough {
            leader.pending.iter_mut().for_each(|pending| pending.stored.extend(&reached));
            if now > leader.followed + LONELY {
                self.raft.step_down(node);
            }
            return;
        }
        leader.followed = now;
        if now < self.log_slow {
            leader.pending.iter_mut().for_each(|pending| pending.stored.extend(&reached));
            return;
        }
        for Pending { proposal, asked, .. } in std::mem::take(&mut leader.pending) {
            self.commit(node, proposal, asked);
        }
        let upto = self.raft.len();
        for other in reached {
            self.raft.members[other].has = upto;
            if other != node && self.raft.members[other].applied < upto {
                let delay = self.delay();
                self.after(delay, Ev::Apply(other, upto));
            }
        }
        self.apply(node, upto);
    }

    fn commit(&mut self, node: usize, proposal: Proposal, asked: Option<(u64, Token)>) {
        let outcome = self.raft.state.apply(&proposal);
        self.note(|| format!("log {}: {:?}: {outcome:?}", self.raft.len(), proposal.commands));
        self.raft.log.push(proposal.clone());
        if outcome.is_ok() {
            invariants::committed(self, &proposal);
        }
        // The leader applies an entry before it answers.
        self.apply(node, self.raft.len());
        if let Some((start, token)) = asked {
            self.put(node, Role::Daemon, Some(start), Input::Outcome(token, outcome));
        }
    }

    /// A node applies what is committed.
    pub fn apply(&mut self, node: usize, upto: usize) {
        if !self.is_awake(node) {
            return;
        }
        let member = &mut self.raft.members[node];
        let upto = upto.min(member.has.max(member.applied)).max(member.applied);
        let upto = if member.leader.is_some() { self.raft.log.len() } else { upto };
        if member.applied >= upto {
            return;
        }
        for proposal in &self.raft.log[member.applied..upto] {
            // What was rejected is rejected everywhere.
            let _ = member.state.apply(proposal);
        }
        member.applied = upto;
        self.state_changed(node);
    }

    /// `forced`: its leader asks it to.
    fn campaign(&mut self, node: usize, forced: bool) {
        let timeout = self.timeout(node);
        self.raft.members[node].timeout = timeout;
        self.raft.members[node].heard = self.now;
        let votes = |other: &usize| {
            let member = &self.raft.members[*other];
            let follows = match &member.leader {
                Some(leader) => self.now < leader.followed + TIMEOUT,
                None => self.now < member.heard + TIMEOUT,
            };
            let quiet = *other == node || forced || !follows;
            self.is_awake(*other) && self.are_linked(node, *other) && quiet && member.has <= self.raft.members[node].has
        };
        let voters: Vec<usize> = (0..self.machines.len()).filter(votes).collect();
        if !self.raft.is_majority(voters.len()) {
            return;
        }
        let term = voters.iter().map(|voter| self.raft.members[*voter].term).max().unwrap_or_default() + 1;
        for voter in &voters {
            self.raft.step_down(*voter);
            let member = &mut self.raft.members[*voter];
            member.term = term;
            member.heard = self.now;
            member.hint = Some(node);
        }
        let pending = self.inherit(node);
        self.note(|| format!("node {node} leads in term {term}, elected by {voters:?}, inherits {}", pending.len()));
        self.raft.members[node].leader = Some(Leader { term, followed: self.now, pending });
        let delay = self.delay();
        self.after(delay, Ev::Replicate(node));
    }

    /// What an older leader had under way and this node's store has; the rest never takes effect.
    fn inherit(&mut self, node: usize) -> Vec<Pending> {
        for other in 0..self.raft.members.len() {
            if let Some(leader) = &mut self.raft.members[other].leader {
                let (term, pending) = (leader.term, std::mem::take(&mut leader.pending));
                self.raft.orphans.push((term, pending));
            }
        }
        let mut orphans = std::mem::take(&mut self.raft.orphans);
        orphans.retain(|(_, pending)| pending.first().is_some_and(|first| first.stored.contains(&node)));
        let Some((_, pending)) = orphans.into_iter().max_by_key(|(term, _)| *term) else { return Vec::new() };
        let stored = |pending: &Pending| pending.stored.contains(&node);
        let kept = pending.into_iter().take_while(stored);
        kept.map(|pending| Pending { asked: None, ..pending }).collect()
    }

    /// A witness that was elected only keeps the log until another can lead.
    fn hand_leadership_on(&mut self, node: usize) {
        if !cluster::is_witness(&self.plan, node) || self.raft.members[node].leader.is_none() {
            return;
        }
        let upto = self.raft.len();
        let able = |other: &usize| {
            !cluster::is_witness(&self.plan, *other)
                && self.is_awake(*other)
                && self.are_linked(node, *other)
                && self.raft.members[*other].has == upto
        };
        if let Some(next) = (0..self.machines.len()).find(able) {
            self.campaign(next, true);
        }
    }

    /// Up to where a node has to apply the log to see everything that was committed before now. `None`: nobody could tell it.
    pub fn barrier(&self, node: usize) -> Option<usize> {
        let leads = |other: &usize| self.raft.members[*other].leader.is_some() && self.is_awake(*other);
        let leader = (0..self.machines.len()).filter(leads).max_by_key(|other| self.raft.members[*other].term)?;
        let term = self.raft.members[leader].leader.as_ref()?.term;
        let follows = |other: &usize| {
            self.is_awake(*other) && self.are_linked(leader, *other) && self.raft.members[*other].term <= term
        };
        let follow = (0..self.machines.len()).filter(follows).count();
        (self.are_linked(node, leader) && self.raft.is_majority(follow)).then(|| self.raft.len())
    }
}
