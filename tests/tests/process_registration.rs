//! Registration, approval, mutual TLS and revocation between real agents, and what attackers try.

use std::collections::HashSet;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::time::Duration;

use mt_identity::registration::Fault;
use mt_identity::{Code, Passphrase};
use mt_tests::agent::{Said, wait_until};
use mt_tests::data::{Fill, assert_same, fill};
use mt_tests::disks::text;
use mt_tests::lab::{Lab, PAIR};
use mt_tests::members::{Interceptor, Recorder, member_in, peer_of, try_passphrase};
use mt_tests::peer::open_message;
use mt_wire::{ErrorCode, Extent, Message};

const MIB: u64 = 1 << 20;
const SIZE: u64 = 8 * MIB;

struct Scene {
    lab: Lab,
    source: PathBuf,
    target: PathBuf,
    passphrase: PathBuf,
    words: String,
}

/// A target that speaks TLS, with one pair; nobody has registered.
fn scene() -> Scene {
    scene_of(SIZE)
}

fn scene_of(size: u64) -> Scene {
    let mut lab = Lab::secure();
    let source = lab.scratch.sparse("source.img", size);
    fill(&source, size, Fill::Random, 77);
    let target = lab.scratch.sparse("target.img", size);
    let id = lab.add_disk(&target);
    lab.start();
    lab.pair(PAIR, &id);
    let words = lab.passphrase();
    let passphrase = lab.passphrase_file("passphrase", &words);
    Scene {
        lab,
        source,
        target,
        passphrase,
        words,
    }
}

impl Scene {
    fn send(&self) -> Said {
        self.lab.send(PAIR, &self.source, &["--retry-for", "0"])
    }

    fn register(&self, name: &str, folder: &str) -> Said {
        let state = self.lab.scratch.join(folder);
        self.lab
            .register_at(self.lab.control(), name, &state, &self.passphrase, &[])
    }
}

fn contains(haystack: &[u8], needle: &str) -> bool {
    haystack
        .windows(needle.len())
        .any(|window| window == needle.as_bytes())
}

/// The whole way of a machine, with the words that it is told in every state.
#[test]
fn a_machine_registers_is_approved_sends_renews_and_is_revoked() {
    let mut scene = scene();
    scene
        .send()
        .expect_error(3, &["not registered", "mt-agent register"]);

    let fingerprint = scene
        .lab
        .verb(&["identity", "show", "--json"])
        .expect_done()
        .json();
    assert_eq!(
        fingerprint["passphrase"],
        serde_json::Value::Null,
        "it is shown once"
    );
    let fingerprint = fingerprint["ca"]
        .as_str()
        .expect("a CA has a fingerprint")
        .to_owned();
    let state = scene.lab.source_state();
    let said = scene.lab.register_at(
        scene.lab.control(),
        "db01",
        &state,
        &scene.passphrase,
        &["--ca-fingerprint", &fingerprint],
    );
    let registered = said.expect_done().json();
    assert_eq!(registered["approved"], false);
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&state.join("member").metadata().unwrap().permissions());
    assert_eq!(mode & 0o7777, 0o600);

    scene
        .send()
        .expect_error(6, &["waits for the operator's approval", "machines approve"]);
    scene
        .lab
        .verb(&["machines", "approve", "nobody"])
        .expect_error(5, &["no machine \"nobody\""]);
    scene.lab.verb(&["machines", "approve", "db01"]).expect_done();
    scene.send().expect_done();
    assert_same(&scene.source, &scene.target, SIZE);
    scene.lab.verify(PAIR, &scene.source, &[]).expect_done();

    let before = std::fs::read(state.join("member")).unwrap();
    mt_tests::agent::run(scene.lab.scratch.path(), ["renew", "--state-dir", text(&state)]).expect_done();
    assert_ne!(before, std::fs::read(state.join("member")).unwrap());
    scene.lab.verify(PAIR, &scene.source, &[]).expect_done();
    // The key of before was replaced by the use of the new one.
    let renewed = std::fs::read(state.join("member")).unwrap();
    std::fs::write(state.join("member"), &before).unwrap();
    scene
        .send()
        .expect_error(6, &["does not know this machine's key"]);
    std::fs::write(state.join("member"), &renewed).unwrap();

    // Registry and identity are in the state: a restart changes nothing.
    scene.lab.crash_and_restart();
    scene.lab.verify(PAIR, &scene.source, &[]).expect_done();

    scene.lab.verb(&["machines", "revoke", "db01"]).expect_done();
    scene.send().expect_error(6, &["was revoked", "machines remove"]);
    scene
        .register("db01", "source-state")
        .expect_error(6, &["was revoked"]);
    scene.lab.verb(&["machines", "remove", "db01"]).expect_done();
    scene
        .send()
        .expect_error(6, &["does not know this machine's key"]);
    scene.register("db01", "source-state").expect_done();
    scene.lab.verb(&["machines", "approve", "db01"]).expect_done();
    scene.send().expect_done();

    let audit = scene.lab.verb(&["audit", "--json"]).expect_done().json();
    let entries = audit["entries"].as_array().unwrap();
    assert!(
        entries
            .iter()
            .any(|entry| entry["result"] == "certificate renewed"),
        "{audit:#}"
    );
    let acts = entries
        .iter()
        .filter(|entry| entry["what"].as_str().unwrap().contains("/v1/registry/"));
    assert_eq!(
        acts.count(),
        4,
        "two approvals, a revocation, a removal: {audit:#}"
    );
}

