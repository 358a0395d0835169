//! `gnt-instance`.

mod add;
mod disks;
mod modify;
mod moves;
mod power;

use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use opcodes::Opcode;
use opcodes::op::{DEFAULT_SHUTDOWN_TIMEOUT, InstanceRemove};
use opcodes::wire::{Request, Resource, Tree};

use crate::error::Error;
use crate::options::{JobOptions, ListOptions, TableArgs};
use crate::session::Session;
use crate::{confirm, console, follow, listing, usage};

#[derive(Parser)]
pub(crate) struct Tool {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Makes an instance: its disks, its operating system, and starts it
    #[command(after_help = add::EXAMPLES)]
    Add(Box<add::AddArgs>),
    /// Lists the instances and their status
    #[command(
        after_help = "EXAMPLES\n  gnt-instance list\n  gnt-instance list -o name,status,ip --no-headers --separator=:\n  \
        gnt-instance list -o +disk_template,be/vcpus vm1 vm2"
    )]
    List(ListArgs),
    /// Lists the columns that 'list' can show
    ListFields(ListFieldsArgs),
    /// Shows everything about instances
    #[command(visible_alias = "show")]
    Info(InfoArgs),
    /// Starts instances
    #[command(
        visible_alias = "start",
        after_help = "EXAMPLES\n  gnt-instance startup vm3\n  gnt-instance startup --all"
    )]
    Startup(Box<power::StartupArgs>),
    /// Stops instances: asks the guests to shut down, and ends those that don't in time
    #[command(
        visible_alias = "stop",
        after_help = "EXAMPLES\n  gnt-instance shutdown vm3\n  gnt-instance shutdown --timeout=300 vm1"
    )]
    Shutdown(power::ShutdownArgs),
    /// Restarts instances
    #[command(after_help = "EXAMPLES\n  gnt-instance reboot vm1\n  gnt-instance reboot -t soft vm1")]
    Reboot(power::RebootArgs),
    /// Opens the serial console of an instance; ^] detaches
    #[command(after_help = "EXAMPLES\n  gnt-instance console vm1\n  \
        printf 'root\\ndf\\n' | gnt-instance console --exit-after-idle=2 vm1")]
    Console(ConsoleArgs),
    /// Changes the parameters of an instance
    #[command(
        after_help = "EXAMPLES\n  gnt-instance modify -B memory=512 vm1\n  gnt-instance modify -H kernel_args=ro,-acpi vm1\n  \
        gnt-instance modify --net add:ip=10.0.0.13 vm1\n  gnt-instance modify --net 0:remove vm1\n  \
        gnt-instance modify -t drbd -n node02 vm1"
    )]
    Modify(Box<modify::ModifyArgs>),
    /// Moves a running instance to its secondary node, without stopping it
    #[command(
        after_help = "It runs on while its memory is sent, and stands still only for the moment of the change. Its disks \
        are on both nodes already (template drbd).\n\nEXAMPLES\n  gnt-instance migrate vm2\n  \
        gnt-instance migrate -f --allow-failover vm2\n  gnt-instance migrate --cleanup vm2"
    )]
    Migrate(moves::MigrateArgs),
    /// Moves an instance to its secondary node by stopping it and starting it there
    #[command(after_help = "An instance that is stopped stays stopped; only its primary node changes.\n\nEXAMPLES\n  \
        gnt-instance failover vm2\n  gnt-instance failover -f --shutdown-timeout=30 vm2")]
    Failover(moves::FailoverArgs),
    /// Gives a mirrored instance another secondary node, or makes the replicas on the present one anew
    #[command(after_help = "EXAMPLES\n  gnt-instance replace-disks -n node03 vm2\n  gnt-instance replace-disks -s vm2")]
    ReplaceDisks(disks::ReplaceArgs),
    /// Makes a disk larger
    #[command(
        after_help = "A running guest sees the new size after 'gnt-instance reboot'; its file systems have to be grown in it.\n\n\
        EXAMPLES\n  gnt-instance grow-disk vm2 0 2g               by 2 GiB\n  \
        gnt-instance grow-disk --absolute vm2 0 10g   to 10 GiB"
    )]
    GrowDisk(disks::GrowArgs),
    /// Shows the disks of a stopped instance as files on its primary node; prints where
    #[command(after_help = "EXAMPLES\n  gnt-instance activate-disks vm2")]
    ActivateDisks(disks::ActivateArgs),
    /// Takes away what activate-disks showed
    #[command(after_help = "EXAMPLES\n  gnt-instance deactivate-disks vm2")]
    DeactivateDisks(disks::DeactivateArgs),
    /// Stops an instance and removes it with its disks
    Remove(RemoveArgs),
}

