//! Bodies of seeding and verifying.

use super::Digest;
use super::check::{block_mask, bounded, count, mask, name, put_count, region_offset};
use crate::codec::{Reader, put_text};
use crate::frame::WireError;
use crate::limits::{
    BLOCK_SIZE, BLOCKS_PER_REGION, DISK_SIZE_MAX, NAME_BYTES_MAX, REGION_SIZE, REGION_WINDOW_MAX,
    SUB_BLOCKS_PER_BLOCK,
};

/// What an opened pair is to be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Make the target disk equal to the protected disk.
    Seed,
    /// Compare only; not a byte is written.
    Verify,
    /// Since version 2, inside an epoch: compare with the newest state of the disk and add what differs to the epoch.
    Epoch,
}

/// Names the pair and says how the protected disk looks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenPair {
    /// What for.
    pub mode: Mode,
    /// Name of the protected machine.
    pub machine: String,
    /// Name of the protected disk, such as `scsi0:1`.
    pub disk: String,
    /// Size of the protected disk in bytes.
    pub size: u64,
    /// Logical block size of the protected disk in bytes.
    pub logical_block_size: u32,
    /// The seeding that the source could go on with; all zero when there is none.
    pub resume_seeding_id: [u8; 16],
    /// Up to where the target had confirmed that seeding, in bytes.
    pub resume_offset: u64,
    /// The newest generation of the pair that the source knows; 0 when it knows none. A target whose generation is
    /// newer refuses: the source was left behind by a failover.
    pub generation: u64,
}

/// The pair is open and the disk is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PairOpened {
    /// The seeding this is: the one that was named, when it can be gone on with, or a new one.
    pub seeding_id: [u8; 16],
    /// Where digests will begin, in bytes: a multiple of the region size.
    pub start: u64,
    /// The pair's generation.
    pub generation: u64,
    /// Most regions that may be announced and unsettled at a time.
    pub region_window: u16,
    /// The SCSI ID of the target disk, for people.
    pub scsi_id: String,
}

/// What a region holds: per block either "all zero" or a digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Digests {
    /// Offset of the region in bytes.
    pub offset: u64,
    /// Length of the region in bytes: the region size, or what is left at the end of the disk.
    pub len: u32,
    /// One entry a block: `None` when every byte of it is zero.
    pub blocks: Vec<Option<Digest>>,
}

/// Asks for the sub-digests of some blocks of a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WantSubDigests {
    /// Offset of the region in bytes.
    pub offset: u64,
    /// Bit n stands for block n of the region.
    pub blocks: u16,
}

/// Digests of the sub-blocks of the blocks that were asked for, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubDigests {
    /// Offset of the region in bytes.
    pub offset: u64,
    /// Bit n stands for block n of the region.
    pub blocks: u16,
    /// One digest a sub-block, block after block; the last block of a disk may have fewer.
    pub digests: Vec<Digest>,
}

/// A piece of the disk whose content travels in the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset on the disk in bytes.
    pub offset: u64,
    /// Length in bytes, 1 to 64 KiB, never over the border of a block.
    pub len: u32,
    /// BLAKE3 of the content, made when the source read it.
    pub digest: Digest,
}

/// A range of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// Offset in bytes.
    pub offset: u64,
    /// Length in bytes, at least 1.
    pub len: u64,
}

/// What a seeding or a verification came to: what was sent, or what would have to be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SeedingEnd {
    /// Bytes of content that differ; when seeding they were sent.
    pub bytes_sent: u64,
    /// Bytes that are zero on the protected disk and not on the target disk; when seeding they were sent as ranges.
    pub bytes_zeroed: u64,
}

impl OpenPair {
    pub(super) fn encode(&self, body: &mut Vec<u8>) {
        body.push(match self.mode {
            Mode::Seed => 1,
            Mode::Verify => 2,
            Mode::Epoch => 3,
        });
        put_text(body, &self.machine, NAME_BYTES_MAX);
        put_text(body, &self.disk, NAME_BYTES_MAX);
        body.extend_from_slice(&self.size.to_le_bytes());
        body.extend_from_slice(&self.logical_block_size.to_le_bytes());
        body.extend_from_slice(&self.resume_seeding_id);
        body.extend_from_slice(&self.resume_offset.to_le_bytes());
        body.extend_from_slice(&self.generation.to_le_bytes());
    }
}

