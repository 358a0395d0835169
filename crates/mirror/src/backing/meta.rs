//! The meta file: two slots for superblocks and the saved bitmaps. Every call here may block.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use model::Uuid;
use nix::fcntl::Flock;

use super::error::BackingError;
use super::layout::{self, MARKS, SLOT, Slot};
use super::marks;
use super::medium::{self, open_direct};
use super::sys::{self, Aligned, PAGE};
use crate::engine::{MarkRecord, Superblock};
use crate::wire::Range;

/// Open and locked.
#[derive(Debug)]
pub(super) struct Meta {
    file: Flock<File>,
    pub path: PathBuf,
    /// Of the newer superblock. Its slot is the generation's lowest bit.
    generation: u64,
}

impl Meta {
    /// Fails if there is a meta file.
    pub fn absent(path: &Path) -> Result<(), BackingError> {
        match std::fs::symlink_metadata(path) {
            Ok(_) => Err(BackingError::Exists { path: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(source) => Err(BackingError::io("look at", path, source)),
        }
    }

    /// Makes the file as a whole and durably: there is none, or one with a superblock.
    pub fn create(path: &Path, superblock: &Superblock) -> Result<(), BackingError> {
        let mut fresh = path.to_owned().into_os_string();
        fresh.push(".new");
        let fresh = PathBuf::from(fresh);
        let make = || {
            let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&fresh);
            let file = options?;
            // Space for the slots is taken now: a superblock must not fail to be stored for want of it.
            if !sys::reserve(&file, Range::new(0, 2 * SLOT as u64))? {
                file.write_all_at(&vec![0; 2 * SLOT], 0)?;
            }
            file.write_all_at(&layout::encode(superblock, 0), 0)?;
            file.sync_all()?;
            // No other meta file is replaced, should one have appeared meanwhile.
            std::fs::hard_link(&fresh, path)?;
            std::fs::remove_file(&fresh)?;
            sys::sync_directory(path)
        };
        make().map_err(|source| {
            let _ = std::fs::remove_file(&fresh);
            if source.kind() == io::ErrorKind::AlreadyExists {
                return BackingError::Exists { path: path.to_owned() };
            }
            BackingError::io("make", path, source)
        })
    }

    /// Removes the file if there is one, and what an interrupted creation left.
    pub fn remove(path: &Path) -> Result<(), BackingError> {
        let mut fresh = path.to_owned().into_os_string();
        fresh.push(".new");
        medium::remove(Path::new(&fresh))?;
        medium::remove(path)
    }

    pub fn open(path: &Path, patience: Duration) -> Result<(Self, Superblock, BTreeMap<u8, MarkRecord>), BackingError> {
        let file = sys::lock(open_direct(path)?, path, patience)?;
        let mut meta = Self { file, path: path.to_owned(), generation: 0 };
        let failed = |source| BackingError::io("read", path, source);
        let slots =
            [0, 1].map(|slot| meta.read(slot * SLOT as u64, SLOT as u64).map(|raw| layout::decode(raw.as_slice())));
        let [first, second] = slots;
        let (first, second) = (first.map_err(failed)?, second.map_err(failed)?);
        let newer = if second.generation() > first.generation() { second } else { first };
        let superblock = match newer {
            Slot::Valid(generation, superblock) => {
                meta.generation = generation;
                *superblock
            }
            Slot::Newer(_, found) => {
                let known = layout::VERSION.to_string();
                return Err(BackingError::Newer { path: path.to_owned(), found, known });
            }
            Slot::Nothing => return Err(BackingError::NoSuperblock { path: path.to_owned() }),
        };
        let marks = meta.load_marks(superblock.size).map_err(failed)?;
        Ok((meta, superblock, marks))
    }

    /// Writes the slot that has the older superblock, so that the newer one stays whole until this one is.
    pub fn store_superblock(&mut self, superblock: &Superblock) -> io::Result<()> {
        let generation = self.generation + 1;
        self.write((generation & 1) * SLOT as u64, &layout::encode(superblock, generation))?;
        self.file.sync_data()?;
        self.generation = generation;
        Ok(())
    }

    /// Writes all pages anew. A page belongs to one store only, so whatever part of this one is lost is found missing.
    pub fn store_marks(&mut self, records: &[(u8, MarkRecord)]) -> io::Result<()> {
        let (store, _) = Uuid::new_v4().as_u64_pair();
        self.write(MARKS, &marks::encode(records, store))?;
        self.file.sync_data()
    }

    fn load_marks(&self, size: u64) -> io::Result<BTreeMap<u8, MarkRecord>> {
        let len = self.file.metadata()?.len();
        if len < MARKS + PAGE as u64 {
            return Ok(BTreeMap::new());
        }
        let Some(head) = marks::Head::parse(self.read(MARKS, PAGE as u64)?.as_slice()) else {
            return Ok(BTreeMap::new());
        };
        let from = MARKS + PAGE as u64;
        let pages = self.read(from, head.pages_len().min(len - from))?;
        Ok(head.decode(pages.as_slice(), size))
    }

    fn read(&self, offset: u64, len: u64) -> io::Result<Aligned> {
        let mut buffer = Aligned::zeroed((len as usize).next_multiple_of(PAGE));
        let mut done = 0;
        while done < buffer.as_slice().len() {
            match self.file.read_at(&mut buffer.as_mut_slice()[done..], offset + done as u64) {
                Ok(0) => break,
                Ok(read) if read % PAGE != 0 => break,
                Ok(read) => done += read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(buffer)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut buffer = Aligned::zeroed(data.len().next_multiple_of(PAGE));
        buffer.as_mut_slice()[..data.len()].copy_from_slice(data);
        self.file.write_all_at(buffer.as_slice(), offset)
    }
}
