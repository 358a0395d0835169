//! The guest: it writes, reads, discards and flushes, several requests at once, also over each other; and the old guests
//! that should not be able to do anything any more.

use std::collections::{BTreeMap, BTreeSet};

use mirror::engine::{Event, GuestOp, GuestReply, GuestRequest, RequestId};
use mirror::wire::{Content, Range};
use model::RunId;

use crate::invariants;
use crate::medium::{UNIT, content, stamps, units};
use crate::world::{Ev, UNITS, World, bytes, is_refused};

#[derive(Clone, Debug)]
pub enum Asked {
    /// Where, the stamp, when, and whether durable.
    Write(Range, u64, u64, bool),
    /// Where, and what might be there when it was asked for.
    Read(Range, Vec<BTreeSet<u64>>),
    /// When.
    Flush(u64),
}

#[derive(Default)]
pub struct Guest {
    pub node: usize,
    pub run: RunId,
    pub alive: bool,
    pub paused: bool,
    pub outstanding: BTreeMap<u64, Asked>,
    /// What the request is: the guest's operation, and who was asked.
    requests: BTreeMap<RequestId, (u64, usize)>,
    /// Requests of guests that are stopped; writes of them may have happened.
    stopped: BTreeMap<RequestId, (RunId, Asked)>,
    /// Requests through exports of runs that are over.
    ghosts: BTreeSet<RequestId>,
    /// Runs that are over, and where they were.
    old_runs: Vec<(usize, RunId)>,
    /// It does not stop when everything is in sync.
    pub keeps_on: bool,
    next: u64,
    done_since_heal: u64,
}

impl Guest {
    pub fn done(&self) -> u64 {
        self.done_since_heal
    }

    pub fn is_quiet(&self) -> bool {
        self.outstanding.is_empty()
    }

    pub fn is_served_since_heal(&self) -> bool {
        self.done_since_heal > 20
    }

    /// What is shown may be read by what was asked for before.
    pub fn is_shown(&mut self, shown: &[u64]) {
        for asked in self.outstanding.values_mut() {
            if let Asked::Read(range, allowed) = asked {
                for (at, unit) in units(*range).enumerate() {
                    allowed[at].insert(shown[unit]);
                }
            }
        }
    }

    /// The writes of a run that are not answered, also if its guest was stopped since.
    pub fn pending(&self, run: Option<RunId>) -> Vec<u64> {
        let begun = |asked: &Asked| match asked {
            Asked::Write(_, _, begun, _) => Some(*begun),
            _ => None,
        };
        let asked = self.outstanding.values().filter(|_| run == Some(self.run));
        let stopped = self.stopped.values().filter(|(of, _)| run == Some(*of)).map(|(_, asked)| asked);
        asked.chain(stopped).filter_map(begun).collect()
    }
}

/// The guest's own clock.
pub fn act(world: &mut World) {
    let pause = world.rng.range(500, 12_000);
    world.after(pause, Ev::Guest);
    if let Some((node, run)) = world.guest.old_runs.last().copied()
        && world.faults
        && world.rng.chance(2)
    {
        ghost(world, node, run);
    }
    let enough = !world.guest.keeps_on
        && !world.faults
        && world.guest.is_served_since_heal()
        && world.log.mirror().in_sync().len() == world.nodes.len();
    let guest = &world.guest;
    if !guest.alive || guest.paused || guest.outstanding.len() >= 6 || enough {
        return;
    }
    let asked = choose(world);
    by_command(world, asked);
}

/// One write of one unit, by command of a scenario.
pub fn write(world: &mut World, unit: u64) {
    let stamp = world.oracle.now() << 8 | 2;
    let range = Range::new(bytes(unit), bytes(1));
    let begun = world.oracle.begin(units(range), stamp);
    by_command(world, Asked::Write(range, stamp, begun, false));
}

/// One flush.
pub fn flush(world: &mut World) {
    let now = world.oracle.now();
    by_command(world, Asked::Flush(now));
}

fn by_command(world: &mut World, asked: Asked) {
    let key = world.guest.next;
    world.guest.next += 1;
    world.guest.outstanding.insert(key, asked);
    ask(world, key);
}

fn choose(world: &mut World) -> Asked {
    let len = world.rng.range(1, 5);
    // Most of the time it stays within a few blocks, so that others don't differ when a replica comes back.
    let hot = (world.now / 700_000).wrapping_mul(5) % (UNITS as u64 - 4);
    let unit = match world.rng.chance(85) {
        true => hot + world.rng.range(0, 5 - len),
        false => world.rng.range(0, UNITS as u64 - len + 1),
    };
    let range = Range::new(bytes(unit), bytes(len));
    match world.rng.range(0, 10) {
        0..5 => {
            let discard = world.rng.chance(8);
            let stamp = if discard { 0 } else { world.oracle.now() << 8 | 1 };
            let begun = world.oracle.begin(units(range), stamp);
            for asked in world.guest.outstanding.values_mut() {
                if let Asked::Read(over, allowed) = asked {
                    for (at, unit) in units(*over).enumerate() {
                        if units(range).contains(&unit) {
                            allowed[at].insert(stamp);
                        }
                    }
                }
            }
            Asked::Write(range, stamp, begun, world.rng.chance(10))
        }
        5..9 => {
            let allowed = units(range).map(|unit| world.oracle.allowed(unit).into_iter().collect()).collect();
            Asked::Read(range, allowed)
        }
        _ => Asked::Flush(world.oracle.now()),
    }
}

