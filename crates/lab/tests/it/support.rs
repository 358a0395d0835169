//! What the tests share.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use lab::{Config, Lab, LabLock};

/// All these tests use one directory, so that each clears away what an interrupted one left.
pub const DIR: &str = "/var/tmp/cardume-lab-test";

/// A lab for one test; no other one runs meanwhile.
pub struct TestLab {
    // Dropped in this order: the lab is down before another test may begin.
    pub lab: Lab,
    _lock: LabLock,
}

impl std::ops::Deref for TestLab {
    type Target = Lab;
    fn deref(&self) -> &Lab {
        &self.lab
    }
}

/// The program that is the nodes' binary here.
pub fn labtool() -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests.parent().unwrap().parent().unwrap().join("examples/labtool");
    assert!(path.exists(), "{} is missing: build it with 'cargo build -p lab --examples'", path.display());
    path
}

/// Two nodes, no witness, and `sleep` in the place of the daemon.
pub fn config() -> Config {
    Config { dir: PathBuf::from(DIR), nodes: 2, witness: false, binary: labtool(), daemon: words("sleep infinity") }
}

pub fn up(config: Config) -> TestLab {
    let lock = locked();
    TestLab { lab: Lab::up(config).expect("a lab"), _lock: lock }
}

pub fn locked() -> LabLock {
    lab::lock().unwrap_or_else(|error| panic!("the tests of `lab` can't run: {error}"))
}

pub fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

/// A shell as the daemon.
pub fn script(script: &str) -> Vec<String> {
    vec!["sh".to_owned(), "-c".to_owned(), script.to_owned()]
}

/// Waits for something that nothing announces.
pub fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 30 s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// What a lab could leave on the machine: network interfaces, named namespaces, mounts, processes.
#[derive(Debug, PartialEq, Eq)]
pub struct Machine {
    pub links: String,
    pub named: Vec<PathBuf>,
    pub mounts: String,
    pub processes: Vec<String>,
}

impl Machine {
    pub fn now() -> Machine {
        let links = Command::new("ip").args(["-o", "link"]).output().unwrap().stdout;
        let named = fs::read_dir("/run/netns").map(|d| d.map(|e| e.unwrap().path()).collect());
        Machine {
            links: String::from_utf8(links).unwrap(),
            named: named.unwrap_or_default(),
            mounts: fs::read_to_string("/proc/self/mounts").unwrap(),
            processes: inits(),
        }
    }
}

/// The command lines of all processes that a lab in our directory has started.
pub fn inits() -> Vec<String> {
    let own = format!("{DIR}/bin/cardume");
    living().filter_map(command_line).filter(|line| line.starts_with(&own)).collect()
}

fn command_line(pid: i32) -> Option<String> {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(String::from_utf8_lossy(&bytes).replace('\0', " "))
}

/// All processes of the machine but those that have ended and that nobody has waited for yet.
pub fn living() -> impl Iterator<Item = i32> {
    let all = fs::read_dir("/proc").unwrap().filter_map(|e| e.ok()?.file_name().to_str()?.parse().ok());
    all.filter(|pid: &i32| fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z ")))
}

/// The identities of a process' namespaces of the kinds that a node has for its own.
pub fn namespaces(pid: i32) -> BTreeSet<PathBuf> {
    let kinds = ["net", "pid", "mnt", "uts"];
    kinds.iter().filter_map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()).collect()
}
