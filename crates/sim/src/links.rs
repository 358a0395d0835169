//! The network. Messages are delayed, lost and overtake each other; connections between replicas keep their order, stall, and
//! end in ways that the other side learns of late or not at all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mirror::engine::{Conn, Event};
use mirror::wire::Frame;

use crate::daemon::Message;
use crate::node::{Input, Role};
use crate::world::{Ev, World};

/// What travels in a connection.
#[derive(Clone, Debug)]
pub enum Parcel {
    /// A frame.
    Frame(Frame),
    /// Its end.
    End,
}

/// One end of a connection: a replica in one start of its daemon, and the name that it has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    /// Its node.
    pub node: usize,
    /// Its disk.
    pub disk: usize,
    /// The daemon's start.
    pub start: u64,
    /// The name.
    pub conn: Conn,
}

struct Connection {
    disk: usize,
    /// Who opened it, and who accepted it.
    ends: [Option<End>; 2],
    nodes: [usize; 2],
    open: [bool; 2],
    /// Per sender: when the last parcel arrives, and what waits for a cut to heal.
    last: [u64; 2],
    stalled: [VecDeque<Parcel>; 2],
}

/// The network between the nodes.
#[derive(Default)]
pub struct Net {
    connections: Vec<Connection>,
    by_end: BTreeMap<End, usize>,
    /// Cut directions.
    pub cut: BTreeSet<(usize, usize)>,
    /// Ends of which nothing is reported any more.
    over: BTreeSet<End>,
    accepted: u64,
}

impl World {
    /// How long a message takes, usually.
    pub fn delay(&mut self) -> u64 {
        match self.faults && self.rng.chance(3) {
            true => self.rng.range(3_000, 400_000),
            false => self.rng.range(100, 2_500),
        }
    }

    /// Whether nothing gets from one node to another.
    pub fn is_cut(&self, from: usize, to: usize) -> bool {
        self.net.cut.contains(&(from, to))
    }

    /// A message for a process. It needs a connection, which needs both ways; sometimes one was there already.
    pub fn send(&mut self, from: usize, to: usize, role: Role, message: Message) {
        let delay = if from == to { self.rng.range(20, 300) } else { self.delay() };
        let half = from != to && self.is_cut(to, from) && self.rng.chance(85);
        let lost = self.is_cut(from, to) || half || from != to && self.faults && self.rng.chance(1);
        if !lost {
            self.after(delay, Ev::Arrive { from, to, role, message });
        }
    }

    /// It is there.
    pub fn arrives(&mut self, from: usize, to: usize, role: Role, message: Message) {
        if self.is_cut(from, to) {
            return;
        }
        let start = match &message {
            Message::Answer { start, .. } => Some(*start),
            _ => None,
        };
        self.put(to, role, start, Input::Message(from, message));
    }

    fn cut_from(&self, id: usize, from: usize) -> bool {
        let nodes = self.net.connections[id].nodes;
        self.is_cut(nodes[from], nodes[1 - from])
    }

    fn find(&self, end: End) -> Option<(usize, usize)> {
        let id = *self.net.by_end.get(&end)?;
        Some((id, usize::from(self.net.connections[id].ends[0] != Some(end))))
    }

    fn tell_end(&mut self, end: End, event: Event) {
        self.put(end.node, Role::Daemon, Some(end.start), Input::Disk(end.disk, event));
    }

    /// A replica opens a connection.
    pub fn open(&mut self, opener: End, to: usize) {
        let id = self.net.connections.len();
        self.net.connections.push(Connection {
            disk: opener.disk,
            ends: [Some(opener), None],
            nodes: [opener.node, to],
            open: [true, true],
            last: [0, 0],
            stalled: [VecDeque::new(), VecDeque::new()],
        });
        self.net.by_end.insert(opener, id);
        let cut = self.cut_from(id, 0) || self.cut_from(id, 1);
        match !cut && self.machines[to].daemon.is_some() {
            true => {
                let delay = self.rng.range(200, 2_000);
                self.after(delay, Ev::Connected(id));
            }
            false => {
                let late = self.rng.range(1_000, 500_000);
                self.after(late, Ev::ConnectFailed(id));
            }
        }
    }

    /// It is open.
    pub fn connected(&mut self, id: usize) {
        let connection = &self.net.connections[id];
        if let (Some(end), true) = (connection.ends[0], connection.open[0]) {
            self.tell_end(end, Event::Connected(end.conn));
        }
    }

