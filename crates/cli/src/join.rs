//! `cardume join`: what is typed on a node that shall become a member.

use clap::Parser;
use opcodes::wire::{Join, NodeStatus, Request};

use crate::error::Error;
use crate::session::Session;
use crate::usage;

/// Makes this node a member of a cluster. 'gnt-node add' on the master prints the whole line.
#[derive(Parser)]
#[command(after_help = "EXAMPLES\n  cardume join --token 3f9c… 10.0.0.5")]
pub(crate) struct Tool {
    /// The one-time token that 'gnt-node add' printed
    #[arg(long, value_name = "TOKEN")]
    token: String,
    /// Address of a member, with or without a port
    #[arg(value_name = "ADDRESS")]
    args: Vec<String>,
}

impl Tool {
    pub(crate) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        let [address] = usage::exactly("join", self.args)?;
        session.client.call::<()>(&Request::Join(Join { address, token: self.token })).await?;
        let status: NodeStatus = session.client.call(&Request::Status).await?;
        let name = |name: Option<String>| name.unwrap_or_else(|| "?".into());
        session.say(format_args!("{} is now a member of {}", name(status.node), name(status.cluster)))?;
        Ok(0)
    }
}
