//! What can go wrong when a guest is run.

use std::path::PathBuf;

use crate::migration::MigrationPhase;
use crate::qemu::QmpError;
use crate::state::LiveState;

/// The result of an operation on a hypervisor.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation on a hypervisor failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The machine can't exist as it was described.
    #[error("can't run instance {instance}: {problem}")]
    BadSpec {
        /// The instance's name.
        instance: String,
        /// What is wrong with the description.
        problem: String,
    },
    /// The instance has another run on this node.
    #[error("instance {instance} already runs on this node (run {run})")]
    AlreadyRunning {
        /// The instance's name.
        instance: String,
        /// Its present run.
        run: String,
    },
    /// No such run: it has ended, or was never here.
    #[error("there is no run {run} on this node: it has ended or was never started here")]
    NoSuchRun {
        /// The run that was asked for.
        run: String,
    },
    /// The hypervisor's program is not there.
    #[error("{binary} is not installed: install the package {package}")]
    MissingBinary {
        /// The program that was looked for.
        binary: PathBuf,
        /// The distribution's package that has it.
        package: &'static str,
    },
    /// The hypervisor did not come up.
    #[error("QEMU for instance {instance} did not start: {reason}{}", quoted(.log))]
    Start {
        /// The instance's name.
        instance: String,
        /// How it ended.
        reason: String,
        /// The last lines of QEMU's own log of this start; empty if it wrote none.
        log: String,
    },
    /// The hypervisor refused a command or did not answer it.
    #[error(transparent)]
    Qmp(#[from] QmpError),
    /// QEMU could not be asked what it is able to do.
    #[error("can't ask {binary} for its version and machines{}", quoted(.said))]
    Capabilities {
        /// The program that was asked.
        binary: PathBuf,
        /// What it said instead; empty if nothing.
        said: String,
        /// What went wrong.
        #[source]
        source: Box<QmpError>,
    },
    /// A migration did not come to its end.
    ///
    /// A source's guest goes on with what it did, unless its run has ended; one that was to receive is over, or waits
    /// in vain and is to be destroyed. [`list`](crate::Hypervisor::list) tells.
    #[error("migration of instance {instance} failed (run {run}, phase {phase}): {reason}")]
    Migration {
        /// The instance's name.
        instance: String,
        /// The run on this node.
        run: String,
        /// How far it was.
        phase: MigrationPhase,
        /// The hypervisor's own words, or what was waited for in vain.
        reason: String,
    },
    /// A migration was cancelled by [`migrate_cancel`](crate::Hypervisor::migrate_cancel); the guest goes on.
    #[error("migration of instance {instance} was cancelled (run {run}, phase {phase})")]
    Cancelled {
        /// The instance's name.
        instance: String,
        /// The run on this node.
        run: String,
        /// How far it was.
        phase: MigrationPhase,
    },
    /// The run is in a state in which this can't be done.
    #[error("can't {what} instance {instance}: its run {run} is in state {state}")]
    WrongState {
        /// What was to be done.
        what: &'static str,
        /// The instance's name.
        instance: String,
        /// The run.
        run: String,
        /// Its state.
        state: LiveState,
    },
    /// The instance has no serial console.
    #[error("instance {instance} has no serial console (hypervisor parameter serial_console)")]
    NoConsole {
        /// The instance's name.
        instance: String,
    },
    /// A killed process did not end.
    #[error(
        "process {pid} of instance {instance} was killed {seconds} s ago and is still there: it hangs in the kernel, look at its disks"
    )]
    NotGone {
        /// The instance's name.
        instance: String,
        /// The process that doesn't end.
        pid: i32,
        /// How long it was waited for.
        seconds: u64,
    },
    /// The operating system refused something.
    #[error("can't {what}")]
    Io {
        /// What was attempted, on which object.
        what: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
    /// The driver was dropped, or a task of it died, while the operation ran.
    #[error("the operation on instance {instance} was interrupted")]
    Interrupted {
        /// The instance's name.
        instance: String,
    },
}

impl Error {
    /// For `map_err`: an operating system's error with what was attempted.
    pub(crate) fn io(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }
}

/// A program's own words, set off from the sentence before.
fn quoted(words: &str) -> String {
    if words.is_empty() { String::new() } else { format!("; its last words:\n{words}") }
}
