//! Words of the store: epochs, disks, points, extents.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::codec::{Malformed, Reader, put_count, put_text};

/// The unit of the store, bytes. Every extent begins at a multiple of it and ends at one, or at the end of its disk.
pub const BLOCK_SIZE: usize = 4096;
/// [`BLOCK_SIZE`] for arithmetic on offsets.
pub(crate) const BLOCK: u64 = 4096;
const _: () = assert!(BLOCK_SIZE as u64 == BLOCK);

/// Largest extent of data, bytes: what one frame of the wire carries.
pub const EXTENT_BYTES_MAX: usize = 1 << 20;
/// Most disks of one machine: four PVSCSI controllers of 15 each.
pub const DISKS_MAX: usize = 60;
/// Longest identity of a disk, bytes.
pub const DISK_ID_BYTES_MAX: usize = 110;
/// Longest name of a point, bytes.
pub const POINT_NAME_BYTES_MAX: usize = 256;
/// Most tags of a point, and the longest of them in bytes.
pub const POINT_TAGS_MAX: usize = 16;

/// BLAKE3, 32 bytes.
pub type Digest = [u8; 32];

/// Number of an epoch within its store. Epoch 0 is the disks as they were when the store was made. Numbers only grow;
/// one that was given up is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct EpochNumber(pub u64);

/// Most numbers that epochs may be apart where one follows the other: complete and on the disks, complete and given up. Far
/// more than ever waited or failed; numbers that are further apart were never given by this program.
pub(crate) const EPOCHS_APART_MAX: u64 = 1 << 20;

impl EpochNumber {
    /// Whether a number can come after this one.
    pub(crate) fn is_within_reach(self, later: Self) -> bool {
        later.0 <= self.0.saturating_add(EPOCHS_APART_MAX) && later.0 < u64::MAX
    }
}

impl fmt::Display for EpochNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Position of a disk in the store's table of disks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct DiskIndex(pub u16);

impl DiskIndex {
    pub(crate) fn at(self) -> usize {
        usize::from(self.0)
    }
}

impl fmt::Display for DiskIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "disk {}", self.0)
    }
}

/// One disk of the machine whose store this is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The SCSI ID of the target disk. A store is opened only for the disks that it was made for.
    pub id: String,
    /// Size in bytes, a multiple of 512.
    pub size: u64,
}

impl Disk {
    /// Blocks of the disk; the last may be cut by its end.
    pub(crate) fn blocks(&self) -> u64 {
        self.size.div_ceil(BLOCK)
    }
}

/// What may be expected of the file systems at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// As after pulling the plug.
    Crash,
    /// File systems were frozen.
    FileSystem,
    /// Applications took part.
    Application,
}

impl Consistency {
    fn code(self) -> u8 {
        match self {
            Self::Crash => 0,
            Self::FileSystem => 1,
            Self::Application => 2,
        }
    }

    fn from_code(code: u8) -> Result<Self, Malformed> {
        match code {
            0 => Ok(Self::Crash),
            1 => Ok(Self::FileSystem),
            2 => Ok(Self::Application),
            _ => Err("a point has an unknown consistency"),
        }
    }
}

/// Where the content of a point came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Origin {
    /// The disks as they were when the store was made: "before failback".
    Initial,
    /// The source sent it.
    Source,
    /// A roll to an older epoch.
    Roll {
        /// The epoch whose content this is.
        to: EpochNumber,
    },
    /// Nothing changed; it marks an instant, such as the one before a roll.
    Mark,
}

/// What the end of an epoch says about the instant it stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PointSpec {
    /// What may be expected of the file systems.
    pub consistency: Consistency,
    /// Milliseconds since 1970 on the source's clock.
    pub source_time_ms: i64,
    /// Milliseconds since 1970 on this machine's clock.
    pub received_time_ms: i64,
    /// For people; may be empty.
    pub name: String,
    /// For people and programs: `group=web`, `before-upgrade`.
    pub tags: Vec<String>,
}

/// A recovery point that the store offers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Point {
    /// The epoch at whose end it lies. Points are ordered by this, never by a clock.
    pub epoch: EpochNumber,
    /// What may be expected of the file systems.
    pub consistency: Consistency,
    /// Where the content came from.
    pub origin: Origin,
    /// Milliseconds since 1970 on the source's clock.
    pub source_time_ms: i64,
    /// Milliseconds since 1970 on this machine's clock, which policy goes by: a source cannot age its points.
    pub received_time_ms: i64,
    /// For people; may be empty.
    pub name: String,
    /// For people and programs.
    pub tags: Vec<String>,
    /// Kept whatever the policy says.
    pub pinned: bool,
    /// Bytes that its epoch changed.
    pub changed_bytes: u64,
}

impl Point {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.epoch.0.to_le_bytes());
        out.extend_from_slice(&self.source_time_ms.to_le_bytes());
        out.extend_from_slice(&self.received_time_ms.to_le_bytes());
        out.extend_from_slice(&self.changed_bytes.to_le_bytes());
        let (origin, to) = match self.origin {
            Origin::Initial => (0_u8, EpochNumber(0)),
            Origin::Source => (1, EpochNumber(0)),
            Origin::Roll { to } => (2, to),
            Origin::Mark => (3, EpochNumber(0)),
        };
        out.extend_from_slice(&to.0.to_le_bytes());
        out.push(origin);
        out.push(self.consistency.code());
        out.push(u8::from(self.pinned));
        out.push(0);
        put_text(out, &self.name);
        put_count(out, self.tags.len());
        for tag in &self.tags {
            put_text(out, tag);
        }
    }

    /// Bytes of the smallest encoded point.
    pub(crate) const ENCODED_SIZE_MIN: usize = 50;

    pub(crate) fn decode(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let epoch = EpochNumber(from.u64()?);
        let source_time_ms = from.i64()?;
        let received_time_ms = from.i64()?;
        let changed_bytes = from.u64()?;
        let to = EpochNumber(from.u64()?);
        let origin = match from.u8()? {
            0 => Origin::Initial,
            1 => Origin::Source,
            2 => Origin::Roll { to },
            3 => Origin::Mark,
            _ => return Err("a point has an unknown origin"),
        };
        let consistency = Consistency::from_code(from.u8()?)?;
        let pinned = from.u8()? != 0;
        let _reserved = from.u8()?;
        let name = from.text()?;
        let tags = from.count(2)?;
        let tags = (0..tags).map(|_| from.text()).collect::<Result<_, _>>()?;
        Ok(Self {
            epoch,
            consistency,
            origin,
            source_time_ms,
            received_time_ms,
            name,
            tags,
            pinned,
            changed_bytes,
        })
    }
}

/// Identity of a store: 16 random bytes, given at its creation.
pub type StoreUuid = [u8; 16];

/// A BLAKE3 digest of bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> Digest {
    *blake3::hash(bytes).as_bytes()
}
