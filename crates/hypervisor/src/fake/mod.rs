//! A hypervisor that only remembers: for tests of everything above it, at any scale.
//!
//! A run is a file in the run directory, as in Ganeti's driver of this name, so runs outlive the daemon like real ones.

mod migrate;

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::sync::{broadcast, mpsc, watch};

use self::migrate::{Sending, wrong_state};

use crate::Hypervisor;
use crate::accel::{Accelerator, AcceleratorKind};
use crate::console::{ConsoleStream, Hub};
use crate::error::{Error, Result};
use crate::machine::MachineSpec;
use crate::migration::{MigrateOptions, Migrated, MigrationProgress};
use crate::state::{Adopted, Event, EventKind, LiveState, NodeInfo, Running, Shutdown, StopReason};

/// The machine type of all fake runs.
const MACHINE: &str = "fake-1";

/// What a fake node has.
#[derive(Debug, Clone)]
pub struct FakeConfig {
    /// Holds `<run>.json` for each run.
    pub run_dir: PathBuf,
    /// Memory of the node in MiB; guests take theirs from it in full.
    pub memory_mib: u64,
    /// Memory of that which the node uses itself, in MiB.
    pub memory_used_by_node_mib: u64,
    /// CPUs of the node.
    pub cpus: u32,
}

/// The driver that only remembers. Guests obey the power button at once, and their console says what happens to them.
/// A migration ends, and the guest goes on, when the future of [`migrate_out`](Hypervisor::migrate_out) is dropped.
#[derive(Debug)]
pub struct Fake {
    config: FakeConfig,
    guests: Mutex<BTreeMap<String, Guest>>,
    events: broadcast::Sender<Event>,
}

#[derive(Debug)]
struct Guest {
    running: Running,
    console: Arc<Hub>,
    /// Keeps what is typed from being refused; nobody reads it.
    typed: mpsc::Receiver<Vec<u8>>,
    /// The migration that it is the source of.
    sending: Option<Sending>,
}

impl Guest {
    fn new(running: Running) -> Guest {
        let (console, typed) = Hub::new(b"");
        Guest { running, console, typed, sending: None }
    }

    fn say(&mut self, what: &str) {
        while self.typed.try_recv().is_ok() {}
        self.console.publish(format!("{}: {what}\r\n", self.running.instance).as_bytes());
    }
}

impl Fake {
    /// A driver that knows of no runs yet: see [`adopt`](Hypervisor::adopt).
    pub fn new(config: FakeConfig) -> Fake {
        Fake { config, guests: Mutex::default(), events: broadcast::channel(1024).0 }
    }

    /// Ends a run as a crash would, for tests of those who must notice.
    ///
    /// # Errors
    /// [`Error::NoSuchRun`], or that the run's file can't be removed.
    pub fn crash(&self, run: &str) -> Result<()> {
        self.end(run, StopReason::Crashed { how: "as the test wanted".into() })
    }

    fn guests(&self) -> MutexGuard<'_, BTreeMap<String, Guest>> {
        self.guests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn running(&self, run: &str) -> Result<Running> {
        let guests = self.guests();
        let guest = guests.get(run).ok_or_else(|| Error::NoSuchRun { run: run.into() })?;
        Ok(guest.running.clone())
    }

    fn file(&self, run: &str) -> PathBuf {
        self.config.run_dir.join(format!("{run}.json"))
    }

    fn write(&self, running: &Running) -> Result<()> {
        let path = self.file(&running.run);
        let new = path.with_extension("new");
        let text = serde_json::to_string(running).map_err(io::Error::from);
        text.and_then(|text| fs::create_dir_all(&self.config.run_dir).map(|()| text))
            .and_then(|text| fs::write(&new, text))
            .and_then(|()| fs::rename(&new, &path))
            .map_err(Error::io(format!("write {}", path.display())))
    }

    fn tell(&self, running: &Running, kind: EventKind) {
        // Nobody listening is no error.
        let _ = self.events.send(Event { instance: running.instance.clone(), run: running.run.clone(), kind });
    }

    fn change(&self, run: &str, state: LiveState, kind: EventKind) -> Result<()> {
        let mut guests = self.guests();
        let guest = guests.get_mut(run).ok_or_else(|| Error::NoSuchRun { run: run.into() })?;
        if guest.running.state == state {
            return Ok(());
        }
        let running = Running { state, ..guest.running.clone() };
        self.write(&running)?;
        guest.running = running;
        guest.say(&state.to_string());
        self.tell(&guest.running, kind);
        Ok(())
    }

