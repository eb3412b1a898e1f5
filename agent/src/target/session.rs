//! The edge around one [`TargetSession`]: socket, disk threads, buffers, and the durable state.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use jiff::Timestamp;
use mt_blockdev::device::DeviceError;
use mt_wire::limits::HELLO_SIZE;
use mt_wire::{Digest, ErrorCode, Extent, Message, Mode, OpenPair, Range, Refusal};
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender, channel, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::machine_session::{MachineReport, MachineSession};
use super::opening::{HeldDisk, OpenedPair, Opener, open_pair};
use super::report::SessionReport;
use crate::disks::gate;
use crate::disks::open::OpenDisk;
use crate::epochs::target as epochs;
use crate::error::Explain;
use crate::hub::Hub;
use crate::identity::caller::Caller;
use crate::io::buffers::{BufferPool, PooledBuf, SharedBuffers};
use crate::io::disk_threads::{DiskThreads, SpawnError};
use crate::io::region::{self, Content};
use crate::net::pump::{Incoming, Outgoing, PumpError, WireBytes, read_frames, write_frames};
use crate::net::tls::Stream;
use crate::seeding::digest;
use crate::seeding::region_len;
use crate::seeding::target::{Action, Event, Opened, Outcome};

/// Threads of a session that may block on its disk. Two keep the cores busy with hashing while the others wait for the disk; six
/// were a fifth faster than three with two cores and one virtual disk.
const THREADS: usize = 6;

/// Regions of 1 MiB that are announced and unsettled at a time: the target's read-ahead, and what covers a round trip
/// (32 MiB are 100 ms at 320 MB/s).
pub const REGION_WINDOW: u16 = 32;

/// Payloads of up to 1 MiB that are on their way to the disk.
const PAYLOAD_BUFFERS: usize = 16;

/// Of these buffers, those that each session has for itself; the others are borrowed from what all sessions share.
const REGION_BUFFERS_OWN: usize = 2;
const PAYLOAD_BUFFERS_OWN: usize = 2;

/// Buffers for all sessions together, for regions and for payloads: one session is as fast as ever, and sixteen take 64 MiB
/// of their own and these 40 MiB.
pub fn shared_buffers() -> (SharedBuffers, SharedBuffers) {
    (SharedBuffers::new(28), SharedBuffers::new(12))
}

/// How often the disk is flushed and the mark moves on.
const SYNC_INTERVAL: Duration = Duration::from_secs(1);

/// How long the last frames may take to leave.
const LINGER: Duration = Duration::from_secs(5);

/// What disk threads answer.
pub(super) enum Answer {
    Opened(Result<Box<OpenedPair>, Refusal>),
    MachineOpened(Result<Box<MachineSession>, Refusal>),
    Region {
        offset: u64,
        buffer: Option<PooledBuf>,
        blocks: Vec<Option<Digest>>,
    },
    Event(Event<PooledBuf>),
    Epoch(epochs::Event<PooledBuf>),
}

/// One connection from a source.
pub struct Session {
    core: epochs::Session,
    /// Protocol version of the connection.
    version: u16,
    pub(super) hub: Hub,
    pub(super) opener: Opener,
    pub(super) peer: SocketAddr,
    pair: Option<Box<OpenedPair>>,
    pub(super) machine: Option<Box<MachineSession>>,
    pub(super) machine_report: Option<MachineReport>,
    /// The first refusal of the machine's work, after which nothing more is begun.
    pub(super) refused: Arc<OnceLock<Refusal>>,
    report: Option<SessionReport>,
    threads: DiskThreads,
    regions: BufferPool,
    kept: HashMap<u64, Arc<PooledBuf>>,
    waiting: VecDeque<(u64, u64)>,
    answers: UnboundedReceiver<Answer>,
    answer_to: UnboundedSender<Answer>,
    frames: Receiver<Result<Incoming, PumpError>>,
    outgoing: UnboundedSender<Outgoing>,
    wire: Arc<WireBytes>,
    reader: JoinHandle<()>,
    writer: JoinHandle<std::io::Result<()>>,
}

