//! A live QEMU: its process, its QMP connection, its console, and what they tell.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::AbortHandle;

use super::qmp::{Qmp, QmpError, QmpEvent};
use super::rundir::{QMP, Record, RunDir, SERIAL};
use crate::console::Hub;
use crate::error::{Error, Result};
use crate::process::{Pidfd, ProcessId};
use crate::state::{Event, EventKind, LiveState, Running, StopReason};

/// How long what QEMU said last may take to arrive after its process is gone. It is in our socket already.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A live run.
#[derive(Debug)]
pub(super) struct Run {
    pub record: Record,
    pub dir: RunDir,
    pub process: ProcessId,
    pub pidfd: Pidfd,
    pub console: Option<Arc<Hub>>,
    qmp: Qmp,
    status: Arc<Status>,
    killed: AtomicBool,
    ended: watch::Sender<bool>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Run {
    fn drop(&mut self) {
        // Closes the sockets, so that the next daemon gets them; the guest goes on.
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Run {
    /// Connects to QEMU's sockets. `backlog` is console output from before. Says nothing about whether QEMU answers.
    pub async fn connect(
        record: Record,
        dir: RunDir,
        process: ProcessId,
        pidfd: Pidfd,
        backlog: &[u8],
        events: broadcast::Sender<Event>,
    ) -> Result<Run> {
        let status = Arc::new(Status {
            instance: record.instance.clone(),
            run: record.run.clone(),
            events,
            live: Mutex::new(Live::default()),
        });
        let connect = async |name| {
            let path = dir.socket(name);
            let what = format!("connect to {} of instance {}", path.display(), record.instance);
            UnixStream::connect(path).await.map_err(Error::io(what))
        };
        let told = Arc::clone(&status);
        let stream = connect(QMP).await?;
        let (qmp, task) = Qmp::open(stream, &record.instance, move |event| told.take(&event));
        let mut tasks = vec![task];
        let mut console = None;
        if record.serial {
            let stream = connect(SERIAL).await?;
            let (hub, typed) = Hub::new(backlog);
            tasks.push(tokio::spawn(serve(stream, Arc::clone(&hub), typed)).abort_handle());
            console = Some(hub);
        }
        Ok(Run {
            record,
            dir,
            process,
            pidfd,
            console,
            qmp,
            status,
            killed: AtomicBool::new(false),
            ended: watch::Sender::new(false),
            tasks,
        })
    }

    /// Commands QEMU.
    pub async fn execute(&self, command: &str, timeout: Duration) -> Result<Value, QmpError> {
        self.qmp.execute(command, Value::Null, timeout).await
    }

    /// Asks QEMU for the state, which otherwise follows from events.
    pub async fn refresh(&self, timeout: Duration) -> Result<(), QmpError> {
        loop {
            let before = self.status.live().changes;
            let answer = self.execute("query-status", timeout).await?;
            let mut live = self.status.live();
            // An event may have overtaken the answer on its way to us: then it isn't the last word.
            if live.changes == before {
                live.state = state_of(answer["status"].as_str().unwrap_or_default());
                return Ok(());
            }
        }
    }

    /// The run as others see it.
    pub fn running(&self) -> Running {
        Running {
            instance: self.record.instance.clone(),
            run: self.record.run.clone(),
            state: self.status.live().state,
            memory_mib: self.record.memory_mib,
            vcpus: self.record.vcpus,
            process: Some(self.process.clone()),
            machine: self.record.machine.clone(),
            since: self.record.since,
        }
    }

    /// Tells the world.
    pub fn announce(&self, kind: EventKind) {
        self.status.announce(kind);
    }

    /// What follows is our doing, not a crash.
    pub fn condemn(&self) {
        self.killed.store(true, Ordering::Relaxed);
    }

    /// Waits for the process' end and says how it came. Called once, by who looks after the run.
    pub async fn outcome(&self) -> io::Result<StopReason> {
        self.pidfd.exited().await?;
        let exit = self.pidfd.reap();
        // If the connection doesn't end with the process, what it told before must do.
        let _ = tokio::time::timeout(LAST_WORDS, self.qmp.closed()).await;
        if let Some(hub) = &self.console {
            hub.close();
        }
        let shutdown = self.status.live().shutdown.clone();
        Ok(stop_reason(shutdown.as_deref(), self.killed.load(Ordering::Relaxed), exit))
    }

    /// Says that the run is over and nothing of it is left.
    pub fn mark_ended(&self) {
        self.ended.send_replace(true);
    }

    /// Whether the run is over within this time.
    pub async fn ends_within(&self, timeout: Duration) -> bool {
        let mut ended = self.ended.subscribe();
        tokio::time::timeout(timeout, ended.wait_for(|ended| *ended)).await.is_ok()
    }

    /// Kills the process.
    pub fn kill(&self) -> Result<()> {
        let what = format!("kill process {} of instance {}", self.process.pid, self.record.instance);
        self.pidfd.signal(Signal::SIGKILL).map_err(Error::io(what))
    }
}

/// Carries bytes between QEMU's serial port and its console.
async fn serve(stream: UnixStream, hub: Arc<Hub>, mut typed: mpsc::Receiver<Vec<u8>>) {
    let (mut from_guest, mut to_guest) = stream.into_split();
    let show = async {
        let mut buffer = vec![0; 4096];
        while let Ok(n @ 1..) = from_guest.read(&mut buffer).await {
            hub.publish(&buffer[..n]);
        }
    };
    // A guest that reads nothing blocks who types, not who reads.
    let type_in = async {
        while let Some(bytes) = typed.recv().await {
            if to_guest.write_all(&bytes).await.is_err() {
                break;
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = show => {}
        () = type_in => {}
    }
    hub.close();
}

/// What QEMU has told about a run.
#[derive(Debug)]
struct Status {
    instance: String,
    run: String,
    events: broadcast::Sender<Event>,
    live: Mutex<Live>,
}

#[derive(Debug)]
struct Live {
    state: LiveState,
    /// Why QEMU said that it shuts down.
    shutdown: Option<String>,
    /// Counts events.
    changes: u64,
}

impl Default for Live {
    fn default() -> Live {
        Live { state: LiveState::Paused, shutdown: None, changes: 0 }
    }
}

impl Status {
    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn announce(&self, kind: EventKind) {
        // Nobody listening is no error.
        let _ = self.events.send(Event { instance: self.instance.clone(), run: self.run.clone(), kind });
    }

    /// Takes an event of QEMU in.
    fn take(&self, event: &QmpEvent) {
        let text = |field: &str| event.data[field].as_str().unwrap_or_default().to_owned();
        let told = {
            let mut live = self.live();
            live.changes += 1;
            match event.name.as_str() {
                "RESUME" => {
                    live.state = LiveState::Running;
                    Some(EventKind::Resumed)
                }
                // A stop also follows an I/O error, a panic and a shutdown, and then says nothing new.
                "STOP" if live.state == LiveState::Running => {
                    live.state = LiveState::Paused;
                    Some(EventKind::Paused)
                }
                "BLOCK_IO_ERROR" if event.data["action"] == "stop" => {
                    // Each request under way fails by itself; one word is enough.
                    let before = std::mem::replace(&mut live.state, LiveState::IoError);
                    let disk = text("node-name");
                    let reason = text("reason");
                    (before != LiveState::IoError).then_some(EventKind::IoError { disk, reason })
                }
                "SHUTDOWN" => {
                    live.state = LiveState::Shutdown;
                    live.shutdown = Some(text("reason"));
                    None
                }
                "GUEST_PANICKED" => {
                    live.state = LiveState::Crashed;
                    None
                }
                "RESET" => Some(EventKind::Reset { by_guest: event.data["guest"] == true }),
                _ => None,
            }
        };
        if let Some(kind) = told {
            self.announce(kind);
        }
    }
}

/// QEMU's `RunState`.
fn state_of(status: &str) -> LiveState {
    match status {
        "running" | "colo" => LiveState::Running,
        "io-error" => LiveState::IoError,
        "shutdown" => LiveState::Shutdown,
        "guest-panicked" | "internal-error" | "watchdog" => LiveState::Crashed,
        // paused, prelaunch, inmigrate, postmigrate, … : the virtual CPUs stand.
        _ => LiveState::Paused,
    }
}

/// How a run ended, from the reason that QEMU gave (if it could), whether we killed it, and how its process exited
/// (if it was our child).
fn stop_reason(shutdown: Option<&str>, killed: bool, exit: Option<WaitStatus>) -> StopReason {
    let crashed = |how: String| StopReason::Crashed { how };
    match shutdown {
        Some("guest-shutdown") => StopReason::GuestShutdown,
        Some("guest-reset") => StopReason::GuestReset,
        Some("guest-panic") => crashed("the guest panicked".into()),
        Some("host-error") => crashed("QEMU met an error of the node, see its log".into()),
        Some(_) => StopReason::Killed,
        None if killed => StopReason::Killed,
        None => crashed(describe(exit)),
    }
}

/// A process' end in words.
pub(super) fn describe(exit: Option<WaitStatus>) -> String {
    match exit {
        Some(WaitStatus::Exited(_, code)) => format!("QEMU exited with status {code}, see its log"),
        Some(WaitStatus::Signaled(_, signal, _)) => format!("QEMU died of {signal}"),
        _ => "QEMU's process vanished".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::Pid;
    use serde_json::json;

    fn status() -> (Status, broadcast::Receiver<Event>) {
        let (events, receiver) = broadcast::channel(16);
        let live = Mutex::new(Live::default());
        (Status { instance: "vm1".into(), run: "r1".into(), events, live }, receiver)
    }

    fn event(name: &str, data: Value) -> QmpEvent {
        QmpEvent { name: name.into(), data }
    }

    #[test]
    fn states_follow_from_events() {
        let (status, mut seen) = status();
        for (name, data, state, told) in [
            ("RESUME", json!({}), LiveState::Running, Some(EventKind::Resumed)),
            ("RESET", json!({"guest": true}), LiveState::Running, Some(EventKind::Reset { by_guest: true })),
            ("STOP", Value::Null, LiveState::Paused, Some(EventKind::Paused)),
            ("X_NEW", json!([1]), LiveState::Paused, None),
            ("RESUME", json!({}), LiveState::Running, Some(EventKind::Resumed)),
            ("BLOCK_IO_ERROR", json!({"action": "report"}), LiveState::Running, None),
            (
                "BLOCK_IO_ERROR",
                json!({"action": "stop", "node-name": "disk0", "reason": "No space left"}),
                LiveState::IoError,
                Some(EventKind::IoError { disk: "disk0".into(), reason: "No space left".into() }),
            ),
            ("STOP", json!({}), LiveState::IoError, None),
            ("SHUTDOWN", json!({"guest": true, "reason": "guest-shutdown"}), LiveState::Shutdown, None),
            ("STOP", json!({}), LiveState::Shutdown, None),
        ] {
            status.take(&event(name, data));
            assert_eq!(status.live().state, state, "{name}");
            assert_eq!(seen.try_recv().ok().map(|event| event.kind), told, "{name}");
        }
    }

    #[test]
    fn ends_are_told_apart() {
        let killed = Some(WaitStatus::Signaled(Pid::from_raw(1), Signal::SIGKILL, false));
        let crashed = |how: &str| StopReason::Crashed { how: how.into() };
        for (shutdown, by_us, exit, want) in [
            (Some("guest-shutdown"), false, None, StopReason::GuestShutdown),
            (Some("guest-reset"), false, None, StopReason::GuestReset),
            (Some("host-qmp-quit"), true, None, StopReason::Killed),
            (Some("host-signal"), false, None, StopReason::Killed),
            (Some("guest-panic"), false, None, crashed("the guest panicked")),
            (None, true, killed, StopReason::Killed),
            (None, false, killed, crashed("QEMU died of SIGKILL")),
            (None, false, None, crashed("QEMU's process vanished")),
        ] {
            assert_eq!(stop_reason(shutdown, by_us, exit), want);
        }
    }
}
