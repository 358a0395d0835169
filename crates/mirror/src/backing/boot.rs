//! What outlives the daemon but not the kernel: the window, the bitmaps of a running replica, and a few marks.
//!
//! A file on a tmpfs, written with plain `pwrite`s: what a process has written there is in the kernel, whatever becomes
//! of the process. It counts only in the boot in which it was made. Its format may change with any version of the
//! program: a file of another version is one of another boot.
//!
//! | at | what |
//! |---|---|
//! | 0 | identity: magic, version, boot, disk, replica |
//! | 256 + 64·k | cells, each with a checksum: 0 validity, 1 quiesced, 2 applied, 3 to 5 whose the slots' bitmaps are |
//! | 4096 + 64·k | cells of the window |
//! | 2^40 + slot · 2^40 | bitmaps, a bit a block: room for 2^55 bytes of disk; the file is sparse |
//!
//! A process that is killed leaves each cell as it was or as it was to be: a cell never crosses a page, and the kernel
//! does not give up a copy within one. The checksums are there for what nobody thought of.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut};
use model::{DiskId, Epoch, MAX_REPLICAS, ReplicaId, Uuid, Version};

use super::error::BackingError;
use super::layout::take16;
use super::{invalid, medium, sys};
use crate::engine::{BLOCK, Bitmap, BootChange, BootRecord, MarkRecord, Session, WindowEntry};
use crate::wire::Range;

const MAGIC: [u8; 8] = *b"CARDBOOT";
const VERSION: u32 = 1;
const CELL: usize = 64;
const CELLS: u64 = 256;
const VALID: u64 = CELLS;
const QUIESCED: u64 = CELLS + CELL as u64;
const APPLIED: u64 = CELLS + 2 * CELL as u64;
const MARKS: u64 = CELLS + 3 * CELL as u64;
const WINDOW: u64 = 4096;
const BITMAPS: u64 = 1 << 40;
/// Bytes that are read or written at once.
const PIECE: u64 = 64 << 10;

/// Where boot-scoped files are, and which boot this is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BootPlace {
    /// A directory on a tmpfs, such as one in `/run`.
    pub directory: PathBuf,
    /// The kernel's boot id.
    pub boot: Uuid,
}

impl BootPlace {
    /// The place in `directory` for the boot that this machine runs in.
    pub fn of_this_boot(directory: impl Into<PathBuf>) -> Result<Self, BackingError> {
        let path = Path::new("/proc/sys/kernel/random/boot_id");
        let boot = std::fs::read_to_string(path)
            .and_then(|text| Uuid::try_parse(text.trim()).map_err(invalid))
            .map_err(|source| BackingError::io("read the boot's id from", path, source))?;
        Ok(Self { directory: directory.into(), boot })
    }

    fn file(&self, rid: ReplicaId) -> PathBuf {
        self.directory.join(format!("{rid}.boot"))
    }

    /// Removes the file of a replica that is not open; one that is not there is no error.
    pub fn remove(&self, rid: ReplicaId) -> Result<(), BackingError> {
        medium::remove(&self.file(rid))
    }
}

/// The boot-scoped file of an open replica. Its calls are short: they don't wait for a medium.
#[derive(Debug)]
pub struct BootFile {
    file: File,
    path: PathBuf,
}

