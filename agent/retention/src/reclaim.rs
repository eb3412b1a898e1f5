//! Getting space back: segments that nothing needs are dropped, sparse ones are copied together first.
//!
//! An image is *live* while dropping it would change what some point, or a later one, reads:
//!
//! * An after-image that was overwritten by a later epoch: while a point lies between the two.
//! * The newest after-image of a block: while its epoch is younger than the oldest point, since the next overwrite would
//!   otherwise have to save what the log already has. An older one is on the disk; when it goes, the block is no
//!   longer covered, and its next overwrite takes a before-image.
//! * A before-image: while a point lies between the image before it and the epoch that it was taken for.
//!
//! One exception keeps this sound: the newest image stays while an older one of the same block is still in the log, dead or
//! not, since a reader would find that instead of the disk.
//!
//! Order: live images are copied to the end of the log; a record that takes the old segments out of the log follows them;
//! one flush; only then are files removed. A crash before the flush leaves two equal copies, after it files that the next open
//! removes. The newest sealed segment is never dropped: with the one being written it is what the state can be read from.

use std::collections::{BTreeMap, VecDeque};

use crate::codec::{u32_of, u64_of, usize_of};
use crate::error::StoreError;
use crate::ingest::Batch;
use crate::log::{Located, Purpose};
use crate::planted::Bug;
use crate::record::{Entry, Image};
use crate::storage::Storage;
use crate::store::Store;
use crate::types::{BLOCK, BLOCK_SIZE, DiskIndex, EpochNumber, digest};

/// Most blocks looked up at once: bounds memory.
const BLOCKS_AT_ONCE: u64 = 16 * 1024;
/// One step copies about this part of a segment: 4 MiB of 64.
const COPY_PART: u64 = 16;

/// What one step of [`Store::reclaim_step`] did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reclaimed {
    /// Segments looked at.
    pub looked_at: u64,
    /// Segments dropped.
    pub segments: u64,
    /// Bytes of those.
    pub freed: u64,
    /// Bytes of live data that were copied.
    pub copied: u64,
    /// Every segment was looked at since points changed last.
    pub complete: bool,
}

/// Live parts of a segment.
#[derive(Default)]
struct Live {
    parts: Vec<Entry>,
    data_blocks: u64,
    /// Newest images that are not live: their blocks are not covered any more.
    uncovered: Vec<(DiskIndex, u64)>,
}

/// A segment whose live parts are being copied, a few in each step. What is live when that begins may die meanwhile, and is
/// copied for nothing; what is dead stays so: a new point lies behind every image that was there.
pub(crate) struct Moving {
    seq: u64,
    parts: VecDeque<Entry>,
}

/// Blocks of one extent.
#[derive(Clone, Copy)]
struct Piece {
    entry: Entry,
    start: u64,
    end: u64,
}

impl<S: Storage> Store<S> {
    /// Looks at the oldest sealed segment that was not looked at since points changed, and, when at most `live_percent` of it
    /// is live, begins to copy that, or goes on with copying, a sixteenth of a segment; drops the segment when all of it is copied. Call it
    /// until complete; between two calls everything else may happen.
    ///
    /// # Errors
    /// When the store fails.
    pub fn reclaim_step(&mut self, live_percent: u64) -> Result<Reclaimed, StoreError> {
        self.log.check()?;
        if let Some(moving) = self.moving.take() {
            return self.move_on(moving);
        }
        let mut done = Reclaimed::default();
        if self.log.doubt.is_some() {
            // What is lost may have been what the rest is needed for; and the evidence has to stay.
            done.complete = true;
            return Ok(done);
        }
        if self.examined.is_empty() {
            // What is copied in this round is not looked at again in it.
            self.horizon = self.log.segments.keys().next_back().copied().unwrap_or_default();
        }
        let Some(seq) = self.next_victim() else {
            done.complete = true;
            return Ok(done);
        };
        self.examined.insert(seq);
        let live = self.live_parts(seq)?;
        let bytes = self.log.segments.get(&seq).map_or(0, |segment| segment.bytes);
        let blocks = (bytes / BLOCK).max(1);
        if live.data_blocks * 100 > blocks * live_percent {
            done.looked_at = 1;
            return Ok(done);
        }
        // Before anything is copied: an overwrite that comes in between must take the before-image that this segment no
        // longer stands for.
        for (disk, block) in live.uncovered {
            self.covered[disk.at()].remove(block);
        }
        let mut done = self.move_on(Moving {
            seq,
            parts: live.parts.into(),
        })?;
        done.looked_at = 1;
        Ok(done)
    }

