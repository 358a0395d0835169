//! `gnt-instance replace-disks`, `grow-disk`, `activate-disks` and `deactivate-disks`.

use clap::Args;
use opcodes::op::{
    InstanceActivateDisks, InstanceDeactivateDisks, InstanceGrowDisk, InstanceReplaceDisks, ReplaceMode,
};
use opcodes::{ErrorCode, Failure, Opcode};
use serde_json::Value;

use crate::error::Error;
use crate::options::{self, JobOptions};
use crate::session::Session;
use crate::{follow, usage};

#[derive(Args)]
pub(crate) struct ReplaceArgs {
    /// Name of the instance
    #[arg(value_name = "INSTANCE")]
    args: Vec<String>,
    /// Give it this node as secondary node: the disks are copied there, then the old secondary's replicas are removed.
    /// Example: -n node03
    #[arg(short, long, value_name = "NODE")]
    new_secondary: Option<String>,
    /// Make the replicas on its present secondary node anew
    #[arg(short = 's', long)]
    on_secondary: bool,
    /// Not offered: migrate the instance first, its primary is the secondary then
    #[arg(short = 'p', long, hide = true)]
    on_primary: bool,
    /// Not offered: a replica that needs it is copied anew without being asked
    #[arg(short = 'a', long, hide = true)]
    auto: bool,
    /// Not offered: name the node with -n
    #[arg(short = 'I', long, value_name = "NAME", hide = true)]
    iallocator: Option<String>,
    #[command(flatten)]
    job: JobOptions,
}

#[derive(Args)]
pub(crate) struct GrowArgs {
    /// Name of the instance, index of the disk (from 0), and by how much it grows (512m, 4g; a number alone is MiB)
    #[arg(value_names = ["INSTANCE", "DISK", "AMOUNT"], num_args = 0..)]
    args: Vec<String>,
    /// AMOUNT is the size that the disk has afterwards
    #[arg(long)]
    absolute: bool,
    #[command(flatten)]
    job: JobOptions,
}

#[derive(Args)]
pub(crate) struct ActivateArgs {
    /// Name of the instance
    #[arg(value_name = "INSTANCE")]
    args: Vec<String>,
    /// Wait until all replicas are in sync
    #[arg(long)]
    wait_for_sync: bool,
    #[command(flatten)]
    job: JobOptions,
}

#[derive(Args)]
pub(crate) struct DeactivateArgs {
    /// Name of the instance
    #[arg(value_name = "INSTANCE")]
    args: Vec<String>,
    /// Even if somebody has them open
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    job: JobOptions,
}

fn wrong(text: impl Into<String>) -> Error {
    Failure::refused(ErrorCode::WrongInput, text).into()
}

impl ReplaceArgs {
    pub(super) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        let [instance_name] = usage::exactly("replace-disks", self.args)?;
        if self.on_primary {
            return Err(wrong(format!(
                "Replacing the disks on the primary node (-p) is not offered: type 'gnt-instance migrate \
                 {instance_name}', which makes it the secondary node, and then 'gnt-instance replace-disks -s \
                 {instance_name}'"
            )));
        }
        if self.auto {
            return Err(wrong(
                "Replacing what is broken (-a) is not offered: a replica that lacks writes is brought up to date by \
                 itself; choose -s to make the secondary node's anew, or -n for another secondary node",
            ));
        }
        if self.iallocator.is_some() {
            return Err(wrong(
                "Choosing a node by an allocator (-I) is not offered: name the new secondary node with -n",
            ));
        }
        let mode = match (&self.new_secondary, self.on_secondary) {
            (Some(_), false) => ReplaceMode::NewSecondary,
            (None, true) => ReplaceMode::OnSecondary,
            _ => return Err(wrong("One and only one of the -n and -s options must be passed")),
        };
        let op = InstanceReplaceDisks { instance_name, mode, remote_node: self.new_secondary };
        follow::one(session, Opcode::InstanceReplaceDisks(op), &self.job).await?;
        Ok(0)
    }
}

impl GrowArgs {
    pub(super) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        let [instance_name, disk, amount] = usage::exactly("grow-disk", self.args)?;
        let index = disk.strip_prefix("disk/").unwrap_or(&disk);
        let disk = index.parse().map_err(|_| wrong(format!("Invalid disk index '{disk}': write a number from 0")))?;
        let amount =
            options::size(&amount).map_err(|why| wrong(format!("Invalid amount '{amount}' to grow by: {why}")))?;
        let op = InstanceGrowDisk { instance_name, disk, amount, absolute: self.absolute };
        follow::one(session, Opcode::InstanceGrowDisk(op), &self.job).await?;
        Ok(0)
    }
}

impl ActivateArgs {
    pub(super) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        let [instance_name] = usage::exactly("activate-disks", self.args)?;
        let op = InstanceActivateDisks { instance_name, wait_for_sync: self.wait_for_sync };
        let result = follow::one(session, Opcode::InstanceActivateDisks(op), &self.job).await?;
        for disk in result.as_ref().and_then(Value::as_array).into_iter().flatten() {
            let part = |index| disk.get(index).map(opcodes::format::value).unwrap_or_default();
            session.say(format_args!("{}:{}:{}", part(0), part(1), part(2)))?;
        }
        Ok(0)
    }
}

impl DeactivateArgs {
    pub(super) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        let [instance_name] = usage::exactly("deactivate-disks", self.args)?;
        let op = InstanceDeactivateDisks { instance_name, force: self.force };
        follow::one(session, Opcode::InstanceDeactivateDisks(op), &self.job).await?;
        Ok(0)
    }
}
