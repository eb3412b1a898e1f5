// SPDX-License-Identifier: MIT OR Apache-2.0
//! What comes over the network.

use mt_identity::registration::message::{Answer, Message as Registration, VERSION};
use mt_identity::registration::{Channel, Client, ClientParams, Refusal};
use mt_identity::{Ca, Code, Fingerprint, LeafKey, MachineId, MachineName, Passphrase, Role};
use mt_wire::limits::FRAME_HEADER_SIZE;
use mt_wire::message::{
    BeginEpoch, Consistency, Digests, EndEpoch, EpochBegun, EpochDurable, EpochExtents, EpochTotals,
    EpochZeroRanges, ErrorCode, Extent, MachineDisk, MachineOpened, Message, Mode, OpenMachine, OpenPair,
    PairOpened, Range, Refusal as Refused, SeedingEnd, SubDigests, Tag, WantSubDigests,
};
use mt_wire::{Hello, HelloReply, frame};

use crate::Corpus;

pub fn make(corpus: &Corpus) {
    hellos(corpus);
    replication(corpus);
    registration(corpus);
    nbd(corpus);
}

fn hellos(corpus: &Corpus) {
    let hello = Hello {
        version_min: 1,
        version_max: 2,
        role: mt_wire::Role::Source,
        features: 5,
        session_id: *b"0123456789abcdef",
        agent_version: "0.1.0".to_owned(),
    };
    corpus.put("wire_hello", "hello", hello.encode());
    for (name, outcome) in [
        ("accepted", Ok(1)),
        ("refused", Err(ErrorCode::VersionUnsupported)),
    ] {
        let reply = HelloReply {
            version_min: 1,
            version_max: 1,
            outcome,
            features: 0,
            session_id: *b"0123456789abcdef",
            agent_version: "0.1.0".to_owned(),
        };
        corpus.put("wire_hello", name, reply.encode());
    }
}

fn messages() -> Vec<Message> {
    let extent = |offset| Extent {
        offset,
        len: 4096,
        digest: [9; 32],
    };
    let ranges = vec![
        Range { offset: 0, len: 4096 },
        Range {
            offset: 1 << 20,
            len: 1 << 20,
        },
    ];
    let pair = |mode| {
        Message::OpenPair(OpenPair {
            mode,
            machine: "db01".to_owned(),
            disk: "scsi0:1".to_owned(),
            size: 20 << 30,
            logical_block_size: 512,
            resume_seeding_id: [3; 16],
            resume_offset: 1 << 20,
            generation: 4,
        })
    };
    vec![
        Message::Ping { token: 7 },
        Message::Pong { token: 7 },
        Message::Close,
        Message::Refused(Refused {
            code: ErrorCode::from_number(3),
            text: "the pair is written by another source".to_owned(),
            hint: "stop that one".to_owned(),
        }),
        pair(Mode::Seed),
        pair(Mode::Verify),
        pair(Mode::Epoch),
        Message::PairOpened(PairOpened {
            seeding_id: [3; 16],
            start: 1 << 20,
            generation: 4,
            region_window: 16,
            scsi_id: "naa.6000c29a71e02b4c9d118e55037faa01".to_owned(),
        }),
        Message::Digests(Digests {
            offset: 0,
            len: 3 << 16,
            blocks: vec![Some([1; 32]), None, Some([2; 32])],
        }),
        Message::WantSubDigests(WantSubDigests { offset: 0, blocks: 5 }),
        Message::SubDigests(SubDigests {
            offset: 0,
            blocks: 5,
            digests: vec![[4; 32]; 32],
        }),
        Message::Extents(vec![extent(0), extent(8192)]),
        Message::ZeroRanges(ranges.clone()),
        Message::RegionDone { offset: 1 << 20 },
        Message::Durable { offset: 1 << 20 },
        Message::SeedingEnd(SeedingEnd {
            bytes_sent: 8192,
            bytes_zeroed: 4096,
        }),
        Message::SeedingDone,
        Message::OpenMachine(OpenMachine {
            machine: "db01".to_owned(),
            generation: 4,
            store_id: [5; 16],
            confirmed_epoch: 12,
            disks: (0..3)
                .map(|index| MachineDisk {
                    name: format!("scsi0:{index}"),
                    size: 20 << 30,
                    logical_block_size: 512,
                })
                .collect(),
        }),
        Message::MachineOpened(MachineOpened {
            generation: 4,
            store_id: [5; 16],
            newest_epoch: 12,
        }),
        Message::BeginEpoch(BeginEpoch {
            resume_epoch_id: [6; 16],
        }),
        Message::EpochBegun(EpochBegun {
            epoch_id: [6; 16],
            epoch: 13,
        }),
        Message::EndEpoch(EndEpoch {
            consistency: Consistency::FileSystem,
            time_ms: 1_772_445_600_000,
            name: "before the update".to_owned(),
            tags: vec![Tag {
                key: "by".to_owned(),
                value: "ops".to_owned(),
            }],
            totals: EpochTotals {
                bytes_sent: 8192,
                bytes_zeroed: 4096,
                chain: [8; 32],
            },
        }),
        Message::EpochDurable(EpochDurable { epoch: 13, point: 13 }),
        Message::AbandonEpoch,
        Message::EpochAbandoned,
        Message::EpochExtents(EpochExtents {
            disk: 1,
            extents: vec![extent(0), extent(8192)],
        }),
        Message::EpochZeroRanges(EpochZeroRanges { disk: 2, ranges }),
        Message::Received { offset: 1 << 20 },
    ]
}

