//! Live migration between two QEMUs.
//!
//! The stream is a descriptor that QEMU gets over its monitor (`getfd`), so its user needs no right to any path and no
//! socket is left behind. QEMU tells each step by an event; it is also asked now and then, for figures and lest an
//! event was lost with a connection.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::qmp::QmpError;
use super::run::Run;
use super::status::is_under_way;
use super::{COMMAND_PATIENCE, QUIT_PATIENCE};
use crate::error::{Error, Result};
use crate::migration::{MigrateOptions, Migrated, MigrationPhase, MigrationProgress};
use crate::state::{LiveState, StopReason};

/// How often QEMU is asked how far it is.
const POLL: Duration = Duration::from_millis(200);
/// How often the time is doubled in which the rest has to be sent, and how many times at most.
const EASE: (Duration, u32) = (Duration::from_secs(1), 4);
/// How long a cancelled migration may take to end.
const CANCEL_PATIENCE: Duration = Duration::from_secs(5);
/// How long QEMU may take to tell the state in which a migration left it.
const SETTLE_PATIENCE: Duration = Duration::from_secs(10);
/// The stream's name in QEMU.
const STREAM: &str = "migration";

/// What both sides must agree on, as far as the QEMU has it: events for each step; a way back, over which the
/// destination says that it has everything before the source is done; disks that stay inactive until the guest is
/// resumed (QEMU does so by itself from 10.0 on).
const CAPABILITIES: [&str; 3] = ["events", "return-path", "late-block-activate"];

/// QEMU's answer to `query-migrate`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Info {
    status: String,
    error_desc: Option<String>,
    total_time: u64,
    downtime: u64,
    setup_time: u64,
    ram: Ram,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Ram {
    transferred: u64,
    remaining: u64,
    total: u64,
    dirty_pages_rate: u64,
    page_size: u64,
}

impl Info {
    fn phase(&self) -> MigrationPhase {
        match self.status.as_str() {
            "" | "none" | "setup" | "wait-unplug" => MigrationPhase::Setup,
            "pre-switchover" | "device" => MigrationPhase::Switchover,
            _ => MigrationPhase::Transfer,
        }
    }

    fn progress(&self) -> MigrationProgress {
        MigrationProgress {
            transferred: self.ram.transferred,
            remaining: self.ram.remaining,
            total: self.ram.total,
            dirty_rate: self.ram.dirty_pages_rate.saturating_mul(self.ram.page_size),
            switching: false,
        }
    }

    fn migrated(&self, guest: LiveState) -> Migrated {
        Migrated {
            total_ms: self.total_time,
            downtime_ms: self.downtime,
            setup_ms: self.setup_time,
            bytes: self.ram.transferred,
            guest,
        }
    }
}

/// What makes an error name the migration that it is about.
struct About<'a> {
    run: &'a Run,
    phase: MigrationPhase,
}

impl About<'_> {
    fn failed(&self, reason: impl Into<String>) -> Error {
        let record = &self.run.record;
        let (instance, run) = (record.instance.clone(), record.run.clone());
        Error::Migration { instance, run, phase: self.phase, reason: reason.into() }
    }

    fn cancelled(&self) -> Error {
        let record = &self.run.record;
        Error::Cancelled { instance: record.instance.clone(), run: record.run.clone(), phase: self.phase }
    }

    /// QEMU did not do what it was told. A connection that broke is its end, most often, and that says more.
    async fn refused(&self, error: QmpError) -> Error {
        if matches!(error, QmpError::Lost { .. })
            && let Ok(reason) = tokio::time::timeout(QUIT_PATIENCE, self.run.ended()).await
        {
            return self.ended(&reason);
        }
        self.failed(error.to_string())
    }

    /// QEMU is gone, and may have said why.
    fn ended(&self, reason: &StopReason) -> Error {
        let how = match reason {
            StopReason::Crashed { how } => how.as_str(),
            StopReason::GuestShutdown => "the guest powered itself off",
            StopReason::GuestReset => "the guest rebooted, which ends the run",
            StopReason::Killed => "the run was ended",
        };
        let log = self.run.log.last_lines();
        self.failed(if log.is_empty() { how.to_owned() } else { format!("{how}; its last words:\n{log}") })
    }
}

impl Run {
    async fn command(&self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.qmp().execute(command, arguments, COMMAND_PATIENCE).await
    }

