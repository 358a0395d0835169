//! `gnt-instance migrate` and `failover`.

use clap::Args;
use opcodes::Opcode;
use opcodes::op::{DEFAULT_SHUTDOWN_TIMEOUT, InstanceFailover, InstanceMigrate, MigrationMode};

use crate::error::Error;
use crate::options::JobOptions;
use crate::session::Session;
use crate::{confirm, follow, usage};

#[derive(Args)]
pub(crate) struct MigrateArgs {
    /// Name of the instance
    #[arg(value_name = "INSTANCE")]
    args: Vec<String>,
    /// Don't ask
    #[arg(short, long)]
    force: bool,
    /// Pause the guest while its memory is sent: it stands still for longer, but nothing is sent twice
    #[arg(long)]
    non_live: bool,
    /// Only clear up after a migration that was interrupted: finds out where the guest runs, and ends what is left over
    #[arg(long)]
    cleanup: bool,
    /// Where it can't be migrated (it does not run, say), fail it over instead
    #[arg(long, conflicts_with = "cleanup")]
    allow_failover: bool,
    #[command(flatten)]
    job: JobOptions,
}

#[derive(Args)]
pub(crate) struct FailoverArgs {
    /// Name of the instance
    #[arg(value_name = "INSTANCE")]
    args: Vec<String>,
    /// Don't ask
    #[arg(short, long)]
    force: bool,
    /// The instance's node is off, and does not come back soon: start the instance from the other node's replicas, whatever
    /// they may lack. What its node wrote alone is lost
    #[arg(long)]
    ignore_consistency: bool,
    /// How long the guest has to shut down by itself, in seconds; 0 ends it at once. Example: --shutdown-timeout=300
    #[arg(long, value_name = "SECONDS", default_value_t = DEFAULT_SHUTDOWN_TIMEOUT)]
    shutdown_timeout: u32,
    #[command(flatten)]
    job: JobOptions,
}

impl MigrateArgs {
    pub(super) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        let [instance_name] = usage::exactly("migrate", self.args)?;
        let what = if self.cleanup {
            "will be recovered from a failed migration. Note that the migration procedure (including cleanup)"
        } else {
            "will be migrated. Note that migration"
        };
        let question = format!(
            "Instance {instance_name} {what} might impact the instance if anything goes wrong (e.g. due to bugs in the \
             hypervisor). Continue?"
        );
        confirm::confirm(session, self.force, &question, "--force")?;
        let op = Opcode::InstanceMigrate(InstanceMigrate {
            instance_name,
            mode: if self.non_live { MigrationMode::NonLive } else { MigrationMode::Live },
            cleanup: self.cleanup,
            allow_failover: self.allow_failover,
        });
        follow::one(session, op, &self.job).await?;
        Ok(0)
    }
}

impl FailoverArgs {
    pub(super) async fn run(self, session: &mut Session) -> Result<u8, Error> {
        let [instance_name] = usage::exactly("failover", self.args)?;
        let question = format!(
            "Failover will happen to image {instance_name}. This requires a shutdown of the instance. Continue?"
        );
        confirm::confirm(session, self.force, &question, "--force")?;
        if self.ignore_consistency {
            confirm::confirm(session, self.force, &confirm::node_is_off("its node"), "--force")?;
        }
        let op = Opcode::InstanceFailover(InstanceFailover {
            instance_name,
            shutdown_timeout: self.shutdown_timeout,
            ignore_consistency: self.ignore_consistency,
        });
        follow::one(session, op, &self.job).await?;
        Ok(0)
    }
}
