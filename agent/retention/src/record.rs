//! A record: what the log is made of.
//!
//! A record is a *head* and, for images, the *data* behind it. Both begin at a multiple of 4 KiB, so that direct I/O can
//! write them and a reader that lost its place can find the next one. A head of 4 KiB for each block of 4 KiB would
//! double the log, so one head describes a batch: 256 blocks of 4 KiB have a head of 20 KiB, 2 % of the record, and each
//! extent still carries the digest that was made when the source read it.
//!
//! All integers are little-endian.
//!
//! | offset | size | name | meaning |
//! |---|---|---|---|
//! | 0 | 4 | magic | `MTRR` |
//! | 4 | 2 | version | 1 |
//! | 6 | 1 | kind | see [`Kind`] |
//! | 7 | 1 | reserved | 0 |
//! | 8 | 16 | store | UUID of the store |
//! | 24 | 8 | segment | sequence number of the segment it lies in |
//! | 32 | 4 | index | 0 for the first record of its segment |
//! | 36 | 4 | entries | extents described below; 0 when the body is something else |
//! | 40 | 8 | epoch | the epoch meant; 0 in a record of relocated extents |
//! | 48 | 4 | head blocks | size of the head, in blocks of 4 KiB |
//! | 52 | 4 | data blocks | size of the data, in blocks of 4 KiB |
//! | 56 | 4 | durable | position in this segment, in blocks: all before it was durable when this record was made |
//! | 60 | 4 | previous | CRC of the record before it in the segment, 0 for the first |
//! | 64 | 4 | body length | bytes of the body |
//! | 68 | 56 | reserved | 0 |
//! | 124 | 4 | crc | CRC-32C of the whole head with this field 0 |
//! | 128 | | body | extents, or what the kind says |
//!
//! An extent, 64 bytes, the same in a record and in the footer of a segment:
//!
//! | offset | size | name | meaning |
//! |---|---|---|---|
//! | 0 | 2 | disk | position in the table of disks |
//! | 2 | 1 | kind | 1 after-image, 2 before-image |
//! | 3 | 1 | flags | 1: the content is zeros and has no data; 2: relocated from an older segment; 4: the data is packed, see `pack` |
//! | 4 | 4 | count | blocks of 4 KiB; where it is packed the lower half, and the upper half is how many its data takes |
//! | 8 | 8 | block | first block on the disk |
//! | 16 | 8 | epoch | of an after-image: that wrote it; of a before-image: that is about to overwrite it |
//! | 24 | 4 | data | position of the data in the segment, in blocks |
//! | 28 | 4 | ordinal | position among the extents of the segment; of two in one epoch the later one counts |
//! | 32 | 32 | digest | BLAKE3 of the content up to the end of the disk; zeros for zeros |
//!
//! Torn by a crash: anything that was not durable. A torn head fails its CRC, torn data its digest; a record of an older
//! life of the same space names another store, segment or index, and one that follows a hole names another predecessor.
//!
//! Worked example, an APPLIED record for epoch 7, first in segment 2 of store `11..11`:
//!
//! ```text
//! 00  4d 54 52 52 01 00 04 00  11 11 11 11 11 11 11 11   MTRR, version 1, APPLIED
//! 10  11 11 11 11 11 11 11 11  02 00 00 00 00 00 00 00   store, segment 2
//! 20  00 00 00 00 00 00 00 00  07 00 00 00 00 00 00 00   index 0, no extents, epoch 7
//! 30  01 00 00 00 00 00 00 00  01 00 00 00 00 00 00 00   one block of head, no data, the header was durable
//! 40  00 00 00 00 ..                                     no body
//! 7c  crc
//! ```

use crate::codec::{Malformed, Reader, u32_of, usize_of};
use crate::types::{BLOCK_SIZE, Digest, DiskIndex, EpochNumber, StoreUuid};

const MAGIC: [u8; 4] = *b"MTRR";
const VERSION: u16 = 1;
/// Bytes of a head before its body.
pub(crate) const HEADER_SIZE: usize = 128;
/// Position of a head's checksum, bytes.
pub(crate) const CRC_AT: usize = 124;
/// Bytes of an extent.
pub(crate) const ENTRY_SIZE: usize = 64;
/// Most extents of one record. The head stays under 64 KiB, so that finding the next record reads little.
pub(crate) const ENTRIES_MAX: usize = 1000;
/// Largest head, in blocks: bodies that are lists of points or segments may be long.
const HEAD_BLOCKS_MAX: u32 = 4096;

const _: () = assert!(CRC_AT + 4 == HEADER_SIZE);
const _: () = assert!(HEADER_SIZE + ENTRIES_MAX * ENTRY_SIZE <= 16 * BLOCK_SIZE);

