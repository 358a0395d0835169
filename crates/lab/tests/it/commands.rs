//! Commands inside nodes, and the lab's own command line.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use lab::{Error, Forward};

use crate::support::*;

const SOON: Duration = Duration::from_secs(30);

#[test]
fn exec_passes_input_output_and_exit_code() {
    let lab = up(config());
    let node = lab.node("node01").unwrap();
    let output = node.command(["sh", "-c", "cat; echo $X >&2; exit 7"]).input("typed").env("X", "said");
    let output = output.output().unwrap();
    assert_eq!((output.stdout.as_str(), output.stderr.as_str(), output.code()), ("typed", "said\n", 7));
    assert_eq!(node.exec(["sh", "-c", "kill -9 $$"]).unwrap().code(), 137);
    // More than any pipe holds.
    let zeroes = node.exec(["head", "-c", "1000000", "/dev/zero"]).unwrap();
    assert_eq!(zeroes.stdout.len(), 1_000_000);
    let unread = node.command(["true"]).input(vec![b'x'; 1_000_000]).output().unwrap();
    assert!(unread.status.success());

    // What a command leaves running holds its output open.
    let left = node.exec(["sh", "-c", "sleep 1000 & echo left"]).unwrap();
    assert_eq!(left.stdout, "left\n");

    let missing = node.exec(["no-such-command"]).unwrap_err();
    assert!(missing.to_string().contains("'no-such-command' in node01"), "{missing}");
    let unknown = lab.node("node07").unwrap_err().to_string();
    assert!(unknown.contains("node07") && unknown.contains("client, node01, node02"), "{unknown}");
    let names = node.exec(["sh", "-c", "command -v gnt-cluster gnt-instance cardume"]).unwrap();
    assert!(names.status.success(), "{}", names.stdout);
}

#[test]
fn a_command_that_takes_too_long_is_killed_with_what_it_started() {
    let lab = up(config());
    let node = lab.node("node01").unwrap();
    let slow = node.command(["sh", "-c", "echo begun; sleep 4711; echo never"]);
    let error = slow.timeout(Duration::from_secs(1)).output().unwrap_err();
    assert!(matches!(error, Error::Timeout { .. }) && error.to_string().contains("begun"), "{error}");
    eventually("nothing of it runs on", || {
        !node.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline"]).unwrap().stdout.contains("4711")
    });
    let running = node.command(["sleep", "4712"]).spawn().unwrap();
    drop(running);
    eventually("a dropped command does not run on", || {
        !node.exec(["sh", "-c", "cat /proc/[0-9]*/cmdline"]).unwrap().stdout.contains("4712")
    });
}

#[test]
fn a_terminal_is_one_to_the_command_and_can_be_typed_into() {
    let lab = up(config());
    let node = lab.node("node01").unwrap();
    let mut pty = node.command(["sh", "-c", "tty; stty size; read x; echo got $x; exit 3"]).pty().unwrap();
    let start = pty.read_until("24 80", SOON).unwrap();
    assert!(start.starts_with("/dev/pts/"), "{start}");
    pty.write(b"something\n").unwrap();
    pty.read_until("got something", SOON).unwrap();
    let (status, rest) = pty.finish(SOON).unwrap();
    assert_eq!(status.code(), Some(3), "{rest}");

    // The interrupt key is for the command.
    let mut pty = node
        .command(["sh", "-c", "trap 'echo caught; exit 4' INT; echo ready; while :; do sleep 0.1; done"])
        .pty()
        .unwrap();
    pty.read_until("ready", SOON).unwrap();
    pty.write(b"\x03").unwrap();
    pty.read_until("caught", SOON).unwrap();
    assert_eq!(pty.finish(SOON).unwrap().0.code(), Some(4));
}

#[test]
fn a_port_of_a_node_is_reached_from_the_machine() {
    let lab = up(config());
    let node = lab.node("node01").unwrap();
    let _server = node.command(["socat", "TCP-LISTEN:8000,fork", "EXEC:cat"]).spawn().unwrap();
    eventually("the server listens", || node.exec(["cat", "/proc/net/tcp"]).unwrap().stdout.contains(":1F40 "));
    let forward = Forward::start(&node, 8000, 0).unwrap();
    assert!(forward.address().ip().is_loopback());
    for text in ["first", "second"] {
        let mut stream = TcpStream::connect(forward.address()).unwrap();
        stream.write_all(text.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, text);
    }
    let address = forward.address();
    drop(forward);
    assert!(TcpStream::connect(address).is_err());
}

#[test]
fn the_command_line_brings_a_lab_up_shows_it_and_takes_it_down() {
    let _lock = locked();
    let tool = |args: &[&str]| {
        let output = Command::new(labtool()).args(["--dir", DIR]).args(args).output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap(), text.into_owned())
    };
    let down = tool(&["down"]);
    assert_eq!(down.0, 0, "{}", down.1);
    let up = tool(&["up", "--count", "3"]);
    assert_eq!(up.0, 0, "{}", up.1);
    for (name, address) in [("node03", "10.0.0.8"), ("witness", "10.0.0.7"), ("client", "10.0.0.100")] {
        assert!(up.1.lines().any(|l| l.starts_with(name) && l.contains(address)), "{}", up.1);
    }
    assert_eq!(tool(&["exec", "node03", "--", "sh", "-c", "hostname; exit 5"]), (5, "node03\n".to_owned()));
    assert_eq!(tool(&["cut", "node03", "--one-way=in", "--public"]).0, 0);
    assert_eq!(tool(&["kill", "node02"]).0, 0);
    let status = tool(&["status"]).1;
    let line = |name: &str| status.lines().find(|l| l.starts_with(name)).unwrap().to_owned();
    assert!(line("node02").contains("down"), "{status}");
    assert!(line("node03").contains("loses what it is sent"), "{status}");
    for command in [&["heal", "node03"][..], &["start", "node02"], &["stop", "node01"], &["down"]] {
        let (code, text) = tool(command);
        assert_eq!(code, 0, "{command:?}: {text}");
    }
    let (code, text) = tool(&["status"]);
    assert_eq!(code, 1);
    assert!(text.contains("there is no lab in"), "{text}");
}

#[test]
fn without_root_it_says_so_in_one_line() {
    let _lock = locked();
    // Where everybody may read it.
    let dir = tempfile::Builder::new().permissions(std::os::unix::fs::PermissionsExt::from_mode(0o755)).tempdir();
    let copy = dir.as_ref().unwrap().path().join("labtool");
    std::fs::copy(labtool(), &copy).unwrap();
    let output = Command::new(copy).args(["--dir", DIR, "up"]).uid(65534).gid(65534).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(text.lines().next(), Some("Error: the lab needs root (it makes network namespaces)"));
    assert!(!output.status.success());
}
