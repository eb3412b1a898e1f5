//! Both machines against each other: disks in memory, answers in any order, cut after any message.

use std::collections::{BTreeMap, VecDeque};

use mt_wire::limits::REGION_SIZE;
use mt_wire::{
    BeginEpoch, Consistency, EndEpoch, EpochBegun, EpochDurable, EpochExtents, EpochTotals, EpochZeroRanges,
    ErrorCode, Extent, MachineDisk, MachineOpened, Message, Mode, OpenMachine, OpenPair, Range, Refusal,
};
use proptest::prelude::{ProptestConfig, any, prop_assert, prop_assert_eq, proptest};

use super::source::{self, EpochSource, Plan};
use super::target::{self, Session};
use crate::seeding::digest;
use crate::seeding::source as source_disk;
use crate::seeding::target as target_disk;
use crate::seeding::target::{Opened, Outcome};

const MIB: usize = 1 << 20;
const SIZES: [usize; 3] = [2 * MIB + 70 * 1024 + 512, MIB, 4096];

struct Dice(u64);

impl Dice {
    fn below(&mut self, count: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ (mixed >> 31)) % count as u64).unwrap()
    }
}

/// An epoch that was begun and not ended: what was added to it, and up to where each disk was received.
#[derive(Clone)]
struct OpenEpoch {
    id: [u8; 16],
    disks: Vec<Vec<u8>>,
    settled: Vec<u64>,
}

struct World {
    protected: Vec<Vec<u8>>,
    committed: Vec<Vec<u8>>,
    epoch: u64,
    open: Option<OpenEpoch>,
    /// What the source remembers: the epoch and its marks.
    marks: ([u8; 16], Vec<u64>),
    next_id: u8,
    dice: Dice,
}

#[derive(Debug, Default)]
struct Run {
    durable: Option<EpochDurable>,
    outcome: Option<Outcome>,
    trouble: Option<String>,
    bytes_sent: u64,
    steps: usize,
}

fn machine_disks(disks: &[Vec<u8>]) -> Vec<MachineDisk> {
    disks
        .iter()
        .enumerate()
        .map(|(index, disk)| MachineDisk {
            name: format!("scsi0:{index}"),
            size: disk.len() as u64,
            logical_block_size: 512,
        })
        .collect()
}

fn end() -> EndEpoch {
    EndEpoch {
        consistency: Consistency::FileSystem,
        time_ms: 1_772_446_447_000,
        name: "before the update".into(),
        tags: Vec::new(),
        totals: EpochTotals::default(),
    }
}

impl World {
    fn new(seed: u64) -> Self {
        let disks: Vec<Vec<u8>> = SIZES.iter().map(|size| vec![0; *size]).collect();
        let mut world = Self {
            protected: disks.clone(),
            committed: disks,
            epoch: 0,
            open: None,
            marks: ([0; 16], vec![0; SIZES.len()]),
            next_id: 1,
            dice: Dice(seed),
        };
        world.change(12);
        world
    }

    /// Changes the protected disks: runs of one byte, zeros among them.
    fn change(&mut self, runs: usize) {
        for _ in 0..runs {
            let disk = self.dice.below(SIZES.len());
            let at = self.dice.below(SIZES[disk]);
            let end = (at + 1 + self.dice.below(90_000)).min(SIZES[disk]);
            let byte = [0, 7, 200][self.dice.below(3)];
            self.protected[disk][at..end].fill(byte);
        }
    }

    fn plan(&self) -> Plan {
        Plan {
            machine: "db01".into(),
            disks: machine_disks(&self.protected),
            generation: 0,
            store_id: [0; 16],
            confirmed_epoch: 0,
            resume_epoch_id: self.marks.0,
            resume_offsets: self.marks.1.clone(),
            end: end(),
        }
    }

