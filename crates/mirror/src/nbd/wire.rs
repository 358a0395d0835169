//! The protocol's numbers, and parsers and writers of its messages. No I/O.

use bytes::BufMut;

use crate::device::IoRefusal;

/// Bytes of the largest payload of one request or reply; a client learns it as the export's maximal block size.
pub const MAX_PAYLOAD: u32 = 32 << 20;
/// Bytes of the longest export name, as the protocol has it.
pub const MAX_NAME: usize = 4096;
/// Bytes of the longest option that is read: a name and more information requests than there are kinds of.
pub(super) const MAX_OPTION: u32 = 8192;

const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
const OPTION_MAGIC: u64 = 0x4948_4156_454f_5054;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REQUEST_MAGIC: u32 = 0x2560_9513;
const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Fixed newstyle, and no padding after the reply to `EXPORT_NAME` where the client agrees.
const HANDSHAKE_FLAGS: u16 = 0b11;
const CLIENT_FIXED_NEWSTYLE: u32 = 0b01;
const CLIENT_NO_ZEROES: u32 = 0b10;

/// Replies to options.
pub(super) mod reply {
    pub(in super::super) const ACK: u32 = 1;
    pub(in super::super) const SERVER: u32 = 2;
    pub(in super::super) const INFO: u32 = 3;
    pub(in super::super) const ERR_UNSUP: u32 = (1 << 31) | 1;
    pub(in super::super) const ERR_INVALID: u32 = (1 << 31) | 3;
    pub(in super::super) const ERR_UNKNOWN: u32 = (1 << 31) | 6;
}

/// Kinds of information about an export.
pub(super) const INFO_EXPORT: u16 = 0;
pub(super) const INFO_BLOCK_SIZE: u16 = 3;

/// Properties of an export.
pub(super) mod transmission_flag {
    pub(in super::super) const HAS_FLAGS: u16 = 1;
    pub(in super::super) const READ_ONLY: u16 = 1 << 1;
    pub(in super::super) const SEND_FLUSH: u16 = 1 << 2;
    pub(in super::super) const SEND_FUA: u16 = 1 << 3;
    pub(in super::super) const SEND_TRIM: u16 = 1 << 5;
    pub(in super::super) const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub(in super::super) const SEND_DF: u16 = 1 << 7;
    pub(in super::super) const CAN_MULTI_CONN: u16 = 1 << 8;
}

const COMMAND_FUA: u16 = 1;
const COMMAND_NO_HOLE: u16 = 1 << 1;
const COMMAND_DF: u16 = 1 << 2;

const CHUNK_DONE: u16 = 1;
const CHUNK_NONE: u16 = 0;
const CHUNK_OFFSET_DATA: u16 = 1;
const CHUNK_ERROR: u16 = (1 << 15) | 1;

/// What a client did that ends its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Misbehaviour {
    #[error("its flags are {0:#x}: it doesn't speak the fixed newstyle handshake, or more than this server knows")]
    Flags(u32),
    #[error("an option began with {0:#x}")]
    OptionMagic(u64),
    #[error("option {code} is {len} bytes long and {MAX_OPTION} are read at most")]
    LongOption { code: u32, len: u32 },
    #[error("a request began with {0:#x}")]
    RequestMagic(u32),
    #[error("a write of {0} bytes is more than the {MAX_PAYLOAD} that it was told")]
    LongWrite(u32),
    #[error("it asked for an export that is not there, by an option that has no reply for it")]
    NoExport,
    #[error("it did not finish its handshake in time")]
    Slow,
}

/// The greeting that a server begins with.
pub(super) fn greeting() -> [u8; 18] {
    let mut out = [0; 18];
    out[..8].copy_from_slice(&NBD_MAGIC.to_be_bytes());
    out[8..16].copy_from_slice(&OPTION_MAGIC.to_be_bytes());
    out[16..].copy_from_slice(&HANDSHAKE_FLAGS.to_be_bytes());
    out
}

/// Reads the client's flags. The answer is whether it does without padding after `EXPORT_NAME`.
pub(super) fn client_flags(raw: [u8; 4]) -> Result<bool, Misbehaviour> {
    let flags = u32::from_be_bytes(raw);
    if flags & CLIENT_FIXED_NEWSTYLE == 0 || flags & !(CLIENT_FIXED_NEWSTYLE | CLIENT_NO_ZEROES) != 0 {
        return Err(Misbehaviour::Flags(flags));
    }
    Ok(flags & CLIENT_NO_ZEROES != 0)
}

