//! Asking for the lease.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ha::message::{Answer, Renew};
use model::{Incarnation, NodeId};
use rpc::{CallError, Client, Lane};
use tokio::sync::mpsc;

use super::process::Input;
use super::wire::Surroundings;

/// Where the master answers a [`Renew`], on the port between nodes.
pub(crate) const LEASE_PATH: &str = "/lease";

/// Asks over the port between nodes, as the node that the state directory says this is.
pub(super) struct Renewals {
    identity_dir: PathBuf,
    /// How long an answer is waited for. One that comes later would grant what has run out.
    within: Duration,
    client: Option<(Whose, Client)>,
    /// Read from the disk beside everything else.
    loading: Option<Whose>,
    /// To be sent as soon as it was read.
    waiting: Option<(Renew, Option<NodeId>)>,
    inbox: mpsc::UnboundedSender<Input>,
}

/// Whose identity it is.
pub(super) type Whose = (Incarnation, NodeId);

impl Renewals {
    pub fn new(identity_dir: PathBuf, within: Duration, inbox: mpsc::UnboundedSender<Input>) -> Self {
        Self { identity_dir, within, client: None, loading: None, waiting: None, inbox }
    }

    /// Gets ready to ask in that name.
    pub fn prepare(&mut self, whose: Whose) {
        if self.loading == Some(whose) || self.client.as_ref().is_some_and(|(loaded, _)| *loaded == whose) {
            return;
        }
        self.loading = Some(whose);
        let (folder, inbox) = (self.identity_dir.clone(), self.inbox.clone());
        tokio::task::spawn_blocking(move || {
            let loaded = match rpc::Identity::load(&folder) {
                Ok(Some(identity)) if identity.node_id() == whose.1.0 => Ok(Client::new(Arc::new(identity))),
                Ok(_) => Err("it is not that of this node".to_owned()),
                Err(error) => Err(crate::chain(&error)),
            };
            // The guard may have ended.
            let _ = inbox.send(Input::Identity(whose, loaded));
        });
    }

    /// What came of [`Self::prepare`].
    pub fn loaded(&mut self, whose: Whose, loaded: Result<Client, String>, around: &Surroundings) {
        self.loading = self.loading.filter(|loading| *loading != whose);
        match loaded {
            Ok(client) => {
                self.client = Some((whose, client));
                if let Some((renew, master)) = self.waiting.take() {
                    self.ask(&renew, master, around);
                }
            }
            Err(why) => tracing::error!(why, "the node's identity can't be used to ask for a lease"),
        }
    }

    /// Asks the master if it is known, else everybody who may be it. Each in a task of its own: nobody who hangs holds up
    /// the next request.
    pub fn ask(&mut self, renew: &Renew, master: Option<NodeId>, around: &Surroundings) {
        let whose = (renew.inc, renew.node);
        self.prepare(whose);
        let Some((_, client)) = self.client.as_ref().filter(|(loaded, _)| *loaded == whose) else {
            self.waiting = Some((renew.clone(), master));
            return;
        };
        let known = master.and_then(|master| Some((master, *around.nodes.get(&master)?)));
        let targets: Vec<(NodeId, SocketAddr)> = match known {
            Some(one) => vec![one],
            None => around.nodes.iter().map(|(node, address)| (*node, *address)).collect(),
        };
        for (node, address) in targets {
            let (client, renew, within, inbox) = (client.clone(), renew.clone(), self.within, self.inbox.clone());
            tokio::spawn(async move {
                let asked: Result<Answer, CallError> =
                    client.call_json(node.0, address, Lane::Raft, LEASE_PATH, &renew, within).await;
                match asked {
                    // The guard may have ended.
                    Ok(answer) => drop(inbox.send(Input::Answer(renew.q, answer))),
                    Err(error) => tracing::debug!(%node, error = crate::chain(&error), "no answer about the lease"),
                }
            });
        }
    }
}
