//! The cluster's address on this node: up, announced, down.

use std::net::Ipv4Addr;
use std::time::Duration;

use network::{Netlink, address, arp};
use opcodes::Failure;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::guard::{ClusterAddress, GuardLink};

/// How often it is looked whether an address that was brought up is still there: the guard takes it away when it is started
/// or the lease ends, and puts it on again only when it is asked.
const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// Puts the address on an interface and takes it off.
#[derive(Default)]
pub struct AddressKeeper {
    held: Mutex<Option<Held>>,
}

struct Held {
    at: Ipv4Addr,
    netmask: u8,
    netdev: String,
    /// Goes on for two seconds after the address came up.
    announcement: arp::Announcement,
    looked: Instant,
}

impl AddressKeeper {
    /// Brings the address up on the master of `term` and tells the network. Cheap while it is up, so that it can be called all
    /// the time. The guard puts it on; only a node that is not armed (`alone`) may do without one.
    pub async fn up(
        &self,
        at: Ipv4Addr,
        netmask: u8,
        netdev: &str,
        term: u64,
        guard: &GuardLink,
        alone: bool,
    ) -> Result<(), Failure> {
        let mut held = self.held.lock().await;
        if held.as_ref().is_some_and(|held| held.looked.elapsed() < LOOK_AGAIN) {
            return Ok(());
        }
        let net = Netlink::open().map_err(failed)?;
        if let Some(held) = &mut *held
            && address::has(&net, netdev, at).await.map_err(failed)?
        {
            held.looked = Instant::now();
            return Ok(());
        }
        if guard.connected() || !alone {
            let address = ClusterAddress { address: at, netmask, netdev: netdev.to_owned() };
            guard.put_address_on(term, address).await.map_err(|error| {
                Failure::failed(format!("The cluster's address {at} can't be put on this node: {error}"))
            })?;
        } else {
            address::add(&net, netdev, at, netmask).await.map_err(failed)?;
        }
        let announcement = arp::announce(&net, netdev, at).await.map_err(failed)?;
        *held = Some(Held { at, netmask, netdev: netdev.to_owned(), announcement, looked: Instant::now() });
        Ok(())
    }

    /// Takes the address off. Done when this returns without an error, also if it was not there.
    pub async fn down(&self, at: Ipv4Addr, netmask: u8, netdev: &str) -> Result<(), Failure> {
        let mut held = self.held.lock().await;
        if let Some(held) = held.take() {
            held.announcement.cancel().await;
        }
        remove(at, netmask, netdev).await
    }

    /// Takes off what was brought up, whatever the cluster's address is by now.
    pub async fn release(&self) -> Result<(), Failure> {
        match self.held.lock().await.take() {
            None => Ok(()),
            Some(held) => {
                held.announcement.cancel().await;
                remove(held.at, held.netmask, &held.netdev).await
            }
        }
    }
}

async fn remove(at: Ipv4Addr, netmask: u8, netdev: &str) -> Result<(), Failure> {
    let net = Netlink::open().map_err(failed)?;
    match address::remove(&net, netdev, at, netmask).await {
        // Without the interface there is no address on it.
        Err(network::Error::NoSuchInterface(_)) => Ok(()),
        outcome => outcome.map_err(failed),
    }
}

fn failed(error: network::Error) -> Failure {
    Failure::failed(crate::chain(&error))
}
