//! `cardume disk`: mirrored disks. What `/proc/drbd` showed, for the whole cluster at once.

mod picture;
mod status;
mod verify;

use clap::{Parser, Subcommand};

use crate::error::Error;
use crate::session::Session;

pub(crate) use verify::all as verify_all;

#[derive(Parser)]
pub(crate) struct Tool {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Shows how mirrored disks are: who serves them, which replicas are in sync, what a resync still has to copy
    #[command(after_help = status::HELP)]
    Status(status::StatusArgs),
    /// Reads all replicas of a stopped instance's disks as a whole, and compares them
    #[command(
        after_help = "Ends with 1 if replicas differ. The instance has to be stopped: while it runs, its replicas differ \
        by what is just being written.\n\nEXAMPLES\n  gnt-instance shutdown vm1\n  cardume disk verify vm1"
    )]
    Verify(verify::VerifyArgs),
}

impl Command {
    pub(crate) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        match self {
            Command::Status(args) => args.run(session).await,
            Command::Verify(args) => args.run(session).await,
        }
    }
}
