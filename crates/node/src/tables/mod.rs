//! Tables: what `list` commands show, made of the replicated state and of what nodes answered.
//!
//! Nothing here asks a node. [`nodes_to_ask`] says whose answers a query is worth, the caller gets them, and [`table`] puts
//! them together; so a list of names disturbs nobody, and one node that does not answer costs a list no more than its own
//! cells.

mod instance;
mod job;
mod node;
mod os;
mod select;
#[cfg(test)]
pub mod testing;

use std::collections::{BTreeMap, BTreeSet};

use jobs::agent::{Facts, SystemInfo};
use model::{NodeId, State};
use opcodes::wire::{Cell, CellState, Query, Resource, Table};
use opcodes::{Failure, fields};

pub use instance::{Runs, Sighting, all as instances};
pub use node::{Instances, all as nodes};
pub use select::select;

/// What a node said.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked<T> {
    /// This.
    Answer(T),
    /// Nothing, or an error.
    NoAnswer,
    /// It is marked offline, so it was not asked.
    Offline,
}

/// What the nodes said. A node that is in neither map was not asked.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// What they have and run.
    pub facts: BTreeMap<NodeId, Asked<Facts>>,
    /// Their operating systems.
    pub systems: BTreeMap<NodeId, Asked<Vec<SystemInfo>>>,
}

impl Live {
    /// What a node has and runs. A mark in the state counts, also where the node was asked before it was made.
    fn facts(&self, state: &State, node: NodeId) -> Asked<&Facts> {
        match state.nodes.get(&node) {
            Some(node) if node.offline => return Asked::Offline,
            Some(node) if node.dead => return Asked::NoAnswer,
            _ => {}
        }
        match self.facts.get(&node) {
            Some(Asked::Answer(facts)) => Asked::Answer(facts),
            Some(Asked::Offline) => Asked::Offline,
            Some(Asked::NoAnswer) | None => Asked::NoAnswer,
        }
    }
}

/// What has to be asked of nodes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// What they have and run.
    pub facts: bool,
    /// Their operating systems.
    pub systems: bool,
}

/// What a query needs to know from nodes; nothing, if the state has it all.
pub fn needs(query: &Query) -> Needs {
    let any = |live: fn(&str) -> bool| query.fields.iter().any(|field| live(field));
    match query.what {
        Resource::Instance => Needs { facts: any(instance::is_live), systems: false },
        Resource::Node => Needs { facts: any(node::is_live), systems: false },
        Resource::Job => Needs::default(),
        // Which operating systems there are is itself known by the nodes alone.
        Resource::Os => Needs { facts: false, systems: true },
    }
}

/// The nodes whose answers a query needs. Nodes that are marked offline, were declared dead or run no instances are not among
/// them.
pub fn nodes_to_ask(state: &State, query: &Query) -> BTreeSet<NodeId> {
    if needs(query) == Needs::default() {
        return BTreeSet::new();
    }
    let names = query.names.as_deref();
    let wanted: BTreeSet<NodeId> = match query.what {
        // A name that is not known is refused when the table is made.
        Resource::Instance => select("Instance", names, instance::all(state))
            .map(|chosen| chosen.into_iter().flat_map(instance::homes).collect())
            .unwrap_or_default(),
        Resource::Node => select("Node", names, node::all(state))
            .map(|chosen| chosen.into_iter().map(|(id, _)| id).collect())
            .unwrap_or_default(),
        Resource::Job => BTreeSet::new(),
        Resource::Os => state.nodes.keys().copied().collect(),
    };
    let answers = |id: &NodeId| state.nodes.get(id).is_some_and(|node| node.vm_capable && !node.offline && !node.dead);
    wanted.into_iter().filter(answers).collect()
}

/// Makes a table. Names keep the order in which they are asked for; without names, rows are in natural order.
///
/// # Errors
/// A name that nothing has.
pub fn table(state: &State, live: &Live, query: &Query) -> Result<Table, Failure> {
    let names = query.names.as_deref();
    let data = match query.what {
        Resource::Instance => {
            let runs = Runs::new(live);
            let chosen = select("Instance", names, instance::all(state))?;
            rows(query, chosen, |instance, field| instance::cell(state, live, &runs, instance, field))
        }
        Resource::Node => {
            let instances = node::Instances::new(state);
            let chosen = select("Node", names, node::all(state))?;
            rows(query, chosen, |(id, node), field| node::cell(state, live, &instances, *id, node, field))
        }
        Resource::Job => rows(query, select("Job", names, job::all(state))?, |job, field| job::cell(job, field)),
        Resource::Os => rows(query, select("OS", names, os::all(state, live, query))?, os::cell),
    };
    let fields = query.fields.iter().map(|name| fields::column(query.what, name)).collect();
    Ok(Table { fields, data })
}

fn rows<T>(query: &Query, chosen: Vec<T>, cell: impl Fn(&T, &str) -> Cell) -> Vec<Vec<Cell>> {
    chosen.iter().map(|object| query.fields.iter().map(|field| cell(object, field)).collect()).collect()
}

