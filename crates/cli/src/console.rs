//! `gnt-instance console`: the guest's serial console on this terminal, or through pipes.

use std::io::Read;
use std::pin::pin;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::error::Error;
use crate::session::Session;
use crate::terminal::RawMode;

/// Typed on a terminal it detaches from the console: `^]`, as in `virsh` and `telnet`.
const ESCAPE: u8 = 0x1d;

/// Bytes that are moved at once.
const PIECE: usize = 4096;

/// Why the console ended.
enum End {
    /// The other side closed it.
    Closed,
    /// `^]` was typed.
    Detached,
    /// The guest was silent for long enough.
    Idle,
    /// This process was told to end.
    Signal(i32),
}

/// Connects the session's streams with an instance's console until it is closed, `^]` is typed on a terminal, or the
/// guest was silent for `idle` after the end of the input.
///
/// # Errors
/// The instance doesn't run, the daemon doesn't answer, or a stream breaks.
pub(crate) async fn run(session: &mut Session, instance: &str, idle: Option<Duration>) -> Result<u8, Error> {
    let console = session.client.console(instance).await?;
    let interactive = session.interactive;
    if interactive {
        session.warn(format_args!("Connected to the console of {instance}; ^] detaches."));
    }
    // Signals are caught from here on, so none can end the process while the terminal is in raw mode.
    let signals = Signals::new().map_err(Error::Runtime)?;
    let raw = if interactive { Some(RawMode::enter().map_err(Error::Terminal)?) } else { None };
    let input = session.input.take().map(|input| read_in_background(input, interactive));
    let end = copy(session, console, input, signals, idle).await;
    drop(raw);
    let end = end?;
    if interactive {
        let said = match end {
            End::Detached => "Detached from",
            _ => "Connection closed to",
        };
        session.warn(format_args!("\n{said} the console of {instance}."));
    }
    match end {
        End::Signal(number) => Err(Error::Signal(number)),
        _ => Ok(0),
    }
}

/// Moves bytes both ways until something ends it.
async fn copy(
    session: &mut Session,
    console: impl AsyncRead + AsyncWrite,
    mut input: Option<mpsc::Receiver<Vec<u8>>>,
    mut signals: Signals,
    idle: Option<Duration>,
) -> Result<End, Error> {
    let (mut from_guest, mut to_guest) = tokio::io::split(console);
    let mut piece = vec![0; PIECE];
    let mut last_heard = Instant::now();
    loop {
        let has_input = input.is_some();
        // Counted only after the end of the input: a person may think for as long as they like.
        let silent = idle.filter(|_| !has_input).map(|idle| last_heard + idle);
        let silence = pin!(async {
            match silent {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        });
        tokio::select! {
            length = from_guest.read(&mut piece) => match length.map_err(Error::Console)? {
                0 => return Ok(End::Closed),
                length => {
                    last_heard = Instant::now();
                    session.out.write_all(&piece[..length]).map_err(Error::Output)?;
                    session.flush()?;
                }
            },
            typed = next(&mut input), if has_input => match typed {
                Some(bytes) => {
                    let escape = bytes.iter().position(|byte| *byte == ESCAPE).filter(|_| session.interactive);
                    to_guest.write_all(&bytes[..escape.unwrap_or(bytes.len())]).await.map_err(Error::Console)?;
                    to_guest.flush().await.map_err(Error::Console)?;
                    if escape.is_some() {
                        return Ok(End::Detached);
                    }
                }
                None => {
                    input = None;
                    last_heard = Instant::now();
                }
            },
            () = silence => return Ok(End::Idle),
            number = signals.next() => return Ok(End::Signal(number)),
        }
    }
}

async fn next(input: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match input {
        Some(input) => input.recv().await,
        None => None,
    }
}

/// Reads in a thread of its own: standard input can be a file or a terminal that others use too, and neither can be made
/// non-blocking without harm. The thread ends with the process, or with the input.
fn read_in_background(mut input: Box<dyn Read + Send>, interactive: bool) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        let mut piece = [0; PIECE];
        loop {
            match input.read(&mut piece) {
                Ok(0) => return,
                Ok(length) => {
                    if sender.blocking_send(piece[..length].to_vec()).is_err() {
                        return;
                    }
                    // What is typed after ^] is for the shell.
                    if interactive && piece[..length].contains(&ESCAPE) {
                        return;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return,
            }
        }
    });
    receiver
}

/// The signals that end a process.
struct Signals {
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    /// Number of the next one that comes.
    async fn next(&mut self) -> i32 {
        let kind = tokio::select! {
            _ = self.hangup.recv() => SignalKind::hangup(),
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.quit.recv() => SignalKind::quit(),
            _ = self.terminate.recv() => SignalKind::terminate(),
        };
        kind.as_raw_value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    /// What the guest got, and why the console ended, when this was typed on a terminal.
    async fn typed(text: &'static [u8]) -> (Vec<u8>, End) {
        let (ours, mut guest) = tokio::io::duplex(PIECE);
        let mut session = Session::standard();
        session.out = Box::new(Vec::new());
        session.interactive = true;
        let input = Some(read_in_background(Box::new(Cursor::new(text)), true));
        let idle = Some(Duration::ZERO);
        let end = copy(&mut session, ours, input, Signals::new().unwrap(), idle).await.unwrap();
        let mut got = Vec::new();
        guest.read_to_end(&mut got).await.unwrap();
        (got, end)
    }

    #[tokio::test]
    async fn the_escape_sign_detaches_on_a_terminal() {
        let (got, end) = typed(b"ls\r\x1dexit").await;
        assert!(matches!(end, End::Detached));
        assert_eq!(got, b"ls\r");
        let (got, end) = typed(b"ls\r").await;
        assert!(matches!(end, End::Idle));
        assert_eq!(got, b"ls\r");
    }

    #[tokio::test]
    async fn the_end_of_the_stream_ends_the_console() {
        let (ours, guest) = tokio::io::duplex(PIECE);
        drop(guest);
        let mut session = Session::standard();
        let end = copy(&mut session, ours, None, Signals::new().unwrap(), None).await.unwrap();
        assert!(matches!(end, End::Closed));
    }
}
