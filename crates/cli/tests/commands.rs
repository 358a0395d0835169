//! Commands that ask and show: tables, information, questions, consoles, and lines that make no command.

#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod common;

use std::io::Cursor;
use std::sync::{Arc, Mutex};

use common::{FakeDaemon, Person, Reply, alone, run, session};
use opcodes::wire::{Cell, CellState, NodeStatus, Request, Resource, Table, Tree};
use opcodes::{ErrorCode, Failure, Opcode, fields};
use serde_json::{Value, json};

fn table(what: Resource, names: &[&str], data: Vec<Vec<Cell>>) -> Reply {
    let table = Table { fields: names.iter().map(|name| fields::column(what, name)).collect(), data };
    Reply::Ok(serde_json::to_value(table).unwrap())
}

fn status(has_master: bool, cluster: bool) -> Reply {
    let status = NodeStatus {
        version: "0.1.0".into(),
        node: cluster.then(|| "node2".into()),
        cluster: cluster.then(|| "cluster01".into()),
        master: cluster.then(|| "node1.gnt.test".into()),
        has_master,
        incarnation: 1,
        term: 3,
        voters: Default::default(),
    };
    Reply::Ok(serde_json::to_value(status).unwrap())
}

#[test]
fn instances_are_listed() {
    let text = |text: &str| Cell::value(text);
    let rows = move || {
        vec![
            vec![text("vm1"), text("kvm"), text("noop"), text("node1"), text("running"), Cell::value(256)],
            vec![
                text("vm2"),
                text("kvm"),
                text("noop"),
                text("node1"),
                text("ADMIN_down"),
                Cell::empty(CellState::Unavailable),
            ],
        ]
    };
    let usual = fields::defaults(Resource::Instance);
    let daemon = FakeDaemon::start(move |_| table(Resource::Instance, usual, rows()));
    daemon.run(&["gnt-instance", "list"]).is(
        0,
        "Instance Hypervisor OS   Primary_node Status     Memory\n\
         vm1      kvm        noop node1        running      256M\n\
         vm2      kvm        noop node1        ADMIN_down      -\n",
        "",
    );
    daemon.run(&["cluster", "getmaster", "extra"]).is(1, "", "Error: Command getmaster expects no arguments\n");
    let done = daemon.run(&["gnt-instance", "list", "--no-headers", "--separator=:", "vm1", "vm2"]);
    assert_eq!(done.out, "vm1:kvm:noop:node1:running:256\nvm2:kvm:noop:node1:ADMIN_down:-\n");
    assert!(matches!(daemon.asked().last(), Some(Request::Query(query)) if query.names.as_ref().unwrap().len() == 2));
    let shown: Value = serde_json::from_str(&daemon.run(&["gnt-instance", "list", "--json"]).out).unwrap();
    assert_eq!((&shown[0]["oper_ram"], &shown[1]["oper_ram"]), (&json!(256), &Value::Null));
}

#[test]
fn an_unknown_column_is_warned_of() {
    let daemon = FakeDaemon::start(|_| {
        table(Resource::Instance, &["nosuchfield"], vec![vec![Cell::empty(CellState::Unknown)]; 2])
    });
    daemon.run(&["gnt-instance", "list", "-o", "nosuchfield"]).is(
        14,
        "nosuchfield\n??\n??\n",
        "Warning: Queried for unknown fields nosuchfield\n",
    );
    daemon.run(&["gnt-instance", "list", "-o", "+nosuchfield"]);
    let asked = daemon.asked();
    let Some(Request::Query(query)) = asked.last() else { panic!("{asked:?}") };
    assert_eq!((query.fields.len(), query.fields[6].as_str()), (7, "nosuchfield"));
    assert_eq!(alone(&["gnt-node", "list-fields", "nosuchfield"]).code, 14);
}

