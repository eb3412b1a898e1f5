//! What the tests of several modules share.

use std::sync::OnceLock;

use jiff::{SignedDuration, Timestamp};
use rustls_pki_types::CertificateDer;

use crate::ca::{Ca, LeafKey, Request};
use crate::id::{Fingerprint, MachineId, MachineName, Role};
use crate::opaque::{Channel, Secrets};
use crate::passphrase::Passphrase;
use crate::registration::{Answer, ClientParams};

/// The instant at which everything in the tests is made.
pub(crate) fn now() -> Timestamp {
    "2026-03-02T10:00:00Z".parse().unwrap()
}

pub(crate) fn days(count: i64) -> SignedDuration {
    SignedDuration::from_hours(24 * count)
}

/// One passphrase with its record: making a record runs Argon2id, which tests need not repeat.
pub(crate) fn secrets() -> &'static (Passphrase, Secrets) {
    static SECRETS: OnceLock<(Passphrase, Secrets)> = OnceLock::new();
    SECRETS.get_or_init(|| {
        let passphrase = Passphrase::generate();
        let secrets = Secrets::new(&passphrase).unwrap();
        (passphrase, secrets)
    })
}

pub(crate) fn channel(byte: u8) -> Channel {
    Channel {
        exporter: [byte; 32],
        server_key: Fingerprint([9; 32]),
    }
}

pub(crate) fn name() -> MachineName {
    MachineName::new("db01").unwrap()
}

pub(crate) fn params(key: &LeafKey, channel: Channel) -> ClientParams<'_> {
    ClientParams {
        passphrase: secrets().0.clone(),
        channel,
        role: Role::Source,
        id: MachineId([7; 16]),
        name: name(),
        key,
        ca: None,
    }
}

/// A machine with a key and a certificate signed at `at`.
pub(crate) struct Machine {
    pub(crate) id: MachineId,
    pub(crate) key: LeafKey,
    pub(crate) certificate: CertificateDer<'static>,
}

pub(crate) fn machine(ca: &Ca, role: Role, at: Timestamp) -> Machine {
    let (id, key) = (MachineId::random(), LeafKey::generate().unwrap());
    let request = Request::check(&key.request().unwrap()).unwrap();
    let certificate = ca.sign(&request, id, role, at).unwrap().certificate;
    Machine { id, key, certificate }
}

/// What an appliance that takes everyone answers.
pub(crate) fn answer(ca: &Ca, id: MachineId, role: Role, request: &Request) -> Answer {
    Answer {
        approved: false,
        cas: vec![ca.certificate().clone()],
        certificate: ca.sign(request, id, role, now()).unwrap().certificate,
    }
}
