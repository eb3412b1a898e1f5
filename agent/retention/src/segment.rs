//! A segment: one file of the log, append-only, and immutable once it is sealed.
//!
//! ```text
//! +--------+---------+---------+-- ... --+--------+---------+
//! | header | record  | record  |         | footer | trailer |
//! +--------+---------+---------+-- ... --+--------+---------+
//! ```
//!
//! The header carries the whole [`State`] at the time the segment was begun, so that no other file is needed to know the
//! points, and one damaged header costs nothing: the segment before it and its records say the same. Ten thousand points
//! are about 1 MB of it, less than 2 % of a segment of 64 MiB.
//!
//! The footer holds all extents of the segment, sorted by disk, block, epoch and ordinal: who looks for a block reads
//! this instead of the records. The trailer is the last block of the file; sealing cuts the file to its length.
//! A segment whose trailer or footer is missing is read record by record instead; that costs time and no content. One in which
//! a record was lost is left without a footer on purpose, so that every opening notices.
//!
//! All integers are little-endian. Header, in whole blocks of 4 KiB:
//!
//! | offset | size | name | meaning |
//! |---|---|---|---|
//! | 0 | 4 | magic | `MTRS` |
//! | 4 | 2 | version | 1 |
//! | 6 | 2 | reserved | 0 |
//! | 8 | 16 | store | UUID |
//! | 24 | 8 | sequence | of the segment; names the file too |
//! | 32 | 8 | size | bytes that were set aside for it |
//! | 40 | 4 | header blocks | size of this header, in blocks |
//! | 44 | 4 | state length | bytes of the state |
//! | 48 | 12 | reserved | 0 |
//! | 60 | 4 | crc | CRC-32C of the header with this field 0 |
//! | 64 | | state | see the module `meta` |
//!
//! Trailer, the last 4 KiB of the file:
//!
//! | offset | size | name | meaning |
//! |---|---|---|---|
//! | 0 | 4 | magic | `MTRT` |
//! | 4 | 2 | version | 1 |
//! | 6 | 2 | reserved | 0 |
//! | 8 | 16 | store | UUID |
//! | 24 | 8 | sequence | of the segment |
//! | 32 | 4 | end | position of the footer, in blocks: where the records end |
//! | 36 | 4 | entries | extents in the footer, 64 bytes each |
//! | 40 | 8 | first epoch | smallest epoch of its extents; 0 when there are none |
//! | 48 | 8 | last epoch | largest epoch of its extents |
//! | 56 | 8 | data bytes | what the extents' data takes |
//! | 64 | 32 | digest | BLAKE3 of the footer |
//! | 96 | 4 | crc | CRC-32C of the block with this field 0 |
//!
//! Worked example, the trailer of an empty segment 2 of store `11..11` with one block of header:
//!
//! ```text
//! 00  4d 54 52 54 01 00 00 00  11 11 11 11 11 11 11 11   MTRT, version 1
//! 10  11 11 11 11 11 11 11 11  02 00 00 00 00 00 00 00   store, segment 2
//! 20  01 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00   records end at block 1, no extents
//! 30  00 00 00 00 00 00 00 00  00 00 00 00 00 00 00 00   no epochs, no data
//! 40  af 13 49 b9 ..                                     BLAKE3 of nothing
//! 60  crc
//! ```

use crate::codec::{Malformed, Reader, u32_of, usize_of};
use crate::meta::State;
use crate::record::{ENTRY_SIZE, Entry};
use crate::types::{BLOCK_SIZE, Digest, EpochNumber, StoreUuid, digest};

const HEADER_MAGIC: [u8; 4] = *b"MTRS";
const TRAILER_MAGIC: [u8; 4] = *b"MTRT";
const VERSION: u16 = 1;
const HEADER_SIZE: usize = 64;
/// Position of a header's checksum, bytes.
pub(crate) const HEADER_CRC_AT: usize = 60;
/// Position of a trailer's checksum, bytes.
pub(crate) const TRAILER_CRC_AT: usize = 96;
const _: () = assert!(HEADER_CRC_AT + 4 == HEADER_SIZE);
/// Bytes of a trailer that say something; the rest of its block is zeros.
pub(crate) const TRAILER_SIZE: usize = TRAILER_CRC_AT + 4;
const _: () = assert!(TRAILER_SIZE <= BLOCK_SIZE);
/// Largest header, in blocks: a state of a million points and more.
const HEADER_BLOCKS_MAX: u32 = 64 * 1024;

/// Header of a segment, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SegmentHeader {
    pub store: StoreUuid,
    pub seq: u64,
    pub size: u64,
    pub header_blocks: u32,
    pub state: State,
}

impl SegmentHeader {
    /// Blocks that the header of a state needs.
    pub(crate) fn blocks(state_len: usize) -> u32 {
        u32_of((HEADER_SIZE + state_len).div_ceil(BLOCK_SIZE))
    }

