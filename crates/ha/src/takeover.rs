//! Who takes over what, in which order (T4, 8.5).

use std::collections::BTreeMap;

use model::{InstanceId, NodeId, State};

/// What the master knows of a node besides the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    /// Memory for further guests, MiB; of a node that was never asked it is taken to be enough.
    pub memory_mib: Option<u64>,
}

/// What becomes of one instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// It.
    pub instance: InstanceId,
    /// Where it goes and why there, or why it goes nowhere; each one sentence for people.
    pub to: Result<(NodeId, String), String>,
}

/// Where every instance goes that should run and whose owner's life has ended, the important ones first (parameter
/// `ha_priority`, then the name). `state` is as it will be: with the dead node's death applied. Nodes that are dead, offline or
/// not `vm_capable` get nothing; drained ones only if there is nobody else.
pub fn plan(state: &State, rooms: &BTreeMap<NodeId, Room>) -> Vec<Choice> {
    let _ = (state, rooms);
    Vec::new()
}

/// What [`plan`] would do if `node` died now; for a node that is dead already, or owns nothing, empty.
pub fn rehearse(state: &State, node: NodeId, rooms: &BTreeMap<NodeId, Room>) -> Vec<Choice> {
    let _ = (state, node, rooms);
    Vec::new()
}
