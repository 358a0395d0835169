//! What both roles share: the medium, the stored records, the view of the log, and the list of effects.

use std::collections::{BTreeMap, VecDeque};

use model::{Life, MirrorMode, NodeId, ReplicaId, Version};

use super::effect::{BootChange, Effect, Io, Notice, StoreKind};
use super::event::{Conn, IoId, IoResult, RequestId, View};
use super::mutant::Mutant;
use super::stored::{BootRecord, Session, Superblock, WindowEntry};
use super::{Bitmap, Config, Micros};
use crate::wire::{Frame, Range};

/// Most ranges of a window that are kept at an orderly end; closer ones are joined.
const MAX_LEFT_WINDOW: usize = 64;

/// What an I/O or a store was for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Job {
    /// For a role or a link that is no more. It counts until it has ended.
    Orphan,
    /// The superblock.
    Superblock(Box<Superblock>),
    /// The bitmaps, at an orderly end.
    Marks,
    /// The medium, at an orderly end.
    CleanSync,
    /// Primary: its own part of a write.
    OwnWrite(u64),
    /// Primary: its own part of a flush.
    OwnSync(u64),
    /// Primary: the medium's answer to a guest's read.
    GuestRead(u64),
    /// Primary: the source of a copy.
    CopyRead(u64),
    /// Primary: its own replica as the target of a copy.
    CopyWrite(u64),
    /// Primary: its own replica at the end of its resync.
    FinishSync,
    /// Secondary: a write, with its range.
    Apply(u64, Range),
    /// Secondary: a flush.
    ApplySync(u64),
    /// Secondary: a copy.
    ApplyCopy(Range),
    /// Secondary: a read for the primary.
    Serve(u64),
    /// Secondary: the sync at the end of a resync.
    ApplyFinish(Version, model::MirrorMode),
    /// A read through a standby export.
    Standby(RequestId),
}

impl Job {
    fn is_store(&self) -> bool {
        matches!(self, Job::Superblock(_) | Job::Marks)
    }
}

/// How far an orderly end has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Clean {
    /// Not begun, or it is over because something happened since.
    No,
    /// The medium is being flushed.
    Syncing,
    /// The bitmaps are being saved.
    Saving,
    /// The superblock says so, as soon as it is durable.
    Stored,
}

pub(super) struct Base {
    pub cfg: Config,
    pub node: NodeId,
    pub life: Life,
    pub boot_id: String,
    pub now: Micros,
    pub out: Vec<Effect>,
    /// As it shall be.
    pub sb: Superblock,
    /// As it is on the medium.
    durable: Superblock,
    storing: bool,
    pub boot: BootRecord,
    free_places: Vec<u32>,
    places: u32,
    pub view: Option<View>,
    pub lease: bool,
    /// Strict, whatever the log says.
    pub held_strict: bool,
    /// The medium failed (S7): nothing is asked of it any more.
    pub failed: bool,
    pub clean: Clean,
    jobs: BTreeMap<IoId, (Micros, Job)>,
    next: u64,
    /// I/O that has ended with its job, to be given to the role.
    pub ended: VecDeque<(Job, IoResult)>,
}

impl Base {
    pub fn new(cfg: Config, node: NodeId, life: Life, boot_id: String, durable: Superblock, boot: BootRecord) -> Self {
        let places = boot.window.keys().next_back().map_or(0, |last| last + 1);
        let free_places = (0..places).filter(|place| !boot.window.contains_key(place)).collect();
        Self {
            cfg,
            node,
            life,
            boot_id,
            now: Micros(0),
            out: Vec::new(),
            sb: durable.clone(),
            durable,
            storing: false,
            boot,
            free_places,
            places,
            view: None,
            lease: true,
            held_strict: false,
            failed: false,
            clean: Clean::No,
            jobs: BTreeMap::new(),
            next: 0,
            ended: VecDeque::new(),
        }
    }

    /// Takes a view if it is not older than the one that is known; whether it is.
    pub fn see(&mut self, view: &View) -> bool {
        let newer = self
            .view
            .as_ref()
            .is_none_or(|known| (view.mirror.ver, view.mirror.epoch) >= (known.mirror.ver, known.mirror.epoch));
        if newer {
            self.view = Some(view.clone());
            self.store_mode();
        }
        newer
    }

