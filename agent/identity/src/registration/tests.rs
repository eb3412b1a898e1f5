//! Registration without TLS: every message in every state, wrong passphrases, replays, changed bytes.

use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

use super::message::{BODY_BYTES_MAX, HEADER_SIZE};
use super::seal::{self, Direction};
use super::*;
use crate::ca::{Ca, LeafKey};
use crate::id::{MachineId, MachineName, Role};
use crate::opaque::{KE1_SIZE, KE2_SIZE, KE3_SIZE};
use crate::passphrase::Passphrase;
use crate::testing::{answer, channel, name, now, params, secrets};

fn client(channel_byte: u8) -> (Client, Vec<u8>) {
    let key = LeafKey::generate().unwrap();
    Client::start(params(&key, channel(channel_byte))).unwrap()
}

fn sent(step: ServerStep) -> Vec<u8> {
    match step {
        ServerStep::Send(bytes) => bytes,
        other => panic!("a message to send was due, not {other:?}"),
    }
}

fn client_sent(step: ClientStep) -> Vec<u8> {
    match step {
        ClientStep::Send(bytes) => bytes,
        other => panic!("a message to send was due, not {other:?}"),
    }
}

/// A whole run; what the client sent and the server's last state.
fn run_until_decision() -> (Client, Server, [Vec<u8>; 2], Applicant) {
    let (mut client, start) = client(1);
    let mut server = Server::new(channel(1));
    let challenge = sent(server.receive(&start, &secrets().1).unwrap());
    let finish = client_sent(client.receive(&challenge).unwrap());
    match server.receive(&finish, &secrets().1).unwrap() {
        ServerStep::Decide(applicant) => (client, server, [start, finish], *applicant),
        other => panic!("a decision was due, not {other:?}"),
    }
}

#[test]
fn who_knows_the_passphrase_gets_a_certificate() {
    let ca = Ca::generate(now()).unwrap();
    let (mut client, mut server, _, applicant) = run_until_decision();
    assert_eq!(
        (applicant.id, &applicant.name, applicant.role),
        (MachineId([7; 16]), &name(), Role::Source)
    );
    let issued = server
        .accept(&answer(&ca, applicant.id, applicant.role, &applicant.request))
        .unwrap();
    let ClientStep::Done(registered) = client.receive(&issued).unwrap() else {
        panic!("the registration should be done");
    };
    assert!(!registered.approved);
    assert_eq!(registered.ca, ca.fingerprint());
    assert_eq!(registered.leaf.key, applicant.request.key());
}

#[test]
fn bytes_may_come_one_by_one() {
    let (_, start) = client(1);
    let mut server = Server::new(channel(1));
    let (last, first) = start.split_last().unwrap();
    for byte in first {
        assert!(matches!(
            server.receive(&[*byte], &secrets().1),
            Ok(ServerStep::More)
        ));
    }
    sent(server.receive(&[*last], &secrets().1).unwrap());
}

#[test]
fn a_wrong_passphrase_and_a_missing_one_look_the_same() {
    let mut without = secrets().1.clone();
    without.forget();
    let mut seen = Vec::new();
    for secrets in [&secrets().1, &without] {
        let key = LeafKey::generate().unwrap();
        let wrong = ClientParams {
            passphrase: Passphrase::generate(),
            ..params(&key, channel(1))
        };
        let (mut client, start) = Client::start(wrong).unwrap();
        let mut server = Server::new(channel(1));
        let challenge = sent(server.receive(&start, secrets).unwrap());
        let fault = client.receive(&challenge).unwrap_err();
        // Who goes on all the same with a proof that he cannot have.
        let bluff = Message::Finish {
            ke3: Box::new([3; KE3_SIZE]),
            sealed: vec![0; 300],
        };
        let refused = server.receive(&bluff.encode(), secrets).unwrap_err();
        seen.push((challenge.len(), fault, refused.answer(), refused));
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[0].1, Fault::Opaque(OpaqueError::Failed));
    let refusal = Refusal {
        code: Code::NotAuthenticated,
        wait_s: 0,
    };
    assert_eq!(seen[0].2, Some(Message::Refused(refusal).encode()));
}

#[test]
fn a_recorded_registration_replayed_fails() {
    let (_, _, [start, finish], _) = run_until_decision();
    // Even on a channel that looks the same in every respect.
    let mut server = Server::new(channel(1));
    sent(server.receive(&start, &secrets().1).unwrap());
    assert_eq!(
        server.receive(&finish, &secrets().1).unwrap_err(),
        Fault::Opaque(OpaqueError::Failed)
    );
}

