//! A simulated disk with a volatile cache. Content is looked at in units; each holds a stamp.

use bytes::{BufMut, Bytes, BytesMut};
use mirror::wire::{Content, Range};

use crate::rng::Rng;

/// Bytes of a unit: half a block of the bitmap, so that two units share one.
pub const UNIT: u64 = 2048;

/// Content that stands for `stamps`, one a unit.
pub fn content(stamps: &[u64]) -> Content {
    if stamps.iter().all(|stamp| *stamp == 0) {
        return Content::Zeroes;
    }
    let mut data = BytesMut::zeroed(0);
    for stamp in stamps {
        data.put_u64_le(*stamp);
        data.put_bytes(0, UNIT as usize - 8);
    }
    Content::Data(data.freeze())
}

/// The stamps that content of that length stands for.
pub fn stamps(content: &Content, len: u64) -> Vec<u64> {
    let of = |data: &Bytes, at: usize| data[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or_default();
    match content {
        Content::Zeroes => vec![0; (len / UNIT) as usize],
        Content::Data(data) => (0..data.len() / UNIT as usize).map(|unit| of(data, unit * UNIT as usize)).collect(),
    }
}

/// The units of a range.
pub fn units(range: Range) -> std::ops::Range<usize> {
    (range.offset / UNIT) as usize..(range.end() / UNIT) as usize
}

pub struct Medium {
    /// What a read returns.
    pub cache: Vec<u64>,
    /// What surely survives power loss.
    pub durable: Vec<u64>,
    /// Per unit what was written since: number of the write, stamp.
    unsynced: Vec<Vec<(u64, u64)>>,
    writes: u64,
}

impl Medium {
    pub fn new(units: usize) -> Self {
        Self { cache: vec![0; units], durable: vec![0; units], unsynced: vec![Vec::new(); units], writes: 0 }
    }

    pub fn read(&self, range: Range) -> Content {
        content(&self.cache[units(range)])
    }

    pub fn write(&mut self, range: Range, content: &Content, fua: bool) {
        self.writes += 1;
        for (unit, stamp) in units(range).zip(stamps(content, range.len)) {
            self.cache[unit] = stamp;
            if fua {
                self.durable[unit] = stamp;
                self.unsynced[unit].clear();
            } else {
                self.unsynced[unit].push((self.writes, stamp));
            }
        }
    }

    /// What a sync that begins now covers.
    pub fn begin_sync(&self) -> u64 {
        self.writes
    }

    pub fn end_sync(&mut self, covered: u64) {
        for (unit, writes) in self.unsynced.iter_mut().enumerate() {
            while writes.first().is_some_and(|(number, _)| *number <= covered) {
                self.durable[unit] = writes.remove(0).1;
            }
        }
    }

    /// Power is lost: of each unit any state since the last sync may be what is left.
    pub fn lose_power(&mut self, rng: &mut Rng) {
        for unit in 0..self.cache.len() {
            let writes = std::mem::take(&mut self.unsynced[unit]);
            let survives = rng.range(0, writes.len() as u64 + 1) as usize;
            if survives > 0 {
                self.durable[unit] = writes[survives - 1].1;
            }
            self.cache[unit] = self.durable[unit];
        }
    }
}
