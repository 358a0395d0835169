//! The socket, and the clients that come by it.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::export::ExportTable;
use super::handshake::{ConnectionError, negotiate};
use super::transmission::serve;

/// Clients that a server has at one time, in handshake or transmission. More wait in the kernel.
const MAX_CLIENTS: usize = 512;

/// Where a server listens and who may connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// The directory; it must exist, and the user must be able to search it.
    pub directory: PathBuf,
    /// The socket's name in it.
    pub name: String,
    /// The user and group that own the socket, and the only ones besides root that may connect: those of QEMU. `None`:
    /// those of this process.
    pub owner: Option<(u32, u32)>,
}

/// Why a server can't listen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BindError {
    /// Another process listens there.
    #[error("another process serves {path}: stop it first")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// The file there is not a socket, so it is not ours to replace.
    #[error("{path} is in the way of an NBD socket and is not a socket: remove it")]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// Something failed.
    #[error("cannot {attempt} the NBD socket {path}")]
    Io {
        /// What was attempted.
        attempt: &'static str,
        /// The socket.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// A server that listens. Dropping it ends its connections and removes its socket.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    /// Device and inode of our socket: a successor may have put its own there.
    identity: (u64, u64),
    exports: ExportTable,
    accepting: JoinSet<()>,
}

impl Server {
    /// Listens on a socket and serves `exports` to whoever connects. A socket that nobody listens on is replaced, in
    /// one step: a client meets the old one, whose connection it is refused, or the new one with its right owner.
    ///
    /// To be called within a tokio runtime.
    pub fn bind(options: &SocketOptions, exports: ExportTable) -> Result<Server, BindError> {
        let path = options.directory.join(&options.name);
        replaceable(&path)?;
        let fresh = options.directory.join(format!(".{}.{}", options.name, std::process::id()));
        let listener = listening(&fresh, options.owner).and_then(|listener| {
            let identity = identity(&fresh).map_err(|source| failed("look at", &fresh, source))?;
            fs::rename(&fresh, &path).map_err(|source| failed("put in place", &path, source))?;
            Ok((listener, identity))
        });
        let (listener, identity) = match listener {
            Ok(listener) => listener,
            Err(error) => {
                let _ = fs::remove_file(&fresh);
                return Err(error);
            }
        };
        let mut accepting = JoinSet::new();
        accepting.spawn(accept(listener, exports.clone()));
        Ok(Server { path, identity, exports, accepting })
    }

    /// The socket.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What is exported.
    pub fn exports(&self) -> &ExportTable {
        &self.exports
    }

    /// Stops listening, ends all connections at once, waits until no request waits at a device any more, and leaves the
    /// table of exports empty.
    pub async fn close(mut self) {
        self.accepting.shutdown().await;
        for name in self.exports.names() {
            if let Some(removed) = self.exports.remove(&name) {
                removed.end().await;
            }
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|found| found == self.identity) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Whether there is nothing at `path`, or only the socket of a process that is gone.
fn replaceable(path: &Path) -> Result<(), BindError> {
    use std::os::unix::fs::FileTypeExt;
    let there = match fs::symlink_metadata(path) {
        Ok(there) => there,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => return Err(failed("look at", path, source)),
    };
    if !there.file_type().is_socket() {
        return Err(BindError::NotASocket { path: path.to_owned() });
    }
    match StdUnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(failed("try", path, source)),
        Ok(_) => Err(BindError::InUse { path: path.to_owned() }),
    }
}

/// A socket that has its owner and mode before it accepts the first client.
fn listening(path: &Path, owner: Option<(u32, u32)>) -> Result<UnixListener, BindError> {
    let _ = fs::remove_file(path);
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd: OwnedFd = socket(AddressFamily::Unix, SockType::Stream, flags, None)
        .map_err(|error| failed("make", path, error.into()))?;
    let address = UnixAddr::new(path).map_err(|error| failed("name", path, error.into()))?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&fd), &address).map_err(|error| failed("bind", path, error.into()))?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))
        .map_err(|source| failed("set the mode of", path, source))?;
    if let Some((uid, gid)) = owner {
        chown(path, Some(uid), Some(gid)).map_err(|source| failed("set the owner of", path, source))?;
    }
    let backlog = Backlog::new(128).map_err(|error| failed("listen on", path, error.into()))?;
    listen(&fd, backlog).map_err(|error| failed("listen on", path, error.into()))?;
    UnixListener::from_std(fd.into()).map_err(|source| failed("listen on", path, source))
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    let found = fs::symlink_metadata(path)?;
    Ok((found.dev(), found.ino()))
}

fn failed(attempt: &'static str, path: &Path, source: io::Error) -> BindError {
    BindError::Io { attempt, path: path.to_owned(), source }
}

async fn accept(listener: UnixListener, exports: ExportTable) {
    let places = Arc::new(Semaphore::new(MAX_CLIENTS));
    let mut clients = JoinSet::new();
    loop {
        while let Some(ended) = clients.try_join_next() {
            log_panic(ended);
        }
        let Ok(place) = places.clone().acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, _)) => {
                let exports = exports.clone();
                clients.spawn(async move {
                    connection(stream, exports).await;
                    drop(place);
                });
            }
            Err(error) => {
                // Most likely there are too many open files: others must end theirs first.
                tracing::warn!(%error, "cannot accept an NBD client");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn connection(mut stream: UnixStream, exports: ExportTable) {
    let result = match negotiate(&mut stream, &exports).await {
        Ok(None) => return,
        Ok(Some(client)) => serve(stream, client).await,
        Err(error) => Err(error),
    };
    match result {
        Ok(()) => {}
        Err(ConnectionError::Misbehaviour(what)) => tracing::warn!(%what, "an NBD client was disconnected"),
        Err(ConnectionError::Io(error)) => tracing::debug!(%error, "an NBD client is gone"),
    }
}

fn log_panic(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "a task of an NBD client failed");
    }
}