#[test]
fn columns_are_listed_without_a_daemon() {
    let done = alone(&["gnt-job", "list-fields", "id", "received_ts"]);
    done.is(
        0,
        "Name        Type      Title    Description\n\
         id          Number    ID       Its number\n\
         received_ts Timestamp Received When it was submitted\n",
        "",
    );
}

#[test]
fn jobs_are_chosen_by_state() {
    let row = |id: u64, status: &str| {
        vec![Cell::value(id), Cell::value(status), Cell::value(json!(["TEST_DELAY(0)"])), Cell::value(status)]
    };
    let daemon = FakeDaemon::start(move |_| {
        let rows = vec![row(1, "success"), row(2, "error"), row(10, "running"), row(11, "waiting")];
        table(Resource::Job, &["id", "status", "summary", "status"], rows)
    });
    let ids = |options: &[&str]| daemon.run(&[&["gnt-job", "list", "--no-headers"], options].concat()).out;
    assert_eq!(ids(&["--error"]), " 2 error TEST_DELAY(0)\n".trim_start());
    assert_eq!(ids(&["--pending", "--running"]), "10 running TEST_DELAY(0)\n11 waiting TEST_DELAY(0)\n");
    assert_eq!(ids(&["--finished"]), "1 success TEST_DELAY(0)\n2 error   TEST_DELAY(0)\n");
    assert_eq!(ids(&[]).lines().count(), 4);
}

#[test]
fn operating_systems_are_listed_with_their_variants() {
    let row = |name: &str, variants: Value, valid: bool, hidden: bool| {
        let cells = [json!(name), variants, json!(valid), json!(hidden), json!(false)];
        cells.into_iter().map(Cell::value).collect::<Vec<_>>()
    };
    let daemon = FakeDaemon::start(move |_| {
        let rows = vec![
            row("busybox", json!(["default", "tiny"]), true, false),
            row("noop", json!([]), true, false),
            row("broken", json!([]), false, false),
            row("secret", json!([]), true, true),
        ];
        table(Resource::Os, &["name", "variants", "valid", "hidden", "blacklisted"], rows)
    });
    daemon.run(&["gnt-os", "list"]).is(0, "Name           \nbusybox+default\nbusybox+tiny\nnoop\n", "");
}

#[test]
fn information_is_shown() {
    let tree = Tree::map([("Cluster name", Tree::text("cluster01")), ("Tags", Tree::List(vec![]))]);
    let daemon = FakeDaemon::start(move |_| Reply::Ok(serde_json::to_value(&tree).unwrap()));
    daemon.run(&["gnt-cluster", "info"]).is(0, "Cluster name: cluster01\nTags: \n", "");
    daemon.run(&["gnt-cluster", "show", "--json"]).is(
        0,
        "{\n  \"Cluster name\": \"cluster01\",\n  \"Tags\": []\n}\n",
        "",
    );
    daemon.run(&["gnt-instance", "info", "-s", "vm1"]);
    let last = daemon.asked().pop();
    assert_eq!(last, Some(Request::InstanceInfo { names: vec!["vm1".into()], is_static: true }));
    assert_eq!(daemon.run(&["gnt-instance", "info"]).code, 1);
}

#[test]
fn the_master_is_named_also_when_it_is_dead() {
    let daemon = FakeDaemon::start(|_| status(false, true));
    daemon.run(&["gnt-cluster", "getmaster"]).is(0, "node1.gnt.test\n", "");
    daemon.run(&["gnt-cluster", "master-ping"]).is(1, "", "");
    let daemon = FakeDaemon::start(|_| status(true, true));
    daemon.run(&["gnt-cluster", "master-ping"]).is(0, "", "");
    let daemon = FakeDaemon::start(|_| status(false, false));
    assert_eq!(daemon.run(&["gnt-cluster", "getmaster"]).code, 5);
}

#[test]
fn versions_have_six_lines() {
    let done = alone(&["gnt-cluster", "version"]);
    assert_eq!(done.out.lines().count(), 6);
    assert!(done.out.contains("\nOS api version: 20\nExport interface: 0\n"), "{}", done.out);
}

