//! The master: office, leases, deaths and takeovers, starting what should run, the cluster's address. What the real daemon
//! does around `ha::grants` and `ha::takeover`, without its jobs.

use std::collections::{BTreeMap, BTreeSet};

use ha::grants::{Effect, Event, Grants, Standing};
use ha::message::{Answer, Confirm, Fence, Grant, Renew};
use model::{AdminState, Command, InstanceId, NodeId, NodeLife, RunId, State};

use crate::cluster::{index, node_id, voters};
use crate::daemon::{Message, Token};
use crate::node::{Input, Local, Role};
use crate::raft::Outcome;
use crate::world::{Ev, World};

/// How long something that was asked for is waited for, microseconds.
const PATIENCE: u64 = 250_000;

/// A term's office.
pub struct Office {
    term: u64,
    grants: Grants,
    /// Requests of guards: which start of which node's guard.
    asked: BTreeMap<(NodeId, u64), u64>,
    /// The office entry was applied.
    taken: bool,
    /// What nodes said that they run, and when.
    reports: BTreeMap<NodeId, (u64, BTreeSet<RunId>, BTreeSet<RunId>)>,
    /// When something was last done about an instance.
    busy: BTreeMap<InstanceId, u64>,
    address_at: u64,
    take_at: u64,
    tick_at: u64,
}

impl World {
    fn office(&mut self, node: usize) -> Option<&mut Office> {
        self.daemon(node)?.office.as_mut()
    }

    /// Begins or ends an office as the log wants it, and does what is due.
    pub fn office_ticks(&mut self, node: usize) {
        let leads = self.raft.members[node].leader.as_ref().map(|leader| leader.term);
        let may = !crate::cluster::is_witness(&self.plan, node);
        let (now, clock, times, inc) = (self.now, self.clock(node), self.times, self.inc());
        #[cfg(feature = "mutants")]
        let mutant = self.plan.mutant;
        let Some(daemon) = self.daemon(node) else { return };
        let term = daemon.office.as_ref().map(|office| office.term);
        if term != leads.filter(|_| may) {
            let begun = leads.filter(|_| may).map(|term| {
                let grants = Grants::new(times, inc, clock);
                #[cfg(feature = "mutants")]
                let grants = grants.with(mutant);
                Office {
                    term,
                    grants,
                    asked: BTreeMap::new(),
                    taken: false,
                    reports: BTreeMap::new(),
                    busy: BTreeMap::new(),
                    address_at: 0,
                    take_at: 0,
                    tick_at: 0,
                }
            });
            let over = begun.is_none();
            daemon.office = begun;
            if over {
                self.machines[node].has_address = false;
                return;
            }
            let everybody = voters(&self.plan);
            self.leases_step(node, Event::Voters(vec![everybody]));
        }
        let Some(office) = self.office(node) else { return };
        let term = office.term;
        if !office.taken {
            if now >= office.take_at {
                office.take_at = now + PATIENCE;
                let take = Command::TakeOffice { node: node_id(node), term };
                self.ask_to_commit(node, vec![take], Some(term), Token::Office);
            }
            self.office_sees(node);
            return;
        }
        self.sweep(node, term);
        self.mind_address(node, term);
    }

    /// The master has applied something.
    pub fn office_sees(&mut self, node: usize) {
        let state = &self.raft.members[node].state;
        let in_office = state.office.filter(|office| office.node == node_id(node)).map(|office| office.term);
        let standing = |(id, it): (&NodeId, &model::Node)| {
            (*id, Standing { life: it.life, dead: it.dead, armed: it.armed && *id != node_id(node) })
        };
        let nodes: BTreeMap<NodeId, Standing> = state.nodes.iter().map(standing).collect();
        let Some(office) = self.office(node) else { return };
        if in_office == Some(office.term) {
            office.taken = true;
            self.leases_step(node, Event::Nodes(nodes));
        }
    }