/// Sends an operation to the daemon of the guest's node.
fn ask(world: &mut World, key: u64) {
    let guest = &mut world.guest;
    let Some(asked) = guest.outstanding.get(&key) else { return };
    guest.next += 1;
    let id = RequestId(guest.next);
    guest.requests.insert(id, (key, guest.node));
    let request = GuestRequest { id, run: guest.run, op: operation(asked) };
    let node = guest.node;
    world.tell(node, Event::Guest(request));
}

fn operation(asked: &Asked) -> GuestOp {
    match asked {
        Asked::Read(range, _) => GuestOp::Read(*range),
        Asked::Flush(_) => GuestOp::Flush,
        Asked::Write(range, stamp, _, fua) => match content(&vec![*stamp; (range.len / UNIT) as usize]) {
            Content::Data(data) => GuestOp::Write { offset: range.offset, data, fua: *fua },
            Content::Zeroes => GuestOp::Zero { range: *range, fua: *fua },
        },
    }
}

/// The daemon is back: what it did not answer is asked again.
pub fn resend(world: &mut World, node: usize) {
    world.guest.requests.retain(|_, (_, asked)| *asked != node);
    if !world.guest.alive || world.guest.node != node {
        return;
    }
    let keys: Vec<u64> = world.guest.outstanding.keys().copied().collect();
    for key in keys {
        ask(world, key);
    }
}

/// A guest begins.
pub fn begin(world: &mut World, node: usize, run: RunId) {
    stop(world);
    let guest = &mut world.guest;
    guest.node = node;
    guest.run = run;
    guest.alive = true;
    guest.paused = false;
    world.note(|| format!("guest: run {run} on node {node}"));
}

/// It moves, with nothing outstanding.
pub fn moved(world: &mut World, node: usize, run: RunId) {
    let (old, old_run) = (world.guest.node, world.guest.run);
    world.guest.node = node;
    world.guest.run = run;
    world.guest.paused = false;
    world.note(|| format!("guest: moved to node {node} as run {run}"));
    world.guest.old_runs.push((old, old_run));
    // The old hypervisor writes once more; that must not get through.
    ghost(world, old, old_run);
}

pub fn ghost(world: &mut World, node: usize, run: RunId) {
    let unit = world.rng.range(0, UNITS as u64);
    let Content::Data(data) = content(&[0xbad]) else { return };
    world.guest.next += 1;
    let id = RequestId(world.guest.next);
    world.guest.ghosts.insert(id);
    let op = GuestOp::Write { offset: bytes(unit), data, fua: false };
    world.tell(node, Event::Guest(GuestRequest { id, run, op }));
}

/// It is stopped, wherever it is. What it had asked for may or may not happen.
pub fn stop(world: &mut World) {
    let guest = &mut world.guest;
    guest.alive = false;
    for (id, (key, _)) in std::mem::take(&mut guest.requests) {
        if let Some(asked) = guest.outstanding.get(&key) {
            guest.stopped.insert(id, (guest.run, asked.clone()));
        }
    }
    guest.outstanding.clear();
}

pub fn node_lost(world: &mut World, node: usize) {
    if world.guest.node == node {
        stop(world);
    }
}

/// A daemon answers.
pub fn replied(world: &mut World, node: usize, id: RequestId, reply: GuestReply) {
    if world.guest.ghosts.contains(&id) {
        if !is_refused(&reply) {
            world.violate(format!("W1: node {node} carried out a request of a run that is over"));
        }
        return;
    }
    if let Some((_, asked)) = world.guest.stopped.remove(&id) {
        return invariants::late_reply(world, node, &asked, &reply);
    }
    let Some((key, _)) = world.guest.requests.remove(&id) else { return };
    if is_refused(&reply) {
        return;
    }
    let Some(asked) = world.guest.outstanding.remove(&key) else { return };
    invariants::reply(world, node, &asked);
    if !world.faults {
        world.guest.done_since_heal += 1;
    }
    match (asked, reply) {
        (Asked::Write(range, _, begun, fua), GuestReply::Done) => world.oracle.ack(units(range), begun, fua),
        (Asked::Flush(since), GuestReply::Done) => world.oracle.flush(since),
        (Asked::Read(range, allowed), GuestReply::Read(content)) => {
            for ((at, stamp), unit) in stamps(&content, range.len).into_iter().enumerate().zip(units(range)) {
                if !allowed[at].contains(&stamp) {
                    let allowed = &allowed[at];
                    world.violate(format!("G2: the guest read {stamp:#x} in unit {unit}, allowed is {allowed:x?}"));
                }
            }
        }
        (asked, reply) => world.violate(format!("{asked:?} was answered by {reply:?}")),
    }
}
