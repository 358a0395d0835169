//! The guard: a small process beside the daemon that asks for the node's lease and stops guests when it runs out
//! (protocol, section 8), and the daemon's connection to it.

mod link;

pub use link::{GuardError, GuardLink};
