//! The edge around one [`Core`]: socket, disk threads and buffers.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mt_blockdev::device::DeviceError;
use mt_wire::limits::{BLOCK_SIZE, HELLO_SIZE, REGION_SIZE, REGION_WINDOW_MAX, SUB_BLOCK_SIZE};
use mt_wire::message::sub_block_count;
use mt_wire::{EpochDurable, Extent, Message};
use tokio::sync::mpsc::{Receiver, UnboundedReceiver, UnboundedSender, channel, unbounded_channel};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::SourceError;
use super::core::{Act, Core, Purpose, ends_comparing};
use super::image::Image;
use crate::io::buffers::{BufferPool, PooledBuf};
use crate::io::disk_threads::DiskThreads;
use crate::io::region::{self, Content};
use crate::net::pump::{Incoming, Outgoing, PumpError, WireBytes, read_frames, write_frames};
use crate::net::rate::TokenBucket;
use crate::net::tls::Stream;
use crate::seeding::differences::Differences;
use crate::seeding::digest::{self, Block};
use crate::seeding::region_len;
use crate::seeding::source::{Action, Event, PlannedExtent, Progress};

/// Threads that read and hash. Two keep the cores busy while the others wait for the disk; six were a fifth faster than
/// three with two cores and one virtual disk.
const THREADS: usize = 6;

/// Buffers beyond the window, for regions that are done here and wait to leave.
const BUFFERS_SPARE: usize = 16;

/// How often progress is told.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(200);

/// How long the last frames may take to leave after the session is over.
const LINGER: Duration = Duration::from_secs(5);

/// How a session came to its end.
#[derive(Debug)]
pub struct Ended {
    /// SCSI ID of the target disk.
    pub scsi_id: String,
    /// What a verification found.
    pub differences: Differences,
    /// An epoch that is durable.
    pub durable: Option<EpochDurable>,
    /// The store that it went to; all zero when there is none.
    pub store_id: [u8; 16],
}

/// What the disk threads answer.
#[derive(Debug)]
enum Answer {
    Region {
        offset: u64,
        buffer: Option<PooledBuf>,
        blocks: Vec<Block>,
    },
    Event(Event),
    Failed(DeviceError),
    Panicked,
    /// The writer has let go of a buffer.
    BufferFree,
}

/// One connection to a target, in use.
pub struct Session {
    core: Core,
    images: Vec<Image>,
    threads: DiskThreads,
    buffers: BufferPool,
    kept: HashMap<u64, Arc<PooledBuf>>,
    /// Reads that wait for a buffer.
    waiting: VecDeque<(u64, u64)>,
    answers: UnboundedReceiver<Answer>,
    answer_to: UnboundedSender<Answer>,
    frames: Receiver<Result<Incoming, PumpError>>,
    outgoing: UnboundedSender<Outgoing>,
    reader: JoinHandle<()>,
    writer: JoinHandle<std::io::Result<()>>,
}

