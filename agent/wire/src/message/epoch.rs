//! Bodies of machines and epochs.
//!
//! An epoch holds the changes of *all* disks of a machine between two consistent instants. It becomes visible as a whole
//! with `EndEpoch` or not at all. The totals of `EndEpoch` cover what went over this connection since `EpochBegun`, so
//! that a frame which a relay dropped and renumbered is noticed before the epoch is committed:
//!
//! ```text
//! chain(0)   = 32 zero bytes
//! chain(n+1) = BLAKE3(chain(n), disk, offset, length, digest)     disk 2 bytes, offset and length 8, little-endian
//! ```
//!
//! with one link for each extent and, with a digest of zeros, for each zero range, in the order in which they are sent.
//! `disk` is the index in `OpenMachine`.

use super::check::{bounded, name};
use super::{Digest, Extent, Range};
use crate::codec::{Reader, put_text};
use crate::frame::WireError;
use crate::limits::{DISK_SIZE_MAX, MACHINE_DISKS_MAX, NAME_BYTES_MAX, TAG_BYTES_MAX, TAGS_MAX};

/// Names a machine and all of its protected disks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenMachine {
    /// Name of the protected machine.
    pub machine: String,
    /// The newest generation that the source knows; 0 when it knows none. An older one than the target's is refused: the
    /// source was left behind by a failover.
    pub generation: u64,
    /// The retention store that the source's newest epoch went to; all zero when there is none.
    pub store_id: [u8; 16],
    /// The newest epoch of that store which the source was told is durable; 0 when there is none. A store that does not
    /// have it was set back, and is refused until it is begun anew.
    pub confirmed_epoch: u64,
    /// All protected disks of the machine. Their place in this list is their index.
    pub disks: Vec<MachineDisk>,
}

/// A protected disk as its source sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineDisk {
    /// Name, such as `scsi0:1`.
    pub name: String,
    /// Size in bytes.
    pub size: u64,
    /// Logical block size in bytes.
    pub logical_block_size: u32,
}

/// The machine is open and all of its target disks are held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MachineOpened {
    /// The machine's generation.
    pub generation: u64,
    /// The retention store that keeps the machine's recovery points; all zero when there is none and epochs go straight to
    /// the disks.
    pub store_id: [u8; 16],
    /// The newest epoch that is durable; 0 when there is none.
    pub newest_epoch: u64,
}

/// Begins an epoch, or goes on with one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BeginEpoch {
    /// The epoch that the source could go on with; all zero when there is none.
    pub resume_epoch_id: [u8; 16],
}

/// The epoch is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochBegun {
    /// The epoch this is: the one that was named, when it is still open, or a new one.
    pub epoch_id: [u8; 16],
    /// Its number, one more than the newest.
    pub epoch: u64,
}

/// What an instant is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Consistency {
    /// As if the power had failed at that instant.
    Crash,
    /// File systems were frozen.
    FileSystem,
    /// Applications were quiet too.
    Application,
}

impl Consistency {
    /// The number on the wire.
    pub fn number(self) -> u8 {
        match self {
            Self::Crash => 1,
            Self::FileSystem => 2,
            Self::Application => 3,
        }
    }

    /// The consistency with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Crash),
            2 => Some(Self::FileSystem),
            3 => Some(Self::Application),
            _ => None,
        }
    }

    /// The word for it on the command line, in logs and JSON.
    pub fn word(self) -> &'static str {
        match self {
            Self::Crash => "crash",
            Self::FileSystem => "file-system",
            Self::Application => "application",
        }
    }
}

/// A key and a value that whoever makes a point gives it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tag {
    /// Key, never empty.
    pub key: String,
    /// Value.
    pub value: String,
}

/// The instant that an epoch leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EndEpoch {
    /// What it is worth.
    pub consistency: Consistency,
    /// When it was, by the source's clock: milliseconds since 1970 in UTC.
    pub time_ms: u64,
    /// Name of the recovery point; may be empty.
    pub name: String,
    /// Tags of the recovery point.
    pub tags: Vec<Tag>,
    /// What the source sent.
    pub totals: EpochTotals,
}

