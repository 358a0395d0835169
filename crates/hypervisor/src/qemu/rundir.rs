//! The directory of a run: what a later daemon needs to take the guest over.
//!
//! `<run_dir>/<run>/` holds `spec.json` (what was started, written before QEMU is), `pid` (the process, written right
//! after), and the sockets `qmp.sock` (the daemon's), `qmp2.sock` (free for people and tools) and `serial.sock`. A
//! directory without `pid` is a start that was cut off; its guest was never resumed.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::process::ProcessId;

/// The daemon's QMP socket.
pub(super) const QMP: &str = "qmp.sock";
/// A second one, for people and tools: a QMP socket serves one client at a time.
pub(super) const QMP2: &str = "qmp2.sock";
/// The serial console.
pub(super) const SERIAL: &str = "serial.sock";
const RECORD: &str = "spec.json";
const PID: &str = "pid";

/// What is remembered of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub instance: String,
    pub run: String,
    pub memory_mib: u64,
    pub vcpus: u32,
    pub machine: String,
    pub serial: bool,
    pub since: SystemTime,
    /// QEMU's arguments, for people who look.
    pub arguments: Vec<String>,
}

/// A run's directory.
#[derive(Debug, Clone)]
pub(super) struct RunDir {
    path: PathBuf,
}

impl RunDir {
    /// Where the run's directory is, whether it is there or not.
    pub fn of(run_dir: &Path, run: &str) -> RunDir {
        RunDir { path: run_dir.join(run) }
    }

    /// The directories of all runs, live or not.
    pub fn all(run_dir: &Path) -> Result<Vec<RunDir>> {
        let what = || format!("list the runs in {}", run_dir.display());
        let entries = match fs::read_dir(run_dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(what())(error)),
        };
        let mut dirs = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::io(what()))?;
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                dirs.push(RunDir { path: entry.path() });
            }
        }
        dirs.sort_by(|a, b| a.path.cmp(&b.path));
        Ok(dirs)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes the directory; only root may look into it. It must not be there: it could be a live run's.
    pub fn create(&self) -> Result<()> {
        DirBuilder::new().mode(0o700).create(&self.path).map_err(Error::io(format!("create {}", self.path.display())))
    }

    /// Removes the directory and all in it. One that isn't there is removed.
    pub fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// A socket in the directory.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// Makes a socket that can be connected to from this moment; QEMU inherits it.
    pub fn listen(&self, name: &str) -> Result<UnixListener> {
        let path = self.socket(name);
        UnixListener::bind(&path).map_err(Error::io(format!("listen on {}", path.display())))
    }

    pub fn write_record(&self, record: &Record) -> Result<()> {
        let text = serde_json::to_string_pretty(record).map_err(io::Error::from);
        let path = self.path.join(RECORD);
        text.and_then(|text| replace(&path, &text)).map_err(Error::io(format!("write {}", path.display())))
    }

    pub fn write_process(&self, process: &ProcessId) -> Result<()> {
        let path = self.path.join(PID);
        replace(&path, &format!("{process}\n")).map_err(Error::io(format!("write {}", path.display())))
    }

    /// What was started here, and as which process; `None` where the start was cut off before that was written.
    pub fn read(&self) -> Result<(Option<Record>, Option<ProcessId>)> {
        let record = self.path.join(RECORD);
        let parsed = optional(&record)
            .and_then(|text| Ok(text.map(|text| serde_json::from_str(&text)).transpose()?))
            .map_err(Error::io(format!("read {}", record.display())))?;
        let pid = self.path.join(PID);
        let process = optional(&pid)
            .and_then(|text| text.map(|text| text.parse()).transpose())
            .map_err(Error::io(format!("read {}", pid.display())))?;
        Ok((parsed, process))
    }
}

fn optional(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        other => other.map(Some),
    }
}

/// Writes a file as a whole or not at all. The directory doesn't outlive the machine's boot, so no fsync.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, text)?;
    fs::rename(&new, path)
}
