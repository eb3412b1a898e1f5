//! Every message in every state of every session: what may come does, and all else ends the session with words, writes nothing
//! and commits nothing. The states inside the exchange of one disk have a table of their own, in `seeding/tests.rs`.

use mt_wire::{
    BeginEpoch, Consistency, Digests, EndEpoch, EpochBegun, EpochDurable, EpochExtents, EpochTotals,
    EpochZeroRanges, ErrorCode, Extent, MachineDisk, MachineOpened, Message, Mode, OpenMachine, OpenPair,
    PairOpened, Range, Refusal, SeedingEnd, SubDigests, WantSubDigests,
};

use super::source::{self, EpochSource, Plan};
use super::target::{self, Session};
use crate::seeding::digest::Block;
use crate::seeding::source as source_disk;
use crate::seeding::source::SourceSession;
use crate::seeding::target as target_disk;
use crate::seeding::target::{Opened, Outcome};

const SIZE: u64 = 1 << 20;
const ID: [u8; 16] = [1; 16];

fn open_pair(mode: Mode) -> OpenPair {
    OpenPair {
        mode,
        machine: "db01".into(),
        disk: "scsi0:0".into(),
        size: SIZE,
        logical_block_size: 512,
        resume_seeding_id: [0; 16],
        resume_offset: 0,
        generation: 0,
    }
}

fn open_machine() -> OpenMachine {
    OpenMachine {
        machine: "db01".into(),
        generation: 0,
        store_id: [0; 16],
        confirmed_epoch: 0,
        disks: disks(),
    }
}

fn disks() -> Vec<MachineDisk> {
    vec![MachineDisk {
        name: "scsi0:0".into(),
        size: SIZE,
        logical_block_size: 512,
    }]
}

fn end() -> EndEpoch {
    EndEpoch {
        consistency: Consistency::FileSystem,
        time_ms: 1_772_446_447_000,
        name: String::new(),
        tags: Vec::new(),
        totals: EpochTotals::default(),
    }
}

fn pair_opened() -> PairOpened {
    PairOpened {
        seeding_id: ID,
        start: 0,
        generation: 1,
        region_window: 4,
        scsi_id: "naa.6000c29000000001".into(),
    }
}

const MACHINE_OPENED: MachineOpened = MachineOpened {
    generation: 1,
    store_id: [5; 16],
    newest_epoch: 0,
};

const EPOCH_BEGUN: EpochBegun = EpochBegun {
    epoch_id: ID,
    epoch: 1,
};

fn durable() -> EpochDurable {
    EpochDurable { epoch: 1, point: 1 }
}

/// One of each kind, each as it would be right in the state it belongs to. Opening a pair is there twice: for a pair of its own and
/// inside an epoch.
fn one_of_each() -> Vec<(&'static str, Message)> {
    let extent = Extent {
        offset: 0,
        len: 4096,
        digest: *blake3::hash(&[0; 4096]).as_bytes(),
    };
    let range = Range { offset: 0, len: 4096 };
    let begin = BeginEpoch {
        resume_epoch_id: [0; 16],
    };
    let refusal = Refusal {
        code: ErrorCode::Internal,
        text: "no".into(),
        hint: String::new(),
    };
    let changed = EpochExtents {
        disk: 0,
        extents: vec![extent],
    };
    let zeroed = EpochZeroRanges {
        disk: 0,
        ranges: vec![range],
    };
    let messages = [
        Message::Ping { token: 1 },
        Message::Pong { token: 1 },
        Message::Close,
        Message::Refused(refusal),
        Message::OpenPair(open_pair(Mode::Epoch)),
        Message::PairOpened(pair_opened()),
        Message::Digests(Digests {
            offset: 0,
            len: 1 << 20,
            blocks: vec![None; 16],
        }),
        Message::WantSubDigests(WantSubDigests { offset: 0, blocks: 1 }),
        Message::SubDigests(SubDigests {
            offset: 0,
            blocks: 1,
            digests: vec![[0; 32]; 16],
        }),
        Message::Extents(vec![extent]),
        Message::ZeroRanges(vec![range]),
        Message::RegionDone { offset: 0 },
        Message::Durable { offset: 0 },
        Message::SeedingEnd(SeedingEnd::default()),
        Message::SeedingDone,
        Message::OpenMachine(open_machine()),
        Message::MachineOpened(MACHINE_OPENED),
        Message::BeginEpoch(begin),
        Message::EpochBegun(EPOCH_BEGUN),
        Message::EndEpoch(end()),
        Message::EpochDurable(durable()),
        Message::AbandonEpoch,
        Message::EpochAbandoned,
        Message::EpochExtents(changed),
        Message::EpochZeroRanges(zeroed),
        Message::Received { offset: 0 },
    ];
    for kind in 0..=u8::MAX {
        let count = messages.iter().filter(|message| message.kind() == kind).count();
        assert_eq!(count, usize::from(Message::is_known(kind)), "kind {kind}");
    }
    let mut named: Vec<(&str, Message)> = messages
        .into_iter()
        .map(|message| (message.name(), message))
        .collect();
    named.push(("OpenPair alone", Message::OpenPair(open_pair(Mode::Seed))));
    named
}

