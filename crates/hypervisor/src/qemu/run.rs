//! A live QEMU: its process, its QMP connection, its console, and what they tell.

use std::convert::Infallible;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{broadcast, mpsc, watch};
use tokio::task::AbortHandle;

use super::launch::StartLog;
use super::qmp::{Qmp, QmpError};
use super::rundir::{QMP, Record, RunDir, SERIAL};
use super::status::{Answer, Status, stop_reason};
use crate::console::Hub;
use crate::error::{Error, Result};
use crate::process::{Pidfd, ProcessId};
use crate::state::{Event, EventKind, Running, StopReason};

/// The first pause before a question is put again, or a connection tried again, which failed at once.
const FIRST_PAUSE: Duration = Duration::from_millis(2);
/// The longest such pause; it doubles each time.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

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
    /// QEMU's words since the daemon has known the run.
    pub log: StartLog,
    link: Mutex<Link>,
    pub status: Arc<Status>,
    killed: AtomicBool,
    /// The last migration was told to end.
    pub cancelled: AtomicBool,
    ended: watch::Sender<Option<StopReason>>,
    console_task: Option<AbortHandle>,
}

/// The connection to QEMU's monitor.
#[derive(Debug)]
struct Link {
    qmp: Qmp,
    task: AbortHandle,
}

impl Link {
    async fn open(dir: &RunDir, status: &Arc<Status>, instance: &str) -> Result<Link> {
        let stream = connect(dir, QMP, instance).await?;
        let told = Arc::clone(status);
        let (qmp, task) = Qmp::open(stream, instance, move |event| told.take(&event));
        Ok(Link { qmp, task })
    }
}

async fn connect(dir: &RunDir, socket: &str, instance: &str) -> Result<UnixStream> {
    let path = dir.socket(socket);
    let what = format!("connect to {} of instance {instance}", path.display());
    UnixStream::connect(path).await.map_err(Error::io(what))
}

