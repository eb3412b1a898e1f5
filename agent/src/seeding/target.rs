//! The target's side of a seeding or a verification.

use std::collections::BTreeMap;

use mt_wire::limits::{BLOCK_SIZE, REGION_SIZE};
use mt_wire::{
    Digest, Digests, ErrorCode, Extent, Message, Mode, OpenPair, PairOpened, Range, Refusal, SubDigests,
};

use super::region_len;

/// What the edge found when it opened the pair.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opened {
    /// The seeding that begins or goes on.
    pub seeding_id: [u8; 16],
    /// Where to begin, in bytes: a multiple of the region size, or the size of the disk.
    pub start: u64,
    /// The pair's generation.
    pub generation: u64,
    /// Regions that may be announced and unsettled at a time.
    pub region_window: u16,
    /// SCSI ID of the target disk.
    pub scsi_id: String,
}

/// What the edge tells the session.
#[derive(Debug)]
pub enum Event<P> {
    /// A message from the source, with its payload.
    Received {
        /// The message.
        message: Message,
        /// The payload, for extents.
        payload: Option<P>,
    },
    /// The answer to [`Action::Open`].
    Opened(Opened),
    /// The answer to [`Action::Read`].
    RegionRead {
        /// Offset of the region in bytes.
        offset: u64,
        /// What its blocks hold.
        blocks: Vec<Option<Digest>>,
    },
    /// The answer to [`Action::SubDigest`].
    SubDigested {
        /// Offset of the region in bytes.
        offset: u64,
        /// The blocks that were asked for.
        blocks: u16,
        /// Their sub-digests.
        digests: Vec<Digest>,
    },
    /// The answer to one [`Action::Write`] or [`Action::Zero`].
    Written {
        /// Offset of the region that was written to.
        region: u64,
    },
    /// The answer to [`Action::Flush`].
    Flushed,
    /// The answer to [`Action::StoreMark`].
    MarkStored,
    /// A second or so has passed.
    Tick,
    /// The edge cannot go on; the refusal says why. Whatever was under way is not acknowledged.
    Failed(Refusal),
}

/// What the edge has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<P> {
    /// Find, check and open the pair's disk; answer with [`Event::Opened`] or [`Event::Failed`].
    Open(OpenPair),
    /// Send a message.
    Send(Message),
    /// Read a region, keep it, and answer with [`Event::RegionRead`].
    Read {
        /// Offset in bytes.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// Compute sub-digests of a region that is kept; answer with [`Event::SubDigested`].
    SubDigest {
        /// Offset of the region in bytes.
        offset: u64,
        /// The blocks that are wanted.
        blocks: u16,
    },
    /// Forget a region that was kept.
    Release {
        /// Offset in bytes.
        offset: u64,
    },
    /// Check the payload against the extents' digests, write it, and answer with [`Event::Written`].
    Write {
        /// Offset of the region all extents lie in.
        region: u64,
        /// Where the payload goes.
        extents: Vec<Extent>,
        /// The content.
        payload: P,
    },
    /// Make ranges zero and answer with [`Event::Written`].
    Zero {
        /// Offset of the region all ranges lie in.
        region: u64,
        /// The ranges.
        ranges: Vec<Range>,
    },
    /// Flush the disk and answer with [`Event::Flushed`].
    Flush,
    /// Store the durable mark, synced, and answer with [`Event::MarkStored`].
    StoreMark {
        /// The mark in bytes.
        durable: u64,
        /// Whether the seeding is complete.
        complete: bool,
    },
    /// The session is over. Nothing is expected of the edge but to send what it was given and to close.
    End(Outcome),
}

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Everything is settled, durable and acknowledged.
    Complete,
    /// The source went away in good order before the end.
    Closed,
    /// Refused or failed.
    Failed(Refusal),
}

/// How far the session is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// Size of the protected disk in bytes.
    pub size: u64,
    /// Everything before this offset is settled.
    pub settled: u64,
    /// Everything before this offset is durable and acknowledged; inside an epoch, received and acknowledged as such.
    pub durable: u64,
    /// Bytes of extents written.
    pub bytes_written: u64,
    /// Bytes made zero.
    pub bytes_zeroed: u64,
    /// Bytes that a verification found to differ, as the source tells at its end.
    pub bytes_different: u64,
}

