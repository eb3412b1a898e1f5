//! A decoder for bytes that arrive in any pieces.
//!
//! Used where simplicity counts more than copies: tests, simulation, fuzzing. The socket edge of the agent reads
//! header and body with [`FrameHeader`] and puts the payload straight into a pooled, aligned buffer.

use crate::frame::{FrameHeader, WireError};
use crate::limits::{BODY_BYTES_MAX, FRAME_HEADER_SIZE, PAYLOAD_BYTES_MAX};
use crate::message::Message;

/// A whole frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// The stream the message belongs to.
    pub stream: u16,
    /// The message.
    pub message: Message,
    /// Its payload; empty for all but extents.
    pub payload: Vec<u8>,
}

/// Collects bytes until they make a frame. Holds at most one frame and what was pushed behind it.
#[derive(Debug)]
pub struct Decoder {
    pending: Vec<u8>,
    sequence_expected: u64,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// The most that can be pending before a frame is complete.
    pub const FRAME_BYTES_MAX: usize = FRAME_HEADER_SIZE + BODY_BYTES_MAX + PAYLOAD_BYTES_MAX;

    /// A decoder that waits for the first frame of a direction.
    pub fn new() -> Self {
        Self {
            pending: Vec::new(),
            sequence_expected: 1,
        }
    }

    /// Adds bytes as they arrived.
    pub fn push(&mut self, bytes: &[u8]) {
        self.pending.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` when more bytes are needed. Frames of unknown, ignorable kinds are skipped.
    ///
    /// # Errors
    /// As soon as a header is complete and wrong, before its body is waited for. The session is over then.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, WireError> {
        loop {
            let Some((header, rest)) = self.pending.split_first_chunk::<FRAME_HEADER_SIZE>() else {
                return Ok(None);
            };
            let header = FrameHeader::decode(header, self.sequence_expected)?;
            let Some((body, rest)) = rest.split_at_checked(header.body_len) else {
                return Ok(None);
            };
            let message = header.message(body)?;
            let Some(payload) = rest.get(..header.payload_len) else {
                return Ok(None);
            };
            let frame = message.map(|message| Frame {
                stream: header.stream,
                message,
                payload: payload.to_vec(),
            });
            self.pending
                .drain(..FRAME_HEADER_SIZE + header.body_len + header.payload_len);
            self.sequence_expected += 1;
            if frame.is_some() {
                return Ok(frame);
            }
        }
    }
}
