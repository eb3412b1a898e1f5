//! Epochs on their way in: appended to the log, then committed with one flush.
//!
//! 1. Extents are gathered into records of about 1 MiB and written as they come; nothing waits for them.
//! 2. The commit record says how many there are and what they sum up to.
//! 3. One flush makes all of it durable. Only then is the epoch acknowledged.
//!
//! A crash before the end of step 3 leaves an epoch without its commit: dropped when the store is opened. The number of an
//! epoch that was given up is not used again.

use crate::codec::{u32_of, u64_of};
use crate::error::StoreError;
use crate::log::{Located, Purpose};
use crate::meta::Commit;
use crate::pack::pack;
use crate::planted::Bug;
use crate::record::{ENTRIES_MAX, Entry, Image, Kind};
use crate::storage::Storage;
use crate::store::{Store, new_point};
use crate::types::{
    BLOCK, BLOCK_SIZE, Digest, DiskIndex, EXTENT_BYTES_MAX, EpochNumber, Origin, PointSpec, digest,
};

/// Most blocks of one zero range; longer ones are split. Keeps the count of an extent in 32 bits.
const ZERO_BLOCKS_MAX: u64 = 1 << 30;

/// An epoch that is being received, or made by a roll.
pub(crate) struct OpenEpoch {
    pub number: EpochNumber,
    pub origin: Origin,
    batch: Batch,
    located: Vec<Located>,
    checksum: u64,
    pub bytes: u64,
}

impl OpenEpoch {
    /// Whether a point is needed for this epoch to end well.
    pub(crate) fn needs(&self, point: EpochNumber) -> bool {
        matches!(self.origin, Origin::Roll { to } if to == point || self.number.0 == point.0 + 1)
    }
}

/// Extents that are not in the log yet.
#[derive(Default)]
pub(crate) struct Batch {
    entries: Vec<Entry>,
    data: Vec<u8>,
}

impl Batch {
    /// Whether another extent of `len` bytes would make it too large.
    pub(crate) fn is_full(&self, len: usize, bytes_max: usize) -> bool {
        self.entries.len() >= ENTRIES_MAX.min(bytes_max / BLOCK_SIZE)
            || (!self.data.is_empty() && self.data.len() + len > bytes_max)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// All of it, which leaves nothing here.
    pub(crate) fn take(&mut self) -> (Vec<Entry>, Vec<u8>) {
        (std::mem::take(&mut self.entries), std::mem::take(&mut self.data))
    }

    /// Adds an extent; `content` may end inside a block, at the end of its disk.
    pub(crate) fn push(&mut self, mut entry: Entry, content: &[u8], packing: bool) {
        if !entry.zero {
            entry.data = u32_of(self.data.len() / BLOCK_SIZE);
            let packed = packing.then(|| pack(content)).flatten();
            entry.packed = packed
                .as_ref()
                .and_then(|packed| u16::try_from(packed.len() / BLOCK_SIZE).ok());
            self.data.extend_from_slice(packed.as_deref().unwrap_or(content));
            self.data.resize(self.data.len().next_multiple_of(BLOCK_SIZE), 0);
        }
        self.entries.push(entry);
    }
}

/// The epoch survives power loss from here on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acknowledged {
    /// Which epoch.
    pub epoch: EpochNumber,
    /// Bytes that it changes.
    pub bytes: u64,
    /// Extents that it consists of.
    pub extents: u64,
}

impl<S: Storage> Store<S> {
    /// Begins the next epoch.
    ///
    /// # Errors
    /// When one is open, or the store is latched.
    pub fn begin_epoch(&mut self) -> Result<EpochNumber, StoreError> {
        self.begin(Origin::Source)
    }

    pub(crate) fn begin(&mut self, origin: Origin) -> Result<EpochNumber, StoreError> {
        self.log.check()?;
        if let Some(open) = &self.open {
            return Err(StoreError::refused(
                format!("epoch {} is still open", open.number),
                "end it, or give it up",
            ));
        }
        let number = EpochNumber(self.state.last_epoch.0 + 1);
        self.state.last_epoch = number;
        self.open = Some(OpenEpoch {
            number,
            origin,
            batch: Batch::default(),
            located: Vec::new(),
            checksum: 0,
            bytes: 0,
        });
        Ok(number)
    }

