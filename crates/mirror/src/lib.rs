//! The replicated disk: what DRBD does, in user space (protocol, sections 2 to 6, 10 and 13).
//!
//! | module | what it holds | I/O? |
//! |---|---|---|
//! | [`engine`] | one replica of one disk as a state machine: roles, epochs, the in-sync set, writes, flushes, resync, handover | none |
//! | [`wire`] | the frames between replicas and their encoding | none |
//! | [`backing`] | the medium of a replica: data, superblock, bitmaps; the record that outlives the daemon, not the kernel | yes |
//! | [`nbd`] | the export for QEMU | yes |
//! | [`fuse`] | the disk as a file, for scripts and rescue | yes |
//! | [`driver`] | carries out what a replica's engine wants: medium, connections, proposals, answers | yes |
//! | [`keeper`] | all replicas of a node, in line with the replicated state | yes |
//!
//! The room asks for epochs through [`driver::Authority`]; it does not know consensus.

// `clippy.toml` bans clocks, threads, sockets and hash maps for the sake of `engine` and `wire`, which are proved by
// simulation. The shell around them is there to do just that.
#[allow(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod backing;
pub mod device;
#[allow(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod driver;
pub mod engine;
#[allow(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod fuse;
#[allow(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod keeper;
#[allow(clippy::disallowed_methods, clippy::disallowed_types)]
pub mod nbd;
pub mod wire;