fn replication(corpus: &Corpus) {
    let mut streams: Vec<Vec<u8>> = vec![vec![255]; 3];
    for (index, message) in messages().iter().enumerate() {
        let payload_len = message.payload_len();
        let framed = frame::encode(message, 1, 1);
        // The kind, the length of the payload, and the body.
        let body = [&framed[4..5], &framed[12..16], &framed[FRAME_HEADER_SIZE..]].concat();
        corpus.put("wire_message", &format!("{index:02}-{}", message.name()), &body);
        let count = streams.len();
        let stream = &mut streams[index % count];
        let sequence = u64::try_from(index / count + 1).unwrap();
        stream.extend_from_slice(&frame::encode(message, 1, sequence));
        stream.resize(stream.len() + payload_len, 0x5a);
    }
    for (index, stream) in streams.into_iter().enumerate() {
        // With all of it at once, and in pieces.
        corpus.put("wire_frames", &format!("stream-{index}"), &stream);
        corpus.put(
            "wire_frames",
            &format!("small-{index}"),
            [&[63], &stream[1..]].concat(),
        );
    }
    let unknown = frame::encode_raw(200, true, 1, 1, b"whatever", 16);
    corpus.put(
        "wire_frames",
        "unknown",
        [&[255], &unknown[..], &[0; 16]].concat(),
    );
}

