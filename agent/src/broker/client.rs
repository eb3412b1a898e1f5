//! Asks the broker. Blocks: for threads that may wait for disks.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use mt_blockdev::device::BlockDevice;
use mt_blockdev::scsi::ScsiId;

use super::passing::{receive, send};
use super::wire::{ANSWER_BYTES_MAX, Answer, Request};
use crate::disks::facts::Inventory;
use crate::disks::gate::{PairedDisk, Purpose, Refusal, RefusalKind};
use crate::disks::open::{OpenDisk, OpenError};
use crate::error::{ExitCode, Explain};
use crate::model::PairName;

/// How long a broker that starts, or starts again, is waited for.
const START_TIME_MAX: Duration = Duration::from_secs(10);
/// How long an answer may take: a disk that fails answers after its kernel timeout, 30 s.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(90);

/// Why the broker did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// It cannot be reached, or does not answer.
    #[error("cannot ask the broker at {socket}: {source}")]
    Unreachable {
        /// Its socket.
        socket: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// It answers something else than it was asked.
    #[error("the broker at {socket} does not answer as it should: {found}")]
    Odd {
        /// Its socket.
        socket: PathBuf,
        /// What was found.
        found: String,
    },
    /// It says that it cannot.
    #[error("{message}")]
    Failed {
        /// What was attempted and what was found.
        message: String,
        /// What to do next.
        hint: Option<String>,
        /// How a command that fails with it exits.
        exit_code: ExitCode,
    },
    /// The gate refuses.
    #[error("{0}")]
    Refused(Refusal),
}

impl Explain for BrokerError {
    fn hint(&self) -> Option<String> {
        match self {
            Self::Unreachable { .. } => Some(
                "see \"systemctl status master-target-broker\"; it has to run before disks can be opened"
                    .to_owned(),
            ),
            Self::Odd { .. } => Some("are both of one version? Restart the broker and the target".to_owned()),
            Self::Failed { hint, .. } => hint.clone(),
            Self::Refused(refusal) => refusal.hint(),
        }
    }

    fn exit_code(&self) -> ExitCode {
        match self {
            Self::Unreachable { .. } | Self::Odd { .. } => ExitCode::Unexpected,
            Self::Failed { exit_code, .. } => *exit_code,
            Self::Refused(refusal) => refusal.exit_code(),
        }
    }
}

