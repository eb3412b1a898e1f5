//! Both machines against each other, with disks in memory and answers in any order.

use std::collections::{BTreeMap, VecDeque};

use mt_wire::limits::{BLOCK_SIZE, REGION_SIZE, SUB_BLOCK_SIZE};
use mt_wire::{
    Digests, ErrorCode, Extent, Message, Mode, OpenPair, Range, Refusal, SeedingEnd, WantSubDigests,
};
use proptest::collection::vec;
use proptest::prelude::{ProptestConfig, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};

use super::digest;
use super::source::{self, PlannedExtent, SourceSession};
use super::target::{self, Opened, Outcome, TargetSession};

const MIB: usize = 1 << 20;

/// Chooses which of several pending answers comes next, from a seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, count: usize) -> usize {
        // splitmix64 (Steele, Lea, Flood 2014): small, and the same on every machine.
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % count as u64).unwrap()
    }
}

/// A disk with a volatile cache: a crash brings back what was flushed last, plus any part of what came after.
#[derive(Clone)]
struct Disk {
    now: Vec<u8>,
    flushed: Vec<u8>,
}

/// What survives a crash on the target.
#[derive(Clone, Copy, Default)]
struct Mark {
    seeding_id: [u8; 16],
    durable: u64,
    complete: bool,
}

struct World {
    protected: Vec<u8>,
    target: Disk,
    target_mark: Mark,
    source_mark: Mark,
    next_seeding: u8,
    dice: Dice,
}

#[derive(Debug)]
struct Run {
    outcome: Option<Outcome>,
    finished: bool,
    violation: Option<String>,
    bytes_sent: u64,
    differences: Vec<Range>,
    wire_bytes_to_source: usize,
    steps: usize,
}

impl World {
    fn new(protected: Vec<u8>, target: Vec<u8>, seed: u64) -> Self {
        let target = Disk {
            now: target.clone(),
            flushed: target,
        };
        Self {
            protected,
            target,
            target_mark: Mark::default(),
            source_mark: Mark::default(),
            next_seeding: 1,
            dice: Dice(seed),
        }
    }

    fn open_pair(&self, mode: Mode) -> OpenPair {
        OpenPair {
            mode,
            machine: "db01".into(),
            disk: "scsi0:1".into(),
            size: self.protected.len() as u64,
            logical_block_size: 512,
            resume_seeding_id: self.source_mark.seeding_id,
            resume_offset: self.source_mark.durable,
            generation: 0,
        }
    }

    /// What the edge of the target does on open: goes on with the named seeding, or begins a new one.
    fn open(&mut self, open: &OpenPair) -> Opened {
        let goes_on = open.mode == Mode::Seed
            && open.resume_seeding_id != [0; 16]
            && open.resume_seeding_id == self.target_mark.seeding_id
            && !self.target_mark.complete;
        let start = if goes_on {
            open.resume_offset.min(self.target_mark.durable)
        } else {
            self.target_mark = Mark {
                seeding_id: [self.next_seeding; 16],
                ..Mark::default()
            };
            self.next_seeding += 1;
            0
        };
        Opened {
            seeding_id: self.target_mark.seeding_id,
            start: start - start % REGION_SIZE,
            generation: 1,
            region_window: 4,
            scsi_id: "naa.6000c29000000001".into(),
        }
    }

    /// Power loss on the target: each 512-byte sector that was not flushed is old or new as the dice fall.
    fn crash_target(&mut self) {
        let sectors = self.target.now.len() / 512;
        for sector in 0..sectors {
            let bytes = sector * 512..(sector + 1) * 512;
            if self.dice.below(2) == 0 {
                let old = self.target.flushed[bytes.clone()].to_vec();
                self.target.now[bytes].copy_from_slice(&old);
            }
        }
        self.target.flushed.clone_from(&self.target.now);
    }

