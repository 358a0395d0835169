//! Who a node is and how nodes talk to one another.
//!
//! | module | what it holds |
//! |---|---|
//! | [`identity`] | the cluster CA, a node's key and certificate, and the identity read out of a certificate |
//! | [`tls`] | TLS configurations between nodes: both sides prove who they are, and the caller checks *which* node answered |
//! | [`server`], [`client`] | calls and byte streams between nodes (port 5081): HTTP/1.1 with JSON bodies over mutual TLS |
//! | [`fault`] | what a peer answers instead of a result, and what a caller knows when there is no answer |
//! | [`envelope`] | incarnation, term and job around every order to a node, and the gate that refuses the ones of a deposed master |
//! | [`mod@join`] | how a machine that has no certificate yet gets one, by a one-time token (port 5080) |
//! | [`serve`] | an HTTP service behind TLS for any client, as port 5080 is |
//!
//! An answer that does not come is not a refusal. [`CallError`] therefore always tells a request that was never sent from
//! one whose outcome is unknown; treating the second as the first is how clusters lose data.
//!
//! All cryptography comes from one provider, passed explicitly: nothing depends on, or sets, a default of the process.

pub mod client;
pub mod envelope;
pub mod fault;
pub mod identity;
pub mod join;
mod listen;
pub mod serve;
pub mod server;
mod stream;
pub mod tls;

pub use client::{Client, Lane};
pub use envelope::{Envelope, Gate, Stale};
pub use fault::{CallError, ConnectError, Fault, FaultKind};
pub use identity::{ClusterCa, Fingerprint, Identity, IdentityError, NodeKey, PeerIdentity};
pub use join::{JoinError, JoinReply, JoinRequest, JoinSecret, JoinToken, SecretDigest, TokenError, join};
pub use listen::ListenError;
pub use serve::{PeerAddr, TlsServer, serve_tls};
pub use server::{Admit, Server, Service, Upgrade};
pub use stream::ByteStream;

/// The longest body of a request or an answer, in bytes. Whoever sends more is cut off.
pub const MAX_BODY: usize = 64 << 20;
