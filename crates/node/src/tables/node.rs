//! Nodes: their roles, and what they have.

use std::collections::BTreeMap;

use jobs::agent::Facts;
use model::{Node, NodeId, NodeRole, State};
use opcodes::format::natural_cmp;
use opcodes::wire::{Cell, CellState, timestamp};
use serde_json::Value;

use super::{Asked, Live, list, optional};

/// All nodes, by name.
pub fn all(state: &State) -> Vec<(String, (NodeId, &Node))> {
    state.nodes.iter().map(|(id, node)| (node.name.clone(), (*id, node))).collect()
}

/// Whether only the node itself knows what that column shows.
pub fn is_live(field: &str) -> bool {
    matches!(field, "bootid" | "ctotal" | "dfree" | "dtotal" | "mfree" | "mnode" | "mtotal")
}

/// Which instances each node has: by primary node, and by further replicas. Names are in natural order.
#[derive(Default)]
pub struct Instances<'a> {
    primary: BTreeMap<NodeId, Vec<&'a str>>,
    secondary: BTreeMap<NodeId, Vec<&'a str>>,
}

impl<'a> Instances<'a> {
    /// From the state.
    pub fn new(state: &'a State) -> Self {
        let mut instances = Self::default();
        for instance in state.instances.values() {
            instances.primary.entry(instance.primary).or_default().push(&instance.name);
            for node in &instance.secondaries {
                instances.secondary.entry(*node).or_default().push(&instance.name);
            }
        }
        for names in instances.primary.values_mut().chain(instances.secondary.values_mut()) {
            names.sort_by(|left, right| natural_cmp(left, right));
        }
        instances
    }

    /// Names of those that have it as primary node.
    pub fn primary(&self, node: NodeId) -> &[&'a str] {
        self.primary.get(&node).map_or(&[], Vec::as_slice)
    }

    /// Names of those that have a further replica there.
    pub fn secondary(&self, node: NodeId) -> &[&'a str] {
        self.secondary.get(&node).map_or(&[], Vec::as_slice)
    }
}

/// One cell.
pub fn cell(state: &State, live: &Live, instances: &Instances<'_>, id: NodeId, node: &Node, field: &str) -> Cell {
    let fact = |value: fn(&Facts) -> Value| match live.facts(state, id) {
        Asked::Offline => Cell::empty(CellState::Offline),
        // What a node without instances has is of no interest to them.
        _ if !node.vm_capable => Cell::empty(CellState::Unavailable),
        Asked::NoAnswer => Cell::empty(CellState::NoData),
        Asked::Answer(facts) => Cell::value(value(facts)),
    };
    match field {
        "name" => Cell::value(node.name.as_str()),
        "uuid" => Cell::value(node.uuid.to_string()),
        "pip" => Cell::value(node.primary_ip.to_string()),
        "sip" => Cell::value(node.secondary_ip.to_string()),
        "group" => optional(state.groups.get(&node.group).map(|group| group.name.as_str())),
        "role" => optional(state.role(id).map(|role| role.letter().to_string())),
        "master" => Cell::value(state.role(id) == Some(NodeRole::Master)),
        "master_candidate" => Cell::value(node.master_candidate),
        "master_capable" => Cell::value(node.master_capable),
        "vm_capable" => Cell::value(node.vm_capable),
        "offline" => Cell::value(node.offline),
        "drained" => Cell::value(node.drained),
        "powered" => Cell::value(node.powered),
        "pinst_cnt" => Cell::value(instances.primary(id).len()),
        "pinst_list" => list(instances.primary(id).iter().copied()),
        "sinst_cnt" => Cell::value(instances.secondary(id).len()),
        "sinst_list" => list(instances.secondary(id).iter().copied()),
        "bootid" => fact(|facts| facts.boot.as_str().into()),
        "ctotal" => fact(|facts| facts.cpus.into()),
        "dtotal" => fact(|facts| facts.disk_total_mib.into()),
        "dfree" => fact(|facts| facts.disk_free_mib.into()),
        "mtotal" => fact(|facts| facts.memory_total_mib.into()),
        "mnode" => fact(|facts| facts.memory_node_mib.into()),
        "mfree" => fact(|facts| facts.memory_free_mib.into()),
        "tags" => list(node.tags.iter().map(String::as_str)),
        "ctime" => Cell::value(timestamp(node.ctime)),
        "mtime" => Cell::value(timestamp(node.mtime)),
        "serial_no" => Cell::value(node.serial_no),
        _ => Cell::empty(CellState::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use serde_json::json;

    #[test]
    fn what_a_node_has_is_shown_where_it_can_be_known() {
        let state = testing::cluster();
        let mut live = testing::live(&state);
        live.facts.insert(NodeId(2), Asked::NoAnswer);
        let instances = Instances::new(&state);
        let at = |id, field| cell(&state, &live, &instances, NodeId(id), &state.nodes[&NodeId(id)], field);
        assert_eq!(at(1, "mtotal"), Cell::value(8000));
        assert_eq!(at(2, "mtotal"), Cell::empty(CellState::NoData));
        assert_eq!(at(3, "mtotal"), Cell::empty(CellState::Unavailable));
        assert_eq!(at(4, "mtotal"), Cell::empty(CellState::Offline));
        assert_eq!(at(1, "pinst_list"), Cell::value(json!(["vm1", "vm2", "vm5", "vm10"])));
        assert_eq!(at(2, "pinst_cnt"), Cell::value(1));
        assert_eq!(at(2, "sinst_cnt"), Cell::value(1));
        assert_eq!(at(2, "sinst_list"), Cell::value(json!(["vm5"])));
        assert_eq!(at(1, "sinst_cnt"), Cell::value(0));
        let roles: Vec<_> = (1..=4).map(|id| at(id, "role").1).collect();
        assert_eq!(roles, ["M", "C", "R", "O"]);
        assert_eq!(at(1, "master"), Cell::value(true));
    }
}