impl Drop for Run {
    fn drop(&mut self) {
        // Closes the sockets, so that the next daemon gets them; the guest goes on.
        self.link().task.abort();
        if let Some(task) = &self.console_task {
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
        log: StartLog,
        events: broadcast::Sender<Event>,
    ) -> Result<Run> {
        let status = Arc::new(Status::new(&record.instance, &record.run, events));
        let link = Link::open(&dir, &status, &record.instance).await?;
        let (mut console, mut console_task) = (None, None);
        if record.serial {
            let stream = connect(&dir, SERIAL, &record.instance).await?;
            let (hub, typed) = Hub::new(backlog);
            console_task = Some(tokio::spawn(serve(stream, Arc::clone(&hub), typed)).abort_handle());
            console = Some(hub);
        }
        Ok(Run {
            record,
            dir,
            process,
            pidfd,
            console,
            log,
            link: Mutex::new(link),
            status,
            killed: AtomicBool::new(false),
            cancelled: AtomicBool::new(false),
            ended: watch::Sender::new(None),
            console_task,
        })
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection to QEMU as it is now.
    pub fn qmp(&self) -> Qmp {
        self.link().qmp.clone()
    }

    /// Commands QEMU.
    pub async fn execute(&self, command: &str, timeout: Duration) -> Result<Value, QmpError> {
        self.qmp().execute(command, Value::Null, timeout).await
    }

    /// Asks QEMU for the state, which otherwise follows from events. QEMU has this time for each answer.
    pub async fn refresh(&self, timeout: Duration) -> Result<(), QmpError> {
        let mut pause = FIRST_PAUSE;
        loop {
            let changes = self.status.changes();
            let status = self.execute("query-status", timeout).await?;
            let migration = self.execute("query-migrate", timeout).await?;
            let word = |answer: &Value| answer["status"].as_str().unwrap_or_default().to_owned();
            if self.status.answered(changes, &word(&status), &word(&migration)) == Answer::Settled {
                return Ok(());
            }
            tokio::time::sleep(pause).await;
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// Keeps the state true: asks QEMU when it can't be known from events alone, and connects again when the
    /// connection is lost. To be dropped when the run is over.
    pub async fn follow(&self) -> Infallible {
        let mut migrations = self.status.migrations();
        loop {
            // A QEMU that was stopped by a signal answers when it goes on.
            if let Err(error) = self.refresh(Duration::MAX).await {
                tracing::debug!("can't ask for the state: {error}");
            }
            let qmp = self.qmp();
            tokio::select! {
                _ = migrations.changed() => {}
                () = qmp.closed() => self.reconnect().await,
            }
        }
    }

    async fn reconnect(&self) {
        let instance = &self.record.instance;
        let mut pause = FIRST_PAUSE;
        loop {
            // The connection of a QEMU that ends is lost, too: not worth a word at once.
            tokio::time::sleep(pause).await;
            match Link::open(&self.dir, &self.status, instance).await {
                Ok(link) => {
                    tracing::warn!(instance, "connected to QEMU's monitor again");
                    *self.link() = link;
                    return;
                }
                Err(error) => tracing::debug!(instance, "QEMU's monitor is lost: {error}"),
            }
            pause = LONGEST_PAUSE.min(pause * 2);
        }
    }

    /// The run as others see it.
    pub fn running(&self) -> Running {
        Running {
            instance: self.record.instance.clone(),
            run: self.record.run.clone(),
            state: self.status.state(),
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
        let _ = tokio::time::timeout(LAST_WORDS, self.qmp().closed()).await;
        if let Some(hub) = &self.console {
            hub.close();
        }
        Ok(stop_reason(self.status.shutdown().as_deref(), self.killed.load(Ordering::Relaxed), exit))
    }

    /// Says that the run is over and nothing of it is left.
    pub fn mark_ended(&self, reason: StopReason) {
        self.ended.send_replace(Some(reason));
    }

    /// Returns when the run is over and nothing of it is left, and says how it ended.
    pub async fn ended(&self) -> StopReason {
        let mut ended = self.ended.subscribe();
        let reason = ended.wait_for(Option::is_some).await.ok().and_then(|reason| reason.clone());
        // The sender is our own, so there is a reason.
        reason.unwrap_or(StopReason::Killed)
    }

    /// Whether the run is over within this time.
    pub async fn ends_within(&self, timeout: Duration) -> bool {
        tokio::time::timeout(timeout, self.ended()).await.is_ok()
    }

    /// An error for what can't be done in the state that the run is in.
    pub fn wrong_state(&self, what: &'static str) -> Error {
        let Running { instance, run, state, .. } = self.running();
        Error::WrongState { what, instance, run, state }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LiveState;
    use crate::qemu::qmp::server::Server;
    use serde_json::json;
    use std::time::SystemTime;

    const SOON: Duration = Duration::from_secs(30);

    /// Answers what `follow` asks after each connection.
    async fn answer(server: &mut Server, status: &str) {
        server.greet().await;
        for answer in [json!({"status": status}), json!({})] {
            let question = server.hear().await;
            server.say(json!({"return": answer, "id": question["id"]})).await;
        }
    }

    #[tokio::test]
    async fn a_lost_monitor_is_connected_again_and_asked_what_was_missed() {
        let root = tempfile::tempdir().unwrap();
        let dir = RunDir::of(root.path(), "r1");
        dir.create().unwrap();
        let listener = dir.listen(QMP).unwrap();
        listener.set_nonblocking(true).unwrap();
        let listener = tokio::net::UnixListener::from_std(listener).unwrap();
        let record = Record {
            instance: "vm1".into(),
            run: "r1".into(),
            memory_mib: 1,
            vcpus: 1,
            machine: "pc".into(),
            serial: false,
            since: SystemTime::now(),
            arguments: vec![],
        };
        let process = ProcessId::of(std::process::id() as i32).unwrap();
        let pidfd = process.open().unwrap().unwrap();
        let log = StartLog::from_now(root.path().join("vm1.log"));
        let run = Run::connect(record, dir, process, pidfd, b"", log, broadcast::channel(16).0).await.unwrap();
        let talk = async {
            let mut first = Server::accept(&listener).await;
            answer(&mut first, "paused").await;
            drop(first);
            let mut second = Server::accept(&listener).await;
            answer(&mut second, "running").await;
            let question = second.hear().await;
            assert_eq!(question["execute"], "cont");
            second.say(json!({"return": {}, "id": question["id"]})).await;
            second
        };
        let command = async {
            // A command in between is lost, one after it is not.
            while run.running().state != LiveState::Running {
                tokio::task::yield_now().await;
            }
            run.execute("cont", SOON).await.unwrap();
        };
        tokio::select! {
            never = run.follow() => match never {},
            both = tokio::time::timeout(SOON, async { tokio::join!(talk, command) }) => drop(both.unwrap()),
        }
    }
}