    /// Encodes a header of at least `blocks_min` blocks.
    pub(crate) fn encode(store: &StoreUuid, seq: u64, size: u64, state: &[u8], blocks_min: u32) -> Vec<u8> {
        let blocks = Self::blocks(state.len()).max(blocks_min);
        let mut out = vec![0; usize_of(u64::from(blocks)) * BLOCK_SIZE];
        out[0..4].copy_from_slice(&HEADER_MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[8..24].copy_from_slice(store);
        out[24..32].copy_from_slice(&seq.to_le_bytes());
        out[32..40].copy_from_slice(&size.to_le_bytes());
        out[40..44].copy_from_slice(&blocks.to_le_bytes());
        out[44..48].copy_from_slice(&u32_of(state.len()).to_le_bytes());
        out[HEADER_SIZE..HEADER_SIZE + state.len()].copy_from_slice(state);
        let crc = crc32c::crc32c(&out);
        out[HEADER_CRC_AT..HEADER_SIZE].copy_from_slice(&crc.to_le_bytes());
        out
    }

    /// How many blocks the header has that begins with this block.
    pub(crate) fn peek(block: &[u8]) -> Result<u32, Malformed> {
        let mut from = Reader::new(block);
        if from.array()? != HEADER_MAGIC {
            return Err("it does not begin as a segment does");
        }
        if from.u16()? != VERSION {
            return Err("a segment of an unknown version");
        }
        let _to_blocks = from.bytes(34)?;
        let blocks = from.u32()?;
        if blocks == 0 || blocks > HEADER_BLOCKS_MAX {
            return Err("a segment's header is out of bounds");
        }
        Ok(blocks)
    }

    /// Decodes a header; `bytes` are all its blocks.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        let _magic_version = from.bytes(8)?;
        let store = from.array()?;
        let seq = from.u64()?;
        let size = from.u64()?;
        let header_blocks = from.u32()?;
        let state_len = usize_of(u64::from(from.u32()?));
        let _reserved = from.bytes(12)?;
        let crc = from.u32()?;
        let whole = crc32c::crc32c(&bytes[..HEADER_CRC_AT]);
        let whole = crc32c::crc32c_append(whole, &[0; 4]);
        if crc32c::crc32c_append(whole, &bytes[HEADER_SIZE..]) != crc {
            return Err("a segment's header fails its checksum");
        }
        Ok(Self {
            store,
            seq,
            size,
            header_blocks,
            state: State::decode(from.bytes(state_len)?)?,
        })
    }
}

/// Trailer of a sealed segment, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Trailer {
    pub store: StoreUuid,
    pub seq: u64,
    pub end: u32,
    pub entries: u32,
    pub first_epoch: EpochNumber,
    pub last_epoch: EpochNumber,
    pub data_bytes: u64,
    pub digest: Digest,
}

impl Trailer {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; BLOCK_SIZE];
        out[0..4].copy_from_slice(&TRAILER_MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[8..24].copy_from_slice(&self.store);
        out[24..32].copy_from_slice(&self.seq.to_le_bytes());
        out[32..36].copy_from_slice(&self.end.to_le_bytes());
        out[36..40].copy_from_slice(&self.entries.to_le_bytes());
        out[40..48].copy_from_slice(&self.first_epoch.0.to_le_bytes());
        out[48..56].copy_from_slice(&self.last_epoch.0.to_le_bytes());
        out[56..64].copy_from_slice(&self.data_bytes.to_le_bytes());
        out[64..96].copy_from_slice(&self.digest);
        let crc = crc32c::crc32c(&out);
        out[TRAILER_CRC_AT..TRAILER_CRC_AT + 4].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub(crate) fn decode(block: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(block);
        if from.array()? != TRAILER_MAGIC {
            return Err("it has no trailer");
        }
        if from.u16()? != VERSION {
            return Err("a trailer of an unknown version");
        }
        let _reserved = from.u16()?;
        let trailer = Self {
            store: from.array()?,
            seq: from.u64()?,
            end: from.u32()?,
            entries: from.u32()?,
            first_epoch: EpochNumber(from.u64()?),
            last_epoch: EpochNumber(from.u64()?),
            data_bytes: from.u64()?,
            digest: from.array()?,
        };
        let crc = from.u32()?;
        let whole = crc32c::crc32c(&block[..TRAILER_CRC_AT]);
        let whole = crc32c::crc32c_append(whole, &[0; 4]);
        if crc32c::crc32c_append(whole, &block[TRAILER_CRC_AT + 4..]) != crc {
            return Err("a trailer fails its checksum");
        }
        Ok(trailer)
    }
}

/// Blocks of a footer with so many extents.
pub(crate) fn footer_blocks(entries: usize) -> u32 {
    u32_of((entries * ENTRY_SIZE).div_ceil(BLOCK_SIZE))
}

/// Sorts extents as a footer wants them.
pub(crate) fn sort(entries: &mut [Entry]) {
    entries.sort_unstable_by_key(|e| (e.disk, e.block, e.epoch, e.ordinal));
}

/// The footer of extents that [`sort`] has sorted, in whole blocks, and its digest.
pub(crate) fn encode_footer(entries: &[Entry]) -> (Vec<u8>, Digest) {
    let mut out = Vec::with_capacity(usize_of(u64::from(footer_blocks(entries.len()))) * BLOCK_SIZE);
    for entry in entries {
        out.extend_from_slice(&entry.encode());
    }
    out.resize(usize_of(u64::from(footer_blocks(entries.len()))) * BLOCK_SIZE, 0);
    let digest = digest(&out);
    (out, digest)
}

/// Decodes a footer and checks it against its trailer.
pub(crate) fn decode_footer(bytes: &[u8], trailer: &Trailer) -> Result<Vec<Entry>, Malformed> {
    if digest(bytes) != trailer.digest {
        return Err("a footer fails its checksum");
    }
    let mut from = Reader::new(bytes);
    (0..trailer.entries).map(|_| Entry::decode(&mut from)).collect()
}
