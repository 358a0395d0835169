use proptest::prelude::*;

use super::*;

fn superblocks() -> impl Strategy<Value = Superblock> {
    let numbers = proptest::array::uniform8(any::<u64>());
    let ids = proptest::array::uniform3(any::<u128>());
    let window = proptest::collection::vec((0..1u64 << 40, 0..1u64 << 30), 0..50);
    (numbers, ids, any::<[bool; 4]>(), window).prop_map(|(n, id, [solo, clean, consistent, strict], left_window)| {
        Superblock {
            disk: DiskId(Uuid::from_u128(id[0])),
            rid: ReplicaId(Uuid::from_u128(id[1])),
            size: n[0],
            inc: Incarnation { n: n[1], id: Uuid::from_u128(id[2]) },
            epoch: Epoch { n: n[2], e: n[3] },
            hw: HighWater { ver: Version { n: n[4], v: n[5] }, solo },
            mode: if strict { MirrorMode::Strict } else { MirrorMode::Manual },
            start: n[6],
            clean,
            consistent,
            left_window,
        }
    })
}

proptest! {
    #[test]
    fn what_is_stored_is_loaded(superblock in superblocks(), generation: u64) {
        let mut slot = encode(&superblock, generation);
        prop_assert!(slot.len() <= SLOT);
        prop_assert_eq!(decode(&slot), Slot::Valid(generation, Box::new(superblock.clone())));
        // What an older and longer one left behind it doesn't matter.
        slot.resize(SLOT, 0xaa);
        prop_assert_eq!(decode(&slot), Slot::Valid(generation, Box::new(superblock)));
    }

    /// A slot that was changed or cut short anywhere is nothing, never something else.
    #[test]
    fn a_damaged_slot_is_nothing(superblock in superblocks(), at: prop::sample::Index, change in 1u8.., cut: bool) {
        let mut slot = encode(&superblock, 7);
        let at = at.index(slot.len());
        if cut { slot.truncate(at) } else { slot[at] ^= change }
        prop_assert_eq!(decode(&slot), Slot::Nothing);
    }

    #[test]
    fn any_bytes_are_decoded(slot in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&slot);
    }
}

/// The format on existing disks can't change by accident.
#[test]
fn the_bytes_are_these() {
    let superblock = Superblock {
        hw: HighWater { ver: Version { n: 3, v: 4 }, solo: true },
        epoch: Epoch { n: 1, e: 2 },
        start: 5,
        left_window: vec![(6, 7)],
        ..Superblock::newborn(
            DiskId(Uuid::from_u128(0x11)),
            ReplicaId(Uuid::from_u128(0x22)),
            0x1000,
            Incarnation { n: 9, id: Uuid::from_u128(0x33) },
            MirrorMode::Strict,
        )
    };
    let raw = encode(&superblock, 8);
    let at = |offset: usize| u64::from_le_bytes(raw[offset..offset + 8].try_into().unwrap());
    assert_eq!(&raw[..8], b"CARDUME\0");
    assert_eq!((raw[8], raw[12], at(16)), (1, 176, 8));
    assert_eq!((raw[63], raw[79], at(80)), (0x11, 0x22, 0x1000));
    assert_eq!((at(88), raw[111]), (9, 0x33));
    assert_eq!((at(112), at(120), at(128), at(136), at(144)), (1, 2, 3, 4, 5));
    assert_eq!((raw[152], raw[153], raw[156]), (1, 0b111, 1));
    assert_eq!((at(160), at(168)), (6, 7));
    assert_eq!(raw.len(), 176);
}

#[test]
fn a_newer_format_and_unknown_features_are_told() {
    let superblock = Superblock::newborn(
        DiskId(Uuid::from_u128(1)),
        ReplicaId(Uuid::from_u128(2)),
        0,
        Incarnation::default(),
        MirrorMode::Manual,
    );
    let sealed = |at: usize, value: u8| {
        let mut raw = encode(&superblock, 5);
        raw[at] = value;
        let sum = checksum(&raw);
        raw[CHECKSUM_AT..CHECKSUM_AT + 4].copy_from_slice(&sum.to_le_bytes());
        decode(&raw)
    };
    assert_eq!(sealed(8, 2), Slot::Newer(5, "2".into()));
    assert!(matches!(sealed(32, 1), Slot::Newer(5, _)));
    // Features that may be ignored are.
    assert!(matches!(sealed(40, 1), Slot::Valid(5, _)));
}

#[test]
fn a_window_that_has_no_room_is_told_as_one_range_around_it() {
    let mut superblock = Superblock::newborn(
        DiskId(Uuid::from_u128(1)),
        ReplicaId(Uuid::from_u128(2)),
        0,
        Incarnation::default(),
        MirrorMode::Manual,
    );
    superblock.left_window = (0..=MAX_WINDOW as u64).map(|n| (4096 * (n + 1), 512)).collect();
    let Slot::Valid(_, found) = decode(&encode(&superblock, 1)) else { panic!("not valid") };
    assert_eq!(found.left_window, [(4096, 4096 * MAX_WINDOW as u64 + 512)]);
    superblock.left_window.pop();
    let raw = encode(&superblock, 1);
    assert!(raw.len() <= SLOT);
    assert_eq!(decode(&raw), Slot::Valid(1, Box::new(superblock)));
}
