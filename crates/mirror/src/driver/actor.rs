//! The task that owns a replica: it is told what happened and does what it wants done.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::future::BoxFuture;
use futures::stream::{FuturesUnordered, StreamExt};
use model::{DiskId, Incarnation, Life, NodeId, NodeLife, RunId};
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};

use super::authority::{self, Authority};
use super::chain::Chain;
use super::lease::Lease;
use super::link::{LAST_WORDS, Link, LinkError, News, Port, Token};
use super::network::{Connector, Incoming};
use super::progress::Progress;
use super::report::{Counters, Report, Resyncs};
use crate::backing::{Backing, BackingError, BootFile};
use crate::engine::{
    BootChange, BootRecord, Conn, Effect, Event, GuestOp, GuestReply, GuestRequest, Io, IoFailed, IoResult, Micros,
    Notice, Opening, Replica, RequestId, StoreKind,
};
use crate::wire::Content;

/// What the actor is told from outside.
pub(super) enum Message {
    /// News for the replica.
    Event(Event),
    /// A guest's request.
    Guest(RunId, GuestOp, oneshot::Sender<GuestReply>),
    /// A connection that came in.
    Incoming(Box<Incoming>),
    /// How the replica is.
    Report(oneshot::Sender<Report>),
    /// Make room for a disk of so many bytes.
    Grow(u64, oneshot::Sender<Result<(), BackingError>>),
    /// The medium, to look at it.
    Backing(oneshot::Sender<Backing>),
    /// End.
    Close,
}

/// Who and what a replica has to do with.
pub(crate) struct Surroundings {
    pub disk: DiskId,
    pub node: NodeId,
    pub life: Life,
    /// Bytes of the disk.
    pub size: Arc<AtomicU64>,
    pub authority: Arc<dyn Authority>,
    pub connector: Arc<Connector>,
    pub lease: Lease,
    pub progress: watch::Sender<Progress>,
    pub notices: broadcast::Sender<(DiskId, Notice)>,
}

/// The replica's files.
pub(super) struct Files {
    pub backing: Backing,
    pub boot: BootFile,
}

/// What ended that an effect began.
enum Ended {
    Event(Event),
    Grown(u64, Result<(), BackingError>, oneshot::Sender<Result<(), BackingError>>),
}

