//! What a node sees of the machine's file system: all of it, but with places of its own where it writes, and
//! nothing of the other nodes.

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};

use crate::layout::Files;

/// Where the commands (`gnt-cluster`, `cardume`, …) are inside a node.
pub(crate) const BIN: &str = "/run/lab/bin";

/// Directories of the machine that are mounted on inside a node and have to exist for that.
pub(crate) const MOUNT_POINTS: [&str; 3] = ["/var/lib/cardume", "/var/log/cardume", "/srv/ganeti/file-storage"];

/// Rearranges the file system of the calling process, which must be PID 1 of namespaces of its own.
pub(crate) fn make_private(files: &Files, member: &str) -> io::Result<()> {
    // Nothing of what follows may reach the machine.
    call(None, "/", None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?;
    let safe = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    call(Some("proc"), "/proc", Some("proc"), safe | MsFlags::MS_NOEXEC, None)?;
    // Describes the network of whoever mounted it.
    call(Some("sysfs"), "/sys", Some("sysfs"), safe | MsFlags::MS_NOEXEC, None)?;

    // Taken hold of before the place where they are is covered.
    let [state, logs, disks] = MOUNT_POINTS;
    let own = [
        (hold(files.state(member))?, state),
        (hold(files.logs(member))?, logs),
        (hold(files.disks(member))?, disks),
        (hold(files.hosts(member))?, "/etc/hosts"),
        (hold(files.bin())?, BIN),
    ];
    let dir = files.dir().to_string_lossy().into_owned();
    call(Some("tmpfs"), &dir, Some("tmpfs"), safe | MsFlags::MS_RDONLY, Some("size=4k,mode=0555"))?;
    call(Some("tmpfs"), "/tmp", Some("tmpfs"), safe, Some("mode=1777"))?;
    call(Some("tmpfs"), "/run", Some("tmpfs"), safe, Some("mode=0755"))?;
    fs::create_dir_all(BIN)?;
    fs::create_dir_all("/run/lock")?;
    for (source, target) in own {
        let source = format!("/proc/self/fd/{}", source.as_raw_fd());
        call(Some(&source), target, None, MsFlags::MS_BIND, None)?;
    }
    Ok(())
}

/// Refers to a file without opening it.
fn hold(path: PathBuf) -> io::Result<File> {
    File::options().read(true).custom_flags(libc::O_PATH).open(&path).map_err(|error| about("open", &path, error))
}

fn call(
    source: Option<&str>,
    target: &str,
    kind: Option<&str>,
    flags: MsFlags,
    options: Option<&str>,
) -> io::Result<()> {
    mount(source, target, kind, flags, options).map_err(|error| about("mount on", Path::new(target), error.into()))
}

fn about(action: &str, path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("can't {action} {}: {error}", path.display()))
}
