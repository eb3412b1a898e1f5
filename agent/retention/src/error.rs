//! What can go wrong with a store, in words, with what to do next.

use std::io;

use crate::storage::{ObjectName, StorageError};
use crate::types::{DiskIndex, EpochNumber};

/// An operation of the store failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The retention volume failed. The store is latched from here on: see [`Store::latched`](crate::Store::latched).
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// A target disk failed.
    #[error("{attempted} {disk} ({id}) at 0x{offset:x} failed")]
    Disk {
        /// Reading, writing, zeroing or flushing.
        attempted: &'static str,
        /// Which disk.
        disk: DiskIndex,
        /// Its SCSI ID.
        id: String,
        /// Where, bytes.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// An earlier error was of a kind after which nothing may be acknowledged until the store is opened anew.
    #[error("retention store is stopped after an earlier error: {why}")]
    Latched {
        /// The earlier error.
        why: String,
    },
    /// There is no room for what was to be appended; nothing was lost, and room may be made.
    #[error("{}", full(*used, *capacity))]
    Full {
        /// Bytes in use.
        used: u64,
        /// Bytes it may use; 0 for as many as the volume has.
        capacity: u64,
    },
    /// There is no store here.
    #[error("no retention store here: {found}")]
    NotAStore {
        /// What is there instead.
        found: String,
    },
    /// There is a store, and it belongs to something else.
    #[error("this retention store is not the one asked for: {found}")]
    Foreign {
        /// What does not agree.
        found: String,
    },
    /// A newer program wrote the store.
    #[error(
        "this retention store has format {found}, and this program knows formats up to {known}; nothing was changed"
    )]
    Newer {
        /// Format of the store.
        found: u32,
        /// Newest format that can be read.
        known: u32,
    },
    /// Bytes of the store are not what was written.
    #[error("retention store is damaged: {object} at 0x{offset:x}: {what}")]
    Damaged {
        /// Which object.
        object: ObjectName,
        /// Where in it, bytes.
        offset: u64,
        /// What was found.
        what: String,
    },
    /// No such point is offered.
    #[error("there is no recovery point {epoch}{}", newest.map(|n| format!("; the newest is {n}")).unwrap_or_default())]
    UnknownPoint {
        /// The epoch asked for.
        epoch: EpochNumber,
        /// The newest that is offered.
        newest: Option<EpochNumber>,
    },
    /// The point is offered, and cannot be reached.
    #[error("recovery point {epoch} is damaged: {why}")]
    PointDamaged {
        /// The epoch asked for.
        epoch: EpochNumber,
        /// What is damaged.
        why: String,
    },
    /// The caller asked for something that this state does not allow.
    #[error("{what}")]
    Refused {
        /// What was asked, and why not.
        what: String,
        /// What to do instead; may be empty.
        hint: &'static str,
    },
}

fn full(used: u64, capacity: u64) -> String {
    match capacity {
        0 => format!(
            "the retention volume is full: this store has {used} bytes, and no point that may go makes room"
        ),
        _ => format!(
            "retention store is full: {used} of {capacity} bytes are in use, and no point that may go makes room"
        ),
    }
}

impl StoreError {
    pub(crate) fn refused(what: impl Into<String>, hint: &'static str) -> Self {
        Self::Refused {
            what: what.into(),
            hint,
        }
    }

    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::Storage(_) | Self::Latched { .. } => Some(
                "check the retention volume and its disk, then restart the agent; it opens the store anew and \
                 checks what is there",
            ),
            Self::Disk { .. } => Some(
                "check the disk and the kernel log, and attach the same disk again; what was acknowledged is in the log and \
                 is written again",
            ),
            Self::Full { .. } => Some(
                "delete recovery points (\"mt-agent points delete\"), lower their minimum age, or raise the space \
                 (\"mt-agent policy\"), or grow the retention volume; nothing was lost",
            ),
            Self::NotAStore { .. } => Some("create one with \"mt-agent retention init\""),
            Self::Foreign { .. } => Some("mount the retention volume that belongs to these pairs"),
            Self::Newer { .. } => Some("run the newer agent again; an older one must not write here"),
            Self::Damaged { .. } => Some("run \"mt-agent retention check\" to see which points are affected"),
            Self::UnknownPoint { .. } | Self::PointDamaged { .. } => {
                Some("see \"mt-agent points list\" for the points that can be reached")
            }
            Self::Refused { hint, .. } => (!hint.is_empty()).then_some(*hint),
        }
    }
}
