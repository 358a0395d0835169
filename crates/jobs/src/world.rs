//! What running a job needs of the outside: the log, the nodes, the clock.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use model::{Applied, Command, JobId, NodeId, Rejection, State, Timestamp, Uuid};

use crate::agent::{Call, Reply};

/// Why a proposal has no result.
#[derive(Clone, Debug)]
pub enum ProposeError {
    /// It was refused; nothing changed.
    Rejected(Rejection),
    /// This node is not the master in office any more, or the outcome is unknown. The job stops here without a word; the
    /// next master finds out from the record.
    Interrupted,
}

/// Why a call to a node has no answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CallError {
    /// The node did it, or tried, and reports this failure.
    Failed(opcodes::Failure),
    /// The node can't be reached, or the answer was lost: it is not known whether the call was carried out.
    Unreachable(String),
    /// The node knows of a newer master: this one has been replaced.
    Deposed,
}

/// The outside.
#[async_trait]
pub trait World: Send + Sync + 'static {
    /// The newest applied state.
    fn state(&self) -> Arc<State>;

    /// Waits until the state is another one than `seen`.
    async fn changed(&self, seen: &Arc<State>) -> Arc<State>;

    /// Commits a batch in the name of the office for which the runner was made.
    ///
    /// # Errors
    /// See [`ProposeError`].
    async fn propose(&self, commands: Vec<Command>) -> Result<Vec<Applied>, ProposeError>;

    /// Asks a node's agent, in the name of a job.
    ///
    /// # Errors
    /// See [`CallError`].
    async fn call(&self, node: NodeId, call: Call, job: JobId, deadline: Duration) -> Result<Reply, CallError>;

    /// Makes a machine that has joined a member of the replicated log; returns when it has the log.
    ///
    /// # Errors
    /// What went wrong, in a sentence.
    async fn enrol(&self, node: NodeId) -> Result<(), String>;

    /// Takes a node that was removed from the state out of the replicated log as well, then tells it that it has to leave.
    /// Returns why it could not be told, if it could not.
    ///
    /// # Errors
    /// What went wrong with the log, in a sentence.
    async fn expel(&self, node: NodeId, address: std::net::Ipv4Addr) -> Result<Option<String>, String>;

    /// Looks a name up on this node.
    ///
    /// # Errors
    /// The resolver's text.
    async fn resolve(&self, name: &str) -> Result<std::net::Ipv4Addr, String>;

    /// Index in the log of the newest applied entry.
    fn applied_index(&self) -> u64;

    /// What an operator has to decide about nodes that went apart from this one by forced recovery.
    fn conflicts(&self) -> Vec<String> {
        Vec::new()
    }

    /// What is wrong with the certificates of the cluster and of this node.
    fn check_certificates(&self) -> Vec<String>;

    /// Whether something answers on that TCP port.
    async fn answers(&self, address: std::net::Ipv4Addr, port: u16) -> bool;

    /// Makes a one-time token for joining; returns the word to type and the SHA-256 of its secret.
    ///
    /// # Errors
    /// When the system has no randomness to give.
    fn new_token(&self) -> Result<(String, String), String>;

    /// The time.
    fn now(&self) -> Timestamp;

    /// Waits.
    async fn sleep(&self, duration: Duration);

    /// A fresh identity.
    fn new_uuid(&self) -> Uuid;
}
