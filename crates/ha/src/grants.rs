//! The master's part: leases in confirmed rounds, the fence of older terms, and when a life may be declared dead (L2, L5–L7).

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use model::{Evidence, Incarnation, Life, NodeId};

use crate::message::Renew;
use crate::mutant::{Broken, Mutant};
use crate::{Now, Times};

/// A node, as the master's state has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Its life; zero: it has not joined.
    pub life: Life,
    /// That life was declared dead.
    pub dead: bool,
    /// It may be declared dead without an operator. Never the master itself.
    pub armed: bool,
}

/// What the master's leases react to.
#[derive(Clone, Debug)]
pub enum Event {
    /// The nodes as the newest applied state has them. The first one comes after the office entry was applied.
    Nodes(BTreeMap<NodeId, Standing>),
    /// Who votes; two sets during a joint change.
    Voters(Vec<BTreeSet<NodeId>>),
    /// A guard asks.
    Renew(Renew),
    /// A voter confirmed a round (its answer to [`Effect::Confirm`]).
    Confirmed {
        /// The voter.
        voter: NodeId,
        /// The round.
        round: u64,
    },
    /// A voter's answer to [`Effect::Fence`], as it came in.
    Fenced {
        /// The voter.
        voter: NodeId,
        /// Age of its last confirmation of a lower term.
        age: Duration,
    },
    /// What was proposed for [`Effect::Condemn`] was rejected: the life goes on, or has ended another way.
    Pardoned {
        /// The node.
        node: NodeId,
        /// Its life.
        life: Life,
    },
    /// Time has passed. At the latest [`Grants::next`].
    Tick,
}

/// What the master's leases want done.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Ask all voters to confirm this round, the master's own [`Voter`](crate::voter::Voter) included: it has to remember that
    /// it confirmed, and it may have followed a later term already. The answers come as [`Event::Confirmed`].
    Confirm {
        /// The round.
        round: u64,
    },
    /// Ask these voters how long ago they confirmed a lower term, the master's own [`Voter`](crate::voter::Voter) included;
    /// again after a while those that did not answer. The answers come as [`Event::Fenced`].
    Fence {
        /// Those that have not answered.
        voters: BTreeSet<NodeId>,
    },
    /// Answer the request `q` of a node's guard with a grant; the runs are to be read from the state *now*.
    Grant {
        /// The node.
        node: NodeId,
        /// Its life.
        life: Life,
        /// The request.
        q: u64,
    },
    /// Tell a node's guard that its life has ended. A life that is only about to be declared dead gets no answer.
    Refuse {
        /// The node.
        node: NodeId,
        /// The request.
        q: u64,
        /// The life that the node has in the state.
        now: Life,
    },
    /// Propose [`model::Command::NodeDead`] with the takeovers; that life gets no lease any more. Comes once, and again
    /// only after [`Event::Pardoned`].
    Condemn {
        /// The node.
        node: NodeId,
        /// Its life.
        life: Life,
        /// Why it is safe.
        evidence: Evidence,
    },
}

/// A request that waits for a round.
#[derive(Clone, Copy, Debug)]
struct Request {
    node: NodeId,
    life: Life,
    q: u64,
    /// When it came in.
    came: Now,
}

/// A round: it shows that a majority follows this master at a time after its begin.
#[derive(Debug)]
struct Round {
    number: u64,
    begun: Now,
    /// What it grants, all of it from before its begin.
    requests: Vec<Request>,
    confirmed: BTreeSet<NodeId>,
}

/// What older masters may have granted, as the voters remember it (L6).
#[derive(Debug)]
enum Fence {
    /// By voter, when it last confirmed an older master; by this node's clock.
    Asking { answers: BTreeMap<NodeId, Now>, again: Now },
    /// `H`: no older master began a confirmed round after that.
    Done(Now),
}

/// A node's claim on being heard.
#[derive(Clone, Copy, Debug, Default)]
struct Heard {
    /// Begin of the newest round that granted it a lease.
    granted: Option<Now>,
    /// From when on its silence counts: when a new life of it was seen, or it was armed.
    since: Now,
    /// See [`Grants::without_address`].
    without_address: u64,
}