fn registration(corpus: &Corpus) {
    let now = "2026-03-02T10:00:00Z".parse().unwrap();
    let ca = Ca::generate(now).unwrap();
    let key = LeafKey::generate().unwrap();
    let leaf = ca.sign_own(&key, MachineId([1; 16]), now).unwrap().certificate;
    let request = key.request().unwrap();
    for (name, bytes) in [
        ("ca", ca.certificate().to_vec()),
        ("leaf", leaf.to_vec()),
        ("request", request.clone()),
        ("key", key.to_der().to_vec()),
    ] {
        corpus.put("certificates", name, bytes);
    }
    let params = ClientParams {
        passphrase: Passphrase::generate(),
        channel: Channel {
            exporter: [1; 32],
            server_key: Fingerprint([2; 32]),
        },
        role: Role::Source,
        id: MachineId([7; 16]),
        name: MachineName::new("db01").unwrap(),
        key: &key,
        ca: None,
    };
    let (_, start) = Client::start(params).unwrap();
    let answer = Answer {
        approved: true,
        cas: vec![ca.certificate().clone(); 2],
        certificate: leaf,
    };
    let finish = Registration::Finish {
        ke3: Box::new([1; 64]),
        sealed: vec![1; 300],
    };
    let renew = Registration::Renew {
        version: VERSION,
        request: request.clone(),
    };
    let renewed = Registration::Renewed(answer).encode();
    let refused = Registration::Refused(Refusal {
        code: Code::TooManyTries,
        wait_s: 9,
    });
    let challenge = Registration::Challenge {
        ke2: Box::new([1; 320]),
    };
    let whole = |message: &[u8]| [&[200], message].concat();
    for (name, message) in [
        ("start", start.clone()),
        ("challenge", challenge.encode()),
        ("finish", finish.encode()),
        ("refused", refused.encode()),
        ("renew", renew.encode()),
        ("renewed", renewed.clone()),
    ] {
        corpus.put("registration_messages", name, whole(&message));
        corpus.put("registration_server", name, whole(&message));
    }
    // What is sealed in a finish: id, name and request.
    let mut application = vec![7; 16];
    for part in [&b"db01"[..], &request] {
        application.extend_from_slice(&u16::try_from(part.len()).unwrap().to_le_bytes());
        application.extend_from_slice(part);
    }
    corpus.put("registration_messages", "application", application);
    let run = [start, finish.encode()].concat();
    corpus.put("registration_server", "run", whole(&run));
    corpus.put("registration_client", "renewed", &renewed);
    corpus.put("registration_client", "answer", &renewed[8..]);
    texts(corpus, &ca);
    for (name, bytes) in [
        (
            "identity",
            &include_bytes!("../../../../agent/identity/tests/fixtures/identity-v1.bin")[..],
        ),
        (
            "backup",
            include_bytes!("../../../../agent/identity/tests/fixtures/backup-v1.bin"),
        ),
        (
            "member",
            include_bytes!("../../../../agent/identity/tests/fixtures/member-v1.bin"),
        ),
    ] {
        corpus.put("identity_files", name, bytes);
    }
}

fn texts(corpus: &Corpus, ca: &Ca) {
    let rows = [
        ("passphrase", "7M4QX-0JD2K-9WVTB-H3RFC-8NZE5Y".to_owned()),
        (
            "own-passphrase",
            "correct horse battery staple and some more".to_owned(),
        ),
        ("fingerprint", ca.fingerprint().to_string()),
        ("machine-id", MachineId([0xa5; 16]).to_string()),
        ("machine", "db01".to_owned()),
    ];
    for (name, text) in rows {
        corpus.put("identity_texts", name, text);
    }
}

/// Clients of an export: a name is chosen, and its disk read and written.
fn nbd(corpus: &Corpus) {
    let option = |number: u32, data: &[u8]| {
        let mut bytes = b"IHAVEOPT".to_vec();
        bytes.extend_from_slice(&number.to_be_bytes());
        bytes.extend_from_slice(&u32::try_from(data.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(data);
        bytes
    };
    let go = |number, name: &str| {
        let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
        data.extend_from_slice(name.as_bytes());
        data.extend_from_slice(&[0, 1, 0, 3]);
        option(number, &data)
    };
    let request = |command: u16, offset: u64, len: u32, content: &[u8]| {
        let mut bytes = 0x2560_9513_u32.to_be_bytes().to_vec();
        bytes.extend_from_slice(&[0, 0]);
        bytes.extend_from_slice(&command.to_be_bytes());
        bytes.extend_from_slice(&7_u64.to_be_bytes());
        bytes.extend_from_slice(&offset.to_be_bytes());
        bytes.extend_from_slice(&len.to_be_bytes());
        bytes.extend_from_slice(content);
        bytes
    };
    let begin = [255, 0, 0, 0, 3];
    let requests = [
        request(0, 0, 4096, &[]),
        request(1, 512, 512, &[0x5a; 512]),
        request(3, 0, 0, &[]),
        request(99, 0, 0, &[]),
        request(2, 0, 0, &[]),
    ]
    .concat();
    corpus.put(
        "nbd_client",
        "go",
        [
            &begin[..],
            &option(3, &[]),
            &go(6, ""),
            &go(7, "scsi0:1"),
            &requests,
        ]
        .concat(),
    );
    corpus.put(
        "nbd_client",
        "export-name",
        [&begin[..], &option(1, b"scsi0:0"), &requests].concat(),
    );
    corpus.put(
        "nbd_client",
        "abort",
        [&begin[..], &option(8, &[]), &option(2, &[])].concat(),
    );
}
