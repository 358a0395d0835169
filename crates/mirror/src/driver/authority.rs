//! What the mirror needs of the replicated log.

use std::sync::Arc;

use async_trait::async_trait;
use model::{Applied, Command, DiskId, Epoch, Incarnation, NodeLife, Rejection, State, Version};
use tokio::sync::watch;

use crate::engine::{DiskCommand, Outcome};

/// The log, as far as mirrored disks ask for it. Calls come at the same time, and must not wait for jobs, locks, name
/// service or a mirrored disk (protocol, section 12).
#[async_trait]
pub trait Authority: Send + Sync + 'static {
    /// Proposes a command of a disk's primary, made in this incarnation. It ends within some seconds: where there is no
    /// answer, or it can't be told whether there was one, the outcome is [`Outcome::Unknown`]. See [`outcome_of`].
    async fn propose(&self, incarnation: Incarnation, command: Command) -> Outcome;

    /// A state that has everything which was committed anywhere before this call; `None` if the log can't be reached
    /// within some seconds.
    async fn barrier(&self) -> Option<Arc<State>>;

    /// The newest state that this node has applied.
    fn watch(&self) -> watch::Receiver<Arc<State>>;
}

/// What the answer of [`State::apply`] means for the one who proposed.
pub fn outcome_of(answer: &Result<Vec<Applied>, Rejection>) -> Outcome {
    match answer {
        Ok(_) => Outcome::Accepted,
        Err(Rejection::Disk(why)) => Outcome::Rejected(*why),
        Err(_) => Outcome::Refused,
    }
}

/// The command of a primary, with its disk and who asks.
pub(super) fn command(disk: DiskId, by: NodeLife, epoch: Epoch, ver: Version, command: DiskCommand) -> Command {
    match command {
        DiskCommand::Outdate(replicas) => Command::Outdate { disk, by, epoch, ver, replicas },
        DiskCommand::Solo(replicas) => Command::Solo { disk, by, epoch, ver, replicas },
        DiskCommand::InSync(replica, life) => Command::InSync { disk, by, epoch, ver, replica, life },
    }
}
