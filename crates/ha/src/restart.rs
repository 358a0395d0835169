//! What becomes of a guest that crashed: restarted on its node, moved after repeated crashes, given up in the end.

use model::{Happening, InstanceId, NodeId, State, Timestamp};

use crate::takeover::candidates;

/// Crashes longer ago are forgotten, microseconds.
const WINDOW: u64 = 10 * 60 * 1_000_000;
/// So often it is restarted on a node, before it is moved.
const RESTARTS: usize = 2;
/// With this crash it is given up.
const LAST: usize = 6;

/// What to do about a guest that ended although it should run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Start it again on its node.
    Restart,
    /// Start it on another node that has its data.
    Move(NodeId),
    /// Leave it alone: it crashed too often. For people, one sentence.
    GiveUp(String),
}

/// Judges by the crashes that the history has of it: two restarts on a node within ten minutes, then the other node, and so
/// on; given up after six crashes in ten minutes. The crash that is judged is not in the history yet.
pub fn judge(state: &State, instance: InstanceId, now: Timestamp) -> Verdict {
    let Some(instance) = state.instances.get(&instance) else {
        return Verdict::GiveUp("it is not in the cluster any more".into());
    };
    let recent = state.history.iter().filter(|record| record.at.0.saturating_add(WINDOW) > now.0);
    let crashes: Vec<NodeId> = recent
        .filter_map(|record| match &record.what {
            Happening::Crashed { instance: crashed, node, .. } if *crashed == instance.id => Some(*node),
            _ => None,
        })
        .collect();
    let here = instance.owner.map_or(instance.primary, |owner| owner.node);
    if crashes.len() + 1 >= LAST {
        return Verdict::GiveUp(format!(
            "it crashed {} times within ten minutes, the last time on {}; 'gnt-instance startup {}' starts it again",
            crashes.len() + 1,
            state.node_name(here),
            instance.name
        ));
    }
    if crashes.iter().rev().take_while(|node| **node == here).count() < RESTARTS {
        return Verdict::Restart;
    }
    let others = candidates(state, instance);
    let other = others.iter().filter(|it| it.node != here && !it.drained).min_by_key(|it| (it.shaken, it.node));
    other.map_or(Verdict::Restart, |it| Verdict::Move(it.node))
}

#[cfg(test)]
mod tests;
