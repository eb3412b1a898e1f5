//! A send or a verification from beginning to end: connect, run the session, connect again where that may help.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mt_wire::{EndEpoch, ErrorCode, MachineDisk, Mode, OpenPair};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::SourceError;
use super::core::Purpose;
use super::image::Image;
use super::marks::{Confirmed, Key, Mark, Marks};
use super::report::{Audience, Numbers, Report, Teller};
use super::session::{Ended, Session};
use crate::epochs::source::Plan;
use crate::identity::membership::Membership;
use crate::net::hello::{HelloError, greet};
use crate::net::pump::{PumpError, WireBytes};
use crate::net::tls::{self, Stream};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Waits between attempts to connect again: doubled from the first to the last.
const RETRY_WAITS: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(10));

/// How long a pair that is busy is waited for when it was never open in this run.
const BUSY_PATIENCE: Duration = Duration::from_secs(2);

/// The same for an epoch: the target may be making room after the one before.
const EPOCH_PATIENCE: Duration = Duration::from_secs(20);

/// How to speak to a target.
#[derive(Debug, Clone)]
pub enum Channel {
    /// As the machine that is registered in the state folder.
    Registered,
    /// Without TLS, to a laboratory's target on this machine.
    Plain,
}

/// What is to be done.
#[derive(Debug, Clone)]
pub struct Order {
    /// Seed, verify, or send an epoch.
    pub mode: Mode,
    /// Address of the target, `HOST:PORT`.
    pub target: String,
    /// Name of the protected machine.
    pub machine: String,
    /// The protected disks: name, and image, block device or snapshot. One, but for an epoch.
    pub disks: Vec<(String, PathBuf)>,
    /// The instant that an epoch leads to.
    pub end: Option<EndEpoch>,
    /// Folder for durable marks.
    pub state_folder: PathBuf,
    /// Most bytes a second to send.
    pub rate: Option<u64>,
    /// How long to go on trying after a connection was lost, without progress.
    pub retry_for: Duration,
    /// How to speak to the target.
    pub channel: Channel,
    /// Who reads what is told.
    pub audience: Audience,
}

impl Order {
    fn pair(&self) -> String {
        match self.disks.as_slice() {
            [(disk, _)] => format!("{}/{disk}", self.machine),
            _ => self.machine.clone(),
        }
    }
}

/// Carries out an order. `stop` becomes true when the operator wants it to end.
///
/// # Errors
/// See [`SourceError`].
pub async fn run(order: &Order, stop: watch::Receiver<bool>) -> Result<Report, SourceError> {
    let images = order
        .disks
        .iter()
        .map(|(_, path)| Image::open(path))
        .collect::<Result<Vec<_>, _>>()?;
    let marks = Arc::new(Marks::open(&order.state_folder)?);
    let size = images.iter().map(|image| image.device.size()).sum();
    let mut teller = Teller::new(order.audience, order.mode, size);
    let outcome = run_with(order, &images, &marks, &mut teller, stop).await;
    match &outcome {
        Ok(report) => teller.finish(report).map_err(|source| SourceError::Untold {
            what: match order.mode {
                Mode::Verify if report.bytes_different > 0 => {
                    "the verification is through and the two differ"
                }
                Mode::Verify => "the verification is through and the two are equal",
                Mode::Seed | Mode::Epoch => "the copy is complete and durable",
            },
            source,
        })?,
        Err(_) => teller.clear(),
    }
    outcome
}

