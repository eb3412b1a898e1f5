//! The protected disk of a cold source.

use std::path::Path;
use std::sync::Arc;

use mt_blockdev::device::{Access, BlockDevice, OpenOptions, Stamp};

use super::SourceError;

/// An image, block device or snapshot, open for reading.
#[derive(Debug, Clone)]
pub struct Image {
    /// The open device.
    pub device: Arc<BlockDevice>,
    stamp: Stamp,
}

impl Image {
    /// Opens it and notes what it looks like.
    ///
    /// # Errors
    /// When it cannot be opened or has a size that no disk has.
    pub fn open(path: &Path) -> Result<Self, SourceError> {
        let options = OpenOptions {
            access: Access::ReadOnly,
            exclusive: false,
        };
        let device = BlockDevice::open(path, options).map_err(SourceError::Open)?;
        let (size, block_size) = (device.size(), device.logical_block_size());
        if size == 0 {
            return Err(SourceError::Empty(path.to_owned()));
        }
        if !size.is_multiple_of(u64::from(block_size)) {
            return Err(SourceError::OddSize {
                path: path.to_owned(),
                size,
                block_size,
            });
        }
        let stamp = device.stamp().map_err(SourceError::Open)?;
        Ok(Self {
            device: Arc::new(device),
            stamp,
        })
    }

    /// One line that stands for the content: as long as it is the same, nobody wrote to the image.
    pub fn fingerprint(&self) -> &str {
        self.stamp.as_str()
    }

    /// Checks that nobody wrote to it since it was opened.
    ///
    /// # Errors
    /// When it changed, or when that cannot be told.
    pub fn check_unchanged(&self) -> Result<(), SourceError> {
        let now = self.device.stamp().map_err(SourceError::Read)?;
        if now == self.stamp {
            return Ok(());
        }
        let change = if now.size == self.stamp.size {
            "something wrote to it".to_owned()
        } else {
            format!("its size was {} bytes and is {} now", self.stamp.size, now.size)
        };
        Err(SourceError::Changed {
            path: self.device.path().to_owned(),
            change,
        })
    }
}
