//! The guard's socket for the daemon.

use std::fs::Permissions;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use super::process::Input;
use super::wire::{ToDaemon, ToGuard, line};

/// Opens the socket, for this user alone. What an earlier guard left is removed.
pub(super) fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Hands daemons to the guard as they connect.
pub(super) async fn accept(listener: UnixListener, inbox: mpsc::UnboundedSender<Input>) {
    let own = nix::unistd::geteuid().as_raw();
    let mut number = 0;
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::error!(%error, "the daemon can't connect");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        // The socket's mode says the same, unless somebody changed it.
        match stream.peer_cred() {
            Ok(peer) if peer.uid() == own || peer.uid() == 0 => {}
            _ => continue,
        }
        number += 1;
        tokio::spawn(serve(stream, number, inbox.clone()));
    }
}

async fn serve(stream: UnixStream, number: u64, inbox: mpsc::UnboundedSender<Input>) {
    let (reader, mut writer) = stream.into_split();
    let (out, mut messages) = mpsc::unbounded_channel::<ToDaemon>();
    // The guard may have ended; so does this then.
    let _ = inbox.send(Input::Connected(number, out));
    let mut lines = BufReader::new(reader).lines();
    loop {
        tokio::select! {
            said = lines.next_line() => {
                let Ok(Some(text)) = said else { break };
                match serde_json::from_str::<ToGuard>(&text) {
                    Ok(said) => drop(inbox.send(Input::Said(number, said))),
                    Err(error) => tracing::error!(%error, "the daemon said something that is not understood"),
                }
            }
            message = messages.recv() => {
                // None: a newer connection counts.
                let Some(message) = message else { break };
                if writer.write_all(&line(&message)).await.is_err() {
                    break;
                }
            }
        }
    }
    let _ = inbox.send(Input::Disconnected(number));
}
