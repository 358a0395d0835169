//! Where a node's replicas lie, and room for them.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use model::{DiskId, Incarnation, MirrorMode, ReplicaId, Uuid};
use nix::sys::statvfs::statvfs;
use tokio::task::spawn_blocking;

use super::KeeperError;
use crate::backing::{Backing, BackingError, Paths};
use crate::engine::Superblock;

/// What a new replica is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewReplica {
    /// Its disk.
    pub disk: DiskId,
    /// Its identity.
    pub replica: ReplicaId,
    /// Bytes of the disk.
    pub size: u64,
    /// Incarnation of the cluster.
    pub incarnation: Incarnation,
    /// The disk's mode.
    pub mode: MirrorMode,
    /// It is made together with all others of its disk, which are all empty and so equal. Else it has to be filled.
    pub born_in_sync: bool,
}

/// The folder of a node's replicas.
#[derive(Clone, Debug)]
pub(super) struct Folder(pub PathBuf);

impl Folder {
    /// The files of a replica.
    pub fn paths(&self, disk: DiskId, replica: ReplicaId) -> Paths {
        let folder = self.disk(disk);
        Paths { data: folder.join(format!("{replica}.data")), meta: folder.join(format!("{replica}.meta")) }
    }

    fn disk(&self, disk: DiskId) -> PathBuf {
        self.0.join(disk.to_string())
    }

    /// Whether a replica is there. Its meta file is made last and removed first.
    pub fn has(&self, disk: DiskId, replica: ReplicaId) -> bool {
        self.paths(disk, replica).meta.exists()
    }

    /// Makes a replica's files, if they are not there: all of them or none.
    pub async fn create(&self, new: NewReplica) -> Result<(), KeeperError> {
        let NewReplica { disk, replica, size, incarnation, mode, born_in_sync } = new;
        if self.has(disk, replica) {
            return Ok(());
        }
        self.has_room(size).await?;
        make_folder(self.disk(disk)).await?;
        let make = if born_in_sync { Superblock::newborn } else { Superblock::added };
        let superblock = make(disk, replica, size, incarnation, mode);
        let paths = self.paths(disk, replica);
        let failed = |source| KeeperError::Files { attempt: "make", disk, replica, source: Box::new(source) };
        // Data without a meta file was left by an attempt that was interrupted; nobody was told that it is there.
        Backing::remove(&paths, false).await.map_err(failed)?;
        Backing::create(&paths, &superblock).await.map_err(failed)
    }

    /// Removes a replica's files, if they are there.
    pub async fn remove(&self, disk: DiskId, replica: ReplicaId) -> Result<(), BackingError> {
        Backing::remove(&self.paths(disk, replica), false).await?;
        // Other replicas of the disk may be there; then the folder stays, as it should.
        let folder = self.disk(disk);
        let _ = spawn_blocking(move || fs::remove_dir(folder)).await;
        Ok(())
    }

    /// Checks that there is space for so many bytes more. Files are sparse and take it only as guests write.
    pub async fn has_room(&self, bytes: u64) -> Result<(), KeeperError> {
        let folder = self.0.clone();
        make_folder(folder.clone()).await?;
        let failed =
            |source| KeeperError::Folder { attempt: "ask for the free space of", path: folder.clone(), source };
        let path = folder.clone();
        let stat = joined(spawn_blocking(move || statvfs(&path).map_err(io::Error::from)).await).map_err(failed)?;
        let available = stat.blocks_available().saturating_mul(stat.fragment_size());
        if bytes > available {
            return Err(KeeperError::NoSpace {
                path: self.0.clone(),
                needed_mib: bytes.div_ceil(1 << 20),
                available_mib: available >> 20,
            });
        }
        Ok(())
    }
}

/// Makes a folder, durably.
async fn make_folder(path: PathBuf) -> Result<(), KeeperError> {
    let folder = path.clone();
    let make = move || {
        fs::DirBuilder::new().recursive(true).mode(0o750).create(&folder)?;
        folder.parent().map_or(Ok(()), |parent| fs::File::open(parent)?.sync_all())
    };
    joined(spawn_blocking(make).await).map_err(|source| KeeperError::Folder { attempt: "make", path, source })
}

/// Makes a folder for what lives as long as the kernel.
pub(super) fn make_run_folder(path: &Path) -> Result<(), KeeperError> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o755).create(path);
    made.map_err(|source| KeeperError::Folder { attempt: "make", path: path.to_owned(), source })
}

/// The identity of a boot by its name, which may have any form.
pub(super) fn boot_uuid(name: &str) -> Uuid {
    let digest = ring::digest::digest(&ring::digest::SHA256, name.as_bytes());
    let mut half = [0; 16];
    half.copy_from_slice(&digest.as_ref()[..16]);
    Uuid::from_bytes(half)
}

fn joined<T>(result: Result<io::Result<T>, tokio::task::JoinError>) -> io::Result<T> {
    result.unwrap_or_else(|error| Err(io::Error::other(error)))
}
