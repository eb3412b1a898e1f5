//! Answers requests: who asks is the kernel's word (`SO_PEERCRED`), what he may have is a table, and which disk it is stands in
//! the records.

use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mt_blockdev::device::BlockDevice;
use nix::unistd::{Gid, Uid};
use tokio::net::UnixListener;
use tokio::sync::{Semaphore, watch};

use super::passing::{receive, send};
use super::records::Records;
use super::wire::{Answer, REQUEST_BYTES_MAX, Recorded, Request};
use crate::disks::access::drop_device;
use crate::disks::facts::DiskKind;
use crate::disks::gate::Purpose;
use crate::disks::inventory::{DiskScope, gather};
use crate::disks::open::{OpenError, may_be_paired, open_paired};
use crate::error::{CliError, ExitCode, Explain};
use crate::model::PairName;
use crate::status::socket::LocalSocket;

/// Most requests of the target that are answered at once: one for each session that opens a disk.
const REQUESTS_MAX: usize = 32;
/// Most that wait for that; more are closed unheard. Root waits behind none of them.
const WAITING_MAX: usize = 128;
/// How long a client may take to say what it wants, and to take the answer.
const CLIENT_TIME_MAX: Duration = Duration::from_secs(5);

/// What a broker needs to know.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its socket.
    pub socket: PathBuf,
    /// User that the target runs as.
    pub user: Uid,
    /// Group of that user, whose members may connect; what they may have is asked of the user.
    pub group: Gid,
    /// What the configuration says of disks.
    pub scope: DiskScope,
    /// Where the recorded pairs are kept.
    pub records: PathBuf,
}

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Root, or the user that the broker itself runs as in a laboratory.
    Root,
    /// The target.
    Target,
    /// Anybody else.
    Nobody,
}

impl Role {
    /// The role of a user.
    #[must_use]
    pub fn of(uid: Uid, target: Uid) -> Self {
        if uid.is_root() || uid == Uid::effective() {
            Self::Root
        } else if uid == target {
            Self::Target
        } else {
            Self::Nobody
        }
    }

    fn may(self, request: &Request) -> bool {
        match request {
            Request::Disks | Request::Pair { .. } | Request::Open { .. } | Request::Release { .. } => {
                self != Self::Nobody
            }
            Request::Record { .. } | Request::Forget { .. } => self == Self::Root,
        }
    }
}

/// Holds the records, and has the way to the disks.
#[derive(Debug)]
pub struct Broker {
    scope: DiskScope,
    records: Mutex<Records>,
}

impl Broker {
    /// A broker with these records.
    #[must_use]
    pub fn new(scope: DiskScope, records: Records) -> Self {
        Self {
            scope,
            records: Mutex::new(records),
        }
    }

    fn records(&self) -> MutexGuard<'_, Records> {
        // Changes are made on a copy, so that a thread that panicked left the records whole.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers one request; with an open disk, where that is the answer. Blocks on disks.
    pub fn answer(&self, role: Role, request: &Request) -> (Answer, Option<Arc<BlockDevice>>) {
        if !role.may(request) {
            return (not_allowed(), None);
        }
        match request {
            Request::Open { pair, purpose } => match self.open(pair, *purpose) {
                Ok((answer, device)) => (answer, Some(device)),
                Err(answer) => (answer, None),
            },
            Request::Disks => match gather(&self.scope) {
                Ok(inventory) => (Answer::Disks { inventory }, None),
                Err(error) => (explained(&error), None),
            },
            Request::Pair { pair } => {
                let recorded = self.recorded(pair).map(|recorded| Answer::Pair {
                    recorded,
                    changed: false,
                });
                (recorded.unwrap_or_else(|answer| answer), None)
            }
            Request::Release { pair } => (self.release(pair).unwrap_or_else(|answer| answer), None),
            Request::Record {
                pair,
                scsi_id,
                overwrite,
            } => {
                let wanted = Recorded {
                    pair: pair.clone(),
                    scsi_id: *scsi_id,
                    size: 0,
                    logical_block_size: 0,
                    overwrite: *overwrite,
                    adopted: false,
                };
                (self.record(wanted).unwrap_or_else(|answer| answer), None)
            }
            Request::Forget { pair } => match self.records().remove(pair) {
                Ok(changed) => {
                    if changed {
                        tracing::info!(pair, "pair forgotten; its disk was not touched");
                    }
                    (Answer::Done { changed }, None)
                }
                Err(error) => (explained(&error), None),
            },
        }
    }

