//! What can go wrong when the replicas of a node are asked for something.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use model::{DiskId, ReplicaId, Uuid};

use crate::backing::BackingError;
use crate::nbd::{BindError, ExportError};

/// Why a node's replicas did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeeperError {
    /// The replication port is not free, or not ours.
    #[error("cannot listen on {address} for replication")]
    Listen {
        /// Address and port.
        address: SocketAddr,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// This node's certificate can't be used.
    #[error("cannot set up replication with this node's certificate")]
    Tls(#[from] rpc::tls::TlsError),
    /// The socket for the guests can't be made.
    #[error("cannot export disks to guests")]
    Socket(#[from] BindError),
    /// A disk can't be exported.
    #[error("cannot export disk {disk}")]
    Export {
        /// The disk.
        disk: DiskId,
        /// Cause.
        #[source]
        source: ExportError,
    },
    /// A folder can't be made, read or removed.
    #[error("cannot {attempt} {path}")]
    Folder {
        /// What was attempted.
        attempt: &'static str,
        /// On what.
        path: PathBuf,
        /// Cause.
        #[source]
        source: io::Error,
    },
    /// The files of a replica can't be made, opened or removed.
    #[error("cannot {attempt} replica {replica} of disk {disk}")]
    Files {
        /// What was attempted.
        attempt: &'static str,
        /// The disk.
        disk: DiskId,
        /// The replica.
        replica: ReplicaId,
        /// Cause.
        #[source]
        source: Box<BackingError>,
    },
    /// There is not enough space.
    #[error("{needed_mib} MiB are needed in {path}, where {available_mib} MiB are free")]
    NoSpace {
        /// The folder of the replicas.
        path: PathBuf,
        /// MiB that are needed.
        needed_mib: u64,
        /// MiB that there are.
        available_mib: u64,
    },
    /// This node has no replica of the disk that is open.
    #[error("this node has no replica of disk {disk} that can be used{}", because(.why))]
    NotOpen {
        /// The disk.
        disk: DiskId,
        /// Why it can't be used, if there is one.
        why: Option<String>,
    },
    /// The disk is in use.
    #[error("disk {disk} is being served; stop its instance first")]
    Served {
        /// The disk.
        disk: DiskId,
    },
    /// It did not happen in time; it may still.
    #[error("disk {disk} was not {what} within {} s{}", .within.as_secs_f32(), because(.why))]
    Late {
        /// The disk.
        disk: DiskId,
        /// What it should have become.
        what: &'static str,
        /// The time that it had.
        within: Duration,
        /// Why, if that is known.
        why: Option<String>,
    },
    /// The log can't be reached, so it is not known what has been decided.
    #[error("the replicated log can't be reached: it is not known whether migration {migration} was decided")]
    NoLog {
        /// The migration.
        migration: Uuid,
    },
    /// A migration goes on, or has moved the disk: its source must not run on.
    #[error("migration {migration} of disk {disk} was not cancelled: its guest must not go on here")]
    NotCancelled {
        /// The disk.
        disk: DiskId,
        /// The migration.
        migration: Uuid,
    },
    /// There is no such migration, or not any more: its source runs on.
    #[error("migration {migration} of disk {disk} is not under way: its guest must not be held up for it")]
    NotPrepared {
        /// The disk.
        disk: DiskId,
        /// The migration.
        migration: Uuid,
    },
}

fn because(why: &Option<String>) -> String {
    why.as_ref().map_or_else(String::new, |why| format!(": {why}"))
}