    /// A guard asks.
    pub fn office_is_asked(&mut self, node: usize, renew: Renew, start: u64) {
        if let Some(office) = self.office(node) {
            office.asked.insert((renew.node, renew.q), start);
            if office.asked.len() > 500 {
                office.asked.pop_first();
            }
            self.leases_step(node, Event::Renew(renew));
        }
    }

    /// Others answer the master.
    pub fn office_hears(&mut self, node: usize, from: usize, message: Message) {
        let now = self.now;
        let Some(office) = self.office(node) else { return };
        let term = office.term;
        match message {
            Message::Confirmed(confirm) if confirm.term == term => {
                self.leases_step(node, Event::Confirmed { voter: node_id(from), round: confirm.round });
            }
            Message::Fenced(fence, age) if fence.term == term => {
                self.leases_step(node, Event::Fenced { voter: node_id(from), age });
            }
            Message::Report { runs, ended } => {
                office.reports.insert(node_id(from), (now, runs, ended));
            }
            _ => {}
        }
    }

    /// Time for the leases.
    pub fn leases_due(&mut self, node: usize, term: u64) {
        if self.office(node).is_some_and(|office| office.term == term) {
            self.leases_step(node, Event::Tick);
        }
    }

    fn leases_step(&mut self, node: usize, event: Event) {
        let (now, clock) = (self.now, self.clock(node));
        let Some(office) = self.office(node) else { return };
        let mut out = Vec::new();
        office.grants.step(clock, event, &mut out);
        let (term, next) = (office.term, office.grants.next());
        if let Some(next) = next {
            let due = now + self.machines[node].clock.until(next, now);
            let start = self.daemon_start(node);
            if let Some(office) = self.office(node)
                && (due < office.tick_at || office.tick_at <= now)
            {
                office.tick_at = due;
                self.after(due - now, Ev::At(node, Role::Daemon, Some(start), Input::Leases(term)));
            }
        }
        for effect in out {
            self.leases_want(node, term, effect);
        }
    }

    fn leases_want(&mut self, node: usize, term: u64, effect: Effect) {
        let inc = self.inc();
        match effect {
            Effect::Confirm { round } => {
                for voter in voters(&self.plan) {
                    self.send(node, index(voter), Role::Daemon, Message::Confirm(Confirm { inc, term, round }));
                }
            }
            Effect::Fence { voters } => {
                for voter in voters {
                    self.send(node, index(voter), Role::Daemon, Message::Fence(Fence { inc, term }));
                }
            }
            Effect::Grant { node: to, life, q } => {
                let own = NodeLife { node: to, life };
                let instances = self.raft.members[node].state.instances.values();
                let runs = instances.filter(|it| it.owner == Some(own)).filter_map(|it| it.run).collect();
                let lease_ms = self.times.lease.as_millis() as u32;
                let grant = Grant { inc, term, life, q, lease_ms, master: node_id(node), runs };
                self.answer_guard(node, to, q, Answer::Granted(grant));
            }
            Effect::Refuse { node: to, q, now } => self.answer_guard(node, to, q, Answer::Ended { now, term }),
            Effect::Condemn { node: dead, life, evidence } => {
                self.note(|| format!("master {node}: node {} in life {life} is condemned: {evidence:?}", index(dead)));
                let mut next = self.raft.members[node].state.after_death(dead);
                next.history = Default::default();
                let mut commands = vec![Command::NodeDead { node: dead, life, evidence }];
                for choice in ha::takeover::plan(&next, &BTreeMap::new()) {
                    // Sometimes there is no room for it, and it may be that its node is back before there is.
                    if self.faults && self.rng.chance(20) {
                        let wait = self.now + self.rng.range(100_000, 5_000_000);
                        self.no_room.insert(choice.instance, wait);
                    } else if let Ok((to, reason)) = choice.to {
                        commands.push(Command::Takeover { instance: choice.instance, to, reason });
                    }
                }
                crate::faults::condemned(self, node, index(dead));
                self.ask_to_commit(node, commands, Some(term), Token::Condemn(NodeLife { node: dead, life }));
            }
        }
    }

