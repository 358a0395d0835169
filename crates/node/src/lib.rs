//! The daemon.
//!
//! On every node: its part in the replicated log, and the [agent](agent) that does what the master asks. On the node that
//! leads: the [office], which runs jobs, holds the cluster's address and chooses the voters. The API reaches all of it
//! through one [`Handle`](jobs::Handle), which [`start`] returns.

mod address;
mod agent;
mod archive;
mod authority;
mod clock;
mod config;
mod daemon;
mod disks;
mod explain;
mod failover;
pub mod fault;
mod founding;
pub mod guard;
mod home;
mod joining;
mod leases;
mod lives;
mod member;
mod migration;
mod office;
mod recovery;
mod requests;
mod tables;
mod transport;
mod trees;

pub use config::{Config, OS_SEARCH_PATH, QEMU_USER, boot_id};
pub use daemon::{Daemon, StartError, start};

/// Version of this daemon.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// An error and what caused it, in one line: for messages that cross a boundary where sources are lost.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