#[test]
fn the_master_role_moves() {
    let daemon = FakeDaemon::start(|_| Reply::Ok(Value::Null));
    daemon.run(&["gnt-cluster", "masterfailover"]).is(0, "", "");
    assert_eq!(daemon.asked(), [Request::MasterFailover]);
    let done = alone(&["gnt-cluster", "master-failover", "--off=node02"]);
    assert_eq!(done.code, 2, "--off is for --no-voting: {}", done.err);
    let failure = Failure::refused(
        ErrorCode::WrongInput,
        "This commands must be run on the node where you want the new master to be. node1 is already the master",
    );
    let daemon = FakeDaemon::start(move |_| Reply::Refused(failure.clone()));
    let done = daemon.run(&["gnt-cluster", "master-failover"]);
    assert!(
        done.code == 1
            && done.err.starts_with("Failure: prerequisites not met for this operation:\nerror type: wrong_input")
    );
}

#[test]
fn a_cluster_is_made_and_ended() {
    let daemon = FakeDaemon::start(|_| Reply::Ok(Value::Null));
    let line = "gnt-cluster init --master-netdev=br0 --master-netmask 24 --enabled-hypervisors=kvm,fake \
                --lease 3000 --enabled-disk-templates=file,diskless -B memory=64 -H kvm:acpi=no -N link=br0 -C 3 cluster01";
    daemon.run(&line.split_whitespace().collect::<Vec<_>>()).is(0, "", "");
    let asked = daemon.asked();
    let Request::Init(init) = &asked[0] else { panic!("{asked:?}") };
    assert_eq!((init.cluster_name.as_str(), init.master_netmask), ("cluster01", Some(24)));
    assert_eq!(init.lease_ms, Some(3000));
    for wrong in ["499", "60001"] {
        let done = alone(&["gnt-cluster", "init", "--lease", wrong, "cluster01"]);
        assert!(done.code == 2 && done.err.contains("500..=60000"), "{}", done.err);
    }
    assert_eq!(init.enabled_disk_templates.as_ref().unwrap().len(), 2);
    assert_eq!(init.hvparams["kvm"]["acpi"].as_bool(), Some(false));
    assert_eq!(init.beparams["memory"].as_int(), Some(64));
    daemon.run(&["gnt-cluster", "destroy"]).is(
        1,
        "",
        "Destroying a cluster is irreversible. If you really want destroy this cluster, supply the --yes-do-it option.\n",
    );
    daemon.run(&["gnt-cluster", "destroy", "--yes-do-it"]).is(0, "", "");
    assert_eq!(daemon.asked()[1..], [Request::Destroy]);
}

#[test]
fn a_witness_is_added_with_both_flags_off() {
    let daemon = FakeDaemon::script(vec![Reply::Ok(Value::from(7)), Reply::Dies]);
    daemon.run(&["gnt-node", "add", "--master-capable=no", "--vm-capable=no", "--submit", "witness"]).is(
        0,
        "JobID: 7\n",
        "",
    );
    let asked = daemon.asked();
    let Request::Submit(submit) = &asked[0] else { panic!("{asked:?}") };
    let Opcode::NodeAdd(op) = &submit.ops[0] else { panic!("{:?}", submit.ops) };
    assert_eq!((op.master_capable, op.vm_capable), (false, false));
}

#[test]
fn a_node_joins() {
    let daemon = FakeDaemon::script(vec![Reply::Ok(Value::Null), status(true, true)]);
    daemon.run(&["join", "--token", "t0k3n", "10.0.0.5"]).is(0, "node2 is now a member of cluster01\n", "");
    assert!(matches!(&daemon.asked()[0], Request::Join(join) if join.token == "t0k3n" && join.address == "10.0.0.5"));
    assert_eq!(alone(&["join", "10.0.0.5"]).code, 2);
}

