//! What can go wrong with a disk.

use std::path::{Path, PathBuf};

use crate::MIB;

/// The result of an operation on a disk.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on a disk failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The instance's name can't be the name of a folder.
    #[error("'{instance}' can't be the name of a folder for an instance's disks")]
    BadInstanceName {
        /// The name.
        instance: String,
    },
    /// The folder for disks depends on where the daemon was started.
    #[error("the folder for disks, '{folder}', is not an absolute path: set another file storage directory")]
    RelativeFolder {
        /// The folder.
        folder: PathBuf,
    },
    /// There is too little space.
    #[error("not enough space for {path}: needed {needed_mib} MiB, available {available_mib} MiB")]
    NoSpace {
        /// The disk.
        path: PathBuf,
        /// What the disk would take when it is full, MiB.
        needed_mib: u64,
        /// What the file system has, MiB.
        available_mib: u64,
    },
    /// The disk exists with another size.
    #[error("{path} has {} and not {wanted_mib} MiB: if it holds nothing that is needed, remove it", size(*.bytes))]
    OtherSize {
        /// The disk.
        path: PathBuf,
        /// Its size, bytes.
        bytes: u64,
        /// The size that it should have, MiB.
        wanted_mib: u64,
    },
    /// A disk can't be made smaller.
    #[error("can't grow {path} to {wanted_mib} MiB: it has {} already, and a disk never shrinks", size(*.bytes))]
    Shrink {
        /// The disk.
        path: PathBuf,
        /// Its size, bytes.
        bytes: u64,
        /// The size that was asked for, MiB.
        wanted_mib: u64,
    },
    /// There is no such disk.
    #[error("{path} is missing: put it back from a backup, or recreate the instance's disks")]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// Something else is in the disk's place.
    #[error("{path} is not a regular file: move it out of the way")]
    NotADisk {
        /// The place.
        path: PathBuf,
    },
    /// A diskless instance was to have a disk.
    #[error("instance {instance} is diskless, it can't have a disk")]
    Diskless {
        /// The instance's name.
        instance: String,
    },
    /// The system refused.
    #[error("can't {action} {path}")]
    Io {
        /// What was attempted, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The daemon is ending, and the work was not begun.
    #[error("the daemon is stopping: {path} was not touched")]
    Stopping {
        /// The disk or folder.
        path: PathBuf,
    },
}

/// Turns an I/O error into ours: `.map_err(io("read", path))`.
pub(crate) fn io<E: Into<std::io::Error>>(action: &'static str, path: &Path) -> impl FnOnce(E) -> Error {
    move |source| Error::Io { action, path: path.to_owned(), source: source.into() }
}

/// A size in MiB where it is whole, else in bytes.
pub(crate) fn size(bytes: u64) -> String {
    if bytes.is_multiple_of(MIB) { format!("{} MiB", bytes / MIB) } else { format!("{bytes} bytes") }
}
