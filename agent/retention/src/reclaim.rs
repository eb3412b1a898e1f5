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

use crate::codec::{u32_of, u64_of, usize_of};
use crate::error::StoreError;
use crate::ingest::Batch;
use crate::log::{Located, Purpose};
use crate::planted::Bug;
use crate::record::{Entry, Image};
use crate::storage::Storage;
use crate::store::Store;
use crate::types::{BLOCK_SIZE, DiskIndex, EpochNumber, digest};

/// Most blocks looked up at once: bounds memory.
const BLOCKS_AT_ONCE: usize = 16 * 1024;

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
struct Live {
    parts: Vec<Entry>,
    data_blocks: u64,
    /// Newest images that are not live: their blocks are not covered any more.
    uncovered: Vec<(DiskIndex, u64)>,
}

impl<S: Storage> Store<S> {
    /// Looks at the oldest sealed segment that was not looked at since points changed, and drops it when at most
    /// `live_percent` of it is live, after copying that. Call it until complete; between two calls everything else may happen.
    ///
    /// # Errors
    /// When the store is full (only when its reserve is, too), damaged where it would have to be copied, or fails.
    pub fn reclaim_step(&mut self, live_percent: u64) -> Result<Reclaimed, StoreError> {
        self.log.check()?;
        let mut done = Reclaimed::default();
        if self.examined.is_empty() {
            // What is copied in this round is not looked at again in it.
            self.horizon = self.log.segments.keys().next_back().copied().unwrap_or_default();
        }
        let Some(seq) = self.next_victim() else {
            done.complete = true;
            return Ok(done);
        };
        done.looked_at = 1;
        self.examined.insert(seq);
        let live = self.live_parts(seq)?;
        let bytes = self.log.segments.get(&seq).map_or(0, |segment| segment.bytes);
        let blocks = (bytes / crate::types::BLOCK).max(1);
        if live.data_blocks * 100 > blocks * live_percent {
            return Ok(done);
        }
        match self.relocate(seq, &live.parts) {
            Ok(copied) => done.copied = copied,
            // What cannot be read cannot be moved; the rest of the log can still be cleaned.
            Err(StoreError::Damaged { .. }) => return Ok(done),
            Err(err) => return Err(err),
        }
        self.log.drop_segments(&mut self.state, &[seq])?;
        for (disk, block) in live.uncovered {
            self.covered[disk.at()].remove(block);
        }
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
                    segment.trailer.is_some() && segment.last_epoch <= self.state.applied
                })
        })
    }

    fn live_parts(&mut self, seq: u64) -> Result<Live, StoreError> {
        let entries = self.log.entries(seq)?;
        let mut live = Live {
            parts: Vec::new(),
            data_blocks: 0,
            uncovered: Vec::new(),
        };
        for entry in entries.iter() {
            if !self.state.counts(entry.epoch) {
                continue;
            }
            let mut start = entry.block;
            while start < entry.end() {
                let end = entry.end().min(start + u64_of(BLOCKS_AT_ONCE));
                self.live_of(&Located { seq, entry: *entry }, start, end, &mut live)?;
                start = end;
            }
        }
        Ok(live)
    }

    /// Adds the live runs of blocks `start..end` of one extent.
    fn live_of(&mut self, own: &Located, start: u64, end: u64, live: &mut Live) -> Result<(), StoreError> {
        let blocks: Vec<u64> = (start..end).collect();
        let mut around = vec![Around::default(); blocks.len()];
        let state = &self.state;
        self.log
            .for_each_touching(own.entry.disk, &blocks, |found, range| {
                if found != *own && state.counts(found.entry.epoch) {
                    for cell in &mut around[range] {
                        cell.see(own, &found);
                    }
                }
            })?;
        let mut run: Option<(u64, u64)> = None;
        for (block, around) in blocks.iter().zip(&around) {
            if self.is_live(own, around) {
                run = match run {
                    Some((from, to)) if to == *block => Some((from, block + 1)),
                    other => {
                        push_run(live, &own.entry, other);
                        Some((*block, block + 1))
                    }
                };
            } else if own.entry.image == Image::After && around.next_after.is_none() && !around.copied {
                live.uncovered.push((own.entry.disk, *block));
            }
        }
        push_run(live, &own.entry, run);
        Ok(())
    }

    fn is_live(&self, own: &Located, around: &Around) -> bool {
        if around.copied {
            return false;
        }
        let epoch = own.entry.epoch;
        let point_in =
            |from: EpochNumber, to: EpochNumber| self.state.points.range(from..to).next().is_some();
        match own.entry.image {
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

    /// Copies extents to the end of the log.
    fn relocate(&mut self, seq: u64, parts: &[Entry]) -> Result<u64, StoreError> {
        let originals = self.log.entries(seq)?;
        let piece_max = self.log.extent_bytes_max();
        let mut batches = [Batch::default(), Batch::default()];
        let mut copied = 0;
        for part in parts {
            let disk = self.state.disks[part.disk.at()].clone();
            let mut entry = Entry {
                relocated: true,
                ..*part
            };
            let mut content = Vec::new();
            if !part.zero {
                let whole = originals
                    .iter()
                    .find(|whole| whole.ordinal == part.ordinal)
                    .copied()
                    .unwrap_or(*part);
                let bytes = self.read_or_mark(&Located { seq, entry: whole }, &disk)?;
                let from = usize_of(part.block - whole.block) * BLOCK_SIZE;
                let len = crate::log::real_len(part, &disk);
                content = bytes[from..from + len].to_vec();
                entry.digest = digest(&content);
                copied += u64_of(content.len());
            }
            let image = usize::from(part.image == Image::Base);
            if batches[image].is_full(content.len(), piece_max) {
                self.append_batch(&mut batches[image])?;
            }
            batches[image].push(entry, &content);
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
            Purpose::Housekeeping,
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
    if !entry.zero {
        live.data_blocks += u64::from(count);
    }
    live.parts.push(Entry {
        block: from,
        count,
        data: if entry.zero {
            0
        } else {
            entry.data + u32_of(usize_of(from - entry.block))
        },
        ..*entry
    });
}
