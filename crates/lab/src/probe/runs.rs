//! Watches the processes that run guests: whether a guest ever runs twice, and when it was stopped, ended and started.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::parts::{guest, namespace};
use crate::process::Process;
use crate::{Error, Lab};

/// Between two looks at the guests that are known, and at all of the machine's processes.
const LOOK: Duration = Duration::from_millis(4);
const SEARCH: Duration = Duration::from_millis(20);
/// A process that is no guest after this long will not become one.
const SETTLED: Duration = Duration::from_secs(2);

/// Of the flags in `/proc/PID/stat`: it is on its way out and runs none of its program any more.
const EXITING: u64 = 0x4;
/// SIGKILL, among the pending signals in `/proc/PID/status`.
const KILLED: u64 = 1 << 8;

/// The process of a guest began to run, or does not run any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// When that was seen.
    pub at: Instant,
    /// The node.
    pub node: String,
    /// The guest's name.
    pub guest: String,
    /// The process' number on the machine.
    pub pid: i32,
    /// Whether it runs: one that was stopped by a signal, or has ended, does not.
    pub running: bool,
}

/// What was seen.
#[derive(Debug, Clone, Default)]
pub struct Runs {
    /// In the order of time.
    pub changes: Vec<Change>,
    /// Guests that ran twice at a time, where, one sentence each.
    pub twice: Vec<String>,
}

