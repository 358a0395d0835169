//! What a QEMU has told about its run.
//!
//! Events say what changes; a question says what is. While a migration is under way, the guest's own state is kept
//! apart from how far the migration is: QEMU stops the guest for the switch, which is nobody's pause, and starts it
//! again if that fails.

use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::sys::wait::WaitStatus;
use tokio::sync::{broadcast, watch};

use super::qmp::QmpEvent;
use crate::state::{Event, EventKind, LiveState, StopReason};

/// What QEMU has told about a run.
#[derive(Debug)]
pub(super) struct Status {
    instance: String,
    run: String,
    events: broadcast::Sender<Event>,
    live: Mutex<Live>,
    /// Counts what QEMU told about migrations.
    migrations: watch::Sender<u64>,
    /// Counts how often it has stopped the guest for a switch.
    switches: watch::Sender<u64>,
}

#[derive(Debug)]
struct Live {
    /// What the guest does, but for migrations.
    guest: LiveState,
    migration: Part,
    /// Why QEMU said that it shuts down.
    shutdown: Option<String>,
    /// Counts events.
    changes: u64,
}

/// A run's part in a migration.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    None,
    Sends,
    HasSent,
    Receives,
}

/// Whether an answer about the state is the last word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    Settled,
    /// QEMU is between two states and will tell nobody when it is through, or an event has overtaken the answer.
    AskAgain,
}

impl Live {
    fn state(&self) -> LiveState {
        match self.migration {
            Part::None => self.guest,
            Part::Sends => LiveState::Migrating,
            Part::HasSent => LiveState::PostMigrate,
            Part::Receives => LiveState::Incoming,
        }
    }
}

impl Status {
    /// Nothing is told yet: the virtual CPUs stand.
    pub fn new(instance: &str, run: &str, events: broadcast::Sender<Event>) -> Status {
        let live = Live { guest: LiveState::Paused, migration: Part::None, shutdown: None, changes: 0 };
        Status {
            instance: instance.into(),
            run: run.into(),
            events,
            live: Mutex::new(live),
            migrations: watch::Sender::new(0),
            switches: watch::Sender::new(0),
        }
    }

    fn live(&self) -> MutexGuard<'_, Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The run's state.
    pub fn state(&self) -> LiveState {
        self.live().state()
    }

    /// What the guest does, or did when it was stopped for a switch.
    pub fn guest(&self) -> LiveState {
        self.live().guest
    }

    /// Why QEMU said that it shuts down, if it did.
    pub fn shutdown(&self) -> Option<String> {
        self.live().shutdown.clone()
    }

    /// Changes whenever QEMU tells something about a migration.
    pub fn migrations(&self) -> watch::Receiver<u64> {
        self.migrations.subscribe()
    }

    /// Changes whenever QEMU stops the guest for a switch.
    pub fn switches(&self) -> watch::Receiver<u64> {
        self.switches.subscribe()
    }

    /// How much QEMU has told, to be compared after a question.
    pub fn changes(&self) -> u64 {
        self.live().changes
    }

    /// Tells the world.
    pub fn announce(&self, kind: EventKind) {
        // Nobody listening is no error.
        let _ = self.events.send(Event { instance: self.instance.clone(), run: self.run.clone(), kind });
    }

    /// Takes in what QEMU answers about its state (`query-status`) and its migration (`query-migrate`), as of when
    /// `changes` events had come.
    pub fn answered(&self, changes: u64, status: &str, migration: &str) -> Answer {
        let mut live = self.live();
        if live.changes != changes {
            return Answer::AskAgain;
        }
        let under_way = is_under_way(migration);
        live.migration = match status {
            "inmigrate" => Part::Receives,
            "postmigrate" => Part::HasSent,
            "finish-migrate" if under_way => Part::Sends,
            "finish-migrate" => return Answer::AskAgain,
            _ if under_way => Part::Sends,
            _ => Part::None,
        };
        if !matches!(status, "postmigrate" | "finish-migrate") {
            live.guest = guest_state(status);
        }
        Answer::Settled
    }

