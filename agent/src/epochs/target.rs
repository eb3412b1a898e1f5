//! The target's side of a session: a plain seeding or verification, or a machine and its epochs.

use mt_wire::{
    BeginEpoch, EndEpoch, EpochBegun, EpochDurable, EpochTotals, ErrorCode, Extent, MachineDisk,
    MachineOpened, Message, Mode, OpenMachine, OpenPair, Range, Refusal,
};

use crate::seeding::target as seeding;
use crate::seeding::target::{Outcome, Progress, TargetSession};

/// What the edge tells the session.
#[derive(Debug)]
pub enum Event<P> {
    /// Something of the disk that is gone over, a message, a tick, or a failure.
    Disk(seeding::Event<P>),
    /// The answer to [`Action::OpenMachine`].
    MachineOpened(MachineOpened),
    /// The answer to [`Action::BeginEpoch`].
    EpochBegun(EpochBegun),
    /// The answer to one [`Action::WriteChanged`] or [`Action::ZeroChanged`].
    ChangedWritten,
    /// The answer to [`Action::Commit`].
    Committed(EpochDurable),
    /// The answer to [`Action::Abandon`].
    Abandoned,
}

impl<P> From<seeding::Event<P>> for Event<P> {
    fn from(event: seeding::Event<P>) -> Self {
        Self::Disk(event)
    }
}

/// What the edge has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<P> {
    /// Something with the disk that is gone over ([`Session::disk`]), a message, or the end.
    Disk(seeding::Action<P>),
    /// Find, check and open all disks of a machine; answer with [`Event::MachineOpened`].
    OpenMachine(OpenMachine),
    /// Open an epoch, or go on with the one that is named; answer with [`Event::EpochBegun`].
    BeginEpoch(BeginEpoch),
    /// Check content that is known to have changed, add it to the epoch, and answer with [`Event::ChangedWritten`].
    WriteChanged {
        /// Index of the disk.
        disk: usize,
        /// Where the payload goes.
        extents: Vec<Extent>,
        /// The content.
        payload: P,
    },
    /// Add ranges of zeros to the epoch, and answer with [`Event::ChangedWritten`].
    ZeroChanged {
        /// Index of the disk.
        disk: usize,
        /// The ranges.
        ranges: Vec<Range>,
    },
    /// Commit the epoch, durably and as a whole; answer with [`Event::Committed`].
    Commit(EndEpoch),
    /// Drop the epoch; answer with [`Event::Abandoned`].
    Abandon,
}

#[derive(Debug)]
enum Phase {
    /// The first message decides what the session is for.
    AwaitOpen,
    /// A seeding or verification of one pair.
    Plain(TargetSession),
    OpeningMachine,
    /// A machine is open and no epoch.
    BetweenEpochs,
    BeginningEpoch,
    InEpoch,
    /// A disk of the epoch is gone over.
    InDisk(TargetSession),
    /// `EndEpoch` has come; changes are still on their way to the store.
    Draining(EndEpoch),
    Committing,
    Abandoning,
    Over,
}

impl Phase {
    fn word(&self) -> &'static str {
        match self {
            Self::AwaitOpen => "before a pair or machine was opened",
            Self::Plain(_) => "of one pair",
            Self::OpeningMachine => "while the machine is opened",
            Self::BetweenEpochs => "between epochs",
            Self::BeginningEpoch => "while an epoch is begun",
            Self::InEpoch => "inside an epoch, with no disk open",
            Self::InDisk(_) => "while a disk is gone over",
            Self::Draining(_) | Self::Committing => "while an epoch is committed",
            Self::Abandoning => "while an epoch is dropped",
            Self::Over => "after the end",
        }
    }
}

/// The target's state machine of one connection.
#[derive(Debug)]
pub struct Session {
    phase: Phase,
    machine: String,
    disks: Vec<MachineDisk>,
    /// Whether the disk with this index has been gone over in this epoch.
    gone_over: Vec<bool>,
    epoch_id: [u8; 16],
    current: usize,
    totals: EpochTotals,
    /// Writes of changed content that the edge has not answered.
    outstanding: usize,
    /// Of disks of this epoch that are done.
    before: Progress,
    /// Before the last event.
    last: Progress,
    epochs_committed: u64,
}