#[derive(Debug, Default)]
struct Region {
    announced: bool,
    done: bool,
    /// Writes, zeroings and sub-digests that the edge has not answered.
    outstanding: usize,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    AwaitOpen,
    Opening,
    Running,
    /// The source has said that it is through; the last flush and mark are under way.
    Ending,
    /// `SeedingDone` is sent; the source closes.
    Done,
    Over,
}

#[derive(Debug, PartialEq, Eq)]
enum Sync {
    Idle,
    /// A flush is under way that will make everything before the mark durable.
    Flushing(u64),
    /// The mark is being stored.
    Storing {
        mark: u64,
        complete: bool,
    },
}

/// The target's state machine of one stream.
#[derive(Debug)]
pub struct TargetSession {
    phase: Phase,
    mode: Mode,
    alignment: u64,
    window: usize,
    next_read: u64,
    regions: BTreeMap<u64, Region>,
    sync: Sync,
    /// Whether anything may have been written since the last flush began. True at first: a session that was killed may
    /// have left writes in the disk's cache, and the comparison that finds them equal does not make them durable.
    unflushed: bool,
    /// Whether it is stored that the whole disk is durable.
    complete: bool,
    progress: Progress,
}

impl Default for TargetSession {
    fn default() -> Self {
        Self::new()
    }
}

impl TargetSession {
    /// A session that waits for the source to name its pair.
    pub fn new() -> Self {
        Self {
            phase: Phase::AwaitOpen,
            mode: Mode::Verify,
            alignment: 512,
            window: 0,
            next_read: 0,
            regions: BTreeMap::new(),
            sync: Sync::Idle,
            unflushed: true,
            complete: false,
            progress: Progress::default(),
        }
    }

    /// How far the session is.
    pub fn progress(&self) -> Progress {
        self.progress
    }

    /// Whether the session is over and takes no more events.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Whether everything is settled and durable, and the source has been told.
    pub fn is_done(&self) -> bool {
        self.phase == Phase::Done
    }

    /// Takes an event and says what is to be done, in order. Events that arrive after the end are dropped.
    pub fn handle<P>(&mut self, event: Event<P>) -> Vec<Action<P>> {
        let mut actions = Vec::new();
        if self.is_over() {
            return actions;
        }
        if let Err(refusal) = self.step(event, &mut actions) {
            self.phase = Phase::Over;
            actions.push(Action::Send(Message::Refused(refusal.clone())));
            actions.push(Action::End(Outcome::Failed(refusal)));
        }
        actions
    }

    fn step<P>(&mut self, event: Event<P>, actions: &mut Vec<Action<P>>) -> Result<(), Refusal> {
        match event {
            Event::Received { message, payload } => self.received(message, payload, actions)?,
            Event::Opened(opened) => self.opened(opened, actions),
            Event::RegionRead { offset, blocks } => self.announce(offset, blocks, actions),
            Event::SubDigested {
                offset,
                blocks,
                digests,
            } => {
                actions.push(Action::Send(Message::SubDigests(SubDigests {
                    offset,
                    blocks,
                    digests,
                })));
                self.answered(offset, actions);
            }
            Event::Written { region } => {
                self.unflushed = true;
                self.answered(region, actions);
            }
            Event::Flushed => {
                if let Sync::Flushing(mark) = self.sync {
                    self.store_mark(mark, actions);
                }
            }
            Event::MarkStored => self.mark_stored(actions),
            Event::Tick => self.sync_if_behind(actions),
            Event::Failed(refusal) => return Err(refusal),
        }
        if self.phase == Phase::Running {
            self.read_ahead(actions);
        } else if self.phase == Phase::Ending {
            self.finish(actions);
        }
        Ok(())
    }