/// What went over a connection since an epoch was begun on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EpochTotals {
    /// Bytes of extents.
    pub bytes_sent: u64,
    /// Bytes of zero ranges.
    pub bytes_zeroed: u64,
    /// The chain, see the module's text.
    pub chain: Digest,
}

impl EpochTotals {
    /// Adds an extent of the disk with this index.
    pub fn add_extent(&mut self, disk: u16, extent: &Extent) {
        self.bytes_sent = self.bytes_sent.wrapping_add(u64::from(extent.len));
        self.link(disk, extent.offset, u64::from(extent.len), &extent.digest);
    }

    /// Adds a zero range of the disk with this index.
    pub fn add_zeros(&mut self, disk: u16, range: &Range) {
        self.bytes_zeroed = self.bytes_zeroed.wrapping_add(range.len);
        self.link(disk, range.offset, range.len, &[0; 32]);
    }

    fn link(&mut self, disk: u16, offset: u64, len: u64, digest: &Digest) {
        let mut hasher = blake3::Hasher::new();
        hasher.update(&self.chain);
        hasher.update(&disk.to_le_bytes());
        hasher.update(&offset.to_le_bytes());
        hasher.update(&len.to_le_bytes());
        hasher.update(digest);
        self.chain = *hasher.finalize().as_bytes();
    }
}

/// The epoch is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EpochDurable {
    /// Its number.
    pub epoch: u64,
    /// The recovery point that it ends in; 0 when the target keeps none.
    pub point: u64,
}

/// Content of one disk that is known to have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochExtents {
    /// Index of the disk.
    pub disk: u16,
    /// The extents, ascending.
    pub extents: Vec<Extent>,
}

/// Ranges of one disk that are known to have become zero.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EpochZeroRanges {
    /// Index of the disk.
    pub disk: u16,
    /// The ranges, ascending.
    pub ranges: Vec<Range>,
}

impl OpenMachine {
    pub(super) fn encode(&self, body: &mut Vec<u8>) {
        put_text(body, &self.machine, NAME_BYTES_MAX);
        body.extend_from_slice(&self.generation.to_le_bytes());
        body.extend_from_slice(&self.store_id);
        body.extend_from_slice(&self.confirmed_epoch.to_le_bytes());
        put_short_count(body, self.disks.len());
        for disk in &self.disks {
            put_text(body, &disk.name, NAME_BYTES_MAX);
            body.extend_from_slice(&disk.size.to_le_bytes());
            body.extend_from_slice(&disk.logical_block_size.to_le_bytes());
        }
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let machine = name(reader, "machine name")?;
        let generation = reader.u64("generation")?;
        let store_id = reader.array("store id")?;
        let confirmed_epoch = reader.u64("confirmed epoch")?;
        let count = short_count(reader, MACHINE_DISKS_MAX, "disk count")?;
        if count == 0 {
            return Err(WireError::Contradiction {
                what: "a machine without disks",
            });
        }
        let mut disks: Vec<MachineDisk> = Vec::with_capacity(count);
        for _ in 0..count {
            let disk = MachineDisk {
                name: name(reader, "disk name")?,
                size: bounded(reader.u64("disk size")?, DISK_SIZE_MAX, "disk size")?,
                logical_block_size: reader.u32("logical block size")?,
            };
            if disks.iter().any(|other| other.name == disk.name) {
                return Err(WireError::Contradiction {
                    what: "a machine with two disks of one name",
                });
            }
            disks.push(disk);
        }
        Ok(Self {
            machine,
            generation,
            store_id,
            confirmed_epoch,
            disks,
        })
    }
}

impl MachineOpened {
    pub(super) fn encode(&self, body: &mut Vec<u8>) {
        body.extend_from_slice(&self.generation.to_le_bytes());
        body.extend_from_slice(&self.store_id);
        body.extend_from_slice(&self.newest_epoch.to_le_bytes());
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            generation: reader.u64("generation")?,
            store_id: reader.array("store id")?,
            newest_epoch: reader.u64("newest epoch")?,
        })
    }
}