/// A transfer is under way when its machine is revoked. What the source sends after that must not reach the disk, and
/// the source must be told why and not try again.
#[test]
fn revoking_ends_a_transfer_that_is_under_way() {
    let scene = scene_of(64 * MIB);
    scene.lab.admit("db01", &scene.passphrase);
    let sending = scene.lab.start_send(
        scene.lab.address,
        PAIR,
        &scene.source,
        &["--bandwidth-limit", "1MiB", "--retry-for", "30"],
    );
    wait_until("the transfer", || {
        scene.lab.status()["jobs_running"]
            .as_array()
            .is_some_and(|jobs| !jobs.is_empty())
    });
    scene.lab.verb(&["machines", "revoke", "db01"]).expect_done();
    sending.wait().expect_error(6, &["revoked"]);
    wait_until("the end of the session", || {
        scene.lab.status()["jobs_running"]
            .as_array()
            .is_some_and(Vec::is_empty)
    });
    let then = std::fs::read(&scene.target).unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    assert!(
        then == std::fs::read(&scene.target).unwrap(),
        "nothing is written any more"
    );
}

/// The same id with another key, as a thief of the state folder's id or an administrator who reinstalled has it: the old
/// key stays in force until the operator has decided.
#[test]
fn another_key_waits_and_the_old_one_stays() {
    let scene = scene();
    scene.lab.admit("db01", &scene.passphrase);
    let member = member_in(&scene.lab.source_state());
    let other = mt_identity::member::Member {
        id: member.id,
        key: mt_identity::LeafKey::generate().unwrap(),
        standing: None,
    };
    let folder = scene.lab.scratch.join("thief");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("member"), &*other.to_bytes()).unwrap();
    scene.register("db01", "thief").expect_done();
    let machines = scene.lab.machines();
    assert_eq!(machines.len(), 1);
    assert_eq!(machines[0]["waiting_key"], other.key.fingerprint().to_string());
    scene.send().expect_done();
    let mut thief = peer_of(&member_in(&folder), scene.lab.address);
    assert_eq!(thief.hello(1, 2).outcome, Err(ErrorCode::ApprovalPending));
    scene.lab.verb(&["machines", "decline", "db01"]).expect_done();
    scene.send().expect_done();
    let mut thief = peer_of(&member_in(&folder), scene.lab.address);
    assert_eq!(thief.hello(1, 2).outcome, Err(ErrorCode::KeyUnknown));
}

/// Registration through someone who ends TLS with a certificate of his own. He must not register, nor read anything that
/// helps him; a machine that knows the CA's fingerprint must not even send.
#[test]
fn a_man_in_the_middle_who_ends_tls_learns_nothing_and_fails() {
    let scene = scene();
    let middle = Interceptor::start(scene.lab.control());
    let state = scene.lab.source_state();
    let said = scene
        .lab
        .register_at(middle.address(), "db01", &state, &scene.passphrase, &[]);
    said.expect_error(6, &["the two ends do not share one channel", "something between"]);
    assert!(
        middle.next_victim().starts_with(b"MTR1"),
        "he did read what was sent inside TLS"
    );
    let read = middle.read();
    let bare: String = scene
        .words
        .chars()
        .filter(|character| *character != '-')
        .collect();
    for secret in [scene.words.as_str(), &bare, "db01"] {
        assert!(!contains(&read, secret), "{secret} is in what he read");
    }
    assert!(scene.lab.machines().is_empty());

    let fingerprint = scene
        .lab
        .verb(&["identity", "show", "--json"])
        .expect_done()
        .json();
    let fingerprint = fingerprint["ca"].as_str().unwrap().to_owned();
    let more = ["--ca-fingerprint", fingerprint.as_str()];
    let said = scene
        .lab
        .register_at(middle.address(), "db01", &state, &scene.passphrase, &more);
    said.expect_error(
        6,
        &["the server's CA has the fingerprint", "compare the fingerprint"],
    );
    assert!(
        middle.next_victim().is_empty(),
        "with a fingerprint nothing is sent to him"
    );
}

