//! What follows when a life has ended, or is to be declared dead (protocol, T4).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use consensus::ProposeError;
use ha::takeover::{Choice, plan};
use model::{Applied, Command, Happening, InstanceId, Life, NodeId, Rejection, RunId, State};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::starting::Given;
use super::{newest_of, should_run, worked_on};
use crate::leases::Sentence;
use crate::office::Office;

/// How often it is looked for instances whose owner's life has ended, besides whenever a life begins or ends.
const SWEEP: Duration = Duration::from_secs(30);
/// The same while a job works on one of them.
const SOON: Duration = Duration::from_secs(2);
/// How long it is waited for a majority before it is asked again what became of a proposal.
const BARRIER: Duration = Duration::from_secs(2);
/// How often a sentence is proposed anew that was rejected though its life goes on.
const TRIES: usize = 5;

/// What of the nodes decides about owners: life, dead, offline.
type Lives = BTreeMap<NodeId, (Life, bool, bool)>;

fn lives_in(state: &State) -> Lives {
    state.nodes.iter().map(|(id, node)| (*id, (node.life, node.dead, node.offline))).collect()
}

impl Office {
    /// Carries out sentences, and sees to instances whose owner's life has ended in another way, until it is dropped.
    pub(crate) async fn mind_lives(self: Arc<Self>, mut sentences: mpsc::UnboundedReceiver<Sentence>) {
        let mut views = self.log().watch();
        let mut starts = JoinSet::new();
        self.start_all(unreported(&self.member.state()), &mut starts);
        let mut seen = None;
        let mut again = Instant::now();
        loop {
            let lives = lives_in(&views.borrow_and_update().state);
            if seen.as_ref() != Some(&lives) || Instant::now() >= again {
                seen = Some(lives);
                let waits = self.take_in_orphans(&mut starts).await;
                again = Instant::now() + if waits { SOON } else { SWEEP };
            }
            tokio::select! {
                biased;
                sentence = sentences.recv() => match sentence {
                    Some(sentence) => self.carry_out(sentence, &mut starts).await,
                    None => return,
                },
                changed = views.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
                Some(_) = starts.join_next() => {}
                () = tokio::time::sleep_until(again) => {}
            }
        }
    }

    /// Declares a life dead and gives away what it had, in one entry.
    async fn carry_out(self: &Arc<Self>, sentence: Sentence, starts: &mut JoinSet<()>) {
        let Sentence { node, life, evidence } = &sentence;
        let death = Command::NodeDead { node: *node, life: *life, evidence: evidence.clone() };
        let folder = self.member.config.fault_points.as_ref();
        for _ in 0..TRIES {
            let state = self.member.state();
            let name = state.node_name(*node);
            let lives = state.nodes.get(node).is_some_and(|it| it.life == *life && !it.dead);
            // As it will be.
            let mut next = State::clone(&state);
            let refused = next.apply(&self.proposal(vec![death.clone()])).err();
            if let (true, Some(why)) = (lives, &refused) {
                tracing::warn!(node = name, %life, %why, "a node whose lease has run out can't be declared dead");
            }
            if !lives || refused.is_some() {
                break;
            }
            let choices = plan(&next, &self.failover.rooms());
            tracing::warn!(node = name, %life, ?evidence, "declared dead");
            let mut commands = vec![death.clone()];
            commands.extend(takeovers(&state, &choices));
            crate::fault::point(folder, || "master.takeover.before".into()).await;
            let outcome = self.log().propose(self.proposal(commands.clone())).await;
            crate::fault::point(folder, || "master.takeover.after".into()).await;
            match outcome {
                Ok(committed) => return self.go_on_with(&commands, &committed.applied, starts).await,
                Err(ProposeError::Rejected(why @ (Rejection::Office { .. } | Rejection::Incarnation { .. }))) => {
                    tracing::info!(%why, "out of office before a node could be declared dead");
                    return;
                }
                Err(ProposeError::Rejected(why)) => tracing::info!(%why, "a takeover is planned anew"),
                Err(error) => {
                    tracing::warn!(%error, "it is not known whether a node was declared dead");
                    let runs = self.find_out(&state, &choices).await;
                    if self.member.state().nodes.get(node).is_none_or(|it| it.dead || it.life != *life) {
                        self.start_all(runs, starts);
                        return;
                    }
                }
            }
        }
        self.desk.pardon(*node, *life).await;
    }

