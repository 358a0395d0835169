//! Guests: they write, read and flush, and note what was acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use mirror::engine::{Event, GuestOp, GuestReply, GuestRequest, RequestId};
use mirror::wire::{Content, Range};
use model::RunId;

use crate::disk::is_refused;
use crate::invariants;
use crate::medium::{UNIT, content, stamps, units};
use crate::node::{Input, Role};
use crate::world::{Ev, UNITS, World};

/// Requests that a guest has under way at the most.
const DEPTH: usize = 3;

/// A hypervisor's process.
#[derive(Debug)]
pub struct Guest {
    /// The disk that it has.
    pub disk: usize,
    /// It was let go on once; it is started standing still.
    pub begun: bool,
    /// It was sent SIGSTOP.
    pub stopped: bool,
    outstanding: BTreeMap<u64, Asked>,
    next: u64,
}

/// What a guest asked for.
#[derive(Clone, Debug)]
pub enum Asked {
    /// Where, the stamp, and when.
    Write(Range, u64, u64),
    /// Where, and what might be there.
    Read(Range, Vec<BTreeSet<u64>>),
    /// When.
    Flush(u64),
}

/// A request as it was sent.
#[derive(Clone, Debug)]
pub struct Request {
    /// To which node.
    pub node: usize,
    /// Of which run.
    pub run: RunId,
    key: u64,
    /// What it is.
    pub asked: Asked,
}

impl Guest {
    /// One that is started, standing still.
    pub fn new(disk: usize) -> Self {
        Self { disk, begun: false, stopped: false, outstanding: BTreeMap::new(), next: 0 }
    }

    /// Whether its processors run.
    pub fn runs(&self) -> bool {
        self.begun && !self.stopped
    }
}

impl World {
    /// `cont`.
    pub fn guest_begins(&mut self, node: usize, run: RunId) {
        if let Some(guest) = self.machines[node].guests.get_mut(&run)
            && !std::mem::replace(&mut guest.begun, true)
        {
            self.note(|| format!("node {node}: run {run} runs"));
            self.after(0, Ev::Guest(node, run));
        }
    }

    /// The guest's own clock.
    pub fn guest_acts(&mut self, node: usize, run: RunId) {
        let Some(guest) = self.machines[node].guests.get(&run) else { return };
        let (disk, idle) = (guest.disk, !guest.runs() || guest.outstanding.len() >= DEPTH);
        let pause = self.rng.range(3_000, 25_000);
        self.after(pause, Ev::Guest(node, run));
        // In the end everything has to come to rest.
        let enough = !self.faults && self.shared[disk].done > 30 && self.is_in_sync(disk);
        if idle || enough {
            return;
        }
        let asked = self.choose(disk);
        let Some(guest) = self.machines[node].guests.get_mut(&run) else { return };
        guest.next += 1;
        let key = guest.next;
        guest.outstanding.insert(key, asked);
        self.ask_disk(node, run, key);
    }

    fn choose(&mut self, disk: usize) -> Asked {
        let len = self.rng.range(1, 4);
        let unit = self.rng.range(0, UNITS as u64 - len + 1);
        let range = Range::new(unit * UNIT, len * UNIT);
        let what = self.rng.range(0, 10);
        let oracle = &mut self.shared[disk].oracle;
        match what {
            0..5 => {
                let stamp = oracle.now() << 8 | 1;
                let begun = oracle.begin(units(range), stamp);
                for machine in &mut self.machines {
                    for guest in machine.guests.values_mut().filter(|guest| guest.disk == disk) {
                        guest.may_see(range, |_| stamp);
                    }
                }
                Asked::Write(range, stamp, begun)
            }
            5..9 => Asked::Read(range, units(range).map(|unit| oracle.allowed(unit).into_iter().collect()).collect()),
            _ => Asked::Flush(oracle.now()),
        }
    }

    fn ask_disk(&mut self, node: usize, run: RunId, key: u64) {
        let Some(guest) = self.machines[node].guests.get(&run) else { return };
        let (disk, Some(asked)) = (guest.disk, guest.outstanding.get(&key).cloned()) else { return };
        let shared = &mut self.shared[disk];
        shared.asked += 1;
        let id = RequestId(shared.asked);
        let op = match &asked {
            Asked::Read(range, _) => GuestOp::Read(*range),
            Asked::Flush(_) => GuestOp::Flush,
            Asked::Write(range, stamp, _) => match content(&vec![*stamp; (range.len / UNIT) as usize]) {
                Content::Data(data) => GuestOp::Write { offset: range.offset, data, fua: false },
                Content::Zeroes => GuestOp::Zero { range: *range, fua: false },
            },
        };
        shared.requests.insert(id, Request { node, run, key, asked });
        let request = Event::Guest(GuestRequest { id, run, op });
        self.put(node, Role::Daemon, None, Input::Disk(disk, request));
    }