    /// Readies QEMU for a migration, and gives it the stream.
    async fn prepare(&self, parameters: Value, stream: OwnedFd) -> Result<(), QmpError> {
        let known = self.command("query-migrate-capabilities", Value::Null).await?;
        let known: Vec<&str> =
            known.as_array().into_iter().flatten().filter_map(|known| known["capability"].as_str()).collect();
        let on = |name: &&str| known.contains(name);
        let on: Vec<Value> = CAPABILITIES
            .iter()
            .filter(|name| on(name))
            .map(|name| json!({"capability": name, "state": true}))
            .collect();
        self.command("migrate-set-capabilities", json!({"capabilities": on})).await?;
        self.command("migrate-set-parameters", parameters).await?;
        self.qmp().give(STREAM, stream, COMMAND_PATIENCE).await
    }

    async fn query_migrate(&self) -> Result<Info, QmpError> {
        let answer = self.command("query-migrate", Value::Null).await?;
        serde_json::from_value(answer).map_err(|error| QmpError::Lost {
            instance: self.record.instance.clone(),
            command: "query-migrate".into(),
            reason: format!("it answered what is not understood ({error})"),
        })
    }

    /// The source's side, from the beginning to the end.
    pub async fn migrate_out(
        &self,
        stream: OwnedFd,
        options: &MigrateOptions,
        progress: &watch::Sender<MigrationProgress>,
    ) -> Result<Migrated> {
        let mut switches = self.status.switches();
        // Beside the rest: QEMU answers no question between the stop and the end of the switch.
        let tell = async {
            while switches.changed().await.is_ok() {
                progress.send_modify(|progress| progress.switching = true);
            }
            std::future::pending().await
        };
        tokio::select! {
            biased;
            never = tell => never,
            sent = self.send(stream, options, progress) => sent,
        }
    }

    async fn send(
        &self,
        stream: OwnedFd,
        options: &MigrateOptions,
        progress: &watch::Sender<MigrationProgress>,
    ) -> Result<Migrated> {
        match self.status.state() {
            LiveState::Running | LiveState::Paused | LiveState::IoError => {}
            _ => return Err(self.wrong_state("migrate")),
        }
        self.cancelled.store(false, Ordering::Relaxed);
        let deadline = Instant::now() + options.timeout;
        let mut about = About { run: self, phase: MigrationPhase::Setup };
        let mut told = self.status.migrations();
        // A bandwidth of 0 is one without a limit.
        let parameters = json!({
            "max-bandwidth": options.max_bandwidth.unwrap_or(0),
            "downtime-limit": options.downtime_limit.as_millis() as u64,
        });
        let begin = async {
            self.prepare(parameters, stream).await?;
            self.command("migrate", json!({"uri": format!("fd:{STREAM}")})).await
        };
        if let Err(error) = begin.await {
            return Err(about.refused(error).await);
        }
        // When it was cancelled for taking too long.
        let mut given_up = None;
        let (mut eased, mut ease_at) = (0, Instant::now() + EASE.0);
        loop {
            // A QEMU that doesn't answer now may do so later; for how long is decided below.
            if let Ok(info) = self.query_migrate().await {
                match info.status.as_str() {
                    "completed" => {
                        self.settle(&about).await?;
                        return Ok(info.migrated(self.status.guest()));
                    }
                    "failed" | "cancelled" => {
                        self.settle(&about).await?;
                        // One that is cancelled while its stream is stuck fails for QEMU.
                        return Err(if given_up.is_some() {
                            about.failed(too_long(options.timeout))
                        } else if info.status == "cancelled" || self.cancelled.load(Ordering::Relaxed) {
                            about.cancelled()
                        } else {
                            about.failed(info.error_desc.as_deref().unwrap_or("QEMU gave no reason"))
                        });
                    }
                    // On its way to be cancelled it says nothing about how far it was.
                    "cancelling" => {}
                    _ => {
                        about.phase = info.phase();
                        progress.send_modify(|progress| {
                            *progress = MigrationProgress { switching: progress.switching, ..info.progress() };
                        });
                    }
                }
            }
            let now = Instant::now();
            if now >= ease_at && eased < EASE.1 {
                (eased, ease_at) = (eased + 1, now + EASE.0);
                let limit = (options.downtime_limit.as_millis() as u64) << eased;
                // Without it, it takes longer.
                let _ = self.command("migrate-set-parameters", json!({"downtime-limit": limit})).await;
            }
            match given_up {
                None if now >= deadline => {
                    // Its answer shows in the state.
                    let _ = self.command("migrate_cancel", Value::Null).await;
                    given_up = Some(Instant::now());
                    continue;
                }
                Some(at) if now >= at + CANCEL_PATIENCE => {
                    return Err(about.failed(format!("{}, which it does not obey", too_long(options.timeout))));
                }
                _ => {}
            }
            let wake = if given_up.is_some() { now + POLL } else { deadline.min(now + POLL) };
            tokio::select! {
                _ = told.changed() => {}
                () = tokio::time::sleep_until(wake) => {}
                reason = self.ended() => return Err(about.ended(&reason)),
            }
        }
    }

