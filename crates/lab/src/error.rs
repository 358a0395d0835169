//! Why the lab could not do what it was asked to.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A failed operation of the lab.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Not started as root.
    #[error("the lab needs root (it makes network namespaces)")]
    NotRoot,
    /// There is no lab in this directory.
    #[error("there is no lab in {0}; start one with 'cardume lab up'")]
    NoLab(PathBuf),
    /// A lab runs in this directory already.
    #[error("a lab is running in {0}; end it with 'cardume lab down'")]
    Running(PathBuf),
    /// A program that is still alive brought this lab up and will take it down.
    #[error("the lab in {dir} belongs to process {pid}, which is still running")]
    InUse {
        /// The lab's directory.
        dir: PathBuf,
        /// The owner.
        pid: i32,
    },
    /// The directory holds something else; we don't delete what isn't ours.
    #[error("{0} is not empty and not a lab; choose another directory with --dir")]
    NotALab(PathBuf),
    /// The record of the lab can't be understood.
    #[error("{path} is damaged; end the processes named 'lab-init' by hand, then remove the directory")]
    Damaged {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// A number of nodes that the address plan has no room for.
    #[error("a lab has 1 to {max} nodes, not {asked}")]
    Count {
        /// What was asked for.
        asked: u8,
        /// The most that is possible.
        max: u8,
    },
    /// No node of this name.
    #[error("the lab has no node '{name}'; it has {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names that exist.
        known: String,
    },
    /// The node is down.
    #[error("{0} is not running; start it with 'cardume lab start {0}'")]
    NotRunning(String),
    /// The node is up.
    #[error("{0} is running already")]
    AlreadyRunning(String),
    /// A file or directory.
    #[error("can't {action} {}", path.display())]
    File {
        /// What was attempted, as a verb.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// The network of a node.
    #[error("can't {action} the network of {node}")]
    Network {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The node.
        node: String,
        /// What failed.
        #[source]
        source: network::Error,
    },
    /// A program that we need (`tc`) failed.
    #[error("'{command}' failed: {message}")]
    Program {
        /// The command line.
        command: String,
        /// What it said.
        message: String,
    },
    /// A node's init could not be started, watched or ended.
    #[error("can't {action} {node}")]
    Process {
        /// What was attempted, as a verb.
        action: &'static str,
        /// The node.
        node: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A node's init gave up.
    #[error("{node} did not start: {message}")]
    Init {
        /// The node.
        node: String,
        /// What its init said.
        message: String,
    },
    /// A command could not be run inside a node.
    #[error("can't run '{command}' in {node}")]
    Exec {
        /// The node.
        node: String,
        /// The command line.
        command: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// Something did not happen in time.
    #[error("{what} in {node}: not within {after:?}\n{seen}")]
    Timeout {
        /// What was waited for.
        what: String,
        /// The node.
        node: String,
        /// How long.
        after: Duration,
        /// What was seen instead (the end of a log, a command's output).
        seen: String,
    },
}

impl Error {
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::File { action, path, source }
    }

    pub(crate) fn network(action: &'static str, node: &str) -> impl FnOnce(network::Error) -> Error {
        let node = node.to_owned();
        move |source| Error::Network { action, node, source }
    }

    pub(crate) fn process(action: &'static str, node: &str) -> impl FnOnce(io::Error) -> Error {
        let node = node.to_owned();
        move |source| Error::Process { action, node, source }
    }

    pub(crate) fn exec(node: &str, command: &str) -> impl FnOnce(io::Error) -> Error {
        let (node, command) = (node.to_owned(), command.to_owned());
        move |source| Error::Exec { node, command, source }
    }
}