impl BeginEpoch {
    pub(super) fn encode(&self, body: &mut Vec<u8>) {
        body.extend_from_slice(&self.resume_epoch_id);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            resume_epoch_id: reader.array("resume epoch id")?,
        })
    }
}

impl EpochBegun {
    pub(super) fn encode(&self, body: &mut Vec<u8>) {
        body.extend_from_slice(&self.epoch_id);
        body.extend_from_slice(&self.epoch.to_le_bytes());
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            epoch_id: reader.array("epoch id")?,
            epoch: reader.u64("epoch")?,
        })
    }
}

impl EndEpoch {
    pub(super) fn encode(&self, body: &mut Vec<u8>) {
        body.push(self.consistency.number());
        body.extend_from_slice(&self.time_ms.to_le_bytes());
        put_text(body, &self.name, TAG_BYTES_MAX);
        put_short_count(body, self.tags.len());
        for tag in &self.tags {
            put_text(body, &tag.key, TAG_BYTES_MAX);
            put_text(body, &tag.value, TAG_BYTES_MAX);
        }
        body.extend_from_slice(&self.totals.bytes_sent.to_le_bytes());
        body.extend_from_slice(&self.totals.bytes_zeroed.to_le_bytes());
        body.extend_from_slice(&self.totals.chain);
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        let number = reader.u8("consistency")?;
        let consistency = Consistency::from_number(number).ok_or(WireError::Unknown {
            field: "consistency",
            found: u64::from(number),
        })?;
        // Far beyond any clock, and small enough that no arithmetic on it can wrap.
        let time_ms = bounded(reader.u64("time")?, 1 << 48, "time")?;
        let name = printable(reader, "point name")?;
        let count = short_count(reader, TAGS_MAX, "tag count")?;
        let mut tags = Vec::with_capacity(count);
        for _ in 0..count {
            let key = printable(reader, "tag key")?;
            if key.is_empty() {
                return Err(WireError::NotText { field: "tag key" });
            }
            let value = printable(reader, "tag value")?;
            tags.push(Tag { key, value });
        }
        Ok(Self {
            consistency,
            time_ms,
            name,
            tags,
            totals: EpochTotals {
                bytes_sent: reader.u64("bytes sent")?,
                bytes_zeroed: reader.u64("bytes zeroed")?,
                chain: reader.array("chain")?,
            },
        })
    }
}

impl EpochDurable {
    pub(super) fn encode(&self, body: &mut Vec<u8>) {
        body.extend_from_slice(&self.epoch.to_le_bytes());
        body.extend_from_slice(&self.point.to_le_bytes());
    }

    pub(super) fn decode(reader: &mut Reader<'_>) -> Result<Self, WireError> {
        Ok(Self {
            epoch: reader.u64("epoch")?,
            point: reader.u64("point")?,
        })
    }
}

pub(super) fn disk_index(reader: &mut Reader<'_>) -> Result<u16, WireError> {
    let index = reader.u16("disk index")?;
    bounded(u64::from(index), MACHINE_DISKS_MAX as u64 - 1, "disk index")?;
    Ok(index)
}

fn printable(reader: &mut Reader<'_>, field: &'static str) -> Result<String, WireError> {
    let text = reader.text(TAG_BYTES_MAX, field)?;
    if text.chars().any(char::is_control) {
        return Err(WireError::NotText { field });
    }
    Ok(text)
}

fn short_count(reader: &mut Reader<'_>, max: usize, field: &'static str) -> Result<usize, WireError> {
    let found = usize::from(reader.u16(field)?);
    bounded(found as u64, max as u64, field)?;
    Ok(found)
}

fn put_short_count(body: &mut Vec<u8>, count: usize) {
    let count = u16::try_from(count).unwrap_or(u16::MAX);
    body.extend_from_slice(&count.to_le_bytes());
}
