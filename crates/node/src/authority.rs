//! The replicated log, as the mirrored disks of a node ask for it.

use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use consensus::{Committed, ProposeError};
use mirror::driver::{Authority, outcome_of};
use mirror::engine::Outcome;
use model::{Command, Incarnation, NodeId, Proposal, Rejection, State};
use rpc::{Fault, FaultKind};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::member::{Member, now};

/// How long one who asks is kept waiting: an election may come in between.
const PATIENCE: Duration = Duration::from_millis(2500);
/// Pause before a leader is asked again that was none.
const RETRY: Duration = Duration::from_millis(50);

/// What a disk's primary asks the leader to propose.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Asked {
    /// In which it was made; not that of whoever passes it on.
    incarnation: Incarnation,
    command: Command,
}

/// What became of it.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    Accepted,
    Rejected(Rejection),
    /// It was not even appended.
    NotLeader,
    Unknown,
}

/// The log behind a node's mirrored disks. It ends with the member.
pub struct DiskAuthority {
    /// The member has the agent, and the agent these disks.
    member: Weak<Member>,
    states: watch::Receiver<Arc<State>>,
    /// Passes states on.
    _states: JoinSet<()>,
}

impl DiskAuthority {
    pub fn new(member: &Arc<Member>) -> Self {
        let mut views = member.log.watch();
        let (sender, states) = watch::channel(Arc::clone(&views.borrow_and_update().state));
        let mut passing = JoinSet::new();
        passing.spawn(async move {
            while views.changed().await.is_ok() {
                sender.send_replace(Arc::clone(&views.borrow_and_update().state));
            }
        });
        Self { member: Arc::downgrade(member), states, _states: passing }
    }
}

#[async_trait]
impl Authority for DiskAuthority {
    async fn propose(&self, incarnation: Incarnation, command: Command) -> Outcome {
        let Some(member) = self.member.upgrade() else { return Outcome::Unknown };
        let asked = Asked { incarnation, command };
        let deadline = Instant::now() + PATIENCE;
        while let Some(leader) = leader(&member, deadline).await {
            let answer = if leader == member.id {
                propose(&member, &asked).await
            } else {
                let within = deadline.saturating_duration_since(Instant::now());
                member.ask_to_propose(leader, &asked, within).await
            };
            match answer {
                Answer::Accepted => return Outcome::Accepted,
                Answer::Rejected(why) => return outcome_of(&Err(why)),
                // Never sent again: what was sent may still come, after what would be sent now.
                Answer::Unknown => return Outcome::Unknown,
                Answer::NotLeader => sleep(RETRY).await,
            }
        }
        Outcome::Unknown
    }

    async fn barrier(&self) -> Option<Arc<State>> {
        let member = self.member.upgrade()?;
        let deadline = Instant::now() + PATIENCE;
        while let Some(leader) = leader(&member, deadline).await {
            let within = deadline.saturating_duration_since(Instant::now());
            let index = if leader == member.id {
                read_index(&member, within).await
            } else {
                member.ask_for_read_index(leader, within).await
            };
            if let Some(index) = index {
                let mut views = member.log.watch();
                let reached = timeout_at(deadline, views.wait_for(|view| view.index >= index)).await;
                return Some(Arc::clone(&reached.ok()?.ok()?.state));
            }
            sleep(RETRY).await;
        }
        None
    }

    fn watch(&self) -> watch::Receiver<Arc<State>> {
        self.states.clone()
    }
}

/// Who leads, as soon as that is known.
async fn leader(member: &Member, deadline: Instant) -> Option<NodeId> {
    if Instant::now() >= deadline {
        return None;
    }
    let mut statuses = member.log.watch_status();
    let known = timeout_at(deadline, statuses.wait_for(|status| status.leader.is_some())).await;
    known.ok()?.ok()?.leader
}

/// Proposes on this node. These commands belong to no office (protocol, section 3).
async fn propose(member: &Member, asked: &Asked) -> Answer {
    let proposal =
        Proposal { incarnation: asked.incarnation, office: None, at: now(), commands: vec![asked.command.clone()] };
    match member.log.propose(proposal).await {
        Ok(Committed { .. }) => Answer::Accepted,
        Err(ProposeError::Rejected(why)) => Answer::Rejected(why),
        Err(ProposeError::NotLeader { .. } | ProposeError::Stopped(_)) => Answer::NotLeader,
        Err(ProposeError::Unknown(_)) => Answer::Unknown,
    }
}

/// Proposes for a peer what only a disk's primary may ask for.
pub(crate) async fn propose_for(member: &Member, peer: NodeId, asked: Asked) -> Result<Answer, Fault> {
    check(peer, &asked.command)?;
    Ok(propose(member, &asked).await)
}

/// Whether it is a command of a disk's primary, and in the peer's own name.
fn check(peer: NodeId, command: &Command) -> Result<(), Fault> {
    let by = match command {
        Command::Outdate { by, .. } | Command::InSync { by, .. } | Command::Solo { by, .. } => by,
        _ => return Err(Fault::new(FaultKind::Conflict, "this is not a command of a disk's primary")),
    };
    if by.node != peer {
        let text = format!("node {peer} can't ask for this in the name of node {}", by.node);
        return Err(Fault::new(FaultKind::Conflict, text));
    }
    Ok(())
}

/// The index up to which everything is in the log that was committed before the call; `None` if this node does not lead,
/// or nobody confirms that it does.
pub(crate) async fn read_index(member: &Member, within: Duration) -> Option<u64> {
    member.log.read_barrier(within.min(PATIENCE)).await.ok()
}

#[cfg(test)]
mod tests {
    use model::{DiskId, Epoch, Life, NodeLife, Uuid, Version};

    use super::*;

    #[test]
    fn a_peer_proposes_only_what_is_its_own_to_propose() {
        let outdate = |node| Command::Outdate {
            disk: DiskId(Uuid::nil()),
            by: NodeLife { node: NodeId(node), life: Life(1) },
            epoch: Epoch::default(),
            ver: Version::default(),
            replicas: Vec::new(),
        };
        assert!(check(NodeId(2), &outdate(2)).is_ok());
        assert!(check(NodeId(2), &outdate(3)).is_err(), "in the name of another");
        assert!(check(NodeId(2), &Command::Cancel { migration: Uuid::nil() }).is_err(), "a job's");
    }
}
