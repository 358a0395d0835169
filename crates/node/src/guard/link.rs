//! The daemon's side of the connection to the guard.

use std::sync::Arc;

use ha::Now;
use hypervisor::ProcessId;
use model::RunId;
use tokio::sync::watch;

use crate::clock::boottime;

/// Why the guard does not answer for a run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    /// There is no connection.
    #[error("this node's guard is not there; it is the process 'cardume guard', which a service manager keeps running")]
    NotConnected,
    /// It did not answer.
    #[error("this node's guard did not answer in time")]
    Late,
    /// It refused.
    #[error("this node's guard can't watch the run: {0}")]
    Refused(String),
}

/// The daemon's connection to the guard of its node; it connects again by itself.
pub struct GuardLink {
    /// Until when the guard says that the lease lasts; zero if it never said so.
    until: watch::Sender<Now>,
    connected: watch::Sender<bool>,
    identity: watch::Sender<Option<ha::guard::Identity>>,
}

impl GuardLink {
    /// One that is not connected.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            until: watch::Sender::new(Now::ZERO),
            connected: watch::Sender::new(false),
            identity: watch::Sender::new(None),
        })
    }

    /// Whether a guard answers.
    pub fn connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// Until when the node's lease lasts, by [`boottime`]; past if it has none. It ends without a word: compare it with
    /// the clock.
    pub fn lease(&self) -> watch::Receiver<Now> {
        self.until.subscribe()
    }

    /// Whether the lease holds now.
    pub fn holds(&self) -> bool {
        boottime() < *self.until.borrow()
    }

    /// Tells the guard as whom to ask for the lease; `None` if the node is in no cluster.
    pub fn identify(&self, identity: Option<ha::guard::Identity>) {
        self.identity.send_replace(identity);
    }

    /// Has the guard watch a run, and returns when it does. `process` is `None` for a run without a process (the fake
    /// hypervisor's). Repeatable; also to change `protected`: whether it is to be stopped when the lease runs out.
    ///
    /// # Errors
    /// See [`GuardError`]; a protected run must not go on then.
    pub async fn register(&self, run: RunId, process: Option<ProcessId>, protected: bool) -> Result<(), GuardError> {
        let _ = (run, process, protected);
        Err(GuardError::NotConnected)
    }

    /// Tells that a run's process has ended.
    pub fn ended(&self, run: RunId) {
        let _ = run;
    }
}
