//! How far a replica has come with what it was asked for: its notices, kept for whoever waits for them.

use model::{Epoch, RunId, Uuid};

use crate::engine::Notice;

/// What a replica has told, as far as it still holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// It admits this run, in this epoch.
    pub serving: Option<(Epoch, Option<RunId>)>,
    /// The epoch in which it served when another one began.
    pub deposed: Option<Epoch>,
    /// The migration for which its run is closed, with the epoch and the number of the last write.
    pub quiesced: Option<(Uuid, Epoch, u64)>,
    /// It has come to the orderly end that was asked for.
    pub released: bool,
    /// It may be closed.
    pub stopped: bool,
    /// Its guest is suspended, because nothing can be acknowledged.
    pub suspended: bool,
    /// Its medium failed.
    pub medium_failed: bool,
    /// Why the replica is not there at all: its files can't be opened, or a fault of the program ended it.
    pub failed: Option<String>,
}

impl Progress {
    /// Notes what the replica has told.
    pub(super) fn note(&mut self, notice: &Notice) {
        match notice {
            Notice::Serving { epoch, run } => {
                *self = Self { medium_failed: self.medium_failed, ..Self::default() };
                self.serving = Some((*epoch, *run));
            }
            Notice::Deposed { epoch } => {
                *self = Self { medium_failed: self.medium_failed, ..Self::default() };
                self.deposed = Some(*epoch);
            }
            Notice::Quiesced { migration, epoch, seq } => {
                self.serving = None;
                self.quiesced = Some((*migration, *epoch, *seq));
            }
            Notice::Released => {
                self.serving = None;
                self.released = true;
            }
            Notice::Stopped => self.stopped = true,
            Notice::Suspended => self.suspended = true,
            Notice::MediumFailed => self.medium_failed = true,
            // Said of another replica.
            Notice::Refused { .. } => {}
        }
    }
}