impl BootFile {
    /// Opens the file and reads what it has of this boot; makes an empty one where there is none. To be called under the
    /// lock of the replica's data.
    pub(super) fn open(
        place: &BootPlace,
        disk: DiskId,
        rid: ReplicaId,
    ) -> Result<(Self, Option<BootRecord>), BackingError> {
        let path = place.file(rid);
        let failed = |attempt: &'static str| {
            let path = path.clone();
            move |source| BackingError::io(attempt, &path, source)
        };
        let identity = identity(place.boot, disk, rid);
        match OpenOptions::new().read(true).write(true).open(&path) {
            Ok(file) => {
                let mut found = vec![0; identity.len()];
                let same = file.read_exact_at(&mut found, 0).is_ok() && found == identity;
                if same {
                    let boot = Self { file, path: path.clone() };
                    match boot.record() {
                        Ok(record) => return Ok((boot, Some(record))),
                        Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                            tracing::error!(%error, "{} is damaged and does not count", path.display());
                        }
                        Err(source) => return Err(failed("read")(source)),
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(failed("open")(source)),
        }
        // A file with an identity is a whole one, also if this process is killed here.
        let fresh = path.with_extension("boot.new");
        let make = || {
            let mut options = OpenOptions::new();
            let file = options.read(true).write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
            file.write_all_at(&identity, 0)?;
            std::fs::rename(&fresh, &path)?;
            Ok(file)
        };
        let file = make().map_err(failed("make"))?;
        Ok((Self { file, path }, None))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Carries out a change: when this returns, it outlives the process.
    pub fn change(&self, change: &BootChange) -> Result<(), BackingError> {
        self.apply(change).map_err(|source| BackingError::io("write", &self.path, source))
    }

    /// Says that what the slot's bitmap has now is complete for this replica from that version on. A bitmap that is filled
    /// in several changes is begun without an owner, and given one at the end: of a process that is killed between, there
    /// is no bitmap, rather than one with too little in it.
    pub fn own_marks(&self, slot: u8, rid: ReplicaId, since: Version) -> Result<(), BackingError> {
        let put = |at| self.put_owner(at, rid, since);
        marks_cell(slot).and_then(put).map_err(|source| BackingError::io("write", &self.path, source))
    }

    fn put_owner(&self, at: u64, rid: ReplicaId, since: Version) -> io::Result<()> {
        self.put(at, |cell| {
            cell.put_slice(rid.0.as_bytes());
            cell.put_u64_le(since.n);
            cell.put_u64_le(since.v);
        })
    }

    fn apply(&self, change: &BootChange) -> io::Result<()> {
        match change {
            BootChange::Valid(valid) => self.put(VALID, |cell| cell.put_u8(u8::from(*valid))),
            BootChange::Window(place, Some(entry)) => self.put(window_cell(*place), |cell| {
                put_session(cell, entry.session);
                cell.put_u64_le(entry.seq);
                cell.put_u64_le(entry.range.offset);
                cell.put_u64_le(entry.range.len);
            }),
            BootChange::Window(place, None) => self.clear(window_cell(*place)),
            BootChange::Quiesced(Some(migration)) => self.put(QUIESCED, |cell| cell.put_slice(migration.as_bytes())),
            BootChange::Quiesced(None) => self.clear(QUIESCED),
            BootChange::Applied(session, seq) => self.put(APPLIED, |cell| {
                put_session(cell, *session);
                cell.put_u64_le(*seq);
            }),
            BootChange::Marks(slot, owner) => {
                let at = marks_cell(*slot)?;
                // Its bits are never taken for those of the one that comes.
                self.clear(at)?;
                self.empty(*slot)?;
                match owner {
                    Some((rid, since)) => self.put_owner(at, *rid, *since),
                    None => Ok(()),
                }
            }
            BootChange::Bits(slot, range, set) => self.bits(*slot, *range, *set),
        }
    }

    /// Everything that the file has.
    fn record(&self) -> io::Result<BootRecord> {
        let mut record = BootRecord::default();
        if let Some(cell) = self.get(VALID)? {
            record.valid = cell[0] != 0;
        }
        if let Some(cell) = self.get(QUIESCED)? {
            record.quiesced = Some(Uuid::from_bytes(take16(&mut cell.as_slice())));
        }
        if let Some(cell) = self.get(APPLIED)? {
            let mut cell = cell.as_slice();
            record.applied = Some((take_session(&mut cell), cell.get_u64_le()));
        }
        self.each_piece(WINDOW, BITMAPS, |at, piece| {
            for (number, raw) in piece.chunks_exact(CELL).enumerate() {
                let place = (at - WINDOW) / CELL as u64 + number as u64;
                if let Some(mut cell) = open_cell(raw)? {
                    let session = take_session(&mut cell);
                    let seq = cell.get_u64_le();
                    let range = Range::new(cell.get_u64_le(), cell.get_u64_le());
                    let place = u32::try_from(place).map_err(invalid)?;
                    record.window.insert(place, WindowEntry { session, seq, range });
                }
            }
            Ok(())
        })?;
        for slot in 0..MAX_REPLICAS as u8 {
            if let Some(cell) = self.get(marks_cell(slot)?)? {
                let mut cell = cell.as_slice();
                let rid = ReplicaId(Uuid::from_bytes(take16(&mut cell)));
                let since = Version { n: cell.get_u64_le(), v: cell.get_u64_le() };
                record.marks.insert(slot, MarkRecord { rid, since, bits: self.bitmap(slot)? });
            }
        }
        Ok(record)
    }

    fn bitmap(&self, slot: u8) -> io::Result<Bitmap> {
        let mut bits = Bitmap::default();
        let start = bitmap_start(slot);
        self.each_piece(start, start + BITMAPS, |at, piece| {
            for (number, byte) in piece.iter().enumerate().filter(|(_, byte)| **byte != 0) {
                let first = (at - start + number as u64) * 8;
                (0..8).filter(|bit| byte >> bit & 1 == 1).for_each(|bit| {
                    bits.set(Range::new((first + bit) * BLOCK, BLOCK));
                });
            }
            Ok(())
        })?;
        Ok(bits)
    }

    /// Sets or clears the bits of the blocks that `range` touches.
    fn bits(&self, slot: u8, range: Range, set: bool) -> io::Result<()> {
        marks_cell(slot)?;
        let (first, end) = (range.offset / BLOCK, range.end().div_ceil(BLOCK));
        let start = bitmap_start(slot);
        let mut at = first / 8;
        while at * 8 < end {
            let len = (end.div_ceil(8) - at).min(PIECE);
            let mut piece = vec![0; len as usize];
            self.fill(&mut piece, start + at)?;
            for (number, byte) in piece.iter_mut().enumerate() {
                let base = (at + number as u64) * 8;
                let mask =
                    (0..8).filter(|bit| (first..end).contains(&(base + bit))).fold(0, |mask, bit| mask | 1 << bit);
                *byte = if set { *byte | mask } else { *byte & !mask };
            }
            self.file.write_all_at(&piece, start + at)?;
            at += len;
        }
        Ok(())
    }

    /// Makes all bits of a slot zero.
    fn empty(&self, slot: u8) -> io::Result<()> {
        let start = bitmap_start(slot);
        if sys::punch(&self.file, Range::new(start, BITMAPS))? {
            return Ok(());
        }
        let mut at = start;
        while let Some(run) = sys::next_data(&self.file, at, start + BITMAPS)? {
            let len = run.len.min(PIECE);
            self.file.write_all_at(&vec![0; len as usize], run.offset)?;
            at = run.offset + len.max(1);
        }
        Ok(())
    }

    /// Reads at most `into.len()` bytes; what is behind the end of the file is zeroes.
    fn fill(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            match self.file.read_at(&mut into[done..], offset + done as u64)? {
                0 => break,
                read => done += read,
            }
        }
        Ok(())
    }

    /// Shows everything from `start` to `end` that is not a hole, in pieces that begin at multiples of a cell.
    fn each_piece(&self, start: u64, end: u64, mut show: impl FnMut(u64, &[u8]) -> io::Result<()>) -> io::Result<()> {
        let mut at = start;
        while let Some(run) = sys::next_data(&self.file, at, end)? {
            let from = (run.offset - run.offset % CELL as u64).max(start);
            let len = (run.end() - from).min(PIECE).next_multiple_of(CELL as u64);
            let mut piece = vec![0; len as usize];
            self.fill(&mut piece, from)?;
            show(from, &piece)?;
            at = from + len;
        }
        Ok(())
    }

    fn put(&self, at: u64, content: impl FnOnce(&mut Vec<u8>)) -> io::Result<()> {
        let mut cell = Vec::with_capacity(CELL);
        cell.put_u32_le(0); // the checksum
        cell.put_u32_le(1);
        content(&mut cell);
        cell.resize(CELL, 0);
        let checksum = crc32c::crc32c(&cell[4..]);
        cell[..4].copy_from_slice(&checksum.to_le_bytes());
        self.file.write_all_at(&cell, at)
    }

    fn clear(&self, at: u64) -> io::Result<()> {
        self.file.write_all_at(&[0; CELL], at)
    }

    /// The content of a cell; `None` if it is empty.
    fn get(&self, at: u64) -> io::Result<Option<Vec<u8>>> {
        let mut raw = [0; CELL];
        self.fill(&mut raw, at)?;
        Ok(open_cell(&raw)?.map(<[u8]>::to_vec))
    }
}

fn identity(boot: Uuid, disk: DiskId, rid: ReplicaId) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_slice(&MAGIC);
    out.put_u32_le(VERSION);
    out.put_u32_le(0);
    out.put_slice(boot.as_bytes());
    out.put_slice(disk.0.as_bytes());
    out.put_slice(rid.0.as_bytes());
    out
}

