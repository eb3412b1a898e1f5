//! Frames at every border, and cut at every byte. The exact range is written, and nothing else; half a frame never is.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mt_tests::agent::{PATIENCE, wait_until};
use mt_tests::data::{Fill, MIB, assert_same, fill};
use mt_tests::disks::Canaries;
use mt_tests::lab::{Lab, PAIR};
use mt_tests::peer::{PAIR_STREAM, Peer, open_message};
use mt_wire::limits::{BLOCK_SIZE, RANGES_MAX, REGION_SIZE};
use mt_wire::{ErrorCode, Extent, Message, frame};

const SIZE: u64 = 4 * MIB;

struct Scene {
    lab: Lab,
    source: PathBuf,
    target: PathBuf,
    /// What lies behind the protected size on the target disk.
    behind: Vec<u8>,
    canaries: Canaries,
}

fn scene() -> Scene {
    let mut lab = Lab::new();
    let source = lab.scratch.sparse("source.img", SIZE);
    fill(&source, SIZE, Fill::Random, 61);
    let target = lab.scratch.sparse("target.img", 2 * SIZE);
    fill(&target, 2 * SIZE, Fill::Random, 62);
    let canaries = Canaries::new(&lab.scratch, 2);
    let id = lab.add_disk(&target);
    for path in canaries.paths() {
        lab.add_disk(path);
    }
    let behind = read(&target, SIZE, 4 * 1024 * 1024);
    lab.start();
    lab.pair_over(PAIR, &id);
    Scene {
        lab,
        source,
        target,
        behind,
        canaries,
    }
}

impl Scene {
    /// A session that has opened the pair, with the region of `offset` announced.
    fn open(&self, offset: u64) -> Peer {
        let begin = Instant::now();
        let mut peer = loop {
            let (peer, answer) = Peer::open(self.lab.address, "db01", "scsi0:1", SIZE);
            // A session that ended lets go of its pair a moment later.
            let busy = matches!(&answer, Message::Refused(refusal) if refusal.code == ErrorCode::PairBusy);
            if busy && begin.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(10));
                continue;
            }
            assert!(matches!(answer, Message::PairOpened(_)), "{answer:?}");
            break peer;
        };
        let region = (offset - offset % REGION_SIZE).min(SIZE - REGION_SIZE);
        let announced =
            peer.next_of(|message| matches!(message, Message::Digests(digests) if digests.offset == region));
        assert!(announced.is_some(), "the region at {region} is announced");
        peer
    }

    #[track_caller]
    fn assert_alive(&mut self) {
        let told = self.lab.target().stderr_so_far();
        assert!(!told.contains("panicked"), "{told}");
        assert!(self.lab.target().is_running());
        self.canaries.assert_untouched();
        assert!(
            self.behind == read(&self.target, SIZE, self.behind.len()),
            "behind the protected size"
        );
    }
}

/// A frame of a list with one entry, put together by hand: what is said of it is not checked by the library of ours.
fn by_hand(peer: &mut Peer, kind: u8, offset: u64, len: u64, payload: &[u8]) -> Vec<u8> {
    let extents = Message::Extents(Vec::new()).kind();
    let mut body = 1_u32.to_le_bytes().to_vec();
    body.extend_from_slice(&offset.to_le_bytes());
    if kind == extents {
        let len = u32::try_from(len).unwrap_or(u32::MAX);
        body.extend_from_slice(&len.to_le_bytes());
        body.extend_from_slice(&0_u32.to_le_bytes());
        body.extend_from_slice(blake3::hash(payload).as_bytes());
    } else {
        body.extend_from_slice(&len.to_le_bytes());
    }
    let sequence = peer.next_sequence();
    let mut bytes = frame::encode_raw(kind, false, PAIR_STREAM, sequence, &body, payload.len());
    bytes.extend_from_slice(payload);
    bytes
}

fn read(path: &Path, offset: u64, len: usize) -> Vec<u8> {
    use std::os::unix::fs::FileExt as _;
    let mut bytes = vec![0; len];
    let file = std::fs::File::open(path).expect("it is there");
    file.read_exact_at(&mut bytes, offset).expect("it is long enough");
    bytes
}

