//! Who the appliance is and whom it knows: one owner, every change durable before it is true.
//!
//! The identity is one file in the state folder (`identity`, mode 0600); the machines are rows of the state. The passphrase
//! is kept nowhere: after it was made it waits in memory, once, for the root who asks for it.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use mt_identity::backup::{self, BackupError};
use mt_identity::control::{Appliance, Control, Now, Step};
use mt_identity::limits::{RateLimiter, Window};
use mt_identity::registry::{Change, Denial, Machine, RegistryError, Session};
use mt_identity::store::{self, Identity, StoreError};
use mt_identity::tls::{self, Credentials};
use mt_identity::{Fingerprint, Leaf, MachineId, Passphrase, Registry};
use rustls::ServerConfig;
use tokio::sync::watch;

use super::clock::SystemClock;
use super::file;
use crate::error::{ExitCode, Explain};
use crate::hub::Hub;
use crate::state::audit::Entry;
use crate::state::{State, StateError};

/// Name of the file in the state folder.
const FILE: &str = "identity";

/// Why something about the identity was not done. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// The file cannot be read or written.
    #[error("cannot {act} the appliance's identity {path}: {source}")]
    File {
        /// What was attempted.
        act: &'static str,
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// What it holds cannot be used.
    #[error("{path}: {source}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: StoreError,
    },
    /// Machines are registered, and the identity that signed for them is gone.
    #[error("the appliance's identity {path} is missing, and {count} machines are registered with it")]
    Missing {
        /// The file.
        path: PathBuf,
        /// How many machines.
        count: usize,
    },
    /// There is an identity already, and another would take its place.
    #[error("this appliance has an identity already, with CA {ca}")]
    Exists {
        /// Fingerprint of its CA.
        ca: Fingerprint,
    },
    /// A protected machine has another machine that speaks for it.
    #[error("machine {holder} speaks for \"{name}\" already")]
    NameTaken {
        /// The protected machine.
        name: String,
        /// Who speaks for it.
        holder: MachineId,
    },
    /// The registry refuses.
    #[error(transparent)]
    Registry(#[from] RegistryError),
    /// The state refuses or fails.
    #[error(transparent)]
    State(#[from] StateError),
    /// A backup cannot be made or read.
    #[error(transparent)]
    Backup(#[from] BackupError),
    /// The core failed.
    #[error(transparent)]
    Core(#[from] StoreError),
}

impl Explain for KeeperError {
    fn hint(&self) -> Option<String> {
        let text = match self {
            Self::File { .. } => "check [agent] state_dir, its owner and the space on its file system",
            Self::Unusable { source, .. } | Self::Core(source) => source.hint(),
            Self::Missing { .. } => {
                "put the file back, or import a backup with \"mt-agent identity import\"; to begin anew move the state \
                 folder away, then all machines register again"
            }
            Self::Exists { .. } => "give --replace to put the backup in its place",
            Self::NameTaken { .. } => {
                "approve it under a name of its own with --as NAME, or revoke and remove the other one first"
            }
            Self::Registry(error) => error.hint(),
            Self::State(error) => return error.hint(),
            Self::Backup(error) => error.hint(),
        };
        Some(text.to_owned())
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Registry(_) | Self::NameTaken { .. } | Self::Exists { .. } => ExitCode::Refused,
            Self::Backup(BackupError::Derivation(_)) => ExitCode::Unexpected,
            Self::Backup(_) => ExitCode::Usage,
            Self::State(error) => error.exit_code(),
            _ => ExitCode::Unexpected,
        }
    }
}

/// What the operator decides about a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// This key of it may connect.
    Approve(Fingerprint),
    /// This key may not take the place of the one it has.
    Decline(Fingerprint),
    /// None of its keys may connect any more.
    Revoke,
    /// It is forgotten.
    Remove,
}

/// What is known of the appliance itself; no secret.
#[derive(Debug, Clone)]
pub struct About {
    /// Its id.
    pub id: MachineId,
    /// Fingerprint of its CA.
    pub ca: Fingerprint,
    /// Until when the CA is valid.
    pub ca_until: Timestamp,
    /// When machines may register.
    pub window: Window,
    /// Whether a passphrase was made and not shown yet.
    pub passphrase_waits: bool,
}

/// What is to be done on a connection to the control port.
#[derive(Debug)]
pub enum Answer {
    /// Wait for more.
    More,
    /// Send this, then wait for more.
    Send(Vec<u8>),
    /// Send this where there is something, then close.
    Last(Option<Vec<u8>>),
}

#[derive(Clone)]
struct Ports {
    control: Arc<ServerConfig>,
    data: Arc<ServerConfig>,
    credentials: Credentials,
}

struct Inner {
    identity: Identity,
    registry: Registry,
    limiter: RateLimiter,
    ports: Ports,
    passphrase: Option<Passphrase>,
}

struct Shared {
    hub: Hub,
    path: PathBuf,
    inner: Mutex<Inner>,
    changes: watch::Sender<u64>,
    started: Instant,
}

/// Keeps the identity. Its methods block on the state and on the file, but for those that say otherwise.
#[derive(Clone)]
pub struct Keeper {
    shared: Arc<Shared>,
}

impl Keeper {
    /// The identity in this folder, or at the first start a new one with registration open for a day.
    ///
    /// # Errors
    /// When it cannot be read or made. One that cannot be read is never replaced by a new one.
    pub fn open(hub: Hub, folder: &Path, now: Timestamp) -> Result<Self, KeeperError> {
        let path = folder.join(FILE);
        let machines = hub.state().registered()?;
        let (identity, passphrase) = match load(&path)? {
            Some((mut identity, _)) => {
                if identity.renew_own(now)? {
                    save(&path, &identity)?;
                }
                (identity, None)
            }
            None if !machines.is_empty() => {
                let count = machines.len();
                return Err(KeeperError::Missing { path, count });
            }
            None => {
                let (identity, passphrase) = Identity::create(now)?;
                save(&path, &identity)?;
                tracing::info!(
                    ca = %identity.ca.fingerprint(),
                    "the appliance has a new identity; \"mt-agent identity show\" shows its passphrase, once"
                );
                (identity, Some(passphrase))
            }
        };
        let inner = Inner {
            registry: Registry::from_machines(machines)?,
            limiter: RateLimiter::default(),
            ports: ports(&identity)?,
            identity,
            passphrase,
        };
        Ok(Self {
            shared: Arc::new(Shared {
                hub,
                path,
                inner: Mutex::new(inner),
                changes: watch::Sender::new(0),
                started: Instant::now(),
            }),
        })
    }

    /// Counts changes of the registry. Does not block.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.shared.changes.subscribe()
    }

    /// TLS of the data port.
    pub fn data_port(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.lock().ports.data)
    }

    /// TLS of the control port, and the credentials that it shows.
    pub fn control_port(&self) -> (Arc<ServerConfig>, Credentials) {
        let ports = self.lock().ports.clone();
        (ports.control, ports.credentials)
    }

    /// Whether the peer of a handshake may connect, as which machine, and what to ask [`Self::must_end`] with.
    ///
    /// # Errors
    /// The reason, with the code to send.
    pub fn admit(&self, peer: &Leaf, now: Timestamp) -> Result<(Machine, Session), Denial> {
        let mut inner = self.lock();
        let machine = inner.registry.admit(peer, now)?.clone();
        let session = machine.session();
        if let Some(change) = inner.registry.used(peer.key, now)
            && let Err(error) = self.make_true(&mut inner, change, &[])
        {
            // The old key stays beside the new one until the next connection: nothing is lost.
            tracing::warn!(machine = %machine.id, "cannot note that a renewed key is in use: {error}");
        }
        Ok((machine, session))
    }

    /// Whether an open session must end.
    pub fn must_end(&self, session: Session) -> Option<Denial> {
        self.lock().registry.must_end(session)
    }

    /// The machine as it is now.
    pub fn machine(&self, id: MachineId) -> Option<Machine> {
        self.lock().registry.machine(id).cloned()
    }

    /// All machines, by name.
    pub fn machines(&self) -> Vec<Machine> {
        let mut machines: Vec<Machine> = self.lock().registry.machines().cloned().collect();
        machines.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
        machines
    }

    /// The durable state.
    pub fn state(&self) -> &State {
        self.shared.hub.state()
    }

    /// Takes bytes that came on a connection to the control port.
    pub fn receive(&self, control: &mut Control, bytes: &[u8], from: &str) -> Answer {
        let now = Now {
            wall: Timestamp::now(),
            monotonic: self.shared.started.elapsed(),
        };
        let mut inner = self.lock();
        let Inner {
            identity,
            registry,
            limiter,
            ..
        } = &mut *inner;
        let mut appliance = Appliance {
            identity,
            registry,
            limiter,
        };
        match control.receive(bytes, &mut appliance, now) {
            Step::More => Answer::More,
            Step::Send(bytes) => Answer::Send(bytes),
            Step::Refuse { code, bytes, reason } => {
                drop(inner);
                // Not in the audit log: strangers could push out of it what operators did.
                tracing::warn!(peer = from, %code, "control port refused: {reason}");
                Answer::Last(bytes)
            }
            Step::Grant { change, bytes } => {
                let (what, name) = (
                    change.what,
                    change.after.as_ref().map(|machine| machine.name.clone()),
                );
                let id = change.id;
                let stored = self.make_true(&mut inner, *change, &[]);
                drop(inner);
                let name = name.map_or_else(String::new, |name| format!(" \"{name}\""));
                match stored {
                    Ok(()) => {
                        tracing::info!(peer = from, machine = %id, "machine{name} {what}");
                        self.note(from, &format!("machine {id}{name}"), what);
                        Answer::Last(Some(bytes))
                    }
                    Err(error) => {
                        tracing::error!(peer = from, machine = %id, "cannot store that machine{name} {what}: {error}");
                        Answer::Last(None)
                    }
                }
            }
        }
    }

    /// Carries out what the operator decided; `speaks_for` are the protected machines that an approved one may send.
    ///
    /// # Errors
    /// When the registry or the state does not allow it.
    pub fn act(
        &self,
        id: MachineId,
        act: Act,
        speaks_for: &[String],
        now: Timestamp,
    ) -> Result<&'static str, KeeperError> {
        let mut inner = self.lock();
        let change = match act {
            Act::Approve(key) => inner.registry.approve(id, key, now),
            Act::Decline(key) => inner.registry.decline(id, key, now),
            Act::Revoke => inner.registry.revoke(id, now),
            Act::Remove => inner.registry.remove(id),
        }?;
        let what = change.what;
        self.make_true(&mut inner, change, speaks_for)?;
        tracing::info!(machine = %id, "machine {what}");
        Ok(what)
    }

    /// What may be shown to anybody who reads status.
    pub fn about(&self) -> About {
        let inner = self.lock();
        About {
            id: inner.identity.id,
            ca: inner.identity.ca.fingerprint(),
            ca_until: inner.identity.ca.not_after(),
            window: inner.identity.window,
            passphrase_waits: inner.passphrase.is_some(),
        }
    }

    /// The passphrase, when it was made and not shown yet. It is forgotten here with this.
    pub fn take_passphrase(&self) -> Option<Passphrase> {
        self.lock().passphrase.take()
    }

    /// Makes another passphrase, or takes one that was chosen. The old one is worth nothing from now on; machines that
    /// have registered stay so.
    ///
    /// # Errors
    /// When it cannot be stored; the old one stays.
    pub fn rotate_passphrase(&self, chosen: Option<Passphrase>) -> Result<Passphrase, KeeperError> {
        let passphrase = chosen.unwrap_or_else(Passphrase::generate);
        let mut inner = self.lock();
        self.change_identity(&mut inner, |identity| {
            identity.secrets.rotate(&passphrase).map_err(StoreError::from)
        })?;
        inner.passphrase = None;
        tracing::info!("the passphrase for registering was changed");
        Ok(passphrase)
    }

    /// Opens registration for so long, or closes it.
    ///
    /// # Errors
    /// When it cannot be stored; it stays as it was.
    pub fn set_window(&self, time: Option<SignedDuration>, now: Timestamp) -> Result<Window, KeeperError> {
        let window = time.map_or_else(Window::closed, |time| Window::open(now, Some(time)));
        self.change_identity(&mut self.lock(), |identity| {
            identity.window = window;
            Ok(())
        })?;
        Ok(window)
    }

    /// An encrypted copy of identity and machines.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn export(&self, passphrase: &Passphrase) -> Result<Vec<u8>, KeeperError> {
        let inner = self.lock();
        Ok(backup::seal(
            &inner.identity,
            inner.registry.machines(),
            passphrase,
        )?)
    }

    /// Renews the certificate of the own ports when that is due.
    ///
    /// # Errors
    /// When it cannot be made or stored; the old one stays.
    pub fn renew_own(&self, now: Timestamp) -> Result<(), KeeperError> {
        let mut inner = self.lock();
        let mut renewed = copy(&inner.identity)?;
        if renewed.renew_own(now)? {
            let ports = ports(&renewed)?;
            save(&self.shared.path, &renewed)?;
            inner.identity = renewed;
            inner.ports = ports;
            tracing::info!("the certificate of the appliance's ports was renewed");
        }
        Ok(())
    }

    /// Adds to the audit log, in the state and in the journal. That it cannot be written is told and stops nothing.
    pub fn note(&self, who: &str, what: &str, result: &str) {
        note(&self.shared.hub, who, what, result);
    }

    /// Stores a change, makes it true, and lets every session know.
    fn make_true(&self, inner: &mut Inner, change: Change, speaks_for: &[String]) -> Result<(), KeeperError> {
        if let Some((name, holder)) = self.state().store_registered(&change, speaks_for)? {
            return Err(KeeperError::NameTaken { name, holder });
        }
        inner.registry.commit(change);
        self.shared.changes.send_modify(|count| *count += 1);
        Ok(())
    }

    /// Changes a copy, stores it, and puts it in the place of the identity.
    fn change_identity(
        &self,
        inner: &mut Inner,
        change: impl FnOnce(&mut Identity) -> Result<(), StoreError>,
    ) -> Result<(), KeeperError> {
        let mut changed = copy(&inner.identity)?;
        change(&mut changed)?;
        save(&self.shared.path, &changed)?;
        inner.identity = changed;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Adds to the audit log, in the state and in the journal. That it cannot be written is told and stops nothing.
pub fn note(hub: &Hub, who: &str, what: &str, result: &str) {
    let entry = Entry::new(Timestamp::now(), who, what, result);
    let Entry {
        who, what, result, ..
    } = &entry;
    tracing::info!(target: "audit", who, what, result, "audit");
    if let Err(error) = hub.state().add_audit(&entry) {
        tracing::error!("cannot write the audit log: {error}");
    }
}

/// Puts identity and machines of a backup into a state folder whose agent does not run.
///
/// # Errors
/// When the folder is in use, or has an identity and `replace` was not said.
pub fn import(
    folder: &Path,
    bytes: &[u8],
    passphrase: &Passphrase,
    replace: bool,
) -> Result<About, KeeperError> {
    let (identity, registry) = backup::open(bytes, passphrase)?;
    let state = State::open(folder)?;
    let path = folder.join(FILE);
    if !replace {
        let there = load(&path).ok().flatten();
        if let Some((there, _)) =
            there.filter(|(there, _)| there.ca.fingerprint() != identity.ca.fingerprint())
        {
            let ca = there.ca.fingerprint();
            return Err(KeeperError::Exists { ca });
        }
    }
    // The identity first: machines without the CA that signed for them would be refused at the next start.
    save(&path, &identity)?;
    state.replace_registered(registry.machines())?;
    Ok(About {
        id: identity.id,
        ca: identity.ca.fingerprint(),
        ca_until: identity.ca.not_after(),
        window: identity.window,
        passphrase_waits: false,
    })
}

fn load(path: &Path) -> Result<Option<(Identity, Registry)>, KeeperError> {
    let bytes = file::read(path, store::BYTES_MAX).map_err(|source| KeeperError::File {
        act: "read",
        path: path.to_owned(),
        source,
    })?;
    let Some(bytes) = bytes else { return Ok(None) };
    let read = Identity::from_bytes(&bytes).map_err(|source| KeeperError::Unusable {
        path: path.to_owned(),
        source,
    })?;
    Ok(Some(read))
}

fn save(path: &Path, identity: &Identity) -> Result<(), KeeperError> {
    file::replace(path, &identity.to_bytes([])).map_err(|source| KeeperError::File {
        act: "write",
        path: path.to_owned(),
        source,
    })
}

fn copy(identity: &Identity) -> Result<Identity, StoreError> {
    Identity::from_bytes(&identity.to_bytes([])).map(|(identity, _)| identity)
}

fn ports(identity: &Identity) -> Result<Ports, KeeperError> {
    let (trust, credentials) = (identity.trust()?, identity.credentials()?);
    let control = tls::control_server(&trust, &credentials, Arc::new(SystemClock));
    let data = tls::data_server(&trust, &credentials, Arc::new(SystemClock));
    Ok(Ports {
        control: control.map_err(StoreError::from)?,
        data: data.map_err(StoreError::from)?,
        credentials,
    })
}
