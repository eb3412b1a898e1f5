//! What a session carries out: one pair, or one epoch of a machine. Both look the same to the edge.

use mt_wire::{EndEpoch, EpochDurable, Message, OpenPair, Refusal};

use crate::epochs::source::{self as epochs, EpochSource, Plan};
use crate::seeding::differences::Differences;
use crate::seeding::source::{Action, Event, Progress, SourceSession};

/// What a session is for.
#[derive(Debug, Clone)]
pub enum Purpose {
    /// One pair, to be made equal or compared.
    Pair(OpenPair),
    /// An epoch of a machine.
    Epoch(Box<Plan>),
}

/// What the edge has to do.
pub enum Act {
    /// Something with the disk that is gone over, or a message.
    Disk(Action),
    /// Check that nothing changed, then send this end.
    End(EndEpoch),
    /// It is done; an epoch with its number and its point.
    Finished(Option<EpochDurable>),
    /// The target refused.
    Refused(Refusal),
    /// The target broke the protocol.
    Violation(String),
}

/// The state machine of a session.
pub enum Core {
    /// Of one pair.
    Pair(SourceSession),
    /// Of an epoch.
    Epoch(Box<EpochSource>),
}

impl Core {
    /// The state machine for this purpose, and its first message.
    pub fn new(purpose: Purpose) -> (Self, Act) {
        match purpose {
            Purpose::Pair(open) => {
                let (core, first) = SourceSession::new(open);
                (Self::Pair(core), of_pair(first))
            }
            Purpose::Epoch(plan) => {
                let (core, first) = EpochSource::new(*plan);
                (Self::Epoch(Box::new(core)), of_epoch(first))
            }
        }
    }

    /// Index of the disk that is gone over.
    pub fn disk(&self) -> usize {
        match self {
            Self::Pair(_) => 0,
            Self::Epoch(core) => core.disk(),
        }
    }

    /// How far the session is, over all disks; what is durable of an epoch is what was received until it ends.
    pub fn progress(&self) -> Progress {
        match self {
            Self::Pair(core) => core.progress().clone(),
            Self::Epoch(core) => {
                let progress = core.progress();
                Progress {
                    size: progress.size,
                    start: progress.start,
                    bytes_settled: progress.bytes_settled,
                    durable: progress.received,
                    bytes_sent: progress.bytes_sent,
                    bytes_zeroed: progress.bytes_zeroed,
                }
            }
        }
    }

    /// Takes an event and says what is to be done, in order.
    pub fn handle(&mut self, event: Event) -> Vec<Act> {
        match self {
            Self::Pair(core) => core.handle(event).into_iter().map(of_pair).collect(),
            Self::Epoch(core) => core.handle(event).into_iter().map(of_epoch).collect(),
        }
    }

    /// SCSI ID of the target disk of a pair, once it is open.
    pub fn scsi_id(&self) -> &str {
        match self {
            Self::Pair(core) => core.scsi_id(),
            Self::Epoch(_) => "",
        }
    }

    /// Identity of the store that keeps the machine's points, once it is open; all zero when there is none.
    pub fn store_id(&self) -> [u8; 16] {
        match self {
            Self::Pair(_) => [0; 16],
            Self::Epoch(core) => core.store_id(),
        }
    }

    /// What a verification found to differ.
    pub fn differences(&self) -> Differences {
        match self {
            Self::Pair(core) => core.differences().clone(),
            Self::Epoch(_) => Differences::default(),
        }
    }
}

fn of_pair(action: Action) -> Act {
    match action {
        Action::Finished => Act::Finished(None),
        Action::Refused(refusal) => Act::Refused(refusal),
        Action::Violation(text) => Act::Violation(text),
        action => Act::Disk(action),
    }
}

fn of_epoch(action: epochs::Action) -> Act {
    match action {
        epochs::Action::Disk(action) => of_pair(action),
        epochs::Action::End(end) => Act::End(end),
        epochs::Action::Finished(durable) => Act::Finished(Some(durable)),
        epochs::Action::Refused(refusal) => Act::Refused(refusal),
        epochs::Action::Violation(text) => Act::Violation(text),
    }
}

/// Whether a message ends what was compared: before it is sent, nothing may have changed.
pub fn ends_comparing(act: &Act) -> bool {
    matches!(act, Act::Disk(Action::Send(Message::SeedingEnd(_))) | Act::End(_))
}