    /// Whether all replicas of a disk are in sync.
    pub fn is_in_sync(&self, disk: usize) -> bool {
        crate::disk::mirror_in(&self.raft.state, disk)
            .is_some_and(|mirror| mirror.in_sync().len() == mirror.replicas.len())
    }
}

impl Guest {
    fn may_see(&mut self, range: Range, stamp: impl Fn(usize) -> u64) {
        for asked in self.outstanding.values_mut() {
            if let Asked::Read(over, allowed) = asked {
                for (at, unit) in units(*over).enumerate().filter(|(_, unit)| units(range).contains(unit)) {
                    allowed[at].insert(stamp(unit));
                }
            }
        }
    }
}

/// What a new guest is shown may be read by what was asked for before.
pub fn is_shown(world: &mut World, disk: usize, shown: &[u64]) {
    let whole = Range::new(0, UNITS as u64 * UNIT);
    for machine in &mut world.machines {
        for guest in machine.guests.values_mut().filter(|guest| guest.disk == disk) {
            guest.may_see(whole, |unit| shown[unit]);
        }
    }
}

/// The daemon is back: what it did not answer is asked again.
pub fn resend(world: &mut World, node: usize, disk: usize) {
    forget(world, node, disk);
    let of = world.machines[node].guests.iter().filter(|(_, guest)| guest.disk == disk);
    let asked: Vec<(RunId, u64)> =
        of.flat_map(|(run, guest)| guest.outstanding.keys().map(|key| (*run, *key))).collect();
    for (run, key) in asked {
        world.ask_disk(node, run, key);
    }
}

/// Nobody will answer what a node's daemon was asked.
pub fn forget(world: &mut World, node: usize, disk: usize) {
    world.shared[disk].requests.retain(|_, request| request.node != node);
}

/// The writes of a run that were not answered, and may still be carried out.
pub fn pending(world: &World, disk: usize, run: Option<RunId>) -> Vec<u64> {
    let begun = |asked: &Asked| match asked {
        Asked::Write(_, _, begun) => Some(*begun),
        _ => None,
    };
    let guests = world.machines.iter().flat_map(|machine| &machine.guests).filter(|(id, _)| Some(**id) == run);
    let outstanding = guests.flat_map(|(_, guest)| guest.outstanding.values());
    let sent = world.shared[disk].requests.values().filter(|request| Some(request.run) == run);
    outstanding.chain(sent.map(|request| &request.asked)).filter_map(begun).collect()
}

/// A daemon answers.
pub fn replied(world: &mut World, node: usize, disk: usize, id: RequestId, reply: GuestReply) {
    let Some(request) = world.shared[disk].requests.remove(&id) else { return };
    if is_refused(&reply) {
        return;
    }
    invariants::replied(world, node, disk, &request.asked);
    world.touched.insert(disk);
    let guest = world.machines[node].guests.get_mut(&request.run);
    let Some(asked) = guest.and_then(|guest| guest.outstanding.remove(&request.key)) else { return };
    if !world.faults {
        world.shared[disk].done += 1;
    }
    let oracle = &mut world.shared[disk].oracle;
    match (asked, reply) {
        (Asked::Write(range, _, begun), GuestReply::Done) => oracle.ack(units(range), begun, false),
        (Asked::Flush(since), GuestReply::Done) => oracle.flush(since),
        (Asked::Read(range, allowed), GuestReply::Read(content)) => {
            for ((at, stamp), unit) in stamps(&content, range.len).into_iter().enumerate().zip(units(range)) {
                if !allowed[at].contains(&stamp) {
                    let allowed = &allowed[at];
                    world.violate(format!(
                        "G2: a guest read {stamp:#x} in unit {unit} of disk {disk}, allowed is {allowed:x?}"
                    ));
                }
            }
        }
        (asked, reply) => world.violate(format!("{asked:?} was answered by {reply:?}")),
    }
}
