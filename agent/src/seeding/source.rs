//! The source's side of a seeding or a verification.

use std::collections::BTreeMap;

use mt_wire::limits::{BLOCK_SIZE, SUB_BLOCK_SIZE, SUB_BLOCKS_PER_BLOCK};
use mt_wire::message::sub_block_count;
use mt_wire::{
    Digest, Extent, Message, Mode, OpenPair, PairOpened, Range, Refusal, SeedingEnd, WantSubDigests,
};

use super::differences::Differences;
use super::digest::{Block, SubBlock};
use super::region_len;

/// What the edge tells the session.
#[derive(Debug)]
pub enum Event {
    /// A message from the target.
    Received(Message),
    /// The answer to [`Action::Read`].
    RegionRead {
        /// Offset of the region in bytes.
        offset: u64,
        /// What its blocks hold.
        blocks: Vec<Block>,
    },
    /// The answer to [`Action::SubDigest`].
    SubDigested {
        /// Offset of the region in bytes.
        offset: u64,
        /// The sub-blocks of the blocks that were asked for, block after block.
        sub_blocks: Vec<SubBlock>,
    },
    /// The answer to [`Action::Digest`].
    Digested {
        /// Offset of the region in bytes.
        offset: u64,
        /// The extents, complete.
        extents: Vec<Extent>,
    },
}

/// What the edge has to do.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// Send a message that has no payload.
    Send(Message),
    /// Send extents; their content comes from the region that is kept.
    SendExtents {
        /// Offset of the region in bytes.
        region: u64,
        /// The extents, ascending.
        extents: Vec<Extent>,
    },
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
    /// Compute the digests that are missing; answer with [`Event::Digested`].
    Digest {
        /// Offset of the region in bytes.
        offset: u64,
        /// What will be sent, ascending.
        extents: Vec<PlannedExtent>,
    },
    /// Forget a region, once everything that was sent from it is on its way.
    Release {
        /// Offset in bytes.
        offset: u64,
    },
    /// Store that the target holds everything before the mark.
    StoreMark {
        /// The seeding.
        seeding_id: [u8; 16],
        /// The mark in bytes.
        durable: u64,
    },
    /// The whole disk is compared and, when seeding, equal and durable; inside an epoch, all of it was received.
    Finished,
    /// The target refused, and why.
    Refused(Refusal),
    /// The target broke the protocol; the text says how.
    Violation(String),
}

/// An extent whose digest may still be missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlannedExtent {
    /// Offset on the disk in bytes.
    pub offset: u64,
    /// Length in bytes.
    pub len: u32,
    /// The digest, where comparing has computed it already.
    pub digest: Option<Digest>,
}

/// How far the session is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// Size of the protected disk in bytes.
    pub size: u64,
    /// Where this session began, in bytes.
    pub start: u64,
    /// Bytes compared and dealt with in this session.
    pub bytes_settled: u64,
    /// Everything before this offset is durable on the target.
    pub durable: u64,
    /// Bytes of extents sent.
    pub bytes_sent: u64,
    /// Bytes of zero ranges sent.
    pub bytes_zeroed: u64,
}

#[derive(Debug, Default)]
struct Region {
    local: Option<Vec<Block>>,
    remote: Option<Vec<Option<Digest>>>,
    /// What is known to differ before sub-digests are compared.
    planned: Vec<PlannedExtent>,
    zeros: Vec<Range>,
    /// Blocks whose sub-digests are waited for.
    wanted: u16,
    local_sub_blocks: Option<Vec<SubBlock>>,
    remote_sub_digests: Option<Vec<Digest>>,
}

#[derive(Debug, PartialEq, Eq)]
enum Phase {
    AwaitOpened,
    Running,
    /// `SeedingEnd` is sent.
    Ending,
    Over,
}

/// The source's state machine of one stream.
#[derive(Debug)]
pub struct SourceSession {
    phase: Phase,
    mode: Mode,
    window: usize,
    seeding_id: [u8; 16],
    next_read: u64,
    regions: BTreeMap<u64, Region>,
    progress: Progress,
    scsi_id: String,
    differences: Differences,
}

