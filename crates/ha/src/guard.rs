//! The guard of a node: asks for its lease, and stops guests when it runs out (L1, L4, L8, L9).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::{Incarnation, Life, NodeId, RunId};

use crate::message::{Answer, Grant};
use crate::mutant::{Broken, Mutant};
use crate::{Now, Times};

/// Requests that an answer is waited for; older ones could not give a lease any more.
const MAX_ASKED: usize = 64;

/// Even with nothing to do the guard looks around this often.
const IDLE: Duration = Duration::from_secs(1);

/// As whom the guard asks: what its daemon told it last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Identity {
    /// Incarnation of the cluster.
    pub inc: Incarnation,
    /// The node.
    pub node: NodeId,
    /// Its life; zero: it has not joined, nothing is asked for.
    pub life: Life,
}

/// What a guard reacts to.
#[derive(Clone, Debug)]
pub enum Event {
    /// The daemon gives a sign of life, and says who the node is. `None`: it is in no cluster.
    Daemon(Option<Identity>),
    /// A run is there, still paused or adopted. `protected`: it is to be stopped when the lease runs out.
    Register {
        /// The run.
        run: RunId,
        /// Whether it is of an instance that another node may take over.
        protected: bool,
    },
    /// The run's process has ended.
    Ended(RunId),
    /// The master's answer to request `q`.
    Answer {
        /// The request.
        q: u64,
        /// What it said.
        answer: Answer,
    },
    /// Time has passed. At the latest [`Guard::next`].
    Tick,
}

/// What a guard wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Ask the master for the lease, with this number; everybody who may be the master, when it is not known.
    Renew {
        /// The request.
        q: u64,
        /// As whom.
        identity: Identity,
        /// See [`crate::message::Renew::without_address`].
        without_address: u64,
        /// The master, if it is known.
        master: Option<NodeId>,
    },
    /// Tell the daemon until when the lease lasts (it has, if that is past).
    Lease(Now),
    /// Stop these runs: their guests must not go on.
    Stop(BTreeSet<RunId>),
    /// Let these stopped runs go on.
    Continue(BTreeSet<RunId>),
    /// End these runs: they are not this node's any more.
    Kill(BTreeSet<RunId>),
    /// Take the cluster's address off this node. It is done before the next [`Self::Renew`] is sent, which reports it.
    DropAddress,
    /// The daemon hangs: end it, and start it anew.
    ReplaceDaemon,
}

/// A guest's process.
#[derive(Clone, Copy, Debug)]
struct Run {
    protected: bool,
    phase: Phase,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// As its daemon has it.
    Free,
    /// Stopped at that time; requests from that number on were sent after it.
    Stopped { since: Now, before: u64 },
    /// To be killed; its end was not seen yet.
    Ending,
}

/// The guard of one node.
#[derive(Debug)]
pub struct Guard {
    times: Times,
    /// As whom it asks; nobody: nothing is asked for, and nothing enforced.
    identity: Option<Identity>,
    /// When the daemon last gave a sign of life.
    heard: Option<Now>,
    /// When it hangs, if it gives none until then. One that is starting, or was there before the guard, has twice the time.
    hangs: Now,
    /// The daemon is being replaced, and was not heard since.
    replacing: bool,
    until: Now,
    /// The lease held when it was last looked at.
    held: bool,
    /// Highest term of a master that was heard, in this incarnation.
    term: u64,
    /// See [`crate::message::Renew::without_address`].
    without_address: u64,
    /// The master, if a grant or a node named it.
    master: Option<NodeId>,
    /// When it last was granted a lease.
    granted: Option<Now>,
    /// Number of the next request.
    q: u64,
    /// The last request that was granted.
    granted_q: Option<u64>,
    /// When requests were sent.
    asked: BTreeMap<u64, Now>,
    next_renew: Now,
    /// The request of this period went to a second address already.
    redirected: bool,
    runs: BTreeMap<RunId, Run>,
    /// When it last looked around.
    now: Now,
    broken: Broken,
}

impl Guard {
    /// One that has just started: no lease, no daemon yet.
    pub fn new(times: Times, now: Now) -> Self {
        Self {
            times,
            identity: None,
            heard: None,
            hangs: now + times.daemon_hung * 2,
            replacing: false,
            until: Now::ZERO,
            held: false,
            term: 0,
            without_address: 0,
            master: None,
            granted: None,
            q: 1,
            granted_q: None,
            asked: BTreeMap::new(),
            next_renew: now,
            redirected: false,
            runs: BTreeMap::new(),
            now,
            broken: Broken::default(),
        }
    }

