//! Bringing the disks to a point: a new epoch whose after-images are the old contents.
//!
//! So a roll is appended, committed and applied like any epoch: cut anywhere it either never was or is complete, it can
//! be repeated, and it can be taken back by a roll to the point before it. Its cost is what changed after the
//! point: only those blocks are looked up, and none of them needs a before-image, since their images are in the log.
//!
//! ```text
//! apply_all            the disks show the newest epoch
//! begin_roll           marks the instant before as a point, when it is none; opens the roll's epoch
//! roll_step ...        copies old contents to the end of the log; the disks are not touched yet
//! finish_roll          commits: from here on the roll is decided, and survives power loss
//! apply_all            writes it in place
//! verify_roll          reads the disks and compares
//! ```
//!
//! Until `finish_roll` a roll is taken back with [`Store::abort_epoch`]; a crash does the same.

use std::collections::BTreeSet;

use roaring::RoaringTreemap;

use crate::codec::{u64_of, usize_of};
use crate::error::StoreError;
use crate::ingest::{Acknowledged, Offered};
use crate::log::{Located, damaged, real_len};
use crate::planted::Bug;
use crate::record::Image;
use crate::resolve::Content;
use crate::storage::{ObjectName, Storage, TargetDisk};
use crate::store::Store;
use crate::types::{BLOCK, BLOCK_SIZE, DiskIndex, EpochNumber, Origin, PointSpec, digest};

/// Most blocks that one step looks up: bounds its memory.
const BLOCKS_PER_STEP_MAX: u64 = 16 * 1024;

/// A roll that has begun.
#[derive(Debug)]
pub struct Roll {
    to: EpochNumber,
    epoch: EpochNumber,
    changed: Vec<RoaringTreemap>,
    disk: usize,
    /// First block of `disk` that is not copied yet.
    next: u64,
    /// Blocks of the last step that found no room: they come first in the next one.
    left: Option<(DiskIndex, Vec<u64>)>,
    total_blocks: u64,
    done_blocks: u64,
}

/// How far a roll is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RollProgress {
    /// Bytes that differ in the images of the log, of all disks.
    pub total: u64,
    /// Bytes copied, or compared.
    pub done: u64,
    /// Nothing is left.
    pub complete: bool,
}

impl Roll {
    /// The point it goes to.
    pub fn to(&self) -> EpochNumber {
        self.to
    }

    /// The epoch that it makes.
    pub fn epoch(&self) -> EpochNumber {
        self.epoch
    }

    fn progress(&self) -> RollProgress {
        RollProgress {
            total: self.total_blocks * BLOCK,
            done: self.done_blocks * BLOCK,
            complete: self.left.is_none() && self.disk >= self.changed.len(),
        }
    }

    /// The next blocks of one disk; empty when all are done.
    fn take(&mut self, budget: u64) -> (DiskIndex, Vec<u64>) {
        if let Some(left) = self.left.take() {
            return left;
        }
        let count = usize_of((budget / BLOCK).clamp(1, BLOCKS_PER_STEP_MAX));
        while let Some(changed) = self.changed.get(self.disk) {
            let mut from = changed.iter();
            from.advance_to(self.next);
            let blocks: Vec<u64> = from.take(count).collect();
            let disk = DiskIndex(u16::try_from(self.disk).expect("at most 60 disks"));
            match blocks.last() {
                None => {
                    self.disk += 1;
                    self.next = 0;
                }
                Some(last) => {
                    self.next = last + 1;
                    self.done_blocks += u64_of(blocks.len());
                    return (disk, blocks);
                }
            }
        }
        (DiskIndex(0), Vec::new())
    }
}

