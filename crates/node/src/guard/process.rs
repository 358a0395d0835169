//! The guard's one task: it is told what happened, and does what [`ha::guard::Guard`] wants done.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use ha::guard::{Effect, Event, Guard};
use ha::message::{Answer, Renew};
use ha::{Now, Times};
use hypervisor::Pidfd;
use model::RunId;
use rpc::Client;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::guests::{Guests, LeftBehind};
use super::renewals::{Renewals, Whose};
use super::supervisor::Supervisor;
use super::timer::Alarm;
use super::wire::{ClusterAddress, Standing, ToDaemon, ToGuard, Watched};
use super::{LOCK, RUNS, SOCKET, lookout, server};
use crate::clock::boottime;
use crate::home;

/// How long the daemon may take for an orderly end.
const LAST_WORDS: Duration = Duration::from_secs(8);
/// How long the guard before this one may take to end.
const PREDECESSOR: Duration = Duration::from_secs(3);
/// The alarm is never set closer than this: what is due at once is done without it.
const SHORTEST: Duration = Duration::from_micros(500);
/// Nor farther than this.
const LONGEST: Duration = Duration::from_secs(1);

/// What a guard has to know.
#[derive(Clone, Debug)]
pub struct GuardConfig {
    /// The node's folder for what must survive a reboot.
    pub state_dir: PathBuf,
    /// The node's folder for what must not.
    pub run_dir: PathBuf,
    /// Program and arguments of the daemon.
    pub daemon: Vec<OsString>,
    /// Program and arguments of [`lookout`], without the time.
    pub lookout: Vec<OsString>,
    /// The times of leases.
    pub times: Times,
}

