//! `gnt-cluster`.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use clap::{Args, Parser, Subcommand};
use model::params::{BACKEND, NIC, hypervisor};
use model::{DiskTemplate, JobId, Params};
use opcodes::op::Verify;
use opcodes::wire::{Init, NodeStatus, Request, Tree};
use opcodes::{ErrorCode, Failure, Opcode};
use serde_json::{Value, json};

use crate::error::Error;
use crate::options::JobOptions;
use crate::parameters::{self, Named, Settings};
use crate::session::Session;
use crate::{disk, follow, listing, recovery, usage};

/// Version of the interface between nodes and of the configuration, in Ganeti's manner: 10000 is 0.1.0, 3000000 would be 3.0.0.
const INTERFACE: &str = "10000";

#[derive(Parser)]
pub(crate) struct Tool {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Makes a cluster with this node as its first
    #[command(after_help = "EXAMPLES\n  \
        gnt-cluster init cluster01\n  \
        gnt-cluster init --master-netdev=br0 -B memory=256 -H kvm:kernel_path=/boot/vmlinuz,root_path=/dev/vda cluster01")]
    Init(Box<InitArgs>),
    /// Shows the configuration of the cluster
    #[command(visible_alias = "show")]
    Info(JsonArgs),
    /// Checks the whole cluster: the configuration, the nodes and the instances
    #[command(
        after_help = "EXAMPLES\n  gnt-cluster verify\n  gnt-cluster verify --error-codes --ignore-errors=ENODEN1"
    )]
    Verify(VerifyArgs),
    /// Looks for mirrored disks that have lost a replica
    #[command(after_help = "Ends with 1 if there is one. 'cardume disk status' shows each disk in detail.\n\n\
        EXAMPLES\n  gnt-cluster verify-disks")]
    VerifyDisks(NoArgs),
    /// Prints the name of the master, also of a dead one
    Getmaster(JsonArgs),
    /// Ends successfully if there is a master that a majority follows
    MasterPing(NoArgs),
    /// Makes the node on which it is run the master
    #[command(
        visible_alias = "masterfailover",
        after_help = "Where a majority of the voting nodes is there, that is all. Where it is not, because the master died and \
            there is no witness, --no-voting makes this node go on alone: all other nodes have to be off. It says first what \
            may be lost, asks, and has the nodes named that are off.\n\n\
            EXAMPLES\n  gnt-cluster master-failover\n  gnt-cluster master-failover --no-voting\n  \
            gnt-cluster master-failover --no-voting --off=node02 --yes-do-it      in a script"
    )]
    MasterFailover(MasterFailoverArgs),
    /// Makes sure that every node has the newest configuration
    RedistConf(RedistArgs),
    /// Prints the versions of the software and of its interfaces
    Version(JsonArgs),
    /// Ends the cluster; it must have no instances and no other nodes
    Destroy(DestroyArgs),
}

#[derive(Args)]
pub(crate) struct NoArgs {
    #[arg(hide = true)]
    args: Vec<String>,
}

#[derive(Args)]
pub(crate) struct JsonArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[arg(hide = true)]
    args: Vec<String>,
}

#[derive(Args)]
pub(crate) struct InitArgs {
    /// Name of the cluster; it is resolved to the cluster's address
    #[arg(value_name = "CLUSTER")]
    args: Vec<String>,
    /// Interface that carries the cluster's address. Example: --master-netdev=br0
    #[arg(long, value_name = "INTERFACE")]
    master_netdev: Option<String>,
    /// Prefix length of the cluster's address, 0 to 32. Example: --master-netmask=24
    #[arg(long, value_name = "LENGTH", value_parser = clap::value_parser!(u8).range(0..=32))]
    master_netmask: Option<u8>,
    /// Address of this node on the network for replication
    #[arg(short, long, value_name = "ADDRESS")]
    secondary_ip: Option<Ipv4Addr>,
    /// First three octets of the instances' hardware addresses. Example: -m aa:00:00
    #[arg(short, long, value_name = "OCTETS")]
    mac_prefix: Option<String>,
    /// Hypervisors that may be used, the usual one first. Example: --enabled-hypervisors=kvm,fake
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    enabled_hypervisors: Option<Vec<String>>,
    /// Disk templates that may be used, the usual one first. Example: --enabled-disk-templates=drbd,file
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    enabled_disk_templates: Option<Vec<String>>,
    /// Parameters of a hypervisor. Example: -H kvm:kernel_path=/boot/vmlinuz,root_path=/dev/vda
    #[arg(short = 'H', long, value_name = "NAME:PARAMETERS", value_parser = parameters::named)]
    hypervisor_parameters: Vec<Named>,
    /// Usual size of instances, memory in MiB. Example: -B memory=256,vcpus=1
    #[arg(short = 'B', long, value_name = "PARAMETERS", value_parser = parameters::settings)]
    backend_parameters: Vec<Settings>,
    /// Usual parameters of network interfaces. Example: -N link=br0
    #[arg(short = 'N', long, value_name = "PARAMETERS", value_parser = parameters::settings)]
    nic_parameters: Vec<Settings>,
    /// Folder for disks of the template file
    #[arg(long, value_name = "FOLDER")]
    file_storage_dir: Option<String>,
    /// How many nodes are master candidates at the most
    #[arg(short = 'C', long, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..))]
    candidate_pool_size: Option<u32>,
    /// How long a node's lease lasts, in milliseconds (500 to 60000; 1300 unless given). A node that has lost the others
    /// stops its guests after it, and they are started elsewhere a little later: a longer lease rides out longer
    /// disturbances of the network, and makes every takeover slower by as much. Example: --lease=3000
    #[arg(long, value_name = "MILLISECONDS", value_parser = clap::value_parser!(u32).range(500..=60_000))]
    lease: Option<u32>,
}