    /// Runs a session until nothing is left to do, or for `steps_max` events.
    fn run(&mut self, mode: Mode, steps_max: usize) -> Run {
        let size = self.protected.len();
        let (mut source, first) = SourceSession::new(self.open_pair(mode));
        let mut target = TargetSession::new();
        let mut to_target: VecDeque<(Message, Option<Vec<u8>>)> = VecDeque::new();
        let mut to_source: VecDeque<Message> = VecDeque::new();
        let mut source_answers: Vec<source::Event> = Vec::new();
        let mut target_answers: Vec<target::Event<Vec<u8>>> = Vec::new();
        let mut kept: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut run = Run {
            outcome: None,
            finished: false,
            violation: None,
            bytes_sent: 0,
            differences: Vec::new(),
            wire_bytes_to_source: 0,
            steps: 0,
        };
        let source::Action::Send(open) = first else {
            panic!("the first action is OpenPair")
        };
        to_target.push_back((open, None));
        while run.steps < steps_max {
            run.steps += 1;
            let choices = [
                !to_target.is_empty(),
                !to_source.is_empty(),
                !source_answers.is_empty(),
                !target_answers.is_empty(),
            ];
            let open_choices: Vec<usize> = (0..4).filter(|index| choices[*index]).collect();
            let choice = if open_choices.is_empty() {
                if target.is_over() && source.is_over() {
                    break;
                }
                4
            } else {
                // A tick now and then, as the clock would.
                if self.dice.below(16) == 0 {
                    4
                } else {
                    open_choices[self.dice.below(open_choices.len())]
                }
            };
            let mut target_actions = Vec::new();
            let mut source_actions = Vec::new();
            match choice {
                0 => {
                    let (message, payload) = to_target.pop_front().unwrap();
                    target_actions = target.handle(target::Event::Received { message, payload });
                }
                1 => source_actions = source.handle(source::Event::Received(to_source.pop_front().unwrap())),
                2 => {
                    let index = self.dice.below(source_answers.len());
                    source_actions = source.handle(source_answers.swap_remove(index));
                }
                3 => {
                    let index = self.dice.below(target_answers.len());
                    target_actions = target.handle(target_answers.swap_remove(index));
                }
                _ => target_actions = target.handle(target::Event::Tick),
            }
            for action in source_actions {
                match action {
                    source::Action::Send(message) => to_target.push_back((message, None)),
                    source::Action::SendExtents { extents, .. } => {
                        let payload = extents
                            .iter()
                            .flat_map(|extent| slice(&self.protected, extent))
                            .copied()
                            .collect();
                        to_target.push_back((Message::Extents(extents), Some(payload)));
                    }
                    source::Action::Read { offset, len } => {
                        let at = usize::try_from(offset).unwrap();
                        let bytes = &self.protected[at..at + usize::try_from(len).unwrap()];
                        source_answers.push(source::Event::RegionRead {
                            offset,
                            blocks: digest::blocks_with_zeros(bytes),
                        });
                    }
                    source::Action::SubDigest { offset, blocks } => {
                        let at = usize::try_from(offset).unwrap();
                        let bytes = &self.protected[at..size.min(at + MIB)];
                        source_answers.push(source::Event::SubDigested {
                            offset,
                            sub_blocks: digest::sub_blocks(bytes, blocks),
                        });
                    }
                    source::Action::Digest { offset, extents } => {
                        let extents = extents
                            .iter()
                            .map(|planned| with_digest(&self.protected, planned))
                            .collect();
                        source_answers.push(source::Event::Digested { offset, extents });
                    }
                    source::Action::Release { .. } => {}
                    source::Action::StoreMark { seeding_id, durable } => {
                        self.source_mark = Mark {
                            seeding_id,
                            durable,
                            complete: false,
                        };
                    }
                    source::Action::Finished => run.finished = true,
                    source::Action::Refused(refusal) => run.violation = Some(refusal.text),
                    source::Action::Violation(text) => run.violation = Some(text),
                }
            }
            for action in target_actions {
                match action {
                    target::Action::Open(open) => {
                        target_answers.push(target::Event::Opened(self.open(&open)))
                    }
                    target::Action::Send(message) => {
                        run.wire_bytes_to_source += mt_wire::frame::encode(&message, 1, 1).len();
                        to_source.push_back(message);
                    }
                    target::Action::Read { offset, len } => {
                        let at = usize::try_from(offset).unwrap();
                        let bytes = self.target.now[at..at + usize::try_from(len).unwrap()].to_vec();
                        target_answers.push(target::Event::RegionRead {
                            offset,
                            blocks: digest::blocks(&bytes),
                        });
                        assert!(kept.insert(offset, bytes).is_none(), "region {offset} read twice");
                        assert!(kept.len() <= 4, "the window is exceeded");
                    }
                    target::Action::SubDigest { offset, blocks } => {
                        let digests = digest::sub_blocks(&kept[&offset], blocks)
                            .iter()
                            .map(|sub| sub.digest)
                            .collect();
                        target_answers.push(target::Event::SubDigested {
                            offset,
                            blocks,
                            digests,
                        });
                    }
                    target::Action::Release { offset } => assert!(kept.remove(&offset).is_some()),
                    target::Action::Write {
                        region,
                        extents,
                        payload,
                    } => {
                        digest::check_payload(&extents, &payload).unwrap();
                        let mut rest = payload.as_slice();
                        for extent in &extents {
                            let (content, behind) = rest.split_at(extent.len as usize);
                            let at = usize::try_from(extent.offset).unwrap();
                            self.target.now[at..at + content.len()].copy_from_slice(content);
                            rest = behind;
                        }
                        target_answers.push(target::Event::Written { region });
                    }
                    target::Action::Zero { region, ranges } => {
                        for range in ranges {
                            let at = usize::try_from(range.offset).unwrap();
                            self.target.now[at..at + usize::try_from(range.len).unwrap()].fill(0);
                        }
                        target_answers.push(target::Event::Written { region });
                    }
                    target::Action::Flush => {
                        self.target.flushed.clone_from(&self.target.now);
                        target_answers.push(target::Event::Flushed);
                    }
                    target::Action::StoreMark { durable, complete } => {
                        // The law: what is marked is what is flushed.
                        let end = usize::try_from(durable).unwrap();
                        assert!(
                            self.target.flushed[..end] == self.protected[..end],
                            "mark {durable} covers unflushed bytes"
                        );
                        self.target_mark.durable = durable;
                        self.target_mark.complete = complete;
                        target_answers.push(target::Event::MarkStored);
                    }
                    target::Action::End(outcome) => run.outcome = Some(outcome),
                }
            }
        }
        run.bytes_sent = source.progress().bytes_sent;
        run.differences = source.differences().ranges().collect();
        run
    }
}

