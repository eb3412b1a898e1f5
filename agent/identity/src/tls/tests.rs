//! Real TLS connections in memory: what each kind of peer gets, and registration over a real exporter.

use std::io::{Read, Write};

use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::ConnectionCommon;
use rustls::SideData;

use rustls_pki_types::PrivateKeyDer;

use super::*;
use crate::ca::{Ca, Request};
use crate::id::MachineId;
use crate::leaf::Renewal;
use crate::opaque::OpaqueError;
use crate::registration::{
    Client, ClientParams, ClientStep, Decoder, Fault, Message, Registered, Server, ServerStep,
};
use crate::renewal;
use crate::testing::{Machine, answer, days, machine, now, params, secrets};

#[derive(Debug)]
struct Fixed(Timestamp);

impl TimeProvider for Fixed {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.as_second()).ok()?;
        Some(UnixTime::since_unix_epoch(std::time::Duration::from_secs(
            seconds,
        )))
    }
}

fn clock() -> Arc<dyn TimeProvider> {
    Arc::new(Fixed(now()))
}

struct Appliance {
    ca: Ca,
    trust: Trust,
    credentials: Credentials,
}

impl Appliance {
    fn new() -> Self {
        Self::with_leaf(Role::Server, now())
    }

    fn with_leaf(role: Role, at: Timestamp) -> Self {
        let ca = Ca::generate(now()).unwrap();
        let own = machine(&ca, role, at);
        Self {
            trust: Trust::new(std::slice::from_ref(ca.certificate())).unwrap(),
            credentials: Credentials::new(own.certificate, ca.certificate().clone(), &own.key).unwrap(),
            ca,
        }
    }

    fn control(&self) -> ServerConnection {
        ServerConnection::new(control_server(&self.trust, &self.credentials, clock()).unwrap()).unwrap()
    }

    fn data(&self) -> ServerConnection {
        ServerConnection::new(data_server(&self.trust, &self.credentials, clock()).unwrap()).unwrap()
    }

    fn client_of(&self, machine: &Machine, purpose: Purpose) -> ClientConnection {
        let credentials = Credentials::new(
            machine.certificate.clone(),
            self.ca.certificate().clone(),
            &machine.key,
        )
        .unwrap();
        connect(peer_client(&self.trust, &credentials, Role::Server, purpose, clock()).unwrap())
    }
}

fn connect(config: Arc<ClientConfig>) -> ClientConnection {
    ClientConnection::new(config, server_name()).unwrap()
}

fn registering(ca: Option<Fingerprint>) -> ClientConnection {
    connect(registration_client(ca, clock()).unwrap())
}

/// Moves what one side has to say to the other; its error, when it does not like it.
fn carry<A: SideData, B: SideData>(
    from: &mut ConnectionCommon<A>,
    to: &mut ConnectionCommon<B>,
) -> (bool, Option<Error>) {
    let mut bytes = Vec::new();
    while from.wants_write() {
        from.write_tls(&mut bytes).unwrap();
    }
    let mut rest = bytes.as_slice();
    let mut error = None;
    while !rest.is_empty() && error.is_none() {
        to.read_tls(&mut rest).unwrap();
        error = to.process_new_packets().err();
    }
    (!bytes.is_empty(), error)
}

/// Carries bytes both ways until both sides are silent; the errors of client and server.
fn pump(client: &mut ClientConnection, server: &mut ServerConnection) -> (Option<Error>, Option<Error>) {
    let (mut client_error, mut server_error) = (None, None);
    loop {
        let (to_server, error) = carry(client, server);
        server_error = server_error.or(error);
        let (to_client, error) = carry(server, client);
        client_error = client_error.or(error);
        if !to_server && !to_client {
            return (client_error, server_error);
        }
    }
}

fn shake(client: &mut ClientConnection, server: &mut ServerConnection) {
    assert_eq!(pump(client, server), (None, None));
    assert!(!client.is_handshaking() && !server.is_handshaking());
    assert_eq!(client.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
}

fn say<D: SideData>(connection: &mut ConnectionCommon<D>, bytes: &[u8]) {
    connection.writer().write_all(bytes).unwrap();
}

fn heard<D: SideData>(connection: &mut ConnectionCommon<D>) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while let Ok(count @ 1..) = connection.reader().read(&mut piece) {
        bytes.extend_from_slice(&piece[..count]);
    }
    bytes
}

