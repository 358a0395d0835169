//! `gnt-instance startup`, `shutdown` and `reboot`: what can be done to several instances at once.

use clap::Args;
use model::params::BACKEND;
use opcodes::op::{DEFAULT_SHUTDOWN_TIMEOUT, InstanceReboot, InstanceShutdown, InstanceStartup, RebootType};
use opcodes::wire::Resource;
use opcodes::{ErrorCode, Failure, Opcode};
use serde_json::Value;

use crate::confirm;
use crate::error::Error;
use crate::options::JobOptions;
use crate::parameters::{self, Settings};
use crate::session::Session;
use crate::{follow, listing};

/// Which instances.
#[derive(Args)]
pub(super) struct Selection {
    /// Names of instances; with --node, --primary or --secondary, of nodes
    #[arg(value_name = "NAME")]
    names: Vec<String>,
    /// All instances of the cluster
    #[arg(long, group = "selection")]
    all: bool,
    /// The names are those of instances (this is so unless another choice is made)
    #[arg(long, group = "selection")]
    instance: bool,
    /// All instances that have one of these nodes as primary or secondary node
    #[arg(long, group = "selection")]
    node: bool,
    /// All instances that have one of these nodes as primary node
    #[arg(long, group = "selection")]
    primary: bool,
    /// All instances that have one of these nodes as secondary node
    #[arg(long, group = "selection")]
    secondary: bool,
    /// Don't ask although it is about several instances
    #[arg(long)]
    force_multiple: bool,
}

#[derive(Args)]
pub(crate) struct StartupArgs {
    #[command(flatten)]
    selection: Selection,
    /// Start although the node is drained
    #[arg(short, long)]
    force: bool,
    /// Hypervisor parameters for this start only. Example: -H kernel_args=single
    #[arg(short = 'H', long, value_name = "PARAMETERS", value_parser = parameters::settings)]
    hypervisor_parameters: Vec<Settings>,
    /// Memory and virtual CPUs for this start only. Example: -B memory=512
    #[arg(short = 'B', long, value_name = "PARAMETERS", value_parser = parameters::settings)]
    backend_parameters: Vec<Settings>,
    /// Don't note that it shall run from now on
    #[arg(long)]
    no_remember: bool,
    /// Leave it paused
    #[arg(long)]
    paused: bool,
    #[command(flatten)]
    job: JobOptions,
}

#[derive(Args)]
pub(crate) struct ShutdownArgs {
    #[command(flatten)]
    selection: Selection,
    /// Don't ask whether it runs first
    #[arg(short, long)]
    force: bool,
    /// How long the guest has to shut down by itself, in seconds; 0 ends it at once. Example: --timeout=300
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_SHUTDOWN_TIMEOUT)]
    timeout: u32,
    /// Don't note that it shall not run from now on
    #[arg(long)]
    no_remember: bool,
    #[command(flatten)]
    job: JobOptions,
}

#[derive(Args)]
pub(crate) struct RebootArgs {
    #[command(flatten)]
    selection: Selection,
    /// soft: the guest restarts in the same hypervisor process; hard: in a new one; full: as shutdown and startup
    #[arg(short = 't', long = "type", value_name = "TYPE", value_parser = ["soft", "hard", "full"], default_value = "hard")]
    reboot_type: String,
    /// How long the guest has to shut down by itself, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_SHUTDOWN_TIMEOUT)]
    shutdown_timeout: u32,
    #[command(flatten)]
    job: JobOptions,
}

impl StartupArgs {
    pub(super) async fn run(self: Box<Self>, session: &mut Session) -> Result<u8, Error> {
        let hvparams = parameters::all(None, &self.hypervisor_parameters)?;
        let beparams = parameters::all(Some(BACKEND), &self.backend_parameters)?;
        let op = |instance_name| {
            Opcode::InstanceStartup(InstanceStartup {
                instance_name,
                hvparams: hvparams.clone(),
                beparams: beparams.clone(),
                startup_paused: self.paused,
                no_remember: self.no_remember,
                force: self.force,
            })
        };
        self.selection.run(session, "startup", op, &self.job).await
    }
}