fn slice<'a>(disk: &'a [u8], extent: &Extent) -> &'a [u8] {
    let at = usize::try_from(extent.offset).unwrap();
    &disk[at..at + extent.len as usize]
}

fn with_digest(disk: &[u8], planned: &PlannedExtent) -> Extent {
    let mut extent = Extent {
        offset: planned.offset,
        len: planned.len,
        digest: [0; 32],
    };
    extent.digest = planned
        .digest
        .unwrap_or_else(|| digest::digest(slice(disk, &extent)));
    extent
}

/// A disk of a few regions: runs of zeros, of one byte, and single changed sub-blocks.
fn disk(len: usize) -> impl Strategy<Value = Vec<u8>> {
    let run = (0..len, 1..len, prop_oneof![Just0, any::<u8>()]);
    vec(run, 0..12).prop_map(move |runs| {
        let mut disk = vec![0; len];
        for (at, run, value) in runs {
            let end = len.min(at + run / 3);
            disk[at..end].fill(value);
        }
        disk
    })
}

/// The byte 0, as a strategy: zeros have to be common.
#[derive(Debug, Clone, Copy)]
struct Just0;

impl Strategy for Just0 {
    type Tree = proptest::strategy::Just<u8>;
    type Value = u8;

    fn new_tree(&self, _: &mut proptest::test_runner::TestRunner) -> proptest::strategy::NewTree<Self> {
        Ok(proptest::strategy::Just(0))
    }
}

