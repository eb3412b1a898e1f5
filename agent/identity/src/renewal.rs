//! Renewal: a machine whose key the registry knows gets a certificate for a new key, over mutual TLS.
//!
//! One question, one answer ([`Message::Renew`], [`Message::Renewed`]), on the control port under [`crate::tls::ALPN_RENEW`].
//! Works with a certificate that has run out too, as long as the registry knows the key as active: a lapsed date must
//! not stop a failback. The new key is admitted besides the old one until it is first used, so that a machine that
//! dies between answer and storing it is not locked out ([`crate::registry`]).

use crate::ca::{LeafKey, Request};
use crate::code::Code;
use crate::leaf::Leaf;
use crate::registration::message::{Decoder, Message, VERSION};
use crate::registration::{Fault, Refusal, Registered};

/// What the holder sends to renew.
///
/// # Errors
/// When the request cannot be signed.
pub fn request(new_key: &LeafKey) -> Result<Vec<u8>, Fault> {
    let request = new_key.request()?;
    let message = Message::Renew {
        version: VERSION,
        request,
    };
    Ok(message.encode())
}

/// Takes the bytes of the answer as they arrive; `None` while more are needed.
///
/// # Errors
/// When the appliance refused, or what it sent is not a certificate for `new_key` and the machine of `old`.
pub fn receive_answer(
    decoder: &mut Decoder,
    bytes: &[u8],
    old: &Leaf,
    new_key: &LeafKey,
) -> Result<Option<Registered>, Fault> {
    match decoder.push(bytes)? {
        None => Ok(None),
        Some(Message::Renewed(answer)) => {
            crate::registration::check_answer(answer, old.id, old.role, new_key.fingerprint()).map(Some)
        }
        Some(Message::Refused(refusal)) => Err(Fault::Refused(refusal)),
        Some(other) => Err(Fault::Unexpected {
            found: other.name(),
            state: "the renewed certificate was due",
        }),
    }
}

/// Takes the bytes of a request as they arrive, on the appliance; `None` while more are needed. Whether it is granted
/// is for [`crate::Registry::renew`] to say, and the answer is [`Message::Renewed`].
///
/// # Errors
/// When they are no request that is signed.
pub fn receive_request(decoder: &mut Decoder, bytes: &[u8]) -> Result<Option<Request>, Fault> {
    match decoder.push(bytes)? {
        None => Ok(None),
        Some(Message::Renew { version, request }) => {
            if version != VERSION {
                return Err(Fault::Version { found: version });
            }
            Ok(Some(Request::check(&request)?))
        }
        Some(other) => Err(Fault::Unexpected {
            found: other.name(),
            state: "a renewal was due",
        }),
    }
}

/// The message that refuses.
pub fn refuse(code: Code) -> Vec<u8> {
    Message::Refused(Refusal { code, wait_s: 0 }).encode()
}
