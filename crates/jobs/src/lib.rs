//! Jobs: the queue, its locks, and the operations.
//!
//! *Decisions without I/O*: [`queue`] says which job starts next, [`locks`] who may hold what. *Carrying out*: [`Runner`]
//! runs jobs on the master; each [operation](ops) is an `async fn` whose effects are [steps](Context::step), recorded in the
//! replicated state before and after they are done. A new master runs the function again from its beginning; what is
//! recorded as done is not done again, and what was under way is repeated. So every request to a node ([`agent`]) is
//! written to be repeatable.

pub mod agent;
mod context;
mod entry;
mod handle;
pub mod locks;
pub mod ops;
pub mod queue;
mod runner;
mod standing;
mod world;

pub use context::{Context, Halt};
pub use entry::Entry;
pub use handle::{Console, Handle};
pub use runner::Runner;
pub use standing::standing_warning;
pub use world::{CallError, ProposeError, World};
