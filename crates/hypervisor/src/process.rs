//! Processes, named so that a later one with the same number is never taken for them.
#![allow(unsafe_code)] // pidfd_open and pidfd_send_signal have no wrapper in nix; tokio wants a promise to watch one.

use std::fmt;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::str::FromStr;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A process of this boot of the machine: its number alone may be given to another one after its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessId {
    /// Its number, in the PID namespace of the daemon.
    pub pid: i32,
    /// When it was started, in clock ticks since the machine's boot.
    pub start_time: u64,
    /// The machine's boot, as the kernel calls it.
    pub boot_id: String,
}

impl ProcessId {
    /// Names the process that has this number now.
    ///
    /// # Errors
    /// `NotFound` if there is none, or if it has ended and only waits to be reaped.
    pub fn of(pid: i32) -> io::Result<ProcessId> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let (state, start_time) =
            parse_stat(&stat).ok_or_else(|| io::Error::other(format!("can't read /proc/{pid}/stat: {stat:?}")))?;
        if state == 'Z' || state == 'X' {
            return Err(io::ErrorKind::NotFound.into());
        }
        let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
        Ok(ProcessId { pid, start_time, boot_id: boot_id.trim_end().to_owned() })
    }

    /// A handle on this very process, or `None` if it is gone, whatever has its number now.
    ///
    /// # Errors
    /// Those of the system, other than that the process is gone. To be called within a tokio runtime.
    pub fn open(&self) -> io::Result<Option<Pidfd>> {
        // The handle first, the comparison second: the handle can't change hands after it was compared.
        let pidfd = match Pidfd::open(self.pid) {
            Ok(pidfd) => pidfd,
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(None),
            Err(error) => return Err(error),
        };
        match ProcessId::of(self.pid) {
            Ok(now) if now == *self => Ok(Some(pidfd)),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// `pid start_time boot_id`: the number is the first word, for shell scripts.
impl fmt::Display for ProcessId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.pid, self.start_time, self.boot_id)
    }
}

impl FromStr for ProcessId {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<ProcessId> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, format!("{text:?} names no process"));
        let mut words = text.split_ascii_whitespace();
        let (Some(pid), Some(start_time), Some(boot_id), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err(bad());
        };
        Ok(ProcessId {
            pid: pid.parse().map_err(|_| bad())?,
            start_time: start_time.parse().map_err(|_| bad())?,
            boot_id: boot_id.to_owned(),
        })
    }
}

/// The state and the start time (field 22) of a line of `/proc/PID/stat`. The second field is the program's name in
/// parentheses, which may itself have spaces and parentheses.
fn parse_stat(stat: &str) -> Option<(char, u64)> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let mut fields = after_name.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((state, start_time))
}

/// A handle on a process: stays with it also after its end.
#[derive(Debug)]
pub struct Pidfd(AsyncFd<OwnedFd>);

impl Pidfd {
    /// A handle on the process that has this number now. Only sure for a child that hasn't been reaped; for others
    /// see [`ProcessId::open`]. To be called within a tokio runtime.
    ///
    /// # Errors
    /// `ESRCH` if there is none, others as the system gives them.
    pub fn open(pid: i32) -> io::Result<Pidfd> {
        // SAFETY: the call takes two integers and no memory.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, libc::PIDFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel just gave this descriptor to us alone; it fits, as descriptors are ints.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as i32) };
        // SAFETY: an OwnedFd gives the same descriptor for its whole life, and keeps it open.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Pidfd(fd))
    }

    /// Sends a signal. A process that has ended takes it without an error, as a killed one needn't be killed again.
    ///
    /// # Errors
    /// Those of the system, such as `EPERM`.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        // SAFETY: the call takes integers and a null pointer, which means "no further information".
        let done = unsafe {
            libc::syscall(
                libc::SYS_pidfd_send_signal,
                self.0.as_raw_fd(),
                signal as libc::c_int,
                std::ptr::null::<libc::siginfo_t>(),
                0,
            )
        };
        match Errno::result(done) {
            Ok(_) | Err(Errno::ESRCH) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Returns when the process has ended.
    ///
    /// # Errors
    /// If the descriptor can't be watched, which is a failure of the runtime.
    pub async fn exited(&self) -> io::Result<()> {
        self.0.readable().await.map(drop)
    }

    /// Takes the exit status of an ended process, if it is our child. Another's is told to its parent alone.
    pub(crate) fn reap(&self) -> Option<WaitStatus> {
        waitid(Id::PIDFd(self.0.get_ref().as_fd()), WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG).ok()
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn stat_is_read_also_when_the_name_is_hostile() {
        let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 20";
        assert_eq!(parse_stat(&format!("42 (qemu) {rest}")), Some(('S', 777)));
        assert_eq!(parse_stat(&format!("42 (a) R 9 (b) {rest}")), Some(('S', 777)));
        assert_eq!(parse_stat("42 (qemu) S 1 2"), None);
    }

    #[test]
    fn it_is_written_and_read_back() {
        let me = ProcessId::of(std::process::id() as i32).unwrap();
        assert_eq!(me.to_string().parse::<ProcessId>().unwrap(), me);
        assert!("12".parse::<ProcessId>().is_err());
        assert!("12 x y".parse::<ProcessId>().is_err());
    }

    #[tokio::test]
    async fn another_process_with_the_same_number_is_not_the_same() {
        let me = ProcessId::of(std::process::id() as i32).unwrap();
        assert!(me.open().unwrap().is_some());
        let earlier = ProcessId { start_time: me.start_time - 1, ..me.clone() };
        assert!(earlier.open().unwrap().is_none());
        let other_boot = ProcessId { boot_id: "another".into(), ..me };
        assert!(other_boot.open().unwrap().is_none());
    }

    #[tokio::test]
    async fn the_end_of_a_child_is_noticed_and_reaped_once() {
        #[allow(clippy::zombie_processes)] // Reaped below, by its pidfd.
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        let id = ProcessId::of(child.id() as i32).unwrap();
        let pidfd = id.open().unwrap().unwrap();
        pidfd.signal(Signal::SIGKILL).unwrap();
        pidfd.exited().await.unwrap();
        assert!(id.open().unwrap().is_none(), "a zombie is gone");
        assert!(matches!(pidfd.reap(), Some(WaitStatus::Signaled(_, Signal::SIGKILL, _))));
        assert!(pidfd.reap().is_none());
        pidfd.signal(Signal::SIGKILL).unwrap();
    }
}