/// A cell whose value may be missing because it makes no sense for the object.
fn optional(value: Option<impl Into<serde_json::Value>>) -> Cell {
    value.map_or_else(|| Cell::empty(CellState::Unavailable), Cell::value)
}

/// A cell with parameters by name.
fn dictionary(params: &model::Params) -> Cell {
    Cell::value(
        params.iter().map(|(name, value)| (name.clone(), serde_json::json!(value))).collect::<serde_json::Map<_, _>>(),
    )
}

/// A cell with names.
fn list<T: Into<serde_json::Value>>(items: impl IntoIterator<Item = T>) -> Cell {
    Cell::value(items.into_iter().map(Into::into).collect::<Vec<serde_json::Value>>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use opcodes::wire::FieldKind;

    fn query(what: Resource, fields: &[&str], names: Option<&[&str]>) -> Query {
        Query {
            what,
            fields: fields.iter().map(|field| (*field).to_owned()).collect(),
            names: names.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
        }
    }

    #[test]
    fn every_column_that_is_defined_is_known_to_its_table() {
        let state = testing::cluster();
        let live = testing::live(&state);
        for what in [Resource::Instance, Resource::Node, Resource::Job, Resource::Os] {
            let fields: Vec<&str> = fields::all(what).iter().map(|field| field.name).collect();
            let table = table(&state, &live, &query(what, &fields, None)).unwrap();
            assert!(!table.data.is_empty(), "{what:?}");
            for (column, field) in table.fields.iter().enumerate() {
                assert_ne!(field.kind, FieldKind::Unknown, "{}", field.name);
                for row in &table.data {
                    assert_ne!(row[column].state(), CellState::Unknown, "{}", field.name);
                }
            }
        }
    }

    #[test]
    fn a_column_that_nobody_knows_is_marked_so() {
        let state = testing::cluster();
        let asked = query(Resource::Node, &["name", "nosuchfield"], Some(&["node01"]));
        let table = table(&state, &Live::default(), &asked).unwrap();
        assert_eq!(table.fields[1].kind, FieldKind::Unknown);
        assert_eq!(table.data, [[Cell::value("node01"), Cell::empty(CellState::Unknown)]]);
    }

    #[test]
    fn only_nodes_whose_answer_is_worth_something_are_asked() {
        let state = testing::cluster();
        let ask = |asked: &Query| nodes_to_ask(&state, asked).into_iter().map(|id| id.0).collect::<Vec<_>>();
        // what is configured is in the state
        assert!(ask(&query(Resource::Instance, &["name", "os", "pnode"], None)).is_empty());
        assert!(ask(&query(Resource::Node, &["name", "role", "pinst_cnt"], None)).is_empty());
        assert!(ask(&query(Resource::Job, &["id", "status"], None)).is_empty());
        // the nodes of the chosen instances: a guest may be on the secondary one, where it should not be
        assert_eq!(ask(&query(Resource::Instance, &["status"], Some(&["vm1"]))), [1]);
        assert_eq!(ask(&query(Resource::Instance, &["status"], Some(&["vm5"]))), [1, 2]);
        assert_eq!(ask(&query(Resource::Instance, &["status"], Some(&["vm*"]))), [1, 2]);
        // node 3 is a witness, node 4 is marked offline
        assert_eq!(ask(&query(Resource::Node, &["mfree"], None)), [1, 2]);
        // what was declared dead costs nothing
        let mut buried = state.clone();
        buried.nodes.get_mut(&model::NodeId(2)).unwrap().dead = true;
        let asked = nodes_to_ask(&buried, &query(Resource::Node, &["mfree"], None));
        assert_eq!(asked.into_iter().collect::<Vec<_>>(), [model::NodeId(1)]);
        assert_eq!(ask(&query(Resource::Node, &["mfree"], Some(&["node02"]))), [2]);
        assert_eq!(ask(&query(Resource::Os, &["name"], None)), [1, 2]);
        // an unknown name is for the table to refuse
        assert!(ask(&query(Resource::Instance, &["status"], Some(&["nosuch"]))).is_empty());
        assert_eq!(needs(&query(Resource::Os, &["name"], None)), Needs { facts: false, systems: true });
    }

    #[test]
    fn names_keep_their_order_and_unknown_ones_are_refused() {
        let state = testing::cluster();
        let names = |asked: Option<&[&str]>| {
            let table = table(&state, &Live::default(), &query(Resource::Instance, &["name"], asked))?;
            Ok(table.data.iter().map(|row| row[0].1.as_str().unwrap().to_owned()).collect::<Vec<_>>())
        };
        assert_eq!(names(None), Ok(vec!["vm1".into(), "vm2".into(), "vm3".into(), "vm5".into(), "vm10".into()]));
        assert_eq!(names(Some(&["vm10", "vm2"])), Ok(vec!["vm10".into(), "vm2".into()]));
        assert_eq!(names(Some(&["vm1?", "vm1", "vm10"])), Ok(vec!["vm10".into(), "vm1".into()]));
        assert_eq!(names(Some(&["nosuch*"])), Ok(vec![]));
        assert_eq!(names(Some(&[])), Ok(vec![]));
        assert_eq!(names(Some(&["vm1", "vm9"])), Err(Failure::unknown("Instance", "vm9")));
    }
}