fn window_cell(place: u32) -> u64 {
    WINDOW + u64::from(place) * CELL as u64
}

fn marks_cell(slot: u8) -> io::Result<u64> {
    if usize::from(slot) >= MAX_REPLICAS {
        return Err(invalid(format!("there is no slot {slot}")));
    }
    Ok(MARKS + u64::from(slot) * CELL as u64)
}

fn bitmap_start(slot: u8) -> u64 {
    BITMAPS + u64::from(slot) * BITMAPS
}

/// What a cell has; `None` if it is empty.
fn open_cell(raw: &[u8]) -> io::Result<Option<&[u8]>> {
    if raw.iter().all(|byte| *byte == 0) {
        return Ok(None);
    }
    let (stored, rest) = raw.split_at(4);
    if crc32c::crc32c(rest).to_le_bytes() != stored || !rest.starts_with(&1u32.to_le_bytes()) {
        return Err(invalid("a cell of it is not what was written"));
    }
    Ok(Some(&rest[4..]))
}

fn put_session(cell: &mut Vec<u8>, session: Session) {
    cell.put_u64_le(session.epoch.n);
    cell.put_u64_le(session.epoch.e);
    cell.put_u64_le(session.start);
}

fn take_session(cell: &mut &[u8]) -> Session {
    Session { epoch: Epoch { n: cell.get_u64_le(), e: cell.get_u64_le() }, start: cell.get_u64_le() }
}