const SMALL: usize = 3 * MIB + 70 * 1024 + 512;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_two_disks_become_equal(protected in disk(SMALL), target in disk(SMALL), seed in any::<u64>()) {
        let mut world = World::new(protected, target, seed);
        let run = world.run(Mode::Seed, usize::MAX);
        prop_assert!(run.finished, "{run:?}");
        prop_assert_eq!(run.outcome, Some(Outcome::Complete));
        prop_assert!(world.target.flushed == world.protected);
        prop_assert!(world.target_mark.complete);
        let verified = world.run(Mode::Verify, usize::MAX);
        prop_assert!(verified.finished);
        prop_assert_eq!(verified.differences, vec![]);
    }

    #[test]
    fn verify_names_exactly_what_differs_and_writes_nothing(protected in disk(SMALL), changed in vec(0..SMALL, 0..20), seed in any::<u64>()) {
        let mut target = protected.clone();
        let mut expected = BTreeMap::new();
        for at in changed {
            target[at] ^= 0xff;
            let sub_block = at as u64 / SUB_BLOCK_SIZE * SUB_BLOCK_SIZE;
            expected.insert(sub_block, ());
        }
        let expected: Vec<u64> = expected.into_keys().filter(|at| {
            let from = usize::try_from(*at).unwrap();
            let to = SMALL.min(from + 4096);
            target[from..to] != protected[from..to]
        }).collect();
        let mut world = World::new(protected.clone(), target.clone(), seed);
        let run = world.run(Mode::Verify, usize::MAX);
        prop_assert!(run.finished, "{run:?}");
        prop_assert!(world.target.now == target, "a verification wrote");
        for at in &expected {
            prop_assert!(run.differences.iter().any(|range| range.offset <= *at && *at < range.offset + range.len), "{at:#x} not named");
        }
        for range in &run.differences {
            for at in (range.offset..range.offset + range.len).step_by(4096) {
                let from = usize::try_from(at).unwrap();
                let to = SMALL.min(from + 4096);
                prop_assert!(target[from..to] != protected[from..to], "{at:#x} is named and equal");
            }
        }
    }

    #[test]
    fn cut_anywhere_and_crashed_it_goes_on_and_ends_equal(
        protected in disk(SMALL), target in disk(SMALL), seed in any::<u64>(), cuts in vec(1_usize..80, 0..6),
    ) {
        let mut world = World::new(protected, target, seed);
        for cut in cuts {
            world.run(Mode::Seed, cut);
            // A killed process leaves its writes in the cache, where the next session finds them; a power cut does not.
            if world.dice.below(2) == 0 {
                world.crash_target();
            }
        }
        let run = world.run(Mode::Seed, usize::MAX);
        prop_assert!(run.finished, "{run:?}");
        prop_assert!(world.target.flushed == world.protected);
    }
}

#[test]
fn an_unchanged_disk_moves_only_digests() {
    let mut protected = vec![7; 16 * MIB];
    protected[5 * MIB..8 * MIB].fill(0);
    let mut world = World::new(protected.clone(), protected, 1);
    let run = world.run(Mode::Seed, usize::MAX);
    assert!(run.finished);
    assert_eq!(run.bytes_sent, 0);
    let digests = 13 * MIB / 65_536 * 32;
    assert!(
        run.wire_bytes_to_source < digests + 16 * 60 + 4096,
        "{} bytes for {digests} of digests",
        run.wire_bytes_to_source
    );
}

#[test]
fn a_changed_sub_block_moves_alone_also_where_the_target_is_zero() {
    for background in [0, 9] {
        let target = vec![background; 4 * MIB];
        let mut protected = target.clone();
        protected[MIB + 8192] = 1;
        protected[3 * MIB + 65_536..3 * MIB + 65_536 + 4096].fill(2);
        let mut world = World::new(protected, target, 3);
        let run = world.run(Mode::Seed, usize::MAX);
        assert!(run.finished);
        assert_eq!(run.bytes_sent, 2 * SUB_BLOCK_SIZE, "background {background}");
    }
}

