//! Frames survive their encoding, and nothing that arrives does harm.

use bytes::{Bytes, BytesMut};
use mirror::wire::{
    Channel, Content, DecodeError, Frame, HEADER_LEN, Hello, HighWater, Link, MAX_BODY, MAX_DATA, Mark, Range,
    RefuseReason, ReplicaState, decode, encode,
};
use model::{DiskId, Epoch, Incarnation, Life, MirrorMode, ReplicaId, Uuid, Version};
use proptest::prelude::*;

fn bytes_of(frame: &Frame) -> BytesMut {
    let encoded = encode(frame);
    let mut bytes = BytesMut::from(&encoded.head[..]);
    bytes.extend_from_slice(&encoded.data);
    bytes
}

fn uuid() -> impl Strategy<Value = Uuid> {
    any::<u128>().prop_map(Uuid::from_u128)
}

fn rid() -> impl Strategy<Value = ReplicaId> {
    uuid().prop_map(ReplicaId)
}

fn epoch() -> impl Strategy<Value = Epoch> {
    any::<(u64, u64)>().prop_map(|(n, e)| Epoch { n, e })
}

fn ver() -> impl Strategy<Value = Version> {
    any::<(u64, u64)>().prop_map(|(n, v)| Version { n, v })
}

fn range() -> impl Strategy<Value = Range> {
    (0u64..1 << 50, 1u64..1 << 40).prop_map(|(offset, len)| Range::new(offset, len))
}

fn ranges() -> impl Strategy<Value = Vec<Range>> {
    proptest::collection::vec(range(), 0..20)
}

fn mode() -> impl Strategy<Value = MirrorMode> {
    any::<bool>().prop_map(|strict| if strict { MirrorMode::Strict } else { MirrorMode::Manual })
}

/// Content with the range that it is for.
fn placed() -> impl Strategy<Value = (Range, Content)> {
    let data = (0u64..1 << 50, proptest::collection::vec(any::<u8>(), 1..2000))
        .prop_map(|(offset, data)| (Range::new(offset, data.len() as u64), Content::Data(Bytes::from(data))));
    prop_oneof![data, range().prop_map(|range| (range, Content::Zeroes))]
}

fn hello() -> impl Strategy<Value = Hello> {
    (any::<u64>(), uuid(), uuid(), rid(), rid(), epoch(), any::<(u64, u64, bool)>(), ver()).prop_map(
        |(n, id, disk, from, to, epoch, (start, k, data), ver)| Hello {
            inc: Incarnation { n, id },
            disk: DiskId(disk),
            from,
            to,
            epoch,
            link: Link { start, k },
            channel: if data { Channel::Data } else { Channel::Resync },
            ver,
        },
    )
}

fn state() -> impl Strategy<Value = ReplicaState> {
    let window = proptest::option::of(ranges());
    (
        rid(),
        any::<(u64, u64)>(),
        "[a-z0-9-]{0,40}",
        epoch(),
        ver(),
        any::<(bool, bool, bool)>(),
        mode(),
        window,
        any::<Option<(u64, u64)>>(),
    )
        .prop_map(|(rid, (size, life), boot, epoch, ver, (solo, clean, consistent), mode, window, applied)| {
            ReplicaState {
                rid,
                size,
                life: Life(life),
                boot,
                epoch,
                hw: HighWater { ver, solo },
                mode,
                clean,
                consistent,
                window,
                applied,
            }
        })
}

fn reason() -> impl Strategy<Value = RefuseReason> {
    use RefuseReason::{Failed, Foreign, Protocol, Stale, WrongReplica};
    prop::sample::select(vec![Stale, Foreign, WrongReplica, Failed, Protocol])
}