    /// Runs a session for at most `steps_max` events; what is under way then is lost with the connection.
    fn run(&mut self, steps_max: usize) -> Run {
        let (mut source, first) = EpochSource::new(self.plan());
        let mut target = Session::new();
        let mut to_target: VecDeque<(Message, Option<Vec<u8>>)> = VecDeque::new();
        let mut to_source: VecDeque<Message> = VecDeque::new();
        let mut source_answers: Vec<source_disk::Event> = Vec::new();
        let mut target_answers: Vec<target::Event<Vec<u8>>> = Vec::new();
        let mut kept: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut run = Run::default();
        let mut source_actions = vec![first];
        let mut target_actions = Vec::new();
        loop {
            for action in source_actions.drain(..) {
                self.source_does(&source, action, &mut to_target, &mut source_answers, &mut run);
            }
            for action in target_actions.drain(..) {
                let disk = target.disk();
                let answers = (&mut to_source, &mut target_answers);
                self.target_does(disk, action, answers, &mut kept, &mut run);
            }
            if let (Some(settled), Some(open)) = (target.disk_settled(), &mut self.open) {
                open.settled[target.disk()] = settled;
            }
            run.bytes_sent = source.progress().bytes_sent;
            let over = target.is_over() && (run.durable.is_some() || run.trouble.is_some());
            if over || run.steps == steps_max {
                return run;
            }
            run.steps += 1;
            let choices = [
                !to_target.is_empty(),
                !to_source.is_empty(),
                !source_answers.is_empty(),
                !target_answers.is_empty(),
            ];
            let possible: Vec<usize> = (0..4).filter(|index| choices[*index]).collect();
            let choice = if possible.is_empty() || self.dice.below(16) == 0 {
                4
            } else {
                possible[self.dice.below(possible.len())]
            };
            match choice {
                0 => {
                    let (message, payload) = to_target.pop_front().unwrap();
                    let event = target_disk::Event::Received { message, payload };
                    target_actions = target.handle(target::Event::Disk(event));
                }
                1 => {
                    let message = to_source.pop_front().unwrap();
                    source_actions = source.handle(source_disk::Event::Received(message));
                }
                2 => {
                    let index = self.dice.below(source_answers.len());
                    source_actions = source.handle(source_answers.swap_remove(index));
                }
                3 => {
                    let index = self.dice.below(target_answers.len());
                    target_actions = target.handle(target_answers.swap_remove(index));
                }
                _ => target_actions = target.handle(target::Event::Disk(target_disk::Event::Tick)),
            }
        }
    }

    fn source_does(
        &mut self,
        source: &EpochSource,
        action: source::Action,
        to_target: &mut VecDeque<(Message, Option<Vec<u8>>)>,
        answers: &mut Vec<source_disk::Event>,
        run: &mut Run,
    ) {
        let disk = &self.protected[source.disk()];
        match action {
            source::Action::End(end) => to_target.push_back((Message::EndEpoch(end), None)),
            source::Action::Finished(durable) => {
                run.durable = Some(durable);
                self.marks = ([0; 16], vec![0; SIZES.len()]);
            }
            source::Action::Refused(refusal) => run.trouble = Some(refusal.text),
            source::Action::Violation(text) => run.trouble = Some(text),
            source::Action::Disk(action) => match action {
                source_disk::Action::Send(message) => to_target.push_back((message, None)),
                source_disk::Action::SendExtents { extents, .. } => {
                    let payload = extents
                        .iter()
                        .flat_map(|extent| slice(disk, extent.offset, extent.len as usize))
                        .copied()
                        .collect();
                    to_target.push_back((Message::Extents(extents), Some(payload)));
                }
                source_disk::Action::Read { offset, len } => {
                    let bytes = slice(disk, offset, usize::try_from(len).unwrap());
                    answers.push(source_disk::Event::RegionRead {
                        offset,
                        blocks: digest::blocks_with_zeros(bytes),
                    });
                }
                source_disk::Action::SubDigest { offset, blocks } => {
                    let at = usize::try_from(offset).unwrap();
                    let bytes = &disk[at..disk.len().min(at + MIB)];
                    answers.push(source_disk::Event::SubDigested {
                        offset,
                        sub_blocks: digest::sub_blocks(bytes, blocks),
                    });
                }
                source_disk::Action::Digest { offset, extents } => {
                    let extents = extents
                        .iter()
                        .map(|planned| Extent {
                            offset: planned.offset,
                            len: planned.len,
                            digest: digest::digest(slice(disk, planned.offset, planned.len as usize)),
                        })
                        .collect();
                    answers.push(source_disk::Event::Digested { offset, extents });
                }
                source_disk::Action::Release { .. } => {}
                source_disk::Action::StoreMark { seeding_id, durable } => {
                    if self.marks.0 != seeding_id {
                        self.marks = (seeding_id, vec![0; SIZES.len()]);
                    }
                    self.marks.1[source.disk()] = durable;
                }
                other => panic!("{other:?} is for the coordinator"),
            },
        }
    }