    /// The mode that the replica keeps to: strict if the log says so, or the node was told to be; the one that it was told
    /// last as long as it knows no better.
    pub fn mode(&self) -> MirrorMode {
        match &self.view {
            _ if self.held_strict => MirrorMode::Strict,
            Some(view) => view.mirror.mode,
            None => self.sb.mode,
        }
    }

    /// Stores the mode, if it is another one.
    pub fn store_mode(&mut self) {
        let mode = self.mode();
        if self.sb.mode != mode {
            self.set_superblock(|sb| sb.mode = mode);
        }
    }

    /// A number that was not used yet.
    pub fn fresh(&mut self) -> u64 {
        self.next += 1;
        self.next
    }

    pub fn send(&mut self, conn: Conn, frame: Frame) {
        self.out.push(Effect::Send(conn, frame));
    }

    pub fn close(&mut self, conn: Conn) {
        self.out.push(Effect::Close(conn));
    }

    pub fn tell(&mut self, notice: Notice) {
        self.out.push(Effect::Tell(notice));
    }

    /// Begins an I/O on the medium.
    pub fn submit(&mut self, io: Io, job: Job) {
        let id = IoId(self.fresh());
        self.jobs.insert(id, (self.now, job));
        self.out.push(Effect::Io(id, io));
    }

    /// Whether an I/O on the medium is under way, for whatever role or link.
    pub fn is_busy(&self) -> bool {
        self.jobs.values().any(|(_, job)| !job.is_store())
    }

    /// Whether a write or a copy that overlaps is under way as a secondary.
    pub fn is_applying(&self, range: Range) -> bool {
        self.jobs.values().any(|(_, job)| match job {
            Job::Apply(_, other) | Job::ApplyCopy(other) => other.overlaps(range),
            _ => false,
        })
    }

    /// Whether a rule is left out, for the tests of the tests.
    pub fn broken(&self, mutant: Mutant) -> bool {
        #[cfg(feature = "mutants")]
        return self.cfg.mutant == Some(mutant);
        #[cfg(not(feature = "mutants"))]
        {
            let _ = mutant;
            false
        }
    }

    /// What is under way was for a role or link that is no more. A standby export's reads are for neither.
    pub fn orphan(&mut self) {
        for (_, job) in self.jobs.values_mut().filter(|(_, job)| !job.is_store() && !matches!(job, Job::Standby(_))) {
            *job = Job::Orphan;
        }
        self.ended.clear();
    }

    pub fn io_done(&mut self, id: IoId, result: IoResult) {
        let Some((_, job)) = self.jobs.remove(&id) else { return };
        match job {
            Job::Orphan => {}
            Job::Superblock(stored) => {
                self.storing = false;
                match result {
                    Ok(_) => self.durable = *stored,
                    Err(_) => self.fail(),
                }
                self.store();
            }
            Job::CleanSync if self.clean == Clean::Syncing => match result {
                Ok(_) => {
                    self.clean = Clean::Saving;
                    let id = IoId(self.fresh());
                    self.jobs.insert(id, (self.now, Job::Marks));
                    self.out.push(Effect::Store(id, StoreKind::Marks));
                }
                Err(_) => self.fail(),
            },
            Job::Marks if self.clean == Clean::Saving => match result {
                Ok(_) => {
                    self.clean = Clean::Stored;
                    self.sb.left_window = joined(self.window());
                    self.sb.clean = self.boot.valid;
                    self.store();
                }
                Err(_) => self.fail(),
            },
            Job::CleanSync | Job::Marks => {}
            job => self.ended.push_back((job, result)),
        }
    }

    /// The medium failed (S7).
    pub fn fail(&mut self) {
        if !self.failed {
            self.failed = true;
            self.tell(Notice::MediumFailed);
        }
    }

