//! The driver for QEMU with a real QEMU, and a guest that fits into a boot sector (`boot_sector.s`).
//!
//! Needs root, for QEMU is to run as somebody else, and a QEMU.

#![allow(unsafe_code)] // The ioctl that makes a tap.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use hypervisor::{
    Aio, Boot, ConsoleStream, DiskSource, DiskSpec, Event, EventKind, Hypervisor, LiveState, MachineSpec, NicModel,
    NicSpec, Qemu, QemuConfig, RebootBehavior, Running, Shutdown, StopReason,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::broadcast;

/// How long a step may take before it counts as never. Generous: nothing is measured here.
const NEVER: Duration = Duration::from_secs(120);
/// Debian's `nobody` and `nogroup`.
const NOBODY: u32 = 65534;

#[rustfmt::skip]
const BOOT_SECTOR: [u8; 116] = [
    0xfa, 0x31, 0xc0, 0x8e, 0xd8, 0x8e, 0xd0, 0xbc, 0x00, 0x7c, 0xfb, 0xba, 0x02, 0x06, 0xb8, 0x00,
    0x01, 0xef, 0x31, 0xdb, 0x89, 0xd8, 0xb9, 0x04, 0x00, 0xc1, 0xc0, 0x04, 0x50, 0x24, 0x0f, 0x3c,
    0x0a, 0x72, 0x02, 0x04, 0x27, 0x04, 0x30, 0xe8, 0x39, 0x00, 0x58, 0xe2, 0xec, 0xb0, 0x0a, 0xe8,
    0x31, 0x00, 0x43, 0xba, 0x00, 0x06, 0xed, 0xf6, 0xc4, 0x01, 0x75, 0x1a, 0xba, 0xfd, 0x03, 0xec,
    0xa8, 0x01, 0x74, 0x0f, 0xba, 0xf8, 0x03, 0xec, 0x3c, 0x71, 0x74, 0x0a, 0x3c, 0x72, 0x74, 0x0e,
    0xe8, 0x10, 0x00, 0xf4, 0xeb, 0xbe, 0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, 0xf4, 0xb0, 0xfe,
    0xe6, 0x64, 0xf4, 0x52, 0x50, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x20, 0x74, 0xfb, 0x58, 0xba, 0xf8,
    0x03, 0xee, 0x5a, 0xc3,
];

/// A directory for a driver and its guest's disk; ends what is still running when the test is over, also by failing.
struct Lab {
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Lab {
        assert!(nix::unistd::geteuid().is_root(), "the tests with a real QEMU need root");
        let lab = Lab { dir: tempfile::tempdir().unwrap() };
        assert!(lab.config().binary.exists(), "the tests with a real QEMU need the package qemu-system-x86");
        let disk = lab.disk();
        let mut sector = BOOT_SECTOR.to_vec();
        sector.resize(510, 0);
        sector.extend([0x55, 0xaa]);
        fs::write(&disk, sector).unwrap();
        File::options().write(true).open(&disk).unwrap().set_len(1 << 20).unwrap();
        // QEMU gets it as a descriptor: its user has no right to the path.
        fs::set_permissions(&disk, fs::Permissions::from_mode(0o600)).unwrap();
        lab
    }

    fn config(&self) -> QemuConfig {
        QemuConfig {
            binary: PathBuf::from("/usr/bin/qemu-system-x86_64"),
            uid: NOBODY,
            gid: NOBODY,
            run_dir: self.dir.path().join("run"),
            log_dir: self.dir.path().join("log"),
        }
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("disk0.raw")
    }

