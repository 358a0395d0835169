//! The guard's process: what `ha::guard` decides is carried out.

use ha::guard::{Effect, Event, Guard, Identity};
use ha::message::Renew;
use model::RunId;
use std::collections::BTreeSet;

use crate::cluster::index;
use crate::daemon::Message;
use crate::node::{Input, Local, Role, Signal};
use crate::world::{Ev, World};

/// A guard's process.
pub struct Watchman {
    /// What decides.
    pub guard: Guard,
    /// Runs that it was told of.
    pub knows: BTreeSet<RunId>,
    /// As whom it asks; what its daemon has told it.
    pub identity: Option<Identity>,
    tick_at: u64,
}

impl World {
    /// One that has just started.
    pub fn watchman(&self, node: usize) -> Watchman {
        let guard = Guard::new(self.times, self.clock(node));
        #[cfg(feature = "mutants")]
        let guard = guard.with(self.plan.mutant);
        Watchman { guard, knows: BTreeSet::new(), identity: None, tick_at: 0 }
    }

    /// It takes something.
    pub fn guard_takes(&mut self, node: usize, input: Input) {
        let event = match input {
            Input::Tick => Event::Tick,
            Input::Local(Local::Daemon(identity)) => {
                self.tell(node, Role::Daemon, Local::Guard);
                Event::Daemon(identity)
            }
            Input::Local(Local::Register(run)) => {
                self.tell(node, Role::Daemon, Local::Registered(run));
                Event::Register { run, protected: true }
            }
            Input::Local(Local::Ended(run)) => Event::Ended(run),
            Input::Local(Local::Address(term)) => return self.put_address_on(node, term),
            Input::Message(_, Message::Answer { q, answer, .. }) => Event::Answer { q, answer },
            _ => return,
        };
        let now = self.clock(node);
        let machine = &mut self.machines[node];
        let Some(process) = &mut machine.guard else { return };
        match &event {
            Event::Register { run, .. } => {
                process.it.knows.insert(*run);
            }
            Event::Daemon(identity) => process.it.identity = *identity,
            _ => {}
        }
        let mut out = Vec::new();
        process.it.guard.step(now, event, &mut out);
        let start = process.start;
        let due = self.now + machine.clock.until(process.it.guard.next(), self.now);
        if due < process.it.tick_at || process.it.tick_at <= self.now {
            process.it.tick_at = due;
            self.after(due - self.now, Ev::At(node, Role::Guard, Some(start), Input::Tick));
        }
        for effect in out {
            self.guard_wants(node, start, effect);
        }
    }

    fn guard_wants(&mut self, node: usize, start: u64, effect: Effect) {
        if !matches!(effect, Effect::Renew { .. } | Effect::Lease(_)) {
            self.note(|| format!("node {node}: guard: {effect:?}"));
        }
        match effect {
            Effect::Renew { q, identity, without_address, master } => {
                let renew = Renew { inc: identity.inc, node: identity.node, life: identity.life, q, without_address };
                let to = match master {
                    Some(master) => vec![index(master)],
                    None => (0..self.machines.len()).collect(),
                };
                for to in to {
                    self.send(node, to, Role::Daemon, Message::Renew(renew.clone(), start));
                }
            }
            Effect::Lease(until) => {
                let identity = self.machines[node].guard.as_ref().and_then(|process| process.it.identity);
                if let Some(identity) = identity {
                    let furthest = self.leases.entry((node, identity.life)).or_default();
                    *furthest = until.max(*furthest);
                }
                self.tell(node, Role::Daemon, Local::Lease(until));
            }
            Effect::Stop(runs) => self.signal(node, runs, Signal::Stop),
            Effect::Continue(runs) => self.signal(node, runs, Signal::Continue),
            Effect::Kill(runs) => self.signal(node, runs, Signal::Kill),
            Effect::DropAddress => self.machines[node].has_address = false,
            Effect::ReplaceDaemon => {
                self.kill(node, Role::Daemon);
                let delay = self.rng.range(10_000, 200_000);
                self.after(delay, Ev::Start(node, Role::Daemon));
            }
        }
    }

    /// The guard puts the address on, or knows better.
    fn put_address_on(&mut self, node: usize, term: u64) {
        let now = self.clock(node);
        let machine = &mut self.machines[node];
        if machine.guard.as_ref().is_some_and(|process| process.it.guard.may_have_address(term, now)) {
            machine.has_address = true;
        }
    }
}
