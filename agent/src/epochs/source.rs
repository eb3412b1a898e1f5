//! The source's side of a session of epochs, for a cold source: one epoch, all disks compared.

use mt_wire::{
    BeginEpoch, EndEpoch, EpochDurable, EpochTotals, MachineDisk, Message, Mode, OpenMachine, OpenPair,
    Refusal,
};

use crate::seeding::source as seeding;
use crate::seeding::source::SourceSession;

/// What the edge has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Something with the disk that is gone over ([`EpochSource::disk`]), or a message. Never
    /// [`seeding::Action::Finished`], `Refused` or `Violation`.
    Disk(seeding::Action),
    /// Nothing of the disks may have changed up to now: check that, and then send this end.
    End(EndEpoch),
    /// The epoch is durable.
    Finished(EpochDurable),
    /// The target refused, and why.
    Refused(Refusal),
    /// The target broke the protocol; the text says how.
    Violation(String),
}

/// What is to be brought over.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Name of the machine.
    pub machine: String,
    /// Its disks.
    pub disks: Vec<MachineDisk>,
    /// The newest generation that is known; 0 when none is.
    pub generation: u64,
    /// The store that the newest epoch went to; all zero when there is none.
    pub store_id: [u8; 16],
    /// The newest epoch that is known to be durable there; 0 when none is.
    pub confirmed_epoch: u64,
    /// The epoch that could be gone on with; all zero when there is none.
    pub resume_epoch_id: [u8; 16],
    /// Up to where each disk of that epoch was received, bytes.
    pub resume_offsets: Vec<u64>,
    /// The instant; its totals are filled in.
    pub end: EndEpoch,
}

/// How far the session is, over all disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Size of all disks, bytes.
    pub size: u64,
    /// Where this session began, bytes over all disks.
    pub start: u64,
    /// Bytes compared and dealt with in this session.
    pub bytes_settled: u64,
    /// Bytes that the target has received and answered.
    pub received: u64,
    /// Bytes of extents sent.
    pub bytes_sent: u64,
    /// Bytes of zero ranges sent.
    pub bytes_zeroed: u64,
}

#[derive(Debug)]
enum Phase {
    AwaitMachine,
    AwaitBegun,
    InDisk(SourceSession),
    /// `EndEpoch` is sent.
    AwaitDurable,
    Over,
}

/// The source's state machine of one epoch.
#[derive(Debug)]
pub struct EpochSource {
    phase: Phase,
    plan: Plan,
    current: usize,
    epoch_id: [u8; 16],
    epoch: u64,
    generation: u64,
    store_id: [u8; 16],
    totals: EpochTotals,
    /// Of disks that are done.
    before: Progress,
}

impl EpochSource {
    /// A session for this plan, and the action that begins it.
    pub fn new(plan: Plan) -> (Self, Action) {
        let open = OpenMachine {
            machine: plan.machine.clone(),
            generation: plan.generation,
            store_id: plan.store_id,
            confirmed_epoch: plan.confirmed_epoch,
            disks: plan.disks.clone(),
        };
        let size = plan.disks.iter().map(|disk| disk.size).sum();
        let session = Self {
            phase: Phase::AwaitMachine,
            plan,
            current: 0,
            epoch_id: [0; 16],
            epoch: 0,
            generation: 0,
            store_id: [0; 16],
            totals: EpochTotals::default(),
            before: Progress {
                size,
                ..Progress::default()
            },
        };
        let first = Action::Disk(seeding::Action::Send(Message::OpenMachine(open)));
        (session, first)
    }

    /// Index of the disk that actions and events are about.
    pub fn disk(&self) -> usize {
        self.current
    }

    /// Whether the target has opened the machine.
    pub fn is_open(&self) -> bool {
        !matches!(self.phase, Phase::AwaitMachine)
    }

    /// The store that keeps the machine's recovery points, once it is open; all zero when there is none.
    pub fn store_id(&self) -> [u8; 16] {
        self.store_id
    }

    /// The machine's generation, once it is open.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// How far the session is.
    pub fn progress(&self) -> Progress {
        let Phase::InDisk(inner) = &self.phase else {
            return self.before;
        };
        let now = inner.progress();
        Progress {
            size: self.before.size,
            start: self.before.start + now.start,
            bytes_settled: self.before.bytes_settled + now.bytes_settled,
            received: self.before.received + now.durable,
            bytes_sent: self.before.bytes_sent + now.bytes_sent,
            bytes_zeroed: self.before.bytes_zeroed + now.bytes_zeroed,
        }
    }

