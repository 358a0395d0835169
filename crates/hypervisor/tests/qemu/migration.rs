//! Live migration between two drivers on one machine: two run directories, one disk, and a pair of sockets between.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::{
    Error, Event, EventKind, Hypervisor, LiveState, MachineSpec, MigrateOptions, Migrated, MigrationPhase,
    MigrationProgress, NicModel, NicSpec, Qemu, Running, StopReason,
};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinHandle;

use super::lab::{Counter, Lab, NEVER, pid, soon, tap};

/// A guest that runs at the source, and a destination that waits for it.
struct Pair {
    lab: Lab,
    source: Arc<Qemu>,
    target: Arc<Qemu>,
    /// The guest's counter at the source.
    counter: Counter,
    running: Running,
    waiting: Running,
}

/// A migration under way.
struct UnderWay {
    sent: JoinHandle<Result<Migrated, Error>>,
    received: JoinHandle<Result<(), Error>>,
    tunnel: Tunnel,
}

/// Carries the bytes between both sides. Stops in the middle, until it is told to go on.
struct Tunnel {
    gate: watch::Sender<Gate>,
    task: JoinHandle<()>,
}

impl Tunnel {
    /// A tunnel with its two ends.
    fn new() -> (Tunnel, OwnedFd, OwnedFd) {
        let ((near, ours), (theirs, far)) = (sockets(), sockets());
        // What is on its way is less than a half.
        setsockopt(&near, sockopt::SndBuf, &4096).unwrap();
        setsockopt(&theirs, sockopt::SndBuf, &4096).unwrap();
        let gate = watch::Sender::new(Gate::Ahead);
        let task = tokio::spawn(carry(stream(ours), stream(theirs), gate.clone()));
        (Tunnel { gate, task }, near, far)
    }

    fn open(&self) {
        self.gate.send_replace(Gate::Open);
    }
}

/// The middle of a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Gate {
    Ahead,
    Shut,
    Open,
}

/// Bytes of a migration that are carried before the middle.
const FIRST_HALF: u64 = 64 * 1024;

async fn carry(source: tokio::net::UnixStream, target: tokio::net::UnixStream, gate: watch::Sender<Gate>) {
    let (mut from_source, mut to_source) = source.into_split();
    let (mut from_target, mut to_target) = target.into_split();
    let there = async {
        tokio::io::copy(&mut (&mut from_source).take(FIRST_HALF), &mut to_target).await?;
        gate.send_replace(Gate::Shut);
        let _ = gate.subscribe().wait_for(|gate| *gate == Gate::Open).await;
        tokio::io::copy(&mut from_source, &mut to_target).await?;
        to_target.shutdown().await?;
        std::future::pending::<std::io::Result<()>>().await
    };
    tokio::select! {
        // Somebody went away.
        _ = there => {}
        _ = tokio::io::copy(&mut from_target, &mut to_source) => {}
    }
}

fn stream(fd: OwnedFd) -> tokio::net::UnixStream {
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(true).unwrap();
    tokio::net::UnixStream::from_std(stream).unwrap()
}

impl Pair {
    async fn new() -> Pair {
        let lab = Lab::new();
        let spec = lab.spec();
        Pair::of(lab, spec).await
    }

    async fn of(lab: Lab, spec: MachineSpec) -> Pair {
        let source = Arc::new(Qemu::new(lab.config()));
        let running = soon("the start", source.start(&spec)).await.unwrap();
        source.resume("run-1").await.unwrap();
        let mut counter = Counter::attach(&source, "run-1").await;
        counter.passes(3).await;
        let target = Arc::new(Qemu::new(lab.config_of("target")));
        let spec = MachineSpec { run: "run-2".into(), machine: Some(running.machine.clone()), ..spec };
        let waiting = soon("the start", target.start_incoming(&spec)).await.unwrap();
        assert_eq!(waiting.state, LiveState::Incoming);
        Pair { lab, source, target, counter, running, waiting }
    }

    /// Migrates to the end.
    async fn migrate(&self) -> Migrated {
        let (near, far) = sockets();
        let (progress, told) = watch::channel(MigrationProgress::default());
        let fast = fast();
        let ran = state(&self.source).await == Some(LiveState::Running);
        let sent = self.source.migrate_out("run-1", near, &fast, progress);
        let (sent, received) = soon("the migration", async { tokio::join!(sent, self.accept(far)) }).await;
        received.unwrap();
        assert_eq!(told.borrow().switching, ran, "whether it was stopped for the switch");
        sent.unwrap()
    }