impl Session {
    /// Starts the tasks and threads of a session on a connection that has exchanged hellos.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        stream: Stream,
        purpose: Purpose,
        images: &[Image],
        rate: Option<u64>,
        wire: Arc<WireBytes>,
    ) -> Result<Self, SourceError> {
        let threads = DiskThreads::start("source-disk", THREADS)
            .map_err(|error| SourceError::Internal(error.to_string()))?;
        let (core, first) = Core::new(purpose);
        let (answer_to, answers) = unbounded_channel();
        let (frame_to, frames) = channel(64);
        let (outgoing, outgoing_frames) = unbounded_channel();
        let (read_half, write_half) = stream.into_split();
        wire.sent.fetch_add(HELLO_SIZE as u64, Ordering::Relaxed);
        wire.received.fetch_add(HELLO_SIZE as u64, Ordering::Relaxed);
        // A target sends no payload: a pool of nothing would wait for ever, so one buffer is there to be refused with.
        let reader = tokio::spawn(read_frames(
            read_half,
            frame_to,
            BufferPool::new(1),
            Arc::clone(&wire),
        ));
        let freed = answer_to.clone();
        let writer = tokio::spawn(write_frames(
            write_half,
            outgoing_frames,
            wire,
            rate.map(TokenBucket::new),
            move || {
                let _ = freed.send(Answer::BufferFree);
            },
        ));
        let mut session = Self {
            core,
            images: images.to_vec(),
            threads,
            buffers: BufferPool::new(usize::from(REGION_WINDOW_MAX) + BUFFERS_SPARE),
            kept: HashMap::new(),
            waiting: VecDeque::new(),
            answers,
            answer_to,
            frames,
            outgoing,
            reader,
            writer,
        };
        if let Act::Disk(first) = first {
            session.act(first);
        }
        Ok(session)
    }

    /// Runs the session to its end. `store_mark` is called with each durable mark, `progress` several times a second.
    ///
    /// # Errors
    /// When the target refuses or is lost, the disk cannot be read, a mark cannot be stored, or the operator stops it.
    pub async fn run(
        mut self,
        store_mark: impl Fn(usize, [u8; 16], u64) -> Result<(), SourceError>,
        mut progress: impl FnMut(&Progress),
        mut stop: watch::Receiver<bool>,
    ) -> Result<Ended, SourceError> {
        let mut tick = interval(PROGRESS_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let event = tokio::select! {
                frame = self.frames.recv() => match frame {
                    Some(Ok(incoming)) => Some(Event::Received(incoming.message)),
                    // What was done since the last tick counts as well: whether to try again is decided by it.
                    Some(Err(error)) => {
                        progress(&self.core.progress());
                        return Err(self.lost(error));
                    }
                    None => {
                        progress(&self.core.progress());
                        return Err(self.lost(PumpError::Closed { inside_frame: false }));
                    }
                },
                answer = self.answers.recv() => match answer {
                    Some(answer) => self.answered(answer)?,
                    None => None,
                },
                _ = tick.tick() => {
                    progress(&self.core.progress());
                    None
                },
                _ = stop.wait_for(|stop| *stop) => return Err(self.interrupted()),
            };
            let Some(event) = event else { continue };
            for act in self.core.handle(event) {
                if ends_comparing(&act) {
                    // Before the target notes that the copy is complete: a copy of something that changed is not.
                    for image in &self.images {
                        image.check_unchanged()?;
                    }
                }
                match act {
                    Act::Disk(Action::StoreMark { seeding_id, durable }) => {
                        store_mark(self.core.disk(), seeding_id, durable)?;
                    }
                    Act::Disk(action) => self.act(action),
                    Act::End(end) => self.send(Message::EndEpoch(end), None),
                    Act::Finished(durable) => {
                        progress(&self.core.progress());
                        return Ok(self.finish(durable).await);
                    }
                    Act::Refused(refusal) => return Err(SourceError::Refused(refusal)),
                    Act::Violation(text) => return Err(SourceError::Violation(text)),
                }
            }
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Send(message) => self.send(message, None),
            Action::SendExtents { region, extents } => {
                if let Some(buffer) = self.kept.get(&region) {
                    let pieces = pieces(region, &extents);
                    let payload = Some((Arc::clone(buffer), pieces));
                    self.send(Message::Extents(extents), payload);
                }
            }
            Action::Read { offset, len } => {
                self.waiting.push_back((offset, len));
                self.read_waiting();
            }
            Action::SubDigest { offset, blocks } => {
                // A region that is a hole was not kept.
                let buffer = self.kept.get(&offset).cloned();
                let len = region_len(offset, self.image().device.size());
                let len = usize::try_from(len).expect("a region is 1 MiB at most");
                self.submit(move || {
                    let sub_blocks = match &buffer {
                        Some(buffer) => digest::sub_blocks(buffer, blocks),
                        None => digest::sub_blocks(&vec![0; len], blocks),
                    };
                    Answer::Event(Event::SubDigested { offset, sub_blocks })
                });
            }
            Action::Digest { offset, extents } => {
                if let Some(buffer) = self.kept.get(&offset).cloned() {
                    self.submit(move || {
                        let extents = extents
                            .iter()
                            .map(|planned| complete(&buffer, offset, planned))
                            .collect();
                        Answer::Event(Event::Digested { offset, extents })
                    });
                }
            }
            Action::Release { offset } => {
                self.kept.remove(&offset);
                self.read_waiting();
            }
            Action::StoreMark { .. } | Action::Finished | Action::Refused(_) | Action::Violation(_) => {
                unreachable!("handled where the session can end")
            }
        }
    }

    fn answered(&mut self, answer: Answer) -> Result<Option<Event>, SourceError> {
        match answer {
            Answer::Region {
                offset,
                buffer,
                blocks,
            } => {
                if let Some(buffer) = buffer {
                    self.kept.insert(offset, Arc::new(buffer));
                }
                Ok(Some(Event::RegionRead { offset, blocks }))
            }
            Answer::Event(event) => Ok(Some(event)),
            Answer::Failed(error) => Err(SourceError::Read(error)),
            Answer::Panicked => Err(SourceError::Internal(
                "a disk thread ended unexpectedly".to_owned(),
            )),
            Answer::BufferFree => {
                self.read_waiting();
                Ok(None)
            }
        }
    }

    /// Starts reads for which there are buffers.
    fn read_waiting(&mut self) {
        while let Some(&(offset, len)) = self.waiting.front() {
            let len = usize::try_from(len).expect("a region is 1 MiB at most");
            let Some(mut buffer) = self.buffers.try_take(len) else {
                return;
            };
            self.waiting.pop_front();
            let device = Arc::clone(&self.image().device);
            self.submit(move || match region::read(&device, offset, &mut buffer) {
                Ok(Content::Read) => {
                    let blocks = digest::blocks_with_zeros(&buffer);
                    Answer::Region {
                        offset,
                        buffer: Some(buffer),
                        blocks,
                    }
                }
                Ok(Content::Hole) => Answer::Region {
                    offset,
                    buffer: None,
                    blocks: hole(len),
                },
                Err(error) => Answer::Failed(error),
            });
        }
    }

    /// The disk that is gone over.
    fn image(&self) -> &Image {
        &self.images[self.core.disk()]
    }

    fn submit(&self, job: impl FnOnce() -> Answer + Send + 'static) {
        self.threads.submit(&self.answer_to, || Answer::Panicked, job);
    }

    fn send(&self, message: Message, payload: Option<(Arc<PooledBuf>, Vec<Range<usize>>)>) {
        // When the writer is gone, the reader tells why.
        let _ = self.outgoing.send(Outgoing { message, payload });
    }

    fn lost(&self, source: PumpError) -> SourceError {
        let progress = self.core.progress();
        match source {
            PumpError::Wire(error) => SourceError::Violation(error.to_string()),
            source => SourceError::Lost {
                durable: progress.durable,
                size: progress.size,
                source,
            },
        }
    }

    fn interrupted(&self) -> SourceError {
        let progress = self.core.progress();
        SourceError::Interrupted {
            durable: progress.durable,
            size: progress.size,
        }
    }

    /// Lets the last frames leave and gives back what was found.
    async fn finish(self, durable: Option<EpochDurable>) -> Ended {
        let Self {
            core,
            outgoing,
            reader,
            writer,
            ..
        } = self;
        drop(outgoing);
        // Everything is durable and acknowledged; a target that does not take our farewell loses nothing.
        let _ = timeout(LINGER, writer).await;
        reader.abort();
        Ended {
            scsi_id: core.scsi_id().to_owned(),
            differences: core.differences(),
            durable,
            store_id: core.store_id(),
        }
    }
}

