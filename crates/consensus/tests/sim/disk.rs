//! A disk that may lose, at a crash, any part of what was not synced.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use openraft_rt::AsyncRuntime as _;
use openraft_rt_sim::SimRuntime;
use rand::RngExt as _;
use redb::StorageBackend;

/// Atomic unit of a write.
const SECTOR: usize = 512;

#[derive(Debug, Default)]
struct Medium {
    /// What survives a crash for certain.
    durable: Vec<u8>,
    /// What is read while the power is on.
    cached: Vec<u8>,
    /// Sectors written since the last sync.
    dirty: std::collections::BTreeSet<usize>,
    /// Counts crashes; who opened it before the last one can't use it any more.
    life: u64,
}

/// A disk; outlives its node's crashes.
#[derive(Clone, Debug, Default)]
pub struct Disk(Arc<Mutex<Medium>>);

/// A disk, opened.
#[derive(Debug)]
pub struct Handle {
    disk: Disk,
    life: u64,
}

impl Disk {
    fn medium(&self) -> MutexGuard<'_, Medium> {
        self.0.lock().unwrap()
    }

    pub fn open(&self) -> Handle {
        Handle { disk: self.clone(), life: self.medium().life }
    }

    /// The power fails: each sector that was not synced is there or not.
    pub fn crash(&self) {
        let mut medium = self.medium();
        let medium = &mut *medium;
        let mut rng = SimRuntime::thread_rng();
        medium.durable.resize(medium.cached.len(), 0);
        for sector in std::mem::take(&mut medium.dirty) {
            let range = sector * SECTOR..((sector + 1) * SECTOR).min(medium.cached.len());
            if !range.is_empty() && rng.random_bool(0.5) {
                medium.durable[range.clone()].copy_from_slice(&medium.cached[range]);
            }
        }
        medium.cached.clone_from(&medium.durable);
        medium.life += 1;
    }
}

impl Handle {
    fn medium(&self) -> io::Result<MutexGuard<'_, Medium>> {
        let medium = self.disk.medium();
        if medium.life != self.life {
            return Err(io::Error::other("the power has failed"));
        }
        Ok(medium)
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        Ok(self.medium()?.cached.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let medium = self.medium()?;
        let from = offset as usize;
        let data = medium.cached.get(from..from + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(data);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.medium()?.cached.resize(len as usize, 0);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut medium = self.medium()?;
        let medium = &mut *medium;
        medium.durable.resize(medium.cached.len(), 0);
        for sector in std::mem::take(&mut medium.dirty) {
            let range = sector * SECTOR..((sector + 1) * SECTOR).min(medium.cached.len());
            if !range.is_empty() {
                medium.durable[range.clone()].copy_from_slice(&medium.cached[range]);
            }
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut medium = self.medium()?;
        let from = offset as usize;
        medium.cached.get_mut(from..from + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?.copy_from_slice(data);
        medium.dirty.extend(from / SECTOR..(from + data.len()).div_ceil(SECTOR));
        Ok(())
    }
}
