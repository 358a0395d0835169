//! Who is in a lab, under which name and address, and where its files are.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

/// The most nodes that the address plan has room for.
pub(crate) const MAX_NODES: u8 = 64;

/// The switch's place in the record. It has no address.
pub(crate) const SWITCH: &str = "switch";
/// The namespace from which a cluster is observed.
pub(crate) const CLIENT: &str = "client";
const CLIENT_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 100);

/// Names that have an address, but no namespace of their own: the cluster, and the guests of the scenario.
const OTHERS: [(&str, Ipv4Addr); 4] = [
    ("vm1", Ipv4Addr::new(10, 0, 0, 10)),
    ("vm2", Ipv4Addr::new(10, 0, 0, 11)),
    ("vm3", Ipv4Addr::new(10, 0, 0, 12)),
    ("cluster01", Ipv4Addr::new(10, 0, 0, 20)),
];

/// Names and public addresses of a lab's nodes. The first ones are the thesis'; from the fifth node on they
/// keep clear of the guests'.
pub(crate) fn nodes(count: u8, witness: bool) -> Vec<(String, Ipv4Addr)> {
    let number = |n: u8| match n {
        1 | 2 => 4 + n,
        3 | 4 => 5 + n,
        _ => 30 + n,
    };
    let mut nodes: Vec<(String, Ipv4Addr)> =
        (1..=count).map(|n| (format!("node{n:02}"), Ipv4Addr::new(10, 0, 0, number(n)))).collect();
    if witness {
        nodes.push(("witness".to_owned(), Ipv4Addr::new(10, 0, 0, 7)));
    }
    nodes
}

/// The address of a name that has no namespace of its own.
pub(crate) fn other(name: &str) -> Option<Ipv4Addr> {
    OTHERS.iter().find(|(other, _)| *other == name).map(|(_, address)| *address)
}

/// The client's address.
pub(crate) fn client() -> (String, Ipv4Addr) {
    (CLIENT.to_owned(), CLIENT_ADDRESS)
}

/// A node's address on the replication network.
pub(crate) fn replication(public: Ipv4Addr) -> Ipv4Addr {
    let [_, _, _, host] = public.octets();
    Ipv4Addr::new(10, 1, 0, host)
}

/// A hardware address that says whose it is, so that a trace of packets can be read.
pub(crate) fn mac(address: Ipv4Addr) -> [u8; 6] {
    let [a, b, c, d] = address.octets();
    [2, 0, a, b, c, d]
}

/// The text of `/etc/hosts`.
pub(crate) fn hosts(members: &[(String, Ipv4Addr)]) -> String {
    let mut text = "127.0.0.1\tlocalhost\n".to_owned();
    let others = OTHERS.map(|(name, address)| (name.to_owned(), address));
    for (name, address) in members.iter().chain(&others) {
        let _ = writeln!(text, "{address}\t{name}");
    }
    text
}

/// The files of a lab.
#[derive(Debug, Clone)]
pub(crate) struct Files(pub PathBuf);

impl Files {
    pub fn dir(&self) -> &Path {
        &self.0
    }
    pub fn record(&self) -> PathBuf {
        self.0.join("lab.json")
    }
    pub fn bin(&self) -> PathBuf {
        self.0.join("bin")
    }
    pub fn binary(&self) -> PathBuf {
        self.bin().join("cardume")
    }
    /// Everything of one member.
    pub fn of(&self, member: &str) -> PathBuf {
        self.0.join(member)
    }
    /// Its `/var/lib/cardume`.
    pub fn state(&self, member: &str) -> PathBuf {
        self.of(member).join("var")
    }
    /// Its `/var/log/cardume`.
    pub fn logs(&self, member: &str) -> PathBuf {
        self.of(member).join("log")
    }
    /// Its `/srv/ganeti/file-storage`: where disks of the template `file` are unless a cluster says otherwise.
    pub fn disks(&self, member: &str) -> PathBuf {
        self.of(member).join("disks")
    }
    pub fn hosts(&self, member: &str) -> PathBuf {
        self.of(member).join("hosts")
    }
    /// What the daemon writes to its standard output and error.
    pub fn daemon_log(&self, member: &str) -> PathBuf {
        self.of(member).join("daemon.log")
    }
    /// What the init has to say.
    pub fn init_log(&self, member: &str) -> PathBuf {
        self.of(member).join("init.log")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_the_thesis_ones_and_never_clash() {
        let of = |name: &str| nodes(MAX_NODES, true).into_iter().find(|(n, _)| n == name).unwrap().1;
        assert_eq!(of("node01"), Ipv4Addr::new(10, 0, 0, 5));
        assert_eq!(of("node02"), Ipv4Addr::new(10, 0, 0, 6));
        assert_eq!(of("witness"), Ipv4Addr::new(10, 0, 0, 7));
        assert_eq!(of("node03"), Ipv4Addr::new(10, 0, 0, 8));
        assert_eq!(of("node04"), Ipv4Addr::new(10, 0, 0, 9));

        let mut all: Vec<Ipv4Addr> = nodes(MAX_NODES, true).into_iter().map(|(_, a)| a).collect();
        all.push(CLIENT_ADDRESS);
        all.extend(OTHERS.map(|(_, a)| a));
        let count = all.len();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), count);
    }

    #[test]
    fn hosts_file_names_everybody() {
        let text = hosts(&nodes(2, true));
        for line in ["10.0.0.5\tnode01", "10.0.0.7\twitness", "10.0.0.10\tvm1", "10.0.0.20\tcluster01"] {
            assert!(text.lines().any(|l| l == line), "{line} is missing in\n{text}");
        }
    }
}
