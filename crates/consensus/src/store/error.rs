//! Why a store can't be opened: each with the file and what to do.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};

use model::NodeId;

/// Why a store can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has it open.
    #[error("{path} is in use by another process; is a daemon already running on this state directory?", path = .path.display())]
    InUse {
        /// The file.
        path: PathBuf,
    },
    /// Its content is damaged.
    #[error(
        "{path} is damaged ({reason}); restore it only if no other voter remains. Otherwise remove this node from the \
         cluster, clear its state directory and add it again under a new number", path = .path.display()
    )]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A newer version has written it.
    #[error("{path} has format {found}, this version knows formats up to {known}; run a newer version", path = .path.display())]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: u64,
        /// The highest that is understood.
        known: u64,
    },
    /// It belongs to another node.
    #[error(
        "{path} belongs to node {owner}, this is node {me}; a state directory can't be given to another node",
        path = .path.display()
    )]
    Foreign {
        /// The file.
        path: PathBuf,
        /// Whose it is.
        owner: NodeId,
        /// Who wanted it.
        me: NodeId,
    },
    /// The operating system refused.
    #[error("can't {action} {path}{advice}", path = .path.display(), advice = advice(.source))]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ": the disk is full, make room and start again",
        io::ErrorKind::PermissionDenied => ": the daemon has to run as root",
        io::ErrorKind::NotFound => ": is the state directory there?",
        io::ErrorKind::ReadOnlyFilesystem => ": the file system is read-only",
        _ => "",
    }
}

impl StoreError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> Self {
        Self::Io { action, path: path.to_owned(), source }
    }

    /// A failure to read what the file system did give out.
    pub(super) fn read(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::InvalidData => Self::Corrupt { path: path.to_owned(), reason: source.to_string() },
            _ => Self::io("read", path, source),
        }
    }

    pub(super) fn database(action: &'static str, path: &Path, error: impl Into<redb::Error>) -> Self {
        let path = path.to_owned();
        match error.into() {
            redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => Self::InUse { path },
            redb::Error::Corrupted(reason) => Self::Corrupt { path, reason },
            redb::Error::RepairAborted => Self::Corrupt { path, reason: "it could not be repaired".into() },
            redb::Error::UpgradeRequired(found) => {
                Self::Corrupt { path, reason: format!("file format {found} of redb") }
            }
            redb::Error::Io(source) if source.kind() == io::ErrorKind::InvalidData => {
                Self::Corrupt { path, reason: source.to_string() }
            }
            redb::Error::Io(source) => Self::Io { action, path, source },
            other => Self::Io { action, path, source: io::Error::other(other.to_string()) },
        }
    }
}

/// For the part of the code that speaks `io::Error`, as openraft wants it.
pub(crate) fn corrupt(path: &Path, what: &str, error: &dyn Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("{}: {what}: {error}", path.display()))
}