impl ShutdownArgs {
    pub(super) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        let op = |instance_name| {
            Opcode::InstanceShutdown(InstanceShutdown {
                instance_name,
                timeout: self.timeout,
                no_remember: self.no_remember,
                force: self.force,
            })
        };
        self.selection.run(session, "shutdown", op, &self.job).await
    }
}

impl RebootArgs {
    pub(super) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        let reboot_type = match self.reboot_type.as_str() {
            "soft" => RebootType::Soft,
            "full" => RebootType::Full,
            _ => RebootType::Hard,
        };
        let op = |instance_name| {
            Opcode::InstanceReboot(InstanceReboot {
                instance_name,
                reboot_type,
                shutdown_timeout: self.shutdown_timeout,
            })
        };
        self.selection.run(session, "reboot", op, &self.job).await
    }
}

impl Selection {
    /// Does something to each chosen instance.
    async fn run(
        &self,
        session: &mut Session,
        what: &str,
        op: impl Fn(String) -> Opcode,
        job: &JobOptions,
    ) -> Result<u8, Error> {
        let by_name = !(self.all || self.node || self.primary || self.secondary);
        if self.all != self.names.is_empty() {
            let text = if self.all {
                "No names are given together with --all"
            } else {
                "Name what is to be chosen, or give --all"
            };
            return Err(Failure::refused(ErrorCode::WrongInput, text).into());
        }
        let chosen = self.choose(session, by_name).await?;
        if chosen.is_empty() {
            if self.all {
                session.say(format_args!("Cluster is empty, no instances to {what}"))?;
                return Ok(0);
            }
            return Err(no_match());
        }
        let several = !by_name || chosen.len() > 1;
        if several {
            let question = format!(
                "The {what} will operate on {} instances.\nAffected instances:\n  {}\nContinue?",
                chosen.len(),
                chosen.join("\n  ")
            );
            confirm::confirm(session, self.force_multiple, &question, "--force-multiple")?;
        }
        let work = chosen.into_iter().map(|name| (name.clone(), op(name))).collect();
        Ok(u8::from(follow::each(session, work, job, several).await? > 0))
    }

    /// Names of the chosen instances, as the cluster has them.
    async fn choose(&self, session: &Session, by_name: bool) -> Result<Vec<String>, Error> {
        let fields = ["name", "pnode", "snodes"].map(str::to_owned);
        let names = by_name.then(|| self.names.clone());
        let table = match listing::query(session, Resource::Instance, fields.into(), names).await {
            Ok(table) => table,
            // Ganeti's words, where one name is all that was given.
            Err(error) if by_name && self.names.len() == 1 && is_unknown(&error) => return Err(no_match()),
            Err(error) => return Err(error),
        };
        let mut chosen = Vec::new();
        for row in &table.data {
            let Some(name) = listing::text(row.first()) else { continue };
            let on = |node: &str| self.names.iter().any(|wanted| wanted == node);
            let primary = listing::text(row.get(1)).is_some_and(on);
            let secondaries = row.get(2).and_then(|cell| cell.1.as_array());
            let secondary = secondaries.is_some_and(|nodes| nodes.iter().filter_map(Value::as_str).any(on));
            let wanted = by_name
                || self.all
                || (primary && (self.primary || self.node))
                || (secondary && (self.secondary || self.node));
            if wanted {
                chosen.push(name.to_owned());
            }
        }
        Ok(chosen)
    }
}

fn is_unknown(error: &Error) -> bool {
    error.failure().is_some_and(|failure| failure.code == Some(ErrorCode::UnknownEntity))
}

fn no_match() -> Error {
    Failure::refused(ErrorCode::WrongInput, "Selection filter does not match any instances").into()
}
