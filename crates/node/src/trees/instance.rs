//! `gnt-instance info`.

use model::{Disk, DiskAccess, Instance, Mirror, MirrorMode, MirrorReplica, Nic, NodeId, State};
use opcodes::Failure;
use opcodes::format::{Units, size};
use opcodes::wire::Tree;

use super::{entry, inherited, line_or_none, time, under};
use crate::tables::{self, Live, Runs, Sighting};

/// What `gnt-instance info` shows of the instances that are named, in that order; of all without names. `is_static`: only
/// what is configured.
///
/// # Errors
/// A name that no instance has.
pub fn instance_info(state: &State, live: &Live, names: &[String], is_static: bool) -> Result<Tree, Failure> {
    let names = (!names.is_empty()).then_some(names);
    let runs = Runs::new(live);
    let chosen = tables::select("Instance", names, tables::instances(state))?;
    let shown = chosen.into_iter().map(|instance| {
        let sighting = (!is_static).then(|| runs.sight(state, live, instance));
        one(state, instance, sighting)
    });
    Ok(Tree::List(shown.collect()))
}

fn one(state: &State, instance: &Instance, sighting: Option<Sighting<'_>>) -> Tree {
    let nics = instance.nics.iter().enumerate().map(|(index, it)| nic(state, index, it));
    let disks = instance.disks.iter().enumerate();
    let disks = disks.map(|(index, it)| disk(state, instance, index, it, sighting.is_some()));
    Tree::Map(vec![
        entry("Instance name", &instance.name),
        entry("UUID", instance.id),
        entry("Serial number", instance.serial_no),
        entry("Creation time", time(instance.ctime)),
        entry("Modification time", time(instance.mtime)),
        entry("State", run_state(state, instance, sighting)),
        under("Nodes", nodes(state, instance)),
        entry("Operating system", &instance.os),
        under("Operating system parameters", osparams(state, instance)),
        // No hypervisor has a graphical console yet.
        entry("Allocated network port", "None"),
        entry("Hypervisor", &instance.hypervisor),
        under(
            "Hypervisor parameters",
            inherited(&instance.hvparams, &state.filled_hvparams(&instance.hypervisor, &instance.hvparams)),
        ),
        under("Back-end parameters", backend(state, instance)),
        under("NICs", Tree::List(nics.collect())),
        entry("Disk template", instance.disk_template),
        under("Disks", Tree::List(disks.collect())),
    ])
}

fn run_state(state: &State, instance: &Instance, sighting: Option<Sighting<'_>>) -> String {
    let configured = format!("configured to be {}", instance.want.word());
    let actual = match sighting {
        // As with an offline node in Ganeti: there is nothing but what is configured.
        None | Some(Sighting::Offline) => return configured,
        Some(Sighting::Running(run)) if run.state == "running" => "up".to_owned(),
        Some(Sighting::Running(run)) => format!("up ({})", run.state),
        Some(Sighting::Elsewhere(node, _)) => format!("up on node {}, not its primary", state.node_name(node)),
        Some(Sighting::Gone) => "down".to_owned(),
        Some(Sighting::NoAnswer) => {
            format!("unknown (node {} does not answer)", state.node_name(instance.primary))
        }
    };
    format!("{configured}, actual state is {actual}")
}

fn nodes(state: &State, instance: &Instance) -> Tree {
    let group = |id: NodeId| {
        let node = state.nodes.get(&id)?;
        Some((state.groups.get(&node.group)?.name.as_str(), node.group))
    };
    let primary = group(instance.primary).map_or_else(String::new, |(name, uuid)| format!("{name} (UUID {uuid})"));
    let secondaries: Vec<String> = instance
        .secondaries
        .iter()
        .map(|id| {
            let node = state.node_name(*id);
            match group(*id) {
                Some((name, uuid)) => format!("{node} (group {name}, group UUID {uuid})"),
                None => node,
            }
        })
        .collect();
    Tree::List(vec![
        Tree::Map(vec![entry("primary", state.node_name(instance.primary)), entry("group", primary)]),
        Tree::Map(vec![entry("secondaries", secondaries.join(", "))]),
    ])
}

