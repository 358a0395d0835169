//! Bridges: where guests' tap devices and a node's uplink meet.

use rtnetlink::LinkBridge;
use rtnetlink::packet_route::link::InfoKind;

use crate::link::{self, Link};
use crate::netlink::io_error;
use crate::{Error, Netlink};

/// Is there a bridge of this name? An interface of another kind under that name is an error.
pub async fn exists(net: &Netlink, name: &str) -> Result<bool, Error> {
    match link::find(net, name).await? {
        Some(found) => is_bridge(&found).map(|()| true),
        None => Ok(false),
    }
}

/// Creates a bridge that forwards at once (no forward delay, no spanning tree) and sets it up. Repeatable: a
/// bridge that exists is only set up.
///
/// `mac` is the bridge's own hardware address. Where it is `None` the bridge keeps the random one that it was
/// born with: an address that was never set changes to the lowest one among the ports, so that each guest that
/// starts or stops could change the node's own address and make it unreachable until others ask again.
pub async fn create(net: &Netlink, name: &str, mac: Option<[u8; 6]>) -> Result<(), Error> {
    if !exists(net, name).await? {
        let message = LinkBridge::new(name).forward_delay(0).build();
        let answer = net.handle().link().add(message).execute().await;
        answer.map_err(|e| Error::link("create", name)(io_error(e)))?;
        let created = link::get(net, name).await?;
        let mac = mac.map_or_else(|| created.mac.clone(), |mac| mac.to_vec());
        link::change(net, "set the hardware address of", &created, |l| l.address(mac)).await?;
    }
    link::set_up(net, name).await
}

/// Makes `port` a port of `bridge`; it leaves another bridge for that. Repeatable.
pub async fn attach(net: &Netlink, bridge: &str, port: &str) -> Result<(), Error> {
    let target = link::get(net, bridge).await?;
    is_bridge(&target)?;
    let port = link::get(net, port).await?;
    link::change(net, "attach to its bridge", &port, |l| l.controller(target.index)).await
}

/// Takes `port` out of its bridge. Repeatable.
pub async fn detach(net: &Netlink, port: &str) -> Result<(), Error> {
    let port = link::get(net, port).await?;
    link::change(net, "detach from its bridge", &port, |l| l.nocontroller()).await
}

/// The names of a bridge's ports, sorted.
pub async fn ports(net: &Netlink, bridge: &str) -> Result<Vec<String>, Error> {
    let target = link::get(net, bridge).await?;
    is_bridge(&target)?;
    let all = link::all(net).await?;
    let mut ports: Vec<String> =
        all.into_iter().filter(|l| l.controller == Some(target.index)).map(|l| l.name).collect();
    ports.sort();
    Ok(ports)
}

fn is_bridge(link: &Link) -> Result<(), Error> {
    match link.kind {
        Some(InfoKind::Bridge) => Ok(()),
        _ => Err(Error::NotABridge(link.name.clone())),
    }
}