fn frame() -> impl Strategy<Value = Frame> {
    prop_oneof![
        hello().prop_map(Frame::Hello),
        state().prop_map(|state| Frame::State(Box::new(state))),
        (epoch(), reason()).prop_map(|(epoch, reason)| Frame::Refused { epoch, reason }),
        (any::<(u64, bool, u64)>(), placed()).prop_map(|((seq, fua, stable), (range, content))| Frame::Write {
            seq,
            range,
            content,
            fua,
            stable
        }),
        any::<u64>().prop_map(|seq| Frame::Ack { seq }),
        any::<u64>().prop_map(|upto| Frame::Flush { upto }),
        any::<u64>().prop_map(|upto| Frame::Flushed { upto }),
        (any::<(u8, bool)>(), rid(), proptest::option::of(ver()), ranges())
            .prop_map(|((slot, fresh), rid, since, ranges)| Frame::Mark(Mark { slot, rid, since, fresh, ranges })),
        (ver(), any::<bool>()).prop_map(|(ver, settled)| Frame::Adopt { ver, settled }),
        ver().prop_map(|ver| Frame::Adopted { ver }),
        ver().prop_map(|ver| Frame::StartSync { ver }),
        Just(Frame::SyncStarted),
        (ver(), mode()).prop_map(|(ver, mode)| Frame::FinishSync { ver, mode }),
        Just(Frame::SyncFinished),
        placed().prop_map(|(range, content)| Frame::Copy { range, content }),
        range().prop_map(|range| Frame::Copied { range }),
        (any::<u64>(), 0u64..1 << 50, 1..=MAX_DATA as u64)
            .prop_map(|(id, offset, len)| Frame::Read { id, range: Range::new(offset, len) }),
        (any::<u64>(), proptest::option::of(placed()))
            .prop_map(|(id, placed)| Frame::Data { id, content: placed.map(|(_, content)| content) }),
        any::<u64>().prop_map(|stable| Frame::Ping { stable }),
        Just(Frame::Pong),
        any::<u64>().prop_map(|k| Frame::Barrier { k }),
        Just(Frame::Bye),
    ]
}

proptest! {
    #[test]
    fn every_frame_survives(frames in proptest::collection::vec(frame(), 1..4)) {
        let mut bytes = BytesMut::new();
        for frame in &frames {
            bytes.unsplit(bytes_of(frame));
        }
        for frame in frames {
            prop_assert_eq!(decode(&mut bytes), Ok(Some(frame)));
        }
        prop_assert_eq!(decode(&mut bytes), Ok(None));
    }

    /// A part of a frame is no frame, and stays where it is.
    #[test]
    fn a_part_waits_for_the_rest(frame in frame(), cut in any::<prop::sample::Index>()) {
        let whole = bytes_of(&frame);
        let mut part = BytesMut::from(&whole[..cut.index(whole.len())]);
        let before = part.clone();
        prop_assert_eq!(decode(&mut part), Ok(None));
        prop_assert_eq!(part, before);
    }

    /// One flipped bit is noticed wherever it is; in a length it may also read as a frame that is not complete.
    #[test]
    fn damage_is_noticed(frame in frame(), at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = bytes_of(&frame);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let in_length = (4..12).contains(&at);
        match decode(&mut bytes) {
            Err(_) => {}
            Ok(None) => prop_assert!(in_length),
            Ok(Some(other)) => prop_assert!(false, "{:?} was read as {:?}", frame, other),
        }
    }

    #[test]
    fn arbitrary_bytes_do_no_harm(noise in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = decode(&mut BytesMut::from(&noise[..]));
    }

    /// Nor do bodies that are not what their kind wants, with a right checksum.
    #[test]
    fn arbitrary_bodies_do_no_harm(kind in any::<u8>(), body in proptest::collection::vec(any::<u8>(), 0..300)) {
        let mut bytes = BytesMut::from(&[0xCA, 0x4D, 1, kind][..]);
        bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
        bytes.extend_from_slice(&0u32.to_le_bytes());
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes), &body);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes.extend_from_slice(&body);
        let _ = decode(&mut bytes);
    }
}

/// Lengths beyond the limits are refused by the header alone: nobody waits, or makes room, for what they promise.
#[test]
fn impossible_lengths_are_refused_at_once() {
    let header = |body: u32, data: u32| {
        let mut bytes = BytesMut::from(&[0xCA, 0x4D, 1, 20][..]);
        bytes.extend_from_slice(&body.to_le_bytes());
        bytes.extend_from_slice(&data.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]);
        bytes
    };
    assert_eq!(header(0, 0).len(), HEADER_LEN);
    for (body, data) in [(MAX_BODY as u32 + 1, 0), (0, MAX_DATA as u32 + 1), (u32::MAX, u32::MAX)] {
        assert_eq!(decode(&mut header(body, data)), Err(DecodeError::TooLong { body, data }));
    }
    let mut other = header(0, 0);
    other[2] = 2;
    assert_eq!(decode(&mut other), Err(DecodeError::Version(2)));
}