/// Every length and every offset at a border: what fits exactly is written and not a byte more, all else is refused before
/// there is memory for it, and the session closed with a code.
#[test]
fn ranges_at_every_border() {
    let mut scene = scene();
    let extents = Message::Extents(Vec::new()).kind();
    let zeros = Message::ZeroRanges(Vec::new()).kind();
    let fits: [(u64, u64); 9] = [
        (0, 512),
        (512, 512),
        (0, BLOCK_SIZE),
        (BLOCK_SIZE - 512, 512),
        (0, REGION_SIZE),
        (REGION_SIZE - 512, 512),
        (REGION_SIZE, 4096),
        (SIZE - 512, 512),
        (SIZE - REGION_SIZE, REGION_SIZE),
    ];
    for (offset, len) in fits {
        for kind in [extents, zeros] {
            // Content goes by blocks, so that each has its digest; zeros by regions.
            if kind == extents && len > BLOCK_SIZE {
                continue;
            }
            let mut peer = scene.open(offset);
            let count = usize::try_from(len).expect("it is small");
            let content = vec![if kind == zeros { 0 } else { 0xa5 }; count];
            let payload: &[u8] = if kind == zeros { &[] } else { &content };
            let bytes = by_hand(&mut peer, kind, offset, len, payload);
            peer.send_bytes(&bytes);
            wait_until(&format!("kind {kind}, {len} bytes at {offset}"), || {
                read(&scene.target, offset, count) == content
            });
        }
    }
    scene.assert_alive();
    let wrong: [(u64, u64); 17] = [
        (0, 0),
        (0, 1),
        (0, 511),
        (1, 512),
        (511, 1024),
        (REGION_SIZE - 512, 1024),
        (SIZE - 512, 1024),
        (SIZE, 0),
        (SIZE, 512),
        (SIZE + REGION_SIZE, 512),
        (0, REGION_SIZE + 512),
        (0, u64::from(u32::MAX)),
        (1 << 50, 512),
        (1 << 63, 512),
        (u64::MAX, 512),
        (u64::MAX - 511, 512),
        (u64::MAX - 4095, 1 << 20),
    ];
    let zeros_only: [(u64, u64); 3] = [(0, u64::MAX), (512, u64::MAX - 511), (0, SIZE)];
    let extents_only: [(u64, u64); 2] = [(BLOCK_SIZE - 512, 1024), (0, BLOCK_SIZE + 512)];
    let rows = [extents, zeros]
        .into_iter()
        .flat_map(|kind| wrong.map(|(offset, len)| (kind, offset, len)))
        .chain(zeros_only.map(|(offset, len)| (zeros, offset, len)))
        .chain(extents_only.map(|(offset, len)| (extents, offset, len)));
    for (kind, offset, len) in rows {
        let before = std::fs::read(&scene.target).expect("it is there");
        let mut peer = scene.open(0);
        let count = usize::try_from(len.min(REGION_SIZE)).expect("it is small");
        let payload = if kind == extents {
            vec![0x5a; count]
        } else {
            Vec::new()
        };
        let bytes = by_hand(&mut peer, kind, offset, len, &payload);
        peer.send_bytes(&bytes);
        let refusal = peer.refusal();
        let refusal = refusal.unwrap_or_else(|| panic!("kind {kind}, {len} bytes at {offset}: no word"));
        assert!(
            matches!(refusal.code, ErrorCode::OutOfRange | ErrorCode::ProtocolViolation),
            "kind {kind}, {len} bytes at {offset}: {refusal:?}"
        );
        assert!(
            before == std::fs::read(&scene.target).expect("it is there"),
            "kind {kind}, {len} bytes at {offset} was refused and written"
        );
    }
    // A list that is longer than any list may be, and one whose entries overlap or go back.
    for entries in [
        vec![(0_u64, 512_u64); RANGES_MAX + 1],
        vec![(0, 1024), (512, 512)],
        vec![(4096, 512), (0, 512)],
    ] {
        let mut peer = scene.open(0);
        let count = u32::try_from(entries.len()).expect("it is small");
        let mut body = count.to_le_bytes().to_vec();
        for (offset, len) in &entries {
            body.extend_from_slice(&offset.to_le_bytes());
            body.extend_from_slice(&len.to_le_bytes());
        }
        let sequence = peer.next_sequence();
        peer.send_bytes(&frame::encode_raw(zeros, false, PAIR_STREAM, sequence, &body, 0));
        let refusal = peer.refusal().expect("it is told");
        assert_eq!(refusal.code, ErrorCode::ProtocolViolation, "{refusal:?}");
    }
    scene.assert_alive();
    drop(scene.open(0));
    scene
        .lab
        .send(PAIR, &scene.source, &["--retry-for", "30"])
        .expect_done();
    assert_same(&scene.source, &scene.target, SIZE);
}

