//! Keeps two runs of a script on the same disks from overlapping, even if a daemon died between them.
//!
//! The lock is a `flock`, which belongs to an open file and not to a process. The script and its children inherit that
//! open file, so the lock is free only when the last of them is gone, whatever became of the daemon that began it.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::libc::O_CLOEXEC;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, getpgid, getpgrp, getpid};

use crate::error::{Error, Result, io};

/// How long a killed process may take to be gone: one that waits for a slow disk ends only after that.
const PATIENCE: Duration = Duration::from_secs(30);
/// How often it is looked whether the lock is free.
const INTERVAL: Duration = Duration::from_millis(20);

/// Takes the lock. Scripts that hold it are killed with their process groups: they are left over from a daemon that
/// died, or from a run that nobody waits for any more. None if `give_up` says so before the lock is free.
pub(crate) fn take(lock_file: &Path, give_up: impl Fn() -> bool) -> Result<Option<File>> {
    if let Some(folder) = lock_file.parent() {
        fs::create_dir_all(folder).map_err(io("create the folder", folder))?;
    }
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(lock_file)
        .map_err(io("open", lock_file))?;
    let until = Instant::now() + PATIENCE;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(Some(file)),
            Err(TryLockError::WouldBlock) => {}
            Err(TryLockError::Error(error)) => return Err(io("lock", lock_file)(error)),
        }
        if give_up() {
            return Ok(None);
        }
        // Also without a holder it may be taken: a run whose script has ended has not let go of it yet.
        end_holders(&file, lock_file, until)?;
        thread::sleep(INTERVAL);
    }
}

/// Kills what still holds the lock besides its taker, and returns when that is gone. The lock stays taken meanwhile, so
/// that what is killed can't be another run that just took it.
pub(crate) fn clear(file: &File, lock_file: &Path) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while end_holders(file, lock_file, until)? {
        thread::sleep(INTERVAL);
    }
    Ok(())
}

/// Kills the scripts that hold the lock; false if there are none. To be repeated, because one may have forked while it
/// was looked for.
fn end_holders(file: &File, lock_file: &Path, until: Instant) -> Result<bool> {
    let holders = holders(file).map_err(io("look for the holders of", lock_file))?;
    for pid in &holders {
        end(*pid);
    }
    if Instant::now() >= until {
        let pids = holders.into_iter().map(Pid::as_raw).collect();
        return Err(Error::Busy { lock_file: lock_file.to_owned(), seconds: PATIENCE.as_secs(), pids });
    }
    Ok(!holders.is_empty())
}

fn end(pid: Pid) {
    tracing::warn!(pid = pid.as_raw(), "killing what is left of an OS script");
    // Either may be gone already.
    let _ = match getpgid(Some(pid)) {
        Ok(group) if group != getpgrp() => killpg(group, Signal::SIGKILL),
        _ => kill(pid, Signal::SIGKILL),
    };
}

/// The processes that have inherited a locked open file of `file`'s inode. The daemon itself is none, nor is a child
/// that it is just about to start: in these the file is closed at exec.
fn holders(file: &File) -> std::io::Result<Vec<Pid>> {
    let meta = file.metadata()?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()).map(Pid::from_raw) else {
            continue;
        };
        if pid == getpid() {
            continue;
        }
        // Processes and descriptors come and go while we look.
        let Ok(descriptors) = fs::read_dir(entry.path().join("fdinfo")) else { continue };
        let holds = descriptors.flatten().any(|descriptor| {
            // The inode's number alone first: a stat may hang on a file system that does.
            fs::read_to_string(descriptor.path()).is_ok_and(|info| inherited_lock(&info, meta.ino()))
                && fs::metadata(entry.path().join("fd").join(descriptor.file_name()))
                    .is_ok_and(|other| (other.dev(), other.ino()) == (meta.dev(), meta.ino()))
        });
        if holds {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Does `/proc/<pid>/fdinfo/<fd>` speak of an open file that is locked, has this inode, and stays open at exec?
fn inherited_lock(info: &str, inode: u64) -> bool {
    let field = |name| info.lines().filter_map(move |line: &str| line.strip_prefix(name));
    let flags = field("flags:").next().and_then(|flags| i32::from_str_radix(flags.trim(), 8).ok());
    let locked = field("lock:").any(|lock| {
        let mut words = lock.split_whitespace();
        words.any(|word| word == "FLOCK")
            && words.any(|word| word.rsplit_once(':').is_some_and(|(_, number)| number.parse() == Ok(inode)))
    });
    locked && flags.is_some_and(|flags| flags & O_CLOEXEC == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_inherited_flock_counts() {
        let info = |flags, lock| format!("pos:\t0\nflags:\t{flags}\nmnt_id:\t27\nino:\t77\n{lock}");
        let flock = "lock:\t1: FLOCK  ADVISORY  WRITE 8357 fe:00:77 0 EOF\n";
        assert!(inherited_lock(&info("0100001", flock), 77));
        assert!(!inherited_lock(&info("02100001", flock), 77), "closed at exec: the daemon's own");
        assert!(!inherited_lock(&info("0100001", flock), 78), "another file");
        assert!(!inherited_lock(&info("0100001", ""), 77), "open, but not locked");
        let posix = "lock:\t1: POSIX  ADVISORY  WRITE 8357 fe:00:77 0 EOF\n";
        assert!(!inherited_lock(&info("0100001", posix), 77), "a lock of another sort");
    }
}
