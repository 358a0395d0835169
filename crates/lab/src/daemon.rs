//! The daemon's process inside a node: to find it, to kill it, to see what it costs.

use std::fs;
use std::io;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{SysconfVar, sysconf};

use crate::process::{Process, end};
use crate::{Error, Node};

/// What a process has used.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Memory of its own plus its part of what it shares, in bytes.
    pub pss: u64,
    /// Memory, shared or not, in bytes.
    pub rss: u64,
    /// Time on a CPU since it started.
    pub cpu: Duration,
}

impl Node {
    /// The number of its daemon on the machine; `None` while there is none.
    pub fn daemon_pid(&self) -> Result<Option<i32>, Error> {
        Ok(self.daemon()?.map(|process| process.pid))
    }

    /// Kills its daemon, and nothing else: what it started runs on, and the node's init starts a new one. Returns
    /// when it is dead.
    pub fn kill_daemon(&self) -> Result<(), Error> {
        let failed = || Error::process("kill the daemon of", &self.name);
        let daemon = self.daemon()?.ok_or_else(|| failed()(io::ErrorKind::NotFound.into()))?;
        end(&[daemon], Signal::SIGKILL, Duration::ZERO).map_err(failed())
    }

    /// What its daemon has used so far.
    pub fn daemon_usage(&self) -> Result<Usage, Error> {
        let failed = || Error::process("measure the daemon of", &self.name);
        let daemon = self.daemon()?.ok_or_else(|| failed()(io::ErrorKind::NotFound.into()))?;
        usage(daemon.pid).map_err(failed())
    }

    /// The child of the node's init that was started as `… daemon …`. Guests are children of the init too, once the
    /// daemon that started them has ended.
    fn daemon(&self) -> Result<Option<Process>, Error> {
        let init = self.pid()?;
        let failed = || Error::process("look for the daemon of", &self.name);
        let children = match fs::read_to_string(format!("/proc/{init}/task/{init}/children")) {
            Ok(children) => children,
            Err(error) => return Err(failed()(error)),
        };
        let is_daemon = |pid: &i32| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line.split(|byte| *byte == 0).nth(1) == Some(b"daemon".as_slice()))
        };
        let found = children.split_whitespace().filter_map(|pid| pid.parse().ok()).find(is_daemon);
        // One that has ended meanwhile is none.
        Ok(found.and_then(|pid| Process::of(pid).ok()))
    }
}

fn usage(pid: i32) -> io::Result<Usage> {
    let invalid = || io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid} can't be understood"));
    let memory = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let kib = |field: &str| -> Option<u64> {
        memory.lines().find_map(|line| line.strip_prefix(field))?.split_whitespace().next()?.parse().ok()
    };
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name in parentheses may contain anything; user and system time are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(')').ok_or_else(invalid)?;
    let ticks: u64 = fields.split_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum();
    let a_second = sysconf(SysconfVar::CLK_TCK)?.filter(|ticks| *ticks > 0).ok_or_else(invalid)?;
    Ok(Usage {
        pss: kib("Pss:").ok_or_else(invalid)? * 1024,
        rss: kib("Rss:").ok_or_else(invalid)? * 1024,
        cpu: Duration::from_secs_f64(ticks as f64 / a_second as f64),
    })
}
