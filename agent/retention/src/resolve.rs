//! What a block held at a point, and where that content is now.
//!
//! The newest after-image whose epoch is not newer than the point; else the before-image with the smallest epoch that
//! is newer than the point; else what is on the disk.

use crate::codec::{u64_of, usize_of};
use crate::error::StoreError;
use crate::log::Located;
use crate::planted::Bug;
use crate::record::Image;
use crate::storage::{Storage, TargetDisk};
use crate::store::Store;
use crate::types::{BLOCK, BLOCK_SIZE, DiskIndex, EpochNumber};

/// Where the content of a block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Content {
    /// On the disk.
    Disk,
    /// It is zeros, or data in the log; the extent holds the block.
    Image(Located),
}

#[derive(Clone, Copy, Default)]
struct Best {
    after: Option<Located>,
    base: Option<Located>,
}

impl<S: Storage> Store<S> {
    /// Finds the content of blocks, which are sorted, at the end of an epoch.
    pub(crate) fn resolve(
        &mut self,
        at: EpochNumber,
        disk: DiskIndex,
        blocks: &[u64],
    ) -> Result<Vec<Content>, StoreError> {
        let mut best = vec![Best::default(); blocks.len()];
        let state = &self.state;
        self.log.for_each_touching(disk, blocks, |found, range| {
            let epoch = found.entry.epoch;
            if !state.counts(epoch) {
                return;
            }
            for cell in &mut best[range] {
                match found.entry.image {
                    Image::After if epoch <= at => {
                        let better = cell.after.is_none_or(|old| {
                            if Bug::FirstWriteWins.live() && old.entry.epoch == epoch {
                                return found.order() < old.order();
                            }
                            found.order() > old.order()
                        });
                        if better {
                            cell.after = Some(found);
                        }
                    }
                    Image::Base if epoch > at && cell.base.is_none_or(|old| epoch < old.entry.epoch) => {
                        cell.base = Some(found);
                    }
                    _ => {}
                }
            }
        })?;
        Ok(best
            .into_iter()
            .map(|cell| cell.after.or(cell.base).map_or(Content::Disk, Content::Image))
            .collect())
    }

    /// Fills `buf` with what `disk` held at `offset` at a point. Changes nothing; replication may go on between two calls.
    ///
    /// # Errors
    /// When the point is not on offer or damaged, the range is outside the disk, the disk cannot be read, or what is read
    /// from the log is not what was written: then `buf` holds nothing of use.
    pub fn read_at(
        &mut self,
        point: EpochNumber,
        disk: DiskIndex,
        offset: u64,
        buf: &mut [u8],
        disks: &[&dyn TargetDisk],
    ) -> Result<(), StoreError> {
        self.check_targets(disks)?;
        self.reachable(point)?;
        let known = self.state.disks.get(disk.at()).cloned();
        let Some(known) = known.filter(|known| {
            offset
                .checked_add(u64_of(buf.len()))
                .is_some_and(|end| end <= known.size)
        }) else {
            return Err(StoreError::refused(
                format!("the range 0x{offset:x}+0x{:x} is outside {disk}", buf.len()),
                "",
            ));
        };
        let mut done = 0;
        // Bounded pieces: the memory of a long read does not grow with its length.
        while done < buf.len() {
            let at = offset + u64_of(done);
            let first = at / BLOCK;
            let piece_end = ((first + 256) * BLOCK).min(offset + u64_of(buf.len()));
            let last = piece_end.div_ceil(BLOCK);
            let blocks: Vec<u64> = (first..last).collect();
            let contents = self.resolve(point, disk, &blocks)?;
            let mut held: Option<(Located, Vec<u8>)> = None;
            let mut run = 0;
            while run < blocks.len() {
                let content = contents[run];
                let same = contents[run..].iter().take_while(|c| **c == content).count();
                let from = (blocks[run] * BLOCK).max(at);
                let to = ((blocks[run] + u64_of(same)) * BLOCK).min(piece_end);
                let target = &mut buf[usize_of(from - offset)..usize_of(to - offset)];
                match content {
                    Content::Disk => disks[disk.at()]
                        .read(from, target)
                        .map_err(|err| self.disk_failed("reading", disk, from, err))?,
                    Content::Image(located) if located.entry.zero => target.fill(0),
                    Content::Image(located) => {
                        if held.as_ref().is_none_or(|(known, _)| *known != located) {
                            held = Some((located, self.read_or_mark(&located, &known)?));
                        }
                        if let Some((_, bytes)) = &held {
                            let skip = usize_of(from - located.entry.block * BLOCK);
                            target.copy_from_slice(&bytes[skip..skip + target.len()]);
                        }
                    }
                }
                run += same;
            }
            done = usize_of(piece_end - offset);
        }
        Ok(())
    }