    /// The epoch being received, and the bytes it has so far: a source that comes back goes on with it.
    pub fn open_epoch(&self) -> Option<(EpochNumber, u64)> {
        self.open.as_ref().map(|open| (open.number, open.bytes))
    }

    /// Adds an extent to the open epoch: `data` as the source read it, with its digest, which the caller has checked when
    /// the data arrived. It is kept with the extent and checked again whenever the extent is read.
    ///
    /// Of two writes to the same block the later one counts.
    ///
    /// # Errors
    /// When no epoch is open, the extent is outside its disk, is not made of whole blocks (or up to the end of the disk),
    /// or is longer than [`EXTENT_BYTES_MAX`]; when the store is full (the epoch stays open: make room and try again, or give
    /// it up) or fails.
    pub fn write(
        &mut self,
        disk: DiskIndex,
        offset: u64,
        data: &[u8],
        data_digest: Digest,
    ) -> Result<(), StoreError> {
        self.check_extent(disk, offset, u64_of(data.len()))?;
        if data.len() > EXTENT_BYTES_MAX {
            return Err(StoreError::refused(
                format!(
                    "an extent of {} bytes is longer than {EXTENT_BYTES_MAX}",
                    data.len()
                ),
                "",
            ));
        }
        if data.iter().all(|byte| *byte == 0) {
            return self.zero(disk, offset, u64_of(data.len()));
        }
        let piece_max = self.log.extent_bytes_max();
        if data.len() <= piece_max {
            return self.push(disk, Image::After, offset, data, data_digest);
        }
        // Segments so small that an extent must be cut are a matter of tests and tiny volumes.
        let mut at = offset;
        for piece in data.chunks(piece_max) {
            self.push(disk, Image::After, at, piece, digest(piece))?;
            at += u64_of(piece.len());
        }
        Ok(())
    }

    /// Adds a range that is zero to the open epoch.
    ///
    /// # Errors
    /// As [`Store::write`].
    pub fn zero(&mut self, disk: DiskIndex, offset: u64, len: u64) -> Result<(), StoreError> {
        self.check_extent(disk, offset, len)?;
        let mut block = offset / BLOCK;
        let end = (offset + len).div_ceil(BLOCK);
        while block < end {
            let count = (end - block).min(ZERO_BLOCKS_MAX);
            let number = self.open_number()?;
            let entry = Entry {
                disk,
                image: Image::After,
                zero: true,
                relocated: false,
                count: u32::try_from(count)
                    .map_err(|_| StoreError::refused("a zero range is too long", ""))?,
                packed: None,
                block,
                epoch: number,
                data: 0,
                ordinal: 0,
                digest: [0; 32],
            };
            self.push_entry(entry, &[])?;
            block += count;
        }
        Ok(())
    }

    fn push(
        &mut self,
        disk: DiskIndex,
        image: Image,
        offset: u64,
        data: &[u8],
        digest: Digest,
    ) -> Result<(), StoreError> {
        let entry = Entry {
            disk,
            image,
            zero: false,
            relocated: false,
            count: u32_of(data.len().div_ceil(BLOCK_SIZE)),
            packed: None,
            block: offset / BLOCK,
            epoch: self.open_number()?,
            data: 0,
            ordinal: 0,
            digest,
        };
        self.push_entry(entry, data)
    }

    fn push_entry(&mut self, entry: Entry, data: &[u8]) -> Result<(), StoreError> {
        let bytes_max = self.log.extent_bytes_max();
        if self
            .open
            .as_ref()
            .is_some_and(|open| open.batch.is_full(data.len(), bytes_max))
        {
            self.flush_batch()?;
        }
        if let Some(open) = &mut self.open {
            open.bytes += u64::from(entry.count) * BLOCK;
            open.batch.push(entry, data, self.packing);
        }
        Ok(())
    }

    fn open_number(&self) -> Result<EpochNumber, StoreError> {
        match &self.open {
            Some(open) => Ok(open.number),
            None => Err(StoreError::refused("no epoch is open", "begin one first")),
        }
    }

