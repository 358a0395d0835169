//! Where the daemon keeps its things, and what it runs guests with.

use std::path::PathBuf;
use std::time::Duration;

/// Configuration of one daemon. Everything that concerns the cluster is in the replicated state instead.
#[derive(Clone, Debug)]
pub struct Config {
    /// Folder for what must survive a reboot: identity, log, state.
    pub state_dir: PathBuf,
    /// Folder for what must not: sockets, runs.
    pub run_dir: PathBuf,
    /// Folder for logs of guests and of operating systems' scripts.
    pub log_dir: PathBuf,
    /// Folders with definitions of operating systems, first match wins.
    pub os_search_path: Vec<PathBuf>,
    /// QEMU's program.
    pub qemu: PathBuf,
    /// User and group, by number, that QEMU runs as.
    pub qemu_user: (u32, u32),
    /// This machine's name.
    pub host_name: String,
    /// Identity of this boot of this machine; see [`boot_id`].
    pub boot: String,
    /// Port between nodes.
    pub node_port: u16,
    /// Port of the API over TLS.
    pub api_port: u16,
    /// Port for replication between nodes, at their secondary addresses.
    pub mirror_port: u16,
    /// Folder in which tests hold the daemon at named points, see [`crate::fault`].
    pub fault_points: Option<PathBuf>,
}

/// Folders that are searched for definitions of operating systems: Ganeti's, then ours.
pub const OS_SEARCH_PATH: [&str; 5] = [
    "/srv/ganeti/os",
    "/usr/local/lib/ganeti/os",
    "/usr/lib/ganeti/os",
    "/usr/share/ganeti/os",
    "/usr/share/cardume/os",
];

/// User and group that QEMU runs as unless told otherwise. A number out of the way of Debian's ranges for people and
/// services; it needs no entry in `/etc/passwd`.
pub const QEMU_USER: (u32, u32) = (64_777, 64_777);

/// How long a request waits for a master before it is refused: longer than an election.
pub(crate) const MASTER_PATIENCE: Duration = Duration::from_secs(5);
/// How long the cluster's address may stay up without word from a majority. The same bound as the lease's (protocol, 8).
pub(crate) const ADDRESS_LEASE: Duration = Duration::from_millis(1300);
/// How long a new master waits before it takes the address of an old one that does not answer: the old one's
/// [`ADDRESS_LEASE`], and time for it to act.
pub(crate) const ADDRESS_TAKEOVER: Duration = Duration::from_millis(2000);

impl Config {
    /// Folder of this node's replicas of mirrored disks.
    pub(crate) fn replicas(&self) -> PathBuf {
        self.state_dir.join("disks")
    }

    /// The usual places, for a daemon on this machine.
    ///
    /// # Errors
    /// When the machine's name or boot can't be read.
    pub fn new(state_dir: PathBuf) -> std::io::Result<Self> {
        let host_name = nix::unistd::gethostname()?;
        Ok(Self {
            state_dir,
            run_dir: "/run/cardume".into(),
            log_dir: "/var/log/cardume".into(),
            os_search_path: OS_SEARCH_PATH.iter().map(PathBuf::from).collect(),
            qemu: "/usr/bin/qemu-system-x86_64".into(),
            qemu_user: QEMU_USER,
            host_name: host_name.to_string_lossy().into_owned(),
            boot: boot_id()?,
            node_port: opcodes::wire::NODE_PORT,
            api_port: opcodes::wire::API_PORT,
            mirror_port: opcodes::wire::MIRROR_PORT,
            fault_points: std::env::var_os(crate::fault::VARIABLE).map(PathBuf::from),
        })
    }
}

/// Identity of this boot: the kernel's, and when the first process was started. The second matters in a container or in
/// the lab, where a node that is killed and started again is on the same kernel: everything that ran on it is gone all the
/// same.
///
/// # Errors
/// When `/proc` can't be read.
pub fn boot_id() -> std::io::Result<String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let stat = std::fs::read_to_string("/proc/1/stat")?;
    // The second field is the program's name in parentheses and may contain anything; the start time is field 22.
    let started = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19)).unwrap_or("0");
    Ok(format!("{}.{started}", kernel.trim()))
}