    /// Copies some of the live parts; drops the segment after the last.
    fn move_on(&mut self, mut moving: Moving) -> Result<Reclaimed, StoreError> {
        let mut done = Reclaimed::default();
        match self.relocate(&mut moving) {
            Ok(copied) => done.copied = copied,
            // What cannot be read cannot be moved, and what has no room has to wait; the rest of the log can still be
            // cleaned. What was copied already counts in place of its original.
            Err(StoreError::Damaged { .. } | StoreError::Full { .. }) => return Ok(done),
            Err(err) => return Err(err),
        }
        if !moving.parts.is_empty() {
            self.moving = Some(moving);
            return Ok(done);
        }
        let bytes = self
            .log
            .segments
            .get(&moving.seq)
            .map_or(0, |segment| segment.bytes);
        match self.log.drop_segments(&mut self.state, &[moving.seq]) {
            Ok(()) => {}
            Err(StoreError::Full { .. }) => return Ok(done),
            Err(err) => return Err(err),
        }
        self.drop_bookkeeping()?;
        done.segments = 1;
        done.freed = bytes;
        Ok(done)
    }

    /// Reclaims what can be had with little copying.
    ///
    /// # Errors
    /// As [`Store::reclaim_step`].
    pub fn reclaim(&mut self, live_percent: u64) -> Result<Reclaimed, StoreError> {
        let mut sum = Reclaimed::default();
        loop {
            let step = self.reclaim_step(live_percent)?;
            sum.looked_at += step.looked_at;
            sum.segments += step.segments;
            sum.freed += step.freed;
            sum.copied += step.copied;
            if step.complete {
                sum.complete = true;
                return Ok(sum);
            }
        }
    }

    /// Drops sealed segments that hold no image. A store that is full writes many small ones; without this they would use
    /// up what is held back for them.
    pub(crate) fn drop_bookkeeping(&mut self) -> Result<(), StoreError> {
        let active = self.log.active_seq();
        let sealed: Vec<(u64, bool)> = self
            .log
            .segments
            .iter()
            .filter(|(seq, _)| Some(**seq) != active)
            .map(|(seq, segment)| {
                let is_empty = segment
                    .trailer
                    .as_ref()
                    .is_some_and(|trailer| trailer.entries == 0);
                (*seq, is_empty)
            })
            .collect();
        let Some((_, older)) = sealed.split_last() else {
            return Ok(());
        };
        let empty: Vec<u64> = older
            .iter()
            .filter(|(_, is_empty)| *is_empty)
            .map(|(seq, _)| *seq)
            .collect();
        match self.log.drop_segments(&mut self.state, &empty) {
            Err(StoreError::Full { .. }) => Ok(()),
            dropped => dropped,
        }
    }

    fn next_victim(&self) -> Option<u64> {
        let active = self.log.active_seq();
        let sealed: Vec<u64> = self
            .log
            .segments
            .keys()
            .copied()
            .filter(|seq| Some(*seq) != active)
            .collect();
        let newest = sealed.last().copied();
        sealed.into_iter().find(|seq| {
            Some(*seq) != newest
                && *seq <= self.horizon
                && !self.examined.contains(seq)
                && self.log.segments.get(seq).is_some_and(|segment| {
                    segment.trailer.is_some() && !self.is_awaited(segment.first_epoch, segment.last_epoch)
                })
        })
    }

