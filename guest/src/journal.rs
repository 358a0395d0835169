//! The counter on disk: a ring of records in a file whose blocks were all written beforehand.
//!
//! * A record fills a whole 4096-byte block, so a write that is torn by a power cut can only hurt
//!   the record being written, never one that was acknowledged.
//! * A record carries its number, its boot id and a checksum, and sits in slot `number % SLOTS`: a
//!   torn or misplaced one is recognised and counts as absent. Its number was never answered to
//!   anybody, so it may be given out again.
//! * The file never grows: it can run for ever, and `fdatasync` has no metadata to write. `check`
//!   can still show that none of the last `SLOTS` acknowledged numbers was lost.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

/// Bytes of a record: a block of the file system and of every disk we may lie on.
const RECORD: usize = 4096;

/// Number of records in the ring.
pub const SLOTS: u64 = 1024;

const MAGIC: &[u8; 8] = b"cardume1";

/// Length of a boot id as the kernel writes it, in bytes.
const BOOT_ID: usize = 36;

/// Offset of the checksum, which covers everything before it.
const SUM_AT: usize = 8 + 8 + BOOT_ID;

/// An open journal; the one writer of its file.
pub struct Journal {
    file: File,
    boot_id: String,
    last: u64,
}

impl Journal {
    /// Opens the journal, makes it if there is none, and goes on from the highest whole record.
    ///
    /// # Errors
    /// I/O errors; `InvalidData` when `boot_id` or the size of the file is not as expected;
    /// `WouldBlock` when another process has it open.
    pub fn open(path: &Path, boot_id: &str) -> io::Result<Self> {
        if boot_id.len() != BOOT_ID {
            return Err(io::Error::new(ErrorKind::InvalidData, format!("'{boot_id}' is not a boot id")));
        }
        if !path.try_exists()? {
            create(path)?;
        }
        let mut file = OpenOptions::new().read(true).write(true).open(path)?;
        file.try_lock().map_err(io::Error::from)?;
        let last = scan(&mut file)?.last;
        Ok(Self { file, boot_id: boot_id.to_owned(), last })
    }

    /// Number of the newest record; 0 when there is none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// Writes the next record and returns its number once it is durable.
    ///
    /// # Errors
    /// After an error nobody knows what is on the disk (the page cache may call a lost page clean),
    /// so the journal must not be used again.
    pub fn append(&mut self) -> io::Result<u64> {
        let number = self.last + 1;
        self.file.write_all_at(&encode(number, &self.boot_id), number % SLOTS * RECORD as u64)?;
        self.file.sync_data()?;
        self.last = number;
        Ok(number)
    }
}

/// What a journal holds.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Number of the newest record; 0 when there is none.
    pub last: u64,
    /// Boot id in the newest record.
    pub boot_id: String,
    /// Whole records.
    pub records: u64,
    /// Slots that hold something that is neither zero nor a whole record: torn.
    pub torn: u64,
    /// Numbers that the ring should hold besides the newest and doesn't.
    pub holes: Vec<u64>,
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "last={} boot_id={} records={} torn={} holes=", self.last, self.boot_id, self.records, self.torn)?;
        match self.holes.as_slice() {
            [] => f.write_str("none"),
            [first, rest @ ..] => {
                write!(f, "{first}")?;
                rest.iter().try_for_each(|hole| write!(f, ",{hole}"))
            }
        }
    }
}

/// Reads a journal without changing it.
///
/// # Errors
/// I/O errors; `InvalidData` when the file is not a journal.
pub fn read(path: &Path) -> io::Result<Summary> {
    scan(&mut File::open(path)?)
}

/// Makes the file whole under another name first: a half-made one is never taken for a journal.
/// Zeroes are written, not merely reserved, so that later writes change no metadata.
fn create(path: &Path) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(dir)?;
    let temporary = path.with_extension("new");
    let file = File::create(&temporary)?;
    for slot in 0..SLOTS {
        file.write_all_at(&[0; RECORD], slot * RECORD as u64)?;
    }
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

fn scan(file: &mut File) -> io::Result<Summary> {
    let size = file.metadata()?.len();
    let wanted = SLOTS * RECORD as u64;
    if size != wanted {
        return Err(io::Error::new(ErrorKind::InvalidData, format!("a journal has {wanted} bytes, this file {size}")));
    }
    let mut summary = Summary::default();
    let mut numbers = Vec::new();
    let mut block = vec![0; RECORD];
    for slot in 0..SLOTS {
        file.read_exact(&mut block)?;
        match decode(&block) {
            Some((number, boot_id)) if number % SLOTS == slot => {
                summary.records += 1;
                numbers.push(number);
                if number > summary.last {
                    summary.last = number;
                    summary.boot_id = boot_id;
                }
            }
            _ if block.iter().all(|byte| *byte == 0) => {}
            _ => summary.torn += 1,
        }
    }
    // A torn newest record overwrote the oldest one, so one slot less can be vouched for.
    let oldest =
        (summary.last + 1).saturating_sub(SLOTS).max(1) + u64::from(summary.torn == 1 && summary.last >= SLOTS);
    numbers.sort_unstable();
    summary.holes = (oldest..summary.last).filter(|number| numbers.binary_search(number).is_err()).collect();
    Ok(summary)
}

