//! `gnt-cluster master-failover --no-voting`: what is said, what is asked, and what is then done.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::{Arc, Mutex};

use common::{Done, FakeDaemon, Person, Reply, run, session};
use opcodes::wire::{Recovery, Request};

fn found(answering: &[&str]) -> Recovery {
    Recovery {
        master: Some("node02".into()),
        others: vec!["node02".into(), "node03".into()],
        answering: answering.iter().map(|place| (*place).to_owned()).collect(),
        risks: vec!["Disk 0 of instance 'vm1' was in sync here as far as this node knows.".into()],
        incarnation: None,
    }
}

/// A daemon that looks, and recovers when told to.
fn daemon(answering: &[&str]) -> FakeDaemon {
    let found = found(answering);
    FakeDaemon::start(move |request| {
        let incarnation = matches!(request, Request::Recover { commit: true, .. }).then_some(2);
        Reply::Ok(serde_json::to_value(Recovery { incarnation, ..found.clone() }).unwrap())
    })
}

fn recover(off: &[&str], commit: bool) -> Request {
    Request::Recover { off: off.iter().map(|name| (*name).to_owned()).collect(), commit }
}

const SAID: &str = "The last master that this node knows of is node02.\n\
                    No answer, on any network, from: node02, node03\n \
                    - Disk 0 of instance 'vm1' was in sync here as far as this node knows.\n";
const DONE: &str = "This node is the master now, in incarnation 2 of the cluster.\n";

/// Runs it with somebody who answers so; what was asked comes out.
fn answered(daemon: &FakeDaemon, answers: &[&'static str]) -> (Done, String) {
    let asked = Arc::new(Mutex::new(String::new()));
    let mut session = session(daemon.socket());
    session.answers = Box::new(Person { answers: answers.to_vec(), asked: asked.clone() });
    let done = run(session, &["gnt-cluster", "masterfailover", "--no-voting"]);
    let asked = asked.lock().unwrap().replace('\n', " ");
    (done, asked)
}

#[test]
fn the_operator_is_told_and_types_the_names() {
    let daemon = daemon(&[]);
    let (done, asked) = answered(&daemon, &["y", "node02", "node03, node02"]);
    done.is(0, &format!("{SAID}{DONE}"), "");
    for text in [
        "This node goes on alone, whatever the others may have done",
        "y/[n]/?: Type the names of the nodes that are off, with commas in between: ",
        "All other nodes have to be off, and these are: node02, node03 Type their names",
    ] {
        assert!(asked.contains(text), "{asked}");
    }
    assert_eq!(daemon.asked(), [recover(&[], false), recover(&["node02", "node03"], true)]);
}

#[test]
fn no_changes_nothing() {
    for answers in [&["n"][..], &["y", ""]] {
        let daemon = daemon(&[]);
        let (done, _) = answered(&daemon, answers);
        done.is(13, SAID, "Nothing was changed.\n");
        assert_eq!(daemon.asked(), [recover(&[], false)]);
    }
}

#[test]
fn a_script_names_them() {
    let daemon = daemon(&[]);
    daemon.run(&["gnt-cluster", "master-failover", "--no-voting", "--off=node02,node03", "--yes-do-it"]).is(
        0,
        &format!("{SAID}{DONE}"),
        "",
    );
    assert_eq!(daemon.asked()[1..], [recover(&["node02", "node03"], true)]);
}

#[test]
fn without_a_terminal_it_says_what_to_type() {
    let daemon = daemon(&[]);
    let done = run(session(daemon.socket()), &["gnt-cluster", "master-failover", "--no-voting", "--yes-do-it"]);
    let typed = "gnt-cluster master-failover --no-voting --off=node02,node03 --yes-do-it\n";
    assert!(done.code == 1 && done.err.ends_with(typed), "{}", done.err);
    assert_eq!(daemon.asked(), [recover(&[], false)]);
}

#[test]
fn it_is_refused_while_another_node_answers() {
    let daemon = daemon(&["node03 at its secondary address 10.1.0.7"]);
    let done = daemon.run(&["gnt-cluster", "master-failover", "--no-voting", "--off=node02,node03", "--yes-do-it"]);
    assert_eq!(done.code, 1);
    assert!(done.out.contains("from: node02\n"), "{}", done.out);
    assert!(done.err.contains("these answer: node03 at its secondary address 10.1.0.7"), "{}", done.err);
    assert_eq!(daemon.asked(), [recover(&[], false)]);
}
