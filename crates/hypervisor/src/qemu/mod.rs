//! The driver for QEMU, with KVM where that really runs guests and TCG elsewhere. Ganeti's hypervisor `kvm`.

mod capabilities;
mod command;
mod launch;
mod life;
mod migrate;
mod qmp;
mod run;
mod rundir;
mod spawn;
mod status;
mod table;

use std::error::Error as _;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{OnceCell, broadcast, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::capabilities::Capabilities;
use self::command::Begin;
use self::life::Found;
use self::run::Run;
use self::rundir::RunDir;
use self::table::{Claim, Table};
use crate::accel::Accelerator;
use crate::console::ConsoleStream;
use crate::error::{Error, Result};
use crate::machine::MachineSpec;
use crate::migration::{MigrateOptions, Migrated, MigrationProgress};
use crate::state::{Adopted, Event, LiveState, NodeInfo, Running, Shutdown};
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

    /// Does something to its end, also if nobody waits for it any more.
    async fn detached<T: Send + 'static>(
        &self,
        instance: String,
        work: impl Future<Output = Result<T>> + Send + 'static,
    ) -> Result<T> {
        let (done, outcome) = oneshot::channel();
        self.inner.spawn(async move {
            let _ = done.send(work.await);
        });
        outcome.await.unwrap_or(Err(Error::Interrupted { instance }))
    }

    async fn create(&self, spec: &MachineSpec, begin: Begin) -> Result<Running> {
        spec.check()?;
        match self.inner.table.claim(&spec.instance, &spec.run).await {
            Claim::Present(run) => return Ok(run.running()),
            Claim::Instance { run } => {
                return Err(Error::AlreadyRunning { instance: spec.instance.clone(), run });
            }
            Claim::Granted => {}
        }
        let inner = Arc::clone(&self.inner);
        let spec = spec.clone();
        let (instance, run) = (spec.instance.clone(), spec.run.clone());
        let work = async move {
            match inner.bring_up(spec, begin).await {
                Ok(run) => Ok(inner.take_in(run).running()),
                Err(error) => {
                    inner.table.remove(&run);
                    Err(error)
                }
            }
        };
        self.detached(instance, work).await
    }
}

#[async_trait]
impl Hypervisor for Qemu {
    fn name(&self) -> &'static str {
        "kvm"
    }

    async fn start(&self, spec: &MachineSpec) -> Result<Running> {
        self.create(spec, Begin::Boot).await
    }

    async fn resume(&self, run: &str) -> Result<()> {
        let run = self.run(run)?;
        // Told to go on while its memory is under way, QEMU would do so by itself when that is here.
        if run.execute("query-status", COMMAND_PATIENCE).await?["status"] == "inmigrate" {
            return Err(run.wrong_state("resume"));
        }
        run.execute("cont", COMMAND_PATIENCE).await?;
        Ok(())
    }

    async fn pause(&self, run: &str) -> Result<()> {
        let run = self.run(run)?;
        if run.running().state == LiveState::Migrating {
            return Err(run.wrong_state("pause"));
        }
        run.execute("stop", COMMAND_PATIENCE).await?;
        Ok(())
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

    async fn start_incoming(&self, spec: &MachineSpec) -> Result<Running> {
        spec.check_incoming()?;
        self.create(spec, Begin::Incoming).await
    }

    async fn accept(&self, run: &str, stream: OwnedFd, timeout: Duration) -> Result<()> {
        self.run(run)?.accept(stream, timeout).await
    }

    async fn migrate_out(
        &self,
        run: &str,
        stream: OwnedFd,
        options: &MigrateOptions,
        progress: watch::Sender<MigrationProgress>,
    ) -> Result<Migrated> {
        let run = self.run(run)?;
        let options = options.clone();
        let instance = run.record.instance.clone();
        // Its timeout holds also for who no longer waits.
        self.detached(instance, async move { run.migrate_out(stream, &options, &progress).await }).await
    }

    async fn migrate_cancel(&self, run: &str) -> Result<()> {
        self.run(run)?.migrate_cancel().await
    }

    async fn announce(&self, run: &str) -> Result<()> {
        self.run(run)?.announce_self().await
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
                Ok(Found::Live(run)) => adopted.running.push(self.inner.take_in(*run).running()),
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
