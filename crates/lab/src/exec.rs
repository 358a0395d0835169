//! Commands inside a node.

use std::ffi::OsString;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::mounts::BIN;
use crate::sys::{self, PidFd, Terminal};
use crate::{Error, Node, Pty};

/// How long a command may take where nothing else is said.
const TIMEOUT: Duration = Duration::from_secs(300);

/// How long the output of a command that has ended may pause before it counts as complete.
const SILENCE: Duration = Duration::from_secs(1);

/// A command that is to be run inside a node.
#[derive(Debug, Clone)]
pub struct Exec {
    node: Node,
    args: Vec<OsString>,
    input: Vec<u8>,
    timeout: Duration,
    env: Vec<(OsString, OsString)>,
}

/// What a command that has ended left behind.
#[derive(Debug, Clone)]
pub struct Output {
    /// Its exit code; a command that a signal ended has 128 + its number, as in a shell.
    pub status: ExitStatus,
    /// Its standard output. What is not UTF-8 is replaced.
    pub stdout: String,
    /// Its standard error. What is not UTF-8 is replaced.
    pub stderr: String,
    /// From its start to its end.
    pub elapsed: Duration,
}

impl Exec {
    pub(crate) fn new(node: Node, args: Vec<OsString>) -> Exec {
        Exec { node, args, input: Vec::new(), timeout: TIMEOUT, env: Vec::new() }
    }

    /// What the command reads from its standard input. Without this: nothing.
    pub fn input(mut self, input: impl Into<Vec<u8>>) -> Exec {
        self.input = input.into();
        self
    }

    /// How long the command may take before it is killed, which is an error. Without this: five minutes.
    pub fn timeout(mut self, timeout: Duration) -> Exec {
        self.timeout = timeout;
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl Into<OsString>, value: impl Into<OsString>) -> Exec {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Runs it and waits for its end. A command that fails is no error here: see [`Output::status`].
    pub fn output(self) -> Result<Output, Error> {
        let timeout = self.timeout;
        self.spawn()?.finish(timeout)
    }

    /// Starts it and returns at once.
    pub fn spawn(mut self) -> Result<Running, Error> {
        let input = std::mem::take(&mut self.input);
        let mut command = self.command(Terminal::Inherited)?;
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, so that all of it can be killed.
        command.process_group(0);
        let started = Instant::now();
        let mut child = command.spawn().map_err(Error::exec(&self.node.name, &self.line()))?;
        if let Some(mut stdin) = child.stdin.take()
            && !input.is_empty()
        {
            // A command that does not read all of its input is no error.
            thread::spawn(move || stdin.write_all(&input));
        }
        Ok(Running { child, node: self.node.name.clone(), line: self.line(), started })
    }

    /// Runs it on a terminal of its own.
    pub fn pty(self) -> Result<Pty, Error> {
        Pty::start(&self)
    }

    /// Runs it on the caller's own standard input, output and error, and waits for its end.
    pub fn status(self) -> Result<ExitStatus, Error> {
        let mut command = self.command(Terminal::Inherited)?;
        command.status().map_err(Error::exec(&self.node.name, &self.line()))
    }

    pub(crate) fn node_name(&self) -> &str {
        &self.node.name
    }

    /// The command line, for messages.
    pub(crate) fn line(&self) -> String {
        self.args.iter().map(|arg| arg.to_string_lossy()).collect::<Vec<_>>().join(" ")
    }

    pub(crate) fn command(&self, terminal: Terminal) -> Result<Command, Error> {
        let namespaces = self.node.namespaces()?;
        let (program, args) = self
            .args
            .split_first()
            .ok_or_else(|| Error::exec(&self.node.name, "")(std::io::Error::other("no command was given")))?;
        let mut command = Command::new(program);
        command.args(args).env_clear().envs(environment());
        command.envs(std::env::var_os("TERM").map(|term| ("TERM", term)));
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        sys::enter(&mut command, namespaces, terminal);
        Ok(command)
    }
}

/// The environment inside a node: not the caller's, so that a lab is the same wherever it is started from, but
/// with what switches logging on.
pub(crate) fn environment() -> Vec<(OsString, OsString)> {
    let path = format!("{BIN}:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    let fixed = [("PATH", path.as_str()), ("HOME", "/root"), ("USER", "root"), ("LANG", "C.UTF-8")];
    let passed = std::env::vars_os().filter(|(name, _)| {
        let name = name.to_string_lossy();
        name.starts_with("RUST_LOG") || name.starts_with("RUST_BACKTRACE") || name.starts_with("CARDUME_")
    });
    fixed.into_iter().map(|(name, value)| (name.into(), value.into())).chain(passed).collect()
}

/// A command that runs inside a node. It is killed when this is dropped.
#[derive(Debug)]
pub struct Running {
    child: Child,
    node: String,
    line: String,
    started: Instant,
}

impl Running {
    /// Takes the standard output, to be read while the command runs. [`finish`](Self::finish) does not see it
    /// then.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Sends a signal to the command and to what it started, as far as that is in its process group.
    pub fn signal(&self, signal: Signal) -> Result<(), Error> {
        killpg(Pid::from_raw(self.child.id() as i32), signal)
            .map_err(|error| Error::exec(&self.node, &self.line)(error.into()))
    }

    /// Whether it has ended by itself.
    pub fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits for the end of the command. It is killed, and that is an error, if it takes longer than `timeout`
    /// from now.
    pub fn finish(mut self, timeout: Duration) -> Result<Output, Error> {
        let failed = |error| Error::exec(&self.node, &self.line)(error);
        let deadline = Instant::now() + timeout;
        let stdout = collect(self.child.stdout.take());
        let stderr = collect(self.child.stderr.take());
        let ended = PidFd::open(self.child.id() as i32).and_then(|fd| fd.wait(timeout)).map_err(failed)?;
        let elapsed = self.started.elapsed();
        // Something that the command left behind may hold on to its output: a silence is the end then.
        let received = |from: mpsc::Receiver<Vec<u8>>| {
            let mut bytes = Vec::new();
            let patience = || SILENCE.min(deadline.saturating_duration_since(Instant::now()));
            while let Ok(more) = from.recv_timeout(patience()) {
                bytes.extend(more);
            }
            String::from_utf8_lossy(&bytes).into_owned()
        };
        let (stdout, stderr) = (received(stdout), received(stderr));
        if !ended {
            return Err(Error::Timeout {
                what: format!("end of '{}'", self.line),
                node: self.node.clone(),
                after: timeout,
                seen: format!("{stdout}{stderr}"),
            });
        }
        let status = self.child.wait().map_err(failed)?;
        Ok(Output { status, stdout, stderr, elapsed })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Once it was waited for, its number may be another's.
        if let Ok(None) = self.child.try_wait() {
            let _ = self.signal(Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// Reads a pipe to its end, on a thread of its own.
fn collect(pipe: Option<impl Read + Send + 'static>) -> mpsc::Receiver<Vec<u8>> {
    let (to, from) = mpsc::channel();
    if let Some(mut pipe) = pipe {
        thread::spawn(move || {
            let mut buffer = vec![0; 16 * 1024];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                if to.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
    }
    from
}

impl Output {
    /// The exit code.
    pub fn code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }
}
