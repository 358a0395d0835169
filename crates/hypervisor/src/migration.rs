//! Live migration in words that all hypervisors share.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::state::LiveState;

/// How a run is migrated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MigrateOptions {
    /// The most bytes a second that are sent; `None` is as fast as it goes.
    pub max_bandwidth: Option<u64>,
    /// The guest is stopped for the switch as soon as the rest of its memory can be sent in this time. In whole
    /// milliseconds. The shorter the better for the guest's users; but a guest that changes much all the time would never
    /// be done, so it is doubled each second, up to sixteen times as long.
    pub downtime_limit: Duration,
    /// A migration that isn't done after this time is cancelled. A guest that changes its memory faster than it is
    /// sent is never done.
    pub timeout: Duration,
}

/// How far the sending of a guest's memory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MigrationProgress {
    /// Bytes sent.
    pub transferred: u64,
    /// Bytes of memory still to be sent, as far as the guest has not changed more since.
    pub remaining: u64,
    /// Bytes of memory that the guest has. Less than that is sent if the guest doesn't use it all, more if it changes
    /// what was sent.
    pub total: u64,
    /// Bytes of memory that the guest changes in a second, by the last measurement.
    pub dirty_rate: u64,
    /// Whether the guest was stopped for the switch: it does nothing here any more, unless the migration fails. Told at
    /// once. A guest that was paused is not stopped again.
    pub switching: bool,
}

/// A migration that is complete on the source's side: all is at the destination, and the source rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Migrated {
    /// Milliseconds that all of it took.
    pub total_ms: u64,
    /// Milliseconds of it in which the guest stood still; the time until it is resumed comes on top.
    pub downtime_ms: u64,
    /// Milliseconds of it before the first memory was sent.
    pub setup_ms: u64,
    /// Bytes of memory sent.
    pub bytes: u64,
    /// What the guest did when it was stopped for the switch: whether it is to be resumed at the destination.
    pub guest: LiveState,
}

/// How far a migration was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MigrationPhase {
    /// Before any memory moved.
    Setup,
    /// The source sent memory, and its guest ran on meanwhile.
    Transfer,
    /// The source's guest stood still, and the rest was sent.
    Switchover,
    /// The destination waited for memory or received it.
    Receive,
}

impl fmt::Display for MigrationPhase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            MigrationPhase::Setup => "setup",
            MigrationPhase::Transfer => "transfer",
            MigrationPhase::Switchover => "switchover",
            MigrationPhase::Receive => "receive",
        })
    }
}