#[test]
fn two_ends_that_do_not_share_the_channel_fail() {
    let (mut client, start) = client(1);
    let mut server = Server::new(channel(2));
    let challenge = sent(server.receive(&start, &secrets().1).unwrap());
    assert_eq!(
        client.receive(&challenge).unwrap_err(),
        Fault::Opaque(OpaqueError::Failed)
    );
}

#[test]
fn a_role_changed_on_the_way_fails() {
    let (mut client, mut start) = client(1);
    assert_eq!(start[HEADER_SIZE + 2], Role::Source.number());
    start[HEADER_SIZE + 2] = Role::Relay.number();
    let mut server = Server::new(channel(1));
    let challenge = sent(server.receive(&start, &secrets().1).unwrap());
    assert!(client.receive(&challenge).is_err());
}

#[test]
fn nobody_registers_as_the_server_or_in_another_version() {
    let key = LeafKey::generate().unwrap();
    let server_role = ClientParams {
        role: Role::Server,
        ..params(&key, channel(1))
    };
    assert!(matches!(
        Client::start(server_role),
        Err(Fault::Role { found: 4 })
    ));
    let (_, start) = client(1);
    for (at, value, fault) in [
        (HEADER_SIZE + 2, 4, Fault::Role { found: 4 }),
        (HEADER_SIZE + 2, 0, Fault::Role { found: 0 }),
        (HEADER_SIZE, 2, Fault::Version { found: 2 }),
    ] {
        let mut changed = start.clone();
        changed[at] = value;
        assert_eq!(
            Server::new(channel(1))
                .receive(&changed, &secrets().1)
                .unwrap_err(),
            fault
        );
    }
}

#[test]
fn a_ca_other_than_asked_for_is_not_taken() {
    let ca = Ca::generate(now()).unwrap();
    let expected = Ca::generate(now()).unwrap().fingerprint();
    let key = LeafKey::generate().unwrap();
    let pinned = ClientParams {
        ca: Some(expected),
        ..params(&key, channel(1))
    };
    let (mut client, start) = Client::start(pinned).unwrap();
    let mut server = Server::new(channel(1));
    let challenge = sent(server.receive(&start, &secrets().1).unwrap());
    let finish = client_sent(client.receive(&challenge).unwrap());
    let ServerStep::Decide(applicant) = server.receive(&finish, &secrets().1).unwrap() else {
        panic!("a decision was due");
    };
    let issued = server
        .accept(&answer(&ca, applicant.id, applicant.role, &applicant.request))
        .unwrap();
    let found = ca.fingerprint();
    assert_eq!(
        client.receive(&issued).unwrap_err(),
        Fault::OtherCa { expected, found }
    );
}

#[test]
fn certificates_for_others_are_not_taken() {
    let ca = Ca::generate(now()).unwrap();
    let other = Ca::generate(now()).unwrap();
    let (key, id) = (LeafKey::generate().unwrap(), MachineId([7; 16]));
    let request = crate::ca::Request::check(&key.request().unwrap()).unwrap();
    let good = answer(&ca, id, Role::Source, &request);
    let check = |answer: Answer| check_answer(answer, id, Role::Source, key.fingerprint());
    assert!(check(good.clone()).is_ok());
    let foreign = crate::testing::machine(&ca, Role::Source, now()).certificate;
    for (wrong, fault) in [
        (
            answer(&ca, MachineId([8; 16]), Role::Source, &request),
            Fault::NotMine,
        ),
        (answer(&ca, id, Role::Relay, &request), Fault::NotMine),
        (
            Answer {
                certificate: foreign,
                ..good.clone()
            },
            Fault::NotMine,
        ),
        (
            Answer {
                cas: vec![other.certificate().clone()],
                ..good.clone()
            },
            Fault::Certificate(CertificateError::Untrusted),
        ),
        (
            Answer {
                cas: vec![ca.certificate().clone(), vec![0; 9].into()],
                ..good.clone()
            },
            Fault::Certificate(CertificateError::Unreadable),
        ),
    ] {
        assert_eq!(check(wrong).unwrap_err(), fault);
    }
    // The successor of the CA is announced along.
    let both = vec![ca.certificate().clone(), other.certificate().clone()];
    assert_eq!(
        check(Answer {
            cas: both.clone(),
            ..good
        })
        .unwrap()
        .cas,
        both
    );
}

