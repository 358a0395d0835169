//! What the daemon and the guard say to each other: a line of JSON each.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};

use ha::Now;
use hypervisor::ProcessId;
use model::{Incarnation, Life, NodeId, RunId};
use serde::{Deserialize, Serialize};

/// Said by the daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToGuard {
    /// It lives, and knows that of the node; answered by [`ToDaemon::Lease`].
    Tick(Standing),
    /// Whom the guard may have to ask.
    Surroundings(Surroundings),
    /// This node is the master of that term: put the cluster's address on it; answered by [`ToDaemon::Answered`]. It is the
    /// guard that does it, because a daemon that stands still for a while could do it when another node has it already.
    PutAddressOn {
        /// Of this request.
        number: u64,
        /// The term.
        term: u64,
        /// The address.
        address: ClusterAddress,
    },
    /// A run is there; answered by [`ToDaemon::Answered`].
    Register {
        /// Of this registration.
        number: u64,
        /// The run.
        watched: Watched,
    },
    /// A run without a process is over.
    Ended(RunId),
}

/// Said by the guard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum ToDaemon {
    /// It lives, and the lease lasts until then.
    Lease(Now),
    /// What became of a request.
    Answered {
        /// Its number.
        number: u64,
        /// Why not.
        outcome: Result<(), String>,
    },
}

/// Where the node stands, as far as its daemon knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Standing {
    /// It has only just started: it is as it was.
    #[default]
    Unknown,
    /// In no cluster.
    Outside,
    /// In a cluster.
    Inside(As),
}

/// [`ha::guard::Identity`], to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct As {
    pub inc: Incarnation,
    pub node: NodeId,
    pub life: Life,
}

impl From<ha::guard::Identity> for As {
    fn from(identity: ha::guard::Identity) -> Self {
        let ha::guard::Identity { inc, node, life } = identity;
        Self { inc, node, life }
    }
}

impl From<As> for ha::guard::Identity {
    fn from(identity: As) -> Self {
        let As { inc, node, life } = identity;
        Self { inc, node, life }
    }
}

/// A run, as the guard knows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Watched {
    pub run: RunId,
    /// What carries it. A fake run has no process.
    pub process: Option<ProcessId>,
    /// It is to be stopped when the lease runs out.
    pub protected: bool,
}

/// The guard's way to the master, and what it may have to take off the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Surroundings {
    /// The nodes that may be master, with their ports for other nodes.
    pub nodes: BTreeMap<NodeId, SocketAddr>,
    /// The cluster's address, as it would be on this node.
    pub address: Option<ClusterAddress>,
}

/// The cluster's address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ClusterAddress {
    pub address: Ipv4Addr,
    /// Length of its prefix.
    pub netmask: u8,
    /// Interface that carries it.
    pub netdev: String,
}

/// One message, as it is sent.
pub(super) fn line(message: &impl Serialize) -> Vec<u8> {
    // These types have no maps but with numbers as keys, and nothing else that JSON does not know.
    let mut line = serde_json::to_vec(message).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let around = Surroundings {
            nodes: BTreeMap::from([(NodeId(1), ([10, 0, 0, 5], 5081).into())]),
            address: Some(ClusterAddress { address: [10, 0, 0, 1].into(), netmask: 32, netdev: "br0".into() }),
        };
        let watched = Watched { run: RunId(7), process: None, protected: true };
        for message in [
            ToGuard::Tick(Standing::Inside(As { inc: Incarnation::default(), node: NodeId(1), life: Life(3) })),
            ToGuard::Tick(Standing::Unknown),
            ToGuard::Surroundings(around),
            ToGuard::Register { number: 1, watched },
            ToGuard::Ended(RunId(7)),
        ] {
            assert_eq!(serde_json::from_slice::<ToGuard>(&line(&message)).unwrap(), message);
        }
        for message in [
            ToDaemon::Lease(Now::from_nanos(1_234_567_891)),
            ToDaemon::Answered { number: 1, outcome: Err("gone".into()) },
        ] {
            assert_eq!(serde_json::from_slice::<ToDaemon>(&line(&message)).unwrap(), message);
        }
    }
}
