//! The data file or block device. Every call here may block.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use nix::fcntl::Flock;

use super::error::BackingError;
use super::sys::{self, Aligned, PAGE};
use crate::wire::{Content, Range};

/// Zeroes are written in pieces of this many bytes where the medium can't make them by itself.
const ZEROES: u64 = 1 << 20;

/// Open and locked.
#[derive(Debug)]
pub(super) struct Medium {
    file: Flock<File>,
    pub path: PathBuf,
    /// Multiple of offsets and lengths.
    align: u64,
    is_file: bool,
    /// Writes of parts of an aligned block read it first: two at a time would undo each other.
    part: Mutex<()>,
}

/// Makes a file of zeroes, or fills a device with them, durably.
pub(super) fn create(path: &Path, size: u64) -> Result<(), BackingError> {
    let failed = |attempt| move |source| BackingError::io(attempt, path, source);
    if std::fs::metadata(path).is_ok_and(|found| found.file_type().is_block_device()) {
        let medium = Medium::open(path, Duration::ZERO)?;
        medium.has(size)?;
        medium.zero(Range::new(0, size), true).map_err(failed("zero"))?;
        return medium.sync().map_err(failed("sync"));
    }
    let file = match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(BackingError::Exists { path: path.to_owned() });
        }
        other => other.map_err(failed("make"))?,
    };
    let made = file.set_len(size).and_then(|()| file.sync_all()).and_then(|()| sys::sync_directory(path));
    made.map_err(|source| {
        // Nobody knows of it yet.
        let _ = std::fs::remove_file(path);
        BackingError::io("make", path, source)
    })
}

/// Removes the file, durably.
pub(super) fn remove(path: &Path) -> Result<(), BackingError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other.and_then(|()| sys::sync_directory(path)).map_err(|e| BackingError::io("remove", path, e)),
    }
}

impl Medium {
    pub fn open(path: &Path, patience: Duration) -> Result<Self, BackingError> {
        let file = open_direct(path)?;
        let file = sys::lock(file, path, patience)?;
        let look = || {
            let is_file = file.metadata()?.is_file();
            Ok((sys::direct_alignment(&file)?, is_file))
        };
        let (align, is_file) = look().map_err(|source| BackingError::io("look at", path, source))?;
        Ok(Self { file, path: path.to_owned(), align, is_file, part: Mutex::new(()) })
    }

    fn len(&self) -> io::Result<u64> {
        if self.is_file { Ok(self.file.metadata()?.len()) } else { (&*self.file).seek(SeekFrom::End(0)) }
    }

    /// Whether it has at least `size` bytes.
    pub fn has(&self, size: u64) -> Result<(), BackingError> {
        let found = self.len().map_err(|source| BackingError::io("measure", &self.path, source))?;
        if found < size {
            return Err(BackingError::Short { path: self.path.clone(), found, wanted: size });
        }
        Ok(())
    }

    /// A file can; a device has to have grown before.
    pub fn can_grow(&self, size: u64) -> Result<(), BackingError> {
        if self.is_file { Ok(()) } else { self.has(size) }
    }

    pub fn grow(&self, size: u64) -> io::Result<()> {
        if self.is_file && self.len()? < size {
            self.file.set_len(size)?;
            self.file.sync_all()?;
        }
        Ok(())
    }

    pub fn read(&self, range: Range) -> io::Result<Content> {
        if self.is_file && sys::next_data(&self.file, range.offset, range.end())?.is_none() {
            return Ok(Content::Zeroes);
        }
        let outer = self.outer(range);
        let buffer = self.read_aligned(outer)?;
        let start = (range.offset - outer.offset) as usize;
        Ok(Content::Data(buffer.into_bytes(start..start + range.len as usize)))
    }