#[derive(Args)]
pub(crate) struct VerifyArgs {
    /// Say what is looked at
    #[arg(short, long)]
    verbose: bool,
    /// Write each finding with its code, for scripts
    #[arg(long)]
    error_codes: bool,
    /// Only warn of findings with this code; may be given several times. Example: -I ENODEN1
    #[arg(short = 'I', long, value_name = "CODE", value_delimiter = ',')]
    ignore_errors: Vec<String>,
    #[command(flatten)]
    job: JobOptions,
    /// Print JSON
    #[arg(long, conflicts_with_all = ["submit", "print_jobid"])]
    json: bool,
    #[arg(hide = true)]
    args: Vec<String>,
}

#[derive(Args)]
pub(crate) struct MasterFailoverArgs {
    /// Go on without the others, which have to be off: for when the master is gone and no majority of the voting nodes is left
    #[arg(long)]
    no_voting: bool,
    /// Names of the nodes that are off: all others. For scripts; on a terminal they are asked for. Example: --off=node02
    #[arg(long, value_name = "NODES", value_delimiter = ',', requires = "no_voting")]
    off: Option<Vec<String>>,
    /// Answer yes to every question
    #[arg(long)]
    yes_do_it: bool,
    #[arg(hide = true)]
    args: Vec<String>,
}

#[derive(Args)]
pub(crate) struct RedistArgs {
    /// Answer yes to every question
    #[arg(long)]
    yes_do_it: bool,
    #[command(flatten)]
    job: JobOptions,
    #[arg(hide = true)]
    args: Vec<String>,
}

#[derive(Args)]
pub(crate) struct DestroyArgs {
    /// Really do it
    #[arg(long, alias = "ya-rly")]
    yes_do_it: bool,
    #[arg(hide = true)]
    args: Vec<String>,
}

impl Command {
    pub(crate) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        match self {
            Command::Init(args) => init(session, *args).await,
            Command::Info(args) => {
                usage::none("info", &args.args)?;
                let tree: Tree = session.client.call(&Request::ClusterInfo).await?;
                listing::info(session, &tree, args.json)
            }
            Command::Verify(args) => verify(session, args).await,
            Command::VerifyDisks(args) => {
                usage::none("verify-disks", &args.args)?;
                disk::verify_all(session).await
            }
            Command::Getmaster(args) => getmaster(session, args).await,
            Command::MasterPing(args) => {
                usage::none("master-ping", &args.args)?;
                Ok(u8::from(!status(session).await?.has_master))
            }
            Command::MasterFailover(args) => {
                usage::none("master-failover", &args.args)?;
                if args.no_voting {
                    return recovery::without_voting(session, args.off, args.yes_do_it).await;
                }
                // Nothing is asked: moving the role of a living master loses nothing.
                session.client.call::<()>(&Request::MasterFailover).await?;
                Ok(0)
            }
            Command::RedistConf(args) => {
                usage::none("redist-conf", &args.args)?;
                let _ = args.yes_do_it;
                follow::one(session, Opcode::ClusterRedistConf {}, &args.job).await?;
                Ok(0)
            }
            Command::Version(args) => version(session, args),
            Command::Destroy(args) => {
                usage::none("destroy", &args.args)?;
                if !args.yes_do_it {
                    return Err(Error::message(
                        "Destroying a cluster is irreversible. If you really want destroy this cluster, supply the \
                         --yes-do-it option.",
                    ));
                }
                session.client.call::<()>(&Request::Destroy).await?;
                Ok(0)
            }
        }
    }
}

