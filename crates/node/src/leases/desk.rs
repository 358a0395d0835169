//! The master's leases: where guards ask, and what it asks of voters for them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ha::grants::{Effect, Event, Grants, Standing};
use ha::message::{Answer, Confirm, Fence, Fenced, Grant, Renew};
use ha::{Now, Times};
use model::{Evidence, Incarnation, Life, NodeId, NodeLife, RunId, State};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::{CONFIRM_PATH, FENCE_PATH};
use crate::clock::boottime;
use crate::member::Member;

/// Words that may wait at the desk. More come only if nobody sits there.
const INBOX: usize = 1024;

/// What comes to the desk.
enum Word {
    Renew(Renew, oneshot::Sender<Answer>),
    Event(Event),
}

/// A life that is to be declared dead.
#[derive(Clone, Debug)]
pub struct Sentence {
    /// The node.
    pub node: NodeId,
    /// Its life.
    pub life: Life,
    /// Why that is safe.
    pub evidence: Evidence,
}

/// The leases of one term in office.
pub struct Desk {
    times: Times,
    incarnation: Incarnation,
    term: u64,
    grants: Mutex<Grants>,
    inbox: mpsc::Sender<Word>,
}

/// What is needed to [run](Desk::run) a desk.
pub struct Inbox(mpsc::Receiver<Word>);

impl Desk {
    /// Of the master of `term`, which has just taken office.
    pub fn new(times: Times, incarnation: Incarnation, term: u64) -> (Self, Inbox) {
        let (inbox, words) = mpsc::channel(INBOX);
        let grants = Mutex::new(Grants::new(times, incarnation, boottime()));
        (Self { times, incarnation, term, grants, inbox }, Inbox(words))
    }

    /// The times of this cluster's leases.
    pub fn times(&self) -> Times {
        self.times
    }

    /// Answers a guard, after a round that began after it asked; [`Answer::NotYet`] if that takes too long to be of use.
    pub async fn renew(&self, renew: Renew) -> Answer {
        let (answer, answered) = oneshot::channel();
        if self.inbox.try_send(Word::Renew(renew, answer)).is_err() {
            return Answer::NotYet;
        }
        match tokio::time::timeout(self.patience(), answered).await {
            Ok(Ok(answer)) => answer,
            _ => Answer::NotYet,
        }
    }

    /// A sentence was not carried out: that life goes on, or has ended another way.
    pub async fn pardon(&self, node: NodeId, life: Life) {
        // An inbox that is closed belongs to an office that is over.
        let _ = self.inbox.send(Word::Event(Event::Pardoned { node, life })).await;
    }

    /// See [`Grants::without_address`].
    pub fn without_address(&self, node: NodeId) -> u64 {
        self.grants().without_address(node)
    }

    /// How long ago the newest round began that could have granted the node a lease.
    pub fn age(&self, node: NodeId) -> Option<Duration> {
        self.grants().age(node, boottime())
    }

    /// Whether everything that older masters granted has ended (L6).
    pub fn is_settled(&self) -> bool {
        // A node that there never was got nothing from this one.
        self.grants().has_lapsed(NodeId(0), boottime())
    }

    /// Whether the node's guard gets leases.
    pub fn is_served(&self, node: NodeId) -> bool {
        self.age(node).is_some_and(|age| age < self.times.lease)
    }

    /// How long an answer is of use to who asked: it asks again meanwhile.
    fn patience(&self) -> Duration {
        self.times.renew * 4
    }

    fn grants(&self) -> MutexGuard<'_, Grants> {
        self.grants.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sits at the desk until the log is closed, or nobody takes sentences any more. What is to be declared dead goes to
    /// `sentences`.
    pub async fn run(self: Arc<Self>, member: Arc<Member>, inbox: Inbox, sentences: mpsc::UnboundedSender<Sentence>) {
        let Inbox(mut words) = inbox;
        let mut views = member.log.watch();
        let mut statuses = member.log.watch_status();
        let mut standings = None;
        let mut voters = Vec::new();
        let mut waiting = Waiting::default();
        let mut asked = JoinSet::new();
        loop {
            let mut effects = Vec::new();
            {
                let now_standing = standings_in(&views.borrow_and_update().state);
                if standings.as_ref() != Some(&now_standing) {
                    self.step(Event::Nodes(now_standing.clone()), &mut effects);
                    standings = Some(now_standing);
                }
                let configurations = statuses.borrow_and_update().configurations.clone();
                if voters != configurations {
                    self.step(Event::Voters(configurations.clone()), &mut effects);
                    voters = configurations;
                }
            }
            self.carry_out(effects, &member, &voters, &mut waiting, &mut asked, &sentences);
            let due = self.grants().next();
            let event = tokio::select! {
                biased;
                // What has come is heard before anybody is judged for having been silent (L7).
                word = words.recv() => match word {
                    None => return,
                    Some(Word::Event(event)) => Some(event),
                    Some(Word::Renew(renew, answer)) => {
                        waiting.add(&renew, answer);
                        Some(Event::Renew(renew))
                    }
                },
                changed = views.changed() => match changed {
                    Ok(()) => None,
                    Err(_) => return,
                },
                changed = statuses.changed() => match changed {
                    Ok(()) => None,
                    Err(_) => return,
                },
                Some(_) = asked.join_next() => None,
                () = until(due) => Some(Event::Tick),
            };
            if let Some(event) = event {
                let mut effects = Vec::new();
                self.step(event, &mut effects);
                self.carry_out(effects, &member, &voters, &mut waiting, &mut asked, &sentences);
            }
        }
    }

    fn step(&self, event: Event, effects: &mut Vec<Effect>) {
        self.grants().step(boottime(), event, effects);
    }