    fn received<P>(
        &mut self,
        message: Message,
        payload: Option<P>,
        actions: &mut Vec<Action<P>>,
    ) -> Result<(), Refusal> {
        match (&self.phase, message) {
            (_, Message::Ping { token }) => actions.push(Action::Send(Message::Pong { token })),
            (_, Message::Pong { .. }) => {}
            (phase, Message::Close) => {
                let outcome = if *phase == Phase::Done {
                    Outcome::Complete
                } else {
                    Outcome::Closed
                };
                self.phase = Phase::Over;
                actions.push(Action::End(outcome));
            }
            (Phase::AwaitOpen, Message::OpenPair(open)) => {
                self.phase = Phase::Opening;
                self.mode = open.mode;
                self.alignment = u64::from(open.logical_block_size.max(1));
                self.progress.size = open.size;
                actions.push(Action::Open(open));
            }
            (Phase::Running, Message::WantSubDigests(want)) => {
                let len = region_len(want.offset, self.progress.size);
                let block_count = len.div_ceil(BLOCK_SIZE);
                let region = self.announced(want.offset, "WantSubDigests")?;
                if u64::from(want.blocks) >> block_count != 0 {
                    return Err(out_of_range(
                        "WantSubDigests",
                        want.offset,
                        len,
                        "names a block past the end of its region",
                    ));
                }
                region.outstanding += 1;
                actions.push(Action::SubDigest {
                    offset: want.offset,
                    blocks: want.blocks,
                });
            }
            (Phase::Running, Message::Extents(extents)) if self.mode != Mode::Verify => {
                let ranges = extents.iter().map(|extent| Range {
                    offset: extent.offset,
                    len: u64::from(extent.len),
                });
                let (region, bytes) = self.claim(ranges, "Extents")?;
                let Some(payload) = payload else {
                    return Err(violation("Extents came without their payload"));
                };
                self.progress.bytes_written += bytes;
                actions.push(Action::Write {
                    region,
                    extents,
                    payload,
                });
            }
            (Phase::Running, Message::ZeroRanges(ranges)) if self.mode != Mode::Verify => {
                let (region, bytes) = self.claim(ranges.iter().copied(), "ZeroRanges")?;
                self.progress.bytes_zeroed += bytes;
                actions.push(Action::Zero { region, ranges });
            }
            (Phase::Running, Message::RegionDone { offset }) => {
                self.announced(offset, "RegionDone")?.done = true;
                self.settle(offset, actions);
            }
            (Phase::Running, Message::SeedingEnd(end)) => {
                if self.next_read < self.progress.size || self.regions.values().any(|region| !region.done) {
                    return Err(violation("SeedingEnd came before every region was done"));
                }
                if self.mode == Mode::Verify {
                    self.progress.bytes_different = end.bytes_sent.saturating_add(end.bytes_zeroed);
                }
                self.phase = Phase::Ending;
            }
            (phase, message) => {
                return Err(violation(&format!(
                    "{} may not come in phase {phase:?} of {:?}",
                    message.name(),
                    self.mode
                )));
            }
        }
        Ok(())
    }

    fn opened<P>(&mut self, opened: Opened, actions: &mut Vec<Action<P>>) {
        self.window = usize::from(opened.region_window);
        self.next_read = opened.start;
        self.progress.settled = opened.start;
        self.progress.durable = opened.start;
        self.phase = Phase::Running;
        actions.push(Action::Send(Message::PairOpened(PairOpened {
            seeding_id: opened.seeding_id,
            start: opened.start,
            generation: opened.generation,
            region_window: opened.region_window,
            scsi_id: opened.scsi_id,
        })));
    }

    fn read_ahead<P>(&mut self, actions: &mut Vec<Action<P>>) {
        while self.regions.len() < self.window && self.next_read < self.progress.size {
            let offset = self.next_read;
            let len = region_len(offset, self.progress.size);
            self.regions.insert(offset, Region::default());
            self.next_read = offset + len;
            actions.push(Action::Read { offset, len });
        }
    }

    fn announce<P>(&mut self, offset: u64, blocks: Vec<Option<Digest>>, actions: &mut Vec<Action<P>>) {
        let Some(region) = self.regions.get_mut(&offset) else {
            return;
        };
        region.announced = true;
        let len = u32::try_from(region_len(offset, self.progress.size)).expect("a region is at most 1 MiB");
        actions.push(Action::Send(Message::Digests(Digests { offset, len, blocks })));
    }

    /// The region at `offset`, when it was announced and the source has not said that it is done.
    fn announced(&mut self, offset: u64, message: &str) -> Result<&mut Region, Refusal> {
        match self.regions.get_mut(&offset) {
            Some(region) if region.announced && !region.done => Ok(region),
            _ => Err(out_of_range(
                message,
                offset,
                REGION_SIZE,
                "names a region that was not announced, or is done",
            )),
        }
    }