#[test]
fn without_a_daemon_the_command_says_what_to_do() {
    let done = alone(&["gnt-instance", "list"]);
    assert_eq!(done.code, 1);
    assert!(done.err.contains("/nonexistent/api.sock") && done.err.contains("systemctl start cardume"), "{}", done.err);
    assert_eq!(done.err.lines().count(), 1);
    let daemon = FakeDaemon::start(|_| Reply::Refused(Failure::not_a_cluster()));
    assert_eq!(daemon.run(&["gnt-instance", "list"]).code, 5);
}

#[test]
fn a_question_is_asked_before_data_is_lost() {
    let remove = |answers: Vec<&'static str>| {
        let daemon = FakeDaemon::script(vec![Reply::Ok(json!(3)), common::success(3)]);
        let asked = Arc::new(Mutex::new(String::new()));
        let mut session = session(daemon.socket());
        session.answers = Box::new(Person { answers, asked: asked.clone() });
        let done = run(session, &["gnt-instance", "remove", "vm1"]);
        (done.code, daemon.asked().len(), asked.lock().unwrap().clone())
    };
    let question = "Instance vm1 will be removed, and all data on its disks will be lost.\nContinue?\ny/[n]/?: ";
    assert_eq!(remove(vec!["y"]), (0, 2, question.into()));
    assert_eq!(remove(vec![""]), (13, 0, question.into()));
    assert_eq!(remove(vec!["n"]).0, 13);
    let (code, requests, asked) = remove(vec!["?", "maybe", "y"]);
    assert_eq!((code, requests), (0, 2));
    assert!(asked.matches("y/[n]/?: ").count() == 3 && asked.contains("y - yes"));
    let done = alone(&["gnt-instance", "remove", "vm1"]);
    assert_eq!(done.code, 13);
    assert!(done.err.contains("no terminal") && done.err.contains("--force"), "{}", done.err);
}

#[test]
fn a_console_works_through_pipes() {
    let console = |typed: &'static str, line: &[&str]| {
        let daemon = FakeDaemon::script(vec![]);
        let mut session = session(daemon.socket());
        session.input = Some(Box::new(Cursor::new(typed)));
        run(session, line)
    };
    console("df\npoweroff\n", &["gnt-instance", "console", "vm1"]).is(
        0,
        "login: you typed df\r\nyou typed poweroff\r\n",
        "",
    );
    // ^] means nothing in a pipe.
    console("a\x1db\npoweroff\n", &["gnt-instance", "console", "--exit-after-idle=60", "vm1"]).is(
        0,
        "login: you typed a\x1db\r\nyou typed poweroff\r\n",
        "",
    );
    alone(&["gnt-instance", "console", "--show-cmd", "vm1"]).is(0, "cardume instance console vm1\n", "");
}

