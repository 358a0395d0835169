//! A guest's frames follow it to another node, and wait there for a reader that comes late.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use network::netns::NetNs;
use network::{bridge, link, steer, tap, veth};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::{namespace, sh};

const GUEST: [u8; 6] = [0xaa, 0, 0, 0xfa, 0x3a, 0x3f];
const CLIENT: [u8; 6] = [0xaa, 0, 0, 0, 0, 1];
const NEIGHBOUR: [u8; 6] = [0xaa, 0, 0, 0, 0, 2];
const ALL: [u8; 6] = [0xff; 6];
/// IEEE's number for experiments: nobody else sends such frames.
const TYPE: [u8; 2] = [0x88, 0xb5];
/// Ahead of each frame on a tap.
const HEADER: usize = 10;
/// Frames that come while nobody reads.
const MANY: u16 = 1000;
/// Milliseconds after which a frame does not come any more.
const NEVER: u16 = 10_000;

/// One who sends and receives frames, by a tap.
struct Guest(File);

impl Guest {
    fn send(&mut self, to: [u8; 6], from: [u8; 6], number: u16) {
        let mut frame = vec![0; HEADER];
        frame.extend([&to[..], &from[..], &TYPE[..], &number.to_be_bytes()[..], &[0; 60][..]].concat());
        assert_eq!(self.0.write(&frame).unwrap(), frame.len());
    }

    /// The number of the next of our frames; `None` if none is there within so many milliseconds.
    fn receive(&mut self, within: u16) -> Option<u16> {
        loop {
            let mut ready = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, PollTimeout::from(within)).unwrap() == 0 {
                return None;
            }
            let mut frame = [0; 2048];
            let length = self.0.read(&mut frame).unwrap();
            if length >= HEADER + 16 && frame[HEADER + 12..HEADER + 14] == TYPE {
                return Some(u16::from_be_bytes([frame[HEADER + 14], frame[HEADER + 15]]));
            }
        }
    }
}

/// A namespace with a bridge, to which taps of these names are attached.
fn bridged(bridge: &'static str, taps: &'static [&'static str]) -> (NetNs, Vec<Guest>) {
    let namespace = namespace();
    // IPv6 would talk by itself.
    namespace.run(|| std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1")).unwrap().unwrap();
    let taps = namespace.configure(|net| async move {
        bridge::create(&net, bridge, None).await?;
        let mut made: Vec<OwnedFd> = Vec::new();
        for name in taps {
            made.push(tap::create(&net, name, bridge, "an-instance").await?);
        }
        Ok(made)
    });
    (namespace, taps.unwrap().into_iter().map(|tap| Guest(tap.into())).collect())
}

/// Lays a cable from the switch to a node's bridge.
fn plug(switch: &NetNs, port: &'static str, node: &NetNs) {
    switch
        .configure(|net| async move {
            veth::create(&net, port, "up0", node).await?;
            bridge::attach(&net, "lan0", port).await?;
            link::set_up(&net, port).await
        })
        .unwrap();
    node.configure(|net| async move {
        bridge::attach(&net, "br0", "up0").await?;
        link::set_up(&net, "up0").await
    })
    .unwrap();
    // The kernel tells bridges of a carrier when it has time.
    for (namespace, port) in [(switch, port), (node, "up0")] {
        while !sh(namespace, "bridge", &["link", "show", "dev", port]).contains("state forwarding") {
            std::thread::yield_now();
        }
    }
}

#[test]
fn a_guest_s_frames_follow_it_and_wait_for_a_late_reader() {
    let (switch, mut clients) = bridged("lan0", &["gntclient-0"]);
    let (source, mut at_source) = bridged("br0", &["gntguest-0", "gntother-0"]);
    let (target, mut at_target) = bridged("br0", &["gntguest-0", "gntother-0"]);
    plug(&switch, "node01", &source);
    plug(&switch, "node02", &target);
    let client = &mut clients[0];
    let [guest, beside] = &mut at_source[..] else { unreachable!() };
    let [new, beside_new] = &mut at_target[..] else { unreachable!() };

    // All know where the guest is: its frames come to the source, from near and far.
    target.configure(|net| async move { steer::hold(&net, "gntguest-0").await }).unwrap();
    guest.send(ALL, GUEST, 1);
    for other in [&mut *client, &mut *beside, &mut *beside_new] {
        assert_eq!(other.receive(NEVER), Some(1));
    }
    client.send(GUEST, CLIENT, 2);
    assert_eq!(guest.receive(NEVER), Some(2));

    // The tap at the destination keeps its room for what comes later.
    for number in [3, 4] {
        client.send(ALL, CLIENT, number);
        for other in [&mut *guest, &mut *beside, &mut *beside_new] {
            assert_eq!(other.receive(NEVER), Some(number));
        }
    }
    assert_eq!(new.receive(0), None, "it was flooded");

    // Turned, twice as by a repeated order: nothing comes to the source any more.
    for _ in 0..2 {
        target.configure(|net| async move { steer::take(&net, "gntguest-0", GUEST).await }).unwrap();
    }
    for number in 0..MANY {
        client.send(GUEST, CLIENT, number);
    }
    beside.send(GUEST, NEIGHBOUR, MANY);
    client.send(ALL, CLIENT, MANY + 1);
    for number in 0..=MANY + 1 {
        assert_eq!(new.receive(NEVER), Some(number), "lost or late");
    }
    assert_eq!(guest.receive(NEVER), Some(MANY + 1), "the source's tap is still a port as any other");

    // The guest that goes on at the source after all is found there as soon as it sends something.
    guest.send(ALL, GUEST, 5);
    assert_eq!(client.receive(NEVER), Some(5));
    client.send(GUEST, CLIENT, 6);
    assert_eq!(guest.receive(NEVER), Some(6));
}

#[test]
fn what_is_no_port_of_a_bridge_can_not_be_steered_to() {
    let (node, _) = bridged("br0", &[]);
    let refused = node.configure(|net| async move { steer::take(&net, "br0", GUEST).await }).unwrap_err();
    assert!(refused.to_string().contains("br0"), "{refused}");
}