    fn target_does(
        &mut self,
        disk: usize,
        action: target::Action<Vec<u8>>,
        (to_source, answers): (&mut VecDeque<Message>, &mut Vec<target::Event<Vec<u8>>>),
        kept: &mut BTreeMap<u64, Vec<u8>>,
        run: &mut Run,
    ) {
        match action {
            target::Action::OpenMachine(open) => {
                assert_eq!(open.disks, machine_disks(&self.protected));
                answers.push(target::Event::MachineOpened(MachineOpened {
                    generation: 1,
                    store_id: [5; 16],
                    newest_epoch: self.epoch,
                }));
            }
            target::Action::BeginEpoch(begin) => {
                let goes_on = self
                    .open
                    .as_ref()
                    .is_some_and(|open| open.id == begin.resume_epoch_id);
                if !goes_on {
                    self.open = Some(OpenEpoch {
                        id: [self.next_id; 16],
                        disks: self.committed.clone(),
                        settled: vec![0; SIZES.len()],
                    });
                    self.next_id += 1;
                }
                answers.push(target::Event::EpochBegun(EpochBegun {
                    epoch_id: self.open.as_ref().unwrap().id,
                    epoch: self.epoch + 1,
                }));
            }
            target::Action::Commit(_) => {
                self.committed = self.open.take().unwrap().disks;
                self.epoch += 1;
                answers.push(target::Event::Committed(EpochDurable {
                    epoch: self.epoch,
                    point: self.epoch,
                }));
            }
            target::Action::Abandon => {
                self.open = None;
                answers.push(target::Event::Abandoned);
            }
            target::Action::WriteChanged { .. } | target::Action::ZeroChanged { .. } => {
                panic!("a cold source compares")
            }
            target::Action::Disk(action) => match action {
                target_disk::Action::Open(open) => {
                    let epoch = self.open.as_ref().unwrap();
                    let start = if epoch.id == open.resume_seeding_id {
                        open.resume_offset.min(epoch.settled[disk])
                    } else {
                        0
                    };
                    answers.push(target::Event::Disk(target_disk::Event::Opened(Opened {
                        seeding_id: epoch.id,
                        start: start - start % REGION_SIZE,
                        generation: 1,
                        region_window: 4,
                        scsi_id: "naa.6000c29000000001".into(),
                    })));
                }
                target_disk::Action::Send(message) => to_source.push_back(message),
                target_disk::Action::Read { offset, len } => {
                    let bytes = slice(&self.committed[disk], offset, usize::try_from(len).unwrap()).to_vec();
                    answers.push(target::Event::Disk(target_disk::Event::RegionRead {
                        offset,
                        blocks: digest::blocks(&bytes),
                    }));
                    assert!(kept.insert(offset, bytes).is_none(), "region {offset} read twice");
                }
                target_disk::Action::SubDigest { offset, blocks } => {
                    let digests = digest::sub_blocks(&kept[&offset], blocks);
                    answers.push(target::Event::Disk(target_disk::Event::SubDigested {
                        offset,
                        blocks,
                        digests: digests.iter().map(|sub| sub.digest).collect(),
                    }));
                }
                target_disk::Action::Release { offset } => assert!(kept.remove(&offset).is_some()),
                target_disk::Action::Write {
                    region,
                    extents,
                    payload,
                } => {
                    digest::check_payload(&extents, &payload).unwrap();
                    let into = &mut self.open.as_mut().unwrap().disks[disk];
                    let mut rest = payload.as_slice();
                    for extent in &extents {
                        let (content, behind) = rest.split_at(extent.len as usize);
                        let at = usize::try_from(extent.offset).unwrap();
                        into[at..at + content.len()].copy_from_slice(content);
                        rest = behind;
                    }
                    answers.push(target::Event::Disk(target_disk::Event::Written { region }));
                }
                target_disk::Action::Zero { region, ranges } => {
                    let into = &mut self.open.as_mut().unwrap().disks[disk];
                    for range in ranges {
                        let at = usize::try_from(range.offset).unwrap();
                        into[at..at + usize::try_from(range.len).unwrap()].fill(0);
                    }
                    answers.push(target::Event::Disk(target_disk::Event::Written { region }));
                }
                target_disk::Action::Flush | target_disk::Action::StoreMark { .. } => {
                    panic!("half an epoch is never made durable")
                }
                target_disk::Action::End(outcome) => run.outcome = Some(outcome),
            },
        }
    }
}

fn slice(disk: &[u8], offset: u64, len: usize) -> &[u8] {
    let at = usize::try_from(offset).unwrap();
    &disk[at..at + len]
}

