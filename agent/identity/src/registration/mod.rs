//! Registration: a machine that knows the passphrase gets a certificate. Two state machines without I/O.
//!
//! ```text
//! client                                            server
//!   | Start { version, role, KE1 }             ------> |  AwaitStart
//!   | <------                      Challenge { KE2 }   |  AwaitFinish
//!   |  knows now that the server has the passphrase's record and shares this channel
//!   | Finish { KE3, sealed request }           ------> |  knows now that the client has the passphrase
//!   |                                                  |  AwaitDecision: registry, then CA
//!   | <------        Issued { sealed certificates }    |  Done
//! ```
//!
//! Either side answers what it does not accept with `Refused` or by closing; nothing follows. Each message may come in
//! exactly one state, and nothing may come behind it before it is answered.
//!
//! The exchange runs inside TLS 1.3 and is bound to that connection ([`Channel`]): a party in the middle that ends TLS
//! has two connections with different exporters, and both runs fail. Certificate request and certificates are sealed
//! under keys derived from the run (ChaCha20-Poly1305), so that even who breaks TLS later learns no names, and none of
//! them can be exchanged on the way.
//!
//! Without the right passphrase everything the server says is `Challenge`, then `Refused` with
//! [`Code::NotAuthenticated`]: the same sizes and the same work whether a passphrase is set or not.

mod client;
pub mod message;
mod seal;
mod server;
#[cfg(test)]
mod tests;

pub(crate) use client::check_answer;
pub use client::{Client, ClientParams, ClientStep, Registered};
pub use message::{Answer, Application, Decoder, Message, Refusal, VERSION};
pub use server::{Applicant, Server, ServerStep};

pub use crate::codec::Malformed;
pub use crate::opaque::Channel;

use crate::ca::CaError;
use crate::code::Code;
use crate::leaf::CertificateError;
use crate::opaque::OpaqueError;

/// Why a registration or a renewal ended. The session takes nothing more after it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Fault {
    /// Bytes that are no message.
    #[error("the peer's message cannot be read: {0}")]
    Malformed(#[from] Malformed),
    /// A message that may not come now.
    #[error("the peer sent {found} while {state}")]
    Unexpected {
        /// The message.
        found: &'static str,
        /// What we were doing.
        state: &'static str,
    },
    /// The versions do not meet.
    #[error("the peer speaks registration version {found}, this side {VERSION}")]
    Version {
        /// The peer's.
        found: u16,
    },
    /// A role that nobody can register for.
    #[error("nobody can register as {found}")]
    Role {
        /// The role's number, as received.
        found: u8,
    },
    /// Wrong passphrase, or not one channel.
    #[error(transparent)]
    Opaque(#[from] OpaqueError),
    /// What was sealed cannot be opened.
    #[error("the peer's {0} was changed on the way")]
    Seal(&'static str),
    /// A certificate request that is not signed.
    #[error(transparent)]
    Request(#[from] CaError),
    /// The certificate that came is not what was asked for.
    #[error("the certificate that the appliance sent is not usable: {0}")]
    Certificate(#[from] CertificateError),
    /// The certificate that came is for someone else.
    #[error("the certificate that the appliance sent is not for this machine, role and key")]
    NotMine,
    /// The CA is not the one that was asked for.
    #[error("the appliance's CA has the fingerprint {found}, expected {expected}")]
    OtherCa {
        /// As asked for.
        expected: crate::id::Fingerprint,
        /// As it is.
        found: crate::id::Fingerprint,
    },
    /// The gate in front of us is closed: registration is over, or it is too early for another try.
    #[error("{}", .0.code)]
    NotNow(Refusal),
    /// The other side refused.
    #[error("{}", .0.code)]
    Refused(Refusal),
}

impl Fault {
    /// What to tell the peer before the connection is closed; `None` after its own refusal.
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Malformed(_) | Self::Unexpected { .. } | Self::Seal(_) => Some(Code::ProtocolViolation),
            Self::Opaque(OpaqueError::Malformed(_)) => Some(Code::ProtocolViolation),
            Self::Version { .. } => Some(Code::VersionUnsupported),
            Self::Role { .. } => Some(Code::WrongRole),
            Self::Opaque(OpaqueError::Failed) => Some(Code::NotAuthenticated),
            Self::Opaque(OpaqueError::Damaged(_)) => Some(Code::Internal),
            Self::Request(_) | Self::Certificate(_) | Self::NotMine | Self::OtherCa { .. } => {
                Some(Code::RequestRefused)
            }
            Self::NotNow(refusal) => Some(refusal.code),
            Self::Refused(_) => None,
        }
    }

    /// The message that tells it.
    pub fn answer(&self) -> Option<Vec<u8>> {
        let wait_s = match self {
            Self::NotNow(refusal) => refusal.wait_s,
            _ => 0,
        };
        self.code()
            .map(|code| Message::Refused(Refusal { code, wait_s }).encode())
    }

    /// What to do next, for who started the registration.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::Refused(refusal) | Self::NotNow(refusal) => refusal.code.hint(),
            Self::OtherCa { .. } => {
                "compare the fingerprint with the appliance's console; if they differ, you are not talking to it"
            }
            Self::Version { .. } => Code::VersionUnsupported.hint(),
            Self::Opaque(OpaqueError::Failed) => Code::NotAuthenticated.hint(),
            _ => Code::ProtocolViolation.hint(),
        }
    }
}
