//! A disk as a file: with file system tools directly on it, through loop devices, and as a medium that fails on demand.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "the shell around the engine has clocks and threads"
)]
#![allow(clippy::unwrap_used, reason = "helpers of tests are tests too")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use common::{MemoryDisk, noise, outcome, run};
use mirror::backing::{Backing, BackingError, BootPlace, Limits, Opened, Paths};
use mirror::device::IoRefusal;
use mirror::engine::Superblock;
use mirror::fuse::{Mount, MountError};
use mirror::wire::{Content, Range};
use model::{DiskId, Incarnation, MirrorMode, ReplicaId, Uuid};
use nix::mount::{MntFlags, umount2};
use tempfile::TempDir;

const MIB: usize = 1 << 20;
/// More than anything that ends by itself takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// A mounted disk; everything is taken away with it, also when the test fails.
struct Lab {
    mount: Option<Mount>,
    /// What was mounted on a loop device on the file.
    mounted: Vec<PathBuf>,
    loops: Vec<PathBuf>,
    disk: Arc<MemoryDisk>,
    directory: TempDir,
}

impl Lab {
    async fn new(size: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let disk = MemoryDisk::new(size);
        let at = directory.path().join("export");
        fs::create_dir(&at).unwrap();
        fs::create_dir(directory.path().join("root")).unwrap();
        let mount = Mount::new(&at, "disk0", disk.clone()).await.unwrap();
        Self { mount: Some(mount), mounted: vec![], loops: vec![], disk, directory }
    }

    fn mountpoint(&self) -> PathBuf {
        self.directory.path().join("export")
    }

    fn file(&self) -> PathBuf {
        self.mountpoint().join("disk0")
    }

    fn text(&self) -> String {
        self.file().to_str().unwrap().to_owned()
    }

    async fn mount_by_loop(&mut self) -> PathBuf {
        let told = run("losetup", &["--find", "--show", &self.text()]).await;
        let device = told.trim().to_owned();
        self.loops.push(device.clone().into());
        let root = self.directory.path().join("root");
        run("mount", &["-t", "ext4", &device, root.to_str().unwrap()]).await;
        self.mounted.push(root.clone());
        root
    }

    async fn unmount_loop(&mut self) {
        let root = self.mounted.pop().unwrap();
        run("umount", &[root.to_str().unwrap()]).await;
        let device = self.loops.pop().unwrap();
        run("losetup", &["--detach", device.to_str().unwrap()]).await;
    }

    fn is_mounted(&self) -> bool {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
        table.contains(self.mountpoint().to_str().unwrap())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for mounted in &self.mounted {
            let _ = umount2(mounted, MntFlags::MNT_DETACH);
        }
        for device in &self.loops {
            let _ = Command::new("/usr/sbin/losetup").arg("--detach").arg(device).status();
        }
        drop(self.mount.take());
    }
}

/// File operations wait for this very process to answer: they must not stop the runtime.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

