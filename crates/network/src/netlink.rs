//! The connection to the kernel's network configuration.

use std::io;

use rtnetlink::Handle;
use tokio::task::JoinHandle;

use crate::Error;

/// A netlink connection to one network namespace: the one of the thread that opened it.
#[derive(Debug)]
pub struct Netlink {
    handle: Handle,
    connection: JoinHandle<()>,
}

impl Netlink {
    /// Opens a connection to the calling thread's network namespace. Must be called inside a tokio runtime
    /// with I/O enabled.
    pub fn open() -> Result<Netlink, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Netlink)?;
        Ok(Netlink { handle, connection: tokio::spawn(connection) })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// The kernel's errno where there is one; callers match on its kind or raw number.
pub(crate) fn io_error(error: rtnetlink::Error) -> io::Error {
    match error {
        rtnetlink::Error::NetlinkError(message) => message.to_io(),
        other => io::Error::other(other),
    }
}

/// Turns the answer "it exists already" or "it is gone already" into success, for operations that are to be
/// repeatable.
pub(crate) fn unless(result: Result<(), rtnetlink::Error>, errno: i32) -> Result<(), io::Error> {
    match result.map_err(io_error) {
        Err(error) if error.raw_os_error() == Some(errno) => Ok(()),
        other => other,
    }
}
