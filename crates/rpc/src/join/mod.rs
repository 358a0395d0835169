//! How a machine without a certificate becomes a node.
//!
//! `gnt-node add` on the master prints a [`JoinToken`]. The new machine makes a key, connects to port 5080 and believes
//! whoever presents a certificate signed by the CA whose fingerprint is in the token; only then it sends the token's secret
//! and its certificate request. The cluster compares the secret with the digest that it kept, and answers with the node's
//! certificate.

mod client;
mod token;

use std::sync::Arc;

use rustls::ServerConfig;
use rustls::version::{TLS12, TLS13};
use serde::{Deserialize, Serialize};

pub use client::{JoinError, join, join_client_config};
pub use token::{JoinSecret, JoinToken, SecretDigest, TokenError};

use crate::identity::Identity;
use crate::tls::{TlsError, provider};

/// Where a [`JoinRequest`] is posted on port 5080, as JSON. Answered with a [`JoinReply`], or with a
/// [`Fault`](crate::Fault) and its status.
pub const JOIN_PATH: &str = "/cardume/join";

/// What a machine that wants to join sends.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's secret.
    pub secret: JoinSecret,
    /// The machine's name.
    pub node_name: String,
    /// Its request for a certificate, in PEM.
    pub csr_pem: String,
    /// What else the cluster wants to know of it: addresses, resources.
    #[serde(default)]
    pub extra: serde_json::Value,
}

/// What it gets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinReply {
    /// The node's certificate, in PEM. Its number is in there.
    pub cert_pem: String,
    /// The cluster CA's certificate, in PEM.
    pub ca_pem: String,
    /// What else it needs to know: the members and their addresses.
    #[serde(default)]
    pub extra: serde_json::Value,
}

/// For port 5080: TLS 1.2 or 1.3, no client certificate. The CA's certificate is presented with the node's, because a
/// machine that joins knows nothing of the CA but its fingerprint.
pub fn join_server_config(identity: &Identity) -> Result<Arc<ServerConfig>, TlsError> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13, &TLS12])?
        .with_no_client_auth()
        .with_single_cert(identity.chain(), identity.key())?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
