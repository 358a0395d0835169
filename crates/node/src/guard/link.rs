//! The daemon's side of the connection to the guard.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use ha::{Now, Times};
use hypervisor::{Pidfd, ProcessId};
use model::RunId;
use nix::sys::signal::Signal;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use super::SOCKET;
use super::wire::{ClusterAddress, Standing, Surroundings, ToDaemon, ToGuard, Watched, line};
use crate::clock::boottime;

/// How often the daemon gives a sign of life.
const TICK: Duration = Duration::from_millis(100);
/// A guard that has said nothing for that long after the lease ended has not stopped the guests either. It says something at
/// each tick.
const SILENCE: Duration = Duration::from_millis(150);
/// Pause before the guard is looked for again.
const CONNECT_AGAIN: Duration = Duration::from_millis(50);
/// How long the guard may take to answer a request.
const ANSWER: Duration = Duration::from_secs(1);

/// Why the guard does not do what it is asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GuardError {
    /// There is no connection.
    #[error("this node's guard is not there; it is the process 'cardume guard', which a service manager keeps running")]
    NotConnected,
    /// It did not answer.
    #[error("this node's guard did not answer in time")]
    Late,
    /// It refused.
    #[error("this node's guard refuses: {0}")]
    Refused(String),
}

/// The daemon's connection to the guard of its node; it connects again by itself.
///
/// While no guard gives a sign of life this stops the protected guests itself when the last known lease ends, and ends a
/// guard that hangs, so that the service manager starts another one.
pub struct GuardLink {
    socket: PathBuf,
    times: Times,
    /// Until when the guard says that the lease lasts; zero if it never said so.
    until: watch::Sender<Now>,
    connected: watch::Sender<bool>,
    standing: watch::Sender<Standing>,
    around: watch::Sender<Surroundings>,
    known: Mutex<Known>,
    numbers: AtomicU64,
}

#[derive(Default)]
struct Known {
    /// What the guard watches, or is to watch as soon as it is there.
    runs: BTreeMap<RunId, Run>,
    /// To the guard that is connected.
    out: Option<mpsc::UnboundedSender<ToGuard>>,
    /// Requests that were not answered.
    waiting: BTreeMap<u64, oneshot::Sender<Result<(), String>>>,
    /// When the guard last gave a sign of life.
    heard: Now,
}

struct Run {
    watched: Watched,
    process: Option<Arc<Pidfd>>,
    /// Stopped by this daemon, for want of a guard.
    stopped: bool,
}

impl GuardLink {
    /// Looks for the guard of this run directory from now on.
    pub fn start(run_dir: &std::path::Path, times: Times) -> Arc<Self> {
        let link = Arc::new(Self {
            socket: run_dir.join(SOCKET),
            times,
            until: watch::Sender::new(Now::ZERO),
            connected: watch::Sender::new(false),
            standing: watch::Sender::new(Standing::Unknown),
            around: watch::Sender::new(Surroundings::default()),
            known: Mutex::new(Known { heard: boottime(), ..Known::default() }),
            numbers: AtomicU64::new(0),
        });
        tokio::spawn(connect(Arc::downgrade(&link)));
        tokio::spawn(look_after(Arc::downgrade(&link)));
        link
    }

    /// Whether a guard answers.
    pub fn connected(&self) -> bool {
        *self.connected.borrow()
    }

    /// Until when the node's lease lasts, by [`boottime`]; past if it has none. It ends without a word: compare it with
    /// the clock.
    pub fn lease(&self) -> watch::Receiver<Now> {
        self.until.subscribe()
    }

    /// Whether the lease holds now.
    pub fn holds(&self) -> bool {
        boottime() < *self.until.borrow()
    }

    /// Tells the guard as whom to ask for the lease; `None` if the node is in no cluster. Until this was called everything is
    /// as the guard knows it from the daemon before this one.
    pub fn identify(&self, identity: Option<ha::guard::Identity>) {
        let standing = identity.map_or(Standing::Outside, |identity| Standing::Inside(identity.into()));
        self.standing.send_if_modified(|told| std::mem::replace(told, standing) != standing);
    }

    /// Tells the guard whom to ask.
    pub(crate) fn surround(&self, around: Surroundings) {
        self.around.send_if_modified(|told| {
            let changed = *told != around;
            *told = around;
            changed
        });
    }

    /// Has the guard watch a run, and returns when it does. `process` is `None` for a run without a process (the fake
    /// hypervisor's). Repeatable; also to change `protected`: whether it is to be stopped when the lease runs out.
    ///
    /// The run is known from now on even if there is no guard now: it is registered with the next one.
    ///
    /// # Errors
    /// See [`GuardError`]; a protected run must not go on then.
    pub async fn register(
        self: &Arc<Self>,
        run: RunId,
        process: Option<ProcessId>,
        protected: bool,
    ) -> Result<(), GuardError> {
        answered(self.send(Watched { run, process, protected })?).await
    }

