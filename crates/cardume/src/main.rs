//! The one binary: every command, and the daemon of a node.
//!
//! Under the name of one of Ganeti's tools (`gnt-instance`, a symlink) it is that tool; `cardume instance …` is the same.

mod daemon;
mod guard;
mod log;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

/// A high-availability virtualisation cluster.
///
/// Two ordinary servers and a small witness become one place where virtual machines keep running. The commands of
/// Ganeti are here under their own names (gnt-cluster, gnt-node, gnt-instance, gnt-job, gnt-os, gnt-debug) and as words
/// of this one: 'cardume instance list' is 'gnt-instance list'.
#[derive(Parser)]
#[command(name = "cardume", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct Cardume {
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  cardume guard --state-dir /var/lib/cardume    run this node's guard and daemon (systemd does it)
  gnt-cluster init cluster01                    make a cluster with this node as its first
  gnt-node add node02                           add a node: prints what to type there
  gnt-instance add --help                       how to make a virtual machine
  cardume disk status --watch                   how mirrored disks are, as it changes
  cardume why vm1                               what happened to a virtual machine, and on what evidence
  cardume ha plan                               where everything goes if a node dies now
  cardume lab up                                a whole cluster on this machine, to try things";

#[derive(Subcommand)]
enum Command {
    /// Run the daemon of this node.
    Daemon(daemon::DaemonArgs),
    /// Run the guard of this node: it starts the daemon, and stops guests when the node's lease runs out.
    Guard(guard::GuardArgs),
    /// A whole cluster on this machine, in network namespaces: up, status, exec, kill, cut, heal, demo, down.
    Lab(lab::cli::LabArgs),
    /// Measure: commands, jobs, change of master, what daemons cost; beside a named peer's figures.
    Bench(lab::bench::BenchArgs),
    /// Mirrored disks: status, verify. See 'cardume disk --help'.
    #[command(disable_help_flag = true)]
    Disk {
        /// See 'cardume disk --help'.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        args: Vec<OsString>,
    },
    /// What happened to an instance or a node, and why. See 'cardume why --help'.
    #[command(disable_help_flag = true)]
    Why {
        /// See 'cardume why --help'.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        args: Vec<OsString>,
    },
    /// Automatic failover: bound, plan, status, arm, disarm. See 'cardume ha --help'.
    #[command(disable_help_flag = true)]
    Ha {
        /// See 'cardume ha --help'.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        args: Vec<OsString>,
    },
    /// Make this machine a node of a cluster, with the token that 'gnt-node add' printed on the master.
    #[command(disable_help_flag = true)]
    Join {
        /// See 'cardume join --help'.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        args: Vec<OsString>,
    },
    /// 'gnt-cluster': the cluster as a whole.
    #[command(external_subcommand)]
    Tool(Vec<OsString>),
}

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    // Before anything else: inside a node the lab's init has to be alone in its process.
    if let Some(code) = lab::entry(&args) {
        return code;
    }
    let name = args.first().and_then(|name| Path::new(name).file_name()).and_then(OsStr::to_str);
    if let Some(tool) = name.filter(|name| name.starts_with("gnt-")) {
        return cli::run(tool, args.iter().skip(1).cloned().collect());
    }
    match Cardume::parse_from(args).command {
        Command::Daemon(args) => report(daemon::run(args)),
        Command::Guard(args) => report(guard::run(args)),
        Command::Lab(args) => report(lab::cli::run(args)),
        Command::Bench(args) => report(lab::bench::run(args)),
        Command::Disk { args } => cli::run("disk", args),
        Command::Why { args } => cli::run("why", args),
        Command::Ha { args } => cli::run("ha", args),
        Command::Join { args } => cli::join(args),
        Command::Tool(words) => {
            let tool = words.first().and_then(|word| word.to_str()).and_then(cli::tool);
            match tool {
                Some(tool) => cli::run(tool, words.into_iter().skip(1).collect()),
                None => {
                    let word = words.first().map(|word| word.to_string_lossy().into_owned()).unwrap_or_default();
                    let mut command = Cardume::command();
                    let error = command.error(
                        clap::error::ErrorKind::InvalidSubcommand,
                        format!("there is no command '{word}'; see 'cardume --help'"),
                    );
                    error.exit()
                }
            }
        }
    }
}

/// Prints an error with its causes.
fn report(outcome: anyhow::Result<ExitCode>) -> ExitCode {
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cardume: {error:#}");
            ExitCode::FAILURE
        }
    }
}