    fn recorded(&self, pair: &str) -> Result<Recorded, Answer> {
        self.records().get(pair).cloned().ok_or_else(|| {
            let text = format!("no pair {} is recorded, so no disk of it is opened", shown(pair));
            let hint = "pair it as root with \"mt-agent pair add\"".to_owned();
            failed(text, Some(hint), ExitCode::Refused)
        })
    }

    fn open(&self, pair: &str, purpose: Purpose) -> Result<(Answer, Arc<BlockDevice>), Answer> {
        let mut recorded = self.recorded(pair)?;
        let paired = recorded.paired();
        let disk = open_paired(&paired, &self.scope, purpose).map_err(|error| refused(&error))?;
        if purpose == Purpose::Write && !recorded.adopted {
            // From here on the content is the target's to overwrite, also after a restart.
            recorded.adopted = true;
            self.records().put(recorded).map_err(|error| explained(&error))?;
        }
        let answer = Answer::Opened {
            disk: Box::new(disk.facts),
            paired,
        };
        Ok((answer, disk.device))
    }

    fn release(&self, pair: &str) -> Result<Answer, Answer> {
        let recorded = self.recorded(pair)?;
        let inventory = gather(&self.scope).map_err(|error| explained(&error))?;
        let mut shown = inventory.with_id(recorded.scsi_id);
        let (Some(disk), None) = (shown.next(), shown.next()) else {
            return Ok(Answer::Done { changed: false });
        };
        if disk.kind != DiskKind::Scsi {
            return Ok(Answer::Done { changed: false });
        }
        match drop_device(&disk.kernel_name) {
            Ok(changed) => Ok(Answer::Done { changed }),
            Err(error) => Err(failed(
                format!("cannot drop the kernel's device {}: {error}", disk.kernel_name),
                Some("detach the disk by hand".to_owned()),
                ExitCode::Unexpected,
            )),
        }
    }

    fn record(&self, wanted: Recorded) -> Result<Answer, Answer> {
        if let Err(error) = wanted.pair.parse::<PairName>() {
            let text = format!("{} cannot be the name of a pair: {error}", shown(&wanted.pair));
            return Err(failed(text, None, ExitCode::Usage));
        }
        // Held from the look to the record: of two that want the same disk the second has to see the first.
        let mut records = self.records();
        records.check(&wanted).map_err(|error| explained(&error))?;
        if let Some(known) = records.get(&wanted.pair)
            && (!wanted.overwrite || known.overwrite || known.adopted)
        {
            return Ok(Answer::Pair {
                recorded: known.clone(),
                changed: false,
            });
        }
        let inventory = gather(&self.scope).map_err(|error| explained(&error))?;
        let paired = may_be_paired(wanted.scsi_id, wanted.overwrite, &inventory, &self.scope)
            .map_err(|error| refused(&error))?;
        let recorded = Recorded {
            size: paired.size,
            logical_block_size: paired.logical_block_size,
            ..wanted
        };
        records.put(recorded.clone()).map_err(|error| explained(&error))?;
        tracing::info!(
            pair = recorded.pair, scsi_id = %recorded.scsi_id, overwrite = recorded.overwrite,
            "pair recorded: target disk of {} bytes", recorded.size
        );
        Ok(Answer::Pair {
            recorded,
            changed: true,
        })
    }
}

fn failed(message: String, hint: Option<String>, code: ExitCode) -> Answer {
    Answer::Failed {
        message,
        hint,
        exit_code: code as u8,
    }
}

fn not_allowed() -> Answer {
    let text = "this user may not ask the broker for that".to_owned();
    failed(text, Some("run it as root".to_owned()), ExitCode::Refused)
}

fn explained(error: &impl Explain) -> Answer {
    failed(error.to_string(), error.hint(), error.exit_code())
}

fn refused(error: &OpenError) -> Answer {
    match error {
        OpenError::Refused(refusal) => Answer::Refused {
            kind: refusal.kind(),
            what: refusal.what().to_owned(),
            hint: refusal.hint().unwrap_or_default(),
        },
        error => explained(error),
    }
}

/// What somebody sent, safe for a log and short.
fn shown(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_default).collect()
}

/// What a request changes, in words; none where it changes nothing.
fn change(request: &Request) -> Option<String> {
    match request {
        Request::Record {
            pair,
            scsi_id,
            overwrite,
        } => {
            let overwrite = if *overwrite { ", overwriting it" } else { "" };
            Some(format!("record pair {} with {scsi_id}{overwrite}", shown(pair)))
        }
        Request::Forget { pair } => Some(format!("forget pair {}", shown(pair))),
        Request::Release { pair } => Some(format!("drop the device of pair {}", shown(pair))),
        Request::Disks | Request::Pair { .. } | Request::Open { .. } => None,
    }
}