    /// A replica sends.
    pub fn send_frame(&mut self, end: End, parcel: Parcel) {
        if let Some((id, side)) = self.find(end)
            && self.net.connections[id].open[side]
        {
            self.post(id, side, parcel);
        }
    }

    fn post(&mut self, id: usize, side: usize, parcel: Parcel) {
        let delay = match self.faults && self.rng.chance(2) {
            true => self.rng.range(2_000, 300_000),
            false => self.rng.range(50, 1_000),
        };
        let cut = self.cut_from(id, side);
        let connection = &mut self.net.connections[id];
        if cut || !connection.stalled[side].is_empty() {
            connection.stalled[side].push_back(parcel);
            return;
        }
        let at = (self.now + delay).max(connection.last[side] + 1);
        connection.last[side] = at;
        self.after(at - self.now, Ev::Parcel(id, side, parcel));
    }

    /// Something comes out of a connection.
    pub fn parcel_arrives(&mut self, id: usize, from: usize, parcel: Parcel) {
        if self.cut_from(id, from) {
            self.net.connections[id].stalled[from].push_back(parcel);
            return;
        }
        let to = 1 - from;
        let connection = &self.net.connections[id];
        let (node, disk) = (connection.nodes[to], connection.disk);
        if !connection.open[to] {
            return;
        }
        match (connection.ends[to], parcel) {
            (None, Parcel::Frame(Frame::Hello(hello))) => {
                if self.machines[node].daemon.is_none() {
                    return self.refuse(id);
                }
                self.net.accepted += 1;
                let end = End { node, disk, start: self.daemon_start(node), conn: Conn::In(self.net.accepted) };
                self.net.connections[id].ends[to] = Some(end);
                self.net.by_end.insert(end, id);
                self.tell_end(end, Event::Accepted(end.conn, hello));
            }
            (None, _) => self.refuse(id),
            (Some(end), Parcel::Frame(frame)) => self.tell_end(end, Event::Received(end.conn, frame)),
            (Some(_), Parcel::End) => self.end_side(id, to),
        }
    }

    /// Nobody is there: the opener learns that it has ended.
    fn refuse(&mut self, id: usize) {
        if std::mem::replace(&mut self.net.connections[id].open[1], false) {
            self.post(id, 1, Parcel::End);
        }
    }

    /// A side sees the end.
    pub fn end_side(&mut self, id: usize, side: usize) {
        let connection = &mut self.net.connections[id];
        if let (Some(end), true) = (connection.ends[side], connection.open[side]) {
            connection.open[side] = false;
            self.tell_end(end, Event::Disconnected(end.conn));
        }
    }

    /// Whether an event of a connection may still be reported: not after its end, or after the replica closed it.
    pub fn may_hear(&mut self, node: usize, disk: usize, event: &Event) -> bool {
        let start = self.daemon_start(node);
        match event {
            Event::Connected(conn) | Event::Accepted(conn, _) | Event::Received(conn, _) => {
                !self.net.over.contains(&End { node, disk, start, conn: *conn })
            }
            Event::Disconnected(conn) => self.net.over.insert(End { node, disk, start, conn: *conn }),
            _ => true,
        }
    }

    /// A replica closes a connection.
    pub fn close(&mut self, end: End) {
        self.net.over.insert(end);
        let Some((id, side)) = self.find(end) else { return };
        if std::mem::replace(&mut self.net.connections[id].open[side], false) {
            self.post(id, side, Parcel::End);
        }
    }

    /// A daemon is gone: its ends are closed, and the others are told, or not.
    pub fn close_all(&mut self, node: usize, told: bool) {
        for id in 0..self.net.connections.len() {
            for side in 0..2 {
                let connection = &mut self.net.connections[id];
                let own = connection.nodes[side] == node && connection.open[side];
                if own && (connection.ends[side].is_some() || side == 1) {
                    connection.open[side] = false;
                    if told {
                        self.post(id, side, Parcel::End);
                    }
                }
            }
        }
    }

    /// A cut is over: what was stuck goes on.
    pub fn heal_cut(&mut self, from: usize, to: usize) {
        self.net.cut.remove(&(from, to));
        for id in 0..self.net.connections.len() {
            for side in 0..2 {
                let connection = &mut self.net.connections[id];
                if connection.nodes[side] == from && connection.nodes[1 - side] == to {
                    for parcel in std::mem::take(&mut connection.stalled[side]) {
                        self.post(id, side, parcel);
                    }
                }
            }
        }
    }
}
