//! A whole cluster on one machine: every node is a set of namespaces with a small init of its own, joined by a
//! switch that nothing else is plugged into.
//!
//! ```text
//!   node01            node02            witness           client
//!   br0 10.0.0.5      br0 10.0.0.6      br0 10.0.0.7      eth0 10.0.0.100
//!    │ up0             │ up0             │ up0             │
//!  ──┴─────────────────┴──── lan0 ───────┴─────────────────┴──   namespace
//!  ──┬─────────────────┬──── rep0 ───────┬───────────────────    "switch"
//!   rep 10.1.0.5      rep 10.1.0.6      rep 10.1.0.7
//! ```
//!
//! A node sees its own network, processes, host name, `/etc/hosts`, `/var/lib/cardume`, `/var/log/cardume`,
//! `/srv/ganeti/file-storage`, `/run` and `/tmp`; it sees nothing of the other nodes'. Killing its PID 1 ends everything in it at once, as
//! pulling the plug would, except that the page cache survives: what a disk may lose in a power cut is the
//! business of `lab::faultfs`, a pass-through file system that is to be put between a node and its state
//! directory (in the module `mounts`, where that directory is bound).
//!
//! Nothing is added to the machine's own network, and all that a lab keeps is in one directory. Empty
//! directories are made where the machine lacks them, as places to mount on: `/var/lib/cardume`, `/var/log/cardume`
//! and `/srv/ganeti/file-storage`.
//!
//! ```no_run
//! # fn main() -> Result<(), lab::Error> {
//! let _one_at_a_time = lab::lock()?;
//! let lab = lab::Lab::up(lab::Config::default())?;
//! lab.wait_for_daemon("node01")?;
//! let output = lab.node("node01")?.exec(["gnt-cluster", "info"])?;
//! assert!(output.status.success(), "{}", output.stderr);
//! lab.kill("node01")?;
//! # Ok(()) }   // dropping `lab` takes everything down
//! ```
//!
//! The processes of a lab are started from the program that uses it: its `main` calls [`entry`] first.

mod api;
pub mod bench;
mod cables;
pub mod cli;
mod cluster;
mod demo;
mod error;
mod exec;
mod form;
mod forward;
mod guests;
mod init;
mod layout;
mod machine;
mod mounts;
mod parts;
pub mod probe;
mod process;
mod pty;
mod record;
mod sys;
mod takeover;
mod travel;

pub use api::Api;
pub use cables::{Cable, Cut};
pub use cluster::{Config, Lab, Node, lock};
pub use error::Error;
pub use exec::{Exec, Output, Running};
pub use form::WITNESS;
pub use forward::Forward;
pub use guests::Guests;
pub use init::entry;
pub use parts::{Part, Usage};
pub use pty::Pty;
pub use record::LabLock;