    fn spec(&self) -> MachineSpec {
        let source = DiskSource::File { path: self.disk(), direct: true, aio: Aio::Threads };
        let disk = DiskSpec { id: "disk0".into(), source, read_only: false };
        MachineSpec {
            disks: vec![disk],
            ..MachineSpec::new("vm1", "run-1", 32, 1, Boot::Disk { order: vec!["disk0".into()] })
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let Ok(runs) = fs::read_dir(self.config().run_dir) else {
            return;
        };
        for run in runs.flatten() {
            let Ok(pid) = fs::read_to_string(run.path().join("pid")) else {
                continue;
            };
            let pid: i32 = pid.split(' ').next().unwrap_or_default().parse().unwrap_or(0);
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&line).contains("guest=vm1") {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(NEVER, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {NEVER:?}"),
    }
}

/// A reader of the guest's counter.
struct Counter {
    console: ConsoleStream,
    text: String,
}

impl Counter {
    async fn attach(driver: &Qemu, run: &str) -> Counter {
        let console = driver.console(run).await.unwrap();
        Counter { console, text: String::new() }
    }

    /// The next number that comes, or `None` at the console's end.
    async fn next(&mut self) -> Option<u32> {
        loop {
            while let Some((line, rest)) = self.text.split_once('\n') {
                let number = u32::from_str_radix(line.trim_start_matches(|c: char| !c.is_ascii_hexdigit()), 16);
                self.text = rest.to_owned();
                if let Ok(number) = number {
                    return Some(number);
                }
            }
            let mut bytes = [0; 256];
            let n = soon("console output", self.console.read(&mut bytes)).await.unwrap();
            if n == 0 {
                return None;
            }
            self.text.push_str(&String::from_utf8_lossy(&bytes[..n]));
        }
    }

    /// Reads on until a number above this one has come.
    async fn passes(&mut self, number: u32) -> u32 {
        loop {
            let now = self.next().await.expect("the console ended");
            if now > number {
                return now;
            }
        }
    }
}

async fn next_event(events: &mut broadcast::Receiver<Event>) -> EventKind {
    let event = soon("an event", events.recv()).await.unwrap();
    assert_eq!((event.instance.as_str(), event.run.as_str()), ("vm1", "run-1"));
    event.kind
}

/// Waits for the end of the run, past what comes before.
async fn stop_reason(events: &mut broadcast::Receiver<Event>) -> StopReason {
    loop {
        if let EventKind::Stopped(reason) = next_event(events).await {
            return reason;
        }
    }
}

fn pid(running: &Running) -> i32 {
    running.process.as_ref().unwrap().pid
}

fn exists(pid: i32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap()
}

/// A value of `/proc/PID/status`.
fn status(pid: i32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().trim().to_owned()
}

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
    assert!(message.contains("vm1 did not start") && message.contains("pc-of-tomorrow"), "{message}");
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

/// A tap in a network namespace of its own, which goes with the last descriptor.
fn tap() -> OwnedFd {
    let open = || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let tun = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
        // SAFETY: all zeros is a valid ifreq: no name, so the kernel chooses one.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
        // SAFETY: TUNSETIFF takes an ifreq, and this one lives over the call.
        let done = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
        assert_eq!(done, 0, "TUNSETIFF: {}", std::io::Error::last_os_error());
        OwnedFd::from(tun)
    };
    // In a thread of its own, for a thread that has left its namespace can't be used for other tests.
    std::thread::spawn(open).join().unwrap()
}

/// A server that is killed with the test.
struct NbdServer(Child);

impl Drop for NbdServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test]
async fn a_guest_boots_over_nbd_with_a_network_card_and_a_read_only_disk() {
    let lab = Lab::new();
    assert!(fs::exists("/usr/bin/qemu-nbd").unwrap(), "the test of disks over NBD needs the package qemu-utils");
    // QEMU's user connects to the server itself.
    fs::set_permissions(lab.dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
    let socket = lab.dir.path().join("nbd.sock");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    // The socket is there before the server, which gets it the way systemd would give it.
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "exec env LISTEN_PID=$$ LISTEN_FDS=1 qemu-nbd -t -f raw -x run-1 \"$0\" 3<&0"])
        .arg(lab.disk())
        .stdin(OwnedFd::from(listener));
    let _server = NbdServer(command.spawn().unwrap());
    let nbd = DiskSource::Nbd { socket, export: "run-1".into(), reconnect_delay_s: 60 };
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
