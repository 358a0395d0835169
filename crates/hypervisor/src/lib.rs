//! Runs virtual machines on this node.
//!
//! A [`Hypervisor`] starts, pauses, stops and watches *runs*. A run is one life of an instance on one node: it has an
//! id of its own, so that what belongs to an earlier life (a process, a socket, a disk connection) can't be taken for
//! the present one. [`Qemu`] is the driver that carries guests, [`Fake`] one that only remembers them.
//!
//! Guests don't depend on the daemon: QEMU is a process of its own session, and everything that a later daemon needs
//! to take it over ([`Hypervisor::adopt`]) is in the run's directory.

pub mod accel;
mod console;
mod error;
mod fake;
mod host;
mod machine;
mod migration;
mod process;
mod qemu;
mod state;

use std::os::fd::OwnedFd;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{broadcast, watch};

pub use accel::{Accelerator, AcceleratorKind};
pub use console::ConsoleStream;
pub use error::{Error, Result};
pub use fake::{Fake, FakeConfig};
pub use machine::{
    Aio, Boot, DiskSource, DiskSpec, MAX_DISKS, MAX_NICS, MachineSpec, NicModel, NicSpec, RebootBehavior,
};
pub use migration::{MigrateOptions, Migrated, MigrationPhase, MigrationProgress};
pub use process::{Pidfd, ProcessId};
pub use qemu::{Qemu, QemuConfig, QmpError};
pub use state::{Adopted, Event, EventKind, Gone, LiveState, NodeInfo, Running, Shutdown, StopReason};

/// A way to run virtual machines on this node.
///
/// Runs are named by their run id. All methods may be called at the same time from several tasks; an operation whose
/// future is dropped half-way leaves no half-made run.
///
/// A live migration is a conversation between a source ([`migrate_out`](Self::migrate_out)) and a destination
/// ([`start_incoming`](Self::start_incoming), [`accept`](Self::accept)). Its bytes go over a connected stream socket
/// that the caller gives to either, the same one or two that somebody carries bytes between, in both directions and
/// with their ends. When both sides are done the guest runs on neither: who may say so resumes one and destroys the
/// other.
#[async_trait]
pub trait Hypervisor: Send + Sync {
    /// The driver's name as in Ganeti's `-H`: `kvm`, `fake`.
    fn name(&self) -> &'static str;

    /// Creates the machine, *paused*, and returns when it can be commanded.
    ///
    /// No guest instruction runs before [`resume`](Self::resume), so that the run can be registered with those who
    /// may have to stop it. Starting a run that is already there returns it as it is.
    ///
    /// # Errors
    /// [`Error::AlreadyRunning`] if the instance has another run here; [`Error::BadSpec`]; [`Error::Start`] with the
    /// hypervisor's last words. After an error nothing of the run is left.
    async fn start(&self, spec: &MachineSpec) -> Result<Running>;

    /// Lets the guest run on. Resuming a running guest does nothing.
    ///
    /// # Errors
    /// [`Error::WrongState`] if its memory isn't all here.
    async fn resume(&self, run: &str) -> Result<()>;

    /// Stops the guest's virtual CPUs; memory and devices stay. Pausing a paused guest does nothing.
    ///
    /// # Errors
    /// [`Error::WrongState`] during a migration: cancel that first.
    async fn pause(&self, run: &str) -> Result<()>;

    /// Asks the guest to shut down (ACPI power button) and waits until it is gone, at most for `timeout`.
    ///
    /// After [`Shutdown::TimedOut`] the guest still runs; it may yet obey.
    async fn shutdown(&self, run: &str, timeout: Duration) -> Result<Shutdown>;

    /// Resets the machine, as its reset button would.
    async fn reset(&self, run: &str) -> Result<()>;

    /// Ends the run at once, without asking the guest, and returns when it is gone. A run that is not there is gone.
    ///
    /// # Errors
    /// [`Error::NotGone`] if even a killed process does not end (it hangs in the kernel).
    async fn destroy(&self, run: &str) -> Result<()>;

    /// Creates the destination of a migration, in [`LiveState::Incoming`]. Otherwise as [`start`](Self::start).
    ///
    /// The machine must be the source's in all that the guest can see; `spec.machine` is the source's
    /// [`Running::machine`]. Disks are opened, and their beginnings read, but not written to until the run is resumed.
    ///
    /// # Errors
    /// Those of `start`; [`Error::BadSpec`] if `spec.machine` is not set.
    async fn start_incoming(&self, spec: &MachineSpec) -> Result<Running>;

    /// Receives the guest's memory over a connected stream socket, and returns when it is all here and the run can be
    /// resumed. It isn't resumed by itself.
    ///
    /// # Errors
    /// [`Error::Migration`] if the source went away, sent what doesn't fit, or was not done within `timeout`. A run
    /// that received something and failed is over; what is left of one that waited in vain is to be destroyed.
    async fn accept(&self, run: &str, stream: OwnedFd, timeout: Duration) -> Result<()>;

    /// Sends the guest's memory over a connected stream socket to a run that [`accept`](Self::accept)s it, while the
    /// guest goes on, and returns when the destination has it all. Then the guest is stopped here
    /// ([`LiveState::PostMigrate`]), its writes are on its disks, and nothing goes on by itself.
    ///
    /// `progress` is told a few times a second. The migration doesn't end if the future is dropped.
    ///
    /// # Errors
    /// [`Error::Migration`] if it failed or took too long, [`Error::Cancelled`]: the guest goes on here, unless its
    /// run has ended. [`Error::WrongState`] if it is not in a state to be sent.
    async fn migrate_out(
        &self,
        run: &str,
        stream: OwnedFd,
        options: &MigrateOptions,
        progress: watch::Sender<MigrationProgress>,
    ) -> Result<Migrated>;

    /// Cancels the run's sending, and returns when that is over; the guest goes on. Nothing happens to a run that
    /// isn't [`LiveState::Migrating`]; it may just have become [`LiveState::PostMigrate`].
    ///
    /// # Errors
    /// [`Error::Migration`] if it doesn't end within a few seconds.
    async fn migrate_cancel(&self, run: &str) -> Result<()>;

    /// Sends frames that tell switches where the guest's interfaces are, for a guest that runs here now.
    async fn announce(&self, run: &str) -> Result<()>;

    /// The runs on this node, in the order of their ids, with the state that they are in now.
    async fn list(&self) -> Vec<Running>;

    /// Attaches to the serial console. Several may be attached: all see the output, all may type. The stream begins
    /// with the last output before it was attached and ends when the run ends.
    async fn console(&self, run: &str) -> Result<ConsoleStream>;

    /// What happens to runs from now on. A receiver that falls far behind is told so by `Lagged`: it then reads
    /// [`list`](Self::list).
    fn events(&self) -> broadcast::Receiver<Event>;

    /// What the node has for guests.
    async fn node_info(&self) -> Result<NodeInfo>;

    /// What is wrong with this node for running guests, one sentence each; empty if nothing is.
    async fn verify(&self) -> Vec<String>;

    /// The hypervisor's version, for people: `10.0.2 (Debian 1:10.0.2+ds-2)`.
    async fn version(&self) -> Result<String>;

    /// Takes over what an earlier daemon left: runs that still live are in [`list`](Self::list) afterwards, leftovers
    /// of others are removed. Called once, before anything is started.
    async fn adopt(&self) -> Result<Adopted>;
}
