//! The medium of a replica: where its data, its superblock and its bitmaps are.
//!
//! - The *data* file or block device is a plain raw image of the disk: the guest's first byte is its first byte.
//! - The *meta* file beside it has the superblock and the bitmaps that an orderly end saved. Its format, with room to
//!   grow, is described in `docs/disk-format.md`.
//! - The *boot* file on a tmpfs has what outlives the daemon but not the kernel.
//!
//! All are read and written with O_DIRECT but the boot file, so an error is the medium's answer to this very request and
//! never that of somebody else's cached write. Both durable files stay locked until the last I/O has ended, also one
//! whose future was dropped.

mod boot;
mod error;
mod layout;
mod marks;
mod medium;
mod meta;
mod pool;
mod sys;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

pub use boot::{BootFile, BootPlace};
pub use error::{BackingError, Failure};
use tokio::sync::watch;

use crate::engine::{MarkRecord, Stored, Superblock};
use crate::wire::{Content, Range};
use medium::Medium;
use meta::Meta;
use pool::Pool;

/// The durable files of a replica.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Paths {
    /// A file or a block device.
    pub data: PathBuf,
    /// A file.
    pub meta: PathBuf,
}

impl Paths {
    /// A data file with its meta file beside it: `<data>.meta`.
    pub fn beside(data: impl Into<PathBuf>) -> Self {
        let data = data.into();
        let mut meta = data.clone().into_os_string();
        meta.push(".meta");
        Self { data, meta: meta.into() }
    }
}

/// How a backing is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// I/Os that run at one time; more wait.
    pub concurrency: usize,
    /// An I/O that takes longer fails the backing (`t_disk`).
    pub slowest: Duration,
    /// How long to wait at open for the lock, which an older process keeps until the end of its last I/O.
    pub lock: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self { concurrency: 16, slowest: Duration::from_secs(30), lock: Duration::from_secs(5) }
    }
}

/// What [`Backing::open`] finds.
#[derive(Debug)]
pub struct Opened {
    /// The durable files.
    pub backing: Backing,
    /// The boot-scoped file.
    pub boot: BootFile,
    /// What all of them hold.
    pub stored: Stored,
}

/// The open medium of a replica. Clones are the same.
///
/// Operations run at the same time. They have no order between them but that an overlap of two *writes* is for the caller
/// to avoid (rule W2). Their futures end when the I/O has ended, never before, however long that takes; an I/O that is
/// slower than [`Limits::slowest`] fails the backing while it runs. To drop a future does not stop its I/O.
///
/// A failed write or sync, or a slow I/O, fails the backing for good: nothing more is begun, nothing is ever tried again
/// (rule S7), and [`Backing::failure`] tells. A failed read fails only itself.
#[derive(Clone, Debug)]
pub struct Backing {
    pool: Arc<Pool>,
}

impl Backing {
    /// Makes the files of a new replica: a sparse data file of zeroes (a block device is filled with them), and the meta
    /// file, which comes last and as a whole. A data file that is there already is refused.
    pub async fn create(paths: &Paths, superblock: &Superblock) -> Result<(), BackingError> {
        let (paths, superblock) = (paths.clone(), superblock.clone());
        pool::blocking(move || {
            Meta::absent(&paths.meta)?;
            medium::create(&paths.data, superblock.size)?;
            Meta::create(&paths.meta, &superblock)
        })
        .await
    }

    /// Makes the meta file for data that is there already, with at least the superblock's size.
    pub async fn adopt(paths: &Paths, superblock: &Superblock) -> Result<(), BackingError> {
        let (paths, superblock) = (paths.clone(), superblock.clone());
        pool::blocking(move || {
            Meta::absent(&paths.meta)?;
            let medium = Medium::open(&paths.data, Duration::ZERO)?;
            medium.has(superblock.size)?;
            medium.sync().map_err(|source| BackingError::io("sync", &paths.data, source))?;
            Meta::create(&paths.meta, &superblock)
        })
        .await
    }

    /// Removes the files of a replica that nobody has open; a block device stays, without its meta file. What is gone
    /// already is no error. The data file is kept with `keep_data`.
    pub async fn remove(paths: &Paths, keep_data: bool) -> Result<(), BackingError> {
        let paths = paths.clone();
        pool::blocking(move || {
            let _unused = match Medium::open(&paths.data, Duration::ZERO) {
                Ok(medium) => Some(medium),
                Err(error) if error.is_not_found() => None,
                Err(error) => return Err(error),
            };
            let is_file = std::fs::metadata(&paths.data).is_ok_and(|found| found.is_file());
            Meta::remove(&paths.meta)?;
            if is_file && !keep_data { medium::remove(&paths.data) } else { Ok(()) }
        })
        .await
    }

