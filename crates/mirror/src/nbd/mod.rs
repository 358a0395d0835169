//! An NBD server on a unix socket, by which QEMU uses a disk.
//!
//! One server has several exports, each with its own [`Device`](crate::device::Device). It speaks the fixed newstyle
//! handshake with simple or structured replies. A guest outlives a restart of the daemon: QEMU, started with
//! `reconnect-delay`, connects again and repeats what was not answered.
//!
//! What a client may do to the daemon is bounded: bytes in flight, the size of a request, the time of its handshake.
//! One that breaks the rules loses its connection and nothing else.
//!
//! # A repeated request never meets its older self
//! A request whose client went away goes on in the device. If the client, connected anew, repeated it and then wrote
//! something newer, the old one could overwrite that. So an export admits no client into transmission while requests
//! of vanished ones run.

mod export;
mod handshake;
mod server;
mod transmission;
mod wire;

pub use export::{Clients, ExportError, ExportOptions, ExportTable, Removed};
pub use server::{BindError, Server, SocketOptions};
pub use wire::{MAX_NAME, MAX_PAYLOAD};