/// The leases of one term in office.
#[derive(Debug)]
pub struct Grants {
    times: Times,
    inc: Incarnation,
    voters: Vec<BTreeSet<NodeId>>,
    /// The nodes, once in office, and since when it is.
    nodes: Option<BTreeMap<NodeId, Standing>>,
    office: Now,
    heard: BTreeMap<NodeId, Heard>,
    waiting: Vec<Request>,
    round: Option<Round>,
    rounds: u64,
    /// Begin of the newest confirmed round, and who confirmed it.
    proof: Option<(Now, BTreeSet<NodeId>)>,
    fence: Fence,
    /// Lives that are about to be declared dead.
    condemned: BTreeMap<NodeId, Life>,
    /// When it last looked around.
    now: Now,
    broken: Broken,
}

impl Grants {
    /// Of a master that was just elected. It grants nothing before the first [`Event::Nodes`], which says that it is in office.
    pub fn new(times: Times, inc: Incarnation, now: Now) -> Self {
        Self {
            times,
            inc,
            voters: Vec::new(),
            nodes: None,
            office: now,
            heard: BTreeMap::new(),
            waiting: Vec::new(),
            round: None,
            rounds: 0,
            proof: None,
            fence: Fence::Asking { answers: BTreeMap::new(), again: now },
            condemned: BTreeMap::new(),
            now,
            broken: Broken::default(),
        }
    }

    /// The same with a rule left out.
    #[cfg(feature = "mutants")]
    pub fn with(mut self, mutant: Option<Mutant>) -> Self {
        self.broken = mutant.into();
        if self.broken.is(Mutant::NoFenceWait) {
            self.fence = Fence::Done(Now::ZERO);
        }
        self
    }

    /// Takes an event.
    pub fn step(&mut self, now: Now, event: Event, out: &mut Vec<Effect>) {
        self.now = now;
        match event {
            Event::Nodes(nodes) => self.know(now, nodes),
            Event::Voters(voters) => self.voters = voters,
            Event::Renew(renew) => self.asked(now, &renew, out),
            Event::Confirmed { voter, round } => {
                if let Some(current) = self.round.as_mut().filter(|current| current.number == round) {
                    current.confirmed.insert(voter);
                }
            }
            Event::Fenced { voter, age } => {
                if let Fence::Asking { answers, .. } = &mut self.fence {
                    let last = answers.entry(voter).or_insert(Now::MAX);
                    *last = now.saturating_sub(age).min(*last);
                }
            }
            Event::Pardoned { node, life } => {
                if self.condemned.get(&node) == Some(&life) {
                    self.condemned.remove(&node);
                    // Not in a tight circle, should it be rejected again.
                    self.heard.entry(node).or_default().since =
                        (now + self.times.renew).saturating_sub(self.times.wait());
                }
            }
            Event::Tick => {}
        }
        self.ask_voters(now, out);
        self.end_round(out);
        let unproved = self.judge(now, out);
        self.begin_round(now, unproved, out);
    }

    /// When [`Event::Tick`] is due at the latest.
    pub fn next(&self) -> Option<Now> {
        let round = self.round.as_ref().map(|round| round.begun + self.patience());
        let fence = match &self.fence {
            Fence::Asking { again, .. } => Some(*again).filter(|_| !self.voters.is_empty()),
            Fence::Done(_) => None,
        };
        // Who has lapsed already waits for a round.
        let lapses = self.candidates().map(|(node, _)| self.lapse(node)).map(|lapse| match lapse > self.now {
            true => Some(lapse),
            false if self.round.is_none() => Some(self.now + self.times.renew),
            false => None,
        });
        [round, fence, lapses.flatten().min()].into_iter().flatten().min()
    }

    /// Up to which term a node is surely without the cluster's address, by its own word ([`Renew::without_address`]).
    pub fn without_address(&self, node: NodeId) -> u64 {
        self.heard.get(&node).map_or(0, |heard| heard.without_address)
    }