/// One of each message, as good as can be without the keys of the session it is thrown into.
fn one_of_each() -> Vec<Message> {
    let ca = Ca::generate(now()).unwrap();
    let key = LeafKey::generate().unwrap();
    let request = key.request().unwrap();
    let checked = crate::ca::Request::check(&request).unwrap();
    let parse = |bytes: &[u8]| Decoder::default().push(bytes).unwrap().unwrap();
    let (_, start) = client(1);
    let challenge = sent(Server::new(channel(3)).receive(&start, &secrets().1).unwrap());
    let refusal = Refusal {
        code: Code::TooManyTries,
        wait_s: 4,
    };
    vec![
        parse(&start),
        parse(&challenge),
        Message::Finish {
            ke3: Box::new([5; KE3_SIZE]),
            sealed: vec![5; 200],
        },
        Message::Issued { sealed: vec![6; 900] },
        Message::Refused(refusal),
        Message::Renew {
            version: VERSION,
            request,
        },
        Message::Renewed(answer(&ca, MachineId([7; 16]), Role::Source, &checked)),
    ]
}

/// A state: its name, how to come into it, and what it says to the messages that may come; to all others nothing but
/// that they may not.
type Row<T> = (&'static str, fn() -> T, &'static [&'static str]);

/// The whole table: what each state of the server says to each message.
#[test]
fn every_message_in_every_state_of_the_server() {
    let messages = one_of_each();
    let states: [Row<Server>; 4] = [
        (
            "AwaitStart",
            || Server::new(channel(1)),
            &["Start: send", "Refused: refused"],
        ),
        (
            "AwaitFinish",
            || {
                let mut server = Server::new(channel(1));
                sent(server.receive(&client(1).1, &secrets().1).unwrap());
                server
            },
            &["Finish: not authenticated", "Refused: refused"],
        ),
        ("AwaitDecision", || run_until_decision().1, &[]),
        (
            "Over",
            || {
                let mut server = Server::new(channel(1));
                server.refuse(Refusal {
                    code: Code::Internal,
                    wait_s: 0,
                });
                server
            },
            &[],
        ),
    ];
    for (state, make, legal) in states {
        for message in &messages {
            let mut server = make();
            let outcome = server.receive(&message.encode(), &secrets().1);
            let word = match &outcome {
                Ok(ServerStep::Send(_)) => "send",
                Ok(step) => panic!("{state}, {}: {step:?}", message.name()),
                Err(Fault::Refused(_)) => "refused",
                Err(Fault::Opaque(OpaqueError::Failed)) => "not authenticated",
                Err(Fault::Unexpected { found, .. }) if *found == message.name() => "",
                Err(fault) => panic!("{state}, {}: {fault}", message.name()),
            };
            let line = format!("{}: {word}", message.name());
            let expected = legal
                .iter()
                .find(|legal| legal.starts_with(&format!("{}:", message.name())));
            assert_eq!(
                expected.map_or(format!("{}: ", message.name()), |legal| (*legal).to_owned()),
                line,
                "{state}"
            );
            if outcome.is_err() {
                // Nothing revives a session that is over.
                for message in &messages {
                    let again = server.receive(&message.encode(), &secrets().1);
                    assert!(
                        matches!(again, Err(Fault::Unexpected { .. })),
                        "{state} {}",
                        message.name()
                    );
                }
                assert!(server.accept(&some_answer()).is_err());
            }
        }
        let mut server = make();
        let garbage = server.receive(b"GET / HTTP/1.1\r\n", &secrets().1);
        assert!(matches!(garbage, Err(Fault::Malformed(_))), "{state}");
        let mut server = make();
        let trailing = [messages[0].encode(), vec![b'M']].concat();
        assert!(server.receive(&trailing, &secrets().1).is_err(), "{state}");
        let mut server = make();
        let decided = server.accept(&some_answer());
        assert_eq!(decided.is_ok(), state == "AwaitDecision", "{state}");
    }
}

fn some_answer() -> Answer {
    let ca = Ca::generate(now()).unwrap();
    let request = LeafKey::generate().unwrap().request().unwrap();
    let request = crate::ca::Request::check(&request).unwrap();
    answer(&ca, MachineId([7; 16]), Role::Source, &request)
}

/// The whole table: what each state of the client says to each message.
#[test]
fn every_message_in_every_state_of_the_client() {
    let messages = one_of_each();
    let states: [Row<Client>; 3] = [
        (
            "AwaitChallenge",
            || client(1).0,
            &["Challenge: not authenticated", "Refused: refused"],
        ),
        (
            "AwaitIssued",
            || run_until_decision().0,
            &["Issued: changed", "Refused: refused"],
        ),
        (
            "Over",
            || {
                let mut client = client(1).0;
                let refusal = Refusal {
                    code: Code::Internal,
                    wait_s: 0,
                };
                client.receive(&Message::Refused(refusal).encode()).unwrap_err();
                client
            },
            &[],
        ),
    ];
    for (state, make, legal) in states {
        for message in &messages {
            let mut client = make();
            let word = match client.receive(&message.encode()) {
                Ok(step) => panic!("{state}, {}: {step:?}", message.name()),
                Err(Fault::Refused(_)) => "refused",
                Err(Fault::Opaque(OpaqueError::Failed)) => "not authenticated",
                Err(Fault::Seal(_)) => "changed",
                Err(Fault::Unexpected { found, .. }) if found == message.name() => "",
                Err(fault) => panic!("{state}, {}: {fault}", message.name()),
            };
            let line = format!("{}: {word}", message.name());
            let expected = legal
                .iter()
                .find(|legal| legal.starts_with(&format!("{}:", message.name())));
            assert_eq!(
                expected.map_or(format!("{}: ", message.name()), |legal| (*legal).to_owned()),
                line,
                "{state}"
            );
            for message in &messages {
                let again = client.receive(&message.encode());
                assert!(
                    matches!(again, Err(Fault::Unexpected { .. })),
                    "{state} {}",
                    message.name()
                );
            }
        }
        let garbage = make().receive(b"SSH-2.0-OpenSSH_9.2\r\n");
        assert!(matches!(garbage, Err(Fault::Malformed(_))), "{state}");
    }
}

/// Deployed agents send and expect these bytes.
#[test]
fn the_example_of_the_format_is_frozen() {
    let refusal = Refusal {
        code: Code::TooManyTries,
        wait_s: 4,
    };
    let expected = [
        0x4d, 0x54, 0x52, 0x31, 0x05, 0x00, 0x08, 0x00, 0x27, 0x00, 0x01, 0x00, 0x01, 0x00, 0x04, 0x00,
    ];
    assert_eq!(Message::Refused(refusal).encode(), expected);
    let start = Message::Start {
        version: 1,
        role: 1,
        ke1: Box::new([0xaa; KE1_SIZE]),
    }
    .encode();
    assert_eq!(start[..11], [0x4d, 0x54, 0x52, 0x31, 1, 0, 99, 0, 1, 0, 1]);
    assert_eq!(start.len(), 8 + 3 + KE1_SIZE);
    assert_eq!(
        Message::Challenge {
            ke2: Box::new([0; KE2_SIZE])
        }
        .encode()
        .len(),
        8 + 320
    );
}

#[test]
fn lengths_are_checked_before_anything_is_waited_for() {
    let header = |kind: u8, len: u16| [&b"MTR1"[..], &[kind, 0], &len.to_le_bytes()].concat();
    assert_eq!(
        Decoder::default().push(&header(1, u16::MAX)),
        Err(Malformed::TooLarge {
            field: "body",
            found: 65535,
            max: BODY_BYTES_MAX
        })
    );
    assert!(matches!(
        Decoder::default().push(&vec![b'M'; 1 << 20]),
        Err(Malformed::TooLarge { field: "message", .. })
    ));
    assert!(Decoder::default().push(&header(99, 0)).is_err());
    assert!(
        Decoder::default()
            .push(&[&header(1, 0)[..], b"x"].concat())
            .is_err()
    );
    assert_eq!(Decoder::default().push(b"MTR"), Ok(None));
}

fn flipped(bytes: &[u8], at: usize, mask: u8) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = at % bytes.len();
    bytes[at] ^= mask;
    bytes
}

proptest! {
    #[test]
    fn messages_round_trip(
        version in any::<u16>(), role in any::<u8>(), ke1 in any::<[u8; 32]>(),
        sealed in proptest::collection::vec(any::<u8>(), 16..4000), code in any::<u16>(), wait_s in any::<u16>(),
        request in proptest::collection::vec(any::<u8>(), 0..1024), approved in any::<bool>(), cas in 1_usize..3,
        piece in 1_usize..300,
    ) {
        let answer = Answer {
            approved,
            cas: vec![sealed[..sealed.len().min(2048)].to_vec().into(); cas],
            certificate: request.clone().into(),
        };
        for message in [
            Message::Start { version, role, ke1: Box::new([ke1, ke1, ke1].concat().try_into().unwrap()) },
            Message::Challenge { ke2: Box::new([ke1[0]; KE2_SIZE]) },
            Message::Finish { ke3: Box::new([ke1[1]; KE3_SIZE]), sealed: sealed.clone() },
            Message::Issued { sealed: sealed.clone() },
            Message::Refused(Refusal { code: Code::from_number(code), wait_s }),
            Message::Renew { version, request: request.clone() },
            Message::Renewed(answer),
        ] {
            let bytes = message.encode();
            let mut decoder = Decoder::default();
            let mut decoded = None;
            for piece in bytes.chunks(piece) {
                prop_assert!(decoded.is_none());
                decoded = decoder.push(piece).unwrap();
            }
            prop_assert_eq!(decoded, Some(message));
        }
    }

    #[test]
    fn applications_round_trip(id in any::<[u8; 16]>(), name in "[!-.0-~]{1,128}", request in proptest::collection::vec(any::<u8>(), 0..1024)) {
        let application = Application { id: MachineId(id), name: MachineName::new(&name).unwrap(), request };
        prop_assert_eq!(Application::decode(&application.encode()).unwrap(), application);
    }

    #[test]
    fn any_change_of_what_is_sealed_is_noticed(plain in proptest::collection::vec(any::<u8>(), 0..300), at in any::<usize>(), mask in 1_u8..) {
        let (key, tied) = ([1; 64], [2; 64]);
        let sealed = seal::seal(&key, Direction::ToServer, &tied, plain.clone()).unwrap();
        prop_assert_eq!(seal::open(&key, Direction::ToServer, &tied, sealed.clone()).unwrap(), plain);
        prop_assert!(seal::open(&key, Direction::ToServer, &tied, flipped(&sealed, at, mask)).is_err());
        prop_assert!(seal::open(&key, Direction::ToServer, &flipped(&tied, at, mask), sealed.clone()).is_err());
        prop_assert!(seal::open(&key, Direction::ToClient, &tied, sealed.clone()).is_err());
        prop_assert!(seal::open(&flipped(&key, at, mask).try_into().unwrap(), Direction::ToServer, &tied, sealed).is_err());
    }

    #[test]
    fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..600), kind in 0_u8..20) {
        crate::fuzz::messages(&bytes);
        crate::fuzz::sealed_parts(&bytes);
        let len = u16::try_from(bytes.len()).unwrap();
        let framed = [&[7][..], b"MTR1", &[kind, 0], &len.to_le_bytes(), &bytes].concat();
        crate::fuzz::messages(&framed);
    }
}