    /// Waits until QEMU is in the state in which a migration that has ended left it.
    async fn settle(&self, about: &About<'_>) -> Result<()> {
        tokio::select! {
            settled = tokio::time::timeout(SETTLE_PATIENCE, self.refresh(COMMAND_PATIENCE)) => match settled {
                Ok(answer) => answer.map_err(|error| about.failed(error.to_string())),
                Err(_) => Err(about.failed("QEMU does not come to rest after it")),
            },
            reason = self.ended() => Err(about.ended(&reason)),
        }
    }

    /// Cancels what the source's side does, and waits for its end.
    pub async fn migrate_cancel(&self) -> Result<()> {
        let mut told = self.status.migrations();
        let about = About { run: self, phase: MigrationPhase::Transfer };
        let deadline = Instant::now() + CANCEL_PATIENCE;
        let cancelling = async {
            if self.status.state() == LiveState::Migrating {
                self.cancelled.store(true, Ordering::Relaxed);
                self.command("migrate_cancel", Value::Null).await?;
            }
            while is_under_way(&self.query_migrate().await?.status) {
                let _ = tokio::time::timeout(POLL, told.changed()).await;
            }
            self.refresh(COMMAND_PATIENCE).await
        };
        match timeout_at(deadline, cancelling).await {
            Ok(done) => Ok(done?),
            Err(_) => Err(about.failed(format!("it was cancelled and does not end within {CANCEL_PATIENCE:?}"))),
        }
    }

    /// The destination's side, from the beginning to the end.
    pub async fn accept(&self, stream: OwnedFd, timeout: Duration) -> Result<()> {
        if self.status.state() != LiveState::Incoming {
            return Err(self.wrong_state("receive the memory of"));
        }
        let deadline = Instant::now() + timeout;
        let about = About { run: self, phase: MigrationPhase::Receive };
        let mut told = self.status.migrations();
        let receive = async {
            self.prepare(announcements("announce-"), stream).await?;
            self.command("migrate-incoming", json!({"uri": format!("fd:{STREAM}")})).await?;
            while self.status.state() == LiveState::Incoming {
                if tokio::time::timeout(POLL, told.changed()).await.is_err() {
                    // What can't be asked now is asked again.
                    let _ = self.refresh(COMMAND_PATIENCE).await;
                }
            }
            Ok::<(), QmpError>(())
        };
        tokio::select! {
            received = timeout_at(deadline, receive) => match received {
                Ok(Ok(())) => Ok(()),
                Ok(Err(error)) => Err(about.refused(error).await),
                Err(_) => Err(about.failed(format!("the memory was not here within {timeout:?}"))),
            },
            reason = self.ended() => Err(about.ended(&reason)),
        }
    }

    /// Makes the guest's place in the network known.
    pub async fn announce_self(&self) -> Result<()> {
        self.command("announce-self", announcements("")).await?;
        Ok(())
    }
}

/// When the frames go out that make a guest's place known: five, the first at once, the next ones 10, 30, 50 and 70 ms
/// after the one before. Names have the prefix that QEMU wants.
fn announcements(prefix: &str) -> Value {
    let times = [("initial", 10), ("step", 20), ("max", 100), ("rounds", 5)];
    times.into_iter().map(|(name, value): (_, u32)| (format!("{prefix}{name}"), value)).collect()
}

fn too_long(timeout: Duration) -> String {
    format!("it was not done within {timeout:?} and was cancelled")
}