    /// The same with a rule left out.
    #[cfg(feature = "mutants")]
    pub fn with(mut self, mutant: Option<Mutant>) -> Self {
        self.broken = mutant.into();
        self
    }

    /// Takes an event.
    pub fn step(&mut self, now: Now, event: Event, out: &mut Vec<Effect>) {
        self.now = now;
        match event {
            Event::Daemon(identity) => {
                self.heard = Some(now);
                self.hangs = now + self.times.daemon_hung;
                self.replacing = false;
                self.identify(identity, out);
            }
            Event::Register { run, protected } => {
                self.runs.entry(run).or_insert(Run { protected, phase: Phase::Free }).protected = protected;
            }
            Event::Ended(run) => {
                self.runs.remove(&run);
            }
            Event::Answer { q, answer } => self.answered(q, answer, out),
            Event::Tick => {}
        }
        self.enforce(out);
        self.park(out);
        self.look_after_daemon(out);
        self.renew(out);
    }

    /// Until when the node has a lease; past if it has none.
    pub fn until(&self) -> Now {
        self.until
    }

    /// Whether the lease holds.
    pub fn holds(&self, now: Now) -> bool {
        now < self.until
    }

    /// Whether the cluster's address may be put on as the master of `term`: not after the guard has told a later one, or will
    /// tell it, that this node is without it.
    pub fn may_have_address(&self, term: u64, now: Now) -> bool {
        self.holds(now) && self.without_address < term
    }

    /// When [`Event::Tick`] is due at the latest.
    pub fn next(&self) -> Now {
        let parked = self.runs.values().filter_map(|run| self.parked_until(run));
        [
            self.may_ask().then_some(self.next_renew),
            self.held.then_some(self.until),
            (!self.replacing).then_some(self.hangs),
        ]
        .into_iter()
        .flatten()
        .chain(parked)
        .fold(self.now + IDLE, Now::min)
    }

    /// Who the node is from now on. Another life or incarnation has no lease yet; nor has a guard that has just started, and
    /// the one before it may have left the address on.
    fn identify(&mut self, identity: Option<Identity>, out: &mut Vec<Effect>) {
        if identity == self.identity {
            return;
        }
        let same_inc = self.identity.zip(identity).is_some_and(|(old, new)| old.inc == new.inc);
        if !same_inc {
            self.term = 0;
            self.without_address = 0;
        }
        self.identity = identity;
        self.until = Now::ZERO;
        self.asked.clear();
        self.granted = None;
        self.next_renew = self.now;
        if identity.is_some() {
            out.push(Effect::DropAddress);
        }
    }

    fn answered(&mut self, q: u64, answer: Answer, out: &mut Vec<Effect>) {
        let (Some(identity), Some(sent)) = (self.identity, self.asked.get(&q).copied()) else { return };
        match answer {
            Answer::Granted(grant) if grant.inc == identity.inc && grant.life == identity.life && grant.q == q => {
                self.grant(identity, sent, &grant, out);
            }
            Answer::Ended { now, term } if now >= identity.life && term >= self.term => {
                self.term = term;
                self.until = Now::ZERO;
                let over = |run: &Run| run.protected || run.phase != Phase::Free;
                let over = self.runs.iter().filter(|(_, run)| over(run)).map(|(id, _)| *id).collect();
                self.end(over, out);
            }
            // Only who has heard less than a master that granted a later request could say so wrongly.
            Answer::NotMaster(hint) if self.granted_q.is_none_or(|granted| granted < q) && hint.is_some() => {
                if hint != self.master && !self.redirected {
                    self.redirected = true;
                    self.master = hint;
                    self.ask(out);
                }
            }
            Answer::Granted(_) | Answer::Ended { .. } | Answer::NotMaster(_) | Answer::NotYet => {}
        }
    }

    fn grant(&mut self, identity: Identity, sent: Now, grant: &Grant, out: &mut Vec<Effect>) {
        if grant.term < self.term {
            return;
        }
        self.term = grant.term;
        self.master = Some(grant.master);
        self.granted = Some(self.now);
        self.granted_q = self.granted_q.max(Some(grant.q));
        if grant.master != identity.node && self.without_address < grant.term {
            self.without_address = grant.term;
            out.push(Effect::DropAddress);
        }
        let from = if self.broken.is(Mutant::RenewedByAnswering) { self.now } else { sent };
        let until = from + Duration::from_millis(u64::from(grant.lease_ms));
        if until > self.until {
            self.until = until;
            if self.holds(self.now) {
                out.push(Effect::Lease(until));
            }
        }
        // A guest that was stopped: the master was asked after that whether it still is this life's.
        let unasked = self.broken.is(Mutant::ContinuedWithoutAsking);
        let asked_after = |run: &Run| match run.phase {
            Phase::Stopped { before, .. } => grant.q >= before || unasked,
            Phase::Free | Phase::Ending => false,
        };
        let known = self.runs.iter().filter(|(_, run)| asked_after(run)).map(|(id, _)| *id);
        let (mine, lost) = known.partition(|id| grant.runs.contains(id) || unasked);
        self.end(lost, out);
        if self.holds(self.now) {
            self.free(mine, out);
        }
    }

