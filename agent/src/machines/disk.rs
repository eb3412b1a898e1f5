//! A target disk as the retention store sees it.

use std::io;
use std::sync::Arc;

use mt_blockdev::device::{BlockDevice, DeviceError};
use mt_retention::TargetDisk;

use crate::disks::open::OpenDisk;
use crate::model::PairId;

/// One open disk of a machine.
#[derive(Debug, Clone)]
pub struct MachineDisk {
    /// The pair.
    pub pair: PairId,
    /// Name of the protected disk.
    pub name: String,
    /// SCSI ID of the target disk.
    pub scsi_id: String,
    /// Size of the protected disk, bytes. The target disk may be larger; what is behind is never touched.
    pub size: u64,
    /// Logical block size, bytes.
    pub logical_block_size: u32,
    /// The disk, held exclusively.
    pub disk: Arc<OpenDisk>,
}

impl MachineDisk {
    /// The open device.
    pub fn device(&self) -> &BlockDevice {
        &self.disk.device
    }
}

impl TargetDisk for MachineDisk {
    fn size(&self) -> u64 {
        self.size
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> io::Result<()> {
        self.device().read_exact_at(buf, offset).map_err(told)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.device().write_all_at(data, offset).map_err(told)
    }

    fn zero(&self, offset: u64, len: u64) -> io::Result<()> {
        self.device().zero_range(offset, len).map(drop).map_err(told)
    }

    fn flush(&self) -> io::Result<()> {
        self.device().flush().map_err(told)
    }
}

fn told(error: DeviceError) -> io::Error {
    io::Error::other(format!("{error}: {}", error.io_error()))
}