/// Bytes of a registration that someone on the way recorded, sent again: nobody is registered by them, and the record
/// holds no secret.
#[test]
fn a_recorded_registration_is_worth_nothing() {
    let scene = scene();
    let recorder = Recorder::start(scene.lab.control());
    let state = scene.lab.source_state();
    let said = scene
        .lab
        .register_at(recorder.address(), "db01", &state, &scene.passphrase, &[]);
    said.expect_done();
    let sent = recorder.sent();
    assert!(sent.len() > 500, "a registration was recorded");
    for secret in [scene.words.as_str(), "db01"] {
        assert!(!contains(&sent, secret), "{secret} is in what was recorded");
    }
    // So that a registration that went through would be seen.
    scene.lab.verb(&["machines", "revoke", "db01"]).expect_done();
    scene.lab.verb(&["machines", "remove", "db01"]).expect_done();
    let mut replay = TcpStream::connect(scene.lab.control()).unwrap();
    replay.write_all(&sent).unwrap();
    let mut answer = Vec::new();
    // The appliance answers the recorded hello with keys of this connection, and then cannot read what was recorded.
    let _ = replay.read_to_end(&mut answer);
    assert!(!contains(&answer, "MTR1"));
    assert!(scene.lab.machines().is_empty());
}

/// A thousand guesses as fast as they are answered. The right passphrase must get in from the same address after the
/// wait that the appliance names, which is a minute at most.
#[test]
fn a_thousand_wrong_passphrases_lock_nobody_out_for_more_than_a_minute() {
    let scene = scene();
    let control = scene.lab.control();
    let (mut wrong, mut waits) = (0, HashSet::new());
    for _ in 0..1000 {
        match try_passphrase(control, &Passphrase::generate()) {
            Err(Fault::Opaque(_)) => wrong += 1,
            Err(Fault::Refused(refusal)) if refusal.code == Code::NotAuthenticated => wrong += 1,
            Err(Fault::Refused(refusal)) => {
                assert_eq!(refusal.code, Code::TooManyTries);
                assert!((1..=60).contains(&refusal.wait_s), "{refusal:?}");
                waits.insert(refusal.wait_s);
            }
            other => panic!("{other:?}"),
        }
    }
    println!("{wrong} guesses were looked at, waits {waits:?}");
    assert!(wrong >= 1 && !waits.is_empty());
    let state = scene.lab.source_state();
    let register = || {
        scene
            .lab
            .register_at(control, "db01", &state, &scene.passphrase, &[])
    };
    let right = Passphrase::parse(&scene.words).unwrap();
    match try_passphrase(control, &right) {
        Err(Fault::Refused(refusal)) => {
            assert_eq!(refusal.code, Code::TooManyTries);
            assert!(refusal.wait_s <= 60, "{refusal:?}");
            std::thread::sleep(Duration::from_secs(u64::from(refusal.wait_s)));
        }
        other => other.unwrap(),
    }
    register().expect_done();
}

