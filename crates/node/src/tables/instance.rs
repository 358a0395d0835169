//! Instances: what is wanted of them, and what is so.

use std::collections::BTreeMap;

use jobs::agent::LiveInstance;
use model::{AdminState, Instance, Nic, NodeId, State};
use opcodes::wire::{Cell, CellState, timestamp};
use serde_json::{Value, json};

use super::{Asked, Live, dictionary, list, optional};

/// All instances, by name.
pub fn all(state: &State) -> Vec<(String, &Instance)> {
    state.instances.values().map(|instance| (instance.name.clone(), instance)).collect()
}

/// The nodes that may have its guest.
pub fn homes(instance: &Instance) -> impl Iterator<Item = NodeId> + '_ {
    std::iter::once(instance.primary).chain(instance.secondaries.iter().copied())
}

/// Whether only the node of an instance knows what that column shows.
pub fn is_live(field: &str) -> bool {
    matches!(field, "status" | "oper_state" | "oper_ram" | "oper_vcpus")
}

/// What the hypervisors have, by the name of the instance.
pub struct Runs<'a>(BTreeMap<&'a str, Vec<(NodeId, &'a LiveInstance)>>);

/// What is seen of an instance.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Sighting<'a> {
    /// It runs on its primary node, in the run that was committed for it.
    Running(&'a LiveInstance),
    /// This other node has it.
    Elsewhere(NodeId, &'a LiveInstance),
    /// It does not run.
    Gone,
    /// Its primary node does not answer.
    NoAnswer,
    /// Its primary node is marked offline.
    Offline,
}

impl<'a> Runs<'a> {
    /// From what the nodes said.
    pub fn new(live: &'a Live) -> Self {
        let mut runs: BTreeMap<&str, Vec<_>> = BTreeMap::new();
        for (node, asked) in &live.facts {
            if let Asked::Answer(facts) = asked {
                for run in &facts.instances {
                    runs.entry(&run.instance).or_default().push((*node, run));
                }
            }
        }
        Self(runs)
    }

    /// What is seen of an instance.
    pub fn sight(&self, state: &State, live: &Live, instance: &Instance) -> Sighting<'a> {
        match live.facts(state, instance.primary) {
            Asked::Offline => return Sighting::Offline,
            Asked::NoAnswer => return Sighting::NoAnswer,
            Asked::Answer(_) => {}
        }
        // What still has a process but has shut down or crashed serves nobody.
        let known = self.0.get(instance.name.as_str()).map_or(&[][..], Vec::as_slice);
        let serving = || known.iter().filter(|(_, run)| !matches!(run.state.as_str(), "shutdown" | "crashed"));
        let own = serving().find(|(node, run)| *node == instance.primary && instance.run == Some(run.run));
        // What waits for a migration's end on the other node does not run yet.
        let awaited = instance.migration.map(|migration| migration.run);
        let other = || serving().find(|(node, run)| *node != instance.primary && Some(run.run) != awaited);
        match (own, other()) {
            (Some((_, run)), _) => Sighting::Running(run),
            (None, Some((node, run))) => Sighting::Elsewhere(*node, run),
            (None, None) => Sighting::Gone,
        }
    }
}

impl<'a> Sighting<'a> {
    /// Ganeti's word for what is wanted and what is so.
    pub fn status(self, want: AdminState) -> &'static str {
        match (self, want) {
            (Sighting::Offline, _) => "ERROR_nodeoffline",
            (Sighting::NoAnswer, _) => "ERROR_nodedown",
            (Sighting::Elsewhere(..), _) => "ERROR_wrongnode",
            (Sighting::Running(_), AdminState::Up) => "running",
            (Sighting::Running(_), AdminState::Down | AdminState::Offline) => "ERROR_up",
            (Sighting::Gone, AdminState::Up) => "ERROR_down",
            (Sighting::Gone, AdminState::Down) => "ADMIN_down",
            (Sighting::Gone, AdminState::Offline) => "ADMIN_offline",
        }
    }

    /// Its run, wherever it is.
    fn run(self) -> Result<Option<&'a LiveInstance>, CellState> {
        match self {
            Sighting::Running(run) | Sighting::Elsewhere(_, run) => Ok(Some(run)),
            Sighting::Gone => Ok(None),
            Sighting::NoAnswer => Err(CellState::NoData),
            Sighting::Offline => Err(CellState::Offline),
        }
    }

    /// A cell with something that only a running instance has.
    fn cell(self, value: impl Fn(&LiveInstance) -> Value) -> Cell {
        match self.run() {
            Ok(Some(run)) => Cell::value(value(run)),
            Ok(None) => Cell::empty(CellState::Unavailable),
            Err(state) => Cell::empty(state),
        }
    }
}