fn register(appliance: &Appliance, ca: Option<Fingerprint>) -> Result<Registered, Fault> {
    let (mut client, mut server) = (registering(ca), appliance.control());
    shake(&mut client, &mut server);
    let ControlPeer::Register(channel) = control_peer(&server, &appliance.credentials).unwrap() else {
        panic!("a registration was due");
    };
    assert!(
        channel == client_channel(&client).unwrap(),
        "one connection, one channel"
    );
    let key = LeafKey::generate().unwrap();
    let asked = ClientParams {
        ca,
        ..params(&key, client_channel(&client).unwrap())
    };
    let (mut machine, start) = Client::start(asked)?;
    let mut registrar = Server::new(channel);
    say(&mut client, &start);
    loop {
        pump(&mut client, &mut server);
        match registrar.receive(&heard(&mut server), &secrets().1)? {
            ServerStep::More => {}
            ServerStep::Send(bytes) => say(&mut server, &bytes),
            ServerStep::Decide(who) => {
                let issued = registrar.accept(&answer(&appliance.ca, who.id, who.role, &who.request))?;
                say(&mut server, &issued);
            }
        }
        pump(&mut client, &mut server);
        match machine.receive(&heard(&mut client))? {
            ClientStep::More => {}
            ClientStep::Send(bytes) => say(&mut client, &bytes),
            ClientStep::Done(registered) => return Ok(*registered),
        }
    }
}

#[test]
fn registration_end_to_end_with_and_without_a_fingerprint() {
    let appliance = Appliance::new();
    for ca in [None, Some(appliance.ca.fingerprint())] {
        let registered = register(&appliance, ca).unwrap();
        assert_eq!(registered.ca, appliance.ca.fingerprint());
        assert_eq!(registered.leaf.role, Role::Source);
    }
}

/// The attacker ends TLS with a certificate of his own and carries every byte inside to the appliance and back.
#[test]
fn a_man_in_the_middle_who_ends_tls_fails_and_learns_nothing() {
    let (appliance, attacker) = (Appliance::new(), Appliance::new());
    let (mut victim, mut toward_victim) = (registering(None), attacker.control());
    shake(&mut victim, &mut toward_victim);
    let (mut toward_appliance, mut server) = (registering(None), appliance.control());
    shake(&mut toward_appliance, &mut server);

    let key = LeafKey::generate().unwrap();
    let (mut machine, start) = Client::start(params(&key, client_channel(&victim).unwrap())).unwrap();
    let ControlPeer::Register(channel) = control_peer(&server, &appliance.credentials).unwrap() else {
        panic!("a registration was due");
    };
    let mut registrar = Server::new(channel);
    say(&mut victim, &start);
    pump(&mut victim, &mut toward_victim);
    let stolen = heard(&mut toward_victim);
    assert_eq!(stolen, start);
    say(&mut toward_appliance, &stolen);
    pump(&mut toward_appliance, &mut server);
    let ServerStep::Send(challenge) = registrar.receive(&heard(&mut server), &secrets().1).unwrap() else {
        panic!("a challenge was due");
    };
    say(&mut server, &challenge);
    pump(&mut toward_appliance, &mut server);
    let challenge = heard(&mut toward_appliance);
    say(&mut toward_victim, &challenge);
    pump(&mut victim, &mut toward_victim);
    let fault = machine.receive(&heard(&mut victim)).unwrap_err();
    assert_eq!(fault, Fault::Opaque(OpaqueError::Failed));
    assert!(fault.hint().contains("ends TLS"), "{}", fault.hint());
    // All that was ever said to him is one blinded element and a public key: the machine answers nothing more.
    assert!(heard(&mut toward_victim).is_empty());
}

#[test]
fn a_wrong_fingerprint_fails_before_anything_is_sent() {
    let (appliance, attacker) = (Appliance::new(), Appliance::new());
    // The attacker shows the right CA behind a leaf of his own, too.
    let forged = machine(&attacker.ca, Role::Server, now());
    let imposter = Appliance {
        credentials: Credentials::new(
            forged.certificate,
            appliance.ca.certificate().clone(),
            &forged.key,
        )
        .unwrap(),
        ca: attacker.ca,
        trust: attacker.trust.clone(),
    };
    // A registered machine's own certificate, good as it is, does not make it the appliance.
    let relay = machine(&appliance.ca, Role::Relay, now());
    let traitor = Appliance {
        credentials: Credentials::new(relay.certificate, appliance.ca.certificate().clone(), &relay.key)
            .unwrap(),
        ca: Ca::generate(now()).unwrap(),
        trust: attacker.trust.clone(),
    };
    let other = Appliance::new();
    for (who, words) in [
        (&other, "has the fingerprint"),
        (&imposter, "was not signed"),
        (&traitor, "that of a relay, expected a server"),
    ] {
        let (mut client, mut server) = (registering(Some(appliance.ca.fingerprint())), who.control());
        say(&mut client, b"must not leave");
        let (client_error, server_error) = pump(&mut client, &mut server);
        let (text, _) = explain(&client_error.unwrap());
        assert!(text.contains(words), "{text}");
        assert!(server_error.is_some() && heard(&mut server).is_empty());
    }
}

