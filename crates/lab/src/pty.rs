//! Commands on a terminal of their own, for what behaves differently there: consoles.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

use nix::pty::{Winsize, openpty};

use crate::Error;
use crate::exec::Exec;
use crate::sys::{self, PidFd, Terminal};

/// A command on a terminal of 80 columns and 24 rows. It is hung up on and killed when this is dropped.
#[derive(Debug)]
pub struct Pty {
    terminal: File,
    child: Child,
    node: String,
    line: String,
    /// What was read and not yet returned.
    unread: Vec<u8>,
}

impl Pty {
    pub(crate) fn start(exec: &Exec) -> Result<Pty, Error> {
        let failed = |error| Error::exec(exec.node_name(), &exec.line())(error);
        let size = Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 };
        let pair = openpty(&size, None).map_err(|e| failed(e.into()))?;
        for fd in [&pair.master, &pair.slave] {
            let flags = nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC);
            nix::fcntl::fcntl(fd, flags).map_err(|e| failed(e.into()))?;
        }
        let mut command = exec.command(Terminal::OnStdin)?;
        let slave = || pair.slave.try_clone().map_err(failed);
        command.stdin(slave()?).stdout(slave()?).stderr(slave()?);
        let child = command.spawn().map_err(failed)?;
        // `command` and `pair` hold the other end; with them gone, the command's end is the terminal's.
        drop(command);
        Ok(Pty {
            terminal: pair.master.into(),
            child,
            node: exec.node_name().to_owned(),
            line: exec.line(),
            unread: Vec::new(),
        })
    }

    /// Types.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.terminal.write_all(bytes).map_err(|error| self.failed(error))
    }

    /// Reads until `wanted` appears, and returns everything up to and with it. What follows it is for the next
    /// call.
    pub fn read_until(&mut self, wanted: &str, timeout: Duration) -> Result<String, Error> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(at) = find(&self.unread, wanted.as_bytes()) {
                let rest = self.unread.split_off(at + wanted.len());
                let seen = std::mem::replace(&mut self.unread, rest);
                return Ok(String::from_utf8_lossy(&seen).into_owned());
            }
            if !self.read_some(deadline)? {
                return Err(Error::Timeout {
                    what: format!("'{wanted}' from '{}'", self.line),
                    node: self.node.clone(),
                    after: timeout,
                    seen: String::from_utf8_lossy(&self.unread).into_owned(),
                });
            }
        }
    }

    /// Returns what the command writes next; `None` when it writes nothing more, or nothing within `timeout`.
    pub fn read(&mut self, timeout: Duration) -> Result<Option<Vec<u8>>, Error> {
        let deadline = Instant::now() + timeout;
        if self.unread.is_empty() && !self.read_some(deadline)? {
            return Ok(None);
        }
        Ok(Some(std::mem::take(&mut self.unread)))
    }

    /// Reads until the command has ended, and returns its exit code and what was not read before.
    pub fn finish(mut self, timeout: Duration) -> Result<(ExitStatus, String), Error> {
        let deadline = Instant::now() + timeout;
        while self.read_some(deadline)? {}
        let left = deadline.saturating_duration_since(Instant::now());
        let ended = PidFd::open(self.child.id() as i32).and_then(|fd| fd.wait(left));
        let seen = String::from_utf8_lossy(&self.unread).into_owned();
        if !ended.map_err(|error| self.failed(error))? {
            return Err(Error::Timeout {
                what: format!("end of '{}'", self.line),
                node: self.node.clone(),
                after: timeout,
                seen,
            });
        }
        let status = self.child.wait().map_err(|error| self.failed(error))?;
        Ok((status, seen))
    }

    /// Reads what there is, waiting for it until `deadline`. False: there is nothing, or it is the end.
    fn read_some(&mut self, deadline: Instant) -> Result<bool, Error> {
        let mut buffer = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if sys::readable(self.terminal.as_fd(), left).map_err(|error| self.failed(error))? {
                break;
            }
            if left.is_zero() {
                return Ok(false);
            }
        }
        match self.terminal.read(&mut buffer) {
            Ok(n) => {
                self.unread.extend_from_slice(&buffer[..n]);
                Ok(n > 0)
            }
            // The other end is closed.
            Err(error) if error.raw_os_error() == Some(libc::EIO) => Ok(false),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn failed(&self, error: io::Error) -> Error {
        Error::exec(&self.node, &self.line)(error)
    }
}

impl Drop for Pty {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len().max(1)).position(|window| window == wanted)
}