impl SourceSession {
    /// A session for the pair that `open` names, and the action that begins it.
    pub fn new(open: OpenPair) -> (Self, Action) {
        let session = Self {
            phase: Phase::AwaitOpened,
            mode: open.mode,
            window: 0,
            seeding_id: [0; 16],
            next_read: 0,
            regions: BTreeMap::new(),
            progress: Progress {
                size: open.size,
                ..Progress::default()
            },
            scsi_id: String::new(),
            differences: Differences::default(),
        };
        (session, Action::Send(Message::OpenPair(open)))
    }

    /// How far the session is.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Whether the session is over and takes no more events.
    pub fn is_over(&self) -> bool {
        self.phase == Phase::Over
    }

    /// Whether the target has opened the pair.
    pub fn is_open(&self) -> bool {
        self.phase != Phase::AwaitOpened
    }

    /// SCSI ID of the target disk, once the pair is open.
    pub fn scsi_id(&self) -> &str {
        &self.scsi_id
    }

    /// What a verification found to differ.
    pub fn differences(&self) -> &Differences {
        &self.differences
    }

    /// Takes an event and says what is to be done, in order. Events that arrive after the end are dropped.
    pub fn handle(&mut self, event: Event) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.is_over() {
            return actions;
        }
        if let Err(violation) = self.step(event, &mut actions) {
            self.phase = Phase::Over;
            actions.push(Action::Violation(violation));
        }
        actions
    }

    /// Everything before this offset is done with: the target may have been told so, and nothing behind it.
    fn settled_prefix(&self) -> u64 {
        let open = self.regions.keys().next().copied().unwrap_or(u64::MAX);
        open.min(self.next_read).min(self.progress.size)
    }

    fn step(&mut self, event: Event, actions: &mut Vec<Action>) -> Result<(), String> {
        match event {
            Event::Received(message) => self.received(message, actions)?,
            Event::RegionRead { offset, blocks } => {
                self.region(offset).local = Some(blocks);
                self.compare(offset, actions)?;
            }
            Event::SubDigested { offset, sub_blocks } => {
                self.region(offset).local_sub_blocks = Some(sub_blocks);
                self.compare_sub_blocks(offset, actions)?;
            }
            Event::Digested { offset, extents } => self.send(offset, extents, actions),
        }
        if self.phase == Phase::Running {
            self.read_ahead(actions);
            if self.regions.is_empty() && self.next_read >= self.progress.size {
                self.phase = Phase::Ending;
                let end = match self.mode {
                    Mode::Seed | Mode::Epoch => SeedingEnd {
                        bytes_sent: self.progress.bytes_sent,
                        bytes_zeroed: self.progress.bytes_zeroed,
                    },
                    Mode::Verify => SeedingEnd {
                        bytes_sent: self.differences.bytes(),
                        bytes_zeroed: 0,
                    },
                };
                actions.push(Action::Send(Message::SeedingEnd(end)));
            }
        }
        Ok(())
    }

    fn received(&mut self, message: Message, actions: &mut Vec<Action>) -> Result<(), String> {
        match (&self.phase, message) {
            (_, Message::Ping { token }) => actions.push(Action::Send(Message::Pong { token })),
            (_, Message::Pong { .. }) => {}
            (_, Message::Refused(refusal)) => {
                self.phase = Phase::Over;
                actions.push(Action::Refused(refusal));
            }
            (Phase::AwaitOpened, Message::PairOpened(opened)) => self.opened(opened)?,
            (Phase::Running, Message::Digests(digests)) => {
                self.check_region(digests.offset, u64::from(digests.len))?;
                if self
                    .regions
                    .get(&digests.offset)
                    .is_none_or(|region| region.remote.is_none())
                {
                    self.region(digests.offset).remote = Some(digests.blocks);
                    self.compare(digests.offset, actions)?;
                } else {
                    return Err(format!("the region at {:#x} was announced twice", digests.offset));
                }
            }
            (Phase::Running, Message::SubDigests(sub)) => {
                match self.regions.get_mut(&sub.offset) {
                    Some(region) if region.wanted == sub.blocks && region.remote_sub_digests.is_none() => {
                        region.remote_sub_digests = Some(sub.digests);
                    }
                    _ => {
                        return Err(format!(
                            "sub-digests of the region at {:#x} were not asked for",
                            sub.offset
                        ));
                    }
                }
                self.compare_sub_blocks(sub.offset, actions)?;
            }
            (
                Phase::Running | Phase::Ending,
                message @ (Message::Durable { .. } | Message::Received { .. }),
            ) if self.mode != Mode::Verify => {
                let offset = match (self.mode, &message) {
                    (Mode::Seed, Message::Durable { offset })
                    | (Mode::Epoch, Message::Received { offset }) => *offset,
                    _ => return Err(format!("{} may not come in {:?}", message.name(), self.mode)),
                };
                // A mark beyond what was settled would be stored, and the next seeding would begin behind a gap.
                if offset < self.progress.durable || offset > self.settled_prefix() {
                    return Err(format!(
                        "durable mark {offset} after {}, settled is {} of {}",
                        self.progress.durable,
                        self.settled_prefix(),
                        self.progress.size
                    ));
                }
                self.progress.durable = offset;
                actions.push(Action::StoreMark {
                    seeding_id: self.seeding_id,
                    durable: offset,
                });
            }
            (Phase::Ending, Message::SeedingDone) => {
                if self.mode == Mode::Seed && self.progress.durable != self.progress.size {
                    return Err(format!(
                        "done at durable mark {} of {}",
                        self.progress.durable, self.progress.size
                    ));
                }
                self.phase = Phase::Over;
                // Inside an epoch the next disk follows, or the end of the epoch.
                if self.mode != Mode::Epoch {
                    actions.push(Action::Send(Message::Close));
                }
                actions.push(Action::Finished);
            }
            (phase, message) => return Err(format!("{} may not come in phase {phase:?}", message.name())),
        }
        Ok(())
    }

    fn opened(&mut self, opened: PairOpened) -> Result<(), String> {
        if opened.start > self.progress.size {
            return Err(format!(
                "start {} is past the end of the disk ({} bytes)",
                opened.start, self.progress.size
            ));
        }
        self.phase = Phase::Running;
        self.window = usize::from(opened.region_window);
        self.seeding_id = opened.seeding_id;
        self.next_read = opened.start;
        self.progress.start = opened.start;
        self.progress.durable = opened.start;
        self.scsi_id = opened.scsi_id;
        Ok(())
    }

    /// Reads in ascending order, at most a window ahead. The target reads in the same order, so each region that
    /// is kept here is one that the target has announced or will announce next: neither waits for the other.
    fn read_ahead(&mut self, actions: &mut Vec<Action>) {
        // Regions that the target announced before they were read here are in the map, but not kept yet.
        let mut kept = self.regions.range(..self.next_read).count();
        while kept < self.window && self.next_read < self.progress.size {
            let offset = self.next_read;
            let len = region_len(offset, self.progress.size);
            self.regions.entry(offset).or_default();
            self.next_read = offset + len;
            kept += 1;
            actions.push(Action::Read { offset, len });
        }
    }

    fn check_region(&self, offset: u64, len: u64) -> Result<(), String> {
        let announced = self
            .regions
            .values()
            .filter(|region| region.remote.is_some())
            .count();
        if announced >= self.window {
            return Err(format!("more than {} regions were announced", self.window));
        }
        if offset < self.progress.start
            || offset >= self.progress.size
            || len != region_len(offset, self.progress.size)
        {
            return Err(format!(
                "a region of {len} bytes at {offset:#x} on a disk of {} bytes",
                self.progress.size
            ));
        }
        if offset < self.next_read && !self.regions.contains_key(&offset) {
            return Err(format!(
                "the region at {offset:#x} was announced again after it was done"
            ));
        }
        Ok(())
    }

    fn region(&mut self, offset: u64) -> &mut Region {
        self.regions.entry(offset).or_default()
    }

    /// Compares a region once both sides are known, and asks for detail where blocks differ.
    fn compare(&mut self, offset: u64, actions: &mut Vec<Action>) -> Result<(), String> {
        let len = region_len(offset, self.progress.size);
        let mode = self.mode;
        let region = self.region(offset);
        let (Some(local), Some(remote)) = (&region.local, &region.remote) else {
            return Ok(());
        };
        if local.len() != remote.len() {
            return Err(format!(
                "{} digests for the {} blocks of the region at {offset:#x}",
                remote.len(),
                local.len()
            ));
        }
        let mut block_offset = offset;
        for (index, (here, there)) in local.iter().zip(remote).enumerate() {
            let block_len = BLOCK_SIZE.min(offset + len - block_offset);
            match (here.digest, there) {
                (None, None) => {}
                // A verification names sub-blocks; a seeding does not care how much of the block was zero already.
                (None, Some(_)) if mode == Mode::Verify => region.wanted |= 1 << index,
                (None, Some(_)) => region.zeros.push(Range {
                    offset: block_offset,
                    len: block_len,
                }),
                (Some(digest), None) => {
                    plan_non_zero(here, digest, block_offset, block_len, &mut region.planned)
                }
                (Some(here), Some(there)) if here == *there => {}
                (Some(_), Some(_)) => region.wanted |= 1 << index,
            }
            block_offset += block_len;
        }
        if region.wanted == 0 {
            self.plan_complete(offset, actions);
        } else {
            let blocks = region.wanted;
            actions.push(Action::Send(Message::WantSubDigests(WantSubDigests {
                offset,
                blocks,
            })));
            actions.push(Action::SubDigest { offset, blocks });
        }
        Ok(())
    }

    /// Compares the sub-blocks of a region once both sides are known.
    fn compare_sub_blocks(&mut self, offset: u64, actions: &mut Vec<Action>) -> Result<(), String> {
        let len = region_len(offset, self.progress.size);
        let region = self.region(offset);
        let (Some(local), Some(remote)) = (&region.local_sub_blocks, &region.remote_sub_digests) else {
            return Ok(());
        };
        if local.len() != remote.len() {
            return Err(format!(
                "{} sub-digests where {} were asked for at {offset:#x}",
                remote.len(),
                local.len()
            ));
        }
        let mut pairs = local.iter().zip(remote);
        for index in 0..u16::BITS {
            if region.wanted & (1 << index) == 0 {
                continue;
            }
            let block_offset = offset + u64::from(index) * BLOCK_SIZE;
            let block_len = BLOCK_SIZE.min(offset + len - block_offset);
            let sub_blocks = sub_block_count(usize::try_from(block_len).expect("a block is 64 KiB at most"));
            let mut runs = Runs::new(block_offset, block_len);
            for (here, there) in pairs.by_ref().take(sub_blocks) {
                runs.next(if here.digest == *there {
                    None
                } else if here.zero {
                    Some(Kind::Zero)
                } else {
                    Some(Kind::Data)
                });
            }
            runs.finish(&mut region.planned, &mut region.zeros);
        }
        self.plan_complete(offset, actions);
        Ok(())
    }

    /// Everything that differs in a region is known: report it, or send it.
    fn plan_complete(&mut self, offset: u64, actions: &mut Vec<Action>) {
        let region = self.regions.entry(offset).or_default();
        region.planned.sort_unstable_by_key(|extent| extent.offset);
        region.zeros.sort_unstable_by_key(|range| range.offset);
        let planned = std::mem::take(&mut region.planned);
        if self.mode == Mode::Verify {
            let data = planned.iter().map(|extent| Range {
                offset: extent.offset,
                len: u64::from(extent.len),
            });
            for range in data.chain(region.zeros.iter().copied()) {
                self.differences.insert(range);
            }
        }
        if self.mode == Mode::Verify || planned.is_empty() {
            self.send(offset, Vec::new(), actions);
        } else if let Some(extents) = planned.iter().map(complete).collect::<Option<Vec<_>>>() {
            self.send(offset, extents, actions);
        } else {
            actions.push(Action::Digest {
                offset,
                extents: planned,
            });
        }
    }

    fn send(&mut self, offset: u64, extents: Vec<Extent>, actions: &mut Vec<Action>) {
        let Some(region) = self.regions.remove(&offset) else {
            return;
        };
        if self.mode != Mode::Verify {
            if !extents.is_empty() {
                self.progress.bytes_sent += extents.iter().map(|extent| u64::from(extent.len)).sum::<u64>();
                actions.push(Action::SendExtents {
                    region: offset,
                    extents,
                });
            }
            if !region.zeros.is_empty() {
                self.progress.bytes_zeroed += region.zeros.iter().map(|range| range.len).sum::<u64>();
                actions.push(Action::Send(Message::ZeroRanges(merge(region.zeros))));
            }
        }
        self.progress.bytes_settled += region_len(offset, self.progress.size);
        actions.push(Action::Send(Message::RegionDone { offset }));
        actions.push(Action::Release { offset });
    }
}