    /// Whether a node has surely no lease of any master at that time (L7), or never had one that counts.
    pub fn has_lapsed(&self, node: NodeId, now: Now) -> bool {
        self.fenced().is_some() && self.last(node).is_some_and(|last| now >= last + self.times.wait())
    }

    /// How long ago the newest round began that could have granted the node a lease, for reports.
    pub fn age(&self, node: NodeId, now: Now) -> Option<Duration> {
        self.last(node).map(|last| now.saturating_sub(last))
    }

    /// How long an answer of voters is waited for.
    fn patience(&self) -> Duration {
        self.times.renew * 2
    }

    fn fenced(&self) -> Option<Now> {
        match self.fence {
            Fence::Done(last) => Some(last),
            Fence::Asking { .. } => None,
        }
    }

    fn last(&self, node: NodeId) -> Option<Now> {
        self.fenced().max(self.heard.get(&node).and_then(|heard| heard.granted))
    }

    /// When a node may be declared dead that is not heard again. Not before every guard that lives has had the time to find
    /// this master: after a long election all leases have ended.
    fn lapse(&self, node: NodeId) -> Now {
        let heard = self.heard.get(&node).copied().unwrap_or_default();
        let last = self.last(node).unwrap_or_default().max(heard.since);
        (last + self.times.wait()).max(self.office + self.times.renew * 3)
    }

    /// The nodes that can be declared dead.
    fn candidates(&self) -> impl Iterator<Item = (NodeId, Life)> {
        let fenced = self.fenced().is_some();
        let nodes = self.nodes.iter().flatten().filter(move |_| fenced);
        let may = |(node, it): &(&NodeId, &Standing)| {
            it.armed && !it.dead && it.life != Life(0) && self.condemned.get(node) != Some(&it.life)
        };
        nodes.filter(may).map(|(node, it)| (*node, it.life))
    }

    fn is_majority(&self, of: impl Fn(&NodeId) -> bool) -> bool {
        let has = |set: &BTreeSet<NodeId>| set.iter().filter(|voter| of(voter)).count() * 2 > set.len();
        !self.voters.is_empty() && self.voters.iter().all(has)
    }

    fn know(&mut self, now: Now, nodes: BTreeMap<NodeId, Standing>) {
        let Some(known) = &self.nodes else {
            self.office = now;
            self.nodes = Some(nodes);
            return;
        };
        for (node, new) in &nodes {
            let same = known.get(node).is_some_and(|old| old.life == new.life && old.armed == new.armed);
            if !same {
                self.heard.entry(*node).or_default().since = now;
            }
        }
        self.condemned.retain(|node, life| nodes.get(node).is_some_and(|it| it.life == *life && !it.dead));
        self.nodes = Some(nodes);
    }

    fn asked(&mut self, now: Now, renew: &Renew, out: &mut Vec<Effect>) {
        if renew.inc != self.inc {
            return;
        }
        let heard = self.heard.entry(renew.node).or_default();
        heard.without_address = heard.without_address.max(renew.without_address);
        let request = Request { node: renew.node, life: renew.life, q: renew.q, came: now };
        if self.broken.is(Mutant::GrantWithoutRound) {
            return self.grant(now, request, out);
        }
        match &mut self.round {
            Some(round) if self.broken.is(Mutant::JoinsRoundInFlight) => round.requests.push(request),
            _ => self.waiting.push(request),
        }
    }

    fn ask_voters(&mut self, now: Now, out: &mut Vec<Effect>) {
        let patience = self.patience();
        let Fence::Asking { answers, .. } = &self.fence else { return };
        if self.is_majority(|voter| answers.contains_key(voter)) {
            self.fence = Fence::Done(answers.values().copied().max().unwrap_or(now));
            return;
        }
        let all = self.voters.iter().flatten();
        let voters: BTreeSet<NodeId> = all.filter(|voter| !answers.contains_key(voter)).copied().collect();
        if let Fence::Asking { again, .. } = &mut self.fence
            && now >= *again
            && !voters.is_empty()
        {
            *again = now + patience;
            out.push(Effect::Fence { voters });
        }
    }

