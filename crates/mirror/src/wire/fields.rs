//! The bodies of frames, field by field.

use bytes::{BufMut, Bytes};
use model::{DiskId, Epoch, Incarnation, Life, MirrorMode, ReplicaId, Uuid, Version};

use super::{
    Channel, Content, Frame, Hello, HighWater, Link, MAX_DATA, MAX_RANGES, Mark, Range, RefuseReason, ReplicaState,
};

/// Longest name of a boot in bytes.
const MAX_BOOT: usize = 256;

/// Kind, body and data of a frame.
pub(super) fn body_of(frame: &Frame) -> (u8, Vec<u8>, Bytes) {
    let mut out = Writer(Vec::new());
    let mut data = Bytes::new();
    let kind = match frame {
        Frame::Hello(hello) => {
            out.hello(hello);
            1
        }
        Frame::State(state) => {
            out.state(state);
            2
        }
        Frame::Refused { epoch, reason } => {
            out.epoch(*epoch);
            out.u8(*reason as u8);
            3
        }
        Frame::Write { seq, range, content, fua, stable } => {
            out.u64(*seq);
            out.range(*range);
            data = out.content(content);
            out.bool(*fua);
            out.u64(*stable);
            4
        }
        Frame::Ack { seq } => {
            out.u64(*seq);
            5
        }
        Frame::Flush { upto } => {
            out.u64(*upto);
            6
        }
        Frame::Flushed { upto } => {
            out.u64(*upto);
            7
        }
        Frame::Mark(mark) => {
            out.u8(mark.slot);
            out.uuid(mark.rid.0);
            out.option(mark.since, Writer::version);
            out.bool(mark.fresh);
            out.ranges(&mark.ranges);
            8
        }
        Frame::Adopt { ver, settled } => {
            out.version(*ver);
            out.bool(*settled);
            9
        }
        Frame::Adopted { ver } => {
            out.version(*ver);
            10
        }
        Frame::StartSync { ver } => {
            out.version(*ver);
            11
        }
        Frame::SyncStarted => 12,
        Frame::FinishSync { ver, mode } => {
            out.version(*ver);
            out.mode(*mode);
            13
        }
        Frame::SyncFinished => 14,
        Frame::Copy { range, content } => {
            out.range(*range);
            data = out.content(content);
            15
        }
        Frame::Copied { range } => {
            out.range(*range);
            16
        }
        Frame::Read { id, range } => {
            out.u64(*id);
            out.range(*range);
            17
        }
        Frame::Data { id, content } => {
            out.u64(*id);
            out.bool(content.is_some());
            if let Some(content) = content {
                data = out.content(content);
            }
            18
        }
        Frame::Ping { stable } => {
            out.u64(*stable);
            19
        }
        Frame::Pong => 20,
        Frame::Barrier { k } => {
            out.u64(*k);
            21
        }
        Frame::Bye => 22,
    };
    (kind, out.0, data)
}

struct Writer(Vec<u8>);

impl Writer {
    fn u8(&mut self, value: u8) {
        self.0.put_u8(value);
    }

    fn bool(&mut self, value: bool) {
        self.0.put_u8(value.into());
    }

    fn u64(&mut self, value: u64) {
        self.0.put_u64_le(value);
    }

    fn uuid(&mut self, value: Uuid) {
        self.0.put_slice(value.as_bytes());
    }

    fn epoch(&mut self, epoch: Epoch) {
        self.u64(epoch.n);
        self.u64(epoch.e);
    }

    fn version(&mut self, version: Version) {
        self.u64(version.n);
        self.u64(version.v);
    }

    fn mode(&mut self, mode: MirrorMode) {
        self.u8(match mode {
            MirrorMode::Strict => 0,
            MirrorMode::Manual => 1,
        });
    }

    fn range(&mut self, range: Range) {
        self.u64(range.offset);
        self.u64(range.len);
    }

    fn ranges(&mut self, ranges: &[Range]) {
        self.u64(ranges.len() as u64);
        for range in ranges {
            self.range(*range);
        }
    }

    fn option<T>(&mut self, value: Option<T>, put: impl FnOnce(&mut Self, T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            put(self, value);
        }
    }

    fn content(&mut self, content: &Content) -> Bytes {
        match content {
            Content::Zeroes => {
                self.u8(0);
                Bytes::new()
            }
            Content::Data(data) => {
                self.u8(1);
                data.clone()
            }
        }
    }

    fn hello(&mut self, hello: &Hello) {
        self.u64(hello.inc.n);
        self.uuid(hello.inc.id);
        self.uuid(hello.disk.0);
        self.uuid(hello.from.0);
        self.uuid(hello.to.0);
        self.epoch(hello.epoch);
        self.u64(hello.link.start);
        self.u64(hello.link.k);
        self.u8(hello.channel as u8);
        self.version(hello.ver);
    }

    fn state(&mut self, state: &ReplicaState) {
        self.uuid(state.rid.0);
        self.u64(state.size);
        self.u64(state.life.0);
        self.u64(state.boot.len() as u64);
        self.0.put_slice(state.boot.as_bytes());
        self.epoch(state.epoch);
        self.version(state.hw.ver);
        self.bool(state.hw.solo);
        self.mode(state.mode);
        self.bool(state.clean);
        self.bool(state.consistent);
        self.option(state.window.as_deref(), Writer::ranges);
        self.option(state.applied, |out, (start, seq)| {
            out.u64(start);
            out.u64(seq);
        });
    }
}

/// Reads the fields of one frame. Every method answers `None` when the bytes don't make sense.
pub(super) struct Reader<'a> {
    body: &'a [u8],
    data: Bytes,
}

impl<'a> Reader<'a> {
    pub(super) fn new(body: &'a [u8], data: Bytes) -> Self {
        Self { body, data }
    }

