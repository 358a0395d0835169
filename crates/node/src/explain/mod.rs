//! Explanations: what happened to an instance or a node and why, what would happen if a node died, and how long it would take.
//!
//! The texts are made of the state and its history, and of what the master has [at hand](Known); nothing is decided here.

mod ha;
mod now;
mod sentences;
#[cfg(test)]
mod tests;
mod why;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ::ha::Times;
use ::ha::takeover::Room;
use jobs::agent::{Call, Facts, Reply};
use model::{NodeId, State};

pub use ha::{bounds, plans, status};
pub use why::why;

use crate::office::Office;

/// How long a node may take to tell what it runs, before it counts as one that does not answer.
const LOOK: Duration = Duration::from_millis(900);

/// What the master knows besides the state.
#[derive(Default)]
pub struct Known {
    /// What nodes have and run. One that is not in it did not answer.
    facts: BTreeMap<NodeId, Facts>,
    /// What nodes have room for, as they told last.
    rooms: BTreeMap<NodeId, Room>,
    /// How long ago the newest round began that could have granted a node its lease.
    ages: BTreeMap<NodeId, Duration>,
    /// Why nodes are not armed.
    unarmed: BTreeMap<NodeId, String>,
    /// Who votes.
    voters: BTreeSet<NodeId>,
    /// The times of leases.
    times: Times,
}

impl Known {
    /// What is known at once.
    pub fn at_hand(office: &Office, state: &State) -> Self {
        let nodes = || state.nodes.keys().copied();
        Self {
            facts: BTreeMap::new(),
            rooms: office.failover.rooms(),
            ages: nodes().filter_map(|id| Some((id, office.desk.age(id)?))).collect(),
            unarmed: nodes().filter_map(|id| Some((id, office.failover.why_unarmed(id)?))).collect(),
            voters: office.log().status().voters,
            times: office.desk.times(),
        }
    }

    /// Also what the node says that has the instance of that name. If it does not answer, that costs [`LOOK`].
    pub async fn asked(office: &Office, state: &State, name: &str) -> Self {
        let mut known = Self::at_hand(office, state);
        let owner = state.instance_by_name(name).and_then(|instance| instance.owner);
        if let Some(owner) = owner.filter(|owner| !state.is_void(*owner))
            && state.nodes.get(&owner.node).is_some_and(|node| !node.offline)
            && let Ok(Reply::Facts(facts)) = office.ask(owner.node, Call::facts(state), LOOK).await
        {
            known.facts.insert(owner.node, *facts);
        }
        known
    }

    /// Why a node is not armed: one sentence without a full stop.
    fn why_unarmed(&self, state: &State, node: NodeId) -> String {
        if !state.cluster.as_ref().is_some_and(|cluster| cluster.ha) {
            return "automatic failover is switched off: 'cardume ha arm' switches it on".into();
        }
        self.unarmed.get(&node).cloned().unwrap_or_else(|| "the master has not asked it to be yet".into())
    }

    /// Whether a node's guard gets leases: it is there, and heard.
    fn is_served(&self, node: NodeId) -> bool {
        self.ages.get(&node).is_some_and(|age| *age < self.times.lease)
    }
}

/// `node01`, `node01 and node02`, `node01, node02 and node03`.
fn listed(names: &[String]) -> String {
    match names {
        [] => "nobody".into(),
        [one] => one.clone(),
        [most @ .., last] => format!("{} and {last}", most.join(", ")),
    }
}

/// Names of nodes, as in [`listed`].
fn named(state: &State, nodes: impl IntoIterator<Item = NodeId>) -> String {
    listed(&nodes.into_iter().map(|node| state.node_name(node)).collect::<Vec<_>>())
}

/// Seconds, with two decimals.
fn seconds(duration: Duration) -> String {
    format!("{:.2} s", duration.as_secs_f64())
}
