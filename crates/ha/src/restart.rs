//! What becomes of a guest that crashed: restarted on its node, moved after repeated crashes, given up in the end.

use model::{InstanceId, NodeId, State, Timestamp};

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
    let _ = (state, instance, now);
    Verdict::Restart
}
