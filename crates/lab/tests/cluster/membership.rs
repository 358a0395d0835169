//! Who is in the cluster, and what is not let into it.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rpc::{CallError, FaultKind, Identity, Lane};

use crate::support::*;

#[test]
fn a_cluster_grows_and_what_was_removed_stays_outside() {
    let cluster = formed(3, false);
    let cluster_info = |node: &str| cluster.ok(node, "gnt-cluster info");
    for node in ["node01", "node02", "node03"] {
        assert_eq!(cluster_info(node), cluster_info("node01"), "{node} has its own idea of the cluster");
        assert_eq!(cluster.master(node), "node01");
    }
    cluster.assert_whole("node02");

    let keys = tempfile::tempdir().unwrap();
    copy_identity(&cluster, "node03", keys.path());
    assert_eq!(knock(&cluster, keys.path()), Knock::Served);

    cluster.ok("node01", "gnt-node remove node03");
    eventually("node03 is in no cluster", || cluster.run("node03", "gnt-cluster info").code() == 5);
    assert_eq!(knock(&cluster, keys.path()), Knock::Refused);
    cluster.wait_for_voters("node01", 1).unwrap();
    cluster.assert_whole("node01");

    // It founds a cluster of its own; the name is one that resolves and is nobody's.
    cluster.ok("node03", "gnt-cluster init --master-netdev=br0 --enabled-hypervisors=fake vm3");
    copy_identity(&cluster, "node03", keys.path());
    assert_eq!(knock(&cluster, keys.path()), Knock::Refused);
    cluster.refused("node01", "gnt-node add node02", 1, &["already_exists"]);

    // Back again, under a new number.
    cluster.ok("node03", "gnt-cluster destroy --yes-do-it");
    cluster.add_node("node01", "node03", &[]).unwrap();
    cluster.wait_for_voters("node01", 3).unwrap();
    cluster.assert_whole("node03");
}

#[test]
fn a_node_that_was_removed_while_it_was_down_does_no_harm() {
    let cluster = formed(2, true);
    cluster.kill("node02").unwrap();
    let said = cluster.ok("node01", "gnt-node remove node02");
    assert!(said.contains("WARNING") && said.contains("could not be told"), "{said}");
    let before = cluster.configuration("node01");

    cluster.start("node02").unwrap();
    cluster.wait_for_daemon("node02").unwrap();
    for line in ["gnt-instance list", "gnt-cluster master-failover", "gnt-debug delay 0"] {
        let output = cluster.run("node02", line);
        assert!(!output.status.success(), "'{line}' works on a node that was removed:\n{}", output.stdout);
    }
    assert_eq!(cluster.configuration("node01"), before);
    assert_eq!(cluster.master("witness"), "node01");
}

