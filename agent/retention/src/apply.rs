//! Complete epochs on their way to the disks.
//!
//! A job takes some complete epochs at once; of several images of a block only the newest is written. It works in steps
//! that the caller sizes, ascending on each disk:
//!
//! 1. Blocks that a point on offer may still need, and that are overwritten for the first time since that point, are read.
//! 2. They are appended to the log as before-images, and the log is flushed.
//! 3. The step's blocks are written in place.
//! 4. After the last step the disks are flushed, and the epoch is noted as applied. The note itself need not be durable:
//!    applying again is harmless.
//!
//! A crash after 2 leaves before-images of blocks that were not overwritten: they show what the disk shows. A crash in 3
//! leaves a mixture, which no reader sees: when the store is opened, the same epochs are applied again before
//! anything else is asked of the disks, and the before-images that are there are not taken a second time.
//!
//! A block needs no before-image while its newest image is kept in the log (it is *covered*): each point finds
//! either an image as old as itself, or the before-image that was taken when the first of them was applied.

use std::collections::{BTreeSet, VecDeque};

use crate::codec::{u64_of, usize_of};
use crate::error::StoreError;
use crate::ingest::Batch;
use crate::log::{Located, Purpose};
use crate::planted::Bug;
use crate::ranges::RangeMap;
use crate::record::{Entry, Image, Kind};
use crate::storage::{Storage, TargetDisk};
use crate::store::Store;
use crate::types::{BLOCK, BLOCK_SIZE, DiskIndex, EpochNumber, digest};

/// Most blocks of one before-image: a piece that is worth reading at once.
const BASE_BLOCKS_MAX: u64 = 256;
/// Most bytes of epochs that one job takes, so that its plan stays small; one epoch is taken whatever its size.
const JOB_BYTES_MAX: u64 = 256 << 20;

/// Blocks to write, and where their content is.
#[derive(Debug, Clone, Copy)]
struct Piece {
    disk: DiskIndex,
    start: u64,
    end: u64,
    source: Located,
    /// The oldest epoch of the job that changes them.
    first_epoch: EpochNumber,
}

/// Epochs being applied.
#[derive(Debug)]
pub(crate) struct Job {
    pub first_epoch: EpochNumber,
    last_epoch: EpochNumber,
    queue: VecDeque<Piece>,
    touched: BTreeSet<DiskIndex>,
}

impl Job {
    pub(crate) fn left_bytes(&self) -> u64 {
        self.queue
            .iter()
            .map(|piece| (piece.end - piece.start) * BLOCK)
            .sum()
    }
}

/// How far applying is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ApplyProgress {
    /// Bytes written to the disks in this step.
    pub written: u64,
    /// Bytes of before-images taken in this step.
    pub saved: u64,
    /// The newest epoch that is on the disks and flushed.
    pub applied: EpochNumber,
    /// Nothing is left to do.
    pub up_to_date: bool,
}

impl<S: Storage> Store<S> {
    /// Does one step of applying, of about `budget` bytes. Call it until [`ApplyProgress::up_to_date`]; between two calls
    /// epochs may come in and points may be read.
    ///
    /// # Errors
    /// [`StoreError::Full`] when there is no room for before-images: nothing was overwritten, and after dropping
    /// points it goes on. Errors of a disk, or damage of what has to be written, stop the store.
    pub fn apply_step(
        &mut self,
        disks: &[&dyn TargetDisk],
        budget: u64,
    ) -> Result<ApplyProgress, StoreError> {
        self.check_targets(disks)?;
        self.log.check()?;
        if self.job.is_none() {
            self.job = self.plan();
        }
        let mut progress = ApplyProgress {
            written: 0,
            saved: 0,
            applied: self.state.applied,
            up_to_date: self.job.is_none(),
        };
        let Some(mut job) = self.job.take() else {
            return Ok(progress);
        };
        let result = self.step(&mut job, disks, budget, &mut progress);
        let ended = matches!(result, Ok(true));
        if !ended {
            self.job = Some(job);
        }
        result?;
        progress.applied = self.state.applied;
        progress.up_to_date = self.job.is_none() && self.pending.is_empty();
        Ok(progress)
    }

