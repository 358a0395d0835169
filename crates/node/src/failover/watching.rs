//! The watcher's work: a guest that ended although it should run is started again, or moved, or left alone at last.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ha::restart::{Verdict, judge};
use jobs::agent::{Call, Reply};
use model::{Command, Happening, Instance, InstanceId, NewJob, NodeId, RunId, State};
use opcodes::Opcode;
use opcodes::op::InstanceRestart;
use serde::{Deserialize, Serialize};

use super::{newest_of, should_run, worked_on};
use crate::member::now;
use crate::office::Office;

/// When a new master looks for the first time: what was under way has been taken up by then.
const FIRST: Duration = Duration::from_secs(5);
/// How often it looks after that. Nodes report what ends; this finds what nobody could report.
const SWEEP: Duration = Duration::from_secs(30);
/// How long a node may take to tell what runs there.
const LOOK: Duration = Duration::from_secs(5);
/// Its jobs go before those of people: something should run and does not.
const PRIORITY: i8 = -10;

/// How every decision begins that is not to give up.
const STARTED: &str = "it is started ";

/// A node's report that a run has ended there, of which the state says that it is there.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ended {
    /// The run.
    pub run: RunId,
    /// How, as far as is known: one sentence without a full stop.
    pub how: String,
}

/// The master's answer to [`Ended`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Heard {
    /// It is seen to, or does not matter any more.
    Seen,
    /// Somebody works on the instance: report it again, if it is still so after a while.
    Later,
}

/// An instance that is not as it should be.
struct Case<'a> {
    instance: &'a Instance,
    /// The run that has ended, if it was in one.
    run: Option<RunId>,
    /// Where.
    node: NodeId,
    how: &'a str,
}

impl Office {
    /// Hears a node's report.
    pub(crate) async fn hear_of_end(&self, node: NodeId, ended: &Ended) -> Heard {
        let _turn = self.failover.judging.lock().await;
        let state = self.member.state();
        if ended.run.0 > state.last_run {
            // The node is ahead of what is applied here.
            return Heard::Later;
        }
        let Some(instance) = state.instances.values().find(|instance| instance.run == Some(ended.run)) else {
            return Heard::Seen;
        };
        let owned = instance.owner.is_some_and(|owner| owner.node == node && !state.is_void(owner));
        if !owned || !should_run(instance) {
            return Heard::Seen;
        }
        if !self.is_free(&state, instance) {
            return Heard::Later;
        }
        let case = Case { instance, run: Some(ended.run), node, how: &ended.how };
        if self.see_to(&state, &case).await { Heard::Seen } else { Heard::Later }
    }

    /// Sees to an instance whose owner's life has ended, and that nobody takes over, on its primary node.
    pub(super) async fn hear_of_orphan(&self, id: InstanceId, how: &str) {
        let _turn = self.failover.judging.lock().await;
        let state = self.member.state();
        let Some(instance) = state.instances.get(&id).filter(|instance| should_run(instance)) else { return };
        if instance.owner.is_some_and(|owner| state.is_void(owner)) && self.is_free(&state, instance) {
            self.see_to(&state, &Case { instance, run: instance.run, node: instance.primary, how }).await;
        }
    }

    /// Whether nobody else works on an instance.
    fn is_free(&self, state: &State, instance: &Instance) -> bool {
        let starting = self.failover.is_starting(instance.id);
        instance.migration.is_none() && !starting && !worked_on(state).contains(&instance.name)
    }