impl Default for Session {
    fn default() -> Self {
        Self::new()
    }
}

impl Session {
    /// A session that waits for its first message.
    pub fn new() -> Self {
        Self {
            phase: Phase::AwaitOpen,
            machine: String::new(),
            disks: Vec::new(),
            gone_over: Vec::new(),
            epoch_id: [0; 16],
            current: 0,
            totals: EpochTotals::default(),
            outstanding: 0,
            before: Progress::default(),
            last: Progress::default(),
            epochs_committed: 0,
        }
    }

    /// Index of the disk that actions of [`Action::Disk`] are about; 0 in a session of one pair.
    pub fn disk(&self) -> usize {
        self.current
    }

    /// How far the session is: of its pair, or of the epoch over all disks of the machine.
    pub fn progress(&self) -> Progress {
        match &self.phase {
            Phase::Over => self.last,
            Phase::Plain(inner) => inner.progress(),
            Phase::InDisk(inner) => {
                let now = inner.progress();
                Progress {
                    size: self.before.size,
                    settled: self.before.settled + now.settled,
                    durable: self.before.durable + now.durable,
                    bytes_written: self.totals.bytes_sent,
                    bytes_zeroed: self.totals.bytes_zeroed,
                    bytes_different: 0,
                }
            }
            _ => Progress {
                bytes_written: self.totals.bytes_sent,
                bytes_zeroed: self.totals.bytes_zeroed,
                ..self.before
            },
        }
    }

    /// Size of the disk that is gone over, bytes.
    pub fn disk_size(&self) -> u64 {
        match &self.phase {
            Phase::Plain(inner) | Phase::InDisk(inner) => inner.progress().size,
            _ => 0,
        }
    }

    /// Up to where the disk that is gone over has been received, bytes.
    pub fn disk_settled(&self) -> Option<u64> {
        match &self.phase {
            Phase::InDisk(inner) => Some(inner.progress().settled),
            _ => None,
        }
    }