    pub fn has_jobs(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// Whether an I/O has taken too long.
    pub fn is_overdue(&self) -> bool {
        self.jobs.values().any(|(since, _)| self.now.ms_since(*since) >= self.cfg.t_disk_ms)
    }

    /// Changes the superblock; [`Self::is_settled`] tells when that is durable.
    pub fn set_superblock(&mut self, change: impl FnOnce(&mut Superblock)) {
        change(&mut self.sb);
        self.store();
    }

    fn store(&mut self) {
        if self.storing || self.sb == self.durable || self.failed {
            return;
        }
        self.storing = true;
        let id = IoId(self.fresh());
        let copy = Box::new(self.sb.clone());
        self.jobs.insert(id, (self.now, Job::Superblock(copy.clone())));
        self.out.push(Effect::Store(id, StoreKind::Superblock(copy)));
    }

    /// Whether the superblock is durable as it shall be.
    pub fn is_settled(&self) -> bool {
        self.sb == self.durable
    }

    /// Whether the superblock on the medium says what is asked about.
    pub fn durably(&self, holds: impl FnOnce(&Superblock) -> bool) -> bool {
        holds(&self.durable)
    }

    /// The replica comes into use: it is not clean any more.
    pub fn begin_use(&mut self) {
        self.clean = Clean::No;
        self.set_superblock(|sb| {
            sb.clean = false;
            sb.left_window.clear();
        });
    }

    /// Begins an orderly end: nothing is under way, and nothing will be begun.
    pub fn begin_clean(&mut self) {
        if self.clean == Clean::No {
            self.clean = Clean::Syncing;
            self.submit(Io::Sync, Job::CleanSync);
        }
    }

    /// Whether the orderly end is durable.
    pub fn is_clean(&self) -> bool {
        self.clean == Clean::Stored && self.is_settled()
    }

    pub fn change_boot(&mut self, change: BootChange) {
        self.boot.change(&change);
        self.out.push(Effect::Boot(change));
    }

    /// Enters a write into the window.
    pub fn enter_window(&mut self, session: Session, seq: u64, range: Range) -> u32 {
        let place = self.free_places.pop().unwrap_or_else(|| {
            self.places += 1;
            self.places - 1
        });
        self.change_boot(BootChange::Window(place, Some(WindowEntry { session, seq, range })));
        place
    }

    /// Takes a write out of the window.
    pub fn leave_window(&mut self, place: u32) {
        if self.boot.window.contains_key(&place) {
            self.change_boot(BootChange::Window(place, None));
            self.free_places.push(place);
        }
    }

    /// Takes every write out of the window of which `which` says so.
    pub fn prune_window(&mut self, which: impl Fn(&WindowEntry) -> bool) {
        let places: Vec<u32> =
            self.boot.window.iter().filter(|(_, entry)| which(entry)).map(|(place, _)| *place).collect();
        for place in places {
            self.leave_window(place);
        }
    }

    pub fn window(&self) -> Vec<Range> {
        self.boot.window.values().map(|entry| entry.range).collect()
    }

    pub fn set_valid(&mut self, valid: bool) {
        if self.boot.valid != valid {
            self.change_boot(BootChange::Valid(valid));
        }
    }

    /// Begins a bitmap anew.
    pub fn begin_marks(&mut self, slot: u8, rid: ReplicaId, since: Version) {
        self.change_boot(BootChange::Marks(slot, Some((rid, since))));
    }

    pub fn end_marks(&mut self, slot: u8) {
        if self.boot.marks.contains_key(&slot) {
            self.change_boot(BootChange::Marks(slot, None));
        }
    }

    pub fn mark(&mut self, slot: u8, range: Range) {
        self.change_boot(BootChange::Bits(slot, range, true));
    }

    pub fn unmark(&mut self, slot: u8, bits: &Bitmap) {
        for range in bits.ranges() {
            self.change_boot(BootChange::Bits(slot, range, false));
        }
    }

    /// Marks a write for every replica that is not in sync (S4).
    pub fn mark_all(&mut self, range: Range) {
        for slot in 0..model::MAX_REPLICAS as u8 {
            if self.boot.marks.contains_key(&slot) {
                self.mark(slot, range);
            }
        }
    }

    /// The whole disk.
    pub fn everything(&self) -> Range {
        Range::new(0, self.sb.size)
    }

    /// A run of whole blocks, as far as the disk goes.
    pub fn within(&self, range: Range) -> Range {
        Range::new(range.offset, range.end().min(self.sb.size).saturating_sub(range.offset))
    }
}

/// A list of at most [`MAX_LEFT_WINDOW`] ranges that covers these.
fn joined(mut ranges: Vec<Range>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut list: Vec<Range> = Vec::new();
    for range in ranges {
        match list.last_mut() {
            Some(last) if range.offset <= last.end() => last.len = last.end().max(range.end()) - last.offset,
            _ => list.push(range),
        }
    }
    while list.len() > MAX_LEFT_WINDOW {
        let narrow = (1..list.len()).min_by_key(|at| list[*at].offset - list[at - 1].end()).unwrap_or(1);
        let next = list.remove(narrow);
        list[narrow - 1].len = next.end() - list[narrow - 1].offset;
    }
    list.into_iter().map(|range| (range.offset, range.len)).collect()
}
