//! Why something with a machine, its points or its store could not be done.

use std::io;
use std::path::PathBuf;

use mt_retention::StoreError;
use mt_wire::{ErrorCode, Refusal};

use crate::disks::open::OpenError;
use crate::error::{ExitCode, Explain};
use crate::state::StateError;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// No pair names the machine.
    #[error("there is no machine {0}: no pair names it")]
    Unknown(String),
    /// It has no recovery points.
    #[error("machine {0} keeps no recovery points: it has no retention store")]
    NoStore(String),
    /// Its store is there already.
    #[error("{what}; nothing was changed")]
    Refused {
        /// What was asked for, and what speaks against it.
        what: String,
        /// What to do instead.
        hint: String,
        /// One word for programs.
        code: &'static str,
    },
    /// No point is meant by what was given.
    #[error("{what}")]
    NoPoint {
        /// What was asked for, and what there is.
        what: String,
        /// What to do instead.
        hint: String,
    },
    /// The retention volume is not what it should be.
    #[error("retention volume {}: {found}", .path.display())]
    Volume {
        /// Its folder.
        path: PathBuf,
        /// What was found.
        found: String,
        /// What to do.
        hint: String,
        /// How a command exits.
        exit_code: ExitCode,
    },
    /// The retention volume cannot be read or written.
    #[error("cannot {attempted} {}: {source}", .path.display())]
    Io {
        /// What was attempted.
        attempted: &'static str,
        /// On what.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The store failed or refused.
    #[error("machine {machine}: {}", chain(.source))]
    Store {
        /// The machine.
        machine: String,
        /// The cause.
        source: StoreError,
    },
    /// A target disk cannot be had.
    #[error("machine {machine}, disk {disk}: {source}")]
    Disk {
        /// The machine.
        machine: String,
        /// The disk.
        disk: String,
        /// The cause.
        source: OpenError,
    },
    /// Disks and store have to be compared anew.
    #[error("machine {machine}: resync needed: {why}")]
    Resync {
        /// The machine.
        machine: String,
        /// What was found.
        why: String,
    },
    /// A disk or the retention volume failed before, and nothing more is done until it is there again.
    #[error("machine {machine} is stopped: {why}")]
    Stopped {
        /// The machine.
        machine: String,
        /// Whether a disk failed, and not the volume.
        by_disk: bool,
        /// What failed.
        why: String,
        /// What to do.
        hint: String,
    },
    /// A session is of an older generation.
    #[error(
        "machine {machine} is at generation {now}, this session began at {session}: nothing of it is taken any more"
    )]
    Fenced {
        /// The machine.
        machine: String,
        /// Generation now.
        now: u64,
        /// Generation of the session.
        session: u64,
    },
    /// The state refuses or fails.
    #[error(transparent)]
    State(#[from] StateError),
}

fn chain(error: &dyn std::error::Error) -> String {
    crate::target::app::chain(error)
}

impl MachineError {
    /// A refusal of an act of the operator.
    pub fn refused(code: &'static str, what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Refused {
            what: what.into(),
            hint: hint.into(),
            code,
        }
    }

    /// One word for programs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unknown(_) => "machine-unknown",
            Self::NoStore(_) => "no-points",
            Self::Refused { code, .. } => code,
            Self::NoPoint { .. } => "point-unknown",
            Self::Volume { .. } => "retention-volume",
            Self::Io { .. } => "retention-failed",
            Self::Store { source, .. } => match source {
                StoreError::Full { .. } => "retention-full",
                StoreError::UnknownPoint { .. } => "point-unknown",
                StoreError::PointDamaged { .. } => "point-damaged",
                StoreError::Refused { .. } => "refused",
                _ => "retention-failed",
            },
            Self::Disk { .. } => "disk-refused",
            Self::Resync { .. } => "resync-needed",
            Self::Stopped { .. } => "machine-stopped",
            Self::Fenced { .. } => "fenced",
            Self::State(_) => "state-failed",
        }
    }

    /// As the source is told.
    pub fn refusal(&self) -> Refusal {
        let code = match self {
            Self::Unknown(_) => ErrorCode::PairUnknown,
            Self::Disk { source, .. } => match source.exit_code() {
                ExitCode::DiskMissing => ErrorCode::DiskMissing,
                _ => ErrorCode::DiskRefused,
            },
            Self::Resync { .. } => ErrorCode::ResyncNeeded,
            Self::Stopped { by_disk: true, .. } => ErrorCode::DiskFailed,
            Self::Fenced { .. } => ErrorCode::Fenced,
            Self::Store { source, .. } => match source {
                StoreError::Full { .. } => ErrorCode::RetentionFull,
                StoreError::Disk { .. } => ErrorCode::DiskFailed,
                _ => ErrorCode::RetentionFailed,
            },
            Self::State(_) => ErrorCode::Internal,
            _ => ErrorCode::RetentionFailed,
        };
        Refusal {
            code,
            text: self.to_string(),
            hint: self.hint().unwrap_or_default(),
        }
    }
}

impl Explain for MachineError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Unknown(_) => Some("\"mt-agent pair list\" shows the machines".to_owned()),
            Self::NoStore(_) => Some(
                "set [retention] folder, run \"mt-agent retention init\", and send an epoch: points are kept from then on"
                    .to_owned(),
            ),
            Self::Refused { hint, .. }
            | Self::NoPoint { hint, .. }
            | Self::Volume { hint, .. }
            | Self::Stopped { hint, .. } => Some(hint.clone()),
            Self::Io { .. } => Some("check the retention volume, its owner and its space".to_owned()),
            Self::Store {
                machine,
                source: StoreError::Foreign { .. },
            } => Some(format!(
                "pair the disks that its points are of; \"mt-agent retention reset {machine} --drop-points-of {machine}\" drops \
                 the points and begins anew with the disks that are paired now"
            )),
            Self::Store { source, .. } => source.hint().map(str::to_owned),
            Self::Disk { source, .. } => source.hint(),
            Self::Resync { machine, .. } => Some(format!(
                "the points of this machine cannot be relied on; \"mt-agent retention reset {machine}\" drops them and \
                 begins anew, comparing all of the disks"
            )),
            Self::Fenced { .. } => Some("see \"mt-agent status\" on the target".to_owned()),
            Self::State(error) => error.hint(),
        }
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Unknown(_) | Self::NoPoint { .. } => ExitCode::Usage,
            Self::NoStore(_) | Self::Refused { .. } | Self::Fenced { .. } => ExitCode::Refused,
            Self::Volume { exit_code, .. } => *exit_code,
            Self::Stopped { by_disk: true, .. } => ExitCode::DiskMissing,
            Self::Io { .. } | Self::Resync { .. } | Self::Stopped { .. } => ExitCode::Retention,
            Self::Store { source, .. } => match source {
                StoreError::UnknownPoint { .. } => ExitCode::Usage,
                StoreError::Refused { .. } | StoreError::Full { .. } => ExitCode::Refused,
                StoreError::Disk { .. } => ExitCode::DiskMissing,
                _ => ExitCode::Retention,
            },
            Self::Disk { source, .. } => source.exit_code(),
            Self::State(error) => error.exit_code(),
        }
    }
}
