//! How instances' disks are stored on a node.
//!
//! A [`Template`] makes, shows and removes the disks of one kind; [`template`] finds it. Every operation can be
//! repeated: a job's step that was interrupted is run again, and finds done what was done.

mod diskless;
mod error;
mod file;
mod space;

use std::fmt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use model::{DiskId, DiskTemplate};

pub use diskless::Diskless;
pub use error::{Error, Result};
pub use file::File;
pub use space::{Space, space};

const MIB: u64 = 1 << 20;

/// A disk, as the node that holds it has to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSpec {
    /// Name of its instance; part of its path.
    pub instance: String,
    /// Its place in the instance, from 0.
    pub index: usize,
    /// Its identity. The place may change when another disk of the instance is removed; this doesn't.
    pub id: DiskId,
    /// Its size, MiB.
    pub size_mib: u64,
    /// The folder in which disks are kept that are files; absolute.
    pub folder: PathBuf,
}

impl fmt::Display for DiskSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk {} of instance {}", self.index, self.instance)
    }
}

/// A disk that is ready for use on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    /// A file or block device with the disk's raw content: what an OS script gets as `DISK_0_PATH`.
    pub path: PathBuf,
    /// Whether it can be opened past the page cache (`O_DIRECT`).
    pub direct: bool,
}

/// What a look at a disk shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It is there and has its size.
    Good,
    /// There is no such disk.
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// It has another size.
    WrongSize {
        /// Where it is.
        path: PathBuf,
        /// The size that it has, bytes.
        bytes: u64,
        /// The size that it should have, MiB.
        wanted_mib: u64,
    },
    /// Something else is in its place.
    NotADisk {
        /// Its place.
        path: PathBuf,
    },
}

impl fmt::Display for Health {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Health::Good => f.write_str("good"),
            Health::Missing { path } => write!(f, "{} is missing", path.display()),
            Health::WrongSize { path, bytes, wanted_mib } => {
                write!(f, "{} has {} instead of {wanted_mib} MiB", path.display(), error::size(*bytes))
            }
            Health::NotADisk { path } => write!(f, "{} is not a regular file", path.display()),
        }
    }
}

/// A way to store disks.
///
/// A future that is dropped may leave its work to go on in the background until it is done; the next operation on a
/// disk of the same template waits for that.
#[async_trait]
pub trait Template: Send + Sync {
    /// Its name in commands and in the API.
    fn name(&self) -> &'static str;

    /// Whether another node has the disk's content too, so that the instance can be moved there.
    fn mirrored(&self) -> bool;

    /// Makes the disk; it reads zeroes. A disk that is there already with the right size is left as it is.
    ///
    /// # Errors
    /// [`Error::NoSpace`] before anything was made; [`Error::OtherSize`] if it exists with another size;
    /// [`Error::BadInstanceName`], [`Error::RelativeFolder`], [`Error::Io`].
    async fn create(&self, disk: &DiskSpec) -> Result<()>;

    /// Removes the disk and its content. One that isn't there is as good as removed.
    ///
    /// # Errors
    /// [`Error::NotADisk`], [`Error::Io`].
    async fn remove(&self, disk: &DiskSpec) -> Result<()>;

    /// Makes the disk larger: `size_mib` MiB afterwards; what is added reads zeroes. Guests that run are not told.
    ///
    /// # Errors
    /// [`Error::Shrink`] if it is larger already; [`Error::Missing`], [`Error::NoSpace`], [`Error::Io`].
    async fn grow(&self, disk: &DiskSpec, size_mib: u64) -> Result<()>;

    /// Makes the disk ready for a guest or a script on this node. Activating it again gives the same.
    ///
    /// # Errors
    /// [`Error::Missing`]; [`Error::OtherSize`] if it is smaller than it should be; [`Error::Io`].
    async fn activate(&self, disk: &DiskSpec) -> Result<Attachment>;

    /// Ends what [`activate`](Self::activate) began. The disk's users must be gone.
    ///
    /// # Errors
    /// [`Error::Io`].
    async fn deactivate(&self, disk: &DiskSpec) -> Result<()>;

    /// Looks whether the disk is as it should be. Changes nothing.
    ///
    /// # Errors
    /// [`Error::Io`] if that can't be found out.
    async fn check(&self, disk: &DiskSpec) -> Result<Health>;

    /// What looks like a disk of this template under `folder` and is none of the `known` ones. A disk that is just
    /// being created is known to its job before it is known to the cluster: its caller has to count it in.
    ///
    /// # Errors
    /// [`Error::Io`] if the folder is there but can't be read.
    async fn orphans(&self, folder: &Path, known: &[DiskSpec]) -> Result<Vec<PathBuf>>;
}

/// The template of a kind; `None` where its disks are not this room's.
pub fn template(kind: DiskTemplate) -> Option<&'static dyn Template> {
    match kind {
        DiskTemplate::Diskless => Some(&Diskless),
        DiskTemplate::File => Some(&File),
        DiskTemplate::Drbd => None,
    }
}
