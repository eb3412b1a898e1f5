//! Entries for a fuzzer, one per parser of outside bytes. Each takes any bytes and must neither panic nor hang.

use crate::ca::{LeafKey, Request};
use crate::leaf::Leaf;
use crate::passphrase::Passphrase;
use crate::registration::message::{Answer, Application, Decoder, Message};

/// Messages of registration and renewal in pieces; the first byte chooses the size of the pieces. What decodes must
/// encode to the same bytes again.
pub fn messages(bytes: &[u8]) {
    let Some((piece, stream)) = bytes.split_first() else {
        return;
    };
    let mut decoder = Decoder::default();
    let mut taken = Vec::new();
    for bytes in stream.chunks(usize::from(*piece) + 1) {
        taken.extend_from_slice(bytes);
        match decoder.push(bytes) {
            Ok(None) => {}
            Ok(Some(message)) => {
                let again = message.encode();
                // A refusal says which versions its sender speaks; we would say ours.
                if !matches!(message, Message::Refused(_)) {
                    assert_eq!(
                        again,
                        taken,
                        "{} does not encode to what it was decoded from",
                        message.name()
                    );
                }
                taken.clear();
            }
            Err(_) => return,
        }
    }
}

/// What is sealed inside them.
pub fn sealed_parts(bytes: &[u8]) {
    if let Ok(application) = Application::decode(bytes) {
        assert_eq!(application.encode(), bytes);
    }
    if let Ok(answer) = Answer::decode(bytes) {
        let mut again = Vec::new();
        answer.encode(&mut again);
        assert_eq!(again, bytes);
    }
}

/// Certificates, certificate requests and keys.
pub fn certificates(bytes: &[u8]) {
    let _ = Request::check(bytes);
    let _ = Leaf::read(bytes);
    let _ = crate::leaf::key_of(bytes);
    let _ = LeafKey::from_der(bytes);
}

/// Passphrases as typed, names and fingerprints.
pub fn texts(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Ok(passphrase) = Passphrase::parse(text) {
        assert_eq!(Passphrase::parse(&passphrase.reveal()).as_ref(), Ok(&passphrase));
    }
    let _ = text.parse::<crate::Fingerprint>();
    let _ = text.parse::<crate::MachineId>();
    let _ = crate::MachineName::new(text);
}

/// The appliance's identity as a file, its backup, and a machine's identity.
pub fn stored(bytes: &[u8]) {
    let _ = crate::store::Identity::from_bytes(bytes);
    let _ = crate::member::Member::from_bytes(bytes);
    crate::backup::fuzz(bytes);
}
