//! What all interfaces have in common: to be found, set up and down, deleted.

use futures::TryStreamExt;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage};
use rtnetlink::{LinkMessageBuilder, LinkUnspec};

use crate::netlink::{io_error, unless};
use crate::{Error, Netlink};

/// The longest name that the kernel takes, in bytes.
pub const NAME_MAX: usize = libc::IFNAMSIZ - 1;

/// A network interface as the kernel describes it.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub index: u32,
    pub name: String,
    /// Hardware address; empty where the kind of interface has none.
    pub mac: Vec<u8>,
    pub kind: Option<InfoKind>,
    pub alias: Option<String>,
    /// Index of the bridge that it is a port of.
    pub controller: Option<u32>,
    pub up: bool,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Link {
        let mut link = Link {
            index: message.header.index,
            name: String::new(),
            mac: Vec::new(),
            kind: None,
            alias: None,
            controller: None,
            up: message.header.flags.contains(LinkFlags::Up),
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Address(mac) => link.mac = mac,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias),
                LinkAttribute::Controller(index) => link.controller = Some(index),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind),
                        _ => None,
                    });
                }
                _ => {}
            }
        }
        link
    }
}

/// Refuses a name that the kernel would refuse, before it reaches a place where it would be cut off.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    let usable = !name.is_empty()
        && name.len() <= NAME_MAX
        && name != "."
        && name != ".."
        && !name.contains(|c: char| c == '/' || c == ':' || c == '\0' || c.is_whitespace());
    if usable { Ok(()) } else { Err(Error::BadName(name.to_owned())) }
}

/// The interface, or `None` where there is none of that name.
pub(crate) async fn find(net: &Netlink, name: &str) -> Result<Option<Link>, Error> {
    check_name(name)?;
    let answer = net.handle().link().get().match_name(name.to_owned()).execute().try_next().await;
    match answer.map_err(io_error) {
        Ok(message) => Ok(message.map(Link::from)),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(Error::link("look up", name)(error)),
    }
}

pub(crate) async fn get(net: &Netlink, name: &str) -> Result<Link, Error> {
    find(net, name).await?.ok_or_else(|| Error::NoSuchInterface(name.to_owned()))
}

pub(crate) async fn all(net: &Netlink) -> Result<Vec<Link>, Error> {
    let messages: Vec<LinkMessage> =
        net.handle().link().get().execute().try_collect().await.map_err(|e| Error::Netlink(io_error(e)))?;
    Ok(messages.into_iter().map(Link::from).collect())
}

/// Carries out a change to an interface that exists.
pub(crate) async fn change(
    net: &Netlink,
    action: &'static str,
    link: &Link,
    change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
) -> Result<(), Error> {
    let message = change(LinkUnspec::new_with_index(link.index)).build();
    let answer = net.handle().link().set(message).execute().await;
    answer.map_err(|e| Error::link(action, &link.name)(io_error(e)))
}

/// Is there an interface of this name?
pub async fn exists(net: &Netlink, name: &str) -> Result<bool, Error> {
    Ok(find(net, name).await?.is_some())
}

/// Is the interface administratively up?
pub async fn is_up(net: &Netlink, name: &str) -> Result<bool, Error> {
    Ok(get(net, name).await?.up)
}

/// Sets an interface up. Repeatable.
pub async fn set_up(net: &Netlink, name: &str) -> Result<(), Error> {
    change(net, "set up", &get(net, name).await?, LinkMessageBuilder::up).await
}

/// Sets an interface down. Repeatable.
pub async fn set_down(net: &Netlink, name: &str) -> Result<(), Error> {
    change(net, "set down", &get(net, name).await?, LinkMessageBuilder::down).await
}

/// Gives an interface a hardware address of the caller's choice.
pub async fn set_mac(net: &Netlink, name: &str, mac: [u8; 6]) -> Result<(), Error> {
    let link = get(net, name).await?;
    change(net, "set the hardware address of", &link, |l| l.address(mac.to_vec())).await
}

/// Deletes an interface (for a veth pair: both its ends). Repeatable: one that is not there is no error.
pub async fn delete(net: &Netlink, name: &str) -> Result<(), Error> {
    let Some(link) = find(net, name).await? else {
        return Ok(());
    };
    let answer = net.handle().link().del(link.index).execute().await;
    unless(answer, libc::ENODEV).map_err(Error::link("delete", name))
}

/// The names of all interfaces of the namespace, sorted.
pub async fn names(net: &Netlink) -> Result<Vec<String>, Error> {
    let mut names: Vec<String> = all(net).await?.into_iter().map(|link| link.name).collect();
    names.sort();
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::check_name;

    #[test]
    fn names_that_the_kernel_would_refuse_or_cut_off_are_refused() {
        for good in ["br0", "gnt1a2b3c4d-10", "exactly15chars_"] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a:b", "a b", "sixteen_chars_xx", "nul\0"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }
}
