//! Certificates that are wrong in every way, on the ports of a real target: each is refused with the code that belongs to it,
//! nothing panics, and who is right is served afterwards.

use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::channel;

use mt_identity::store::Identity;
use mt_identity::tls::{self, Purpose};
use mt_identity::{LeafKey, MachineId, Role};
use mt_tests::agent::{run, wait_until};
use mt_tests::data::{Fill, assert_same, fill};
use mt_tests::disks::text;
use mt_tests::lab::{Lab, PAIR};
use mt_tests::members::{Recorder, member_in, peer_of};
use mt_tests::peer::open_message;
use mt_tests::strangers::{Met, Signs, certificate, come, identity_in, say_hello};
use mt_wire::ErrorCode;
use rcgen::{CertificateParams, Issuer, KeyPair, PublicKeyData, SignatureAlgorithm};
use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::time_provider::DefaultTimeProvider;
use rustls::{ClientConfig, ClientConnection, HandshakeKind, ServerConnection, StreamOwned};

const MIB: u64 = 1 << 20;

struct Scene {
    lab: Lab,
    source: PathBuf,
    target: PathBuf,
    passphrase: PathBuf,
    size: u64,
}

/// A target with one pair and an admitted source.
fn scene(size: u64) -> Scene {
    let mut lab = Lab::secure();
    let source = lab.scratch.sparse("source.img", size);
    fill(&source, size, Fill::Random, 7);
    let target = lab.scratch.sparse("target.img", size);
    let id = lab.add_disk(&target);
    lab.start();
    lab.pair(PAIR, &id);
    let words = lab.passphrase();
    let passphrase = lab.passphrase_file("passphrase", &words);
    lab.admit("db01", &passphrase);
    Scene {
        lab,
        source,
        target,
        passphrase,
        size,
    }
}

impl Scene {
    fn identity(&self) -> Identity {
        identity_in(&self.lab.scratch.join("state"))
    }

    #[track_caller]
    fn assert_serves(&mut self) {
        let told = self.lab.target().stderr_so_far();
        assert!(
            !told.contains("panicked") && !told.contains("fault of its own"),
            "{told}"
        );
        self.lab
            .send(PAIR, &self.source, &["--retry-for", "0"])
            .expect_done();
        assert_same(&self.source, &self.target, self.size);
    }
}

/// An RSA key of 16384 bits, as far as a certificate shows one; nobody could sign with it.
struct HugeRsa(Vec<u8>);

impl HugeRsa {
    fn new() -> Self {
        // RSAPublicKey: a SEQUENCE of the modulus, 2049 bytes with the leading zero, and the exponent 65537.
        let mut modulus = vec![0x02, 0x82, 0x08, 0x01, 0x00];
        modulus.extend([0xa7; 2048]);
        let key = [&modulus[..], &[0x02, 0x03, 0x01, 0x00, 0x01]].concat();
        let length = u16::try_from(key.len())
            .expect("the scene can be set")
            .to_be_bytes();
        Self([&[0x30, 0x82, length[0], length[1]], &key[..]].concat())
    }
}

impl PublicKeyData for HugeRsa {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &rcgen::PKCS_RSA_SHA256
    }
}

/// A certificate for the huge key, signed by the appliance's own CA.
fn huge(identity: &Identity) -> CertificateDer<'static> {
    let ca = KeyPair::try_from(identity.ca.key().to_der().as_slice()).expect("the scene can be set");
    let issuer = Issuer::from_ca_cert_der(identity.ca.certificate(), &ca).expect("the scene can be set");
    let signed = CertificateParams::default()
        .signed_by(&HugeRsa::new(), &issuer)
        .expect("the scene can be set");
    signed.der().clone()
}

