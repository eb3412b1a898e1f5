//! Room for the log: its limit, what is held back, and how large a segment may be when space is short.
//!
//! A store that is full still has to write down what makes room again: points that are dropped, segments that are taken
//! out, the instant before a roll. So two segments' worth is held back, of the store's own limit, and on the volume as an
//! object, SPARE, whose space is taken and whose content is nothing.
//!
//! | purpose | is | of the reserve it leaves |
//! |---|---|---|
//! | ordinary | what a source or a roll brings, before-images | all |
//! | copying | live parts of a segment that is dropped next | one segment: the dropping has to be written down |
//! | bookkeeping | records without images | nothing |
//!
//! What was used of the reserve is set aside again before anything ordinary goes on. Where a whole segment has no room, a
//! smaller one is made, down to an eighth; for bookkeeping from the reserve, as small as its record allows, since segments
//! without images are dropped soon after they are sealed.

use crate::codec::u64_of;
use crate::error::StoreError;
use crate::log::{Log, Purpose};
use crate::policy::{Fullness, fullness};
use crate::storage::{ObjectName, Storage};
use crate::types::BLOCK;

/// Segments held back for what makes room again.
const RESERVE_SEGMENTS: u64 = 2;
/// An ordinary segment has at least this part of a whole one.
const SMALLEST_PART: u64 = 8;
/// A segment for bookkeeping from the reserve has this part of a whole one, where its record allows that.
const BOOKKEEPING_PART: u64 = 16;

/// What is known of the room for the log.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Room {
    /// Most bytes the log may take; 0 for as many as the volume has.
    pub capacity: u64,
    /// Bytes of the object SPARE.
    pub spare: u64,
    /// Bytes of the segment that had no room when one was wanted last, or may have none; 0 when it had.
    pub short: u64,
}

impl<S: Storage> Log<S> {
    /// Bytes held back.
    fn reserve(&self) -> u64 {
        RESERVE_SEGMENTS * self.segment_size
    }

    /// What is left of the log's own limit when `kept` bytes are to stay free.
    fn within_limit(&self, kept: u64) -> u64 {
        match self.room.capacity {
            0 => u64::MAX,
            capacity => capacity.saturating_sub(self.used() + kept),
        }
    }

    /// Whether a whole ordinary segment can be begun: what an alarm goes by.
    ///
    /// # Errors
    /// When the storage fails for another reason than space.
    pub(crate) fn has_room(&mut self) -> Result<bool, StoreError> {
        self.has_room_for(self.segment_size)
    }

    /// Whether the smallest ordinary segment can be begun, or the one that had no room: what points are dropped for.
    ///
    /// # Errors
    /// When the storage fails for another reason than space.
    pub(crate) fn has_some_room(&mut self) -> Result<bool, StoreError> {
        // A record of the largest extent has to fit, between header and footer.
        let record = u64_of(self.extent_bytes_max()) + 4 * BLOCK;
        self.has_room_for(record.max(self.segment_size / SMALLEST_PART))
    }

    /// Where it is not known, it is tried.
    fn has_room_for(&mut self, size: u64) -> Result<bool, StoreError> {
        self.check()?;
        let least = self.room.short.max(size);
        if self.within_limit(self.reserve()) < least || !self.fill_reserve()? {
            self.room.short = self.room.short.max(1);
            return Ok(false);
        }
        if self.room.short > 0 && !self.fits(least)? {
            return Ok(false);
        }
        self.room.short = 0;
        Ok(true)
    }

    /// How full the log is, in the words of its alarms: what is held back is not to be had.
    pub(crate) fn fullness(&self) -> Fullness {
        match self.room.capacity {
            0 => Fullness::Normal,
            capacity => fullness(self.used(), capacity.saturating_sub(self.reserve()).max(1)),
        }
    }