proptest! {
    // Each case may run Argon2id.
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn a_changed_byte_of_the_start_never_registers(at in any::<usize>(), mask in 1_u8..) {
        // Whatever the server makes of it, it has not the client's run any more.
        let (mut client, start) = client(1);
        let mut server = Server::new(channel(1));
        if let Ok(ServerStep::Send(challenge)) = server.receive(&flipped(&start, at, mask), &secrets().1) {
            prop_assert!(client.receive(&challenge).is_err());
        }
    }
}

/// What no client of ours sends: names that would be a path, another line, or a command to a terminal.
#[test]
fn hostile_names_in_an_application_are_refused() {
    let good = Application {
        id: MachineId([7; 16]),
        name: MachineName::new("0123456789abcdef").unwrap(),
        request: vec![1, 2, 3],
    };
    let bytes = good.encode();
    assert_eq!(Application::decode(&bytes), Ok(good));
    let at = bytes.windows(4).position(|window| window == b"0123").unwrap();
    for name in [
        &b"../../etc/passwd"[..],
        b"a\nb.............",
        b"\x1b[2J............",
        b"a b.............",
        b"\0...............",
        b"\xff\xfe..............",
        "\u{202e}.............".as_bytes(),
    ] {
        let mut changed = bytes.clone();
        changed[at..at + 16].copy_from_slice(name);
        assert!(Application::decode(&changed).is_err(), "{name:?}");
    }
    // Longer than any name, and longer than there are bytes.
    for length in [129_u16, 4096, u16::MAX] {
        let mut changed = bytes.clone();
        changed[at - 2..at].copy_from_slice(&length.to_le_bytes());
        changed.resize(at + usize::from(length), b'x');
        assert!(Application::decode(&changed).is_err(), "{length}");
    }
}