    /// Whether any of these epochs is being received, or complete and not on the disks yet. One that was given up is neither,
    /// however new it is.
    fn is_awaited(&self, first: EpochNumber, last: EpochNumber) -> bool {
        let is_open = |open: EpochNumber| first <= open && open <= last;
        if self.open.as_ref().is_some_and(|open| is_open(open.number)) {
            return true;
        }
        let from = (self.state.applied.0 + 1).max(first.0);
        (from..=last.0.min(self.state.committed.0)).any(|epoch| self.state.counts(EpochNumber(epoch)))
    }

    fn live_parts(&mut self, seq: u64) -> Result<Live, StoreError> {
        let entries = self.log.entries(seq)?;
        let mut live = Live::default();
        // Many extents are looked up with one walk through the others: one walk each would be the square of their number.
        let mut group: Vec<Piece> = Vec::new();
        let mut blocks = 0;
        for entry in entries.iter() {
            if !self.state.counts(entry.epoch) {
                continue;
            }
            if group.last().is_some_and(|piece| piece.entry.disk != entry.disk) {
                self.live_of(seq, &std::mem::take(&mut group), &mut live)?;
                blocks = 0;
            }
            let mut start = entry.block;
            while start < entry.end() {
                let end = entry.end().min(start + BLOCKS_AT_ONCE - blocks);
                group.push(Piece {
                    entry: *entry,
                    start,
                    end,
                });
                blocks += end - start;
                start = end;
                if blocks == BLOCKS_AT_ONCE {
                    self.live_of(seq, &std::mem::take(&mut group), &mut live)?;
                    blocks = 0;
                }
            }
        }
        self.live_of(seq, &group, &mut live)?;
        Ok(live)
    }

    /// Adds the live runs of blocks of some pieces of one disk.
    fn live_of(&mut self, seq: u64, pieces: &[Piece], live: &mut Live) -> Result<(), StoreError> {
        let Some(disk) = pieces.first().map(|piece| piece.entry.disk) else {
            return Ok(());
        };
        // Pieces may overlap: a block is there once for each piece that has it.
        let mut cells: Vec<(u64, usize)> = pieces
            .iter()
            .enumerate()
            .flat_map(|(at, piece)| (piece.start..piece.end).map(move |block| (block, at)))
            .collect();
        cells.sort_unstable();
        let blocks: Vec<u64> = cells.iter().map(|(block, _)| *block).collect();
        let mut around = vec![Around::default(); cells.len()];
        let own = |at: usize| Located {
            seq,
            entry: pieces[at].entry,
        };
        let state = &self.state;
        self.log.for_each_touching(disk, &blocks, |found, range| {
            if !state.counts(found.entry.epoch) {
                return;
            }
            for (around, (_, at)) in around[range.clone()].iter_mut().zip(&cells[range]) {
                let own = own(*at);
                if found != own {
                    around.see(&own, &found);
                }
            }
        })?;
        let mut of_piece: Vec<Vec<Around>> = vec![Vec::new(); pieces.len()];
        for ((_, at), around) in cells.iter().zip(around) {
            of_piece[*at].push(around);
        }
        for (piece, around) in pieces.iter().zip(&of_piece) {
            let mut run: Option<(u64, u64)> = None;
            for (block, around) in (piece.start..piece.end).zip(around) {
                if self.is_live(&piece.entry, around) {
                    run = match run {
                        Some((from, to)) if to == block => Some((from, block + 1)),
                        other => {
                            push_run(live, &piece.entry, other);
                            Some((block, block + 1))
                        }
                    };
                } else if piece.entry.image == Image::After && around.next_after.is_none() && !around.copied {
                    live.uncovered.push((disk, block));
                }
            }
            push_run(live, &piece.entry, run);
        }
        Ok(())
    }