    /// Whether the session is over and takes no more events.
    pub fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over)
    }

    /// Whether the source has been told everything and may go away.
    pub fn is_done(&self) -> bool {
        match &self.phase {
            Phase::Plain(inner) => inner.is_done(),
            Phase::BetweenEpochs => self.epochs_committed > 0,
            _ => false,
        }
    }

    /// Takes an event and says what is to be done, in order. Events that arrive after the end are dropped.
    pub fn handle<P>(&mut self, event: Event<P>) -> Vec<Action<P>> {
        let mut actions = Vec::new();
        if self.is_over() {
            return actions;
        }
        // With the phase goes what it knew; how far the session came is asked after its end, too.
        self.last = self.progress();
        if let Err(refusal) = self.step(event, &mut actions) {
            self.phase = Phase::Over;
            actions.push(send(Message::Refused(refusal.clone())));
            actions.push(Action::Disk(seeding::Action::End(Outcome::Failed(refusal))));
        }
        actions
    }

    fn step<P>(&mut self, event: Event<P>, actions: &mut Vec<Action<P>>) -> Result<(), Refusal> {
        match (&mut self.phase, event) {
            (_, Event::Disk(seeding::Event::Failed(refusal))) => return Err(refusal),
            (_, Event::Disk(seeding::Event::Received { message, payload })) => {
                self.received(message, payload, actions)?;
            }
            (Phase::Plain(_) | Phase::InDisk(_), Event::Disk(event)) => self.inner(event, actions),
            // An answer, or a tick, that comes when the disk is done already.
            (_, Event::Disk(_)) => {}
            (Phase::OpeningMachine, Event::MachineOpened(opened)) => {
                self.phase = Phase::BetweenEpochs;
                actions.push(send(Message::MachineOpened(opened)));
            }
            (Phase::BeginningEpoch, Event::EpochBegun(begun)) => {
                self.phase = Phase::InEpoch;
                self.epoch_id = begun.epoch_id;
                actions.push(send(Message::EpochBegun(begun)));
            }
            (_, Event::ChangedWritten) => {
                self.outstanding = self.outstanding.saturating_sub(1);
                self.commit_when_drained(actions)?;
            }
            (Phase::Committing, Event::Committed(durable)) => {
                self.phase = Phase::BetweenEpochs;
                self.epochs_committed += 1;
                actions.push(send(Message::EpochDurable(durable)));
            }
            (Phase::Abandoning, Event::Abandoned) => {
                self.phase = Phase::BetweenEpochs;
                actions.push(send(Message::EpochAbandoned));
            }
            (_, Event::MachineOpened(_) | Event::EpochBegun(_) | Event::Committed(_) | Event::Abandoned) => {}
        }
        Ok(())
    }

    fn received<P>(
        &mut self,
        message: Message,
        payload: Option<P>,
        actions: &mut Vec<Action<P>>,
    ) -> Result<(), Refusal> {
        match (&mut self.phase, message) {
            (_, Message::Ping { token }) => actions.push(send(Message::Pong { token })),
            (_, Message::Pong { .. }) => {}
            (Phase::Plain(_), message) => self.inner(seeding::Event::Received { message, payload }, actions),
            (phase, Message::Close) => {
                let outcome = if matches!(phase, Phase::BetweenEpochs) && self.epochs_committed > 0 {
                    Outcome::Complete
                } else {
                    Outcome::Closed
                };
                self.phase = Phase::Over;
                actions.push(Action::Disk(seeding::Action::End(outcome)));
            }
            (Phase::AwaitOpen, Message::OpenPair(open)) if open.mode != Mode::Epoch => {
                self.phase = Phase::Plain(TargetSession::new());
                let message = Message::OpenPair(open);
                self.inner(seeding::Event::Received { message, payload }, actions);
            }
            (Phase::AwaitOpen, Message::OpenMachine(open)) => {
                self.phase = Phase::OpeningMachine;
                self.machine.clone_from(&open.machine);
                self.disks.clone_from(&open.disks);
                self.before.size = open.disks.iter().map(|disk| disk.size).sum();
                actions.push(Action::OpenMachine(open));
            }
            (Phase::BetweenEpochs, Message::BeginEpoch(begin)) => {
                self.phase = Phase::BeginningEpoch;
                self.gone_over = vec![false; self.disks.len()];
                self.totals = EpochTotals::default();
                self.before = Progress {
                    size: self.before.size,
                    ..Progress::default()
                };
                actions.push(Action::BeginEpoch(begin));
            }
            (Phase::InEpoch, Message::OpenPair(open)) => self.open_disk(open, actions)?,
            (Phase::InDisk(_), message) => {
                self.count(&message);
                self.inner(seeding::Event::Received { message, payload }, actions);
            }
            (Phase::InEpoch, Message::EpochExtents(changed)) => {
                let disk = usize::from(changed.disk);
                for extent in &changed.extents {
                    self.check(disk, extent.offset, u64::from(extent.len))?;
                    self.totals.add_extent(changed.disk, extent);
                }
                let Some(payload) = payload else {
                    return Err(violation("EpochExtents came without their payload"));
                };
                self.outstanding += 1;
                actions.push(Action::WriteChanged {
                    disk,
                    extents: changed.extents,
                    payload,
                });
            }
            (Phase::InEpoch, Message::EpochZeroRanges(zeroed)) => {
                let disk = usize::from(zeroed.disk);
                for range in &zeroed.ranges {
                    self.check(disk, range.offset, range.len)?;
                    self.totals.add_zeros(zeroed.disk, range);
                }
                self.outstanding += 1;
                actions.push(Action::ZeroChanged {
                    disk,
                    ranges: zeroed.ranges,
                });
            }
            (Phase::InEpoch, Message::EndEpoch(end)) => {
                self.phase = Phase::Draining(end);
                self.commit_when_drained(actions)?;
            }
            (Phase::InEpoch, Message::AbandonEpoch) if self.outstanding == 0 => {
                self.phase = Phase::Abandoning;
                actions.push(Action::Abandon);
            }
            (phase, message) => {
                return Err(violation(&format!(
                    "{} may not come {}",
                    message.name(),
                    phase.word()
                )));
            }
        }
        Ok(())
    }

    fn open_disk<P>(&mut self, open: OpenPair, actions: &mut Vec<Action<P>>) -> Result<(), Refusal> {
        let place = self.disks.iter().position(|disk| {
            disk.name == open.disk
                && disk.size == open.size
                && disk.logical_block_size == open.logical_block_size
        });
        let Some(index) = place.filter(|_| open.machine == self.machine && open.mode == Mode::Epoch) else {
            return Err(violation(&format!(
                "OpenPair names {}/{} inside an epoch of {}, whose disks it is none of",
                open.machine, open.disk, self.machine
            )));
        };
        if std::mem::replace(&mut self.gone_over[index], true) {
            return Err(violation(&format!(
                "OpenPair names {}/{} a second time in one epoch",
                open.machine, open.disk
            )));
        }
        self.current = index;
        self.phase = Phase::InDisk(TargetSession::new());
        let event = seeding::Event::Received {
            message: Message::OpenPair(open),
            payload: None,
        };
        self.inner(event, actions);
        Ok(())
    }

    /// Hands an event to the exchange of one disk, and takes over when that comes to its end.
    fn inner<P>(&mut self, event: seeding::Event<P>, actions: &mut Vec<Action<P>>) {
        let (Phase::Plain(inner) | Phase::InDisk(inner)) = &mut self.phase else {
            return;
        };
        let done_before = inner.is_done();
        actions.extend(inner.handle(event).into_iter().map(Action::Disk));
        let (over, done, progress) = (inner.is_over(), inner.is_done(), inner.progress());
        if over {
            self.phase = Phase::Over;
        } else if done && !done_before && matches!(self.phase, Phase::InDisk(_)) {
            self.before.settled += progress.settled;
            self.before.durable += progress.settled;
            self.phase = Phase::InEpoch;
        }
    }

    /// Adds what a message brings to the totals. Whether it may come is for others to say: a session that is refused
    /// has no totals.
    fn count(&mut self, message: &Message) {
        let disk = u16::try_from(self.current).unwrap_or(u16::MAX);
        match message {
            Message::Extents(extents) => {
                for extent in extents {
                    self.totals.add_extent(disk, extent);
                }
            }
            Message::ZeroRanges(ranges) => {
                for range in ranges {
                    self.totals.add_zeros(disk, range);
                }
            }
            _ => {}
        }
    }

    fn check(&self, disk: usize, offset: u64, len: u64) -> Result<(), Refusal> {
        let Some(known) = self.disks.get(disk) else {
            return Err(violation(&format!(
                "a disk number {disk} of machine {}, which has {}",
                self.machine,
                self.disks.len()
            )));
        };
        let unit = u64::from(known.logical_block_size.max(1));
        // The decoder has bounded both far below the end of u64.
        if offset + len > known.size || !offset.is_multiple_of(unit) || !len.is_multiple_of(unit) {
            return Err(Refusal {
                code: ErrorCode::OutOfRange,
                text: format!(
                    "{len} bytes at offset {offset:#x} of {}/{} are past its end ({} bytes) or no multiple of {unit} \
                     bytes; nothing of the epoch stays",
                    self.machine, known.name, known.size
                ),
                hint: FAULT.to_owned(),
            });
        }
        Ok(())
    }

    fn commit_when_drained<P>(&mut self, actions: &mut Vec<Action<P>>) -> Result<(), Refusal> {
        let Phase::Draining(end) = &self.phase else {
            return Ok(());
        };
        if self.outstanding > 0 {
            return Ok(());
        }
        if end.totals != self.totals {
            return Err(Refusal {
                code: ErrorCode::TotalsMismatch,
                text: format!(
                    "the source says it sent {} bytes and {} bytes of zeros, {} and {} arrived, or not the same ones; \
                     nothing of the epoch stays",
                    end.totals.bytes_sent,
                    end.totals.bytes_zeroed,
                    self.totals.bytes_sent,
                    self.totals.bytes_zeroed
                ),
                hint: "run the same command on the source again; if it happens again, look at what is between the two"
                    .to_owned(),
            });
        }
        let end = end.clone();
        self.phase = Phase::Committing;
        actions.push(Action::Commit(end));
        Ok(())
    }
}

const FAULT: &str = "this is a fault of the sending agent; update it, or report this message";

fn send<P>(message: Message) -> Action<P> {
    Action::Disk(seeding::Action::Send(message))
}

fn violation(text: &str) -> Refusal {
    Refusal {
        code: ErrorCode::ProtocolViolation,
        text: text.to_owned(),
        hint: FAULT.to_owned(),
    }
}
