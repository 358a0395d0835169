//! What the exports of a disk (NBD, FUSE) ask of it.

use std::io;

use async_trait::async_trait;
use bytes::Bytes;

/// A disk as its user sees it: `size()` bytes with a volatile write cache.
///
/// The exports check ranges and alignment before they ask, so an implementation is asked only for ranges within
/// `size()` whose ends are multiples of `block_size()`, and whose length is not zero. Calls run concurrently and may
/// be answered in any order. *Overlapping* requests that run at the same time have no order but must not tear each
/// other below a block.
///
/// # Answers may take long
/// A call may stay pending without bound: a mirror holds its acknowledgements while it does not know whether they are
/// safe, and never fails a request for a role it lost (rule W1). The exports put no time limit on a call.
///
/// # Dropped calls
/// An export that is taken away at once drops the futures of its unanswered calls. That gives up the *answer* only:
/// whether the operation happens is open, as it is for everything that was not acknowledged. An implementation that
/// has begun an operation finishes it or accounts for it by itself.
#[async_trait]
pub trait Device: Send + Sync + 'static {
    /// Bytes. It may grow while the device is exported; it never shrinks.
    fn size(&self) -> u64;

    /// The smallest unit of I/O in bytes, a power of two. `size()` is a multiple of it.
    fn block_size(&self) -> u32 {
        512
    }

    /// Whether a flush that comes by one connection covers the writes acknowledged on all others.
    fn multi_conn(&self) -> bool {
        false
    }

    /// Reads `len` bytes; the answer is exactly that long.
    async fn read(&self, offset: u64, len: u32) -> Result<Bytes, IoRefusal>;

    /// Writes `data`. With `fua` it is durable before the answer.
    async fn write(&self, offset: u64, data: Bytes, fua: bool) -> Result<(), IoRefusal>;

    /// Makes every write that was acknowledged before this call durable.
    async fn flush(&self) -> Result<(), IoRefusal>;

    /// The user does not need these bytes any more. It is a hint: what is read there afterwards may be the old content
    /// or zeroes, but is the same each time and on every replica.
    async fn trim(&self, offset: u64, len: u64, fua: bool) -> Result<(), IoRefusal>;

    /// Makes the range read as zeroes. Space may be given back only with `may_unmap`.
    async fn write_zeroes(&self, offset: u64, len: u64, fua: bool, may_unmap: bool) -> Result<(), IoRefusal>;
}

/// Why a device refused a request. What is not known to have failed is not refused but left pending.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IoRefusal {
    /// The device or the export can only be read.
    #[error("the disk can only be read")]
    ReadOnly,
    /// The range is outside the disk or not a multiple of its block.
    #[error("the range is outside the disk or not aligned to its block size")]
    Range,
    /// There is no space for new data.
    #[error("there is no space left for the disk's data")]
    NoSpace,
    /// The medium failed, and there is no other copy.
    #[error("the medium failed and there is no other copy of the data")]
    Medium,
    /// The device is being closed; the request was not begun.
    #[error("the disk is being closed")]
    Closing,
}

impl IoRefusal {
    /// The number of the error as the kernel counts them.
    pub fn errno(self) -> i32 {
        match self {
            IoRefusal::ReadOnly => libc::EPERM,
            IoRefusal::Range => libc::EINVAL,
            IoRefusal::NoSpace => libc::ENOSPC,
            IoRefusal::Medium => libc::EIO,
            IoRefusal::Closing => libc::ESHUTDOWN,
        }
    }
}

impl From<IoRefusal> for io::Error {
    fn from(refusal: IoRefusal) -> Self {
        io::Error::from_raw_os_error(refusal.errno())
    }
}
