//! What the guard knows from its daemon: the guests that it watches, as whom it asks for the lease, and whom.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hypervisor::Pidfd;
use model::RunId;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use super::process::Input;
use super::wire::{As, Standing, Surroundings, Watched};

/// They, with handles on their processes.
pub(super) struct Guests {
    /// Where they are written down: the next guard takes them over before any daemon tells it.
    path: PathBuf,
    boot: String,
    identity: Option<As>,
    around: Surroundings,
    guests: BTreeMap<RunId, Guest>,
    inbox: mpsc::UnboundedSender<Input>,
}

/// What a guard leaves for the next one.
#[derive(Default, Serialize, Deserialize)]
pub(super) struct LeftBehind {
    /// In which boot.
    boot: String,
    /// As whom it asked.
    pub identity: Option<As>,
    /// Whom it asked.
    pub around: Surroundings,
    /// What it watched. Some of them may have ended since.
    pub runs: Vec<Watched>,
}

impl LeftBehind {
    /// Of this boot; of an earlier one everything is gone.
    pub fn read(path: &Path, boot: &str) -> Self {
        let read = std::fs::read(path).and_then(|text| Ok(serde_json::from_slice::<Self>(&text)?));
        match read {
            Ok(left) if left.boot == boot => left,
            Ok(_) => Self::default(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            Err(error) => {
                tracing::error!(%error, path = %path.display(), "what the guard before watched can't be read");
                Self::default()
            }
        }
    }
}

struct Guest {
    watched: Watched,
    /// `None`: without a process.
    process: Option<Arc<Pidfd>>,
    /// It may have been stopped by somebody before: it is told to go on with the next lease that lists it.
    may_be_stopped: bool,
}

impl Guests {
    /// None yet.
    pub fn new(path: PathBuf, boot: String, inbox: mpsc::UnboundedSender<Input>) -> Self {
        Self { path, boot, identity: None, around: Surroundings::default(), guests: BTreeMap::new(), inbox }
    }

    /// Notes where the node stands, and answers as whom the lease is to be asked for.
    pub fn identify(&mut self, standing: Standing) -> Option<As> {
        let identity = match standing {
            Standing::Unknown => self.identity,
            Standing::Outside => None,
            Standing::Inside(identity) => Some(identity),
        };
        if self.identity != identity {
            self.identity = identity;
            self.save();
        }
        identity
    }

    /// Whom to ask, and what may have to be taken off the node.
    pub fn around(&self) -> &Surroundings {
        &self.around
    }

    /// Notes that.
    pub fn surround(&mut self, around: Surroundings) {
        if self.around != around {
            self.around = around;
            self.save();
        }
    }

    /// Whether the run is watched in another process.
    pub fn is_another(&self, watched: &Watched) -> bool {
        self.guests.get(&watched.run).is_some_and(|guest| guest.watched.process != watched.process)
    }

    /// Watches a run from now on.
    pub fn add(&mut self, watched: Watched) -> Result<(), String> {
        let known = self.guests.get(&watched.run).filter(|guest| guest.watched.process == watched.process);
        let process = match (known, &watched.process) {
            (Some(guest), _) => guest.process.clone(),
            (None, None) => None,
            (None, Some(id)) => match id.open() {
                Ok(Some(process)) => Some(self.follow(watched.run, process)),
                Ok(None) => return Err(format!("process {} has ended", id.pid)),
                Err(error) => return Err(format!("process {} can't be watched: {error}", id.pid)),
            },
        };
        let guest = Guest { may_be_stopped: watched.protected, watched: watched.clone(), process };
        let before = self.guests.insert(watched.run, guest);
        if before.is_none_or(|before| before.watched != watched) {
            self.save();
        }
        Ok(())
    }

    fn follow(&self, run: RunId, process: Pidfd) -> Arc<Pidfd> {
        let process = Arc::new(process);
        let (watched, inbox) = (Arc::clone(&process), self.inbox.clone());
        tokio::spawn(async move {
            // One that can't be watched is taken for alive.
            if watched.exited().await.is_ok() {
                let _ = inbox.send(Input::Gone(run, watched));
            }
        });
        process
    }

    /// A process has ended; whether it was that of the run until now.
    pub fn gone(&mut self, run: RunId, process: &Arc<Pidfd>) -> bool {
        let is_it = |guest: &Guest| guest.process.as_ref().is_some_and(|it| Arc::ptr_eq(it, process));
        self.guests.get(&run).is_some_and(is_it) && self.remove(run)
    }

    /// A run without a process is over; whether it was there.
    pub fn ended(&mut self, run: RunId) -> bool {
        self.guests.get(&run).is_some_and(|guest| guest.process.is_none()) && self.remove(run)
    }

    fn remove(&mut self, run: RunId) -> bool {
        let there = self.guests.remove(&run).is_some();
        if there {
            self.save();
        }
        there
    }

    pub fn stop(&mut self, runs: &BTreeSet<RunId>) {
        self.signal(runs, Signal::SIGSTOP);
    }

    pub fn go_on(&mut self, runs: &BTreeSet<RunId>) {
        self.signal(runs, Signal::SIGCONT);
    }

    pub fn kill(&mut self, runs: &BTreeSet<RunId>) {
        self.signal(runs, Signal::SIGKILL);
    }

    /// Lets those of these runs go on that somebody else may have stopped: an earlier guard, or the daemon while there was
    /// none.
    pub fn go_on_if_stopped(&mut self, runs: &BTreeSet<RunId>) {
        let may_be = |run: &&RunId| self.guests.get(run).is_some_and(|guest| guest.may_be_stopped);
        let runs: BTreeSet<RunId> = runs.iter().filter(may_be).copied().collect();
        self.signal(&runs, Signal::SIGCONT);
    }

    fn signal(&mut self, runs: &BTreeSet<RunId>, signal: Signal) {
        for run in runs {
            let Some(guest) = self.guests.get_mut(run) else { continue };
            // From here on it is as the last signal says.
            guest.may_be_stopped = false;
            if let Some(process) = &guest.process
                && let Err(error) = process.signal(signal)
            {
                tracing::error!(%run, %signal, %error, "a guest does not take a signal");
            }
        }
    }

    /// Those that are to be stopped when the lease runs out.
    pub fn protected(&self) -> BTreeSet<RunId> {
        self.guests.values().filter(|guest| guest.watched.protected).map(|guest| guest.watched.run).collect()
    }

    fn save(&self) {
        let runs = self.guests.values().map(|guest| guest.watched.clone()).collect();
        let (boot, around) = (self.boot.clone(), self.around.clone());
        let left = LeftBehind { boot, identity: self.identity, around, runs };
        let fresh = self.path.with_extension("new");
        let saved = serde_json::to_vec(&left)
            .map_err(io::Error::from)
            .and_then(|text| std::fs::write(&fresh, text))
            .and_then(|()| std::fs::rename(&fresh, &self.path));
        if let Err(error) = saved {
            tracing::error!(%error, path = %self.path.display(), "what is watched can't be written down");
        }
    }
}
