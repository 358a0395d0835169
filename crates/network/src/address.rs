//! IPv4 addresses of interfaces, among them the cluster's address (as a /32 of the master's interface).

use std::net::{IpAddr, Ipv4Addr};

use futures::TryStreamExt;
use rtnetlink::AddressMessageBuilder;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};

use crate::netlink::{io_error, unless};
use crate::{Error, Netlink, link};

/// Adds `address/prefix` to an interface. Repeatable.
pub async fn add(net: &Netlink, interface: &str, address: Ipv4Addr, prefix: u8) -> Result<(), Error> {
    let link = link::get(net, interface).await?;
    let answer = net.handle().address().add(link.index, IpAddr::V4(address), prefix).execute().await;
    unless(answer, libc::EEXIST).map_err(Error::address("add", address, interface))
}

/// Removes `address/prefix` from an interface. Repeatable: an address that is not there is no error, so that
/// after success the interface does not have it.
pub async fn remove(net: &Netlink, interface: &str, address: Ipv4Addr, prefix: u8) -> Result<(), Error> {
    let link = link::get(net, interface).await?;
    let message = AddressMessageBuilder::<Ipv4Addr>::new().index(link.index).address(address, prefix).build();
    let answer = net.handle().address().del(message).execute().await;
    unless(answer, libc::EADDRNOTAVAIL).map_err(Error::address("remove", address, interface))
}

/// Has the interface this address, whatever its prefix?
pub async fn has(net: &Netlink, interface: &str, address: Ipv4Addr) -> Result<bool, Error> {
    Ok(list(net, interface).await?.iter().any(|(a, _)| *a == address))
}

/// All IPv4 addresses of an interface with their prefix lengths.
pub async fn list(net: &Netlink, interface: &str) -> Result<Vec<(Ipv4Addr, u8)>, Error> {
    let link = link::get(net, interface).await?;
    let request = net.handle().address().get().set_link_index_filter(link.index);
    let messages: Vec<AddressMessage> = request
        .execute()
        .try_collect()
        .await
        .map_err(|e| Error::link("list the addresses of", interface)(io_error(e)))?;
    Ok(messages.iter().filter_map(|m| local_ipv4(m).map(|a| (a, m.header.prefix_len))).collect())
}

fn local_ipv4(message: &AddressMessage) -> Option<Ipv4Addr> {
    message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(IpAddr::V4(address)) => Some(*address),
        _ => None,
    })
}
