//! Making one cluster of a lab's nodes, with the commands that an administrator would type.

use std::thread;
use std::time::{Duration, Instant};

use opcodes::wire::{NodeLease, Request};

use crate::{Api, Error, Lab};

/// How long a node may take to be added.
const ADD: Duration = Duration::from_secs(90);
/// How long the cluster may take to arrange its votes.
const VOTERS: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// What a witness is added with.
pub const WITNESS: [&str; 2] = ["--master-capable=no", "--vm-capable=no"];

impl Lab {
    /// Makes a cluster: `gnt-cluster init` with these options on node01, then every other node joins, and the witness
    /// if there is one. Disks are mirrored through the replication network. Returns when all who shall vote do, and
    /// automatic failover is ready where they are enough for it.
    pub fn form(&self, init: &[&str]) -> Result<(), Error> {
        let members: Vec<String> =
            self.status()?.into_iter().map(|s| s.name).filter(|name| *name != crate::layout::CLIENT).collect();
        for name in &members {
            self.wait_for_daemon(name)?;
        }
        let node = self.node("node01")?;
        let replication = node.replication_address().to_string();
        let line = [&["gnt-cluster", "init", "-s", &replication], init, &["cluster01"]].concat();
        let output = node.exec(line.iter().copied())?;
        if !output.status.success() {
            return Err(Error::Program { command: line.join(" "), message: output.stderr });
        }
        for name in members.iter().filter(|name| *name != "node01") {
            let options: &[&str] = if name == "witness" { &WITNESS } else { &[] };
            self.add_node("node01", name, options)?;
        }
        let voters = match members.len() {
            0..=2 => 1,
            3 | 4 => 3,
            _ => 5,
        };
        self.wait_for_voters("node01", voters)?;
        if voters < 3 { Ok(()) } else { self.wait_for_arming("node01") }
    }

    /// Adds a node: types `gnt-node add` on `on` and, when it is printed, the line to join on the new node.
    pub fn add_node(&self, on: &str, name: &str, options: &[&str]) -> Result<(), Error> {
        let replication = self.node(name)?.replication_address().to_string();
        let line = [&["gnt-node", "add", "-s", &replication], options, &[name]].concat();
        let mut adding = self.node(on)?.command(line.iter().copied()).pty()?;
        adding.read_until("cardume join ", ADD)?;
        let rest = adding.read_until("\n", ADD)?;
        let join = ["cardume", "join"].into_iter().chain(rest.split_whitespace());
        let joined = self.node(name)?.exec(join)?;
        if !joined.status.success() {
            return Err(Error::Program { command: format!("cardume join on {name}"), message: joined.stderr });
        }
        let (status, said) = adding.finish(ADD)?;
        if status.success() { Ok(()) } else { Err(Error::Program { command: line.join(" "), message: said }) }
    }

    /// Waits until this many nodes vote, as `on` sees it.
    pub fn wait_for_voters(&self, on: &str, count: usize) -> Result<(), Error> {
        let what = format!("{count} voting nodes");
        self.wait_for_status(on, &what, VOTERS, |status| status.voters.len() == count && status.has_master)
    }

    /// Waits until every node that runs guests may be declared dead without an operator, as `on` sees it.
    pub fn wait_for_arming(&self, on: &str) -> Result<(), Error> {
        let api = Api::of(&self.node(on)?)?;
        let deadline = Instant::now() + VOTERS;
        loop {
            let leases = api.call::<Vec<NodeLease>>(&Request::HaStatus);
            let is_ready = |lease: &NodeLease| lease.armed || lease.node == "witness";
            if leases.as_ref().is_ok_and(|leases| leases.iter().all(is_ready)) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let (what, node) = ("every node armed".to_owned(), on.to_owned());
                return Err(Error::Timeout { what, node, after: VOTERS, seen: format!("{leases:?}") });
            }
            // Nothing announces it to who is not a client of a job.
            thread::sleep(POLL);
        }
    }

    /// Waits until a node says of itself and its cluster what is wanted. While its daemon does not answer it goes on
    /// asking.
    pub fn wait_for_status(
        &self,
        name: &str,
        what: &str,
        timeout: Duration,
        holds: impl Fn(&opcodes::wire::NodeStatus) -> bool,
    ) -> Result<(), Error> {
        let api = Api::of(&self.node(name)?)?;
        let deadline = Instant::now() + timeout;
        loop {
            let status = api.status();
            if status.as_ref().is_ok_and(&holds) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let (what, node) = (what.to_owned(), name.to_owned());
                return Err(Error::Timeout { what, node, after: timeout, seen: format!("{status:?}") });
            }
            // Nothing announces it to who is not a client of a job.
            thread::sleep(POLL);
        }
    }
}
