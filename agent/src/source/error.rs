//! Why a send or a verification did not come to its end.

use std::path::PathBuf;

use mt_blockdev::device::DeviceError;
use mt_identity::Code;
use mt_wire::{ErrorCode, Refusal};

use crate::error::{ExitCode, Explain};
use crate::identity::membership::MembershipError;
use crate::net::hello::HelloError;
use crate::net::pump::PumpError;

/// Why a send or a verification did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The image cannot be opened.
    #[error("cannot open the protected disk: {0}: {source}", source = .0.io_error())]
    Open(DeviceError),
    /// The image has a size that no disk has.
    #[error(
        "{path} is {size} bytes, which is not a multiple of {block_size}; no disk has that size, nothing was sent"
    )]
    OddSize {
        /// The image.
        path: PathBuf,
        /// Its size in bytes.
        size: u64,
        /// Logical block size in bytes.
        block_size: u32,
    },
    /// The image holds nothing.
    #[error("{0} is empty; nothing was sent")]
    Empty(PathBuf),
    /// The image cannot be read, or ended early.
    #[error("{0}: {source}; what was acknowledged before is kept by the target", source = .0.io_error())]
    Read(DeviceError),
    /// Somebody wrote to the image.
    #[error("{path} changed while it was being read ({change}); the copy is not a copy of any one moment")]
    Changed {
        /// The image.
        path: PathBuf,
        /// What changed.
        change: String,
    },
    /// No connection to the target.
    #[error("cannot connect to the target at {target}: {source}")]
    Connect {
        /// As given.
        target: String,
        /// The cause.
        source: std::io::Error,
    },
    /// The target was connected to and does not talk as it should.
    #[error("target {target}: {source}")]
    Hello {
        /// As given.
        target: String,
        /// The cause.
        source: HelloError,
    },
    /// TLS does not come about: one of the two is not who the other expects.
    #[error("target {target}: {text}; nothing was sent")]
    Tls {
        /// As given.
        target: String,
        /// What happened.
        text: String,
        /// What to do.
        hint: String,
    },
    /// This machine has no certificate that it could show.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// Without TLS only this machine may be reached.
    #[error("will not send to {target} without TLS: {address} is not this machine")]
    PlainElsewhere {
        /// As given.
        target: String,
        /// What it leads to.
        address: std::net::SocketAddr,
    },
    /// The target refused, and said why.
    #[error("target refused ({code}): {text}", code = .0.code.word(), text = .0.text)]
    Refused(Refusal),
    /// The connection was lost.
    #[error("lost the target at {durable} of {size} bytes: {source}")]
    Lost {
        /// What is durable on the target, bytes.
        durable: u64,
        /// Size of the disk, bytes.
        size: u64,
        /// The cause.
        source: PumpError,
    },
    /// The target broke the protocol.
    #[error("target broke the protocol: {0}; the session was ended")]
    Violation(String),
    /// The operator ended it.
    #[error("interrupted at {durable} of {size} bytes")]
    Interrupted {
        /// What is durable on the target, bytes.
        durable: u64,
        /// Size of the disk, bytes.
        size: u64,
    },
    /// The file of durable marks cannot be used.
    #[error("cannot keep the durable mark in {path}: {source}")]
    Marks {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: rusqlite::Error,
    },
    /// The folder for durable marks cannot be made.
    #[error("cannot make the state folder {path}: {source}")]
    StateFolder {
        /// The folder.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// It came to its end, and nobody could be told.
    #[error("{what}, but the answer cannot be printed: {source}")]
    Untold {
        /// How it ended.
        what: &'static str,
        /// Why standard output cannot be written.
        source: std::io::Error,
    },
    /// A fault of our own or of the system.
    #[error("{0}")]
    Internal(String),
}