async fn run_with(
    order: &Order,
    images: &[Image],
    marks: &Arc<Marks>,
    teller: &mut Teller,
    stop: watch::Receiver<bool>,
) -> Result<Report, SourceError> {
    let keys: Vec<Key> = order
        .disks
        .iter()
        .zip(images)
        .map(|((disk, _), image)| Key {
            target: order.target.clone(),
            pair: format!("{}/{disk}", order.machine),
            fingerprint: image.fingerprint().to_owned(),
        })
        .collect();
    let started = Instant::now();
    let mut numbers = Numbers {
        size: images.iter().map(|image| image.device.size()).sum(),
        ..Numbers::default()
    };
    let mut connections = 0;
    let mut given_up_at = None;
    let mut ever_open = false;
    let mut wait = RETRY_WAITS.0;
    loop {
        let compared_before = numbers.compared;
        connections += 1;
        let error = match attempt(order, images, marks, &keys, &mut numbers, teller, stop.clone()).await {
            Ok(ended) => {
                check_unchanged(images)?;
                if order.mode != Mode::Verify {
                    for key in &keys {
                        marks.forget(key)?;
                    }
                }
                return Ok(Report {
                    pair: order.pair(),
                    target: order.target.clone(),
                    scsi_id: ended.scsi_id,
                    numbers,
                    seconds: started.elapsed().as_secs_f64(),
                    connections,
                    differences: ended.differences.ranges().map(Into::into).collect(),
                    bytes_different: ended.differences.bytes(),
                    epoch: ended.durable.map(|durable| durable.epoch),
                    point: ended
                        .durable
                        .map(|durable| durable.point)
                        .filter(|point| *point != 0 || ended.store_id != [0; 16]),
                });
            }
            Err(error) => error,
        };
        if numbers.compared > compared_before {
            given_up_at = None;
            wait = RETRY_WAITS.0;
        }
        // An address where no target answers is told at once, and a pair that is busy is only waited for a moment, since
        // the session before this one may be just about to let go of it. A target that did answer is the right one,
        // however early the connection was lost; what cannot be read is tried again only where it was understood before.
        ever_open |= numbers.compared > 0
            || matches!(&error, SourceError::Lost { source, .. } if !matches!(source, PumpError::Wire(_)));
        let patience = match &error {
            _ if ever_open => order.retry_for,
            SourceError::Refused(refusal) if refusal.code == ErrorCode::PairBusy => {
                let patience = if order.mode == Mode::Epoch {
                    EPOCH_PATIENCE
                } else {
                    BUSY_PATIENCE
                };
                order.retry_for.min(patience)
            }
            _ => Duration::ZERO,
        };
        let until = *given_up_at.get_or_insert_with(|| Instant::now() + patience);
        if !error.may_retry() || Instant::now() + wait > until {
            return Err(error);
        }
        teller.notice(&format!("{error}; trying again in {} ms", wait.as_millis()));
        sleep(wait).await;
        wait = (wait * 2).min(RETRY_WAITS.1);
        check_unchanged(images)?;
    }
}

fn check_unchanged(images: &[Image]) -> Result<(), SourceError> {
    images.iter().try_for_each(Image::check_unchanged)
}

async fn attempt(
    order: &Order,
    images: &[Image],
    marks: &Arc<Marks>,
    keys: &[Key],
    numbers: &mut Numbers,
    teller: &mut Teller,
    stop: watch::Receiver<bool>,
) -> Result<Ended, SourceError> {
    let connect = |source| SourceError::Connect {
        target: order.target.clone(),
        source,
    };
    let socket = timeout(CONNECT_TIMEOUT, TcpStream::connect(&order.target))
        .await
        .map_err(|_| connect(std::io::ErrorKind::TimedOut.into()))?
        .map_err(connect)?;
    socket.set_nodelay(true).map_err(connect)?;
    let mut stream = secured(order, socket, teller).await?;
    let version = greet(&mut stream, random_id()?)
        .await
        .map_err(|source| no_hello(order, source))?;
    if order.mode == Mode::Epoch && version < 2 {
        return Err(SourceError::Refused(mt_wire::Refusal {
            code: ErrorCode::VersionUnsupported,
            text: format!(
                "the target speaks version {version} of the protocol, which knows no epochs; nothing was written"
            ),
            hint: "update the target, or send one disk with --pair".to_owned(),
        }));
    }
    let purpose = purpose(order, images, marks, keys)?;
    let wire = Arc::new(WireBytes::default());
    let before = numbers.clone();
    let session = Session::start(stream, purpose, images, order.rate, Arc::clone(&wire))?;
    let ended = session
        .run(
            |disk, seeding_id, durable| match keys.get(disk) {
                Some(key) => marks.store(key, Mark { seeding_id, durable }),
                None => Ok(()),
            },
            |progress| {
                let on_wire = wire.sent.load(Ordering::Relaxed) + wire.received.load(Ordering::Relaxed);
                *numbers = Numbers {
                    size: progress.size,
                    start: if before.compared == 0 {
                        progress.start
                    } else {
                        before.start
                    },
                    position: progress.start + progress.bytes_settled,
                    compared: before.compared + progress.bytes_settled,
                    // What waits to leave has not been sent; it is lost with the connection.
                    bytes_sent: before.bytes_sent
                        + progress.bytes_sent.min(wire.sent.load(Ordering::Relaxed)),
                    bytes_zeroed: before.bytes_zeroed + progress.bytes_zeroed,
                    bytes_on_wire: before.bytes_on_wire + on_wire,
                    durable: progress.durable,
                };
                teller.progress(numbers);
            },
            stop,
        )
        .await?;
    if let Some(durable) = ended.durable {
        // What was promised is remembered before anybody is told.
        let confirmed = Confirmed {
            store_id: ended.store_id,
            epoch: durable.epoch,
        };
        marks.confirm(&order.target, &order.machine, confirmed)?;
        numbers.durable = numbers.size;
    }
    Ok(ended)
}

