//! Nodes are apart from each other and from the machine.

use std::collections::BTreeSet;
use std::fs;

use lab::{Error, Lab};

use crate::support::*;

#[test]
fn a_node_sees_its_own_state_and_nobody_elses() {
    let lab = up(config());
    let (one, two) = (lab.node("node01").unwrap(), lab.node("node02").unwrap());
    for (node, secret) in [(&one, "secret-of-one"), (&two, "secret-of-two")] {
        let script = format!(
            "for d in /var/lib/cardume /var/log/cardume /srv/ganeti/file-storage /run /tmp; do echo {secret} >$d/{secret}; done"
        );
        let output = node.exec(["sh", "-c", &script]).unwrap();
        assert!(output.status.success(), "{output:?}");
    }
    for (node, own, other) in [(&one, "secret-of-one", "secret-of-two"), (&two, "secret-of-two", "secret-of-one")] {
        let places = "cd / && ls /var/lib/cardume /var/log/cardume /srv/ganeti/file-storage /run /tmp";
        let seen = node.exec(["sh", "-c", places]).unwrap().stdout;
        assert_eq!(seen.matches(own).count(), 5, "{seen}");
        assert_eq!(seen.matches(other).count(), 0, "{seen}");
        // Not by another way either: the lab's directory is covered.
        let dir = node.exec(["find", DIR]).unwrap().stdout;
        assert_eq!(dir.trim(), DIR);
        assert_eq!(node.exec(["hostname"]).unwrap().stdout.trim(), node.name);
    }
    assert_eq!(fs::read_to_string(one.state_dir().join("secret-of-one")).unwrap(), "secret-of-one\n");
    assert!(!fs::exists("/var/lib/cardume/secret-of-one").unwrap());
}

#[test]
fn a_node_sees_its_own_processes_and_network_only() {
    let lab = up(config());
    let node = lab.node("node01").unwrap();
    let processes = node.exec(["sh", "-c", "cat /proc/[0-9]*/comm"]).unwrap().stdout;
    let mut processes: Vec<&str> = processes.lines().collect();
    processes.sort();
    assert_eq!(processes, ["cardume", "sh", "sleep"]);
    let links = node.exec(["sh", "-c", "cd /sys/class/net && echo *"]).unwrap().stdout;
    assert_eq!(links.trim(), "br0 lo rep up0");
    let hosts = node.exec(["getent", "hosts", "node02"]).unwrap().stdout;
    assert!(hosts.contains("10.0.0.6"), "{hosts}");
    for name in ["node02", "10.1.0.6", "client"] {
        assert!(node.exec(["ping", "-c1", "-W5", name]).unwrap().status.success(), "no answer from {name}");
    }
}

#[test]
fn nothing_is_added_to_the_machine_and_nothing_is_left() {
    let lock = locked();
    let before = Machine::now();
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let lab = Lab::up(config()).unwrap();
    // Something that would outlive a lab which only ended the processes that it knows.
    let node = lab.node("node01").unwrap();
    node.exec(["sh", "-c", "setsid sleep 1000 >/dev/null 2>&1 & mount -t tmpfs none /mnt"]).unwrap();
    let members = ["node01", "node02", "client"];
    let used: BTreeSet<_> = members.iter().flat_map(|m| namespaces(lab.node(m).unwrap().pid().unwrap())).collect();
    assert_eq!(used.len(), 4 * members.len(), "members share namespaces");
    let ours = namespaces(std::process::id() as i32);
    assert!(used.is_disjoint(&ours));

    let during = Machine::now();
    assert_eq!(during.processes.len(), members.len() + 1, "members and switch: {:?}", during.processes);
    assert_eq!(Machine { processes: Vec::new(), ..during }, before);
    assert_eq!(fs::read_to_string("/proc/sys/kernel/hostname").unwrap(), name);
    lab.down().unwrap();
    assert_eq!(Machine::now(), before);
    assert!(!fs::exists(DIR).unwrap());
    let left: Vec<i32> = living().filter(|pid| !used.is_disjoint(&namespaces(*pid))).collect();
    assert!(left.is_empty(), "processes {left:?} are still in the lab's namespaces");
    drop(lock);
}

#[test]
fn a_directory_that_is_not_a_labs_is_left_alone() {
    let _lock = locked();
    let dir = tempfile::tempdir().unwrap();
    let precious = dir.path().join("precious");
    fs::write(&precious, "x").unwrap();
    let mut config = config();
    config.dir = dir.path().to_owned();
    let error = Lab::up(config).unwrap_err();
    assert!(matches!(error, Error::NotALab(_)), "{error}");
    assert!(precious.exists());
}
