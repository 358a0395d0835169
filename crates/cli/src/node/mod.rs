//! `gnt-node`.

mod moves;

use std::net::Ipv4Addr;

use clap::{ArgAction, Args, Parser, Subcommand};
use opcodes::Opcode;
use opcodes::op::{NodeAdd, NodeSetParams};
use opcodes::wire::{Request, Resource, Tree};

use crate::error::Error;
use crate::options::{JobOptions, ListOptions, TableArgs, yes_no};
use crate::session::Session;
use crate::{follow, listing, usage};

#[derive(Parser)]
pub(crate) struct Tool {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Adds a node: prints the line to type on it, and waits until that was done
    #[command(after_help = "EXAMPLES\n  \
        gnt-node add node02\n  \
        gnt-node add --master-capable=no --vm-capable=no witness     a vote, but no instances\n\n\
        The line that is printed ('cardume join --token T ADDRESS') is typed as root on the new node, within 5 minutes.")]
    Add(AddArgs),
    /// Lists the nodes
    #[command(
        after_help = "EXAMPLES\n  gnt-node list\n  gnt-node list -o name,role,pinst_list\n  gnt-node list -o +group node02"
    )]
    List(ListArgs),
    /// Lists the columns that 'list' can show
    ListFields(ListFieldsArgs),
    /// Shows everything about nodes
    #[command(visible_alias = "show")]
    Info(InfoArgs),
    /// Changes a node's role and flags
    #[command(after_help = "EXAMPLES\n  gnt-node modify --drained=yes node02\n  gnt-node modify -C no node03")]
    Modify(ModifyArgs),
    /// Takes a node out of the cluster
    Remove(RemoveArgs),
    /// Moves the running instances off a node, without stopping them
    #[command(after_help = "A running instance moves to its secondary node; one that is stopped is an error, unless \
        --allow-failover is given.\n\nEXAMPLES\n  gnt-node migrate -f node01\n  gnt-node migrate --allow-failover node01")]
    Migrate(moves::MigrateArgs),
    /// Moves all instances off a node by stopping them and starting them on their secondary nodes
    #[command(after_help = "All instances are moved at the same time. Ends with 0 only if all of them were.\n\n\
        EXAMPLES\n  gnt-node failover node01\n  gnt-node failover --ignore-consistency node02      node02 is off")]
    Failover(moves::FailoverArgs),
    /// Empties a node: moves its instances to their secondary nodes, and the second replicas that it holds elsewhere
    #[command(after_help = "EXAMPLES\n  gnt-node evacuate node02               everything\n  \
        gnt-node evacuate -p node02            its instances, not the second replicas that it holds\n  \
        gnt-node evacuate -s -n node03 node02  the second replicas, to node03")]
    Evacuate(moves::EvacuateArgs),
}

#[derive(Args)]
pub(crate) struct AddArgs {
    /// Name of the new node
    #[arg(value_name = "NODE")]
    args: Vec<String>,
    /// Its address; resolved from the name unless given
    #[arg(long, value_name = "ADDRESS")]
    primary_ip: Option<Ipv4Addr>,
    /// Its address on the network for replication
    #[arg(short, long, value_name = "ADDRESS")]
    secondary_ip: Option<Ipv4Addr>,
    /// Group to put it in
    #[arg(short = 'g', long, value_name = "GROUP")]
    node_group: Option<String>,
    /// Whether it may become master: yes or no
    #[arg(long, value_name = "YES/NO", value_parser = yes_no, action = ArgAction::Set, default_value = "yes")]
    master_capable: bool,
    /// Whether it may run instances: yes or no
    #[arg(long, value_name = "YES/NO", value_parser = yes_no, action = ArgAction::Set, default_value = "yes")]
    vm_capable: bool,
    #[command(flatten)]
    job: JobOptions,
}