    /// Checks ranges that are to be written: inside the disk, aligned, and all in one announced region.
    fn claim(&mut self, ranges: impl Iterator<Item = Range>, message: &str) -> Result<(u64, u64), Refusal> {
        let (size, alignment) = (self.progress.size, self.alignment);
        let mut first_region = None;
        let mut bytes = 0;
        for range in ranges {
            // The decoder has bounded both far below the end of u64.
            let end = range.offset + range.len;
            let region = range.offset - range.offset % REGION_SIZE;
            if end > size {
                return Err(out_of_range(
                    message,
                    range.offset,
                    range.len,
                    &format!("is past the end of the disk ({size} bytes)"),
                ));
            }
            if !range.offset.is_multiple_of(alignment) || !range.len.is_multiple_of(alignment) {
                return Err(out_of_range(
                    message,
                    range.offset,
                    range.len,
                    &format!("is not a multiple of {alignment} bytes"),
                ));
            }
            if end > region + REGION_SIZE || *first_region.get_or_insert(region) != region {
                return Err(out_of_range(
                    message,
                    range.offset,
                    range.len,
                    "is outside the region the frame began in",
                ));
            }
            bytes += range.len;
        }
        let Some(region) = first_region else {
            return Err(violation("a list of ranges with nothing in it"));
        };
        self.announced(region, message)?.outstanding += 1;
        Ok((region, bytes))
    }

    fn answered<P>(&mut self, offset: u64, actions: &mut Vec<Action<P>>) {
        if let Some(region) = self.regions.get_mut(&offset) {
            region.outstanding = region.outstanding.saturating_sub(1);
            self.settle(offset, actions);
        }
    }

    fn settle<P>(&mut self, offset: u64, actions: &mut Vec<Action<P>>) {
        if self
            .regions
            .get(&offset)
            .is_some_and(|region| region.done && region.outstanding == 0)
        {
            self.regions.remove(&offset);
            actions.push(Action::Release { offset });
            self.progress.settled = self
                .regions
                .first_key_value()
                .map_or(self.next_read, |(offset, _)| *offset);
        }
    }

    /// Begins to make the settled prefix durable, when it is ahead of the mark and nothing is under way.
    fn sync_if_behind<P>(&mut self, actions: &mut Vec<Action<P>>) {
        if !matches!(self.phase, Phase::Running | Phase::Ending) {
            return;
        }
        if self.mode == Mode::Epoch && self.progress.settled > self.progress.durable {
            // Half an epoch is never durable: what is told here is worth something as long as this process lives.
            self.progress.durable = self.progress.settled;
            actions.push(Action::Send(Message::Received {
                offset: self.progress.settled,
            }));
            return;
        }
        let may = self.mode == Mode::Seed;
        if may && self.sync == Sync::Idle && self.progress.settled > self.progress.durable {
            self.sync(actions);
        }
    }

    fn sync<P>(&mut self, actions: &mut Vec<Action<P>>) {
        let mark = self.progress.settled;
        if self.unflushed {
            self.unflushed = false;
            self.sync = Sync::Flushing(mark);
            actions.push(Action::Flush);
        } else {
            self.store_mark(mark, actions);
        }
    }

    fn store_mark<P>(&mut self, mark: u64, actions: &mut Vec<Action<P>>) {
        let complete = self.phase == Phase::Ending && mark == self.progress.size;
        self.sync = Sync::Storing { mark, complete };
        actions.push(Action::StoreMark {
            durable: mark,
            complete,
        });
    }

    fn mark_stored<P>(&mut self, actions: &mut Vec<Action<P>>) {
        if let Sync::Storing { mark, complete } = self.sync {
            self.sync = Sync::Idle;
            self.complete = complete;
            self.progress.durable = mark;
            actions.push(Action::Send(Message::Durable { offset: mark }));
        }
    }

    /// Brings a session to its end once the source is through: last writes, last flush, last mark, `SeedingDone`.
    fn finish<P>(&mut self, actions: &mut Vec<Action<P>>) {
        if !self.regions.is_empty() || self.sync != Sync::Idle {
            return;
        }
        if self.mode == Mode::Seed && !self.complete {
            self.sync(actions);
            return;
        }
        self.phase = Phase::Done;
        actions.push(Action::Send(Message::SeedingDone));
    }
}

fn violation(text: &str) -> Refusal {
    Refusal {
        code: ErrorCode::ProtocolViolation,
        text: text.to_owned(),
        hint: "this is a fault of the sending agent; update it, or report this message".to_owned(),
    }
}

fn out_of_range(message: &str, offset: u64, len: u64, why: &str) -> Refusal {
    Refusal {
        code: ErrorCode::OutOfRange,
        text: format!("{message} of {len} bytes at offset {offset:#x} {why}; nothing of it was written"),
        hint: "this is a fault of the sending agent; update it, or report this message".to_owned(),
    }
}