    /// Grants what the round has collected, if it is confirmed.
    fn end_round(&mut self, out: &mut Vec<Effect>) {
        let confirmed = |round: &Round| self.is_majority(|voter| round.confirmed.contains(voter));
        if !self.round.as_ref().is_some_and(confirmed) {
            return;
        }
        let Some(round) = self.round.take() else { return };
        for request in round.requests {
            self.grant(round.begun, request, out);
        }
        self.proof = Some((round.begun, round.confirmed));
    }

    /// `begun`: of the round that permits it.
    fn grant(&mut self, begun: Now, request: Request, out: &mut Vec<Effect>) {
        let Request { node, life, q, .. } = request;
        let known = self.nodes.as_ref().and_then(|nodes| nodes.get(&node)).copied();
        let unknown_is_fine = self.broken.is(Mutant::GrantBeforeOffice) && self.nodes.is_none();
        let standing = match known {
            Some(standing) => standing,
            None if unknown_is_fine => Standing { life, dead: false, armed: false },
            None => return,
        };
        if life < standing.life || life == standing.life && standing.dead {
            out.push(Effect::Refuse { node, q, now: standing.life });
            return;
        }
        // A life that the state does not have yet asks again. One that is about to be declared dead gets nothing (L7).
        let condemned = self.condemned.get(&node) == Some(&life) && !self.broken.is(Mutant::GrantToCondemned);
        if life == standing.life && !condemned {
            let heard = self.heard.entry(node).or_default();
            heard.granted = heard.granted.max(Some(begun));
            out.push(Effect::Grant { node, life, q });
        }
    }

    /// Condemns who has lapsed. Whether somebody has for whom that is not proved yet: a round that began after his time has
    /// to be confirmed, which shows that it is not this master that is cut off or was asleep, and until then everything that
    /// had come in was looked at.
    fn judge(&mut self, now: Now, out: &mut Vec<Effect>) -> bool {
        let mut unproved = false;
        let mut lapsed = Vec::new();
        for (node, life) in self.candidates() {
            let lapse = self.lapse(node);
            if now < lapse || self.is_heard(node, life) {
                continue;
            }
            match &self.proof {
                Some((begun, voters)) if *begun >= lapse || self.broken.is(Mutant::CondemnUnproved) => {
                    lapsed.push((node, life, voters.iter().copied().collect()));
                }
                _ => unproved = true,
            }
        }
        for (node, life, voters) in lapsed {
            let last = self.last(node).unwrap_or_default();
            let evidence = Evidence::LeaseEnded {
                silent_ms: millis(now.saturating_sub(last)),
                wait_ms: millis(self.times.wait()),
                of_older_master: self.heard.get(&node).and_then(|heard| heard.granted) != Some(last),
                voters,
            };
            self.condemned.insert(node, life);
            out.push(Effect::Condemn { node, life, evidence });
        }
        unproved
    }

    /// A request of that life is here, and will be granted by the next round.
    fn is_heard(&self, node: NodeId, life: Life) -> bool {
        let collected = self.round.iter().flat_map(|round| &round.requests);
        self.waiting.iter().chain(collected).any(|request| request.node == node && request.life == life)
    }

    /// `needed`: even if nobody asks for a lease.
    fn begin_round(&mut self, now: Now, needed: bool, out: &mut Vec<Effect>) {
        if self.nodes.is_none() && !self.broken.is(Mutant::GrantBeforeOffice) {
            return self.forget(now);
        }
        if let Some(round) = self.round.take_if(|round| now >= round.begun + self.times.renew * 2) {
            self.waiting.extend(round.requests);
        }
        self.forget(now);
        if self.round.is_some() || self.waiting.is_empty() && !needed {
            return;
        }
        self.rounds += 1;
        let requests = std::mem::take(&mut self.waiting);
        self.round = Some(Round { number: self.rounds, begun: now, requests, confirmed: BTreeSet::new() });
        out.push(Effect::Confirm { round: self.rounds });
    }

    /// A grant of what was asked for that long ago would be worth nothing.
    fn forget(&mut self, now: Now) {
        self.waiting.retain(|request| now < request.came + self.times.lease);
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
