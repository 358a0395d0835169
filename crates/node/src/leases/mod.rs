//! Leases on a node of the cluster (protocol, section 8): as a voter, and as the master in office.
//!
//! The decisions are in [`ha`]; here they meet the log, the clock and the other nodes. Messages about leases have a
//! [lane](rpc::Lane::Lease) and tasks of their own: whatever the daemon is busy with, they wait for nobody.

mod desk;
mod length;
mod voting;

pub use desk::{Desk, Inbox, Sentence, runs_of};
pub use voting::Voting;

/// Path of the master's question whether it is deposed: [`ha::message::Confirm`], answered by a bool.
pub const CONFIRM_PATH: &str = "/confirm";
/// Path of the question about older masters: [`ha::message::Fence`], answered by [`ha::message::Fenced`], or none.
pub const FENCE_PATH: &str = "/fence";
