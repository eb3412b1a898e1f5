//! A machine's own side: it registers with an appliance, renews its certificate, and connects.
//!
//! Two files in the folder of the source's state: `member` (id, key, certificates; mode 0600) and `appliance` (address of
//! the control port, as text). A lock keeps two runs from renewing at the same time: the appliance admits the last key
//! that was renewed to, and the file has to hold that one.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use mt_identity::leaf::Renewal;
use mt_identity::member::{self, Member, MemberError};
use mt_identity::registration::{Client, ClientParams, ClientStep, Decoder, Fault, Registered};
use mt_identity::tls::{self, Purpose, TlsError};
use mt_identity::{Fingerprint, LeafKey, MachineName, Passphrase, Role, renewal};
use rustls::ClientConfig;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::clock::SystemClock;
use super::file;
use crate::error::{ExitCode, Explain};
use crate::net::tls::{Secure, connect, explain_io};

/// Port of an appliance's control port when none is named.
pub const CONTROL_PORT: u16 = 443;
/// How long a connection may take to be made, and an appliance to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// Most bytes of the file that names the appliance: a host name has 253.
const ADDRESS_BYTES_MAX: usize = 300;

/// Why a machine is not registered, not renewed, or cannot connect.
#[derive(Debug, thiserror::Error)]
pub enum MembershipError {
    /// A file cannot be read or written.
    #[error("cannot {act} {path}: {source}")]
    File {
        /// What was attempted.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The file of the machine's identity cannot be used.
    #[error("{path}: {source}")]
    Member {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: MemberError,
    },
    /// The machine has not registered.
    #[error("this machine is not registered with an appliance: there is no certificate in {0}")]
    NotRegistered(PathBuf),
    /// The appliance is not reached.
    #[error("cannot reach the control port of the appliance at {target}: {source}")]
    Connect {
        /// As given.
        target: String,
        /// The cause.
        source: io::Error,
    },
    /// TLS does not come about.
    #[error("appliance at {target}: {text}")]
    Tls {
        /// As given.
        target: String,
        /// What happened.
        text: String,
        /// What to do.
        hint: String,
    },
    /// The connection was lost.
    #[error("lost the appliance at {target}: {source}")]
    Lost {
        /// As given.
        target: String,
        /// The cause.
        source: io::Error,
    },
    /// Registration or renewal was refused, or is not to be trusted.
    #[error("appliance at {target}: {source}{}", waiting(.source))]
    Fault {
        /// As given.
        target: String,
        /// The cause.
        source: Fault,
    },
    /// A fault of our own or of the system.
    #[error("{0}")]
    Internal(String),
}

fn waiting(fault: &Fault) -> String {
    match fault {
        Fault::Refused(refusal) if refusal.wait_s > 0 => {
            format!("; the next is possible in {} s", refusal.wait_s)
        }
        _ => String::new(),
    }
}

impl Explain for MembershipError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::File { .. } => "give a folder that this user may write with --state-dir",
            Self::Member { source, .. } => source.hint(),
            Self::NotRegistered(_) => "register it: mt-agent register --target HOST",
            Self::Connect { .. } => {
                "check the address and that \"mt-agent target\" runs there; the control port is 443 where the \
                 configuration says nothing else"
            }
            Self::Tls { hint, .. } => hint,
            Self::Lost { .. } => "try again; if it stays so, see the journal of the appliance",
            Self::Fault { source, .. } => source.hint(),
            Self::Internal(_) => return None,
        };
        Some(text.to_owned())
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Connect { .. } | Self::Tls { .. } | Self::Lost { .. } | Self::Fault { .. } => {
                ExitCode::Peer
            }
            Self::NotRegistered(_) => ExitCode::Config,
            Self::File { .. } | Self::Member { .. } | Self::Internal(_) => ExitCode::Unexpected,
        }
    }
}

/// What a machine registers with.
#[derive(Debug)]
pub struct Application {
    /// The appliance's control port, `HOST:PORT`.
    pub target: String,
    /// What someone typed.
    pub passphrase: Passphrase,
    /// Fingerprint of the appliance's CA, where it is known.
    pub ca: Option<Fingerprint>,
    /// Source or relay.
    pub role: Role,
    /// What it is called.
    pub name: MachineName,
}

/// What came of registering.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Id of this machine, as `machines list` on the appliance shows it.
    pub id: String,
    /// Fingerprint of this machine's key.
    pub key: Fingerprint,
    /// Fingerprint of the appliance's CA.
    pub ca: Fingerprint,
    /// Until when the certificate is valid.
    pub until: Timestamp,
    /// Whether the operator has approved already.
    pub approved: bool,
}