#[test]
fn an_epoch_brings_all_disks_and_the_next_one_only_what_changed() {
    let mut world = World::new(1);
    let first = world.run(usize::MAX);
    assert_eq!(first.outcome, Some(Outcome::Complete), "{first:?}");
    assert_eq!(first.durable, Some(EpochDurable { epoch: 1, point: 1 }));
    assert!(world.committed == world.protected);
    let idle = world.run(usize::MAX);
    assert_eq!((idle.durable.unwrap().epoch, idle.bytes_sent), (2, 0));
    world.protected[1][4096 * 3 + 1] ^= 1;
    let second = world.run(usize::MAX);
    assert_eq!((second.durable.unwrap().epoch, second.bytes_sent), (3, 4096));
    assert!(world.committed == world.protected);
}

/// The cut at *every* event of one epoch: the disks are at the instant before or at the one after, never between; and
/// the next session ends it, by going on where the target still has the epoch, or anew where it was restarted.
#[test]
fn cut_at_every_event_it_is_all_or_nothing_and_comes_to_its_end() {
    let mut whole = World::new(3);
    let steps = whole.run(usize::MAX).steps;
    assert!(steps > 50, "{steps} events are no epoch");
    for cut in 0..steps {
        for restarted in [false, true] {
            let mut world = World::new(3);
            let before = world.committed.clone();
            let run = world.run(cut);
            assert!(
                world.committed == before || world.committed == world.protected,
                "half an epoch is seen after {cut} events"
            );
            if run.durable.is_some() {
                assert!(
                    world.committed == world.protected,
                    "told durable after {cut} events"
                );
            }
            if restarted {
                world.open = None;
            }
            let again = world.run(usize::MAX);
            assert_eq!(
                again.outcome,
                Some(Outcome::Complete),
                "after {cut} events: {again:?}"
            );
            assert!(world.committed == world.protected, "after {cut} events");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn epochs_cut_anywhere_any_number_of_times_end_equal(
        seed in any::<u64>(), cuts in proptest::collection::vec((0_usize..400, any::<bool>()), 0..5)
    ) {
        let mut world = World::new(seed);
        for (steps, restarted) in cuts {
            let before = world.committed.clone();
            let run = world.run(steps);
            prop_assert!(world.committed == before || world.committed == world.protected);
            prop_assert!(run.trouble.is_none(), "{:?}", run.trouble);
            if restarted {
                world.open = None;
            }
            // Another snapshot: a source with other content has no marks for it.
            world.change(2);
            world.marks = ([0; 16], vec![0; SIZES.len()]);
        }
        let run = world.run(usize::MAX);
        prop_assert_eq!(run.outcome, Some(Outcome::Complete));
        prop_assert!(world.committed == world.protected);
    }
}

fn received(session: &mut Session, message: Message) -> Vec<target::Action<Vec<u8>>> {
    let len = message.payload_len();
    let payload = (len > 0).then(|| vec![0; len]);
    session.handle(target::Event::Disk(target_disk::Event::Received {
        message,
        payload,
    }))
}

fn refusal(actions: &[target::Action<Vec<u8>>]) -> Option<&Refusal> {
    actions.iter().find_map(|action| match action {
        target::Action::Disk(target_disk::Action::Send(Message::Refused(refusal))) => Some(refusal),
        _ => None,
    })
}

fn in_epoch() -> Session {
    let mut session = Session::new();
    let disks = machine_disks(&[vec![0; 8192], vec![0; 4096]]);
    let open = OpenMachine {
        machine: "db01".into(),
        generation: 0,
        store_id: [0; 16],
        confirmed_epoch: 0,
        disks,
    };
    received(&mut session, Message::OpenMachine(open));
    session.handle::<Vec<u8>>(target::Event::MachineOpened(MachineOpened {
        generation: 1,
        store_id: [5; 16],
        newest_epoch: 0,
    }));
    received(
        &mut session,
        Message::BeginEpoch(BeginEpoch {
            resume_epoch_id: [0; 16],
        }),
    );
    session.handle::<Vec<u8>>(target::Event::EpochBegun(EpochBegun {
        epoch_id: [1; 16],
        epoch: 1,
    }));
    session
}

fn extent(offset: u64, len: u32) -> Extent {
    Extent {
        offset,
        len,
        digest: [9; 32],
    }
}

#[test]
fn changes_that_were_tracked_need_no_comparing_and_are_waited_for() {
    let mut session = in_epoch();
    let changed = EpochExtents {
        disk: 0,
        extents: vec![extent(4096, 512)],
    };
    let zeroed = EpochZeroRanges {
        disk: 1,
        ranges: vec![Range { offset: 0, len: 4096 }],
    };
    let mut totals = EpochTotals::default();
    totals.add_extent(0, &changed.extents[0]);
    totals.add_zeros(1, &zeroed.ranges[0]);
    let actions = received(&mut session, Message::EpochExtents(changed));
    assert!(matches!(
        actions[..],
        [target::Action::WriteChanged { disk: 0, .. }]
    ));
    let actions = received(&mut session, Message::EpochZeroRanges(zeroed));
    assert!(matches!(
        actions[..],
        [target::Action::ZeroChanged { disk: 1, .. }]
    ));
    assert!(received(&mut session, Message::EndEpoch(EndEpoch { totals, ..end() })).is_empty());
    assert!(
        session
            .handle::<Vec<u8>>(target::Event::ChangedWritten)
            .is_empty()
    );
    let actions = session.handle::<Vec<u8>>(target::Event::ChangedWritten);
    assert!(matches!(actions[..], [target::Action::Commit(_)]), "{actions:?}");
}

#[test]
fn totals_that_differ_commit_nothing() {
    let mut session = in_epoch();
    let actions = received(
        &mut session,
        Message::EndEpoch(EndEpoch {
            totals: EpochTotals {
                bytes_sent: 512,
                ..EpochTotals::default()
            },
            ..end()
        }),
    );
    assert_eq!(refusal(&actions).unwrap().code, ErrorCode::TotalsMismatch);
    assert!(
        !actions
            .iter()
            .any(|action| matches!(action, target::Action::Commit(_)))
    );
    assert!(session.is_over());
}

#[test]
fn what_may_not_come_is_refused_in_words() {
    let open = |machine: &str, disk: &str, size: u64, mode: Mode| {
        Message::OpenPair(OpenPair {
            mode,
            machine: machine.into(),
            disk: disk.into(),
            size,
            logical_block_size: 512,
            resume_seeding_id: [0; 16],
            resume_offset: 0,
            generation: 0,
        })
    };
    let extents = |disk: u16, offset: u64, len: u32| {
        Message::EpochExtents(EpochExtents {
            disk,
            extents: vec![extent(offset, len)],
        })
    };
    let begin = Message::BeginEpoch(BeginEpoch {
        resume_epoch_id: [0; 16],
    });
    let rows = [
        (
            open("db02", "scsi0:0", 8192, Mode::Epoch),
            ErrorCode::ProtocolViolation,
        ),
        (
            open("db01", "scsi0:9", 8192, Mode::Epoch),
            ErrorCode::ProtocolViolation,
        ),
        (
            open("db01", "scsi0:0", 4096, Mode::Epoch),
            ErrorCode::ProtocolViolation,
        ),
        (
            open("db01", "scsi0:0", 8192, Mode::Seed),
            ErrorCode::ProtocolViolation,
        ),
        (extents(2, 0, 512), ErrorCode::ProtocolViolation),
        (extents(1, 4096, 512), ErrorCode::OutOfRange),
        (extents(1, 0, 100), ErrorCode::OutOfRange),
        (extents(0, u64::from(u32::MAX) << 8, 512), ErrorCode::OutOfRange),
        (begin.clone(), ErrorCode::ProtocolViolation),
        (Message::SeedingDone, ErrorCode::ProtocolViolation),
        (Message::RegionDone { offset: 0 }, ErrorCode::ProtocolViolation),
    ];
    for (message, code) in rows {
        let mut session = in_epoch();
        let actions = received(&mut session, message.clone());
        assert_eq!(
            refusal(&actions).map(|refusal| refusal.code),
            Some(code),
            "{message:?}"
        );
        assert!(session.is_over());
        assert!(received(&mut session, Message::Ping { token: 1 }).is_empty());
    }
    // Before a machine is open, nothing of epochs may come.
    for message in [
        begin,
        extents(0, 0, 512),
        Message::EndEpoch(end()),
        Message::AbandonEpoch,
    ] {
        let mut session = Session::new();
        let actions = received(&mut session, message);
        assert_eq!(refusal(&actions).unwrap().code, ErrorCode::ProtocolViolation);
    }
}

#[test]
fn an_epoch_that_is_given_up_leaves_room_for_the_next() {
    let mut session = in_epoch();
    let actions = received(&mut session, Message::AbandonEpoch);
    assert_eq!(actions, [target::Action::Abandon]);
    let actions = session.handle::<Vec<u8>>(target::Event::Abandoned);
    assert_eq!(
        actions,
        [target::Action::Disk(target_disk::Action::Send(
            Message::EpochAbandoned
        ))]
    );
    assert!(!session.is_done(), "nothing was committed");
    let begin = BeginEpoch {
        resume_epoch_id: [1; 16],
    };
    let actions = received(&mut session, Message::BeginEpoch(begin));
    assert_eq!(actions, [target::Action::BeginEpoch(begin)]);
}