    /// Applies everything that is complete.
    ///
    /// # Errors
    /// As [`Store::apply_step`].
    pub fn apply_all(&mut self, disks: &[&dyn TargetDisk], budget: u64) -> Result<(), StoreError> {
        while !self.apply_step(disks, budget)?.up_to_date {}
        Ok(())
    }

    fn plan(&mut self) -> Option<Job> {
        let first_epoch = *self.pending.keys().next()?;
        let mut last_epoch = first_epoch;
        let mut bytes = 0;
        let mut newest: Vec<RangeMap<Located>> = vec![RangeMap::default(); self.state.disks.len()];
        let mut oldest: Vec<RangeMap<EpochNumber>> = vec![RangeMap::default(); self.state.disks.len()];
        while let Some((&epoch, images)) = self.pending.first_key_value() {
            bytes += images
                .iter()
                .map(|i| u64::from(i.entry.count) * BLOCK)
                .sum::<u64>();
            if epoch > first_epoch && bytes > JOB_BYTES_MAX {
                break;
            }
            last_epoch = epoch;
            let (_, images) = self.pending.pop_first().expect("it was just looked at");
            for image in images {
                let (start, end) = (image.entry.block, image.entry.end());
                let disk = image.entry.disk.at();
                oldest[disk].insert_absent(start, end, &epoch);
                if Bug::FirstWriteWins.live() {
                    newest[disk].insert_absent(start, end, &image);
                } else {
                    newest[disk].insert(start, end, image);
                }
            }
        }
        let mut queue = VecDeque::new();
        for (newest, oldest) in newest.iter().zip(&oldest) {
            for (start, end, source) in newest.iter() {
                for (start, end, first_epoch) in oldest.overlapping(start, end) {
                    queue.push_back(Piece {
                        disk: source.entry.disk,
                        start,
                        end,
                        source: *source,
                        first_epoch: *first_epoch,
                    });
                }
            }
        }
        Some(Job {
            first_epoch,
            last_epoch,
            touched: queue.iter().map(|piece| piece.disk).collect(),
            queue,
        })
    }

    /// One step; `true` when the job has ended.
    fn step(
        &mut self,
        job: &mut Job,
        disks: &[&dyn TargetDisk],
        budget: u64,
        progress: &mut ApplyProgress,
    ) -> Result<bool, StoreError> {
        let pieces = take(&mut job.queue, budget);
        let done = self.step_pieces(&pieces, disks, progress);
        if let Err(err) = done {
            // Nothing is lost: what was written is written again.
            for piece in pieces.into_iter().rev() {
                job.queue.push_front(piece);
            }
            return Err(err);
        }
        if !job.queue.is_empty() {
            return Ok(false);
        }
        for index in &job.touched {
            if !Bug::AppliedBeforeFlush.live() {
                disks[index.at()]
                    .flush()
                    .map_err(|err| self.disk_failed("flushing", *index, 0, err))?;
            }
        }
        self.state.applied = job.last_epoch;
        self.recent.forget_until(job.last_epoch);
        let noted = self.log.append_meta(
            &mut self.state,
            Purpose::Ordinary,
            Kind::Applied,
            job.last_epoch,
            &[],
        );
        match noted {
            // It is a hint, and a full store must not stop for it.
            Ok(()) | Err(StoreError::Full { .. }) => Ok(true),
            Err(err) => Err(err),
        }
    }

    fn step_pieces(
        &mut self,
        pieces: &[Piece],
        disks: &[&dyn TargetDisk],
        progress: &mut ApplyProgress,
    ) -> Result<(), StoreError> {
        if !Bug::BaseAfterData.live() {
            progress.saved += self.save(pieces, disks)?;
        }
        for (index, disk) in disks.iter().enumerate() {
            let of_disk = |piece: &&Piece| piece.disk.at() == index;
            let own: Vec<&Piece> = pieces.iter().filter(of_disk).collect();
            if !own.is_empty() {
                progress.written += self.write_in_place(&own, *disk)?;
            }
        }
        if Bug::BaseAfterData.live() {
            progress.saved += self.save(pieces, disks)?;
        }
        for piece in pieces {
            self.covered[piece.disk.at()].insert_range(piece.start..piece.end);
        }
        Ok(())
    }