    /// Has the guard put the cluster's address on this node, as on that of the master of `term`.
    ///
    /// # Errors
    /// See [`GuardError`]: it is not to be put on then.
    pub(crate) async fn put_address_on(&self, term: u64, address: ClusterAddress) -> Result<(), GuardError> {
        let answer = self.request(&mut self.lock(), |number| ToGuard::PutAddressOn { number, term, address })?;
        answered(answer).await
    }

    fn request(
        &self,
        known: &mut Known,
        message: impl FnOnce(u64) -> ToGuard,
    ) -> Result<oneshot::Receiver<Result<(), String>>, GuardError> {
        let out = known.out.clone().ok_or(GuardError::NotConnected)?;
        let (answered, answer) = oneshot::channel();
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        known.waiting.insert(number, answered);
        out.send(message(number)).map_err(|_| GuardError::NotConnected)?;
        Ok(answer)
    }

    /// The same without waiting, where something of it is news: for runs that go on whatever the guard says.
    pub(crate) fn know(self: &Arc<Self>, run: RunId, process: Option<ProcessId>, protected: bool) {
        let watched = Watched { run, process, protected };
        let is_news = self.lock().runs.get(&run).is_none_or(|known| known.watched != watched);
        if is_news {
            // With the next guard, if there is none.
            let _ = self.send(watched);
        }
    }

    /// How a run was registered last: whether it is protected.
    pub(crate) fn is_protected(&self, run: RunId) -> Option<bool> {
        self.lock().runs.get(&run).map(|known| known.watched.protected)
    }

    /// Forgets the runs without a process that are not among these. The end of a process is seen without being told.
    pub(crate) fn retain(&self, here: &BTreeSet<RunId>) {
        let mut known = self.lock();
        let is_over = |(run, it): &(&RunId, &Run)| it.process.is_none() && !here.contains(run);
        let over: Vec<RunId> = known.runs.iter().filter(is_over).map(|(run, _)| *run).collect();
        for run in over {
            known.runs.remove(&run);
            if let Some(out) = &known.out {
                let _ = out.send(ToGuard::Ended(run));
            }
        }
    }

    fn send(self: &Arc<Self>, watched: Watched) -> Result<oneshot::Receiver<Result<(), String>>, GuardError> {
        let mut known = self.lock();
        let run = watched.run;
        let same = known.runs.get(&run).filter(|it| it.watched.process == watched.process);
        let (process, stopped) = match (same, &watched.process) {
            (Some(same), _) => (same.process.clone(), same.stopped),
            (None, None) => (None, false),
            (None, Some(id)) => match id.open() {
                Ok(Some(process)) => (Some(self.follow(run, process)), false),
                Ok(None) => return Err(GuardError::Refused(format!("process {} has ended", id.pid))),
                Err(error) => {
                    return Err(GuardError::Refused(format!("process {} can't be watched: {error}", id.pid)));
                }
            },
        };
        known.runs.insert(run, Run { watched: watched.clone(), process, stopped });
        self.request(&mut known, |number| ToGuard::Register { number, watched })
    }