impl Session {
    /// Starts the tasks and threads of a session on a connection that has exchanged hellos.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(stream: Stream, peer: SocketAddr, version: u16, opener: Opener) -> Result<Self, SpawnError> {
        let threads = DiskThreads::start("target-disk", THREADS)?;
        let (answer_to, answers) = unbounded_channel();
        let (frame_to, frames) = channel(64);
        let (outgoing, outgoing_frames) = unbounded_channel();
        let (read_half, write_half) = stream.into_split();
        let wire = Arc::new(WireBytes::default());
        wire.sent.fetch_add(HELLO_SIZE as u64, Ordering::Relaxed);
        wire.received.fetch_add(HELLO_SIZE as u64, Ordering::Relaxed);
        let payloads = BufferPool::sharing(PAYLOAD_BUFFERS_OWN, PAYLOAD_BUFFERS, &opener.shared.1);
        let regions = BufferPool::sharing(REGION_BUFFERS_OWN, usize::from(REGION_WINDOW), &opener.shared.0);
        let reader = tokio::spawn(read_frames(read_half, frame_to, payloads, Arc::clone(&wire)));
        let writer = tokio::spawn(write_frames(
            write_half,
            outgoing_frames,
            Arc::clone(&wire),
            None,
            || {},
        ));
        Ok(Self {
            core: epochs::Session::new(),
            version,
            hub: opener.hub.clone(),
            opener,
            peer,
            pair: None,
            machine: None,
            machine_report: None,
            refused: Arc::default(),
            report: None,
            threads,
            regions,
            kept: HashMap::new(),
            waiting: VecDeque::new(),
            answers,
            answer_to,
            frames,
            outgoing,
            wire,
            reader,
            writer,
        })
    }

    /// Runs the session to its end. `hot_plug` changes with every hot-plug event, `stop` becomes true when the service
    /// ends.
    pub async fn run(mut self, mut hot_plug: watch::Receiver<u64>, mut stop: watch::Receiver<bool>) {
        let mut sync = interval(SYNC_INTERVAL);
        sync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        hot_plug.mark_unchanged();
        let mut registry = self.opener.caller.as_ref().map(Caller::changes);
        let outcome = loop {
            let event = tokio::select! {
                frame = self.frames.recv() => match frame {
                    Some(Ok(Incoming { message, payload })) => {
                        if let Some(refusal) = self.too_new(&message) {
                            Some(Event::Failed(refusal).into())
                        } else {
                            Some(Event::Received { message, payload }.into())
                        }
                    }
                    Some(Err(error)) => break self.source_gone(&error),
                    None => break self.source_gone(&PumpError::Closed { inside_frame: false }),
                },
                Some(answer) = self.answers.recv() => self.answered(answer),
                _ = sync.tick() => {
                    self.tell_progress();
                    Some(Event::Tick.into())
                }
                Ok(()) = hot_plug.changed() => {
                    self.recheck();
                    None
                }
                () = changed(&mut registry) => self.no_longer_admitted(),
                Ok(_) = stop.wait_for(|stop| *stop) => Some(Event::Failed(shutting_down()).into()),
            };
            let Some(event) = event else { continue };
            if let Some(outcome) = self.handle(event) {
                break outcome;
            }
        };
        self.end(outcome).await;
    }

    fn handle(&mut self, event: epochs::Event<PooledBuf>) -> Option<Outcome> {
        let actions = self.core.handle(event);
        if let (Some(settled), Some(session)) = (self.core.disk_settled(), &self.machine)
            && let Some(place) = session.place(self.core.disk())
        {
            session.machine.note_settled(session.epoch_id, place, settled);
        }
        for action in actions {
            let action = match action {
                epochs::Action::Disk(action) => action,
                action => {
                    self.act_on_machine(action);
                    continue;
                }
            };
            let disk = self.core.disk();
            match action {
                Action::Open(open) if open.mode == Mode::Epoch => self.open_disk_of_epoch(disk, &open),
                Action::Write {
                    region,
                    extents,
                    payload,
                } if self.machine.is_some() => {
                    self.on_disk_of_machine(disk, move |machine, session, place| {
                        check_digests(&extents, &payload)?;
                        machine
                            .write(session, place, &extents, &payload)
                            .map_err(|error| error.refusal())?;
                        Ok(Event::Written { region }.into())
                    });
                }
                Action::Zero { region, ranges } if self.machine.is_some() => {
                    self.on_disk_of_machine(disk, move |machine, session, place| {
                        machine
                            .zero(session, place, &ranges)
                            .map_err(|error| error.refusal())?;
                        Ok(Event::Written { region }.into())
                    });
                }
                Action::End(outcome) => return Some(outcome),
                Action::Open(open) => self.open(open),
                Action::Send(message) => {
                    // When the writer is gone, the reader tells why.
                    let _ = self.outgoing.send(Outgoing {
                        message,
                        payload: None,
                    });
                }
                Action::Read { offset, len } => {
                    self.waiting.push_back((offset, len));
                    self.read_waiting();
                }
                Action::SubDigest { offset, blocks } => self.sub_digest(offset, blocks),
                Action::Release { offset } => {
                    self.kept.remove(&offset);
                    self.read_waiting();
                }
                Action::Write {
                    region,
                    extents,
                    payload,
                } => {
                    self.on_disk(move |disk| {
                        write(disk, &extents, &payload)?;
                        Ok(Event::Written { region })
                    });
                }
                Action::Zero { region, ranges } => {
                    self.on_disk(move |disk| {
                        zero(disk, &ranges)?;
                        Ok(Event::Written { region })
                    });
                }
                Action::Flush => self.on_disk(|disk| {
                    disk.device.flush().map_err(|error| disk_failed(disk, &error))?;
                    Ok(Event::Flushed)
                }),
                Action::StoreMark { durable, complete } => self.store_mark(durable, complete),
            }
        }
        None
    }

    fn answered(&mut self, answer: Answer) -> Option<epochs::Event<PooledBuf>> {
        match answer {
            Answer::Opened(Err(refusal)) | Answer::MachineOpened(Err(refusal)) => {
                Some(Event::Failed(refusal).into())
            }
            Answer::MachineOpened(Ok(machine)) => Some(self.machine_opened(machine)),
            Answer::Epoch(event) => Some(event),
            Answer::Opened(Ok(pair)) => {
                self.report = Some(SessionReport::begin(
                    &self.hub,
                    &pair,
                    self.peer,
                    Timestamp::now(),
                ));
                let opened = Opened {
                    seeding_id: pair.seeding_id,
                    start: pair.start,
                    generation: pair.pair.generation,
                    region_window: REGION_WINDOW,
                    scsi_id: pair.pair.scsi_id.to_string(),
                };
                self.pair = Some(pair);
                Some(Event::Opened(opened).into())
            }
            Answer::Region {
                offset,
                buffer,
                blocks,
            } => {
                if let Some(buffer) = buffer {
                    self.kept.insert(offset, Arc::new(buffer));
                }
                Some(Event::RegionRead { offset, blocks }.into())
            }
            Answer::Event(event) => Some(event.into()),
        }
    }

    fn open(&mut self, open: OpenPair) {
        let (opener, peer) = (self.opener.clone(), self.peer);
        self.submit(move || Answer::Opened(open_pair(&opener, &open, peer).map(Box::new)));
    }

    /// Starts reads for which there are buffers.
    fn read_waiting(&mut self) {
        while let Some(&(offset, len)) = self.waiting.front() {
            let len = usize::try_from(len).expect("a region is 1 MiB at most");
            let Some(mut buffer) = self.regions.try_take(len) else {
                return;
            };
            self.waiting.pop_front();
            let Some(disk) = self.disk() else { return };
            let machine = self.machine.as_ref().and_then(|session| {
                let place = session.place(self.core.disk())?;
                Some((Arc::clone(&session.machine), place))
            });
            let read = move |buffer: &mut PooledBuf| match &machine {
                // What is on its way to the disk counts too.
                Some((machine, place)) => machine
                    .read_newest(*place, &disk.device, offset, buffer)
                    .map_err(|error| error.refusal()),
                None => {
                    region::read(&disk.device, offset, buffer).map_err(|error| disk_failed(&disk, &error))
                }
            };
            self.submit(move || match read(&mut buffer) {
                Ok(Content::Read) => {
                    let blocks = digest::blocks(&buffer);
                    Answer::Region {
                        offset,
                        buffer: Some(buffer),
                        blocks,
                    }
                }
                Ok(Content::Hole) => Answer::Region {
                    offset,
                    buffer: None,
                    blocks: vec![None; block_count(len)],
                },
                Err(refusal) => Answer::Event(Event::Failed(refusal)),
            });
        }
    }

    fn sub_digest(&mut self, offset: u64, blocks: u16) {
        // A region that is a hole was not kept; the source has no reason to ask for it, and gets the truth if it does.
        let buffer = self.kept.get(&offset).cloned();
        let len = region_len(offset, self.core.disk_size());
        let len = usize::try_from(len).expect("a region is 1 MiB at most");
        self.submit(move || {
            let sub_blocks = match &buffer {
                Some(buffer) => digest::sub_blocks(buffer, blocks),
                None => digest::sub_blocks(&vec![0; len], blocks),
            };
            let digests = sub_blocks.into_iter().map(|sub_block| sub_block.digest).collect();
            Answer::Event(Event::SubDigested {
                offset,
                blocks,
                digests,
            })
        });
    }

    fn store_mark(&mut self, durable: u64, complete: bool) {
        let Some(pair) = &self.pair else { return };
        let (hub, pair_id, seeding_id) = (self.hub.clone(), pair.pair.id, pair.seeding_id);
        self.submit(move || {
            let state = hub.state();
            let stored = state.store_mark(pair_id, seeding_id, durable).and_then(|()| {
                if complete {
                    state.complete_seeding(pair_id, seeding_id)
                } else {
                    Ok(())
                }
            });
            Answer::Event(match stored {
                Ok(()) => Event::MarkStored,
                Err(error) => Event::Failed(Refusal {
                    code: ErrorCode::Internal,
                    text: format!(
                        "cannot store the durable mark: {error}; nothing beyond the last mark is acknowledged"
                    ),
                    hint: "check the space on the target's state folder".to_owned(),
                }),
            })
        });
    }

    /// After a hot-plug event: is what we hold still the disk it was?
    fn recheck(&self) {
        self.on_disk_quietly(|disk| match disk.recheck() {
            Ok(()) => None,
            Err(refusal) => Some(Event::Failed(disk_in_doubt(&refusal))),
        });
    }

    /// After a change of the registry: is the machine still one that may speak?
    fn no_longer_admitted(&self) -> Option<epochs::Event<PooledBuf>> {
        let refusal = self.opener.caller.as_ref()?.must_end()?;
        Some(Event::Failed(refusal).into())
    }

    /// The disk that is gone over, and with it the claim to write it.
    fn disk(&self) -> Option<Arc<HeldDisk>> {
        match &self.machine {
            Some(machine) => machine.disks.get(self.core.disk()).cloned(),
            None => self.pair.as_ref().map(|pair| Arc::clone(&pair.disk)),
        }
    }

    /// Version 1 knows no epochs: what comes from one is a fault of the peer.
    fn too_new(&self, message: &Message) -> Option<Refusal> {
        let of_epochs = (64..96).contains(&message.kind());
        (of_epochs && self.version < 2).then(|| Refusal {
            code: ErrorCode::ProtocolViolation,
            text: format!(
                "{} may not come in version {} of the protocol",
                message.name(),
                self.version
            ),
            hint: "this is a fault of the sending agent; update it, or report this message".to_owned(),
        })
    }

    fn on_disk(&self, work: impl FnOnce(&OpenDisk) -> Result<Event<PooledBuf>, Refusal> + Send + 'static) {
        if let Some(disk) = self.disk() {
            self.submit(move || Answer::Event(work(&disk).unwrap_or_else(Event::Failed)));
        }
    }

    fn on_disk_quietly(&self, work: impl FnOnce(&OpenDisk) -> Option<Event<PooledBuf>> + Send + 'static) {
        if let Some(disk) = self.disk() {
            let answers = self.answer_to.clone();
            // Not through the session's threads: they may all hang on the disk that has gone.
            tokio::task::spawn_blocking(move || {
                if let Some(event) = work(&disk) {
                    let _ = answers.send(Answer::Event(event));
                }
            });
        }
    }

    pub(super) fn submit(&self, job: impl FnOnce() -> Answer + Send + 'static) {
        let panicked = || {
            Answer::Event(Event::Failed(Refusal {
                code: ErrorCode::Internal,
                text: "a disk thread of the target ended unexpectedly".to_owned(),
                hint: "see the target's log, and report this".to_owned(),
            }))
        };
        self.threads.submit(&self.answer_to, panicked, job);
    }

    fn source_gone(&mut self, error: &PumpError) -> Outcome {
        let code = match error {
            PumpError::Closed { inside_frame: false } if self.core.is_done() => return Outcome::Complete,
            PumpError::Wire(_) => ErrorCode::ProtocolViolation,
            PumpError::Silent { .. } => ErrorCode::TimedOut,
            PumpError::Closed { .. } | PumpError::Io(_) => ErrorCode::Other(0),
        };
        let refusal = Refusal {
            code,
            text: format!("source {}: {error}", self.peer),
            hint: "run the same command on the source again: it goes on from the last durable mark"
                .to_owned(),
        };
        if code != ErrorCode::Other(0) {
            let _ = self.outgoing.send(Outgoing {
                message: Message::Refused(refusal.clone()),
                payload: None,
            });
        }
        Outcome::Failed(refusal)
    }

    fn tell_progress(&mut self) {
        let on_wire = self.wire.sent.load(Ordering::Relaxed) + self.wire.received.load(Ordering::Relaxed);
        if let Some(report) = &mut self.machine_report {
            report.progress(&self.hub, self.core.progress(), on_wire, Timestamp::now());
        }
        if let Some(report) = &mut self.report {
            report.progress(&self.hub, self.core.progress(), on_wire, Timestamp::now());
        }
    }

    async fn end(mut self, outcome: Outcome) {
        self.tell_progress();
        self.machine_over(&outcome).await;
        match (self.report.take(), &outcome) {
            (Some(report), _) => report.end(&self.hub, &outcome, Timestamp::now()),
            _ if self.machine_report.is_some() => {}
            (None, Outcome::Failed(refusal)) => {
                tracing::warn!(peer = %self.peer, code = refusal.code.word(), "{}", refusal.text);
            }
            (None, _) => tracing::debug!(peer = %self.peer, "closed before a pair was opened"),
        }
        self.reader.abort();
        let Self {
            outgoing,
            mut writer,
            pair,
            machine,
            threads,
            kept,
            ..
        } = self;
        // The disk first: a source that begins again at once should find its pair free.
        drop((pair, machine, threads, kept));
        drop(outgoing);
        if timeout(LINGER, &mut writer).await.is_err() {
            writer.abort();
        }
    }
}