/// The membership in a folder.
#[derive(Debug, Clone)]
pub struct Membership {
    folder: PathBuf,
}

impl Membership {
    /// The one in this folder, whether there is one or not.
    pub fn in_folder(folder: &Path) -> Self {
        Self {
            folder: folder.to_owned(),
        }
    }

    /// Registers this machine. Id and key are made and stored before the first try, and stay over tries.
    ///
    /// # Errors
    /// See [`MembershipError`]. Nothing but id and key is stored then.
    pub async fn register(&self, application: Application) -> Result<Outcome, MembershipError> {
        let _lock = self.lock()?;
        let mut member = match self.load()? {
            Some(member) => member,
            None => {
                let member = Member::create().map_err(|source| self.unusable(source))?;
                self.store(&member)?;
                member
            }
        };
        let Application {
            target,
            passphrase,
            ca,
            role,
            name,
        } = application;
        let config = tls::registration_client(ca, Arc::new(SystemClock)).map_err(internal)?;
        let mut stream = open(&target, config).await?;
        let Secure::Client(client) = &stream else {
            return Err(internal("the connection is not a client's"));
        };
        let channel =
            tls::client_channel(client.get_ref().1).map_err(|error: TlsError| MembershipError::Tls {
                target: target.clone(),
                text: error.to_string(),
                hint: "check host and port: machines register on the control port".to_owned(),
            })?;
        let params = ClientParams {
            passphrase,
            channel,
            role,
            id: member.id,
            name,
            key: &member.key,
            ca,
        };
        let fault = |source| MembershipError::Fault {
            target: target.clone(),
            source,
        };
        let (mut client, first) = Client::start(params).map_err(fault)?;
        say(&mut stream, &target, &first).await?;
        let registered = loop {
            let bytes = hear(&mut stream, &target).await?;
            // The challenge runs Argon2id.
            let work = tokio::task::spawn_blocking(move || {
                let step = client.receive(&bytes);
                (client, step)
            });
            let (back, step) = work.await.map_err(internal)?;
            client = back;
            match step {
                Ok(ClientStep::More) => {}
                Ok(ClientStep::Send(bytes)) => say(&mut stream, &target, &bytes).await?,
                Ok(ClientStep::Done(registered)) => break *registered,
                Err(source) => {
                    if let Some(answer) = source.answer() {
                        // That it is not taken changes nothing.
                        let _ = say(&mut stream, &target, &answer).await;
                    }
                    return Err(fault(source));
                }
            }
        };
        let outcome = Outcome {
            id: member.id.to_string(),
            key: member.key.fingerprint(),
            ca: registered.ca,
            until: registered.leaf.not_after,
            approved: registered.approved,
        };
        member.standing = Some(registered.into());
        self.store(&member)?;
        let path = self.path("appliance");
        file::replace(&path, target.as_bytes()).map_err(|source| failed("write", path, source))?;
        Ok(outcome)
    }

    /// For connecting to the data port. Renews the certificate before, when that is due; that this fails is told by
    /// `notice` and matters only when the certificate has run out, which the appliance then says.
    ///
    /// # Errors
    /// When the machine is not registered or its files cannot be used.
    pub async fn connect(&self, mut notice: impl FnMut(&str)) -> Result<Arc<ClientConfig>, MembershipError> {
        if let Err(error) = self.renew_if_due().await {
            match error {
                MembershipError::NotRegistered(_)
                | MembershipError::Member { .. }
                | MembershipError::File { .. } => return Err(error),
                error => notice(&format!(
                    "the certificate of this machine was not renewed: {error}"
                )),
            }
        }
        let member = self.registered()?;
        member
            .client(Role::Server, Purpose::Data, Arc::new(SystemClock))
            .map_err(|source| self.unusable(source))
    }

    /// Renews the certificate with a new key when it is 60 days old, or has run out; says whether it did.
    ///
    /// # Errors
    /// See [`MembershipError`]; the old one stays.
    pub async fn renew_if_due(&self) -> Result<bool, MembershipError> {
        let due = |member: &Member| match &member.standing {
            Some(standing) => matches!(
                standing.leaf.renewal(Timestamp::now()),
                Renewal::Due { .. } | Renewal::Overdue { .. }
            ),
            None => false,
        };
        if !due(&self.registered()?) {
            return Ok(false);
        }
        let _lock = self.lock()?;
        let member = self.registered()?;
        if !due(&member) {
            return Ok(false);
        }
        self.renew(&member).await?;
        Ok(true)
    }

