//! Reads a region, or finds out without reading that it is zero.

use mt_blockdev::device::{BlockDevice, DataMap, DeviceError};

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
    let hole = match device.next_data(offset)? {
        DataMap::HoleToEnd => true,
        DataMap::Data { start, .. } => start - offset >= buffer.len() as u64,
    };
    // A file that was cut short has a hole to its end too: only what lies inside it now may be taken for zeros.
    if hole && offset + buffer.len() as u64 <= device.stamp()?.size {
        return Ok(Content::Hole);
    }
    device.read_exact_at(buffer, offset)?;
    Ok(Content::Read)
}
