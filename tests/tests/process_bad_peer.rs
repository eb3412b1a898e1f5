//! Peers that lie, stammer or fall silent, on the wire itself. Whatever they send, nothing is written that they may not
//! write, everybody is told why, and the agent lives on to serve the next one.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use mt_tests::agent::PATIENCE;
use mt_tests::data::{Fill, MIB, Random, assert_same, fill};
use mt_tests::disks::Canaries;
use mt_tests::lab::{Lab, PAIR};
use mt_tests::measure::memory_of;
use mt_tests::peer::{PAIR_STREAM, Peer, open_message};
use mt_wire::{ErrorCode, Extent, Hello, HelloReply, Message, PairOpened, Range, SeedingEnd, frame};

const SIZE: u64 = 4 * MIB;

struct Scene {
    lab: Lab,
    source: std::path::PathBuf,
    target: std::path::PathBuf,
    canaries: Canaries,
}

fn scene() -> Scene {
    let mut lab = Lab::new();
    let source = lab.scratch.sparse("source.img", SIZE);
    fill(&source, SIZE, Fill::Random, 41);
    // Longer than what a source may write: what lies behind is a canary too.
    let target = lab.scratch.sparse("target.img", 2 * SIZE);
    fill(&target, 2 * SIZE, Fill::Random, 42);
    let mut canaries = Canaries::new(&lab.scratch, 2);
    let id = lab.add_disk(&target);
    for path in canaries.paths() {
        lab.add_disk(path);
    }
    canaries.watch(&target, 2 * SIZE);
    lab.start();
    lab.pair_over(PAIR, &id);
    Scene {
        lab,
        source,
        target,
        canaries,
    }
}

impl Scene {
    fn open(&self) -> Peer {
        let begin = Instant::now();
        loop {
            let (peer, answer) = Peer::open(self.lab.address, "db01", "scsi0:1", SIZE);
            // A session that was refused lets go of its pair a moment after it said so.
            let busy = matches!(&answer, Message::Refused(refusal) if refusal.code == ErrorCode::PairBusy);
            if busy && begin.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(20));
                continue;
            }
            assert!(matches!(answer, Message::PairOpened(_)), "{answer:?}");
            return peer;
        }
    }

    /// The target has refused the peer with one of these codes, wrote nothing, and goes on.
    #[track_caller]
    fn assert_refused(&mut self, mut peer: Peer, codes: &[ErrorCode]) {
        let refusal = peer.refusal().expect("the target says why");
        assert!(codes.contains(&refusal.code), "{refusal:?}");
        assert!(!refusal.text.is_empty());
        self.assert_alive();
    }

    #[track_caller]
    fn assert_alive(&mut self) {
        assert!(self.lab.target().is_running(), "the target ended");
        assert!(
            !self.lab.target().stderr_so_far().contains("panicked"),
            "the target panicked"
        );
        self.canaries.assert_untouched();
        let status = self.lab.status();
        assert_eq!(status["schema"], 1);
    }

    /// After all that, an honest source gets its copy.
    #[track_caller]
    fn assert_serves(mut self) {
        self.lab
            .send(PAIR, &self.source, &["--retry-for", "30"])
            .expect_done();
        assert_same(&self.source, &self.target, SIZE);
        self.lab.stop();
    }
}

fn extent(offset: u64, content: &[u8]) -> Extent {
    Extent {
        offset,
        len: u32::try_from(content.len()).expect("extents are small"),
        digest: *blake3::hash(content).as_bytes(),
    }
}

#[test]
fn garbage_before_the_hello_is_not_answered_at_length() {
    let mut scene = scene();
    let rows: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\nHost: appliance\r\n\r\n-------------------------------------",
        &[0; 64],
        &[0xff; 64],
        &Random::new(1).bytes(4096),
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2+deb12u3 padding padding padding padding",
    ];
    for bytes in rows {
        let mut peer = Peer::connect(scene.lab.address);
        peer.send_bytes(bytes);
        peer.finish_sending();
        let answered = peer.drain();
        assert!(
            answered <= 64,
            "{answered} bytes were said to somebody who is no peer"
        );
        scene.assert_alive();
    }
    scene.assert_serves();
}

#[test]
fn another_version_is_refused_in_words_before_any_write() {
    let mut scene = scene();
    for (min, max) in [(3, 9), (0, 0), (9, 2), (u16::MAX, u16::MAX)] {
        let mut peer = Peer::connect(scene.lab.address);
        let reply = peer.hello(min, max);
        assert_eq!(
            reply.outcome,
            Err(ErrorCode::VersionUnsupported),
            "versions {min} to {max}"
        );
        assert_eq!((reply.version_min, reply.version_max), (1, 2));
        peer.drain();
    }
    scene.assert_alive();
    scene.assert_serves();
}

