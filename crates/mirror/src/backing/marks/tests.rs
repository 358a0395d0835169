use proptest::prelude::*;

use super::*;

/// Bytes of the disk: two pages of pieces are full when every piece has a bit.
const SIZE: u64 = 14 * PIECE_BLOCKS * BLOCK;

/// A record's replica, version and runs of blocks.
type Sketch = (u128, u64, u64, Vec<(u64, u64)>);

fn records() -> impl Strategy<Value = Vec<(u8, MarkRecord)>> {
    let run = (0..SIZE / BLOCK, 1u64..300);
    let record = (any::<u128>(), any::<u64>(), any::<u64>(), proptest::collection::vec(run, 0..30));
    proptest::collection::vec(record, 0..=MAX_REPLICAS).prop_map(|records| {
        let build = |(slot, (rid, n, v, runs)): (u8, Sketch)| {
            let mut bits = Bitmap::default();
            for (first, count) in runs {
                bits.set(Range::new(first * BLOCK, (count * BLOCK).min(SIZE - first * BLOCK)));
            }
            (slot, MarkRecord { rid: ReplicaId(Uuid::from_u128(rid)), since: Version { n, v }, bits })
        };
        (0..).zip(records).map(build).collect()
    })
}

fn load(raw: &[u8]) -> Option<BTreeMap<u8, MarkRecord>> {
    let head = Head::parse(raw.get(..PAGE)?)?;
    let end = (PAGE + head.pages_len() as usize).min(raw.len());
    Some(head.decode(&raw[PAGE..end], SIZE))
}

/// Whether every block that should be marked is.
fn covers(found: &MarkRecord, wanted: &MarkRecord) -> bool {
    (found.rid, found.since) == (wanted.rid, wanted.since) && {
        let mut missing = wanted.bits.clone();
        missing.subtract(&found.bits);
        missing.is_empty()
    }
}

proptest! {
    #[test]
    fn what_is_stored_is_loaded(records in records(), store: u64) {
        let found = load(&encode(&records, store)).unwrap();
        prop_assert_eq!(found, records.into_iter().collect::<BTreeMap<_, _>>());
    }

    /// A page that is torn in the middle of a store over another one, or damaged: no mark is lost that is counted on.
    #[test]
    fn what_is_torn_counts_as_dirty(
        old in records(),
        new in records(),
        arrived in proptest::collection::vec(any::<bool>(), 64),
        damage in proptest::option::of((any::<prop::sample::Index>(), 1u8..)),
    ) {
        let (before, after) = (encode(&old, 1), encode(&new, 2));
        // Sectors of 512 bytes arrive in any choice.
        let mut raw = before.clone();
        raw.resize(before.len().max(after.len()), 0);
        for (sector, (from, to)) in after.chunks(512).zip(raw.chunks_mut(512)).enumerate() {
            if arrived[sector % arrived.len()] {
                to[..from.len()].copy_from_slice(from);
            }
        }
        if let Some((at, change)) = damage {
            let at = at.index(raw.len());
            raw[at] ^= change;
        }
        // No head: nothing is known, and the resync is full.
        let Some(found) = load(&raw) else { return Ok(()) };
        let is = |records: &[(u8, MarkRecord)]| {
            found.len() == records.len()
                && records.iter().all(|(slot, wanted)| found.get(slot).is_some_and(|found| covers(found, wanted)))
        };
        prop_assert!(is(&old) || is(&new));
    }

    #[test]
    fn any_bytes_are_decoded(raw in proptest::collection::vec(any::<u8>(), PAGE..2 * PAGE)) {
        prop_assert!(load(&raw).is_none());
    }
}
