//! Turning a guest's frames from one node to another one, during a live migration.
//!
//! While its memory comes, a guest's tap at the destination is there already, and would fill up with whatever a bridge
//! floods: frames that the guest gets at the source too. So it is [held](hold) out of floods. Once the guest stands still
//! at the source, [`take`] lets its frames come to the tap; there they wait in the tap's queue until QEMU reads again.

use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};
use rtnetlink::{LinkBridgePort, LinkMessageBuilder};

use crate::link::{self, Link};
use crate::netlink::io_error;
use crate::packet::FrameSocket;
use crate::{Error, Netlink};

/// The shortest frame that Ethernet carries, in bytes, without its checksum.
const FRAME_LEN: usize = 60;

/// Keeps a tap that is a port of a bridge out of what that floods. Repeatable.
pub async fn hold(net: &Netlink, tap: &str) -> Result<(), Error> {
    flood(net, &port(net, tap).await?, false).await
}

/// Directs the frames for a guest to its tap, a port of a bridge, from now on: on this bridge by its table, in the network
/// around by a frame with the guest's address, from which switches (and the bridge that the guest was on) learn where it
/// is. Undoes [`hold`]. Repeatable.
///
/// Whatever the guest itself still sends from elsewhere would turn the frames back.
pub async fn take(net: &Netlink, tap: &str, mac: [u8; 6]) -> Result<(), Error> {
    let port = port(net, tap).await?;
    // As if the bridge had learnt it: until now it knows the guest behind another of its ports, and a frame that comes in
    // by that very port would not be forwarded at all. Learnt anew if the guest is seen elsewhere later.
    let entry = net.handle().neighbours().add_bridge(port.index, &mac).replace();
    let entry = entry.state(NeighbourState::Reachable).flags(NeighbourFlags::Controller);
    let failed = Error::link("direct a guest's frames to", tap);
    entry.execute().await.map_err(|error| failed(io_error(error)))?;
    flood(net, &port, true).await?;
    let socket = FrameSocket::open().map_err(Error::link("announce a guest on", tap))?;
    let frame = announcement(mac);
    for other in link::all(net).await? {
        if other.controller != port.controller || other.index == port.index || !other.up {
            continue;
        }
        match socket.send(other.index, &frame) {
            // One without a cable leads to nobody.
            Err(error) if error.raw_os_error() != Some(libc::ENETDOWN) => {
                return Err(Error::link("announce a guest on", &other.name)(error));
            }
            _ => {}
        }
    }
    Ok(())
}

async fn port(net: &Netlink, tap: &str) -> Result<Link, Error> {
    let found = link::get(net, tap).await?;
    if found.controller.is_none() {
        let source = std::io::Error::other("it is in no bridge");
        return Err(Error::link("steer frames to", tap)(source));
    }
    Ok(found)
}

async fn flood(net: &Netlink, port: &Link, on: bool) -> Result<(), Error> {
    let message: LinkMessageBuilder<LinkBridgePort> = LinkBridgePort::new(port.index);
    let message = message.flood(on).bcast_flood(on).mcast_flood(on).build();
    let answer = net.handle().link().set_port(message).execute().await;
    answer.map_err(|error| Error::link("set the flooding of", &port.name)(io_error(error)))
}

/// What QEMU sends for the same purpose: a request of reverse ARP to everybody, which nobody answers.
fn announcement(mac: [u8; 6]) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    frame[0..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&[0x80, 0x35]);
    // Ethernet, IPv4, address lengths 6 and 4, operation 3: reverse request. Its own IPv4 address is what it asks for.
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac);
    frame[32..38].copy_from_slice(&mac);
    frame
}
