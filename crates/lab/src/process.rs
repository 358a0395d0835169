//! Processes by number and start time, so that a number that was given to another process is noticed.

use std::fs;
use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::sys::PidFd;

/// How long a killed process may take to be gone. The kernel ends a whole PID namespace before its init; a
/// process in it can be held up by slow I/O.
const END: Duration = Duration::from_secs(20);

/// One process, for all time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    /// Its number in the machine's PID namespace.
    pub pid: i32,
    /// When it started, in clock ticks since the machine booted.
    pub start: u64,
}

impl Process {
    /// The process that has this number now.
    pub fn of(pid: i32) -> io::Result<Process> {
        let (_, start) = stat(pid)?.ok_or(io::ErrorKind::NotFound)?;
        Ok(Process { pid, start })
    }

    pub fn current() -> io::Result<Process> {
        Process::of(std::process::id() as i32)
    }

    /// Does it still run? One that has ended and was not waited for does not.
    pub fn is_alive(self) -> bool {
        matches!(stat(self.pid), Ok(Some((state, start))) if start == self.start && !ended(state))
    }

    /// A descriptor that can't come to mean another process; `None` when the process has ended.
    pub fn open(self) -> io::Result<Option<PidFd>> {
        match PidFd::open(self.pid) {
            // Only now does it say anything whether the number is still the same process'.
            Ok(fd) if self.is_alive() => Ok(Some(fd)),
            Ok(_) => Ok(None),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Sends a signal to each of the processes and waits until all have ended. `patience` is how long a signal
/// that can be caught is given before they are killed.
pub(crate) fn end(processes: &[Process], signal: Signal, patience: Duration) -> io::Result<()> {
    let mut open = Vec::new();
    for process in processes {
        if let Some(fd) = process.open()? {
            fd.signal(signal)?;
            open.push(fd);
        }
    }
    for fd in open {
        if signal != Signal::SIGKILL && !fd.wait(patience)? {
            fd.signal(Signal::SIGKILL)?;
        }
        if !fd.wait(END)? {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "a killed process does not end"));
        }
    }
    Ok(())
}

/// Whether the process that has this number now was stopped where it is (SIGSTOP).
pub(crate) fn is_stopped(pid: i32) -> bool {
    matches!(stat(pid), Ok(Some(('T', _))))
}

fn ended(state: char) -> bool {
    matches!(state, 'Z' | 'X' | 'x')
}

/// State and start time of a process; `None` when there is none of that number.
fn stat(pid: i32) -> io::Result<Option<(char, u64)>> {
    match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(text) => parse(&text)
            .map(Some)
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat can't be understood"))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        // The process ended between the opening and the reading.
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(None),
        Err(error) => Err(error),
    }
}

/// `pid (name) state …`, where the name may contain anything, parentheses and spaces too. The start time is the
/// 22nd field.
fn parse(stat: &str) -> Option<(char, u64)> {
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.chars().next()?;
    let start = fields.nth(18)?.parse().ok()?;
    Some((state, start))
}

/// Identifies the machine's current boot: process numbers and start times of another one mean nothing.
pub(crate) fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_confuse_the_parser() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse(&format!("12 (sleep) {tail}")), Some(('S', 4711)));
        assert_eq!(parse(&format!("12 (a) Z 1 (b)) {tail}")), Some(('S', 4711)));
        assert_eq!(parse("12 (sleep) S 1"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_number_with_another_start_time_is_another_process() {
        let me = Process::current().unwrap();
        assert!(me.is_alive());
        let other = Process { start: me.start + 1, ..me };
        assert!(!other.is_alive());
        assert!(other.open().unwrap().is_none());
    }

    #[test]
    fn a_process_that_was_not_waited_for_is_ended() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let process = Process::of(child.id() as i32).unwrap();
        assert!(process.is_alive());
        end(&[process], Signal::SIGKILL, Duration::ZERO).unwrap();
        assert!(!process.is_alive());
        child.wait().unwrap();
    }
}