    pub(super) fn frame(mut self, kind: u8) -> Option<Frame> {
        let frame = match kind {
            1 => Frame::Hello(self.hello()?),
            2 => Frame::State(Box::new(self.state()?)),
            3 => Frame::Refused { epoch: self.epoch()?, reason: self.reason()? },
            4 => {
                let (seq, range) = (self.u64()?, self.range()?);
                let content = self.content(Some(range))?;
                Frame::Write { seq, range, content, fua: self.bool()?, stable: self.u64()? }
            }
            5 => Frame::Ack { seq: self.u64()? },
            6 => Frame::Flush { upto: self.u64()? },
            7 => Frame::Flushed { upto: self.u64()? },
            8 => Frame::Mark(Mark {
                slot: self.u8()?,
                rid: ReplicaId(self.uuid()?),
                since: self.option(Self::version)?,
                fresh: self.bool()?,
                ranges: self.ranges()?,
            }),
            9 => Frame::Adopt { ver: self.version()?, settled: self.bool()? },
            10 => Frame::Adopted { ver: self.version()? },
            11 => Frame::StartSync { ver: self.version()? },
            12 => Frame::SyncStarted,
            13 => Frame::FinishSync { ver: self.version()?, mode: self.mode()? },
            14 => Frame::SyncFinished,
            15 => {
                let range = self.range()?;
                Frame::Copy { range, content: self.content(Some(range))? }
            }
            16 => Frame::Copied { range: self.range()? },
            17 => {
                let (id, range) = (self.u64()?, self.range()?);
                // It will be answered in one frame.
                (range.len <= MAX_DATA as u64).then_some(Frame::Read { id, range })?
            }
            18 => {
                let id = self.u64()?;
                let content = if self.bool()? { Some(self.content(None)?) } else { None };
                Frame::Data { id, content }
            }
            19 => Frame::Ping { stable: self.u64()? },
            20 => Frame::Pong,
            21 => Frame::Barrier { k: self.u64()? },
            22 => Frame::Bye,
            _ => return None,
        };
        (self.body.is_empty() && self.data.is_empty()).then_some(frame)
    }

    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (first, rest) = self.body.split_first_chunk::<N>()?;
        self.body = rest;
        Some(*first)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn bool(&mut self) -> Option<bool> {
        match self.u8()? {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    fn uuid(&mut self) -> Option<Uuid> {
        self.take().map(Uuid::from_bytes)
    }

    fn epoch(&mut self) -> Option<Epoch> {
        Some(Epoch { n: self.u64()?, e: self.u64()? })
    }

    fn version(&mut self) -> Option<Version> {
        Some(Version { n: self.u64()?, v: self.u64()? })
    }

    fn mode(&mut self) -> Option<MirrorMode> {
        match self.u8()? {
            0 => Some(MirrorMode::Strict),
            1 => Some(MirrorMode::Manual),
            _ => None,
        }
    }

    fn reason(&mut self) -> Option<RefuseReason> {
        Some(match self.u8()? {
            0 => RefuseReason::Stale,
            1 => RefuseReason::Foreign,
            2 => RefuseReason::WrongReplica,
            3 => RefuseReason::Failed,
            4 => RefuseReason::Protocol,
            _ => return None,
        })
    }

    /// A range that is not empty and has an end.
    fn range(&mut self) -> Option<Range> {
        let range = Range { offset: self.u64()?, len: self.u64()? };
        (range.len > 0 && range.offset.checked_add(range.len).is_some()).then_some(range)
    }

    fn ranges(&mut self) -> Option<Vec<Range>> {
        let count = usize::try_from(self.u64()?).ok().filter(|count| *count <= MAX_RANGES)?;
        if self.body.len() < count * 16 {
            return None;
        }
        (0..count).map(|_| self.range()).collect()
    }

    fn option<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<Option<T>> {
        Some(if self.bool()? { Some(read(self)?) } else { None })
    }

    /// The content, which takes all of the data; it is as long as the range it is for.
    fn content(&mut self, range: Option<Range>) -> Option<Content> {
        match self.u8()? {
            0 => Some(Content::Zeroes),
            1 => {
                let data = std::mem::take(&mut self.data);
                range.is_none_or(|range| range.len == data.len() as u64).then_some(Content::Data(data))
            }
            _ => None,
        }
    }

    fn hello(&mut self) -> Option<Hello> {
        Some(Hello {
            inc: Incarnation { n: self.u64()?, id: self.uuid()? },
            disk: DiskId(self.uuid()?),
            from: ReplicaId(self.uuid()?),
            to: ReplicaId(self.uuid()?),
            epoch: self.epoch()?,
            link: Link { start: self.u64()?, k: self.u64()? },
            channel: match self.u8()? {
                0 => Channel::Data,
                1 => Channel::Resync,
                _ => return None,
            },
            ver: self.version()?,
        })
    }

    fn state(&mut self) -> Option<ReplicaState> {
        Some(ReplicaState {
            rid: ReplicaId(self.uuid()?),
            size: self.u64()?,
            life: Life(self.u64()?),
            boot: self.boot()?,
            epoch: self.epoch()?,
            hw: HighWater { ver: self.version()?, solo: self.bool()? },
            mode: self.mode()?,
            clean: self.bool()?,
            consistent: self.bool()?,
            window: self.option(Self::ranges)?,
            applied: self.option(|fields| Some((fields.u64()?, fields.u64()?)))?,
        })
    }

    fn boot(&mut self) -> Option<String> {
        let len = usize::try_from(self.u64()?).ok().filter(|len| *len <= MAX_BOOT)?;
        let (name, rest) = self.body.split_at_checked(len)?;
        self.body = rest;
        String::from_utf8(name.to_vec()).ok()
    }
}
