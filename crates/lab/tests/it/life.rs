//! Nodes die and come back; labs are interrupted and taken down.

use std::fs;
use std::io::{BufRead, BufReader};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};

use lab::{Error, Lab};

use crate::support::*;

/// A daemon that notes its start, and its end where it is asked to end.
const NOTING: &str = "cd /var/lib/cardume; echo start >>notes; \
    trap 'echo end >>notes; exit 0' TERM; while :; do sleep 1000 & wait; done";

#[test]
fn kill_ends_everything_in_the_node_at_once_and_start_brings_it_back_with_its_state() {
    let lab = up(config());
    let node = lab.node("node01").unwrap();
    node.exec(["sh", "-c", "echo kept >/var/lib/cardume/state; setsid sleep 1000 >/dev/null 2>&1 &"]).unwrap();
    let pid = node.pid().unwrap();
    let inside = fs::read_link(format!("/proc/{pid}/ns/pid")).unwrap();
    let members = || -> Vec<i32> {
        living().filter(|p| fs::read_link(format!("/proc/{p}/ns/pid")).is_ok_and(|l| l == inside)).collect()
    };
    assert!(members().len() >= 3, "init, stand-in and sleep are expected, not {:?}", members());

    lab.kill("node01").unwrap();
    assert!(members().is_empty(), "still alive: {:?}", members());
    let error = node.exec(["true"]).unwrap_err();
    assert!(matches!(error, Error::NotRunning(_)), "{error}");
    assert!(matches!(lab.kill("node01").unwrap_err(), Error::NotRunning(_)));
    assert!(lab.node("node02").unwrap().exec(["true"]).unwrap().status.success());

    lab.start("node01").unwrap();
    assert_ne!(node.pid().unwrap(), pid);
    assert_eq!(node.exec(["cat", "/var/lib/cardume/state"]).unwrap().stdout, "kept\n");
    assert!(node.exec(["ping", "-c1", "-W5", "node02"]).unwrap().status.success());
    assert!(matches!(lab.start("node01").unwrap_err(), Error::AlreadyRunning(_)));
}

#[test]
fn stop_asks_the_daemon_to_end_and_kill_does_not() {
    let lab = up(lab::Config { daemon: script(NOTING), ..config() });
    let path = lab.node("node01").unwrap().state_dir().join("notes");
    let notes = || fs::read_to_string(&path).unwrap_or_default();
    eventually("the daemon has started", || notes() == "start\n");
    lab.kill("node01").unwrap();
    assert_eq!(notes(), "start\n");
    lab.start("node01").unwrap();
    eventually("the daemon has started again", || notes() == "start\nstart\n");
    lab.stop("node01").unwrap();
    assert_eq!(notes(), "start\nstart\nend\n");
}

#[test]
fn a_daemon_that_ends_is_started_again_and_what_it_left_is_reaped() {
    let lab = up(lab::Config {
        daemon: script("echo here; (sleep 0.1 &) ; echo $$ >/run/pid; read x </run/fifo"),
        ..config()
    });
    let node = lab.node("node01").unwrap();
    let starts = || fs::read_to_string(node.daemon_log()).unwrap().matches("here").count();
    eventually("it is started again", || starts() >= 3);
    // Nothing is a zombie for longer than a moment.
    eventually("all that ended is reaped", || {
        let states = node.exec(["sh", "-c", "cat /proc/[0-9]*/stat"]).unwrap().stdout;
        !states.lines().any(|line| line.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z')))
    });
}

#[test]
fn a_daemon_that_cannot_be_started_is_said_at_once_and_nothing_is_left() {
    let _lock = locked();
    let before = Machine::now();
    let error = Lab::up(lab::Config { daemon: words("no-such-daemon --x"), ..config() }).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("node01") && text.contains("no-such-daemon --x"), "{text}");
    assert_eq!(Machine::now(), before);
    assert!(!fs::exists(DIR).unwrap());
}

#[test]
fn wait_for_daemon_returns_when_it_listens() {
    let listen = "sleep 0.3; mkdir /run/cardume; exec socat UNIX-LISTEN:/run/cardume/api.sock,fork EXEC:cat";
    let lab = up(lab::Config { daemon: script(listen), ..config() });
    lab.wait_for_daemon("node01").unwrap();
    let socket = lab.node("node01").unwrap().api_socket().unwrap();
    std::os::unix::net::UnixStream::connect(socket).unwrap();
}

#[test]
fn up_clears_away_what_an_interrupted_up_left_at_whatever_point() {
    let _lock = locked();
    let before = Machine::now();
    let record = format!("{DIR}/lab.json");
    for started in 0..=4 {
        let mut interrupted = Command::new(labtool()).args(["--dir", DIR, "up"]).spawn().unwrap();
        eventually("the interrupted lab has come far enough", || {
            fs::read_to_string(&record).is_ok_and(|text| text.matches("\"pid\"").count() > started)
        });
        interrupted.kill().unwrap();
        interrupted.wait().unwrap();

        // Only the last one may have been complete before it was hit.
        match Lab::up(config()) {
            Ok(lab) => {
                assert!(lab.node("node01").unwrap().exec(["true"]).unwrap().status.success());
                lab.down().unwrap();
            }
            Err(Error::Running(_)) => Lab::open(DIR.as_ref()).unwrap().down().unwrap(),
            Err(error) => panic!("{error}"),
        }
        eventually("the processes of the interrupted lab are gone", || inits().is_empty());
        assert_eq!(Machine::now(), before);
    }
}

#[test]
fn an_init_that_is_never_given_orders_ends() {
    let _lock = locked();
    let mut outside = Command::new(labtool())
        .args(["lab-init", "x"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut answer = String::new();
    BufReader::new(outside.stdout.take().unwrap()).read_line(&mut answer).unwrap();
    let pid: i32 = answer.trim().strip_prefix("pid ").unwrap().parse().unwrap();
    assert!(living().any(|p| p == pid));
    drop(outside.stdin.take());
    outside.wait().unwrap();
    eventually("it has ended", || living().all(|p| p != pid));
}

#[test]
fn a_running_lab_is_not_overwritten_and_a_panic_takes_it_down() {
    let _lock = locked();
    let before = Machine::now();
    let panic = catch_unwind(AssertUnwindSafe(|| {
        let lab = Lab::up(config()).unwrap();
        let error = Lab::up(config()).unwrap_err();
        assert!(matches!(error, Error::InUse { .. }), "{error}");
        assert!(lab.node("node01").unwrap().exec(["true"]).unwrap().status.success());
        panic!("as a failed test would");
    }));
    assert!(panic.is_err());
    assert_eq!(Machine::now(), before);
    assert!(!fs::exists(DIR).unwrap());
}

#[test]
fn a_kept_lab_stays_until_it_is_told_to_go() {
    let _lock = locked();
    Lab::up(config()).unwrap().keep().unwrap();
    let error = Lab::up(config()).unwrap_err();
    assert!(matches!(error, Error::Running(_)), "{error}");
    let lab = Lab::open(DIR.as_ref()).unwrap();
    assert!(lab.node("node01").unwrap().exec(["true"]).unwrap().status.success());
    lab.down().unwrap();
    assert!(matches!(Lab::open(DIR.as_ref()).unwrap_err(), Error::NoLab(_)));
}
