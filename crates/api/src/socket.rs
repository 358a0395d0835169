//! The API on a unix socket: for this machine's root, and for the group that may look.

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::Request;
use axum::extract::connect_info::{ConnectInfo, Connected};
use axum::middleware::map_request;
use axum::serve::IncomingStream;
use jobs::Handle;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::{Group, chown, geteuid};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::oneshot;

use crate::access::Caller;
use crate::routes::router;

/// Members of this group may look. Where it does not exist, root alone has the socket.
pub const GROUP: &str = "cardume";

/// Connections that wait to be taken.
const BACKLOG: u32 = 128;

/// Why the API can't be served.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// Another process is there.
    #[error("another daemon already answers on {}; stop it first", path.display())]
    Taken {
        /// The socket.
        path: PathBuf,
    },
    /// Something else has the name.
    #[error("{} is there and is not a socket; move it away", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// Something on the way to the socket can't be done.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

fn cannot(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ApiError {
    let path = path.to_owned();
    move |source| ApiError::Io { action, path, source }
}

/// A served socket. When it is dropped, the socket goes and no more connections are taken; what was asked before is still
/// answered.
#[derive(Debug)]
#[must_use = "the socket goes when this is dropped"]
pub struct Server {
    path: PathBuf,
    /// Device and inode of our socket: by the time that we go, another daemon may have put its own there.
    identity: (u64, u64),
    /// Dropped with the rest: that ends the acceptance of connections.
    _running: oneshot::Sender<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let ours = std::fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.identity);
        if ours && let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "the API's socket can't be removed");
        }
    }
}

/// Serves the API on a unix socket, from now on until the [`Server`] is dropped.
///
/// The socket's folder is made if it isn't there. A socket that a daemon left behind is replaced. Root, and the user that the
/// daemon runs as, may do everything; members of [`GROUP`] may look. The kernel says who asks.
///
/// # Errors
/// See [`ApiError`].
pub async fn serve_socket(handle: Arc<dyn Handle>, path: &Path) -> Result<Server, ApiError> {
    let lock = lock_folder(path)?;
    make_room(path).await?;
    let listener = listen(path).map_err(cannot("listen on", path))?;
    drop(lock);
    let found = std::fs::symlink_metadata(path).map_err(cannot("look at", path))?;
    let (running, ended) = oneshot::channel();
    // From here on the socket is removed also if something fails.
    let server = Server { path: path.to_owned(), identity: (found.dev(), found.ino()), _running: running };
    open_to_group(path)?;

    let routes = router(handle).layer(map_request(identify));
    let service = routes.into_make_service_with_connect_info::<Caller>();
    tokio::spawn(async move {
        let end = async { drop(ended.await) };
        if let Err(error) = axum::serve(listener, service).with_graceful_shutdown(end).await {
            tracing::error!(%error, "the API's socket is not served any more");
        }
    });
    Ok(server)
}

/// Makes the socket's folder where there is none, and holds it while a socket is put there: of two daemons that start at once,
/// neither shall take the other's fresh socket for an abandoned one.
fn lock_folder(path: &Path) -> Result<Flock<File>, ApiError> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let made = DirBuilder::new().recursive(true).mode(0o755).create(folder);
    made.map_err(cannot("make the folder", folder))?;
    let opened = File::open(folder).map_err(cannot("open the folder", folder))?;
    Flock::lock(opened, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => ApiError::Taken { path: path.to_owned() },
        error => cannot("lock the folder", folder)(error.into()),
    })
}

/// Takes away the socket of a daemon that is gone.
async fn make_room(path: &Path) -> Result<(), ApiError> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(cannot("look at", path)(error)),
        Ok(found) if !found.file_type().is_socket() => return Err(ApiError::NotASocket { path: path.to_owned() }),
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(ApiError::Taken { path: path.to_owned() }),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(cannot("remove the abandoned socket", path))
        }
        Err(error) => Err(cannot("find out who is behind", path)(error)),
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let socket = UnixSocket::new_stream()?;
    // A socket's file gets the mode that the socket has when it is bound, so at no time can anybody else open it.
    fchmod(socket.as_fd(), Mode::S_IRUSR | Mode::S_IWUSR)?;
    socket.bind(path)?;
    socket.listen(BACKLOG)
}

/// Lets the group in, if there is one.
fn open_to_group(path: &Path) -> Result<(), ApiError> {
    match Group::from_name(GROUP) {
        Ok(Some(group)) => {
            chown(path, None, Some(group.gid)).map_err(io::Error::from).map_err(cannot("give to the group", path))?;
        }
        Ok(None) => {}
        Err(error) => tracing::warn!(%error, "it can't be found out whether there is a group '{GROUP}'"),
    }
    std::fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(cannot("set the mode of", path))
}

impl Connected<IncomingStream<'_, UnixListener>> for Caller {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        match stream.io().peer_cred() {
            Ok(peer) => local_caller(peer.uid(), geteuid().as_raw()),
            Err(error) => {
                tracing::warn!(%error, "the kernel does not say who is connected");
                Caller { name: "unknown".into(), may_change: false }
            }
        }
    }
}

/// A user of this machine. Who the daemon itself runs as could do everything without it.
fn local_caller(uid: u32, daemon: u32) -> Caller {
    let name = if uid == 0 { "root".into() } else { format!("uid:{uid}") };
    Caller { name, may_change: uid == 0 || uid == daemon }
}

async fn identify(ConnectInfo(caller): ConnectInfo<Caller>, mut request: Request) -> Request {
    request.extensions_mut().insert(caller);
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_daemons_own_user_may_change_things() {
        assert_eq!(local_caller(0, 0), Caller { name: "root".into(), may_change: true });
        assert_eq!(local_caller(0, 1000), Caller { name: "root".into(), may_change: true });
        assert_eq!(local_caller(1000, 1000), Caller { name: "uid:1000".into(), may_change: true });
        assert_eq!(local_caller(1000, 0), Caller { name: "uid:1000".into(), may_change: false });
    }
}
