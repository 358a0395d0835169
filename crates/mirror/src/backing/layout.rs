//! The superblock as bytes. `docs/disk-format.md` has the table.

use bytes::{Buf, BufMut};
use model::{DiskId, Epoch, Incarnation, MirrorMode, ReplicaId, Uuid, Version};

use crate::engine::Superblock;
use crate::wire::HighWater;

/// Bytes of one of the two slots. They are the first things in the file.
pub(super) const SLOT: usize = 256 << 10;
/// Where the stored bitmaps begin. What lies between is kept for an activity log.
pub(super) const MARKS: u64 = 4 << 20;
/// The format that is written.
pub(super) const VERSION: u32 = 1;

const MAGIC: [u8; 8] = *b"CARDUME\0";
/// What all versions have in common: magic, version, length, generation, checksum.
const ENVELOPE: usize = 32;
const CHECKSUM_AT: usize = 24;
/// Bytes before the window.
const FIXED: usize = 160;
/// Ranges of the window that a slot has room for. One that has more is stored as the one range around all: that says
/// more than has to be, never less.
const MAX_WINDOW: usize = (SLOT - FIXED) / 16;

const SOLO: u8 = 1;
const CLEAN: u8 = 1 << 1;
const CONSISTENT: u8 = 1 << 2;

/// What a slot holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Slot {
    /// Nothing valid: never written, torn, or damaged.
    Nothing,
    /// A valid one in a format that this program doesn't know: its generation, and what to call the format.
    Newer(u64, String),
    /// A valid one.
    Valid(u64, Box<Superblock>),
}

impl Slot {
    pub fn generation(&self) -> Option<u64> {
        match self {
            Slot::Nothing => None,
            Slot::Newer(generation, _) | Slot::Valid(generation, _) => Some(*generation),
        }
    }
}

/// The bytes of a slot, without what follows them up to its end.
pub(super) fn encode(superblock: &Superblock, generation: u64) -> Vec<u8> {
    let around;
    let window = if superblock.left_window.len() <= MAX_WINDOW {
        &superblock.left_window
    } else {
        let start = superblock.left_window.iter().map(|(offset, _)| *offset).min().unwrap_or(0);
        let end = superblock.left_window.iter().map(|(offset, len)| offset.saturating_add(*len)).max().unwrap_or(0);
        around = vec![(start, end - start)];
        &around
    };
    let len = FIXED + window.len() * 16;
    let mut out = Vec::with_capacity(len);
    out.put_slice(&MAGIC);
    out.put_u32_le(VERSION);
    out.put_u32_le(len as u32);
    out.put_u64_le(generation);
    out.put_u32_le(0); // the checksum
    out.put_u32_le(0);
    out.put_u64_le(0); // features without which it must not be opened
    out.put_u64_le(0); // features that may be ignored
    out.put_slice(superblock.disk.0.as_bytes());
    out.put_slice(superblock.rid.0.as_bytes());
    out.put_u64_le(superblock.size);
    out.put_u64_le(superblock.inc.n);
    out.put_slice(superblock.inc.id.as_bytes());
    out.put_u64_le(superblock.epoch.n);
    out.put_u64_le(superblock.epoch.e);
    out.put_u64_le(superblock.hw.ver.n);
    out.put_u64_le(superblock.hw.ver.v);
    out.put_u64_le(superblock.start);
    out.put_u8(match superblock.mode {
        MirrorMode::Strict => 1,
        MirrorMode::Manual => 2,
    });
    out.put_u8(
        if superblock.hw.solo { SOLO } else { 0 }
            | if superblock.clean { CLEAN } else { 0 }
            | if superblock.consistent { CONSISTENT } else { 0 },
    );
    out.put_u16_le(0);
    out.put_u32_le(window.len() as u32);
    debug_assert_eq!(out.len(), FIXED);
    for (offset, len) in window {
        out.put_u64_le(*offset);
        out.put_u64_le(*len);
    }
    let checksum = checksum(&out);
    out[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&checksum.to_le_bytes());
    out
}

/// What the bytes of a slot say.
pub(super) fn decode(slot: &[u8]) -> Slot {
    let Some(envelope) = slot.get(..ENVELOPE) else { return Slot::Nothing };
    let (magic, mut rest) = envelope.split_at(MAGIC.len());
    if magic != MAGIC {
        return Slot::Nothing;
    }
    let (version, len, generation, expected) =
        (rest.get_u32_le(), rest.get_u32_le() as usize, rest.get_u64_le(), rest.get_u32_le());
    let Some(all) = slot.get(..len).filter(|all| all.len() >= ENVELOPE) else { return Slot::Nothing };
    if checksum(all) != expected {
        return Slot::Nothing;
    }
    if version != VERSION {
        return Slot::Newer(generation, version.to_string());
    }
    match fields(&all[ENVELOPE..]) {
        Some(Ok(superblock)) => Slot::Valid(generation, Box::new(superblock)),
        Some(Err(features)) => Slot::Newer(generation, format!("{version} with features {features:#x}")),
        None => Slot::Nothing,
    }
}

/// The fields after the envelope; an error has the features that are not known.
fn fields(mut raw: &[u8]) -> Option<Result<Superblock, u64>> {
    if raw.len() < FIXED - ENVELOPE {
        return None;
    }
    let needed = raw.get_u64_le();
    if needed != 0 {
        return Some(Err(needed));
    }
    raw.advance(8);
    let disk = DiskId(Uuid::from_bytes(take16(&mut raw)));
    let rid = ReplicaId(Uuid::from_bytes(take16(&mut raw)));
    let size = raw.get_u64_le();
    let inc = Incarnation { n: raw.get_u64_le(), id: Uuid::from_bytes(take16(&mut raw)) };
    let epoch = Epoch { n: raw.get_u64_le(), e: raw.get_u64_le() };
    let ver = Version { n: raw.get_u64_le(), v: raw.get_u64_le() };
    let start = raw.get_u64_le();
    let mode = match raw.get_u8() {
        1 => MirrorMode::Strict,
        2 => MirrorMode::Manual,
        _ => return None,
    };
    let flags = raw.get_u8();
    if flags & !(SOLO | CLEAN | CONSISTENT) != 0 {
        return None;
    }
    raw.advance(2);
    let count = raw.get_u32_le() as usize;
    if raw.len() != count.checked_mul(16)? {
        return None;
    }
    let left_window = (0..count).map(|_| (raw.get_u64_le(), raw.get_u64_le())).collect();
    Some(Ok(Superblock {
        disk,
        rid,
        size,
        inc,
        epoch,
        hw: HighWater { ver, solo: flags & SOLO != 0 },
        mode,
        start,
        clean: flags & CLEAN != 0,
        consistent: flags & CONSISTENT != 0,
        left_window,
    }))
}

pub(super) fn take16(raw: &mut &[u8]) -> [u8; 16] {
    let mut out = [0; 16];
    raw.copy_to_slice(&mut out);
    out
}

/// CRC-32C of everything, the checksum itself taken as zero.
fn checksum(all: &[u8]) -> u32 {
    let zeroed = crc32c::crc32c_append(crc32c::crc32c(&all[..CHECKSUM_AT]), &[0; 4]);
    crc32c::crc32c_append(zeroed, &all[CHECKSUM_AT + 4..])
}

#[cfg(test)]
mod tests;