impl PairOpened {
    pub(super) fn encode(&self, body: &mut Vec<u8>) {
        body.extend_from_slice(&self.seeding_id);
        body.extend_from_slice(&self.start.to_le_bytes());
        body.extend_from_slice(&self.generation.to_le_bytes());
        body.extend_from_slice(&self.region_window.to_le_bytes());
        put_text(body, &self.scsi_id, NAME_BYTES_MAX);
    }
}

impl Digests {
    pub(super) fn encode(&self, body: &mut Vec<u8>) {
        let zero_mask = mask(self.blocks.iter().map(Option::is_none));
        body.extend_from_slice(&self.offset.to_le_bytes());
        body.extend_from_slice(&self.len.to_le_bytes());
        body.extend_from_slice(&zero_mask.to_le_bytes());
        for digest in self.blocks.iter().flatten() {
            body.extend_from_slice(digest);
        }
    }
}

impl SubDigests {
    pub(super) fn encode(&self, body: &mut Vec<u8>) {
        body.extend_from_slice(&self.offset.to_le_bytes());
        body.extend_from_slice(&self.blocks.to_le_bytes());
        put_count(body, self.digests.len());
        for digest in &self.digests {
            body.extend_from_slice(digest);
        }
    }
}

pub(super) fn decode_open_pair(reader: &mut Reader<'_>) -> Result<OpenPair, WireError> {
    let mode = match reader.u8("mode")? {
        1 => Mode::Seed,
        2 => Mode::Verify,
        3 => Mode::Epoch,
        found => {
            return Err(WireError::Unknown {
                field: "mode",
                found: u64::from(found),
            });
        }
    };
    Ok(OpenPair {
        mode,
        machine: name(reader, "machine name")?,
        disk: name(reader, "disk name")?,
        size: bounded(reader.u64("disk size")?, DISK_SIZE_MAX, "disk size")?,
        logical_block_size: reader.u32("logical block size")?,
        resume_seeding_id: reader.array("resume seeding id")?,
        resume_offset: bounded(reader.u64("resume offset")?, DISK_SIZE_MAX, "resume offset")?,
        generation: reader.u64("generation")?,
    })
}

pub(super) fn decode_pair_opened(reader: &mut Reader<'_>) -> Result<PairOpened, WireError> {
    let seeding_id = reader.array("seeding id")?;
    let start = region_offset(reader.u64("start")?)?;
    let generation = reader.u64("generation")?;
    let region_window = reader.u16("region window")?;
    if !(1..=REGION_WINDOW_MAX).contains(&region_window) {
        return Err(WireError::TooLarge {
            field: "region window",
            found: u64::from(region_window),
            max: u64::from(REGION_WINDOW_MAX),
        });
    }
    Ok(PairOpened {
        seeding_id,
        start,
        generation,
        region_window,
        scsi_id: name(reader, "SCSI ID")?,
    })
}

pub(super) fn decode_digests(reader: &mut Reader<'_>) -> Result<Digests, WireError> {
    let offset = region_offset(reader.u64("region offset")?)?;
    let len = reader.u32("region length")?;
    if len == 0 || u64::from(len) > REGION_SIZE {
        return Err(WireError::TooLarge {
            field: "region length",
            found: u64::from(len),
            max: REGION_SIZE,
        });
    }
    let zero_mask = reader.u16("zero mask")?;
    let block_count = usize::try_from(u64::from(len).div_ceil(BLOCK_SIZE)).unwrap_or(BLOCKS_PER_REGION);
    if block_count < BLOCKS_PER_REGION && zero_mask >> block_count != 0 {
        return Err(WireError::Contradiction {
            what: "a zero mask with bits beyond the region",
        });
    }
    let mut blocks = Vec::with_capacity(block_count);
    for index in 0..block_count {
        blocks.push(if zero_mask & (1 << index) == 0 {
            Some(reader.array("block digest")?)
        } else {
            None
        });
    }
    Ok(Digests { offset, len, blocks })
}

pub(super) fn decode_sub_digests(reader: &mut Reader<'_>) -> Result<SubDigests, WireError> {
    let offset = region_offset(reader.u64("region offset")?)?;
    let blocks = block_mask(reader)?;
    let count = count(
        reader,
        BLOCKS_PER_REGION * SUB_BLOCKS_PER_BLOCK,
        "sub-digest count",
    )?;
    let mut digests = Vec::with_capacity(count);
    for _ in 0..count {
        digests.push(reader.array("sub-digest")?);
    }
    Ok(SubDigests {
        offset,
        blocks,
        digests,
    })
}
