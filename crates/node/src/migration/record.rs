//! What a later daemon has to know of a guest that an earlier one was sending: how it was before.

use std::io;
use std::path::PathBuf;

use model::{RunId, Uuid};
use serde::{Deserialize, Serialize};

/// Of a run that was sent, or was to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// By which migration.
    pub migration: Uuid,
    /// Whether the guest was paused before anything was done with it.
    pub paused: bool,
}

/// A folder of them, one for each run; on a tmpfs, because neither outlives the kernel.
#[derive(Clone, Debug)]
pub struct Records(pub PathBuf);

impl Records {
    fn path(&self, run: RunId) -> PathBuf {
        self.0.join(format!("{run}.json"))
    }

    /// The record of a run, if it is of this migration.
    pub fn read(&self, run: RunId, migration: Uuid) -> Option<Record> {
        let record: Record = serde_json::from_slice(&std::fs::read(self.path(run)).ok()?).ok()?;
        (record.migration == migration).then_some(record)
    }

    /// Makes a run's record, whole or not at all.
    pub fn write(&self, run: RunId, record: Record) -> io::Result<()> {
        std::fs::create_dir_all(&self.0)?;
        let new = self.0.join(format!("{run}.new"));
        std::fs::write(&new, serde_json::to_vec(&record)?)?;
        std::fs::rename(new, self.path(run))
    }

    /// Forgets a run.
    pub fn forget(&self, run: RunId) {
        // Mostly there is none; one that stays goes with the next one that is sent.
        let _ = std::fs::remove_file(self.path(run));
    }

    /// Forgets runs that are over.
    pub fn keep(&self, live: &[RunId]) {
        for entry in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if !live.iter().any(|run| self.path(*run) == entry.path()) {
                // It is looked at again with the next one.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_of_one_migration_and_goes_with_its_run() {
        let folder = tempfile::tempdir().unwrap();
        let records = Records(folder.path().join("migrations"));
        let (first, second) = (Uuid::from_u128(1), Uuid::from_u128(2));
        assert_eq!(records.read(RunId(7), first), None);
        let record = Record { migration: first, paused: true };
        records.write(RunId(7), record).unwrap();
        records.write(RunId(8), record).unwrap();
        assert_eq!(records.read(RunId(7), first), Some(record));
        assert_eq!(records.read(RunId(7), second), None);
        records.keep(&[RunId(8)]);
        assert_eq!(records.read(RunId(7), first), None);
        assert_eq!(records.read(RunId(8), first), Some(record));
        records.forget(RunId(8));
        assert_eq!(records.read(RunId(8), first), None);
    }
}
