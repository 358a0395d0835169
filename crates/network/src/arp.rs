//! Gratuitous ARP: telling a network that an address has moved to this node.

use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::task::JoinHandle;

use crate::packet::FrameSocket;
use crate::{Error, Netlink, link};

/// How often an address is announced. Frames can be lost, and a peer that has just confirmed the old owner may
/// ignore the first one for up to a second; one announcement is therefore not enough.
pub const REPEATS: u32 = 5;

/// Time between two announcements: all of them take two seconds.
pub const INTERVAL: Duration = Duration::from_millis(500);

/// Length of an ARP frame for IPv4 over Ethernet, in bytes.
const FRAME_LEN: usize = 42;

/// An announcement under way. It ends when it has been repeated often enough, or when this is dropped: a node
/// that gives the address up again must stop claiming it first.
#[derive(Debug)]
pub struct Announcement(JoinHandle<Result<(), Error>>);

impl Announcement {
    /// Waits until all frames are sent. A frame that could not be sent is an error, after the other ones were tried.
    pub async fn finished(mut self) -> Result<(), Error> {
        match (&mut self.0).await {
            Ok(result) => result,
            // The task is aborted only by our drop; what remains is a runtime that shuts down.
            Err(_) => Ok(()),
        }
    }

    /// Stops the announcement and waits until it has stopped: no frame is sent after this returns.
    pub async fn cancel(mut self) {
        self.0.abort();
        let _ = (&mut self.0).await;
    }
}

impl Drop for Announcement {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Announces in the background that `address` is at the hardware address of `interface`: [`REPEATS`] frames,
/// the first one at once and before this returns.
pub async fn announce(net: &Netlink, interface: &str, address: Ipv4Addr) -> Result<Announcement, Error> {
    let link = link::get(net, interface).await?;
    let failed = {
        let interface = interface.to_owned();
        move |source| Error::address("announce", address, &interface)(source)
    };
    let mac: [u8; 6] = link
        .mac
        .as_slice()
        .try_into()
        .map_err(|_| failed(std::io::Error::other("the interface has no Ethernet address")))?;
    let frame = gratuitous(mac, address);
    let socket = FrameSocket::open().map_err(&failed)?;
    socket.send(link.index, &frame).map_err(&failed)?;
    Ok(Announcement(tokio::spawn(async move {
        let mut result = Ok(());
        for _ in 1..REPEATS {
            tokio::time::sleep(INTERVAL).await;
            if let Err(error) = socket.send(link.index, &frame) {
                tracing::warn!(interface = link.name, %address, %error, "gratuitous ARP not sent");
                result = Err(failed(error));
            }
        }
        result
    })))
}

/// An ARP request for one's own address, to everybody (RFC 5227 calls it an ARP announcement): peers that know
/// the address update it, switches learn the port.
fn gratuitous(mac: [u8; 6], address: Ipv4Addr) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    frame[0..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    frame[12..14].copy_from_slice(&[0x08, 0x06]);
    // Ethernet, IPv4, address lengths 6 and 4, operation 1: request.
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    frame[22..28].copy_from_slice(&mac);
    frame[28..32].copy_from_slice(&address.octets());
    // The target's hardware address stays zero: it is what a request asks for.
    frame[38..42].copy_from_slice(&address.octets());
    frame
}

#[cfg(test)]
mod tests {
    use super::gratuitous;
    use std::net::Ipv4Addr;

    #[test]
    fn frame_is_an_arp_request_to_all_for_the_senders_own_address() {
        let mac = [2, 0, 0, 0, 0, 1];
        let frame = gratuitous(mac, Ipv4Addr::new(10, 0, 0, 20));
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[6..12], mac);
        assert_eq!(frame[12..14], [0x08, 0x06]);
        assert_eq!(frame[20..22], [0, 1]);
        assert_eq!(frame[22..28], mac);
        assert_eq!(frame[28..32], [10, 0, 0, 20]);
        assert_eq!(frame[38..42], [10, 0, 0, 20]);
    }
}
