//! The values in the programs' maps, as bytes: the same structures as in `bpf/tracker.bpf.c`.
//!
//! They never leave the machine, so they are in its own byte order; the durable form is in [`crate::record`].

use std::ops::Sub;

/// Disks that one tracker can follow: 4 controllers of 64 disks, the most that vSphere attaches.
pub(crate) const DISKS_MAX: u32 = 256;
/// Size of one value of a map of marks, bytes.
pub(crate) const PAGE: u64 = 4096;

#[expect(
    clippy::host_endian_bytes,
    reason = "the kernel on this machine reads and writes them"
)]
fn word(bytes: &[u8], index: usize) -> Option<u64> {
    let at = index.checked_mul(8)?;
    Some(u64::from_ne_bytes(
        bytes.get(at..at.checked_add(8)?)?.try_into().ok()?,
    ))
}

#[expect(
    clippy::host_endian_bytes,
    reason = "the kernel on this machine reads and writes them"
)]
fn half(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

/// The number in a key or value of 4 bytes.
pub(crate) fn u32_of(bytes: &[u8]) -> Option<u32> {
    half(bytes, 0)
}

/// A key or value of 4 bytes.
#[expect(
    clippy::host_endian_bytes,
    reason = "the kernel on this machine reads and writes them"
)]
pub(crate) fn u32_bytes(value: u32) -> [u8; 4] {
    value.to_ne_bytes()
}

/// `struct geometry`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) chunks: u64,
    pub(crate) since_ns: u64,
    pub(crate) dev: u32,
    pub(crate) shift: u32,
    pub(crate) kept: Kept,
}

/// What of a disk only agents read: so that another can go on where one has ended.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Kept {
    pub(crate) disk_bytes: u64,
    pub(crate) sequence: u64,
    pub(crate) misses: u64,
    /// The baseline in sectors; `None` until it has been measured.
    pub(crate) base: Option<(u64, u64)>,
}

impl Geometry {
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let base = (word(bytes, 6)?, word(bytes, 7)?);
        Some(Self {
            chunks: word(bytes, 0)?,
            since_ns: word(bytes, 1)?,
            dev: half(bytes, 16)?,
            shift: half(bytes, 20)?,
            kept: Kept {
                disk_bytes: word(bytes, 3)?,
                sequence: word(bytes, 4)?,
                misses: word(bytes, 5)?,
                base: (word(bytes, 8)? == 1).then_some(base),
            },
        })
    }

    #[expect(
        clippy::host_endian_bytes,
        reason = "the kernel on this machine reads and writes them"
    )]
    pub(crate) fn to_bytes(self) -> [u8; 72] {
        let mut bytes = [0; 72];
        bytes[..8].copy_from_slice(&self.chunks.to_ne_bytes());
        bytes[8..16].copy_from_slice(&self.since_ns.to_ne_bytes());
        bytes[16..20].copy_from_slice(&self.dev.to_ne_bytes());
        bytes[20..24].copy_from_slice(&self.shift.to_ne_bytes());
        let (write, discard) = self.kept.base.unwrap_or_default();
        let kept = [
            self.kept.disk_bytes,
            self.kept.sequence,
            self.kept.misses,
            write,
            discard,
            u64::from(self.kept.base.is_some()),
        ];
        for (place, value) in bytes[24..].chunks_mut(8).zip(kept) {
            place.copy_from_slice(&value.to_ne_bytes());
        }
        bytes
    }
}

/// `struct entry`: a request, and what of it is under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) sector: u64,
    pub(crate) bytes: u32,
    pub(crate) slot: u32,
    pub(crate) discard: bool,
    pub(crate) scattered: bool,
}

impl Entry {
    /// The key of a note that no request has, and which is therefore always there.
    pub(crate) const SENTINEL: [u8; 8] = [0; 8];

    /// The bytes of a note without anything under way.
    pub(crate) fn zeros() -> [u8; 24] {
        [0; 24]
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            sector: word(bytes, 0)?,
            bytes: half(bytes, 8)?,
            slot: half(bytes, 12)?,
            discard: half(bytes, 16)? != 0,
            scattered: half(bytes, 20)? != 0,
        })
    }
}