/// What a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// 1: after-images of an epoch, or relocated ones of several.
    After,
    /// 2: before-images, durable before what they show is overwritten.
    Base,
    /// 3: the epoch is complete, and every number between it and the one completed before was given up. Body: `Commit`.
    Commit,
    /// 4: the epoch, and all before it, is on the disks, and they were flushed.
    Applied,
    /// 5: points that are no longer offered, pinned or released. Body: `PointChanges`.
    Points,
    /// 6: segments that are no longer part of the log. Body: a count and their numbers.
    Segments,
}

impl Kind {
    fn code(self) -> u8 {
        match self {
            Self::After => 1,
            Self::Base => 2,
            Self::Commit => 3,
            Self::Applied => 4,
            Self::Points => 5,
            Self::Segments => 6,
        }
    }

    fn from_code(code: u8) -> Result<Self, Malformed> {
        Ok(match code {
            1 => Self::After,
            2 => Self::Base,
            3 => Self::Commit,
            4 => Self::Applied,
            5 => Self::Points,
            6 => Self::Segments,
            _ => return Err("a record of an unknown kind"),
        })
    }
}

/// After-image or before-image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Image {
    After,
    Base,
}

/// An extent of a disk and where its content lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Entry {
    pub disk: DiskIndex,
    pub image: Image,
    pub zero: bool,
    pub relocated: bool,
    /// Blocks of the disk.
    pub count: u32,
    /// Blocks that the data takes in the log, where it is packed.
    pub packed: Option<u16>,
    pub block: u64,
    pub epoch: EpochNumber,
    pub data: u32,
    pub ordinal: u32,
    pub digest: Digest,
}

impl Entry {
    /// First block behind it.
    pub(crate) fn end(&self) -> u64 {
        self.block + u64::from(self.count)
    }

    /// Blocks that its data takes in the log.
    pub(crate) fn stored(&self) -> u32 {
        match self.packed {
            _ if self.zero => 0,
            Some(blocks) => u32::from(blocks),
            None => self.count,
        }
    }

    /// First block of the segment behind its data.
    pub(crate) fn data_end(&self) -> u64 {
        u64::from(self.data) + u64::from(self.stored())
    }

    pub(crate) fn encode(&self) -> [u8; ENTRY_SIZE] {
        let mut out = [0; ENTRY_SIZE];
        out[0..2].copy_from_slice(&self.disk.0.to_le_bytes());
        out[2] = match self.image {
            Image::After => 1,
            Image::Base => 2,
        };
        out[3] = u8::from(self.zero) | u8::from(self.relocated) << 1 | u8::from(self.packed.is_some()) << 2;
        // An extent that is packed has 256 blocks at most.
        let count = self.count | self.packed.map_or(0, |blocks| u32::from(blocks) << 16);
        out[4..8].copy_from_slice(&count.to_le_bytes());
        out[8..16].copy_from_slice(&self.block.to_le_bytes());
        out[16..24].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[24..28].copy_from_slice(&self.data.to_le_bytes());
        out[28..32].copy_from_slice(&self.ordinal.to_le_bytes());
        out[32..64].copy_from_slice(&self.digest);
        out
    }

    pub(crate) fn decode(from: &mut Reader<'_>) -> Result<Self, Malformed> {
        let disk = DiskIndex(from.u16()?);
        let image = match from.u8()? {
            1 => Image::After,
            2 => Image::Base,
            _ => return Err("an extent of an unknown kind"),
        };
        let flags = from.u8()?;
        let count = from.u32()?;
        let (count, packed) = if flags & 4 == 0 {
            (count, None)
        } else {
            let [low, high] = [count & 0xffff, count >> 16];
            (low, u16::try_from(high).ok())
        };
        let entry = Self {
            disk,
            image,
            zero: flags & 1 != 0,
            relocated: flags & 2 != 0,
            count,
            packed,
            block: from.u64()?,
            epoch: EpochNumber(from.u64()?),
            data: from.u32()?,
            ordinal: from.u32()?,
            digest: from.array()?,
        };
        // The largest disk has 2^38 blocks; so no sum of these can wrap.
        let packs_well = packed.is_none_or(|blocks| blocks > 0 && u32::from(blocks) < count && !entry.zero);
        if flags & !7 != 0 || entry.count == 0 || entry.block >= 1 << 40 || !packs_well {
            return Err("an extent is out of bounds");
        }
        Ok(entry)
    }

    /// A sum over the extents of an epoch, which does not depend on their order.
    pub(crate) fn checksum(&self) -> u64 {
        u64::from(crc32c::crc32c(&self.encode()))
    }
}

/// Head of a record, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Head {
    pub kind: Kind,
    pub store: StoreUuid,
    pub segment: u64,
    pub index: u32,
    pub epoch: EpochNumber,
    pub head_blocks: u32,
    pub data_blocks: u32,
    pub durable: u32,
    pub previous: u32,
    pub crc: u32,
    pub body: Vec<u8>,
    pub entries: u32,
}