    fn answer_guard(&mut self, node: usize, to: NodeId, q: u64, answer: Answer) {
        if let Some(start) = self.office(node).and_then(|office| office.asked.remove(&(to, q))) {
            self.send(node, index(to), Role::Guard, Message::Answer { start, q, answer });
        }
    }

    /// A sentence was carried out, or not.
    pub fn sentence_ended(&mut self, node: usize, life: NodeLife, outcome: &Outcome) {
        if outcome.is_err() {
            self.leases_step(node, Event::Pardoned { node: life.node, life: life.life });
        }
    }

    /// What should run is given to a node, and started there.
    fn sweep(&mut self, node: usize, term: u64) {
        let now = self.now;
        let instances: Vec<InstanceId> = self.raft.members[node].state.instances.keys().copied().collect();
        for id in instances {
            let state = &self.raft.members[node].state;
            let Some(instance) = state.instances.get(&id).filter(|it| it.want == AdminState::Up) else { continue };
            let Some(office) = self.machines[node].daemon.as_ref().and_then(|daemon| daemon.it.office.as_ref()) else {
                return;
            };
            if office.busy.get(&id).is_some_and(|since| now < since + PATIENCE) {
                continue;
            }
            let owner = instance.owner.filter(|owner| !state.is_void(*owner));
            let word = owner.and_then(|owner| office.reports.get(&owner.node));
            let commands = match (owner, instance.run) {
                (Some(owner), Some(run)) => match word {
                    Some((_, runs, _)) if runs.contains(&run) => continue,
                    Some((_, _, ended)) if ended.contains(&run) => {
                        let disown = Command::Disown { instance: id, run, want: None };
                        let home = home(state, instance).unwrap_or(owner.node);
                        vec![disown, Command::Own { instance: id, node: home }]
                    }
                    _ => {
                        let to = index(owner.node);
                        self.send(node, to, Role::Daemon, Message::Start(id, run));
                        Vec::new()
                    }
                },
                _ => match home(state, instance).filter(|_| self.no_room.get(&id).is_none_or(|until| now > *until)) {
                    Some(home) => vec![Command::Own { instance: id, node: home }],
                    None => continue,
                },
            };
            if let Some(office) = self.office(node) {
                office.busy.insert(id, now);
            }
            if !commands.is_empty() {
                self.ask_to_commit(node, commands, Some(term), Token::Office);
            }
        }
    }

    /// The address follows the master (8.6).
    fn mind_address(&mut self, node: usize, term: u64) {
        let now = self.now;
        let own = node_id(node);
        let state = &self.raft.members[node].state;
        let holder = state.address_owner;
        let is_dead = |id: NodeId| state.nodes.get(&id).is_none_or(|it| it.dead);
        let old_is_dead = holder.is_some_and(is_dead);
        let Some(office) = self.office(node).filter(|office| now >= office.address_at) else { return };
        office.address_at = now + 50_000;
        let next = match holder {
            Some(holder) if holder == own => {
                return self.tell(node, Role::Guard, Local::Address(term));
            }
            None => Some(own),
            Some(old) if old_is_dead || office.grants.without_address(old) >= term => None,
            Some(_) => return,
        };
        self.ask_to_commit(node, vec![Command::SetAddressOwner(next)], Some(term), Token::Office);
    }
}

/// Where an instance that nobody has can run: with a member that has lost nothing, if there is one.
fn home(state: &State, instance: &model::Instance) -> Option<NodeId> {
    let mirrors: Vec<_> = instance.disks.iter().filter_map(|disk| disk.mirror.as_ref()).collect();
    let member = |id: &NodeId| state.live(*id).is_some() && mirrors.iter().all(|mirror| mirror.is_member_on(*id));
    let intact = |id: &NodeId| {
        let boot = state.nodes.get(id).map(|it| &it.boot);
        mirrors.iter().all(|mirror| mirror.replica_on(*id).and_then(|(_, replica)| replica.member.as_ref()) == boot)
    };
    let able: Vec<NodeId> = state.nodes.keys().filter(|id| member(id)).copied().collect();
    able.iter().find(|id| intact(id)).or(able.first()).copied()
}
