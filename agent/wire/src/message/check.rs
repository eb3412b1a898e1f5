//! What the decoders of all bodies check alike.

use super::Extent;
use super::Range;
use crate::codec::Reader;
use crate::frame::WireError;
use crate::limits::{
    BLOCK_SIZE, BLOCKS_PER_REGION, DISK_SIZE_MAX, EXTENTS_MAX, NAME_BYTES_MAX, PAYLOAD_BYTES_MAX, RANGES_MAX,
    REGION_SIZE,
};

pub(super) fn name(reader: &mut Reader<'_>, field: &'static str) -> Result<String, WireError> {
    let text = reader.text(NAME_BYTES_MAX, field)?;
    if text.is_empty() || text.chars().any(char::is_control) {
        return Err(WireError::NotText { field });
    }
    Ok(text)
}

pub(super) fn region_offset(offset: u64) -> Result<u64, WireError> {
    if !offset.is_multiple_of(REGION_SIZE) {
        return Err(WireError::Contradiction {
            what: "a region that does not begin at a multiple of the region size",
        });
    }
    bounded(offset, DISK_SIZE_MAX, "region offset")
}

pub(super) fn block_mask(reader: &mut Reader<'_>) -> Result<u16, WireError> {
    match reader.u16("block mask")? {
        0 => Err(WireError::Contradiction {
            what: "a block mask that names no block",
        }),
        blocks => Ok(blocks),
    }
}

pub(super) fn bounded(value: u64, max: u64, field: &'static str) -> Result<u64, WireError> {
    if value <= max {
        Ok(value)
    } else {
        Err(WireError::TooLarge {
            field,
            found: value,
            max,
        })
    }
}

pub(super) fn count(reader: &mut Reader<'_>, max: usize, field: &'static str) -> Result<usize, WireError> {
    let found = u64::from(reader.u32(field)?);
    match usize::try_from(bounded(found, max as u64, field)?) {
        Ok(0) | Err(_) => Err(WireError::Contradiction {
            what: "a list with nothing in it",
        }),
        Ok(count) => Ok(count),
    }
}

pub(super) fn put_count(body: &mut Vec<u8>, count: usize) {
    let count = u32::try_from(count).unwrap_or(u32::MAX);
    body.extend_from_slice(&count.to_le_bytes());
}

/// A bit for each block, lowest first.
pub(super) fn mask(bits: impl Iterator<Item = bool>) -> u16 {
    bits.take(BLOCKS_PER_REGION)
        .enumerate()
        .fold(0, |mask, (index, bit)| mask | u16::from(bit) << index)
}

pub(super) fn decode_extents(reader: &mut Reader<'_>, payload_len: usize) -> Result<Vec<Extent>, WireError> {
    let count = count(reader, EXTENTS_MAX, "extent count")?;
    let mut extents = Vec::with_capacity(count);
    let mut end_of_last = 0;
    let mut total = 0_u64;
    for _ in 0..count {
        let offset = bounded(reader.u64("extent offset")?, DISK_SIZE_MAX, "extent offset")?;
        let len = reader.u32("extent length")?;
        let reserved = reader.u32("extent flags")?;
        if reserved != 0 {
            return Err(WireError::Unknown {
                field: "extent flags",
                found: u64::from(reserved),
            });
        }
        if len == 0 || u64::from(len) > BLOCK_SIZE - offset % BLOCK_SIZE {
            return Err(WireError::Contradiction {
                what: "an extent that is empty or crosses the border of a block",
            });
        }
        if offset < end_of_last {
            return Err(WireError::Contradiction {
                what: "extents that overlap or are out of order",
            });
        }
        end_of_last = offset + u64::from(len);
        total += u64::from(len);
        extents.push(Extent {
            offset,
            len,
            digest: reader.array("extent digest")?,
        });
    }
    if total != payload_len as u64 || total > PAYLOAD_BYTES_MAX as u64 {
        return Err(WireError::Contradiction {
            what: "extents that do not add up to the payload",
        });
    }
    Ok(extents)
}

pub(super) fn decode_ranges(reader: &mut Reader<'_>) -> Result<Vec<Range>, WireError> {
    let count = count(reader, RANGES_MAX, "range count")?;
    let mut ranges = Vec::with_capacity(count);
    let mut end_of_last = 0;
    for _ in 0..count {
        let offset = bounded(reader.u64("range offset")?, DISK_SIZE_MAX, "range offset")?;
        let len = bounded(reader.u64("range length")?, DISK_SIZE_MAX, "range length")?;
        if len == 0 || offset < end_of_last {
            return Err(WireError::Contradiction {
                what: "ranges that are empty, overlap or are out of order",
            });
        }
        end_of_last = offset + len;
        ranges.push(Range { offset, len });
    }
    Ok(ranges)
}

pub(super) fn put_extents(body: &mut Vec<u8>, extents: &[Extent]) {
    put_count(body, extents.len());
    for extent in extents {
        body.extend_from_slice(&extent.offset.to_le_bytes());
        body.extend_from_slice(&extent.len.to_le_bytes());
        body.extend_from_slice(&[0; 4]);
        body.extend_from_slice(&extent.digest);
    }
}

pub(super) fn put_ranges(body: &mut Vec<u8>, ranges: &[Range]) {
    put_count(body, ranges.len());
    for range in ranges {
        body.extend_from_slice(&range.offset.to_le_bytes());
        body.extend_from_slice(&range.len.to_le_bytes());
    }
}