    fn check_extent(&self, disk: DiskIndex, offset: u64, len: u64) -> Result<(), StoreError> {
        self.log.check()?;
        self.open_number()?;
        let Some(known) = self.state.disks.get(disk.at()) else {
            return Err(StoreError::refused(format!("the store has no {disk}"), ""));
        };
        let end = offset.checked_add(len).filter(|end| *end <= known.size);
        let whole = |end: u64| end.is_multiple_of(BLOCK) || end == known.size;
        if len == 0 || !offset.is_multiple_of(BLOCK) || !end.is_some_and(whole) {
            return Err(StoreError::refused(
                format!(
                    "the range 0x{offset:x}+0x{len:x} is not made of whole blocks of {} ({} bytes)",
                    known.id, known.size
                ),
                "",
            ));
        }
        Ok(())
    }

    /// Writes the gathered extents to the log. They stay gathered when there is no room for them.
    fn flush_batch(&mut self) -> Result<(), StoreError> {
        let Some(open) = &mut self.open else {
            return Ok(());
        };
        if open.batch.is_empty() {
            return Ok(());
        }
        let number = open.number;
        let located = self.log.append_images(
            &mut self.state,
            Purpose::Ordinary,
            number,
            &mut open.batch.entries,
            &open.batch.data,
        )?;
        for placed in &located {
            open.checksum = open.checksum.wrapping_add(placed.entry.checksum());
        }
        self.recent.keep(number, &located, &mut open.batch.data);
        open.located.extend(located);
        open.batch.entries.clear();
        Ok(())
    }

    /// Ends the open epoch. When it returns, the epoch survives power loss, and may be acknowledged.
    ///
    /// With [`Offered::AsPoint`] the end of the epoch is offered as a recovery point, as `spec` describes it.
    ///
    /// # Errors
    /// When no epoch is open or a name is too long; when the store is full (the epoch stays open: make room and try
    /// again, or give it up) or fails (then nothing was acknowledged, and nothing will be).
    pub fn commit_epoch(&mut self, spec: PointSpec, offered: Offered) -> Result<Acknowledged, StoreError> {
        self.open_number()?;
        self.flush_batch()?;
        let Some(open) = &self.open else {
            return Err(StoreError::refused("no epoch is open", "begin one first"));
        };
        let epoch = open.number;
        let extents = u64_of(open.located.len());
        let bytes = open.bytes;
        let commit = Commit {
            extents,
            checksum: open.checksum,
            offered: offered == Offered::AsPoint,
            point: new_point(spec, epoch, open.origin, bytes)?,
        };
        // A roll that is copied is not given up for want of one more record.
        let purpose = match open.origin {
            Origin::Roll { .. } | Origin::Mark => Purpose::Bookkeeping,
            Origin::Source | Origin::Initial => Purpose::Ordinary,
        };
        self.log
            .append_meta(&mut self.state, purpose, Kind::Commit, epoch, &commit.encode())?;
        if !Bug::AckBeforeSync.live() {
            self.log.sync()?;
        }
        for given_up in self.state.committed.0 + 1..epoch.0 {
            self.state.aborted.insert(EpochNumber(given_up));
        }
        self.state.committed = epoch;
        if commit.offered {
            self.state.points.insert(epoch, commit.point);
        }
        if let Some(open) = self.open.take() {
            self.pending_bytes += crate::apply::bytes_of(&open.located);
            self.pending.insert(epoch, open.located);
            self.unapplied = None;
        }
        Ok(Acknowledged {
            epoch,
            bytes,
            extents,
        })
    }

    /// Gives the open epoch up: none of it counts. Without an open epoch nothing happens.
    pub fn abort_epoch(&mut self) {
        if let Some(open) = self.open.take() {
            self.recent.forget(open.number);
            // One that left nothing in the log has nothing that could ever count.
            if !open.located.is_empty() {
                self.state.aborted.insert(open.number);
            }
            // What it appended is dead from here on: segments that are full of it can be dropped.
            self.examined.clear();
        }
    }
}

/// Whether the end of an epoch is offered as a recovery point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offered {
    /// It is.
    AsPoint,
    /// It is a step on the way, such as a part of a seeding.
    No,
}

#[cfg(test)]
mod tests;