/// The pieces of a region's buffer that are the payload of its extents, neighbours joined.
fn pieces(region: u64, extents: &[Extent]) -> Vec<Range<usize>> {
    let mut pieces: Vec<Range<usize>> = Vec::new();
    for extent in extents {
        let start = usize::try_from(extent.offset - region).expect("an extent lies in its region");
        let end = start + extent.len as usize;
        match pieces.last_mut() {
            Some(last) if last.end == start => last.end = end,
            _ => pieces.push(start..end),
        }
    }
    pieces
}

fn complete(buffer: &[u8], region: u64, planned: &PlannedExtent) -> Extent {
    let start = usize::try_from(planned.offset - region).expect("an extent lies in its region");
    let content = &buffer[start..start + planned.len as usize];
    Extent {
        offset: planned.offset,
        len: planned.len,
        digest: planned.digest.unwrap_or_else(|| digest::digest(content)),
    }
}

/// The blocks of a region of `len` bytes that is a hole.
fn hole(len: usize) -> Vec<Block> {
    debug_assert!(len as u64 <= REGION_SIZE);
    let mut left = len as u64;
    let mut blocks = Vec::new();
    while left > 0 {
        let block = left.min(BLOCK_SIZE);
        let sub_blocks = sub_block_count(usize::try_from(block).expect("a block is 64 KiB at most"));
        debug_assert!(sub_blocks as u64 * SUB_BLOCK_SIZE >= block);
        let zero_sub_blocks = u16::MAX >> (16 - sub_blocks);
        blocks.push(Block {
            digest: None,
            zero_sub_blocks,
        });
        left -= block;
    }
    blocks
}