fn encode(number: u64, boot_id: &str) -> Vec<u8> {
    let mut block = Vec::with_capacity(RECORD);
    block.extend_from_slice(MAGIC);
    block.extend_from_slice(&number.to_le_bytes());
    block.extend_from_slice(boot_id.as_bytes());
    block.extend_from_slice(&checksum(&block).to_le_bytes());
    // The rest of the block repeats the number: a block of which only a part reached the disk differs
    // from a whole one.
    while block.len() < RECORD {
        block.extend_from_slice(&number.to_le_bytes());
    }
    block.truncate(RECORD);
    block
}

fn decode(block: &[u8]) -> Option<(u64, String)> {
    let number = u64::from_le_bytes(block.get(8..16)?.try_into().ok()?);
    let boot_id = std::str::from_utf8(block.get(16..SUM_AT)?).ok()?;
    (block == encode(number, boot_id)).then(|| (number, boot_id.to_owned()))
}

/// FNV-1a, 64 bits: tells a torn record from a whole one; nobody is attacking it.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOOT: &str = "01234567-89ab-cdef-0123-456789abcdef";
    const NEXT_BOOT: &str = "fedcba98-7654-3210-fedc-ba9876543210";

    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("cardume-guest-{}-{name}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }
        fn journal(&self) -> std::path::PathBuf {
            self.0.join("state/counter")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn damage(path: &Path, number: u64, at: u64) {
        let file = OpenOptions::new().write(true).open(path).unwrap();
        file.write_all_at(&[0xee; 512], number % SLOTS * RECORD as u64 + at).unwrap();
    }

    #[test]
    fn goes_on_after_a_reboot() {
        let scratch = Scratch::new("reboot");
        let mut journal = Journal::open(&scratch.journal(), BOOT).unwrap();
        assert_eq!((journal.append().unwrap(), journal.append().unwrap()), (1, 2));
        drop(journal);
        let mut journal = Journal::open(&scratch.journal(), NEXT_BOOT).unwrap();
        assert_eq!(journal.append().unwrap(), 3);
        let summary = read(&scratch.journal()).unwrap();
        assert_eq!(summary, Summary { last: 3, boot_id: NEXT_BOOT.into(), records: 3, torn: 0, holes: vec![] });
    }

    #[test]
    fn torn_newest_record_counts_as_never_written() {
        for at in [0, 512, 3584] {
            let scratch = Scratch::new(&format!("torn-{at}"));
            let mut journal = Journal::open(&scratch.journal(), BOOT).unwrap();
            (0..3).for_each(|_| assert!(journal.append().is_ok()));
            drop(journal);
            damage(&scratch.journal(), 3, at);
            let summary = read(&scratch.journal()).unwrap();
            assert_eq!((summary.last, summary.torn, summary.holes), (2, 1, vec![]));
            assert_eq!(Journal::open(&scratch.journal(), BOOT).unwrap().append().unwrap(), 3);
        }
    }

    #[test]
    fn a_lost_older_record_is_a_hole() {
        let scratch = Scratch::new("hole");
        let mut journal = Journal::open(&scratch.journal(), BOOT).unwrap();
        (0..5).for_each(|_| assert!(journal.append().is_ok()));
        drop(journal);
        damage(&scratch.journal(), 3, 0);
        assert_eq!(read(&scratch.journal()).unwrap().holes, vec![3]);
    }

    #[test]
    fn the_ring_wraps_and_keeps_its_size() {
        let scratch = Scratch::new("wrap");
        let mut journal = Journal::open(&scratch.journal(), BOOT).unwrap();
        (0..SLOTS + 7).for_each(|_| assert!(journal.append().is_ok()));
        drop(journal);
        let summary = read(&scratch.journal()).unwrap();
        assert_eq!((summary.last, summary.records, summary.torn, summary.holes), (SLOTS + 7, SLOTS, 0, vec![]));
        // The write of record SLOTS+8 is torn: it destroyed record 8, which needs no vouching for.
        damage(&scratch.journal(), SLOTS + 8, 0);
        let summary = read(&scratch.journal()).unwrap();
        assert_eq!((summary.last, summary.torn, summary.holes), (SLOTS + 7, 1, vec![]));
        assert_eq!(fs::metadata(scratch.journal()).unwrap().len(), SLOTS * RECORD as u64);
    }

    #[test]
    fn refuses_a_second_writer_and_a_foreign_file() {
        let scratch = Scratch::new("second");
        let first = Journal::open(&scratch.journal(), BOOT).unwrap();
        assert_eq!(Journal::open(&scratch.journal(), BOOT).err().unwrap().kind(), ErrorKind::WouldBlock);
        drop(first);
        fs::write(scratch.journal(), b"something else").unwrap();
        assert_eq!(Journal::open(&scratch.journal(), BOOT).err().unwrap().kind(), ErrorKind::InvalidData);
    }

    #[test]
    fn a_half_made_journal_is_made_anew() {
        let scratch = Scratch::new("half");
        fs::create_dir_all(scratch.journal().parent().unwrap()).unwrap();
        fs::write(scratch.journal().with_extension("new"), b"half").unwrap();
        assert_eq!(Journal::open(&scratch.journal(), BOOT).unwrap().append().unwrap(), 1);
    }
}
