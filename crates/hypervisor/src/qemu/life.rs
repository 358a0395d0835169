//! How runs come up, are looked after, are adopted and end.

use std::sync::{Arc, PoisonError};

use serde_json::Value;
use tokio::net::UnixStream;

use super::capabilities::{self, Capabilities};
use super::command::Begin;
use super::launch::{self, Launched, StartLog, launch};
use super::qmp::{Qmp, QmpError};
use super::run::Run;
use super::rundir::{self, RunDir};
use super::{ADOPT_PATIENCE, Inner, QUIT_PATIENCE, START_PATIENCE, status, with_causes};
use crate::accel::{self, Accelerator};
use crate::console::BACKLOG;
use crate::error::{Error, Result};
use crate::machine::MachineSpec;
use crate::process::Pidfd;
use crate::state::{EventKind, Gone};

/// What is in the directory of an earlier daemon's run.
pub(super) enum Found {
    /// It lives. A process that was stopped by a signal (SIGSTOP, a frozen cgroup) lives too, but doesn't answer.
    Live(Box<Run>),
    Gone(Option<Gone>),
}

impl Inner {
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        // Those that have ended take no room.
        while tasks.try_join_next().is_some() {}
        tasks.spawn(task);
    }

    pub(super) async fn capabilities(&self) -> Result<&Capabilities> {
        let ask = || capabilities::ask(&self.config.binary);
        self.capabilities.get_or_try_init(ask).await
    }

    pub(super) async fn accelerator(&self) -> &Accelerator {
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
    pub(super) async fn bring_up(&self, spec: MachineSpec, begin: Begin) -> Result<Run> {
        let capabilities = self.capabilities().await?.clone();
        let accelerator = self.accelerator().await.clone();
        launch::make_dir(&self.config.run_dir)?;
        launch::make_dir(&self.config.log_dir)?;
        let dir = RunDir::of(&self.config.run_dir, &spec.run);
        dir.create()?;
        let result = self.bring_up_in(&dir, spec, begin, capabilities, accelerator).await;
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
        begin: Begin,
        capabilities: Capabilities,
        accelerator: Accelerator,
    ) -> Result<Run> {
        let config = self.config.clone();
        let instance = spec.instance.clone();
        let here = dir.clone();
        let launching =
            tokio::task::spawn_blocking(move || launch(&config, &spec, begin, &here, &capabilities, &accelerator));
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
                    let run = Run::connect(record, dir.clone(), process, second, b"", log.clone(), events).await?;
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
            _ => status::describe(pidfd.reap()),
        };
        if !ended {
            pidfd.signal(nix::sys::signal::Signal::SIGKILL).map_err(Error::io(own()))?;
            pidfd.exited().await.map_err(Error::io(own()))?;
            pidfd.reap();
        }
        Err(Error::Start { instance, reason, log: log.last_lines() })
    }

    /// Looks after a run from now on.
    pub(super) fn take_in(self: &Arc<Self>, run: Run) -> Arc<Run> {
        let run = Arc::new(run);
        self.table.insert(Arc::clone(&run));
        run.announce(EventKind::Started);
        let inner = Arc::clone(self);
        let watched = Arc::clone(&run);
        self.spawn(async move {
            tokio::select! {
                () = inner.watch_over(&watched) => {}
                never = watched.follow() => match never {},
            }
        });
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
        run.announce(EventKind::Stopped(reason.clone()));
        run.mark_ended(reason);
    }

    /// Finds out what an earlier daemon's run has become, and removes what is left of one that ended.
    pub(super) async fn look_into(self: &Arc<Self>, dir: &RunDir) -> Result<Found> {
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
        let log = StartLog::from_now(launch::qemu_log(&self.config, &record.instance));
        let events = self.events.clone();
        let run = Run::connect(record, dir.clone(), process, pidfd, &backlog, log, events).await?;
        if let Err(error) = run.refresh(ADOPT_PATIENCE).await {
            tracing::warn!("adopted a silent guest: {error}");
        }
        Ok(Found::Live(Box::new(run)))
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
