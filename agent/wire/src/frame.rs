//! The frame around every message after the hello.
//!
//! ```text
//! offset size
//!      0    4  magic  "MTF1"
//!      4    1  kind of message (message.rs)
//!      5    1  flags: bit 0 ignorable (a receiver that does not know the kind skips the frame); others zero
//!      6    2  stream; 0 is the connection itself
//!      8    4  length of the body, at most 64 KiB
//!     12    4  length of the payload, at most 1 MiB
//!     16    8  sequence number in this direction: 1, 2, 3, ...
//!     24    4  CRC-32C of the body
//!     28    4  CRC-32C of bytes 0 to 27
//!     32    .  body: the fields of the message
//!      .    .  payload: content of the disk, as it was read; no checksum here, since each extent carries its digest
//! ```
//!
//! All integers are little-endian. A frame that was lost, repeated or moved by something on the way breaks the
//! sequence and ends the session; it is never guessed at.
//!
//! Example: `Ping { token: 7 }`, the third frame of its direction.
//!
//! ```text
//! 4d 54 46 31  01 00 00 00  08 00 00 00  00 00 00 00  03 00 00 00 00 00 00 00  (crc body)  (crc header)
//! 07 00 00 00 00 00 00 00
//! ```

use crate::limits::{BODY_BYTES_MAX, FRAME_HEADER_SIZE, PAYLOAD_BYTES_MAX};
use crate::message::Message;

const MAGIC: [u8; 4] = *b"MTF1";
const FLAG_IGNORABLE: u8 = 1;
const CRC_OFFSET: usize = 28;

/// What can be wrong with bytes from a peer. The session ends with each of them; nothing was written because of the
/// frame that held it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The first bytes are not ours: another service, a port scanner, a proxy.
    #[error("peer does not speak this protocol: it began with {found:02x?}")]
    NotOurProtocol {
        /// The first bytes.
        found: [u8; 4],
    },
    /// A checksum does not match what it covers.
    #[error("{part} was damaged on the way: checksum {found:#010x}, expected {expected:#010x}")]
    Checksum {
        /// What the checksum covers.
        part: &'static str,
        /// As received.
        found: u32,
        /// As computed.
        expected: u32,
    },
    /// A length or count is beyond its limit.
    #[error("{field} is {found}, the limit is {max}")]
    TooLarge {
        /// The field.
        field: &'static str,
        /// Its value.
        found: u64,
        /// The limit.
        max: u64,
    },
    /// A body ended inside a field.
    #[error("body ends inside {field}: {wanted} bytes wanted, {left} left")]
    BodyTooShort {
        /// The field.
        field: &'static str,
        /// Size of the field.
        wanted: usize,
        /// Bytes that were left.
        left: usize,
    },
    /// A body holds more than its message.
    #[error("body has {left} bytes more than its message")]
    BodyTooLong {
        /// Bytes left over.
        left: usize,
    },
    /// A value that this version does not know.
    #[error("{field} has the unknown value {found}")]
    Unknown {
        /// The field.
        field: &'static str,
        /// Its value.
        found: u64,
    },
    /// A text is not UTF-8 or holds control characters.
    #[error("{field} is not printable text")]
    NotText {
        /// The field.
        field: &'static str,
    },
    /// Values that are possible alone contradict each other.
    #[error("{what}")]
    Contradiction {
        /// What contradicts what.
        what: &'static str,
    },
    /// A frame was lost, repeated or moved.
    #[error("frame {found} came where frame {expected} was due")]
    Sequence {
        /// As received.
        found: u64,
        /// The next in order.
        expected: u64,
    },
}

/// The fixed part of a frame, bounds already checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Kind of the message in the body.
    pub kind: u8,
    /// Whether a receiver may skip the frame when it does not know the kind.
    pub ignorable: bool,
    /// The stream the message belongs to.
    pub stream: u16,
    /// Length of the body in bytes, at most [`BODY_BYTES_MAX`].
    pub body_len: usize,
    /// Length of the payload in bytes, at most [`PAYLOAD_BYTES_MAX`].
    pub payload_len: usize,
    /// Sequence number of the frame in its direction, from 1.
    pub sequence: u64,
    body_crc: u32,
}