fn copy_identity(cluster: &Cluster, node: &str, to: &Path) {
    for file in fs::read_dir(cluster.at(node).state_dir().join("identity")).unwrap() {
        let file = file.unwrap().path();
        fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}

#[derive(Debug, PartialEq)]
enum Knock {
    Served,
    Refused,
}

/// Calls node01's port between nodes with an identity from a folder, from where no node is.
fn knock(cluster: &Cluster, identity: &Path) -> Knock {
    let identity = Arc::new(Identity::load(identity).unwrap().expect("an identity"));
    let address = SocketAddr::from((cluster.at("node01").address, 5081));
    let network = cluster.client().unwrap().network().unwrap();
    let call = async || {
        let client = rpc::Client::new(identity);
        let patience = Duration::from_secs(10);
        client.call_json::<_, ()>(1, address, Lane::Control, "/no-such-call", &(), patience).await
    };
    let outcome = network
        .run(|| tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(call()))
        .unwrap();
    match outcome {
        // Who is let in is told that there is no such call.
        Err(CallError::Refused { fault, .. }) if fault.kind == FaultKind::NotFound => Knock::Served,
        Err(CallError::Refused { fault, .. }) if fault.kind == FaultKind::Forbidden => Knock::Refused,
        Err(CallError::NotSent { source: rpc::ConnectError::Identity(_), .. }) => Knock::Refused,
        other => panic!("neither served nor refused: {other:?}"),
    }
}

#[test]
fn bad_input_is_refused_and_changes_nothing() {
    let cluster = formed(2, true);
    cluster.ok("node01", &format!("{ADD} --no-start -n node01 vm1"));
    let before = cluster.configuration("node01");
    let jobs_before = cluster.table("node01", "job", "id").len();

    let fake = "gnt-instance add -t diskless -H fake -o none --no-install";
    let file = "gnt-instance add -t file -o busybox+default";
    for (line, code, words) in [
        (format!("{fake} -n nosuchnode vm2"), 1, &["error type: unknown_entity", "Node 'nosuchnode' not known"][..]),
        (format!("{fake} -n witness vm2"), 1, &["wrong_state", "Cannot use non-vm_capable primary node 'witness'"]),
        (format!("{fake} -n node01 vm1"), 1, &["already_exists", "Instance 'vm1' is already in the cluster"]),
        (format!("{fake} -n node01 vm9"), 1, &["resolver_error", "The given name (vm9) does not resolve"]),
        (format!("{fake} -n node01 --no-name-check ../vm2"), 1, &["wrong_input", "Invalid instance name"]),
        (
            format!("{fake} -n node01 -B memory=900g vm2"),
            1,
            &["insufficient_resources", "Not enough memory on node node01"],
        ),
        (format!("{fake} -n node01 -B memory=lots vm2"), 1, &["Parameter Error: Invalid value 'lots'"]),
        (format!("{fake} -n node01 -B nosuchparam=1 vm2"), 1, &["Parameter Error: Unknown parameter 'nosuchparam'"]),
        (
            format!("{file} -n node01 -s 900t vm2"),
            1,
            &["insufficient_resources", "Not enough disk space on target node node01"],
        ),
        (format!("{file} -n node01 --disk 0:size=lots vm2"), 1, &["wrong_input", "Invalid size 'lots'"]),
        (format!("{file} -n node01 -s 4x vm2"), 2, &["Usage", "option -s: invalid value: '4x'"]),
        (format!("{file} -n node01 vm2"), 1, &["wrong_input", "No disk information specified"]),
        (format!("{file} -n node01 -s 1g --net 0:link=nobr vm2"), 1, &["environment_error", "Missing bridges nobr"]),
        (format!("{file} -n node01 -s 1g -H kvm:kernel_path=/nosuch vm2"), 1, &["/nosuch"]),
        (format!("{file} -n node01 -s 1g -H nosuchhv vm2"), 1, &["Selected hypervisor (nosuchhv) not enabled"]),
        (format!("{file} -n node01 -s 1g -H xen-pvm vm2"), 1, &["Selected hypervisor (xen-pvm) not enabled"]),
        (
            "gnt-instance add -t file -o debootstrap+default -n node01 -s 1g vm2".to_owned(),
            1,
            &[
                "wrong_input",
                "OS 'debootstrap+default' not in supported OS list for node node01",
                "Directory for OS debootstrap not found in search path",
            ],
        ),
        (
            "gnt-instance add -t nosuchtemplate -s 1g -o busybox+default -n node01 vm2".to_owned(),
            2,
            &["option -t: invalid choice: 'nosuchtemplate'"],
        ),
        ("gnt-instance add vm2 vm3".to_owned(), 1, &["Command add expects 1 argument(s)"]),
        (
            "gnt-instance startup nosuch".to_owned(),
            1,
            &["wrong_input", "Selection filter does not match any instances"],
        ),
        ("gnt-instance console vm1".to_owned(), 1, &["vm1"]),
        ("gnt-instance remove -f nosuch".to_owned(), 1, &["unknown_entity", "Instance 'nosuch' not known"]),
        ("gnt-instance remove vm1 </dev/null".to_owned(), 13, &["no terminal"]),
        ("gnt-instance modify -B memory=lots vm1".to_owned(), 1, &["Parameter Error: Invalid value 'lots'"]),
        ("gnt-cluster master-failover".to_owned(), 1, &["wrong_input", "node01 is already the master"]),
        ("gnt-cluster init cluster01".to_owned(), 1, &["wrong_state", "Cluster is already initialised"]),
        ("gnt-cluster destroy".to_owned(), 1, &["--yes-do-it"]),
        ("gnt-cluster destroy --yes-do-it".to_owned(), 1, &["There are still 1 instance(s) in this cluster"]),
        ("gnt-node add node02".to_owned(), 1, &["already_exists", "Node node02 already in the cluster"]),
        ("gnt-node add nosuchnode".to_owned(), 1, &["resolver_error", "The given name (nosuchnode) does not resolve"]),
        ("gnt-node remove node01".to_owned(), 1, &["Node is the master node"]),
        ("gnt-node modify -O yes node01".to_owned(), 1, &["The master role can be changed only via master-failover"]),
    ] {
        cluster.refused("node01", &line, code, words);
    }
    cluster.refused("witness", "gnt-cluster master-failover", 1, &["wrong_state", "candidates is: node01 node02"]);
    cluster.refused("node02", "cardume join --token x 10.0.0.5", 1, &["in the cluster cluster01 already, as 'node02'"]);

    assert_eq!(cluster.configuration("node01"), before);
    assert_eq!(cluster.configuration("node02"), before);
    assert!(cluster.table("node01", "job", "id").len() >= jobs_before);
    cluster.assert_whole("node02");
}
