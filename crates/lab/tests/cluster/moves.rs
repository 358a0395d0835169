//! Planned moves by stopping and starting: of a guest, of a disk, of all that a node has.

use lab::probe::Continuity;

use crate::support::*;

/// How often a disk goes from node to node.
const TIMES: usize = 100;

#[test]
fn a_hundred_failovers_under_load_leave_no_difference() {
    let cluster = formed(2, true);
    cluster.ok("node01", &format!("{ADD_MIRRORED} --no-start --no-nics -n node01:node02 vm1"));
    // No guest: its boots would take most of the time. The node itself has the disk, writes to it, and looks whether it
    // finds on the other node what was written here.
    let mut home = "node01";
    for round in 1..=TIMES {
        let said = cluster.ok("node01", "gnt-instance activate-disks vm1");
        let (on, path) = (said.trim().split(':').next().unwrap(), said.trim().rsplit(':').next().unwrap());
        assert_eq!(on, home, "{said}");
        let before = round - 1;
        let script = format!(
            "set -e
            if [ {before} -gt 0 ]; then
                dd if={path} bs=64k skip=$(({before} % 100 * 4 + 1000)) count=4 status=none | \\
                    cmp - <(yes 'round {before}' | head -c 262144)
            fi
            yes 'round {round}' | head -c 262144 | \\
                dd of={path} bs=64k seek=$(({round} % 100 * 4 + 1000)) conv=notrunc,fsync iflag=fullblock status=none"
        );
        let output = cluster.at(home).exec(["bash", "-c", &script]).unwrap();
        assert!(output.status.success(), "round {round} on {home}: {}", output.stderr);
        cluster.ok("node01", "gnt-instance deactivate-disks vm1");
        cluster.ok("node01", "gnt-instance failover -f vm1");
        home = if home == "node01" { "node02" } else { "node01" };
    }
    cluster.wait_for_sync("node01");
    let said = cluster.ok("node01", "cardume disk verify vm1");
    assert!(said.contains("identical"), "{said}");
    cluster.assert_whole("node01");
}

#[test]
fn a_node_is_emptied_and_everything_goes_on_elsewhere() {
    let cluster = formed(3, true);
    let names = [("vm1", 10), ("vm2", 11), ("vm3", 12)];
    for (name, host) in names {
        cluster.ok("node01", &format!("{ADD_MIRRORED} --net 0:ip=10.0.0.{host} -n node01:node02 {name}"));
    }
    let client = cluster.client().unwrap();
    let guests = names.map(|(_, host)| Continuity::start(&client, [10, 0, 0, host].into()).unwrap());
    let all_answer = || guests.iter().for_each(|guest| guest.wait(5, PATIENCE).unwrap());
    let homes = || names.map(|(name, _)| cluster.homes(name).join(" "));
    all_answer();

    // One that can't be moved makes the whole fail, in its exit code too, and the others are moved all the same.
    cluster.ok("node01", "gnt-instance add -t file -s 64m -o busybox+default -B memory=128 --no-start --no-nics --no-name-check -n node01 vm4");
    cluster.refused("node01", "gnt-node failover -f node01", 1, &["vm4"]);
    assert_eq!(homes(), ["node02", "node02", "node02"]);
    all_answer();
    cluster.ok("node01", "gnt-instance remove -f vm4");

    // Live, and back.
    cluster.ok("node01", "gnt-node migrate -f node02");
    assert_eq!(homes(), ["node01", "node01", "node01"]);
    all_answer();

    // The second replicas go elsewhere.
    cluster.ok("node01", "gnt-instance replace-disks -n node03 vm1");
    cluster.wait_for_sync("node01");
    cluster.ok("node01", "gnt-node evacuate -f -s node02");
    let rows = cluster.table("node01", "instance", "name,snodes");
    assert!(rows.iter().all(|row| row[1] == "node03"), "{rows:?}");
    cluster.wait_for_sync("node01");
    all_answer();
    for (guest, (name, _)) in guests.into_iter().zip(names) {
        let history = guest.finish();
        assert_eq!(history.forgotten(), None);
        cluster.assert_on_disk("node01", name, &history);
        cluster.stop_and_compare("node01", name);
    }

    // A disk of another kind and back, and a bigger one.
    cluster.ok("node01", "gnt-instance modify -t file vm1");
    cluster.ok("node01", "gnt-instance startup vm1");
    cluster.ok("node01", "gnt-instance shutdown vm1");
    cluster.ok("node01", "gnt-instance modify -t drbd -n node02 vm1");
    cluster.ok("node01", "gnt-instance grow-disk vm1 0 64m");
    cluster.ok("node01", "gnt-instance startup vm1");
    cluster.ok("node01", "gnt-instance migrate -f vm1");
    assert_eq!(cluster.homes("vm1"), ["node02"]);
    cluster.stop_and_compare("node01", "vm1");
    cluster.assert_whole("node01");
}
