//! `cardume why` and `cardume ha`.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod common;

use common::{FakeDaemon, Reply, alone};
use model::{Evidence, Happening, Life, NodeId, Record, Timestamp};
use opcodes::Failure;
use opcodes::wire::{InstanceBound, NodeLease, NodePlan, PlannedMove, Request, Why, WhyEvent};
use serde::Serialize;
use serde_json::Value;

fn answers<T: Serialize>(value: &T) -> Reply {
    Reply::Ok(serde_json::to_value(value).unwrap())
}

fn story() -> Why {
    let at = Timestamp(1_795_410_454_123_456);
    let what = Happening::NodeDead { node: NodeId(2), life: Life(5), evidence: Evidence::AssertedOff };
    Why {
        kind: "instance".into(),
        name: "vm1".into(),
        now: vec!["vm1 runs on node01 (run 7).".into(), "disk/0 is in sync on node01 only.".into()],
        events: vec![WhyEvent {
            at,
            text: "node02 was declared dead: an operator asserted that it is off.".into(),
            record: Record { at, term: 3, master: Some(NodeId(1)), what },
        }],
    }
}

#[test]
fn why_tells_how_it_is_and_what_happened() {
    let daemon = FakeDaemon::script(vec![answers(&story())]);
    daemon.run(&["why", "vm1"]).is(
        0,
        "Instance vm1 now:\n  \
           vm1 runs on node01 (run 7).\n  \
           disk/0 is in sync on node01 only.\n\
         What happened:\n  \
           2026-11-23 05:07:34.123  node02 was declared dead: an operator asserted that it is off.\n",
        "",
    );
    assert_eq!(daemon.asked(), [Request::Why { name: "vm1".into() }]);

    let quiet = Why { kind: "node".into(), name: "node01".into(), events: Vec::new(), ..story() };
    let done = FakeDaemon::script(vec![answers(&quiet)]).run(&["why", "node01"]);
    assert!(done.out.starts_with("Node node01 now:\n"), "{}", done.out);
    assert!(done.out.ends_with("Nothing that the cluster remembers has happened to it.\n"), "{}", done.out);
}

#[test]
fn why_as_json_is_what_the_daemon_said() {
    let done = FakeDaemon::script(vec![answers(&story())]).run(&["why", "vm1", "--json"]);
    assert_eq!((done.code, serde_json::from_str::<Why>(&done.out).unwrap()), (0, story()));
}

#[test]
fn why_wants_one_name_that_is_known() {
    assert_eq!(alone(&["why"]).code, 1);
    assert_eq!(alone(&["why", "vm1", "vm2"]).code, 1);
    let unknown = Failure::unknown("Instance or node", "vm9");
    let done = FakeDaemon::script(vec![Reply::Refused(unknown)]).run(&["why", "vm9"]);
    assert!(done.code == 1 && done.err.contains("Instance or node 'vm9' not known"), "{done:?}");
}

fn terms(terms: &[(&str, u64)]) -> Vec<(String, u64)> {
    terms.iter().map(|(name, ms)| ((*name).to_owned(), *ms)).collect()
}

#[test]
fn the_bound_is_printed_as_a_sum() {
    let bound = |instance: &str, terms, total_ms, note: &str| InstanceBound {
        instance: instance.into(),
        node: "node01".into(),
        terms,
        total_ms,
        note: Some(note.into()),
    };
    let allowed = terms(&[("election", 650), ("wait", 1451), ("commit", 50), ("promote", 50), ("start", 500)]);
    let measured = terms(&[("election", 650), ("wait", 1451), ("measured", 412)]);
    let bounds = [
        bound("vm1", allowed, Some(2051), "no takeover of it was measured yet"),
        bound("vm2", measured, Some(1863), "as measured in one takeover"),
        bound("vm3", Vec::new(), None, "its disks are files that only its node has"),
    ];
    FakeDaemon::script(vec![answers(&bounds)]).run(&["ha", "bound"]).is(
        0,
        "vm1 on node01: at the most 2.05 s\n  \
           max(election 650, wait 1451) + commit 50 + promote 50 + start 500 = 2051 ms\n  \
           (no takeover of it was measured yet)\n\
         vm2 on node01: at the most 1.86 s\n  \
           max(election 650, wait 1451) + measured 412 = 1863 ms\n  \
           (as measured in one takeover)\n\
         vm3 on node01: not taken over by itself: its disks are files that only its node has\n",
        "",
    );
    let done = FakeDaemon::script(vec![answers(&bounds)]).run(&["ha", "bound", "--json"]);
    assert_eq!(serde_json::from_str::<Vec<InstanceBound>>(&done.out).unwrap(), bounds);
    FakeDaemon::script(vec![answers(&Vec::<Value>::new())]).run(&["ha", "bound"]).is(
        0,
        "There are no instances.\n",
        "",
    );
}

