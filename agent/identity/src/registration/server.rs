//! The side that gives certificates.

use super::Fault;
use super::message::{Answer, Application, Decoder, Message, Refusal, VERSION};
use super::seal::{self, Direction};
use crate::ca::Request;
use crate::id::{MachineId, MachineName, Role};
use crate::opaque::{Channel, Secrets, ServerRun, SessionKey};

/// Someone who knows the passphrase wants a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Applicant {
    /// The machine.
    pub id: MachineId,
    /// Its name, for people.
    pub name: MachineName,
    /// What it wants to be; never [`Role::Server`].
    pub role: Role,
    /// Its checked request.
    pub request: Request,
}

/// What to do after bytes came.
#[derive(Debug)]
pub enum ServerStep {
    /// Wait for more.
    More,
    /// Send this, then wait for more. A guess was begun: it counts as failed until [`ServerStep::Decide`].
    Send(Vec<u8>),
    /// The passphrase was right. Ask the registry, sign, then call [`Server::accept`], or [`Server::refuse`].
    Decide(Box<Applicant>),
}

enum State {
    AwaitStart,
    AwaitFinish {
        run: Box<ServerRun>,
        role: Role,
        context: [u8; 78],
    },
    AwaitDecision {
        key: SessionKey,
    },
    Over,
}

/// The server's state machine, one for each connection.
pub struct Server {
    state: State,
    decoder: Decoder,
    channel: Channel,
}

impl Server {
    /// Waits for a client on this connection.
    pub fn new(channel: Channel) -> Self {
        Self {
            state: State::AwaitStart,
            decoder: Decoder::default(),
            channel,
        }
    }

    /// Takes bytes as they arrived.
    ///
    /// # Errors
    /// The session is over then; [`Fault::answer`] is what to tell the peer.
    pub fn receive(&mut self, bytes: &[u8], secrets: &Secrets) -> Result<ServerStep, Fault> {
        self.receive_gated(bytes, secrets, || Ok(()))
    }

    /// As [`Self::receive`]; `gate` is asked when a guess at the passphrase is about to begin, and can refuse it.
    ///
    /// # Errors
    /// As there, and [`Fault::NotNow`] with what the gate said.
    pub fn receive_gated(
        &mut self,
        bytes: &[u8],
        secrets: &Secrets,
        gate: impl FnOnce() -> Result<(), Refusal>,
    ) -> Result<ServerStep, Fault> {
        let state = std::mem::replace(&mut self.state, State::Over);
        let message = match self.decoder.push(bytes) {
            Ok(Some(message)) => message,
            // Nothing may come before our answer, nor after the end.
            Ok(None) if matches!(state, State::AwaitDecision { .. } | State::Over) => {
                return Err(unexpected("bytes", &state));
            }
            Ok(None) => {
                self.state = state;
                return Ok(ServerStep::More);
            }
            Err(error) => return Err(error.into()),
        };
        match (state, message) {
            (State::AwaitStart, Message::Start { version, role, ke1 }) => {
                if version != VERSION {
                    return Err(Fault::Version { found: version });
                }
                let role = match Role::from_number(role) {
                    Some(role) if role != Role::Server => role,
                    _ => return Err(Fault::Role { found: role }),
                };
                gate().map_err(Fault::NotNow)?;
                let context = self.channel.context(VERSION, role);
                let (run, ke2) = ServerRun::start(secrets, &ke1, &context)?;
                self.state = State::AwaitFinish {
                    run: Box::new(run),
                    role,
                    context,
                };
                let ke2 = Box::new(ke2);
                Ok(ServerStep::Send(Message::Challenge { ke2 }.encode()))
            }
            (State::AwaitFinish { run, role, context }, Message::Finish { ke3, sealed }) => {
                let key = run.finish(secrets, &ke3, &context)?;
                let plain = seal::open(&key, Direction::ToServer, &ke3[..], sealed)?;
                let Application { id, name, request } = Application::decode(&plain)?;
                let request = Request::check(&request)?;
                self.state = State::AwaitDecision { key };
                Ok(ServerStep::Decide(Box::new(Applicant {
                    id,
                    name,
                    role,
                    request,
                })))
            }
            (State::AwaitStart | State::AwaitFinish { .. }, Message::Refused(refusal)) => {
                Err(Fault::Refused(refusal))
            }
            (state, message) => Err(unexpected(message.name(), &state)),
        }
    }

    /// Gives the certificates; the bytes are to be sent, then the connection closed.
    ///
    /// # Errors
    /// When nothing was asked for.
    pub fn accept(&mut self, answer: &Answer) -> Result<Vec<u8>, Fault> {
        match std::mem::replace(&mut self.state, State::Over) {
            State::AwaitDecision { key } => {
                let mut plain = Vec::new();
                answer.encode(&mut plain);
                let sealed = seal::seal(&key, Direction::ToClient, &[], plain)?;
                Ok(Message::Issued { sealed }.encode())
            }
            state => Err(unexpected("a decision", &state)),
        }
    }

    /// Refuses, at any time; the bytes are to be sent, then the connection closed.
    pub fn refuse(&mut self, refusal: Refusal) -> Vec<u8> {
        self.state = State::Over;
        Message::Refused(refusal).encode()
    }
}

fn unexpected(found: &'static str, state: &State) -> Fault {
    let state = match state {
        State::AwaitStart => "the start of a registration was due",
        State::AwaitFinish { .. } => "the proof of the passphrase was due",
        State::AwaitDecision { .. } => "its request was being decided",
        State::Over => "the registration was over",
    };
    Fault::Unexpected { found, state }
}