#[test]
fn every_wrong_certificate_is_refused_with_its_code() {
    let mut scene = scene(4 * MIB);
    let address = scene.lab.address;
    let member = member_in(&scene.lab.source_state());
    let identity = scene.identity();
    let now = jiff::Timestamp::now();
    let hours = |count: i64| jiff::SignedDuration::from_hours(count);
    let standing = member.standing.as_ref().unwrap();
    let (own, ca) = (standing.certificate.clone(), identity.ca.certificate().clone());
    let (other, _) = Identity::create(now).unwrap();
    let stranger = LeafKey::generate().unwrap();
    let sign = |key: &LeafKey, id, role, at| certificate(&identity.ca, key, id, role, at);
    let refused = |code| Met::Answered(Err(code));

    // So that a refusal below is about the certificate and nothing else.
    assert_eq!(
        come(address, vec![own.clone(), ca.clone()], &Signs::key(&member.key)),
        Met::Answered(Ok(2))
    );

    let rows: Vec<(&str, Vec<CertificateDer<'static>>, Signs, Met)> = vec![
        ("none", vec![], Signs::Forged, Met::ShownOut),
        (
            "of another CA",
            vec![certificate(&other.ca, &member.key, member.id, Role::Source, now)],
            Signs::key(&member.key),
            Met::ShownOut,
        ),
        (
            "of another CA, with the right CA behind it",
            vec![
                certificate(&other.ca, &member.key, member.id, Role::Source, now),
                ca.clone(),
            ],
            Signs::key(&member.key),
            Met::ShownOut,
        ),
        (
            "ran out",
            vec![
                sign(&member.key, member.id, Role::Source, now - hours(100 * 24)),
                ca.clone(),
            ],
            Signs::key(&member.key),
            refused(ErrorCode::CertificateExpired),
        ),
        (
            "not valid yet",
            vec![
                sign(&member.key, member.id, Role::Source, now + hours(72)),
                ca.clone(),
            ],
            Signs::key(&member.key),
            refused(ErrorCode::CertificateNotYetValid),
        ),
        (
            "right machine and key, role relay",
            vec![sign(&member.key, member.id, Role::Relay, now), ca.clone()],
            Signs::key(&member.key),
            refused(ErrorCode::KeyUnknown),
        ),
        (
            "right machine, another key",
            vec![sign(&stranger, member.id, Role::Source, now), ca.clone()],
            Signs::key(&stranger),
            refused(ErrorCode::KeyUnknown),
        ),
        (
            "right key, another machine",
            vec![
                sign(&member.key, MachineId([9; 16]), Role::Source, now),
                ca.clone(),
            ],
            Signs::key(&member.key),
            refused(ErrorCode::KeyUnknown),
        ),
        (
            "role server",
            vec![sign(&stranger, member.id, Role::Server, now), ca.clone()],
            Signs::key(&stranger),
            Met::ShownOut,
        ),
        (
            "the CA's own, with its key",
            vec![ca.clone()],
            Signs::key(identity.ca.key()),
            Met::ShownOut,
        ),
        (
            "right, and somebody else signs",
            vec![own.clone(), ca.clone()],
            Signs::key(&stranger),
            Met::ShownOut,
        ),
        (
            "right, and nobody signs",
            vec![own.clone(), ca.clone()],
            Signs::Forged,
            Met::ShownOut,
        ),
        (
            "a chain of 50",
            vec![own.clone(); 50],
            Signs::key(&member.key),
            Met::ShownOut,
        ),
        (
            "RSA of 16384 bits, by the right CA",
            vec![huge(&identity), ca.clone()],
            Signs::Forged,
            Met::ShownOut,
        ),
        (
            "RSA of 16384 bits, by another",
            vec![huge(&other)],
            Signs::Forged,
            Met::ShownOut,
        ),
        (
            "no certificate at all",
            vec![vec![0; 300].into()],
            Signs::Forged,
            Met::ShownOut,
        ),
        (
            "nothing in it",
            vec![Vec::new().into()],
            Signs::Forged,
            Met::ShownOut,
        ),
        (
            "cut",
            vec![own[..own.len() - 1].to_vec().into()],
            Signs::key(&member.key),
            Met::ShownOut,
        ),
        (
            "60 KiB",
            vec![vec![0x30; 60 * 1024].into()],
            Signs::Forged,
            Met::ShownOut,
        ),
    ];
    for (what, chain, signs, expected) in rows {
        assert_eq!(come(address, chain, &signs), expected, "{what}");
    }
    scene.assert_serves();
    scene.lab.verb(&["machines", "revoke", "db01"]).expect_done();
    assert_eq!(
        come(address, vec![own, ca], &Signs::key(&member.key)),
        refused(ErrorCode::Revoked)
    );
}

