//! The exports of a node's disks: one for each run.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use model::{DiskId, RunId};

use super::KeeperError;
use crate::device::Device;
use crate::nbd::{ExportError, ExportOptions, ExportTable};

/// What a hypervisor needs to use a disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Export {
    /// A unix socket on which an NBD server listens.
    pub socket: PathBuf,
    /// Name of the export.
    pub name: String,
}

/// The exports, and which runs get none any more. An export's name has its run, so that what an old run's hypervisor
/// does never reaches a disk (W1).
pub(super) struct Exports {
    pub table: ExportTable,
    socket: PathBuf,
    /// Per disk the last run that ended. Numbers of runs grow.
    ended: Mutex<BTreeMap<DiskId, RunId>>,
}

impl Exports {
    pub fn new(socket: PathBuf) -> Self {
        Self { table: ExportTable::new(), socket, ended: Mutex::default() }
    }

    pub fn export(&self, disk: DiskId, run: RunId) -> Export {
        Export { socket: self.socket.clone(), name: name(disk, run) }
    }

    /// Offers a disk to a run, unless the run is over.
    pub fn offer(&self, disk: DiskId, run: RunId, device: Arc<dyn Device>) -> Result<(), KeeperError> {
        let ended = self.ended();
        if ended.get(&disk).is_some_and(|last| run <= *last) {
            return Ok(());
        }
        match self.table.insert(name(disk, run), device, ExportOptions::default()) {
            Ok(()) | Err(ExportError::Exists { .. }) => Ok(()),
            Err(source) => Err(KeeperError::Export { disk, source }),
        }
    }

    /// A run is over: its hypervisor is connected no more, and never again. `refuse` is to refuse what it waits for.
    pub async fn end(&self, disk: DiskId, run: RunId, refuse: impl FnOnce()) {
        let removed = {
            let mut ended = self.ended();
            let last = ended.entry(disk).or_insert(run);
            *last = run.max(*last);
            self.table.remove(&name(disk, run))
        };
        refuse();
        if let Some(removed) = removed {
            removed.end().await;
        }
    }

    /// The disk's replica is gone: hypervisors are disconnected, and connect again when it is back.
    pub fn withdraw(&self, disk: DiskId) {
        let prefix = format!("{disk}-");
        for name in self.table.names().iter().filter(|name| name.starts_with(&prefix)) {
            drop(self.table.remove(name));
        }
    }

    fn ended(&self) -> MutexGuard<'_, BTreeMap<DiskId, RunId>> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn name(disk: DiskId, run: RunId) -> String {
    format!("{disk}-{run}")
}
