//! Single processes of a node: stopped, continued, killed; and who watches guests sees it.

use std::time::{Duration, Instant};

use lab::probe::RunWatch;
use lab::{Node, Part, Running};

use crate::support::*;

const SOON: Duration = Duration::from_secs(30);

/// Something with the command line of a guest, in as far as the lab looks at that.
fn guest(node: &Node, name: &str) -> Running {
    node.command(["sh", "-c", "while :; do sleep 0.05; done", &format!("guest={name},debug-threads=on")])
        .spawn()
        .unwrap()
}

#[test]
fn a_guest_is_stopped_continued_and_killed_by_its_name() {
    let lab = up(config());
    let nodes = ["node01", "node02"].map(|name| lab.node(name).unwrap());
    let part = Part::named("vm1");
    assert_eq!(nodes[0].pid_of(&part).unwrap(), None);
    let error = nodes[0].kill_guest("vm1").unwrap_err().to_string();
    assert!(error.contains("guest vm1 of node01"), "{error}");

    let _first = guest(&nodes[0], "vm1");
    let watch = RunWatch::start(&lab).unwrap();
    let begun = Instant::now();
    let runs = |node: &str, running: bool, since: Instant| {
        watch.wait("a change of vm1", SOON, |seen| seen.first("vm1", node, running, since)).unwrap()
    };
    runs("node01", true, begun - SOON);
    nodes[0].stop_part(&part).unwrap();
    let stopped = runs("node01", false, begun);
    // One that is stopped may have a second one elsewhere.
    let _second = guest(&nodes[1], "vm1");
    let second = runs("node02", true, stopped);
    assert_eq!(watch.so_far().twice, Vec::<String>::new());
    nodes[0].continue_part(&part).unwrap();
    runs("node01", true, second);
    watch
        .wait("that vm1 runs twice", SOON, |seen| {
            seen.twice.iter().find(|said| said.contains("vm1 runs twice")).cloned()
        })
        .unwrap();

    nodes[1].kill_guest("vm1").unwrap();
    runs("node02", false, second);
    assert_eq!(nodes[1].pid_of(&part).unwrap(), None);
    assert!(nodes[0].pid_of(&part).unwrap().is_some());
    lab.kill("node01").unwrap();
    let seen = watch.finish();
    assert_eq!(seen.changes.last().map(|change| (change.node.as_str(), change.running)), Some(("node01", false)));
}