/// What comes before an option's data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OptionHead {
    pub code: u32,
    pub len: u32,
}

impl OptionHead {
    pub const LEN: usize = 16;

    pub fn parse(raw: &[u8; Self::LEN]) -> Result<Self, Misbehaviour> {
        let (magic, code, len) = (be64(&raw[..8]), be32(&raw[8..12]), be32(&raw[12..]));
        if magic != OPTION_MAGIC {
            return Err(Misbehaviour::OptionMagic(magic));
        }
        if len > MAX_OPTION {
            return Err(Misbehaviour::LongOption { code, len });
        }
        Ok(Self { code, len })
    }
}

/// An option.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ClientOption {
    /// Use the export of this name; the old form, which can't be refused but by closing.
    ExportName(String),
    Abort,
    List,
    /// Tell about the export, and go over to transmission with `go`.
    Info {
        name: String,
        block_size: bool,
        go: bool,
    },
    StructuredReply,
    /// An option that this server does not have, among them STARTTLS.
    Unknown,
    /// An option whose data is not what belongs to it.
    Invalid,
}

impl ClientOption {
    pub fn parse(code: u32, data: &[u8]) -> Self {
        match code {
            1 => match export_name(data) {
                Some(name) => ClientOption::ExportName(name),
                None => ClientOption::Invalid,
            },
            2 => ClientOption::Abort,
            3 if data.is_empty() => ClientOption::List,
            8 if data.is_empty() => ClientOption::StructuredReply,
            3 | 8 => ClientOption::Invalid,
            6 | 7 => match info_request(data) {
                Some((name, block_size)) => ClientOption::Info { name, block_size, go: code == 7 },
                None => ClientOption::Invalid,
            },
            _ => ClientOption::Unknown,
        }
    }
}

fn export_name(raw: &[u8]) -> Option<String> {
    if raw.len() > MAX_NAME {
        return None;
    }
    std::str::from_utf8(raw).ok().map(str::to_owned)
}

/// Name of the export, and whether block sizes are asked for.
fn info_request(data: &[u8]) -> Option<(String, bool)> {
    let (len, rest) = data.split_at_checked(4)?;
    let (name, rest) = rest.split_at_checked(be32(len) as usize)?;
    let (count, kinds) = rest.split_at_checked(2)?;
    if kinds.len() != usize::from(be16(count)) * 2 {
        return None;
    }
    let block_size = kinds.chunks_exact(2).any(|kind| be16(kind) == INFO_BLOCK_SIZE);
    Some((export_name(name)?, block_size))
}

/// A reply to an option.
pub(super) fn option_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.put_u64(OPTION_REPLY_MAGIC);
    out.put_u32(option);
    out.put_u32(kind);
    out.put_u32(data.len() as u32);
    out.put_slice(data);
}

/// What a request wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Read,
    Write { fua: bool },
    Disconnect,
    Flush,
    Trim { fua: bool },
    WriteZeroes { fua: bool, may_unmap: bool },
}

/// A request without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    /// `None` if the command, or a flag of it, is one that this server does not have: refused, but the client stays.
    pub command: Option<Command>,
    /// What the client knows the reply by.
    pub cookie: u64,
    pub offset: u64,
    pub len: u32,
    /// Bytes that follow.
    pub payload: u32,
}

impl Request {
    pub const LEN: usize = 28;

    pub fn parse(raw: &[u8; Self::LEN]) -> Result<Self, Misbehaviour> {
        let magic = be32(&raw[..4]);
        if magic != REQUEST_MAGIC {
            return Err(Misbehaviour::RequestMagic(magic));
        }
        let (flags, kind, len) = (be16(&raw[4..6]), be16(&raw[6..8]), be32(&raw[24..]));
        const WRITE: u16 = 1;
        let payload = if kind == WRITE { len } else { 0 };
        if payload > MAX_PAYLOAD {
            return Err(Misbehaviour::LongWrite(len));
        }
        // FUA is allowed, and means nothing, on what changes nothing.
        let fua = flags & COMMAND_FUA != 0;
        let (command, known) = match kind {
            0 => (Some(Command::Read), COMMAND_FUA | COMMAND_DF),
            WRITE => (Some(Command::Write { fua }), COMMAND_FUA),
            2 => (Some(Command::Disconnect), u16::MAX),
            3 => (Some(Command::Flush), COMMAND_FUA),
            4 => (Some(Command::Trim { fua }), COMMAND_FUA),
            6 => {
                let may_unmap = flags & COMMAND_NO_HOLE == 0;
                (Some(Command::WriteZeroes { fua, may_unmap }), COMMAND_FUA | COMMAND_NO_HOLE)
            }
            _ => (None, u16::MAX),
        };
        Ok(Self {
            command: command.filter(|_| flags & !known == 0),
            cookie: be64(&raw[8..16]),
            offset: be64(&raw[16..24]),
            len,
            payload,
        })
    }