#[derive(Args)]
pub(crate) struct ListArgs {
    /// Only these nodes, in this order
    #[arg(value_name = "NODE")]
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
    /// Only these nodes
    #[arg(value_name = "NODE")]
    names: Vec<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
pub(crate) struct ModifyArgs {
    /// Name of the node
    #[arg(value_name = "NODE")]
    args: Vec<String>,
    /// Whether it may become master now: yes or no
    #[arg(short = 'C', long, value_name = "YES/NO", value_parser = yes_no)]
    master_candidate: Option<bool>,
    /// Whether it takes no new instances: yes or no
    #[arg(short = 'D', long, value_name = "YES/NO", value_parser = yes_no)]
    drained: Option<bool>,
    /// Whether it is marked as away: yes or no
    #[arg(short = 'O', long, value_name = "YES/NO", value_parser = yes_no)]
    offline: Option<bool>,
    /// Whether it may be a master candidate: yes or no
    #[arg(long, value_name = "YES/NO", value_parser = yes_no)]
    master_capable: Option<bool>,
    /// Whether it may run instances: yes or no
    #[arg(long, value_name = "YES/NO", value_parser = yes_no)]
    vm_capable: Option<bool>,
    /// Its address on the network for replication
    #[arg(short, long, value_name = "ADDRESS")]
    secondary_ip: Option<Ipv4Addr>,
    /// Go on in spite of warnings
    #[arg(short, long)]
    force: bool,
    #[command(flatten)]
    job: JobOptions,
}

#[derive(Args)]
pub(crate) struct RemoveArgs {
    /// Name of the node
    #[arg(value_name = "NODE")]
    args: Vec<String>,
    #[command(flatten)]
    job: JobOptions,
}

impl Command {
    pub(crate) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        match self {
            Command::Add(args) => add(session, args).await,
            Command::List(args) => listing::list(session, Resource::Node, args.names, &args.options).await,
            Command::ListFields(args) => listing::list_fields(session, Resource::Node, &args.names, &args.options),
            Command::Info(args) => {
                let tree: Tree = session.client.call(&Request::NodeInfo { names: args.names }).await?;
                listing::info(session, &tree, args.json)
            }
            Command::Modify(args) => modify(session, args).await,
            Command::Remove(args) => {
                let [node_name] = usage::exactly("remove", args.args)?;
                follow::one(session, Opcode::NodeRemove { node_name }, &args.job).await?;
                Ok(0)
            }
            Command::Migrate(args) => args.run(session).await,
            Command::Failover(args) => args.run(session).await,
            Command::Evacuate(args) => args.run(session).await,
        }
    }
}

async fn add(session: &mut Session, args: AddArgs) -> Result<u8, Error> {
    let [node_name] = usage::exactly("add", args.args)?;
    let op = Opcode::NodeAdd(NodeAdd {
        node_name,
        primary_ip: args.primary_ip,
        secondary_ip: args.secondary_ip,
        group: args.node_group,
        master_capable: args.master_capable,
        vm_capable: args.vm_capable,
    });
    follow::one(session, op, &args.job).await?;
    Ok(0)
}

async fn modify(session: &mut Session, args: ModifyArgs) -> Result<u8, Error> {
    let [node_name] = usage::exactly("modify", args.args)?;
    let change = NodeSetParams {
        node_name: node_name.clone(),
        master_candidate: args.master_candidate,
        offline: args.offline,
        drained: args.drained,
        master_capable: args.master_capable,
        vm_capable: args.vm_capable,
        secondary_ip: args.secondary_ip,
        force: args.force,
    };
    let nothing = NodeSetParams { node_name: node_name.clone(), force: args.force, ..NodeSetParams::default() };
    if change == nothing {
        return Err(Error::message("Please give at least one of the parameters."));
    }
    let result = follow::one(session, Opcode::NodeSetParams(change), &args.job).await?;
    follow::changed(session, "node", &node_name, result.as_ref())?;
    Ok(0)
}