/// The connection as the order wants it spoken on.
async fn secured(order: &Order, socket: TcpStream, teller: &mut Teller) -> Result<Stream, SourceError> {
    let target = order.target.clone();
    if let Channel::Plain = order.channel {
        let address = socket.peer_addr().map_err(|source| SourceError::Connect {
            target: target.clone(),
            source,
        })?;
        if !address.ip().is_loopback() {
            return Err(SourceError::PlainElsewhere { target, address });
        }
        return Ok(Stream::Plain(socket));
    }
    let membership = Membership::in_folder(&order.state_folder);
    let config = membership.connect(|text| teller.notice(text)).await?;
    let handshake = timeout(CONNECT_TIMEOUT, tls::connect(socket, config)).await;
    let handshake = handshake.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()));
    let stream = handshake.map_err(|error| no_hello(order, HelloError::Io(error)))?;
    Ok(Stream::Secure(Box::new(stream)))
}

/// What kept the two from understanding each other: in TLS 1.3 a server refuses behind the handshake, so that it may
/// show as late as in the hello.
fn no_hello(order: &Order, source: HelloError) -> SourceError {
    let target = order.target.clone();
    if let HelloError::Io(error) = &source
        && let Some((text, hint)) = tls::explain_io(error)
    {
        let hint = hint.to_owned();
        return SourceError::Tls { target, text, hint };
    }
    SourceError::Hello { target, source }
}

/// What the session is for, with what is remembered of the last one.
fn purpose(order: &Order, images: &[Image], marks: &Marks, keys: &[Key]) -> Result<Purpose, SourceError> {
    if let Some(end) = &order.end {
        let known = keys
            .iter()
            .map(|key| marks.load(key))
            .collect::<Result<Vec<_>, _>>()?;
        // The epoch that the first disk was received in; disks that were not reached have no mark of it.
        let resume_epoch_id = known.first().map_or([0; 16], |mark| mark.seeding_id);
        let confirmed = marks.confirmed(&order.target, &order.machine)?;
        return Ok(Purpose::Epoch(Box::new(Plan {
            machine: order.machine.clone(),
            disks: order
                .disks
                .iter()
                .zip(images)
                .map(|((disk, _), image)| MachineDisk {
                    name: disk.clone(),
                    size: image.device.size(),
                    logical_block_size: image.device.logical_block_size(),
                })
                .collect(),
            generation: 0,
            store_id: confirmed.store_id,
            confirmed_epoch: confirmed.epoch,
            resume_epoch_id,
            resume_offsets: known
                .iter()
                .map(|mark| {
                    if mark.seeding_id == resume_epoch_id {
                        mark.durable
                    } else {
                        0
                    }
                })
                .collect(),
            end: end.clone(),
        })));
    }
    let (Some((disk, _)), Some(image), Some(key)) = (order.disks.first(), images.first(), keys.first())
    else {
        return Err(SourceError::Internal("an order without a disk".to_owned()));
    };
    let mark = if order.mode == Mode::Seed {
        marks.load(key)?
    } else {
        Mark::default()
    };
    Ok(Purpose::Pair(OpenPair {
        mode: order.mode,
        machine: order.machine.clone(),
        disk: disk.clone(),
        size: image.device.size(),
        logical_block_size: image.device.logical_block_size(),
        resume_seeding_id: mark.seeding_id,
        resume_offset: mark.durable,
        generation: 0,
    }))
}

/// Sixteen random bytes from the kernel.
fn random_id() -> Result<[u8; 16], SourceError> {
    crate::random::id().map_err(|error| SourceError::Internal(format!("cannot read random bytes: {error}")))
}
