//! Starting runs that were taken over (protocol, T6): no job, no lock, the important ones first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use jobs::CallError;
use jobs::agent::Call;
use model::{Applied, Command, Happening, Instance, InstanceId, NodeId, Params, RunId, State};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::lock;
use crate::office::Office;

/// How many guests are started on one node at the same time.
const AT_ONCE: usize = 4;
/// How long a start may take.
const START: Duration = Duration::from_secs(60);
/// How long the end of a run may take that did not start.
const STOP: Duration = Duration::from_secs(30);
/// How often a start is tried on one node.
const TRIES: usize = 2;
/// How long a node is asked again that does not answer; it is declared dead before that, if it is.
const PATIENCE: Duration = Duration::from_secs(20);
/// Pause before a node is asked again that does not answer.
const RETRY: Duration = Duration::from_millis(100);

/// A run that was given to a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Given {
    pub instance: InstanceId,
    pub node: NodeId,
    pub run: RunId,
}

/// What became of a run.
enum Outcome {
    Started,
    /// It is not to be started any more: the state says otherwise, or another master gives the orders.
    Over,
    Failed(String),
}

/// Keeps an instance from being judged by the watcher while a run of it is being started.
struct Starting(Arc<Office>, Given);

impl Starting {
    /// `None`: that run is being started already.
    fn begin(office: &Arc<Office>, given: Given) -> Option<Self> {
        let before = lock(&office.failover.starting).insert(given.instance, given.run);
        (before != Some(given.run)).then(|| Self(Arc::clone(office), given))
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        let mut starting = lock(&self.0.failover.starting);
        // A later run has begun to be started meanwhile: its node has died, too.
        if starting.get(&self.1.instance) == Some(&self.1.run) {
            starting.remove(&self.1.instance);
        }
    }
}

impl Office {
    /// Starts runs in this order, several at once on each node.
    pub(super) fn start_all(self: &Arc<Self>, runs: Vec<Given>, starts: &mut JoinSet<()>) {
        let mut by_node: BTreeMap<NodeId, Vec<Starting>> = BTreeMap::new();
        for starting in runs.into_iter().filter_map(|given| Starting::begin(self, given)) {
            by_node.entry(starting.1.node).or_default().push(starting);
        }
        for runs in by_node.into_values() {
            let office = Arc::clone(self);
            starts.spawn(async move {
                let office = &office;
                futures::stream::iter(runs)
                    .for_each_concurrent(AT_ONCE, |starting| office.see_to_start(starting))
                    .await;
            });
        }
    }

    /// Starts a run; where that fails for good, on another node that has the data.
    async fn see_to_start(self: &Arc<Self>, first: Starting) {
        let mut starting = first;
        let mut tried = BTreeSet::new();
        loop {
            let given = starting.1;
            tried.insert(given.node);
            let state = self.member.state();
            let Some(instance) = state.instances.get(&given.instance) else { return };
            let (name, node) = (instance.name.clone(), state.node_name(given.node));
            let begun = Instant::now();
            let reason = match self.start_run(given).await {
                Outcome::Over => {
                    tracing::info!(instance = name, node, run = %given.run, "not started any more");
                    return;
                }
                Outcome::Started => {
                    let ms = begun.elapsed().as_millis() as u64;
                    tracing::info!(instance = name, node, run = %given.run, ms, "started");
                    let Given { instance, node, run } = given;
                    return self.note(vec![Happening::Started { instance, name, node, run }]).await;
                }
                Outcome::Failed(reason) => reason,
            };
            tracing::warn!(instance = name, node, run = %given.run, reason, "did not start");
            let (id, at, run) = (given.instance, given.node, given.run);
            self.note(vec![Happening::NotStarted { instance: id, name, node: at, run, reason }]).await;
            match self.give_elsewhere(given, &tried).await {
                Some(next) => match Starting::begin(self, next) {
                    Some(next) => starting = next,
                    None => return,
                },
                // It stays where it is, and the watcher's.
                None => return,
            }
        }
    }

