//! The side that wants a certificate.

use rustls_pki_types::CertificateDer;

use super::Fault;
use super::message::{Answer, Application, Decoder, Message, VERSION};
use super::seal::{self, Direction};
use crate::ca::LeafKey;
use crate::id::{Fingerprint, MachineId, MachineName, Role};
use crate::leaf::{self, CertificateError, Leaf, Usage};
use crate::opaque::{Channel, ClientRun, SessionKey};
use crate::passphrase::Passphrase;

/// What a client registers with.
#[derive(Debug)]
pub struct ClientParams<'a> {
    /// What someone typed.
    pub passphrase: Passphrase,
    /// The connection.
    pub channel: Channel,
    /// What the machine is to be; not [`Role::Server`].
    pub role: Role,
    /// The machine.
    pub id: MachineId,
    /// Its name, for people.
    pub name: MachineName,
    /// Its key; only a request for it is kept and sent.
    pub key: &'a LeafKey,
    /// The CA that it must be, when known.
    pub ca: Option<Fingerprint>,
}

/// What a registration or renewal gives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// Whether the operator has approved already; if not, the data port refuses until then.
    pub approved: bool,
    /// The CAs to trust from now on, to be stored.
    pub cas: Vec<CertificateDer<'static>>,
    /// The machine's certificate, to be stored with its key.
    pub certificate: CertificateDer<'static>,
    /// What that says.
    pub leaf: Leaf,
    /// Fingerprint of the CA that signed it: shown, so that it can be compared with the console.
    pub ca: Fingerprint,
}

/// What to do after bytes came.
#[derive(Debug)]
pub enum ClientStep {
    /// Wait for more.
    More,
    /// Send this, then wait for more.
    Send(Vec<u8>),
    /// Done; the connection can be closed.
    Done(Box<Registered>),
}

enum State {
    AwaitChallenge { run: Box<ClientRun> },
    AwaitIssued { key: SessionKey },
    Over,
}

/// The client's state machine.
pub struct Client {
    state: State,
    decoder: Decoder,
    passphrase: Passphrase,
    context: [u8; 78],
    role: Role,
    application: Application,
    key: Fingerprint,
    ca: Option<Fingerprint>,
}

impl Client {
    /// Begins; the bytes are to be sent.
    ///
    /// # Errors
    /// When the role cannot be registered, or the request cannot be signed.
    pub fn start(params: ClientParams<'_>) -> Result<(Self, Vec<u8>), Fault> {
        let role = params.role;
        if role == Role::Server {
            return Err(Fault::Role { found: role.number() });
        }
        let (run, ke1) = ClientRun::start(&params.passphrase)?;
        let start = Message::Start {
            version: VERSION,
            role: role.number(),
            ke1: Box::new(ke1),
        };
        let client = Self {
            state: State::AwaitChallenge { run: Box::new(run) },
            decoder: Decoder::default(),
            passphrase: params.passphrase,
            context: params.channel.context(VERSION, role),
            role,
            application: Application {
                id: params.id,
                name: params.name,
                request: params.key.request()?,
            },
            key: params.key.fingerprint(),
            ca: params.ca,
        };
        Ok((client, start.encode()))
    }

    /// Takes bytes as they arrived. The challenge makes it run Argon2id: a tenth of a second or two of one processor.
    ///
    /// # Errors
    /// The session is over then; [`Fault::answer`] is what to tell the peer.
    pub fn receive(&mut self, bytes: &[u8]) -> Result<ClientStep, Fault> {
        let state = std::mem::replace(&mut self.state, State::Over);
        let message = match self.decoder.push(bytes) {
            Ok(Some(message)) => message,
            Ok(None) if matches!(state, State::Over) => return Err(unexpected("bytes", &state)),
            Ok(None) => {
                self.state = state;
                return Ok(ClientStep::More);
            }
            Err(error) => return Err(error.into()),
        };
        match (state, message) {
            (State::AwaitChallenge { run }, Message::Challenge { ke2 }) => {
                let (ke3, key) = run.finish(&self.passphrase, &ke2, &self.context)?;
                let sealed = seal::seal(&key, Direction::ToServer, &ke3, self.application.encode())?;
                self.state = State::AwaitIssued { key };
                let ke3 = Box::new(ke3);
                Ok(ClientStep::Send(Message::Finish { ke3, sealed }.encode()))
            }
            (State::AwaitIssued { key }, Message::Issued { sealed }) => {
                let answer = Answer::decode(&seal::open(&key, Direction::ToClient, &[], sealed)?)?;
                let registered = check_answer(answer, self.application.id, self.role, self.key)?;
                match self.ca {
                    Some(expected) if expected != registered.ca => Err(Fault::OtherCa {
                        expected,
                        found: registered.ca,
                    }),
                    _ => Ok(ClientStep::Done(Box::new(registered))),
                }
            }
            (State::AwaitChallenge { .. } | State::AwaitIssued { .. }, Message::Refused(refusal)) => {
                Err(Fault::Refused(refusal))
            }
            (state, message) => Err(unexpected(message.name(), &state)),
        }
    }
}

fn unexpected(found: &'static str, state: &State) -> Fault {
    let state = match state {
        State::AwaitChallenge { .. } => "the challenge was due",
        State::AwaitIssued { .. } => "the certificate was due",
        State::Over => "the registration was over",
    };
    Fault::Unexpected { found, state }
}

/// Checks that what the server gives is what was asked for, so that a wrong certificate is noticed now and not on the
/// day it is needed.
pub(crate) fn check_answer(
    answer: Answer,
    id: MachineId,
    role: Role,
    key: Fingerprint,
) -> Result<Registered, Fault> {
    let Answer {
        approved,
        cas,
        certificate,
    } = answer;
    let first = cas.first().ok_or(CertificateError::Untrusted)?;
    let ca = leaf::key_of(first)?;
    let anchor = webpki::anchor_from_trusted_cert(first).map_err(|_| CertificateError::Unreadable)?;
    let leaf = leaf::verify_chain(&certificate, &[anchor], Usage::Client)?;
    for successor in &cas[1..] {
        webpki::anchor_from_trusted_cert(successor).map_err(|_| CertificateError::Unreadable)?;
    }
    if (leaf.id, leaf.role, leaf.key) != (id, role, key) {
        return Err(Fault::NotMine);
    }
    Ok(Registered {
        approved,
        cas,
        certificate,
        leaf,
        ca,
    })
}
