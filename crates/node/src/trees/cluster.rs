//! `gnt-cluster info`.

use std::collections::BTreeSet;
use std::path::PathBuf;

use model::{Cluster, DiskTemplate, NodeId, OsSettings, Params, State};
use opcodes::wire::Tree;

use super::{entry, line, line_or_none, time, under, values};

/// What `gnt-cluster info` shows. `voters` are the nodes that vote now, `os_search_path` the folders in which this node looks
/// for operating systems. Without a cluster there is nothing to show.
pub fn cluster_info(state: &State, voters: &BTreeSet<NodeId>, os_search_path: &[PathBuf]) -> Tree {
    let Some(cluster) = &state.cluster else {
        return Tree::Map(Vec::new());
    };
    let master = state.office.map_or_else(|| "(none)".to_owned(), |office| state.node_name(office.node));
    let os_names = |chosen: fn(&OsSettings) -> bool| {
        line(cluster.os.iter().filter(|(_, settings)| chosen(settings)).map(|(name, _)| name.as_str()))
    };
    let osparams = cluster.os.iter().filter(|(_, settings)| !settings.osparams.is_empty());
    Tree::Map(vec![
        entry("Cluster name", &cluster.name),
        entry("Cluster UUID", cluster.uuid),
        entry("Creation time", time(cluster.ctime)),
        entry("Modification time", time(cluster.mtime)),
        entry("Master node", master),
        entry("Architecture (this node)", format_args!("{}bits ({})", usize::BITS, std::env::consts::ARCH)),
        entry("Tags", line_or_none(cluster.tags.iter().map(String::as_str))),
        entry("Default hypervisor", cluster.hypervisors.first().map_or("", String::as_str)),
        entry("Enabled hypervisors", line(cluster.hypervisors.iter().map(String::as_str))),
        under("Hypervisor parameters", hypervisors(state, cluster)),
        under("OS parameters", Tree::map(osparams.map(|(name, settings)| (name.as_str(), values(&settings.osparams))))),
        entry("Hidden OSes", os_names(|settings| settings.hidden)),
        entry("Blacklisted OSes", os_names(|settings| settings.blacklisted)),
        under("Cluster parameters", parameters(cluster, os_search_path)),
        under("Default instance parameters", by_default(&state.filled_beparams(&Params::new()))),
        under("Default nic parameters", by_default(&state.filled_nicparams(&Params::new()))),
        under("High availability", availability(state, voters)),
    ])
}

fn hypervisors(state: &State, cluster: &Cluster) -> Tree {
    let mut names: Vec<&str> = cluster.hypervisors.iter().map(String::as_str).collect();
    names.sort_unstable();
    Tree::map(names.into_iter().map(|name| (name, values(&state.filled_hvparams(name, &Params::new())))))
}

fn parameters(cluster: &Cluster, os_search_path: &[PathBuf]) -> Tree {
    let folders: Vec<_> = os_search_path.iter().map(|folder| folder.display().to_string()).collect();
    Tree::Map(vec![
        entry("candidate pool size", cluster.candidate_pool_size),
        entry("maximal number of jobs running simultaneously", cluster.max_running_jobs),
        entry("mac prefix", &cluster.mac_prefix),
        entry("master netdev", &cluster.netdev),
        entry("master netmask", cluster.netmask),
        entry("file storage path", &cluster.file_storage_dir),
        entry("primary ip version", 4),
        entry("OS search path", folders.join(", ")),
        entry("enabled disk templates", line(cluster.disk_templates.iter().copied().map(DiskTemplate::name))),
    ])
}

/// Ganeti keeps sets of parameters by name, of which there is only this one.
fn by_default(filled: &Params) -> Tree {
    Tree::Map(vec![under("default", values(filled))])
}

fn availability(state: &State, voters: &BTreeSet<NodeId>) -> Tree {
    let voting: Vec<String> = voters.iter().map(|id| state.node_name(*id)).collect();
    let witnesses = state.nodes.values().filter(|node| node.is_witness()).map(|node| node.name.as_str());
    let owner = state.address_owner.map_or_else(|| "(none)".to_owned(), |id| state.node_name(id));
    let failover = jobs::standing_warning(state).map_or_else(|| "yes".to_owned(), |why| format!("no; {why}"));
    Tree::Map(vec![
        entry("automatic failover", failover),
        entry("voters", line_or_none(voting.iter().map(String::as_str))),
        entry("witness", line_or_none(witnesses)),
        entry("incarnation", state.incarnation.n),
        entry("term of office", state.office.map_or(0, |office| office.term)),
        entry("address owner", owner),
    ])
}

