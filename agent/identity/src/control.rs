//! One connection to the control port, behind the TLS handshake: registration or renewal with everything around it.
//!
//! Joins window, rate limit, OPAQUE, registry and CA, so that the edge has only bytes to carry and changes to store:
//!
//! 1. [`crate::limits::Admission::admit`], TLS handshake under [`crate::tls::control_server`];
//! 2. [`crate::tls::control_peer`] -> [`Control::new`];
//! 3. bytes -> [`Control::receive`] -> a [`Step`], until one ends the connection.
//!
//! A [`Step::Grant`] is made true in this order: store the change, [`Registry::commit`], send the bytes. A crash before
//! the bytes are sent leaves a machine in the registry that asks again; the other order would leave a certificate that
//! nobody knows.

use std::net::IpAddr;
use std::time::Duration;

use jiff::Timestamp;

use crate::ca::{CaError, Request};
use crate::code::Code;
use crate::leaf::Leaf;
use crate::limits::{Attempt, RateLimiter};
use crate::registration::message::{Answer, Decoder, Message};
use crate::registration::{Applicant, Fault, Refusal, Server, ServerStep};
use crate::registry::{Change, Registry, RegistryError};
use crate::renewal;
use crate::store::Identity;
use crate::tls::ControlPeer;

/// What a connection is decided with.
#[derive(Debug)]
pub struct Appliance<'a> {
    /// Who the appliance is.
    pub identity: &'a Identity,
    /// Whom it knows.
    pub registry: &'a Registry,
    /// Who tried before.
    pub limiter: &'a mut RateLimiter,
}

/// The time, as both clocks say it.
#[derive(Debug, Clone, Copy)]
pub struct Now {
    /// For certificates.
    pub wall: Timestamp,
    /// For limits; only ever goes forward.
    pub monotonic: Duration,
}

/// What to do after bytes came.
#[derive(Debug)]
pub enum Step {
    /// Wait for more.
    More,
    /// Send this, then wait for more.
    Send(Vec<u8>),
    /// Store the change, commit it, send the bytes, close. When it cannot be stored, close without sending them.
    Grant {
        /// What becomes of the registry.
        change: Box<Change>,
        /// The certificates.
        bytes: Vec<u8>,
    },
    /// Send the bytes where there are any, close, log the reason with the peer's address.
    Refuse {
        /// What the peer is told.
        code: Code,
        /// What is sent.
        bytes: Option<Vec<u8>>,
        /// Why, for our log. Holds no text of a peer but a name that was found harmless.
        reason: String,
    },
}

/// Why something was not granted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotGranted {
    /// The registry does not allow it.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// Signing failed.
    #[error(transparent)]
    Ca(#[from] CaError),
}

impl NotGranted {
    /// What the peer is told.
    pub fn code(&self) -> Code {
        match self {
            Self::Registry(error) => error.code(),
            Self::Ca(_) => Code::Internal,
        }
    }
}

/// What registering this machine does and what it is answered.
///
/// # Errors
/// When the registry does not take it or signing fails.
pub fn grant_registration(
    identity: &Identity,
    registry: &Registry,
    who: &Applicant,
    now: Timestamp,
) -> Result<(Change, Answer), NotGranted> {
    let key = who.request.key();
    let signed = identity.ca.sign(&who.request, who.id, who.role, now)?;
    let change = registry.register(who.id, &who.name, who.role, key, signed.not_after, now)?;
    let approved = change
        .after
        .as_ref()
        .is_some_and(|machine| machine.is_in_force(key));
    let answer = Answer {
        approved,
        cas: identity.ca_certificates(),
        certificate: signed.certificate,
    };
    Ok((change, answer))
}

/// What renewing the certificate of this peer to the key of this request does and what it is answered.
///
/// # Errors
/// When the registry does not allow it or signing fails.
pub fn grant_renewal(
    identity: &Identity,
    registry: &Registry,
    peer: &Leaf,
    request: &Request,
    now: Timestamp,
) -> Result<(Change, Answer), NotGranted> {
    let signed = identity.ca.sign(request, peer.id, peer.role, now)?;
    let change = registry.renew(peer, request.key(), signed.not_after, now)?;
    let answer = Answer {
        approved: true,
        cas: identity.ca_certificates(),
        certificate: signed.certificate,
    };
    Ok((change, answer))
}