async fn status(session: &Session) -> Result<NodeStatus, Error> {
    let status: NodeStatus = session.client.call(&Request::Status).await?;
    if status.cluster.is_none() { Err(Failure::not_a_cluster().into()) } else { Ok(status) }
}

async fn init(session: &mut Session, args: InitArgs) -> Result<u8, Error> {
    let [cluster_name] = usage::exactly("init", args.args)?;
    let mut hvparams: BTreeMap<String, Params> = BTreeMap::new();
    for Named { name, settings } in &args.hypervisor_parameters {
        let given = parameters::params(hypervisor(name), settings)?;
        hvparams.entry(name.clone()).or_default().extend(given);
    }
    let templates = |names: Vec<String>| {
        names
            .iter()
            .map(|name| name.parse::<DiskTemplate>().map_err(|text| Failure::refused(ErrorCode::WrongInput, text)))
            .collect::<Result<Vec<_>, _>>()
    };
    let init = Init {
        cluster_name,
        master_netdev: args.master_netdev,
        master_netmask: args.master_netmask,
        secondary_ip: args.secondary_ip,
        mac_prefix: args.mac_prefix,
        enabled_hypervisors: args.enabled_hypervisors,
        enabled_disk_templates: args.enabled_disk_templates.map(templates).transpose()?,
        hvparams,
        beparams: parameters::all(Some(BACKEND), &args.backend_parameters)?,
        nicparams: parameters::all(Some(NIC), &args.nic_parameters)?,
        file_storage_dir: args.file_storage_dir,
        candidate_pool_size: args.candidate_pool_size,
        lease_ms: args.lease,
    };
    session.client.call::<()>(&Request::Init(Box::new(init))).await?;
    Ok(0)
}

async fn getmaster(session: &mut Session, args: JsonArgs) -> Result<u8, Error> {
    usage::none("getmaster", &args.args)?;
    let status = status(session).await?;
    let Some(master) = &status.master else {
        return Err(Failure::no_master("This node has not heard of a master yet").into());
    };
    if args.json {
        session.json(&json!({"master": master, "has_master": status.has_master, "term": status.term}))?;
    } else {
        session.say(master)?;
    }
    Ok(0)
}

/// Versions of this binary; needs no daemon.
fn version(session: &mut Session, args: JsonArgs) -> Result<u8, Error> {
    usage::none("version", &args.args)?;
    let software = env!("CARGO_PKG_VERSION");
    let vcs = format!("(cardume) version {software}");
    let lines = [
        ("Software version", software),
        ("Internode protocol", INTERFACE),
        ("Configuration format", INTERFACE),
        ("OS api version", "20"),
        ("Export interface", "0"),
        ("VCS version", &vcs),
    ];
    if args.json {
        session.json(&Value::Object(lines.iter().map(|(key, value)| ((*key).into(), json!(value))).collect()))?;
    } else {
        for (key, value) in lines {
            session.say(format_args!("{key}: {value}"))?;
        }
    }
    Ok(0)
}

async fn verify(session: &mut Session, args: VerifyArgs) -> Result<u8, Error> {
    usage::none("verify", &args.args)?;
    let op = Opcode::ClusterVerify(Verify {
        verbose: args.verbose,
        error_codes: args.error_codes,
        ignore_errors: args.ignore_errors,
    });
    // The first job only submits the ones that do the work.
    let Some(result) = follow::quietly(session, op, &args.job).await? else { return Ok(0) };
    let taken: Result<Vec<JobId>, String> = follow::submitted(&result)?.into_iter().collect();
    let jobs = taken.map_err(|why| Error::message(format!("A job of the verification was not taken: {why}")))?;
    if args.json {
        return verify_json(session, &jobs).await;
    }
    follow::announce_jobs(session, jobs.iter().copied())?;
    let mut sound = true;
    for id in jobs {
        sound &= follow::wait(session, id, None).await?.is_some_and(|results| all_true(&results));
    }
    Ok(u8::from(!sound))
}

async fn verify_json(session: &mut Session, jobs: &[JobId]) -> Result<u8, Error> {
    let mut sound = true;
    let mut done = Vec::new();
    for id in jobs {
        let job = follow::follow(session, *id, true).await?;
        sound &= follow::result(&job).is_ok_and(|results| all_true(&results));
        done.push(follow::job_json(&job));
    }
    session.json(&json!({"ok": sound, "jobs": done}))?;
    Ok(u8::from(!sound))
}

/// A verification's result is whether nothing was found.
fn all_true(results: &[Value]) -> bool {
    results.iter().all(|result| *result == Value::Bool(true))
}
