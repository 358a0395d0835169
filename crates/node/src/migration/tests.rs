//! Two nodes in one process, with TLS between them over the loopback interface, and a QEMU at either end.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use hypervisor::{Boot, Fake, FakeConfig, Hypervisor, LiveState, MachineSpec, Qemu, QemuConfig};
use jobs::agent::Sending;
use model::{RunId, Uuid};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use opcodes::op::MigrationMode;
use rpc::{Client, ClusterCa, Fault, Identity, NodeKey, PeerIdentity, Server, Upgrade};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::watch;

use super::sending::{Order, Sends, Way, judged};
use super::tunnel::{self, Carrying};
use super::{Record, Records, take_in};
use crate::agent::run_name;

/// What takes longer does not happen. Nothing is measured here.
const NEVER: Duration = Duration::from_secs(60);
/// Debian's `nobody` and `nogroup`.
const NOBODY: u32 = 65534;
const FROM: RunId = RunId(1);
const TO: RunId = RunId(2);
const MIGRATION: Uuid = Uuid::from_u128(7);

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(NEVER, future).await.unwrap_or_else(|_| panic!("{what}: not within {NEVER:?}"))
}

/// The destination's daemon.
struct Destination {
    driver: Arc<dyn Hypervisor>,
    /// How often it was told that the guest stands still.
    turned: watch::Sender<u64>,
}

#[async_trait]
impl rpc::Service for Destination {
    async fn call(&self, _: PeerIdentity, _: &str, _: Bytes) -> Result<Bytes, Fault> {
        unreachable!("nothing is called")
    }

    async fn stream(&self, _: PeerIdentity, path: &str, body: Bytes, upgrade: Upgrade) -> Result<(), Fault> {
        let mut stream = upgrade.accept().await.unwrap();
        match (path, &body[..]) {
            (super::PATH, b"a guest") => take_in(self.driver.as_ref(), &run_name(TO), stream).await,
            (super::FRAMES_PATH, b"its frames") => {
                if matches!(stream.read(&mut [0]).await, Ok(1)) {
                    self.turned.send_modify(|count| *count += 1);
                }
            }
            other => panic!("{other:?}"),
        }
        Ok(())
    }
}

/// A source and a destination; what runs ends with it.
struct Pair {
    dir: TempDir,
    source: Arc<dyn Hypervisor>,
    target: Arc<dyn Hypervisor>,
    sends: Arc<Sends>,
    turned: watch::Sender<u64>,
    server: Option<Server>,
    address: SocketAddr,
    client: Client,
}

impl Pair {
    async fn new(make: impl Fn(PathBuf) -> Arc<dyn Hypervisor>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (make(dir.path().join("source")), make(dir.path().join("target")));
        let (ca, cluster) = (ClusterCa::generate("lab").unwrap(), Uuid::new_v4());
        let turned = watch::Sender::new(0);
        let service = Arc::new(Destination { driver: Arc::clone(&target), turned: turned.clone() });
        let anywhere = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let server = Server::bind(anywhere, &identity(&ca, cluster, 2), Arc::new(|_| true), service).await.unwrap();
        let client = Client::new(Arc::new(identity(&ca, cluster, 1)));
        let address = server.local_addr();
        let sends = Arc::new(Sends::default());
        let pair = Self { dir, source, target, sends, turned, server: Some(server), address, client };
        let guest = |run| MachineSpec::new("vm1", run_name(run), 64, 1, Boot::Disk { order: Vec::new() });
        let running = soon("the start", pair.source.start(&guest(FROM))).await.unwrap();
        pair.source.resume(&running.run).await.unwrap();
        let incoming = MachineSpec { machine: Some(running.machine), ..guest(TO) };
        soon("the start", pair.target.start_incoming(&incoming)).await.unwrap();
        pair
    }

    async fn with_qemu() -> Self {
        assert!(nix::unistd::geteuid().is_root(), "the tests with a real QEMU need root");
        Self::new(|dir| {
            Arc::new(Qemu::new(QemuConfig {
                binary: "/usr/bin/qemu-system-x86_64".into(),
                uid: NOBODY,
                gid: NOBODY,
                run_dir: dir.join("run"),
                log_dir: dir.join("log"),
            }))
        })
        .await
    }

    async fn with_fake() -> Self {
        Self::new(|run_dir| {
            Arc::new(Fake::new(FakeConfig { run_dir, memory_mib: 1024, memory_used_by_node_mib: 0, cpus: 1 }))
        })
        .await
    }

