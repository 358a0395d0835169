//! `cardume lab …`.

use std::ffi::OsString;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, Subcommand, ValueEnum};

use crate::demo::{self, DemoArgs};
use crate::{Cable, Config, Cut, Error, Forward, Lab, Part, sys};

/// A whole cluster on this machine, in network namespaces.
#[derive(Debug, Args)]
pub struct LabArgs {
    /// The lab's directory [default: $CARDUME_LAB_DIR, else /var/tmp/cardume-lab]
    #[arg(long, global = true, value_name = "DIR")]
    dir: Option<PathBuf>,
    #[command(subcommand)]
    command: LabCommand,
}

#[derive(Debug, Subcommand)]
enum LabCommand {
    /// Bring up a lab
    Up {
        /// How many nodes
        #[arg(long, default_value_t = 2)]
        count: u8,
        /// Without the witness
        #[arg(long)]
        no_witness: bool,
    },
    /// List the lab's nodes and how they are
    Status,
    /// Run a command inside a node, or in 'client'
    Exec {
        /// The node
        node: String,
        /// The command
        #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
        command: Vec<OsString>,
    },
    /// End everything in a node at once, as pulling its plug would
    Kill {
        /// The node
        node: String,
        /// Only this: 'daemon', 'guard', or the guest of this name
        #[arg(value_name = "PROCESS")]
        part: Option<String>,
    },
    /// Stop a process of a node where it is (SIGSTOP): it hangs, but it is there
    Pause {
        /// The node
        node: String,
        /// 'daemon', 'guard', or the name of a guest
        #[arg(value_name = "PROCESS")]
        part: String,
    },
    /// Let a process that was paused go on (SIGCONT)
    Resume {
        /// The node
        node: String,
        /// 'daemon', 'guard', or the name of a guest
        #[arg(value_name = "PROCESS")]
        part: String,
    },
    /// Stop a node in good order
    Stop {
        /// The node
        node: String,
    },
    /// Start a node that was killed or stopped
    Start {
        /// The node
        node: String,
    },
    /// Cut a node's cables
    Cut {
        /// The node
        node: String,
        /// Lose one direction only, as seen from the node, instead of unplugging
        #[arg(long, value_name = "DIRECTION", num_args = 0..=1, require_equals = true, default_missing_value = "out")]
        one_way: Option<Direction>,
        /// Only the replication network
        #[arg(long, conflicts_with = "public")]
        replication: bool,
        /// Only the public network
        #[arg(long)]
        public: bool,
    },
    /// Mend a node's cables
    Heal {
        /// The node
        node: String,
    },
    /// Offer a TCP port of a node on 127.0.0.1, until interrupted
    Forward {
        /// The node
        node: String,
        /// The port
        port: u16,
        /// The port on 127.0.0.1 [default: one that is free]
        #[arg(long, default_value_t = 0, hide_default_value = true)]
        local: u16,
    },
    /// Play the scenario on a lab of its own, step by step, with a report
    Demo(DemoArgs),
    /// End the lab and remove everything of it
    Down,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Direction {
    /// What the node sends is lost
    Out,
    /// What is sent to the node is lost
    In,
}

/// Carries out a `lab` command. Needs a process with one thread only for `exec`, which leaves the terminal's
/// signals to the command that it runs.
pub fn run(args: LabArgs) -> anyhow::Result<ExitCode> {
    let mut config = Config::default();
    if let Some(dir) = args.dir {
        config.dir = dir;
    }
    let dir = config.dir.clone();
    match args.command {
        LabCommand::Up { count, no_witness } => {
            config.nodes = count;
            config.witness = !no_witness;
            Lab::up(config)?.keep()?;
            print_status(&Lab::open(&dir)?)?;
        }
        LabCommand::Status => print_status(&Lab::open(&dir)?)?,
        LabCommand::Exec { node, command } => {
            let command = Lab::open(&dir)?.node(&node)?.command(command);
            sys::ignore_terminal_signals();
            let status = command.status()?;
            let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX)));
        }
        LabCommand::Kill { node, part: None } => Lab::open(&dir)?.kill(&node)?,
        LabCommand::Kill { node, part: Some(part) } => Lab::open(&dir)?.node(&node)?.kill_part(&Part::named(&part))?,
        LabCommand::Pause { node, part } => Lab::open(&dir)?.node(&node)?.stop_part(&Part::named(&part))?,
        LabCommand::Resume { node, part } => Lab::open(&dir)?.node(&node)?.continue_part(&Part::named(&part))?,
        LabCommand::Stop { node } => Lab::open(&dir)?.stop(&node)?,
        LabCommand::Start { node } => Lab::open(&dir)?.start(&node)?,
        LabCommand::Cut { node, one_way, replication, public } => {
            let cable = match (public, replication) {
                (true, _) => Cable::Public,
                (_, true) => Cable::Replication,
                _ => Cable::Both,
            };
            let cut = match one_way {
                None => Cut::Both,
                Some(Direction::Out) => Cut::Out,
                Some(Direction::In) => Cut::In,
            };
            Lab::open(&dir)?.cut(&node, cable, cut)?;
        }
        LabCommand::Heal { node } => Lab::open(&dir)?.heal(&node)?,
        LabCommand::Forward { node, port, local } => {
            let forward = Forward::start(&Lab::open(&dir)?.node(&node)?, port, local)?;
            println!("{node}:{port} is at {}", forward.address());
            forward.serve();
        }
        LabCommand::Demo(args) => return demo::run(config, &args),
        LabCommand::Down => match Lab::open(&dir) {
            Ok(lab) => lab.down()?,
            Err(Error::NoLab(_)) => {}
            Err(error) => return Err(error.into()),
        },
    }
    Ok(ExitCode::SUCCESS)
}

fn print_status(lab: &Lab) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    let cable = |cut: Option<Cut>| match cut {
        None => "ok",
        Some(Cut::Both) => "unplugged",
        Some(Cut::Out) => "loses what it sends",
        Some(Cut::In) => "loses what it is sent",
    };
    let mut table = format!("{:<9} {:<12} {:<8} {:<22} {}\n", "Node", "Address", "PID", "Public", "Replication");
    for s in lab.status()? {
        let pid = s.pid.map_or_else(|| "down".to_owned(), |pid| pid.to_string());
        let line = format!(
            "{:<9} {:<12} {pid:<8} {:<22} {}",
            s.name,
            s.address.to_string(),
            cable(s.public),
            cable(s.replication)
        );
        table.push_str(line.trim_end());
        table.push('\n');
    }
    out.write_all(table.as_bytes()).context("can't write to standard output")
}