fn read_write(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_directory_has_one_file_of_the_disks_size() {
    let mut lab = Lab::new(8 * MIB).await;
    let at = lab.mountpoint();
    blocking(move || {
        let found: Vec<_> = fs::read_dir(&at).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(found, ["disk0"]);
        let file = fs::metadata(at.join("disk0")).unwrap();
        assert_eq!((file.len(), file.mode() & 0o7777, file.uid()), (8 * MIB as u64, 0o600, 0));
        assert!(fs::metadata(at.join("other")).is_err() && fs::write(at.join("other"), "").is_err());
        assert!(fs::remove_file(at.join("disk0")).is_err());
        assert_eq!(nix::sys::statvfs::statvfs(&at).unwrap().blocks(), 8 * MIB as u64 / 4096);
    })
    .await;
    lab.disk.content.lock().unwrap().resize(9 * MIB, 0);
    let file = lab.file();
    blocking(move || assert_eq!(fs::metadata(file).unwrap().len(), 9 * MIB as u64, "it doesn't see the disk grow"))
        .await;
    lab.mount.as_mut().unwrap().unmount(PATIENCE).await.unwrap();
    assert!(!lab.is_mounted());
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_written_is_on_the_disk_also_unaligned() {
    let lab = Lab::new(4 * MIB).await;
    let (file, disk) = (lab.file(), lab.disk.clone());
    blocking(move || {
        let file = Arc::new(read_write(&file));
        let mut plain = noise(4 * MIB, 1);
        file.write_all_at(&plain, 0).unwrap();
        std::thread::scope(|scope| {
            for number in 0..8 {
                let file = file.clone();
                // Neighbours that share blocks.
                scope.spawn(move || {
                    for step in 0..50 {
                        let offset = (step * 8 + number) * 1000 + 7;
                        file.write_all_at(&noise(1000, offset as u64), offset as u64).unwrap();
                    }
                });
            }
        });
        for step in 0..400 {
            let offset = step * 1000 + 7;
            plain[offset..offset + 1000].copy_from_slice(&noise(1000, offset as u64));
        }
        assert!(disk.snapshot() == plain, "the disk differs");
        let mut back = vec![0; 5000];
        file.read_exact_at(&mut back, 12345).unwrap();
        assert!(back == plain[12345..17345]);
        assert_eq!(file.read_at(&mut back, 4 * MIB as u64 - 100).unwrap(), 100);
        assert_eq!(file.read_at(&mut back, 4 * MIB as u64).unwrap(), 0);
        assert_eq!(file.write_at(&[1; 200], 4 * MIB as u64 - 100).unwrap(), 100);
        let full = file.write_at(&[1; 200], 4 * MIB as u64).unwrap_err();
        assert_eq!(full.raw_os_error(), Some(libc::ENOSPC));
        assert_eq!(file.set_len(5 * MIB as u64).unwrap_err().raw_os_error(), Some(libc::EFBIG));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sync_and_a_close_are_flushes() {
    let lab = Lab::new(MIB).await;
    let (path, disk) = (lab.file(), lab.disk.clone());
    blocking(move || {
        let file = read_write(&path);
        let flushes = || disk.flushes.load(Ordering::SeqCst);
        file.write_all_at(&[1; 512], 0).unwrap();
        assert_eq!(flushes(), 0);
        file.sync_data().unwrap();
        assert_eq!(flushes(), 1);
        file.sync_all().unwrap();
        assert_eq!(flushes(), 2);
        drop(file);
        assert_eq!(flushes(), 3);
        *disk.refusal.lock().unwrap() = Some(IoRefusal::Medium);
        let file = read_write(&path);
        assert_eq!(file.sync_all().unwrap_err().raw_os_error(), Some(libc::EIO));
        assert_eq!(file.read_at(&mut [0; 512], 0).unwrap_err().raw_os_error(), Some(libc::EIO));
        assert_eq!(file.write_at(&[0; 512], 0).unwrap_err().raw_os_error(), Some(libc::EIO));
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hole_reads_as_zeroes() {
    let lab = Lab::new(MIB).await;
    lab.disk.content.lock().unwrap().copy_from_slice(&noise(MIB, 2));
    run("fallocate", &["--punch-hole", "--offset", "1000", "--length", "100000", &lab.text()]).await;
    run("fallocate", &["--zero-range", "--keep-size", "--offset", "200000", "--length", "10", &lab.text()]).await;
    let mut plain = noise(MIB, 2);
    plain[1000..101000].fill(0);
    plain[200000..200010].fill(0);
    assert!(lab.disk.snapshot() == plain);
    assert_eq!(lab.disk.zeroes.load(Ordering::SeqCst), 1);
    assert!(!outcome("fallocate", &["--length", "4096", &lab.text()]).await.status.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn dd_without_conv_notrunc_writes_as_to_a_device() {
    let lab = Lab::new(4 * MIB).await;
    let image = lab.directory.path().join("image");
    fs::write(&image, noise(MIB, 3)).unwrap();
    let (from, to) = (format!("if={}", image.display()), format!("of={}", lab.text()));
    run("dd", &[&from, &to, "bs=64k", "conv=fsync"]).await;
    assert!(lab.disk.snapshot()[..MIB] == noise(MIB, 3)[..]);
    run("dd", &[&from, &to, "bs=64k", "seek=16", "oflag=direct"]).await;
    assert!(lab.disk.snapshot()[MIB..2 * MIB] == noise(MIB, 3)[..]);
    assert_eq!(lab.disk.snapshot().len(), 4 * MIB);
    run("cmp", &["-n", "1048576", image.to_str().unwrap(), &lab.text()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_system_is_made_and_checked_on_it() {
    let lab = Lab::new(32 * MIB).await;
    // What was there before must not shine through where mkfs counts on zeroes.
    lab.disk.content.lock().unwrap().fill(0xa5);
    run("mkfs.ext4", &["-q", "-F", &lab.text()]).await;
    run("e2fsck", &["-f", "-n", &lab.text()]).await;
    let copy = lab.directory.path().join("copy");
    fs::write(&copy, lab.disk.snapshot()).unwrap();
    run("e2fsck", &["-f", "-n", copy.to_str().unwrap()]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_loop_device_on_it_carries_a_mounted_file_system() {
    let mut lab = Lab::new(64 * MIB).await;
    run("mkfs.ext4", &["-q", "-F", &lab.text()]).await;
    let root = lab.mount_by_loop().await;
    let content = noise(10 * MIB, 5);
    let (path, written) = (root.join("file"), content.clone());
    blocking(move || {
        fs::write(&path, &written).unwrap();
        File::open(&path).unwrap().sync_all().unwrap();
    })
    .await;
    assert!(lab.disk.flushes.load(Ordering::SeqCst) > 0, "a sync of the guest's file system is no flush");
    let busy = lab.mount.as_mut().unwrap().unmount(Duration::ZERO).await;
    assert!(matches!(busy, Err(MountError::Busy { .. })), "{busy:?}");
    lab.unmount_loop().await;
    run("e2fsck", &["-f", "-n", &lab.text()]).await;
    let root = lab.mount_by_loop().await;
    blocking(move || assert!(fs::read(root.join("file")).unwrap() == content)).await;
    lab.unmount_loop().await;
    lab.mount.as_mut().unwrap().unmount(PATIENCE).await.unwrap();
    assert!(!lab.is_mounted());
}

#[tokio::test(flavor = "multi_thread")]
async fn who_still_has_the_file_is_cut_off() {
    let mut lab = Lab::new(MIB).await;
    let path = lab.file();
    let file = blocking(move || {
        let file = read_write(&path);
        file.write_all_at(&[1; 512], 0).unwrap();
        file
    })
    .await;
    drop(lab.mount.take());
    assert!(!lab.is_mounted());
    let file = blocking(move || {
        assert!(file.write_at(&[2; 512], 0).is_err() && file.sync_all().is_err());
        file
    })
    .await;
    assert_eq!(lab.disk.snapshot()[..512], [1; 512]);
    // The mount point is free for the next one while the old file is still open.
    lab.mount = Some(Mount::new(lab.mountpoint(), "disk0", lab.disk.clone()).await.unwrap());
    let path = lab.file();
    blocking(move || read_write(&path).write_all_at(&[3; 512], 0).unwrap()).await;
    blocking(move || drop(file)).await;
    assert_eq!(lab.disk.snapshot()[..512], [3; 512]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_is_a_name_and_a_live_mount_is_left_alone() {
    let lab = Lab::new(MIB).await;
    for name in ["", ".", "..", "a/b", "/"] {
        let refused = Mount::new(lab.directory.path().join("root"), name, lab.disk.clone()).await;
        assert!(matches!(refused, Err(MountError::Name { .. })), "{name:?} {refused:?}");
    }
    let second = Mount::new(lab.mountpoint(), "disk0", lab.disk.clone()).await;
    assert!(matches!(second, Err(MountError::InUse { .. })), "{second:?}");
    let nowhere = Mount::new(lab.directory.path().join("no/where"), "disk0", lab.disk.clone()).await;
    assert!(matches!(nowhere, Err(MountError::Io { .. })), "{nowhere:?}");
    assert!(lab.is_mounted());
}

/// This test program, started again as a daemon that is killed, leaves a dead mount.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_killed_daemon_left_is_cleared_away() {
    const CHILD: &str = "CARDUME_TEST_MOUNT_AT";
    if let Some(at) = std::env::var_os(CHILD) {
        let mount = Mount::new(PathBuf::from(at), "disk0", MemoryDisk::new(MIB)).await.unwrap();
        println!("mounted");
        std::future::pending::<()>().await;
        drop(mount);
    }
    let mut lab = Lab::new(MIB).await;
    lab.mount.as_mut().unwrap().unmount(PATIENCE).await.unwrap();
    lab.mount = None;
    for _ in 0..2 {
        let mut daemon = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "what_a_killed_daemon_left_is_cleared_away", "--nocapture"])
            .env(CHILD, lab.mountpoint())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        let mut said = std::io::BufReader::new(daemon.stdout.take().unwrap());
        let ready = blocking(move || {
            let mut line = String::new();
            while std::io::BufRead::read_line(&mut said, &mut line).unwrap() > 0 {
                if line.contains("mounted") {
                    return true;
                }
            }
            false
        })
        .await;
        daemon.kill().unwrap();
        daemon.wait().unwrap();
        assert!(ready, "the daemon did not mount");
        let at = lab.mountpoint();
        let dead = blocking(move || fs::metadata(at).unwrap_err()).await;
        assert_eq!(dead.raw_os_error(), Some(libc::ENOTCONN));
        // The second daemon cleared away what the first one left.
    }
    lab.mount = Some(Mount::new(lab.mountpoint(), "disk0", lab.disk.clone()).await.unwrap());
    let path = lab.file();
    blocking(move || fs::read(path).unwrap()).await;
    lab.mount.as_mut().unwrap().unmount(PATIENCE).await.unwrap();
    assert!(!lab.is_mounted());
}

/// A replica whose data file is such a file: its medium hangs and fails when the test says so.
async fn failing_medium(lab: &Lab, slowest: Duration) -> Opened {
    let id = |n| Uuid::from_u128(n);
    let size = MIB as u64;
    let superblock =
        Superblock::newborn(DiskId(id(1)), ReplicaId(id(2)), size, Incarnation::first(id(3)), MirrorMode::Strict);
    let paths = Paths { data: lab.file(), meta: Path::new(env!("CARGO_TARGET_TMPDIR")).join(unique("meta", lab)) };
    let boot = BootPlace { directory: lab.directory.path().to_owned(), boot: id(4) };
    let limits = Limits { concurrency: 2, slowest, lock: Duration::ZERO };
    Backing::adopt(&paths, &superblock).await.unwrap();
    let opened = Backing::open(&paths, &boot, limits).await.unwrap();
    // The open file is all that is needed from now on.
    fs::remove_file(&paths.meta).unwrap();
    opened
}

fn unique(what: &str, lab: &Lab) -> String {
    format!("{what}-{}", lab.directory.path().file_name().unwrap().to_str().unwrap())
}

fn page(offset: u64) -> Range {
    Range::new(offset, 4096)
}

fn data() -> Content {
    Content::Data(vec![7; 4096].into())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_write_or_sync_fails_the_replica_for_good() {
    for sync in [false, true] {
        let lab = Lab::new(MIB).await;
        let Opened { backing, .. } = failing_medium(&lab, Duration::from_secs(30)).await;
        backing.write(page(0), data(), true).await.unwrap();
        *lab.disk.refusal.lock().unwrap() = Some(IoRefusal::Medium);
        let read = backing.read(page(0)).await;
        assert!(matches!(read, Err(BackingError::Io { .. })), "{read:?}");
        assert!(backing.failure().borrow().is_none(), "a read error is not the medium's end");
        let failed = if sync { backing.sync().await } else { backing.write(page(4096), data(), false).await };
        assert!(matches!(failed, Err(BackingError::Io { .. })), "{failed:?}");
        assert!(backing.failure().borrow().is_some());
        // The medium is well again, and is not asked.
        *lab.disk.refusal.lock().unwrap() = None;
        let flushes = lab.disk.flushes.load(Ordering::SeqCst);
        for result in
            [backing.sync().await, backing.write(page(0), data(), false).await, backing.read(page(0)).await.map(drop)]
        {
            assert!(matches!(result, Err(BackingError::Failed { .. })), "{result:?}");
        }
        assert_eq!(lab.disk.flushes.load(Ordering::SeqCst), flushes);
        backing.drained().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_write_fails_the_replica_at_once_but_ends_only_at_its_end() {
    let lab = Lab::new(MIB).await;
    let Opened { backing, .. } = failing_medium(&lab, Duration::from_secs(1)).await;
    lab.disk.hold(true);
    let writes: Vec<_> = (0..3)
        .map(|number| {
            let backing = backing.clone();
            tokio::spawn(async move { backing.write(page(number * 4096), data(), false).await })
        })
        .collect();
    lab.disk.until_waiting(2).await;
    let failure = backing.failure().wait_for(Option::is_some).await.unwrap().clone().unwrap();
    assert!(failure.to_string().contains("longer than 1 s"), "{failure}");
    assert_eq!(*lab.disk.waiting.borrow(), 2);
    assert!(writes.iter().filter(|write| !write.is_finished()).count() >= 2, "one was reported before its end");
    let drained = backing.drained();
    tokio::pin!(drained);
    tokio::select! {
        biased;
        () = &mut drained => panic!("drained while writes run"),
        () = tokio::task::yield_now() => {}
    }
    lab.disk.hold(false);
    drained.await;
    for write in writes {
        let result = write.await.unwrap();
        assert!(matches!(result, Err(BackingError::Failed { .. })), "{result:?}");
    }
    let written = lab.disk.snapshot();
    assert_eq!(written.chunks(4096).filter(|page| page[0] == 7).count(), 2, "the third was never begun");
}
