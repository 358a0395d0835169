//! What can only be said to the kernel directly: process descriptors, and what happens between fork and exec.
//!
//! Everything in a function that runs between fork and exec must be async-signal-safe: plain system calls, no
//! allocation, no lock.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};

/// A descriptor of a process: it never comes to mean another one.
#[derive(Debug)]
pub(crate) struct PidFd(OwnedFd);

impl PidFd {
    pub fn open(pid: i32) -> io::Result<PidFd> {
        // SAFETY: pidfd_open takes two integers and returns a new descriptor, which nobody else owns.
        let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
        // SAFETY: as above.
        Ok(PidFd(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Sends a signal. A process that has ended already is no error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        let no_info: *const libc::siginfo_t = std::ptr::null();
        // SAFETY: the descriptor is open, and no siginfo is passed.
        let result = Errno::result(unsafe {
            libc::syscall(libc::SYS_pidfd_send_signal, self.0.as_raw_fd(), signal as i32, no_info, 0)
        });
        match result {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until the process has ended. False: not within `timeout`.
    pub fn wait(&self, timeout: Duration) -> io::Result<bool> {
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        loop {
            match poll(&mut fds, timeout) {
                Err(Errno::EINTR) => {}
                result => return Ok(result? > 0),
            }
        }
    }
}

/// The namespaces of a node, opened.
#[derive(Debug)]
pub(crate) struct Namespaces {
    pub net: OwnedFd,
    pub uts: OwnedFd,
    pub pid: OwnedFd,
    pub mnt: OwnedFd,
}

/// Where a command's terminal comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terminal {
    /// From whoever starts it, or there is none.
    Inherited,
    /// Its standard input is a new one, which it gets for its own.
    OnStdin,
}

/// Makes `command` run inside the namespaces. What the caller then holds as its child is a process that only
/// waits for the real one, which has to be a child of it to be in the PID namespace, and passes on its exit
/// code (128 + number for a signal, as shells do).
pub(crate) fn enter(command: &mut Command, namespaces: Namespaces, terminal: Terminal) {
    let hook = move || {
        for (fd, kind) in [
            (&namespaces.net, libc::CLONE_NEWNET),
            (&namespaces.uts, libc::CLONE_NEWUTS),
            (&namespaces.pid, libc::CLONE_NEWPID),
            // Last: from here on paths are the node's.
            (&namespaces.mnt, libc::CLONE_NEWNS),
        ] {
            // SAFETY: a system call on an open descriptor. After fork this process has one thread.
            Errno::result(unsafe { libc::setns(fd.as_raw_fd(), kind) })?;
        }
        // SAFETY: the process has one thread, and the child does only what is safe after a fork.
        match Errno::result(unsafe { libc::fork() })? {
            0 => inside(terminal),
            child => wait_for(child),
        }
    };
    // SAFETY: the hook makes system calls only; see `inside` and `wait_for`.
    unsafe { command.pre_exec(hook) };
}

/// In the process that is about to become the command.
fn inside(terminal: Terminal) -> io::Result<()> {
    // SAFETY: system calls with integers. Who ends the waiting parent wants the command to end, and the command
    // must not start with signals ignored because the lab's command line ignores them.
    unsafe {
        Errno::result(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))?;
        libc::signal(libc::SIGINT, libc::SIG_DFL);
        libc::signal(libc::SIGQUIT, libc::SIG_DFL);
        if terminal == Terminal::OnStdin {
            Errno::result(libc::setsid())?;
            Errno::result(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
        }
    }
    Ok(())
}

/// In the process between: it closes everything, so that pipes end when the command ends them, and leaves with
/// the command's exit code.
fn wait_for(child: libc::pid_t) -> ! {
    // SAFETY: system calls with integers and a pointer to a local; `_exit` runs nothing of ours.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGQUIT, libc::SIG_IGN);
        libc::syscall(libc::SYS_close_range, 0, u32::MAX, 0);
        let mut status = 0;
        while libc::waitpid(child, &raw mut status, 0) < 0 {
            if *libc::__errno_location() != libc::EINTR {
                libc::_exit(255);
            }
        }
        if libc::WIFSIGNALED(status) {
            libc::_exit(128 + libc::WTERMSIG(status));
        }
        libc::_exit(libc::WEXITSTATUS(status))
    }
}

/// Makes `command` start with no signal blocked; a mask would be inherited from us.
pub(crate) fn unblock_signals(command: &mut Command) {
    let hook = || Ok(SigSet::empty().thread_set_mask()?);
    // SAFETY: the hook makes one system call.
    unsafe { command.pre_exec(hook) };
}

/// Lets what this process starts have nothing of what it was itself started with, besides standard input, output and error.
/// A lock that the caller holds is not to last as long as the lab.
pub(crate) fn pass_nothing_on() -> io::Result<()> {
    // SAFETY: a system call with integers. Descriptors stay open here; only those that are passed on change.
    Errno::result(unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, libc::CLOSE_RANGE_CLOEXEC) })?;
    Ok(())
}

/// Leaves the keys for interrupt and quit to the command in the foreground, as shells do.
pub(crate) fn ignore_terminal_signals() {
    // SAFETY: to ignore a signal installs no handler.
    unsafe {
        libc::signal(libc::SIGINT, libc::SIG_IGN);
        libc::signal(libc::SIGQUIT, libc::SIG_IGN);
    }
}

/// Waits until something can be read. False: not within `timeout`.
pub(crate) fn readable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    match poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], timeout) {
        Err(Errno::EINTR) => Ok(false),
        result => Ok(result? > 0),
    }
}
