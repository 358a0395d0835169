//! Why an operation on the network failed, with the interface and the address that it was about.

use std::io;
use std::net::Ipv4Addr;

/// A failed network operation.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No netlink socket could be opened.
    #[error("can't talk to the kernel about the network (netlink)")]
    Netlink(#[source] io::Error),

    /// The name can't be an interface's.
    #[error("'{0}' can't be the name of a network interface (1 to 15 characters, no '/', ':' or white space)")]
    BadName(String),

    /// There is no such interface in this network namespace.
    #[error("there is no network interface {0}; create it, or correct its name in the cluster's parameters")]
    NoSuchInterface(String),

    /// The interface exists, but is no bridge.
    #[error("network interface {0} is not a bridge")]
    NotABridge(String),

    /// An operation on an interface.
    #[error("can't {action} network interface {interface}")]
    Link {
        /// What was attempted, as a verb ("create", "set up").
        action: &'static str,
        /// The interface.
        interface: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },

    /// An operation on an address of an interface.
    #[error("can't {action} address {address} on network interface {interface}")]
    Address {
        /// What was attempted, as a verb ("add", "announce").
        action: &'static str,
        /// The address.
        address: Ipv4Addr,
        /// The interface.
        interface: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },

    /// An operation on a network namespace.
    #[error("can't {action} a network namespace")]
    Namespace {
        /// What was attempted, as a verb ("create", "enter").
        action: &'static str,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn link(action: &'static str, interface: &str) -> impl FnOnce(io::Error) -> Error {
        let interface = interface.to_owned();
        move |source| Error::Link { action, interface, source }
    }

    pub(crate) fn address(action: &'static str, address: Ipv4Addr, interface: &str) -> impl FnOnce(io::Error) -> Error {
        let interface = interface.to_owned();
        move |source| Error::Address { action, address, interface, source }
    }

    pub(crate) fn namespace(action: &'static str) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::Namespace { action, source }
    }
}
