//! A fake migration: one line there, one line back.

use std::io;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{oneshot, watch};

use super::Fake;
use crate::error::{Error, Result};
use crate::migration::{MigrateOptions, Migrated, MigrationPhase, MigrationProgress};
use crate::state::{EventKind, LiveState, Running, StopReason};

/// What the destination answers when it has everything.
const DONE: &str = "done";
/// The longest line that is accepted, in bytes.
const MAX_LINE: u64 = 64 * 1024;

/// The memory of a fake guest.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Memory {
    instance: String,
    machine: String,
    memory_mib: u64,
    vcpus: u32,
}

impl Memory {
    fn of(running: &Running) -> Memory {
        Memory {
            instance: running.instance.clone(),
            machine: running.machine.clone(),
            memory_mib: running.memory_mib,
            vcpus: running.vcpus,
        }
    }
}

/// A migration that a guest is the source of.
#[derive(Debug)]
pub(super) struct Sending {
    /// What the guest does meanwhile.
    guest: LiveState,
    /// Says that it is cancelled, or, by its end, that the run has ended.
    cancel: oneshot::Sender<()>,
}

/// Ends a sending that was dropped half-way, as the end of the stream would.
struct Unfinished<'a> {
    fake: &'a Fake,
    run: &'a str,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        self.fake.stop_sending(self.run);
    }
}

impl Fake {
    pub(super) async fn receive(&self, run: &str, stream: OwnedFd, timeout: Duration) -> Result<()> {
        let running = self.running(run)?;
        if running.state != LiveState::Incoming {
            return Err(wrong_state("receive the memory of", running));
        }
        let want = Memory::of(&running);
        let receive = async {
            let mut stream = open(stream)?;
            let memory: Memory = serde_json::from_str(&line(&mut stream).await?)?;
            if memory != want {
                return Err(io::Error::other(format!("{memory:?} doesn't fit {want:?}")));
            }
            self.change(run, LiveState::Paused, EventKind::MigratedIn).map_err(io::Error::other)?;
            stream.write_all(format!("{DONE}\n").as_bytes()).await
        };
        let failed = |reason| failed(running.clone(), MigrationPhase::Receive, reason);
        match tokio::time::timeout(timeout, receive).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                // As a QEMU that got half of a guest.
                self.end(run, StopReason::Crashed { how: error.to_string() })?;
                Err(failed(error.to_string()))
            }
            Err(_) => Err(failed(format!("the memory was not here within {timeout:?}"))),
        }
    }

    pub(super) async fn send(
        &self,
        run: &str,
        stream: OwnedFd,
        options: &MigrateOptions,
        progress: watch::Sender<MigrationProgress>,
    ) -> Result<Migrated> {
        let (running, cancelled) = self.begin_sending(run)?;
        let _unfinished = Unfinished { fake: self, run };
        let begin = Instant::now();
        let total = running.memory_mib << 20;
        progress.send_replace(MigrationProgress { remaining: total, total, ..MigrationProgress::default() });
        let send = async {
            let mut stream = open(stream)?;
            let memory = serde_json::to_string(&Memory::of(&running))?;
            stream.write_all(format!("{memory}\n").as_bytes()).await?;
            progress.send_replace(MigrationProgress { transferred: total, total, ..MigrationProgress::default() });
            match line(&mut stream).await? {
                answer if answer.trim_end() == DONE => Ok(()),
                answer => Err(io::Error::other(format!("the destination answered {answer:?}"))),
            }
        };
        let failed = |reason| Err(failed(running.clone(), MigrationPhase::Transfer, reason));
        let end = || Error::Cancelled {
            instance: running.instance.clone(),
            run: running.run.clone(),
            phase: MigrationPhase::Transfer,
        };
        tokio::select! {
            cancelled = cancelled => match cancelled {
                Ok(()) => Err(end()),
                Err(_) => failed("the run has ended".into()),
            },
            sent = tokio::time::timeout(options.timeout, send) => match sent {
                Ok(Ok(())) => match self.complete_sending(run)? {
                    None => Err(end()),
                    Some(guest) => {
                        let total_ms = begin.elapsed().as_millis() as u64;
                        Ok(Migrated { total_ms, downtime_ms: 0, setup_ms: 0, bytes: total, guest })
                    }
                },
                Ok(Err(error)) => failed(error.to_string()),
                Err(_) => failed(format!("it was not done within {:?} and was cancelled", options.timeout)),
            },
        }
    }

    /// The state file keeps what the guest does: if the daemon ends, so does the stream, and the guest goes on.
    fn begin_sending(&self, run: &str) -> Result<(Running, oneshot::Receiver<()>)> {
        let mut guests = self.guests();
        let guest = guests.get_mut(run).ok_or_else(|| Error::NoSuchRun { run: run.into() })?;
        let before = guest.running.state;
        if !matches!(before, LiveState::Running | LiveState::Paused) {
            return Err(wrong_state("migrate", guest.running.clone()));
        }
        let (cancel, cancelled) = oneshot::channel();
        guest.running.state = LiveState::Migrating;
        guest.sending = Some(Sending { guest: before, cancel });
        Ok((guest.running.clone(), cancelled))
    }

    /// Says what the guest did, or `None` if the sending has just been cancelled.
    fn complete_sending(&self, run: &str) -> Result<Option<LiveState>> {
        let Some(sending) = self.guests().get_mut(run).and_then(|guest| guest.sending.take()) else {
            return Ok(None);
        };
        self.change(run, LiveState::PostMigrate, EventKind::MigratedOut)?;
        Ok(Some(sending.guest))
    }

    /// The guest goes on with what it did. Nothing happens to one that isn't being sent.
    pub(super) fn stop_sending(&self, run: &str) {
        let mut guests = self.guests();
        let Some(guest) = guests.get_mut(run) else { return };
        if let Some(sending) = guest.sending.take() {
            guest.running.state = sending.guest;
            // It may have ended in this moment.
            let _ = sending.cancel.send(());
        }
    }
}

