//! The bitmaps that an orderly end saves, as bytes: a head and pages of pieces, each with a checksum and the random mark
//! of the store that wrote it. `docs/disk-format.md` has the tables.
//!
//! A page that is not what it was written as, or is of another store, makes the whole bitmap of its slot count as all
//! dirty. A head that is not valid makes all of them unknown.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut};
use model::{MAX_REPLICAS, ReplicaId, Uuid, Version};

use super::layout::take16;
use super::sys::PAGE;
use crate::engine::{BLOCK, Bitmap, MarkRecord};
use crate::wire::Range;

const HEAD_MAGIC: [u8; 8] = *b"CARDMRKS";
const PAGE_MAGIC: [u8; 4] = *b"CMPG";
const VERSION: u32 = 1;

/// Words of a piece: it stands for 4096 blocks.
const WORDS: usize = 64;
const PIECE_BLOCKS: u64 = WORDS as u64 * 64;
const PIECE_LEN: usize = 8 + WORDS * 8;
const PAGE_HEAD: usize = 24;
const PIECES: usize = (PAGE - PAGE_HEAD) / PIECE_LEN;

/// The head's page followed by all others, as they lie in the file.
pub(super) fn encode(marks: &[(u8, MarkRecord)], store: u64) -> Vec<u8> {
    let mut pages = Vec::new();
    let mut head = Vec::with_capacity(PAGE);
    head.put_slice(&HEAD_MAGIC);
    head.put_u32_le(0); // the checksum
    head.put_u32_le(VERSION);
    head.put_u64_le(store);
    head.put_u32_le(marks.len() as u32);
    head.put_u32_le(0);
    for (slot, record) in marks {
        let before = pages.len();
        encode_pages(&mut pages, *slot, &record.bits, store);
        head.put_u8(*slot);
        head.put_bytes(0, 3);
        head.put_u32_le(((pages.len() - before) / PAGE) as u32);
        head.put_slice(record.rid.0.as_bytes());
        head.put_u64_le(record.since.n);
        head.put_u64_le(record.since.v);
    }
    head.resize(PAGE, 0);
    seal(&mut head, HEAD_MAGIC.len());
    head.extend_from_slice(&pages);
    head
}

fn encode_pages(out: &mut Vec<u8>, slot: u8, bits: &Bitmap, store: u64) {
    let pieces: Vec<_> = pieces(bits).into_iter().collect();
    for (number, chunk) in pieces.chunks(PIECES).enumerate() {
        let mut page = Vec::with_capacity(PAGE);
        page.put_slice(&PAGE_MAGIC);
        page.put_u32_le(0); // the checksum
        page.put_u64_le(store);
        page.put_u32_le(number as u32);
        page.put_u8(slot);
        page.put_u8(chunk.len() as u8);
        page.put_u16_le(0);
        for (piece, words) in chunk {
            page.put_u64_le(*piece);
            words.iter().for_each(|word| page.put_u64_le(*word));
        }
        page.resize(PAGE, 0);
        seal(&mut page, PAGE_MAGIC.len());
        out.extend_from_slice(&page);
    }
}

fn pieces(bits: &Bitmap) -> BTreeMap<u64, [u64; WORDS]> {
    let mut pieces = BTreeMap::new();
    for run in bits.ranges() {
        for block in run.offset / BLOCK..run.end() / BLOCK {
            let at = (block % PIECE_BLOCKS) as usize;
            pieces.entry(block / PIECE_BLOCKS).or_insert([0; WORDS])[at / 64] |= 1 << (at % 64);
        }
    }
    pieces
}

/// What a valid head says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub store: u64,
    slots: Vec<SlotHead>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct SlotHead {
    slot: u8,
    pages: u32,
    rid: ReplicaId,
    since: Version,
}

impl Head {
    /// `None` if the page is not a head that this program knows.
    pub fn parse(page: &[u8]) -> Option<Self> {
        let mut raw = open(page, &HEAD_MAGIC)?;
        if raw.get_u32_le() != VERSION {
            return None;
        }
        let (store, count) = (raw.get_u64_le(), raw.get_u32_le() as usize);
        raw.advance(4);
        if count > MAX_REPLICAS {
            return None;
        }
        let slots = (0..count).map(|_| {
            let slot = raw.get_u8();
            raw.advance(3);
            let pages = raw.get_u32_le();
            let rid = ReplicaId(Uuid::from_bytes(take16(&mut raw)));
            SlotHead { slot, pages, rid, since: Version { n: raw.get_u64_le(), v: raw.get_u64_le() } }
        });
        Some(Self { store, slots: slots.collect() })
    }

    /// How many bytes of pages follow the head.
    pub fn pages_len(&self) -> u64 {
        self.slots.iter().map(|slot| u64::from(slot.pages) * PAGE as u64).sum()
    }

    /// The bitmaps, for a disk of `size` bytes, from the pages that follow the head. Fewer pages than there should be
    /// count as torn.
    pub fn decode(&self, pages: &[u8], size: u64) -> BTreeMap<u8, MarkRecord> {
        let mut pages = pages.chunks(PAGE);
        let mut marks = BTreeMap::new();
        for head in &self.slots {
            let mut bits = Some(Bitmap::default());
            for number in 0..head.pages {
                let page = pages.next().unwrap_or(&[]);
                let whole = bits.as_mut().and_then(|bits| decode_page(page, self.store, head.slot, number, bits));
                if whole.is_none() {
                    bits = None;
                }
            }
            let bits = bits.unwrap_or_else(|| Bitmap::full(size));
            marks.insert(head.slot, MarkRecord { rid: head.rid, since: head.since, bits });
        }
        marks
    }
}

/// Adds what a page has; `None` if it is not the page that it should be.
fn decode_page(page: &[u8], store: u64, slot: u8, number: u32, bits: &mut Bitmap) -> Option<()> {
    let mut raw = open(page, &PAGE_MAGIC)?;
    if (raw.get_u64_le(), raw.get_u32_le(), raw.get_u8()) != (store, number, slot) {
        return None;
    }
    let count = usize::from(raw.get_u8());
    raw.advance(2);
    if count > PIECES {
        return None;
    }
    for _ in 0..count {
        let first = raw.get_u64_le().checked_mul(PIECE_BLOCKS)?;
        for word in 0..WORDS as u64 {
            let set = raw.get_u64_le();
            for bit in (0..64).filter(|bit| set >> bit & 1 == 1) {
                let offset = first.checked_add(word * 64 + bit)?.checked_mul(BLOCK)?;
                bits.set(Range::new(offset, BLOCK));
            }
        }
    }
    Some(())
}

/// Writes the checksum of a page, which follows the magic, as if it were zero.
fn seal(page: &mut [u8], at: usize) {
    let checksum = crc32c::crc32c(page);
    page[at..at + 4].copy_from_slice(&checksum.to_le_bytes());
}

/// What follows the checksum of a whole page whose magic and checksum are right.
fn open<'a>(page: &'a [u8], magic: &[u8]) -> Option<&'a [u8]> {
    if page.len() != PAGE || !page.starts_with(magic) {
        return None;
    }
    let (before, rest) = page.split_at(magic.len());
    let (stored, rest) = rest.split_at_checked(4)?;
    let checksum = crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(before), &[0; 4]), rest);
    (stored == checksum.to_le_bytes()).then_some(rest)
}

#[cfg(test)]
mod tests;