    /// Takes the before-images that these pieces need, and makes them durable.
    fn save(&mut self, pieces: &[Piece], disks: &[&dyn TargetDisk]) -> Result<u64, StoreError> {
        let Some(oldest) = self.state.points.keys().next().copied() else {
            return Ok(0);
        };
        if Bug::NoBase.live() {
            return Ok(0);
        }
        let mut wanted: Vec<(DiskIndex, u64, u64, EpochNumber)> = Vec::new();
        for piece in pieces.iter().filter(|piece| oldest < piece.first_epoch) {
            let covered = &self.covered[piece.disk.at()];
            let mut at = piece.start;
            while at < piece.end {
                if covered.contains(at) {
                    at += 1;
                    continue;
                }
                let stop = piece.end.min(at + BASE_BLOCKS_MAX);
                let end = (at..stop).find(|block| covered.contains(*block)).unwrap_or(stop);
                match wanted.last_mut() {
                    Some((disk, start, last, epoch))
                        if *disk == piece.disk
                            && *last == at
                            && *epoch == piece.first_epoch
                            && end - *start <= BASE_BLOCKS_MAX =>
                    {
                        *last = end;
                    }
                    _ => wanted.push((piece.disk, at, end, piece.first_epoch)),
                }
                at = end;
            }
        }
        if wanted.is_empty() {
            return Ok(0);
        }
        let mut saved = 0;
        let mut batch = BaseBatch::default();
        // All at once, so that the disk sees many requests; the step's budget bounds what is held in memory.
        let contents = self.read_old(&wanted, disks)?;
        for ((disk, start, _, epoch), content) in wanted.iter().zip(&contents) {
            saved += u64_of(content.len());
            self.save_extent(&mut batch, *disk, *start, *epoch, content)?;
        }
        self.flush_bases(&mut batch)?;
        if !Bug::BaseNotSynced.live() {
            self.log.sync()?;
        }
        for (disk, start, end, _) in wanted {
            self.covered[disk.at()].insert_range(start..end);
        }
        Ok(saved)
    }

    fn read_old(
        &mut self,
        group: &[(DiskIndex, u64, u64, EpochNumber)],
        disks: &[&dyn TargetDisk],
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut contents: Vec<Vec<u8>> = group
            .iter()
            .map(|(disk, start, end, _)| {
                let size = self.state.disks[disk.at()].size;
                vec![0; usize_of((end * BLOCK).min(size) - start * BLOCK)]
            })
            .collect();
        for (index, disk) in disks.iter().enumerate() {
            let mut pieces: Vec<(u64, &mut [u8])> = group
                .iter()
                .zip(&mut contents)
                .filter(|((disk, ..), _)| disk.at() == index)
                .map(|((_, start, ..), content)| (start * BLOCK, content.as_mut_slice()))
                .collect();
            let Some(offset) = pieces.first().map(|(offset, _)| *offset) else {
                continue;
            };
            if let Err(err) = disk.read_many(&mut pieces) {
                let disk = group.iter().find(|(disk, ..)| disk.at() == index);
                let disk = disk.map_or(DiskIndex(0), |(disk, ..)| *disk);
                return Err(self.disk_failed("reading", disk, offset, err));
            }
        }
        Ok(contents)
    }

    /// Adds before-images of a run of blocks, zeros as ranges.
    fn save_extent(
        &mut self,
        batch: &mut BaseBatch,
        disk: DiskIndex,
        start: u64,
        epoch: EpochNumber,
        content: &[u8],
    ) -> Result<(), StoreError> {
        let is_zero = |block: &[u8]| block.iter().all(|byte| *byte == 0);
        let piece_max = self.log.extent_bytes_max();
        let mut at = 0;
        while at < content.len() {
            let block_end = |at: usize| (at + BLOCK_SIZE).min(content.len());
            let zero = is_zero(&content[at..block_end(at)]);
            let mut end = block_end(at);
            while end < content.len()
                && is_zero(&content[end..block_end(end)]) == zero
                && (zero || end + BLOCK_SIZE - at <= piece_max)
            {
                end = block_end(end);
            }
            let piece = &content[at..end];
            let entry = Entry {
                disk,
                image: Image::Base,
                zero,
                relocated: false,
                count: crate::codec::u32_of(piece.len().div_ceil(BLOCK_SIZE)),
                block: start + u64_of(at / BLOCK_SIZE),
                epoch,
                data: 0,
                ordinal: 0,
                digest: if zero { [0; 32] } else { digest(piece) },
            };
            if batch.inner.is_full(piece.len(), piece_max) {
                self.flush_bases(batch)?;
            }
            batch.epoch = epoch;
            batch.inner.push(entry, piece);
            at = end;
        }
        Ok(())
    }