    async fn accept(&self, stream: OwnedFd) -> Result<(), Error> {
        self.target.accept("run-2", stream, NEVER).await
    }

    /// Begins a migration that is in its middle when this returns.
    async fn begin(&self, options: MigrateOptions) -> UnderWay {
        let (tunnel, near, far) = Tunnel::new();
        let (progress, mut seen) = watch::channel(MigrationProgress::default());
        let (source, target) = (Arc::clone(&self.source), Arc::clone(&self.target));
        let sent = tokio::spawn(async move { source.migrate_out("run-1", near, &options, progress).await });
        let received = tokio::spawn(async move { target.accept("run-2", far, NEVER).await });
        let half = async {
            tunnel.gate.subscribe().wait_for(|gate| *gate == Gate::Shut).await.unwrap();
            seen.wait_for(|progress| progress.transferred > 0 && progress.remaining > 0).await.unwrap();
        };
        soon("the middle", half).await;
        assert_eq!(state(&self.source).await, Some(LiveState::Migrating));
        assert_eq!(state(&self.target).await, Some(LiveState::Incoming));
        UnderWay { sent, received, tunnel }
    }

    /// The guest still runs at the source.
    async fn runs_on(&mut self) {
        let printed = printed(&self.lab);
        self.counter.passes(printed + 3).await;
        assert_eq!(state(&self.source).await, Some(LiveState::Running));
    }
}

impl UnderWay {
    /// Waits for its end.
    async fn outcome(self) -> (Result<Migrated, Error>, Result<(), Error>) {
        let both = async { tokio::join!(self.sent, self.received) };
        let (sent, received) = soon("the migration's end", both).await;
        (sent.unwrap(), received.unwrap())
    }
}

fn incoming(lab: &Lab, source: &Running) -> MachineSpec {
    MachineSpec { run: "run-2".into(), machine: Some(source.machine.clone()), ..lab.spec() }
}

fn sockets() -> (OwnedFd, OwnedFd) {
    let (near, far) = UnixStream::pair().unwrap();
    (near.into(), far.into())
}

fn fast() -> MigrateOptions {
    MigrateOptions { max_bandwidth: None, downtime_limit: Duration::from_millis(100), timeout: NEVER }
}

async fn state(driver: &Qemu) -> Option<LiveState> {
    driver.list().await.first().map(|running| running.state)
}

