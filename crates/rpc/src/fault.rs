//! What a peer answers instead of a result, and what a caller knows when there is none.

use std::net::SocketAddr;
use std::time::Duration;

use hyper::StatusCode;
use serde::{Deserialize, Serialize};

use crate::tls::{TlsError, WrongNode};

/// What sort of refusal a [`Fault`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum FaultKind {
    /// The request can't be understood.
    BadRequest,
    /// The caller may not ask this, or is no member of the cluster any more.
    Forbidden,
    /// There is no such path or object.
    NotFound,
    /// The request contradicts the present state.
    Conflict,
    /// The request carries an incarnation or term that has been overtaken.
    Stale,
    /// The body is longer than [`MAX_BODY`](crate::MAX_BODY).
    TooLarge,
    /// Not now; another time or another node may answer.
    Unavailable,
    /// The peer failed. Also what an unknown kind from a newer version is taken for.
    #[serde(other)]
    Internal,
}

impl FaultKind {
    /// The HTTP status that goes with it, for whoever watches the wire.
    pub fn status(self) -> StatusCode {
        match self {
            Self::BadRequest => StatusCode::BAD_REQUEST,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::Conflict => StatusCode::CONFLICT,
            Self::Stale => StatusCode::PRECONDITION_FAILED,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

/// A peer's refusal, as it travels. An answer: the peer says that it did not do, or could not finish, what was asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    /// What sort of refusal.
    pub kind: FaultKind,
    /// What was attempted and why it was refused, for people.
    pub message: String,
    /// Milliseconds after which it is worth asking again; `None`: asking again the same will not help.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<u64>,
    /// What a program may want to know about the refusal (where the master is, say); null if nothing.
    #[serde(default, skip_serializing_if = "serde_json::Value::is_null")]
    pub detail: serde_json::Value,
}

impl Fault {
    /// A refusal without advice about asking again.
    pub fn new(kind: FaultKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), retry_after_ms: None, detail: serde_json::Value::Null }
    }

    /// Adds that it is worth asking again after a while.
    pub fn retry_after(mut self, pause: Duration) -> Self {
        self.retry_after_ms = Some(u64::try_from(pause.as_millis()).unwrap_or(u64::MAX));
        self
    }

    /// Adds what a program may want to know.
    pub fn with_detail(mut self, detail: serde_json::Value) -> Self {
        self.detail = detail;
        self
    }
}

/// Why there is no connection to a peer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// No connection within the time for it.
    #[error("no connection within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// The network or the peer's machine refused.
    #[error("the connection was refused or broke off")]
    Network(#[source] std::io::Error),
    /// Another node answers at this address; it may have moved.
    #[error("another node answers there")]
    WrongNode(#[source] WrongNode),
    /// One of the two does not accept the other's certificate.
    #[error("the peer's identity and ours don't go together")]
    Identity(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Our own certificate can't be used.
    #[error("TLS can't be set up")]
    Setup(#[source] TlsError),
}

/// Why a call has no result. [`never_sent`](Self::never_sent) tells what may be concluded from it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The request never left: it was certainly not carried out.
    #[error("cannot reach node {node} at {addr}")]
    NotSent {
        /// The node that was called.
        node: u64,
        /// The address that was tried.
        addr: SocketAddr,
        /// Cause.
        #[source]
        source: ConnectError,
    },
    /// The connection was lost after the request had been handed to it. The peer may have carried it out, or may yet.
    #[error("the connection to node {node} at {addr} was lost during {path}: whether it was done is unknown")]
    Lost {
        /// The node that was called.
        node: u64,
        /// Its address.
        addr: SocketAddr,
        /// What was called.
        path: String,
        /// Cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The peer answered, and its answer is a refusal.
    #[error("node {node} refused {path}: {fault}")]
    Refused {
        /// The node that was called.
        node: u64,
        /// What was called.
        path: String,
        /// Its answer.
        fault: Fault,
    },
    /// There was no answer in time.
    #[error("node {node} at {addr} did not answer {path} within {} ms", within.as_millis())]
    Deadline {
        /// The node that was called.
        node: u64,
        /// Its address.
        addr: SocketAddr,
        /// What was called.
        path: String,
        /// The time that the call was given.
        within: Duration,
        /// Whether the request may have reached the peer. If so, whether it was done is unknown.
        sent: bool,
    },
    /// The request can't be written as JSON, its path is not one, or its body is too long.
    #[error("cannot send the request for {path} to node {node}")]
    Request {
        /// The node that was to be called.
        node: u64,
        /// What was to be called.
        path: String,
        /// Cause.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The peer carried the call out, but its answer can't be understood.
    #[error("cannot understand what node {node} answered to {path}")]
    Answer {
        /// The node that was called.
        node: u64,
        /// What was called.
        path: String,
        /// Cause.
        #[source]
        source: serde_json::Error,
    },
}

impl CallError {
    /// Whether the request certainly never reached the peer. If not, and if there is no [`fault`](Self::fault) either, it
    /// is unknown whether the call was carried out, and it must not be taken for undone.
    pub fn never_sent(&self) -> bool {
        matches!(self, Self::NotSent { .. } | Self::Deadline { sent: false, .. } | Self::Request { .. })
    }

    /// The peer's refusal, if it answered with one.
    pub fn fault(&self) -> Option<&Fault> {
        match self {
            Self::Refused { fault, .. } => Some(fault),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_survives_the_wire_and_newer_kinds_are_understood() {
        let fault = Fault::new(FaultKind::Unavailable, "no leader")
            .retry_after(Duration::from_millis(20))
            .with_detail(serde_json::json!({"master": 2}));
        let text = serde_json::to_string(&fault).unwrap();
        assert_eq!(serde_json::from_str::<Fault>(&text).unwrap(), fault);

        let newer: Fault = serde_json::from_str(r#"{"kind":"teapot","message":"m"}"#).unwrap();
        assert_eq!(newer, Fault::new(FaultKind::Internal, "m"));
    }
}