/// Why an actor ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error("its boot-scoped file can't be written")]
    BootFile(#[from] BackingError),
    #[error("a fault of the program ended one of its tasks")]
    Task(#[from] JoinError),
}

pub(super) struct Actor {
    around: Surroundings,
    replica: Replica,
    /// Whether the replica believes that the lease holds.
    leased: bool,
    files: Files,
    /// What the boot file holds: the replica begins by telling all of it.
    boot: BootRecord,
    incarnation: Incarnation,
    origin: Instant,
    wake: Option<Instant>,
    out: Vec<Effect>,
    running: FuturesUnordered<BoxFuture<'static, Ended>>,
    links: BTreeMap<Conn, Link>,
    conns: BTreeMap<Token, Conn>,
    connections: JoinSet<()>,
    news: mpsc::UnboundedSender<(Token, News)>,
    guests: BTreeMap<RequestId, oneshot::Sender<GuestReply>>,
    numbers: u64,
    counters: Counters,
    resyncs: Resyncs,
}

impl Actor {
    /// Opens the replica, and runs it until it is told to close and no I/O is under way any more.
    pub async fn run(
        around: Surroundings,
        opening: Opening,
        files: Files,
        mut inbox: mpsc::UnboundedReceiver<Message>,
    ) -> Result<(), Fault> {
        let (news, mut reports) = mpsc::unbounded_channel();
        let mut out = Vec::new();
        let replica = Replica::open(opening, Micros(0), &mut out);
        let mut actor = Self {
            around,
            replica,
            // As every replica does at first.
            leased: true,
            files,
            boot: BootRecord::default(),
            incarnation: Incarnation::default(),
            origin: Instant::now(),
            wake: None,
            out,
            running: FuturesUnordered::new(),
            links: BTreeMap::new(),
            conns: BTreeMap::new(),
            connections: JoinSet::new(),
            news,
            guests: BTreeMap::new(),
            numbers: 0,
            counters: Counters::default(),
            resyncs: Resyncs::default(),
        };
        actor.carry_out()?;
        let mut lease = actor.around.lease.clone();
        loop {
            tokio::select! {
                message = inbox.recv() => match message {
                    None | Some(Message::Close) => break,
                    Some(message) => actor.told(message)?,
                },
                Some(ended) = actor.running.next() => actor.ended(ended)?,
                Some((token, news)) = reports.recv() => actor.reported(token, news)?,
                Some(ended) = actor.connections.join_next() => ended?,
                () = lease.renewed() => if !actor.leased {
                    // What waited for it goes on.
                    actor.look_at_lease()?;
                },
                () = at(actor.wake) => {
                    actor.wake = None;
                    actor.step(Event::Tick)?;
                    if actor.resyncs.is_due(Instant::now()) {
                        actor.resyncs.look(Instant::now(), &actor.replica.status());
                    }
                }
            }
        }
        // What was sent last should go out. Guests that wait get no answer: they ask again where the disk is served next.
        actor.links.clear();
        let goodbyes = async { while actor.connections.join_next().await.is_some() {} };
        let _ = tokio::time::timeout(LAST_WORDS, goodbyes).await;
        // The medium stays locked until it is quiet.
        let backing = actor.files.backing.clone();
        drop(actor);
        backing.drained().await;
        Ok(())
    }

    fn told(&mut self, message: Message) -> Result<(), Fault> {
        match message {
            Message::Event(event) => {
                match &event {
                    Event::View(view) | Event::Promote(view) => self.incarnation = view.inc,
                    Event::Life(life) => self.around.life = *life,
                    Event::Resume(_) => self.progress(|progress| progress.quiesced = None),
                    _ => {}
                }
                self.step(event)
            }
            Message::Guest(run, op, reply) => {
                let id = RequestId(self.number());
                self.guests.insert(id, reply);
                self.step(Event::Guest(GuestRequest { id, run, op }))
            }
            Message::Incoming(incoming) => {
                let Incoming { stream, received, hello } = *incoming;
                let conn = Conn::In(self.number());
                let port = self.link(conn);
                self.connections.spawn(port.serve(stream, received));
                self.step(Event::Accepted(conn, hello))
            }
            Message::Report(answer) => {
                let (now, status) = (Instant::now(), self.replica.status());
                self.resyncs.look(now, &status);
                let linked = self.links.keys().any(|conn| matches!(conn, Conn::In(_)));
                let resyncs = self.resyncs.report(now);
                // Who asked may have gone.
                let _ = answer.send(Report { status, linked, counters: self.counters, resyncs });
                Ok(())
            }
            Message::Backing(answer) => {
                // Who asked may have gone.
                let _ = answer.send(self.files.backing.clone());
                Ok(())
            }
            Message::Grow(size, answer) => {
                let backing = self.files.backing.clone();
                self.running.push(Box::pin(async move { Ended::Grown(size, backing.grow(size).await, answer) }));
                Ok(())
            }
            Message::Close => Ok(()),
        }
    }

    fn ended(&mut self, ended: Ended) -> Result<(), Fault> {
        match ended {
            Ended::Event(event) => self.step(event),
            Ended::Grown(size, result, answer) => {
                if result.is_ok() {
                    self.around.size.fetch_max(size, Ordering::Relaxed);
                    self.step(Event::Grown(size))?;
                }
                // Who asked may have gone.
                let _ = answer.send(result);
                Ok(())
            }
        }
    }

    fn reported(&mut self, token: Token, news: News) -> Result<(), Fault> {
        // A connection that was closed has nothing to say any more.
        let Some(conn) = self.conns.get(&token).copied() else { return Ok(()) };
        match news {
            News::Open => self.step(Event::Connected(conn)),
            News::Frame(frame, room) => {
                self.counters.received += room.num_permits() as u64;
                let result = self.step(Event::Received(conn, frame));
                drop(room);
                result
            }
            News::Lost(error) => self.lost(conn, &error),
        }
    }

    fn lost(&mut self, conn: Conn, error: &LinkError) -> Result<(), Fault> {
        tracing::debug!(disk = %self.around.disk, ?conn, error = %Chain(error), "a replication connection is over");
        self.unlink(conn);
        self.step(Event::Disconnected(conn))
    }

    fn step(&mut self, event: Event) -> Result<(), Fault> {
        // Before every event: when one brings what was read, the lease is looked at after that was fetched, however long the
        // whole process may have stood still meanwhile (R2).
        self.look_at_lease()?;
        self.give(event)
    }

    fn look_at_lease(&mut self) -> Result<(), Fault> {
        let holds = self.around.lease.holds();
        if std::mem::replace(&mut self.leased, holds) == holds {
            return Ok(());
        }
        self.give(Event::Lease(holds))
    }

    fn give(&mut self, event: Event) -> Result<(), Fault> {
        let now = self.now();
        self.replica.step(now, event, &mut self.out);
        self.carry_out()
    }

    /// Carries out what the replica wants, in order, until it wants nothing more.
    fn carry_out(&mut self) -> Result<(), Fault> {
        let mut lost = Vec::new();
        // What promises that something is complete is written when it is: a process that is killed in the middle of a
        // step promises too little, which costs a longer resync, and never too much.
        let mut owned = BTreeSet::new();
        let mut complete = false;
        for effect in std::mem::take(&mut self.out) {
            match effect {
                Effect::Io(id, io) => {
                    match &io {
                        Io::Read(range) => self.counters.read += range.len,
                        Io::Write { content: Content::Data(data), .. } => self.counters.written += data.len() as u64,
                        // Zeroes are made as holes.
                        Io::Write { content: Content::Zeroes, .. } | Io::Sync => {}
                    }
                    let backing = self.files.backing.clone();
                    self.run_io(async move { Event::IoDone(id, carry_out(&backing, io).await) });
                }
                Effect::Store(id, kind) => {
                    let backing = self.files.backing.clone();
                    match kind {
                        StoreKind::Superblock(superblock) => self.run_io(async move {
                            Event::IoDone(id, stored(backing.store_superblock(&superblock)).await)
                        }),
                        StoreKind::Marks => {
                            let marks = self.boot.marks.iter().map(|(slot, it)| (*slot, it.clone())).collect();
                            self.run_io(async move { Event::IoDone(id, stored(backing.store_marks(marks)).await) });
                        }
                    }
                }
                Effect::Boot(change) => {
                    self.boot.change(&change);
                    match change {
                        BootChange::Valid(true) => complete = true,
                        BootChange::Marks(slot, Some(_)) => {
                            self.files.boot.change(&BootChange::Marks(slot, None))?;
                            owned.insert(slot);
                        }
                        change => self.files.boot.change(&change)?,
                    }
                }
                Effect::Open { conn, node, .. } => {
                    let port = self.link(conn);
                    let connector = self.around.connector.clone();
                    self.connections.spawn(port.connect_and_serve(async move { connector.connect(node).await }));
                }
                Effect::Send(conn, frame) => {
                    let Some(link) = self.links.get(&conn) else { continue };
                    match link.send(&frame) {
                        Ok(len) => self.counters.sent += len as u64,
                        Err(error) => lost.push((conn, error)),
                    }
                }
                Effect::Close(conn) => self.unlink(conn),
                Effect::Propose { id, epoch, ver, command } => {
                    let by = NodeLife { node: self.around.node, life: self.around.life };
                    let command = authority::command(self.around.disk, by, epoch, ver, command);
                    let (authority, incarnation) = (self.around.authority.clone(), self.incarnation);
                    self.run_io(async move { Event::Proposed(id, authority.propose(incarnation, command).await) });
                }
                Effect::Reply(id, reply) => {
                    // Who asked may have gone.
                    if let Some(guest) = self.guests.remove(&id) {
                        let _ = guest.send(reply);
                    }
                }
                Effect::Wake(when) => self.wake = Some(self.origin + Duration::from_micros(when.0)),
                Effect::Tell(notice) => {
                    tracing::info!(disk = %self.around.disk, ?notice, "replica");
                    self.progress(|progress| progress.note(&notice));
                    let _ = self.around.notices.send((self.around.disk, notice));
                }
            }
        }
        for slot in owned {
            if let Some(marks) = self.boot.marks.get(&slot) {
                self.files.boot.own_marks(slot, marks.rid, marks.since)?;
            }
        }
        if complete && self.boot.valid {
            self.files.boot.change(&BootChange::Valid(true))?;
        }
        for (conn, error) in lost {
            // It may have been closed by one that was lost before it.
            if self.links.contains_key(&conn) {
                self.lost(conn, &error)?;
            }
        }
        Ok(())
    }

    fn run_io(&mut self, io: impl Future<Output = Event> + Send + 'static) {
        self.running.push(Box::pin(async { Ended::Event(io.await) }));
    }

    fn link(&mut self, conn: Conn) -> Port {
        let token = Token(self.number());
        let (link, port) = Link::new(token, self.news.clone());
        self.unlink(conn);
        self.links.insert(conn, link);
        self.conns.insert(token, conn);
        port
    }

    fn unlink(&mut self, conn: Conn) {
        if let Some(link) = self.links.remove(&conn) {
            self.conns.remove(&link.token);
        }
    }

    fn progress(&self, change: impl FnOnce(&mut Progress)) {
        self.around.progress.send_modify(change);
    }

    fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    fn now(&self) -> Micros {
        Micros(self.origin.elapsed().as_micros() as u64)
    }
}

async fn carry_out(backing: &Backing, io: Io) -> IoResult {
    let result = match io {
        Io::Read(range) => backing.read(range).await.map(Some),
        Io::Write { range, content, fua } => backing.write(range, content, fua).await.map(|()| None),
        Io::Sync => backing.sync().await.map(|()| None),
    };
    answer(result).await
}

async fn stored(store: impl Future<Output = Result<(), BackingError>>) -> IoResult {
    answer(store.await.map(|()| None)).await
}

async fn answer(result: Result<Option<Content>, BackingError>) -> IoResult {
    match result {
        Ok(content) => Ok(content),
        // It was not done because the program ends, which says nothing about the medium. Nobody must hear that it
        // failed: a primary would have itself outdated.
        Err(BackingError::Ending) => std::future::pending().await,
        Err(error) => {
            tracing::error!(error = %Chain(&error), "an I/O of a replica failed");
            Err(IoFailed)
        }
    }
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => tokio::time::sleep_until(when.into()).await,
        None => std::future::pending().await,
    }
}