pub(super) fn wrong_state(what: &'static str, running: Running) -> Error {
    let Running { instance, run, state, .. } = running;
    Error::WrongState { what, instance, run, state }
}

fn failed(running: Running, phase: MigrationPhase, reason: String) -> Error {
    Error::Migration { instance: running.instance, run: running.run, phase, reason }
}

fn open(stream: OwnedFd) -> io::Result<BufReader<UnixStream>> {
    let stream = std::os::unix::net::UnixStream::from(stream);
    stream.set_nonblocking(true)?;
    Ok(BufReader::new(UnixStream::from_std(stream)?))
}

/// The next line; the stream's end is an error.
async fn line(stream: &mut BufReader<UnixStream>) -> io::Result<String> {
    let mut line = String::new();
    stream.take(MAX_LINE).read_line(&mut line).await?;
    if !line.ends_with('\n') {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the other side went away"));
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::super::FakeConfig;
    use super::*;
    use crate::Hypervisor;
    use crate::machine::{Boot, MachineSpec};

    const SOON: Duration = Duration::from_secs(30);

    fn fake(dir: &tempfile::TempDir, name: &str) -> Fake {
        let run_dir = dir.path().join(name);
        Fake::new(FakeConfig { run_dir, memory_mib: 1024, memory_used_by_node_mib: 0, cpus: 2 })
    }

    fn spec(run: &str) -> MachineSpec {
        MachineSpec {
            machine: Some("fake-1".into()),
            ..MachineSpec::new("vm1", run, 128, 1, Boot::Disk { order: vec![] })
        }
    }

    fn options(timeout: Duration) -> MigrateOptions {
        MigrateOptions { max_bandwidth: None, downtime_limit: Duration::from_millis(100), timeout }
    }

    fn pair() -> (OwnedFd, OwnedFd) {
        let (one, two) = std::os::unix::net::UnixStream::pair().unwrap();
        (one.into(), two.into())
    }

    async fn state(fake: &Fake, run: &str) -> Option<LiveState> {
        fake.list().await.into_iter().find(|running| running.run == run).map(|running| running.state)
    }

    async fn source(dir: &tempfile::TempDir) -> Fake {
        let source = fake(dir, "source");
        source.start(&spec("r1")).await.unwrap();
        source.resume("r1").await.unwrap();
        source
    }

    #[tokio::test]
    async fn a_guest_is_handed_over_and_runs_on_neither_side_until_somebody_says_so() {
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (source(&dir).await, fake(&dir, "target"));
        let mut told = target.events();
        assert_eq!(target.start_incoming(&spec("r2")).await.unwrap().state, LiveState::Incoming);
        assert!(matches!(target.resume("r2").await, Err(Error::WrongState { .. })));
        assert!(matches!(target.start_incoming(&spec("r2")).await, Ok(Running { .. })));
        let (near, far) = pair();
        let (progress, seen) = watch::channel(MigrationProgress::default());
        let sending = options(SOON);
        let (sent, received) =
            tokio::join!(source.migrate_out("r1", near, &sending, progress), target.accept("r2", far, SOON));
        received.unwrap();
        assert_eq!(sent.unwrap().guest, LiveState::Running);
        assert_eq!((seen.borrow().remaining, seen.borrow().transferred), (0, 128 << 20));
        assert_eq!(state(&source, "r1").await, Some(LiveState::PostMigrate));
        assert_eq!(state(&target, "r2").await, Some(LiveState::Paused));
        // Later daemons see the same.
        let (source, target) = (fake(&dir, "source"), fake(&dir, "target"));
        assert_eq!(source.adopt().await.unwrap().running[0].state, LiveState::PostMigrate);
        assert_eq!(target.adopt().await.unwrap().running[0].state, LiveState::Paused);
        target.resume("r2").await.unwrap();
        target.announce("r2").await.unwrap();
        source.destroy("r1").await.unwrap();
        let kinds: Vec<_> = std::iter::from_fn(|| told.try_recv().ok()).map(|event| event.kind).collect();
        assert_eq!(kinds, [EventKind::Started, EventKind::MigratedIn]);
    }

    #[tokio::test]
    async fn a_migration_that_does_not_succeed_lets_the_source_run_on() {
        let dir = tempfile::tempdir().unwrap();
        let source = source(&dir).await;
        let progress = || watch::channel(MigrationProgress::default()).0;
        // The other side goes away.
        let (near, far) = pair();
        drop(far);
        let gone = source.migrate_out("r1", near, &options(SOON), progress()).await.unwrap_err();
        assert!(matches!(&gone, Error::Migration { instance, run, .. } if instance == "vm1" && run == "r1"), "{gone}");
        assert_eq!(state(&source, "r1").await, Some(LiveState::Running));
        // It says nothing in time.
        let (near, far) = pair();
        let late = source.migrate_out("r1", near, &options(Duration::from_millis(1)), progress()).await.unwrap_err();
        assert!(late.to_string().contains("not done within"), "{late}");
        drop(far);
        // Somebody cancels; meanwhile nothing else can be done with the run.
        let (near, _far) = pair();
        let sending = options(SOON);
        let (sent, ()) = tokio::join!(source.migrate_out("r1", near, &sending, progress()), async {
            assert_eq!(state(&source, "r1").await, Some(LiveState::Migrating));
            assert!(matches!(source.pause("r1").await, Err(Error::WrongState { .. })));
            let again = fake(&dir, "source");
            assert_eq!(again.adopt().await.unwrap().running[0].state, LiveState::Running);
            source.migrate_cancel("r1").await.unwrap();
        });
        assert!(matches!(sent, Err(Error::Cancelled { .. })));
        assert_eq!(state(&source, "r1").await, Some(LiveState::Running));
        // The run ends under it.
        let (near, _far) = pair();
        let (sent, ()) = tokio::join!(source.migrate_out("r1", near, &sending, progress()), async {
            source.crash("r1").unwrap();
        });
        assert!(sent.unwrap_err().to_string().contains("has ended"));
    }

    #[tokio::test]
    async fn a_destination_that_gets_nothing_waits_and_one_that_gets_half_is_over() {
        let dir = tempfile::tempdir().unwrap();
        let target = fake(&dir, "target");
        let unknown = MachineSpec { machine: None, ..spec("r2") };
        assert!(matches!(target.start_incoming(&unknown).await, Err(Error::BadSpec { .. })));
        target.start_incoming(&spec("r2")).await.unwrap();
        let (_near, far) = pair();
        let late = target.accept("r2", far, Duration::from_millis(1)).await.unwrap_err();
        assert!(late.to_string().contains("not here within"), "{late}");
        assert_eq!(state(&target, "r2").await, Some(LiveState::Incoming));
        let (near, far) = pair();
        drop(near);
        let gone = target.accept("r2", far, SOON).await.unwrap_err();
        assert!(gone.to_string().contains("went away"), "{gone}");
        assert_eq!(state(&target, "r2").await, None);
    }
}