impl<S: Storage> Store<S> {
    /// Begins a roll to a point. `before` describes the instant before, in case it is no point yet: without it
    /// there would be no way back.
    ///
    /// # Errors
    /// When the point is not on offer or damaged, an epoch is open, epochs are not applied, or the store fails. Nothing was
    /// begun then.
    pub fn begin_roll(&mut self, to: EpochNumber, before: PointSpec) -> Result<Roll, StoreError> {
        self.log.check()?;
        self.reachable(to)?;
        if let Some(open) = &self.open {
            return Err(StoreError::refused(
                format!("cannot roll while epoch {} is open", open.number),
                "end the session of the source, or the roll that is under way",
            ));
        }
        if self.job.is_some() || !self.pending.is_empty() {
            return Err(StoreError::refused(
                "cannot roll while complete epochs are not on the disks",
                "apply them first",
            ));
        }
        let committed = self.state.committed;
        if !self.state.points.contains_key(&committed) {
            self.begin(Origin::Mark)?;
            if let Err(err) = self.commit_epoch(before, Offered::AsPoint) {
                self.abort_epoch();
                return Err(err);
            }
            // Nothing was written, so nothing has to be applied.
            self.pending.clear();
            self.pending_bytes = 0;
            self.state.applied = self.state.committed;
        }
        let changed = self.changed_since(to)?;
        let epoch = self.begin(Origin::Roll { to })?;
        Ok(Roll {
            to,
            epoch,
            total_blocks: changed.iter().map(RoaringTreemap::len).sum(),
            changed,
            disk: 0,
            next: 0,
            left: None,
            done_blocks: 0,
        })
    }

    /// Blocks of each disk that epochs after `epoch` wrote.
    pub(crate) fn changed_since(&mut self, epoch: EpochNumber) -> Result<Vec<RoaringTreemap>, StoreError> {
        let mut changed = vec![RoaringTreemap::new(); self.state.disks.len()];
        let newer: Vec<u64> = self
            .log
            .segments
            .iter()
            .filter(|(_, segment)| segment.last_epoch > epoch)
            .map(|(seq, _)| *seq)
            .collect();
        for seq in newer {
            for entry in self.log.entries(seq)?.iter() {
                let forgotten = Bug::RollForgets.live() && entry.epoch.0 > epoch.0 + 1;
                if entry.image == Image::After
                    && entry.epoch > epoch
                    && self.state.counts(entry.epoch)
                    && !forgotten
                {
                    changed[entry.disk.at()].insert_range(entry.block..entry.end());
                }
            }
        }
        Ok(changed)
    }

    fn roll_is_open(&self, roll: &Roll) -> Result<(), StoreError> {
        match &self.open {
            Some(open) if open.number == roll.epoch => Ok(()),
            _ => Err(StoreError::refused(
                format!("the roll to {} is not under way any more", roll.to),
                "begin it again",
            )),
        }
    }

    /// Copies about `budget` bytes of old contents to the end of the log.
    ///
    /// # Errors
    /// When the roll is not under way, content is damaged (the point is marked, and the roll has to be given up), or the store
    /// fails. [`StoreError::Full`] gives up nothing: make room, and the next step goes on where this one stopped.
    pub fn roll_step(&mut self, roll: &mut Roll, budget: u64) -> Result<RollProgress, StoreError> {
        self.roll_is_open(roll)?;
        let (disk, blocks) = roll.take(budget);
        if blocks.is_empty() {
            return Ok(roll.progress());
        }
        let mut copied = BTreeSet::new();
        let done = self.copy_old(roll.to, disk, &blocks, &mut copied);
        if let Err(StoreError::Full { .. }) = done {
            let mut left = blocks;
            left.retain(|block| !copied.contains(block));
            roll.left = Some((disk, left));
        }
        done?;
        Ok(roll.progress())
    }