/// Why the guard does not start.
#[derive(Debug, thiserror::Error)]
pub enum GuardStartError {
    /// Another one is there.
    #[error("another guard already watches {}; stop it first", .0.display())]
    InUse(PathBuf),
    /// The run directory can't be used.
    #[error("the guard's files in {} can't be used", .path.display())]
    Files {
        /// The run directory.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The system refuses a timer or signals.
    #[error("the system refuses the guard what it needs")]
    System(#[from] io::Error),
}

/// What happens around the guard.
pub(super) enum Input {
    /// A daemon connected; the number is that of the connection.
    Connected(u64, mpsc::UnboundedSender<ToDaemon>),
    /// It said something.
    Said(u64, ToGuard),
    /// The connection is over.
    Disconnected(u64),
    /// Somebody answered a request for the lease.
    Answer(u64, Answer),
    /// The node's identity was read.
    Identity(Whose, Result<Client, String>),
    /// A guest's process has ended.
    Gone(RunId, Arc<Pidfd>),
}

/// Runs the guard of this node until a signal ends it; to be called on a single-threaded runtime. See [`super::favour`].
///
/// At the end the daemon is ended in good order; protected guests go on under [`lookout`] until their lease ends, or the next
/// guard watches them.
///
/// # Errors
/// See [`GuardStartError`].
pub async fn run(config: GuardConfig) -> Result<(), GuardStartError> {
    let files = |source| GuardStartError::Files { path: config.run_dir.clone(), source };
    std::fs::create_dir_all(&config.run_dir).map_err(files)?;
    let _lock = lock(&config).await?;
    let listener = server::bind(&config.run_dir.join(SOCKET)).map_err(files)?;
    let alarm = Alarm::new()?;
    let signals = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    let (sender, inbox) = mpsc::unbounded_channel();
    rehearse(config.times);
    let runs = config.run_dir.join(RUNS);
    let boot = crate::config::boot_id()?;
    let left = LeftBehind::read(&runs, &boot);
    let mut process = Process {
        machine: Guard::new(config.times, boottime()),
        guests: Guests::new(runs, boot, sender.clone()),
        renewals: Renewals::new(home::identity_dir(&config.state_dir), config.times.lease, sender.clone()),
        daemon: Supervisor::new(config.daemon.clone(), config.run_dir.clone()),
        connection: None,
        until: Now::ZERO,
        address_is_gone: true,
        ending: None,
        out: Vec::new(),
        config,
    };
    process.guests.surround(left.around);
    for watched in left.runs {
        // One that has ended meanwhile is no news.
        let _ = process.watch(watched).await;
    }
    // Behind the guests, so that the first lease lets them go on: it is asked for after they were stopped. The daemon may be
    // the one that hangs: it has to be heard within the usual time from now on.
    process.hear(ToGuard::Tick(left.identity.map_or(Standing::Outside, Standing::Inside))).await;
    tokio::spawn(server::accept(listener, sender));
    process.work(inbox, &alarm, signals).await?;
    process.end();
    Ok(())
}

/// The right to be the guard of this node. One that is about to end may have it yet.
async fn lock(config: &GuardConfig) -> Result<File, GuardStartError> {
    let give_up = Instant::now() + PREDECESSOR;
    loop {
        match home::try_lock(&config.run_dir.join(LOCK)) {
            Ok(Some(lock)) => return Ok(lock),
            Ok(None) if Instant::now() >= give_up => return Err(GuardStartError::InUse(config.run_dir.clone())),
            Ok(None) => tokio::time::sleep(Duration::from_millis(20)).await,
            Err(source) => return Err(GuardStartError::Files { path: config.run_dir.clone(), source }),
        }
    }
}

/// Goes through the motions once with nothing at stake: what is to be done when the node is in distress is in memory then.
fn rehearse(times: Times) {
    let (now, mut out) = (boottime(), Vec::new());
    let mut machine = Guard::new(times, now);
    machine.step(now, Event::Register { run: RunId(1), protected: true }, &mut out);
    machine.step(now + times.park, Event::Tick, &mut out);
    let own = i32::try_from(std::process::id()).ok().and_then(|pid| hypervisor::ProcessId::of(pid).ok());
    if let Some(Ok(Some(process))) = own.map(|own| own.open()) {
        // It runs already.
        let _ = process.signal(nix::sys::signal::Signal::SIGCONT);
    }
}

struct Process {
    config: GuardConfig,
    machine: Guard,
    guests: Guests,
    renewals: Renewals,
    daemon: Supervisor,
    /// The newest connection of a daemon: older ones do not count.
    connection: Option<(u64, mpsc::UnboundedSender<ToDaemon>)>,
    /// What the daemon was told last of the lease.
    until: Now,
    /// The cluster's address was taken off when it had to be. As long as not, nobody is told so.
    address_is_gone: bool,
    /// The daemon is ending, and is killed then.
    ending: Option<Instant>,
    out: Vec<Effect>,
}

impl Process {
    async fn work(
        &mut self,
        mut inbox: mpsc::UnboundedReceiver<Input>,
        alarm: &Alarm,
        [mut terminate, mut interrupt]: [Signal; 2],
    ) -> io::Result<()> {
        while self.ending.is_none() || !self.daemon.is_gone() {
            let now = boottime();
            let due = self.machine.next().clamp(now + SHORTEST, now + LONGEST);
            let patience = self.ending;
            tokio::select! {
                biased;
                rang = alarm.at(due) => {
                    rang?;
                    self.step(Event::Tick).await;
                }
                // The sender is kept by those who listen for the daemon.
                Some(input) = inbox.recv() => self.take(input).await,
                () = self.daemon.step() => {}
                _ = terminate.recv() => self.begin_end(),
                _ = interrupt.recv() => self.begin_end(),
                () = at(patience) => {
                    tracing::warn!("the daemon does not end; it is killed");
                    self.daemon.kill();
                    self.ending = Some(Instant::now() + LAST_WORDS);
                }
            }
        }
        Ok(())
    }

    async fn take(&mut self, input: Input) {
        let current = |number| self.connection.as_ref().is_some_and(|(current, _)| *current == number);
        match input {
            Input::Connected(number, out) => {
                if self.connection.as_ref().is_none_or(|(current, _)| *current < number) {
                    tracing::info!(number, "the daemon is connected");
                    self.connection = Some((number, out));
                }
            }
            Input::Disconnected(number) if current(number) => self.connection = None,
            Input::Said(number, said) if current(number) => {
                self.daemon.lives();
                self.hear(said).await;
            }
            Input::Disconnected(_) | Input::Said(..) => {}
            Input::Answer(q, answer) => {
                let granted = match &answer {
                    Answer::Granted(grant) => grant.runs.clone(),
                    _ => BTreeSet::new(),
                };
                self.step(Event::Answer { q, answer }).await;
                // A grant that was of no use leaves the lease as it was, and that may have run out.
                if self.machine.holds(boottime()) {
                    self.guests.go_on_if_stopped(&granted);
                }
            }
            Input::Identity(whose, loaded) => self.renewals.loaded(whose, loaded, self.guests.around()),
            Input::Gone(run, process) => {
                if self.guests.gone(run, &process) {
                    self.step(Event::Ended(run)).await;
                }
            }
        }
    }

    async fn hear(&mut self, said: ToGuard) {
        match said {
            ToGuard::Tick(standing) => {
                let identity = self.guests.identify(standing).map(ha::guard::Identity::from);
                if let Some(identity) = identity {
                    self.renewals.prepare((identity.inc, identity.node));
                }
                self.step(Event::Daemon(identity)).await;
                self.tell(ToDaemon::Lease(self.machine.until()));
            }
            ToGuard::Surroundings(around) => self.guests.surround(around),
            ToGuard::Register { number, watched } => {
                let outcome = self.watch(watched).await;
                self.tell(ToDaemon::Answered { number, outcome });
            }
            ToGuard::PutAddressOn { number, term, address } => {
                let outcome = self.put_address_on(term, &address).await;
                self.tell(ToDaemon::Answered { number, outcome });
            }
            ToGuard::Ended(run) => {
                if self.guests.ended(run) {
                    self.step(Event::Ended(run)).await;
                }
            }
        }
    }

    /// Watches a run; it is stopped already when this returns, if it must not go on.
    async fn watch(&mut self, watched: Watched) -> Result<(), String> {
        let Watched { run, protected, .. } = watched;
        if self.guests.is_another(&watched) {
            // The end of the first one was not seen yet.
            self.step(Event::Ended(run)).await;
        }
        self.guests.add(watched)?;
        self.step(Event::Register { run, protected }).await;
        Ok(())
    }

    fn tell(&self, message: ToDaemon) {
        if let Some((_, out)) = &self.connection {
            // It may be over; the daemon connects again.
            let _ = out.send(message);
        }
    }

    async fn step(&mut self, event: Event) {
        self.machine.step(boottime(), event, &mut self.out);
        for effect in std::mem::take(&mut self.out) {
            match effect {
                Effect::Renew { q, identity, without_address, master } => {
                    if !self.address_is_gone {
                        self.drop_address().await;
                    }
                    let without_address = if self.address_is_gone { without_address } else { 0 };
                    let ha::guard::Identity { inc, node, life } = identity;
                    self.renewals.ask(&Renew { inc, node, life, q, without_address }, master, self.guests.around());
                }
                Effect::Lease(until) => {
                    self.note(until);
                    self.tell(ToDaemon::Lease(until));
                }
                Effect::Stop(runs) => {
                    self.guests.stop(&runs);
                    tracing::warn!(runs = %list(&runs), "there is no lease: guests are stopped");
                }
                Effect::Continue(runs) => {
                    self.guests.go_on(&runs);
                    tracing::info!(runs = %list(&runs), "there is a lease again: guests go on");
                }
                Effect::Kill(runs) => {
                    self.guests.kill(&runs);
                    tracing::warn!(runs = %list(&runs), "guests that are not this node's any more are killed");
                }
                Effect::DropAddress => self.drop_address().await,
                Effect::ReplaceDaemon if self.ending.is_none() => self.daemon.replace(self.config.times.daemon_hung),
                Effect::ReplaceDaemon => {}
            }
        }
    }

    /// Says in the log when the lease comes and goes.
    fn note(&mut self, until: Now) {
        let (now, before) = (boottime(), std::mem::replace(&mut self.until, until));
        match (before > now, until > now) {
            (false, true) => tracing::info!("this node has a lease"),
            (_, false) => tracing::warn!("this node has no lease any more"),
            (true, true) => {}
        }
    }

    async fn put_address_on(&self, term: u64, it: &ClusterAddress) -> Result<(), String> {
        if !self.machine.may_have_address(term, boottime()) {
            return Err("it has no lease now, or knows a later master".into());
        }
        let net = network::Netlink::open().map_err(|error| crate::chain(&error))?;
        let added = network::address::add(&net, &it.netdev, it.address, it.netmask).await;
        added.map_err(|error| crate::chain(&error))
    }

    /// Takes the cluster's address off this node.
    async fn drop_address(&mut self) {
        self.address_is_gone = match &self.guests.around().address {
            // No daemon has said where it would be, so none of this guard's time has put it there.
            None => true,
            Some(it) => match take_off(it).await {
                Ok(()) => true,
                Err(error) => {
                    let error = crate::chain(&error);
                    tracing::error!(error, address = %it.address, "the cluster's address can't be taken off");
                    false
                }
            },
        };
    }

    fn begin_end(&mut self) {
        if self.ending.is_none() {
            tracing::info!("ending, with the daemon");
            self.ending = Some(Instant::now() + LAST_WORDS);
            self.daemon.end();
        }
    }

    /// The last thing: protected guests are not left alone.
    fn end(mut self) {
        let protected = self.guests.protected();
        if protected.is_empty() {
            return;
        }
        match lookout::start(&self.config.lookout, self.machine.until()) {
            Ok(pid) => tracing::info!(pid, "protected guests go on until their lease ends, or the next guard is there"),
            Err(error) => {
                tracing::error!(%error, "nobody is left to watch protected guests: they are stopped");
                self.guests.stop(&protected);
            }
        }
    }
}

async fn take_off(it: &ClusterAddress) -> Result<(), network::Error> {
    let net = network::Netlink::open()?;
    match network::address::remove(&net, &it.netdev, it.address, it.netmask).await {
        // Without the interface there is no address on it.
        Err(network::Error::NoSuchInterface(_)) => Ok(()),
        outcome => outcome,
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when).await,
        None => std::future::pending().await,
    }
}

/// Runs, for the log.
fn list(runs: &BTreeSet<RunId>) -> String {
    runs.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}