#[test]
fn resuming_does_not_read_what_is_durable() {
    let protected: Vec<u8> = (0..16 * MIB)
        .map(|at| u8::try_from(at / 4096 % 251).unwrap() | 1)
        .collect();
    let mut world = World::new(protected, vec![0; 16 * MIB], 11);
    for _ in 0..100 {
        if world.source_mark.durable < 3 * REGION_SIZE {
            world.run(Mode::Seed, 35);
        }
    }
    assert!(
        world.source_mark.durable >= 3 * REGION_SIZE,
        "the cuts came too early to show anything"
    );
    assert!(
        !world.target_mark.complete,
        "the cut came too late to show anything"
    );
    let left = 16 * MIB as u64 - world.source_mark.durable;
    let run = world.run(Mode::Seed, usize::MAX);
    assert!(run.finished);
    assert!(
        run.bytes_sent <= left,
        "{} bytes sent with {left} left",
        run.bytes_sent
    );
}

/// Opens a session of `mode` on a disk of two regions and announces the first.
fn opened(mode: Mode) -> TargetSession {
    let mut session = TargetSession::new();
    let world = World::new(vec![0; 2 * MIB], vec![0; 2 * MIB], 0);
    let open = Message::OpenPair(world.open_pair(mode));
    let actions = session.handle(target::Event::<Vec<u8>>::Received {
        message: open,
        payload: None,
    });
    assert!(matches!(actions[..], [target::Action::Open(_)]));
    let opened = Opened {
        seeding_id: [1; 16],
        start: 0,
        generation: 1,
        region_window: 1,
        scsi_id: "naa.6".into(),
    };
    let actions = session.handle(target::Event::<Vec<u8>>::Opened(opened));
    assert!(matches!(
        actions[..],
        [
            target::Action::Send(Message::PairOpened(_)),
            target::Action::Read { offset: 0, .. }
        ]
    ));
    let blocks = vec![None; 16];
    let actions = session.handle(target::Event::<Vec<u8>>::RegionRead { offset: 0, blocks });
    assert!(matches!(actions[..], [target::Action::Send(Message::Digests(_))]));
    session
}

fn extent(offset: u64, len: u32) -> Message {
    Message::Extents(vec![Extent {
        offset,
        len,
        digest: [0; 32],
    }])
}

