//! The driver for QEMU with a real QEMU, and a guest that fits into a boot sector (`boot_sector.s`).
//!
//! Needs root, for QEMU is to run as somebody else, and a QEMU.
#![allow(clippy::unwrap_used, clippy::expect_used)] // Helpers of tests are not known as tests to the lint.

mod lab;
mod migration;

use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hypervisor::{
    Aio, DiskSource, DiskSpec, EventKind, Hypervisor, LiveState, MachineSpec, NicModel, NicSpec, Qemu, QemuConfig,
    RebootBehavior, Running, Shutdown, StopReason,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use lab::{Counter, Lab, NEVER, NOBODY, exists, next_event, pid, soon, status, stop_reason, tap};

#[tokio::test]
async fn a_guest_starts_paused_runs_pauses_and_is_destroyed() {
    let lab = Lab::new();
    let driver = Qemu::new(lab.config());
    let mut events = driver.events();
    assert_eq!(driver.verify().await, Vec::<String>::new());

    let running = soon("the start", driver.start(&lab.spec())).await.unwrap();
    assert_eq!(next_event(&mut events).await, EventKind::Started);
    assert_eq!((running.state, running.memory_mib, running.vcpus), (LiveState::Paused, 32, 1));
    assert!(running.machine.starts_with("pc-i440fx-"), "{}", running.machine);
    let again = driver.start(&lab.spec()).await.unwrap();
    assert_eq!(again, running, "a second start of the same run finds it");
    let other = driver.start(&MachineSpec { run: "run-2".into(), ..lab.spec() }).await.unwrap_err();
    assert!(other.to_string().contains("vm1 already runs"), "{other}");

    let (mut one, mut two) = (Counter::attach(&driver, "run-1").await, Counter::attach(&driver, "run-1").await);
    driver.resume("run-1").await.unwrap();
    assert_eq!(next_event(&mut events).await, EventKind::Resumed);
    assert_eq!(driver.list().await[0].state, LiveState::Running);
    assert_eq!(one.next().await, Some(0), "nothing ran before it was resumed");
    assert_eq!(two.next().await, Some(0), "both consoles see all of it");
    one.passes(5).await;
    two.passes(5).await;

    driver.pause("run-1").await.unwrap();
    assert_eq!(next_event(&mut events).await, EventKind::Paused);
    assert_eq!(driver.list().await[0].state, LiveState::Paused);
    // Whatever came out before the pause is in the log by now; nothing is added to it. What can be waited for is
    // that the paused guest keeps its count: a later one continues with the next number.
    let log = lab.config().log_dir.join("vm1.console");
    let before = fs::read(&log).unwrap();
    driver.pause("run-1").await.unwrap();
    assert_eq!(fs::read(&log).unwrap(), before);
    driver.resume("run-1").await.unwrap();
    assert_eq!(next_event(&mut events).await, EventKind::Resumed);

    let mut late = Counter::attach(&driver, "run-1").await;
    assert_eq!(late.next().await, Some(0), "who comes late sees what was before");
    late.passes(20).await;

    driver.destroy("run-1").await.unwrap();
    assert!(!exists(pid(&running)), "the process is gone when destroy returns");
    assert_eq!(stop_reason(&mut events).await, StopReason::Killed);
    assert!(driver.list().await.is_empty());
    assert!(!lab.config().run_dir.join("run-1").exists());
    driver.destroy("run-1").await.unwrap();
    assert!(driver.resume("run-1").await.is_err());
    while late.next().await.is_some() {}
}

#[tokio::test]
async fn qemu_is_unprivileged_and_sandboxed_and_has_only_its_own_descriptors() {
    let lab = Lab::new();
    // One that a library might have left open for every child.
    let leaked = File::open("/etc/passwd").unwrap();
    nix::fcntl::fcntl(&leaked, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let driver = Qemu::new(lab.config());
    let running = soon("the start", driver.start(&lab.spec())).await.unwrap();
    let pid = pid(&running);
    let nobody = vec![NOBODY.to_string(); 4].join("\t");
    assert_eq!(status(pid, "Uid"), nobody);
    assert_eq!(status(pid, "Gid"), nobody);
    assert_eq!(status(pid, "CapEff"), "0000000000000000");
    assert_eq!(status(pid, "Seccomp"), "2");
    let session = nix::unistd::getsid(Some(Pid::from_raw(pid))).unwrap();
    assert_eq!(session.as_raw(), pid, "a session of its own");
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let target = fs::read_link(fd.path()).unwrap();
        assert_ne!(target, PathBuf::from("/etc/passwd"));
    }
    driver.destroy("run-1").await.unwrap();
}

#[tokio::test]
async fn a_guest_outlives_its_daemon_and_is_adopted() {
    let lab = Lab::new();
    let first = Qemu::new(lab.config());
    let running = soon("the start", first.start(&lab.spec())).await.unwrap();
    first.resume("run-1").await.unwrap();
    let seen = Counter::attach(&first, "run-1").await.passes(3).await;
    drop(first);

    let second = Qemu::new(lab.config());
    let mut events = second.events();
    let adopted = soon("adoption", second.adopt()).await.unwrap();
    assert!(adopted.gone.is_empty());
    let want = Running { state: LiveState::Running, ..running.clone() };
    assert_eq!(adopted.running, [want]);
    assert_eq!(second.list().await, adopted.running);
    assert_eq!(next_event(&mut events).await, EventKind::Started);
    let mut counter = Counter::attach(&second, "run-1").await;
    assert!(counter.next().await.unwrap() <= seen, "the console remembers what was before");
    counter.passes(seen + 5).await;
    // It can be commanded, and typed to.
    second.pause("run-1").await.unwrap();
    second.resume("run-1").await.unwrap();
    counter.console.write_all(b"q").await.unwrap();
    assert_eq!(stop_reason(&mut events).await, StopReason::GuestShutdown);
    assert!(second.list().await.is_empty());
}

#[tokio::test]
async fn a_guest_that_was_stopped_by_a_signal_is_adopted_too() {
    let lab = Lab::new();
    let first = Qemu::new(lab.config());
    let running = soon("the start", first.start(&lab.spec())).await.unwrap();
    first.resume("run-1").await.unwrap();
    kill(Pid::from_raw(pid(&running)), Signal::SIGSTOP).unwrap();
    drop(first);

    let second = Qemu::new(lab.config());
    let adopted = soon("adoption", second.adopt()).await.unwrap();
    assert_eq!(adopted.running.len(), 1);
    let mut counter = Counter::attach(&second, "run-1").await;
    kill(Pid::from_raw(pid(&running)), Signal::SIGCONT).unwrap();
    counter.passes(3).await;
    // The first answer that QEMU gives is to the question for its state, so that comes before this one's.
    second.resume("run-1").await.unwrap();
    assert_eq!(second.list().await[0].state, LiveState::Running);
    second.destroy("run-1").await.unwrap();
}

#[tokio::test]
async fn what_ended_unwatched_is_reported_gone_and_cleared_away() {
    let lab = Lab::new();
    let first = Qemu::new(lab.config());
    let running = soon("the start", first.start(&lab.spec())).await.unwrap();
    let pidfd = running.process.as_ref().unwrap().open().unwrap().unwrap();
    let dir = lab.config().run_dir.join("run-1");
    drop(first);
    // A start that was cut off before the process was noted: its guest never ran, and is ended.
    fs::remove_file(dir.join("pid")).unwrap();
    // A run whose process number now is another's.
    let stale = lab.config().run_dir.join("run-0");
    fs::create_dir(&stale).unwrap();
    let record = fs::read_to_string(dir.join("spec.json")).unwrap().replace("run-1", "run-0");
    fs::write(stale.join("spec.json"), record).unwrap();
    fs::write(stale.join("pid"), format!("{} 1 {}\n", std::process::id(), running.process.unwrap().boot_id)).unwrap();

    let second = Qemu::new(lab.config());
    let adopted = soon("adoption", second.adopt()).await.unwrap();
    assert!(adopted.running.is_empty());
    let gone: Vec<_> = adopted.gone.iter().map(|gone| gone.run.as_str()).collect();
    assert_eq!(gone, ["run-0", "run-1"]);
    assert!(!stale.exists() && !dir.exists());
    soon("the cut-off QEMU's end", pidfd.exited()).await.unwrap();
    assert_eq!(second.verify().await, Vec::<String>::new());
}

#[tokio::test]
async fn a_corrupt_record_is_named_and_stops_nobody_else() {
    let lab = Lab::new();
    let broken = lab.config().run_dir.join("run-9");
    fs::create_dir_all(&broken).unwrap();
    fs::write(broken.join("spec.json"), "{").unwrap();
    let driver = Qemu::new(lab.config());
    assert!(driver.adopt().await.unwrap().running.is_empty());
    let problems = driver.verify().await;
    assert!(problems.len() == 1 && problems[0].contains("run-9"), "{problems:?}");
    soon("the start", driver.start(&lab.spec())).await.unwrap();
    driver.destroy("run-1").await.unwrap();
}

#[tokio::test]
async fn a_crash_is_an_event() {
    let lab = Lab::new();
    let driver = Qemu::new(lab.config());
    let mut events = driver.events();
    let running = soon("the start", driver.start(&lab.spec())).await.unwrap();
    kill(Pid::from_raw(pid(&running)), Signal::SIGKILL).unwrap();
    let reason = stop_reason(&mut events).await;
    assert_eq!(reason, StopReason::Crashed { how: "QEMU died of SIGKILL".into() });
    assert!(driver.list().await.is_empty());
    // The instance can be started again, under a new run.
    let second = MachineSpec { run: "run-2".into(), ..lab.spec() };
    soon("the start", driver.start(&second)).await.unwrap();
    driver.destroy("run-2").await.unwrap();
}

#[tokio::test]
async fn the_power_button_shuts_down_who_listens_and_times_out_on_others() {
    let lab = Lab::new();
    let driver = Qemu::new(lab.config());
    let mut events = driver.events();
    soon("the start", driver.start(&lab.spec())).await.unwrap();
    let deaf = driver.shutdown("run-1", Duration::from_millis(50)).await.unwrap();
    assert_eq!(deaf, Shutdown::TimedOut, "a paused guest can't react");
    driver.resume("run-1").await.unwrap();
    Counter::attach(&driver, "run-1").await.passes(0).await;
    assert_eq!(driver.shutdown("run-1", NEVER).await.unwrap(), Shutdown::Clean);
    assert_eq!(stop_reason(&mut events).await, StopReason::GuestShutdown);
}

#[tokio::test]
async fn a_reboot_resets_or_ends_as_the_instance_says() {
    let lab = Lab::new();
    let driver = Qemu::new(lab.config());
    let mut events = driver.events();
    soon("the start", driver.start(&lab.spec())).await.unwrap();
    driver.resume("run-1").await.unwrap();
    let mut counter = Counter::attach(&driver, "run-1").await;
    counter.passes(2).await;
    driver.reset("run-1").await.unwrap();
    while counter.next().await.unwrap() != 0 {}
    counter.console.write_all(b"r").await.unwrap();
    while counter.next().await.unwrap() != 0 {}
    driver.destroy("run-1").await.unwrap();
    let mut kinds = Vec::new();
    while kinds.last() != Some(&EventKind::Stopped(StopReason::Killed)) {
        kinds.push(next_event(&mut events).await);
    }
    let resets = kinds.iter().filter_map(|kind| match kind {
        EventKind::Reset { by_guest } => Some(*by_guest),
        _ => None,
    });
    let resets: Vec<bool> = resets.collect();
    // The firmware may add resets of its own to the guest's.
    assert!(resets.len() >= 2 && !resets[0] && resets[1..].iter().all(|by_guest| *by_guest), "{kinds:?}");

    let exits = MachineSpec { reboot: RebootBehavior::Exit, ..lab.spec() };
    soon("the start", driver.start(&exits)).await.unwrap();
    driver.resume("run-1").await.unwrap();
    let mut counter = Counter::attach(&driver, "run-1").await;
    counter.passes(2).await;
    counter.console.write_all(b"r").await.unwrap();
    assert_eq!(stop_reason(&mut events).await, StopReason::GuestReset);
}

#[tokio::test]
async fn a_failed_start_says_what_qemu_said_and_leaves_nothing() {
    let lab = Lab::new();
    let driver = Qemu::new(lab.config());
    let spec = MachineSpec { machine: Some("pc-of-tomorrow".into()), ..lab.spec() };
    let message = soon("the refusal", driver.start(&spec)).await.unwrap_err().to_string();
    assert!(message.contains("vm1 did not start") && message.contains("unsupported machine type"), "{message}");
    assert!(!lab.config().run_dir.join("run-1").exists());

    let mut spec = lab.spec();
    let none = DiskSource::File { path: lab.dir.path().join("none"), direct: true, aio: Aio::Threads };
    spec.disks[0].source = none;
    let message = soon("the refusal", driver.start(&spec)).await.unwrap_err().to_string();
    assert!(message.contains("open disk0 of instance vm1"), "{message}");
    assert!(!lab.config().run_dir.join("run-1").exists());
    assert!(driver.list().await.is_empty());

    let binary = PathBuf::from("/nonexistent/qemu-system-x86_64");
    let driver = Qemu::new(QemuConfig { binary, ..lab.config() });
    let message = driver.start(&lab.spec()).await.unwrap_err().to_string();
    assert!(message.contains("install the package qemu-system-x86"), "{message}");
    assert!(driver.verify().await[0].contains("qemu-system-x86"));
}

#[tokio::test]
async fn a_guest_boots_over_nbd_with_a_network_card_and_a_read_only_disk() {
    let lab = Lab::new();
    let (_server, nbd) = lab.serve_disk();
    let second = lab.dir.path().join("disk1.raw");
    File::create(&second).unwrap().set_len(1 << 20).unwrap();
    let file = DiskSource::File { path: second, direct: false, aio: Aio::Threads };
    let spec = MachineSpec {
        disks: vec![
            DiskSpec { id: "disk0".into(), source: nbd, read_only: false },
            DiskSpec { id: "disk1".into(), source: file, read_only: true },
        ],
        nics: vec![NicSpec {
            id: "nic0".into(),
            mac: "aa:00:00:fa:3a:3f".into(),
            tap: Arc::new(tap()),
            model: NicModel::Virtio,
        }],
        uuid: Some("9f9c4b0e-3a55-4bd5-8a3c-0b0f7c2b4d11".into()),
        ..lab.spec()
    };
    let driver = Qemu::new(lab.config());
    soon("the start", driver.start(&spec)).await.unwrap();
    driver.resume("run-1").await.unwrap();
    Counter::attach(&driver, "run-1").await.passes(2).await;
    driver.destroy("run-1").await.unwrap();
}

#[tokio::test]
async fn a_second_qmp_socket_is_free_for_others() {
    let lab = Lab::new();
    let driver = Qemu::new(lab.config());
    soon("the start", driver.start(&lab.spec())).await.unwrap();
    let path = lab.config().run_dir.join("run-1").join("qmp2.sock");
    let mut stream = tokio::net::UnixStream::connect(path).await.unwrap();
    let mut greeting = [0; 6];
    soon("a greeting", stream.read_exact(&mut greeting)).await.unwrap();
    assert_eq!(&greeting, b"{\"QMP\"");
    driver.destroy("run-1").await.unwrap();
}

#[tokio::test]
async fn the_node_tells_what_it_has() {
    let lab = Lab::new();
    let driver = Qemu::new(lab.config());
    let info = driver.node_info().await.unwrap();
    assert!(info.memory_total_mib > info.memory_free_mib && info.cpus > 0);
    assert!(!info.accelerator.why.is_empty());
    let version = driver.version().await.unwrap();
    assert!(version.starts_with(|c: char| c.is_ascii_digit()), "{version}");
}