/// Waits until the driver's only run is in a state; who sees the state from outside has no event for some.
async fn becomes(driver: &Qemu, want: LiveState) {
    let look = async {
        while state(driver).await != Some(want) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    soon(&format!("the state {want}"), look).await;
}

/// Waits for this event, and returns those before it.
async fn until(events: &mut broadcast::Receiver<Event>, want: EventKind) -> Vec<EventKind> {
    let mut before = Vec::new();
    loop {
        let event = soon("an event", events.recv()).await.unwrap();
        if event.kind == want {
            return before;
        }
        before.push(event.kind);
    }
}

/// The last number that the guest has printed in full.
fn printed(lab: &Lab) -> u32 {
    let log = fs::read_to_string(lab.config().log_dir.join("vm1.console")).unwrap();
    let (full, _) = log.rsplit_once('\n').unwrap();
    u32::from_str_radix(full.rsplit('\n').next().unwrap(), 16).unwrap()
}

fn killed(running: &Running) {
    kill(Pid::from_raw(pid(running)), Signal::SIGKILL).unwrap();
}

#[tokio::test]
async fn a_guest_goes_on_at_the_destination_with_its_memory_and_not_before_it_is_told_to() {
    let pair = Pair::new().await;
    let (mut left, mut came) = (pair.source.events(), pair.target.events());
    let early = pair.target.resume("run-2").await.unwrap_err();
    assert!(early.to_string().contains("run-2 is in state incoming"), "{early}");
    let migrated = pair.migrate().await;
    assert_eq!(migrated.guest, LiveState::Running);
    assert!(migrated.bytes > 0 && migrated.total_ms >= migrated.downtime_ms, "{migrated:?}");
    assert_eq!(until(&mut left, EventKind::MigratedOut).await, [], "a switch is not a pause");
    assert_eq!(until(&mut came, EventKind::MigratedIn).await, []);
    assert_eq!(state(&pair.source).await, Some(LiveState::PostMigrate));
    assert_eq!(state(&pair.target).await, Some(LiveState::Paused));

    let last = printed(&pair.lab);
    let mut counter = Counter::attach(&pair.target, "run-2").await;
    pair.target.resume("run-2").await.unwrap();
    pair.target.announce("run-2").await.unwrap();
    assert_eq!(until(&mut came, EventKind::Resumed).await, []);
    // What comes first may be the end of a number.
    counter.next().await.unwrap();
    let first = counter.next().await.unwrap();
    assert!((last + 1..=last + 2).contains(&first), "{first} after {last}");
    counter.passes(last + 10).await;
    assert_eq!(printed(&pair.lab), last, "it runs on one side only");
    assert_eq!(state(&pair.source).await, Some(LiveState::PostMigrate));
    pair.source.destroy("run-1").await.unwrap();
    assert_eq!(until(&mut left, EventKind::Stopped(StopReason::Killed)).await, []);
    // It can leave again.
    let back = MachineSpec { run: "run-3".into(), ..incoming(&pair.lab, &pair.waiting) };
    soon("the start", pair.source.start_incoming(&back)).await.unwrap();
    let (near, far) = sockets();
    let (progress, _) = watch::channel(MigrationProgress::default());
    let fast = fast();
    let sent = pair.target.migrate_out("run-2", near, &fast, progress);
    let (sent, received) = tokio::join!(sent, pair.source.accept("run-3", far, NEVER));
    received.unwrap();
    sent.unwrap();
    let mut counter = Counter::attach(&pair.source, "run-3").await;
    pair.source.resume("run-3").await.unwrap();
    counter.next().await.unwrap();
    assert!(counter.next().await.unwrap() > last + 10);
}

#[tokio::test]
async fn a_guest_with_a_disk_over_nbd_and_a_network_card_migrates() {
    let lab = Lab::new();
    let (_server, nbd) = lab.serve_disk();
    let mut spec = lab.spec();
    spec.disks[0].source = nbd;
    let (id, mac) = ("nic0".to_owned(), "aa:00:00:fa:3a:3f".to_owned());
    spec.nics.push(NicSpec { id, mac, tap: Arc::new(tap()), model: NicModel::Virtio });
    let pair = Pair::of(lab, spec).await;
    pair.migrate().await;
    let last = printed(&pair.lab);
    pair.source.destroy("run-1").await.unwrap();
    let mut counter = Counter::attach(&pair.target, "run-2").await;
    pair.target.resume("run-2").await.unwrap();
    pair.target.announce("run-2").await.unwrap();
    counter.passes(last + 2).await;
}

#[tokio::test]
async fn after_a_complete_migration_the_source_can_go_on_instead() {
    let mut pair = Pair::new().await;
    pair.migrate().await;
    pair.target.destroy("run-2").await.unwrap();
    pair.source.resume("run-1").await.unwrap();
    pair.runs_on().await;
}

#[tokio::test]
async fn a_paused_guest_arrives_paused() {
    let mut pair = Pair::new().await;
    pair.source.pause("run-1").await.unwrap();
    let mut events = pair.source.events();
    let migrated = pair.migrate().await;
    assert_eq!(migrated.guest, LiveState::Paused);
    assert_eq!(until(&mut events, EventKind::MigratedOut).await, []);
    assert_eq!(state(&pair.source).await, Some(LiveState::PostMigrate));
    assert_eq!(state(&pair.target).await, Some(LiveState::Paused));
    let last = printed(&pair.lab);
    let mut counter = Counter::attach(&pair.target, "run-2").await;
    pair.target.resume("run-2").await.unwrap();
    counter.passes(last + 3).await;
    pair.counter = counter;
}

#[tokio::test]
async fn a_cancelled_migration_lets_the_source_run_on() {
    let mut pair = Pair::new().await;
    let under_way = pair.begin(fast()).await;
    let paused = pair.source.pause("run-1").await.unwrap_err();
    assert!(paused.to_string().contains("can't pause instance vm1"), "{paused}");
    let (again, _far) = sockets();
    let (progress, _) = watch::channel(MigrationProgress::default());
    let again = pair.source.migrate_out("run-1", again, &fast(), progress).await.unwrap_err();
    assert!(matches!(again, Error::WrongState { state: LiveState::Migrating, .. }), "{again}");
    pair.source.migrate_cancel("run-1").await.unwrap();
    assert_eq!(state(&pair.source).await, Some(LiveState::Running), "it is over when cancel returns");
    under_way.tunnel.open();
    let (sent, received) = under_way.outcome().await;
    assert!(
        matches!(&sent, Err(Error::Cancelled { instance, run, .. }) if instance == "vm1" && run == "run-1"),
        "{sent:?}"
    );
    assert!(matches!(received, Err(Error::Migration { phase: MigrationPhase::Receive, .. })), "{received:?}");
    assert_eq!(state(&pair.target).await, None);
    pair.runs_on().await;
    pair.source.migrate_cancel("run-1").await.unwrap();
    // It can be tried again.
    soon("the start", pair.target.start_incoming(&incoming(&pair.lab, &pair.running))).await.unwrap();
    pair.migrate().await;
}

#[tokio::test]
async fn a_migration_that_takes_too_long_is_cancelled() {
    let mut pair = Pair::new().await;
    let under_way = pair.begin(MigrateOptions { timeout: Duration::from_secs(1), ..fast() }).await;
    let message = soon("the end", under_way.sent).await.unwrap().unwrap_err().to_string();
    assert!(message.contains("vm1") && message.contains("not done within 1s"), "{message}");
    pair.runs_on().await;
}

#[tokio::test]
async fn a_destination_without_a_source_gives_up_and_can_be_destroyed() {
    let pair = Pair::new().await;
    let (_near, far) = sockets();
    let late = pair.target.accept("run-2", far, Duration::from_millis(100)).await.unwrap_err();
    assert!(late.to_string().contains("not here within 100ms"), "{late}");
    assert_eq!(state(&pair.target).await, Some(LiveState::Incoming));
    pair.target.destroy("run-2").await.unwrap();
    let unknown = MachineSpec { machine: None, ..pair.lab.spec() };
    assert!(matches!(pair.target.start_incoming(&unknown).await, Err(Error::BadSpec { .. })));
}

#[tokio::test]
async fn a_destination_that_dies_in_the_middle_lets_the_source_run_on() {
    let mut pair = Pair::new().await;
    let under_way = pair.begin(fast()).await;
    killed(&pair.waiting);
    let (sent, received) = under_way.outcome().await;
    let sent = sent.unwrap_err();
    assert!(matches!(&sent, Error::Migration { run, phase: MigrationPhase::Transfer, .. } if run == "run-1"), "{sent}");
    assert!(received.unwrap_err().to_string().contains("QEMU died of SIGKILL"));
    pair.runs_on().await;
}

#[tokio::test]
async fn a_source_that_dies_in_the_middle_leaves_no_half_guest() {
    let pair = Pair::new().await;
    let mut events = pair.target.events();
    let under_way = pair.begin(fast()).await;
    killed(&pair.running);
    under_way.tunnel.open();
    let (sent, received) = under_way.outcome().await;
    assert!(sent.unwrap_err().to_string().contains("QEMU died of SIGKILL"));
    let received = received.unwrap_err().to_string();
    assert!(received.contains("run-2, phase receive") && received.contains("its last words"), "{received}");
    assert_eq!(state(&pair.target).await, None);
    let stopped = soon("an event", events.recv()).await.unwrap().kind;
    assert!(matches!(stopped, EventKind::Stopped(StopReason::Crashed { .. })), "{stopped:?}");
}

#[tokio::test]
async fn the_end_of_the_tunnel_in_the_middle_is_the_end_of_the_migration() {
    let mut pair = Pair::new().await;
    let under_way = pair.begin(fast()).await;
    under_way.tunnel.task.abort();
    let (sent, received) = under_way.outcome().await;
    assert!(matches!(sent, Err(Error::Migration { .. })), "{sent:?}");
    assert!(received.is_err());
    assert_eq!(state(&pair.target).await, None);
    pair.runs_on().await;
}

#[tokio::test]
async fn a_source_that_dies_after_the_switch_leaves_a_guest_that_waits() {
    let pair = Pair::new().await;
    pair.migrate().await;
    killed(&pair.running);
    let last = printed(&pair.lab);
    assert_eq!(state(&pair.target).await, Some(LiveState::Paused));
    let mut counter = Counter::attach(&pair.target, "run-2").await;
    pair.target.resume("run-2").await.unwrap();
    counter.passes(last + 2).await;
}

#[tokio::test]
async fn a_destination_that_does_not_fit_is_refused_in_qemu_s_words() {
    let mut pair = Pair::new().await;
    pair.target.destroy("run-2").await.unwrap();
    let other = MachineSpec { memory_mib: 48, ..incoming(&pair.lab, &pair.running) };
    soon("the start", pair.target.start_incoming(&other)).await.unwrap();
    let (near, far) = sockets();
    let (progress, _) = watch::channel(MigrationProgress::default());
    let fast = fast();
    let sent = pair.source.migrate_out("run-1", near, &fast, progress);
    let (sent, received) = soon("the migration", async { tokio::join!(sent, pair.accept(far)) }).await;
    let received = received.unwrap_err().to_string();
    assert!(received.contains("Size mismatch"), "{received}");
    assert!(matches!(sent, Err(Error::Migration { .. })), "{sent:?}");
    pair.runs_on().await;
}

/// Lets go of both drivers as the end of their daemons would, and returns later ones.
async fn restart(pair: Pair, under_way: Option<UnderWay>) -> (Lab, Arc<Qemu>, Arc<Qemu>, Option<Tunnel>) {
    let mut tunnel = None;
    if let Some(under_way) = under_way {
        under_way.sent.abort();
        under_way.received.abort();
        let _ = tokio::join!(under_way.sent, under_way.received);
        tunnel = Some(under_way.tunnel);
    }
    let Pair { lab, source, target, .. } = pair;
    let drop = |driver: Arc<Qemu>| Arc::into_inner(driver).expect("somebody else has the driver");
    std::mem::drop((drop(source), drop(target)));
    let source = Arc::new(Qemu::new(lab.config()));
    let target = Arc::new(Qemu::new(lab.config_of("target")));
    assert_eq!(soon("adoption", source.adopt()).await.unwrap().running.len(), 1);
    assert_eq!(soon("adoption", target.adopt()).await.unwrap().running.len(), 1);
    (lab, source, target, tunnel)
}

#[tokio::test]
async fn later_daemons_find_both_sides_as_they_are_before_a_migration() {
    let pair = Pair::new().await;
    let (_lab, source, target, _) = restart(pair, None).await;
    assert_eq!(state(&source).await, Some(LiveState::Running));
    assert_eq!(state(&target).await, Some(LiveState::Incoming));
    assert!(target.resume("run-2").await.is_err());
}

#[tokio::test]
async fn later_daemons_find_both_sides_as_they_are_in_the_middle() {
    let pair = Pair::new().await;
    let under_way = pair.begin(fast()).await;
    // The tunnel is the test's, so this migration outlives the daemons.
    let (lab, source, target, _tunnel) = restart(pair, Some(under_way)).await;
    assert_eq!(state(&source).await, Some(LiveState::Migrating));
    assert_eq!(state(&target).await, Some(LiveState::Incoming));
    assert!(target.resume("run-2").await.is_err());
    source.migrate_cancel("run-1").await.unwrap();
    assert_eq!(state(&source).await, Some(LiveState::Running));
    Counter::attach(&source, "run-1").await.passes(printed(&lab) + 2).await;
}

#[tokio::test]
async fn later_daemons_learn_of_the_end_of_a_migration_that_outlived_the_earlier_ones() {
    let pair = Pair::new().await;
    let under_way = pair.begin(fast()).await;
    let (lab, source, target, tunnel) = restart(pair, Some(under_way)).await;
    tunnel.unwrap().open();
    becomes(&source, LiveState::PostMigrate).await;
    becomes(&target, LiveState::Paused).await;
    let last = printed(&lab);
    let mut counter = Counter::attach(&target, "run-2").await;
    target.resume("run-2").await.unwrap();
    counter.passes(last + 2).await;
    assert_eq!(printed(&lab), last);
}

#[tokio::test]
async fn later_daemons_find_both_sides_as_they_are_after_the_switch() {
    let pair = Pair::new().await;
    pair.migrate().await;
    let (lab, source, target, _) = restart(pair, None).await;
    assert_eq!(state(&source).await, Some(LiveState::PostMigrate));
    assert_eq!(state(&target).await, Some(LiveState::Paused));
    let last = printed(&lab);
    target.resume("run-2").await.unwrap();
    Counter::attach(&target, "run-2").await.passes(last + 2).await;
    let again = Qemu::new(lab.config_of("target"));
    drop(target);
    assert_eq!(soon("adoption", again.adopt()).await.unwrap().running[0].state, LiveState::Running);
    assert_eq!(state(&source).await, Some(LiveState::PostMigrate));
}
