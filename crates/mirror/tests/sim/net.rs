//! Connections: in order within one, with delays that differ between them, stalls, and ends that the other side learns of
//! late or not at all.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use mirror::engine::Conn;
use mirror::wire::Frame;

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
