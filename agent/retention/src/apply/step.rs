//! One step of applying, between two calls of the store: what is read from the disks and written to them.
//!
//! A disk may be slow, or hang. Whoever shares a store among threads must not keep the others from it for that time, so a step
//! holds the store only while something is done with the log.

use crate::apply::{ApplyProgress, Piece};
use crate::codec::usize_of;
use crate::error::StoreError;
use crate::log::Located;
use crate::planted::Bug;
use crate::storage::{Storage, TargetDisk};
use crate::store::Store;
use crate::types::{BLOCK, BLOCK_SIZE, Disk, DiskIndex, EpochNumber};

/// A way to a store that may be shared.
pub trait StoreAccess<S> {
    /// Calls `work` with the store, which nobody else has meanwhile. `None` when the store is gone.
    fn with<T>(&mut self, work: impl FnOnce(&mut Store<S>) -> T) -> Option<T>;
}

impl<S> StoreAccess<S> for &mut Store<S> {
    fn with<T>(&mut self, work: impl FnOnce(&mut Store<S>) -> T) -> Option<T> {
        Some(work(self))
    }
}

/// Does one step of applying, of about `budget` bytes, and holds the store only while the log is read or written.
///
/// # Errors
/// As [`Store::apply_step`]; also when another step is under way.
pub fn apply_step_of<S: Storage>(
    store: &mut impl StoreAccess<S>,
    disks: &[&dyn TargetDisk],
    budget: u64,
) -> Result<ApplyProgress, StoreError> {
    let gone = || StoreError::refused("the retention store was closed", "");
    let begun = store.with(|store| {
        let progress = store.progress();
        store.begin_step(disks, budget).map(|step| (step, progress))
    });
    let (step, progress) = begun.ok_or_else(gone)??;
    let Some(mut step) = step else {
        return Ok(progress);
    };
    let done = run(store, &mut step, disks);
    store.with(|store| store.end_step(step, done)).ok_or_else(gone)?
}

fn run<S: Storage>(
    store: &mut impl StoreAccess<S>,
    step: &mut Step,
    disks: &[&dyn TargetDisk],
) -> Result<(), StepError> {
    let closed = || StepError::Store(StoreError::refused("the retention store was closed", ""));
    if !Bug::BaseAfterData.live() {
        step.read_old(disks)?;
        store.with(|store| store.save_step(step)).ok_or_else(closed)??;
    }
    store.with(|store| store.load_step(step)).ok_or_else(closed)??;
    step.write(disks)?;
    if Bug::BaseAfterData.live() {
        step.read_old(disks)?;
        store.with(|store| store.save_step(step)).ok_or_else(closed)??;
    }
    if !Bug::AppliedBeforeFlush.live() {
        step.flush(disks)?;
    }
    Ok(())
}

/// A run of blocks of which a before-image is needed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub disk: DiskIndex,
    pub start: u64,
    pub end: u64,
    /// The epoch that is about to overwrite them.
    pub epoch: EpochNumber,
}

/// A disk that failed.
#[derive(Debug)]
pub(crate) struct DiskFault {
    pub attempted: &'static str,
    pub disk: DiskIndex,
    pub offset: u64,
    pub source: std::io::Error,
}

/// Why a step did not come to its end.
#[derive(Debug)]
pub(crate) enum StepError {
    Store(StoreError),
    Disk(DiskFault),
}

impl From<StoreError> for StepError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl From<DiskFault> for StepError {
    fn from(fault: DiskFault) -> Self {
        Self::Disk(fault)
    }
}

/// Pieces on their way to the disks. The caller's budget bounds what it holds.
#[derive(Debug)]
pub(crate) struct Step {
    table: Vec<Disk>,
    pub pieces: Vec<Piece>,
    wanted: Vec<Wanted>,
    /// What the wanted blocks hold.
    old: Vec<Vec<u8>>,
    /// Content of the pieces' sources, in the order of the pieces.
    pub contents: Vec<(Located, Vec<u8>)>,
    /// The disks to flush, when this is the last step of its job.
    to_flush: Vec<DiskIndex>,
    /// Bytes written to the disks.
    pub written: u64,
    /// Bytes of before-images.
    pub saved: u64,
}

