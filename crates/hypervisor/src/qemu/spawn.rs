//! Starts QEMU as a process that depends on nothing of ours and may do nothing of ours.
#![allow(unsafe_code)] // What happens between fork and exec can only be said in unsafe code.

use std::fs::File;
use std::io;
use std::os::fd::RawFd;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::unistd::{Gid, Uid, setgroups, setresgid, setresuid, setsid};

/// Whom the process runs as.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// Further groups: `/dev/kvm`'s, or none.
    pub groups: Vec<u32>,
}

/// Starts the program in a session of its own, with the log as its output, and with these descriptors, by their own
/// numbers, as the only ones beyond. Returns its number; it is our child and waits to be reaped after its end.
pub(super) fn spawn(
    binary: &Path,
    arguments: &[String],
    log: File,
    inherit: Vec<RawFd>,
    identity: Identity,
) -> io::Result<i32> {
    let mut command = Command::new(binary);
    command
        .args(arguments)
        .env_clear()
        .env("LC_ALL", "C") // Its messages end up in ours.
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log);
    let uid = Uid::from_raw(identity.uid);
    let gid = Gid::from_raw(identity.gid);
    let groups: Vec<Gid> = identity.groups.into_iter().map(Gid::from_raw).collect();
    // SAFETY: only system calls, no allocation and no lock of ours: the child of a threaded process may do no more.
    unsafe {
        command.pre_exec(move || {
            // The daemon's end, or a signal to its session, is not the guest's.
            setsid()?;
            close_others_at_exec()?;
            for fd in &inherit {
                // SAFETY: the caller holds these descriptors open over the start.
                let fd = std::os::fd::BorrowedFd::borrow_raw(*fd);
                fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
            }
            setgroups(&groups)?;
            setresgid(gid, gid, gid)?;
            setresuid(uid, uid, uid)?;
            Ok(())
        });
    }
    command.spawn().map(|child| child.id() as i32)
}

/// Marks all descriptors but standard input, output and error to be closed at exec: also those that a library opened
/// without saying so.
fn close_others_at_exec() -> nix::Result<()> {
    // SAFETY: the call takes three integers.
    let done = unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    Errno::result(done).map(drop)
}