/// Every message in every phase: what is legal, and which code what is not is refused with.
#[test]
fn every_message_in_every_phase() {
    let fresh = TargetSession::new;
    fn open() -> OpenPair {
        World::new(vec![0; 2 * MIB], vec![0; 2 * MIB], 0).open_pair(Mode::Seed)
    }
    let opening = || {
        let mut session = TargetSession::new();
        session.handle(target::Event::<Vec<u8>>::Received {
            message: Message::OpenPair(open()),
            payload: None,
        });
        session
    };
    let done = || {
        let mut session = opened(Mode::Verify);
        let message = Message::RegionDone { offset: 0 };
        session.handle(target::Event::<Vec<u8>>::Received {
            message,
            payload: None,
        });
        session.handle(target::Event::<Vec<u8>>::RegionRead {
            offset: REGION_SIZE,
            blocks: vec![None; 16],
        });
        for message in [
            Message::RegionDone { offset: REGION_SIZE },
            Message::SeedingEnd(SeedingEnd::default()),
        ] {
            session.handle(target::Event::<Vec<u8>>::Received {
                message,
                payload: None,
            });
        }
        session
    };
    let digests = Digests {
        offset: 0,
        len: 1 << 20,
        blocks: vec![None; 16],
    };
    let zero = |offset, len| Message::ZeroRanges(vec![Range { offset, len }]);
    let want = |offset, blocks| Message::WantSubDigests(WantSubDigests { offset, blocks });
    let refusal = Refusal {
        code: ErrorCode::Internal,
        text: String::new(),
        hint: String::new(),
    };
    let violation = Some(ErrorCode::ProtocolViolation);
    let range = Some(ErrorCode::OutOfRange);

    type Make = Box<dyn Fn() -> TargetSession>;
    type Row = (&'static str, Make, Message, Option<ErrorCode>);
    let mut rows: Vec<Row> = Vec::new();
    let phases: [(&'static str, Make); 5] = [
        ("await-open", Box::new(fresh)),
        ("opening", Box::new(opening)),
        ("seeding", Box::new(|| opened(Mode::Seed))),
        ("verifying", Box::new(|| opened(Mode::Verify))),
        ("done", Box::new(done)),
    ];
    for (phase, make) in phases {
        let make: std::rc::Rc<dyn Fn() -> TargetSession> = make.into();
        let seeding = phase == "seeding";
        let running = seeding || phase == "verifying";
        let mut row = |message, expected| {
            let make = make.clone();
            rows.push((phase, Box::new(move || make()), message, expected));
        };
        let unless = |legal: bool, otherwise: Option<ErrorCode>| if legal { None } else { otherwise };
        let when_running = |code| if running { code } else { violation };
        let when_seeding = |code| if seeding { code } else { violation };
        row(Message::Ping { token: 1 }, None);
        row(Message::Pong { token: 1 }, None);
        row(Message::Close, None);
        row(
            Message::OpenPair(open()),
            unless(phase == "await-open", violation),
        );
        row(want(0, 1), unless(running, violation));
        row(want(REGION_SIZE, 1), when_running(range));
        row(extent(0, 4096), unless(seeding, violation));
        row(extent(REGION_SIZE, 4096), when_seeding(range));
        row(extent(2 * REGION_SIZE, 4096), when_seeding(range));
        row(extent(0, 100), when_seeding(range));
        row(extent(100, 512), when_seeding(range));
        row(zero(0, BLOCK_SIZE), unless(seeding, violation));
        row(zero(0, 2 * REGION_SIZE), when_seeding(range));
        row(zero(0, 3 * REGION_SIZE), when_seeding(range));
        row(zero(1, 512), when_seeding(range));
        row(Message::RegionDone { offset: 0 }, unless(running, violation));
        row(Message::RegionDone { offset: REGION_SIZE }, when_running(range));
        row(Message::SeedingEnd(SeedingEnd::default()), violation);
        // What only a target may say.
        row(Message::Digests(digests.clone()), violation);
        row(Message::Durable { offset: 0 }, violation);
        row(Message::SeedingDone, violation);
        row(Message::Refused(refusal.clone()), violation);
    }
    for (phase, make, message, expected) in rows {
        let mut session = make();
        let name = format!("{message:?} in phase {phase}");
        let payload = (message.payload_len() > 0).then(|| vec![0; message.payload_len()]);
        let actions = session.handle(target::Event::Received { message, payload });
        let refused = actions.iter().find_map(|action| match action {
            target::Action::End(Outcome::Failed(refusal)) => Some(refusal.code),
            _ => None,
        });
        assert_eq!(refused, expected, "{name}");
        if refused.is_some() {
            let touches = actions
                .iter()
                .any(|action| matches!(action, target::Action::Write { .. } | target::Action::Zero { .. }));
            assert!(!touches, "{name} was refused and written");
            assert!(session.is_over());
        }
    }
}

#[test]
fn a_region_that_is_done_takes_no_more() {
    let mut session = opened(Mode::Seed);
    let receive = |session: &mut TargetSession, message: Message| {
        let payload = (message.payload_len() > 0).then(|| vec![0; message.payload_len()]);
        session.handle(target::Event::Received { message, payload })
    };
    // One write is still outstanding, so the region is known but done.
    receive(&mut session, extent(0, 4096));
    receive(&mut session, Message::RegionDone { offset: 0 });
    let actions = receive(&mut session, extent(4096, 4096));
    assert!(matches!(
        actions.last(),
        Some(target::Action::End(Outcome::Failed(_)))
    ));
}

#[test]
fn nothing_is_acknowledged_after_a_failure() {
    let mut session = opened(Mode::Seed);
    let message = extent(0, 4096);
    session.handle(target::Event::Received {
        message,
        payload: Some(vec![0; 4096]),
    });
    let refusal = Refusal {
        code: ErrorCode::DiskFailed,
        text: "EIO".into(),
        hint: String::new(),
    };
    let actions = session.handle(target::Event::<Vec<u8>>::Failed(refusal.clone()));
    assert_eq!(
        actions,
        [
            target::Action::Send(Message::Refused(refusal.clone())),
            target::Action::End(Outcome::Failed(refusal))
        ]
    );
    for event in [
        target::Event::Flushed,
        target::Event::MarkStored,
        target::Event::Tick,
        target::Event::Written { region: 0 },
    ] {
        assert_eq!(session.handle::<Vec<u8>>(event), []);
    }
}
