//! Real guards with real processes: a daemon that does nothing but talk to its guard, `sleep`s as guests, and a master that
//! says what the test wants.
//!
//! A test is the service manager. Guard, daemon and lookout are this very program in other roles.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use ha::Times;
use ha::message::{Answer, Grant, Renew};
use hypervisor::ProcessId;
use model::{Incarnation, Life, NodeId, RunId};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rpc::{ClusterCa, Fault, Identity, NodeKey, PeerIdentity, Server, Upgrade};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use super::wire::Surroundings;
use super::{GuardConfig, GuardLink, LOCK, RUNS};
use crate::home;

/// A bound for what has to happen at once: only a fault makes a test wait for its end.
const PATIENCE: Duration = Duration::from_secs(30);
/// Says in which role this program runs.
const ROLE: &str = "CARDUME_TEST_GUARD_ROLE";
/// And in which folder.
const DIR: &str = "CARDUME_TEST_GUARD_DIR";

const NODE: NodeId = NodeId(1);
const MASTER: NodeId = NodeId(2);
const LIFE: Life = Life(3);
const PROTECTED: RunId = RunId(7);
const UNPROTECTED: RunId = RunId(8);

/// What the daemon of a test is to tell its guard.
#[derive(Serialize, Deserialize)]
struct Orders {
    master: SocketAddr,
    runs: Vec<(RunId, ProcessId, bool)>,
}

/// No test by itself: the other processes of the tests below.
#[test]
fn another_process() {
    let (Ok(role), Ok(dir)) = (std::env::var(ROLE), std::env::var(DIR)) else { return };
    let dir = PathBuf::from(dir);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    match role.as_str() {
        "guard" => {
            let config = GuardConfig {
                state_dir: dir.join("state"),
                run_dir: dir.join("run"),
                daemon: command("daemon", &dir),
                lookout: command("lookout", &dir),
                times: Times::default(),
            };
            runtime.block_on(super::run(config)).unwrap();
        }
        "daemon" => runtime.block_on(daemon(&dir)),
        "lookout" => {
            let numbers: Vec<u64> = std::env::args().filter_map(|word| word.parse().ok()).collect();
            let (until, guard) = (Duration::from_millis(numbers[0]), numbers[1] as i32);
            runtime.block_on(super::lookout(&dir.join("run"), until, guard)).unwrap();
        }
        other => panic!("there is no role {other}"),
    }
}

/// This program in a role.
fn command(role: &str, dir: &Path) -> Vec<std::ffi::OsString> {
    let role = format!("{ROLE}={role}");
    let dir = format!("{DIR}={}", dir.display());
    let program = std::env::current_exe().unwrap().into_os_string();
    let test = "guard::tests::another_process";
    [&"/usr/bin/env".into(), &role.into(), &dir.into(), &program, &test.into(), &"--exact".into()]
        .into_iter()
        .cloned()
        .collect()
}

async fn daemon(dir: &Path) {
    let run_dir = dir.join("run");
    let _lock = home::lock(&run_dir).unwrap();
    let orders: Orders = serde_json::from_slice(&std::fs::read(dir.join("orders")).unwrap()).unwrap();
    let link = GuardLink::start(&run_dir, Times::default());
    link.surround(Surroundings { nodes: BTreeMap::from([(MASTER, orders.master)]), address: None });
    link.identify(Some(ha::guard::Identity { inc: Incarnation::default(), node: NODE, life: LIFE }));
    for (run, process, protected) in orders.runs {
        link.know(run, Some(process), protected);
    }
    std::future::pending::<()>().await;
}

/// Whether and for which runs the master gives leases.
#[derive(Clone, Debug)]
enum Mood {
    Grants(BTreeSet<RunId>),
    Silent,
}

struct Master {
    mood: watch::Sender<Mood>,
    granted: watch::Sender<u64>,
    asked: Mutex<Vec<Renew>>,
}

struct MasterService(Arc<Master>);

#[async_trait]
impl rpc::Service for MasterService {
    async fn call(&self, peer: PeerIdentity, path: &str, body: Bytes) -> Result<Bytes, Fault> {
        assert_eq!((peer.node, path), (NODE.0, super::LEASE_PATH));
        let renew: Renew = rpc::server::from_json(&body)?;
        self.0.asked.lock().unwrap().push(renew.clone());
        let mood = self.0.mood.borrow().clone();
        let Mood::Grants(runs) = mood else { return std::future::pending().await };
        let (term, master) = (5, MASTER);
        let lease_ms = model::LEASE_MS;
        let grant = Grant { inc: renew.inc, term, life: renew.life, q: renew.q, lease_ms, master, runs };
        self.0.granted.send_modify(|granted| *granted += 1);
        rpc::server::to_json(&Answer::Granted(grant))
    }