    /// Forgets the run when its process ends; the guard sees that by itself.
    fn follow(self: &Arc<Self>, run: RunId, process: Pidfd) -> Arc<Pidfd> {
        let process = Arc::new(process);
        let (watched, link) = (Arc::clone(&process), Arc::downgrade(self));
        tokio::spawn(async move {
            if watched.exited().await.is_ok()
                && let Some(link) = link.upgrade()
            {
                let mut known = link.lock();
                let is_it = |it: &Run| it.process.as_ref().is_some_and(|it| Arc::ptr_eq(it, &watched));
                if known.runs.get(&run).is_some_and(is_it) {
                    known.runs.remove(&run);
                }
            }
        });
        process
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A guard is there: it hears of everything.
    fn greet(&self, out: mpsc::UnboundedSender<ToGuard>) {
        let mut known = self.lock();
        known.heard = boottime();
        // First, so that the guard asks for a lease while it takes the rest.
        let _ = out.send(ToGuard::Tick(*self.standing.borrow()));
        let _ = out.send(ToGuard::Surroundings(self.around.borrow().clone()));
        known.out = Some(out);
        self.register_again(&mut known, |_| true);
    }

    fn register_again(&self, known: &mut Known, which: impl Fn(&Run) -> bool) {
        let Some(out) = known.out.clone() else { return };
        for run in known.runs.values_mut().filter(|run| which(run)) {
            run.stopped = false;
            let number = self.numbers.fetch_add(1, Ordering::Relaxed);
            let _ = out.send(ToGuard::Register { number, watched: run.watched.clone() });
        }
    }

    fn hear(&self, message: ToDaemon) {
        let mut known = self.lock();
        known.heard = boottime();
        match message {
            ToDaemon::Lease(until) => {
                if boottime() < until {
                    // It was only late: what was stopped in its place is its own again, and goes on with the next lease.
                    self.register_again(&mut known, |run| run.stopped);
                }
                drop(known);
                self.until.send_if_modified(|told| std::mem::replace(told, until) != until);
                self.connected.send_if_modified(|connected| !std::mem::replace(connected, true));
            }
            ToDaemon::Answered { number, outcome } => {
                if let Some(waiting) = known.waiting.remove(&number) {
                    // Who asked may have gone.
                    let _ = waiting.send(outcome);
                }
            }
        }
    }

    fn lose(&self) {
        let mut known = self.lock();
        known.out = None;
        known.waiting.clear();
        drop(known);
        self.connected.send_if_modified(|connected| std::mem::replace(connected, false));
    }

    /// In the guard's place (L9): it has not been heard of since the lease ended.
    fn stop_if_nobody_does(&self, now: Now) {
        let mut known = self.lock();
        if now < *self.until.borrow() || now < known.heard + SILENCE {
            return;
        }
        let mut stopped = Vec::new();
        for (number, run) in &mut known.runs {
            let Some(process) = run.process.as_ref().filter(|_| run.watched.protected && !run.stopped) else {
                continue;
            };
            match process.signal(Signal::SIGSTOP) {
                Ok(()) => stopped.push(number.to_string()),
                Err(error) => tracing::error!(run = %number, %error, "a guest can't be stopped"),
            }
            run.stopped = true;
        }
        if !stopped.is_empty() {
            tracing::warn!(
                runs = stopped.join(", "),
                "the lease has ended and the guard says nothing: guests are stopped"
            );
        }
    }
}

async fn answered(answer: oneshot::Receiver<Result<(), String>>) -> Result<(), GuardError> {
    match tokio::time::timeout(ANSWER, answer).await {
        Ok(Ok(outcome)) => outcome.map_err(GuardError::Refused),
        Ok(Err(_)) => Err(GuardError::NotConnected),
        Err(_) => Err(GuardError::Late),
    }
}

/// Connects, and connects again.
async fn connect(link: Weak<GuardLink>) {
    while let Some(link) = link.upgrade() {
        if let Ok(stream) = UnixStream::connect(&link.socket).await {
            match session(&link, stream).await {
                Ok(()) => tracing::warn!("the guard has ended"),
                Err(error) => tracing::warn!(%error, "the connection to the guard is over"),
            }
            link.lose();
        }
        drop(link);
        tokio::time::sleep(CONNECT_AGAIN).await;
    }
}

/// Talks to a guard until one of both ends. A guard that hangs is killed.
async fn session(link: &GuardLink, stream: UnixStream) -> io::Result<()> {
    // That of the process that listens there; the connection keeps it from being another's by now.
    let guard = match stream.peer_cred()?.pid() {
        Some(pid) if pid > 0 => Some(Pidfd::open(pid)?),
        _ => None,
    };
    let (reader, mut writer) = stream.into_split();
    let (out, mut messages) = mpsc::unbounded_channel();
    link.greet(out);
    let (mut standing, mut around) = (link.standing.subscribe(), link.around.subscribe());
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut lines = BufReader::new(reader).lines();
    // When this daemon last looked, and since when it has done so without a break.
    let (mut looked, mut awake) = (boottime(), boottime());
    loop {
        let message = tokio::select! {
            biased;
            // First whatever the guard has said: a daemon that is late itself must not take it for dead.
            said = lines.next_line() => {
                let Some(text) = said? else { return Ok(()) };
                match serde_json::from_str(&text) {
                    Ok(message) => link.hear(message),
                    Err(error) => tracing::error!(%error, "the guard said something that is not understood"),
                }
                continue;
            }
            Some(message) = messages.recv() => message,
            Ok(()) = around.changed() => ToGuard::Surroundings(around.borrow_and_update().clone()),
            Ok(()) = standing.changed() => ToGuard::Tick(*standing.borrow_and_update()),
            _ = ticks.tick() => {
                let now = boottime();
                // One that stood still itself has not read yet what was said meanwhile.
                if now.saturating_sub(looked) > link.times.guard_silence / 2 {
                    awake = now;
                }
                looked = now;
                if now.saturating_sub(link.lock().heard.max(awake)) > link.times.guard_silence {
                    tracing::error!("the guard gives no sign of life; it is killed, for another to be started");
                    if let Some(guard) = &guard {
                        guard.signal(Signal::SIGKILL)?;
                    }
                    return Err(io::Error::from(io::ErrorKind::TimedOut));
                }
                // In a task of its own: a sign of life of a runtime that still takes on work.
                let _ = tokio::spawn(async {}).await;
                ToGuard::Tick(*link.standing.borrow())
            }
        };
        let message = line(&message);
        // A guard that hangs does not read either.
        match tokio::time::timeout(link.times.guard_silence, writer.write_all(&message)).await {
            Ok(written) => written?,
            Err(_) => return Err(io::Error::from(io::ErrorKind::TimedOut)),
        }
    }
}

/// Stops protected guests when nobody else does.
async fn look_after(link: Weak<GuardLink>) {
    let mut ticks = tokio::time::interval(TICK / 4);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        match link.upgrade() {
            Some(link) => link.stop_if_nobody_does(boottime()),
            None => return,
        }
    }
}