fn osparams(state: &State, instance: &Instance) -> Tree {
    let name = instance.os.split('+').next().unwrap_or_default();
    let settings = state.cluster.as_ref().and_then(|cluster| cluster.os.get(name));
    let mut filled = settings.map(|settings| settings.osparams.clone()).unwrap_or_default();
    filled.extend(instance.osparams.clone());
    inherited(&instance.osparams, &filled)
}

/// Ganeti shows `memory`, the older name of `maxmem`, among them.
fn backend(state: &State, instance: &Instance) -> Tree {
    let mut filled = state.filled_beparams(&instance.beparams);
    if let Some(memory) = filled.get("maxmem").cloned() {
        filled.insert("memory".to_owned(), memory);
    }
    inherited(&instance.beparams, &filled)
}

fn nic(state: &State, index: usize, nic: &Nic) -> Tree {
    let filled = state.filled_nicparams(&nic.params);
    let param = |name: &str| filled.get(name).map_or_else(String::new, ToString::to_string);
    let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "None".to_owned());
    Tree::Map(vec![
        entry(&format!("nic/{index}"), ""),
        entry("MAC", &nic.mac),
        entry("IP", or_none(&nic.ip)),
        entry("mode", param("mode")),
        entry("link", param("link")),
        entry("vlan", param("vlan")),
        // There are no networks with addresses to give out.
        entry("network", "None"),
        entry("UUID", nic.uuid),
        entry("name", or_none(&nic.name)),
    ])
}

fn disk(state: &State, instance: &Instance, index: usize, disk: &Disk, live: bool) -> Tree {
    let access = match disk.access {
        DiskAccess::Rw => "rw",
        DiskAccess::Ro => "ro",
    };
    let size = size(disk.size_mib as f64, Units::Human);
    let mut entries = vec![
        entry(&format!("disk/{index}"), format_args!("{}, size {size}", instance.disk_template)),
        entry("access mode", access),
    ];
    match &disk.mirror {
        Some(mirror) => entries.extend(mirrored(state, instance, mirror, live)),
        None => {
            let folder = state.cluster.as_ref().map_or("", |cluster| cluster.file_storage_dir.as_str());
            let path = format!("{folder}/{}/{}.file.disk{index}", instance.name, disk.id);
            entries.push(entry("logical_id", format_args!("['file', '{path}']")));
            if live {
                // A file has no device number.
                entries.push(entry("on primary", format_args!("{path} (N/A:N/A)")));
            }
        }
    }
    entries.push(entry("name", disk.name.as_deref().unwrap_or("None")));
    entries.push(entry("UUID", disk.id));
    Tree::Map(entries)
}

/// What the cluster has agreed on about a mirrored disk. Progress of a resync is not here: `cardume disk status` asks the
/// nodes for it.
fn mirrored(state: &State, instance: &Instance, mirror: &Mirror, live: bool) -> Vec<(String, Tree)> {
    let mut replicas: Vec<&MirrorReplica> = mirror.replicas.values().collect();
    replicas.sort_by_key(|replica| (replica.node != instance.primary, replica.slot));
    let mut entries: Vec<_> = ["nodeA", "nodeB", "nodeC"]
        .iter()
        .zip(&replicas)
        .map(|(key, replica)| entry(key, format_args!("{}, slot={}", state.node_name(replica.node), replica.slot)))
        .collect();
    let mode = match mirror.mode {
        MirrorMode::Strict => "strict",
        MirrorMode::Manual => "manual",
    };
    let members: Vec<String> =
        replicas.iter().filter(|it| it.member.is_some()).map(|it| state.node_name(it.node)).collect();
    entries.push(entry("mode", mode));
    entries.push(entry("epoch", mirror.epoch));
    entries.push(entry("version", mirror.ver));
    entries.push(entry("in sync", line_or_none(members.iter().map(String::as_str))));
    if live {
        for replica in replicas {
            let key = if replica.node == instance.primary { "on primary" } else { "on secondary" };
            let active = if mirror.primary.is_some() { "active" } else { "not active" };
            let status = match replica.member {
                Some(_) => "in sync, status ok",
                None => "not in sync, status *DEGRADED*",
            };
            entries.push(entry(key, format_args!("{active}, {status}")));
        }
    }
    entries
}

