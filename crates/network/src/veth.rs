//! Virtual cables between network namespaces.

use std::os::fd::AsRawFd;

use rtnetlink::LinkVeth;

use crate::netlink::io_error;
use crate::netns::NetNs;
use crate::{Error, Netlink, link};

/// Lays a cable: one end named `here` in this namespace, the other one named `there` in the namespace `peer`.
/// Both are down. For a moment the name `there` exists in this namespace too. The cable goes when either end is
/// deleted, or with either namespace.
pub async fn create(net: &Netlink, here: &str, there: &str, peer: &NetNs) -> Result<(), Error> {
    link::check_name(here)?;
    link::check_name(there)?;
    let answer = net.handle().link().add(LinkVeth::new(here, there).build()).execute().await;
    answer.map_err(|e| Error::link("create", here)(io_error(e)))?;
    let moved = match link::get(net, there).await {
        Ok(end) => link::change(net, "move to its namespace", &end, |l| l.setns_by_fd(peer.fd().as_raw_fd())).await,
        Err(error) => Err(error),
    };
    if moved.is_err() {
        // Half a cable helps nobody, and its name would be in the way of the next attempt.
        let _ = link::delete(net, here).await;
    }
    moved
}
