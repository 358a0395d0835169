//! The state directory: who this node is, and its copy of the log.
//!
//! The identity is written last and given up first. With it the node is in a cluster; without it the rest counts for
//! nothing. So a crash at any moment leaves a node that is either in or out.

use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rpc::Identity;

use crate::daemon::StartError;

/// The state directory of a node, locked for as long as this lives.
pub struct Home {
    dir: PathBuf,
    _lock: File,
}

impl Home {
    /// Makes the directory where there is none, for root's eyes only, and locks it.
    pub fn open(dir: &Path) -> Result<Self, StartError> {
        make_private(dir)?;
        Ok(Self { dir: dir.to_owned(), _lock: lock(dir)? })
    }

    fn identity_dir(&self) -> PathBuf {
        identity_dir(&self.dir)
    }

    /// Where an identity goes that was given up, until it is removed.
    fn given_up_dir(&self) -> PathBuf {
        self.dir.join("identity.old")
    }

    /// Where the copy of the log is.
    pub fn log_dir(&self) -> PathBuf {
        self.dir.join("raft")
    }

    /// A file that says that this node is a witness. The log has to know before it can read its state.
    fn witness_mark(&self) -> PathBuf {
        self.dir.join("witness")
    }

    /// This node's identity. `None`: it is in no cluster, and of what an interrupted `init` or `join` left, nothing counts.
    pub fn identity(&self) -> Result<Option<Identity>, StartError> {
        let path = self.identity_dir();
        let identity = Identity::load(&path).map_err(|source| StartError::Identity { path, source })?;
        // A voter without its log has forgotten what it promised: it could elect a master that lacks what is committed.
        if identity.is_some() && !self.log_dir().join(consensus::FILE_NAME).exists() {
            return Err(StartError::LogMissing(self.log_dir()));
        }
        Ok(identity)
    }

    /// Puts the node into a cluster, for good. Its log must be there already.
    pub fn settle(&self, identity: &Identity) -> Result<(), StartError> {
        let path = self.identity_dir();
        identity.save(&path).map_err(|source| StartError::Identity { path, source })
    }

    /// Makes the folder of the log.
    pub fn make_log_dir(&self) -> Result<PathBuf, StartError> {
        let path = self.log_dir();
        make_private(&path)?;
        Ok(path)
    }

    /// Where the log of an older incarnation of the cluster is kept that this node has given up.
    pub fn saved_log(&self, incarnation: u64) -> PathBuf {
        self.dir.join(format!("log.{incarnation}.saved"))
    }

    /// Where it is written down what such a log had and the cluster has not.
    pub fn surplus(&self, incarnation: u64) -> PathBuf {
        self.dir.join(format!("log.{incarnation}.beyond"))
    }

    /// Whether this node is a witness, as far as it knows.
    pub fn is_witness(&self) -> bool {
        self.witness_mark().exists()
    }

    /// Notes whether this node is a witness. Without the note it only stands for election earlier than it should.
    pub fn mark_witness(&self, is_witness: bool) {
        let path = self.witness_mark();
        let outcome = match is_witness {
            true if !path.exists() => std::fs::write(&path, ""),
            false if path.exists() => std::fs::remove_file(&path),
            _ => Ok(()),
        };
        if let Err(error) = outcome {
            tracing::warn!(%error, path = %path.display(), "this node's part in elections is not noted");
        }
    }

    /// Gives the identity up, at once and durably: from now on the node is in no cluster, also after a crash.
    pub fn renounce(&self) -> Result<(), StartError> {
        let (path, given_up) = (self.identity_dir(), self.given_up_dir());
        remove(&given_up)?;
        match std::fs::rename(&path, &given_up) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            outcome => outcome.map_err(failed("give up", &path))?,
        }
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed("make durable", &self.dir))
    }

    /// Removes everything of the cluster.
    pub fn forget(&self) -> Result<(), StartError> {
        self.renounce()?;
        remove(&self.given_up_dir())?;
        remove(&self.log_dir())?;
        match std::fs::remove_file(armed_mark(&self.dir)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(failed("remove", &armed_mark(&self.dir))(error));
            }
            _ => {}
        }
        self.mark_witness(false);
        Ok(())
    }
}

/// Where a node's identity is in its state directory.
pub fn identity_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("identity")
}

/// A file in a node's state directory that says that the node may be armed.
pub fn armed_mark(state_dir: &Path) -> PathBuf {
    state_dir.join("armed")
}