/// What the programs have counted for one disk, over all processors. All fields only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Sectors of issued writes and discards, those of requeued requests as often as they were issued.
    pub issued: u64,
    /// Sectors of writes that were seen to complete.
    pub completed_write: u64,
    /// Sectors of discards that were seen to complete.
    pub completed_discard: u64,
    /// Requests that went back to the queue.
    pub requeued: u64,
    /// Requests whose completion was not seen, found when their address was used again.
    pub unseen: u64,
    /// Their sectors, of writes.
    pub unseen_write: u64,
    /// Their sectors, of discards.
    pub unseen_discard: u64,
    /// Those of them that were discards of several ranges, which are not known any more.
    pub unseen_scattered: u64,
    /// Completions of requests whose issue was not seen.
    pub unmatched: u64,
    /// The same, of requests that began before the tracking.
    pub before: u64,
    /// Requests that could not be noted as under way.
    pub inflight_full: u64,
    /// Commands by SG_IO and the like that send data to the device.
    pub pass_through_write: u64,
    /// Other commands by SG_IO and the like.
    pub pass_through_other: u64,
    /// Extents that end behind the last chunk.
    pub beyond: u64,
    /// Extents that could not be marked.
    pub unmarked: u64,
    /// Extents too long to be marked chunk by chunk.
    pub wide: u64,
}

impl Counters {
    const FIELDS: usize = 16;

    fn fields(&mut self) -> [&mut u64; Self::FIELDS] {
        [
            &mut self.issued,
            &mut self.completed_write,
            &mut self.completed_discard,
            &mut self.requeued,
            &mut self.unseen,
            &mut self.unseen_write,
            &mut self.unseen_discard,
            &mut self.unseen_scattered,
            &mut self.unmatched,
            &mut self.before,
            &mut self.inflight_full,
            &mut self.pass_through_write,
            &mut self.pass_through_other,
            &mut self.beyond,
            &mut self.unmarked,
            &mut self.wide,
        ]
    }

    /// The sum over all processors, each of whose values is one `struct counters`.
    pub(crate) fn sum(processors: &[Vec<u8>]) -> Option<Self> {
        let mut sum = Self::default();
        for bytes in processors {
            for (index, field) in sum.fields().into_iter().enumerate() {
                *field = field.wrapping_add(word(bytes, index)?);
            }
        }
        Some(sum)
    }

    /// Zeros for one processor.
    pub(crate) fn zeros() -> Vec<u8> {
        vec![0; Self::FIELDS * 8]
    }

    /// Sectors of writes that are known to have been issued and are not under way any more.
    #[must_use]
    pub fn settled_write(&self) -> u64 {
        self.completed_write.wrapping_add(self.unseen_write)
    }

    /// Sectors of discards that are known to have been issued and are not under way any more.
    #[must_use]
    pub fn settled_discard(&self) -> u64 {
        self.completed_discard.wrapping_add(self.unseen_discard)
    }
}

/// What was counted between two moments.
impl Sub for Counters {
    type Output = Self;

    fn sub(mut self, mut earlier: Self) -> Self {
        for (field, was) in self.fields().into_iter().zip(earlier.fields()) {
            *field = field.wrapping_sub(*was);
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_summed_field_by_field() {
        let mut one = Counters::default();
        for (index, field) in one.fields().into_iter().enumerate() {
            *field = 100 + u64::try_from(index).unwrap();
        }
        let bytes: Vec<u8> = one
            .fields()
            .into_iter()
            .flat_map(|field| field.to_ne_bytes())
            .collect();
        let sum = Counters::sum(&[bytes.clone(), bytes.clone(), Counters::zeros()]).unwrap();
        assert_eq!((sum.issued, sum.wide), (200, 230));
        assert_eq!((sum - one), one);
        assert_eq!(Counters::sum(&[bytes[..127].to_vec()]), None);
    }

    #[test]
    fn a_geometry_is_read_as_it_was_written() {
        for base in [None, Some((5, 6))] {
            let kept = Kept {
                disk_bytes: 7,
                sequence: 8,
                misses: 9,
                base,
            };
            let geometry = Geometry {
                chunks: 1,
                since_ns: 2,
                dev: 3,
                shift: 4,
                kept,
            };
            assert_eq!(Geometry::from_bytes(&geometry.to_bytes()), Some(geometry));
        }
        assert_eq!(Geometry::from_bytes(&[0; 71]), None);
    }

    #[test]
    fn an_entry_that_is_cut_short_is_none() {
        assert!(Entry::from_bytes(&[0; 24]).is_some());
        assert!(Entry::from_bytes(&[0; 23]).is_none());
    }
}
