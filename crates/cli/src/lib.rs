//! The commands that administrators type: Ganeti's `gnt-*` tools as names of one binary.
//!
//! `gnt-instance add …` and `cardume instance add …` are the same command: [`run`] takes the tool's name and what follows
//! it. Words, tables, messages and exit codes are Ganeti's. Everything goes through the daemon's API; there is no back
//! door, so whatever a command can do another client can do too (see [`client`]).
//!
//! Exit codes: 0 success, 1 failure, 2 an option that can't be understood, 5 this node is not in a cluster, 13 a question
//! was answered with no, 14 an unknown column was asked for.

use std::ffi::OsString;
use std::process::ExitCode;

pub mod client;
mod cluster;
mod confirm;
mod console;
mod debug;
mod devices;
mod disk;
mod error;
mod follow;
mod ha;
mod instance;
mod job;
mod join;
mod listing;
mod node;
mod options;
mod os;
mod parameters;
mod recovery;
mod session;
mod terminal;
mod usage;
mod why;

pub use confirm::{Answers, Terminal};
pub use error::Error;
pub use session::Session;

/// Every tool: the word after `cardume`, and the name of its own.
const TOOLS: &[(&str, &str)] = &[
    ("cluster", "gnt-cluster"),
    ("node", "gnt-node"),
    ("instance", "gnt-instance"),
    ("os", "gnt-os"),
    ("job", "gnt-job"),
    ("debug", "gnt-debug"),
    ("disk", "disk"),
    ("ha", "ha"),
    ("why", "why"),
    ("join", "join"),
];

/// The tool that a word names: `instance` and `gnt-instance` both name `gnt-instance`. `None` if it names none.
pub fn tool(word: &str) -> Option<&'static str> {
    TOOLS.iter().find(|(short, name)| word == *short || word == *name).map(|(_, name)| *name)
}

/// Runs a command on the standard streams. `args` is what follows the tool's name.
///
/// The tool is one that [`tool`] knows.
pub fn run(tool: &str, args: Vec<OsString>) -> ExitCode {
    ExitCode::from(run_in(&mut Session::standard(), tool, args))
}

/// Joins a cluster: `cardume join --token T ADDRESS`. `args` is what follows `join`.
pub fn join(args: Vec<OsString>) -> ExitCode {
    run("join", args)
}

/// Runs a command in a session of the caller's, and gives its exit code.
pub fn run_in(session: &mut Session, tool: &str, args: Vec<OsString>) -> u8 {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => return session.fail(&Error::Runtime(cause)),
    };
    let result = runtime.block_on(dispatch(session, tool, args));
    // A thread that waits for standard input must not keep the command from ending.
    runtime.shutdown_background();
    match result.and_then(|code| session.flush().map(|()| code)) {
        Ok(code) => code,
        Err(error) => session.fail(&error),
    }
}

async fn dispatch(session: &mut Session, tool: &str, args: Vec<OsString>) -> Result<u8, Error> {
    // Boxed: the futures of the tools differ much in size, and one runs only.
    match tool {
        "gnt-cluster" => Box::pin(usage::parse::<cluster::Tool>(tool, args)?.command.run(session)).await,
        "gnt-node" => Box::pin(usage::parse::<node::Tool>(tool, args)?.command.run(session)).await,
        "gnt-instance" => Box::pin(usage::parse::<instance::Tool>(tool, args)?.command.run(session)).await,
        "gnt-os" => Box::pin(usage::parse::<os::Tool>(tool, args)?.command.run(session)).await,
        "gnt-job" => Box::pin(usage::parse::<job::Tool>(tool, args)?.command.run(session)).await,
        "gnt-debug" => Box::pin(usage::parse::<debug::Tool>(tool, args)?.command.run(session)).await,
        "disk" => Box::pin(usage::parse::<disk::Tool>("cardume disk", args)?.command.run(session)).await,
        "ha" => Box::pin(usage::parse::<ha::Tool>("cardume ha", args)?.command.run(session)).await,
        "why" => Box::pin(usage::parse::<why::Tool>("cardume why", args)?.run(session)).await,
        "join" => Box::pin(usage::parse::<join::Tool>("cardume join", args)?.run(session)).await,
        other => Err(Error::message(format!("There is no tool '{other}'"))),
    }
}