/// Waits for a change of the registry; for ever where there is none.
async fn changed(registry: &mut Option<watch::Receiver<u64>>) {
    if let Some(registry) = registry
        && registry.changed().await.is_ok()
    {
        return;
    }
    std::future::pending().await
}

/// Checks a payload against the digests made when the source read it.
pub(super) fn check_digests(extents: &[Extent], payload: &[u8]) -> Result<(), Refusal> {
    digest::check_payload(extents, payload).map_err(|extent| Refusal {
        code: ErrorCode::DigestMismatch,
        text: format!(
            "{} bytes at offset {:#x} do not match the digest made when the source read them; nothing of the frame was written",
            extent.len, extent.offset
        ),
        hint: "run the same command on the source again; if it happens again, check the memory of both machines".to_owned(),
    })
}

/// Checks a payload and writes it, neighbours in one call.
fn write(disk: &OpenDisk, extents: &[Extent], payload: &[u8]) -> Result<(), Refusal> {
    check_digests(extents, payload)?;
    let mut rest = payload;
    let mut extents = extents.iter().peekable();
    while let Some(first) = extents.next() {
        let mut len = first.len as usize;
        while let Some(next) = extents.next_if(|next| next.offset == first.offset + len as u64) {
            len += next.len as usize;
        }
        let (content, behind) = rest.split_at(len);
        disk.device
            .write_all_at(content, first.offset)
            .map_err(|error| disk_failed(disk, &error))?;
        rest = behind;
    }
    Ok(())
}

