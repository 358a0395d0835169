//! The processes of a node that matter: its daemon, its guard, its guests. To find them, to stop and to end them, to see
//! what they cost.

use std::fs;
use std::io;
use std::ops::Add;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::{SysconfVar, sysconf};

use crate::process::{Process, end};
use crate::{Error, Node};

/// A process of a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The daemon.
    Daemon,
    /// The guard, which keeps the daemon running and the guests within their lease.
    Guard,
    /// QEMU with the guest of this name.
    Guest(String),
}

impl Part {
    /// The one of this name: `daemon`, `guard`; anything else is a guest.
    pub fn named(name: &str) -> Part {
        match name {
            "daemon" => Part::Daemon,
            "guard" => Part::Guard,
            guest => Part::Guest(guest.to_owned()),
        }
    }

    /// Whether a process with this command line is it.
    fn is(&self, line: &[String]) -> bool {
        let program = line.first().and_then(|program| program.rsplit('/').next());
        // `exe`: the guard may start its own program again as what the kernel says that it is.
        let is_ours = program.is_some_and(|program| ["cardume", "exe"].contains(&program));
        let word = line.get(1).map(String::as_str);
        match self {
            Part::Daemon => is_ours && word == Some("daemon"),
            // One that ends leaves somebody behind to look after the guests until their lease ends.
            Part::Guard => is_ours && word == Some("guard") && !line.iter().any(|word| word == "--lookout"),
            Part::Guest(name) => guest(line) == Some(name),
        }
    }
}

impl std::fmt::Display for Part {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Part::Daemon => f.write_str("the daemon"),
            Part::Guard => f.write_str("the guard"),
            Part::Guest(name) => write!(f, "guest {name}"),
        }
    }
}

/// The name of the guest that a process with this command line runs.
pub(crate) fn guest(line: &[String]) -> Option<&str> {
    line.iter().find_map(|word| word.strip_prefix("guest=")?.split(',').next())
}

/// What a process, or several together, have used.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    /// Memory of its own plus its part of what it shares, in bytes.
    pub pss: u64,
    /// Memory, shared or not, in bytes.
    pub rss: u64,
    /// Time on a CPU since it started.
    pub cpu: Duration,
}

impl Add for Usage {
    type Output = Usage;
    fn add(self, other: Usage) -> Usage {
        Usage { pss: self.pss + other.pss, rss: self.rss + other.rss, cpu: self.cpu + other.cpu }
    }
}

impl Node {
    /// The number of its daemon on the machine; `None` while there is none.
    pub fn daemon_pid(&self) -> Result<Option<i32>, Error> {
        self.pid_of(&Part::Daemon)
    }

    /// The number of one of its processes on the machine; `None` while there is none.
    pub fn pid_of(&self, part: &Part) -> Result<Option<i32>, Error> {
        Ok(self.find(part)?.map(|process| process.pid))
    }

    /// Kills its daemon, and nothing else: what it started runs on, and the node starts a new one. Returns when it is dead.
    pub fn kill_daemon(&self) -> Result<(), Error> {
        self.kill_part(&Part::Daemon)
    }

    /// Kills its guard, and nothing else. Returns when it is dead.
    pub fn kill_guard(&self) -> Result<(), Error> {
        self.kill_part(&Part::Guard)
    }

    /// Kills the QEMU of a guest, as a crash would end it. Returns when it is dead.
    pub fn kill_guest(&self, name: &str) -> Result<(), Error> {
        self.kill_part(&Part::Guest(name.to_owned()))
    }

    /// Kills one of its processes. Returns when it is dead.
    pub fn kill_part(&self, part: &Part) -> Result<(), Error> {
        let process = self.need("kill", part)?;
        end(&[process], Signal::SIGKILL, Duration::ZERO).map_err(Error::process("kill", &self.called(part)))
    }

    /// Stops one of its processes where it is (SIGSTOP): it hangs, but it is there.
    pub fn stop_part(&self, part: &Part) -> Result<(), Error> {
        self.signal("stop", part, Signal::SIGSTOP)
    }

    /// Lets a stopped process go on (SIGCONT).
    pub fn continue_part(&self, part: &Part) -> Result<(), Error> {
        self.signal("continue", part, Signal::SIGCONT)
    }

    /// What its daemon and its guard have used so far, together.
    pub fn usage(&self) -> Result<Usage, Error> {
        Ok(self.usage_of(&Part::Daemon)? + self.usage_of(&Part::Guard)?)
    }

    /// What one of its processes has used so far.
    pub fn usage_of(&self, part: &Part) -> Result<Usage, Error> {
        usage(self.need("measure", part)?.pid).map_err(Error::process("measure", &self.called(part)))
    }

    fn signal(&self, action: &'static str, part: &Part, signal: Signal) -> Result<(), Error> {
        let failed = |error| Error::process(action, &self.called(part))(error);
        // One that has ended meanwhile is neither stopped nor continued, which the caller is told.
        let gone = || failed(io::ErrorKind::NotFound.into());
        self.need(action, part)?.open().map_err(failed)?.ok_or_else(gone)?.signal(signal).map_err(failed)
    }

    fn called(&self, part: &Part) -> String {
        format!("{part} of {}", self.name)
    }

    fn need(&self, action: &'static str, part: &Part) -> Result<Process, Error> {
        let none = || Error::process(action, &self.called(part))(io::ErrorKind::NotFound.into());
        self.find(part)?.ok_or_else(none)
    }

    /// Whose child it is says nothing: guests and daemons outlive who started them.
    fn find(&self, part: &Part) -> Result<Option<Process>, Error> {
        let init = self.pid()?;
        let failed = || Error::process("look for processes of", &self.name);
        let inside = namespace(init).map_err(failed())?;
        let is_it = |(pid, line): &(i32, Vec<String>)| part.is(line) && namespace(*pid).is_ok_and(|of| of == inside);
        let found = command_lines().map_err(failed())?.into_iter().filter(is_it);
        // What it has just forked has its command line until it becomes what it is to be: the oldest is meant. One that
        // has ended meanwhile is none.
        let alive = found.filter_map(|(pid, _)| Process::of(pid).ok()).filter(|process| process.is_alive());
        Ok(alive.min_by_key(|process| process.start))
    }
}

/// The PID namespace of a process.
pub(crate) fn namespace(pid: i32) -> io::Result<std::path::PathBuf> {
    fs::read_link(format!("/proc/{pid}/ns/pid"))
}

/// The command lines of all processes of the machine that have one.
pub(crate) fn command_lines() -> io::Result<Vec<(i32, Vec<String>)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(line) = fs::read(entry.path().join("cmdline")) else { continue };
        if !line.is_empty() {
            let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
            found.push((pid, words.collect()));
        }
    }
    Ok(found)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_known_by_their_command_lines() {
        let line = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert!(Part::Guard.is(&line("/lab/bin/cardume guard --state-dir /var")));
        assert!(!Part::Daemon.is(&line("cardume guard --state-dir /var")));
        assert!(Part::named("daemon").is(&line("cardume daemon --state-dir /var")));
        assert!(!Part::Daemon.is(&line("env cardume daemon")));
        let qemu = line("qemu-system-x86_64 -name guest=vm1,debug-threads=on -S");
        assert!(Part::named("vm1").is(&qemu));
        assert!(!Part::named("vm").is(&qemu));
    }
}