impl Step {
    pub(crate) fn new(
        table: Vec<Disk>,
        pieces: Vec<Piece>,
        wanted: Vec<Wanted>,
        to_flush: Vec<DiskIndex>,
    ) -> Self {
        Self {
            table,
            pieces,
            wanted,
            old: Vec::new(),
            contents: Vec::new(),
            to_flush,
            written: 0,
            saved: 0,
        }
    }

    /// The images to be written to a disk, in the order of the pieces.
    pub(crate) fn sources_of(&self, disk: DiskIndex) -> impl Iterator<Item = Located> {
        self.pieces
            .iter()
            .filter(move |piece| piece.disk == disk)
            .map(|piece| piece.source)
    }

    /// The before-images that were read; none are left.
    pub(crate) fn take_old(&mut self) -> Vec<(Wanted, Vec<u8>)> {
        std::mem::take(&mut self.wanted)
            .into_iter()
            .zip(std::mem::take(&mut self.old))
            .collect()
    }

    fn size_of(&self, disk: DiskIndex) -> u64 {
        self.table.get(disk.at()).map_or(0, |disk| disk.size)
    }

    /// Reads what is about to be overwritten; all of it at once, so that the disk sees many requests.
    fn read_old(&mut self, disks: &[&dyn TargetDisk]) -> Result<(), DiskFault> {
        let mut contents: Vec<Vec<u8>> = self
            .wanted
            .iter()
            .map(|wanted| {
                let end = (wanted.end * BLOCK).min(self.size_of(wanted.disk));
                vec![0; usize_of(end - wanted.start * BLOCK)]
            })
            .collect();
        for (index, disk) in (0..).map(DiskIndex).zip(disks) {
            let mut pieces: Vec<(u64, &mut [u8])> = self
                .wanted
                .iter()
                .zip(&mut contents)
                .filter(|(wanted, _)| wanted.disk == index)
                .map(|(wanted, content)| (wanted.start * BLOCK, content.as_mut_slice()))
                .collect();
            let Some(offset) = pieces.first().map(|(offset, _)| *offset) else {
                continue;
            };
            disk.read_many(&mut pieces).map_err(|source| DiskFault {
                attempted: "reading",
                disk: index,
                offset,
                source,
            })?;
        }
        self.old = contents;
        Ok(())
    }

    /// Writes the pieces in place.
    fn write(&mut self, disks: &[&dyn TargetDisk]) -> Result<(), DiskFault> {
        let mut contents = self.contents.iter();
        let mut current = contents.next();
        for (index, disk) in (0..).map(DiskIndex).zip(disks) {
            let size = self.size_of(index);
            let mut writes: Vec<(u64, &[u8])> = Vec::with_capacity(self.pieces.len());
            let mut zeros: Vec<(u64, u64)> = Vec::new();
            for piece in self.pieces.iter().filter(|piece| piece.disk == index) {
                while current.is_some_and(|(source, _)| *source != piece.source) {
                    current = contents.next();
                }
                let offset = piece.start * BLOCK;
                let len = (piece.end * BLOCK).min(size) - offset;
                self.written += len;
                if piece.source.entry.zero {
                    zeros.push((offset, len));
                    continue;
                }
                let content = current.map_or(&[][..], |(_, content)| content.as_slice());
                let skip = usize_of(piece.start - piece.source.entry.block) * BLOCK_SIZE;
                writes.push((offset, &content[skip..skip + usize_of(len)]));
            }
            let fault = |attempted, offset, source| DiskFault {
                attempted,
                disk: index,
                offset,
                source,
            };
            for (offset, len) in zeros {
                disk.zero(offset, len)
                    .map_err(|source| fault("zeroing", offset, source))?;
            }
            if let Some((offset, _)) = writes.first().copied() {
                disk.write_many(&writes)
                    .map_err(|source| fault("writing", offset, source))?;
            }
        }
        self.contents.clear();
        Ok(())
    }

    fn flush(&self, disks: &[&dyn TargetDisk]) -> Result<(), DiskFault> {
        for disk in &self.to_flush {
            if let Some(target) = disks.get(disk.at()) {
                target.flush().map_err(|source| DiskFault {
                    attempted: "flushing",
                    disk: *disk,
                    offset: 0,
                    source,
                })?;
            }
        }
        Ok(())
    }
}