    /// Reads an extent; damage is noted, together with the points that need it.
    pub(crate) fn read_or_mark(
        &mut self,
        located: &Located,
        disk: &crate::types::Disk,
    ) -> Result<Vec<u8>, StoreError> {
        let result = self.log.read(located, disk);
        if let Err(err @ StoreError::Damaged { .. }) = &result {
            let text = err.to_string();
            self.mark_damaged(located, &text)?;
        }
        result
    }

    /// Reads extents of one disk; damage is noted as by [`Store::read_or_mark`].
    pub(crate) fn read_many_or_mark(
        &mut self,
        wanted: &[Located],
        disk: &crate::types::Disk,
    ) -> Result<Vec<Vec<u8>>, StoreError> {
        let mut contents = Vec::with_capacity(wanted.len());
        for (located, content) in wanted.iter().zip(self.log.read_many(wanted, disk)?) {
            match content {
                Ok(content) => contents.push(content),
                Err(err) => {
                    self.mark_damaged(located, &err.to_string())?;
                    return Err(err);
                }
            }
        }
        Ok(contents)
    }

    /// Marks every point that needs an extent as unreachable.
    ///
    /// Which points need a block of it follows from the other images of the block: an after-image is needed from its own
    /// epoch up to the next one, a before-image from the image before it up to the epoch that it was taken for.
    pub(crate) fn mark_damaged(&mut self, located: &Located, why: &str) -> Result<(), StoreError> {
        if !self.damage.iter().any(|known| known == why) {
            self.damage.push(why.to_owned());
        }
        let own = located.entry;
        if !self.state.counts(own.epoch) {
            return Ok(());
        }
        let blocks: Vec<u64> = (own.block..own.end()).collect();
        for part in blocks.chunks(BLOCK_SIZE) {
            let mut needed: Vec<Option<(EpochNumber, EpochNumber)>> = vec![
                Some(match own.image {
                    Image::After => (own.epoch, EpochNumber(u64::MAX)),
                    Image::Base => (EpochNumber(0), own.epoch),
                });
                part.len()
            ];
            let state = &self.state;
            self.log.for_each_touching(own.disk, part, |found, range| {
                if found != *located && state.counts(found.entry.epoch) {
                    for cell in &mut needed[range] {
                        *cell = cell.and_then(|span| narrowed(span, located, &found));
                    }
                }
            })?;
            for (from, to) in needed.into_iter().flatten().filter(|(from, to)| from < to) {
                let points: Vec<EpochNumber> = self
                    .state
                    .points
                    .range(from..to)
                    .map(|(epoch, _)| *epoch)
                    .collect();
                for point in points {
                    self.unreachable.entry(point).or_insert_with(|| why.to_owned());
                }
            }
        }
        Ok(())
    }
}

/// The points from..to that need a block of `own`, once another image of the block is known; `None` when none does.
fn narrowed(
    (from, to): (EpochNumber, EpochNumber),
    own: &Located,
    other: &Located,
) -> Option<(EpochNumber, EpochNumber)> {
    let (mine, its) = (own.entry.epoch, other.entry.epoch);
    match (own.entry.image, other.entry.image) {
        // The same image again: of after-images readers take the later one, of before-images the first.
        (Image::After, Image::After) if mine == its => (own.order() > other.order()).then_some((from, to)),
        (Image::Base, Image::Base) if mine == its => (own.order() < other.order()).then_some((from, to)),
        (Image::After, Image::After) if its > mine => Some((from, to.min(its))),
        (Image::After, _) => Some((from, to)),
        // A point at or after any after-image finds that; one before an older before-image finds that.
        (Image::Base, Image::After) => Some((from, to.min(its))),
        (Image::Base, Image::Base) if its < mine => Some((from.max(its), to)),
        (Image::Base, Image::Base) => Some((from, to)),
    }
}
