//! Operating systems: what all nodes that run instances have in common.

use std::collections::{BTreeMap, BTreeSet};

use jobs::agent::SystemInfo;
use model::{NodeId, OsSettings, State};
use opcodes::wire::{Cell, CellState, Query};

use super::{Asked, Live, list};

/// An operating system, as the cluster has it.
#[derive(Clone, Debug, PartialEq)]
pub struct System {
    name: String,
    /// Every node that answers has it, complete.
    valid: bool,
    /// What all of them offer.
    variants: Vec<String>,
    api_versions: Vec<u32>,
    parameters: Vec<(String, String)>,
    settings: OsSettings,
}

/// All operating systems, by name. Those that new instances can't have (hidden, blacklisted, or not complete on every node)
/// are left out, unless the query names them or asks for the column that tells them apart, as in Ganeti.
pub fn all(state: &State, live: &Live, query: &Query) -> Vec<(String, System)> {
    let nodes = answers(state, live);
    let names: BTreeSet<&str> = nodes.values().flat_map(|systems| systems.keys().copied()).collect();
    let asks = |column: &str| query.names.is_some() || query.fields.iter().any(|field| field == column);
    names
        .into_iter()
        .map(|name| (name.to_owned(), system(state, &nodes, name)))
        .filter(|(_, system)| system.valid || asks("valid"))
        .filter(|(_, system)| !system.settings.hidden || asks("hidden"))
        .filter(|(_, system)| !system.settings.blacklisted || asks("blacklisted"))
        .collect()
}

type Answers<'a> = BTreeMap<NodeId, BTreeMap<&'a str, &'a SystemInfo>>;

/// The answers of the nodes that count. Of two definitions with the same name the node uses the first.
fn answers<'a>(state: &State, live: &'a Live) -> Answers<'a> {
    let counts = |id: &NodeId| state.nodes.get(id).is_some_and(|node| node.vm_capable && !node.offline);
    let mut nodes = Answers::new();
    for (node, asked) in live.systems.iter().filter(|(node, _)| counts(node)) {
        if let Asked::Answer(systems) = asked {
            let known = nodes.entry(*node).or_default();
            for system in systems {
                known.entry(system.name.as_str()).or_insert(system);
            }
        }
    }
    nodes
}

fn system(state: &State, nodes: &Answers<'_>, name: &str) -> System {
    let found: Vec<&SystemInfo> =
        nodes.values().filter_map(|systems| systems.get(name)).copied().filter(|system| system.valid).collect();
    let settings = state.cluster.as_ref().and_then(|cluster| cluster.os.get(name)).cloned().unwrap_or_default();
    System {
        name: name.to_owned(),
        valid: found.len() == nodes.len(),
        variants: common(&found, |system| &system.variants),
        api_versions: common(&found, |system| &system.api_versions),
        parameters: common(&found, |system| &system.parameters),
        settings,
    }
}

/// What all of them have, in the order of the first.
fn common<T: Clone + PartialEq>(systems: &[&SystemInfo], part: fn(&SystemInfo) -> &Vec<T>) -> Vec<T> {
    let Some((first, rest)) = systems.split_first() else {
        return Vec::new();
    };
    part(first).iter().filter(|item| rest.iter().all(|other| part(other).contains(item))).cloned().collect()
}

/// One cell.
pub fn cell(system: &System, field: &str) -> Cell {
    match field {
        "name" => Cell::value(system.name.as_str()),
        "valid" => Cell::value(system.valid),
        "hidden" => Cell::value(system.settings.hidden),
        "blacklisted" => Cell::value(system.settings.blacklisted),
        "variants" => list(system.variants.iter().map(String::as_str)),
        "api_versions" => list(system.api_versions.iter().copied()),
        "parameters" => list(system.parameters.iter().map(|(name, help)| vec![name.as_str(), help.as_str()])),
        _ => Cell::empty(CellState::Unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{table, testing};
    use super::*;
    use opcodes::wire::Resource;
    use serde_json::json;

    fn rows(live: &Live, state: &State, fields: &[&str], names: Option<&[&str]>) -> Vec<Vec<serde_json::Value>> {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let query = Query { what: Resource::Os, fields: owned(fields), names: names.map(owned) };
        let table = table(state, live, &query).unwrap();
        table.data.into_iter().map(|row| row.into_iter().map(|cell| cell.1).collect()).collect()
    }

    #[test]
    fn what_every_node_has_is_offered() {
        let state = testing::cluster();
        let mut live = testing::live(&state);
        assert_eq!(
            rows(&live, &state, &["name", "variants", "api_versions"], None),
            [[json!("busybox"), json!(["default", "minimal"]), json!([20])]]
        );
        // the other node has one variant less, and another system of its own
        let Some(Asked::Answer(systems)) = live.systems.get_mut(&NodeId(2)) else { panic!() };
        systems[0].variants.remove(0);
        systems.push(SystemInfo { name: "debian".into(), ..systems[0].clone() });
        assert_eq!(rows(&live, &state, &["name", "variants"], None), [[json!("busybox"), json!(["minimal"])]]);
        assert_eq!(
            rows(&live, &state, &["name", "valid"], None),
            [[json!("busybox"), json!(true)], [json!("debian"), json!(false)]]
        );
        assert_eq!(rows(&live, &state, &["name"], Some(&["debian"])), [[json!("debian")]]);
        // a node that does not answer has no say
        live.systems.insert(NodeId(1), Asked::NoAnswer);
        assert_eq!(rows(&live, &state, &["name"], None), [[json!("busybox")], [json!("debian")]]);
    }

    #[test]
    fn what_is_hidden_is_shown_to_who_asks_for_it() {
        let mut state = testing::cluster();
        let settings = OsSettings { hidden: true, ..OsSettings::default() };
        state.cluster.as_mut().unwrap().os.insert("busybox".into(), settings);
        let live = testing::live(&state);
        assert!(rows(&live, &state, &["name"], None).is_empty());
        assert_eq!(rows(&live, &state, &["name", "hidden"], None), [[json!("busybox"), json!(true)]]);
    }
}
