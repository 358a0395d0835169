//! `cardume bench`: how fast Cardume is, measured on a lab, beside what was recorded of Ganeti or
//! is measured of QEMU alone.

mod bare;
mod control;
mod failover;
mod migrate;
mod spread;
mod table;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

/// Measure speed and footprint on a lab of its own.
#[derive(Debug, Args)]
pub struct BenchArgs {
    #[command(subcommand)]
    command: BenchCommand,
}

#[derive(Debug, Subcommand)]
enum BenchCommand {
    /// Commands, jobs, change of master; memory and CPU of the daemons
    Control(ControlArgs),
    /// Live migration, beside QEMU alone between the same nodes; planned failover of one instance and of a node
    Migrate(MigrateArgs),
    /// What nobody plans: nodes that die or are cut off, a guest that crashes, a daemon that is killed
    Failover(FailoverArgs),
}

#[derive(Debug, Args)]
struct ControlArgs {
    /// Also write the results to a file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// What runs the three instances: real guests, or none
    #[arg(long, value_enum, default_value_t = Hypervisor::Kvm)]
    hypervisor: Hypervisor,
    /// The lab's directory
    #[arg(long, value_name = "DIR", default_value = "/var/tmp/cardume-bench")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
struct MigrateArgs {
    /// Also write the results to a file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often each thing is done
    #[arg(long, value_name = "N", default_value_t = 10)]
    runs: u32,
    /// The lab's directory
    #[arg(long, value_name = "DIR", default_value = "/var/tmp/cardume-bench")]
    dir: PathBuf,
}

#[derive(Debug, Args)]
struct FailoverArgs {
    /// Also write the results to a file, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// How often each thing happens
    #[arg(long, value_name = "N", default_value_t = 20)]
    runs: u32,
    /// Only these, separated by commas
    #[arg(long, value_enum, value_name = "ROWS", value_delimiter = ',')]
    rows: Vec<failover::Row>,
    /// Keep the daemons' logs in this folder
    #[arg(long, value_name = "DIR")]
    logs: Option<PathBuf>,
    /// The lab's directory
    #[arg(long, value_name = "DIR", default_value = "/var/tmp/cardume-bench")]
    dir: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Hypervisor {
    /// Real guests in QEMU
    Kvm,
    /// Instances that only exist in the books
    Fake,
}

/// Carries out a `bench` command.
pub fn run(args: BenchArgs) -> anyhow::Result<ExitCode> {
    match args.command {
        BenchCommand::Control(args) => control::run(&args),
        BenchCommand::Migrate(args) => migrate::run(&args),
        BenchCommand::Failover(args) => failover::run(&args),
    }
}