#[cfg(test)]
mod tests {
    use super::super::yaml;
    use super::*;
    use crate::tables::Asked;
    use crate::tables::testing::{self, MADE};
    use model::AdminState;
    use opcodes::format::tree;

    fn shown(state: &State, live: &Live, names: &[&str], is_static: bool) -> Result<String, Failure> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        instance_info(state, live, &names, is_static).map(|info| tree(&info))
    }

    #[test]
    fn an_instance_is_shown_as_in_ganeti() {
        let state = testing::cluster();
        let text = shown(&state, &testing::live(&state), &["vm1"], false).unwrap();
        yaml::check(&text);
        let made = time(MADE);
        let path = "/srv/ganeti/file-storage/vm1/00000000-0000-0002-0000-000000000001.file.disk0";
        assert_eq!(
            text,
            [
                "- Instance name: vm1",
                "  UUID: 00000000-0000-0001-0000-000000000001",
                "  Serial number: 2",
                &format!("  Creation time: {made}"),
                &format!("  Modification time: {made}"),
                "  State: configured to be up, actual state is up",
                "  Nodes: ",
                "    - primary: node01",
                "      group: default (UUID 00000000-0000-0000-0000-000000000009)",
                "    - secondaries: ",
                "  Operating system: busybox+default",
                "  Operating system parameters: ",
                "  Allocated network port: None",
                "  Hypervisor: kvm",
                "  Hypervisor parameters: ",
                "    acpi: default (True)",
                "    boot_order: default (disk)",
                "    cpu_type: default ()",
                "    initrd_path: default ()",
                "    kernel_args: default (ro)",
                "    kernel_path: /boot/vmlinuz-guest",
                "    machine_version: default ()",
                "    reboot_behavior: default (reboot)",
                "    root_path: default (/dev/vda1)",
                "    serial_console: default (True)",
                "  Back-end parameters: ",
                "    always_failover: default (False)",
                "    auto_balance: default (True)",
                "    ha_priority: default (5)",
                "    maxmem: 256",
                "    memory: default (256)",
                "    minmem: 256",
                "    spindle_use: default (1)",
                "    vcpus: default (1)",
                "  NICs: ",
                "    - nic/0: ",
                "      MAC: aa:00:00:00:00:01",
                "      IP: None",
                "      mode: bridged",
                "      link: br0",
                "      vlan: ",
                "      network: None",
                "      UUID: 00000000-0000-0003-0000-000000000001",
                "      name: None",
                "  Disk template: file",
                "  Disks: ",
                "    - disk/0: file, size 10.0G",
                "      access mode: rw",
                &format!("      logical_id: ['file', '{path}']"),
                &format!("      on primary: {path} (N/A:N/A)"),
                "      name: None",
                "      UUID: 00000000-0000-0002-0000-000000000001",
                "",
            ]
            .join("\n")
        );
    }

    #[test]
    fn a_mirrored_disk_is_shown_with_what_the_cluster_has_agreed_on() {
        let mut state = testing::cluster();
        let disk = |state: &State, is_static: bool| {
            let text = shown(state, &testing::live(state), &["vm5"], is_static).unwrap();
            yaml::check(&text);
            assert!(text.contains("    - secondaries: node02 (group default, group UUID "), "{text}");
            text.split_once("  Disks: \n").unwrap().1.to_owned()
        };
        let healthy = [
            "    - disk/0: drbd, size 4.0G",
            "      access mode: rw",
            "      nodeA: node01, slot=0",
            "      nodeB: node02, slot=1",
            "      mode: strict",
            "      epoch: 1.0",
            "      version: 1.1",
            "      in sync: node01, node02",
            "      on primary: not active, in sync, status ok",
            "      on secondary: not active, in sync, status ok",
            "      name: None",
            "      UUID: 00000000-0000-0002-0000-000000000005",
            "",
        ];
        assert_eq!(disk(&state, false), healthy.join("\n"));
        assert!(!disk(&state, true).contains("on primary"));
        let id = state.instance_by_name("vm5").unwrap().id;
        let instance = state.instances.get_mut(&id).unwrap();
        let mirror = instance.disks[0].mirror.as_mut().unwrap();
        mirror.primary = Some(model::NodeLife { node: NodeId(1), life: model::Life(1) });
        mirror.replicas.get_mut(&testing::replica(2)).unwrap().member = None;
        let text = disk(&state, false);
        assert!(text.contains("      in sync: node01\n      on primary: active, in sync, status ok\n"), "{text}");
        assert!(text.contains("      on secondary: active, not in sync, status *DEGRADED*\n"), "{text}");
    }

    #[test]
    fn static_information_has_nothing_of_what_nodes_say() {
        let state = testing::cluster();
        let text = shown(&state, &Live::default(), &["vm1"], true).unwrap();
        yaml::check(&text);
        assert!(text.contains("\n  State: configured to be up\n") && !text.contains("on primary"));
    }

    #[test]
    fn the_state_says_where_it_really_is() {
        let mut state = testing::cluster();
        let line = |state: &State, live: &Live| {
            let text = shown(state, live, &["vm1"], false).unwrap();
            yaml::check(&text);
            text.lines().find_map(|line| line.strip_prefix("  State: ")).unwrap().to_owned()
        };
        let mut live = testing::live(&state);
        let Some(Asked::Answer(mut facts)) = live.facts.remove(&NodeId(1)) else { panic!() };
        assert_eq!(line(&state, &live), "configured to be up, actual state is unknown (node node01 does not answer)");
        facts.instances[0].state = "paused".into();
        live.facts.insert(NodeId(1), Asked::Answer(facts.clone()));
        assert_eq!(line(&state, &live), "configured to be up, actual state is up (paused)");
        let run = facts.instances.remove(0);
        live.facts.insert(NodeId(1), Asked::Answer(facts));
        assert_eq!(line(&state, &live), "configured to be up, actual state is down");
        let Some(Asked::Answer(other)) = live.facts.get_mut(&NodeId(2)) else { panic!() };
        other.instances.push(run);
        assert_eq!(line(&state, &live), "configured to be up, actual state is up on node node02, not its primary");
        let id = state.instance_by_name("vm1").unwrap().id;
        state.instances.get_mut(&id).unwrap().want = AdminState::Down;
        state.nodes.get_mut(&NodeId(1)).unwrap().offline = true;
        assert_eq!(line(&state, &live), "configured to be down");
    }

    #[test]
    fn one_without_disks_has_an_empty_list() {
        let state = testing::cluster();
        let text = shown(&state, &Live::default(), &["vm3"], true).unwrap();
        yaml::check(&text);
        assert!(text.ends_with("  Disk template: diskless\n  Disks: \n"));
    }

    #[test]
    fn without_names_all_are_shown_and_an_unknown_one_is_refused() {
        let state = testing::cluster();
        let text = shown(&state, &Live::default(), &[], true).unwrap();
        let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("- Instance name: ")).collect();
        assert_eq!(names, ["vm1", "vm2", "vm3", "vm5", "vm10"]);
        let unknown = shown(&state, &Live::default(), &["vm9"], true);
        assert_eq!(unknown, Err(Failure::unknown("Instance", "vm9")));
    }
}