#[test]
fn a_server_outside_its_dates_is_refused_with_both_times() {
    for at in [now() - days(91), now() + days(2)] {
        let appliance = Appliance::with_leaf(Role::Server, at);
        let source = machine(&appliance.ca, Role::Source, now());
        let pinned = registering(Some(appliance.ca.fingerprint()));
        for (mut client, mut server) in [
            (appliance.client_of(&source, Purpose::Data), appliance.data()),
            (pinned, appliance.control()),
        ] {
            let (client_error, _) = pump(&mut client, &mut server);
            let (text, hint) = explain(&client_error.unwrap());
            assert!(
                text.contains("2026-03-02T10:00:00Z") && text.contains("is valid from"),
                "{text}"
            );
            assert!(hint.contains("clocks"), "{hint}");
        }
    }
}

#[test]
fn the_data_port_says_whose_key_speaks() {
    let appliance = Appliance::new();
    for role in [Role::Source, Role::Relay, Role::Target] {
        let machine = machine(&appliance.ca, role, now());
        let (mut client, mut server) = (appliance.client_of(&machine, Purpose::Data), appliance.data());
        assert_eq!(peer_of(&server), Err(TlsError::Unfinished));
        shake(&mut client, &mut server);
        let leaf = peer_of(&server).unwrap();
        assert_eq!(
            (leaf.id, leaf.role, leaf.key),
            (machine.id, role, machine.key.fingerprint())
        );
        assert_eq!(peer_of(&client).unwrap().key, appliance.credentials.key());
        say(&mut client, b"epoch");
        assert_eq!(pump(&mut client, &mut server), (None, None));
        assert_eq!(heard(&mut server), b"epoch");
    }
}

/// Dates are for the registry to judge, so that the peer can be told in words and can renew.
#[test]
fn an_expired_certificate_passes_the_handshake_and_is_recognised() {
    let appliance = Appliance::new();
    let lapsed = machine(&appliance.ca, Role::Source, now() - days(100));
    let (mut client, mut server) = (appliance.client_of(&lapsed, Purpose::Data), appliance.data());
    shake(&mut client, &mut server);
    let since = now() - days(10);
    assert_eq!(
        peer_of(&server).unwrap().validity(now()),
        Validity::Expired { since }
    );
}

/// A client of the data port that shows what `chain` says, whatever it is.
fn client_with(
    appliance: &Appliance,
    chain: Vec<CertificateDer<'static>>,
    key: &KeyPair,
) -> ClientConnection {
    let der = PrivateKeyDer::Pkcs8(key.serialize_der().into());
    let config =
        ClientConfig::builder_with_details(Arc::new(rustls::crypto::ring::default_provider()), clock())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(TrustedServer {
                trust: appliance.trust.clone(),
                expected: Role::Server,
            }))
            .with_client_auth_cert(chain, der)
            .unwrap();
    connect(hardened(config, ALPN_DATA))
}

