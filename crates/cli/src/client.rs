//! A client of the daemon's own API, on its unix socket.
//!
//! ```no_run
//! # async fn example() -> Result<(), cli::client::CallError> {
//! use opcodes::wire::{NodeStatus, Request};
//! let status: NodeStatus = cli::client::Client::local().call(&Request::Status).await?;
//! println!("{:?}", status.master);
//! # Ok(()) }
//! ```

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, UPGRADE};
use hyper::{Method, StatusCode};
use hyper_util::rt::TokioIo;
use model::{Job, JobId, JobStatus};
use opcodes::Failure;
use opcodes::wire::{CALL_PATH, CONSOLE_PATH, CONSOLE_PROTOCOL, Request, SOCKET, Submit};
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

/// Environment variable that names another socket than the usual one.
pub const SOCKET_VARIABLE: &str = "CARDUME_SOCKET";

/// Stream of a console: bytes to and from the guest's serial port.
pub type Console = TokioIo<hyper::upgrade::Upgraded>;

/// Why a call has no reply.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// Nobody listens on the socket.
    #[error(
        "The Cardume daemon does not answer on {} ({source}); start it with 'systemctl start cardume'",
        socket.display()
    )]
    NoDaemon {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The socket is for others.
    #[error("No permission to talk to the Cardume daemon on {}; run this as root", socket.display())]
    Permission {
        /// The socket.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The connection broke. Whether the request was carried out is unknown.
    #[error(
        "The connection to the Cardume daemon broke before it replied; what was asked for may have been done \
         ('gnt-job list' shows jobs)"
    )]
    Lost(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The daemon refuses.
    #[error(transparent)]
    Refused(Failure),
    /// The reply is not what was expected.
    #[error("The Cardume daemon's reply is not understood ({0}); this command and the daemon differ in version")]
    Reply(String),
}

impl CallError {
    /// Whether the same question may be answered later: the daemon restarts, or the cluster has no master just now.
    pub fn is_passing(&self) -> bool {
        match self {
            CallError::NoDaemon { .. } | CallError::Lost(_) => true,
            CallError::Refused(failure) => failure.kind == opcodes::FailureKind::NoMaster,
            CallError::Permission { .. } | CallError::Reply(_) => false,
        }
    }
}

/// A client. It holds no connection: each call makes one, so a daemon that restarts in between does no harm.
#[derive(Clone, Debug)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the daemon on this socket.
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into() }
    }

    /// A client of this machine's daemon: on the socket that [`SOCKET_VARIABLE`] names, else on the usual one.
    pub fn local() -> Self {
        Self::new(std::env::var_os(SOCKET_VARIABLE).unwrap_or_else(|| SOCKET.into()))
    }

    /// The socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks something. `T` is the reply that is named at the request; `()` for null.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn call<T: DeserializeOwned>(&self, request: &Request) -> Result<T, CallError> {
        let body = serde_json::to_vec(request).map_err(|error| CallError::Reply(error.to_string()))?;
        let request = hyper::Request::builder()
            .method(Method::POST)
            .uri(CALL_PATH)
            .header(HOST, "cardume")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| CallError::Reply(error.to_string()))?;
        let response = self.send(request).await?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(lost)?.to_bytes();
        reply(status, &body)
    }

    /// Queues a job.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn submit(&self, submit: Submit) -> Result<JobId, CallError> {
        self.call(&Request::Submit(submit)).await
    }

    /// A job, with the lines of its log after `after`; waits up to `wait` seconds for such a line or for another state
    /// than `status`.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn job(&self, id: JobId, after: u64, status: Option<JobStatus>, wait: u32) -> Result<Job, CallError> {
        self.call(&Request::Job { id, after, status, wait }).await
    }

    /// Opens an instance's console.
    ///
    /// # Errors
    /// See [`CallError`].
    pub async fn console(&self, instance: &str) -> Result<Console, CallError> {
        let request = hyper::Request::builder()
            .method(Method::POST)
            .uri(format!("{CONSOLE_PATH}/{}", escape(instance)))
            .header(HOST, "cardume")
            .header(CONNECTION, "Upgrade")
            .header(UPGRADE, CONSOLE_PROTOCOL)
            .body(Full::new(Bytes::new()))
            .map_err(|error| CallError::Reply(error.to_string()))?;
        let response = self.send(request).await?;
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return Ok(TokioIo::new(hyper::upgrade::on(response).await.map_err(lost)?));
        }
        let status = response.status();
        let body = response.into_body().collect().await.map_err(lost)?.to_bytes();
        match reply::<serde_json::Value>(status, &body) {
            Ok(_) => Err(CallError::Reply("no console was opened".into())),
            Err(error) => Err(error),
        }
    }

    async fn send(
        &self,
        request: hyper::Request<Full<Bytes>>,
    ) -> Result<hyper::Response<hyper::body::Incoming>, CallError> {
        let stream = UnixStream::connect(&self.socket).await.map_err(|source| {
            let socket = self.socket.clone();
            match source.kind() {
                io::ErrorKind::PermissionDenied => CallError::Permission { socket, source },
                _ => CallError::NoDaemon { socket, source },
            }
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(lost)?;
        // Ends with the response's body or the upgraded stream; an error on it is seen there.
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.map_err(lost)
    }
}

fn lost(error: hyper::Error) -> CallError {
    CallError::Lost(error.into())
}

fn reply<T: DeserializeOwned>(status: StatusCode, body: &[u8]) -> Result<T, CallError> {
    if status.is_success() {
        return serde_json::from_slice(body).map_err(|error| CallError::Reply(error.to_string()));
    }
    match serde_json::from_slice::<Failure>(body) {
        Ok(failure) => Err(CallError::Refused(failure)),
        Err(_) => Err(CallError::Reply(format!("status {status}"))),
    }
}

/// Escapes what can't stand in a path.
fn escape(name: &str) -> String {
    let mut escaped = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => escaped.push(char::from(byte)),
            byte => escaped.push_str(&format!("%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_escaped_in_paths() {
        assert_eq!(escape("vm1.example.com"), "vm1.example.com");
        assert_eq!(escape("a/b ?ü"), "a%2Fb%20%3F%C3%BC");
    }

    #[test]
    fn a_reply_is_what_was_asked_for_or_says_why_not() {
        assert_eq!(reply::<u64>(StatusCode::OK, b"7").unwrap(), 7);
        assert!(matches!(reply::<u64>(StatusCode::OK, b"null"), Err(CallError::Reply(_))));
        let body = serde_json::to_vec(&Failure::no_master("no quorum")).unwrap();
        let error = reply::<u64>(StatusCode::SERVICE_UNAVAILABLE, &body).unwrap_err();
        assert!(error.is_passing() && error.to_string() == "no quorum");
        assert!(!reply::<u64>(StatusCode::NOT_FOUND, b"<html>").unwrap_err().is_passing());
    }
}