    /// Locks and opens a replica's files and reads what they hold (protocol, section 6).
    pub async fn open(paths: &Paths, boot: &BootPlace, limits: Limits) -> Result<Opened, BackingError> {
        let (paths, boot) = (paths.clone(), boot.clone());
        pool::blocking(move || {
            let medium = Medium::open(&paths.data, limits.lock)?;
            let (meta, superblock, saved_marks) = Meta::open(&paths.meta, limits.lock)?;
            medium.has(superblock.size)?;
            let (boot, record) = BootFile::open(&boot, superblock.disk, superblock.rid)?;
            let backing = Backing { pool: Arc::new(Pool::new(medium, meta, superblock.size, limits)) };
            Ok(Opened { backing, boot, stored: Stored { superblock, boot: record, saved_marks } })
        })
        .await
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.pool.size()
    }

    /// Where the data is.
    pub fn data_path(&self) -> &Path {
        &self.pool.medium.path
    }

    /// Reads a range; a hole is [`Content::Zeroes`].
    pub async fn read(&self, range: Range) -> Result<Content, BackingError> {
        self.pool.check(range)?;
        self.pool.read("read", move |pool| pool.medium.read(range)).await
    }

    /// Writes a range. Zeroes are written as a hole. With `fua` it is durable at its end.
    pub async fn write(&self, range: Range, content: Content, fua: bool) -> Result<(), BackingError> {
        self.pool.check(range)?;
        if let Content::Data(data) = &content
            && data.len() as u64 != range.len
        {
            return Err(self.pool.wrong_range(range));
        }
        self.pool
            .change("write", move |pool| {
                match &content {
                    Content::Data(data) => pool.medium.write(range.offset, data)?,
                    Content::Zeroes => pool.medium.zero(range, true)?,
                }
                if fua { pool.medium.sync() } else { Ok(()) }
            })
            .await
    }

    /// Makes a range read as zeroes; with `may_unmap` its space is given back where the medium can do that.
    pub async fn write_zeroes(&self, range: Range, may_unmap: bool, fua: bool) -> Result<(), BackingError> {
        self.pool.check(range)?;
        self.pool
            .change("write zeroes to", move |pool| {
                pool.medium.zero(range, may_unmap)?;
                if fua { pool.medium.sync() } else { Ok(()) }
            })
            .await
    }

    /// Gives the space of a range back, if it then reads as zeroes (rule W8). `false`: the medium can't, and the content
    /// is what it was.
    pub async fn discard(&self, range: Range) -> Result<bool, BackingError> {
        self.pool.check(range)?;
        self.pool.change("discard a range of", move |pool| pool.medium.discard(range)).await
    }

    /// Makes every write that ended before this call durable.
    pub async fn sync(&self) -> Result<(), BackingError> {
        self.pool.change("sync", |pool| pool.medium.sync()).await
    }

    /// The parts of a range that are not holes, ascending. On a block device that is all of it.
    pub async fn allocated(&self, within: Range) -> Result<Vec<Range>, BackingError> {
        self.pool.check(within)?;
        self.pool.read("map", move |pool| pool.medium.allocated(within)).await
    }

    /// Makes room for a disk of `size` bytes. The superblock, which says how large the disk is, is for the caller to
    /// store afterwards.
    pub async fn grow(&self, size: u64) -> Result<(), BackingError> {
        if size < self.size() {
            return Err(BackingError::Shrink { path: self.pool.medium.path.clone(), from: self.size(), to: size });
        }
        self.pool.medium.can_grow(size)?;
        self.pool
            .change("grow", move |pool| {
                pool.medium.grow(size)?;
                pool.set_size(size);
                Ok(())
            })
            .await
    }

    /// Stores the superblock durably, in the slot that has the older one.
    pub async fn store_superblock(&self, superblock: &Superblock) -> Result<(), BackingError> {
        let superblock = superblock.clone();
        self.pool.change_meta("store the superblock in", move |meta| meta.store_superblock(&superblock)).await
    }

    /// Stores the bitmaps of the other slots durably, in place of those stored before.
    pub async fn store_marks(&self, marks: Vec<(u8, MarkRecord)>) -> Result<(), BackingError> {
        self.pool.change_meta("store the bitmaps in", move |meta| meta.store_marks(&marks)).await
    }

    /// Waits until no I/O runs or waits. Others may be begun meanwhile: it is for the caller to stop them.
    pub async fn drained(&self) {
        self.pool.drained().await;
    }

    /// Why the backing failed, as soon as it has.
    pub fn failure(&self) -> watch::Receiver<Option<Failure>> {
        self.pool.failure()
    }
}

fn invalid(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
