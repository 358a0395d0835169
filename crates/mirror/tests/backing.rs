//! The medium of a replica on a real file system and a real block device.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the shell around the engine has clocks and threads"
)]
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use common::{noise, run};
use mirror::backing::{Backing, BackingError, BootPlace, Limits, Opened, Paths};
use mirror::engine::{BLOCK, Bitmap, BootChange, BootRecord, MarkRecord, Session, Superblock, WindowEntry};
use mirror::wire::{Content, Range};
use model::{DiskId, Epoch, Incarnation, MirrorMode, ReplicaId, Uuid, Version};
use proptest::prelude::*;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;
const SLOT: u64 = 256 << 10;
const LIMITS: Limits = Limits { concurrency: 4, slowest: Duration::from_secs(30), lock: Duration::ZERO };

struct Lab {
    directory: TempDir,
    paths: Paths,
    boot: BootPlace,
}

impl Lab {
    fn new() -> Self {
        // Beside what is built: a temporary directory may be on a tmpfs, and this is about disks.
        let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        let paths = Paths::beside(directory.path().join("disk0.raw"));
        let boot = BootPlace { directory: directory.path().to_owned(), boot: Uuid::from_u128(1) };
        Self { directory, paths, boot }
    }

    async fn created(size: u64) -> Self {
        let lab = Self::new();
        Backing::create(&lab.paths, &newborn(size)).await.unwrap();
        lab
    }

    async fn open(&self) -> Result<Opened, BackingError> {
        Backing::open(&self.paths, &self.boot, LIMITS).await
    }
}

fn newborn(size: u64) -> Superblock {
    let id = |n| Uuid::from_u128(n);
    Superblock::newborn(DiskId(id(7)), ReplicaId(id(8)), size, Incarnation::first(id(9)), MirrorMode::Strict)
}

fn data(len: u64, seed: u64) -> Content {
    Content::Data(Bytes::from(noise(len as usize, seed)))
}

fn range(offset: u64, len: u64) -> Range {
    Range::new(offset, len)
}

async fn bytes(backing: &Backing, at: Range) -> Vec<u8> {
    match backing.read(at).await.unwrap() {
        Content::Data(data) => data.to_vec(),
        Content::Zeroes => vec![0; at.len as usize],
    }
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).unwrap().blocks() * 512
}