    /// Takes an event of QEMU in.
    pub fn take(&self, event: &QmpEvent) {
        let text = |field: &str| event.data[field].as_str().unwrap_or_default().to_owned();
        let told = {
            let mut live = self.live();
            live.changes += 1;
            match event.name.as_str() {
                "RESUME" => {
                    let guest = std::mem::replace(&mut live.guest, LiveState::Running);
                    let rested = matches!(live.migration, Part::HasSent | Part::Receives);
                    if rested {
                        live.migration = Part::None;
                    }
                    // After a switch that failed the guest goes on, and nobody was told that it stood.
                    (rested || guest != LiveState::Running).then_some(EventKind::Resumed)
                }
                // A stop also follows an I/O error, a panic and a shutdown, or is the switch of a migration, and then
                // says nothing new.
                "STOP" if live.state() == LiveState::Running => {
                    live.guest = LiveState::Paused;
                    Some(EventKind::Paused)
                }
                "STOP" if live.state() == LiveState::Migrating => {
                    self.switches.send_modify(|count| *count += 1);
                    None
                }
                "BLOCK_IO_ERROR" if event.data["action"] == "stop" => {
                    // Each request under way fails by itself; one word is enough.
                    let before = std::mem::replace(&mut live.guest, LiveState::IoError);
                    let disk = text("node-name");
                    let reason = text("reason");
                    (before != LiveState::IoError).then_some(EventKind::IoError { disk, reason })
                }
                "SHUTDOWN" => {
                    live.guest = LiveState::Shutdown;
                    live.migration = Part::None;
                    live.shutdown = Some(text("reason"));
                    None
                }
                "GUEST_PANICKED" => {
                    live.guest = LiveState::Crashed;
                    None
                }
                "RESET" => Some(EventKind::Reset { by_guest: event.data["guest"] == true }),
                "MIGRATION" => live.migration(&text("status")),
                _ => None,
            }
        };
        if event.name == "MIGRATION" {
            self.migrations.send_modify(|count| *count += 1);
        }
        if let Some(kind) = told {
            self.announce(kind);
        }
    }
}

impl Live {
    /// Takes a migration's new status in.
    fn migration(&mut self, status: &str) -> Option<EventKind> {
        let (part, told) = match (self.migration, status) {
            (Part::Receives, "completed") => (Part::None, Some(EventKind::MigratedIn)),
            // One that fails ends the process.
            (Part::Receives, _) => (Part::Receives, None),
            (Part::Sends, "completed") => (Part::HasSent, Some(EventKind::MigratedOut)),
            (_, status) if is_under_way(status) => (Part::Sends, None),
            (Part::Sends, _) => (Part::None, None),
            (part, _) => (part, None),
        };
        self.migration = part;
        told
    }
}

/// Whether QEMU's `MigrationStatus` is one of a migration that has begun and not ended.
pub(super) fn is_under_way(status: &str) -> bool {
    !matches!(status, "" | "none" | "completed" | "failed" | "cancelled")
}

/// What the guest does in QEMU's `RunState`.
fn guest_state(status: &str) -> LiveState {
    match status {
        "running" | "colo" => LiveState::Running,
        "io-error" => LiveState::IoError,
        "shutdown" => LiveState::Shutdown,
        "guest-panicked" | "internal-error" | "watchdog" => LiveState::Crashed,
        // paused, prelaunch, inmigrate, … : the virtual CPUs stand.
        _ => LiveState::Paused,
    }
}