    /// Looks which choices took effect, behind a barrier.
    async fn find_out(&self, before: &State, choices: &[Choice]) -> Vec<Given> {
        while self.log().read_barrier(BARRIER).await.is_err() {
            // Out of office this is dropped.
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        let now = self.member.state();
        let given = choices.iter().filter_map(|choice| {
            let (to, _) = choice.to.as_ref().ok()?;
            let instance = now.instances.get(&choice.instance)?;
            let run = instance.run.filter(|run| run.0 > before.last_run)?;
            let owner = instance.owner.filter(|owner| owner.node == *to && !now.is_void(*owner))?;
            Some(Given { instance: choice.instance, node: owner.node, run })
        });
        given.collect()
    }

    /// After a batch was committed: starts what it gave, and notes what it refused.
    async fn go_on_with(self: &Arc<Self>, commands: &[Command], applied: &[Applied], starts: &mut JoinSet<()>) {
        let state = self.member.state();
        let mut runs = Vec::new();
        let mut refused = Vec::new();
        for (command, applied) in commands.iter().zip(applied) {
            let Command::Takeover { instance, to, reason } = command else { continue };
            let name = state.instances.get(instance).map_or_else(|| instance.to_string(), |it| it.name.clone());
            match applied {
                Applied::Run(run) => {
                    let node = state.node_name(*to);
                    tracing::info!(instance = name, node, %run, reason, "taken over");
                    runs.push(Given { instance: *instance, node: *to, run: *run });
                }
                Applied::Refused(why) => {
                    tracing::warn!(instance = name, why, "not taken over");
                    refused.push(Happening::NotTakenOver { instance: *instance, name, reason: why.clone() });
                }
                _ => {}
            }
        }
        self.start_all(runs, starts);
        refused.retain(|what| is_news(&state, what));
        self.note(refused).await;
    }

    /// Takes over what an ended life owned that was not declared dead by this office: its node was booted anew, or an operator
    /// asserted it off, or nobody could take it before. Whether it has to wait for a job.
    async fn take_in_orphans(self: &Arc<Self>, starts: &mut JoinSet<()>) -> bool {
        let state = self.member.state();
        let orphans: BTreeSet<InstanceId> = {
            let void = |it: &&model::Instance| it.owner.is_some_and(|owner| state.is_void(owner));
            state.instances.values().filter(void).filter(|it| should_run(it)).map(|it| it.id).collect()
        };
        if orphans.is_empty() {
            return false;
        }
        let busy = worked_on(&state);
        let mut waits = false;
        let mut choices = Vec::new();
        for choice in plan(&state, &self.failover.rooms()) {
            let Some(instance) = state.instances.get(&choice.instance) else { continue };
            if !orphans.contains(&instance.id) || self.failover.is_starting(instance.id) {
                continue;
            }
            let home = state.live(instance.primary);
            match &choice.to {
                _ if busy.contains(&instance.name) => waits = true,
                // Nobody takes it over, but its node is back and can start it: the watcher's.
                Err(_) if home.is_some() => {
                    let how = format!("its node '{}' was restarted", state.node_name(instance.primary));
                    self.hear_of_orphan(instance.id, &how).await;
                }
                _ => choices.push(choice),
            }
        }
        let commands = takeovers(&state, &choices);
        if commands.is_empty() {
            return waits;
        }
        match self.log().propose(self.proposal(commands.clone())).await {
            Ok(committed) => self.go_on_with(&commands, &committed.applied, starts).await,
            Err(ProposeError::Rejected(why)) => tracing::info!(%why, "a takeover is planned anew"),
            Err(error) => {
                tracing::warn!(%error, "it is not known whether instances were taken over");
                let runs = self.find_out(&state, &choices).await;
                self.start_all(runs, starts);
            }
        }
        waits
    }
}

/// The commands of a plan: takeovers, and a note for each instance that stays where it is, if that is news.
pub(super) fn takeovers(state: &State, choices: &[Choice]) -> Vec<Command> {
    let commands = choices.iter().filter_map(|choice| match &choice.to {
        Ok((to, reason)) => Some(Command::Takeover { instance: choice.instance, to: *to, reason: reason.clone() }),
        Err(reason) => {
            let name = state.instances.get(&choice.instance)?.name.clone();
            let what = Happening::NotTakenOver { instance: choice.instance, name, reason: reason.clone() };
            is_news(state, &what).then(|| Command::Note(Box::new(what)))
        }
    });
    commands.collect()
}

/// Whether the history does not end with the same already.
fn is_news(state: &State, what: &Happening) -> bool {
    match what {
        Happening::NotTakenOver { instance, .. } => newest_of(state, *instance) != Some(what),
        _ => true,
    }
}

/// Runs that an earlier master gave away and did not report as started: it may have died before it ordered that.
pub(super) fn unreported(state: &State) -> Vec<Given> {
    let mut runs: Vec<(RunId, Given)> = Vec::new();
    for record in state.history.iter() {
        match &record.what {
            Happening::TakenOver { instance, to, run, .. } => {
                runs.push((*run, Given { instance: *instance, node: *to, run: *run }));
            }
            Happening::Started { run: known, .. }
            | Happening::NotStarted { run: known, .. }
            | Happening::Crashed { run: known, .. } => runs.retain(|(run, _)| run != known),
            _ => {}
        }
    }
    runs.into_iter().map(|(_, given)| given).collect()
}
