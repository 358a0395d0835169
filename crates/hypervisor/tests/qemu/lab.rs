//! A place to run the guest of a boot sector, and what the tests look at it with.
#![allow(unsafe_code)] // The ioctl that makes a tap.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use hypervisor::{
    Aio, Boot, ConsoleStream, DiskSource, DiskSpec, Event, EventKind, Hypervisor, MachineSpec, Qemu, QemuConfig,
    Running, StopReason,
};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt;
use tokio::sync::broadcast;

/// How long a step may take before it counts as never. Generous: nothing is measured here.
pub const NEVER: Duration = Duration::from_secs(120);
/// Debian's `nobody` and `nogroup`.
pub const NOBODY: u32 = 65534;

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
pub struct Lab {
    pub dir: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Lab {
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

    pub fn config(&self) -> QemuConfig {
        self.config_of("node")
    }

    /// The configuration of one of several drivers.
    pub fn config_of(&self, node: &str) -> QemuConfig {
        let dir = self.dir.path().join(node);
        QemuConfig {
            binary: PathBuf::from("/usr/bin/qemu-system-x86_64"),
            uid: NOBODY,
            gid: NOBODY,
            run_dir: dir.join("run"),
            log_dir: dir.join("log"),
        }
    }

    pub fn disk(&self) -> PathBuf {
        self.dir.path().join("disk0.raw")
    }

    /// Serves the disk over NBD to several clients at once, under the export name `run-1`.
    pub fn serve_disk(&self) -> (NbdServer, DiskSource) {
        assert!(fs::exists("/usr/bin/qemu-nbd").unwrap(), "the tests of disks over NBD need the package qemu-utils");
        // QEMU's user connects to the server itself.
        fs::set_permissions(self.dir.path(), fs::Permissions::from_mode(0o711)).unwrap();
        let socket = self.dir.path().join("nbd.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
        // The socket is there before the server, which gets it the way systemd would give it.
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", "exec env LISTEN_PID=$$ LISTEN_FDS=1 qemu-nbd -t -e 8 -f raw -x run-1 \"$0\" 3<&0"])
            .arg(self.disk())
            .stdin(OwnedFd::from(listener));
        let server = NbdServer(command.spawn().unwrap());
        (server, DiskSource::Nbd { socket, export: "run-1".into(), reconnect_delay_s: 60 })
    }

    pub fn spec(&self) -> MachineSpec {
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
        let nodes = fs::read_dir(self.dir.path()).into_iter().flatten().flatten();
        let runs = nodes.filter_map(|node| fs::read_dir(node.path().join("run")).ok()).flatten();
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

pub async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(NEVER, future).await {
        Ok(value) => value,
        Err(_) => panic!("{what}: not within {NEVER:?}"),
    }
}

/// A reader of the guest's counter.
pub struct Counter {
    pub console: ConsoleStream,
    text: String,
}

impl Counter {
    pub async fn attach(driver: &Qemu, run: &str) -> Counter {
        let console = driver.console(run).await.unwrap();
        Counter { console, text: String::new() }
    }

    /// The next number that comes, or `None` at the console's end.
    pub async fn next(&mut self) -> Option<u32> {
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
    pub async fn passes(&mut self, number: u32) -> u32 {
        loop {
            let now = self.next().await.expect("the console ended");
            if now > number {
                return now;
            }
        }
    }
}

pub async fn next_event(events: &mut broadcast::Receiver<Event>) -> EventKind {
    let event = soon("an event", events.recv()).await.unwrap();
    assert_eq!((event.instance.as_str(), event.run.as_str()), ("vm1", "run-1"));
    event.kind
}

/// Waits for the end of the run, past what comes before.
pub async fn stop_reason(events: &mut broadcast::Receiver<Event>) -> StopReason {
    loop {
        if let EventKind::Stopped(reason) = next_event(events).await {
            return reason;
        }
    }
}

pub fn pid(running: &Running) -> i32 {
    running.process.as_ref().unwrap().pid
}

pub fn exists(pid: i32) -> bool {
    fs::exists(format!("/proc/{pid}")).unwrap()
}

/// A value of `/proc/PID/status`.
pub fn status(pid: i32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    line.unwrap().trim().to_owned()
}

/// A tap in a network namespace of its own, which goes with the last descriptor.
pub fn tap() -> OwnedFd {
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
pub struct NbdServer(pub Child);

impl Drop for NbdServer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