    /// Judges, and queues what was decided, in one entry. Whether that was committed.
    async fn see_to(&self, state: &State, case: &Case<'_>) -> bool {
        let Case { instance, run, node, how } = *case;
        let at = state.node_name(node);
        let (decision, target) = match judge(state, instance.id, now()) {
            Verdict::Restart => (format!("{STARTED}again on {at}"), Some(node)),
            Verdict::Move(to) => {
                let to_name = state.node_name(to);
                (format!("{STARTED}on {to_name}, because it crashed repeatedly on {at}"), Some(to))
            }
            Verdict::GiveUp(why) => (why, None),
        };
        let what = Happening::Crashed {
            instance: instance.id,
            name: instance.name.clone(),
            node,
            run: run.unwrap_or_default(),
            how: how.to_owned(),
            decision,
        };
        let given_up = newest_of(state, instance.id).is_some_and(|newest| match newest {
            Happening::Crashed { run: of, decision, .. } => {
                *of == run.unwrap_or_default() && !decision.starts_with(STARTED)
            }
            _ => false,
        });
        if target.is_none() && given_up {
            // Every further record would only make it longer.
            return true;
        }
        let mut commands = vec![Command::Note(Box::new(what.clone()))];
        if let Some(target) = target {
            match restart_job(instance, run, state.node_name(target)) {
                Ok(job) => commands.push(Command::SubmitJob(job)),
                Err(error) => {
                    tracing::error!(%error, instance = instance.name, "the job that starts it can't be written");
                    return false;
                }
            }
        }
        tracing::warn!(instance = instance.name, ?what, "a guest has ended that should run");
        match self.submit(commands).await {
            Ok(_) => true,
            Err(failure) => {
                tracing::warn!(instance = instance.name, failure = failure.text, "it can't be seen to yet");
                false
            }
        }
    }

    /// Looks for what should run and does not, until it is dropped.
    pub(crate) async fn keep_watch(&self) {
        tokio::time::sleep(FIRST).await;
        loop {
            self.look_around().await;
            tokio::time::sleep(SWEEP).await;
        }
    }

    async fn look_around(&self) {
        let state = self.member.state();
        let busy = worked_on(&state);
        let free = |it: &&Instance| {
            should_run(it) && it.migration.is_none() && !busy.contains(&it.name) && !self.failover.is_starting(it.id)
        };
        let candidates: Vec<&Instance> = state.instances.values().filter(free).collect();
        let at = |it: &Instance| it.owner.map_or(it.primary, |owner| owner.node);
        let online = |id: &NodeId| state.live(*id).is_some() && state.nodes.get(id).is_some_and(|node| !node.offline);
        let nodes: BTreeSet<NodeId> = candidates.iter().map(|it| at(it)).filter(online).collect();
        let call = Call::facts(&state);
        let asked = nodes.into_iter().map(|id| {
            let call = call.clone();
            async move {
                match self.ask(id, call, LOOK).await {
                    Ok(Reply::Facts(facts)) => Some((id, facts.instances.iter().map(|live| live.run).collect())),
                    _ => None,
                }
            }
        });
        let runs: BTreeMap<NodeId, BTreeSet<RunId>> =
            futures::future::join_all(asked).await.into_iter().flatten().collect();
        for before in candidates {
            let Some(runs) = runs.get(&at(before)) else { continue };
            // What was started or stopped meanwhile is not judged by an old answer.
            let _turn = self.failover.judging.lock().await;
            let state = self.member.state();
            let Some(instance) = state.instances.get(&before.id) else { continue };
            let same = instance.run == before.run && instance.owner == before.owner && should_run(instance);
            let gone = match (instance.owner, instance.run) {
                (Some(owner), Some(run)) => !state.is_void(owner) && !runs.contains(&run),
                _ => true,
            };
            if same && gone && self.is_free(&state, instance) {
                let how = if instance.run.is_some() { "its process is gone" } else { "it was not started" };
                self.see_to(&state, &Case { instance, run: instance.run, node: at(instance), how }).await;
            }
        }
    }
}

fn restart_job(instance: &Instance, run: Option<RunId>, target_node: String) -> serde_json::Result<NewJob> {
    let op = Opcode::InstanceRestart(InstanceRestart { instance_name: instance.name.clone(), run, target_node });
    let ops = vec![(serde_json::to_value(&op)?, op.summary())];
    Ok(NewJob { ops, priority: PRIORITY, depends: Vec::new(), user: "watcher".into() })
}