/// One cell.
pub fn cell(state: &State, live: &Live, runs: &Runs<'_>, instance: &Instance, field: &str) -> Cell {
    let sighting = || runs.sight(state, live, instance);
    let backend = |name: &str| optional(state.filled_beparams(&instance.beparams).get(name).map(|value| json!(value)));
    let nics = |value: fn(&State, &Nic) -> Value| list(instance.nics.iter().map(|nic| value(state, nic)));
    let first_nic = |value: fn(&State, &Nic) -> Value| {
        optional(instance.nics.first().map(|nic| value(state, nic)).filter(|value| !value.is_null()))
    };
    match field {
        "name" => Cell::value(instance.name.as_str()),
        "uuid" => Cell::value(instance.id.to_string()),
        "status" => Cell::value(sighting().status(instance.want)),
        "oper_state" => match sighting().run() {
            Ok(run) => Cell::value(run.is_some()),
            Err(state) => Cell::empty(state),
        },
        "oper_ram" => sighting().cell(|run| run.memory_mib.into()),
        "oper_vcpus" => sighting().cell(|run| run.vcpus.into()),
        "admin_state" => Cell::value(instance.want.word()),
        "admin_up" => Cell::value(instance.want == AdminState::Up),
        "hypervisor" => Cell::value(instance.hypervisor.as_str()),
        "os" => Cell::value(instance.os.as_str()),
        "pnode" => Cell::value(state.node_name(instance.primary)),
        "pnode.group" => optional(
            state
                .nodes
                .get(&instance.primary)
                .and_then(|node| state.groups.get(&node.group))
                .map(|group| group.name.as_str()),
        ),
        "snodes" => list(instance.secondaries.iter().map(|id| state.node_name(*id))),
        "be/maxmem" | "be/memory" => backend("maxmem"),
        "be/minmem" => backend("minmem"),
        "be/vcpus" | "vcpus" => backend("vcpus"),
        "beparams" => dictionary(&state.filled_beparams(&instance.beparams)),
        "custom_beparams" => dictionary(&instance.beparams),
        "hvparams" => dictionary(&state.filled_hvparams(&instance.hypervisor, &instance.hvparams)),
        "custom_hvparams" => dictionary(&instance.hvparams),
        "disk_template" => Cell::value(instance.disk_template.name()),
        "disk.count" => Cell::value(instance.disks.len()),
        "disk.sizes" => list(instance.disks.iter().map(|disk| disk.size_mib)),
        "disk_usage" => Cell::value(instance.disks.iter().map(|disk| disk.size_mib).sum::<u64>()),
        "disks_active" => Cell::value(!instance.disks.is_empty() && instance.run.is_some()),
        "nic.count" => Cell::value(instance.nics.len()),
        "mac" => first_nic(mac),
        "nic.macs" => nics(mac),
        "ip" => first_nic(ip),
        "nic.ips" => nics(ip),
        "bridge" | "nic_link" => first_nic(link),
        "nic.links" => nics(link),
        "nic_mode" => first_nic(mode),
        "nic.modes" => nics(mode),
        // No hypervisor has a graphical console yet.
        "network_port" => Cell::empty(CellState::Unavailable),
        "tags" => list(instance.tags.iter().map(String::as_str)),
        "ctime" => Cell::value(timestamp(instance.ctime)),
        "mtime" => Cell::value(timestamp(instance.mtime)),
        "serial_no" => Cell::value(instance.serial_no),
        _ => Cell::empty(CellState::Unknown),
    }
}