    fn is_live(&self, own: &Entry, around: &Around) -> bool {
        if around.copied {
            return false;
        }
        let epoch = own.epoch;
        let point_in =
            |from: EpochNumber, to: EpochNumber| self.state.points.range(from..to).next().is_some();
        match own.image {
            Image::Base => point_in(around.before, epoch),
            Image::After => match around.next_after {
                Some(_) if Bug::PruneNeeded.live() => false,
                Some(next) => point_in(epoch, next),
                None => {
                    let oldest = self.state.points.keys().next();
                    oldest.is_some_and(|oldest| epoch > *oldest)
                        || (around.older_after && !Bug::NewestDropped.live())
                }
            },
        }
    }

    /// Copies some extents to the end of the log, and takes them out of what is to be moved.
    fn relocate(&mut self, moving: &mut Moving) -> Result<u64, StoreError> {
        let originals = self.log.entries(moving.seq)?;
        let originals: BTreeMap<u32, &Entry> = originals.iter().map(|whole| (whole.ordinal, whole)).collect();
        let piece_max = self.log.extent_bytes_max();
        let mut batches = [Batch::default(), Batch::default()];
        let mut copied = 0;
        while copied < self.log.segment_size / COPY_PART
            && let Some(part) = moving.parts.pop_front()
        {
            let disk = self.state.disks[part.disk.at()].clone();
            let mut entry = Entry {
                relocated: true,
                ..part
            };
            let mut content = Vec::new();
            if !part.zero {
                let whole = originals.get(&part.ordinal).map_or(part, |whole| **whole);
                let located = Located {
                    seq: moving.seq,
                    entry: whole,
                };
                let bytes = self.read_or_mark(&located, &disk)?;
                let from = usize_of(part.block - whole.block) * BLOCK_SIZE;
                let len = crate::log::real_len(&part, &disk);
                content = bytes[from..from + len].to_vec();
                entry.digest = digest(&content);
                copied += u64_of(content.len());
            }
            let image = usize::from(part.image == Image::Base);
            if batches[image].is_full(content.len(), piece_max) {
                self.append_batch(&mut batches[image])?;
            }
            batches[image].push(entry, &content, self.packing);
        }
        for batch in &mut batches {
            self.append_batch(batch)?;
        }
        Ok(copied)
    }

    fn append_batch(&mut self, batch: &mut Batch) -> Result<(), StoreError> {
        if batch.is_empty() {
            return Ok(());
        }
        let (mut entries, data) = batch.take();
        self.log.append_images(
            &mut self.state,
            Purpose::Copying,
            EpochNumber(0),
            &mut entries,
            &data,
        )?;
        Ok(())
    }
}

/// What else the log has of a block.
#[derive(Debug, Clone, Copy, Default)]
struct Around {
    /// The same image is there again and counts in place of this one.
    copied: bool,
    /// The epoch that overwrote it.
    next_after: Option<EpochNumber>,
    /// There is an older after-image.
    older_after: bool,
    /// The newest epoch before it that has any image.
    before: EpochNumber,
}

impl Around {
    fn see(&mut self, own: &Located, other: &Located) {
        let (mine, its) = (own.entry.epoch, other.entry.epoch);
        if own.entry.image == other.entry.image && mine == its {
            self.copied |= other.order() > own.order();
            // An older one of the same epoch would be found when this one goes.
            self.older_after |= own.entry.image == Image::After && other.order() < own.order();
            return;
        }
        if its < mine {
            self.before = self.before.max(its);
        }
        if other.entry.image == Image::After {
            if its > mine {
                self.next_after = Some(self.next_after.map_or(its, |next| next.min(its)));
            } else if its < mine {
                self.older_after = true;
            }
        }
    }
}

fn push_run(live: &mut Live, entry: &Entry, run: Option<(u64, u64)>) {
    let Some((from, to)) = run else { return };
    let count = u32_of(usize_of(to - from));
    // What it takes now: how well a part of it packs is seen when it is copied.
    live.data_blocks += (u64::from(count) * u64::from(entry.stored())).div_ceil(u64::from(entry.count));
    live.parts.push(Entry {
        block: from,
        count,
        ..*entry
    });
}
