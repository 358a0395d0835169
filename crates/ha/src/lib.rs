//! High availability: who may run what, until when, and who takes over. Decisions only: no clock, no thread, no socket.
//!
//! The rules are the protocol's, sections 7 to 9 (`L1` … `L10`, `T1` … `T6`). Every machine here has the same shape: an
//! event goes in together with the time, effects come out, and somebody else carries them out. Times are [`Now`]: since
//! the boot of the node that judges, by the clock that goes on while the machine sleeps (`CLOCK_BOOTTIME`).

pub mod bound;
pub mod grants;
pub mod guard;
pub mod message;
mod mutant;
pub mod restart;
pub mod takeover;
#[cfg(test)]
mod testing;
pub mod times;
pub mod voter;

/// Time since the boot of this node, sleep included.
pub type Now = std::time::Duration;

#[cfg(feature = "mutants")]
pub use mutant::Mutant;
pub use times::Times;
