//! `gnt-debug`.

use clap::{Args, Parser, Subcommand};
use opcodes::Opcode;
use opcodes::op::TestDelay;

use crate::error::Error;
use crate::options::JobOptions;
use crate::session::Session;
use crate::{follow, usage};

#[derive(Parser)]
pub(crate) struct Tool {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Runs a job that only waits
    #[command(after_help = "EXAMPLES\n  gnt-debug delay 0\n  gnt-debug delay --no-master -n node02 1.5")]
    Delay(DelayArgs),
}

#[derive(Args)]
pub(crate) struct DelayArgs {
    /// How long, in seconds; fractions are allowed
    #[arg(value_name = "SECONDS", allow_negative_numbers = true)]
    args: Vec<String>,
    /// Don't wait on the master
    #[arg(long)]
    no_master: bool,
    /// Wait on this node too; may be given several times
    #[arg(short = 'n', value_name = "NODE")]
    nodes: Vec<String>,
    /// How often. Example: -r 3
    #[arg(short, long, value_name = "NUMBER", default_value_t = 0)]
    repeat: u32,
    /// Take no locks
    #[arg(short = 'l', long)]
    no_locks: bool,
    #[command(flatten)]
    job: JobOptions,
}

impl Command {
    pub(crate) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        let Command::Delay(args) = self;
        let [seconds] = usage::exactly("delay", args.args)?;
        let duration = seconds.parse::<f64>().ok().filter(|seconds| seconds.is_finite() && *seconds >= 0.0);
        let Some(duration) = duration else {
            return Err(Error::message(format!("'{seconds}' is no number of seconds")));
        };
        let op = Opcode::TestDelay(TestDelay {
            duration,
            on_master: !args.no_master,
            on_nodes: args.nodes,
            repeat: args.repeat,
            no_locks: args.no_locks,
        });
        follow::one(session, op, &args.job).await?;
        Ok(0)
    }
}
