//! Forced recovery: one node goes on alone (`gnt-cluster master-failover --no-voting`), and who comes back from before that
//! (protocol, section 11).
//!
//! Members tell one another which incarnation of the cluster they belong to ([`greeting`]). The node that goes on alone
//! looks first whether any other is there, and what may be lost ([`look`]). The master [welcomes](welcome) members that
//! are in no log of its incarnation; one that finds itself in an older incarnation than the others gives up its own end
//! of the log, or, if it may have acted in it, does nothing any more and says so ([`rejoin`]).

pub mod greeting;
pub mod look;
pub mod rejoin;
pub mod welcome;