/// How a run ended, from the reason that QEMU gave (if it could), whether we killed it, and how its process exited
/// (if it was our child).
pub(super) fn stop_reason(shutdown: Option<&str>, killed: bool, exit: Option<WaitStatus>) -> StopReason {
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
    use nix::sys::signal::Signal;
    use nix::unistd::Pid;
    use serde_json::{Value, json};

    fn status() -> (Status, broadcast::Receiver<Event>) {
        let (events, receiver) = broadcast::channel(16);
        (Status::new("vm1", "r1", events), receiver)
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
            assert_eq!(status.state(), state, "{name}");
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

    /// Lets events come, `NAME` or `MIGRATION status`, and says what was told to others.
    fn hear(status: &Status, seen: &mut broadcast::Receiver<Event>, names: &[&str]) -> Vec<EventKind> {
        for name in names {
            let (name, data) = match name.split_once(' ') {
                Some((name, status)) => (name, json!({"status": status})),
                None => (*name, Value::Null),
            };
            status.take(&event(name, data));
        }
        std::iter::from_fn(|| seen.try_recv().ok()).map(|event| event.kind).collect()
    }

    #[test]
    fn a_source_s_switch_is_no_pause_and_its_guest_s_state_is_remembered() {
        let (status, mut seen) = status();
        let mut hear = |names: &[&str]| hear(&status, &mut seen, names);
        assert_eq!(hear(&["RESUME"]), [EventKind::Resumed]);
        assert_eq!(hear(&["MIGRATION setup", "MIGRATION active", "STOP", "MIGRATION device"]), []);
        assert_eq!((status.state(), status.guest()), (LiveState::Migrating, LiveState::Running));
        assert_eq!(hear(&["MIGRATION failed", "RESUME"]), []);
        assert_eq!(status.state(), LiveState::Running);
        assert_eq!(hear(&["MIGRATION active", "STOP", "MIGRATION cancelling", "RESUME", "MIGRATION cancelled"]), []);
        assert_eq!(status.state(), LiveState::Running);
        assert_eq!(hear(&["MIGRATION active", "STOP", "MIGRATION completed"]), [EventKind::MigratedOut]);
        assert_eq!((status.state(), status.guest()), (LiveState::PostMigrate, LiveState::Running));
        assert_eq!(hear(&["RESUME"]), [EventKind::Resumed]);
        assert_eq!(status.state(), LiveState::Running);
    }

    #[test]
    fn a_destination_is_incoming_until_all_is_here() {
        let (status, mut seen) = status();
        assert_eq!(status.answered(0, "inmigrate", ""), Answer::Settled);
        let mut hear = |names: &[&str]| hear(&status, &mut seen, names);
        assert_eq!(hear(&["MIGRATION setup", "MIGRATION active"]), []);
        assert_eq!(status.state(), LiveState::Incoming);
        assert_eq!(hear(&["MIGRATION completed"]), [EventKind::MigratedIn]);
        assert_eq!(status.state(), LiveState::Paused);
        assert_eq!(hear(&["RESUME"]), [EventKind::Resumed]);
    }

    #[test]
    fn answers_tell_the_state_unless_they_are_old_or_of_a_passing_moment() {
        use LiveState::{Incoming, IoError, Migrating, Paused, PostMigrate, Running};
        let (status, _seen) = status();
        for (run_state, migration, state, guest) in [
            ("prelaunch", "", Paused, Paused),
            ("inmigrate", "active", Incoming, Paused),
            ("paused", "completed", Paused, Paused),
            ("running", "completed", Running, Running),
            ("running", "active", Migrating, Running),
            ("finish-migrate", "device", Migrating, Running),
            ("postmigrate", "completed", PostMigrate, Running),
            ("running", "failed", Running, Running),
            ("paused", "setup", Migrating, Paused),
            ("io-error", "cancelled", IoError, IoError),
        ] {
            assert_eq!(status.answered(0, run_state, migration), Answer::Settled);
            assert_eq!((status.state(), status.guest()), (state, guest), "{run_state} {migration}");
        }
        for migration in ["completed", "failed", "cancelled"] {
            assert_eq!(status.answered(0, "finish-migrate", migration), Answer::AskAgain);
        }
        status.take(&event("RESUME", Value::Null));
        assert_eq!(status.answered(0, "paused", "none"), Answer::AskAgain);
        assert_eq!(status.state(), Running);
    }
}
