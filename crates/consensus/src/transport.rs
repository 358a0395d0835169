//! How messages reach the other members. The node gives the transport; consensus knows no sockets.

use std::time::Duration;

use async_trait::async_trait;
use model::NodeId;

use crate::wire::{RaftReply, RaftRequest};

/// Why a message was not answered. It may have been received all the same.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransportError {
    /// No connection: the other is off, cut off, or its daemon does not run.
    #[error("can't reach it: {0}")]
    Unreachable(String),
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// It answered that it won't: wrong certificate, not a member, not ready.
    #[error("it refused: {0}")]
    Refused(String),
}

/// Carries requests to other members and brings back their replies.
#[async_trait]
pub trait Transport: Send + Sync + 'static {
    /// Sends `request` to node `to`, reached at `address` (its [`crate::NodeInfo::address`]), and waits at most `within`
    /// for the reply. On the other side [`crate::Log::handle`] makes the reply.
    ///
    /// Requests to one member may overtake each other; consensus copes. They must not wait behind bulk traffic.
    ///
    /// # Errors
    /// Whenever there is no reply.
    async fn send(
        &self,
        to: NodeId,
        address: &str,
        request: RaftRequest,
        within: Duration,
    ) -> Result<RaftReply, TransportError>;
}