    fn create(&self, spec: &MachineSpec, state: LiveState) -> Result<Running> {
        spec.check()?;
        let mut guests = self.guests();
        if let Some(guest) = guests.get(&spec.run) {
            return Ok(guest.running.clone());
        }
        if let Some(guest) = guests.values().find(|guest| guest.running.instance == spec.instance) {
            return Err(Error::AlreadyRunning { instance: spec.instance.clone(), run: guest.running.run.clone() });
        }
        let running = Running {
            instance: spec.instance.clone(),
            run: spec.run.clone(),
            state,
            memory_mib: spec.memory_mib,
            vcpus: spec.vcpus,
            process: None,
            machine: MACHINE.into(),
            since: SystemTime::now(),
        };
        self.write(&running)?;
        guests.insert(spec.run.clone(), Guest::new(running.clone()));
        self.tell(&running, EventKind::Started);
        Ok(running)
    }

    fn end(&self, run: &str, reason: StopReason) -> Result<()> {
        let mut guests = self.guests();
        if !guests.contains_key(run) {
            return Err(Error::NoSuchRun { run: run.into() });
        }
        let path = self.file(run);
        fs::remove_file(&path).map_err(Error::io(format!("remove {}", path.display())))?;
        if let Some(guest) = guests.remove(run) {
            guest.console.close();
            self.tell(&guest.running, EventKind::Stopped(reason));
        }
        Ok(())
    }
}

#[async_trait]
impl Hypervisor for Fake {
    fn name(&self) -> &'static str {
        "fake"
    }

    async fn start(&self, spec: &MachineSpec) -> Result<Running> {
        self.create(spec, LiveState::Paused)
    }

    async fn resume(&self, run: &str) -> Result<()> {
        match self.running(run)? {
            running if running.state == LiveState::Incoming => Err(wrong_state("resume", running)),
            running if running.state == LiveState::Migrating => Ok(()),
            _ => self.change(run, LiveState::Running, EventKind::Resumed),
        }
    }

    async fn pause(&self, run: &str) -> Result<()> {
        let running = self.running(run)?;
        if running.state == LiveState::Migrating {
            return Err(wrong_state("pause", running));
        }
        self.change(run, LiveState::Paused, EventKind::Paused)
    }

    async fn shutdown(&self, run: &str, timeout: Duration) -> Result<Shutdown> {
        let state = self.guests().get(run).map(|guest| guest.running.state);
        if state.is_some_and(|state| state != LiveState::Running) {
            // Who doesn't run doesn't see the button.
            tokio::time::sleep(timeout).await;
            return Ok(Shutdown::TimedOut);
        }
        self.end(run, StopReason::GuestShutdown)?;
        Ok(Shutdown::Clean)
    }

    async fn reset(&self, run: &str) -> Result<()> {
        let mut guests = self.guests();
        let guest = guests.get_mut(run).ok_or_else(|| Error::NoSuchRun { run: run.into() })?;
        guest.say("reset");
        self.tell(&guest.running, EventKind::Reset { by_guest: false });
        Ok(())
    }

    async fn destroy(&self, run: &str) -> Result<()> {
        match self.end(run, StopReason::Killed) {
            Err(Error::NoSuchRun { .. }) => Ok(()),
            other => other,
        }
    }

    async fn start_incoming(&self, spec: &MachineSpec) -> Result<Running> {
        spec.check_incoming()?;
        self.create(spec, LiveState::Incoming)
    }

    async fn accept(&self, run: &str, stream: OwnedFd, timeout: Duration) -> Result<()> {
        self.receive(run, stream, timeout).await
    }

    async fn migrate_out(
        &self,
        run: &str,
        stream: OwnedFd,
        options: &MigrateOptions,
        progress: watch::Sender<MigrationProgress>,
    ) -> Result<Migrated> {
        self.send(run, stream, options, progress).await
    }

    async fn migrate_cancel(&self, run: &str) -> Result<()> {
        self.running(run)?;
        self.stop_sending(run);
        Ok(())
    }

    async fn announce(&self, run: &str) -> Result<()> {
        self.running(run).map(drop)
    }

    async fn list(&self) -> Vec<Running> {
        self.guests().values().map(|guest| guest.running.clone()).collect()
    }

    async fn console(&self, run: &str) -> Result<ConsoleStream> {
        let guests = self.guests();
        let guest = guests.get(run).ok_or_else(|| Error::NoSuchRun { run: run.into() })?;
        Ok(guest.console.attach())
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    async fn node_info(&self) -> Result<NodeInfo> {
        let guests: u64 = self.guests().values().map(|guest| guest.running.memory_mib).sum();
        let used = self.config.memory_used_by_node_mib;
        Ok(NodeInfo {
            memory_total_mib: self.config.memory_mib,
            memory_free_mib: self.config.memory_mib.saturating_sub(used + guests),
            memory_used_by_node_mib: used,
            cpus: self.config.cpus,
            cpu_nodes: 1,
            cpu_sockets: 1,
            accelerator: Accelerator { kind: AcceleratorKind::Tcg, why: "a fake guest runs no code".into() },
        })
    }

    async fn verify(&self) -> Vec<String> {
        let made = fs::create_dir_all(&self.config.run_dir);
        let problem = |error| format!("can't create {}: {error}", self.config.run_dir.display());
        made.err().map(problem).into_iter().collect()
    }

    async fn version(&self) -> Result<String> {
        Ok("1".into())
    }

    async fn adopt(&self) -> Result<Adopted> {
        let dir = &self.config.run_dir;
        let mut adopted = Adopted::default();
        for path in run_files(dir).map_err(Error::io(format!("list the runs in {}", dir.display())))? {
            let text = fs::read_to_string(&path);
            let running: Running = text
                .and_then(|text| Ok(serde_json::from_str(&text)?))
                .map_err(Error::io(format!("read {}", path.display())))?;
            self.tell(&running, EventKind::Started);
            adopted.running.push(running.clone());
            self.guests().insert(running.run.clone(), Guest::new(running));
        }
        Ok(adopted)
    }
}

