//! Bodies of the records that are not images, and the state that every segment carries in its header.
//!
//! | body | fields |
//! |---|---|
//! | COMMIT | extents u64, checksum u64 (sum of the CRCs of the epoch's extents), bytes u64, offered u8, point |
//! | POINTS | dropped: count u32, epochs u64; pinned: count, epochs; released: count, epochs |
//! | SEGMENTS | count u32, sequence numbers u64 |
//!
//! A point: epoch u64, source time i64, received time i64, changed bytes u64, epoch rolled to u64, origin u8 (0 initial,
//! 1 source, 2 roll, 3 mark), consistency u8 (0 crash, 1 file system, 2 application), pinned u8, reserved u8, name (u16
//! and UTF-8), tags: count u32, texts.
//!
//! The [`State`] at the time a segment was begun: generation u64, committed u64, applied u64, last epoch u64, disks: count
//! u32 and each size u64 and identity text; points: count and points; aborted epochs: count and numbers; segments: count
//! and numbers. A store can therefore be opened from its newest segment alone, and when that one's header is
//! damaged, from the one before it and the records since.

use std::collections::{BTreeMap, BTreeSet};

use crate::codec::{Malformed, Reader, put_count, put_text};
use crate::types::{DISKS_MAX, Disk, EpochNumber, Point};

/// Body of a COMMIT record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Commit {
    pub extents: u64,
    pub checksum: u64,
    pub offered: bool,
    pub point: Point,
}

impl Commit {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&self.extents.to_le_bytes());
        out.extend_from_slice(&self.checksum.to_le_bytes());
        out.push(u8::from(self.offered));
        self.point.encode(&mut out);
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        Ok(Self {
            extents: from.u64()?,
            checksum: from.u64()?,
            offered: from.u8()? != 0,
            point: Point::decode(&mut from)?,
        })
    }
}

/// Body of a POINTS record.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PointChanges {
    pub dropped: Vec<EpochNumber>,
    pub pinned: Vec<EpochNumber>,
    pub released: Vec<EpochNumber>,
}

impl PointChanges {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for list in [&self.dropped, &self.pinned, &self.released] {
            put_numbers(&mut out, list.iter().map(|epoch| epoch.0));
        }
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        let mut list = || -> Result<Vec<EpochNumber>, Malformed> {
            Ok(numbers(&mut from)?.into_iter().map(EpochNumber).collect())
        };
        Ok(Self {
            dropped: list()?,
            pinned: list()?,
            released: list()?,
        })
    }

    /// Makes the changes.
    pub(crate) fn apply(&self, points: &mut BTreeMap<EpochNumber, Point>) {
        for epoch in &self.dropped {
            points.remove(epoch);
        }
        for (list, pinned) in [(&self.pinned, true), (&self.released, false)] {
            for epoch in list {
                if let Some(point) = points.get_mut(epoch) {
                    point.pinned = pinned;
                }
            }
        }
    }
}

/// Appends a count and the numbers.
pub(crate) fn put_numbers(out: &mut Vec<u8>, numbers: impl ExactSizeIterator<Item = u64>) {
    put_count(out, numbers.len());
    for number in numbers {
        out.extend_from_slice(&number.to_le_bytes());
    }
}

/// Reads a count and the numbers.
pub(crate) fn numbers(from: &mut Reader<'_>) -> Result<Vec<u64>, Malformed> {
    let count = from.count(8)?;
    (0..count).map(|_| from.u64()).collect()
}

/// All that is known of a store beside its images.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub generation: u64,
    /// The newest complete epoch.
    pub committed: EpochNumber,
    /// The newest epoch that is on the disks.
    pub applied: EpochNumber,
    /// The newest number that was given to an epoch.
    pub last_epoch: EpochNumber,
    pub disks: Vec<Disk>,
    pub points: BTreeMap<EpochNumber, Point>,
    pub aborted: BTreeSet<EpochNumber>,
    /// Sealed segments that belong to the log.
    pub segments: BTreeSet<u64>,
}

impl State {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        for number in [
            self.generation,
            self.committed.0,
            self.applied.0,
            self.last_epoch.0,
        ] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        put_disks(&mut out, &self.disks);
        put_count(&mut out, self.points.len());
        for point in self.points.values() {
            point.encode(&mut out);
        }
        put_numbers(
            &mut out,
            self.aborted.iter().map(|e| e.0).collect::<Vec<_>>().into_iter(),
        );
        put_numbers(
            &mut out,
            self.segments.iter().copied().collect::<Vec<_>>().into_iter(),
        );
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        let generation = from.u64()?;
        let committed = EpochNumber(from.u64()?);
        let applied = EpochNumber(from.u64()?);
        let last_epoch = EpochNumber(from.u64()?);
        let disks = disks(&mut from)?;
        let count = from.count(Point::ENCODED_SIZE_MIN - 6)?;
        let mut points = BTreeMap::new();
        for _ in 0..count {
            let point = Point::decode(&mut from)?;
            points.insert(point.epoch, point);
        }
        Ok(Self {
            generation,
            committed,
            applied,
            last_epoch,
            disks,
            points,
            aborted: numbers(&mut from)?.into_iter().map(EpochNumber).collect(),
            segments: numbers(&mut from)?.into_iter().collect(),
        })
    }

    /// Whether the numbers of its epochs can have been given by this program.
    pub(crate) fn epochs_are_within_reach(&self) -> bool {
        let newest = self.committed.max(self.last_epoch);
        self.applied <= newest
            && self.applied.is_within_reach(self.committed)
            && self.committed.is_within_reach(newest)
    }

    /// Whether the images of an epoch count.
    pub(crate) fn counts(&self, epoch: EpochNumber) -> bool {
        epoch <= self.committed && !self.aborted.contains(&epoch)
    }
}

/// Appends the table of disks.
pub(crate) fn put_disks(out: &mut Vec<u8>, disks: &[Disk]) {
    put_count(out, disks.len());
    for disk in disks {
        out.extend_from_slice(&disk.size.to_le_bytes());
        put_text(out, &disk.id);
    }
}

/// Reads the table of disks.
pub(crate) fn disks(from: &mut Reader<'_>) -> Result<Vec<Disk>, Malformed> {
    let count = from.count(10)?;
    if count > DISKS_MAX {
        return Err("there are more disks than a machine can have");
    }
    (0..count)
        .map(|_| {
            Ok(Disk {
                size: from.u64()?,
                id: from.text()?,
            })
        })
        .collect()
}
