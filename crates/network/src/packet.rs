//! Raw frames: an `AF_PACKET` socket, which neither the standard library nor nix can address.
#![allow(unsafe_code)]

use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};

/// A socket that sends whole Ethernet frames. It receives nothing that we would have to read: it is never bound.
#[derive(Debug)]
pub(crate) struct FrameSocket(OwnedFd);

impl FrameSocket {
    /// Opens the socket in the network namespace of the calling thread.
    pub(crate) fn open() -> io::Result<FrameSocket> {
        // Without a protocol (0) the kernel hands no received frame to the socket.
        let none: Option<SockProtocol> = None;
        let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, none)?;
        Ok(FrameSocket(fd))
    }

    /// Sends one frame out of the interface with this index.
    pub(crate) fn send(&self, interface: u32, frame: &[u8]) -> io::Result<()> {
        // SAFETY: sockaddr_ll is plain old data, for which all zeroes is a valid value.
        let mut to: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        to.sll_family = libc::AF_PACKET as u16;
        to.sll_ifindex = interface as i32;
        // SAFETY: `frame` and `to` outlive the call and are passed with their own lengths.
        let sent = unsafe {
            libc::sendto(
                self.0.as_raw_fd(),
                frame.as_ptr().cast(),
                frame.len(),
                0,
                (&raw const to).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}