#[tokio::test(flavor = "multi_thread")]
async fn the_data_file_is_a_plain_sparse_image() {
    let lab = Lab::created(64 * MIB).await;
    assert_eq!(fs::metadata(&lab.paths.data).unwrap().len(), 64 * MIB);
    assert_eq!(allocated(&lab.paths.data), 0);
    let Opened { backing, stored, .. } = lab.open().await.unwrap();
    assert_eq!((stored.superblock, stored.saved_marks.len(), backing.size()), (newborn(64 * MIB), 0, 64 * MIB));
    assert_eq!(backing.read(range(0, 64 * MIB)).await.unwrap(), Content::Zeroes);
    backing.write(range(5 * MIB, MIB), data(MIB, 1), false).await.unwrap();
    backing.write(range(10 * MIB, MIB), Content::Zeroes, false).await.unwrap();
    backing.sync().await.unwrap();
    assert_eq!(backing.allocated(range(0, 64 * MIB)).await.unwrap(), [range(5 * MIB, MIB)]);
    assert_eq!(backing.allocated(range(5 * MIB + 4096, 8192)).await.unwrap(), [range(5 * MIB + 4096, 8192)]);
    assert!(allocated(&lab.paths.data) <= MIB + 65536);
    let mut plain = vec![0; 64 * MIB as usize];
    plain[5 * MIB as usize..6 * MIB as usize].copy_from_slice(&noise(MIB as usize, 1));
    assert!(fs::read(&lab.paths.data).unwrap() == plain, "the file is not the disk");
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_of_blocks_are_written_beside_each_other() {
    let lab = Lab::created(MIB).await;
    let Opened { backing, .. } = lab.open().await.unwrap();
    let mut plain = noise(MIB as usize, 3);
    backing.write(range(0, MIB), Content::Data(plain.clone().into()), true).await.unwrap();
    let mut writes = Vec::new();
    // None overlaps another, all share blocks with their neighbours.
    for number in 0..100u64 {
        let (offset, len) = (number * 1000 + 13, 900);
        let new = noise(len as usize, 100 + number);
        plain[offset as usize..(offset + len) as usize].copy_from_slice(&new);
        let backing = backing.clone();
        writes.push(tokio::spawn(async move {
            backing.write(range(offset, len), Content::Data(new.into()), false).await.unwrap();
        }));
    }
    for write in writes {
        write.await.unwrap();
    }
    assert!(bytes(&backing, range(0, MIB)).await == plain);
    for (offset, len) in [(1, 1), (511, 2), (4095, 4098), (100, 8000)] {
        let expected = plain[offset as usize..(offset + len) as usize].to_vec();
        assert!(bytes(&backing, range(offset, len)).await == expected, "{len} bytes at {offset}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_discard_gives_space_back_and_reads_as_zeroes() {
    let lab = Lab::created(8 * MIB).await;
    let Opened { backing, .. } = lab.open().await.unwrap();
    let mut plain = noise(8 * MIB as usize, 5);
    backing.write(range(0, 8 * MIB), Content::Data(plain.clone().into()), false).await.unwrap();
    let before = allocated(&lab.paths.data);
    assert!(backing.discard(range(MIB + 512, 4 * MIB)).await.unwrap());
    plain[(MIB + 512) as usize..(5 * MIB + 512) as usize].fill(0);
    assert!(bytes(&backing, range(0, 8 * MIB)).await == plain);
    assert!(allocated(&lab.paths.data) <= before - 4 * MIB + 65536);
    let after = allocated(&lab.paths.data);
    backing.write_zeroes(range(6 * MIB, MIB), false, true).await.unwrap();
    plain[6 * MIB as usize..7 * MIB as usize].fill(0);
    assert!(bytes(&backing, range(0, 8 * MIB)).await == plain);
    assert!(allocated(&lab.paths.data) >= after, "space was given back that should have been kept");
    backing.write_zeroes(range(7 * MIB, 4096), true, false).await.unwrap();
    assert_eq!(backing.read(range(7 * MIB, 4096)).await.unwrap(), Content::Zeroes);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_opener_at_a_time_and_the_next_waits() {
    let lab = Lab::created(MIB).await;
    let first = lab.open().await.unwrap();
    let second = lab.open().await;
    assert!(matches!(second, Err(BackingError::Locked { .. })), "{second:?}");
    let removed = Backing::remove(&lab.paths, false).await;
    assert!(matches!(removed, Err(BackingError::Locked { .. })), "{removed:?}");
    let patient = Limits { lock: Duration::from_secs(60), ..LIMITS };
    let (paths, boot) = (lab.paths.clone(), lab.boot.clone());
    let waiting = tokio::spawn(async move { Backing::open(&paths, &boot, patient).await });
    drop(first);
    waiting.await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_lock_lasts_until_the_end_of_io_whose_future_is_gone() {
    let lab = Lab::created(256 * MIB).await;
    let Opened { backing, .. } = lab.open().await.unwrap();
    let content = noise(32 * MIB as usize, 1);
    for number in 0..4 {
        let mut write =
            Box::pin(backing.write(range(number * 32 * MIB, 32 * MIB), Content::Data(content.clone().into()), true));
        // Begun, and given up.
        tokio::select! {
            biased;
            result = &mut write => result.unwrap(),
            () = tokio::task::yield_now() => {}
        }
    }
    drop(backing);
    // Whoever gets the lock sees all of it or a part that will not grow.
    let patient = Limits { lock: Duration::from_secs(60), ..LIMITS };
    let Opened { backing, .. } = Backing::open(&lab.paths, &lab.boot, patient).await.unwrap();
    let seen = bytes(&backing, range(0, 128 * MIB)).await;
    backing.drained().await;
    assert!(bytes(&backing, range(0, 128 * MIB)).await == seen);
    for piece in seen.chunks(32 * MIB as usize) {
        assert!(piece == content.as_slice(), "an I/O that was begun did not end");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_a_disk_is_refused_with_the_reason() {
    let lab = Lab::created(MIB).await;
    let twice = Backing::create(&lab.paths, &newborn(MIB)).await;
    assert!(matches!(twice, Err(BackingError::Exists { .. })), "{twice:?}");
    fs::OpenOptions::new().write(true).open(&lab.paths.data).unwrap().set_len(MIB - 512).unwrap();
    let short = lab.open().await;
    assert!(matches!(short, Err(BackingError::Short { wanted: MIB, .. })), "{short:?}");
    Backing::remove(&lab.paths, false).await.unwrap();
    Backing::remove(&lab.paths, false).await.unwrap();
    assert_eq!(fs::read_dir(lab.directory.path()).unwrap().count(), 0);
    assert!(matches!(lab.open().await, Err(BackingError::Io { .. })));

    // A creation that was interrupted before it had a meta file: the data is not overwritten, nor the disk opened.
    fs::write(&lab.paths.data, "somebody's").unwrap();
    assert!(matches!(Backing::create(&lab.paths, &newborn(MIB)).await, Err(BackingError::Exists { .. })));
    assert_eq!(fs::read(&lab.paths.data).unwrap(), b"somebody's");
    assert!(!lab.paths.meta.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn data_that_exists_is_adopted_and_left_behind() {
    let lab = Lab::new();
    let image = noise(MIB as usize, 9);
    fs::write(&lab.paths.data, &image).unwrap();
    let large = Backing::adopt(&lab.paths, &newborn(2 * MIB)).await;
    assert!(matches!(large, Err(BackingError::Short { .. })), "{large:?}");
    Backing::adopt(&lab.paths, &newborn(MIB)).await.unwrap();
    let Opened { backing, .. } = lab.open().await.unwrap();
    assert!(bytes(&backing, range(0, MIB)).await == image);
    drop(backing);
    Backing::remove(&lab.paths, true).await.unwrap();
    assert!(fs::read(&lab.paths.data).unwrap() == image && !lab.paths.meta.exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_grows_and_does_not_shrink() {
    let lab = Lab::created(MIB).await;
    let Opened { backing, .. } = lab.open().await.unwrap();
    assert!(matches!(backing.read(range(MIB, 512)).await, Err(BackingError::Range { .. })));
    assert!(matches!(backing.read(range(0, 0)).await, Err(BackingError::Range { .. })));
    assert!(matches!(backing.read(range(u64::MAX, 2)).await, Err(BackingError::Range { .. })));
    assert!(matches!(backing.grow(4096).await, Err(BackingError::Shrink { .. })));
    backing.grow(3 * MIB).await.unwrap();
    backing.store_superblock(&newborn(3 * MIB)).await.unwrap();
    assert_eq!(backing.read(range(MIB, 2 * MIB)).await.unwrap(), Content::Zeroes);
    drop(backing);
    assert_eq!(lab.open().await.unwrap().backing.size(), 3 * MIB);
    assert!(lab.open().await.unwrap().backing.failure().borrow().is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn superblocks_alternate_and_the_newest_whole_one_counts() {
    let lab = Lab::created(MIB).await;
    let stored = |start| Superblock { start, ..newborn(MIB) };
    let Opened { backing, .. } = lab.open().await.unwrap();
    for start in 1..=5 {
        backing.store_superblock(&stored(start)).await.unwrap();
    }
    drop(backing);
    assert_eq!(lab.open().await.unwrap().stored.superblock, stored(5));
    // The sixth is torn: the fifth is there.
    let meta = fs::OpenOptions::new().read(true).write(true).open(&lab.paths.meta).unwrap();
    let before = fs::read(&lab.paths.meta).unwrap();
    meta.write_all_at(&[0x55; 100], 0).unwrap();
    assert_eq!(lab.open().await.unwrap().stored.superblock, stored(5));
    // Its slot is the one that is written next.
    let Opened { backing, .. } = lab.open().await.unwrap();
    backing.store_superblock(&stored(6)).await.unwrap();
    drop(backing);
    assert_eq!(lab.open().await.unwrap().stored.superblock, stored(6));
    // The newer one is damaged later: the older one counts, as it has to for a crash.
    meta.write_all_at(&before[..4096], 0).unwrap();
    assert_eq!(lab.open().await.unwrap().stored.superblock, stored(5));
    meta.write_all_at(&[0; 8], 0).unwrap();
    meta.write_all_at(&[0; 8], SLOT).unwrap();
    assert!(matches!(lab.open().await, Err(BackingError::NoSuperblock { .. })));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_newer_format_is_refused_and_nothing_is_changed() {
    let lab = Lab::created(MIB).await;
    let mut raw = fs::read(&lab.paths.meta).unwrap();
    raw[8] = 2;
    let len = u32::from_le_bytes(raw[12..16].try_into().unwrap()) as usize;
    raw[24..28].fill(0);
    let sum = crc32c::crc32c(&raw[..len]);
    raw[24..28].copy_from_slice(&sum.to_le_bytes());
    fs::write(&lab.paths.meta, &raw).unwrap();
    match lab.open().await {
        Err(error @ BackingError::Newer { .. }) => assert!(error.to_string().contains("newer version"), "{error}"),
        other => panic!("{other:?}"),
    }
    assert!(fs::read(&lab.paths.meta).unwrap() == raw);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    /// Whatever becomes of the sectors of the last store at a power loss, and of a byte somewhere: what is found is what
    /// was stored last or before it, or nothing.
    #[test]
    fn torn_slots_are_never_garbage(
        stores in 1u64..6,
        windows in proptest::collection::vec(0usize..200, 6),
        lost in proptest::collection::vec(any::<bool>(), 1..16),
        flip in proptest::option::of((0u64..2 * SLOT, 1u8..)),
    ) {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async move {
            let lab = Lab::created(MIB).await;
            let nth = |n: u64| {
                let window = windows[n as usize % windows.len()] as u64;
                Superblock { start: n, left_window: (0..window).map(|w| (w, n)).collect(), ..newborn(MIB) }
            };
            let Opened { backing, .. } = lab.open().await.unwrap();
            for n in 1..stores {
                backing.store_superblock(&nth(n)).await.unwrap();
            }
            let before = fs::read(&lab.paths.meta).unwrap();
            backing.store_superblock(&nth(stores)).await.unwrap();
            drop(backing);
            let mut raw = fs::read(&lab.paths.meta).unwrap();
            for (sector, (new, old)) in raw.chunks_mut(512).zip(before.chunks(512)).enumerate() {
                if lost[sector % lost.len()] {
                    new.copy_from_slice(old);
                }
            }
            if let Some((at, change)) = flip {
                raw[at as usize] ^= change;
            }
            fs::write(&lab.paths.meta, &raw).unwrap();
            let expected = [stores, stores - 1];
            match lab.open().await {
                Ok(found) => {
                    let start = found.stored.superblock.start;
                    let written = if start == 0 { newborn(MIB) } else { nth(start) };
                    assert_eq!(found.stored.superblock, written);
                    assert!(expected.contains(&start), "{start} is older than it may be");
                    assert!(flip.is_some() || start == stores || lost.contains(&true));
                }
                Err(BackingError::NoSuperblock { .. }) => assert!(flip.is_some(), "both slots lost at one store"),
                Err(other) => panic!("{other}"),
            }
        });
    }
}

fn marks(seed: u64) -> Vec<(u8, MarkRecord)> {
    let mut bits = Bitmap::default();
    for number in 0..200 {
        bits.set(range((number * 37 + seed) % 5000 * BLOCK, BLOCK));
    }
    let record =
        |rid| MarkRecord { rid: ReplicaId(Uuid::from_u128(rid)), since: Version { n: 1, v: seed }, bits: bits.clone() };
    vec![(0, record(1)), (2, record(2))]
}

#[tokio::test(flavor = "multi_thread")]
async fn saved_bitmaps_come_back_and_torn_ones_are_all_dirty() {
    let lab = Lab::created(64 * MIB).await;
    let Opened { backing, .. } = lab.open().await.unwrap();
    backing.store_marks(marks(1)).await.unwrap();
    backing.store_marks(marks(2)).await.unwrap();
    drop(backing);
    let wanted: BTreeMap<_, _> = marks(2).into_iter().collect();
    assert_eq!(lab.open().await.unwrap().stored.saved_marks, wanted);
    let meta = fs::OpenOptions::new().write(true).open(&lab.paths.meta).unwrap();
    // In the first page after the head.
    meta.write_all_at(b"x", (4 << 20) + 4096 + 100).unwrap();
    let found = lab.open().await.unwrap().stored.saved_marks;
    assert_eq!(found[&0].bits, Bitmap::full(64 * MIB));
    assert_eq!(found[&2], wanted[&2]);
    meta.write_all_at(b"x", (4 << 20) + 20).unwrap();
    assert!(lab.open().await.unwrap().stored.saved_marks.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_boot_scoped_record_outlives_the_process_but_not_the_boot() {
    let lab = Lab::created(256 * MIB).await;
    let Opened { boot, stored, backing } = lab.open().await.unwrap();
    assert!(stored.boot.is_none());
    let session = Session { epoch: Epoch { n: 1, e: 2 }, start: 3 };
    let entry = |seq| WindowEntry { session, seq, range: range(seq * 4096, 512) };
    let mut changes = vec![
        BootChange::Valid(true),
        BootChange::Quiesced(Some(Uuid::from_u128(77))),
        BootChange::Applied(session, 4711),
        BootChange::Marks(1, Some((ReplicaId(Uuid::from_u128(5)), Version { n: 1, v: 6 }))),
        BootChange::Bits(1, range(0, 100 * BLOCK), true),
        BootChange::Bits(1, range(10 * BLOCK, 37 * BLOCK), false),
        BootChange::Bits(1, range(200 * MIB, 56 * MIB), true),
        BootChange::Marks(2, Some((ReplicaId(Uuid::from_u128(6)), Version { n: 1, v: 7 }))),
        BootChange::Bits(2, range(0, 256 * MIB), true),
        // Begun anew: what was marked for the one before does not count for this one.
        BootChange::Marks(2, Some((ReplicaId(Uuid::from_u128(7)), Version { n: 1, v: 8 }))),
        BootChange::Bits(2, range(BLOCK, BLOCK), true),
        BootChange::Marks(0, Some((ReplicaId(Uuid::from_u128(8)), Version { n: 1, v: 9 }))),
        BootChange::Marks(0, None),
    ];
    changes.extend((0..3000).map(|place| BootChange::Window(place * 7, Some(entry(u64::from(place))))));
    changes.extend((0..3000).step_by(3).map(|place| BootChange::Window(place * 7, None)));
    changes.push(BootChange::Window(0, Some(entry(9999))));
    let mut wanted = BootRecord::default();
    for change in &changes {
        boot.change(change).unwrap();
        wanted.change(change);
    }
    // Nothing is closed in good order: the file is read as another process would find it.
    drop(backing);
    let again = lab.open().await.unwrap();
    assert_eq!(again.stored.boot, Some(wanted.clone()));
    assert!(again.boot.change(&BootChange::Marks(3, None)).is_err());
    again.boot.change(&BootChange::Quiesced(None)).unwrap();
    wanted.quiesced = None;
    drop(again);
    assert_eq!(lab.open().await.unwrap().stored.boot, Some(wanted));

    // A cell that is not what was written: nothing of the record is believed.
    let file = fs::OpenOptions::new().write(true).open(boot.path()).unwrap();
    file.write_all_at(b"x", 4096 + 20).unwrap();
    let damaged = lab.open().await.unwrap();
    assert!(damaged.stored.boot.is_none());
    damaged.boot.change(&BootChange::Valid(true)).unwrap();
    drop(damaged);
    assert!(lab.open().await.unwrap().stored.boot.unwrap().valid);

    let next = BootPlace { boot: Uuid::from_u128(2), ..lab.boot.clone() };
    assert!(Backing::open(&lab.paths, &next, LIMITS).await.unwrap().stored.boot.is_none());
    next.remove(ReplicaId(Uuid::from_u128(8))).unwrap();
    assert!(BootPlace::of_this_boot(lab.directory.path()).unwrap().boot != Uuid::nil());
}

/// A loop device on a file, detached also when the test fails.
struct Loop {
    device: PathBuf,
}

impl Loop {
    async fn new(file: &Path, sector: &str) -> Self {
        let told = run("losetup", &["--find", "--show", "--sector-size", sector, file.to_str().unwrap()]).await;
        Self { device: told.trim().into() }
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = std::process::Command::new("/usr/sbin/losetup").arg("--detach").arg(&self.device).status();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_device_is_a_medium_too_also_one_of_large_sectors() {
    for sector in ["512", "4096"] {
        let mut lab = Lab::new();
        let file = lab.directory.path().join("medium");
        fs::write(&file, noise(16 * MIB as usize, 4)).unwrap();
        let device = Loop::new(&file, sector).await;
        lab.paths.data = device.device.clone();
        let large = Backing::create(&lab.paths, &newborn(17 * MIB)).await;
        assert!(matches!(large, Err(BackingError::Short { .. })), "{large:?}");
        Backing::create(&lab.paths, &newborn(16 * MIB)).await.unwrap();
        let Opened { backing, .. } = lab.open().await.unwrap();
        let mut plain = vec![0; 16 * MIB as usize];
        assert!(bytes(&backing, range(0, 16 * MIB)).await == plain, "a new disk is not zeroes");
        for (offset, len) in [(0, 4096), (512, 512), (1536, 3 * 4096), (MIB, 2 * MIB)] {
            let new = noise(len as usize, offset);
            plain[offset as usize..(offset + len) as usize].copy_from_slice(&new);
            backing.write(range(offset, len), Content::Data(new.into()), true).await.unwrap();
        }
        backing.write(range(MIB + 512, MIB), Content::Zeroes, true).await.unwrap();
        plain[(MIB + 512) as usize..(2 * MIB + 512) as usize].fill(0);
        assert!(bytes(&backing, range(0, 16 * MIB)).await == plain);
        assert_eq!(backing.allocated(range(0, MIB)).await.unwrap(), [range(0, MIB)]);
        assert!(matches!(backing.grow(32 * MIB).await, Err(BackingError::Short { .. })));
        drop(backing);
        Backing::remove(&lab.paths, false).await.unwrap();
        assert!(lab.paths.data.exists() && !lab.paths.meta.exists());
        drop(device);
    }
}