/// The file that is locked where two daemons may not share a folder.
pub fn lock_file(dir: &Path) -> PathBuf {
    dir.join("lock")
}

/// Locks a folder that two daemons may not share.
pub fn lock(dir: &Path) -> Result<File, StartError> {
    let path = lock_file(dir);
    match try_lock(&path) {
        Ok(Some(file)) => Ok(file),
        Ok(None) => Err(StartError::InUse(dir.to_owned())),
        Err(source) => Err(failed("lock", &path)(source)),
    }
}

/// Locks a file that is there for that, and writes down who did. `None`: somebody has it.
pub fn try_lock(path: &Path) -> io::Result<Option<File>> {
    let mut file = File::options().create(true).truncate(false).write(true).open(path)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Ok(None),
        Err(TryLockError::Error(error)) => return Err(error),
    }
    file.set_len(0)?;
    writeln!(file, "{}", std::process::id())?;
    Ok(Some(file))
}

/// Who has [locked](try_lock) a file, if somebody has: the process, if it has come to write that down.
pub fn holder(path: &Path) -> io::Result<Option<Option<i32>>> {
    let file = match File::options().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        opened => opened?,
    };
    match file.try_lock_shared() {
        Ok(()) => Ok(None),
        Err(TryLockError::WouldBlock) => Ok(Some(io::read_to_string(file)?.trim().parse().ok())),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// A directory that root alone can read; one that is there stays as it is.
fn make_private(dir: &Path) -> Result<(), StartError> {
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(failed("create", dir))
}

fn remove(dir: &Path) -> Result<(), StartError> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.map_err(failed("remove", dir)),
    }
}

/// Puts an error of the file system into words.
pub fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StartError {
    let path = path.to_owned();
    move |source| StartError::Files { what, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    use rpc::{ClusterCa, NodeKey};

    fn identity() -> Identity {
        let ca = ClusterCa::generate("test").unwrap();
        let key = NodeKey::generate().unwrap();
        let certificate = ca.sign_csr(&key.csr_pem("node01").unwrap(), uuid::Uuid::nil(), 1).unwrap();
        key.into_identity(&certificate, &ca.cert_pem()).unwrap()
    }

    fn settled(dir: &Path) -> Home {
        let home = Home::open(dir).unwrap();
        std::fs::write(home.make_log_dir().unwrap().join(consensus::FILE_NAME), "log").unwrap();
        home.mark_witness(true);
        home.settle(&identity()).unwrap();
        home
    }

    fn mode(path: &Path) -> u32 {
        std::fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn what_is_kept_is_for_root_alone() {
        let dir = tempfile::tempdir().unwrap();
        let home = settled(&dir.path().join("a/state"));
        for path in [home.dir.clone(), home.log_dir(), home.identity_dir()] {
            assert_eq!(mode(&path), 0o700, "{}", path.display());
        }
    }

    #[test]
    fn two_daemons_do_not_share_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = Home::open(dir.path()).unwrap();
        assert!(matches!(Home::open(dir.path()), Err(StartError::InUse(path)) if path == dir.path()));
        drop(first);
        Home::open(dir.path()).unwrap();
    }

    #[test]
    fn who_has_a_lock_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = lock_file(dir.path());
        assert_eq!(holder(&path).unwrap(), None);
        let file = lock(dir.path()).unwrap();
        assert_eq!(holder(&path).unwrap(), Some(Some(std::process::id() as i32)));
        assert!(try_lock(&path).unwrap().is_none());
        drop(file);
        assert_eq!(holder(&path).unwrap(), None, "who had it before is nobody");
    }

    #[test]
    fn who_has_renounced_is_out_whatever_was_left_behind() {
        let dir = tempfile::tempdir().unwrap();
        let home = settled(dir.path());
        assert!(home.identity().unwrap().is_some());
        home.renounce().unwrap();
        // A crash here.
        assert!(home.identity().unwrap().is_none());
        home.renounce().unwrap();
        home.settle(&identity()).unwrap();
        home.renounce().unwrap();
        home.forget().unwrap();
        home.forget().unwrap();
        let left: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(left, ["lock"]);
    }

    #[test]
    fn a_member_without_its_log_is_not_started() {
        let dir = tempfile::tempdir().unwrap();
        let home = settled(dir.path());
        std::fs::remove_dir_all(home.log_dir()).unwrap();
        let error = home.identity().unwrap_err().to_string();
        assert!(error.contains(&home.log_dir().display().to_string()), "{error}");
    }
}
