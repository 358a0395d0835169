//! Carries the log's messages between members, on a lane of their own.

use std::time::Duration;

use async_trait::async_trait;
use consensus::{RaftReply, RaftRequest, Transport, TransportError};
use model::NodeId;
use rpc::{CallError, Client, Lane};

/// Path of the log's messages on the port between nodes.
pub const RAFT_PATH: &str = "/raft";

/// Sends through the mutually authenticated connections between nodes.
pub struct Wire(pub Client);

#[async_trait]
impl Transport for Wire {
    async fn send(
        &self,
        to: NodeId,
        address: &str,
        request: RaftRequest,
        within: Duration,
    ) -> Result<RaftReply, TransportError> {
        let address = address
            .parse()
            .map_err(|error| TransportError::Unreachable(format!("'{address}' is no address: {error}")))?;
        // Heartbeats don't wait behind a snapshot of the whole state.
        let lane = if request.is_bulk() { Lane::Bulk } else { Lane::Raft };
        self.0.call_json(to.0, address, lane, RAFT_PATH, &request, within).await.map_err(|error| match error {
            CallError::Refused { fault, .. } => TransportError::Refused(fault.message),
            CallError::Deadline { .. } => TransportError::Timeout,
            other => TransportError::Unreachable(crate::chain(&other)),
        })
    }
}
