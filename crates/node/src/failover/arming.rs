//! Which nodes may be declared dead without an operator (protocol, 7.3).

use std::collections::BTreeMap;
use std::time::Duration;

use jobs::CallError;
use jobs::agent::Call;
use model::{ClusterChange, Command, NodeId, State};
use opcodes::Failure;
use tokio::time::Instant;

use super::lock;
use crate::office::Office;

/// How often the master looks after nodes that could be armed, or were.
const LOOK: Duration = Duration::from_millis(250);
/// How long a node may take to get ready: its replicas store it.
const GET_READY: Duration = Duration::from_secs(10);
/// How long a node may take to hear that it is not armed any more.
const HEAR: Duration = Duration::from_secs(2);
/// Pause before a node is asked again that did not get ready.
const AGAIN: Duration = Duration::from_secs(2);
/// Voters without whom nobody can be declared dead.
pub const STRICT_VOTERS: usize = 3;

impl Office {
    /// Arms what can be armed, and disarms what must not be, until it is dropped.
    pub(crate) async fn keep_armed(&self) {
        let mut again = BTreeMap::new();
        loop {
            self.arrange_arms(&mut again).await;
            tokio::time::sleep(LOOK).await;
        }
    }

    async fn arrange_arms(&self, again: &mut BTreeMap<NodeId, Instant>) {
        let state = self.member.state();
        let Some(cluster) = &state.cluster else { return };
        let status = self.log().status();
        let why = match cluster.ha {
            false => Some("automatic failover is switched off: 'cardume ha arm' switches it on".to_owned()),
            true if status.voters.len() < STRICT_VOTERS => Some(format!(
                "automatic failover needs {STRICT_VOTERS} nodes that vote, and {} does: a witness makes three of two nodes",
                status.voters.len()
            )),
            true => None,
        };
        if let Some(why) = why {
            if let Err(failure) = self.disarm_all().await {
                tracing::info!(failure = failure.text, "nodes are not disarmed yet");
            }
            let unarmed = state.nodes.iter().filter(|(_, node)| node.vm_capable);
            *lock(&self.failover.unarmed) = unarmed.map(|(id, _)| (*id, why.clone())).collect();
            return;
        }
        if status.joint {
            return;
        }
        let due = Instant::now();
        let asked = state.nodes.iter().filter(|(_, node)| node.vm_capable).map(|(id, _)| *id);
        let asked = asked.filter(|id| again.get(id).is_none_or(|at| *at <= due)).map(|id| {
            let state = &state;
            async move { (id, self.arm(state, id).await) }
        });
        for (id, outcome) in futures::future::join_all(asked).await {
            again.remove(&id);
            match outcome {
                Ok(()) => {
                    lock(&self.failover.unarmed).remove(&id);
                }
                Err(why) => {
                    lock(&self.failover.unarmed).insert(id, why.text);
                    again.extend(why.asked.then(|| (id, Instant::now() + AGAIN)));
                }
            }
        }
    }

    /// Arms a node, if it is not.
    async fn arm(&self, state: &State, id: NodeId) -> Result<(), Unarmed> {
        let not_asked = |text: &str| Unarmed { text: text.into(), asked: false };
        let Some(node) = state.nodes.get(&id).filter(|node| !node.armed) else { return Ok(()) };
        let Some(at) = state.live(id) else { return Err(not_asked("it has not joined since it was away")) };
        if node.offline {
            return Err(not_asked("it is marked offline"));
        }
        if !self.desk.is_served(id) {
            return Err(not_asked("its guard does not ask for the node's lease; 'cardume guard' has to run there"));
        }
        match self.ask(id, Call::Arm, GET_READY).await {
            Ok(_) => {}
            Err(CallError::Failed(failure)) => return Err(Unarmed { text: failure.text, asked: true }),
            Err(CallError::Unreachable(why)) => {
                return Err(Unarmed { text: format!("it does not answer: {why}"), asked: true });
            }
            Err(CallError::Deposed) => return Err(not_asked("it obeys another master")),
        }
        self.submit(vec![Command::Arm { node: id, life: at.life }])
            .await
            .map_err(|failure| Unarmed { text: failure.text, asked: true })?;
        tracing::info!(node = node.name, "armed: it may be declared dead when its lease has run out");
        Ok(())
    }

    /// Disarms every node: committed first, then told.
    pub(crate) async fn disarm_all(&self) -> Result<(), Failure> {
        let state = self.member.state();
        let armed: Vec<NodeId> = state.nodes.iter().filter(|(_, node)| node.armed).map(|(id, _)| *id).collect();
        if armed.is_empty() {
            return Ok(());
        }
        self.submit(armed.iter().map(|node| Command::Disarm { node: *node }).collect()).await?;
        tracing::info!(nodes = armed.len(), "disarmed: nobody is declared dead without an operator any more");
        let told = armed.into_iter().filter(|id| state.live(*id).is_some()).map(|id| self.ask(id, Call::Disarm, HEAR));
        for outcome in futures::future::join_all(told).await {
            if let Err(error) = outcome {
                // It reads it in the state; until then its disks are stricter than they have to be.
                tracing::info!(?error, "a node could not be told that it is not armed any more");
            }
        }
        Ok(())
    }

    /// Switches automatic failover on or off. Off: when this returns every node is disarmed; on: the nodes are armed in the
    /// background, as soon as they can be.
    ///
    /// # Errors
    /// When it could not be committed.
    pub(crate) async fn switch_ha(&self, on: bool) -> Result<(), Failure> {
        let change = ClusterChange { ha: Some(on), ..ClusterChange::default() };
        self.submit(vec![Command::ModifyCluster(change)]).await?;
        if on { Ok(()) } else { self.disarm_all().await }
    }
}

/// Why a node is not armed.
struct Unarmed {
    text: String,
    /// It was asked, so it is not asked again at once.
    asked: bool,
}