    /// Takes an event of the disk that is gone over, or a message, and says what is to be done, in order.
    pub fn handle(&mut self, event: seeding::Event) -> Vec<Action> {
        let mut actions = Vec::new();
        let outcome = match (&self.phase, event) {
            (Phase::Over, _) => Ok(()),
            (Phase::InDisk(_), event) => {
                self.inner(event, &mut actions);
                Ok(())
            }
            (_, seeding::Event::Received(message)) => self.received(message, &mut actions),
            // An answer that comes when its disk is done already.
            (_, _) => Ok(()),
        };
        if let Err(violation) = outcome {
            self.phase = Phase::Over;
            actions.push(Action::Violation(violation));
        }
        actions
    }

    fn received(&mut self, message: Message, actions: &mut Vec<Action>) -> Result<(), String> {
        match (&self.phase, message) {
            (_, Message::Ping { token }) => actions.push(send(Message::Pong { token })),
            (_, Message::Pong { .. }) => {}
            (_, Message::Refused(refusal)) => {
                self.phase = Phase::Over;
                actions.push(Action::Refused(refusal));
            }
            (Phase::AwaitMachine, Message::MachineOpened(opened)) => {
                self.generation = opened.generation;
                self.store_id = opened.store_id;
                self.phase = Phase::AwaitBegun;
                actions.push(send(Message::BeginEpoch(BeginEpoch {
                    resume_epoch_id: self.plan.resume_epoch_id,
                })));
            }
            (Phase::AwaitBegun, Message::EpochBegun(begun)) => {
                self.epoch_id = begun.epoch_id;
                self.epoch = begun.epoch;
                self.open_disk(0, actions);
            }
            (Phase::AwaitDurable, Message::EpochDurable(durable)) => {
                if durable.epoch != self.epoch {
                    return Err(format!(
                        "epoch {} is durable, sent was {}",
                        durable.epoch, self.epoch
                    ));
                }
                self.phase = Phase::Over;
                actions.push(send(Message::Close));
                actions.push(Action::Finished(durable));
            }
            (phase, message) => {
                let when = match phase {
                    Phase::AwaitMachine => "before the machine is open",
                    Phase::AwaitBegun => "before the epoch is begun",
                    Phase::InDisk(_) => "while a disk is gone over",
                    Phase::AwaitDurable => "while the epoch is committed",
                    Phase::Over => "after the end",
                };
                return Err(format!("{} may not come {when}", message.name()));
            }
        }
        Ok(())
    }

    fn open_disk(&mut self, index: usize, actions: &mut Vec<Action>) {
        let Some(disk) = self.plan.disks.get(index) else {
            self.phase = Phase::AwaitDurable;
            let mut end = self.plan.end.clone();
            end.totals = self.totals;
            actions.push(Action::End(end));
            return;
        };
        let goes_on = self.epoch_id == self.plan.resume_epoch_id;
        let resume_offset = self.plan.resume_offsets.get(index).copied().unwrap_or(0);
        let (inner, first) = SourceSession::new(OpenPair {
            mode: Mode::Epoch,
            machine: self.plan.machine.clone(),
            disk: disk.name.clone(),
            size: disk.size,
            logical_block_size: disk.logical_block_size,
            resume_seeding_id: self.epoch_id,
            resume_offset: if goes_on { resume_offset } else { 0 },
            generation: self.generation,
        });
        self.current = index;
        self.phase = Phase::InDisk(inner);
        actions.push(Action::Disk(first));
    }

    fn inner(&mut self, event: seeding::Event, actions: &mut Vec<Action>) {
        let Phase::InDisk(inner) = &mut self.phase else {
            return;
        };
        let disk = u16::try_from(self.current).unwrap_or(u16::MAX);
        let mut next = None;
        for action in inner.handle(event) {
            match action {
                seeding::Action::Finished => next = Some(self.current + 1),
                seeding::Action::Refused(refusal) => {
                    self.phase = Phase::Over;
                    actions.push(Action::Refused(refusal));
                    return;
                }
                seeding::Action::Violation(text) => {
                    self.phase = Phase::Over;
                    actions.push(Action::Violation(text));
                    return;
                }
                action => {
                    match &action {
                        seeding::Action::SendExtents { extents, .. } => {
                            for extent in extents {
                                self.totals.add_extent(disk, extent);
                            }
                        }
                        seeding::Action::Send(Message::ZeroRanges(ranges)) => {
                            for range in ranges {
                                self.totals.add_zeros(disk, range);
                            }
                        }
                        _ => {}
                    }
                    actions.push(Action::Disk(action));
                }
            }
        }
        if let Some(index) = next {
            self.before = Progress {
                received: self.before.received + self.plan.disks[self.current].size,
                ..self.progress()
            };
            self.open_disk(index, actions);
        }
    }
}

fn send(message: Message) -> Action {
    Action::Disk(seeding::Action::Send(message))
}