/// What is not zero of a block that the target holds as zero.
fn plan_non_zero(block: &Block, digest: Digest, offset: u64, len: u64, planned: &mut Vec<PlannedExtent>) {
    if block.zero_sub_blocks == 0 {
        let len = u32::try_from(len).expect("a block is 64 KiB at most");
        planned.push(PlannedExtent {
            offset,
            len,
            digest: Some(digest),
        });
        return;
    }
    let mut runs = Runs::new(offset, len);
    for index in 0..SUB_BLOCKS_PER_BLOCK {
        runs.next(if block.zero_sub_blocks & (1 << index) == 0 {
            Some(Kind::Data)
        } else {
            None
        });
    }
    runs.finish(planned, &mut Vec::new());
}

fn complete(planned: &PlannedExtent) -> Option<Extent> {
    planned.digest.map(|digest| Extent {
        offset: planned.offset,
        len: planned.len,
        digest,
    })
}

fn merge(ranges: Vec<Range>) -> Vec<Range> {
    let mut merged: Vec<Range> = Vec::with_capacity(ranges.len());
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.offset + last.len == range.offset => last.len += range.len,
            _ => merged.push(range),
        }
    }
    merged
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Data,
    Zero,
}

/// Joins neighbouring sub-blocks of one block that are to be treated alike.
struct Runs {
    position: u64,
    end: u64,
    runs: Vec<(Kind, Range)>,
    last: Option<Kind>,
}

impl Runs {
    fn new(offset: u64, len: u64) -> Self {
        Self {
            position: offset,
            end: offset + len,
            runs: Vec::new(),
            last: None,
        }
    }

    fn next(&mut self, kind: Option<Kind>) {
        let len = SUB_BLOCK_SIZE.min(self.end - self.position);
        if len == 0 {
            return;
        }
        if let Some(kind) = kind {
            match self.runs.last_mut() {
                Some((_, range)) if self.last == Some(kind) => range.len += len,
                _ => self.runs.push((
                    kind,
                    Range {
                        offset: self.position,
                        len,
                    },
                )),
            }
        }
        self.last = kind;
        self.position += len;
    }

    fn finish(self, planned: &mut Vec<PlannedExtent>, zeros: &mut Vec<Range>) {
        for (kind, range) in self.runs {
            match kind {
                Kind::Data => {
                    let len = u32::try_from(range.len).expect("a run stays inside its block");
                    planned.push(PlannedExtent {
                        offset: range.offset,
                        len,
                        digest: None,
                    });
                }
                Kind::Zero => zeros.push(range),
            }
        }
    }
}