    /// Renews now, due or not.
    ///
    /// # Errors
    /// See [`MembershipError`]; the old certificate stays.
    pub async fn renew_now(&self) -> Result<Timestamp, MembershipError> {
        let _lock = self.lock()?;
        let member = self.registered()?;
        self.renew(&member).await
    }

    async fn renew(&self, member: &Member) -> Result<Timestamp, MembershipError> {
        let path = self.path("appliance");
        let target =
            file::read(&path, ADDRESS_BYTES_MAX).map_err(|source| failed("read", path.clone(), source))?;
        let target = target
            .and_then(|bytes| String::from_utf8(bytes.to_vec()).ok())
            .ok_or(MembershipError::NotRegistered(path))?;
        let config = member
            .client(Role::Server, Purpose::Renewal, Arc::new(SystemClock))
            .map_err(|source| self.unusable(source))?;
        let Some(standing) = &member.standing else {
            return Err(MembershipError::NotRegistered(self.path("member")));
        };
        let fault = |source| MembershipError::Fault {
            target: target.clone(),
            source,
        };
        let key = LeafKey::generate().map_err(internal)?;
        let mut stream = open(&target, config).await?;
        say(&mut stream, &target, &renewal::request(&key).map_err(fault)?).await?;
        let mut decoder = Decoder::default();
        let registered: Registered = loop {
            let bytes = hear(&mut stream, &target).await?;
            let answer = renewal::receive_answer(&mut decoder, &bytes, &standing.leaf, &key);
            if let Some(registered) = answer.map_err(fault)? {
                break registered;
            }
        };
        let until = registered.leaf.not_after;
        self.store(&member.renewed(key, registered))?;
        Ok(until)
    }

    fn registered(&self) -> Result<Member, MembershipError> {
        self.load()?
            .filter(|member| member.standing.is_some())
            .ok_or_else(|| MembershipError::NotRegistered(self.path("member")))
    }

    fn load(&self) -> Result<Option<Member>, MembershipError> {
        let path = self.path("member");
        let bytes = file::read(&path, member::BYTES_MAX).map_err(|source| failed("read", path, source))?;
        let member = bytes.map(|bytes| Member::from_bytes(&bytes)).transpose();
        member.map_err(|source| self.unusable(source))
    }

    fn store(&self, member: &Member) -> Result<(), MembershipError> {
        let path = self.path("member");
        file::replace(&path, &member.to_bytes()).map_err(|source| failed("write", path, source))
    }

    fn lock(&self) -> Result<File, MembershipError> {
        let path = self.path("member.lock");
        let opened = DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)
            .and_then(|()| {
                File::options()
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .open(&path)
            })
            .and_then(|file| file.lock().map(|()| file));
        opened.map_err(|source| failed("lock", path, source))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    fn unusable(&self, source: MemberError) -> MembershipError {
        MembershipError::Member {
            path: self.path("member"),
            source,
        }
    }
}

fn failed(act: &'static str, path: PathBuf, source: io::Error) -> MembershipError {
    MembershipError::File { act, path, source }
}

fn internal(error: impl ToString) -> MembershipError {
    MembershipError::Internal(error.to_string())
}

async fn open(target: &str, config: Arc<ClientConfig>) -> Result<Secure, MembershipError> {
    let refused = |source| MembershipError::Connect {
        target: target.to_owned(),
        source,
    };
    let socket = timeout(PATIENCE, TcpStream::connect(target))
        .await
        .map_err(|_| refused(io::ErrorKind::TimedOut.into()))?
        .map_err(refused)?;
    let connected = timeout(PATIENCE, connect(socket, config)).await;
    connected
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| lost(target, error))
}

async fn say(stream: &mut Secure, target: &str, bytes: &[u8]) -> Result<(), MembershipError> {
    let sent = async {
        stream.write_all(bytes).await?;
        stream.flush().await
    };
    timeout(PATIENCE, sent)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .map_err(|error| lost(target, error))
}

/// The next bytes of the appliance, at least one.
async fn hear(stream: &mut Secure, target: &str) -> Result<Vec<u8>, MembershipError> {
    let mut bytes = vec![0; 4096];
    let read = timeout(PATIENCE, stream.read(&mut bytes)).await;
    let count = read
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
        .and_then(|count| match count {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => Ok(count),
        })
        .map_err(|error| lost(target, error))?;
    bytes.truncate(count);
    Ok(bytes)
}

fn lost(target: &str, source: io::Error) -> MembershipError {
    match explain_io(&source) {
        Some((text, hint)) => MembershipError::Tls {
            target: target.to_owned(),
            text,
            hint: hint.to_owned(),
        },
        None => MembershipError::Lost {
            target: target.to_owned(),
            source,
        },
    }
}
