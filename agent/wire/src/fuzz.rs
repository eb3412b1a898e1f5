//! Entries for a fuzzer, one per decoder. Each takes any bytes and must neither panic nor hang; what decodes must
//! encode to the same bytes again.
//!
//! A checksum keeps changed bytes away from what is behind it, so those that have one are tried a second time with a
//! checksum that fits, as whoever wants to do harm would send them.

use crate::decoder::Decoder;
use crate::frame;
use crate::hello::{self, Hello, HelloReply};
use crate::limits::{FRAME_HEADER_SIZE, HELLO_SIZE};
use crate::message::Message;

/// Hello messages.
pub fn hello(bytes: &[u8]) {
    if let Some(bytes) = bytes.first_chunk::<HELLO_SIZE>() {
        one_hello(bytes);
        let mut sealed = *bytes;
        hello::seal(&mut sealed);
        one_hello(&sealed);
    }
}

fn one_hello(bytes: &[u8; HELLO_SIZE]) {
    // What a peer puts into reserved bytes and texts is not all kept; what was kept is.
    if let Ok(hello) = Hello::decode(bytes) {
        assert_eq!(Hello::decode(&hello.encode()).as_ref(), Ok(&hello));
    }
    if let Ok(reply) = HelloReply::decode(bytes) {
        let again = HelloReply::decode(&reply.encode());
        assert_eq!(again.map(|again| again.outcome).as_ref(), Ok(&reply.outcome));
    }
}

/// One body, its kind in the first byte and the payload length in the next four.
pub fn message(bytes: &[u8]) {
    let [kind, a, b, c, d, body @ ..] = bytes else {
        return;
    };
    let Ok(payload_len) = usize::try_from(u32::from_le_bytes([*a, *b, *c, *d])) else {
        return;
    };
    if let Ok(message) = Message::decode(*kind, body, payload_len) {
        let mut again = Vec::new();
        message.encode_body(&mut again);
        assert_eq!(
            again,
            body,
            "{} does not encode to what it was decoded from",
            message.name()
        );
        assert_eq!(message.payload_len(), payload_len);
    }
}

/// A stream of frames in pieces; the first byte chooses the size of the pieces.
pub fn frames(bytes: &[u8]) {
    let Some((piece, stream)) = bytes.split_first() else {
        return;
    };
    decode(*piece, stream);
    decode(*piece, &sealed(stream));
}

/// The same frames with their numbers in order and checksums that fit; where a frame is cut, with what there is of it.
fn sealed(stream: &[u8]) -> Vec<u8> {
    let mut sealed = Vec::with_capacity(stream.len());
    let mut rest = stream;
    for sequence in 1_u64.. {
        let Some((header, behind)) = rest.split_first_chunk::<FRAME_HEADER_SIZE>() else {
            break;
        };
        let length = |at: usize| {
            let field = header.get(at..).and_then(|field| field.first_chunk());
            field.map_or(0, |field| {
                usize::try_from(u32::from_le_bytes(*field)).unwrap_or(usize::MAX)
            })
        };
        let (body, behind) = behind.split_at(length(8).min(behind.len()));
        let (payload, behind) = behind.split_at(length(12).min(behind.len()));
        let (kind, ignorable) = (header[4], header[5] & 1 != 0);
        let stream = u16::from_le_bytes([header[6], header[7]]);
        sealed.extend_from_slice(&frame::encode_raw(
            kind,
            ignorable,
            stream,
            sequence,
            body,
            length(12),
        ));
        sealed.extend_from_slice(payload);
        rest = behind;
    }
    sealed.extend_from_slice(rest);
    sealed
}

fn decode(piece: u8, stream: &[u8]) {
    let mut decoder = Decoder::new();
    for bytes in stream.chunks(usize::from(piece) + 1) {
        decoder.push(bytes);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => assert_eq!(frame.payload.len(), frame.message.payload_len()),
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}
