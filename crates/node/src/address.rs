//! The cluster's address on this node: up, announced, down.

use std::net::Ipv4Addr;

use network::{Netlink, address, arp};
use opcodes::Failure;
use tokio::sync::Mutex;

/// Puts the address on an interface and takes it off. While it is up the announcement goes on for two seconds.
#[derive(Default)]
pub struct AddressKeeper {
    announcement: Mutex<Option<arp::Announcement>>,
}

impl AddressKeeper {
    /// Brings the address up and tells the network.
    pub async fn up(&self, at: Ipv4Addr, netmask: u8, netdev: &str) -> Result<(), Failure> {
        let failed = |error: network::Error| Failure::failed(crate::chain(&error));
        let mut announcement = self.announcement.lock().await;
        let net = Netlink::open().map_err(failed)?;
        if announcement.is_some() && address::has(&net, netdev, at).await.map_err(failed)? {
            return Ok(());
        }
        address::add(&net, netdev, at, netmask).await.map_err(failed)?;
        *announcement = Some(arp::announce(&net, netdev, at).await.map_err(failed)?);
        Ok(())
    }

    /// Takes the address off. Done when this returns without an error, also if it was not there.
    pub async fn down(&self, at: Ipv4Addr, netmask: u8, netdev: &str) -> Result<(), Failure> {
        let failed = |error: network::Error| Failure::failed(crate::chain(&error));
        let mut announcement = self.announcement.lock().await;
        if let Some(announcement) = announcement.take() {
            announcement.cancel().await;
        }
        let net = Netlink::open().map_err(failed)?;
        match address::remove(&net, netdev, at, netmask).await {
            // Without the interface there is no address on it.
            Err(network::Error::NoSuchInterface(_)) => Ok(()),
            outcome => outcome.map_err(failed),
        }
    }
}