impl SourceError {
    /// Whether connecting again may help: the connection was lost, not refused.
    pub fn may_retry(&self) -> bool {
        match self {
            Self::Lost { .. } | Self::Connect { .. } => true,
            Self::Hello { source, .. } => matches!(
                source,
                HelloError::Closed | HelloError::Silent | HelloError::Io(_)
            ),
            // The target may not have noticed yet that our last connection is dead.
            Self::Refused(refusal) => matches!(refusal.code, ErrorCode::PairBusy | ErrorCode::ShuttingDown),
            _ => false,
        }
    }
}

impl Explain for SourceError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::Refused(refusal) if refusal.hint.is_empty() => return None,
            Self::Refused(refusal) => &refusal.hint,
            Self::Open(error) if error.is_busy() => {
                "something else uses it; a cold source must not be in use"
            }
            Self::Open(_) => {
                "give the path of an image, a block device or a snapshot that this user may read"
            }
            Self::OddSize { .. } => {
                "give the image of a whole disk; a truncated download or a qcow2 file is none"
            }
            Self::Empty(_) => "give the image of a whole disk",
            Self::Read(_) => {
                "check the protected disk, then run the same command again: it goes on where it was"
            }
            Self::Changed { .. } => {
                "send a snapshot, or stop what writes to it, then run the same command again"
            }
            Self::Connect { .. } => "check the address and that \"mt-agent target\" runs there",
            Self::Hello {
                source: HelloError::Version { .. },
                ..
            } => "bring both agents to versions that overlap",
            Self::Hello {
                source: HelloError::Refused(code),
                ..
            } => match Code::from_number(code.number()) {
                Code::Other(_) => "see \"mt-agent status\" on the target",
                known => known.hint(),
            },
            Self::Tls { hint, .. } => hint,
            Self::Membership(error) => return error.hint(),
            Self::PlainElsewhere { .. } => {
                "leave --plain away, and register this machine: mt-agent register --target HOST"
            }
            Self::Hello {
                source: HelloError::Closed | HelloError::Io(_),
                ..
            } => {
                "check that the address is that of a master target's data port, and that both ends speak TLS or both were told \
                 not to (--plain); a target with many unfinished connections from one address turns away more for some seconds"
            }
            Self::Hello { .. } => "check that the address is that of a master target's data port",
            Self::Lost { .. } | Self::Interrupted { .. } => {
                "run the same command again: it goes on where it was"
            }
            Self::Violation(_) => "bring both agents to the same version; if they are, report this message",
            Self::Marks { .. } => {
                "check the space and the permissions of its folder; if the file is damaged, remove it: the next send compares from the beginning and sends only what differs"
            }
            Self::StateFolder { .. } => "give a folder that this user may write with --state-dir",
            Self::Untold { .. } => {
                "make room where the output goes; \"mt-agent jobs list\" on the target shows the result too"
            }
            Self::Internal(_) => return None,
        };
        Some(text.to_owned())
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Open(_) | Self::Read(_) | Self::Changed { .. } | Self::Empty(_) => ExitCode::DiskMissing,
            Self::OddSize { .. } => ExitCode::Refused,
            Self::Refused(refusal) => match refusal.code {
                ErrorCode::DiskMissing => ExitCode::DiskMissing,
                ErrorCode::DiskRefused | ErrorCode::DiskMismatch | ErrorCode::Fenced => ExitCode::Refused,
                ErrorCode::DiskFailed => ExitCode::PartlyDone,
                _ => ExitCode::Peer,
            },
            Self::Lost { .. } | Self::Interrupted { .. } => ExitCode::PartlyDone,
            Self::Connect { .. } | Self::Hello { .. } | Self::Tls { .. } | Self::Violation(_) => {
                ExitCode::Peer
            }
            Self::Membership(error) => error.exit_code(),
            Self::PlainElsewhere { .. } => ExitCode::Refused,
            Self::Marks { .. } | Self::StateFolder { .. } | Self::Untold { .. } | Self::Internal(_) => {
                ExitCode::Unexpected
            }
        }
    }
}