enum Kind {
    Register(Box<Server>),
    Renew { peer: Box<Leaf>, decoder: Decoder },
    Over,
}

/// A connection to the control port.
pub struct Control {
    kind: Kind,
    address: IpAddr,
    attempt: Option<Attempt>,
}

impl Control {
    /// For the peer of a finished handshake, at this address.
    pub fn new(peer: ControlPeer, address: IpAddr) -> Self {
        let kind = match peer {
            ControlPeer::Register(channel) => Kind::Register(Box::new(Server::new(channel))),
            ControlPeer::Renew(peer) => Kind::Renew {
                peer: Box::new(peer),
                decoder: Decoder::default(),
            },
        };
        Self {
            kind,
            address,
            attempt: None,
        }
    }

    /// Takes bytes as they arrived.
    pub fn receive(&mut self, bytes: &[u8], appliance: &mut Appliance<'_>, now: Now) -> Step {
        match std::mem::replace(&mut self.kind, Kind::Over) {
            Kind::Register(server) => self.register(server, bytes, appliance, now),
            Kind::Renew { peer, decoder } => self.renew(peer, decoder, bytes, appliance, now),
            Kind::Over => refuse(&Fault::Unexpected {
                found: "bytes",
                state: "the connection was over",
            }),
        }
    }

    fn register(
        &mut self,
        mut server: Box<Server>,
        bytes: &[u8],
        appliance: &mut Appliance<'_>,
        now: Now,
    ) -> Step {
        let (address, attempt) = (self.address, &mut self.attempt);
        let Appliance {
            identity,
            registry,
            limiter,
        } = appliance;
        let gate = || {
            if !identity.window.is_open(now.wall) {
                return Err(Refusal {
                    code: Code::RegistrationClosed,
                    wait_s: 0,
                });
            }
            let begun = limiter.begin(address, now.monotonic).map_err(|wait| Refusal {
                code: Code::TooManyTries,
                wait_s: wait.seconds(),
            })?;
            *attempt = Some(begun);
            Ok(())
        };
        match server.receive_gated(bytes, &identity.secrets, gate) {
            Ok(ServerStep::More) => {
                self.kind = Kind::Register(server);
                Step::More
            }
            Ok(ServerStep::Send(bytes)) => {
                self.kind = Kind::Register(server);
                Step::Send(bytes)
            }
            Ok(ServerStep::Decide(who)) => {
                if let Some(attempt) = self.attempt.take() {
                    limiter.succeeded(attempt);
                }
                let granted = grant_registration(identity, registry, &who, now.wall);
                let (change, answer) = match granted {
                    Ok(granted) => granted,
                    Err(error) => return not_granted(&error),
                };
                match server.accept(&answer) {
                    Ok(bytes) => Step::Grant {
                        change: Box::new(change),
                        bytes,
                    },
                    Err(fault) => refuse(&fault),
                }
            }
            Err(fault) => refuse(&fault),
        }
    }

    fn renew(
        &mut self,
        peer: Box<Leaf>,
        mut decoder: Decoder,
        bytes: &[u8],
        appliance: &mut Appliance<'_>,
        now: Now,
    ) -> Step {
        match renewal::receive_request(&mut decoder, bytes) {
            Ok(None) => {
                self.kind = Kind::Renew { peer, decoder };
                Step::More
            }
            Ok(Some(request)) => {
                match grant_renewal(appliance.identity, appliance.registry, &peer, &request, now.wall) {
                    Ok((change, answer)) => Step::Grant {
                        change: Box::new(change),
                        bytes: Message::Renewed(answer).encode(),
                    },
                    Err(error) => not_granted(&error),
                }
            }
            Err(fault) => refuse(&fault),
        }
    }
}

fn refuse(fault: &Fault) -> Step {
    Step::Refuse {
        code: fault.code().unwrap_or(Code::NotAuthenticated),
        bytes: fault.answer(),
        reason: fault.to_string(),
    }
}

fn not_granted(error: &NotGranted) -> Step {
    let code = error.code();
    Step::Refuse {
        code,
        bytes: Some(renewal::refuse(code)),
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests;
