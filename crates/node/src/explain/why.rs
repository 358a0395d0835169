//! What happened to an instance or a node.

use std::collections::BTreeSet;

use model::{Happening, InstanceId, NodeId, Record, State, Timestamp};
use opcodes::Failure;
use opcodes::wire::{Why, WhyEvent};

use super::sentences::sentence;
use super::{Known, now};

/// What happened to the instance or node of that name, and how it is now. Of an instance that is not in the cluster any more,
/// what the history still has.
///
/// # Errors
/// Nothing has, or had, that name.
pub fn why(state: &State, known: &Known, name: &str) -> Result<Why, Failure> {
    if let Some((id, _)) = state.node_by_name(name) {
        let events = events(state, |record| concerns_node(state, &record.what, id));
        return Ok(Why { kind: "node".into(), name: name.to_owned(), now: now::node(state, known, id), events });
    }
    let instance = state.instance_by_name(name);
    let past = || state.history.iter().rev().find_map(|record| about(&record.what).filter(|(_, had)| *had == name));
    let Some(id) = instance.map(|instance| instance.id).or_else(|| past().map(|(id, _)| id)) else {
        return Err(Failure::unknown("Instance or node", name));
    };
    let mut nodes = nodes_in_history(state, id);
    let now = match instance {
        Some(instance) => {
            nodes.extend(std::iter::once(instance.primary).chain(instance.secondaries.iter().copied()));
            now::instance(state, known, instance)
        }
        None => vec![format!("{name} is not in the cluster any more.")],
    };
    // What its nodes did before there was the instance does not explain anything about it.
    let since = instance.map_or(Timestamp(0), |instance| instance.ctime);
    let events = events(state, |record| match about(&record.what) {
        Some((instance, _)) => instance == id,
        None => record.at >= since && of_nodes(&record.what).is_none_or(|node| nodes.contains(&node)),
    });
    Ok(Why { kind: "instance".into(), name: name.to_owned(), now, events })
}

fn events(state: &State, concerned: impl Fn(&Record) -> bool) -> Vec<WhyEvent> {
    let records: Vec<&Record> = state.history.iter().collect();
    let chosen = records.iter().enumerate().filter(|(_, record)| concerned(record));
    let event = |(place, record): (usize, &&Record)| WhyEvent {
        at: record.at,
        text: sentence(state, record, &records[..place]),
        record: Record::clone(record),
    };
    chosen.map(event).collect()
}

/// The instance that something happened to, and its name.
fn about(what: &Happening) -> Option<(InstanceId, &str)> {
    match what {
        Happening::TakenOver { instance, name, .. }
        | Happening::NotTakenOver { instance, name, .. }
        | Happening::Started { instance, name, .. }
        | Happening::NotStarted { instance, name, .. }
        | Happening::Crashed { instance, name, .. }
        | Happening::Moved { instance, name, .. }
        | Happening::Forced { instance, name, .. }
        | Happening::Outdated { instance, name, .. }
        | Happening::InSync { instance, name, .. } => Some((*instance, name)),
        Happening::Office { .. }
        | Happening::NodeDead { .. }
        | Happening::NodeJoined { .. }
        | Happening::Armed { .. }
        | Happening::Founded { .. } => None,
    }
}

/// The node that something happened to which is about no instance; `None`: to all.
fn of_nodes(what: &Happening) -> Option<NodeId> {
    match what {
        Happening::Office { node }
        | Happening::NodeDead { node, .. }
        | Happening::NodeJoined { node, .. }
        | Happening::Armed { node, .. } => Some(*node),
        _ => None,
    }
}

/// The nodes that had to do with something that happened to an instance.
fn involved(what: &Happening) -> Vec<NodeId> {
    match what {
        Happening::TakenOver { from, to, .. } | Happening::Moved { from, to, .. } => vec![*from, *to],
        Happening::Started { node, .. }
        | Happening::NotStarted { node, .. }
        | Happening::Crashed { node, .. }
        | Happening::InSync { node, .. } => vec![*node],
        Happening::Forced { from, to, .. } => from.iter().chain([to]).copied().collect(),
        Happening::Outdated { nodes, .. } => nodes.clone(),
        _ => Vec::new(),
    }
}

fn nodes_in_history(state: &State, id: InstanceId) -> BTreeSet<NodeId> {
    let records = state.history.iter().map(|record| &record.what);
    records.filter(|what| about(what).is_some_and(|(instance, _)| instance == id)).flat_map(involved).collect()
}

fn concerns_node(state: &State, what: &Happening, id: NodeId) -> bool {
    match what {
        Happening::Founded { .. } => true,
        Happening::NotTakenOver { instance, .. } => {
            state.instances.get(instance).is_some_and(|instance| instance.primary == id)
        }
        what => of_nodes(what) == Some(id) || involved(what).contains(&id),
    }
}
