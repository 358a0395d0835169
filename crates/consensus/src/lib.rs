//! Consensus: a replicated log of [`model::Proposal`]s behind the trait [`Log`].
//!
//! One group of voters, chosen by [`model::voters`], holds the [`model::State`]. Who leads proposes; what a majority has
//! on disk is applied, in one order, on every member. Raft itself is openraft's; nothing of it shows outside this crate,
//! and nothing here knows sockets: the node gives a [`Transport`] and hands in what it receives ([`Log::handle`]).
//!
//! The rules: a leader may act only in office ([`model::State::office`]), never merely because it leads. Every message
//! carries the incarnation of the cluster, and members of different incarnations refuse each other. A proposal that was
//! not answered is unknown, never absent.
//!
//! [`Consensus`] is generic over its runtime: tokio in production ([`start`]), a simulated one under test, with the same
//! code in between.

mod config;
mod consensus;
mod handler;
mod log;
mod machine;
mod network;
mod recover;
mod store;
mod transport;
mod types;
mod wire;

use std::sync::Arc;

pub use config::Config;
pub use consensus::{Consensus, StartError};
pub use log::{Committed, Log, MembershipError, NodeInfo, ProposeError, ReadError, Status, TransferError, View};
pub use recover::{Held, RecoverError, Recovered, Surplus, discard, held, recover};
pub use store::{Executor, FILE_NAME, Store, StoreError, Task};
pub use transport::{Transport, TransportError};
pub use wire::{RaftReply, RaftRequest};

/// Starts this member on tokio. See [`Consensus::start`].
///
/// # Errors
/// [`StartError`].
pub async fn start(store: Store, config: Config, transport: Arc<dyn Transport>) -> Result<Arc<dyn Log>, StartError> {
    Ok(Consensus::<openraft_rt_tokio::TokioRuntime>::start(store, config, transport).await?)
}