    fn flush_bases(&mut self, batch: &mut BaseBatch) -> Result<(), StoreError> {
        if batch.inner.is_empty() {
            return Ok(());
        }
        let (mut entries, data) = batch.inner.take();
        self.log.append_images(
            &mut self.state,
            Purpose::Ordinary,
            batch.epoch,
            &mut entries,
            &data,
        )?;
        Ok(())
    }

    fn write_in_place(&mut self, pieces: &[&Piece], disk: &dyn TargetDisk) -> Result<u64, StoreError> {
        let index = pieces.first().map_or(DiskIndex(0), |piece| piece.disk);
        let info = self.state.disks[index.at()].clone();
        let mut sources: Vec<Located> = pieces.iter().map(|piece| piece.source).collect();
        sources.dedup();
        let unknown: Vec<Located> = sources
            .iter()
            .copied()
            .filter(|source| self.recent.find(source).is_none())
            .collect();
        let read = match self.read_many_or_mark(&unknown, &info) {
            Ok(contents) => contents,
            Err(err) => {
                self.log.latch(&crate::log::explained(&err));
                return Err(err);
            }
        };
        let mut read = read.iter();
        let mut contents = sources.iter().map(|source| {
            let kept = self.recent.find(source);
            kept.or_else(|| read.next().map(Vec::as_slice))
                .unwrap_or_default()
        });
        let mut source: Option<(Located, &[u8])> = None;
        let mut writes: Vec<(u64, &[u8])> = Vec::with_capacity(pieces.len());
        let mut zeros: Vec<(u64, u64)> = Vec::new();
        let mut written = 0;
        for piece in pieces {
            let offset = piece.start * BLOCK;
            let len = (piece.end * BLOCK).min(info.size) - offset;
            written += len;
            let content = match source {
                Some((known, content)) if known == piece.source => content,
                _ => {
                    let content = contents.next().unwrap_or_default();
                    source = Some((piece.source, content));
                    content
                }
            };
            if piece.source.entry.zero {
                zeros.push((offset, len));
                continue;
            }
            let skip = usize_of(piece.start - piece.source.entry.block) * BLOCK_SIZE;
            writes.push((offset, &content[skip..skip + usize_of(len)]));
        }
        let zeroed = zeros
            .iter()
            .try_for_each(|(offset, len)| disk.zero(*offset, *len).map_err(|err| ("zeroing", *offset, err)));
        let done = zeroed.and_then(|()| match writes.first() {
            Some((offset, _)) => disk.write_many(&writes).map_err(|err| ("writing", *offset, err)),
            None => Ok(()),
        });
        match done {
            Ok(()) => Ok(written),
            Err((attempted, offset, err)) => Err(self.disk_failed(attempted, index, offset, err)),
        }
    }
}

/// Before-images that are not in the log yet.
#[derive(Default)]
struct BaseBatch {
    inner: Batch,
    epoch: EpochNumber,
}

/// Takes pieces of about `budget` bytes; a piece that is too long is cut.
fn take(queue: &mut VecDeque<Piece>, budget: u64) -> Vec<Piece> {
    let mut left = (budget / BLOCK).max(1);
    let mut pieces = Vec::new();
    while left > 0
        && let Some(mut piece) = queue.pop_front()
    {
        if piece.end - piece.start > left {
            let rest = Piece {
                start: piece.start + left,
                ..piece
            };
            piece.end = rest.start;
            queue.push_front(rest);
        }
        left -= piece.end - piece.start;
        pieces.push(piece);
    }
    pieces
}
