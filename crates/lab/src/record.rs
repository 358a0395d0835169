//! The lab's record on disk, `lab.json`, and the locks around it.

use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::cables::Cut;
use crate::layout::Files;
use crate::process::{self, Process};

/// What has to be known to find everything of a lab again, whoever brought it up.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    /// The machine's boot in which the processes run.
    pub boot: String,
    /// The program that takes the lab down when it ends. `None`: it stays until it is told to go.
    pub owner: Option<Process>,
    /// How a node's daemon is started.
    pub daemon: Vec<String>,
    /// Nodes, client and switch.
    pub members: Vec<Member>,
}

/// A set of namespaces.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Member {
    pub name: String,
    pub role: Role,
    /// `None` for the switch.
    pub address: Option<Ipv4Addr>,
    /// Its PID 1, from the machine's point of view. `None`: never started, or ended by us.
    pub process: Option<Process>,
    /// What is wrong with its cable to the public network.
    pub public: Option<Cut>,
    /// What is wrong with its cable to the replication network.
    pub replication: Option<Cut>,
}

/// What a member is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Role {
    /// Runs the daemon.
    Node,
    /// Observes.
    Client,
    /// Holds the two bridges.
    Switch,
}

impl Member {
    pub fn running(&self) -> Option<Process> {
        self.process.filter(|process| process.is_alive())
    }
}

impl Record {
    /// Reads the record; `None` where there is none. Processes of an earlier boot are forgotten.
    pub fn load(files: &Files) -> Result<Option<Record>, Error> {
        let path = files.record();
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::file("read", path)(error)),
        };
        let mut record: Record = serde_json::from_slice(&text).map_err(|source| Error::Damaged { path, source })?;
        if record.boot != boot()? {
            record.owner = record.owner.map(|_| Process { pid: 0, start: 0 });
            record.members.iter_mut().for_each(|member| member.process = None);
        }
        Ok(Some(record))
    }

    /// Replaces the record on disk as a whole.
    pub fn save(&self, files: &Files) -> Result<(), Error> {
        let path = files.record();
        let new = path.with_extension("json.new");
        let text = serde_json::to_vec_pretty(self).map_err(|source| Error::Damaged { path: path.clone(), source })?;
        fs::write(&new, text).and_then(|()| fs::rename(&new, &path)).map_err(Error::file("write", path))
    }

    pub fn member(&self, name: &str) -> Result<&Member, Error> {
        self.members.iter().find(|m| m.name == name).ok_or_else(|| self.unknown(name))
    }

    pub fn member_mut(&mut self, name: &str) -> Result<&mut Member, Error> {
        match self.members.iter().position(|m| m.name == name) {
            Some(i) => Ok(&mut self.members[i]),
            None => Err(self.unknown(name)),
        }
    }

    /// All processes that may be alive, the switch's last: while it lives, the others see a network.
    pub fn processes(&self) -> Vec<Process> {
        self.members.iter().filter_map(|m| m.process).collect()
    }

    fn unknown(&self, name: &str) -> Error {
        let known: Vec<&str> =
            self.members.iter().filter(|m| m.role != Role::Switch).map(|m| m.name.as_str()).collect();
        Error::Unknown { name: name.to_owned(), known: known.join(", ") }
    }
}

pub(crate) fn boot() -> Result<String, Error> {
    process::boot_id().map_err(Error::file("read", "/proc/sys/kernel/random/boot_id"))
}

/// Held while a lab is being changed: the commands of two shells must not overwrite each other's record.
#[derive(Debug)]
pub(crate) struct DirLock {
    _lock: Flock<File>,
}

impl DirLock {
    /// Waits for the lock of a lab's directory. `None`: there is no such directory.
    pub fn acquire(dir: &Path) -> Result<Option<DirLock>, Error> {
        loop {
            let file = match File::open(dir) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(Error::file("open", dir)(error)),
            };
            let lock = flock(file).map_err(Error::file("lock", dir))?;
            // While we waited, the directory may have been removed, and another one made.
            let ours = lock.metadata().map_err(Error::file("look at", dir))?.ino();
            if fs::metadata(dir).is_ok_and(|now| now.ino() == ours) {
                return Ok(Some(DirLock { _lock: lock }));
            }
        }
    }
}

/// The machine's one lock for tests that use a lab: they would be in each other's way, and the machine is
/// small. Released when dropped, or by the kernel when the process ends.
#[derive(Debug)]
pub struct LabLock {
    _lock: Flock<File>,
}

impl LabLock {
    pub(crate) fn acquire() -> Result<LabLock, Error> {
        let path = Path::new("/run/lock/cardume-lab");
        let file = fs::create_dir_all("/run/lock")
            .and_then(|()| File::options().create(true).truncate(false).write(true).open(path))
            .map_err(Error::file("open", path))?;
        let lock = flock(file).map_err(Error::file("lock", path))?;
        Ok(LabLock { _lock: lock })
    }
}

fn flock(mut file: File) -> io::Result<Flock<File>> {
    loop {
        match Flock::lock(file, FlockArg::LockExclusive) {
            Ok(lock) => return Ok(lock),
            Err((again, Errno::EINTR)) => file = again,
            Err((_, error)) => return Err(error.into()),
        }
    }
}