/// What came of it.
fn result(answer: &Answer) -> String {
    match answer {
        Answer::Failed { message, .. } => format!("refused: {message}"),
        Answer::Refused { what, .. } => format!("refused: {what}"),
        Answer::Pair { changed: true, .. } | Answer::Done { changed: true } => "done".to_owned(),
        _ => "done before".to_owned(),
    }
}

/// Serves until `stop` becomes true.
///
/// # Errors
/// When records or socket cannot be had.
pub async fn run(settings: Settings, mut stop: watch::Receiver<bool>) -> Result<(), CliError> {
    let records = Records::open(&settings.records)?;
    let broker = Arc::new(Broker::new(settings.scope.clone(), records));
    let local = LocalSocket::bind(&settings.socket, Some(settings.group))?;
    let listener = local
        .listener()
        .and_then(UnixListener::from_std)
        .map_err(|error| {
            CliError::new(
                ExitCode::Unexpected,
                format!("cannot serve {}: {error}", settings.socket.display()),
            )
        })?;
    tracing::info!(
        "broker serves {} to user {}",
        settings.socket.display(),
        settings.user
    );
    let (places, queue) = (
        Arc::new(Semaphore::new(REQUESTS_MAX)),
        Arc::new(Semaphore::new(REQUESTS_MAX + WAITING_MAX)),
    );
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
        };
        let socket = match accepted {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!("cannot take a connection: {error}");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let (role, who) = match socket.peer_cred() {
            Ok(peer) => {
                let uid = Uid::from_raw(peer.uid());
                let who = match peer.pid() {
                    Some(pid) => format!("user {uid} (process {pid})"),
                    None => format!("user {uid}"),
                };
                (Role::of(uid, settings.user), who)
            }
            Err(error) => {
                tracing::warn!("it cannot be told who connected: {error}");
                continue;
            }
        };
        let waits = match role {
            Role::Root => None,
            Role::Target | Role::Nobody => match Arc::clone(&queue).try_acquire_owned() {
                Ok(waits) => Some(waits),
                Err(_) => continue,
            },
        };
        let (broker, places) = (Arc::clone(&broker), Arc::clone(&places));
        tokio::spawn(async move {
            let place = match &waits {
                Some(_) => places.acquire_owned().await.ok(),
                None => None,
            };
            let talked = tokio::task::spawn_blocking(move || {
                let _held = (waits, place);
                let socket = socket.into_std()?;
                socket.set_nonblocking(false)?;
                talk(&broker, &socket, role, &who)
            });
            match talked.await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::warn!("a request was not answered: {error}"),
                Err(error) => tracing::error!("a request ended by a fault of ours: {error}"),
            }
        });
    }
}

/// One request, one answer.
fn talk(broker: &Broker, socket: &UnixStream, role: Role, who: &str) -> io::Result<()> {
    socket.set_read_timeout(Some(CLIENT_TIME_MAX))?;
    socket.set_write_timeout(Some(CLIENT_TIME_MAX))?;
    if role == Role::Nobody {
        // Whatever it is: who may ask nothing holds no place while it thinks about it.
        let document = serde_json::to_vec(&not_allowed()).map_err(io::Error::other)?;
        return send(socket, &document, None);
    }
    let Some((document, descriptor)) = receive(socket, REQUEST_BYTES_MAX)? else {
        return Ok(());
    };
    if descriptor.is_some() {
        return Err(io::Error::other("a descriptor came with a request"));
    }
    let (answer, device) = match serde_json::from_slice::<Request>(&document) {
        Ok(request) => {
            let (answer, device) = broker.answer(role, &request);
            if let Some(what) = change(&request) {
                tracing::info!(target: "audit", who, what, result = result(&answer), "audit");
            }
            (answer, device)
        }
        Err(error) => {
            let text = format!("the broker does not understand the request: {error}");
            let hint = "are mt-agent and the broker of one version? Restart both".to_owned();
            (failed(text, Some(hint), ExitCode::Unexpected), None)
        }
    };
    let document = serde_json::to_vec(&answer).map_err(io::Error::other)?;
    send(socket, &document, device.as_deref().map(|device| device.as_fd()))
}

#[cfg(test)]
mod tests;