    /// Whether a disk of `size` bytes in blocks of `block`, may be asked for this; else the number of the error.
    pub fn check(&self, command: Command, size: u64, block: u32, read_only: bool) -> Result<(), u32> {
        let changes = !matches!(command, Command::Read | Command::Flush | Command::Disconnect);
        if changes && read_only {
            return Err(EPERM);
        }
        if matches!(command, Command::Flush | Command::Disconnect) {
            return if self.offset == 0 && self.len == 0 { Ok(()) } else { Err(EINVAL) };
        }
        let block = u64::from(block);
        if self.len == 0 || !self.offset.is_multiple_of(block) || !u64::from(self.len).is_multiple_of(block) {
            return Err(EINVAL);
        }
        if matches!(command, Command::Read) && self.len > MAX_PAYLOAD {
            return Err(EINVAL);
        }
        if self.offset.checked_add(u64::from(self.len)).is_none_or(|end| end > size) {
            // The protocol wants writes beyond the end to be told from other wrong ranges.
            let grows = matches!(command, Command::Write { .. } | Command::WriteZeroes { .. });
            return Err(if grows { ENOSPC } else { EINVAL });
        }
        Ok(())
    }
}

/// Numbers of errors: those of Linux, but only these.
pub(super) const EPERM: u32 = 1;
const EIO: u32 = 5;
pub(super) const EINVAL: u32 = 22;
pub(super) const ENOSPC: u32 = 28;
const ESHUTDOWN: u32 = 108;

/// The protocol's number for a refusal.
pub(super) fn error_number(refusal: IoRefusal) -> u32 {
    match refusal {
        IoRefusal::ReadOnly => EPERM,
        IoRefusal::Range => EINVAL,
        IoRefusal::NoSpace => ENOSPC,
        IoRefusal::Medium => EIO,
        IoRefusal::Closing => ESHUTDOWN,
    }
}

/// How replies are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ReplyForm {
    Simple,
    Structured,
}

impl ReplyForm {
    /// The reply to a request that succeeded and has no data.
    pub fn done(self, out: &mut Vec<u8>, cookie: u64) {
        match self {
            ReplyForm::Simple => simple(out, cookie, 0),
            ReplyForm::Structured => chunk(out, CHUNK_NONE, cookie, 0),
        }
    }

    /// What precedes the `len` bytes read at `offset`.
    pub fn data(self, out: &mut Vec<u8>, cookie: u64, offset: u64, len: u32) {
        match self {
            ReplyForm::Simple => simple(out, cookie, 0),
            ReplyForm::Structured => {
                chunk(out, CHUNK_OFFSET_DATA, cookie, len + 8);
                out.put_u64(offset);
            }
        }
    }

    /// The reply to a request that was refused, with a sentence where the form has room for one.
    pub fn error(self, out: &mut Vec<u8>, cookie: u64, number: u32, sentence: &str) {
        match self {
            ReplyForm::Simple => simple(out, cookie, number),
            ReplyForm::Structured => {
                chunk(out, CHUNK_ERROR, cookie, 6 + sentence.len() as u32);
                out.put_u32(number);
                out.put_u16(sentence.len() as u16);
                out.put_slice(sentence.as_bytes());
            }
        }
    }
}

fn simple(out: &mut Vec<u8>, cookie: u64, error: u32) {
    out.put_u32(SIMPLE_REPLY_MAGIC);
    out.put_u32(error);
    out.put_u64(cookie);
}

/// Each reply is one chunk, so each is the last one.
fn chunk(out: &mut Vec<u8>, kind: u16, cookie: u64, len: u32) {
    out.put_u32(STRUCTURED_REPLY_MAGIC);
    out.put_u16(CHUNK_DONE);
    out.put_u16(kind);
    out.put_u64(cookie);
    out.put_u32(len);
}

fn be16(raw: &[u8]) -> u16 {
    raw.iter().fold(0, |n, byte| n << 8 | u16::from(*byte))
}

fn be32(raw: &[u8]) -> u32 {
    raw.iter().fold(0, |n, byte| n << 8 | u32::from(*byte))
}

fn be64(raw: &[u8]) -> u64 {
    raw.iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests;
