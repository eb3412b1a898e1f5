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

use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};

use crate::codec::u64_of;
use crate::error::StoreError;
use crate::ingest::Batch;
use crate::log::{Located, Purpose, content_of, damaged};
use crate::planted::Bug;
use crate::ranges::RangeMap;
use crate::record::{Entry, Image, Kind};
use crate::storage::{ObjectName, Storage, TargetDisk};
use crate::store::Store;
use crate::types::{BLOCK, BLOCK_SIZE, DiskIndex, EpochNumber, digest};

mod step;

pub(crate) use step::{Step, StepError, Wanted};
pub use step::{StoreAccess, apply_step_of};

/// Most blocks of one before-image: a piece that is worth reading at once.
const BASE_BLOCKS_MAX: u64 = 256;
/// Most bytes of epochs that one job takes, so that its plan stays small; one epoch is taken whatever its size.
const JOB_BYTES_MAX: u64 = 256 << 20;

/// Blocks to write, and where their content is.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Piece {
    pub disk: DiskIndex,
    pub start: u64,
    pub end: u64,
    pub source: Located,
    /// The oldest epoch of the job that changes them.
    first_epoch: EpochNumber,
}

impl Piece {
    fn bytes(&self) -> u64 {
        (self.end - self.start) * BLOCK
    }
}

/// Bytes of disk that images are of.
pub(crate) fn bytes_of(images: &[Located]) -> u64 {
    images
        .iter()
        .map(|image| u64::from(image.entry.count) * BLOCK)
        .sum()
}

/// Epochs being applied.
#[derive(Debug)]
pub(crate) struct Job {
    pub first_epoch: EpochNumber,
    last_epoch: EpochNumber,
    pub queue: VecDeque<Piece>,
    /// Bytes of the pieces in the queue.
    pub left_bytes: u64,
    /// Pieces that a step is busy with.
    pub out: Vec<Piece>,
    touched: BTreeSet<DiskIndex>,
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
    /// epochs may come in and points may be read. Whoever shares the store uses [`apply_step_of`].
    ///
    /// # Errors
    /// [`StoreError::Full`] when there is no room for before-images: nothing was overwritten, and after dropping
    /// points it goes on. Errors of a disk, or damage of what has to be written, stop the store.
    pub fn apply_step(
        &mut self,
        disks: &[&dyn TargetDisk],
        budget: u64,
    ) -> Result<ApplyProgress, StoreError> {
        apply_step_of(&mut &mut *self, disks, budget)
    }

    /// Applies everything that is complete.
    ///
    /// # Errors
    /// As [`Store::apply_step`].
    pub fn apply_all(&mut self, disks: &[&dyn TargetDisk], budget: u64) -> Result<(), StoreError> {
        while !self.apply_step(disks, budget)?.up_to_date {}
        Ok(())
    }

    fn progress(&self) -> ApplyProgress {
        ApplyProgress {
            written: 0,
            saved: 0,
            applied: self.state.applied,
            up_to_date: self.job.is_none() && self.pending.is_empty(),
        }
    }

    /// Takes the next pieces; none when everything is applied.
    pub(crate) fn begin_step(
        &mut self,
        disks: &[&dyn TargetDisk],
        budget: u64,
    ) -> Result<Option<Step>, StoreError> {
        self.check_targets(disks)?;
        self.log.check()?;
        if self.job.is_none() {
            self.job = self.plan();
        }
        let Some(job) = &mut self.job else {
            return Ok(None);
        };
        if !job.out.is_empty() {
            return Err(StoreError::refused("a step of applying is under way already", ""));
        }
        let pieces = take(&mut job.queue, budget);
        job.out.clone_from(&pieces);
        let to_flush = if job.queue.is_empty() {
            job.touched.iter().copied().collect()
        } else {
            Vec::new()
        };
        let wanted = self.wanted(&pieces);
        Ok(Some(Step::new(
            self.state.disks.clone(),
            pieces,
            wanted,
            to_flush,
        )))
    }