/// A hello, or a frame, that stops in the middle: the end of the stream is noticed at once, silence by time.
#[test]
fn half_a_hello_and_half_a_frame_end_the_session() {
    let mut scene = scene();
    let mut peer = Peer::connect(scene.lab.address);
    peer.send_bytes(b"MTGT\r\n\x1a\n");
    peer.finish_sending();
    peer.drain();

    let mut peer = Peer::connect(scene.lab.address);
    peer.send_bytes(b"MTGT");
    // Ten seconds are allowed for a hello; then the target hangs up by itself.
    peer.drain();
    scene.assert_alive();

    let mut peer = scene.open();
    let content = vec![1; 65536];
    let bytes = frame::encode(&Message::Extents(vec![extent(0, &content)]), PAIR_STREAM, 2);
    peer.send_bytes(&bytes);
    peer.send_bytes(&content[..1000]);
    peer.finish_sending();
    peer.drain();
    scene.assert_alive();
    scene.assert_serves();
}

#[test]
fn lengths_beyond_the_limits_are_refused_without_memory_for_them() {
    let mut scene = scene();
    let before = memory_of(scene.lab.target().pid());
    for (place, value) in [(8, u32::MAX), (12, u32::MAX), (8, 65537), (12, 1024 * 1024 + 1)] {
        let mut peer = scene.open();
        let sequence = peer.next_sequence();
        let mut bytes = frame::encode(&Message::Ping { token: 1 }, PAIR_STREAM, sequence);
        bytes[place..place + 4].copy_from_slice(&value.to_le_bytes());
        let crc = crc32c(&bytes[..28]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        peer.send_bytes(&bytes);
        scene.assert_refused(peer, &[ErrorCode::ProtocolViolation]);
    }
    // A list that says it has four thousand million entries, in a body of a few bytes.
    for kind in [36, 37, 38, 39, 40] {
        let mut peer = scene.open();
        let sequence = peer.next_sequence();
        peer.send_bytes(&frame::encode_raw(
            kind,
            false,
            PAIR_STREAM,
            sequence,
            &[0xff; 64],
            0,
        ));
        scene.assert_refused(peer, &[ErrorCode::ProtocolViolation]);
    }
    let after = memory_of(scene.lab.target().pid());
    assert!(
        after < before + 64 * MIB,
        "memory went from {before} to {after} bytes"
    );
    scene.assert_serves();
}

#[test]
fn writes_past_the_end_of_the_protected_disk_are_refused() {
    let content = vec![7; 4096];
    for offset in [SIZE, SIZE + MIB, SIZE - 512, 2 * SIZE, 1 << 49, u64::MAX - 4095] {
        let mut scene = scene();
        let mut peer = scene.open();
        // What cannot be encoded honestly is put together by hand.
        let mut body = 1_u32.to_le_bytes().to_vec();
        body.extend_from_slice(&offset.to_le_bytes());
        body.extend_from_slice(&4096_u32.to_le_bytes());
        body.extend_from_slice(&0_u32.to_le_bytes());
        body.extend_from_slice(blake3::hash(&content).as_bytes());
        let kind = Message::Extents(vec![extent(0, &content)]).kind();
        let sequence = peer.next_sequence();
        let mut bytes = frame::encode_raw(kind, false, PAIR_STREAM, sequence, &body, content.len());
        bytes.extend_from_slice(&content);
        peer.send_bytes(&bytes);
        scene.assert_refused(peer, &[ErrorCode::OutOfRange, ErrorCode::ProtocolViolation]);

        let mut peer = scene.open();
        peer.send(
            &Message::ZeroRanges(vec![Range {
                offset: offset.min(1 << 49),
                len: 4096,
            }]),
            &[],
        );
        scene.assert_refused(peer, &[ErrorCode::OutOfRange, ErrorCode::ProtocolViolation]);
    }
}

/// Content that is not what its digest says, and messages that come where they may not.
#[test]
fn lies_and_disorder_end_the_session() {
    let mut scene = scene();
    let content = vec![9; 4096];

    let mut peer = scene.open();
    let announced = peer.next_of(|message| matches!(message, Message::Digests(_)));
    let Some(Message::Digests(announced)) = announced else {
        panic!("digests come by themselves");
    };
    let mut lie = extent(announced.offset, &content);
    lie.digest[0] ^= 1;
    peer.send(&Message::Extents(vec![lie]), &content);
    scene.assert_refused(peer, &[ErrorCode::DigestMismatch]);

    let out_of_place: Vec<Message> = vec![
        open_message("db01", "scsi0:1", SIZE),
        Message::SeedingDone,
        Message::Durable { offset: 0 },
        Message::SeedingEnd(SeedingEnd {
            bytes_sent: 0,
            bytes_zeroed: 0,
        }),
        Message::RegionDone { offset: 64 * MIB },
    ];
    for message in out_of_place {
        let mut peer = scene.open();
        peer.send(&message, &[]);
        scene.assert_refused(peer, &[ErrorCode::ProtocolViolation, ErrorCode::OutOfRange]);
    }

    // A frame that is sent twice, and one that is left out.
    for sequence in [1, 3] {
        let mut peer = scene.open();
        peer.send_bytes(&frame::encode(&Message::Ping { token: 1 }, PAIR_STREAM, sequence));
        scene.assert_refused(peer, &[ErrorCode::ProtocolViolation]);
    }

    // A pair of somebody else, and names that are none.
    for (machine, disk) in [("db02", "scsi0:1"), ("db01", "../../etc"), ("db01", "x\u{1b}[2J")] {
        let mut peer = Peer::connect(scene.lab.address);
        assert_eq!(peer.hello(1, 1).outcome, Ok(1));
        peer.send(&open_message(machine, disk, SIZE), &[]);
        scene.assert_refused(peer, &[ErrorCode::PairUnknown, ErrorCode::ProtocolViolation]);
    }
    scene.assert_serves();
}

/// Random frames of right shape and random bytes behind a right beginning, from a fixed seed.
#[test]
fn random_frames_do_no_harm() {
    let mut scene = scene();
    let mut random = Random::new(0x00c0_ffee);
    for _ in 0..200 {
        let (mut peer, _) = Peer::open(scene.lab.address, "db01", "scsi0:1", SIZE);
        let sequence = peer.next_sequence();
        let kind = u8::try_from(random.below(256)).expect("below 256");
        let len = usize::try_from(random.below(200)).expect("below 200");
        let body = random.bytes(len);
        peer.send_bytes(&frame::encode_raw(
            kind,
            random.below(2) == 0,
            PAIR_STREAM,
            sequence,
            &body,
            0,
        ));
        peer.send_bytes(&random.bytes(64));
        peer.finish_sending();
        peer.drain();
    }
    scene.assert_alive();
    scene.assert_serves();
}

fn opened(size_of_window: u16) -> Message {
    Message::PairOpened(PairOpened {
        seeding_id: [1; 16],
        start: 0,
        generation: 1,
        region_window: size_of_window,
        scsi_id: "naa.6000c290".to_owned(),
    })
}

fn accept(hello: &Hello) -> HelloReply {
    HelloReply {
        version_min: 1,
        version_max: 1,
        outcome: Ok(1),
        features: 0,
        session_id: hello.session_id,
        agent_version: "test".to_owned(),
    }
}

/// The other way round: a target that is none, for a real source. It ends with an error that names the cause.
#[test]
fn a_source_notices_a_target_that_is_none() {
    type Script = fn(Peer);
    let rows: [(&str, Script, &[i32], &str); 7] = [
        (
            "another service",
            |mut peer| {
                peer.send_bytes(
                    b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n--------",
                );
                peer.drain();
            },
            &[6],
            "does not speak this protocol",
        ),
        (
            // Only its own direction: to close with the hello unread is a reset, which comes instead of the end.
            "closes at once",
            |mut peer| {
                peer.finish_sending();
                peer.drain();
            },
            &[6],
            "closed",
        ),
        (
            "newer version",
            |mut peer| {
                peer.welcome(|hello| HelloReply {
                    version_min: 3,
                    version_max: 4,
                    outcome: Err(ErrorCode::VersionUnsupported),
                    ..accept(hello)
                });
                peer.drain();
            },
            &[6],
            "versions 3 to 4",
        ),
        (
            "chose a version that was not offered",
            |mut peer| {
                peer.welcome(|hello| HelloReply {
                    outcome: Ok(7),
                    ..accept(hello)
                });
                peer.drain();
            },
            &[6],
            "version 7",
        ),
        (
            "garbage for frames",
            |mut peer| {
                peer.welcome(accept);
                peer.send_bytes(&[0x55; 64]);
                peer.drain();
            },
            &[6, 8],
            "does not speak this protocol",
        ),
        (
            "says done before anything was compared",
            |mut peer| {
                peer.welcome(accept);
                peer.send(&opened(4), &[]);
                peer.send(&Message::SeedingDone, &[]);
                peer.drain();
            },
            &[6],
            "broke the protocol",
        ),
        (
            "says durable of what was not sent",
            |mut peer| {
                peer.welcome(accept);
                peer.send(&opened(4), &[]);
                peer.send(&Message::Durable { offset: SIZE }, &[]);
                peer.drain();
            },
            &[6],
            "broke the protocol",
        ),
    ];
    let lab = Lab::new();
    let source = lab.scratch.sparse("source.img", SIZE);
    fill(&source, SIZE, Fill::Random, 43);
    for (name, script, codes, words) in rows {
        let listener = TcpListener::bind("127.0.0.1:0").expect("there are free ports");
        let address = listener.local_addr().expect("a listener has an address");
        let fake = std::thread::spawn(move || script(Peer::accept(&listener)));
        let said = lab
            .start_send(address, PAIR, &source, &["--retry-for", "0"])
            .wait();
        assert!(
            said.code().is_some_and(|code| codes.contains(&code)),
            "{name}: {said}"
        );
        let error = said.event("error")["error"].to_string();
        assert!(error.contains(words), "{name}: \"{words}\" is not in {error}");
        fake.join().unwrap();
    }
}

/// CRC-32C, bit by bit: an own one, so that a wrong table in the agent would show.
fn crc32c(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0_u32, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0x82f6_3b78 & (crc & 1).wrapping_neg())
        })
    })
}