    /// Appends what blocks held at a point to the open epoch; those that are appended are in `copied`.
    fn copy_old(
        &mut self,
        to: EpochNumber,
        disk: DiskIndex,
        blocks: &[u64],
        copied: &mut BTreeSet<u64>,
    ) -> Result<(), StoreError> {
        let known = self.state.disks[disk.at()].clone();
        let contents = self.resolve(to, disk, blocks)?;
        // In the order of the log, so that an extent is read once and the volume is read forwards.
        let mut order: Vec<(Located, u64)> = Vec::with_capacity(blocks.len());
        for (block, content) in blocks.iter().zip(&contents) {
            match content {
                Content::Image(located) => order.push((*located, *block)),
                Content::Disk => return Err(self.image_missing(to, disk, *block)),
            }
        }
        order.sort_unstable_by_key(|(located, block)| (located.seq, located.entry.ordinal, *block));
        let mut wanted: Vec<Located> = order.iter().map(|(located, _)| *located).collect();
        wanted.dedup();
        let mut contents = self.read_many_or_mark(&wanted, &known)?.into_iter();
        let mut at = 0;
        while at < order.len() {
            let located = order[at].0;
            let same = order[at..].iter().take_while(|(l, _)| *l == located).count();
            let own = &order[at..at + same];
            at += same;
            let content = contents.next().unwrap_or_default();
            let mut run = 0;
            while run < own.len() {
                let start = own[run].1;
                let len = (run..own.len())
                    .take_while(|i| own[*i].1 - start == u64_of(*i - run))
                    .count();
                run += len;
                let end = ((start + u64_of(len)) * BLOCK).min(known.size);
                let offset = start * BLOCK;
                if located.entry.zero {
                    self.zero(disk, offset, end - offset)?;
                } else {
                    let skip = usize_of(start - located.entry.block) * BLOCK_SIZE;
                    let part = &content[skip..skip + usize_of(end - offset)];
                    let whole = skip == 0 && part.len() == real_len(&located.entry, &known);
                    let part_digest = if whole { located.entry.digest } else { digest(part) };
                    self.write(disk, offset, part, part_digest)?;
                }
                copied.extend(start..start + u64_of(len));
            }
        }
        Ok(())
    }

    fn image_missing(&mut self, point: EpochNumber, disk: DiskIndex, block: u64) -> StoreError {
        let what = format!("no image of {disk} block {block} for point {point}");
        self.damage.push(what.clone());
        self.unreachable.insert(point, what.clone());
        let seq = self.log.active_seq().unwrap_or_default();
        damaged(ObjectName::Segment(seq), 0, what)
    }

    /// Commits the roll: from here on it is decided. It is offered as a point, described by `spec`.
    ///
    /// # Errors
    /// When copying is not complete, or as [`Store::commit_epoch`].
    pub fn finish_roll(&mut self, roll: &Roll, spec: PointSpec) -> Result<Acknowledged, StoreError> {
        self.roll_is_open(roll)?;
        if !roll.progress().complete {
            return Err(StoreError::refused(
                format!("the roll to {} is not complete", roll.to),
                "",
            ));
        }
        self.commit_epoch(spec, Offered::AsPoint)
    }

    /// Compares the disks with a point, for the blocks that changed since: what a roll wrote. Begin with a fresh value of
    /// [`Store::begin_verify`] and repeat until complete.
    ///
    /// # Errors
    /// When a block differs, or the store or a disk fails.
    pub fn verify_step(
        &mut self,
        verify: &mut Roll,
        disks: &[&dyn TargetDisk],
        budget: u64,
    ) -> Result<RollProgress, StoreError> {
        self.check_targets(disks)?;
        let (disk, blocks) = verify.take(budget.min(4 << 20));
        let size = self.state.disks.get(disk.at()).map_or(0, |d| d.size);
        let mut run = 0;
        while run < blocks.len() {
            let start = blocks[run];
            let len = (run..blocks.len().min(run + 256))
                .take_while(|i| blocks[*i] - start == u64_of(*i - run))
                .count();
            run += len;
            let offset = start * BLOCK;
            let bytes = usize_of(((start + u64_of(len)) * BLOCK).min(size) - offset);
            let mut wanted = vec![0; bytes];
            let mut found = vec![0; bytes];
            self.read_at(verify.to, disk, offset, &mut wanted, disks)?;
            disks[disk.at()]
                .read(offset, &mut found)
                .map_err(|err| self.disk_failed("reading", disk, offset, err))?;
            if wanted != found {
                let source = std::io::Error::other(format!("it does not hold what point {} says", verify.to));
                return Err(self.disk_failed("verifying", disk, offset, source));
            }
        }
        Ok(verify.progress())
    }

    /// Begins a comparison of the disks with a point; see [`Store::verify_step`].
    ///
    /// # Errors
    /// When the point is not on offer or damaged, or the store fails.
    pub fn begin_verify(&mut self, point: EpochNumber) -> Result<Roll, StoreError> {
        self.reachable(point)?;
        let changed = self.changed_since(point)?;
        Ok(Roll {
            to: point,
            epoch: self.state.committed,
            total_blocks: changed.iter().map(RoaringTreemap::len).sum(),
            changed,
            disk: 0,
            next: 0,
            left: None,
            done_blocks: 0,
        })
    }
}