    /// Makes the object of the next segment, and answers its size. It has at least `least` bytes, and `wanted` where
    /// there is room.
    ///
    /// # Errors
    /// [`StoreError::Full`], or when the storage fails.
    pub(crate) fn create_segment(
        &mut self,
        purpose: Purpose,
        wanted: u64,
        least: u64,
    ) -> Result<u64, StoreError> {
        let object = ObjectName::Segment(self.next_seq);
        let smallest = (self.segment_size / SMALLEST_PART)
            .max(least)
            .next_multiple_of(BLOCK);
        let mut size = wanted.min(self.within_limit(self.reserve()));
        size -= size % BLOCK;
        if size >= smallest && self.fill_reserve()? {
            loop {
                if self.try_create(object, size)? {
                    if size >= self.room.short {
                        self.room.short = 0;
                    }
                    return Ok(size);
                }
                if size == smallest {
                    break;
                }
                size = (size / 2).next_multiple_of(BLOCK).max(smallest);
            }
        }
        if purpose == Purpose::Ordinary {
            self.room.short = self.room.short.max(smallest);
        }
        let size = match purpose {
            Purpose::Ordinary => None,
            Purpose::Copying => {
                // As large as it can be: many small ones have more headers than what they are copied from.
                let mut found = None;
                let mut part = wanted;
                while found.is_none() && part >= smallest {
                    found = self.use_reserve(object, part.next_multiple_of(BLOCK), self.segment_size)?;
                    part /= 2;
                }
                found
            }
            Purpose::Bookkeeping => {
                let size = (self.segment_size / BOOKKEEPING_PART).max(least);
                match self.use_reserve(object, size.next_multiple_of(BLOCK), 0)? {
                    None if size > least => self.use_reserve(object, least.next_multiple_of(BLOCK), 0)?,
                    size => size,
                }
            }
        };
        size.ok_or_else(|| self.full())
    }

    pub(crate) fn full(&self) -> StoreError {
        StoreError::Full {
            used: self.used(),
            capacity: self.room.capacity,
        }
    }

    /// Makes a segment of what is held back, of which `kept` bytes stay.
    fn use_reserve(&mut self, object: ObjectName, size: u64, kept: u64) -> Result<Option<u64>, StoreError> {
        if self.within_limit(kept) < size || self.room.spare < kept {
            return Ok(None);
        }
        loop {
            if self.try_create(object, size)? {
                return Ok(Some(size));
            }
            let left = self.room.spare.saturating_sub(size);
            if self.room.spare == 0 || left < kept {
                return Ok(None);
            }
            // Other stores of the volume may take what is free for a moment, and a file system needs some for itself:
            // then there is one piece less, and it is tried again.
            if left == 0 {
                self.storage
                    .remove(ObjectName::Spare)
                    .map_err(|err| self.failed(err))?;
            } else {
                self.storage
                    .cut(ObjectName::Spare, left)
                    .map_err(|err| self.failed(err))?;
            }
            self.room.spare = left;
        }
    }

    /// Sets aside what is to be held back, as far as the volume has it; says whether it is whole.
    ///
    /// # Errors
    /// When the storage fails for another reason than space.
    pub(crate) fn fill_reserve(&mut self) -> Result<bool, StoreError> {
        let (whole, before) = (self.reserve(), self.room.spare);
        if before >= whole {
            return Ok(true);
        }
        // An object cannot be lengthened. What is there is only let go of when the rest has room as well.
        for quarters in [4, 3, 2, 1] {
            let size = (whole / 4 * quarters).next_multiple_of(BLOCK);
            if size <= before || (before > 0 && !self.fits(size - before)?) {
                continue;
            }
            if before > 0 {
                self.storage
                    .remove(ObjectName::Spare)
                    .map_err(|err| self.failed(err))?;
                self.room.spare = 0;
            }
            if self.try_create(ObjectName::Spare, size)? {
                self.room.spare = size;
                break;
            }
        }
        Ok(self.room.spare >= whole)
    }

    /// Whether the volume has room for an object of this size now.
    fn fits(&mut self, size: u64) -> Result<bool, StoreError> {
        // A crash in between leaves a segment without a header, which the next opening removes.
        let object = ObjectName::Segment(self.next_seq);
        let fits = self.try_create(object, size)?;
        if fits {
            self.storage.remove(object).map_err(|err| self.failed(err))?;
        }
        Ok(fits)
    }

    /// Makes an object; `false` when the volume has no room for it, and then nothing of it is left.
    fn try_create(&mut self, object: ObjectName, size: u64) -> Result<bool, StoreError> {
        match self.storage.create(object, size) {
            Ok(()) => Ok(true),
            Err(err) if err.is_full() => {
                // A file may be left that has only a part of its space.
                let left = self.storage.list()?;
                if left.iter().any(|(name, _)| *name == object) {
                    self.storage.remove(object).map_err(|err| self.failed(err))?;
                }
                Ok(false)
            }
            Err(err) => Err(self.failed(err)),
        }
    }
}
