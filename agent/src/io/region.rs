//! Reads a region, or finds out without reading that it is zero.

use mt_blockdev::device::{BlockDevice, DeviceError};

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// The buffer holds the region.
    Read,
    /// The region is a hole of a sparse file; the buffer was not touched.
    Hole,
}

/// Fills `buffer` with the region at `offset`, unless the whole of it is a hole.
///
/// # Errors
/// When the device cannot be read, or ends before the region does.
pub fn read(device: &BlockDevice, offset: u64, buffer: &mut [u8]) -> Result<Content, DeviceError> {
    let end = offset + buffer.len() as u64;
    let hole = device.next_data(offset)?.is_none_or(|data| data >= end);
    // A file that was cut short has a hole to its end too: only what lies inside it now may be taken for zeros.
    if hole && end <= device.stamp()?.size {
        return Ok(Content::Hole);
    }
    device.read_exact_at(buffer, offset)?;
    Ok(Content::Read)
}