fn to_target(session: &mut Session, message: Message) -> Vec<target::Action<Vec<u8>>> {
    let payload = (message.payload_len() > 0).then(|| vec![0; message.payload_len()]);
    session.handle(target::Event::Disk(target_disk::Event::Received {
        message,
        payload,
    }))
}

/// A target that has heard these messages and been given these answers.
fn target_after(steps: usize) -> Session {
    let mut session = Session::new();
    let opened = Opened {
        seeding_id: ID,
        start: 0,
        generation: 1,
        region_window: 4,
        scsi_id: "naa.6".into(),
    };
    type Step = Box<dyn FnOnce(&mut Session)>;
    let all: Vec<Step> = vec![
        Box::new(|session| {
            to_target(session, Message::OpenMachine(open_machine()));
        }),
        Box::new(|session| {
            session.handle::<Vec<u8>>(target::Event::MachineOpened(MACHINE_OPENED));
        }),
        Box::new(|session| {
            let begin = BeginEpoch {
                resume_epoch_id: [0; 16],
            };
            to_target(session, Message::BeginEpoch(begin));
        }),
        Box::new(|session| {
            session.handle::<Vec<u8>>(target::Event::EpochBegun(EPOCH_BEGUN));
        }),
        Box::new(|session| {
            to_target(session, Message::OpenPair(open_pair(Mode::Epoch)));
        }),
        Box::new(move |session| {
            session.handle::<Vec<u8>>(target_disk::Event::Opened(opened).into());
            let blocks = vec![None; 16];
            session.handle::<Vec<u8>>(target_disk::Event::RegionRead { offset: 0, blocks }.into());
        }),
    ];
    all.into_iter().take(steps).for_each(|step| step(&mut session));
    session
}