/// A source that was taken over says what no agent says.
#[test]
fn a_malicious_source_gets_nothing_but_its_own_pair() {
    let mut scene = scene();
    let foreign = scene.lab.scratch.sparse("foreign.img", SIZE);
    fill(&foreign, SIZE, Fill::Random, 99);
    let before = std::fs::read(&foreign).unwrap();
    scene.lab.stop();
    let id = scene.lab.add_disk(&foreign);
    scene.lab.start();
    scene.lab.pair_over("web01/scsi0:0", &id);
    scene.lab.admit("db01", &scene.passphrase);
    let member = member_in(&scene.lab.source_state());
    let address = scene.lab.address;
    let connect = || {
        let mut peer = peer_of(&member, address);
        assert_eq!(peer.hello(1, 2).outcome, Ok(2));
        peer
    };

    // 1. The pair of another and one that does not exist cannot be told apart.
    let refusal_of = |machine: &str, disk: &str| {
        let mut peer = connect();
        peer.send(&open_message(machine, disk, SIZE), &[]);
        peer.refusal().expect("it is refused")
    };
    let of_another = refusal_of("web01", "scsi0:0");
    assert_eq!(of_another.code, ErrorCode::PairUnknown);
    assert_eq!(of_another, refusal_of("web99", "scsi0:0"));
    assert_eq!(of_another, refusal_of("db01", "scsi9:9"));
    assert_eq!(
        refusal_of("db01", "../../web01/scsi0:0").code,
        ErrorCode::PairUnknown
    );
    // The operator's log tells them apart, with the address and the machine that asked.
    let told = scene.lab.target().stderr_so_far();
    let asked = format!("machine {} asked for a pair ", member.id);
    assert!(told.contains(&asked) && told.contains("stream refused"), "{told}");

    // 2. Past the end of its own disk.
    let mut peer = connect();
    peer.send(&open_message("db01", "scsi0:1", SIZE), &[]);
    let opened = peer.next_of(|message| matches!(message, Message::PairOpened(_) | Message::Refused(_)));
    assert!(matches!(opened, Some(Message::PairOpened(_))), "{opened:?}");
    let payload = [7; 4096];
    let extent = Extent {
        offset: SIZE,
        len: 4096,
        digest: *blake3::hash(&payload).as_bytes(),
    };
    peer.send(&Message::Extents(vec![extent]), &payload);
    let refusal = peer.refusal().expect("it is refused");
    assert!(
        matches!(refusal.code, ErrorCode::OutOfRange | ErrorCode::ProtocolViolation),
        "{refusal:?}"
    );
    assert_eq!(std::fs::metadata(&scene.target).unwrap().len(), SIZE);

    // 3. Ten thousand streams: there is one, and every other number ends the session.
    for stream in [2, 3, 9_999, u16::MAX] {
        let mut peer = connect();
        peer.send_on(stream, &open_message("db01", "scsi0:1", SIZE));
        let refusal = peer.refusal().expect("it is refused");
        assert_eq!(refusal.code, ErrorCode::ProtocolViolation, "{refusal:?}");
    }
    let mut peer = connect();
    for stream in 1..=10_000 {
        peer.send_on(
            stream,
            &Message::Ping {
                token: u64::from(stream),
            },
        );
    }
    assert!(
        peer.refusal()
            .is_none_or(|refusal| refusal.code == ErrorCode::ProtocolViolation)
    );

    // Ten thousand pairs on one connection, and more connections than a machine may have.
    let mut peer = connect();
    for number in 0..10_000 {
        peer.send(&open_message("web01", &format!("scsi0:{number}"), SIZE), &[]);
    }
    // The connection ends; whether the refusal is read before it does is up to the network.
    if let Some(refusal) = peer.refusal() {
        assert!(
            matches!(
                refusal.code,
                ErrorCode::PairUnknown | ErrorCode::ProtocolViolation
            ),
            "{refusal:?}"
        );
    }
    let mut held = Vec::new();
    let mut refused = 0;
    for _ in 0..40 {
        let mut peer = peer_of(&member, scene.lab.address);
        match peer.hello(1, 2).outcome {
            Ok(_) => held.push(peer),
            Err(code) => {
                assert_eq!(code, ErrorCode::TooManySessions);
                refused += 1;
            }
        }
    }
    assert!(
        held.len() <= 16 && refused >= 24,
        "{} held, {refused} refused",
        held.len()
    );

    // 4. Another machine is served meanwhile.
    let web = scene.lab.scratch.join("web");
    scene.register("web01", "web").expect_done();
    scene.lab.verb(&["machines", "approve", "web01"]).expect_done();
    let mut peer = peer_of(&member_in(&web), scene.lab.address);
    assert_eq!(peer.hello(1, 2).outcome, Ok(2));
    drop((held, peer));
    assert!(
        before == std::fs::read(&foreign).unwrap(),
        "no byte of the other's disk was changed"
    );
    wait_until("places for the honest", || scene.send().code() == Some(0));
}

