//! The two superblocks: what is needed to know whose store this is before anything else is read.
//!
//! They are written in turn, the older one first, and each is synced before the other is touched: a crash tears at most
//! one. The one with the higher sequence that passes its checksum counts. A raised generation is written to both, since a
//! fence that one flipped byte takes down is none. Everything in them is in the header of the newest segment too, so a
//! store that lost both can be rebuilt.
//!
//! 16 KiB, little-endian:
//!
//! | offset | size | name | meaning |
//! |---|---|---|---|
//! | 0 | 8 | magic | `MTRETSUP` |
//! | 8 | 4 | version | 1 |
//! | 12 | 4 | body length | bytes from offset 64 |
//! | 16 | 16 | store | UUID |
//! | 32 | 8 | sequence | grows with each write; decides which of the two counts |
//! | 40 | 8 | generation | fences: refuses a source that was left behind by a failover |
//! | 48 | 8 | segment size | bytes |
//! | 56 | 4 | reserved | 0 |
//! | 60 | 4 | crc | CRC-32C of the 16 KiB with this field 0 |
//! | 64 | | body | applied epoch u64, committed epoch u64, table of disks: count u32, each size u64, identity text |
//!
//! The applied epoch is a hint: it is at most as new as the truth, and re-applying is harmless.

use crate::codec::{Malformed, Reader, u32_of};
use crate::meta::{disks, put_disks};
use crate::types::{DISK_ID_BYTES_MAX, DISKS_MAX, Disk, EpochNumber, StoreUuid};

const MAGIC: [u8; 8] = *b"MTRETSUP";
const VERSION: u32 = 1;
/// Size of a superblock, bytes.
pub(crate) const SUPERBLOCK_SIZE: usize = 16 * 1024;
const HEADER_SIZE: usize = 64;
/// Position of the checksum, bytes.
pub(crate) const CRC_AT: usize = 60;
const _: () = assert!(CRC_AT + 4 == HEADER_SIZE);
const _: () = assert!(HEADER_SIZE + 16 + 4 + DISKS_MAX * (10 + DISK_ID_BYTES_MAX) <= SUPERBLOCK_SIZE);

/// A superblock, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Superblock {
    pub store: StoreUuid,
    pub sequence: u64,
    pub generation: u64,
    pub segment_size: u64,
    pub applied: EpochNumber,
    pub committed: EpochNumber,
    pub disks: Vec<Disk>,
}

/// The version of a superblock that a newer program wrote, as far as bytes that do not check out can say so.
pub(crate) fn newer_version(bytes: &[u8]) -> Option<u32> {
    let mut from = Reader::new(bytes);
    let magic = from.array().ok()?;
    from.u32()
        .ok()
        .filter(|version| magic == MAGIC && *version > VERSION)
}

/// The version that this program writes.
pub(crate) const fn known_version() -> u32 {
    VERSION
}

impl Superblock {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut body = Vec::new();
        body.extend_from_slice(&self.applied.0.to_le_bytes());
        body.extend_from_slice(&self.committed.0.to_le_bytes());
        put_disks(&mut body, &self.disks);
        let mut out = vec![0; SUPERBLOCK_SIZE];
        out[0..8].copy_from_slice(&MAGIC);
        out[8..12].copy_from_slice(&VERSION.to_le_bytes());
        out[12..16].copy_from_slice(&u32_of(body.len()).to_le_bytes());
        out[16..32].copy_from_slice(&self.store);
        out[32..40].copy_from_slice(&self.sequence.to_le_bytes());
        out[40..48].copy_from_slice(&self.generation.to_le_bytes());
        out[48..56].copy_from_slice(&self.segment_size.to_le_bytes());
        out[HEADER_SIZE..HEADER_SIZE + body.len()].copy_from_slice(&body);
        let crc = crc32c::crc32c(&out);
        out[CRC_AT..HEADER_SIZE].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        if from.array()? != MAGIC {
            return Err("it is not a superblock");
        }
        if from.u32()? != VERSION {
            return Err("a superblock of an unknown version");
        }
        if bytes.len() != SUPERBLOCK_SIZE {
            return Err("a superblock is cut");
        }
        let body_len = from.u32()?;
        let store = from.array()?;
        let sequence = from.u64()?;
        let generation = from.u64()?;
        let segment_size = from.u64()?;
        let _reserved = from.u32()?;
        let crc = from.u32()?;
        let whole = crc32c::crc32c(&bytes[..CRC_AT]);
        let whole = crc32c::crc32c_append(whole, &[0; 4]);
        if crc32c::crc32c_append(whole, &bytes[HEADER_SIZE..]) != crc {
            return Err("a superblock fails its checksum");
        }
        let body_len = usize::try_from(body_len).map_err(|_| "a superblock's body is out of bounds")?;
        let mut body = Reader::new(from.bytes(body_len)?);
        Ok(Self {
            store,
            sequence,
            generation,
            segment_size,
            applied: EpochNumber(body.u64()?),
            committed: EpochNumber(body.u64()?),
            disks: disks(&mut body)?,
        })
    }
}