/// The files of all runs, in the order of their ids.
fn run_files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::machine::Boot;
    use tokio::io::AsyncReadExt;

    fn config(dir: &tempfile::TempDir) -> FakeConfig {
        FakeConfig { run_dir: dir.path().join("fake"), memory_mib: 1024, memory_used_by_node_mib: 100, cpus: 2 }
    }

    fn spec(instance: &str, run: &str) -> MachineSpec {
        MachineSpec::new(instance, run, 128, 1, Boot::Disk { order: vec![] })
    }

    #[tokio::test]
    async fn a_run_lives_through_its_states_and_its_events_tell() {
        let dir = tempfile::tempdir().unwrap();
        let fake: Box<dyn Hypervisor> = Box::new(Fake::new(config(&dir)));
        let mut events = fake.events();
        assert_eq!(fake.start(&spec("vm1", "r1")).await.unwrap().state, LiveState::Paused);
        assert!(matches!(fake.start(&spec("vm1", "r2")).await, Err(Error::AlreadyRunning { .. })));
        let mut console = fake.console("r1").await.unwrap();
        fake.resume("r1").await.unwrap();
        fake.resume("r1").await.unwrap();
        assert_eq!(fake.list().await[0].state, LiveState::Running);
        assert_eq!(fake.node_info().await.unwrap().memory_free_mib, 796);
        fake.pause("r1").await.unwrap();
        assert_eq!(fake.shutdown("r1", Duration::ZERO).await.unwrap(), Shutdown::TimedOut);
        fake.resume("r1").await.unwrap();
        assert_eq!(fake.shutdown("r1", Duration::ZERO).await.unwrap(), Shutdown::Clean);
        let mut kinds = Vec::new();
        while let Ok(event) = events.try_recv() {
            kinds.push(event.kind);
        }
        use EventKind::{Paused, Resumed, Started, Stopped};
        assert_eq!(kinds, [Started, Resumed, Paused, Resumed, Stopped(StopReason::GuestShutdown)]);
        let mut said = String::new();
        console.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "vm1: running\r\nvm1: paused\r\nvm1: running\r\n");
        assert!(matches!(fake.resume("r1").await, Err(Error::NoSuchRun { .. })));
        fake.destroy("r1").await.unwrap();
    }

    #[tokio::test]
    async fn runs_outlive_the_driver_and_crashes_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let first = Fake::new(config(&dir));
        for n in 0..100 {
            first.start(&spec(&format!("vm{n}"), &format!("r{n}"))).await.unwrap();
        }
        first.resume("r7").await.unwrap();
        let before = first.list().await;
        drop(first);
        let second = Fake::new(config(&dir));
        assert_eq!(second.adopt().await.unwrap().running.len(), 100);
        assert_eq!(second.list().await, before);
        let mut events = second.events();
        second.crash("r7").unwrap();
        let kind = events.recv().await.unwrap().kind;
        assert!(matches!(kind, EventKind::Stopped(StopReason::Crashed { .. })));
        assert_eq!(second.list().await.len(), 99);
    }
}