impl FrameHeader {
    /// Reads a header and checks it against the limits and the sequence.
    ///
    /// # Errors
    /// On a foreign magic, a damaged header, a length beyond its limit, unknown flags or a break in the sequence.
    pub fn decode(bytes: &[u8; FRAME_HEADER_SIZE], sequence_expected: u64) -> Result<Self, WireError> {
        if bytes[0..4] != MAGIC {
            return Err(WireError::NotOurProtocol {
                found: [bytes[0], bytes[1], bytes[2], bytes[3]],
            });
        }
        let expected = crc32c::crc32c(&bytes[..CRC_OFFSET]);
        let found = u32_at(bytes, CRC_OFFSET);
        if found != expected {
            return Err(WireError::Checksum {
                part: "frame header",
                found,
                expected,
            });
        }
        let flags = bytes[5];
        if flags & !FLAG_IGNORABLE != 0 {
            return Err(WireError::Unknown {
                field: "frame flags",
                found: u64::from(flags),
            });
        }
        let body_len = bounded(u32_at(bytes, 8), BODY_BYTES_MAX, "body length")?;
        let payload_len = bounded(u32_at(bytes, 12), PAYLOAD_BYTES_MAX, "payload length")?;
        let mut sequence = [0; 8];
        sequence.copy_from_slice(&bytes[16..24]);
        let sequence = u64::from_le_bytes(sequence);
        if sequence != sequence_expected {
            return Err(WireError::Sequence {
                found: sequence,
                expected: sequence_expected,
            });
        }
        Ok(Self {
            kind: bytes[4],
            ignorable: flags & FLAG_IGNORABLE != 0,
            stream: u16::from_le_bytes([bytes[6], bytes[7]]),
            body_len,
            payload_len,
            sequence,
            body_crc: u32_at(bytes, 24),
        })
    }

    /// Reads the message of this frame. `None` when its kind is not known and its sender allowed it to be skipped.
    ///
    /// # Errors
    /// On a damaged body and on whatever [`Message::decode`] refuses.
    pub fn message(&self, body: &[u8]) -> Result<Option<Message>, WireError> {
        let expected = crc32c::crc32c(body);
        if self.body_crc != expected {
            return Err(WireError::Checksum {
                part: "frame body",
                found: self.body_crc,
                expected,
            });
        }
        if self.ignorable && !Message::is_known(self.kind) {
            return Ok(None);
        }
        Message::decode(self.kind, body, self.payload_len).map(Some)
    }
}

/// Header and body of a frame, ready to be sent in front of its payload.
///
/// The payload is not copied: it goes to the socket from the buffer it was read into.
pub fn encode(message: &Message, stream: u16, sequence: u64) -> Vec<u8> {
    let payload_len = message.payload_len();
    let mut bytes = vec![0; FRAME_HEADER_SIZE];
    message.encode_body(&mut bytes);
    let body_len = bytes.len() - FRAME_HEADER_SIZE;
    assert!(
        body_len <= BODY_BYTES_MAX && payload_len <= PAYLOAD_BYTES_MAX,
        "messages are built within their limits"
    );
    seal(&mut bytes, message.kind(), 0, stream, payload_len, sequence);
    bytes
}

/// A frame of a kind that may not exist, for tests of how unknown kinds are met.
#[doc(hidden)]
pub fn encode_raw(
    kind: u8,
    ignorable: bool,
    stream: u16,
    sequence: u64,
    body: &[u8],
    payload_len: usize,
) -> Vec<u8> {
    let mut bytes = vec![0; FRAME_HEADER_SIZE];
    bytes.extend_from_slice(body);
    seal(
        &mut bytes,
        kind,
        u8::from(ignorable),
        stream,
        payload_len,
        sequence,
    );
    bytes
}

/// Fills in the header in front of a body that is already in place.
fn seal(bytes: &mut [u8], kind: u8, flags: u8, stream: u16, payload_len: usize, sequence: u64) {
    let (header, body) = bytes.split_at_mut(FRAME_HEADER_SIZE);
    let body_len = u32::try_from(body.len()).unwrap_or(u32::MAX);
    let payload_len = u32::try_from(payload_len).unwrap_or(u32::MAX);
    header[0..4].copy_from_slice(&MAGIC);
    header[4] = kind;
    header[5] = flags;
    header[6..8].copy_from_slice(&stream.to_le_bytes());
    header[8..12].copy_from_slice(&body_len.to_le_bytes());
    header[12..16].copy_from_slice(&payload_len.to_le_bytes());
    header[16..24].copy_from_slice(&sequence.to_le_bytes());
    header[24..28].copy_from_slice(&crc32c::crc32c(body).to_le_bytes());
    let crc = crc32c::crc32c(&header[..CRC_OFFSET]);
    header[CRC_OFFSET..].copy_from_slice(&crc.to_le_bytes());
}

fn bounded(value: u32, max: usize, field: &'static str) -> Result<usize, WireError> {
    match usize::try_from(value) {
        Ok(value) if value <= max => Ok(value),
        _ => Err(WireError::TooLarge {
            field,
            found: u64::from(value),
            max: max as u64,
        }),
    }
}

fn u32_at(bytes: &[u8; FRAME_HEADER_SIZE], offset: usize) -> u32 {
    u32::from_le_bytes([
        bytes[offset],
        bytes[offset + 1],
        bytes[offset + 2],
        bytes[offset + 3],
    ])
}
