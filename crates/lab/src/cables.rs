//! The switch and the cables to it: how a node comes into the network, and how it falls out of it.

use std::process::Command;

use network::netns::NetNs;
use network::{address, bridge, link, veth};
use serde::{Deserialize, Serialize};

use crate::Error;
use crate::layout;
use crate::process::Process;
use crate::record::{Member, Role};

/// Which of a node's two cables.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cable {
    /// The public network, 10.0.0.0/24: users, guests, the cluster's address.
    Public,
    /// The replication network, 10.1.0.0/24.
    Replication,
    /// Both at once.
    Both,
}

/// What is wrong with a cable. "Out" and "in" are seen from the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cut {
    /// Unplugged: both ends see that there is no carrier.
    Both,
    /// What the node sends is lost; it still hears the others. Nobody sees a loss of carrier.
    Out,
    /// What is sent to the node is lost; the others still hear it. Nobody sees a loss of carrier.
    In,
}

impl Cable {
    pub(crate) fn has_public(self) -> bool {
        self != Cable::Replication
    }
    pub(crate) fn has_replication(self) -> bool {
        self != Cable::Public
    }
}

const LAN: &str = "lan0";
const REPLICATION: &str = "rep0";

/// The names of a member's ports on the switch.
fn lan_port(member: &str) -> String {
    format!("{member}-lan")
}
fn replication_port(member: &str) -> String {
    format!("{member}-rep")
}

/// Opens the network namespace of a process that may have ended meanwhile.
pub(crate) fn namespace(name: &str, process: Option<Process>) -> Result<NetNs, Error> {
    let gone = || Error::NotRunning(name.to_owned());
    let process = process.filter(|p| p.is_alive()).ok_or_else(gone)?;
    let namespace = NetNs::of_process(process.pid).map_err(Error::network("find", name))?;
    // Now that it is open it is the right one, if the process is still the one that we mean.
    if process.is_alive() { Ok(namespace) } else { Err(gone()) }
}

/// Gives the switch its two bridges.
pub(crate) fn build_switch(switch: &NetNs) -> Result<(), Error> {
    switch
        .configure(|net| async move {
            bridge::create(&net, LAN, None).await?;
            bridge::create(&net, REPLICATION, None).await
        })
        .map_err(Error::network("build", layout::SWITCH))
}

/// Plugs a member's fresh namespace into the switch and gives it its addresses. A cut of its cables stays.
pub(crate) fn connect(switch: &NetNs, member: &Member, inside: &NetNs) -> Result<(), Error> {
    let Some(public) = member.address else {
        return Ok(());
    };
    let node = member.role == Role::Node;
    let end = if node { "up0" } else { "eth0" };
    unplug(switch, &member.name)?;
    let lay = |net| async move {
        let net: network::Netlink = net;
        let port = lan_port(&member.name);
        veth::create(&net, &port, end, inside).await?;
        bridge::attach(&net, LAN, &port).await?;
        link::set_up(&net, &port).await?;
        if node {
            let port = replication_port(&member.name);
            veth::create(&net, &port, "rep", inside).await?;
            bridge::attach(&net, REPLICATION, &port).await?;
            link::set_up(&net, &port).await?;
        }
        Ok(())
    };
    switch.configure(lay).map_err(Error::network("connect", &member.name))?;
    let configure = |net| async move {
        let net: network::Netlink = net;
        link::set_up(&net, "lo").await?;
        link::set_up(&net, end).await?;
        if node {
            bridge::create(&net, "br0", Some(layout::mac(public))).await?;
            bridge::attach(&net, "br0", end).await?;
            address::add(&net, "br0", public, 24).await?;
            let replication = layout::replication(public);
            // A machine that is started again has the same cards: others need not ask for its address again.
            link::set_mac(&net, "rep", layout::mac(replication)).await?;
            link::set_up(&net, "rep").await?;
            address::add(&net, "rep", replication, 24).await
        } else {
            address::add(&net, end, public, 24).await
        }
    };
    inside.configure(configure).map_err(Error::network("set up", &member.name))?;
    apply(switch, &member.name, member.public, member.replication)
}

/// Takes a member's cables away, as far as they exist. A namespace goes some time after its last process; its
/// cables have to go at once, so that others notice and new ones can have their names.
pub(crate) fn unplug(switch: &NetNs, member: &str) -> Result<(), Error> {
    switch
        .configure(|net| async move {
            link::delete(&net, &lan_port(member)).await?;
            link::delete(&net, &replication_port(member)).await
        })
        .map_err(Error::network("disconnect", member))
}

/// Brings both cables of a member into the state that they are to have, whatever state they are in.
pub(crate) fn apply(switch: &NetNs, member: &str, public: Option<Cut>, replication: Option<Cut>) -> Result<(), Error> {
    for (port, cut) in [(lan_port(member), public), (replication_port(member), replication)] {
        let there = switch
            .configure(|net| {
                let port = &port;
                async move {
                    if !link::exists(&net, port).await? {
                        return Ok(false);
                    }
                    match cut {
                        Some(Cut::Both) => link::set_down(&net, port).await?,
                        _ => link::set_up(&net, port).await?,
                    }
                    Ok(true)
                }
            })
            .map_err(Error::network("change", member))?;
        if there {
            // `clsact` holds filters for both directions; without it the port is as it was born.
            if tc(switch, &["qdisc", "show", "dev", &port])?.contains("clsact") {
                tc(switch, &["qdisc", "del", "dev", &port, "clsact"])?;
            }
            // The port belongs to the switch: what comes in there is what the node sends out.
            match cut {
                Some(Cut::Out) => drop_all(switch, &port, "ingress")?,
                Some(Cut::In) => drop_all(switch, &port, "egress")?,
                Some(Cut::Both) | None => {}
            }
        }
    }
    Ok(())
}

/// Loses every frame of one direction. The filter is a program of one instruction, "return 2", where 2 is
/// `TC_ACT_SHOT`: it needs nothing of the kernel but `cls_bpf`.
fn drop_all(switch: &NetNs, port: &str, direction: &str) -> Result<(), Error> {
    tc(switch, &["qdisc", "add", "dev", port, "clsact"])?;
    tc(switch, &["filter", "add", "dev", port, direction, "bpf", "da", "bytecode", "1,6 0 0 2"])?;
    Ok(())
}

/// Runs `tc` (iproute2) in the switch.
fn tc(switch: &NetNs, args: &[&str]) -> Result<String, Error> {
    let failed = |message: String| Error::Program { command: format!("tc {}", args.join(" ")), message };
    let output = switch
        .run(|| Command::new("tc").args(args).output())
        .map_err(Error::network("enter", layout::SWITCH))?
        .map_err(|error| failed(format!("{error} (is iproute2 installed?)")))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