    pub fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let range = Range::new(offset, data.len() as u64);
        let outer = self.outer(range);
        if outer == range {
            if (data.as_ptr() as usize).is_multiple_of(PAGE) {
                return self.file.write_all_at(data, offset);
            }
            let mut buffer = Aligned::zeroed(data.len());
            buffer.as_mut_slice().copy_from_slice(data);
            return self.file.write_all_at(buffer.as_slice(), offset);
        }
        let _one = self.part.lock().unwrap_or_else(PoisonError::into_inner);
        let mut buffer = self.read_aligned(outer)?;
        let start = (offset - outer.offset) as usize;
        buffer.as_mut_slice()[start..start + data.len()].copy_from_slice(data);
        // A file that ends within the block gets longer by less than a block, all of it beyond the disk.
        self.file.write_all_at(buffer.as_slice(), outer.offset)
    }

    /// Makes a range read as zeroes, by whatever way there is.
    pub fn zero(&self, range: Range, may_unmap: bool) -> io::Result<()> {
        let inner = self.inner(range);
        if inner.len > 0 {
            let done = (may_unmap && sys::punch(&self.file, inner)?) || sys::zero_range(&self.file, inner)?;
            if !done {
                let zeroes = Aligned::zeroed(inner.len.min(ZEROES) as usize);
                let mut at = inner.offset;
                while at < inner.end() {
                    let len = (inner.end() - at).min(ZEROES);
                    self.file.write_all_at(&zeroes.as_slice()[..len as usize], at)?;
                    at += len;
                }
            }
        }
        self.zero_edges(range, inner)
    }

    /// Punches a hole; `false` if that is not possible, and nothing has changed then.
    pub fn discard(&self, range: Range) -> io::Result<bool> {
        let inner = self.inner(range);
        if inner.len == 0 || !sys::punch(&self.file, inner)? {
            return Ok(false);
        }
        self.zero_edges(range, inner)?;
        Ok(true)
    }

    /// Zeroes what `range` has beyond `inner`: holes are made of whole pages.
    fn zero_edges(&self, range: Range, inner: Range) -> io::Result<()> {
        let zeroes = [0; 2 * PAGE];
        if inner.len == 0 {
            return self.write(range.offset, &zeroes[..range.len as usize]);
        }
        let (before, after) = ((inner.offset - range.offset) as usize, (range.end() - inner.end()) as usize);
        if before > 0 {
            self.write(range.offset, &zeroes[..before])?;
        }
        if after > 0 {
            self.write(inner.end(), &zeroes[..after])?;
        }
        Ok(())
    }

    /// An error here says that writes acknowledged by the kernel may be lost. Never ask again.
    pub fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    pub fn allocated(&self, within: Range) -> io::Result<Vec<Range>> {
        if !self.is_file {
            return Ok(vec![within]);
        }
        let (mut found, mut at) = (Vec::new(), within.offset);
        while at < within.end()
            && let Some(run) = sys::next_data(&self.file, at, within.end())?
        {
            // An empty run would be asked for for ever.
            at = run.end().max(at + 1);
            found.push(run);
        }
        Ok(found)
    }

    /// The smallest aligned range around `range`.
    fn outer(&self, range: Range) -> Range {
        let (start, end) = (range.offset - range.offset % self.align, range.end().next_multiple_of(self.align));
        Range::new(start, end - start)
    }

    /// The greatest range of whole pages in `range`; empty if there is none.
    fn inner(&self, range: Range) -> Range {
        let page = PAGE as u64;
        let (start, end) = (range.offset.next_multiple_of(page), range.end() - range.end() % page);
        Range::new(start, end.saturating_sub(start))
    }

    /// Reads an aligned range; what is beyond the end of the file is zeroes.
    fn read_aligned(&self, range: Range) -> io::Result<Aligned> {
        let mut buffer = Aligned::zeroed(range.len as usize);
        let mut done = 0;
        while done < buffer.as_slice().len() {
            match self.file.read_at(&mut buffer.as_mut_slice()[done..], range.offset + done as u64) {
                Ok(0) => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
            // The end of a file that is not a multiple of the alignment: there is nothing behind it.
            if !(done as u64).is_multiple_of(self.align) {
                break;
            }
        }
        Ok(buffer)
    }
}

pub(super) fn open_direct(path: &Path) -> Result<File, BackingError> {
    match OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path) {
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            Err(BackingError::NoDirectIo { path: path.to_owned() })
        }
        other => other.map_err(|source| BackingError::io("open", path, source)),
    }
}
