//! Who may connect, and which stream may be opened. Pure decisions, each with a reason and a code.

use jiff::Timestamp;

use super::{Machine, Registry, Session, State};
use crate::code::Code;
use crate::id::{Fingerprint, MachineId, Role};
use crate::leaf::{Leaf, Validity};

/// Why a peer may not. The text is for our log; the peer is told the [`Code`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Denial {
    /// No machine has this key.
    #[error("no registered machine has the key {key}")]
    KeyUnknown {
        /// The key.
        key: Fingerprint,
    },
    /// The machine waits for the operator.
    #[error("machine {id} waits for approval")]
    Pending {
        /// The machine.
        id: MachineId,
    },
    /// The machine is active, with another key; this one waits.
    #[error("the key {key} waits for approval to take the place of the one that machine {id} has")]
    KeyPending {
        /// The machine.
        id: MachineId,
        /// The key.
        key: Fingerprint,
    },
    /// The machine was revoked.
    #[error("machine {id} was revoked")]
    Revoked {
        /// The machine.
        id: MachineId,
    },
    /// The machine was removed.
    #[error("machine {id} was removed")]
    Removed {
        /// The machine.
        id: MachineId,
    },
    /// Another key was approved for the machine.
    #[error("another key was approved for machine {id}")]
    Replaced {
        /// The machine.
        id: MachineId,
    },
    /// Certificate and registry do not say the same of the key.
    #[error("the certificate says {certificate}, the registry knows the key as {registered}")]
    OtherIdentity {
        /// Machine and role in the certificate.
        certificate: String,
        /// Machine and role in the registry.
        registered: String,
    },
    /// The role may not do this.
    #[error("machine {id} is a {role}, which may not {what}")]
    WrongRole {
        /// The machine.
        id: MachineId,
        /// Its role.
        role: Role,
        /// What it wanted.
        what: &'static str,
    },
    /// The certificate ran out.
    #[error("the certificate of machine {id} ran out at {since}, it is {now} here")]
    Expired {
        /// The machine.
        id: MachineId,
        /// When.
        since: Timestamp,
        /// Our time.
        now: Timestamp,
    },
    /// The certificate is not valid yet.
    #[error("the certificate of machine {id} is valid from {from}, it is {now} here")]
    NotYetValid {
        /// The machine.
        id: MachineId,
        /// When.
        from: Timestamp,
        /// Our time.
        now: Timestamp,
    },
    /// There is no such pair.
    #[error("machine {id} asked for a pair that does not exist")]
    PairUnknown {
        /// The machine.
        id: MachineId,
    },
    /// The pair belongs to another machine. Worth an entry in the security log.
    #[error("machine {id} asked for a pair of machine {owner}")]
    PairOfAnother {
        /// The machine.
        id: MachineId,
        /// Whose pair it is.
        owner: MachineId,
    },
    /// The generation is not the pair's.
    #[error("machine {id} speaks of generation {offered}, the pair is at {current}")]
    Fenced {
        /// The machine.
        id: MachineId,
        /// What it offered.
        offered: u64,
        /// What the pair has.
        current: u64,
    },
}

impl Denial {
    /// What the peer is told. A pair of another machine and one that does not exist are the same to him.
    pub fn code(&self) -> Code {
        match self {
            Self::KeyUnknown { .. }
            | Self::Removed { .. }
            | Self::Replaced { .. }
            | Self::OtherIdentity { .. } => Code::KeyUnknown,
            Self::Pending { .. } | Self::KeyPending { .. } => Code::ApprovalPending,
            Self::Revoked { .. } => Code::Revoked,
            Self::WrongRole { .. } => Code::WrongRole,
            Self::Expired { .. } => Code::CertificateExpired,
            Self::NotYetValid { .. } => Code::CertificateNotYetValid,
            Self::PairUnknown { .. } | Self::PairOfAnother { .. } => Code::PairUnknown,
            Self::Fenced { .. } => Code::Fenced,
        }
    }
}

/// What is known of a pair, for the decision.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair<'a> {
    /// The machine whose disk it is.
    pub source: MachineId,
    /// The relays that may carry it.
    pub relays: &'a [MachineId],
    /// Its generation.
    pub generation: u64,
}

impl Registry {
    /// Whether the peer of a finished handshake may connect: its key is in force, its certificate says what the
    /// registry says, and its dates hold.
    ///
    /// # Errors
    /// The reason, with the code to send before the connection is closed.
    pub fn admit(&self, peer: &Leaf, now: Timestamp) -> Result<&Machine, Denial> {
        let machine = self.with_key_in_force(peer.key)?;
        if (machine.id, machine.role) != (peer.id, peer.role) {
            return Err(Denial::OtherIdentity {
                certificate: format!("{} {}", peer.role, peer.id),
                registered: format!("{} {}", machine.role, machine.id),
            });
        }
        let id = machine.id;
        match peer.validity(now) {
            Validity::Valid => Ok(machine),
            Validity::Expired { since } => Err(Denial::Expired { id, since, now }),
            Validity::NotYet { from } => Err(Denial::NotYetValid { id, from, now }),
        }
    }

    /// Whether an open session must end now; asked for each session after each change. Neither dates nor a renewed
    /// key end one: a certificate may lapse while the machine is being brought home.
    pub fn must_end(&self, session: Session) -> Option<Denial> {
        let id = session.id;
        match self.machine(id) {
            None => Some(Denial::Removed { id }),
            Some(machine) => match machine.state {
                State::Revoked => Some(Denial::Revoked { id }),
                State::Pending => Some(Denial::Pending { id }),
                State::Active if machine.approvals != session.approvals => Some(Denial::Replaced { id }),
                State::Active => None,
            },
        }
    }

    fn with_key_in_force(&self, key: Fingerprint) -> Result<&Machine, Denial> {
        let machine = self.owner(key).ok_or(Denial::KeyUnknown { key })?;
        let id = machine.id;
        match machine.state {
            State::Revoked => Err(Denial::Revoked { id }),
            State::Pending => Err(Denial::Pending { id }),
            State::Active if machine.candidate == Some(key) => Err(Denial::KeyPending { id, key }),
            State::Active => Ok(machine),
        }
    }
}

/// Whether an admitted machine may open a stream to this pair; asked for every stream. `pair` is what the name that it
/// gave leads to.
///
/// # Errors
/// The reason, with the code to send.
pub fn authorise(machine: &Machine, pair: Option<&Pair<'_>>, generation: u64) -> Result<(), Denial> {
    let id = machine.id;
    match machine.role {
        Role::Source | Role::Relay => {}
        role @ (Role::Target | Role::Server) => {
            let what = "write a pair";
            return Err(Denial::WrongRole { id, role, what });
        }
    }
    let pair = pair.ok_or(Denial::PairUnknown { id })?;
    let carries = match machine.role {
        Role::Relay => pair.relays.contains(&id),
        _ => pair.source == id,
    };
    if !carries {
        let owner = pair.source;
        return Err(Denial::PairOfAnother { id, owner });
    }
    // A newer generation than ours is as wrong as an older one: it was not we who raised it.
    if generation != pair.generation {
        return Err(Denial::Fenced {
            id,
            offered: generation,
            current: pair.generation,
        });
    }
    Ok(())
}