/// Whoever does not speak TLS, or stops in the middle, is closed; the appliance goes on.
#[test]
fn strangers_of_every_kind_are_shown_out() {
    let mut scene = scene();
    let mut random = vec![0; 64 * 1024];
    std::fs::File::open("/dev/urandom")
        .unwrap()
        .read_exact(&mut random)
        .unwrap();
    // TLS 1.2 ClientHello without supported_versions, a record of half a ClientHello, and other protocols.
    let tls12: Vec<u8> = [
        &[0x16, 3, 1, 0, 45, 1, 0, 0, 41, 3, 3][..],
        &[9; 32],
        &[0, 0, 2, 0xc0, 0x2b, 1, 0],
    ]
    .concat();
    let rows: [(&str, &[u8]); 6] = [
        ("HTTP", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"),
        ("SSH", b"SSH-2.0-OpenSSH_9.2\r\n"),
        ("SSLv3", &[0x80, 0x2e, 1, 3, 0, 0, 0, 0, 0, 0, 0, 0x10]),
        ("TLS 1.2", &tls12),
        ("random bytes", &random),
        ("half a ClientHello", &[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]),
    ];
    for port in [scene.lab.control(), scene.lab.address] {
        for (what, bytes) in rows {
            let mut socket = TcpStream::connect(port).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
            // It may be closed before all of it was taken.
            let _ = socket.write_all(bytes);
            let mut answer = Vec::new();
            match socket.read_to_end(&mut answer) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                    panic!("{what} was kept on port {port}")
                }
                _ => assert!(answer.len() < 100, "{what}: {} bytes of answer", answer.len()),
            }
        }
    }
    assert!(scene.lab.target().is_running());
    scene.lab.admit("db01", &scene.passphrase);
    scene.send().expect_done();
}

/// The appliance is lost; one with its backup is the same one for every machine, and without it is not.
#[test]
fn a_restored_appliance_is_the_same_appliance() {
    let mut scene = scene();
    scene.lab.admit("db01", &scene.passphrase);
    scene.send().expect_done();
    let backup = scene.lab.scratch.join("backup");
    let made = scene
        .lab
        .verb(&["identity", "export", text(&backup), "--json"])
        .expect_done()
        .json();
    scene
        .lab
        .verb(&["identity", "export", text(&backup)])
        .expect_error(5, &["already"]);
    let opens = scene
        .lab
        .passphrase_file("backup-passphrase", made["passphrase"].as_str().unwrap());
    let config = scene.lab.config_path();
    let scratch = scene.lab.scratch.path().to_owned();
    let import = |passphrase: &std::path::Path, more: &[&str]| {
        let mut args = vec!["identity", "import", text(&backup), "--config", text(&config)];
        args.extend(["--passphrase-file", text(passphrase)]);
        args.extend(more);
        mt_tests::agent::run(&scratch, args)
    };
    import(&opens, &[]).expect_error(5, &["in use by another agent"]);
    scene.lab.stop();
    std::fs::remove_dir_all(scene.lab.scratch.join("state")).unwrap();

    // A new appliance at the same address is a stranger to the machine.
    scene.lab.start();
    scene.lab.pair_over(PAIR, &mt_tests::lab::scsi_id(1));
    scene
        .send()
        .expect_error(6, &["was not signed by the appliance", "nothing was sent"]);
    scene.lab.stop();
    import(&scene.passphrase, &[]).expect_error(2, &["does not open the backup"]);
    import(&opens, &[]).expect_error(5, &["has an identity already", "--replace"]);
    import(&opens, &["--replace"]).expect_done();
    scene.lab.start();
    scene.send().expect_done();
    scene.lab.verify(PAIR, &scene.source, &[]).expect_done();
    // The passphrase came back with it.
    scene.register("db02", "second").expect_done();
    scene.lab.verb(&["passphrase", "rotate"]).expect_done();
    scene
        .register("db03", "third")
        .expect_error(6, &["the passphrase is wrong"]);
    scene.lab.verb(&["registration", "close"]).expect_done();
    scene
        .register("db03", "third")
        .expect_error(6, &["the time for registering machines is over"]);
    let audit = scene.lab.verb(&["audit", "--json"]).expect_done().json();
    let entries = audit["entries"].as_array().expect("entries are a list");
    let result_of = |what: &str| {
        let found = entries
            .iter()
            .find(|entry| entry["what"].as_str().is_some_and(|text| text.contains(what)));
        found.map(|entry| entry["result"].to_string()).unwrap_or_default()
    };
    // The import was made while no agent ran. The one without --replace came first, so the newest is the other.
    assert!(
        result_of("--replace").contains("done: this appliance is"),
        "{audit:#}"
    );
    assert!(
        entries.iter().any(|entry| entry["result"]
            .as_str()
            .is_some_and(|text| text.starts_with("refused: this appliance has an identity already"))),
        "{audit:#}"
    );
    assert!(
        result_of(r#"/registration {"seconds":0}"#).contains("done"),
        "{audit:#}"
    );
    assert!(
        result_of("POST /v1/identity/passphrase").contains("done"),
        "{audit:#}"
    );
    for secret in [scene.words.as_str(), made["passphrase"].as_str().unwrap()] {
        assert!(!audit.to_string().contains(secret), "a passphrase is in the log");
    }
}