    /// The runs of blocks of which these pieces need a before-image.
    fn wanted(&self, pieces: &[Piece]) -> Vec<Wanted> {
        let mut wanted: Vec<Wanted> = Vec::new();
        let Some(oldest) = self.state.points.keys().next().copied() else {
            return wanted;
        };
        if Bug::NoBase.live() {
            return wanted;
        }
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
                    Some(last)
                        if last.disk == piece.disk
                            && last.end == at
                            && last.epoch == piece.first_epoch
                            && end - last.start <= BASE_BLOCKS_MAX =>
                    {
                        last.end = end;
                    }
                    _ => wanted.push(Wanted {
                        disk: piece.disk,
                        start: at,
                        end,
                        epoch: piece.first_epoch,
                    }),
                }
                at = end;
            }
        }
        wanted
    }

    /// Appends the before-images that a step has read, and makes them durable.
    pub(crate) fn save_step(&mut self, step: &mut Step) -> Result<(), StoreError> {
        let read = step.take_old();
        if read.is_empty() {
            return Ok(());
        }
        let mut batch = BaseBatch::default();
        for (wanted, content) in &read {
            step.saved += u64_of(content.len());
            self.save_extent(&mut batch, wanted.disk, wanted.start, wanted.epoch, content)?;
        }
        self.flush_bases(&mut batch)?;
        if !Bug::BaseNotSynced.live() {
            self.log.sync()?;
        }
        for (wanted, _) in read {
            self.covered[wanted.disk.at()].insert_range(wanted.start..wanted.end);
        }
        Ok(())
    }

    /// Hands a step the content that it is to write: what is kept in memory, else from the log.
    pub(crate) fn load_step(&mut self, step: &mut Step) -> Result<(), StoreError> {
        let loaded = self.contents_of(step);
        if let Err(err) = &loaded {
            self.log.latch(&crate::log::explained(err));
        }
        step.contents = loaded?;
        Ok(())
    }

    fn contents_of(&mut self, step: &Step) -> Result<Vec<(Located, Vec<u8>)>, StoreError> {
        let mut contents = Vec::new();
        for (index, info) in (0..).map(DiskIndex).zip(self.state.disks.clone()) {
            let mut sources: Vec<Located> = step.sources_of(index).collect();
            sources.dedup();
            let unknown: Vec<Located> = sources
                .iter()
                .copied()
                .filter(|source| self.recent.find(source).is_none())
                .collect();
            let mut read = self.read_many_or_mark(&unknown, &info)?.into_iter();
            for source in sources {
                let content = match self.recent.find(&source) {
                    // It was packed here a moment ago, and its content checked before that.
                    Some(stored) => content_of(&source.entry, &info, Cow::Borrowed(stored))
                        .map_err(|what| {
                            let object = ObjectName::Segment(source.seq);
                            damaged(object, 0, format!("content kept in memory: {what}"))
                        })?
                        .into_owned(),
                    None => read.next().unwrap_or_default(),
                };
                contents.push((source, content));
            }
        }
        Ok(contents)
    }

    /// Notes what became of a step.
    pub(crate) fn end_step(
        &mut self,
        step: Step,
        done: Result<(), StepError>,
    ) -> Result<ApplyProgress, StoreError> {
        let Some(job) = &mut self.job else {
            return Ok(self.progress());
        };
        job.out.clear();
        if let Err(error) = done {
            // Nothing is lost: what was written is written again.
            for piece in step.pieces.into_iter().rev() {
                job.queue.push_front(piece);
            }
            return Err(match error {
                StepError::Store(error) => error,
                StepError::Disk(fault) => {
                    self.disk_failed(fault.attempted, fault.disk, fault.offset, fault.source)
                }
            });
        }
        for piece in &step.pieces {
            job.left_bytes = job.left_bytes.saturating_sub(piece.bytes());
            self.covered[piece.disk.at()].insert_range(piece.start..piece.end);
        }
        if let Some(job) = self.job.take_if(|job| job.queue.is_empty()) {
            self.end_job(&job)?;
        }
        Ok(ApplyProgress {
            written: step.written,
            saved: step.saved,
            ..self.progress()
        })
    }

    fn end_job(&mut self, job: &Job) -> Result<(), StoreError> {
        self.state.applied = job.last_epoch;
        self.recent.forget_until(job.last_epoch);
        if self.pending.is_empty() {
            self.unapplied = None;
        }
        let noted = self.log.append_meta(
            &mut self.state,
            Purpose::Ordinary,
            Kind::Applied,
            job.last_epoch,
            &[],
        );
        match noted {
            // It is a hint, and a full store must not stop for it.
            Ok(()) | Err(StoreError::Full { .. }) => Ok(()),
            Err(err) => Err(err),
        }
    }

    fn plan(&mut self) -> Option<Job> {
        let first_epoch = *self.pending.keys().next()?;
        let mut last_epoch = first_epoch;
        let mut bytes = 0;
        let mut newest: Vec<RangeMap<Located>> = vec![RangeMap::default(); self.state.disks.len()];
        let mut oldest: Vec<RangeMap<EpochNumber>> = vec![RangeMap::default(); self.state.disks.len()];
        while let Some((&epoch, images)) = self.pending.first_key_value() {
            let of_epoch = bytes_of(images);
            bytes += of_epoch;
            if epoch > first_epoch && bytes > JOB_BYTES_MAX {
                break;
            }
            last_epoch = epoch;
            let (_, images) = self.pending.pop_first().expect("it was just looked at");
            self.pending_bytes = self.pending_bytes.saturating_sub(of_epoch);
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
            left_bytes: queue.iter().map(Piece::bytes).sum(),
            queue,
            out: Vec::new(),
        })
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
                packed: None,
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
            batch.inner.push(entry, piece, self.packing);
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