    async fn start_run(&self, given: Given) -> Outcome {
        let since = Instant::now();
        let mut tries = 0;
        loop {
            let state = self.member.state();
            let Some(instance) = still(&state, given) else { return Outcome::Over };
            let spec = Box::new(jobs::ops::spec(&state, instance, &Params::new(), &Params::new()));
            let call = Call::Start { spec, run: given.run, paused: false };
            let answer = tokio::select! {
                answer = self.ask(given.node, call, START) => answer,
                // Its node has died, too: an answer will never come.
                () = self.no_longer(given) => return Outcome::Over,
            };
            match answer {
                Ok(_) => return Outcome::Started,
                Err(CallError::Deposed) => return Outcome::Over,
                Err(CallError::Failed(failure)) => {
                    tries += 1;
                    if tries >= TRIES {
                        return Outcome::Failed(failure.text);
                    }
                    tracing::info!(run = %given.run, failure = failure.text, "did not start, trying again");
                }
                Err(CallError::Unreachable(why)) if since.elapsed() >= PATIENCE => {
                    return Outcome::Failed(format!("the node does not answer: {why}"));
                }
                Err(CallError::Unreachable(_)) => tokio::time::sleep(RETRY).await,
            }
        }
    }

    /// Resolves when the state does not give the run to its node any more.
    async fn no_longer(&self, given: Given) {
        let mut views = self.log().watch();
        // When the log is closed the office is about to be dropped.
        if views.wait_for(|view| still(&view.state, given).is_none()).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Gives an instance whose run did not start to another node, if the one that it had says that nothing is left of it.
    async fn give_elsewhere(&self, given: Given, tried: &BTreeSet<NodeId>) -> Option<Given> {
        let state = self.member.state();
        let instance = still(&state, given)?;
        let to = next_node(&state, instance, tried)?;
        let stop = jobs::ops::stop_call(instance, given.run, 0, true);
        if let Err(error) = self.ask(given.node, stop, STOP).await {
            tracing::warn!(run = %given.run, ?error, "what may be left of a run that did not start could not be ended");
            return None;
        }
        let reason = format!("it did not start on node '{}'", state.node_name(given.node));
        let commands = vec![
            Command::Disown { instance: given.instance, run: given.run, want: None },
            Command::Takeover { instance: given.instance, to, reason },
        ];
        match self.submit(commands).await.as_deref() {
            Ok([_, Applied::Run(run)]) => Some(Given { node: to, run: *run, ..given }),
            Ok(applied) => {
                tracing::warn!(instance = instance.name, ?applied, "could not be given to another node");
                None
            }
            Err(failure) => {
                tracing::warn!(instance = instance.name, failure = failure.text, "could not be given to another node");
                None
            }
        }
    }

    /// Adds to the history. What can't be added is lost: nothing depends on it.
    pub(super) async fn note(&self, what: Vec<Happening>) {
        if what.is_empty() {
            return;
        }
        let notes = what.into_iter().map(|what| Command::Note(Box::new(what))).collect();
        if let Err(failure) = self.submit(notes).await {
            tracing::info!(failure = failure.text, "the history lacks something");
        }
    }
}

/// The instance, if the run is its and its node's.
fn still(state: &State, given: Given) -> Option<&Instance> {
    let instance = state.instances.get(&given.instance)?;
    let owner = instance.owner.filter(|owner| owner.node == given.node && !state.is_void(*owner));
    (instance.run == Some(given.run) && owner.is_some()).then_some(instance)
}

/// A node that has all of the instance's data and was not tried.
pub(super) fn next_node(state: &State, instance: &Instance, tried: &BTreeSet<NodeId>) -> Option<NodeId> {
    let has_all = |id: &NodeId| {
        let member = |disk: &model::Disk| disk.mirror.as_ref().is_some_and(|mirror| mirror.is_member_on(*id));
        !instance.disks.is_empty() && instance.disks.iter().all(member)
    };
    let may = |id: &NodeId| state.nodes.get(id).is_some_and(|node| node.vm_capable && !node.offline);
    let nodes = state.nodes.keys().filter(|id| !tried.contains(id) && state.live(**id).is_some());
    nodes.copied().find(|id| may(id) && has_all(id))
}