/// The other end of the broker's socket.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// A client of the broker at this socket.
    #[must_use]
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// The facts of all disks.
    ///
    /// # Errors
    /// See [`BrokerError`].
    pub fn disks(&self) -> Result<Inventory, BrokerError> {
        match self.ask(&Request::Disks)? {
            (Answer::Disks { inventory }, None) => Ok(inventory),
            (answer, _) => Err(self.other(answer)),
        }
    }

    /// What is recorded of a pair, whose disk has to be this one.
    ///
    /// # Errors
    /// When nothing is, or another disk, and see [`BrokerError`].
    pub fn may_be_paired(&self, pair: &PairName, scsi_id: ScsiId) -> Result<PairedDisk, OpenError> {
        let request = Request::Pair {
            pair: pair.to_string(),
        };
        let paired = match self.ask(&request).map_err(unwrap_refusal)? {
            (Answer::Pair { recorded, .. }, None) => recorded.paired(),
            (answer, _) => return Err(unwrap_refusal(self.other(answer))),
        };
        if paired.scsi_id == scsi_id {
            return Ok(paired);
        }
        let found = format!(
            "target disk {scsi_id} is meant, the broker has recorded {}",
            paired.scsi_id
        );
        Err(differs(pair, found).into())
    }

    /// Has a pair recorded; whether that changed anything. For root.
    ///
    /// # Errors
    /// When the disk may not be a pair's, and see [`BrokerError`].
    pub fn record(&self, pair: &PairName, scsi_id: ScsiId, overwrite: bool) -> Result<bool, BrokerError> {
        let request = Request::Record {
            pair: pair.to_string(),
            scsi_id,
            overwrite,
        };
        match self.ask(&request)? {
            (Answer::Pair { changed, .. }, None) => Ok(changed),
            (answer, _) => Err(self.other(answer)),
        }
    }

    /// Has a pair forgotten; whether there was one. For root.
    ///
    /// # Errors
    /// See [`BrokerError`].
    pub fn forget(&self, pair: &PairName) -> Result<bool, BrokerError> {
        let request = Request::Forget {
            pair: pair.to_string(),
        };
        self.done(&request)
    }

    /// Has the kernel's device of a pair's disk dropped; whether there was one.
    ///
    /// # Errors
    /// See [`BrokerError`].
    pub fn release(&self, pair: &PairName) -> Result<bool, BrokerError> {
        let request = Request::Release {
            pair: pair.to_string(),
        };
        self.done(&request)
    }

    /// Is given the open disk of a pair, and looks itself who it is.
    ///
    /// # Errors
    /// [`OpenError`]; nothing was written.
    pub fn open(
        &self,
        pair: &PairName,
        expected: &PairedDisk,
        purpose: Purpose,
    ) -> Result<OpenDisk, OpenError> {
        let request = Request::Open {
            pair: pair.to_string(),
            purpose,
        };
        let (facts, paired, descriptor) = match self.ask(&request).map_err(unwrap_refusal)? {
            (Answer::Opened { disk, paired }, Some(descriptor)) => (*disk, paired, descriptor),
            (answer, _) => return Err(unwrap_refusal(self.other(answer))),
        };
        let same = |paired: &PairedDisk| (paired.scsi_id, paired.size, paired.logical_block_size);
        if same(&paired) != same(expected) {
            let found = format!(
                "pair {pair} has target disk {} of {} bytes, the broker has recorded {} of {} bytes",
                expected.scsi_id, expected.size, paired.scsi_id, paired.size
            );
            return Err(differs(pair, found).into());
        }
        let device = BlockDevice::received(File::from(descriptor), &facts.devnode)?;
        Ok(OpenDisk::received(device, facts, *expected)?)
    }

    fn done(&self, request: &Request) -> Result<bool, BrokerError> {
        match self.ask(request)? {
            (Answer::Done { changed }, None) => Ok(changed),
            (answer, _) => Err(self.other(answer)),
        }
    }

    fn ask(&self, request: &Request) -> Result<(Answer, Option<OwnedFd>), BrokerError> {
        let unreachable = |source| BrokerError::Unreachable {
            socket: self.socket.clone(),
            source,
        };
        let document = serde_json::to_vec(request).map_err(|error| unreachable(error.into()))?;
        let socket = self.connect().map_err(unreachable)?;
        socket
            .set_read_timeout(Some(ANSWER_TIME_MAX))
            .map_err(unreachable)?;
        socket
            .set_write_timeout(Some(ANSWER_TIME_MAX))
            .map_err(unreachable)?;
        send(&socket, &document, None).map_err(unreachable)?;
        let received = receive(&socket, ANSWER_BYTES_MAX).map_err(unreachable)?;
        let (document, descriptor) = received.ok_or_else(|| unreachable(ErrorKind::UnexpectedEof.into()))?;
        let answer = serde_json::from_slice(&document).map_err(|error| BrokerError::Odd {
            socket: self.socket.clone(),
            found: error.to_string(),
        })?;
        Ok((answer, descriptor))
    }

    /// Connects; a broker that is only starting is waited for.
    fn connect(&self) -> io::Result<UnixStream> {
        let begin = Instant::now();
        loop {
            match UnixStream::connect(&self.socket) {
                Err(error)
                    if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused)
                        && begin.elapsed() < START_TIME_MAX =>
                {
                    std::thread::sleep(Duration::from_millis(100));
                }
                result => return result,
            }
        }
    }

    /// An answer that was not hoped for.
    fn other(&self, answer: Answer) -> BrokerError {
        match answer {
            Answer::Refused { kind, what, hint } => BrokerError::Refused(Refusal::told(kind, what, hint)),
            Answer::Failed {
                message,
                hint,
                exit_code,
            } => BrokerError::Failed {
                message,
                hint,
                exit_code: ExitCode::from_number(exit_code),
            },
            _ => BrokerError::Odd {
                socket: self.socket.clone(),
                found: "it answers another question".to_owned(),
            },
        }
    }
}

/// Target and broker know different things of a pair.
fn differs(pair: &PairName, found: String) -> Refusal {
    let hint = format!(
        "remove the pair and add it again: mt-agent pair remove {pair}, mt-agent pair add {pair} SCSI-ID"
    );
    Refusal::told(RefusalKind::Changed, found, hint)
}

/// A refusal of the broker's gate is one of the gate's, wherever it was asked.
fn unwrap_refusal(error: BrokerError) -> OpenError {
    match error {
        BrokerError::Refused(refusal) => OpenError::Refused(refusal),
        error => OpenError::Broker(error),
    }
}
