//! Keeps the daemon running.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use hypervisor::Pidfd;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::home;

/// A daemon that has run this long was well: the next one is started without delay.
const WELL: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(3);
/// How long a daemon that was just started may take for its first word.
const FIRST_WORD: Duration = Duration::from_secs(10);
/// How often it is looked whether a daemon still has the run directory that can't be watched.
const LOOK: Duration = Duration::from_millis(100);

/// The daemon of this node: ours, or one that an earlier guard started.
pub(super) struct Supervisor {
    /// Program and arguments.
    command: Vec<OsString>,
    run_dir: PathBuf,
    daemon: Daemon,
    /// Before the next start, if this daemon ends before it was well.
    delay: Duration,
    /// This one has said something.
    lives: bool,
    /// No other one is started.
    ending: bool,
}

enum Daemon {
    /// None; the next one is started then.
    None {
        start: Instant,
    },
    /// It is being started: the program has to be read from a disk, which must hold up nothing else.
    Starting(JoinHandle<io::Result<Child>>),
    Child {
        child: Box<Child>,
        since: Instant,
    },
    Adopted {
        process: Pidfd,
        since: Instant,
    },
}

impl Supervisor {
    pub fn new(command: Vec<OsString>, run_dir: PathBuf) -> Self {
        let daemon = Daemon::None { start: Instant::now() };
        Self { command, run_dir, daemon, delay: Duration::ZERO, lives: false, ending: false }
    }

    /// Starts a daemon where there is none, when it is time, and waits for its end. Returns whenever something of that was
    /// done; to be called again and again. Cancelling it does no harm.
    pub async fn step(&mut self) {
        match &mut self.daemon {
            Daemon::None { .. } if self.ending => std::future::pending().await,
            Daemon::None { start } => {
                tokio::time::sleep_until(*start).await;
                self.start();
            }
            Daemon::Starting(starting) => {
                let started = starting.await.unwrap_or_else(|bug| Err(io::Error::other(bug)));
                self.started(started);
            }
            Daemon::Child { child, since } => {
                let since = *since;
                let ended = tokio::select! {
                    ended = child.wait() => ended,
                    () = tokio::time::sleep_until(since + FIRST_WORD), if !self.lives => return self.give_up(),
                };
                match ended {
                    Ok(status) => tracing::warn!(%status, "the daemon has ended"),
                    Err(error) => tracing::error!(%error, "the daemon can't be waited for"),
                }
                self.ended(since);
            }
            Daemon::Adopted { process, since } => {
                let since = *since;
                let ended = tokio::select! {
                    ended = process.exited() => ended,
                    () = tokio::time::sleep_until(since + FIRST_WORD), if !self.lives => return self.give_up(),
                };
                match ended {
                    Ok(()) => tracing::warn!("the daemon has ended"),
                    Err(error) => tracing::error!(%error, "the daemon can't be waited for"),
                }
                self.ended(since);
            }
        }
    }

    /// The daemon has said something.
    pub fn lives(&mut self) {
        self.lives = true;
    }

    fn give_up(&mut self) {
        // Once: a process in the middle of its end can't be hurried.
        self.lives = true;
        tracing::error!("the daemon said nothing since it was started; it is killed and started anew");
        self.signal(Signal::SIGKILL);
    }

    fn start(&mut self) {
        self.lives = false;
        self.daemon = match self.living() {
            Some(daemon) => daemon,
            None => self.spawn(),
        };
    }

    /// The daemon that has the run directory, if there is one.
    fn living(&self) -> Option<Daemon> {
        let lock = home::lock_file(&self.run_dir);
        let again = || Daemon::None { start: Instant::now() + LOOK };
        let holder = match home::holder(&lock) {
            Ok(holder) => holder?,
            Err(error) => {
                tracing::error!(error = crate::chain(&error), "it can't be told whether a daemon lives");
                return Some(again());
            }
        };
        // Still held after it was opened: so this is its holder, and not somebody who got its number.
        match holder.map(Pidfd::open) {
            Some(Ok(process)) if matches!(home::holder(&lock), Ok(Some(still)) if still == holder) => {
                tracing::info!(pid = holder, "a daemon lives already; it is taken over");
                Some(Daemon::Adopted { process, since: Instant::now() })
            }
            _ => Some(again()),
        }
    }

    fn spawn(&self) -> Daemon {
        let mut command = Command::new(&self.command[0]);
        command.args(&self.command[1..]).stdin(Stdio::null()).kill_on_drop(false);
        Daemon::Starting(tokio::task::spawn_blocking(move || command.spawn()))
    }

    fn started(&mut self, started: io::Result<Child>) {
        match started {
            Ok(child) => {
                tracing::info!(pid = child.id(), "started the daemon");
                self.daemon = Daemon::Child { child: Box::new(child), since: Instant::now() };
                if self.ending {
                    self.signal(Signal::SIGTERM);
                }
            }
            Err(error) => {
                tracing::error!(%error, program = ?self.command[0], "the daemon can't be started");
                self.ended(Instant::now());
            }
        }
    }

    fn ended(&mut self, since: Instant) {
        if since.elapsed() >= WELL {
            self.delay = Duration::ZERO;
        }
        self.daemon = Daemon::None { start: Instant::now() + self.delay };
        self.delay = (self.delay * 2).clamp(FIRST_DELAY, LONGEST_DELAY);
    }

    /// Ends a daemon that hangs, unless it was started less than `age` ago; [`Self::step`] starts another one.
    pub fn replace(&mut self, age: Duration) {
        let is_old = match &self.daemon {
            Daemon::None { .. } | Daemon::Starting(_) => false,
            Daemon::Child { since, .. } => since.elapsed() >= age,
            // It was there before this guard.
            Daemon::Adopted { .. } => true,
        };
        if is_old {
            tracing::error!("the daemon gives no sign of life; it is killed and started anew");
            self.signal(Signal::SIGKILL);
        }
    }

    /// Has the daemon end in good order, and starts no other one.
    pub fn end(&mut self) {
        self.ending = true;
        self.signal(Signal::SIGTERM);
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        self.signal(Signal::SIGKILL);
    }

    /// Whether there is none.
    pub fn is_gone(&self) -> bool {
        matches!(self.daemon, Daemon::None { .. })
    }

    fn signal(&mut self, signal: Signal) {
        let sent = match &self.daemon {
            Daemon::None { .. } | Daemon::Starting(_) => Ok(()),
            // It has its number until it is waited for.
            Daemon::Child { child, .. } => match child.id().map(i32::try_from) {
                Some(Ok(pid)) => kill(Pid::from_raw(pid), signal).map_err(io::Error::from),
                _ => Ok(()),
            },
            Daemon::Adopted { process, .. } => process.signal(signal),
        };
        if let Err(error) = sent {
            tracing::error!(%error, %signal, "the daemon does not take a signal");
        }
    }
}