#[cfg(test)]
mod tests {
    use super::super::yaml;
    use super::*;
    use crate::tables::testing::{self, MADE};
    use model::ParamValue;
    use opcodes::format::tree;

    fn shown(state: &State) -> String {
        let path = ["/srv/ganeti/os", "/usr/share/cardume/os"].map(PathBuf::from);
        tree(&cluster_info(state, &[1, 2, 3].map(NodeId).into(), &path))
    }

    #[test]
    fn the_cluster_is_shown_as_in_ganeti_with_what_is_ours_at_the_end() {
        let text = shown(&testing::cluster());
        yaml::check(&text);
        let made = time(MADE);
        let bits = format!("{}bits ({})", usize::BITS, std::env::consts::ARCH);
        assert_eq!(
            text,
            [
                "Cluster name: cluster01",
                "Cluster UUID: 00000000-0000-0000-0000-0000000000c1",
                &format!("Creation time: {made}"),
                &format!("Modification time: {made}"),
                "Master node: node01",
                &format!("Architecture (this node): {bits}"),
                "Tags: (none)",
                "Default hypervisor: kvm",
                "Enabled hypervisors: kvm",
                "Hypervisor parameters: ",
                "  kvm: ",
                "    acpi: True",
                "    boot_order: disk",
                "    cpu_type: ",
                "    initrd_path: ",
                "    kernel_args: ro",
                "    kernel_path: ",
                "    machine_version: ",
                "    reboot_behavior: reboot",
                "    root_path: /dev/vda1",
                "    serial_console: True",
                "OS parameters: ",
                "Hidden OSes: ",
                "Blacklisted OSes: ",
                "Cluster parameters: ",
                "  candidate pool size: 10",
                "  maximal number of jobs running simultaneously: 20",
                "  mac prefix: aa:00:00",
                "  master netdev: br0",
                "  master netmask: 32",
                "  file storage path: /srv/ganeti/file-storage",
                "  primary ip version: 4",
                "  OS search path: /srv/ganeti/os, /usr/share/cardume/os",
                "  enabled disk templates: file, diskless",
                "Default instance parameters: ",
                "  default: ",
                "    always_failover: False",
                "    auto_balance: True",
                "    ha_priority: 5",
                "    maxmem: 128",
                "    minmem: 128",
                "    spindle_use: 1",
                "    vcpus: 1",
                "Default nic parameters: ",
                "  default: ",
                "    link: br0",
                "    mode: bridged",
                "    vlan: ",
                "High availability: ",
                "  automatic failover: yes",
                "  voters: node01, node02, node03",
                "  witness: node03",
                "  incarnation: 1",
                "  term of office: 7",
                "  address owner: node01",
                "",
            ]
            .join("\n")
        );
    }

    #[test]
    fn operating_systems_with_settings_of_their_own_are_named() {
        let mut state = testing::cluster();
        let cluster = state.cluster.as_mut().unwrap();
        cluster.tags.extend(["blue".to_owned(), "green".to_owned()]);
        let osparams = Params::from([("filesystem".to_owned(), ParamValue::Text("ext4".into()))]);
        cluster.os.insert("busybox".into(), OsSettings { osparams, hidden: true, blacklisted: false });
        cluster.os.insert("debian".into(), OsSettings { blacklisted: true, ..OsSettings::default() });
        let text = shown(&state);
        yaml::check(&text);
        assert!(text.contains("\nTags: blue, green\n"));
        assert!(text.contains(
            "\nOS parameters: \n  busybox: \n    filesystem: ext4\nHidden OSes: busybox\nBlacklisted OSes: debian\n"
        ));
    }

    #[test]
    fn secrets_of_the_cluster_are_not_shown() {
        let text = shown(&testing::cluster());
        assert!(!text.contains("the key") && !text.contains("the certificate"));
    }

    #[test]
    fn a_node_without_a_cluster_has_nothing_to_show() {
        assert_eq!(cluster_info(&State::default(), &BTreeSet::new(), &[]), Tree::Map(Vec::new()));
    }
}
