//! What carries out a replica's effects: one task a replica, with its medium, its connections, its guests, and the log.
//!
//! The task never waits for anything but its next event: I/O, proposals and connections run beside it and report. A
//! fault in it ends that replica, not the daemon.

mod actor;
mod authority;
mod chain;
mod device;
mod lease;
mod link;
mod network;
mod progress;
mod report;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use model::{DiskId, Life, NodeId, RunId};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinSet;

pub use authority::{Authority, outcome_of};
pub(crate) use chain::Chain;
pub use lease::Lease;
pub(crate) use network::{Connector, Incoming, accept};
pub use progress::Progress;
pub(crate) use report::Report;
pub use report::{Counters, Resync};

use crate::backing::{Backing, BackingError, BootPlace, Limits, Opened, Paths};
use crate::device::Device;
use crate::engine::{Config, Event, Notice, Opening};
use actor::{Actor, Fault, Files, Message, Surroundings};

/// What a replica has to do with outside of itself.
pub(crate) struct Outside {
    pub disk: DiskId,
    pub node: NodeId,
    /// The node's life at this time.
    pub life: Life,
    /// The name of this boot.
    pub boot: String,
    pub engine: Config,
    pub authority: Arc<dyn Authority>,
    pub connector: Arc<Connector>,
    pub lease: Lease,
    /// How far it has come.
    pub progress: watch::Sender<Progress>,
    /// Everything that it tells.
    pub notices: broadcast::Sender<(DiskId, Notice)>,
}

/// A running replica. Clones are the same.
#[derive(Clone)]
pub(crate) struct Driver {
    inbox: mpsc::UnboundedSender<Message>,
    size: Arc<AtomicU64>,
}

/// The task of a replica. It ends when this is dropped.
pub(crate) struct Running {
    task: JoinSet<Result<(), Fault>>,
}

impl Driver {
    /// Locks and opens a replica's files and starts it, as a secondary that serves nobody (protocol, section 6).
    pub async fn open(outside: Outside, paths: &Paths, place: &BootPlace) -> Result<(Self, Running), BackingError> {
        let limits =
            Limits { slowest: std::time::Duration::from_millis(outside.engine.t_disk_ms), ..Limits::default() };
        let Opened { backing, boot, stored } = Backing::open(paths, place, limits).await?;
        let size = Arc::new(AtomicU64::new(stored.superblock.size));
        let Outside { disk, node, life, boot: boot_id, engine, authority, connector, lease, progress, notices } =
            outside;
        let opening = Opening { config: engine, node, life, boot: boot_id, stored };
        let size_of = size.clone();
        let around = Surroundings { disk, node, life, size: size_of, authority, connector, lease, progress, notices };
        let (inbox, messages) = mpsc::unbounded_channel();
        let mut task = JoinSet::new();
        task.spawn(Actor::run(around, opening, Files { backing, boot }, messages));
        Ok((Self { inbox, size }, Running { task }))
    }

    /// Bytes of the disk.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::Relaxed)
    }

    /// Tells the replica something. One that has ended does not hear it.
    pub fn event(&self, event: Event) {
        self.tell(Message::Event(event));
    }

    /// Hands it a connection that came in.
    pub fn incoming(&self, incoming: Incoming) {
        self.tell(Message::Incoming(Box::new(incoming)));
    }

    /// How it is; `None` if it has ended.
    pub async fn report(&self) -> Option<Report> {
        let (answer, report) = oneshot::channel();
        self.tell(Message::Report(answer));
        report.await.ok()
    }

    /// Makes room for a disk of `size` bytes; `None` if the replica has ended.
    pub async fn grow(&self, size: u64) -> Option<Result<(), BackingError>> {
        let (answer, grown) = oneshot::channel();
        self.tell(Message::Grow(size, answer));
        grown.await.ok()
    }

    /// Its medium, to look at it; `None` if it has ended. As long as that is kept the files stay locked.
    pub async fn backing(&self) -> Option<Backing> {
        let (answer, backing) = oneshot::channel();
        self.tell(Message::Backing(answer));
        backing.await.ok()
    }

    /// The disk as the guest of a run sees it.
    pub fn device(&self, run: RunId) -> Arc<dyn Device> {
        Arc::new(device::RunDevice { driver: self.clone(), run })
    }

    /// Lets it end, without an orderly end in the sense of the protocol.
    pub fn close(&self) {
        self.tell(Message::Close);
    }

    fn tell(&self, message: Message) {
        let _ = self.inbox.send(message);
    }
}

impl Running {
    /// Waits for the end: `None` if it was asked for, else what went wrong.
    pub async fn ended(&mut self) -> Option<String> {
        match self.task.join_next().await {
            None | Some(Ok(Ok(()))) => None,
            Some(Ok(Err(fault))) => Some(Chain(&fault).to_string()),
            Some(Err(error)) => Some(format!("a fault of the program ended it: {error}")),
        }
    }
}
