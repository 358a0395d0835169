//! Frames as bytes.
//!
//! A frame is a header of [`HEADER_LEN`] bytes, a body, and the bulk data of the frames that have some. All numbers are
//! little-endian.
//!
//! | bytes | what |
//! |---|---|
//! | 0–1 | `CA 4D` |
//! | 2 | [`PROTOCOL_VERSION`] |
//! | 3 | kind |
//! | 4–7 | length of the body, at most [`MAX_BODY`] |
//! | 8–11 | length of the data, at most [`MAX_DATA`] |
//! | 12–15 | CRC-32C of bytes 0–11, the body, and the data |

use bytes::{BufMut, Bytes, BytesMut};

use super::Frame;
use super::fields::{Reader, body_of};

/// Version of this encoding. The two ends must have the same.
pub const PROTOCOL_VERSION: u8 = 1;
/// Bytes of the header.
pub const HEADER_LEN: usize = 16;
/// Longest body in bytes.
pub const MAX_BODY: usize = 256 << 10;
/// Longest data of a frame in bytes.
pub const MAX_DATA: usize = 32 << 20;
/// Most ranges in a frame.
pub const MAX_RANGES: usize = 8192;

const MAGIC: [u8; 2] = [0xCA, 0x4D];

/// A frame to be sent: `head`, then `data`, which is not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Encoded {
    /// Header and body.
    pub head: Bytes,
    /// Bulk data.
    pub data: Bytes,
}

/// Why bytes are not a frame. The connection can't be used any more: where the next frame begins is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// They don't begin as a frame does.
    #[error("the peer does not speak the mirror's protocol")]
    Magic,
    /// Another version of the protocol.
    #[error("the peer speaks version {0} of the mirror's protocol, this is version {PROTOCOL_VERSION}")]
    Version(u8),
    /// A length is beyond its limit.
    #[error("a frame claims {body} bytes of body and {data} bytes of data, which is beyond the limits")]
    TooLong {
        /// Of the body.
        body: u32,
        /// Of the data.
        data: u32,
    },
    /// The checksum is wrong.
    #[error("a frame was damaged on its way: its checksum is wrong")]
    Checksum,
    /// The body makes no sense.
    #[error("a frame of kind {kind} makes no sense")]
    Body {
        /// The frame's kind.
        kind: u8,
    },
}

/// Encodes a frame. Its lists and data are within the limits: that is up to who makes frames.
pub fn encode(frame: &Frame) -> Encoded {
    let (kind, body, data) = body_of(frame);
    debug_assert!(body.len() <= MAX_BODY && data.len() <= MAX_DATA, "a frame of kind {kind} is too long");
    let mut head = BytesMut::with_capacity(HEADER_LEN + body.len());
    head.put_slice(&MAGIC);
    head.put_u8(PROTOCOL_VERSION);
    head.put_u8(kind);
    head.put_u32_le(body.len() as u32);
    head.put_u32_le(data.len() as u32);
    let crc = checksum(&head, &body, &data);
    head.put_u32_le(crc);
    head.put_slice(&body);
    Encoded { head: head.freeze(), data }
}

/// Takes the first frame out of what was received; `None` if it is not complete. Allocates nothing for what has not been
/// received yet.
///
/// # Errors
/// [`DecodeError`]: the connection has to be closed.
pub fn decode(received: &mut BytesMut) -> Result<Option<Frame>, DecodeError> {
    let Some(header) = received.get(..HEADER_LEN) else {
        return Ok(None);
    };
    let number = |at: usize| u32::from_le_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    if header[..2] != MAGIC {
        return Err(DecodeError::Magic);
    }
    if header[2] != PROTOCOL_VERSION {
        return Err(DecodeError::Version(header[2]));
    }
    let (kind, body, data, crc) = (header[3], number(4), number(8), number(12));
    if body as usize > MAX_BODY || data as usize > MAX_DATA {
        return Err(DecodeError::TooLong { body, data });
    }
    let (body, data) = (body as usize, data as usize);
    if received.len() < HEADER_LEN + body + data {
        return Ok(None);
    }
    let mut frame = received.split_to(HEADER_LEN + body + data).freeze();
    let header = frame.split_to(HEADER_LEN);
    let body = frame.split_to(body);
    if checksum(&header[..12], &body, &frame) != crc {
        return Err(DecodeError::Checksum);
    }
    match Reader::new(&body, frame).frame(kind) {
        Some(frame) => Ok(Some(frame)),
        None => Err(DecodeError::Body { kind }),
    }
}

fn checksum(header: &[u8], body: &[u8], data: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(crc32c::crc32c(header), body), data)
}
