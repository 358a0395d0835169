//! What can be asked of a cluster, as data: opcodes, calls of the API, queries, failures; and Ganeti's words and output
//! formats for them.
//!
//! The command line and the daemon share these types. Nothing here does I/O.

pub mod disks;
pub mod failure;
pub mod fields;
pub mod format;
pub mod op;
pub mod wire;

pub use failure::{ErrorCode, Failure, FailureKind};
pub use op::Opcode;