/// A relay is admitted as what it is, and opens no pair of a machine that did not name it.
#[test]
fn a_relay_is_no_source() {
    let mut scene = scene(4 * MIB);
    let state = scene.lab.scratch.join("relay");
    let said = scene.lab.register_at(
        scene.lab.control(),
        "relay1",
        &state,
        &scene.passphrase,
        &["--role", "relay"],
    );
    said.expect_done();
    scene.lab.verb(&["machines", "approve", "relay1"]).expect_done();
    let mut peer = peer_of(&member_in(&state), scene.lab.address);
    match peer.hello(1, 2).outcome {
        Err(code) => assert_eq!(code, ErrorCode::WrongRole),
        Ok(_) => {
            peer.send(&open_message("db01", "scsi0:1", 4 * MIB), &[]);
            let refusal = peer.refusal().expect("it is refused");
            assert!(
                matches!(refusal.code, ErrorCode::WrongRole | ErrorCode::PairUnknown),
                "{refusal:?}"
            );
        }
    }
    scene.assert_serves();
}

/// A client that keeps tickets, and asks for early data: each handshake is a full one, and once its machine is revoked the
/// next is refused.
#[test]
fn no_ticket_outlives_a_revocation() {
    let scene = scene(4 * MIB);
    let member = member_in(&scene.lab.source_state());
    let config = member
        .client(Role::Server, Purpose::Data, Arc::new(DefaultTimeProvider))
        .unwrap();
    let mut config = ClientConfig::clone(&config);
    config.resumption = Resumption::in_memory_sessions(16);
    config.enable_early_data = true;
    let config = Arc::new(config);
    let come_again = || {
        let socket = TcpStream::connect(scene.lab.address).unwrap();
        let connection = ClientConnection::new(Arc::clone(&config), tls::server_name()).unwrap();
        let mut stream = StreamOwned::new(connection, socket);
        assert!(stream.conn.early_data().is_none(), "no ticket allows early data");
        let met = say_hello(&mut stream);
        (met, stream.conn.handshake_kind())
    };
    for _ in 0..3 {
        assert_eq!(come_again(), (Met::Answered(Ok(2)), Some(HandshakeKind::Full)));
    }
    scene.lab.verb(&["machines", "revoke", "db01"]).expect_done();
    assert_eq!(
        come_again(),
        (Met::Answered(Err(ErrorCode::Revoked)), Some(HandshakeKind::Full))
    );
}

/// The certificate of a machine is renewed, and used by other connections, while a long transfer of it is under way.
#[test]
fn a_transfer_outlives_the_renewal_of_its_certificate() {
    let mut scene = scene(24 * MIB);
    let state = scene.lab.source_state();
    let before = member_in(&state);
    let sending = scene.lab.start_send(
        scene.lab.address,
        PAIR,
        &scene.source,
        &["--bandwidth-limit", "4MiB", "--retry-for", "0"],
    );
    wait_until("the transfer", || {
        scene.lab.status()["jobs_running"]
            .as_array()
            .is_some_and(|jobs| !jobs.is_empty())
    });
    run(scene.lab.scratch.path(), ["renew", "--state-dir", text(&state)]).expect_done();
    let after = member_in(&state);
    assert_ne!(before.key.fingerprint(), after.key.fingerprint());
    // The first use of the new key ends the old one; the session that began with it goes on.
    let mut peer = peer_of(&after, scene.lab.address);
    assert_eq!(peer.hello(1, 2).outcome, Ok(2));
    let mut peer = peer_of(&before, scene.lab.address);
    assert_eq!(peer.hello(1, 2).outcome, Err(ErrorCode::KeyUnknown));
    sending.wait().expect_done();
    assert_same(&scene.source, &scene.target, scene.size);
    scene.assert_serves();
}

/// Something between that ends TLS, as a load balancer does, on the data port: the source hears what is wrong before it has
/// sent a byte of its disk.
#[test]
fn a_source_tells_whoever_ends_tls_nothing() {
    let mut scene = scene(4 * MIB);
    let now = jiff::Timestamp::now();
    let (identity, _) = Identity::create(now).unwrap();
    let (trust, own) = (identity.trust().unwrap(), identity.credentials().unwrap());
    let config = tls::data_server(&trust, &own, Arc::new(DefaultTimeProvider)).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let connection = ServerConnection::new(config).unwrap();
        let mut stream = StreamOwned::new(connection, socket);
        let mut read = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stream, &mut read);
        tell.send(read).unwrap();
    });
    let said = scene
        .lab
        .start_send(address, PAIR, &scene.source, &["--retry-for", "0"])
        .wait();
    said.expect_error(6, &["was not signed by the appliance", "nothing was sent"]);
    assert!(told.recv_timeout(mt_tests::agent::PATIENCE).unwrap().is_empty());
    scene.assert_serves();
}

