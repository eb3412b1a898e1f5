//! Why a peer was refused, as a number that the other side turns into words.
//!
//! Numbers 1, 2, 3 and 11 mean what they mean in the replication protocol; 32 to 63 are kept for this crate in both.
//! The words and the hint are made by whoever receives the number, so that no text of an unknown peer reaches a
//! terminal.

use std::fmt;

/// Why a registration, a renewal, a connection or a stream was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Code {
    /// No protocol version in common.
    VersionUnsupported,
    /// Bytes that are not this protocol, or a message where it may not come.
    ProtocolViolation,
    /// No such pair, or the pair of another machine: a peer is not told which.
    PairUnknown,
    /// The generation is older than the pair's.
    Fenced,
    /// The registry does not know the key.
    KeyUnknown,
    /// The machine or its key waits for the operator.
    ApprovalPending,
    /// The machine was revoked.
    Revoked,
    /// The certificate's role may not do this.
    WrongRole,
    /// The certificate has run out.
    CertificateExpired,
    /// The certificate is not valid yet: one of the clocks is wrong.
    CertificateNotYetValid,
    /// The time for registering is over.
    RegistrationClosed,
    /// Too many tries; the answer says for how long to wait.
    TooManyTries,
    /// The passphrase is wrong, or the two ends do not share one channel.
    NotAuthenticated,
    /// The registry takes no more machines.
    RegistryFull,
    /// The machine id is registered with another role.
    RoleConflict,
    /// The key belongs to another machine.
    KeyInUse,
    /// The certificate request is not one that this appliance signs.
    RequestRefused,
    /// A fault of the appliance itself.
    Internal,
    /// A number that this version does not know.
    Other(u16),
}

impl Code {
    /// Every code with a meaning.
    pub const ALL: [Self; 18] = [
        Self::VersionUnsupported,
        Self::ProtocolViolation,
        Self::PairUnknown,
        Self::Fenced,
        Self::KeyUnknown,
        Self::ApprovalPending,
        Self::Revoked,
        Self::WrongRole,
        Self::CertificateExpired,
        Self::CertificateNotYetValid,
        Self::RegistrationClosed,
        Self::TooManyTries,
        Self::NotAuthenticated,
        Self::RegistryFull,
        Self::RoleConflict,
        Self::KeyInUse,
        Self::RequestRefused,
        Self::Internal,
    ];

    /// The number on the wire.
    pub fn number(self) -> u16 {
        match self {
            Self::VersionUnsupported => 1,
            Self::ProtocolViolation => 2,
            Self::PairUnknown => 3,
            Self::Fenced => 11,
            Self::Internal => 14,
            Self::KeyUnknown => 32,
            Self::ApprovalPending => 33,
            Self::Revoked => 34,
            Self::WrongRole => 35,
            Self::CertificateExpired => 36,
            Self::CertificateNotYetValid => 37,
            Self::RegistrationClosed => 38,
            Self::TooManyTries => 39,
            Self::NotAuthenticated => 40,
            Self::RegistryFull => 41,
            Self::RoleConflict => 42,
            Self::KeyInUse => 43,
            Self::RequestRefused => 44,
            Self::Other(number) => number,
        }
    }

    /// The code with this number.
    pub fn from_number(number: u16) -> Self {
        Self::ALL
            .into_iter()
            .find(|code| code.number() == number)
            .unwrap_or(Self::Other(number))
    }

    /// What the one who was refused can do.
    pub fn hint(self) -> &'static str {
        match self {
            Self::VersionUnsupported => "install agents of the same release on both sides",
            Self::ProtocolViolation | Self::Other(_) => {
                "check that host and port are the appliance's and that both sides have the same release"
            }
            Self::PairUnknown => "run \"mt-agent pair list\" on the appliance and compare machine and disk",
            Self::Fenced => "the disk has failed over since; run \"mt-agent pair list\" on the appliance",
            Self::KeyUnknown => "register this machine with \"mt-agent register\"",
            Self::ApprovalPending => {
                "on the appliance run \"mt-agent machines list\", compare the key, then \"machines approve\""
            }
            Self::Revoked => {
                "on the appliance run \"mt-agent machines remove\" before this machine registers again"
            }
            Self::WrongRole => "register this machine with the role it has",
            Self::CertificateExpired => {
                "the agent renews it by itself while the appliance knows its key; else run \"mt-agent register\""
            }
            Self::CertificateNotYetValid => "set the clocks of both machines",
            Self::RegistrationClosed => "on the appliance run \"mt-agent registration open\"",
            Self::TooManyTries => "wait, then try again; the right passphrase is never locked out for good",
            Self::NotAuthenticated => {
                "check the passphrase; if it is right, something between the two machines ends TLS itself (a proxy, \
                 a load balancer, an attacker): connect without it"
            }
            Self::RegistryFull => "on the appliance remove machines that are no longer needed",
            Self::RoleConflict => "on the appliance remove the machine before it registers in another role",
            Self::KeyInUse => {
                "two machines share one key, as clones do: delete the agent's identity on one of them"
            }
            Self::RequestRefused => "install agents of the same release on both sides",
            Self::Internal => "see the journal of the appliance",
        }
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let words = match self {
            Self::VersionUnsupported => "no protocol version in common",
            Self::ProtocolViolation => "a message that may not come here",
            Self::PairUnknown => "this machine has no such pair",
            Self::Fenced => "the pair has moved on to a newer generation",
            Self::KeyUnknown => "the appliance does not know this machine's key",
            Self::ApprovalPending => "this machine's key waits for the operator's approval",
            Self::Revoked => "this machine was revoked",
            Self::WrongRole => "the role in this machine's certificate does not allow it",
            Self::CertificateExpired => "this machine's certificate has run out",
            Self::CertificateNotYetValid => {
                "this machine's certificate is not valid yet by the appliance's clock"
            }
            Self::RegistrationClosed => "the time for registering machines is over",
            Self::TooManyTries => "too many tries",
            Self::NotAuthenticated => {
                "the passphrase is wrong, or the connection does not end at the appliance"
            }
            Self::RegistryFull => "the appliance has as many machines as it takes",
            Self::RoleConflict => "this machine is registered in another role",
            Self::KeyInUse => "this key belongs to another machine",
            Self::RequestRefused => "the certificate request is not one that the appliance signs",
            Self::Internal => "a fault of the appliance",
            Self::Other(number) => {
                return write!(f, "refused with code {number}, which this version does not know");
            }
        };
        f.write_str(words)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_unique_and_come_back() {
        for number in 0..=u16::MAX {
            assert_eq!(Code::from_number(number).number(), number);
        }
        for code in Code::ALL {
            assert_eq!(Code::from_number(code.number()), code);
            assert!(!code.to_string().is_empty() && !code.hint().is_empty());
        }
    }
}
