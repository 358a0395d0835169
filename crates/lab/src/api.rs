//! The API of a node's daemon, for a program outside the lab.

use cli::client::{CallError, Client};
use opcodes::wire::{NodeStatus, Request};
use serde::de::DeserializeOwned;
use tokio::runtime::Runtime;

use crate::{Error, Node};

/// A node's API, asked over its local socket as the commands do.
#[derive(Debug)]
pub struct Api {
    client: Client,
    runtime: Runtime,
}

impl Api {
    /// The API of a node that runs. It is of no use any more once the node was killed and started again.
    pub fn of(node: &Node) -> Result<Api, Error> {
        let failed = Error::process("talk to the daemon of", &node.name);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(failed)?;
        Ok(Api { client: Client::new(node.api_socket()?), runtime })
    }

    /// Asks something. `T` is the reply that is named at the request; `()` for null.
    pub fn call<T: DeserializeOwned>(&self, request: &Request) -> Result<T, CallError> {
        self.runtime.block_on(self.client.call(request))
    }

    /// What the node is.
    pub fn status(&self) -> Result<NodeStatus, CallError> {
        self.call(&Request::Status)
    }
}
