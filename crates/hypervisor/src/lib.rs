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
mod process;
mod qemu;
mod state;

use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::broadcast;

pub use accel::{Accelerator, AcceleratorKind};
pub use console::ConsoleStream;
pub use error::{Error, Result};
pub use fake::{Fake, FakeConfig};
pub use machine::{
    Aio, Boot, DiskSource, DiskSpec, MAX_DISKS, MAX_NICS, MachineSpec, NicModel, NicSpec, RebootBehavior,
};
pub use process::{Pidfd, ProcessId};
pub use qemu::{Qemu, QemuConfig, QmpError};
pub use state::{Adopted, Event, EventKind, Gone, LiveState, NodeInfo, Running, Shutdown, StopReason};

/// A way to run virtual machines on this node.
///
/// Runs are named by their run id. All methods may be called at the same time from several tasks; an operation whose
/// future is dropped half-way leaves no half-made run.
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
    async fn resume(&self, run: &str) -> Result<()>;

    /// Stops the guest's virtual CPUs; memory and devices stay. Pausing a paused guest does nothing.
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
