//! What is on a disk: operating system definitions and their scripts.
//!
//! Speaks Ganeti's OS interface (versions 10, 15 and 20): a definition is a folder with scripts that put an operating
//! system on the disks of an instance. [`discover`] lists the definitions of this node, [`find`] picks the one that an
//! instance names, and [`create`] runs its script with an [`Environment`] that describes the instance.

mod definition;
mod environment;
mod error;
mod install;
mod lock;
mod script;

pub use definition::{API_VERSIONS, Definition, System, discover, find};
pub use environment::{DiskEnv, Environment, NicEnv};
pub use error::{Error, Result};
pub use install::{create, verify};