/// Looks at all guests of a lab, many times a second, until it is finished or dropped.
#[derive(Debug)]
pub struct RunWatch {
    shared: Arc<Shared>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    seen: Mutex<Runs>,
    news: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Runs> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RunWatch {
    /// Begins to look. What runs then is reported as beginning to run.
    pub fn start(lab: &Lab) -> Result<RunWatch, Error> {
        let (shared, stop) = (Arc::new(Shared::default()), Arc::new(AtomicBool::new(false)));
        let mut watcher =
            Watcher { lab: lab.again(), shared: Arc::clone(&shared), known: vec![], dull: BTreeMap::new() };
        watcher.search();
        let end = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut searched = Instant::now();
            while !end.load(Ordering::Relaxed) {
                watcher.look();
                if searched.elapsed() >= SEARCH {
                    watcher.search();
                    searched = Instant::now();
                }
                thread::sleep(LOOK);
            }
        });
        Ok(RunWatch { shared, stop, thread: Some(thread) })
    }

    /// Waits until what was seen so far has what is wanted, and returns that.
    pub fn wait<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut wanted: impl FnMut(&Runs) -> Option<T>,
    ) -> Result<T, Error> {
        let deadline = Instant::now() + timeout;
        let mut seen = self.shared.lock();
        loop {
            if let Some(found) = wanted(&seen) {
                return Ok(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let seen = seen.changes.iter().map(|change| format!("{change:?}\n")).collect();
                return Err(Error::Timeout { what: what.to_owned(), node: "the lab".to_owned(), after: timeout, seen });
            }
            seen = self.shared.news.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// What was seen so far.
    pub fn so_far(&self) -> Runs {
        self.shared.lock().clone()
    }

    /// Stops looking, and returns what was seen.
    pub fn finish(mut self) -> Runs {
        self.end();
        std::mem::take(&mut self.shared.lock())
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for RunWatch {
    fn drop(&mut self) {
        self.end();
    }
}

impl Runs {
    /// When a guest began to run on a node, or ceased to, at or after `since`: the first time.
    pub fn first(&self, guest: &str, node: &str, running: bool, since: Instant) -> Option<Instant> {
        let is_it = |change: &&Change| {
            change.guest == guest && change.node == node && change.running == running && change.at >= since
        };
        self.changes.iter().find(is_it).map(|change| change.at)
    }
}

/// A guest's process.
#[derive(Debug)]
struct Known {
    process: Process,
    guest: String,
    node: String,
    running: bool,
}

struct Watcher {
    lab: Lab,
    shared: Arc<Shared>,
    known: Vec<Known>,
    /// Processes that are no guests, and since when they are known.
    dull: BTreeMap<i32, Instant>,
}

impl Watcher {
    /// Looks for processes that were not there before.
    fn search(&mut self) {
        let Ok(entries) = fs::read_dir("/proc") else { return };
        let pids: Vec<i32> =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok()).collect();
        self.dull.retain(|pid, _| pids.contains(pid));
        let mut homes: Option<Vec<(PathBuf, String)>> = None;
        for pid in pids {
            if self.known.iter().any(|known| known.process.pid == pid)
                || self.dull.get(&pid).is_some_and(|since| since.elapsed() > SETTLED)
            {
                continue;
            }
            let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let words: Vec<String> =
                line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned()).collect();
            let homes = match guest(&words) {
                Some(_) => homes.get_or_insert_with(|| self.homes()),
                None => {
                    self.dull.entry(pid).or_insert_with(Instant::now);
                    continue;
                }
            };
            let node = namespace(pid).ok().and_then(|of| homes.iter().find(|(inside, _)| *inside == of));
            if let (Some(guest), Some((_, node)), Ok(process)) = (guest(&words), node, Process::of(pid)) {
                self.known.push(Known { process, guest: guest.to_owned(), node: node.clone(), running: false });
            }
        }
        self.look();
    }

    /// The PID namespaces of the nodes.
    fn homes(&self) -> Vec<(PathBuf, String)> {
        let status = self.lab.status().unwrap_or_default();
        status.into_iter().filter_map(|node| Some((namespace(node.pid?).ok()?, node.name))).collect()
    }

    fn look(&mut self) {
        for known in &mut self.known {
            let running = runs(known.process);
            if running != known.running {
                known.running = running;
                let (node, guest) = (known.node.clone(), known.guest.clone());
                self.shared.lock().changes.push(Change {
                    at: Instant::now(),
                    node,
                    guest,
                    pid: known.process.pid,
                    running,
                });
                self.shared.news.notify_all();
            }
        }
        self.known.retain(|known| known.running || known.process.is_alive());
        for (index, one) in self.known.iter().enumerate().filter(|(_, known)| known.running) {
            for other in self.known[index + 1..].iter().filter(|other| other.running && other.guest == one.guest) {
                // Looked at one after the other: they ran at the same time if the first still does after the second did.
                if runs(other.process) && runs(one.process) && runs(other.process) {
                    let said = format!(
                        "{} runs twice: as process {} on {} and as {} on {}",
                        one.guest, one.process.pid, one.node, other.process.pid, other.node
                    );
                    let mut seen = self.shared.lock();
                    if !seen.twice.contains(&said) {
                        seen.twice.push(said);
                    }
                }
            }
        }
    }
}

/// Whether a process carries out its program: it was not stopped, has not ended, and is not just being ended.
fn runs(process: Process) -> bool {
    let Ok(stat) = fs::read_to_string(format!("/proc/{}/stat", process.pid)) else { return false };
    let Ok(status) = fs::read_to_string(format!("/proc/{}/status", process.pid)) else { return false };
    let pending = |line: &str| {
        let mask = line.strip_prefix("SigPnd:").or_else(|| line.strip_prefix("ShdPnd:"))?;
        u64::from_str_radix(mask.trim(), 16).ok()
    };
    is_running(&stat, process.start) == Some(true)
        && status.lines().filter_map(pending).all(|pending| pending & KILLED == 0)
}

/// `pid (name) state ppid pgrp session tty tpgid flags …`; the start time is the 22nd field.
fn is_running(stat: &str, start: u64) -> Option<bool> {
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let flags: u64 = fields.get(6)?.parse().ok()?;
    let same = fields.get(19)?.parse() == Ok(start);
    Some(same && flags & EXITING == 0 && !["T", "t", "Z", "X", "x"].contains(fields.first()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stopped_or_ending_does_not_run() {
        let stat = |state: &str, flags: u64| {
            format!("12 (qemu (x) y) {state} 1 2 3 0 -1 {flags} 7 8 9 10 11 12 13 14 15 16 17 18 4711 20")
        };
        assert_eq!(is_running(&stat("S", 0x40_0040), 4711), Some(true));
        assert_eq!(is_running(&stat("S", 0x40_0040), 4712), Some(false));
        assert_eq!(is_running(&stat("R", 0x40_0004), 4711), Some(false));
        for state in ["T", "Z"] {
            assert_eq!(is_running(&stat(state, 0), 4711), Some(false));
        }
    }

    #[test]
    fn a_process_that_is_stopped_and_goes_on_is_seen() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let process = Process::of(child.id() as i32).unwrap();
        let signal = |signal| nix::sys::signal::kill(nix::unistd::Pid::from_raw(process.pid), signal).unwrap();
        assert!(runs(process));
        signal(nix::sys::signal::Signal::SIGSTOP);
        while runs(process) {}
        signal(nix::sys::signal::Signal::SIGCONT);
        while !runs(process) {}
        signal(nix::sys::signal::Signal::SIGKILL);
        while runs(process) {}
        child.wait().unwrap();
    }
}
