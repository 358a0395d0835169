//! A disk as a file: for OS installation scripts, rescue, and whatever else wants a path and not a socket.
//!
//! `<mountpoint>/<name>` has the size of the disk. It behaves like a block device that happens to be a regular file: it
//! keeps its size, writes beyond its end find no space, and truncation does nothing (`dd of=` does that first). Nothing
//! is cached on the way, so what was written by the file is what is read by NBD, and a loop device on it works, without
//! `--direct-io`.
//!
//! A loop device or another user may still be there when the mount is given up. It is cut off: the mount point is free at
//! once, and whatever they do from then on fails and does not reach the disk.
//!
//! The kernel waits for us here. A daemon that has such a mount must not itself wait for a file system on it.

mod files;
mod mounts;

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use fuser::{BackgroundSession, Config, Session, SessionACL};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tokio::runtime::Handle;
use tokio::task::JoinError;

use crate::device::Device;
use files::{DiskFile, Gate};

/// How often it is tried to unmount what is in use.
const RETRY: Duration = Duration::from_millis(10);

/// Why there is no mount, or still one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MountError {
    /// The name of the file is not one.
    #[error("{name:?} can't be the name of a disk's file: it is empty or a path")]
    Name {
        /// The name.
        name: OsString,
    },
    /// A live mount is there.
    #[error("{path} is a mount point already, and what is mounted there is alive: unmount it first")]
    InUse {
        /// The mount point.
        path: PathBuf,
    },
    /// Somebody uses the file.
    #[error("{path} is in use, by a loop device or an open file: detach or close it first")]
    Busy {
        /// The mount point.
        path: PathBuf,
    },
    /// The program is ending.
    #[error("the program is ending")]
    Ending,
    /// The operating system refused.
    #[error("cannot {attempt} {path}")]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Its reason.
        #[source]
        source: io::Error,
    },
}

/// A disk that is a file. Dropping this cuts off who uses it, and unmounts.
#[derive(Debug)]
pub struct Mount {
    mountpoint: PathBuf,
    name: OsString,
    gate: Arc<Gate>,
    session: Option<BackgroundSession>,
}

impl Mount {
    /// Mounts a file system with the one file `name` on the directory `mountpoint`, only for root. What a daemon that is
    /// gone left mounted there is cleared away first.
    ///
    /// Requests are run by the tokio runtime that this is called in.
    pub async fn new(
        mountpoint: impl Into<PathBuf>,
        name: impl Into<OsString>,
        device: Arc<dyn Device>,
    ) -> Result<Mount, MountError> {
        let (mountpoint, name, runtime) = (mountpoint.into(), name.into(), Handle::current());
        if Path::new(&name).file_name() != Some(&name) {
            return Err(MountError::Name { name });
        }
        let gate = Gate::new();
        let files = DiskFile::new(name.clone(), device, runtime.clone(), gate.clone());
        // The kernel asks the new file system before it answers us.
        let mounted = runtime.spawn_blocking(move || {
            let mountpoint = mounts::resolve(&mountpoint)?;
            mounts::clear(&mountpoint)?;
            let session = start(&mountpoint, files)?;
            Ok(Mount { mountpoint, name, gate, session: Some(session) })
        });
        ended(mounted.await)
    }

    /// Where the file is.
    pub fn path(&self) -> PathBuf {
        self.mountpoint.join(&self.name)
    }

    /// Unmounts if nobody uses the file, or will not any more within `patience`; else it stays as it is. A loop device may
    /// have the file a moment longer than its detaching takes, because another program was just looking at it.
    pub async fn unmount(&mut self, patience: Duration) -> Result<(), MountError> {
        let mountpoint = self.mountpoint.clone();
        let unmounted = tokio::task::spawn_blocking(move || {
            let start = Instant::now();
            loop {
                match umount2(&mountpoint, MntFlags::empty()) {
                    // Somebody else unmounted it.
                    Ok(()) | Err(Errno::EINVAL) => return Ok(()),
                    // The kernel has no event for this.
                    Err(Errno::EBUSY) if start.elapsed() < patience => std::thread::sleep(RETRY),
                    Err(Errno::EBUSY) => return Err(MountError::Busy { path: mountpoint }),
                    Err(error) => return Err(failed("unmount", &mountpoint, error.into())),
                }
            }
        });
        ended(unmounted.await)?;
        self.session = None;
        self.gate.close();
        Ok(())
    }
}

/// Clears away what a daemon that is gone left mounted on the directory `mountpoint`, if it did.
///
/// # Errors
/// [`MountError::InUse`] if what is mounted there is alive or not ours; what the operating system says.
pub async fn clear(mountpoint: &Path) -> Result<(), MountError> {
    let mountpoint = mountpoint.to_owned();
    let cleared = tokio::task::spawn_blocking(move || {
        // What is not there has nothing mounted on it.
        if std::fs::symlink_metadata(&mountpoint).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
            return Ok(());
        }
        mounts::clear(&mounts::resolve(&mountpoint)?)
    });
    ended(cleared.await)
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.gate.close();
        if self.session.take().is_some() {
            match umount2(&self.mountpoint, MntFlags::MNT_DETACH) {
                Ok(()) | Err(Errno::EINVAL) => {}
                Err(error) => tracing::error!(%error, "cannot unmount {}", self.mountpoint.display()),
            }
        }
    }
}

fn ended<T>(task: Result<Result<T, MountError>, JoinError>) -> Result<T, MountError> {
    match task.map_err(JoinError::try_into_panic) {
        Ok(result) => result,
        Err(Ok(panic)) => std::panic::resume_unwind(panic),
        Err(Err(_)) => Err(MountError::Ending),
    }
}

fn start(mountpoint: &Path, files: DiskFile) -> Result<BackgroundSession, MountError> {
    let device = Path::new("/dev/fuse");
    let fuse = OpenOptions::new().read(true).write(true).open(device).map_err(|e| failed("open", device, e))?;
    attach(mountpoint, &fuse).map_err(|e| failed("mount a disk's file on", mountpoint, e))?;
    let started = Session::from_fd(files, OwnedFd::from(fuse), SessionACL::Owner, Config::default());
    started.and_then(Session::spawn).map_err(|source| {
        let _ = umount2(mountpoint, MntFlags::MNT_DETACH);
        failed("serve a disk's file on", mountpoint, source)
    })
}

fn attach(mountpoint: &Path, fuse: &File) -> io::Result<()> {
    // The session doesn't know that we mounted, so that it never unmounts what may be another mount by then.
    let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", fuse.as_raw_fd());
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_NOATIME;
    Ok(mount(Some(mounts::SOURCE), mountpoint, Some(mounts::KIND), flags, Some(options.as_str()))?)
}

fn failed(attempt: &'static str, path: &Path, source: io::Error) -> MountError {
    MountError::Io { attempt, path: path.to_owned(), source }
}