#[derive(Args)]
pub(crate) struct ListArgs {
    /// Only these instances, in this order
    #[arg(value_name = "INSTANCE")]
    names: Vec<String>,
    #[command(flatten)]
    options: ListOptions,
}

#[derive(Args)]
pub(crate) struct ListFieldsArgs {
    /// Only these columns
    #[arg(value_name = "FIELD")]
    names: Vec<String>,
    #[command(flatten)]
    options: TableArgs,
}

#[derive(Args)]
pub(crate) struct InfoArgs {
    /// Only these instances
    #[arg(value_name = "INSTANCE")]
    names: Vec<String>,
    /// Show all instances
    #[arg(long)]
    all: bool,
    /// Show the configuration only, without asking the nodes
    #[arg(short = 's', long = "static")]
    is_static: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct ConsoleArgs {
    /// Name of the instance
    #[arg(value_name = "INSTANCE")]
    args: Vec<String>,
    /// Print the command that opens the console, and end
    #[arg(long)]
    show_cmd: bool,
    /// For scripts: end when the guest was silent for this many seconds after the end of the input; fractions are
    /// allowed. Example: --exit-after-idle=2
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    exit_after_idle: Option<Duration>,
}

#[derive(Args)]
pub(crate) struct RemoveArgs {
    /// Name of the instance
    #[arg(value_name = "INSTANCE")]
    args: Vec<String>,
    /// Don't ask
    #[arg(short, long)]
    force: bool,
    /// How long the guest has to shut down by itself, in seconds. Example: --shutdown-timeout=0
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_SHUTDOWN_TIMEOUT)]
    shutdown_timeout: u32,
    /// Go on although its node does not answer or its disks can't be removed
    #[arg(long)]
    ignore_failures: bool,
    #[command(flatten)]
    job: JobOptions,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().map_err(|_| "write a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(seconds).map_err(|_| "write a number of seconds".to_owned())
}

impl Command {
    pub(crate) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        match self {
            Command::Add(args) => args.run(session).await,
            Command::List(args) => listing::list(session, Resource::Instance, args.names, &args.options).await,
            Command::ListFields(args) => listing::list_fields(session, Resource::Instance, &args.names, &args.options),
            Command::Info(args) => info(session, args).await,
            Command::Startup(args) => args.run(session).await,
            Command::Shutdown(args) => args.run(session).await,
            Command::Reboot(args) => args.run(session).await,
            Command::Console(args) => {
                let [name] = usage::exactly("console", args.args)?;
                if args.show_cmd {
                    session.say(format_args!("cardume instance console {name}"))?;
                    return Ok(0);
                }
                console::run(session, &name, args.exit_after_idle).await
            }
            Command::Modify(args) => args.run(session).await,
            Command::Migrate(args) => args.run(session).await,
            Command::Failover(args) => args.run(session).await,
            Command::ReplaceDisks(args) => args.run(session).await,
            Command::GrowDisk(args) => args.run(session).await,
            Command::ActivateDisks(args) => args.run(session).await,
            Command::DeactivateDisks(args) => args.run(session).await,
            Command::Remove(args) => remove(session, args).await,
        }
    }
}

async fn info(session: &mut Session, args: InfoArgs) -> Result<u8, Error> {
    if args.names.is_empty() != args.all {
        let text = if args.all {
            "Instances can't be named together with --all"
        } else {
            "Name the instances to show, or give --all to show all of them"
        };
        return Err(Error::message(text));
    }
    let request = Request::InstanceInfo { names: args.names, is_static: args.is_static };
    let tree: Tree = session.client.call(&request).await?;
    listing::info(session, &tree, args.json)
}

async fn remove(session: &mut Session, args: RemoveArgs) -> Result<u8, Error> {
    let [instance_name] = usage::exactly("remove", args.args)?;
    let question =
        format!("Instance {instance_name} will be removed, and all data on its disks will be lost. Continue?");
    confirm::confirm(session, args.force, &question, "--force")?;
    let op = Opcode::InstanceRemove(InstanceRemove {
        instance_name,
        shutdown_timeout: args.shutdown_timeout,
        ignore_failures: args.ignore_failures,
    });
    follow::one(session, op, &args.job).await?;
    Ok(0)
}
