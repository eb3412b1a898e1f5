//! Entries for a fuzzer, one per parser of outside bytes. Each takes any bytes and must neither panic nor hang.

use std::sync::OnceLock;

use crate::ca::{LeafKey, Request};
use crate::envelope::resealed;
use crate::id::{Fingerprint, MachineId, Role};
use crate::leaf::Leaf;
use crate::opaque::{Channel, Secrets};
use crate::passphrase::Passphrase;
use crate::registration::message::{Answer, Application, Decoder, Message};
use crate::registration::{self, Server, ServerStep};
use crate::renewal;

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

/// The appliance's identity as a file, its backup, and a machine's identity; each also with a digest that fits, as whoever
/// can write the file could give it.
pub fn stored(bytes: &[u8]) {
    for bytes in [bytes.to_vec(), resealed(bytes.to_vec())] {
        if let Ok((identity, registry)) = crate::store::Identity::from_bytes(&bytes) {
            let again = identity.to_bytes(registry.machines());
            let read = crate::store::Identity::from_bytes(&again);
            assert!(read.is_ok_and(|(identity, registry)| identity.to_bytes(registry.machines()) == again));
        }
        if let Ok(member) = crate::member::Member::from_bytes(&bytes) {
            assert!(crate::member::Member::from_bytes(&member.to_bytes()).is_ok());
        }
        crate::backup::fuzz(&bytes);
    }
}

/// What strangers send to the control port, in pieces, to the side that registers and to the one that renews. The first
/// byte chooses the size of the pieces; nobody proves to know the passphrase.
pub fn server(bytes: &[u8]) {
    let Some((piece, stream)) = bytes.split_first() else {
        return;
    };
    let channel = Channel {
        exporter: [1; 32],
        server_key: Fingerprint([2; 32]),
    };
    let mut server = Server::new(channel);
    let mut renewal = Some(Decoder::default());
    let mut registering = true;
    for bytes in stream.chunks(usize::from(*piece) + 1) {
        if registering {
            match server.receive(bytes, secrets()) {
                Ok(ServerStep::More) => {}
                Ok(ServerStep::Send(answer)) => {
                    assert!(answer.len() < 512, "an answer larger than what asked for it")
                }
                Ok(ServerStep::Decide(applicant)) => panic!("{applicant:?} did not know the passphrase"),
                Err(fault) => {
                    let _ = fault.answer();
                    registering = false;
                }
            }
        }
        if let Some(decoder) = &mut renewal
            && !matches!(renewal::receive_request(decoder, bytes), Ok(None))
        {
            renewal = None;
        }
    }
}

/// What an appliance answers with: certificates, to a machine that asked for them. They are never for this one.
pub fn client(bytes: &[u8]) {
    let (id, key) = (MachineId([3; 16]), Fingerprint([4; 32]));
    if let Ok(answer) = Answer::decode(bytes) {
        assert!(registration::check_answer(answer, id, Role::Source, key).is_err());
    }
    let mut decoder = Decoder::default();
    if let Ok(Some(Message::Renewed(answer))) = decoder.push(bytes) {
        assert!(registration::check_answer(answer, id, Role::Source, key).is_err());
    }
}

/// Keys without a passphrase: every run fails, as one with a wrong passphrase does.
fn secrets() -> &'static Secrets {
    static SECRETS: OnceLock<Secrets> = OnceLock::new();
    SECRETS.get_or_init(Secrets::without_passphrase)
}