#[test]
fn strangers_do_not_pass_the_data_port() {
    let (appliance, other) = (Appliance::new(), Appliance::new());
    let key = || KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let own = |key: &KeyPair| {
        let mut params = CertificateParams::default();
        let uri = "mt://source/000102030405060708090a0b0c0d0e0f".to_owned();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.self_signed(key).unwrap().der().clone()
    };
    let source = machine(&appliance.ca, Role::Source, now());
    let source_key = KeyPair::try_from(source.key.to_der().as_slice()).unwrap();
    let foreign = machine(&other.ca, Role::Source, now());
    let foreign_key = KeyPair::try_from(foreign.key.to_der().as_slice()).unwrap();
    let server_key = key();
    let request = CertificateParams::default()
        .serialize_request(&server_key)
        .unwrap();
    let request = Request::check(request.der()).unwrap();
    let as_server = appliance
        .ca
        .sign(&request, MachineId([1; 16]), Role::Server, now())
        .unwrap();
    let self_made = key();
    let p384 = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    for (what, chain, key) in [
        ("of another CA", vec![foreign.certificate], &foreign_key),
        ("made by himself", vec![own(&self_made)], &self_made),
        ("of another kind of key", vec![own(&p384)], &p384),
        (
            "a chain of fifty",
            vec![source.certificate.clone(); 50],
            &source_key,
        ),
        ("of a server", vec![as_server.certificate], &server_key),
        (
            "the CA's own",
            vec![appliance.ca.certificate().clone()],
            &KeyPair::try_from(appliance.ca.key().to_der().as_slice()).unwrap(),
        ),
    ] {
        let (mut client, mut server) = (client_with(&appliance, chain, key), appliance.data());
        say(&mut client, b"must not be taken");
        let (client_error, server_error) = pump(&mut client, &mut server);
        assert!(server_error.is_some(), "{what}");
        // The client hears of it on its first read, as an alert.
        let error = client_error.unwrap_or_else(|| panic!("{what}: nothing was said"));
        assert!(
            matches!(error, Error::AlertReceived(_) | Error::InvalidCertificate(_)),
            "{what}: {error}"
        );
        assert!(heard(&mut server).is_empty(), "{what}");
    }
    // And none at all.
    let mut config = ClientConfig::clone(&registration_client(None, clock()).unwrap());
    config.alpn_protocols = vec![ALPN_DATA.to_vec()];
    let (mut client, mut server) = (connect(Arc::new(config)), appliance.data());
    let (client_error, server_error) = pump(&mut client, &mut server);
    assert_eq!(server_error, Some(Error::NoCertificatesPresented));
    assert!(explain(&client_error.unwrap()).0.contains("has none"));
}

/// The right certificate without its key: the thief cannot sign the handshake.
#[test]
fn a_certificate_without_its_key_is_worth_nothing() {
    let appliance = Appliance::new();
    let source = machine(&appliance.ca, Role::Source, now());
    let thief = LeafKey::generate().unwrap();
    let wrong = Credentials::new(
        source.certificate.clone(),
        appliance.ca.certificate().clone(),
        &thief,
    );
    assert!(wrong.is_err());
    let signing = any_ecdsa_type(&thief.for_tls()).unwrap();
    let credentials = Credentials {
        certified: Arc::new(CertifiedKey::new(vec![source.certificate], signing)),
        key: source.key.fingerprint(),
    };
    let config = peer_client(
        &appliance.trust,
        &credentials,
        Role::Server,
        Purpose::Data,
        clock(),
    )
    .unwrap();
    let (mut client, mut server) = (connect(config), appliance.data());
    let (_, server_error) = pump(&mut client, &mut server);
    assert_eq!(
        server_error,
        Some(Error::InvalidCertificate(TlsCertificateError::BadSignature))
    );
}

#[test]
fn each_port_speaks_its_own_protocols_only() {
    let appliance = Appliance::new();
    let source = machine(&appliance.ca, Role::Source, now());
    for (mut client, mut server) in [
        (registering(None), appliance.data()),
        (appliance.client_of(&source, Purpose::Renewal), appliance.data()),
        (appliance.client_of(&source, Purpose::Data), appliance.control()),
    ] {
        let (client_error, server_error) = pump(&mut client, &mut server);
        assert_eq!(server_error, Some(Error::NoApplicationProtocol));
        assert!(explain(&client_error.unwrap()).1.contains("check the port"));
    }
    // Who names no protocol passes the handshake and is turned away behind it.
    let mut config = ClientConfig::clone(&registration_client(None, clock()).unwrap());
    config.alpn_protocols.clear();
    let (mut client, mut server) = (connect(Arc::new(config)), appliance.control());
    shake(&mut client, &mut server);
    assert_eq!(
        control_peer(&server, &appliance.credentials).unwrap_err(),
        TlsError::NoProtocol
    );
    assert_eq!(client_channel(&client).unwrap_err(), TlsError::NoProtocol);
}

