//! PID 1 of a node: a small init that keeps the daemon running and ends everything in good order.
//!
//! It comes to life in two steps, because a process can't enter a new PID namespace, only its children can:
//!
//! 1. `lab-init NAME`, outside: makes the namespaces, starts the second step in them, says `pid N`, ends.
//! 2. `lab-init NAME inside`, PID 1: waits for its orders, one line of JSON on its standard input, carries them
//!    out, says `ready` or `error …`, and stays.
//!
//! Whoever starts it writes down the process and lays its cables before giving the orders. If it ends before
//! that, the pipe closes, and the new PID 1 ends too: nothing is ever left that is not on record.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufRead, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, dup2_stdin, dup2_stdout, setsid};
use serde::{Deserialize, Serialize};

use crate::layout::Files;
use crate::{mounts, sys};

/// The hidden sub-command.
pub(crate) const COMMAND: &str = "lab-init";
const INSIDE: &str = "inside";

/// How long the guard and its daemon may take to end after SIGTERM.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// A daemon that has run this long was well: the next restart is without delay again.
const WELL: Duration = Duration::from_secs(10);
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(3);

/// What a node's PID 1 is told.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Orders {
    /// The lab's directory.
    pub dir: PathBuf,
    /// The name of the node.
    pub name: String,
    /// The daemon's command line. `None`: there is none to be run.
    pub daemon: Option<Vec<String>>,
}

/// Handles the hidden sub-commands with which the lab starts its own processes. `args` is the whole command
/// line. Returns `None` where it is not for the lab. To be called before anything else: it needs a process with
/// one thread.
pub fn entry(args: &[OsString]) -> Option<ExitCode> {
    if args.get(1)? != COMMAND {
        return None;
    }
    let result = match (args.get(2), args.get(3)) {
        (Some(name), None) => outside(name),
        (Some(_), Some(step)) if step == INSIDE => inside(),
        _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is started by 'lab up' only")),
    };
    Some(match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("error {error}"));
            eprintln!("{COMMAND}: {error}");
            ExitCode::FAILURE
        }
    })
}

/// Answers whoever started us. Nobody may be listening any more.
fn say(line: &str) {
    let mut out = io::stdout();
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}

fn outside(name: &OsString) -> io::Result<()> {
    // Keys typed in the terminal that the lab was started from are not for us.
    let _ = setsid();
    sys::pass_nothing_on()?;
    unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID | CloneFlags::CLONE_NEWUTS)?;
    let init = Command::new(std::env::current_exe()?).arg(COMMAND).arg(name).arg(INSIDE).spawn()?;
    say(&format!("pid {}", init.id()));
    Ok(())
}

fn inside() -> io::Result<()> {
    if std::process::id() != 1 {
        // Elsewhere the mounts below would be the machine's.
        return Err(io::Error::other("not PID 1 of a namespace"));
    }
    let mut line = String::new();
    if io::stdin().lock().read_line(&mut line)? == 0 {
        return Err(io::Error::other("whoever started this node has ended"));
    }
    let orders: Orders = serde_json::from_str(&line)?;
    let files = Files(orders.dir);
    let log = File::options().append(true).create(true).open(files.daemon_log(&orders.name))?;
    nix::unistd::sethostname(&orders.name)?;
    mounts::make_private(&files, &orders.name)?;

    let mut signals = SigSet::empty();
    signals.add(Signal::SIGCHLD);
    signals.add(Signal::SIGTERM);
    signals.thread_block()?;
    let signals = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let mut daemon = orders.daemon.map(|command| Daemon::start(command, log)).transpose()?;
    say("ready");
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;

    loop {
        let timeout = daemon.as_ref().and_then(Daemon::due).unwrap_or(Duration::MAX);
        let mut stop = false;
        if sys::readable(signals.as_fd(), timeout)? {
            while let Some(signal) = signals.read_signal()? {
                stop |= signal.ssi_signo == Signal::SIGTERM as u32;
            }
        }
        reap(daemon.as_mut());
        if stop {
            if let Some(daemon) = daemon.as_mut() {
                daemon.stop(&signals)?;
            }
            // The kernel kills whatever else is in the namespace when its PID 1 ends.
            return Ok(());
        }
        if let Some(daemon) = daemon.as_mut() {
            daemon.restart_if_due();
        }
    }
}

/// Takes note of every process that has ended: the daemon, and those whose parents ended before them.
fn reap(mut daemon: Option<&mut Daemon>) {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return,
            Ok(status) => {
                if let Some(daemon) = daemon.as_deref_mut()
                    && daemon.pid == status.pid()
                {
                    daemon.ended(status);
                }
            }
            Err(Errno::EINTR) => {}
            // ECHILD: there are no children.
            Err(_) => return,
        }
    }
}

/// The daemon, running or waiting to be started again.
#[derive(Debug)]
struct Daemon {
    command: Vec<String>,
    log: File,
    pid: Option<Pid>,
    started: Instant,
    /// When to start it again, while it does not run.
    again: Instant,
    delay: Duration,
}

impl Daemon {
    fn start(command: Vec<String>, log: File) -> io::Result<Daemon> {
        let now = Instant::now();
        let mut daemon = Daemon { command, log, pid: None, started: now, again: now, delay: Duration::ZERO };
        daemon.spawn()?;
        Ok(daemon)
    }

    fn spawn(&mut self) -> io::Result<()> {
        let (program, args) = self.command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let mut command = Command::new(program);
        command.args(args).current_dir("/").stdin(Stdio::null());
        command.stdout(self.log.try_clone()?).stderr(self.log.try_clone()?);
        sys::unblock_signals(&mut command);
        let child = command
            .spawn()
            .map_err(|e| io::Error::new(e.kind(), format!("can't start '{}': {e}", self.command.join(" "))))?;
        self.pid = Some(Pid::from_raw(child.id() as i32));
        self.started = Instant::now();
        Ok(())
    }

    /// How long until it is to be started again; `None` while it runs.
    fn due(&self) -> Option<Duration> {
        self.pid.is_none().then(|| self.again.saturating_duration_since(Instant::now()))
    }

    fn ended(&mut self, status: WaitStatus) {
        self.pid = None;
        if self.started.elapsed() >= WELL {
            self.delay = Duration::ZERO;
        }
        eprintln!("{COMMAND}: the daemon has ended ({status:?}); started again in {:?}", self.delay);
        self.postpone();
    }

    fn postpone(&mut self) {
        self.again = Instant::now() + self.delay;
        self.delay = (self.delay * 2).clamp(FIRST_DELAY, LONGEST_DELAY);
    }

    fn restart_if_due(&mut self) {
        if self.due() == Some(Duration::ZERO)
            && let Err(error) = self.spawn()
        {
            eprintln!("{COMMAND}: {error}");
            self.postpone();
        }
    }

    /// Asks the daemon to end and waits for it, as long as our patience lasts.
    fn stop(&mut self, signals: &SignalFd) -> io::Result<()> {
        let Some(pid) = self.pid else { return Ok(()) };
        let deadline = Instant::now() + PATIENCE;
        kill(pid, Signal::SIGTERM)?;
        while self.pid.is_some() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                eprintln!("{COMMAND}: the daemon did not end within {PATIENCE:?}");
                break;
            }
            if sys::readable(signals.as_fd(), left)? {
                while signals.read_signal()?.is_some() {}
            }
            reap(Some(self));
        }
        Ok(())
    }
}
