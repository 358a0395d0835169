//! The driver for QEMU, with KVM where that really runs guests and TCG elsewhere. Ganeti's hypervisor `kvm`.

mod capabilities;
mod command;
mod launch;
mod qmp;
mod run;
mod rundir;
mod spawn;
mod table;

use std::error::Error as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::{OnceCell, broadcast, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::capabilities::Capabilities;
use self::launch::{Launched, launch};
use self::qmp::Qmp;
use self::run::Run;
use self::rundir::RunDir;
use self::table::{Claim, Table};
use crate::accel::{self, Accelerator};
use crate::console::{BACKLOG, ConsoleStream};
use crate::error::{Error, Result};
use crate::machine::MachineSpec;
use crate::process::Pidfd;
use crate::state::{Adopted, Event, EventKind, Gone, NodeInfo, Running, Shutdown};
use crate::{Hypervisor, host};

pub use self::qmp::QmpError;

/// How long QEMU may take until it answers for the first time.
const START_PATIENCE: Duration = Duration::from_secs(30);
/// How long QEMU may take for a command that is done at once.
const COMMAND_PATIENCE: Duration = Duration::from_secs(10);
/// How long QEMU may take to quit by itself, before it is killed. It flushes its disks meanwhile.
const QUIT_PATIENCE: Duration = Duration::from_secs(2);
/// How long a killed process may take to end.
const KILL_PATIENCE: Duration = Duration::from_secs(30);
/// How long a running QEMU is waited for when a daemon starts: one that was stopped by a signal answers later.
const ADOPT_PATIENCE: Duration = Duration::from_secs(3);
/// The power button is pressed again after this time: a guest that was still booting missed it.
const PRESS_AGAIN: Duration = Duration::from_secs(5);
/// The oldest QEMU that is known to work.
const OLDEST: (u32, u32) = (7, 2);

/// Where and as whom QEMU runs.
#[derive(Debug, Clone)]
pub struct QemuConfig {
    /// The program, such as `/usr/bin/qemu-system-x86_64`.
    pub binary: PathBuf,
    /// The user that QEMU runs as; not root.
    pub uid: u32,
    /// That user's group.
    pub gid: u32,
    /// A directory that doesn't outlive the machine's boot; each run has one in it. The paths of sockets in there
    /// must stay below 108 bytes.
    pub run_dir: PathBuf,
    /// Holds `<instance>.log` (QEMU's own words) and `<instance>.console` (the serial console's output).
    pub log_dir: PathBuf,
}

/// The driver for QEMU. Dropping it lets go of the guests; they run on, and the next one adopts them.
#[derive(Debug)]
pub struct Qemu {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: QemuConfig,
    table: Table,
    events: broadcast::Sender<Event>,
    capabilities: OnceCell<Capabilities>,
    accelerator: OnceCell<Accelerator>,
    /// What could not be adopted, for `verify`.
    unadopted: Mutex<Vec<String>>,
    tasks: Mutex<JoinSet<()>>,
}

impl Drop for Qemu {
    fn drop(&mut self) {
        self.inner.tasks.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }
}

impl Qemu {
    /// A driver that knows of no runs yet: see [`adopt`](Hypervisor::adopt). To be used within a tokio runtime.
    pub fn new(config: QemuConfig) -> Qemu {
        Qemu {
            inner: Arc::new(Inner {
                config,
                table: Table::default(),
                events: broadcast::channel(1024).0,
                capabilities: OnceCell::new(),
                accelerator: OnceCell::new(),
                unadopted: Mutex::default(),
                tasks: Mutex::default(),
            }),
        }
    }

    fn run(&self, run: &str) -> Result<Arc<Run>> {
        self.inner.table.get(run).ok_or_else(|| Error::NoSuchRun { run: run.into() })
    }

    async fn command(&self, run: &str, command: &str) -> Result<()> {
        self.run(run)?.execute(command, COMMAND_PATIENCE).await?;
        Ok(())
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn name(&self) -> &'static str {
        "kvm"
    }

    async fn start(&self, spec: &MachineSpec) -> Result<Running> {
        spec.check()?;
        match self.inner.table.claim(&spec.instance, &spec.run).await {
            Claim::Present(run) => return Ok(run.running()),
            Claim::Instance { run } => {
                return Err(Error::AlreadyRunning { instance: spec.instance.clone(), run });
            }
            Claim::Granted => {}
        }
        // A task of its own: it ends in a run or in nothing also if nobody waits for it any more.
        let (done, outcome) = oneshot::channel();
        let inner = Arc::clone(&self.inner);
        let spec = spec.clone();
        let (instance, run) = (spec.instance.clone(), spec.run.clone());
        self.inner.spawn(async move {
            let result = match inner.bring_up(spec).await {
                Ok(run) => Ok(inner.take_in(run).running()),
                Err(error) => {
                    inner.table.remove(&run);
                    Err(error)
                }
            };
            let _ = done.send(result);
        });
        outcome.await.unwrap_or(Err(Error::Interrupted { instance }))
    }

    async fn resume(&self, run: &str) -> Result<()> {
        self.command(run, "cont").await
    }

    async fn pause(&self, run: &str) -> Result<()> {
        self.command(run, "stop").await
    }

    async fn shutdown(&self, run: &str, timeout: Duration) -> Result<Shutdown> {
        let run = self.run(run)?;
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match run.execute("system_powerdown", left.min(COMMAND_PATIENCE)).await {
                Ok(_) | Err(QmpError::TimedOut { .. }) => {}
                // It ended in this moment, or it can't be asked at all.
                Err(error) => {
                    return if run.ends_within(QUIT_PATIENCE).await { Ok(Shutdown::Clean) } else { Err(error.into()) };
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if run.ends_within(left.min(PRESS_AGAIN)).await {
                return Ok(Shutdown::Clean);
            }
            if left <= PRESS_AGAIN {
                return Ok(Shutdown::TimedOut);
            }
        }
    }

    async fn reset(&self, run: &str) -> Result<()> {
        self.command(run, "system_reset").await
    }

    async fn destroy(&self, run: &str) -> Result<()> {
        let Some(run) = self.inner.table.settled(run).await else {
            return Ok(());
        };
        run.condemn();
        // A QEMU that doesn't obey is killed, whatever its answer was.
        let quits = run.execute("quit", QUIT_PATIENCE).await.is_ok();
        if quits && run.ends_within(QUIT_PATIENCE).await {
            return Ok(());
        }
        run.kill()?;
        if run.ends_within(KILL_PATIENCE).await {
            return Ok(());
        }
        Err(Error::NotGone {
            instance: run.record.instance.clone(),
            pid: run.process.pid,
            seconds: KILL_PATIENCE.as_secs(),
        })
    }

    async fn list(&self) -> Vec<Running> {
        self.inner.table.all().iter().map(|run| run.running()).collect()
    }

    async fn console(&self, run: &str) -> Result<ConsoleStream> {
        let run = self.run(run)?;
        let hub = run.console.as_ref().ok_or_else(|| Error::NoConsole { instance: run.record.instance.clone() })?;
        Ok(hub.attach())
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.inner.events.subscribe()
    }

    async fn node_info(&self) -> Result<NodeInfo> {
        let host = host::read()?;
        let runs = self.inner.table.all();
        let guests: u64 = runs.iter().map(|run| host::resident_mib(run.process.pid)).sum();
        let taken = host.memory_total_mib.saturating_sub(host.memory_available_mib);
        Ok(NodeInfo {
            memory_total_mib: host.memory_total_mib,
            memory_free_mib: host.memory_available_mib,
            memory_used_by_node_mib: taken.saturating_sub(guests),
            cpus: host.cpus,
            cpu_nodes: host.cpu_nodes,
            cpu_sockets: host.cpu_sockets,
            accelerator: self.inner.accelerator().await.clone(),
        })
    }

    async fn verify(&self) -> Vec<String> {
        let config = &self.inner.config;
        let mut problems = Vec::new();
        match self.inner.capabilities().await {
            Ok(found) if found.release < OLDEST => problems.push(format!(
                "QEMU {} is older than {}.{}, the oldest that is known to work",
                found.version, OLDEST.0, OLDEST.1
            )),
            Ok(_) => {}
            Err(error) => problems.push(with_causes(&error)),
        }
        for dir in [&config.run_dir, &config.log_dir] {
            if let Err(error) = launch::make_dir(dir) {
                problems.push(with_causes(&error));
            }
        }
        if config.uid == 0 {
            problems.push("QEMU would run as root: give it a user of its own".into());
        } else if !nix::unistd::geteuid().is_root() {
            problems.push(format!("only root can start QEMU as user {}", config.uid));
        }
        problems.extend(self.inner.unadopted.lock().unwrap_or_else(PoisonError::into_inner).clone());
        problems
    }

    async fn version(&self) -> Result<String> {
        Ok(self.inner.capabilities().await?.version.clone())
    }

    async fn adopt(&self) -> Result<Adopted> {
        let mut searches = JoinSet::new();
        for dir in RunDir::all(&self.inner.config.run_dir)? {
            let inner = Arc::clone(&self.inner);
            searches.spawn(async move {
                let found = inner.look_into(&dir).await;
                (dir, found)
            });
        }
        let mut adopted = Adopted::default();
        while let Some(search) = searches.join_next().await {
            let Ok((dir, found)) = search else { continue };
            match found {
                Ok(Found::Live { run, answers }) => {
                    let run = self.inner.take_in(*run);
                    adopted.running.push(run.running());
                    if !answers {
                        self.inner.spawn(async move {
                            if let Err(error) = run.refresh(Duration::MAX).await {
                                tracing::info!("ended without an answer: {error}");
                            }
                        });
                    }
                }
                Ok(Found::Gone(gone)) => adopted.gone.extend(gone),
                Err(error) => {
                    let problem =
                        format!("the run in {} could not be taken over: {}", dir.path().display(), with_causes(&error));
                    tracing::error!("{problem}");
                    self.inner.unadopted.lock().unwrap_or_else(PoisonError::into_inner).push(problem);
                }
            }
        }
        adopted.running.sort_by(|a, b| a.run.cmp(&b.run));
        adopted.gone.sort_by(|a, b| a.run.cmp(&b.run));
        // What takes a moment to find out is known when it is needed.
        let inner = Arc::clone(&self.inner);
        self.inner.spawn(async move {
            inner.accelerator().await;
            // Who needs it gets the error.
            let _ = inner.capabilities().await;
        });
        Ok(adopted)
    }
}

/// What is in the directory of an earlier daemon's run.
enum Found {
    /// It lives. A process that was stopped by a signal (SIGSTOP, a frozen cgroup) lives too, but doesn't answer.
    Live {
        run: Box<Run>,
        answers: bool,
    },
    Gone(Option<Gone>),
}

impl Inner {
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have ended take no room.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    async fn capabilities(&self) -> Result<&Capabilities> {
        let ask = || capabilities::ask(&self.config.binary);
        self.capabilities.get_or_try_init(ask).await
    }

    async fn accelerator(&self) -> &Accelerator {
        let detect = async || {
            let found = tokio::task::spawn_blocking(|| accel::detect().clone()).await;
            found.unwrap_or_else(|error| Accelerator {
                kind: accel::AcceleratorKind::Tcg,
                why: format!("the probe of /dev/kvm failed: {error}"),
            })
        };
        self.accelerator.get_or_init(detect).await
    }

    /// Starts QEMU and waits until it answers. After an error nothing is left.
    async fn bring_up(&self, spec: MachineSpec) -> Result<Run> {
        let capabilities = self.capabilities().await?.clone();
        let accelerator = self.accelerator().await.clone();
        launch::make_dir(&self.config.run_dir)?;
        launch::make_dir(&self.config.log_dir)?;
        let dir = RunDir::of(&self.config.run_dir, &spec.run);
        dir.create()?;
        let result = self.bring_up_in(&dir, spec, capabilities, accelerator).await;
        if result.is_err()
            && let Err(error) = dir.remove()
        {
            tracing::warn!("can't remove {}: {error}", dir.path().display());
        }
        result
    }

    async fn bring_up_in(
        &self,
        dir: &RunDir,
        spec: MachineSpec,
        capabilities: Capabilities,
        accelerator: Accelerator,
    ) -> Result<Run> {
        let config = self.config.clone();
        let instance = spec.instance.clone();
        let here = dir.clone();
        let launching = tokio::task::spawn_blocking(move || launch(&config, &spec, &here, &capabilities, &accelerator));
        let interrupted = |_| Error::Interrupted { instance: instance.clone() };
        let Launched { pid, process, record, log } = launching.await.map_err(interrupted)??;
        let own = || format!("watch process {pid} of instance {instance}");
        // Ours and not reaped, so the number is still its.
        let pidfd = Pidfd::open(pid).map_err(Error::io(own()))?;
        let failure = match process {
            None => None,
            Some(process) => {
                let second = Pidfd::open(pid).map_err(Error::io(own()))?;
                let events = self.events.clone();
                let first_words = async {
                    let run = Run::connect(record, dir.clone(), process, second, b"", events).await?;
                    run.refresh(START_PATIENCE).await?;
                    Ok(run)
                };
                match first_words.await {
                    Ok(run) => return Ok(run),
                    Err(error) => Some::<Error>(error),
                }
            }
        };
        // A connection that broke is QEMU's end, most often: that says more.
        let ended = tokio::time::timeout(QUIT_PATIENCE, pidfd.exited()).await.is_ok();
        let reason = match failure {
            Some(error) if !ended => with_causes(&error),
            _ => run::describe(pidfd.reap()),
        };
        if !ended {
            pidfd.signal(nix::sys::signal::Signal::SIGKILL).map_err(Error::io(own()))?;
            pidfd.exited().await.map_err(Error::io(own()))?;
            pidfd.reap();
        }
        Err(Error::Start { instance, reason, log: log.last_lines() })
    }

    /// Looks after a run from now on.
    fn take_in(self: &Arc<Self>, run: Run) -> Arc<Run> {
        let run = Arc::new(run);
        self.table.insert(Arc::clone(&run));
        run.announce(EventKind::Started);
        let inner = Arc::clone(self);
        let watched = Arc::clone(&run);
        self.spawn(async move { inner.watch_over(&watched).await });
        run
    }

    /// Waits for a run's end and clears up.
    async fn watch_over(&self, run: &Run) {
        let reason = match run.outcome().await {
            Ok(reason) => reason,
            Err(error) => {
                tracing::error!(instance = run.record.instance, "can't watch QEMU's process: {error}");
                return;
            }
        };
        tracing::info!(instance = run.record.instance, run = run.record.run, ?reason, "the run is over");
        if let Err(error) = run.dir.remove() {
            tracing::warn!("can't remove {}: {error}", run.dir.path().display());
        }
        self.table.remove(&run.record.run);
        run.announce(EventKind::Stopped(reason));
        run.mark_ended();
    }

    /// Finds out what an earlier daemon's run has become, and removes what is left of one that ended.
    async fn look_into(self: &Arc<Self>, dir: &RunDir) -> Result<Found> {
        let (record, process) = dir.read()?;
        let gone = record.as_ref().map(|record| Gone { instance: record.instance.clone(), run: record.run.clone() });
        let (Some(record), Some(process)) = (record, process) else {
            // The start was cut off, so the guest never ran and nobody counts on it.
            self.end_nameless(dir).await?;
            return self.clear(dir, gone);
        };
        let open = format!("look for process {} of instance {}", process.pid, record.instance);
        let Some(pidfd) = process.open().map_err(Error::io(open))? else {
            return self.clear(dir, gone);
        };
        let log = launch::console_log(&self.config, &record.instance);
        let backlog = launch::tail(&log, 0, BACKLOG as u64).unwrap_or_default();
        let events = self.events.clone();
        let run = Run::connect(record, dir.clone(), process, pidfd, &backlog, events).await?;
        let answer = run.refresh(ADOPT_PATIENCE).await;
        if let Err(error) = &answer {
            tracing::warn!("adopted a silent guest: {error}");
        }
        Ok(Found::Live { run: Box::new(run), answers: answer.is_ok() })
    }

    /// Ends a QEMU of which nothing but its socket is known.
    async fn end_nameless(&self, dir: &RunDir) -> Result<()> {
        let Ok(stream) = UnixStream::connect(dir.socket(rundir::QMP)).await else {
            return Ok(());
        };
        let name = dir.path().file_name().unwrap_or_default().to_string_lossy();
        let (qmp, _) = Qmp::open(stream, &name, |_| {});
        match qmp.execute("quit", Value::Null, START_PATIENCE).await {
            // It can be gone before its answer is.
            Ok(_) | Err(QmpError::Lost { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn clear(&self, dir: &RunDir, gone: Option<Gone>) -> Result<Found> {
        dir.remove().map_err(Error::io(format!("remove {}", dir.path().display())))?;
        Ok(Found::Gone(gone))
    }
}

/// An error with its causes, in one line.
fn with_causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}
