//! Entries for a fuzzer, one per decoder. Each takes any bytes and must neither panic nor hang; what decodes must
//! encode to the same bytes again.

use crate::decoder::Decoder;
use crate::hello::{Hello, HelloReply};
use crate::limits::HELLO_SIZE;
use crate::message::Message;

/// Hello messages.
pub fn hello(bytes: &[u8]) {
    if let Some(bytes) = bytes.first_chunk::<HELLO_SIZE>() {
        let _ = Hello::decode(bytes);
        let _ = HelloReply::decode(bytes);
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
    let mut decoder = Decoder::new();
    for bytes in stream.chunks(usize::from(*piece) + 1) {
        decoder.push(bytes);
        loop {
            match decoder.next_frame() {
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(_) => return,
            }
        }
    }
}