#[test]
fn a_renewal_without_a_certificate_is_turned_away() {
    let appliance = Appliance::new();
    let mut config = ClientConfig::clone(&registration_client(None, clock()).unwrap());
    config.alpn_protocols = vec![ALPN_RENEW.to_vec()];
    let (mut client, mut server) = (connect(Arc::new(config)), appliance.control());
    shake(&mut client, &mut server);
    assert_eq!(
        control_peer(&server, &appliance.credentials).unwrap_err(),
        TlsError::NoCertificate
    );
}

#[test]
fn a_machine_renews_over_mutual_tls_also_when_its_certificate_has_run_out() {
    let appliance = Appliance::new();
    for age in [60, 100] {
        let source = machine(&appliance.ca, Role::Source, now() - days(age));
        let old = Leaf::read(&source.certificate).unwrap();
        assert!(matches!(
            old.renewal(now()),
            Renewal::Due { .. } | Renewal::Overdue { .. }
        ));
        let (mut client, mut server) = (
            appliance.client_of(&source, Purpose::Renewal),
            appliance.control(),
        );
        shake(&mut client, &mut server);
        let ControlPeer::Renew(peer) = control_peer(&server, &appliance.credentials).unwrap() else {
            panic!("a renewal was due");
        };
        assert_eq!(peer, old);

        let new_key = LeafKey::generate().unwrap();
        say(&mut client, &renewal::request(&new_key).unwrap());
        pump(&mut client, &mut server);
        let request = renewal::receive_request(&mut Decoder::default(), &heard(&mut server))
            .unwrap()
            .unwrap();
        let granted = answer(&appliance.ca, peer.id, peer.role, &request);
        say(&mut server, &Message::Renewed(granted).encode());
        pump(&mut client, &mut server);
        let renewed = renewal::receive_answer(&mut Decoder::default(), &heard(&mut client), &old, &new_key)
            .unwrap()
            .unwrap();
        assert_eq!((renewed.leaf.id, renewed.leaf.role), (old.id, old.role));
        assert!(matches!(renewed.leaf.renewal(now()), Renewal::At(_)));
    }
}

#[test]
fn nothing_is_resumed() {
    let appliance = Appliance::new();
    let source = machine(&appliance.ca, Role::Source, now());
    let credentials = Credentials::new(
        source.certificate,
        appliance.ca.certificate().clone(),
        &source.key,
    )
    .unwrap();
    let config = peer_client(
        &appliance.trust,
        &credentials,
        Role::Server,
        Purpose::Data,
        clock(),
    )
    .unwrap();
    let server_config = data_server(&appliance.trust, &appliance.credentials, clock()).unwrap();
    for _ in 0..3 {
        let mut client = connect(Arc::clone(&config));
        let mut server = ServerConnection::new(Arc::clone(&server_config)).unwrap();
        shake(&mut client, &mut server);
        assert_eq!(server.handshake_kind(), Some(rustls::HandshakeKind::Full));
    }
}

#[test]
fn what_is_not_tls_13_ends_at_once() {
    let appliance = Appliance::new();
    // A client hello of TLS 1.2: one cipher suite, signature algorithms, no supported_versions.
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.extend_from_slice(&[
        0, 0, 2, 0xc0, 0x2b, 1, 0, 0, 16, 0, 10, 0, 4, 0, 2, 0, 0x17, 0, 13, 0, 4, 0, 2, 4, 3,
    ]);
    let len = u8::try_from(body.len()).unwrap();
    let tls12 = [&[22, 3, 1, 0, len + 4, 1, 0, 0, len][..], &body].concat();
    for (what, bytes) in [
        (
            "HTTP",
            b"GET / HTTP/1.1
Host: appliance

"
            .to_vec(),
        ),
        (
            "SSH",
            b"SSH-2.0-OpenSSH_9.2p1 Debian-2
"
            .to_vec(),
        ),
        ("zeros", vec![0; 64]),
        (
            "SSL 2",
            vec![0x80, 0x2e, 1, 0, 2, 0, 0x15, 0, 0, 0, 0x10, 1, 0, 0x80],
        ),
        ("TLS 1.2", tls12),
    ] {
        for mut server in [appliance.control(), appliance.data()] {
            server.read_tls(&mut bytes.as_slice()).unwrap();
            let error = server.process_new_packets().expect_err(what);
            assert!(
                matches!(error, Error::InvalidMessage(_) | Error::PeerIncompatible(_)),
                "{what}: {error}"
            );
            assert_eq!(
                matches!(error, Error::PeerIncompatible(_)),
                what == "TLS 1.2",
                "{what}: {error}"
            );
        }
    }
}
