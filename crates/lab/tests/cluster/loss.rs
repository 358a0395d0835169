//! Nodes die: with a majority left, and without.

use crate::support::*;

#[test]
fn when_the_master_dies_another_goes_on_with_its_jobs() {
    let cluster = formed(2, true);
    cluster.ok("node01", &format!("{ADD} -n node01 vm1"));
    cluster.ok("node01", &format!("{ADD} -n node02 vm2"));
    // One that runs when the master dies, one that waits for a lock that the first holds.
    for _ in 0..2 {
        cluster.ok("node01", "gnt-debug delay --submit -n node02 3");
    }
    let jobs = cluster.table("node01", "job", "id,status");
    let unfinished: Vec<_> = jobs.iter().filter(|job| job[1] != "success").map(|job| job[0].clone()).collect();
    assert_eq!(unfinished.len(), 2, "{jobs:?}");

    cluster.kill("node01").unwrap();
    eventually("node02 is the master", || {
        cluster.run("witness", "gnt-cluster master-ping").status.success() && cluster.master("witness") == "node02"
    });
    for job in unfinished {
        cluster.ok("node02", &format!("gnt-job wait {job}"));
    }
    assert_eq!(cluster.status_of("node02", "vm1").as_deref(), Some("ERROR_nodedown"));
    assert_eq!(cluster.status_of("node02", "vm2").as_deref(), Some("running"));
    cluster.ok("node02", &format!("{ADD} -n node02 vm3"));
    assert_eq!(cluster.status_of("witness", "vm3").as_deref(), Some("running"));
    assert!(!cluster.run("node02", "gnt-cluster verify").status.success(), "verify does not notice a dead node");

    // The old master comes back as a member, and starts the guest whose only disk it has.
    cluster.start("node01").unwrap();
    cluster.wait_for_master("node01");
    assert_eq!(cluster.master("node01"), "node02");
    eventually("the guest of the dead node runs again", || {
        cluster.status_of("node01", "vm1").as_deref() == Some("running")
    });
    cluster.assert_whole("node01");
}

#[test]
fn without_a_majority_everything_is_refused_and_nothing_changes() {
    let cluster = formed(2, true);
    cluster.ok("node01", &format!("{ADD} --no-start -n node01 vm1"));
    let before = cluster.configuration("node01");
    cluster.kill("node02").unwrap();
    cluster.kill("witness").unwrap();
    eventually("node01 knows that it is alone", || !cluster.run("node01", "gnt-cluster master-ping").status.success());

    let no_master = ["No master", "no majority of the voting nodes (node01, node02, witness)", "Nothing was changed"];
    for line in [
        "gnt-instance list",
        "gnt-cluster info",
        "gnt-cluster verify",
        "gnt-instance startup vm1",
        "gnt-instance remove -f vm1",
        "gnt-node modify -O yes node02",
        "gnt-cluster master-failover",
        "gnt-debug delay 0",
    ] {
        cluster.refused("node01", line, 1, &no_master);
    }
    assert_eq!(cluster.ok("node01", "gnt-cluster getmaster").trim(), "node01");

    cluster.start("node02").unwrap();
    cluster.wait_for_master("node02");
    cluster.wait_for_master("node01");
    // Terms pass with each election; the rest is as it was.
    let lasting = |text: String| -> Vec<String> {
        let passing = ["term of office", "address owner", "Master node"];
        text.lines().filter(|line| !passing.iter().any(|key| line.trim().starts_with(key))).map(str::to_owned).collect()
    };
    let nodes_with_roles = |lines: Vec<String>| -> Vec<String> {
        // Which of the two candidates is the master is for the election to say.
        lines.into_iter().map(|line| line.replace(" M ", " C ")).collect()
    };
    let after = nodes_with_roles(lasting(cluster.configuration("node02")));
    assert_eq!(after, nodes_with_roles(lasting(before)));
    assert_eq!(cluster.status_of("node02", "vm1").as_deref(), Some("ADMIN_down"));
    cluster.ok("node02", "gnt-instance startup vm1");
}
