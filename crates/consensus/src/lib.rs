//! Consensus: a replicated log of [`model::Proposal`]s behind the trait [`Log`].

mod log;
mod transport;
mod wire;

pub use log::{
    Committed, Log, MembershipError, NodeInfo, ProposeError, ReadError, Status, TransferError, View,
};
pub use transport::{Transport, TransportError};
pub use wire::{RaftReply, RaftRequest};