#[test]
fn the_plan_has_a_line_for_each_instance() {
    let planned = |instance: &str, to: Option<&str>, memory_mib, reason: &str| PlannedMove {
        instance: instance.into(),
        to: to.map(str::to_owned),
        memory_mib,
        reason: reason.into(),
    };
    let plans = [
        NodePlan {
            node: "node01".into(),
            automatic: true,
            note: None,
            instances: vec![
                planned("vm1", Some("node02"), 512, "node02 has all data of it in sync and 700 MiB free"),
                planned("webserver", None, 64, "its disks are files that only its node has"),
            ],
        },
        NodePlan {
            node: "node02".into(),
            automatic: false,
            note: Some("it is not armed: it is marked offline".into()),
            instances: Vec::new(),
        },
    ];
    let daemon = FakeDaemon::script(vec![answers(&plans)]);
    daemon.run(&["ha", "plan", "node01", "node02"]).is(
        0,
        "If node01 dies, by itself:\n  \
           vm1        512 MiB  -> node02  node02 has all data of it in sync and 700 MiB free\n  \
           webserver   64 MiB  stays      its disks are files that only its node has\n\
         If node02 dies, nothing happens by itself: it is not armed: it is marked offline\n  \
           it has no instances to run\n",
        "",
    );
    assert_eq!(daemon.asked(), [Request::HaPlan { names: vec!["node01".into(), "node02".into()] }]);
    let done = FakeDaemon::script(vec![answers(&plans)]).run(&["ha", "plan", "--json"]);
    assert_eq!(serde_json::from_str::<Vec<NodePlan>>(&done.out).unwrap(), plans);
}

fn leases() -> Vec<NodeLease> {
    let lease = |node: &str, life, dead, armed, age_ms, note: Option<&str>| NodeLease {
        node: node.into(),
        life,
        dead,
        armed,
        age_ms,
        note: note.map(str::to_owned),
    };
    vec![
        lease("node01", 4, false, true, Some(120), None),
        lease("node02", 12, true, true, Some(8100), None),
        lease("witness", 3, false, false, None, Some("it runs no instances")),
    ]
}

const LEASES: &str = "\
Node     Life  Newest lease  Armed  Why not
node01      4  0.12 s ago    yes
node02     12  dead          yes
witness     3  none          no     it runs no instances
";

#[test]
fn leases_are_shown_also_after_a_switch() {
    FakeDaemon::script(vec![answers(&leases())]).run(&["ha", "status"]).is(0, LEASES, "");
    for (word, on, said) in [
        ("arm", true, "Automatic failover is on. Nodes are armed as soon as they can be:\n"),
        (
            "disarm",
            false,
            "Automatic failover is off: the instances of a node that dies stay down until they are moved.\n",
        ),
    ] {
        let script = || vec![Reply::Ok(Value::Null), answers(&leases())];
        let daemon = FakeDaemon::script(script());
        daemon.run(&["ha", word]).is(0, &format!("{said}{LEASES}"), "");
        assert_eq!(daemon.asked(), [Request::HaSwitch { on }, Request::HaStatus]);
        let done = FakeDaemon::script(script()).run(&["ha", word, "--json"]);
        assert_eq!(serde_json::from_str::<Vec<NodeLease>>(&done.out).unwrap(), leases());
        assert_eq!(alone(&["ha", word, "node01"]).code, 1, "it is for the whole cluster");
    }
}

#[test]
fn the_help_teaches() {
    for (line, parts) in [
        (&["why", "--help"][..], &["with its evidence", "cardume why node02"][..]),
        (&["ha", "bound", "--help"], &["max(election, wait)", "lease has surely ended"]),
        (&["ha", "plan", "--help"], &["ha_priority", "Nothing is changed"]),
        (&["ha", "status", "--help"], &["the right to run its instances"]),
        (&["ha", "arm", "--help"], &["a witness is"]),
        (&["ha", "disarm", "--help"], &["gnt-node failover"]),
    ] {
        let done = alone(line);
        let words: String = done.out.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(done.code, 0, "{done:?}");
        for part in parts {
            assert!(words.contains(part), "{line:?} does not say '{part}':\n{}", done.out);
        }
    }
}