/// What goes into a head; sizes and checksum follow from it.
#[derive(Debug)]
pub(crate) struct NewHead<'a> {
    pub kind: Kind,
    pub store: StoreUuid,
    pub segment: u64,
    pub index: u32,
    pub epoch: EpochNumber,
    pub data_blocks: u32,
    pub durable: u32,
    pub previous: u32,
    pub body: &'a [u8],
    pub entries: u32,
}

/// Blocks of a head with a body of this length.
pub(crate) fn head_blocks(body: usize) -> u32 {
    u32_of((HEADER_SIZE + body).div_ceil(BLOCK_SIZE))
}

impl NewHead<'_> {
    /// The head's bytes, whole blocks, and its CRC.
    pub(crate) fn encode(&self) -> (Vec<u8>, u32) {
        let blocks = head_blocks(self.body.len());
        let mut out = vec![0; usize_of(u64::from(blocks)) * BLOCK_SIZE];
        out[0..4].copy_from_slice(&MAGIC);
        out[4..6].copy_from_slice(&VERSION.to_le_bytes());
        out[6] = self.kind.code();
        out[8..24].copy_from_slice(&self.store);
        out[24..32].copy_from_slice(&self.segment.to_le_bytes());
        out[32..36].copy_from_slice(&self.index.to_le_bytes());
        out[36..40].copy_from_slice(&self.entries.to_le_bytes());
        out[40..48].copy_from_slice(&self.epoch.0.to_le_bytes());
        out[48..52].copy_from_slice(&blocks.to_le_bytes());
        out[52..56].copy_from_slice(&self.data_blocks.to_le_bytes());
        out[56..60].copy_from_slice(&self.durable.to_le_bytes());
        out[60..64].copy_from_slice(&self.previous.to_le_bytes());
        out[64..68].copy_from_slice(&u32_of(self.body.len()).to_le_bytes());
        out[HEADER_SIZE..HEADER_SIZE + self.body.len()].copy_from_slice(self.body);
        let crc = crc32c::crc32c(&out);
        out[CRC_AT..HEADER_SIZE].copy_from_slice(&crc.to_le_bytes());
        (out, crc)
    }
}

/// How many blocks the head has that begins with this block, when it is a head of this store and segment at all.
pub(crate) fn peek(block: &[u8], store: &StoreUuid, segment: u64) -> Result<u32, Malformed> {
    let mut from = Reader::new(block);
    if from.array()? != MAGIC {
        return Err("no record begins here");
    }
    if from.u16()? != VERSION {
        return Err("a record of an unknown version");
    }
    let _kind_and_reserved = from.u16()?;
    if from.array::<16>()? != *store {
        return Err("a record of another store");
    }
    if from.u64()? != segment {
        return Err("a record of another segment");
    }
    let _index_entries_epoch = from.bytes(16)?;
    let blocks = from.u32()?;
    if blocks == 0 || blocks > HEAD_BLOCKS_MAX {
        return Err("a record's head is out of bounds");
    }
    Ok(blocks)
}

impl Head {
    /// Decodes a head that [`peek`] has accepted; `bytes` are all its blocks.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut from = Reader::new(bytes);
        let _magic_version = from.bytes(6)?;
        let kind = from.u8();
        let _reserved = from.u8()?;
        let store = from.array()?;
        let segment = from.u64()?;
        let index = from.u32()?;
        let entries = from.u32()?;
        let epoch = EpochNumber(from.u64()?);
        let head_blocks = from.u32()?;
        let data_blocks = from.u32()?;
        let durable = from.u32()?;
        let previous = from.u32()?;
        let body_len = usize_of(u64::from(from.u32()?));
        let _reserved = from.bytes(56)?;
        let crc = from.u32()?;
        if bytes.len() != usize_of(u64::from(head_blocks)) * BLOCK_SIZE {
            return Err("a record's head is cut");
        }
        let whole = crc32c::crc32c(&bytes[..CRC_AT]);
        let whole = crc32c::crc32c_append(whole, &[0; 4]);
        if crc32c::crc32c_append(whole, &bytes[HEADER_SIZE..]) != crc {
            return Err("a record's head fails its checksum");
        }
        let body = from.bytes(body_len)?.to_vec();
        if body_len < usize_of(u64::from(entries)) * ENTRY_SIZE {
            return Err("a record has fewer extents than it says");
        }
        Ok(Self {
            kind: Kind::from_code(kind?)?,
            store,
            segment,
            index,
            epoch,
            head_blocks,
            data_blocks,
            durable,
            previous,
            crc,
            body,
            entries,
        })
    }

    /// The extents of a record of images.
    pub(crate) fn entries(&self) -> Result<Vec<Entry>, Malformed> {
        let mut from = Reader::new(&self.body);
        (0..self.entries).map(|_| Entry::decode(&mut from)).collect()
    }
}
