//! Tap devices: a guest's end of the network.
//!
//! A tap is made by the daemon (which may) and handed to QEMU (which may not) as an open descriptor:
//! `-netdev tap,fd=N`. It is persistent, so that it stays while a guest is stopped and started again and while
//! the daemon restarts; what nobody needs any more is found with [`list`].

use std::os::fd::OwnedFd;

use rtnetlink::packet_route::link::InfoKind;

use crate::{Error, Netlink, bridge, link, tun};

/// All our taps' names start with this.
pub const PREFIX: &str = "gnt";

/// Frames that wait in a tap for QEMU to read them: what comes for a guest while a migration switches it.
const QUEUE: u32 = 2048;

/// A tap device of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tap {
    /// The interface's name.
    pub name: String,
    /// Id of the instance that it was made for. `None` only while it is being made.
    pub instance: Option<String>,
}

/// The name of an instance's tap: [`PREFIX`], the start of the instance's UUID, the number of the NIC. An
/// interface's name is too short for a whole UUID; that one is kept in the interface's alias.
pub fn name(instance: &str, nic: u8) -> String {
    let id: String = instance.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
    format!("{PREFIX}{id}-{nic}")
}

/// Makes a tap for an instance, attaches it to `bridge` and sets it up. The descriptor is closed on exec; the
/// caller lets QEMU inherit it.
///
/// Repeatable: a tap that is there already and that no process holds is opened and put in order. One that a
/// running QEMU holds is refused (`EBUSY`). A tap that could not be completed does not stay behind.
pub async fn create(net: &Netlink, name: &str, bridge: &str, instance: &str) -> Result<OwnedFd, Error> {
    link::check_name(name)?;
    if !bridge::exists(net, bridge).await? {
        return Err(Error::NoSuchInterface(bridge.to_owned()));
    }
    let tap = tun::open(name).map_err(Error::link("create", name))?;
    let created = link::get(net, name).await?;
    // A bridge takes on the lowest address among its ports where its own was never set: keep out of the way.
    let mut mac = created.mac.clone();
    if let Some(first) = mac.first_mut() {
        *first = 0xfe;
    }
    link::change(net, "set the hardware address of", &created, |l| l.address(mac)).await?;
    link::change(net, "name the instance of", &created, |l| l.alias(instance).txqueuelen(QUEUE)).await?;
    bridge::attach(net, bridge, name).await?;
    link::set_up(net, name).await?;
    tun::persist(&tap).map_err(Error::link("keep", name))?;
    Ok(tap)
}

/// Deletes a tap, also one that a process still holds. Repeatable.
pub async fn delete(net: &Netlink, name: &str) -> Result<(), Error> {
    link::delete(net, name).await
}

/// All taps of ours in this namespace, sorted by name.
pub async fn list(net: &Netlink) -> Result<Vec<Tap>, Error> {
    let links = link::all(net).await?;
    let mut taps: Vec<Tap> = links
        .into_iter()
        .filter(|l| l.kind == Some(InfoKind::Tun) && l.name.starts_with(PREFIX))
        .map(|l| Tap { name: l.name, instance: l.alias })
        .collect();
    taps.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(taps)
}

#[cfg(test)]
mod tests {
    use super::name;

    #[test]
    fn name_fits_an_interface_and_tells_instances_and_nics_apart() {
        let a = name("0f3e9c1a-7b52-4f7e-9d5c-2f1f5a0b8c11", 0);
        assert_eq!(a, "gnt0f3e9c1a-0");
        assert!(name("0f3e9c1a-7b52-4f7e-9d5c-2f1f5a0b8c11", 255).len() <= crate::link::NAME_MAX);
        assert_ne!(a, name("0f3e9c1b-7b52-4f7e-9d5c-2f1f5a0b8c11", 0));
        assert_ne!(a, name("0f3e9c1a-7b52-4f7e-9d5c-2f1f5a0b8c11", 1));
    }
}