    async fn stream(&self, _: PeerIdentity, _: &str, _: Bytes, _: Upgrade) -> Result<(), Fault> {
        unreachable!("the guard opens no streams")
    }
}

/// A node with a guard, a daemon and two guests, one of them protected.
struct Node {
    dir: tempfile::TempDir,
    guard: Option<Child>,
    guests: BTreeMap<RunId, Child>,
    master: Arc<Master>,
    _server: Server,
}

impl Node {
    /// Everything runs, under a lease.
    async fn start() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        for folder in ["state", "run"] {
            std::fs::create_dir(dir.path().join(folder)).unwrap();
        }
        let (ca, cluster) = (ClusterCa::generate("test").unwrap(), uuid::Uuid::new_v4());
        let identity = |number: NodeId| -> Identity {
            let key = NodeKey::generate().unwrap();
            let certificate = ca.sign_csr(&key.csr_pem("node").unwrap(), cluster, number.0).unwrap();
            key.into_identity(&certificate, &ca.cert_pem()).unwrap()
        };
        identity(NODE).save(&home::identity_dir(&dir.path().join("state"))).unwrap();
        let master = Arc::new(Master {
            mood: watch::Sender::new(Mood::Grants(BTreeSet::from([PROTECTED]))),
            granted: watch::Sender::new(0),
            asked: Mutex::default(),
        });
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let service = Arc::new(MasterService(Arc::clone(&master)));
        let own = identity(MASTER);
        let server = Server::bind(address, &own, Arc::new(|_: &PeerIdentity| true), service).await.unwrap();
        let sleep = |_| Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let guests: BTreeMap<RunId, Child> = [PROTECTED, UNPROTECTED].map(|run| (run, sleep(run))).into();
        let id = |run: &RunId, guest: &Child| (*run, ProcessId::of(guest.id() as i32).unwrap(), *run == PROTECTED);
        let orders =
            Orders { master: server.local_addr(), runs: guests.iter().map(|(run, guest)| id(run, guest)).collect() };
        std::fs::write(dir.path().join("orders"), serde_json::to_vec(&orders).unwrap()).unwrap();
        let mut node = Self { dir, guard: None, guests, master, _server: server };
        node.start_guard();
        node.settles().await;
        node
    }

    fn start_guard(&mut self) {
        let command = command("guard", self.dir.path());
        self.guard = Some(Command::new(&command[0]).args(&command[1..]).stdin(Stdio::null()).spawn().unwrap());
    }

    fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// Both guests are watched, and go on under a lease.
    async fn settles(&self) {
        until("both guests are watched", || {
            let watched = std::fs::read_to_string(self.run_dir().join(RUNS)).unwrap_or_default();
            self.guests.values().all(|guest| watched.contains(&format!("\"pid\":{},", guest.id())))
        })
        .await;
        self.is_granted().await;
        self.runs(PROTECTED).await;
        self.runs(UNPROTECTED).await;
    }

    fn mood(&self, mood: Mood) {
        self.master.mood.send_replace(mood);
    }

    /// Waits for a lease that is asked for from now on.
    async fn is_granted(&self) {
        let mut granted = self.master.granted.subscribe();
        let before = *granted.borrow_and_update();
        // The second one was asked for after this began.
        let granted = granted.wait_for(|granted| *granted >= before + 2);
        tokio::time::timeout(PATIENCE, granted).await.expect("no lease is asked for").unwrap();
    }

    /// What the kernel calls the guest's state; none if it has ended.
    fn state(&self, run: RunId) -> Option<char> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.guests[&run].id())).ok()?;
        stat.rsplit_once(')')?.1.trim_start().chars().next().filter(|state| *state != 'Z')
    }

    async fn stops(&self, run: RunId) {
        until("the guest is stopped", || self.state(run) == Some('T')).await;
    }

    async fn runs(&self, run: RunId) {
        until("the guest runs", || self.state(run) == Some('S')).await;
    }

    /// Another daemon than that one lives.
    async fn daemon_other_than(&self, before: Option<i32>) -> i32 {
        let lock = home::lock_file(&self.run_dir());
        let mut found = None;
        until("there is another daemon", || {
            found = home::holder(&lock).unwrap().flatten();
            found.is_some() && found != before
        })
        .await;
        found.unwrap()
    }

    async fn daemon(&self) -> i32 {
        self.daemon_other_than(None).await
    }

    fn guard(&self) -> i32 {
        self.guard.as_ref().unwrap().id() as i32
    }

    /// Waits for the guard's end.
    async fn guard_ends(&mut self) -> ExitStatus {
        let guard = self.guard.as_mut().unwrap();
        let mut status = None;
        until("the guard ends", || {
            status = guard.try_wait().unwrap();
            status.is_some()
        })
        .await;
        self.guard = None;
        status.unwrap()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // The guard first: it would start another daemon.
        for child in self.guard.iter_mut().chain(self.guests.values_mut()) {
            let _ = child.kill();
            let _ = child.wait();
        }
        if let Ok(Some(Some(daemon))) = home::holder(&home::lock_file(&self.run_dir())) {
            signal(daemon, Signal::SIGKILL);
        }
    }
}

fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

async fn until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is() {
        assert!(Instant::now() < deadline, "in vain: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn listing(runs: &[RunId]) -> Mood {
    Mood::Grants(runs.iter().copied().collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn guests_are_stopped_when_the_lease_ends_whatever_the_daemon_does_and_go_on_with_a_lease_that_lists_them() {
    let node = Node::start().await;
    signal(node.daemon().await, Signal::SIGSTOP);
    node.mood(Mood::Silent);
    node.stops(PROTECTED).await;
    assert_eq!(node.state(UNPROTECTED), Some('S'), "no other node takes that one over");
    node.mood(listing(&[PROTECTED]));
    node.runs(PROTECTED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_another_nodes_by_the_next_lease_is_killed() {
    let node = Node::start().await;
    node.mood(Mood::Silent);
    node.stops(PROTECTED).await;
    node.mood(listing(&[]));
    until("the guest is killed", || node.state(PROTECTED).is_none()).await;
    assert_eq!(node.state(UNPROTECTED), Some('S'));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_dies_or_hangs_is_started_anew_under_the_same_lease() {
    let node = Node::start().await;
    let first = node.daemon().await;
    signal(first, Signal::SIGKILL);
    let second = node.daemon_other_than(Some(first)).await;
    node.settles().await;
    signal(second, Signal::SIGSTOP);
    let third = node.daemon_other_than(Some(second)).await;
    node.settles().await;
    assert_ne!(third, first);
    let lives: BTreeSet<Life> = node.master.asked.lock().unwrap().iter().map(|renew| renew.life).collect();
    assert_eq!(lives, BTreeSet::from([LIFE]), "nobody asked as somebody else meanwhile");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_guard_takes_the_daemon_and_the_guests_over() {
    let mut node = Node::start().await;
    let daemon = node.daemon().await;
    signal(node.guard(), Signal::SIGKILL);
    node.guard_ends().await;
    node.start_guard();
    node.is_granted().await;
    node.settles().await;
    assert_eq!(node.daemon().await, daemon, "it has noticed nothing");
    node.mood(Mood::Silent);
    node.stops(PROTECTED).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_guard_stops_guests_also_if_the_daemon_says_nothing() {
    let mut node = Node::start().await;
    let daemon = node.daemon().await;
    signal(daemon, Signal::SIGSTOP);
    signal(node.guard(), Signal::SIGKILL);
    node.guard_ends().await;
    node.mood(Mood::Silent);
    node.start_guard();
    node.stops(PROTECTED).await;
    // It replaces the daemon, too.
    node.daemon_other_than(Some(daemon)).await;
    node.mood(listing(&[PROTECTED]));
    node.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_that_hangs_is_killed_by_the_daemon_for_the_service_manager_to_start_another() {
    use std::os::unix::process::ExitStatusExt;
    let mut node = Node::start().await;
    signal(node.guard(), Signal::SIGSTOP);
    let status = node.guard_ends().await;
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32));
    node.start_guard();
    node.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_guard_the_daemon_stops_guests_when_the_lease_ends_and_the_next_guard_lets_them_go_on() {
    let mut node = Node::start().await;
    signal(node.guard(), Signal::SIGKILL);
    node.guard_ends().await;
    node.stops(PROTECTED).await;
    assert_eq!(node.state(UNPROTECTED), Some('S'));
    node.start_guard();
    node.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guard_that_is_ended_on_purpose_leaves_guests_to_the_end_of_their_lease() {
    let mut node = Node::start().await;
    signal(node.guard(), Signal::SIGTERM);
    assert!(node.guard_ends().await.success());
    assert_eq!(home::holder(&home::lock_file(&node.run_dir())).unwrap(), None, "the daemon has ended, too");
    node.stops(PROTECTED).await;
    node.start_guard();
    node.settles().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_guards_do_not_watch_the_same_node() {
    let mut node = Node::start().await;
    let first = node.guard.take().unwrap();
    node.start_guard();
    assert!(!node.guard_ends().await.success());
    let holder = home::holder(&node.run_dir().join(LOCK)).unwrap();
    assert_eq!(holder, Some(Some(first.id() as i32)));
    node.guard = Some(first);
}
