//! Refusals: a code for programs, words for people.

/// Why a stream or session was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// For programs.
    pub code: ErrorCode,
    /// For people: what was attempted, on what, what was found.
    pub text: String,
    /// For people: what to do next; may be empty.
    pub hint: String,
}

/// Why something was refused. The numbers are part of the protocol: one is never used again for something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorCode {
    /// No protocol version in common.
    VersionUnsupported,
    /// Bytes that are not this protocol, or a message where it may not come.
    ProtocolViolation,
    /// No pair of this name.
    PairUnknown,
    /// Another source is connected to the pair.
    PairBusy,
    /// The target disk cannot be found, or not without doubt.
    DiskMissing,
    /// The target disk was found and may not be written.
    DiskRefused,
    /// Size or block size do not fit.
    DiskMismatch,
    /// Reading, writing or flushing the target disk failed.
    DiskFailed,
    /// An extent is past the end of the disk.
    OutOfRange,
    /// Content does not match its digest.
    DigestMismatch,
    /// The source's generation is older than the pair's.
    Fenced,
    /// The target ends its work.
    ShuttingDown,
    /// The target has as many sessions as it takes.
    TooManySessions,
    /// A fault of the target itself.
    Internal,
    /// The peer was silent for too long.
    TimedOut,
    /// The disks that a source names are not all the disks of its machine.
    MachineMismatch,
    /// A failover of the machine is under way: nothing of its source is taken.
    FailoverUnderWay,
    /// The retention store cannot take the epoch: no space that may be freed.
    RetentionFull,
    /// The retention store failed, or is not there.
    RetentionFailed,
    /// The disks and the retention store do not belong together any more.
    ResyncNeeded,
    /// What arrived of an epoch is not what its source says it sent.
    TotalsMismatch,
    /// The registry does not know the peer's key.
    KeyUnknown,
    /// The peer's machine or key waits for the operator.
    ApprovalPending,
    /// The peer's machine was revoked.
    Revoked,
    /// The peer's role may not do this.
    WrongRole,
    /// The peer's certificate has run out.
    CertificateExpired,
    /// The peer's certificate is not valid yet: one of the clocks is wrong.
    CertificateNotYetValid,
    /// A code that this version does not know.
    Other(u16),
}

impl ErrorCode {
    /// The number on the wire.
    pub fn number(self) -> u16 {
        match self {
            Self::VersionUnsupported => 1,
            Self::ProtocolViolation => 2,
            Self::PairUnknown => 3,
            Self::PairBusy => 4,
            Self::DiskMissing => 5,
            Self::DiskRefused => 6,
            Self::DiskMismatch => 7,
            Self::DiskFailed => 8,
            Self::OutOfRange => 9,
            Self::DigestMismatch => 10,
            Self::Fenced => 11,
            Self::ShuttingDown => 12,
            Self::TooManySessions => 13,
            Self::Internal => 14,
            Self::TimedOut => 15,
            Self::MachineMismatch => 16,
            Self::FailoverUnderWay => 17,
            Self::RetentionFull => 18,
            Self::RetentionFailed => 19,
            Self::ResyncNeeded => 20,
            Self::TotalsMismatch => 21,
            Self::KeyUnknown => 32,
            Self::ApprovalPending => 33,
            Self::Revoked => 34,
            Self::WrongRole => 35,
            Self::CertificateExpired => 36,
            Self::CertificateNotYetValid => 37,
            Self::Other(number) => number,
        }
    }

    /// The code with this number.
    pub fn from_number(number: u16) -> Self {
        match number {
            1 => Self::VersionUnsupported,
            2 => Self::ProtocolViolation,
            3 => Self::PairUnknown,
            4 => Self::PairBusy,
            5 => Self::DiskMissing,
            6 => Self::DiskRefused,
            7 => Self::DiskMismatch,
            8 => Self::DiskFailed,
            9 => Self::OutOfRange,
            10 => Self::DigestMismatch,
            11 => Self::Fenced,
            12 => Self::ShuttingDown,
            13 => Self::TooManySessions,
            14 => Self::Internal,
            15 => Self::TimedOut,
            16 => Self::MachineMismatch,
            17 => Self::FailoverUnderWay,
            18 => Self::RetentionFull,
            19 => Self::RetentionFailed,
            20 => Self::ResyncNeeded,
            21 => Self::TotalsMismatch,
            32 => Self::KeyUnknown,
            33 => Self::ApprovalPending,
            34 => Self::Revoked,
            35 => Self::WrongRole,
            36 => Self::CertificateExpired,
            37 => Self::CertificateNotYetValid,
            other => Self::Other(other),
        }
    }

    /// The word for this code in logs and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::VersionUnsupported => "version-unsupported",
            Self::ProtocolViolation => "protocol-violation",
            Self::PairUnknown => "pair-unknown",
            Self::PairBusy => "pair-busy",
            Self::DiskMissing => "disk-missing",
            Self::DiskRefused => "disk-refused",
            Self::DiskMismatch => "disk-mismatch",
            Self::DiskFailed => "disk-failed",
            Self::OutOfRange => "out-of-range",
            Self::DigestMismatch => "digest-mismatch",
            Self::Fenced => "fenced",
            Self::ShuttingDown => "shutting-down",
            Self::TooManySessions => "too-many-sessions",
            Self::Internal => "internal",
            Self::TimedOut => "timed-out",
            Self::MachineMismatch => "machine-mismatch",
            Self::FailoverUnderWay => "failover-under-way",
            Self::RetentionFull => "retention-full",
            Self::RetentionFailed => "retention-failed",
            Self::ResyncNeeded => "resync-needed",
            Self::TotalsMismatch => "totals-mismatch",
            Self::KeyUnknown => "key-unknown",
            Self::ApprovalPending => "approval-pending",
            Self::Revoked => "revoked",
            Self::WrongRole => "wrong-role",
            Self::CertificateExpired => "certificate-expired",
            Self::CertificateNotYetValid => "certificate-not-yet-valid",
            Self::Other(_) => "other",
        }
    }
}
