//! The guard: a small process beside the daemon that asks for the node's lease and stops guests when it runs out
//! (protocol, section 8), and the daemon's connection to it.
//!
//! The guard decides nothing by itself: that is [`ha::guard::Guard`], and here is what carries it out. It has no part in
//! disks, its memory is locked, and one task does everything, so that whatever hangs on the node the guests that it watches
//! are stopped in time.

mod attend;
mod guests;
mod link;
mod lookout;
mod process;
mod realtime;
mod renewals;
mod server;
mod supervisor;
mod timer;
mod wire;

#[cfg(test)]
mod tests;

pub(crate) use attend::attend;
pub use ha::Times;
pub use link::{GuardError, GuardLink};
pub use lookout::lookout;
pub use process::{GuardConfig, GuardStartError, run};
pub use realtime::favour;
pub(crate) use renewals::LEASE_PATH;
pub(crate) use wire::ClusterAddress;

/// The guard's socket in the run directory.
const SOCKET: &str = "guard.sock";
/// What the guard watches, in the run directory: for the guard that comes after it.
const RUNS: &str = "guard.runs";
/// Locked by the guard that watches, in the run directory.
const LOCK: &str = "guard.lock";