/// Somebody who carries every byte and keeps it: replication works, what he keeps tells him nothing, and said again it does
/// nothing.
#[test]
fn recorded_replication_is_worth_nothing() {
    let mut scene = scene(4 * MIB);
    let recorder = Recorder::start(scene.lab.address);
    scene
        .lab
        .start_send(recorder.address(), PAIR, &scene.source, &[])
        .wait()
        .expect_done();
    let sent = recorder.sent();
    assert!(
        u64::try_from(sent.len()).unwrap() > scene.size,
        "the disk went through him"
    );
    let content = std::fs::read(&scene.source).unwrap();
    for secret in [&content[4096..4112], b"db01", b"scsi0:1", b"MTGT"] {
        assert!(
            !sent.windows(secret.len()).any(|window| window == secret),
            "{secret:?}"
        );
    }
    // So that a write of the recorded bytes would be seen.
    fill(&scene.target, scene.size, Fill::Random, 8);
    let before = std::fs::read(&scene.target).unwrap();
    let jobs = |scene: &Scene| {
        let document = scene.lab.verb(&["jobs", "list", "--json"]).expect_done().json();
        document["jobs"].as_array().unwrap().len()
    };
    let known = jobs(&scene);
    let mut replay = TcpStream::connect(scene.lab.address).unwrap();
    let _ = std::io::Write::write_all(&mut replay, &sent);
    let mut answer = Vec::new();
    let _ = std::io::Read::read_to_end(&mut replay, &mut answer);
    assert_eq!(jobs(&scene), known, "no session began");
    assert!(before == std::fs::read(&scene.target).unwrap());
    scene.assert_serves();
}

/// Keys are for the user of the agent alone.
#[test]
fn private_keys_are_readable_for_nobody_else() {
    let scene = scene(4 * MIB);
    let state = scene.lab.scratch.join("state");
    let backup = scene.lab.scratch.join("backup");
    scene
        .lab
        .verb(&["identity", "export", text(&backup)])
        .expect_done();
    for (path, mode) in [
        (state.clone(), 0o700),
        (state.join("identity"), 0o600),
        (scene.lab.source_state().join("member"), 0o600),
        (backup, 0o600),
    ] {
        let found = path.metadata().unwrap().permissions().mode() & 0o7777;
        assert_eq!(found, mode, "{} has mode {found:o}", path.display());
    }
    let database = state.join("state.db").metadata().unwrap().permissions().mode();
    assert_eq!(database & 0o022, 0, "{database:o}");
}

/// Whatever a peer calls itself, nothing of it moves a cursor or names a path.
#[test]
fn hostile_versions_in_a_hello_are_shown_safely() {
    let mut scene = scene(4 * MIB);
    let member = member_in(&scene.lab.source_state());
    let hello = mt_wire::Hello {
        version_min: 1,
        version_max: 2,
        role: mt_wire::Role::Source,
        features: 0,
        session_id: [7; 16],
        agent_version: "1.0".to_owned(),
    };
    for version in [&b"\x1b[2Jx"[..], b"../../etc", b"a\nb", b"\xff\xfe", b"x"] {
        let mut bytes = hello.encode();
        let at = bytes
            .windows(3)
            .position(|window| window == b"1.0")
            .expect("the version is in it");
        let end = bytes.len();
        let room = (end - at).min(version.len());
        bytes[at..at + room].copy_from_slice(&version[..room]);
        let mut peer = peer_of(&member, scene.lab.address);
        peer.send_bytes(&bytes);
        peer.send(&open_message("db01", "scsi0:1", 4 * MIB), &[]);
        peer.finish_sending();
        peer.drain();
    }
    let told = scene.lab.target().stderr_so_far();
    assert!(
        !told
            .chars()
            .any(|character| character.is_control() && character != '\n'),
        "{told:?}"
    );
    wait_until("the pair to be free", || {
        scene.lab.send(PAIR, &scene.source, &["--retry-for", "0"]).code() == Some(0)
    });
}
