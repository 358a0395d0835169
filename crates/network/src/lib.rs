//! What a node does to its network: bridges, tap devices for guests, the turning of a guest's frames to its new
//! node, the cluster's address and its announcement, and network namespaces.
//!
//! Everything acts on the network namespace of the calling *thread*, which for a daemon is the namespace of
//! its process. [`Netlink::open`] binds to it once; what is done through that handle stays there.
//!
//! ```no_run
//! # async fn example() -> Result<(), network::Error> {
//! use network::{Netlink, address, arp, bridge};
//! let net = Netlink::open()?;
//! bridge::create(&net, "br0", None).await?;
//! address::add(&net, "br0", "10.0.0.20".parse().unwrap(), 32).await?;
//! arp::announce(&net, "br0", "10.0.0.20".parse().unwrap()).await?.finished().await?;
//! # Ok(()) }
//! ```

pub mod address;
pub mod arp;
pub mod bridge;
mod error;
pub mod link;
mod netlink;
pub mod netns;
mod packet;
pub mod steer;
pub mod tap;
mod tun;
pub mod veth;

pub use error::Error;
pub use netlink::Netlink;