#[test]
fn lines_that_make_no_command_end_as_in_ganeti() {
    let list = alone(&["gnt-instance", "frobnicate"]);
    assert_eq!((list.code, list.err.as_str()), (1, ""));
    assert!(list.out.starts_with(
        "Usage: gnt-instance {command} [options...] [argument...]\n\
         gnt-instance <command> --help to see details, or man gnt-instance\n\nCommands:\n activate-disks   - Shows the disks"
    ));
    assert!(list.out.contains("\n shutdown         - Stops instances") && list.out.ends_with("\n\n"));
    assert_eq!(alone(&["gnt-instance"]).out, list.out);
    assert_eq!((alone(&["gnt-instance", "--help"]).code, alone(&["gnt-instance", "--help"]).out), (0, list.out));
    alone(&["gnt-instance", "rename", "vm1", "vm2"]).is(
        1,
        "",
        "Error: Command rename is not supported by this version of Cardume\n",
    );
    assert!(alone(&["disk"]).out.starts_with(
        "Usage: cardume disk {command} [options...] [argument...]\ncardume disk <command> --help to see details\n\n"
    ));
    alone(&["gnt-instance", "add", "-H", "fake"]).is(1, "", "Error: Command add expects 1 argument(s)\n");
    alone(&["gnt-job", "info"]).is(1, "", "Error: Command info expects at least 1 argument(s)\n");
    alone(&["gnt-instance", "add", "-B", "nosuchparam=1", "vm"]).is(
        1,
        "",
        "Parameter Error: Unknown parameter 'nosuchparam'\n",
    );
    alone(&["gnt-node", "add"]).is(1, "", "Error: Command add expects 1 argument(s)\n");
    for (line, what) in [
        (
            &["gnt-instance", "add", "-t", "nosuchtemplate", "vm"][..],
            "gnt-instance: error: option -t: invalid choice: 'nosuchtemplate' (choose from 'drbd', 'file', 'diskless')\n",
        ),
        (
            &["gnt-instance", "add", "-s", "4x", "vm"],
            "gnt-instance: error: option -s: invalid value: '4x': write a size such as 512m, 4g or 1.5t\n",
        ),
        (
            &["gnt-instance", "add", "-I", "hail", "vm"],
            "error: option -I is not supported by this version of Cardume\n",
        ),
        (&["gnt-instance", "list", "-F", "x"], "error: option -F is not supported by this version of Cardume\n"),
        (
            &["gnt-instance", "add", "--iallocator=hail", "vm"],
            "error: option --iallocator is not supported by this version of Cardume\n",
        ),
        (&["gnt-instance", "add", "--disc", "0:size=1g", "vm"], "error: no such option: --disc (there is --disk)\n"),
        (
            &["gnt-node", "modify", "-O", "maybe", "node1"],
            "gnt-node: error: option -O: invalid value: 'maybe': write yes or no\n",
        ),
        (
            &["gnt-instance", "shutdown", "--timeout=soon", "vm"],
            "option --timeout: invalid value: 'soon': invalid digit found in string\n",
        ),
        (
            &["gnt-instance", "add", "-B", "memory=1,memory=2", "vm"],
            "option -B: invalid value: 'memory=1,memory=2': 'memory' is given twice\n",
        ),
        (&["gnt-instance", "add", "--node"], "option --node requires 1 argument\n"),
        (&["gnt-instance", "add", "-s", "1g", "--disk", "0:size=1g", "vm"], "can't be given together with"),
        (&["gnt-cluster", "init", "--master-netmask=33", "c"], "option --master-netmask: invalid value: '33'"),
    ] {
        let done = alone(line);
        assert!(done.code == 2 && done.out.is_empty() && done.err.contains(what), "{line:?}: {done:?}");
        let usage = format!("Usage\n=====\n  {} {} ", line[0], line[1]);
        assert!(done.err.starts_with(&usage), "{line:?}: {}", done.err);
    }
}

#[test]
fn help_teaches() {
    for line in [
        &["gnt-instance", "add", "--help"][..],
        &["gnt-instance", "console", "-h"],
        &["gnt-instance", "migrate", "--help"],
        &["gnt-instance", "failover", "--help"],
        &["gnt-instance", "replace-disks", "--help"],
        &["gnt-instance", "grow-disk", "--help"],
        &["gnt-instance", "activate-disks", "--help"],
        &["gnt-node", "add", "--help"],
        &["gnt-node", "evacuate", "--help"],
        &["gnt-cluster", "verify-disks", "--help"],
        &["disk", "status", "--help"],
        &["disk", "verify", "--help"],
        &["gnt-cluster", "init", "--help"],
        &["join", "--help"],
    ] {
        let done = alone(line);
        assert!(done.code == 0 && done.out.contains("EXAMPLES") && done.err.is_empty(), "{line:?}: {done:?}");
    }
    assert_eq!(alone(&["gnt-instance", "--version"]).out, "gnt-instance (cardume) 0.1.0\n");
}
