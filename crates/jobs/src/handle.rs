//! The daemon, as its API sees it.

use async_trait::async_trait;
use opcodes::Failure;
use opcodes::wire::Request;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};

/// A guest's serial console: what is written goes to the guest, what it prints can be read.
pub trait Console: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Console for T {}

/// The daemon. Implemented by the room `node`, used by the room `api`.
#[async_trait]
pub trait Handle: Send + Sync + 'static {
    /// Answers a request, on this node or through the master. `user` asks for it.
    ///
    /// # Errors
    /// A [`Failure`] for the user.
    async fn call(&self, request: Request, user: &str) -> Result<Value, Failure>;

    /// Opens an instance's serial console, wherever it runs.
    ///
    /// # Errors
    /// A [`Failure`] for the user.
    async fn console(&self, instance: &str, user: &str) -> Result<Box<dyn Console>, Failure>;
}