fn zero(disk: &OpenDisk, ranges: &[Range]) -> Result<(), Refusal> {
    for range in ranges {
        disk.device
            .zero_range(range.offset, range.len)
            .map_err(|error| disk_failed(disk, &error))?;
    }
    Ok(())
}

fn disk_failed(disk: &OpenDisk, error: &DeviceError) -> Refusal {
    // A disk that was taken away fails in many words: the kernel makes its size zero, and a write behind the end of a
    // device is "no space left". What is true of the disk counts before the words.
    if let Err(refusal) = disk.recheck() {
        return disk_in_doubt(&refusal);
    }
    let hint = if error.is_no_space() {
        "make room where the disk is stored, then run the same command on the source again"
    } else if error.is_device_gone() {
        "attach the disk again, then run the same command on the source again"
    } else {
        "check the disk and what it is stored on, then run the same command on the source again"
    };
    Refusal {
        code: ErrorCode::DiskFailed,
        text: format!(
            "target disk {} ({}): {error}: {}; it is not acknowledged",
            disk.paired.scsi_id,
            disk.facts.kernel_name,
            error.io_error()
        ),
        hint: hint.to_owned(),
    }
}

fn disk_in_doubt(refusal: &gate::Refusal) -> Refusal {
    Refusal {
        code: ErrorCode::DiskMissing,
        text: refusal.to_string(),
        hint: refusal.hint().unwrap_or_default(),
    }
}

fn shutting_down() -> Refusal {
    Refusal {
        code: ErrorCode::ShuttingDown,
        text: "the target is being stopped".to_owned(),
        hint: "run the same command again when the target is back: it goes on from the last durable mark"
            .to_owned(),
    }
}

fn block_count(len: usize) -> usize {
    len.div_ceil(64 * 1024)
}
