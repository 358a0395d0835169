//! `gnt-node failover`, `migrate` and `evacuate`: what takes the instances off a node.

use clap::Args;
use opcodes::Opcode;
use opcodes::op::{
    DEFAULT_SHUTDOWN_TIMEOUT, EvacuationMode, InstanceFailover, MigrationMode, NodeEvacuate, NodeMigrate,
};
use opcodes::wire::{Cell, CellState, Resource};
use serde_json::Value;

use crate::error::Error;
use crate::options::JobOptions;
use crate::session::Session;
use crate::{confirm, follow, listing, usage};

#[derive(Args)]
pub(crate) struct FailoverArgs {
    /// Name of the node
    #[arg(value_name = "NODE")]
    args: Vec<String>,
    /// Don't ask
    #[arg(short, long)]
    force: bool,
    /// The node is off, and does not come back soon: start its instances from the other nodes' replicas, whatever they may
    /// lack. What the node wrote alone is lost
    #[arg(long)]
    ignore_consistency: bool,
    #[command(flatten)]
    job: JobOptions,
}

#[derive(Args)]
pub(crate) struct MigrateArgs {
    /// Name of the node
    #[arg(value_name = "NODE")]
    args: Vec<String>,
    /// Don't ask
    #[arg(short, long)]
    force: bool,
    /// Pause the guests while their memory is sent
    #[arg(long)]
    non_live: bool,
    /// Fail over what can't be migrated, because it does not run
    #[arg(long)]
    allow_failover: bool,
    #[command(flatten)]
    job: JobOptions,
}

#[derive(Args)]
pub(crate) struct EvacuateArgs {
    /// Name of the node
    #[arg(value_name = "NODE")]
    args: Vec<String>,
    /// Don't ask
    #[arg(short, long)]
    force: bool,
    /// Only the instances that have it as primary node
    #[arg(short, long, group = "what")]
    primary_only: bool,
    /// Only the second replicas that it holds
    #[arg(short, long, group = "what")]
    secondary_only: bool,
    /// Both (this is so unless another choice is made)
    #[arg(short, long, group = "what")]
    all: bool,
    /// Node for the second replicas; chosen by free space unless given. Example: -n node03
    #[arg(short, long, value_name = "NODE")]
    new_secondary: Option<String>,
    #[command(flatten)]
    job: JobOptions,
}

impl FailoverArgs {
    pub(super) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        let [node] = usage::exactly("failover", self.args)?;
        let (instances, _) = instances(session, &node).await?;
        if instances.is_empty() {
            session.warn(format_args!("No primary instances on node {node}, exiting."));
            return Ok(0);
        }
        let quoted: Vec<String> = instances.iter().map(|name| format!("'{name}'")).collect();
        let question = format!("Fail over instance(s) {}?", quoted.join(","));
        confirm::confirm(session, self.force, &question, "--force")?;
        if self.ignore_consistency {
            confirm::confirm(session, self.force, &confirm::node_is_off(&format!("node {node}")), "--force")?;
        }
        let total = instances.len();
        let op = |instance_name: &str| {
            Opcode::InstanceFailover(InstanceFailover {
                instance_name: instance_name.to_owned(),
                shutdown_timeout: DEFAULT_SHUTDOWN_TIMEOUT,
                ignore_consistency: self.ignore_consistency,
            })
        };
        let work = instances.into_iter().map(|name| (name.clone(), op(&name))).collect();
        let failed = follow::each(session, work, &self.job, true).await?;
        if self.job.submit {
            return Ok(u8::from(failed > 0));
        }
        if failed == 0 {
            session.say(format_args!("All {total} instance(s) failed over successfully."))?;
            return Ok(0);
        }
        // Ganeti ends with success here; a script can't see from that whether the node may be switched off.
        session.say("There were errors during the failover:")?;
        session.say(format_args!("{failed} error(s) out of {total} instance(s)."))?;
        Ok(1)
    }
}

impl MigrateArgs {
    pub(super) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        let [node_name] = usage::exactly("migrate", self.args)?;
        let (instances, _) = instances(session, &node_name).await?;
        if instances.is_empty() {
            session.say(format_args!("No primary instances on node {node_name}, exiting."))?;
            return Ok(0);
        }
        let question = format!("Migrate instance(s) {}?", instances.join(", "));
        confirm::confirm(session, self.force, &question, "--force")?;
        let mode = if self.non_live { MigrationMode::NonLive } else { MigrationMode::Live };
        let op = NodeMigrate { node_name, mode, allow_failover: self.allow_failover };
        let done = follow::submitting(session, Opcode::NodeMigrate(op), &self.job).await?;
        summary(session, done, "migrated", "node migration")
    }
}

impl EvacuateArgs {
    pub(super) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        let [node_name] = usage::exactly("evacuate", self.args)?;
        let (primary, secondary) = instances(session, &node_name).await?;
        let mode = match (self.primary_only, self.secondary_only) {
            (true, _) => EvacuationMode::PrimaryOnly,
            (_, true) => EvacuationMode::SecondaryOnly,
            _ => EvacuationMode::All,
        };
        let (instances, kind) = match mode {
            EvacuationMode::PrimaryOnly => (primary, "primary "),
            EvacuationMode::SecondaryOnly => (secondary, "secondary "),
            EvacuationMode::All => ([primary, secondary].concat(), ""),
        };
        if instances.is_empty() {
            session.say(format_args!("No {kind}instances on node {node_name}, exiting."))?;
            return Ok(0);
        }
        let question = format!("Relocate instance(s) {} from node {node_name}?", instances.join(", "));
        confirm::confirm(session, self.force, &question, "--force")?;
        let op = NodeEvacuate { node_name, mode, remote_node: self.new_secondary };
        let done = follow::submitting(session, Opcode::NodeEvacuate(op), &self.job).await?;
        summary(session, done, "evacuated", "evacuation")
    }
}

/// Says how many of the jobs failed, in Ganeti's words, and gives the exit code.
fn summary(session: &mut Session, done: Option<(usize, usize)>, all: &str, during: &str) -> Result<u8, Error> {
    match done {
        None => {}
        Some((_, 0)) => session.say(format_args!("All instances {all} successfully."))?,
        Some((_, failed)) => {
            session.say(format_args!("There were {failed} errors during the {during}."))?;
            return Ok(1);
        }
    }
    Ok(0)
}

/// Names of the instances that have the node as primary node, and of those that have a further replica there.
async fn instances(session: &Session, node: &str) -> Result<(Vec<String>, Vec<String>), Error> {
    let fields = ["pinst_list", "sinst_list"].map(str::to_owned);
    let table = listing::query(session, Resource::Node, fields.into(), Some(vec![node.to_owned()])).await?;
    let row = table.data.into_iter().next().unwrap_or_default();
    let names = |cell: Option<&Cell>| {
        let list = cell.filter(|cell| cell.state() == CellState::Normal).and_then(|cell| cell.1.as_array());
        list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    };
    Ok((names(row.first()), names(row.get(1))))
}