fn mac(_: &State, nic: &Nic) -> Value {
    json!(nic.mac)
}

fn ip(_: &State, nic: &Nic) -> Value {
    json!(nic.ip)
}

fn link(state: &State, nic: &Nic) -> Value {
    json!(state.filled_nicparams(&nic.params).get("link"))
}

fn mode(state: &State, nic: &Nic) -> Value {
    json!(state.filled_nicparams(&nic.params).get("mode"))
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;
    use model::{InstanceId, RunId};

    /// What the status of `vm1` and its memory are after a change of the state and of what node 1 and node 2 run.
    fn status_of(change: impl FnOnce(&mut State, &mut Live)) -> (String, Cell) {
        let mut state = testing::cluster();
        let mut live = testing::live(&state);
        change(&mut state, &mut live);
        let instance = state.instance_by_name("vm1").unwrap();
        let runs = Runs::new(&live);
        let at = |field| cell(&state, &live, &runs, instance, field);
        (at("status").1.as_str().unwrap().to_owned(), at("oper_ram"))
    }

    fn vm1(state: &mut State) -> &mut Instance {
        let id: InstanceId = state.instance_by_name("vm1").unwrap().id;
        state.instances.get_mut(&id).unwrap()
    }

    fn runs_of(live: &mut Live, node: u64) -> &mut Vec<LiveInstance> {
        match live.facts.get_mut(&NodeId(node)).unwrap() {
            Asked::Answer(facts) => &mut facts.instances,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_status_says_what_is_wanted_and_what_is_so() {
        let memory = Cell::value(256);
        let none = Cell::empty(CellState::Unavailable);
        assert_eq!(status_of(|_, _| {}), ("running".into(), memory.clone()));
        assert_eq!(status_of(|state, _| vm1(state).want = AdminState::Down), ("ERROR_up".into(), memory.clone()));
        assert_eq!(status_of(|_, live| runs_of(live, 1).clear()), ("ERROR_down".into(), none.clone()));
        let off = |want| {
            status_of(|state, live| {
                vm1(state).want = want;
                runs_of(live, 1).clear();
            })
        };
        assert_eq!(off(AdminState::Down), ("ADMIN_down".into(), none.clone()));
        assert_eq!(off(AdminState::Offline), ("ADMIN_offline".into(), none.clone()));
        // another run of the same name on its node is not it
        assert_eq!(status_of(|_, live| runs_of(live, 1)[0].run = RunId(77)).0, "ERROR_down");
        assert_eq!(status_of(|_, live| runs_of(live, 1)[0].state = "paused".into()).0, "running");
        assert_eq!(status_of(|_, live| runs_of(live, 1)[0].state = "crashed".into()), ("ERROR_down".into(), none));
        let moved = status_of(|_, live| {
            let run = runs_of(live, 1).remove(0);
            runs_of(live, 2).push(run);
        });
        assert_eq!(moved, ("ERROR_wrongnode".into(), memory.clone()));
        // what another node has as well does not matter while it runs where it should
        assert_eq!(
            status_of(|_, live| {
                let run = runs_of(live, 1)[0].clone();
                runs_of(live, 2).push(run);
            })
            .0,
            "running"
        );
    }

    #[test]
    fn a_migration_is_running_until_it_is_over_and_then_as_well() {
        let migration = model::Migration {
            id: model::Uuid::from_u128(5),
            to: model::NodeLife { node: NodeId(2), life: model::Life(1) },
            run: RunId(77),
        };
        let incoming = |live: &mut Live| {
            let mut run = runs_of(live, 1)[0].clone();
            (run.run, run.state) = (RunId(77), "inmigrate".into());
            runs_of(live, 2).push(run);
        };
        let at = |source: &'static str, handed_over: bool, gone: bool| {
            status_of(|state, live| {
                incoming(live);
                runs_of(live, 1)[0].state = source.into();
                if gone {
                    runs_of(live, 1).clear();
                }
                let vm1 = vm1(state);
                if handed_over {
                    (vm1.primary, vm1.run) = (NodeId(2), Some(RunId(77)));
                } else {
                    vm1.migration = Some(migration);
                }
            })
            .0
        };
        assert_eq!(at("running", false, false), "running");
        assert_eq!(at("postmigrate", false, false), "running");
        // handed over, the old process not yet ended
        assert_eq!(at("postmigrate", true, false), "running");
        assert_eq!(at("running", true, true), "running");
        // what the destination holds can't run before it is handed over
        assert_eq!(at("running", false, true), "ERROR_down");
    }

    #[test]
    fn disks_that_are_shown_on_the_node_make_no_running_instance() {
        let mut state = testing::cluster();
        let id = state.instance_by_name("vm5").unwrap().id;
        let live = testing::live(&state);
        let shown = |state: &State| {
            let mut live = live.clone();
            runs_of(&mut live, 1).retain(|run| run.instance != "vm5");
            let at = |field| cell(state, &live, &Runs::new(&live), &state.instances[&id], field).1;
            (at("status"), at("disks_active"))
        };
        assert_eq!(shown(&state), (json!("ADMIN_down"), json!(false)));
        state.instances.get_mut(&id).unwrap().run = Some(RunId(70));
        assert_eq!(shown(&state), (json!("ADMIN_down"), json!(true)));
    }

    #[test]
    fn a_mirrored_instance_names_its_secondary_node() {
        let state = testing::cluster();
        let live = Live::default();
        let vm5 = state.instance_by_name("vm5").unwrap();
        let at = |field| cell(&state, &live, &Runs::new(&live), vm5, field);
        assert_eq!(at("disk_template"), Cell::value("drbd"));
        assert_eq!(at("pnode"), Cell::value("node01"));
        assert_eq!(at("snodes"), Cell::value(json!(["node02"])));
    }

    #[test]
    fn a_node_that_is_away_decides_the_status() {
        let down = ("ERROR_nodedown".to_owned(), Cell::empty(CellState::NoData));
        let offline = ("ERROR_nodeoffline".to_owned(), Cell::empty(CellState::Offline));
        assert_eq!(
            status_of(|_, live| {
                live.facts.insert(NodeId(1), Asked::NoAnswer);
            }),
            down
        );
        assert_eq!(
            status_of(|_, live| {
                live.facts.clear();
            }),
            down
        );
        assert_eq!(
            status_of(|_, live| {
                live.facts.insert(NodeId(1), Asked::Offline);
            }),
            offline
        );
        assert_eq!(status_of(|state, _| state.nodes.get_mut(&NodeId(1)).unwrap().offline = true), offline);
        // What the state says counts, whatever it answered before.
        assert_eq!(status_of(|state, _| state.nodes.get_mut(&NodeId(1)).unwrap().dead = true), down);
        let both = status_of(|state, _| {
            let node = state.nodes.get_mut(&NodeId(1)).unwrap();
            (node.dead, node.offline) = (true, true);
        });
        assert_eq!(both, offline);
    }

    #[test]
    fn values_that_hold_and_values_that_were_set_are_told_apart() {
        let state = testing::cluster();
        let live = Live::default();
        let runs = Runs::new(&live);
        let vm1 = state.instance_by_name("vm1").unwrap();
        let at = |field| cell(&state, &live, &runs, vm1, field);
        assert_eq!(at("be/vcpus"), Cell::value(1));
        assert_eq!(at("custom_beparams"), Cell::value(json!({"maxmem": 256, "minmem": 256})));
        assert_eq!(at("hvparams").1["acpi"], json!(true));
        assert_eq!(at("nic.links"), Cell::value(json!(["br0"])));
        assert_eq!(at("ip"), Cell::empty(CellState::Unavailable));
        assert_eq!(at("nic.ips"), Cell::value(json!([null])));
        assert_eq!(at("disk_usage"), Cell::value(10240));
    }
}