#[test]
fn every_message_in_every_state_of_the_target() {
    let in_epoch = || target_after(4);
    let draining = || {
        let mut session = in_epoch();
        let zeroed = EpochZeroRanges {
            disk: 0,
            ranges: vec![Range { offset: 0, len: 4096 }],
        };
        let mut totals = EpochTotals::default();
        totals.add_zeros(0, &zeroed.ranges[0]);
        to_target(&mut session, Message::EpochZeroRanges(zeroed));
        to_target(&mut session, Message::EndEpoch(EndEpoch { totals, ..end() }));
        session
    };
    let after = |message: Message| {
        let mut session = in_epoch();
        to_target(&mut session, message);
        session
    };
    let committed = || {
        let mut session = after(Message::EndEpoch(end()));
        session.handle::<Vec<u8>>(target::Event::Committed(durable()));
        session
    };
    let abandoned = || {
        let mut session = after(Message::AbandonEpoch);
        session.handle::<Vec<u8>>(target::Event::Abandoned);
        session
    };
    let of_one_pair = || {
        let mut session = Session::new();
        to_target(&mut session, Message::OpenPair(open_pair(Mode::Seed)));
        session
    };
    type State<'a> = (&'a str, Session, &'a [&'a str]);
    let states = || -> Vec<State<'_>> {
        vec![
            (
                "nothing is open",
                Session::new(),
                &["OpenMachine", "OpenPair alone"],
            ),
            ("a pair is opened", of_one_pair(), &[]),
            ("the machine is opened", target_after(1), &[]),
            ("between epochs", target_after(2), &["BeginEpoch"]),
            ("an epoch is begun", target_after(3), &[]),
            (
                "inside an epoch",
                in_epoch(),
                &[
                    "OpenPair",
                    "EpochExtents",
                    "EpochZeroRanges",
                    "EndEpoch",
                    "AbandonEpoch",
                ],
            ),
            ("a disk is opened", target_after(5), &[]),
            (
                "a disk is gone over",
                target_after(6),
                &["WantSubDigests", "Extents", "ZeroRanges", "RegionDone"],
            ),
            ("changes are on their way", draining(), &[]),
            ("the epoch is committed", after(Message::EndEpoch(end())), &[]),
            ("the epoch is dropped", after(Message::AbandonEpoch), &[]),
            ("committed", committed(), &["BeginEpoch"]),
            ("dropped", abandoned(), &["BeginEpoch"]),
        ]
    };
    for state in 0..states().len() {
        for (name, message) in one_of_each() {
            let (when, mut session, legal) = states().swap_remove(state);
            let what = format!("{name} when {when}");
            assert!(!session.is_over(), "{what}");
            let actions = to_target(&mut session, message.clone());
            let over = session.is_over();
            if legal.contains(&name) || matches!(name, "Ping" | "Pong") {
                assert!(!over, "{what} is right: {actions:?}");
                continue;
            }
            assert!(over, "{what} may not come: {actions:?}");
            let touched = actions.iter().any(|action| {
                use target_disk::Action as Disk;
                match action {
                    target::Action::Disk(action) => !matches!(action, Disk::Send(_) | Disk::End(_)),
                    _ => true,
                }
            });
            assert!(!touched, "{what} did something: {actions:?}");
            match actions.last() {
                Some(target::Action::Disk(target_disk::Action::End(Outcome::Failed(refusal)))) => {
                    assert!(
                        matches!(refusal.code, ErrorCode::ProtocolViolation | ErrorCode::OutOfRange),
                        "{what}: {refusal:?}"
                    );
                    assert!(!refusal.text.is_empty() && !refusal.hint.is_empty(), "{what}");
                }
                Some(target::Action::Disk(target_disk::Action::End(_))) => assert_eq!(name, "Close"),
                other => panic!("{what}: {other:?}"),
            }
            // After the end nothing is answered, not even a ping.
            assert!(to_target(&mut session, Message::Ping { token: 1 }).is_empty());
            assert!(to_target(&mut session, message).is_empty());
        }
    }
}

/// A source that has heard these many of the messages that lead through an epoch of one disk, all of it zero on both sides.
fn source_after(steps: usize) -> EpochSource {
    let plan = Plan {
        machine: "db01".into(),
        disks: disks(),
        generation: 0,
        store_id: [0; 16],
        confirmed_epoch: 0,
        resume_epoch_id: [0; 16],
        resume_offsets: Vec::new(),
        end: end(),
    };
    let (mut session, _) = EpochSource::new(plan);
    for event in events(true).into_iter().take(steps) {
        session.handle(event);
    }
    session
}