    fn points(&self) -> PathBuf {
        self.dir.path().join("points")
    }

    /// Makes a fault point.
    fn hold_at(&self, point: &str) {
        std::fs::create_dir_all(self.points()).unwrap();
        std::fs::write(self.points().join(point), "").unwrap();
    }

    fn let_go(&self, point: &str) {
        std::fs::remove_file(self.points().join(point)).unwrap();
    }

    async fn reaches(&self, point: &str) {
        let file = self.points().join(format!("{point}.reached"));
        let reached = async {
            while !file.exists() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon(point, reached).await;
    }

    fn records(&self) -> Records {
        Records(self.dir.path().join("records"))
    }

    fn begin(&self, mode: MigrationMode) -> Sending {
        let order = Order {
            driver: Arc::clone(&self.source),
            records: self.records(),
            instance: "vm1".into(),
            run: FROM,
            migration: MIGRATION,
            mode,
            fault_points: Some(self.points()),
        };
        let (arrival, frames) = (Bytes::from_static(b"a guest"), Bytes::from_static(b"its frames"));
        let way = Way { client: self.client.clone(), node: 2, address: self.address, arrival, frames };
        self.sends.begin(order, way, &[FROM]).unwrap()
    }

    async fn outcome(&self) -> Sending {
        self.sends.find(FROM, MIGRATION).expect("it was begun").ended(NEVER).await
    }

    async fn cancel(&self) {
        soon("the cancelling", self.sends.cancel(self.source.as_ref(), FROM, MIGRATION)).await.unwrap();
    }

    async fn states(&self) -> (Option<LiveState>, Option<LiveState>) {
        let state = async |driver: &Arc<dyn Hypervisor>| driver.list().await.first().map(|running| running.state);
        (state(&self.source).await, state(&self.target).await)
    }

    /// Waits until the source's guest is in a state, for which not all hypervisors have an event.
    async fn source_becomes(&self, want: LiveState) {
        let look = async {
            while self.states().await.0 != Some(want) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        soon("the state", look).await;
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for node in ["source", "target"] {
            for run in std::fs::read_dir(self.dir.path().join(node).join("run")).into_iter().flatten().flatten() {
                let pid = std::fs::read_to_string(run.path().join("pid")).unwrap_or_default();
                let Some(pid) = pid.split(' ').next().and_then(|pid| pid.parse().ok()) else { continue };
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                if String::from_utf8_lossy(&line).contains("guest=vm1") {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
            }
        }
    }
}

fn identity(ca: &ClusterCa, cluster: Uuid, number: u64) -> Identity {
    let key = NodeKey::generate().unwrap();
    let csr = key.csr_pem(&format!("node{number:02}")).unwrap();
    key.into_identity(&ca.sign_csr(&csr, cluster, number).unwrap(), &ca.cert_pem()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_s_memory_comes_to_the_other_node_once() {
    let pair = Pair::with_qemu().await;
    assert!(matches!(pair.begin(MigrationMode::Live), Sending::Active { .. }));
    assert!(matches!(pair.begin(MigrationMode::Live), Sending::Active { .. }), "again");
    let outcome = pair.outcome().await;
    let Sending::Complete { total_ms: Some(total), downtime_ms: Some(down), bytes, paused: false } = outcome else {
        panic!("{outcome:?}");
    };
    assert!(bytes > 0 && total >= down, "{outcome:?}");
    soon("the news of the switch", pair.turned.subscribe().wait_for(|count| *count == 1)).await.unwrap();
    assert_eq!(pair.states().await, (Some(LiveState::PostMigrate), Some(LiveState::Paused)));
    assert_eq!(pair.begin(MigrationMode::Live), outcome, "a repetition finds it done");
    pair.cancel().await;
    assert_eq!(pair.states().await.0, Some(LiveState::PostMigrate), "what is complete is not undone by it");
    // The daemon forgets; what it can tell is judged from the run.
    let record = pair.records().read(FROM, MIGRATION);
    let later = judged(pair.states().await.0, record);
    assert_eq!(later, Sending::Complete { total_ms: None, downtime_ms: None, bytes: 0, paused: false });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_is_paused_for_its_migration_was_running() {
    let pair = Pair::with_qemu().await;
    pair.hold_at("node.sending.begun");
    pair.begin(MigrationMode::NonLive);
    pair.reaches("node.sending.begun").await;
    pair.let_go("node.sending.begun");
    let outcome = pair.outcome().await;
    assert!(matches!(outcome, Sending::Complete { paused: false, .. }), "{outcome:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_was_paused_stays_so() {
    for mode in [MigrationMode::Live, MigrationMode::NonLive] {
        let pair = Pair::with_fake().await;
        pair.source.pause(&run_name(FROM)).await.unwrap();
        pair.begin(mode);
        let outcome = pair.outcome().await;
        assert!(matches!(outcome, Sending::Complete { paused: true, .. }), "{mode:?}: {outcome:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_migration_that_is_cancelled_in_its_middle_lets_the_guest_go_on() {
    for mode in [MigrationMode::Live, MigrationMode::NonLive] {
        let pair = Pair::with_qemu().await;
        pair.hold_at("node.sending.begun");
        pair.begin(mode);
        pair.reaches("node.sending.begun").await;
        pair.cancel().await;
        let outcome = pair.outcome().await;
        assert!(matches!(outcome, Sending::Failed { .. }), "{outcome:?}");
        assert_eq!(pair.states().await.0, Some(LiveState::Running), "{mode:?}");
        assert_eq!(pair.begin(mode), outcome, "it does not begin again");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cancelled_before_it_began_does_not_begin() {
    let pair = Pair::with_fake().await;
    pair.cancel().await;
    assert!(matches!(pair.begin(MigrationMode::Live), Sending::Failed { .. }));
    assert_eq!(pair.states().await, (Some(LiveState::Running), Some(LiveState::Incoming)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_whose_daemon_ends_lets_the_guest_go_on() {
    let mut pair = Pair::with_qemu().await;
    pair.hold_at("node.sending.begun");
    pair.begin(MigrationMode::Live);
    pair.reaches("node.sending.begun").await;
    pair.server.take().unwrap().shutdown().await;
    pair.let_go("node.sending.begun");
    let outcome = pair.outcome().await;
    assert!(matches!(outcome, Sending::Failed { .. }), "{outcome:?}");
    pair.source_becomes(LiveState::Running).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_that_is_not_there_is_named() {
    let mut pair = Pair::with_fake().await;
    pair.server.take().unwrap().shutdown().await;
    pair.begin(MigrationMode::Live);
    match pair.outcome().await {
        Sending::Failed { why } => assert!(why.contains("the destination takes no memory"), "{why}"),
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_an_earlier_daemon_sent_is_judged_by_its_run() {
    let record = Some(Record { migration: MIGRATION, paused: true });
    let why = |state, record| match judged(state, record) {
        Sending::Failed { why } => why,
        other => panic!("{other:?}"),
    };
    assert!(why(Some(LiveState::Running), record).contains("restarted"));
    assert!(why(Some(LiveState::Paused), record).contains("restarted"));
    assert!(why(None, record).contains("ended"));
    assert!(why(Some(LiveState::Running), None).contains("not begun"));
    assert!(matches!(judged(Some(LiveState::Migrating), record), Sending::Active { .. }));
    let complete = Sending::Complete { total_ms: None, downtime_ms: None, bytes: 0, paused: true };
    assert_eq!(judged(Some(LiveState::PostMigrate), record), complete);
}

#[tokio::test]
async fn the_tunnel_carries_everything_both_ways_and_the_ends_too() {
    let (end, ours) = tunnel::ends().unwrap();
    let (near, far) = tokio::io::duplex(1000);
    let mut carrying = Carrying::start(ours, near, std::future::ready(()));
    let end = std::os::unix::net::UnixStream::from(end);
    end.set_nonblocking(true).unwrap();
    let (mut from_end, mut to_end) = tokio::net::UnixStream::from_std(end).unwrap().into_split();
    let (mut from_far, mut to_far) = tokio::io::split(far);
    let memory: Vec<u8> = (0..3_000_000_u32).map(|at| (at * 7 / 3) as u8).collect();
    let sending = async {
        to_end.write_all(&memory).await.unwrap();
        to_end.shutdown().await.unwrap();
        let mut answer = String::new();
        from_end.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let receiving = async {
        let mut received = Vec::new();
        from_far.read_to_end(&mut received).await.unwrap();
        // The way back is open still.
        to_far.write_all(b"done").await.unwrap();
        to_far.shutdown().await.unwrap();
        received
    };
    let (answer, received) = soon("the end", async { tokio::join!(sending, receiving) }).await;
    assert_eq!(answer, "done");
    assert!(received == memory);
    carrying.ended(NEVER).await;
}
