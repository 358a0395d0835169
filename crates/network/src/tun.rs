//! The kernel's interface to tap devices: ioctls on `/dev/net/tun`.
#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

mod ioctl {
    use libc::{TUNSETIFF, TUNSETPERSIST, ifreq};
    nix::ioctl_write_ptr_bad!(set_interface, TUNSETIFF, ifreq);
    nix::ioctl_write_int_bad!(set_persist, TUNSETPERSIST);
}

/// Opens the tap device `name`, which is created where it does not exist: Ethernet frames, each behind a
/// virtio-net header, one queue. It vanishes with the descriptor unless [`persist`] is called.
///
/// `name` must have been checked: at most 15 bytes, no NUL.
pub(crate) fn open(name: &str) -> io::Result<OwnedFd> {
    let file: File = OpenOptions::new().read(true).write(true).open("/dev/net/tun")?;
    // SAFETY: ifreq is plain old data, for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name[..libc::IFNAMSIZ - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: TUNSETIFF reads an ifreq, which lives until the call returns.
    unsafe { ioctl::set_interface(file.as_raw_fd(), &raw const request) }?;
    Ok(file.into())
}

/// Lets the device outlive its descriptors.
pub(crate) fn persist(tap: &OwnedFd) -> io::Result<()> {
    // SAFETY: TUNSETPERSIST takes its argument by value.
    unsafe { ioctl::set_persist(tap.as_raw_fd(), 1) }?;
    Ok(())
}