/// The events of a whole exchange, in an epoch or of one pair.
fn events(epoch: bool) -> Vec<source_disk::Event> {
    use source_disk::Event::{Received, RegionRead};
    let zero = || Block {
        digest: None,
        zero_sub_blocks: u16::MAX,
    };
    let mut events = Vec::new();
    if epoch {
        events.push(Received(Message::MachineOpened(MACHINE_OPENED)));
        events.push(Received(Message::EpochBegun(EPOCH_BEGUN)));
    }
    events.push(Received(Message::PairOpened(pair_opened())));
    events.push(RegionRead {
        offset: 0,
        blocks: (0..16).map(|_| zero()).collect(),
    });
    events.push(Received(Message::Digests(Digests {
        offset: 0,
        len: 1 << 20,
        blocks: vec![None; 16],
    })));
    if epoch {
        events.push(Received(Message::SeedingDone));
    }
    events
}

#[test]
fn every_message_in_every_state_of_the_source() {
    let states: [(&str, usize, &[&str]); 7] = [
        ("the machine is opened", 0, &["MachineOpened"]),
        ("the epoch is begun", 1, &["EpochBegun"]),
        ("the disk is opened", 2, &["PairOpened"]),
        ("a region is read", 3, &["Digests", "Received"]),
        ("a region is compared", 4, &["Digests", "Received"]),
        ("the disk is done", 5, &["SeedingDone", "Received"]),
        ("the epoch is committed", 6, &["EpochDurable"]),
    ];
    for (when, steps, legal) in states {
        for (name, message) in one_of_each() {
            let what = format!("{name} when {when}");
            let mut session = source_after(steps);
            let actions = session.handle(source_disk::Event::Received(message));
            let violation = actions.iter().any(|action| {
                matches!(
                    action,
                    source::Action::Violation(_) | source::Action::Disk(source_disk::Action::Violation(_))
                )
            });
            let refused = actions
                .iter()
                .any(|action| matches!(action, source::Action::Refused(_)));
            assert_eq!(refused, name == "Refused", "{what}: {actions:?}");
            let right = legal.contains(&name) || matches!(name, "Ping" | "Pong" | "Refused");
            assert_eq!(violation, !right, "{what}: {actions:?}");
            // Only the right word at the right time is taken for the durable end of an epoch.
            let finished = actions
                .iter()
                .any(|action| matches!(action, source::Action::Finished(_)));
            assert_eq!(finished, right && name == "EpochDurable", "{what}: {actions:?}");
        }
    }
}

#[test]
fn every_message_in_every_state_of_the_source_of_one_pair() {
    let states: [(&str, usize, &[&str]); 4] = [
        ("the pair is opened", 0, &["PairOpened"]),
        ("a region is read", 1, &["Digests", "Durable"]),
        ("a region is compared", 2, &["Digests", "Durable"]),
        ("everything is sent", 3, &["Durable"]),
    ];
    for mode in [Mode::Seed, Mode::Verify] {
        for (when, steps, legal) in states {
            for (name, message) in one_of_each() {
                let what = format!("{name} when {when}, {mode:?}");
                let (mut session, _) = SourceSession::new(open_pair(mode));
                for event in events(false).into_iter().take(steps) {
                    session.handle(event);
                }
                assert!(!session.is_over(), "{what}");
                let actions = session.handle(source_disk::Event::Received(message));
                let violation = actions
                    .iter()
                    .any(|action| matches!(action, source_disk::Action::Violation(_)));
                let right = match (mode, name) {
                    (_, "Ping" | "Pong" | "Refused") => true,
                    // A verification has no marks, and needs none for its end.
                    (Mode::Verify, "Durable") => false,
                    (Mode::Verify, "SeedingDone") => steps == 3,
                    _ => legal.contains(&name),
                };
                assert_eq!(violation, !right, "{what}: {actions:?}");
                let finished = actions.contains(&source_disk::Action::Finished);
                assert_eq!(finished, right && name == "SeedingDone", "{what}: {actions:?}");
                assert_eq!(
                    session.is_over(),
                    violation || finished || name == "Refused",
                    "{what}"
                );
            }
        }
    }
}
