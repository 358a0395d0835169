//! What can go wrong with a backing.

use std::io;
use std::path::{Path, PathBuf};

/// Why an operation on a backing was not done.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BackingError {
    /// The file that is to be made is there already.
    #[error("{path} is there already: it belongs to a disk, or was left by one; remove it first")]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Another process has the file open as a disk.
    #[error("{path} is in use by another process, or by I/O that an earlier one began and that has not ended")]
    Locked {
        /// The file.
        path: PathBuf,
    },
    /// The file system or device can't do direct I/O.
    #[error(
        "{path} can't be opened with O_DIRECT, which a mirrored disk needs to know what is on the medium: use another file system"
    )]
    NoDirectIo {
        /// The file.
        path: PathBuf,
    },
    /// The data is smaller than the disk.
    #[error("{path} has {found} bytes and the disk has {wanted}: it was cut short, or is not this disk's")]
    Short {
        /// The data.
        path: PathBuf,
        /// Bytes that are there.
        found: u64,
        /// Bytes that should be.
        wanted: u64,
    },
    /// A disk only grows.
    #[error("{path} can't be made smaller, from {from} to {to} bytes")]
    Shrink {
        /// The data.
        path: PathBuf,
        /// Bytes now.
        from: u64,
        /// Bytes wanted.
        to: u64,
    },
    /// Neither slot has a superblock.
    #[error("{path} has no valid superblock in either slot: it is damaged, or not a mirrored disk's meta file")]
    NoSuperblock {
        /// The meta file.
        path: PathBuf,
    },
    /// The superblock was written by a newer version.
    #[error(
        "{path} was written by a newer version of this program (format {found}, known is {known}): use that version; nothing was changed"
    )]
    Newer {
        /// The meta file.
        path: PathBuf,
        /// Its format.
        found: String,
        /// Ours.
        known: String,
    },
    /// The range is not on the disk.
    #[error("{len} bytes at {offset} are not a range of {path}, which has {size}, or not what was handed over")]
    Range {
        /// The data.
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        len: u64,
        /// Bytes of the disk.
        size: u64,
    },
    /// The backing failed before, so this was not begun; or it failed while this ran.
    #[error("{path} failed and is not used any more: {failure}")]
    Failed {
        /// The data or meta file.
        path: PathBuf,
        /// The first failure.
        failure: Failure,
    },
    /// The operating system refused.
    #[error("cannot {attempt} {path}")]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Its reason.
        #[source]
        source: io::Error,
    },
    /// The program is ending.
    #[error("the program is ending")]
    Ending,
}

impl BackingError {
    pub(super) fn io(attempt: &'static str, path: &Path, source: io::Error) -> Self {
        BackingError::Io { attempt, path: path.to_owned(), source }
    }

    pub(super) fn is_not_found(&self) -> bool {
        matches!(self, BackingError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

/// What made a backing unusable.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot {attempt} {path}: {reason}", path = .path.display())]
pub struct Failure {
    /// What was attempted.
    pub attempt: &'static str,
    /// On what.
    pub path: PathBuf,
    /// The operating system's reason, or that it took too long.
    pub reason: String,
}