    fn carry_out(
        &self,
        effects: Vec<Effect>,
        member: &Arc<Member>,
        voters: &[BTreeSet<NodeId>],
        waiting: &mut Waiting,
        asked: &mut JoinSet<()>,
        sentences: &mpsc::UnboundedSender<Sentence>,
    ) {
        for effect in effects {
            match effect {
                Effect::Confirm { round } => self.confirm(round, member, voters, asked),
                Effect::Fence { voters } => self.fence(&voters, member, asked),
                Effect::Grant { node, life, q } => {
                    let state = member.state();
                    let lease_ms = u32::try_from(self.times.lease.as_millis()).unwrap_or(u32::MAX);
                    let runs = runs_of(&state, NodeLife { node, life });
                    let (inc, term, master) = (self.incarnation, self.term, member.id);
                    waiting.answer(node, q, Answer::Granted(Grant { inc, term, life, q, lease_ms, master, runs }));
                }
                Effect::Refuse { node, q, now } => waiting.answer(node, q, Answer::Ended { now, term: self.term }),
                Effect::Condemn { node, life, evidence } => {
                    // Nobody takes it: the office is over.
                    let _ = sentences.send(Sentence { node, life, evidence });
                }
            }
        }
    }

    fn confirm(&self, round: u64, member: &Arc<Member>, voters: &[BTreeSet<NodeId>], asked: &mut JoinSet<()>) {
        let confirm = Confirm { inc: self.incarnation, term: self.term, round };
        let all: BTreeSet<NodeId> = voters.iter().flatten().copied().collect();
        for voter in all {
            if voter == member.id {
                if member.voting.confirm(member.incarnation(), &member.log.status(), &confirm, boottime()) {
                    self.tell(Event::Confirmed { voter, round });
                }
                continue;
            }
            let (inbox, within) = (self.inbox.clone(), self.patience());
            let call = ask::<_, bool>(Arc::clone(member), voter, CONFIRM_PATH, confirm, within);
            asked.spawn(async move {
                if call.await == Some(true) {
                    let _ = inbox.send(Word::Event(Event::Confirmed { voter, round })).await;
                }
            });
        }
    }

    fn fence(&self, voters: &BTreeSet<NodeId>, member: &Arc<Member>, asked: &mut JoinSet<()>) {
        let fence = Fence { inc: self.incarnation, term: self.term };
        let fenced = |voter, fenced: Fenced| Event::Fenced { voter, age: Duration::from_millis(fenced.age_ms) };
        for voter in voters.iter().copied() {
            if voter == member.id {
                let own = member.voting.fence(member.incarnation(), &member.log.status(), &fence, boottime());
                own.into_iter().for_each(|own| self.tell(fenced(voter, own)));
                continue;
            }
            let (inbox, within) = (self.inbox.clone(), self.patience());
            let call = ask::<_, Option<Fenced>>(Arc::clone(member), voter, FENCE_PATH, fence, within);
            asked.spawn(async move {
                if let Some(Some(answer)) = call.await {
                    let _ = inbox.send(Word::Event(fenced(voter, answer))).await;
                }
            });
        }
    }

    /// For who sits at the desk and must not wait for itself. A full inbox loses it, as a network might.
    fn tell(&self, event: Event) {
        let _ = self.inbox.try_send(Word::Event(event));
    }
}

/// Guards that wait for their answers.
#[derive(Default)]
struct Waiting(BTreeMap<(NodeId, u64), oneshot::Sender<Answer>>);

impl Waiting {
    fn add(&mut self, renew: &Renew, answer: oneshot::Sender<Answer>) {
        self.0.retain(|_, answer| !answer.is_closed());
        self.0.insert((renew.node, renew.q), answer);
    }

    fn answer(&mut self, node: NodeId, q: u64, answer: Answer) {
        if let Some(waiting) = self.0.remove(&(node, q)) {
            // One that does not wait any more has asked again.
            let _ = waiting.send(answer);
        }
    }
}

/// Asks a voter. `None`: it did not answer in time; it will be asked again, so nobody needs the reason.
async fn ask<Q: Serialize, A: DeserializeOwned>(
    member: Arc<Member>,
    voter: NodeId,
    path: &'static str,
    question: Q,
    within: Duration,
) -> Option<A> {
    let address = member.address_of(voter)?;
    let answer = member.client.call_json(voter.0, address, rpc::Lane::Lease, path, &question, within).await;
    answer.inspect_err(|error| tracing::trace!(%voter, path, error = crate::chain(error), "no answer")).ok()
}

async fn until(due: Option<Now>) {
    match due {
        Some(due) => tokio::time::sleep(due.saturating_sub(boottime())).await,
        None => std::future::pending().await,
    }
}

/// The nodes, as leases see them.
fn standings_in(state: &State) -> BTreeMap<NodeId, Standing> {
    // The master in office can't declare itself dead.
    let other = |id: NodeId| state.office.is_none_or(|office| office.node != id);
    let standing =
        |id: NodeId, node: &model::Node| Standing { life: node.life, dead: node.dead, armed: node.armed && other(id) };
    state.nodes.iter().map(|(id, node)| (*id, standing(*id, node))).collect()
}

/// The runs that a life of a node has the right to: its own, and those that migrations prepare for it.
pub fn runs_of(state: &State, at: NodeLife) -> BTreeSet<RunId> {
    let runs = state.instances.values().flat_map(|instance| {
        let own = instance.run.filter(|_| instance.owner == Some(at));
        let coming = instance.migration.filter(|migration| migration.to == at).map(|migration| migration.run);
        own.into_iter().chain(coming)
    });
    runs.collect()
}