/// A frame is cut at every byte of header and body and at many of its content, by an end of the stream and by a reset in turn:
/// none of it is ever written. The whole one is.
#[test]
fn a_frame_cut_at_any_byte_is_never_written() {
    let mut scene = scene();
    let content = vec![0x3c; 4096];
    let extent = Extent {
        offset: 0,
        len: 4096,
        digest: *blake3::hash(&content).as_bytes(),
    };
    let before = std::fs::read(&scene.target).expect("it is there");
    let frame_of = |peer: &mut Peer| {
        let sequence = peer.next_sequence();
        let mut bytes = frame::encode(&Message::Extents(vec![extent]), PAIR_STREAM, sequence);
        bytes.extend_from_slice(&content);
        bytes
    };
    let whole = frame_of(&mut scene.open(0));
    let head = whole.len() - content.len();
    let cuts = (0..=head)
        .chain((head..whole.len()).step_by(211))
        .chain([whole.len() - 1]);
    for (number, cut) in cuts.enumerate() {
        let mut peer = scene.open(0);
        let bytes = frame_of(&mut peer);
        peer.send_bytes(&bytes[..cut]);
        if number % 2 == 0 {
            peer.finish_sending();
            peer.drain();
        } else {
            peer.reset();
        }
    }
    // The last session has ended when another one can begin.
    drop(scene.open(0));
    assert!(
        before == std::fs::read(&scene.target).expect("it is there"),
        "a frame that was cut was written"
    );
    let mut peer = scene.open(0);
    let bytes = frame_of(&mut peer);
    // Whole, in pieces of any size.
    for piece in bytes.chunks(7) {
        peer.send_bytes(piece);
    }
    wait_until("the whole frame", || read(&scene.target, 0, 4096) == content);
    drop(peer);
    scene.assert_alive();
    scene
        .lab
        .send(PAIR, &scene.source, &["--retry-for", "30"])
        .expect_done();
    assert_same(&scene.source, &scene.target, SIZE);
}

/// One byte a second, and nothing at all: both hold their pair or their place for half a minute and not for ever, and whoever
/// comes then is served.
#[test]
fn who_stammers_or_falls_silent_is_given_up() {
    let mut scene = scene();
    let mut silent = Peer::connect(scene.lab.address);
    assert_eq!(silent.hello(1, 1).outcome, Ok(1));
    silent.send(&open_message("db01", "scsi9:9", SIZE), &[]);
    assert!(silent.refusal().is_some());
    let mut silent = Peer::connect(scene.lab.address);
    assert_eq!(silent.hello(1, 1).outcome, Ok(1));
    let mut stammers = scene.open(0);
    let sequence = stammers.next_sequence();
    let header = frame::encode(&Message::Ping { token: 1 }, PAIR_STREAM, sequence);
    // Fewer bytes than a header has: it would be kept for ever, if each byte were a sign of life.
    let taken = header
        .iter()
        .cycle()
        .take(120)
        .take_while(|byte| {
            std::thread::sleep(Duration::from_secs(1));
            stammers.still_takes(&[**byte])
        })
        .count();
    assert!(taken < 100, "a byte a second kept the session for {taken} bytes");
    silent.drain();
    scene.assert_alive();
    scene
        .lab
        .send(PAIR, &scene.source, &["--retry-for", "0"])
        .expect_done();
    assert_same(&scene.source, &scene.target, SIZE);
}
