//! Connections: in order within one, with delays that differ between them, stalls, and ends that the other side learns of
//! late or not at all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mirror::engine::{Conn, Event};
use mirror::wire::Frame;

use crate::log::rid;
use crate::world::{Ev, World};

/// What travels.
#[derive(Clone, Debug)]
pub enum Parcel {
    Frame(Frame),
    End,
}

/// One end of a connection: a daemon in one of its starts, and the name that it has there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct End {
    pub node: usize,
    pub start: u64,
    pub conn: Conn,
}

pub struct Connection {
    /// Who opened it, and who accepted it.
    pub ends: [Option<End>; 2],
    pub nodes: [usize; 2],
    pub open: [bool; 2],
    /// Per sender: when the last parcel arrives, and what waits for a cut to heal.
    pub last: [u64; 2],
    pub stalled: [VecDeque<Parcel>; 2],
}

#[derive(Default)]
pub struct Net {
    pub connections: Vec<Connection>,
    pub by_end: BTreeMap<End, usize>,
    /// Cut directions.
    pub cut: BTreeSet<(usize, usize)>,
    pub accepted: u64,
}

impl Net {
    pub fn open(&mut self, opener: End, to: usize) -> usize {
        let id = self.connections.len();
        self.connections.push(Connection {
            ends: [Some(opener), None],
            nodes: [opener.node, to],
            open: [true, true],
            last: [0, 0],
            stalled: [VecDeque::new(), VecDeque::new()],
        });
        self.by_end.insert(opener, id);
        id
    }

    /// The connection and the side of an end.
    pub fn find(&self, end: End) -> Option<(usize, usize)> {
        let id = *self.by_end.get(&end)?;
        let side = usize::from(self.connections[id].ends[0] != Some(end));
        Some((id, side))
    }

    pub fn is_cut(&self, id: usize, from: usize) -> bool {
        let nodes = self.connections[id].nodes;
        self.cut.contains(&(nodes[from], nodes[1 - from]))
    }
}

impl World {
    pub fn open(&mut self, index: usize, start: u64, conn: Conn, replica: model::ReplicaId) {
        let Some(to) = (0..self.nodes.len()).find(|node| rid(*node) == replica) else { return };
        let id = self.net.open(End { node: index, start, conn }, to);
        let delay = self.rng.range(200, 2_000);
        let cut = self.net.is_cut(id, 0) || self.net.is_cut(id, 1);
        match !cut && self.nodes[to].daemon.is_some() {
            true => self.after(delay, Ev::Connected(id)),
            false => {
                let late = self.rng.range(1_000, 500_000);
                self.after(late, Ev::ConnectFailed(id));
            }
        }
    }

    pub fn connected(&mut self, id: usize) {
        let connection = &self.net.connections[id];
        if let (Some(end), true) = (connection.ends[0], connection.open[0]) {
            self.step(end.node, end.start, Event::Connected(end.conn));
        }
    }

    pub fn send(&mut self, end: End, parcel: Parcel) {
        let Some((id, side)) = self.net.find(end) else { return };
        if !self.net.connections[id].open[side] {
            return;
        }
        self.post(id, side, parcel);
    }

    fn post(&mut self, id: usize, side: usize, parcel: Parcel) {
        let delay = match self.faults && self.rng.chance(2) {
            true => self.rng.range(2_000, 300_000),
            false => self.rng.range(50, 1_000),
        };
        let cut = self.net.is_cut(id, side);
        let connection = &mut self.net.connections[id];
        if cut || !connection.stalled[side].is_empty() {
            connection.stalled[side].push_back(parcel);
            return;
        }
        let at = (self.now + delay).max(connection.last[side] + 1);
        connection.last[side] = at;
        let delay = at - self.now;
        self.after(delay, Ev::Arrive(id, side, parcel));
    }

    pub fn arrive(&mut self, id: usize, from: usize, parcel: Parcel) {
        if self.net.is_cut(id, from) {
            self.net.connections[id].stalled[from].push_back(parcel);
            return;
        }
        let to = 1 - from;
        let connection = &self.net.connections[id];
        let node = connection.nodes[to];
        if !connection.open[to] {
            return;
        }
        match (connection.ends[to], parcel) {
            (None, Parcel::Frame(Frame::Hello(hello))) => {
                if self.nodes[node].daemon.is_none() {
                    return self.refuse(id);
                }
                self.net.accepted += 1;
                let end = End { node, start: self.nodes[node].start, conn: Conn::In(self.net.accepted) };
                self.net.connections[id].ends[to] = Some(end);
                self.net.by_end.insert(end, id);
                self.step(node, end.start, Event::Accepted(end.conn, hello));
            }
            (None, _) => self.refuse(id),
            (Some(end), Parcel::Frame(frame)) => self.step(node, end.start, Event::Received(end.conn, frame)),
            (Some(_), Parcel::End) => self.end_side(id, to),
        }
    }

    /// Nobody is there: the opener learns that it has ended.
    fn refuse(&mut self, id: usize) {
        if self.net.connections[id].open[1] {
            self.net.connections[id].open[1] = false;
            self.post(id, 1, Parcel::End);
        }
    }

    pub fn end_side(&mut self, id: usize, side: usize) {
        let connection = &mut self.net.connections[id];
        if let (Some(end), true) = (connection.ends[side], connection.open[side]) {
            connection.open[side] = false;
            self.step(end.node, end.start, Event::Disconnected(end.conn));
        }
    }

    pub fn close(&mut self, end: End) {
        let Some((id, side)) = self.net.find(end) else { return };
        if std::mem::replace(&mut self.net.connections[id].open[side], false) {
            self.post(id, side, Parcel::End);
        }
    }

    /// A daemon is gone: its ends are closed, and the others are told, or not.
    pub fn close_all(&mut self, index: usize, told: bool) {
        for id in 0..self.net.connections.len() {
            for side in 0..2 {
                let connection = &mut self.net.connections[id];
                let own = connection.nodes[side] == index && connection.open[side];
                if own && (connection.ends[side].is_some() || side == 1) {
                    connection.open[side] = false;
                    if told {
                        self.post(id, side, Parcel::End);
                    }
                }
            }
        }
    }

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