    fn end(&mut self, over: BTreeSet<RunId>, out: &mut Vec<Effect>) {
        let over = self.change(over, Phase::Ending);
        if !over.is_empty() {
            out.push(Effect::Kill(over));
        }
    }

    fn free(&mut self, mine: BTreeSet<RunId>, out: &mut Vec<Effect>) {
        let mine = self.change(mine, Phase::Free);
        if !mine.is_empty() {
            out.push(Effect::Continue(mine));
        }
    }

    /// Those of the runs that were in another phase.
    fn change(&mut self, runs: BTreeSet<RunId>, phase: Phase) -> BTreeSet<RunId> {
        let mut change = |id: &RunId| {
            let run = self.runs.get_mut(id)?;
            (std::mem::replace(&mut run.phase, phase) != phase).then_some(*id)
        };
        runs.iter().filter_map(&mut change).collect()
    }

    /// Stops what must not run without a lease.
    fn enforce(&mut self, out: &mut Vec<Effect>) {
        let holds = self.holds(self.now);
        let lapsed = std::mem::replace(&mut self.held, holds) && !holds;
        if self.identity.is_some() && !holds && (lapsed || !self.broken.is(Mutant::RunSlipsIn)) {
            let phase = Phase::Stopped { since: self.now, before: self.q };
            let free = |run: &Run| run.protected && run.phase == Phase::Free;
            let free = self.runs.iter().filter(|(_, run)| free(run)).map(|(id, _)| *id).collect();
            let stopped = self.change(free, phase);
            if !stopped.is_empty() {
                out.push(Effect::Stop(stopped));
            }
            if lapsed {
                out.push(Effect::DropAddress);
            }
        }
        if lapsed {
            out.push(Effect::Lease(self.until));
        }
    }

    /// Ends what was stopped for too long.
    fn park(&mut self, out: &mut Vec<Effect>) {
        let now = self.now;
        let over = |run: &Run| self.parked_until(run).is_some_and(|until| now >= until);
        let parked = self.runs.iter().filter(|(_, run)| over(run)).map(|(id, _)| *id).collect();
        match self.broken.is(Mutant::ContinuedOnTimeout) {
            true => self.free(parked, out),
            false => self.end(parked, out),
        }
    }

    /// When a stopped run is ended at the latest.
    fn parked_until(&self, run: &Run) -> Option<Now> {
        let park = if self.broken.is(Mutant::ContinuedOnTimeout) { self.times.lease } else { self.times.park };
        match run.phase {
            Phase::Stopped { since, .. } if run.protected && self.identity.is_some() => Some(since + park),
            _ => None,
        }
    }

    /// Ends the daemon if it hangs.
    fn look_after_daemon(&mut self, out: &mut Vec<Effect>) {
        if self.now >= self.hangs && !self.replacing {
            self.replacing = true;
            out.push(Effect::ReplaceDaemon);
        }
    }

    /// Whether it asks for leases at all (L9).
    fn may_ask(&self) -> bool {
        let lives = self.identity.is_some_and(|identity| identity.life != Life(0));
        lives && self.heard.is_some_and(|heard| self.now < heard + self.times.daemon_silence)
    }

    fn renew(&mut self, out: &mut Vec<Effect>) {
        if !self.may_ask() || self.now < self.next_renew {
            return;
        }
        // Who did not grant the last ones is perhaps not the master any more.
        if self.granted.is_none_or(|granted| self.now >= granted + self.times.renew * 2) {
            self.master = None;
        }
        self.next_renew = self.now + self.times.renew;
        self.redirected = false;
        self.ask(out);
    }

    fn ask(&mut self, out: &mut Vec<Effect>) {
        let Some(identity) = self.identity.filter(|_| self.may_ask()) else { return };
        let q = self.q;
        self.q += 1;
        self.asked.insert(q, self.now);
        while self.asked.len() > MAX_ASKED {
            self.asked.pop_first();
        }
        out.push(Effect::Renew { q, identity, without_address: self.without_address, master: self.master });
    }
}
