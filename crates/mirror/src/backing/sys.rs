//! What the standard library has no word for.
#![allow(unsafe_code)] // statx reports the alignment for direct I/O, and nix does not wrap that.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};
use nix::unistd::{Whence, lseek};

use super::error::BackingError;
use crate::wire::Range;

/// Bytes to which offsets, lengths and buffers of any direct I/O may be aligned.
pub(super) const PAGE: usize = 4096;

/// To how many bytes direct I/O on the file has to be aligned; [`PAGE`] if the kernel doesn't say.
pub(super) fn direct_alignment(file: &File) -> io::Result<u64> {
    let mut found = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: the descriptor is open, the path is an empty C string, and the buffer is one statx.
    let result = unsafe {
        libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, found.as_mut_ptr())
    };
    if result != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: zeroed memory is a valid statx, and the call has filled it.
    let found = unsafe { found.assume_init() };
    let align = u64::from(found.stx_dio_offset_align.max(found.stx_dio_mem_align));
    let told = found.stx_mask & libc::STATX_DIOALIGN != 0 && align.is_power_of_two() && align <= PAGE as u64;
    Ok(if told { align.max(512) } else { PAGE as u64 })
}

/// Takes the exclusive lock of a file, for which it waits at most `patience`. It lasts until the file is closed.
pub(super) fn lock(mut file: File, path: &Path, patience: Duration) -> Result<Flock<File>, BackingError> {
    let start = Instant::now();
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(locked) => return Ok(locked),
            Err((again, Errno::EWOULDBLOCK)) if start.elapsed() < patience => {
                file = again;
                // The lock can only be waited for by a call that nothing ends.
                std::thread::sleep(Duration::from_millis(10));
            }
            Err((_, Errno::EWOULDBLOCK)) => return Err(BackingError::Locked { path: path.to_owned() }),
            Err((_, error)) => return Err(BackingError::io("lock", path, error.into())),
        }
    }
}

/// Makes a hole. `false` if the file can't have one that reads as zeroes.
pub(super) fn punch(file: &File, range: Range) -> io::Result<bool> {
    preallocate(file, FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE, range)
}

/// Makes a range read as zeroes and keeps its space. `false` if the file can't do it by itself.
pub(super) fn zero_range(file: &File, range: Range) -> io::Result<bool> {
    preallocate(file, FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE, range)
}

/// Takes space for a range and lets it read as zeroes where it has none. `false` if the file system has no such thing.
pub(super) fn reserve(file: &File, range: Range) -> io::Result<bool> {
    preallocate(file, FallocateFlags::empty(), range)
}

fn preallocate(file: &File, flags: FallocateFlags, range: Range) -> io::Result<bool> {
    loop {
        match fallocate(file, flags, range.offset as i64, range.len as i64) {
            Ok(()) => return Ok(true),
            Err(Errno::EINTR) => {}
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Ok(false),
            Err(error) => return Err(error.into()),
        }
    }
}

/// The first run of data in the file that begins or goes on at `from`, cut at `end`. The file's own position is moved.
pub(super) fn next_data(file: &File, from: u64, end: u64) -> io::Result<Option<Range>> {
    let data = match lseek(file, from as i64, Whence::SeekData) {
        Ok(data) => data as u64,
        Err(Errno::ENXIO) => return Ok(None),
        // The file system knows no holes.
        Err(Errno::EINVAL) => from,
        Err(error) => return Err(error.into()),
    };
    if data >= end {
        return Ok(None);
    }
    let hole = match lseek(file, data as i64, Whence::SeekHole) {
        Ok(hole) => hole as u64,
        // The file ended meanwhile, or knows no holes.
        Err(Errno::ENXIO | Errno::EINVAL) => end,
        Err(error) => return Err(error.into()),
    };
    Ok(Some(Range::new(data, hole.min(end).saturating_sub(data))))
}

/// Makes the names in the directory of `path` durable.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}

/// Memory that begins at a multiple of [`PAGE`], as direct I/O needs it.
pub(super) struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    pub fn zeroed(len: usize) -> Self {
        let memory = vec![0; len + PAGE];
        // For bytes and a power of two this is always a number.
        let start = memory.as_ptr().align_offset(PAGE).min(PAGE);
        Self { memory, start, len }
    }

    pub fn as_slice(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }

    pub fn as_mut_slice(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.len]
    }

    /// The bytes of `within`, without a copy.
    pub fn into_bytes(self, within: std::ops::Range<usize>) -> bytes::Bytes {
        bytes::Bytes::from(self.memory).slice(self.start + within.start..self.start + within.end)
    }
}
